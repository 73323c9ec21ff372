"""Faults put into every right answer one at a time: at least 95 % must be found, and the rest change nothing at all.

What was judged is kept under .cache/mutants by the hash of all it depends on, so that a broken run goes on where it was.
"""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import course
from course.checking.launch import forked

from mutants import Mutant, mutants  # isort: skip
from specifications import EVERY, judged, right_answers, source  # isort: skip

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "mutants"
EQUIVALENT = json.loads((HERE / "equivalent_mutants.json").read_text())
KILLED = 0.95
SEEDS = (101, 102)  # secret draws that a mutant must survive beyond the public cases
SECONDS = 3.0


def subject(exercise) -> str:
    """The source that is mutated: the reference, or for a kernel exercise its first alternative, which is the kernel."""
    return source(exercise, right_answers(exercise)[0])


def survives(exercise, mutant: Mutant) -> bool:
    """Whether a mutant passes the public cases and then the secret ones."""
    bare = replace(exercise, misconceptions=())
    return all(judged(bare, mutant.source, seed, start=forked, seconds=SECONDS).passed for seed in (None, *SEEDS))


def survivors(exercise) -> tuple[list[str], int]:
    """The names of the mutants that pass, and how many there are in all."""
    kept = CACHE / f"{exercise.id}-{_state(exercise)}.jsonl"
    known = dict(map(json.loads, kept.read_text().splitlines())) if kept.exists() else {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    assert survives(exercise, Mutant("none", subject(exercise)))
    every = mutants(subject(exercise))
    with kept.open("a") as results:
        for mutant in every:
            if mutant.name not in known:
                known[mutant.name] = survives(exercise, mutant)
                results.write(json.dumps([mutant.name, known[mutant.name]]) + "\n")
                results.flush()
    return [mutant.name for mutant in every if known[mutant.name]], len(every)


def _state(exercise) -> str:
    """A hash of what a result depends on: the specification, the operators, the engine and, for a kernel, what runs it."""
    package = Path(course.__file__).parent
    folders = ["checking", *(["kernels"] if exercise.kernel else []), *[f"exercises/u{e[:2]}" for e in exercise.uses]]
    files = [Path(exercise.inputs.__code__.co_filename), HERE / "mutants.py", Path(__file__)]
    files += [path for folder in folders for path in sorted((package / folder).glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def holds(exercise) -> None:
    alive, count = survivors(exercise)
    listed = EQUIVALENT.get(exercise.id, {})
    assert count > 0
    assert not set(alive) - set(listed), "mutants that the checks do not find, and that nobody called equivalent"
    assert not set(listed) - set(alive), "called equivalent, and found by the checks or not there at all"
    assert all(len(reason.split()) >= 4 for reason in listed.values())
    real = count - len(listed)
    assert (count - len(alive)) / real >= KILLED, f"{count - len(alive)} of {real} found"


def test_the_operators_find_each_kind_of_fault():
    text = (
        "def f(x, k):\n    'Words.'\n    y = x[1:k] + 2\n    if x < k and k:\n        y = max(y, -k)\n        y += 1\n"
        "    return sort(y, dim=0, stable=True)\n"
    )
    lines = {name.split("  =>  ")[1] for name in (mutant.name for mutant in mutants(text))}
    assert lines >= {
        "y = x[1:k] - 2", "y = x[1:k] + 3", "y = x[1:k] + 1", "y = x[1:k] + -2", "y = x[2:k] + 2", "y = x[0:k] + 2",
        "y = x[1:k + 1] + 2", "y = x[1:k - 1] + 2", "if x <= k and k:", "if x > k and k:", "if x < k or k:",
        "if not (x < k and k):", "y = min(y, -k)", "y = max(y, k)", "y = max(-k, y)", "y -= 1", "y += 2", "y += 0", "pass",
        "return sort(y, dim=0)", "return sort(y, stable=True)", "return sort(y, dim=1, stable=True)",
        "return sort(y, dim=0, stable=False)",
    }  # fmt: skip
    assert all("Words" in mutant.source for mutant in mutants(text))


def test_every_mutant_is_a_text_of_its_own_that_parses():
    for exercise in EVERY.values():
        found = mutants(subject(exercise))
        assert len({mutant.source for mutant in found}) == len({mutant.name for mutant in found}) == len(found)
        for mutant in found:
            compile(mutant.source, mutant.name, "exec")


def test_the_faults_of_one_exercise_are_found(monkeypatch, tmp_path):
    """All mutants of 05.9, judged anew each time: what `make test-deep` does for every exercise."""
    monkeypatch.setattr("test_mutants.CACHE", tmp_path)
    begun = time.monotonic()
    holds(EVERY["05.9"])
    again = time.monotonic()
    holds(EVERY["05.9"])
    assert time.monotonic() - again < (again - begun) / 5 + 0.5


def test_what_is_called_equivalent_belongs_to_an_exercise():
    assert set(EQUIVALENT) <= set(EVERY)


@pytest.mark.deep
@pytest.mark.parametrize("exercise", EVERY.values(), ids=EVERY.keys())
def test_the_faults_of_every_exercise_are_found(exercise):
    holds(exercise)
