"""`course bench-kernel` as an instructor calls it."""

import json
import re

import pytest
from cheats import CHEATS, HONEST, TWICE
from conftest import book, save

from course.grading import GradingError, bench_command
from course.grading.bench import Entry
from course.grading.bench_command import bench_command as command


@pytest.fixture
def folder(tmp_path):
    entries = tmp_path / "class"
    entries.mkdir()
    return entries


@pytest.fixture
def quick(monkeypatch, workers):
    """Entries are not run: what becomes of each is in its text."""

    def bench(student, exercise, source, its, card):
        if "stop" in source:
            raise KeyboardInterrupt
        if "crash" in source:
            raise KeyError
        return Entry(student, "Wrong." if "wrong" in source else None, loaded=len(source), least=1)

    monkeypatch.setattr(bench_command, "bench", bench)


def test_a_class_is_ranked(workers, folder, tmp_path, capsys):
    (folder / "ann lee.py").write_text(HONEST)
    save(folder / "bob" / "lab.ipynb", book({"10.3": TWICE}))
    (folder / "eve.py").write_text(CHEATS["one buffer for every result"][0])
    out, board = tmp_path / "run.json", tmp_path / "board.json"
    assert command("10.3", [folder], out, board) == 0
    told = json.loads(out.read_text())
    assert told["how"] == "computed, no GPU"
    assert told["isolation"] == "A"
    ann, bob, eve = told["entries"]
    assert (ann["rank"], ann["student"], ann["excess"], ann["launches"]) == (1, "ann lee", 1.0, 1)
    assert (bob["rank"], bob["student"], bob["launches"]) == (2, "bob", 2)
    assert bob["loaded"] == 2 * ann["loaded"]
    assert (eve["rank"], eve["student"]) == (None, "eve")
    assert "keeps something that can change" in eve["refused"]
    assert ann["spills"] == 0
    assert 0 < ann["registers"] < 256
    assert ann["occupancy"] == 1
    assert ann["bound_seconds"] == pytest.approx((ann["loaded"] + ann["stored"]) / 3.35e12)
    assert [each["student"] for each in json.loads(board.read_text())["boards"][0]["entries"]] == [
        "ann lee",
        "bob",
        "eve",
    ]
    said = capsys.readouterr().out
    assert said.startswith("Sandbox level A.")
    assert "computed, no GPU" in said
    assert "A rejected entry has no rank." in said


def test_the_board_shows_everybody_and_what_has_no_place_on_it(quick, folder, tmp_path, capsys):
    board = tmp_path / "board.json"
    for text in ("x" * 30, "x" * 10, "wrong"):
        (folder / "ann.py").write_text(text)
        assert command("10.3", [folder], board=board) == 0
    (entry,) = json.loads(board.read_text())["boards"][0]["entries"]
    assert entry["loaded"] == 10
    assert "Wrong." in capsys.readouterr().out


def test_what_cannot_be_read_is_told_and_stops_nobody(quick, folder, tmp_path, capsys):
    (folder / "ann.py").write_text("x")
    (folder / "bad.py").write_bytes(b"\xff")
    (folder / "cry.py").write_text("crash")
    save(folder / "dan.ipynb", book({}))
    out, board = tmp_path / "run.json", tmp_path / "board.json"
    assert command("10.3", [folder], out, board) == 1
    told = {each["student"]: each["refused"] for each in json.loads(out.read_text())["entries"]}
    assert told["ann"] is None
    assert told["bad"] == "bad.py cannot be read as UTF-8 text."
    assert told["cry"] == "Not run: the benchmark failed (KeyError)."
    assert "no exercise" in told["dan"]
    assert [each["student"] for each in json.loads(board.read_text())["boards"][0]["entries"]] == ["ann"]
    assert "Traceback" not in "".join(capsys.readouterr())


def test_ctrl_c_keeps_what_is_done(quick, folder, tmp_path, capsys):
    (folder / "ann.py").write_text("x")
    (folder / "bob.py").write_text("stop")
    out, board = tmp_path / "run.json", tmp_path / "board.json"
    with pytest.raises(KeyboardInterrupt):
        command("10.3", [folder], out, board)
    assert [each["student"] for each in json.loads(out.read_text())["entries"]] == ["ann"]
    assert [each["student"] for each in json.loads(board.read_text())["boards"][0]["entries"]] == ["ann"]
    assert "ann" in capsys.readouterr().out


def test_wrong_use_is_one_sentence_and_exit_code_2(quick, folder, tmp_path, capsys):
    (folder / "ann.py").write_text("x")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for wrong, says in (
        ({"exercise": "10.77"}, "There is no exercise 10.77; there is 10.1"),
        ({"exercise": "04.1"}, "Exercise 04.1 is no kernel exercise; there is 09.1"),
        ({"exercise": "11.1"}, "Exercise 11.1 is no kernel exercise; there is 11.2, 11.4, 11.5, 11.6.\n"),
        ({"files": [tmp_path / "nobody.py"]}, "There is no file or folder"),
        ({"files": [tmp_path / "empty"]}, "holds no notebook (.ipynb) or Python file (.py)"),
        ({"gpu": "h999"}, "There is no GPU 'h999' here"),
        ({"board": tmp_path / "other.json"}, "is no board"),
    ):
        assert command(**({"exercise": "10.3", "files": [folder]} | wrong)) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert len(said.err.splitlines()) == 1
        assert said.out == ""


def test_an_entry_that_is_no_python_is_rejected_in_one_sentence(workers, folder, capsys):
    (folder / "ann.py").write_text("def grouped_product(rows_PK:\n")
    (folder / "bob.py").write_text("")
    assert command("11.4", [folder]) == 0
    said = capsys.readouterr()
    assert re.search(r"ann  The answer cell is not valid Python in line 1: .*\.", said.out)
    assert "bob  The answer cell does not define `grouped_product` as a function." in said.out
    assert "Traceback" not in said.out + said.err


def test_nothing_is_run_without_a_sandbox_unless_it_is_given_up(quick, folder, monkeypatch, capsys):
    (folder / "ann.py").write_text("x")

    def none(isolation):
        if isolation:
            raise GradingError("No sandbox. With --no-isolation answers run nevertheless, with your rights.")
        return "C"

    monkeypatch.setattr(bench_command, "isolation_level", none)
    assert command("10.3", [folder]) == 2
    assert "--no-isolation" in capsys.readouterr().err
    assert command("10.3", [folder], isolation=False) == 0
    assert capsys.readouterr().out.startswith("Sandbox level C. Entries run as plain processes with your rights.")


def test_with_a_card_it_says_measured_on_it(quick, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_command, "your_card", lambda: bench_command.Card("NVIDIA H100", "cuda"))
    monkeypatch.setattr(
        bench_command, "bench", lambda student, *_: Entry(student, seconds=1e-5, share_of_roof=0.9, loaded=1, least=1)
    )
    (folder / "ann.py").write_text("x")
    out = tmp_path / "run.json"
    assert command("10.3", [folder], out) == 0
    assert json.loads(out.read_text())["how"] == "measured on NVIDIA H100"
    assert "measured on NVIDIA H100" in capsys.readouterr().out
    assert command("10.3", [folder], out, measure=False) == 0
    assert json.loads(out.read_text())["how"] == "computed, no GPU"
