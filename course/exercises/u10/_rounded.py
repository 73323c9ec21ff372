"""Comparing results that were rounded once: a bfloat16 is the nearest one, but where a float32 sum lay beside a tie."""

import torch

from course.checking.compare import same
from course.checking.exercise import Compare, Inputs, Tree

FEW = 50  # one bfloat16 in so many may be the neighbour of the one wanted, and one in any case
SMALL = 1e-6  # of the largest number wanted: differences below are none
STEP = 2.0**-7  # from one bfloat16 to the next, at most, over the smaller of them
RULE = " (a bfloat16 has to be the nearest one, or in one number of 50 its neighbour)"


def rounded_once(*names: str) -> Compare:
    """`same` for whatever is not bfloat16; bfloat16 by number, one in 50 being allowed to lie one step away."""
    exact = same(*names)

    def compare(inputs: Inputs, wanted: Tree, got: Tree) -> str | None:
        what = exact(inputs, wanted, _forgiven(wanted, got))
        return what + RULE if what and "relative error" in what and _narrow(wanted) else what

    return compare


def _narrow(value: Tree) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, torch.Tensor) and item.dtype == torch.bfloat16 for item in items)


def _forgiven(wanted: Tree, got: Tree) -> Tree:
    """What was got, with the neighbours that may be there in place of the numbers wanted; too many of them stay."""
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [_forgiven(w, g) for w, g in zip(wanted, got, strict=True)]
    tensors = isinstance(wanted, torch.Tensor) and isinstance(got, torch.Tensor)
    if (
        not tensors
        or not wanted.dtype == got.dtype == torch.bfloat16
        or wanted.shape != got.shape
        or not wanted.numel()
    ):
        return got
    far = (got.double() - wanted.double()).abs()
    off = far > SMALL * wanted.double().abs().nan_to_num(0.0, 0.0, 0.0).amax()
    neighbours = off & (far <= STEP * torch.minimum(got.double().abs(), wanted.double().abs()))
    if neighbours.sum() > max(1, wanted.numel() // FEW):
        return got
    return torch.where(neighbours | ~off & far.isfinite(), wanted, got)
