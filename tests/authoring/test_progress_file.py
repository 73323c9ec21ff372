import json
import signal
import subprocess
import sys
import time
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course.authoring import progress
from course.authoring.progress import Progress

TODAY = date.today().isoformat()


def test_attempts_are_counted_and_the_last_passed_answer_is_kept(home):
    progress.record(home, "04.3", False, "wrong")
    assert progress.load(home) == {"04.3": Progress(attempts=1)}
    assert progress.kept_answer(home, "04.3") is None
    progress.record(home, "04.3", True, "right\n")
    progress.record(home, "04.3", False, "worse")
    assert progress.load(home) == {"04.3": Progress(passed=True, first_passed=TODAY, attempts=3)}
    assert progress.kept_answer(home, "04.3") == (home / "answers" / "04.3.py").read_text() == "right\n"


def test_hints_are_counted_up_to_the_last(home):
    assert [progress.take_hint(home, "04.3") for _ in range(4)] == [1, 2, 3, 3]
    assert progress.load(home) == {"04.3": Progress(hints=3)}


def test_reading_progress_writes_nothing(home):
    assert progress.load(home) == {}
    assert progress.kept_answer(home, "04.3") is None
    assert not home.exists()


def test_text_that_cannot_be_encoded_is_kept_all_the_same(home):
    progress.record(home, "04.1", True, "s = '\ud800é'")
    assert progress.kept_answer(home, "04.1") == "s = '?é'"


DAMAGED = [
    "",
    "[]",
    "{",
    '{"exercises": []}',
    '{"exercises": {"04.1": 3}}',
    '{"exercises": {"04.1": {"attempts": "x"}}}',
]


@pytest.mark.parametrize("content", [*DAMAGED, "[" * 100_000, '{"exercises": {"../x": {}}}'])
def test_a_damaged_file_is_moved_aside_and_rebuilt_from_the_kept_answers(home, capsys, content):
    progress.record(home, "04.1", True, "right")
    progress.record(home, "04.2", False, "wrong")
    (home / "progress.json").write_text(content)
    assert progress.load(home) == {"04.1": Progress(passed=True, first_passed=TODAY, attempts=1)}
    assert (home / "progress.damaged-1.json").read_text() == content
    said = capsys.readouterr().err
    assert "it is now progress.damaged-1.json, and what passed was restored." in said
    progress.record(home, "04.2", True, "right")
    assert capsys.readouterr().err == ""
    assert list(progress.load(home)) == ["04.1", "04.2"]


def test_a_workspace_that_cannot_be_written_costs_a_sentence_and_no_more(tmp_path, capsys):
    (tmp_path / "file").touch()
    progress.record(tmp_path / "file" / "inside", "04.1", True, "right")
    assert progress.take_hint(tmp_path / "file" / "inside", "04.1") == 1
    assert capsys.readouterr().err.count("Progress is not recorded: ") == 2


def test_an_export_holds_progress_and_answers(home, tmp_path):
    progress.record(home, "04.1", True, "right")
    progress.take_hint(home, "04.2")
    path = progress.export(home, tmp_path)
    entries = json.loads(path.read_text())["exercises"]
    assert entries["04.1"] == {"passed": True, "first_passed": TODAY, "attempts": 1, "hints": 0, "answer": "right"}
    assert entries["04.2"]["answer"] is None
    with pytest.raises(progress.ProgressError, match="cannot be written"):
        progress.export(home, path / "inside")


def test_a_reset_begins_anew_and_keeps_a_backup(home):
    assert progress.reset(home) is None
    progress.record(home, "04.1", True, "right")
    aside = progress.reset(home)
    assert progress.load(home) == {}
    assert progress.kept_answer(home, "04.1") is None
    assert progress.kept_answer(aside, "04.1") == "right"
    assert progress.load(aside)["04.1"].passed
    progress.record(home, "04.1", True, "again")
    assert progress.reset(home) != aside


WRITER = """
import sys
from pathlib import Path
from course.authoring import progress
home, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(times):
    progress.record(home, name, True, f"answer {number}\\n" * 2000)
"""


def writer(home, name, times):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, home, name, str(times)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_record_at_once_lose_nothing(home):
    writers = [writer(home, name, 60) for name in ("04.1", "04.2")]
    for number in range(60):
        progress.record(home, "04.3", number % 2 == 0, "here")
    for process in writers:
        process.stdout.close()
        assert process.wait(60) == 0
    assert {name: entry.attempts for name, entry in progress.load(home).items()} == {"04.1": 60, "04.2": 60, "04.3": 60}


def test_a_killed_writer_loses_nothing_and_blocks_nobody(home):
    attempts = 0
    for round in range(6):
        with writer(home, "04.1", 10**6) as process:
            time.sleep(0.03 + 0.017 * round)
            process.send_signal(signal.SIGKILL)
        entry = json.loads((home / "progress.json").read_text())["exercises"]["04.1"]
        assert entry["attempts"] >= attempts
        kept = progress.kept_answer(home, "04.1").splitlines()
        assert len(kept) == 2000
        assert len(set(kept)) == 1
        progress.record(home, "04.1", True, "by hand\n" * 2000)
        attempts = progress.load(home)["04.1"].attempts
        assert attempts > entry["attempts"]
    assert not list(home.glob("*.damaged*"))
    assert not list(home.glob(".*.tmp"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["04.1", "04.2", "11.10"]), st.booleans(), st.text()), max_size=6))
def test_progress_says_what_was_recorded(tmp_path_factory, events):
    home = tmp_path_factory.mktemp("home")
    for name, passed, source in events:
        progress.record(home, name, passed, source)
    seen = progress.load(home)
    assert sum(entry.attempts for entry in seen.values()) == len(events)
    assert {name for name, entry in seen.items() if entry.passed} == {name for name, passed, _ in events if passed}
