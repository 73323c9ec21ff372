"""99.1: an example, the mean square of each row."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception


def inputs(rng, number):
    T, D = [(1, 1), (3, 5), (4, 4)][number] if number < 3 else rng.integers(1, 20, size=2)
    return {"x_TD": torch.tensor(rng.normal(size=(T, D)) + 0.5, dtype=torch.float32)}


def reference(x_TD):
    return x_TD.pow(2).mean(dim=-1)


def by_norm(x_TD):
    return x_TD.norm(dim=-1) ** 2 / x_TD.shape[1]


def of_the_columns(x_TD):
    return x_TD.pow(2).mean(dim=0)


def sum_of_squares(x_TD):
    return x_TD.pow(2).sum(dim=-1)


def square_of_the_mean(x_TD):
    return x_TD.mean(dim=-1).pow(2)


def root(x_TD):
    return x_TD.pow(2).mean(dim=-1).sqrt()


EXERCISE = Exercise(
    id="99.1",
    unit="99",
    title="an example",
    entry="mean_square",
    points=5,
    minutes=5,
    difficulty=1,
    spine=False,
    inputs=inputs,
    cases=5,
    reference=reference,
    compare=same("mean square"),
    misconceptions=(
        Misconception("of-the-columns", of_the_columns, "It looks like the mean of each column. A row is dim=-1."),
        Misconception("sum-of-squares", sum_of_squares, "It looks like the sum of the squares. Divide by the length."),
        Misconception("square-of-the-mean", square_of_the_mean, "It looks like the square of the mean. Square first."),
        Misconception("root", root, "It looks like the root of the mean square. The root is not asked for here."),
    ),
    alternatives=(by_norm,),
    hints=(
        "How many numbers come back for a row?",
        "Two operations, in the order in which their names stand: which is done first?",
        "Square every entry; then take the mean over the last dimension.",
    ),
)
