"""What kernels over rows ask of their inputs: a float they can widen, and rows whose elements lie side by side."""

import torch
from torch import Tensor

from course.kernels.rmsnorm import DTYPES, LONGEST


def check_floats(name: str, *tensors: Tensor) -> None:
    """Raises: ValueError when a tensor is neither float32 nor bfloat16 nor float16."""
    if any(tensor.dtype not in DTYPES for tensor in tensors):
        raise ValueError(f"{name} takes float32, bfloat16 and float16, not {_listed(t.dtype for t in tensors)}")


def check_row_length(name: str, x_ND: Tensor) -> None:
    """Raises: ValueError when x has no dimension, or more elements a row than one program holds in its registers."""
    if x_ND.dim() == 0:
        raise ValueError(f"{name} takes rows, and a tensor without dimensions has none")
    if x_ND.shape[-1] > LONGEST:
        raise ValueError(f"{name} takes rows of up to {LONGEST} elements, not {x_ND.shape[-1]}")


def as_rows(x_ND: Tensor) -> Tensor:
    """x as [N, D], whose rows may lie apart and whose elements of one row may not: a view where strides allow it.

    x has at least one element.
    """
    rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
    return rows_ND if rows_ND.stride(-1) == 1 else rows_ND.contiguous()


def empty_rows(x_ND: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result of x's shape, its rows one after another."""
    return torch.empty_like(x_ND, dtype=dtype, memory_format=torch.contiguous_format)


def warps(block: int) -> int:
    """Warps for a program that holds so many elements at once: 8 elements a thread, in 1 to 16 warps."""
    return min(max(block // 256, 1), 16)


def _listed(names) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
