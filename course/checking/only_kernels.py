"""Keeping the arithmetic of an exercise in its kernels: what PyTorch may do beside them, and what a result may be.

PyTorch may allocate, fill, view, copy and cast, count and compare, and add up partial results. Every other operation that
makes more than one floating-point number is arithmetic that the kernels were asked for. Where only kernels may read, PyTorch
allocates, fills and views, and no more: it may not read what is in a tensor.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MOVES = frozenset(
    [
        "_to_copy",
        "alias",
        "arange",
        "clone",
        "constant_pad_nd",
        "copy_",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "fill_",
        "full",
        "full_like",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "set_",
        "sum",
        "zero_",
        "zeros",
        "zeros_like",
    ]
)  # of ATen's operations, beside views
UNTOUCHED = frozenset(
    ["alias", "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_"]
)  # neither read nor write what is in a tensor
OVERWRITES = frozenset(
    ["copy_", "fill_", "full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zero_", "zeros_like"]
)  # do not read the tensor that they are called on
SHOWN = {"_local_scalar_dense": "the host takes a number out of it"}  # operations whose name says nothing
AWAY = frozenset((torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.numpy, torch.Tensor.tolist))


class NotTheKernel(Exception):
    """The answer computed beside its kernels, or returned what no kernel wrote."""


@dataclass
class Tally:
    """What PyTorch moved beside the kernels: operations that touch memory, and bytes, each tensor's once an operation."""

    operations: int = 0
    load_bytes: int = 0
    store_bytes: int = 0

    def count(self, name: str, args: Any, result: Any) -> None:
        self.operations += 1
        self.load_bytes += sum(tensor.nbytes for tensor in _read(name, args))
        self.store_bytes += sum(tensor.nbytes for tensor in _tensors(result))


@contextmanager
def only_kernels(reads: bool = True) -> Iterator[Tally]:
    """Refuse arithmetic of PyTorch's inside the block, with NotTheKernel. What a launch does by itself is left alone.

    reads: whether PyTorch may read tensors at all; if not, copies, casts, sums and whole numbers are refused too.
    """
    tally = Tally()
    with _NoArithmetic(tally, reads), _NoWayAround():
        yield tally


class _NoArithmetic(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled by torch here; to skip its compiler costs each worker a second to import it

    def __init__(self, tally: Tally, reads: bool):
        super().__init__()
        self.tally, self.reads = tally, reads
        self.plain: list[torch.Tensor] = []  # numbers of the host's, kept so that nothing else comes to lie there

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "lift_fresh":
            self.plain.append(result)
        if not func.is_view and name not in UNTOUCHED:
            self.tally.count(name, args, result)
            if not self.reads and next(_read(name, args, self.plain), None) is not None:
                how = SHOWN.get(name, name.strip("_"))
                raise NotTheKernel(
                    f"PyTorch reads a tensor here ({how}); in this exercise it may allocate, fill and view, and "
                    "kernels do the rest"
                )
        if (
            not func.is_view
            and name not in MOVES
            and any(map(_many, result if isinstance(result, tuple | list) else [result]))
        ):
            raise NotTheKernel(
                f"PyTorch computes here ({name.strip('_')}); beside the kernels it may allocate, view, copy, cast, count and add up"
            )
        return result


class _NoWayAround(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in AWAY:
            raise NotTheKernel(f"numbers leave PyTorch here ({func.__name__.strip('_')}); the kernels are to compute")
        return func(*args, **(kwargs or {}))


def _many(result: Any) -> bool:
    return isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel() > 1


def refuse_views(value: Any, arguments: dict[str, Any], before: Any = None) -> None:
    """Raises: NotTheKernel where a returned tensor is not contiguous, or is memory of an input or of `before`, the result of
    the call before, which still exists."""
    old = {tensor.untyped_storage().data_ptr() for tensor in _tensors(before)}
    given = {tensor.untyped_storage().data_ptr(): name for name, item in arguments.items() for tensor in _tensors(item)}
    for tensor in _tensors(value):
        if not tensor.is_contiguous():
            raise NotTheKernel(
                f"a result is not contiguous: its shape is {list(tensor.shape)}, its strides are {list(tensor.stride())}"
            )
        if (name := given.get(tensor.untyped_storage().data_ptr())) is not None:
            raise NotTheKernel(f"a result lies in the memory of the input `{name}`; a kernel has to write it")
        if tensor.untyped_storage().data_ptr() in old:
            raise NotTheKernel(
                "a result lies in the memory of the result before it; each call returns memory of its own"
            )


def _read(name: str, args: Any, plain: Iterable[torch.Tensor] = ()) -> Iterator[torch.Tensor]:
    """The tensors that an operation reads, without those that lie where one of `plain` does."""
    known = {tensor.untyped_storage().data_ptr() for tensor in plain}
    for tensor in _tensors(args[1:] if name in OVERWRITES else args):
        if tensor.untyped_storage().data_ptr() not in known:
            yield tensor


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
