"""The board: who comes first, what a class's file keeps, and what is no such file."""

import json

import pytest

from course.grading import GradingError
from course.grading.bench import Entry
from course.grading.leaderboard import COMPUTED, Board, join, least_time, read, table
from course.hardware.gpus import GPUS

H800 = GPUS["h800"]


def entry(student, moved=100, **more):
    more = {"launches": 1, "spills": 0, "registers": 20, "occupancy": 1.0, "least": 100} | more
    return Entry(student, loaded=moved, stored=0, **more)


def board(*entries, how=COMPUTED):
    return Board("10.3", how, "N=48", entries)


def order(*entries, how=COMPUTED):
    return [(rank, each.student) for rank, each in board(*entries, how=how).ranked()]


def test_fewer_bytes_then_launches_spills_occupancy_and_registers_come_first():
    worse = [
        entry("bytes", 102),
        entry("launches", launches=2),
        entry("spills", spills=8),
        entry("occupancy", occupancy=0.5),
        entry("registers", registers=21),
    ]
    assert order(*worse, entry("best")) == [
        (1, "best"), (2, "registers"), (3, "occupancy"), (4, "spills"), (5, "launches"), (6, "bytes")
    ]  # fmt: skip


def test_equals_share_a_rank_and_a_rejected_entry_has_none():
    found = order(entry("cy"), Entry("dan", "Wrong."), entry("bob", 100.4), entry("eve", 150), entry("ann"))
    assert found == [(1, "ann"), (1, "bob"), (1, "cy"), (4, "eve"), (None, "dan")]


def test_a_measured_time_comes_before_the_bytes():
    quick, slow = entry("ann", 200, seconds=1e-5), entry("bob", 100, seconds=2e-5)
    assert order(slow, quick, how="measured on a card") == [(1, "ann"), (2, "bob")]
    assert order(slow, quick) == [(1, "bob"), (2, "ann")]


def test_a_student_keeps_the_better_of_two_entries():
    first = board().joined(entry("ann", 120)).joined(entry("ann", 150)).joined(Entry("ann", "Wrong."))
    assert [each.moved for each in first.entries] == [120]
    assert [each.moved for each in first.joined(entry("ann", 110)).entries] == [110]
    late = board().joined(Entry("bob", "Wrong.")).joined(Entry("bob", "Wrong again."))
    assert [each.refused for each in late.entries] == ["Wrong again."]
    assert late.joined(entry("bob", 500)).entries[0].refused is None


def test_the_file_accumulates_and_keeps_kinds_apart(tmp_path):
    path = tmp_path / "board.json"
    assert read(path) == []
    join(path, board(entry("ann", 120)), H800)
    join(path, board(entry("bob", 110, tensor_core={"HMMA": 4})), H800)
    join(path, board(entry("ann", 120, seconds=1e-5, share_of_roof=0.5), how="measured on a card"), H800)
    both, measured = read(path)
    assert [each.student for each in both.entries] == ["bob", "ann"]
    assert both.entries[0].tensor_core == {"HMMA": 4}
    assert measured.entries[0].seconds == 1e-5
    told = json.loads(path.read_text())["boards"][0]
    assert told["how"] == "computed, no GPU"
    assert told["rule"].startswith("A rejected entry has no rank.")
    assert [each["rank"] for each in told["entries"]] == [1, 2]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"boards": [7]}', '{"boards": [{"exercise": "1"}]}', "\0" * 9, "[" * 10**5]
)
def test_another_file_is_left_alone(tmp_path, text):
    path = tmp_path / "grades.json"
    path.write_text(text)
    with pytest.raises(GradingError, match="name another file"):
        join(path, board(entry("ann")), H800)
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GradingError, match="cannot be"):
        join(tmp_path / "file" / "board.json", board(entry("ann")), H800)


def test_bytes_take_their_time_at_the_bandwidth_of_the_data_sheet():
    assert least_time(entry("ann", 3_350_000), H800) == pytest.approx(1e-6)


def test_the_table_says_how_by_which_rule_and_why_somebody_is_not_ranked(capsys):
    from rich.console import Console

    Console(width=200).print(
        table(board(entry("ann"), Entry("[red]eve", "Wrong.\x1b[2J")), H800, "10.3: computed, no GPU")
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "computed, no GPU" in said
    assert "A rejected entry has no rank." in said
    assert "[red]eve" in said
    assert "Wrong.?[2J" in said
