"""What the sandbox is made of: its level, what is laid into it, and what happens without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, answer

from course.checking.judge import judge
from course.exercises import every
from course.grading import GradingError, sandbox
from course.grading.grade import isolation_level
from course.grading.sandbox import interpreter, isolated, level
from course.grading.workers import Workers


@pytest.fixture
def bare(monkeypatch):
    """A machine on which only the named programs are installed."""

    def having(*programs):
        monkeypatch.setattr(sandbox.shutil, "which", lambda name: name in programs or None)
        level.cache_clear()

    yield having
    level.cache_clear()


def test_without_bubblewrap_the_level_says_how_to_get_it(bare):
    bare("setpriv")
    letter, sentence, fix = level()
    assert letter == "C"
    assert "no bwrap" in sentence
    assert fix == "Install it: apt install bubblewrap."


def test_a_bubblewrap_that_cannot_start_is_found_out_by_running_it(bare, monkeypatch):
    bare("bwrap", "setpriv")
    monkeypatch.setattr(sandbox, "isolated", lambda command, stage: [sys.executable, "-c", "exit('not permitted')"])
    letter, sentence, fix = level()
    assert letter == "C"
    assert "not permitted" in sentence
    assert "unprivileged_userns" in fix


def test_a_sandbox_that_does_not_isolate_is_no_sandbox(bare, monkeypatch):
    bare("bwrap", "setpriv")
    monkeypatch.setattr(sandbox, "isolated", lambda command, stage: command)
    assert level()[0] == "C"
    assert "the worker" in level()[1]


def test_grading_is_refused_without_a_sandbox_unless_it_is_given_up(bare):
    bare()
    with pytest.raises(GradingError, match="--no-isolation"):
        isolation_level(isolation=True)
    assert isolation_level(isolation=False) == "C"


def test_an_installed_course_is_hidden_and_the_rest_of_its_folder_is_not(workers, tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    for name in ("course/solutions.py", "other/part.py"):
        (site / name).parent.mkdir(parents=True)
        (site / name).write_text("secret")
    monkeypatch.setattr(sandbox, "libraries", lambda: [site])
    stage = tmp_path / "stage"
    stage.mkdir()
    os.chmod(stage, 0o755)
    look = (
        f"import os; print([(f, n) for f, _, n in os.walk({str(site)!r})]); open({str(site / 'course' / 'x')!r}, 'w')"
    )
    command = isolated([str(interpreter()), "-I", "-S", "-c", look], stage)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "part.py" in ran.stdout
    assert "solutions.py" not in ran.stdout
    assert "Read-only file system" in ran.stderr


def test_a_course_that_lies_among_the_system_s_libraries_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.places, "root", lambda: Path("/usr/lib/course-clone"))
    command = isolated(["python"], tmp_path)
    assert command[command.index("/usr/lib/course-clone") - 1] == "--tmpfs"


def test_without_isolation_answers_are_still_judged(pilots):
    exercise = pilots["05.9"]
    with Workers(isolation=False, limits=SMALL, ahead=0) as plain:
        right = judge(exercise, answer(exercise), pilots, secret=True, start=lambda: plain.start(exercise))
        spy = f"import os\ndef {exercise.entry}(**_):\n    raise RuntimeError(sorted(os.environ))\n"
        seen = judge(exercise, spy, pilots, secret=True, start=lambda: plain.start(exercise))
    assert right.passed
    assert "PYTHONPATH" in seen.failures[0].what
    assert "COURSE_HOME" not in seen.failures[0].what


def test_what_every_exercise_gives_can_be_imported_in_the_sandbox(workers):
    for gives in sorted({exercise.gives for exercise in every().values() if exercise.gives}):
        exercise = next(each for each in every().values() if each.gives == gives)
        lines = "".join(f"import {module}\n" for module in gives)
        verdict = judge(exercise, f"{lines}def {exercise.entry}(**_):\n    raise NotImplementedError\n", every(),
                        secret=True, start=lambda exercise=exercise: workers.start(exercise))  # fmt: skip
        assert verdict.status == "not done", (gives, verdict)


def test_a_worker_that_does_not_come_up_is_the_graders_fault_and_not_the_students(pilots, monkeypatch):
    monkeypatch.setattr("course.grading.workers.isolated", lambda command, stage, gpu: ["false"])
    with Workers(ahead=0) as workers, pytest.raises(GradingError, match="No worker could be started"):
        workers.start(pilots["05.9"])


def test_only_the_modules_that_are_given_are_staged(tmp_path):
    with Workers(ahead=0) as workers:
        folder = workers._stage(("course.model.norm",), kernel=False)
        staged = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
        assert "course/model/norm.py" in staged
        assert (folder / "course/model/__init__.py").read_text() == ""
        assert not [path for path in staged if "router" in path or "exercises" in path or "grading" in path]


def test_a_whole_package_can_be_given():
    with Workers(ahead=0) as workers:
        folder = workers._stage(("course.model",), kernel=False)
        assert (folder / "course/model/router.py").is_file()
        assert (folder / "course/model/__init__.py").read_text()
