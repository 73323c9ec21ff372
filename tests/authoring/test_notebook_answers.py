import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import validate

from course.authoring.answers import NotebookError, find_answers, overlay, read_notebook
from course.authoring.workspace import dump

IDS = ["04.1", "04.2"]
ANSWER = "# exercise 04.1\ndef square(x):\n    return x * x\n"


@pytest.fixture
def lab(built):
    return read_notebook(built / "labs" / "04_squares.ipynb")


def found(book):
    return find_answers(book, IDS)


def saved(tmp_path, content):
    path = tmp_path / "mine.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def code(source, **more):
    return {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": source} | more


MALFORMED = {
    "is empty": b" \n",
    "it is other JSON": b"[]",
    "it is not UTF-8": b"\xff\xfe{\x00}",
    "it is not valid JSON (line 2)": b"{\n]",
    "is a web page": b"\n<!DOCTYPE html><html></html>",
    "merge conflict": b'{\n<<<<<<< HEAD\n"cells": [],\n=======\n',
    "it is nested too deep": b"[" * 200_000 + b"]" * 200_000,
    "nested too deep": b'{"nbformat": 4, "metadata": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b', "cells": []}',
    "has notebook format 3": {"nbformat": 3, "worksheets": []},
    "has notebook format 99": {"nbformat": 99, "cells": []},
    "it has no list of cells": {"nbformat": 4, "cells": {}},
    "its cell 2 is no cell": {"nbformat": 4, "cells": [code("x"), []]},
    "its cell 1 is no cell": {"nbformat": 4, "cells": [code("x", cell_type="poem")]},
    "its cell 1 has no text": {"nbformat": 4, "cells": [code(["x", 7])]},
}


@pytest.mark.parametrize("says", MALFORMED)
def test_what_is_no_notebook_is_said_in_one_sentence(tmp_path, says):
    with pytest.raises(NotebookError) as error:
        read_notebook(saved(tmp_path, MALFORMED[says]))
    assert says in str(error.value)
    assert str(error.value).startswith("mine.ipynb ")
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_folders_missing_files_and_giants_are_refused(tmp_path):
    with pytest.raises(NotebookError, match=r"gone\.ipynb is not there"):
        read_notebook(tmp_path / "gone.ipynb")
    with pytest.raises(NotebookError, match="is not a file"):
        read_notebook(tmp_path)
    with pytest.raises(NotebookError, match="is not a file"):
        read_notebook("/dev/zero")
    with pytest.raises(NotebookError, match=r"is not there\.|cannot be read"):
        read_notebook("a\0b")
    giant = tmp_path / "giant.ipynb"
    with giant.open("wb") as out:
        out.truncate(200_000_000)
    with pytest.raises(NotebookError, match="has 200 MB, and a notebook may have 50: clear its outputs"):
        read_notebook(giant)


def test_a_careless_notebook_is_put_into_shape(tmp_path):
    cells = [
        {
            "cell_type": "code",
            "source": ["a = 1\r\n", "b = 2\r"],
            "outputs": 3,
            "execution_count": "x",
            "id": "not an id",
        },
        {"cell_type": "markdown", "source": "", "metadata": {"tags": "setup"}},
        code("s = '\ud800'", metadata={"tags": ["t", 5]}),
    ]
    book = read_notebook(saved(tmp_path, b"\xef\xbb\xbf" + json.dumps({"nbformat": 4, "cells": cells}).encode()))
    first, second, third = book["cells"]
    assert first == {
        "cell_type": "code",
        "source": "a = 1\nb = 2\n",
        "outputs": [],
        "execution_count": None,
        "metadata": {},
    }
    assert second["metadata"] == {"tags": []}
    assert (third["source"], third["metadata"]) == ("s = '?'", {"tags": ["t"]})
    assert book["metadata"] == {}
    dump(book).encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["cells", "a", "tags", "course"]), inner, max_size=3)
    ),
    max_leaves=8,
)
odd_cells = st.fixed_dictionaries(
    {"cell_type": st.sampled_from(["code", "markdown", "raw", 3])},
    optional={
        "source": st.text(st.characters())
        | st.lists(st.text())
        | st.sampled_from([ANSWER, 'check("04.1", square)'])
        | values,
        "metadata": values
        | st.fixed_dictionaries({"tags": st.lists(st.sampled_from(["exercise:04.1", "check:04.1"])) | values}),
        "id": st.sampled_from(["ex-04-1-answer", "ex-04-1-check"]) | values,
        "outputs": values,
        "execution_count": values,
    },
)
odd_notebooks = st.fixed_dictionaries(
    {"nbformat": st.just(4) | values, "cells": st.lists(odd_cells, max_size=4) | values},
    optional={"metadata": values | st.fixed_dictionaries({"course": values})},
)


@settings(max_examples=300, deadline=None)
@given(
    content=odd_notebooks.map(lambda value: json.dumps(value).encode())
    | values.map(lambda v: json.dumps(v).encode())
    | st.binary()
)
def test_reading_fails_only_with_a_notebook_error_and_what_was_read_can_be_used(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "odd.ipynb"
    path.write_bytes(content)
    try:
        book = read_notebook(path)
    except NotebookError:
        return
    answers, faults, notes = found(book)
    assert all(isinstance(text, str) for text in [*answers.values(), *faults.values(), *notes])
    assert not answers.keys() & faults.keys()
    path.write_text(dump(book))
    assert find_answers(read_notebook(path), IDS) == (answers, faults, notes)


def test_a_published_lab_holds_blank_answers_and_nothing_to_say(lab):
    answers, faults, notes = found(lab)
    assert list(answers) == IDS
    assert all("raise NotImplementedError" in text for text in answers.values())
    assert (faults, notes) == ({}, [])


def test_an_answer_is_found_by_tag_by_id_and_by_its_marker(lab):
    lab["cells"][3]["source"] = ANSWER
    assert found(lab)[0]["04.1"] == ANSWER
    lab["cells"][3]["metadata"] = {}
    assert found(lab)[0]["04.1"] == ANSWER
    lab["cells"][3]["id"] = "3f9a"
    assert found(lab)[0]["04.1"] == ANSWER
    lab["cells"][3]["source"] = "import math\n" + ANSWER
    assert found(lab)[0]["04.1"] == "import math\n" + ANSWER


def test_a_deleted_or_emptied_answer_is_no_answer(lab):
    lab["cells"][6]["source"] = "# nothing yet\n"
    del lab["cells"][3]
    answers, faults, _ = found(lab)
    assert (answers, faults) == ({}, {})


def test_an_answer_cell_turned_into_text_is_a_fault(lab):
    lab["cells"][3].update(cell_type="markdown", source=ANSWER)
    answers, faults, _ = found(lab)
    assert "04.1" not in answers
    assert faults == {
        "04.1": "The answer cell of 04.1 (cell 4) was turned into a markdown cell: make it a code cell again."
    }


def test_equal_copies_of_an_answer_are_one_and_different_ones_a_fault(lab):
    lab["cells"][3]["source"] = ANSWER
    lab["cells"].append(copy.deepcopy(lab["cells"][3]) | {"id": "copy"})
    assert found(lab)[0]["04.1"] == ANSWER
    lab["cells"][-1]["source"] = ANSWER.replace("x * x", "x ** 2")
    answers, faults, _ = found(lab)
    assert "04.1" not in answers
    assert (
        faults["04.1"] == "Different answers to 04.1 stand in cells 4 and 10 (counted from the top): keep one of them."
    )


def test_a_blank_copy_beside_an_answer_does_not_count(lab):
    lab["cells"].append(copy.deepcopy(lab["cells"][3]) | {"id": "copy", "source": ANSWER})
    assert found(lab)[0]["04.1"] == ANSWER


def test_an_answer_cell_that_was_split_is_a_fault(lab):
    head, body = ANSWER.split("    return")
    tail = copy.deepcopy(lab["cells"][3]) | {"id": "tail", "source": "    return" + body}
    lab["cells"][3]["source"] = head
    lab["cells"].insert(4, tail)
    answers, faults, _ = found(lab)
    assert "04.1" not in answers
    assert (
        faults["04.1"]
        == "The answer to 04.1 was split over cells 4 and 5 (counted from the top): join them into one cell again."
    )


@pytest.mark.parametrize("left", ["# exercise 04.1", "# exercise 04.1\nimport math", None])
def test_a_function_that_left_its_answer_cell_is_a_fault(lab, left):
    elsewhere = code(ANSWER.removeprefix("# exercise 04.1\n"))
    lab["cells"].insert(5, elsewhere)
    if left is None:
        del lab["cells"][3]
    else:
        lab["cells"][3]["source"] = left
    answers, faults, _ = found(lab)
    assert "04.1" not in answers
    assert faults["04.1"].startswith(
        f"`square` stands in cell {6 - (left is None)} (counted from the top) and not in the answer"
    )


def test_two_answers_joined_into_one_cell_are_both_found(lab):
    both = ANSWER + "\n# exercise 04.2\ndef power(x):\n    return x ** 2\n"
    lab["cells"][3]["source"] = both
    del lab["cells"][6]
    assert found(lab)[:2] == ({"04.1": both, "04.2": both}, {})


def test_a_nul_character_in_an_answer_is_a_fault(lab):
    lab["cells"][3]["source"] = ANSWER + "\0"
    assert "NUL" in found(lab)[1]["04.1"]


def test_a_deleted_or_edited_check_is_a_note_and_the_answer_still_counts(lab):
    lab["cells"][3]["source"] = ANSWER
    lab["cells"][4]["source"] = 'print("04.1: passed")'
    del lab["cells"][7]
    answers, faults, notes = found(lab)
    assert (answers["04.1"], faults) == (ANSWER, {})
    assert notes == ["The check cell of 04.1 was edited.", "The check cell of 04.2 is missing."]


def test_cleared_outputs_change_nothing(lab):
    before = found(lab)
    for cell in lab["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    assert found(lab) == before


def test_another_notebook_is_named(built, lab):
    assert find_answers(lab, ["05.1", "05.2"]) == ({}, {}, ["This is lab 04, not lab 05."])
    lesson = read_notebook(built / "notebooks" / "04_squares.ipynb")
    assert found(lesson) == ({}, {}, ["This is the lesson of unit 04, not lab 04."])
    solution = read_notebook(built / "solutions" / "04_squares.ipynb")
    assert found(solution)[2] == ["This is the solution notebook of unit 04, not its lab."]
    other = {"metadata": {}, "cells": [code("x = 1")]}
    assert found(other) == ({}, {}, ["This notebook holds no exercise: it is not lab 04."])


def test_an_overlay_is_the_solution_with_the_learners_answers_and_blanks(built, lab):
    import nbformat

    solution = read_notebook(built / "solutions" / "04_squares.ipynb")
    laid = overlay(solution, lab, {"04.1": ANSWER})
    assert laid["cells"][3]["source"] == ANSWER
    assert laid["cells"][6]["source"] == lab["cells"][6]["source"]
    others = [place for place in range(9) if place not in (3, 6)]
    assert [laid["cells"][place] for place in others] == [solution["cells"][place] for place in others]
    validate(nbformat.reads(dump(laid), as_version=4))
