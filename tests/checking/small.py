"""Exercises and answers that are small enough to see what the engine does with them."""

from dataclasses import replace

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.checking.judge import Verdict, judge


def inputs(rng, number):
    return {"x_N": torch.tensor(rng.normal(size=number + 1)), "factor": float(number + 2)}


def scaled(x_N, factor):
    return x_N * factor


def by_division(x_N, factor):
    return x_N / (1 / factor)


def unscaled(x_N, factor):
    return x_N.clone()


def negated(x_N, factor):
    return -x_N * factor


SCALE = Exercise(
    id="90.1",
    unit="90",
    title="scale",
    entry="scale",
    points=3,
    minutes=1,
    difficulty=1,
    spine=False,
    inputs=inputs,
    cases=3,
    reference=scaled,
    compare=same("scaled"),
    misconceptions=(
        Misconception("unscaled", unscaled, "It looks like the factor was left out."),
        Misconception("negated", negated, "It looks like a flipped sign."),
    ),
    alternatives=(by_division,),
    hints=("Look at the factor.", "Multiply.", "x_N * factor"),
)


def answer(*body: str, before: str = "") -> str:
    """The source of an answer to SCALE with this body."""
    return before + "def scale(x_N, factor):\n" + "".join(f"    {line}\n" for line in body)


RIGHT = answer("return x_N * factor")


def verdict_on(source: str | None, exercise: Exercise = SCALE, earlier=(), **more) -> Verdict:
    return judge(exercise, source, {e.id: e for e in (exercise, *earlier)}, **more)


def variant(**changes) -> Exercise:
    return replace(SCALE, **changes)
