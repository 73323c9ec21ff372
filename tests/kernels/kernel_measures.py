"""How far a kernel's numbers are from exact ones, and how many bytes eager PyTorch moves for the same."""

from itertools import pairwise

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STEP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half a unit in the last place of 1
SMALLEST = {torch.float32: 2.0**-126, torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126}  # with all its digits
PICKS = ("gather", "scatter")  # operations that touch no more of a tensor than they are told to


def drawn(shape, dtype=torch.float32, seed=0, mean=0.0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng) + mean).to(dtype)


SHARES = {  # rows of each expert
    "one expert": [20],
    "some have nothing": [0, 18, 0, 0, 5],
    "all rows are one's": [0, 0, 40, 0],
    "fewer rows than a tile": [3, 1, 2],
    "whole tiles": [16, 32, 16],
}


def grouped(counts, N, K, tokens, dtype, gather):
    """x, the experts' weights, the token of each row (None: as they lie) and the offsets."""
    P = sum(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rows = torch.randint(tokens, (P,), generator=torch.Generator().manual_seed(1)) if gather else None
    return drawn((tokens if gather else P, K), dtype, 2), drawn((len(counts), N, K), dtype, 3), rows, offsets


def grouped_exact(x, weight, rows, offsets):
    x = (x if rows is None else x[rows]).double()
    ranges = zip(pairwise(offsets.tolist()), weight.double(), strict=True)
    return torch.cat([x[start:end] @ w.T for (start, end), w in ranges])


def relative_error(got, exact) -> float:
    """The norm of the error over the norm of what is right."""
    error, size = (got.double() - exact).norm().item(), exact.norm().item()
    return error / size if size else error


def rounded_once(got, exact) -> None:
    """Asserts that float64 results were rounded to got's dtype, to nearest, once.

    Rounding down drifts by half of the largest error, or more; the bound is 3 % of it. Rounding twice gives a neighbour of
    the right number for one result in ten or so; float32 arithmetic before a single rounding, which may land on the other
    side of a tie, for one in a thousand.
    """
    large = exact.abs() > SMALLEST[got.dtype]
    error = (got.double() - exact)[large] / exact[large].abs() / STEP[got.dtype]
    assert len(error) > 10_000
    assert error.abs().max() <= 1.05
    assert error.mean().abs() < 0.03
    assert (got != exact.to(got.dtype)).double().mean() < 4e-3


class Traffic(TorchDispatchMode):
    """Bytes that eager operations read and write. Views move nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        moved = [tensor.nbytes for tensor in tensors]
        if func.overloadpacket.__name__.startswith(PICKS):
            moved = [min(moved)] * len(moved)
        self.bytes += 0 if func.is_view or func is torch.ops.aten._unsafe_view.default else sum(moved)
        return result


def bytes_each(function, *args, elements: int) -> float:
    """Bytes that a function of eager operations moves, over a number of elements."""
    with torch.no_grad(), Traffic() as traffic:
        function(*args)
    return traffic.bytes / elements
