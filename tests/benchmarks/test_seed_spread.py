import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import seed_spread
import torch
from seed_spread import Run, arms, compared, initial_model, sources, train_once

from course.model import ModelConfig
from course.training import data
from course.training.trainer import TrainSettings, train

SCRIPT = Path(seed_spread.__file__)
RECORD = SCRIPT.parent / "results" / "seed_spread.json"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300)))
    return path


def test_a_run_is_the_course_s_own_trainer_when_both_seeds_are_one(text):
    learned = data.load(text, 300)
    config = replace(ModelConfig.preset("tiny-dense"), vocab=learned.tokenizer.vocab)
    rows = train(config, learned, TrainSettings(steps=2, seed=3)).rows
    assert train_once(Run(3, 3), 2, learned)["validation"][-1] == rows[-1].validation


def test_weights_and_order_are_varied_apart(text):
    learned = data.load(text, 300)
    losses = {run: train_once(run, 1, learned)["validation"][-1] for run in (Run(), Run(1, 0), Run(0, 1), Run())}
    assert len(set(losses.values())) == 3
    assert train_once(Run(), 1, learned)["validation"][-1] == losses[Run()]


def test_the_last_bit_is_one_number_moved_to_its_neighbour():
    config = ModelConfig.preset("tiny-dense")
    one, other = (initial_model(run, config) for run in (Run(), Run(nudged=5)))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    changed = [(p[p != q], q[p != q]) for p, q in pairs if not torch.equal(p, q)]
    ((before, after),) = changed
    assert len(before) == 1
    assert torch.equal(torch.nextafter(before, torch.tensor(torch.inf)), after)


def test_arms_share_the_runs_in_which_nothing_differs():
    every = arms(seeds=4, few=2)
    assert every["weights"][0] == every["data"][0] == every["last bit"][0] == every["both"][0]
    files = [run.name for run in dict.fromkeys(run for runs in every.values() for run in runs)]
    assert len(files) == len(set(files)) == 4 + 3 + 1 + 1 + 1 + 1 + 3


def test_the_script_stops_when_its_time_is_up_and_goes_on_later(tmp_path, text):
    def script(*more):
        command = [sys.executable, str(SCRIPT), "--steps", "1", "--seeds", "2", "--few", "2", "--source", str(text)]
        command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "r.json"), *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "of 10 runs are left" in script("--seconds", "0")
    assert not (tmp_path / "r.json").exists()
    script()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["rule"] == seed_spread.RULE
    assert {arm: len(runs) for arm, runs in record["runs"].items()} == {
        "both": 2, "weights": 2, "data": 2, "last bit": 2, "slow": 1, "fast": 1, "no warm-up": 1, "no clip": 1, "no decay": 1,
    }  # fmt: skip
    kept = sorted((tmp_path / "work").glob("1-*.json"))
    written = [path.stat().st_mtime_ns for path in kept]
    script()
    assert [path.stat().st_mtime_ns for path in kept] == written
    assert json.loads((tmp_path / "r.json").read_text())["runs"] == record["runs"]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ((3.0, 3.1), (3.3, 3.4), "resolved"),
        ((3.3, 3.4), (3.0, 3.1), "resolved"),
        ((3.0, 3.1), (3.05, 3.12), "not resolved"),
        ((3.0, 3.5), (3.6, 3.6), "not resolved"),
        ((3.0,), (9.0,), "not resolved"),
    ],
)
def test_arms_differ_by_more_than_the_larger_spread_or_not_at_all(one, other, verdict):
    assert compared(one, other)["verdict"] == verdict


def test_pairs_that_differ_by_a_constant_have_no_error():
    view = compared((3.0, 3.5, 4.0), (3.25, 3.75, 4.25))
    assert view["paired_standard_error"] == 0
    assert view["pairs_in_which_it_is_worse"] == 3
    assert view["difference"] == 0.25


def test_a_source_is_larger_when_its_deviation_is_more_than_twice_the_other():
    losses = {"both": [0, 4], "weights": [0, 1.9], "data": [0, 3], "last bit": [0, 2]}
    verdicts = sources(losses, 2)["verdicts"]
    assert verdicts["both, weights"] == "both is larger"
    assert verdicts["both, last bit"] == verdicts["both, data"] == verdicts["weights, data"] == "not resolved"


@pytest.mark.skipif(not RECORD.exists(), reason="the record is not complete yet")
def test_the_committed_record_follows_its_rule():
    record = json.loads(RECORD.read_text())
    losses = {arm: [run["validation"][-1] for run in runs] for arm, runs in record["runs"].items()}
    assert record["rule"] == seed_spread.RULE
    assert record["sources"] == sources(losses, seed_spread.FEW)
    for arm in seed_spread.COMPARED:
        assert record["verdicts"][arm] == compared(losses["both"][: len(losses[arm])], losses[arm])
