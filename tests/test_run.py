"""The script behind `make test`."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("run_stages", Path(__file__).with_name("run.py"))
stages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stages)


def test_what_one_process_takes_the_other_leaves():
    (first, second) = stages.stages("all")["pytest"]
    taken = [argument for argument in first if argument.startswith("tests/")]
    assert taken
    assert [f"--ignore={folder}" for folder in taken] == [argument for argument in second if "ignore" in argument]


def test_closing_lines_add_up_to_one_of_the_same_form():
    one = "========== 2 failed, 1371 passed, 252 deselected in 366.71s (0:06:06) =========="
    assert stages.together([one], 1.0) == one
    line = stages.together([one, "==== 9 passed, 1 skipped in 3.10s ===="], 400.0)
    assert line.strip("= ") == "252 deselected, 2 failed, 1380 passed, 1 skipped in 400.00s"


@pytest.mark.parametrize(("kind", "names"), [("fast", 4), ("all", 5), ("deep", 1)])
def test_a_kind_of_run_has_its_stages(kind, names):
    assert len(stages.stages(kind)) == names


def test_a_failing_command_gives_its_exit_code_and_its_last_line(capsys):
    code, closing = stages.run([["this_module_is_not_there"], ["platform"]])
    assert code == 1
    assert len(closing) == 2
    assert closing[1] in capsys.readouterr().out
