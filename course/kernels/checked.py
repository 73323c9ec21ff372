"""The checked interpreter: kernels run on the CPU, and what a GPU would punish is said in one sentence.

    with checked() as log:
        scale[(4,)](x, out, x.numel(), BLOCK=256)
    log.launches[0].load_bytes

What is found
  Bounds     a lane that is not masked off and leaves the view that was passed: into padding between rows, into another
             tensor, a million elements away. Tensor descriptors pad and clip at the shape they were given.
  Races      two programs, one element, one of them writes, and not both by atomics. Programs that are ordered by atomics
             (a lock, the last one to arrive) do not race. Two lanes of one store that write different values do.
  Poison     masked-off lanes of tl.load without `other`, and fresh memory (torch.empty and its kin), hold NaN; integers
             hold 0x7BADBAD07BADBAD0 cut to their size. Reductions pass NaN on.
  Refusals   what sm_90 refuses and one line can tell: tl.dot with a short K, grids that cannot be launched, arguments
             that do not exist. What else a chip refuses, `course.kernels.machine` finds by compiling.
  Precision  bfloat16, float16 and FP8 count as torch counts: `course.kernels.low_precision`. A tl.dot adds in
             float32; a chip would add FP8 products with fewer bits (V3 report, 3.3). float32 inputs are cut to TF32 unless
             input_precision is "ieee", as on a chip.

A kernel's float arguments are float32, as they are on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from course.kernels import need_triton
from course.kernels.launch import KernelFault, Launch
from course.kernels.low_precision import POISON

__all__ = ["KernelFault", "Log", "checked"]


@dataclass
class Log:
    """The launches of one `with checked()`, in their order."""

    launches: list[Launch] = field(default_factory=list)


@contextmanager
def checked() -> Iterator[Log]:
    """Watch every launch of a @triton.jit kernel inside the block. Blocks may nest: the innermost one watches.

    Raises: KernelFault from the launch that is at fault; RuntimeError where kernels are not interpreted, ImportError
    without Triton.
    """
    need_triton()
    from course.kernels.interpreter import Builder, installed, interpreting

    if not interpreting():
        raise RuntimeError("checked() needs the interpreter: set TRITON_INTERPRET=1 before Triton is imported.")
    log = Log()
    with installed(Builder(log.launches.append)), _PoisonFreshMemory():
        yield log


class _PoisonFreshMemory(TorchFunctionMode):
    FRESH = frozenset(
        (
            torch.empty,
            torch.empty_like,
            torch.empty_strided,
            torch.empty_permuted,
            torch.Tensor.new_empty,
            torch.Tensor.new_empty_strided,
        )
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in self.FRESH:
            with _disable_current_modes():  # nothing that watches PyTorch's operations is to see this one
                _poison(result)
        return result


@torch.no_grad()
def _poison(fresh: torch.Tensor) -> None:
    if fresh.is_floating_point() and fresh.itemsize == 1:
        fresh.view(torch.uint8).fill_(0x7F)
    elif fresh.is_floating_point() or fresh.is_complex():
        fresh.fill_(float("nan"))
    elif fresh.dtype != torch.bool:
        info = torch.iinfo(fresh.dtype)
        low = POISON & (1 << info.bits) - 1
        fresh.fill_(low if low <= info.max else low - (1 << info.bits))
