import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from course.authoring import marks
from course.authoring.merge import merge

PLAIN = ["Read this.", "x = 1", "Then that.", "y = 2", "Last."]


def cell(text, name, tags=(), kind="code"):
    more = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {"tags": list(tags)} if tags else {}, "source": text} | more


def answer(number, text="def f():\n    # YOUR CODE HERE\n    raise NotImplementedError"):
    name = f"04.{number}"
    return cell(f"# exercise {name}\n{text}", marks.cell_id("exercise", name), [f"exercise:{name}"])


def check(number):
    name = f"04.{number}"
    return cell(f'check("{name}", f)', marks.cell_id("check", name), [f"check:{name}", marks.COMPARED])


def notebook(cells, hash="old"):
    """Cells as the build would publish them: plain ids by place, fingerprints in the metadata."""
    cells = copy.deepcopy(cells)
    for place, each in enumerate(cells, 1):
        each["id"] = each["id"] or f"u04-x{place:02d}"
    about = {"unit": "04", "kind": "lab", "source": hash, "cells": {c["id"]: marks.fingerprint(c) for c in cells}}
    return {"cells": cells, "metadata": {"course": about}, "nbformat": 4, "nbformat_minor": 5}


def plain(text):
    return cell(text, None, kind="markdown" if text.endswith(".") else "code")


OLD = notebook([plain("Read this."), answer(1), check(1), plain("y = 2"), answer(2), check(2), plain("Last.")])
NEW = notebook(
    [
        plain("Read this first."),
        plain("x = 1"),
        answer(1),
        check(1),
        answer(2),
        check(2),
        answer(3),
        check(3),
        plain("Last."),
    ],
    "new",
)
MINE = "def f():\n    return 1"


def texts(book):
    return [each["source"] for each in book["cells"]]


def learner(*changes):
    book = copy.deepcopy(OLD)
    for change in changes:
        change(book["cells"])
    return book


def solved(number):
    def change(cells):
        next(each for each in cells if each["id"] == f"ex-04-{number}-answer")["source"] = (
            f"# exercise 04.{number}\n{MINE}"
        )

    return change


def test_an_untouched_copy_becomes_the_release():
    assert merge(OLD, NEW) == NEW
    assert merge(NEW, NEW) == NEW


def test_answers_stay_and_everything_else_is_the_new_release():
    merged = merge(learner(solved(2)), NEW)
    expected = copy.deepcopy(NEW)
    expected["cells"][4]["source"] = f"# exercise 04.2\n{MINE}"
    assert merged == expected


def test_a_cell_that_the_learner_added_stays_after_the_cell_it_followed():
    merged = merge(
        learner(
            lambda cells: cells.insert(4, cell("mine = 4", "a1")), lambda cells: cells.insert(3, cell("mine = 2", "a2"))
        ),
        NEW,
    )
    assert texts(merged)[3:6] == ['check("04.1", f)', "mine = 2", "mine = 4"]  # the cell before the second has gone
    first = merge(learner(lambda cells: cells.insert(0, cell("first of all", "a3"))), NEW)
    assert texts(first)[:2] == ["first of all", "Read this first."]
    last = merge(learner(lambda cells: cells.append(cell("end", "a4"))), NEW)
    assert texts(last)[-2:] == ["Last.", "end"]


def test_an_edited_check_cell_comes_back_as_published():
    edited = learner(lambda cells: cells[2].update(source='print("passed")'))
    assert merge(edited, NEW) == NEW


def test_a_deleted_cell_comes_back():
    assert merge(learner(lambda cells: cells.clear()), NEW) == NEW


def test_a_duplicated_answer_cell_is_kept_beside_the_first():
    twin = answer(1, "def f():\n    return 2") | {"id": "twin"}
    merged = merge(learner(solved(1), lambda cells: cells.insert(2, twin)), NEW)
    assert texts(merged)[2:4] == [f"# exercise 04.1\n{MINE}", twin["source"]]


def test_an_answer_turned_into_text_is_kept_as_it_is():
    merged = merge(learner(solved(1), lambda cells: cells[1].update(cell_type="markdown")), NEW)
    assert (merged["cells"][2]["cell_type"], merged["cells"][2]["source"]) == ("markdown", f"# exercise 04.1\n{MINE}")


def test_an_answer_to_an_exercise_that_has_gone_is_kept():
    merged = merge(merge(NEW, NEW) | {}, OLD)
    assert texts(merged) == texts(OLD)
    book = copy.deepcopy(NEW)
    book["cells"][6]["source"] = f"# exercise 04.3\n{MINE}"
    assert f"# exercise 04.3\n{MINE}" in texts(merge(book, OLD))


def test_cells_whose_ids_and_tags_were_lost_are_known_by_marker_and_text():
    book = learner(solved(1), lambda cells: cells.insert(4, cell("mine = 4", "a1")))
    for each in book["cells"]:
        each.pop("id")
        each["metadata"] = {}
    merged = merge(book, NEW)
    assert [each["id"] for each in merged["cells"]].count("own-1") == 1
    assert "mine = 4" in texts(merged)
    assert f"# exercise 04.1\n{MINE}" in texts(merged)
    assert len(merged["cells"]) == len(NEW["cells"]) + 1


def test_ids_are_unique_after_a_merge():
    pasted = learner(lambda cells: cells.insert(1, copy.deepcopy(cells[0]) | {"source": "mine"}))
    merged = merge(pasted, NEW)
    assert "mine" in texts(merged)
    ids = [each["id"] for each in merged["cells"]]
    assert len(set(ids)) == len(ids)


cells_of_a_release = st.lists(
    st.sampled_from(
        [plain(text) for text in PLAIN] + [answer(n, t) for n in (1, 2, 3) for t in (MINE[:8] + "\n    ...", "x")]
    ),
    max_size=8,
    unique_by=lambda each: each["id"] or each["source"],
)


@st.composite
def changed(draw, release):
    """A copy as a learner may have left it: answers written, cells added, deleted, moved, ids lost."""
    book = copy.deepcopy(release)
    mine = []
    for place, each in enumerate(book["cells"]):
        if "-answer" in each["id"] and draw(st.booleans()):
            each["source"] = (
                f"# exercise {each['id'][3:7].replace('-', '.')}\nanswer_{place} = {draw(st.integers(0, 9))}"
            )
            mine.append(each["source"])
    for number in range(draw(st.integers(0, 3))):
        own = cell(f"own_{number} = 0", draw(st.sampled_from([f"id{number}", "same", "own-1"])))
        book["cells"].insert(draw(st.integers(0, len(book["cells"]))), own)
        mine.append(own["source"])
    if draw(st.booleans()):
        for each in book["cells"]:
            each.pop("id")
    if draw(st.booleans()):
        book["metadata"] = {}
    kept = [each for each in book["cells"] if each["source"] in mine or draw(st.integers(0, 5))]
    return book | {"cells": draw(st.permutations(kept)) if draw(st.booleans()) else kept}, mine


@settings(max_examples=300, deadline=None)
@given(st.data(), cells_of_a_release, cells_of_a_release)
def test_no_answer_and_no_added_cell_is_ever_lost(data, before, after):
    old, new = notebook(before), notebook(after, "new")
    copied, mine = data.draw(changed(old))
    untouched = copy.deepcopy((copied, new))
    merged = merge(copied, new)
    assert (copied, new) == untouched
    found = texts(merged)
    for text in mine:
        assert found.count(text) >= 1, text
    ids = [each["id"] for each in merged["cells"]]
    assert len(set(ids)) == len(ids)
    assert {each["id"] for each in new["cells"]} <= set(ids)
    assert merge(merged, new) == merged
    assert merge(merged, new)["metadata"] == new["metadata"]
