"""`course check` on a lab of the pilots: what a learner may have saved, and what the table says."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from pilot_lab import PILOTS, SETUP, PilotLab, cell, solved

from course.checking.answer import source_of
from course.cli import main
from course.exercises import every

SOME = ["05.9", "07.9"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_EXERCISES", str(PILOTS))
    every.cache_clear()
    made = PilotLab(tmp_path, SOME)
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COURSE_HOME", str(made.home))
    monkeypatch.setenv("COLUMNS", "300")
    yield made
    every.cache_clear()


@pytest.fixture
def check(lab, capfd):
    """Save the learner's notebook, check it, and return the exit code, the lines printed, and standard error."""

    def run():
        lab.save()
        with pytest.raises(SystemExit) as ended:
            main(["check", "99"])
        out, err = capfd.readouterr()
        rows = {line[:4]: " ".join(line.split()) for line in out.splitlines() if line[:4] in SOME}
        return ended.value.code, rows, out, err

    return run


def wrong(name: str) -> str:
    return source_of(every()[name].misconceptions[0].answer, every()[name].entry)


def test_right_answers_pass_and_are_recorded(lab, check):
    for name in SOME:
        lab.answer(name, solved(name))
    code, rows, out, _ = check()
    assert code == 0
    assert rows["05.9"] == "05.9 group-limited top-k 10 of 10 passed"
    assert "2 of 2 exercises passed, 20 of 20 points." in out
    assert (lab.home / "answers" / "05.9.py").read_text().strip() == solved("05.9").strip()


def test_a_misconception_is_named_and_a_blank_answer_is_not_done_yet(lab, check):
    lab.answer("07.9", wrong("07.9"))
    code, rows, out, _ = check()
    assert code == 1
    assert rows["05.9"].endswith("0 of 10 not done yet")
    assert every()["07.9"].misconceptions[0].says in rows["07.9"]
    assert "Case 1 (target_V=[" in rows["07.9"]
    assert "course hint 07.9" in out


def test_an_untouched_lab_is_told_without_running_it(lab, check):
    began = time.monotonic()
    _, rows, *_ = check()
    assert time.monotonic() - began < 1.5
    assert all(row.endswith("not done yet") for row in rows.values())


def test_a_cell_that_ends_the_process_costs_itself_only(lab, check):
    lab.answer("05.9", f"# exercise 05.9\nimport os\nos._exit(0)\n{solved('05.9')}")
    lab.answer("07.9", solved("07.9"))
    began = time.monotonic()
    _, rows, *_ = check()
    assert time.monotonic() - began < 30
    assert rows["05.9"].endswith("The answer cell ended the Python process.")
    assert rows["07.9"].endswith("10 of 10 passed")


@pytest.mark.slow
def test_a_cell_that_never_ends_is_stopped(lab, check):
    lab.answer("05.9", f"# exercise 05.9\nwhile True:\n    pass\n{solved('05.9')}")
    lab.answer("07.9", solved("07.9"))
    began = time.monotonic()
    _, rows, *_ = check()
    assert time.monotonic() - began < 60
    assert rows["05.9"].endswith("The answer cell did not end in time.")
    assert rows["07.9"].endswith("10 of 10 passed")


def test_a_cell_that_cannot_be_run_says_why(lab, check):
    lab.answer("05.9", f"# exercise 05.9\n1 / 0\n{solved('05.9')}")
    lab.answer("07.9", f"# exercise 07.9\ndef (\n{solved('07.9')}")
    _, rows, *_ = check()
    assert "The answer cell could not be run. ZeroDivisionError: division by zero" in rows["05.9"]
    assert "invalid syntax" in rows["07.9"]


def test_a_forged_check_does_not_pass(lab, check):
    forged = "class R:\n    def __repr__(self): return '05.9 group-limited top-k: passed, 10 points'\n"
    lab.answer("05.9", f"# exercise 05.9\n{forged}check = lambda *_: R()\n{solved('05.9')}")
    _, rows, *_ = check()
    assert "0 of 10" in rows["05.9"]


def test_split_duplicated_edited_and_deleted_cells_are_each_told_in_a_sentence(lab, check):
    head, _, tail = solved("05.9").partition("    ### BEGIN")
    lab.answer("05.9", head)
    lab.book["cells"].insert(3, cell("extra", "    ### BEGIN" + tail, ["exercise:05.9"]))
    lab.book["cells"] = [c for c in lab.book["cells"] if "check:07.9" not in c["metadata"].get("tags", [])]
    code, rows, out, err = check()
    assert code == 1
    assert "split" in rows["05.9"]
    assert "The check cell of 07.9 is missing." in out
    assert err == ""


def test_cleared_outputs_and_lost_tags_change_nothing(lab, check):
    lab.answer("05.9", solved("05.9"))
    for each in lab.book["cells"]:
        each |= {"outputs": [], "execution_count": None, "metadata": {}}
        del each["id"]
    _, rows, *_ = check()
    assert rows["05.9"].endswith("10 of 10 passed")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "99_pilot.ipynb is empty."),
        ('{"cells": [', "99_pilot.ipynb is not a notebook: it is not valid JSON"),
        ("[]", "99_pilot.ipynb is not a notebook: it is other JSON."),
        (json.dumps({"nbformat": 3, "worksheets": []}), "99_pilot.ipynb has notebook format 3"),
    ],
)
def test_a_broken_file_is_one_line_and_wrong_use(lab, check, content, says):
    lab.book = content
    code, _, _, err = check()
    assert code == 2
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_another_labs_file_is_told(lab, check):
    lab.book["cells"] = [
        cell("u04-x01", SETUP, ["setup"]),
        cell("ex-04-1-answer", "# exercise 04.1", ["exercise:04.1"]),
    ]
    lab.book["metadata"]["course"] = {"unit": "04", "kind": "lab"}
    code, _, out, _ = check()
    assert code == 1
    assert "This is lab 04, not lab" in out


def test_a_lab_that_was_never_opened_names_the_command_that_opens_it(lab, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["check", "99"])
    assert ended.value.code == 2
    assert "course lab 99" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc to see what is left running")
def test_ctrl_c_ends_it_in_one_line_and_leaves_no_kernel(lab):
    lab.answer("05.9", f"# exercise 05.9\nimport time\ntime.sleep(9)\n{solved('05.9')}")
    lab.save()
    process = subprocess.Popen(
        [sys.executable, "-m", "course", "check", "99"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(300):
        if any("course-check-" in line and "ipykernel" in line for line in _processes()):
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "Stopped.\n"
    assert not [line for line in _processes() if "course-check-" in line]


def _processes() -> list[str]:
    lines = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as environment, open(f"/proc/{name}/cmdline", "rb") as command:
                lines.append((command.read() + environment.read()).decode(errors="replace"))
        except OSError:
            continue
    return lines
