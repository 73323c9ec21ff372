import json
import subprocess
import sys
from pathlib import Path

import dense_vs_moe
import moe_layer
import pytest
import router_collapse
import torch

from course.training import data
from course.training.log import Row
from course.training.trainer import TrainSettings

FOLDER = Path(moe_layer.__file__).parent


def script(name, *arguments, out):
    command = [sys.executable, str(FOLDER / name), "--out", str(out), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300)))
    return path


def test_the_layer_benchmark_compares_before_it_times(tmp_path):
    record, shown = script("moe_layer.py", "--experts", 4, 8, "--tokens", 64, "--rounds", 2, out=tmp_path / "r.json")
    assert [row["experts"] for row in record["results"]] == [4, 8]
    assert all(row["worst_relative_error"] < 1e-5 for row in record["results"])
    assert all(row["times_transformers"]["transformers"]["median"] == 1 for row in record["results"])
    assert "loop / grouped" in shown
    for row in record["results"]:
        T, D, width, E, P = 64, 128, 128, row["experts"], 2 * 64
        around = 4 * T * D + 4 * T * E  # x, scores
        grouped = around + 4 * P * (3 * D + 4 * width) + 8 * T * 3 + 28 * P + 4 * P + 4 * T + 8 * E
        kernels = around + 4 * T * E + 28 * P + 8 * (E + 1)  # logits, the order, offsets
        assert row["kept_bytes"] == {"grouped": grouped, "kernels": kernels, "ratio": round(grouped / kernels, 2)}
        assert row["kept_bytes"]["ratio"] > 11
    assert record["command"].endswith("--tokens 64 --rounds 2")
    assert record["machine"]["cores"] >= 1


def test_what_backward_needs_is_counted_once_and_not_where_it_is_there_anyhow():
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    assert moe_layer.kept_bytes(lambda: x * weight, []) == 4 * 24 + 4 * 4
    assert moe_layer.kept_bytes(lambda: x * weight, [weight]) == 4 * 24
    assert moe_layer.kept_bytes(lambda: (x * weight) * (x[1:3] * weight).sum(), [weight]) == 4 * (24 + 24 + 1)
    with torch.no_grad():
        assert moe_layer.kept_bytes(lambda: x * weight, []) == 0


def test_a_goal_is_met_or_missed_by_the_slowest_size():
    def row(experts, ours, over_loop):
        return {
            "experts": experts,
            "times_transformers": {"grouped": {"median": ours}},
            "loop_over_grouped": {"median": over_loop},
        }

    assert list(moe_layer.verdicts([row(8, 1.0, 1.0), row(256, 1.05, 2.5)]).values()) == [True, True]
    assert list(moe_layer.verdicts([row(8, 1.06, 1.0), row(256, 0.9, 2.4)]).values()) == [False, False]


def test_dense_against_moe_is_resumed_and_recorded(tmp_path, text):
    arguments = ("--steps", 2, "--rounds", 2, "--seeds", 0, 1, "--source", text, "--work", tmp_path / "work")
    record, _ = script("dense_vs_moe.py", *arguments, out=tmp_path / "r.json")
    assert record["rule"] == dense_vs_moe.RULE
    assert {arm: [run["seed"] for run in runs] for arm, runs in record["runs"].items()} == {
        "dense": [0, 1],
        "moe": [0, 1],
        "moe timed": [0, 1],
    }
    again, _ = script("dense_vs_moe.py", *arguments, out=tmp_path / "again.json")
    assert again["runs"] == record["runs"]


@pytest.mark.parametrize(
    ("dense", "moe", "better"),
    [
        ((3.0, 3.1), (2.8, 2.9), "moe"),
        ((2.8, 2.9), (3.0, 3.1), "dense"),
        ((3.0, 3.1), (2.9, 3.05), "not resolved"),
        ((3.0, 3.3), (2.9, 2.9), "not resolved"),
        ((3.0,), (2.0,), "not resolved"),
    ],
)
def test_a_difference_must_exceed_the_spread_over_seeds(dense, moe, better):
    def runs(losses):
        return [[Row(1, 1, 1.0, loss, 0.1, 1.0, None, loss)] for loss in losses]

    assert dense_vs_moe.verdict(runs(dense), runs(moe))["better"] == better


def test_router_collapse_records_the_load_of_every_layer(text, monkeypatch):
    monkeypatch.setattr(router_collapse, "LAST", 2)
    settings = TrainSettings(steps=2, batch=1, evaluate_every=2, evaluation_sequences=1)
    result = router_collapse.run(0.0, 0, data.load(text, 300), settings)
    assert [[len(layer) for layer in step] for step in result["loads"]] == [[8] * 4]
    assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in result["loads"][0])
    assert result["imbalance"] > 0


def test_loads_are_summed_over_steps_within_a_layer():
    assert router_collapse.shares([[[1, 3], [4, 0]], [[2, 2], [4, 0]]]) == [[0.375, 0.625], [1.0, 0.0]]
