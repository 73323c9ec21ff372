"""The size at which entries of the leaderboard are held against each other, and the bytes that nobody can do without.

Sizes stand in `course.grading.sizes`, a file a unit; `scale` multiplies the rows for a GPU. The least that must be loaded is
every element of every input once, but for what the data shows not to be needed: rows that no id names, targets that do not
count, gaps. The least that must be stored is every element of the results once. An exercise without a size of its own takes
the largest of its numbered cases whose numbers depend on chance and whose shapes do not, with nothing said of what must be
loaded.
"""

import numpy as np
import torch

from course.checking.exercise import Exercise, Inputs, Tree
from course.checking.wire import tree
from course.grading import GradingError
from course.grading.sizes import Standard, everything, u09, u10, u11, u12, u13, u14

STANDARD = u09.SIZES | u10.SIZES | u11.SIZES | u12.SIZES | u13.SIZES | u14.SIZES


def standard(exercise: Exercise) -> Standard:
    """The standard inputs of an exercise. Raises: GradingError where there are none to be had."""
    if exercise.id in STANDARD:
        return STANDARD[exercise.id]
    fixed = [
        number for number in range(exercise.cases) if _is_fixed(*(_case(exercise, seed, number) for seed in (1, 2)))
    ]
    if not fixed:
        raise GradingError(f"Exercise {exercise.id} has no size at which entries could be compared.")
    largest = max(fixed, key=lambda number: everything(_case(exercise, 1, number)))
    return Standard(lambda rng, scale: exercise.inputs(rng, largest), loads=lambda inputs: 0, gpu=0)


def drawn(its: Standard, seed: int, scale: int = 1) -> Inputs:
    return tree(its.draw(np.random.default_rng(seed), scale))


def least_stored(wanted: Tree) -> int:
    """Bytes of all tensors in a result."""
    if isinstance(wanted, torch.Tensor):
        return wanted.nbytes
    parts = wanted.values() if isinstance(wanted, dict) else wanted if isinstance(wanted, list) else ()
    return sum(map(least_stored, parts))


def _is_fixed(one: Inputs, other: Inputs) -> bool:
    """Whether two draws differ in numbers and in no shape."""
    tensors = [(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor)]
    return _shapes(one) == _shapes(other) and not all(torch.equal(a, b) for a, b in tensors)


def _shapes(inputs: Inputs) -> list[tuple]:
    return [(name, value.shape, value.dtype) for name, value in inputs.items() if isinstance(value, torch.Tensor)]


def _case(exercise: Exercise, seed: int, number: int) -> Inputs:
    return tree(exercise.inputs(np.random.default_rng(seed), number))
