"""What an exercise is: its inputs, its right answer, the wrong ones that people give, and how values are compared.

One specification serves four runners, which give the same verdict on the same answer: `check` in a notebook,
`course check`, the tests of the checks, and `course grade`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Tree = Any  # dict, list, None, bool, int, float, str, torch.Tensor, nested
Inputs = dict[str, Tree]
Compare = Callable[[Inputs, Tree, Tree], str | None]


@dataclass(frozen=True)
class Misconception:
    name: str  # short slug, stable
    answer: Callable[..., Tree]  # a whole wrong answer
    says: str  # one sentence to the learner: what it looks like, and what is true
    seen: str | None = None  # where it was really seen (project, thread); None: plausible, not observed


@dataclass(frozen=True)
class Exercise:
    id: str  # "05.2"
    unit: str  # "05"
    title: str
    entry: str  # the name that the answer cell defines
    points: int
    minutes: int
    difficulty: int  # 1 to 5
    spine: bool  # on the short path through the course
    inputs: Callable[[np.random.Generator, int], Inputs]  # case number -> keyword arguments; edge cases first
    cases: int  # public cases; the grader draws three times as many
    reference: Callable[..., Tree]
    compare: Compare  # inputs, wanted, got -> None when right, else what differs
    misconceptions: tuple[Misconception, ...]  # at least 4
    alternatives: tuple[Callable[..., Tree], ...]  # at least 1
    hints: tuple[str, str, str]
    uses: tuple[str, ...] = ()  # ids of earlier exercises whose reference the answer may call, by name or with `mine`
    gives: tuple[str, ...] = ()  # modules of course that an answer may import; no other part of course exists for it
    forbids: tuple[str, ...] = ()  # library calls that would be the answer, as dotted names
    kernel: bool = False  # a Triton kernel must have been launched, and it must also compile for sm_90
    tags: tuple[str, ...] = field(
        default=()
    )  # "only kernels read": beside them PyTorch allocates, fills and views; "no host wait"
