"""The `course` command as its user meets it: fast help, one line for wrong use, and what its small commands print."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course.authoring import places, progress
from course.cli import main
from course.doctor import findings
from course.exercises import find

COURSE = Path(sys.executable).with_name("course")


@pytest.fixture
def run(home, capfd):
    """Run a command in this process: its exit code, standard output and standard error."""

    def command(*arguments: str):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code or 0, *capfd.readouterr()

    return command


def test_help_is_there_at_once():
    command = [str(COURSE)] if COURSE.exists() else [sys.executable, "-m", "course"]
    took = []
    for _ in range(5):
        began = time.monotonic()
        out = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        took.append(time.monotonic() - began)
    assert "lab" in out
    assert min(took) < 0.3


def test_importing_the_package_imports_neither_torch_nor_triton():
    code = (
        "import sys, course, course.cli; print([name for name in ('torch', 'triton', 'rich') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_without_a_command_it_shows_the_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.startswith("Usage: course")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("chekc", "No such command 'chekc'"),
        ("--verbose", "No such option: --verbose"),
        ("check", "Missing argument 'UNIT'. See: course check --help"),
        ("check 4 5", "extra argument"),
        ("check 77", "There is no unit 77; there is "),
        ("lab 77 --no-browser", "There is no unit 77; there is "),
        ("lab --port many", "Invalid value for '--port'"),
        ("lab --port 70000", "Invalid value for '--port'"),
        ("hint 99.9", "There is no exercise 99.9; there is "),
        ("hint", "Missing argument 'EXERCISE'"),
        ("build 77", "There is no unit 77; there is "),
        ("build --chekc", "No such option: --chekc"),
        ("progress", "Missing command"),
        ("progress export", "Missing argument"),
        ("progress export /proc/nowhere/file", "/proc/nowhere/file cannot be written"),
        ("exercises --yaml", "No such option: --yaml"),
        ("train --steps 0", "0 steps"),
        ("train --preset gigantic", "gigantic"),
        ("train --optimizer sgd --out /tmp/never", "there is no optimizer 'sgd'; choose one of: adamw, muon"),
        ("train --precision fp8 --out /tmp/never", "there is no precision 'fp8'; choose one of: float32, bf16"),
        ("train --sharding half", "there is no sharding 'half'; choose one of: none, full"),
        ("train --data /nowhere.txt --out /tmp/never", "/nowhere.txt"),
        ("generate --run /nowhere", "/nowhere"),
        ("generate --temperature hot", "Invalid value for '--temperature'"),
        ("generate --speculate --temperature 0.5", "--speculate takes the likeliest each time"),
        ("grade --lab 04 --out out", "Missing argument 'FILE'"),
        ("grade --lab 77 --out out nothing.ipynb", "There is no unit 77"),
        ("bench-kernel 10.3", "Missing option '--submit'"),
        ("bench-kernel 10.3 --submit /nowhere.py", "There is no file or folder '/nowhere.py'"),
        ("bench-kernel 04.1 --submit /nowhere.py", "Exercise 04.1 is no kernel exercise"),
        ("new-unit 05 deepseek_moe", "Missing argument 'TITLE'"),
        ("new-unit 05 DeepSeek-MoE DeepSeekMoE", "'DeepSeek-MoE'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(run, line, says):
    code, out, err = run(*line.split())
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_an_error_of_the_course_itself_is_one_line_and_exit_code_1(run, monkeypatch):
    monkeypatch.setattr("course.doctor.doctor_command", lambda: 1 / 0)
    code, out, err = run("doctor")
    assert (code, out) == (1, "")
    assert err == "The course failed: ZeroDivisionError: division by zero (COURSE_DEBUG=1 shows where).\n"


def test_ctrl_c_is_one_line_and_exit_code_130(run, monkeypatch):
    def press():
        raise KeyboardInterrupt

    monkeypatch.setattr("course.doctor.doctor_command", press)
    assert run("doctor") == (130, "", "Stopped.\n")


def test_the_module_is_the_command():
    told = subprocess.run([sys.executable, "-m", "course", "check"], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (2, "Missing argument 'UNIT'. See: course check --help\n")


def test_exercises_as_json_are_a_list_of_objects_of_the_units_that_stand(run):
    code, out, _ = run("exercises", "--json")
    listed = json.loads(out)
    assert code == 0
    assert {each["unit"] for each in listed} <= {unit.number for unit in places.units()}
    for each in listed:
        exercise = find(each["id"])
        assert each == {
            "id": exercise.id,
            "unit": exercise.unit,
            "title": exercise.title,
            "points": exercise.points,
            "minutes": exercise.minutes,
            "difficulty": exercise.difficulty,
            "hints": 3,
            "misconceptions": len(exercise.misconceptions),
            "alternatives": len(exercise.alternatives),
        }


def test_exercises_of_units_that_do_not_stand_are_not_listed(run, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    assert json.loads(run("exercises", "--json")[1]) == []


def test_hints_come_one_after_the_other_and_are_counted(run, home):
    hints = find("04.1").hints
    for number, text in enumerate(hints, 1):
        code, out, _ = run("hint", "04.1")
        assert code == 0
        assert f"hint {number} of 3.\n" in out
        assert out.endswith(f"{text}\n")
        assert progress.load(home)["04.1"].hints == number
    _, out, _ = run("hint", "04.1")
    assert "hint 3 of 3. There is no further one." in out
    assert hints[2] in out


def test_status_counts_what_passed(run, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    exercise = find("04.1")
    progress.record(home, "04.1", True, "text")
    code, out, _ = run("status")
    row = next(line for line in out.splitlines() if "04.1" in line)
    assert code == 0
    assert f"{exercise.points} of {exercise.points}" in row
    assert "1 of " in out


def test_progress_is_exported_and_reset(run, home, tmp_path):
    progress.record(home, "04.1", True, "text")
    assert run("progress", "export", str(tmp_path / "mine.json"))[0] == 0
    assert json.loads((tmp_path / "mine.json").read_text())["exercises"]["04.1"]["answer"] == "text"
    assert run("progress", "reset")[0] == 0
    assert progress.load(home) == {}
    assert run("progress", "reset")[1] == "There is no progress yet.\n"


def test_doctor_looks_at_every_part_and_gives_the_fix(run, home):
    found = list(findings())
    parts = ["Python", "PyTorch", "Triton", "GPU", "kernels", "JupyterLab", "workspace", "disk", "units", "grading"]
    assert [each.part for each in found] == parts
    assert all(each.fix for each in found if each.state != "ok")
    code, out, err = run("doctor")
    assert (code, err) == (int(any(each.state == "fail" for each in found)), "")
    assert "3.6 to 3.7.1" in out or "not installed" in out


def test_doctor_says_that_a_workspace_cannot_be_written(monkeypatch):
    monkeypatch.setenv("COURSE_HOME", "/proc/workspace")
    workspace = next(each for each in findings() if each.part == "workspace")
    assert workspace.state == "fail"
    assert "COURSE_HOME" in workspace.fix
