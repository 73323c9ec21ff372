"""Recorded experiments: read, announced, and named when there is no such record."""

import json

import pytest

import course

RECORD = {
    "command": "python benchmarks/x.py",
    "date": "2026-01-02",
    "machine": {"cpu": "a chip", "cores": 2},
    "runs": [1.5],
    "rule": "arms differ when " + 40 * "their means do ",
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    return folder


def test_a_record_is_returned_whole_and_says_where_it_comes_from(results, capsys):
    (results / "x.json").write_text(json.dumps(RECORD))
    assert course.recorded("x") == RECORD
    first, *rule = capsys.readouterr().out.splitlines()
    assert first == "recorded: python benchmarks/x.py, 2026-01-02, 2 cores (a chip)"
    assert " ".join(rule) == RECORD["rule"].strip()
    assert len(rule) > 1
    assert max(map(len, rule)) <= 110


def test_a_record_without_a_rule_prints_one_line(results, capsys):
    (results / "x.json").write_text(json.dumps({key: value for key, value in RECORD.items() if key != "rule"}))
    course.recorded("x")
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("there", "said"), [(["a", "b"], "there is a, b"), ([], "there is none here")])
def test_a_missing_record_is_answered_with_those_that_exist(results, there, said):
    for name in there:
        (results / f"{name}.json").write_text("{}")
    with pytest.raises(ValueError, match=said):
        course.recorded("y")


def test_a_record_that_is_a_folder_is_found_by_its_name(results):
    (results / "z").mkdir()
    assert course.recorded_folder("z") == results / "z"
    with pytest.raises(ValueError, match="there is no record 'w'; there is z"):
        course.recorded_folder("w")
