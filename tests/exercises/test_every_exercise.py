"""The gate: what every exercise's specification promises, held against fresh secret inputs.

Wrong answers must fail, and be named; right ones must pass, however they are written; a blank one is not done.
"""

import re
import secrets
import subprocess
import sys
from itertools import permutations

import pytest

from course.checking.answer import look_at
from course.checking.launch import forked, fresh
from course.checking.result import text

from specifications import (  # isort: skip
    EVERY, PILOTS, blank, cases, digest, fails, judged, lines_of, right_answers, seeds, source, told_apart, values,
)  # fmt: skip

LEAKS = 16  # characters that make a line of the reference worth keeping out of a hint, spaces aside
each_exercise = pytest.mark.parametrize("exercise", EVERY.values(), ids=EVERY.keys())


@each_exercise
def test_the_specification_is_complete(exercise):
    assert re.fullmatch(r"\d\d\.[1-9]\d?", exercise.id)
    assert exercise.unit == exercise.id[:2]
    assert exercise.title
    assert not exercise.title.endswith(".")
    assert exercise.entry.isidentifier()
    assert exercise.points > 0
    assert 5 <= exercise.minutes <= 90
    assert exercise.difficulty in range(1, 6)
    assert exercise.cases >= 2
    names = [misconception.name for misconception in exercise.misconceptions]
    assert len(names) == len(set(names)) >= 4
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    for misconception in exercise.misconceptions:
        assert re.match(r"It looks like .*\.$", misconception.says, re.DOTALL), misconception.name
    assert len(exercise.alternatives) >= 1
    assert set(exercise.uses) <= set(EVERY)
    assert all(list(EVERY).index(earlier) < list(EVERY).index(exercise.id) for earlier in exercise.uses)


@each_exercise
def test_hints_are_three_and_none_is_the_answer(exercise):
    assert len(exercise.hints) == len({*exercise.hints}) == 3
    lines = [re.sub(r"\s", "", line.removeprefix("return ")) for line in lines_of(exercise.reference)]
    lines = [line for line in lines if len(line) >= LEAKS]
    nudge, push, nearly = ([line for line in lines if line in re.sub(r"\s", "", hint)] for hint in exercise.hints)
    assert not nudge + push
    assert len(nearly) <= len(lines) / 2, f"the last hint holds {nearly}"


@each_exercise
def test_no_right_answer_is_refused_by_reading_it(exercise):
    for function in right_answers(exercise):
        look_at(exercise, source(exercise, function))


@each_exercise
def test_inputs_are_the_same_for_a_seed_and_differ_between_seeds(exercise):
    for seed in (0, 2**64 - 1):
        again = [[digest(inputs) for inputs in cases(exercise, seed)] for _ in range(2)]
        assert again[0] == again[1]
        assert len(set(again[0])) > exercise.cases
    a, b = ([digest(inputs) for inputs in cases(exercise, seed)] for seed in (1, 2))
    assert a[-1] != b[-1]


def test_inputs_are_the_same_in_another_process():
    code = (
        "from specifications import EVERY, cases, digest\n"
        "for e in EVERY.values(): print(e.id, *[digest(i) for i in cases(e, 5)])"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=PILOTS.parent / "exercises", capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    here = [" ".join([e.id, *map(digest, cases(e, 5))]) for e in EVERY.values()]
    assert told.stdout.splitlines() == here


def right_answers_pass(exercise, seed, **more):
    for function in right_answers(exercise):
        verdict = judged(exercise, source(exercise, function), seed, start=forked, **more)
        assert verdict.passed, f"{function.__name__}, seed {seed}\n{text(verdict)}"


def wrong_answers_fail_and_are_named(exercise, seed):
    for misconception in exercise.misconceptions:
        verdict = judged(exercise, source(exercise, misconception.answer), seed, start=forked)
        assert verdict.status == "failed", f"{misconception.name} passes with seed {seed}"
        if verdict.misconception != misconception.name:
            drawn = cases(exercise, seed)
            other = next((m for m in exercise.misconceptions if m.name == verdict.misconception), None)
            assert other, f"{misconception.name} is not named, seed {seed}\n{text(verdict)}"
            assert seed is not None, f"{misconception.name} is named {other.name} in public"
            mine, its = (values(exercise, m.answer, drawn) for m in (misconception, other))
            assert not told_apart(exercise, drawn, its, mine), (
                f"{misconception.name} is named {other.name}, seed {seed}"
            )


@each_exercise
def test_right_answers_pass_in_public_and_in_secret(exercise):
    right_answers_pass(exercise, None)
    for _ in range(seeds(exercise)):  # what is compiled in secret differs by block sizes: see the deep test
        right_answers_pass(exercise, secrets.randbits(64), compile=lambda text, launches: [])


@each_exercise
def test_every_misconception_fails_and_is_named(exercise):
    wrong_answers_fail_and_are_named(exercise, None)
    seed = secrets.randbits(64)
    if not exercise.kernel:
        wrong_answers_fail_and_are_named(exercise, seed)
        return
    for misconception in exercise.misconceptions:  # in secret up to its first wrong value: see the deep test
        assert fails(exercise, misconception.answer, seed), f"{misconception.name} passes with seed {seed}"


@each_exercise
def test_every_two_misconceptions_are_told_apart_in_public(exercise):
    drawn = cases(exercise)
    came = {m.name: values(exercise, m.answer, drawn) for m in exercise.misconceptions}
    for one, other in permutations(came, 2):
        assert told_apart(exercise, drawn, came[one], came[other]), f"{one} and {other} are one on public cases"


@each_exercise
def test_a_blank_answer_is_not_done(exercise):
    for seed in (None, 1):
        assert judged(exercise, blank(exercise), seed, start=forked).status == "not done"


@each_exercise
def test_a_right_answer_passes_in_a_fresh_process_too(exercise):
    verdict = judged(exercise, source(exercise, right_answers(exercise)[0]), start=fresh)
    assert verdict.passed, text(verdict)


@pytest.mark.parametrize("exercise", [e for e in EVERY.values() if e.kernel], ids=lambda e: e.id)
def test_the_pytorch_reference_is_no_answer_to_a_kernel_exercise(exercise):
    verdict = judged(exercise, source(exercise, exercise.reference), start=forked)
    assert any(reason in verdict.failures[0].what for reason in ("no Triton kernel was launched", "NotTheKernel"))


@pytest.mark.deep
@each_exercise
@pytest.mark.parametrize("nth", range(20))
def test_right_and_wrong_answers_with_many_seeds(exercise, nth):
    seed = secrets.randbits(64)
    right_answers_pass(exercise, seed)
    wrong_answers_fail_and_are_named(exercise, seed)
