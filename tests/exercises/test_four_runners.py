"""One answer, four runners, one verdict: the check in a notebook, `course check`, the tests of the checks, and the grader.

The lab of the pilots is built once with as many copies of each exercise as there are answers to try, each under a number
of its own (99.1, 99.2, ...): so every runner starts once.
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
from course.checking.exercise import Exercise
from course.checking.launch import forked
from course.checking.result import text
from course.exercises import every

from specifications import EVERY, PILOTS, blank, judged, source  # isort: skip

NAMES = ("05.2", "07.6", "10.1")
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
        answers = [(f"right-{f.__name__}", source(e, f), "passed", None) for f in e.alternatives]
        reference = source(e, e.reference)
        answers.append(("reference", reference, *(("failed", None) if e.kernel else ("passed", None))))
        answers += [(m.name, source(e, m.answer), "failed", m.name) for m in e.misconceptions]
        answers.append(("blank", blank(e), "not done", None))
        answers.append(("raises", blank(e).replace("Error", "Error('later')"), "failed", None))
        found += [Try(name, f"99.{len(found) + n}", *answer) for n, answer in enumerate(answers, 1)]
    return found


TRIES = _tries()
each_try = pytest.mark.parametrize("attempt", TRIES, ids=[f"{t.pilot}-{t.kind}" for t in TRIES])


def specification(attempt: Try) -> str:
    """A module that holds the pilot's specification under the number of an attempt."""
    path = EVERY[attempt.pilot].inputs.__code__.co_filename
    return (
        f"{Path(path).read_text()}\n\nfrom dataclasses import replace\n"
        f'EXERCISE = replace(EXERCISE, id="{attempt.id}", unit="99")\n'
    )


def lab_source() -> str:
    """The pilots' lab, with the cells of each exercise once for every answer to it."""
    head, *parts = (PILOTS / "solutions" / f"{SLUG}.py").read_text().split("# %% [markdown]\n# ## ")
    parts = dict(zip(NAMES, parts, strict=True))
    return head + "".join(
        "# %% [markdown]\n# ## " + parts[attempt.pilot].replace(attempt.pilot, attempt.id).rstrip() + "\n\n"
        for attempt in TRIES
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The lab built into a root of its own, and a learner who has tried everything."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "exercises" / "u99").mkdir(parents=True)
    for attempt in TRIES:
        name = f"n{attempt.id.replace('.', '_')}.py"
        (folder / "exercises" / "u99" / name).write_text(specification(attempt))
    (folder / "root" / "solutions").mkdir(parents=True)
    (folder / "root" / "solutions" / f"{SLUG}.py").write_text(lab_source())
    (folder / "root" / "labs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_EXERCISES", str(folder / "exercises"))
        patch.setenv("COURSE_ROOT", str(folder / "root"))
        patch.setenv("COURSE_HOME", str(folder / "workspace"))
        every.cache_clear()
        yield folder
    every.cache_clear()


@pytest.fixture(scope="module")
def built(world):
    faults = build(places.units(), tell=lambda line: None)
    assert faults == []
    return world / "root"


@pytest.fixture(scope="module")
def learners_lab(built, world):
    """The lab with every answer in its cell, as a learner saves it."""
    book = json.loads((built / "labs" / f"{SLUG}.ipynb").read_text())
    answers = {attempt.id: attempt.answer for attempt in TRIES}
    for cell in book["cells"]:
        role, name = marks.role_of(cell) or (None, None)
        if role == "exercise":
            cell["source"] = f"# exercise {name}\n{answers[name]}"
    path = world / "workspace" / "labs" / f"{SLUG}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(book))
    return path


def checks(book: dict) -> dict[str, str]:
    """What the check cells of a notebook show, by exercise."""
    shown = {}
    for cell in book["cells"]:
        role, name = marks.role_of(cell) or (None, None)
        if role == "check":
            (output,) = cell["outputs"]
            shown[name] = "".join(output["data"]["text/plain"])
    return shown


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
    return checks(book), verdicts


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


def test_the_lab_of_the_pilots_is_built_with_right_solutions_and_blanks(built):
    for kind, says in (("solutions", "passed, 10 points"), ("labs", "not done yet")):
        book = json.loads((built / kind / f"{SLUG}.ipynb").read_text())
        assert list(checks(book)) == [attempt.id for attempt in TRIES]
        assert all(shown.endswith(says) for shown in checks(book).values())


@each_try
def test_the_gate_gives_the_verdict(world, attempt):
    for seed in (None, 7):
        verdict = judged(_exercise(attempt), attempt.answer, seed, start=forked)
        assert (verdict.status, verdict.misconception) == (attempt.status, attempt.misconception)


@each_try
def test_the_notebook_gives_the_verdict_in_the_same_words(in_a_notebook, attempt):
    shown, verdicts = in_a_notebook
    told = verdicts[attempt.id]
    assert (told["status"], told["misconception"]) == (attempt.status, attempt.misconception)
    # the answer's first line is the marker comment, which the notebook's cell has and the gate's text has not
    marked = f"# exercise {attempt.id}\n{attempt.answer}"
    assert shown[attempt.id] == text(judged(_exercise(attempt), marked, start=forked))


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


def _exercise(attempt: Try) -> Exercise:
    return every()[attempt.id]
