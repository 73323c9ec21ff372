import json

import pytest
from tiny_course import SOLUTION

from course.authoring import gate
from course.authoring.places import unit


def change(path, how):
    notebook = json.loads(path.read_text())
    how(notebook)
    path.write_text(json.dumps(notebook))


def said(built):
    return "\n".join(gate.check(None, built))


def test_a_source_that_changed_after_the_build_is_said(built):
    source = built / "solutions" / "04_squares.py"
    source.write_text(source.read_text().replace("That is all", "That was all"))
    assert gate.check(None, built) == [
        "solutions/04_squares.ipynb is older than its source: run `course build 04`.",
        "labs/04_squares.ipynb is older than its source: run `course build 04`.",
    ]


def test_a_missing_or_malformed_notebook_is_said(built):
    (built / "labs" / "04_squares.ipynb").unlink()
    (built / "solutions" / "04_squares.ipynb").write_text("[]")
    assert gate.check(None, built) == [
        "solutions/04_squares.ipynb is damaged (04_squares.ipynb is not a notebook: it is other JSON): run `course build 04`.",
        "labs/04_squares.ipynb is missing: run `course build 04`.",
    ]


def clear(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def one_error(notebook):
    notebook["cells"][4]["outputs"] = [{"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}]


def grow(notebook):
    notebook["cells"][4]["outputs"][0]["text"] = ["x" * 1_100_000]


def with_solution(notebook):
    notebook["cells"][3]["source"] += "\n    product_of_both = x * x"


def in_metadata(notebook):
    notebook["cells"][8]["metadata"]["hint"] = "try return product_of_both"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            clear,
            ["has lost or changed outputs", "cell ex-04-1-check: it was not executed", 'does not say "not done yet"'],
        ),
        (one_error, ["has lost or changed outputs", "its output is an error (KeyError)"]),
        (lambda book: book["cells"][4]["outputs"].clear(), ["has lost or changed outputs"]),
        (lambda book: book["cells"][2].update(id="abc"), ["differs from its source in cells, ids, tags or metadata"]),
        (lambda book: book["cells"][4]["metadata"]["tags"].pop(), ["differs from its source"]),
        (lambda book: book["cells"].pop(), ["differs from its source", "has 8 cells and its solution 9"]),
        (lambda book: book["metadata"].update(course=7), ["is older than its source"]),
        (grow, ["bytes, and may have 1,000,000"]),
        (with_solution, ["differs from the solution beyond the marked blocks", "`product_of_both = x * x`"]),
        (in_metadata, ["differs from its source", "holds a line of solutions/04_squares.py: `return product_of_both`"]),
    ],
)
def test_a_lab_that_was_tampered_with_is_said(built, how, says):
    change(built / "labs" / "04_squares.ipynb", how)
    found = said(built)
    for part in says:
        assert part in found
    assert all(line.endswith(".") for line in found.splitlines())


def test_a_solution_line_in_another_lab_is_found_unless_that_lab_gives_it(built, tmp_path):
    lab = built / "labs" / "05_cubes.ipynb"
    lab.write_bytes((built / "labs" / "04_squares.ipynb").read_bytes())
    change(lab, with_solution)
    source = built / "solutions" / "05_cubes.py"
    source.write_text(SOLUTION.replace("04.", "05."))
    leak = "labs/05_cubes.ipynb holds a line of solutions/04_squares.py: `product_of_both = x * x`."
    assert leak in gate.check([unit("04", built)], built)
    source.write_text(source.read_text() + "\n# %%\nx = 1\nproduct_of_both = x * x\n")
    assert leak not in gate.check([unit("04", built)], built)


def test_a_built_notebook_without_a_source_is_said(built):
    (built / "labs" / "03_gone.ipynb").write_text("{}")
    assert gate.check(None, built) == ["labs/03_gone.ipynb has no source: there is no solutions/03_gone.py."]
