import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_course import LESSON, SETUP, SOLUTION, write_course

from course.authoring import gate
from course.authoring.build import build
from course.authoring.reading import read_notebook


def quiet(*arguments, **options):
    lines = []
    return build(*arguments, **options, tell=lines.append), lines


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.glob("*/*"))}


def outputs(path):
    return [
        "".join(out["text"])
        for cell in read_notebook(path)["cells"]
        for out in cell.get("outputs", [])
        if "text" in out
    ]


def test_a_build_is_clean_and_holds_what_the_checks_said(built):
    assert gate.check(None, built) == []
    assert outputs(built / "labs" / "04_squares.ipynb") == ["04.1: not done yet\n", "04.2: not done yet\n"]
    assert outputs(built / "solutions" / "04_squares.ipynb") == ["04.1: passed\n", "04.2: passed\n"]
    lesson = read_notebook(built / "notebooks" / "04_squares.ipynb")
    assert [cell.get("execution_count") for cell in lesson["cells"]] == [None, 1, 2]


def test_two_builds_are_equal_to_the_byte(built, tmp_path):
    again = write_course(tmp_path / "elsewhere")
    before = os.getcwd(), dict(os.environ)
    assert quiet(None, again)[0] == []
    assert contents(again) == contents(built)
    assert (os.getcwd(), dict(os.environ)) == before


def test_only_what_changed_is_built(built):
    before = contents(built)
    faults, lines = quiet(None, built)
    assert (faults, contents(built)) == ([], before)
    assert lines == ["04 lesson   up to date", "04 solution up to date", "04 lab      up to date"]
    source = built / "notebooks" / "04_squares.py"
    source.write_text(source.read_text() + "\n# %%\n4 * 4\n")
    faults, lines = quiet(None, built)
    assert faults == []
    assert [line[:17].strip() for line in lines] == ["04 lesson   built", "04 solution up to", "04 lab      up to"]


def test_a_broken_unit_does_not_hide_the_others(built):
    root = built
    (root / "labs" / "04_squares.ipynb").unlink()
    broken = SOLUTION.replace("04.", "02.").replace("04:", "02:").replace("    ### END SOLUTION\n", "", 1)
    write_course(root, None, broken, slug="02_broken")
    bad = (
        SOLUTION.replace("04.", "03.").replace("04:", "03:").replace("# That is all.", "# That is all.\n\n# %%\n1 / 0")
    )
    write_course(root, None, bad, slug="03_raises")
    faults, lines = quiet(None, root)
    line = bad.splitlines().index("1 / 0")
    raised = "cell cannot be built: it raised ZeroDivisionError: division by zero"
    assert "solutions/02_broken.py:23: `### BEGIN SOLUTION` without `### END SOLUTION`." in faults
    assert f"solutions/03_raises.py:{line}: the solution's {raised}" in faults
    assert f"solutions/03_raises.py:{line}: the lab's {raised}" in faults
    assert (root / "labs" / "04_squares.ipynb").is_file()
    assert not (root / "labs" / "03_raises.ipynb").exists()
    assert len(lines) == 7


def test_a_lab_that_uses_a_blank_answer_is_named_with_its_cell(tmp_path):
    text = SOLUTION.replace("# That is all.", "# That is all.\n\n# %%\nsquare(4)")
    root = write_course(tmp_path, None, text)
    faults, _ = quiet(None, root)
    line = text.splitlines().index("square(4)")
    assert faults == [f"solutions/04_squares.py:{line}: the lab's cell cannot be built: it raised NotImplementedError"]
    assert (root / "solutions" / "04_squares.ipynb").is_file()


def test_a_solution_that_does_not_pass_its_own_check_is_not_built(tmp_path):
    root = write_course(tmp_path, None, SOLUTION.replace("product_of_both = x * x", "product_of_both = x + x"))
    faults, _ = quiet(None, root)
    assert len(faults) == 1
    assert faults[0].endswith('the solution\'s cell cannot be built: its output does not say "passed".')


def test_a_build_never_touches_a_workspace(built, tmp_path, home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nosy = "import os, pathlib\nprint(os.environ['COURSE_HOME'] == HERE, pathlib.Path('here').touch())"
    lesson = LESSON.replace("3 * 3", nosy.replace("HERE", repr(str(home))))
    write_course(built, lesson)
    assert quiet(None, built)[0] == []
    assert outputs(built / "notebooks" / "04_squares.ipynb") == ["False None\n"]
    assert not home.exists()
    assert not list(tmp_path.rglob("here"))


SLOW = LESSON.replace(
    "3 * 3", "import os, pathlib, time\npathlib.Path(PID).write_text(str(os.getpid()))\ntime.sleep(60)"
)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_old_notebooks_and_nothing_else(built, tmp_path, how):
    pid = tmp_path / "pid"
    (built / "notebooks" / "04_squares.py").write_text(SLOW.replace("PID", repr(str(pid))))
    before = contents(built)
    code = f"from pathlib import Path; from course.authoring.build import build; build(None, Path({str(built)!r}))"
    away = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    with subprocess.Popen([sys.executable, "-c", code], **away) as process:
        assert wait_until(pid.exists)
        process.send_signal(how)
        assert process.wait(20) != 0
    assert contents(built) == before
    assert wait_until(lambda: not Path(f"/proc/{pid.read_text()}").exists()), "the kernel outlived the build"


def wait_until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_every_lab_has_the_same_set_up_cell_and_may_add_to_it(built):
    fault = "solutions/05_cubes.py has another set-up cell than solutions/04_squares.py."
    for other, wrong in ((SETUP.replace("verdict", "the_verdict"), True), (SETUP + "import math\n", False)):
        write_course(built, None, SOLUTION.replace("04.", "05.").replace(SETUP, other), slug="05_cubes")
        assert (fault in gate.check(None, built)) == wrong
