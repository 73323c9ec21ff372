"""Comparing attention: a mix, whose weights may have been rounded to bfloat16, and the logarithm of its sum, which may not."""

import torch

from course.checking.compare import same
from course.checking.exercise import Compare, Inputs, Tree

ROUNDED = 5e-3  # of a bfloat16 mix: its own rounding is some 2e-3, that of the weights less


def mix_and_log(mix: str, log: str) -> Compare:
    """A float32 mix to 1e-5 of its norm, a bfloat16 one to 5e-3; the logarithm to 1e-5 in any case."""
    strict, loose = same(mix, log), same(mix, log, rtol=ROUNDED)

    def compare(inputs: Inputs, wanted: Tree, got: Tree) -> str | None:
        if wanted[0].dtype != torch.bfloat16:
            return strict(inputs, wanted, got)
        what = loose(inputs, wanted, got)
        return what or strict(inputs, [wanted[0], wanted[1]], [wanted[0], got[1]])

    return compare
