"""One answer, four runners, one verdict: the check in a notebook, `course check`, the tests of the checks, and the grader.

The pilots' lab is built, and then made wide: as many copies of each exercise as there are answers to try, each under a
number of its own (99.1, 99.2, ...). So every runner starts once.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from course.authoring import marks, places
from course.authoring.build import build
from course.authoring.source import notebook, read_source
from course.checking.launch import forked
from course.checking.result import text
from course.exercises import every

from specifications import EVERY, PILOTS, blank, judged, source  # isort: skip

NAMES = ("05.9", "07.9", "10.9")
SLUG = "99_pilot"


@dataclass(frozen=True)
class Try:
    """One answer under a number of its own, and what every runner must say about it."""

    pilot: str
    id: str
    kind: str
    answer: str
    status: str
    misconception: str | None = None


def _tries() -> list[Try]:
    found = []
    for name in NAMES:
        e = EVERY[name]
        answers = [
            ("alternative", source(e, e.alternatives[0]), "passed", None),
            ("reference", source(e, e.reference), "failed" if e.kernel else "passed", None),
            *((m.name, source(e, m.answer), "failed", m.name) for m in e.misconceptions),
            ("blank", blank(e), "not done", None),
            ("raises", blank(e).replace("Error", "Error('later')"), "failed", None),
        ]
        found += [
            Try(name, f"99.{len(found) + n}", kind, f"# exercise 99.{len(found) + n}\n{answer}", *verdict)
            for n, (kind, answer, *verdict) in enumerate(answers, 1)
        ]
    return found


TRIES = _tries()
FIRST = [next(attempt for attempt in TRIES if attempt.pilot == name) for name in NAMES]
each_try = pytest.mark.parametrize("attempt", TRIES, ids=[f"{t.pilot}-{t.kind}" for t in TRIES])


def specification(attempt: Try) -> str:
    """A module that holds the pilot's specification under the number of an attempt."""
    path = EVERY[attempt.pilot].inputs.__code__.co_filename
    return (
        f"{Path(path).read_text()}\n\nfrom dataclasses import replace\n"
        f'EXERCISE = replace(EXERCISE, id="{attempt.id}", unit="99")\n'
    )


def lab_source(attempts: list[Try]) -> str:
    """The pilots' lab, with the cells of an exercise once for every attempt at it, under the attempt's number."""
    head, *parts = (PILOTS / "solutions" / f"{SLUG}.py").read_text().split("# %% [markdown]\n# ## ")
    parts = dict(zip(NAMES, parts, strict=True))
    return head + "".join(
        "# %% [markdown]\n# ## " + parts[attempt.pilot].replace(attempt.pilot, attempt.id).rstrip() + "\n\n"
        for attempt in attempts
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A course of the pilots alone, under their numbers here; and the workspace of a learner."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "exercises" / "u99").mkdir(parents=True)
    for attempt in TRIES:
        name = f"n{attempt.id.replace('.', '_')}.py"
        (folder / "exercises" / "u99" / name).write_text(specification(attempt))
    for name in ("solutions", "labs", "workspace/labs"):
        (folder / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_EXERCISES", str(folder / "exercises"))
        patch.setenv("COURSE_ROOT", str(folder))
        patch.setenv("COURSE_HOME", str(folder / "workspace"))
        every.cache_clear()
        yield folder
    every.cache_clear()


@pytest.fixture(scope="module")
def built(world) -> dict[str, dict]:
    """The pilots' solution and lab, as `course build` makes them."""
    (world / "solutions" / f"{SLUG}.py").write_text(lab_source(FIRST))
    assert build(places.units(), tell=lambda line: None) == []
    return {kind: json.loads(places.unit("99").notebook(kind, world).read_text()) for kind in ("solution", "lab")}


@pytest.fixture(scope="module")
def learners_lab(built, world) -> Path:
    """The wide lab with every answer in its cell, as a learner saves it; its solution and lab are those of the course."""
    (world / "solutions" / f"{SLUG}.py").write_text(lab_source(TRIES))
    books = {kind: _wide(kind, book, world) for kind, book in built.items()}
    path = world / "workspace" / "labs" / f"{SLUG}.ipynb"
    for attempt in TRIES:
        _cell(books["lab"], "exercise", attempt.id)["source"] = attempt.answer
    path.write_text(json.dumps(books["lab"]))
    return path


def _wide(kind: str, built: dict, world: Path) -> dict:
    """The notebook of the wide lab, written where a build writes it; each check shows what the built one shows."""
    book = notebook(read_source(world / "solutions" / f"{SLUG}.py", kind), kind)
    for attempt in TRIES:
        first = next(one for one in FIRST if one.pilot == attempt.pilot)
        shown = json.dumps(_cell(built, "check", first.id)["outputs"]).replace(f"{first.id} ", f"{attempt.id} ")
        _cell(book, "check", attempt.id).update(outputs=json.loads(shown), execution_count=1)
    places.unit("99").notebook(kind, world).write_text(json.dumps(book))
    return book


def _cell(book: dict, role: str, name: str) -> dict:
    return next(cell for cell in book["cells"] if marks.role_of(cell) == (role, name))


def shown_by(book: dict, name: str) -> str:
    """What the check cell of an exercise shows."""
    (output,) = _cell(book, "check", name)["outputs"]
    return "".join(output["data"]["text/plain"])


@pytest.fixture(scope="module")
def in_a_notebook(learners_lab, world):
    """The learner runs the lab from the top in a kernel: what each check showed, and its verdict."""
    import nbformat
    from nbclient import NotebookClient

    told = world / "verdicts"
    book = nbformat.read(learners_lab, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_VERDICTS", str(told))
        NotebookClient(book, timeout=120, resources={"metadata": {"path": str(learners_lab.parent)}}).execute()
    verdicts = {verdict["id"]: verdict for verdict in map(json.loads, told.read_text().splitlines())}
    return book, verdicts


@pytest.fixture(scope="module")
def by_command(learners_lab):
    """The lines that `course check 99` prints, by exercise."""
    done = _course("check", "99")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    return {line.split()[0]: line for line in lines if line.startswith("99.")}


@pytest.fixture(scope="module")
def by_the_grader(learners_lab, world):
    """What `course grade` writes about the learner, by exercise."""
    done = _course("grade", "--lab", "99", "--out", str(world / "grades"), str(learners_lab))
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (world / "grades").glob("*/results.json")
    return {test["extra_data"]["exercise"]: test for test in json.loads(results.read_text())["tests"]}


def _course(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"COLUMNS": "2000"}
    command = [sys.executable, "-m", "course", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_the_pilots_lab_is_built_with_solutions_that_pass_and_blanks_that_are_not_done(built):
    for attempt in FIRST:
        assert shown_by(built["solution"], attempt.id).endswith(": passed, 10 points")
        assert shown_by(built["lab"], attempt.id).endswith(": not done yet")
    assert "BEGIN SOLUTION" not in json.dumps(built["lab"])


@each_try
def test_the_gate_gives_the_verdict_and_the_notebook_the_same_in_the_same_words(in_a_notebook, attempt):
    book, verdicts = in_a_notebook
    gate = judged(every()[attempt.id], attempt.answer, start=forked)
    assert (gate.status, gate.misconception) == (attempt.status, attempt.misconception)
    assert shown_by(book, attempt.id) == text(gate)
    told = verdicts[attempt.id]
    assert (told["status"], told["misconception"]) == (attempt.status, attempt.misconception)


@each_try
def test_the_command_gives_the_verdict(by_command, attempt):
    line = by_command[attempt.id]
    words = {"passed": "passed", "not done": "not done yet", "failed": ""}[attempt.status]
    assert line.endswith(words)
    assert (" 10 of 10 " in line) == (attempt.status == "passed")
    says = {m.name: m.says for m in EVERY[attempt.pilot].misconceptions}
    assert [name for name, sentence in says.items() if sentence in line] == [
        name for name in says if name == attempt.misconception
    ]


@each_try
def test_the_grader_gives_the_verdict(by_the_grader, attempt):
    told = by_the_grader[attempt.id]
    assert told["extra_data"]["verdict"] == attempt.status
    assert told["extra_data"]["misconception"] == attempt.misconception
    assert told["score"] == (10 if attempt.status == "passed" else 0)
