import pytest
from tiny_course import LESSON, SETUP, SOLUTION, write_course

from course.authoring.percent import SourceError
from course.authoring.source import notebook, read_source


def faults(tmp_path, text, kind="solution"):
    root = write_course(tmp_path, text if kind == "lesson" else None, text)
    folder = "notebooks" if kind == "lesson" else "solutions"
    try:
        read_source(root / folder / "04_squares.py", kind)
    except SourceError as error:
        return error.faults
    return []


def test_a_right_source_has_no_faults(tmp_path):
    assert faults(tmp_path, LESSON, "lesson") == []
    assert faults(tmp_path, SOLUTION) == []


def test_ids_and_tags_come_from_the_text_alone(tmp_path):
    source = read_source(write_course(tmp_path) / "solutions" / "04_squares.py", "solution")
    cells = notebook(source, "solution").cells
    assert [cell.id for cell in cells] == [
        *("u04-x01", "u04-x02", "u04-x03", "ex-04-1-answer", "ex-04-1-check"),
        *("u04-x06", "ex-04-2-answer", "ex-04-2-check", "u04-x09"),
    ]
    assert cells[4].metadata == {"tags": ["check:04.1", "nbval-check-output"]}
    assert notebook(source, "lab") == notebook(source, "lab")
    lesson = read_source(tmp_path / "notebooks" / "04_squares.py", "lesson")
    assert [cell.id for cell in notebook(lesson, "lesson").cells] == ["u04-l01", "u04-l02", "u04-l03"]


def test_the_lab_has_two_lines_for_each_solution_block(tmp_path):
    source = read_source(write_course(tmp_path) / "solutions" / "04_squares.py", "solution")
    lab, solution = notebook(source, "lab"), notebook(source, "solution")
    assert lab.cells[3].source == (
        '# exercise 04.1\ndef square(x):\n    """x times x."""\n    # YOUR CODE HERE\n    raise NotImplementedError'
    )
    assert "### BEGIN SOLUTION" in solution.cells[3].source
    others = [place for place in range(9) if place not in (3, 6)]
    assert [lab.cells[place] for place in others] == [solution.cells[place] for place in others]


CHANGES = {
    "`### BEGIN SOLUTION` without `### END SOLUTION`": ("    ### END SOLUTION\n", ""),
    "`### END SOLUTION` without `### BEGIN SOLUTION`": ("    ### BEGIN SOLUTION\n", ""),
    "inside the block of line": ("    product_of_both = x * x\n", "    ### BEGIN SOLUTION\n"),
    "ends at another indentation": ("    ### END SOLUTION\n", "      ### END SOLUTION\n"),
    "is indented less than its marker": ("    return product_of_both\n", "    return product_of_both\n\n\nNINE = 9\n"),
    "is empty": ("    product_of_both = x * x\n    return product_of_both\n", ""),
    "stands alone on its line": ("    ### BEGIN SOLUTION\n", "    pass  ### BEGIN SOLUTION\n"),
    "a second answer cell for exercise 04.1; the first is in line": ("exercise:04.2", "exercise:04.1"),
    "a second check cell for exercise 04.1; the first is in line": ("check:04.2", "check:04.1"),
    "the first line of the answer cell must be `# exercise 04.1`": ("# exercise 04.1\n", ""),
    "the check of exercise 04.3 comes before its answer cell": ("check:04.2", "check:04.3"),
    "exercise 04.2 has no check cell": ("check:04.2", "check:04.3"),
    "exercise 05.1 does not belong to unit 04": ("exercise:04.1", "exercise:05.1"),
    "lacks the tag nbval-check-output": (', "nbval-check-output"', ""),
    'must hold `check("04.1", the_function)` and nothing else': (
        'check("04.1", square)',
        'print(check("04.1", square))',
    ),
    "the tag `exercise:4.1` is not like": ("exercise:04.1", "exercise:4.1"),
    "a solution block stands outside an answer cell": ('# %% tags=["exercise:04.1"]', "# %%"),
    "the answer cell is not valid Python": ("return product_of_both", "return product of both"),
    "without its solution is not valid Python": (
        "    ### BEGIN SOLUTION\n",
        "    if x:\n    ### BEGIN SOLUTION\n        pass\n",
    ),
    "must hold the line `**Exercise 04.1**": ("# **Exercise 04.1** · difficulty 1 of 5", "# **Exercise 04.1** · easy"),
    "the cell is empty": ("# That is all.", "#"),
    "the first code cell must be the set-up cell": (SETUP, ""),
    "only the first code cell may be tagged setup": ("# %% [markdown]\n# That", '# %% tags=["setup"]\n# That'),
    "the first cell must begin with": ("# %% [markdown]\n# # Lab", "x = 1\n\n# %% [markdown]\n# # Lab"),
    "a raw cell": ("# %% [markdown]\n# That", "# %% [raw]\n# That"),
}


@pytest.mark.parametrize("says", CHANGES)
def test_each_fault_of_a_source_is_one_sentence_with_its_file_and_line(tmp_path, says):
    before, after = CHANGES[says]
    assert before in SOLUTION
    found = faults(tmp_path, SOLUTION.replace(before, after, 1))
    assert any(says in fault for fault in found), found
    assert all(fault.startswith("solutions/04_squares.py:") and "\n" not in fault for fault in found)


def test_the_line_of_a_fault_is_the_line_in_the_file(tmp_path):
    (fault,) = faults(tmp_path, SOLUTION.replace("    ### END SOLUTION\n", "", 1))[:1]
    line = SOLUTION.splitlines().index("    ### BEGIN SOLUTION") + 1
    assert fault.startswith(f"solutions/04_squares.py:{line}: `### BEGIN SOLUTION` without")


def test_a_block_outside_of_a_function_would_stop_the_lab(tmp_path):
    block = "### BEGIN SOLUTION\nNINE = 3 * 3\n### END SOLUTION\n\n\ndef square"
    assert "inside a function" in faults(tmp_path, SOLUTION.replace("def square", block))[0]


def test_a_lesson_has_neither_exercises_nor_solutions(tmp_path):
    assert (
        "a lesson has no exercises"
        in faults(tmp_path, LESSON.replace("# %%\n3", '# %% tags=["check:04.1"]\n3'), "lesson")[0]
    )
    marked = LESSON.replace("3 * 3", "### BEGIN SOLUTION\n3 * 3\n### END SOLUTION")
    assert "a lesson has no solution blocks" in faults(tmp_path, marked, "lesson")[0]


def test_a_source_that_is_not_text_or_not_there_is_said_in_one_sentence(tmp_path):
    path = tmp_path / "solutions" / "04_squares.py"
    with pytest.raises(SourceError, match=r"04_squares\.py:1: there is no such file\.$"):
        read_source(path, "solution")
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe# %%")
    with pytest.raises(SourceError, match="cannot be read as UTF-8"):
        read_source(path, "solution")


def test_line_endings_do_not_change_the_hash(tmp_path):
    path = write_course(tmp_path) / "solutions" / "04_squares.py"
    plain = read_source(path, "solution")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_source(path, "solution") == plain
