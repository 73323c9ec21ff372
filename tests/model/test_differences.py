"""The list of places where implementations differ names tests that are there."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIST = (HERE.parents[1] / "docs" / "differences.md").read_text()
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", LIST)


def test_every_row_names_a_test():
    rows = [line for line in LIST.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 12
    assert all(re.search(r"`test_\w+\.py::test_\w+`", row) for row in rows)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file, name):
    assert f"def {name}(" in (HERE / file).read_text()
