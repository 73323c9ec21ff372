import json
import time

import pytest

from course.cli import main
from course.hardware.reproduce import rows
from course.hardware.reproduce.command import summary
from course.hardware.reproduce.row import Row

ROWS = rows()
KEYS = {"id", "what", "published", "source", "computed", "relative_error", "kind", "reason"}


def row(published, computed, digit=0.0, kind="definition"):
    return Row("x", "x", published, "", "a source", kind, None if computed is None else lambda: computed, digit)


def test_ids_are_unique_and_every_row_has_a_source():
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert all(row.source and row.what for row in ROWS)


@pytest.mark.parametrize(
    "one", [row for row in ROWS if row.kind == "definition" and not row.contradicts], ids=lambda row: row.id
)
def test_a_definition_agrees_to_every_printed_digit(one):
    assert one.agrees, f"{one.published} published, {one.computed} computed"


def test_what_is_not_computed_says_why():
    assert all(row.reason for row in ROWS if row.compute is None)


def test_what_contradicts_says_what_and_does_not_agree():
    against = [row for row in ROWS if row.contradicts]
    assert against
    assert all(row.reason and row.agrees is False for row in against)


@pytest.mark.parametrize(
    ("published", "computed", "digit", "agrees"),
    [(405e9, 405.85e9, 1e9, True), (36.7e9, 36.63e9, 0.1e9, True), (405e9, 406.1e9, 1e9, False), (3, 3, 0, True)],
)
def test_a_printed_figure_may_be_rounded_or_cut(published, computed, digit, agrees):
    assert row(published, computed, digit).agrees is agrees


def test_an_error_is_relative_to_what_is_published():
    assert row(100, 103).relative_error == pytest.approx(0.03)
    assert row(100, None).relative_error is None


def test_a_row_is_computed_when_asked_and_once():
    calls = []
    one = Row("x", "x", 1.0, "", "s", "model", lambda: calls.append(1) or 1.0)
    assert not calls
    assert one.computed == one.computed == 1
    assert len(calls) == 1


def test_the_summary_tells_each_kind():
    told = summary([row(1, 1), row(100, 110, kind="model"), row(100, 90, kind="model"), row(1, None)])
    assert told[0] == "1 of 1 definitions agree to every printed digit."
    assert told[1] == "2 rows of kind model: median error 10.0%, largest 10%."
    assert told[2] == "1 are not reproduced here; each says why."


def test_the_command_prints_json_with_every_key_within_its_time(capsys):
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "--json"])
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == len(ROWS)
    assert all(set(one) >= KEYS for one in told)
    assert time.monotonic() - began < 20


def test_the_command_prints_a_table_of_each_kind(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce"])
    told = capsys.readouterr().out
    assert "definitions agree to every printed digit" in told
    assert "a model with no free parameter" in told
