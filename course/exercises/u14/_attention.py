"""Comparing attention: a mix, whose weights may have been rounded to bfloat16, and the logarithm of its sum, which may not."""

import torch

from course.checking.compare import same
from course.checking.exercise import Compare, Inputs, Tree

ROUNDED = 5e-3  # of a bfloat16 mix: right answers, weights rounded, were up to 2.8e-3 off
NOTHING_CANCELS = (
    2e-3  # where values are of one sign: right answers were up to 1.2e-3 off, a bfloat16 sum from 2.8e-3 on
)


def mix_and_log(mix: str, log: str, values: str) -> Compare:
    """A float32 mix to 1e-5 of its norm, a bfloat16 one to 5e-3, or 2e-3 where no number of the input `values` is negative;
    the logarithm to 1e-5 in any case."""
    strict, loose, tight = same(mix, log), same(mix, log, rtol=ROUNDED), same(mix, log, rtol=NOTHING_CANCELS)

    def compare(inputs: Inputs, wanted: Tree, got: Tree) -> str | None:
        if wanted[0].dtype != torch.bfloat16:
            return strict(inputs, wanted, got)
        what = (loose if (inputs[values] < 0).any() else tight)(inputs, wanted, got)
        return what or strict(inputs, [wanted[0], wanted[1]], [wanted[0], got[1]])

    return compare
