import json
import subprocess
import sys

import model
import pytest


def test_the_model_benchmark_compares_before_it_times(tmp_path):
    out = tmp_path / "r.json"
    sizes = ("--sizes", "tiny", "mixture", "--contexts", "40", "--rounds", "2", "--steps", "3")
    done = subprocess.run([sys.executable, model.__file__, "--out", out, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [(row["family"], row["what"], row["size"]) for row in record["results"]] == [
        ("Llama", "training", "tiny"),
        ("DeepSeek-V3", "training", "mixture"),
        ("Llama", "decoding", "40 tokens cached"),
        ("DeepSeek-V3", "decoding", "40 tokens cached"),
    ]
    assert all(row["milliseconds"].keys() == {"ours", "transformers"} for row in record["results"])
    for row in record["results"]:
        goal = model.GOALS[row["family"]][row["what"]]
        assert record["met"][row["family"]][row["what"]] == (row["times_as_fast"]["median"] >= goal)
    assert "times as fast" in done.stdout


def test_two_models_that_are_not_the_same_are_not_timed():
    with pytest.raises(AssertionError, match="the two models are not the same"):
        model.require_near(1.0, 1.01, 1e-4)


def test_a_ratio_is_taken_within_a_round():
    row = model.figures({"ours": [1.0, 2.0, 10.0], "transformers": [2.0, 4.0, 20.0]})
    assert row["times_as_fast"] == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_a_decoder_reads_the_weights_that_a_token_meets_and_its_cache():
    config, _ = model.DECODING["DeepSeek-V3"]
    assert model.bytes_read(config, 4096) - model.bytes_read(config, 1024) == 3072 * 3 * (64 + 16) * 4
    idle = 2 * (32 - 4) * 3 * 256 * 128
    assert model.bytes_read(config, 0) == 4 * (model.total_parameters(config) - idle - 2048 * 256)
