"""Keeping the arithmetic of an exercise in its kernels: what PyTorch may do beside them, and what a result may be.

PyTorch may allocate, fill, view, copy and cast, count and compare, and add up partial results. Every other operation that
makes more than one floating-point number is arithmetic that the kernels were asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
AWAY = frozenset((torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.numpy, torch.Tensor.tolist))


class NotTheKernel(Exception):
    """The answer computed beside its kernels, or returned what no kernel wrote."""


@contextmanager
def only_kernels() -> Iterator[None]:
    """Refuse arithmetic of PyTorch's inside the block, with NotTheKernel. What a launch does by itself is left alone."""
    with _NoArithmetic(), _NoWayAround():
        yield


class _NoArithmetic(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled by torch here; to skip its compiler costs each worker a second to import it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
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


def refuse_views(value: Any, arguments: dict[str, Any]) -> None:
    """Raises: NotTheKernel where a returned tensor is not contiguous, or is memory of an input."""
    given = {tensor.untyped_storage().data_ptr(): name for name, item in arguments.items() for tensor in _tensors(item)}
    for tensor in _tensors(value):
        if not tensor.is_contiguous():
            raise NotTheKernel(
                f"a result is not contiguous: its shape is {list(tensor.shape)}, its strides are {list(tensor.stride())}"
            )
        if (name := given.get(tensor.untyped_storage().data_ptr())) is not None:
            raise NotTheKernel(f"a result lies in the memory of the input `{name}`; a kernel has to write it")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
