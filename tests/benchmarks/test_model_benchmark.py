import json
import subprocess
import sys

import model
import pytest


def test_the_model_benchmark_compares_before_it_times(tmp_path):
    out = tmp_path / "r.json"
    sizes = ("--sizes", "tiny", "--contexts", "40", "--rounds", "2", "--steps", "3")
    done = subprocess.run([sys.executable, model.__file__, "--out", out, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [(row["what"], row["size"]) for row in record["results"]] == [
        ("training", "tiny"),
        ("decoding", "40 tokens cached"),
    ]
    assert all(row["milliseconds"].keys() == {"ours", "transformers"} for row in record["results"])
    for what, goal in model.GOALS.items():
        (row,) = (row for row in record["results"] if row["what"] == what)
        assert record["met"][what] == (row["times_as_fast"]["median"] >= goal)
    assert "times as fast" in done.stdout


def test_two_models_that_are_not_the_same_are_not_timed():
    with pytest.raises(AssertionError, match="the two models are not the same"):
        model.require_near(1.0, 1.01, 1e-4)


def test_a_ratio_is_taken_within_a_round():
    row = model.figures({"ours": [1.0, 2.0, 10.0], "transformers": [2.0, 4.0, 20.0]})
    assert row["times_as_fast"] == {"median": 2.0, "low": 2.0, "high": 2.0}
