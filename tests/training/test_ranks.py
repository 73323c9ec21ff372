"""Two processes under torchrun train the run of one: real processes, real gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

from course.model import ModelConfig, Transformer, balance_loss, balanced_over
from course.training import ranks
from course.training.checkpoint import Checkpoint
from course.training.command import train_command
from course.training.data import training_batch
from course.training.log import Row, read_log
from course.training.trainer import train

RANKED = """
import json, os, signal, sys
from pathlib import Path
from course.model import ModelConfig, Transformer
from course.training import data, ranks
from course.training.errors import TrainingError
from course.training.optimizers import MuonAndAdamW, adamw
from course.training.sharding import load, spread, whole
from course.training.trainer import TrainSettings, take_step, train

def say(line):
    os.write(1, (line + "\\n").encode())  # at once: the ranks share one pipe

def places(optimizer):
    return [str(getattr(value, "placements", "")) for kept in optimizer.state.values() for value in kept.values()]

text, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
with ranks.joined():
    sums = data.load(text, vocab=280)
    for name, case in cases.items():
        def press(row, routings):
            if (ranks.rank(), row.step) == (1, case["stop"]):
                signal.raise_signal(signal.SIGINT)

        config, settings = ModelConfig(**case["config"]), TrainSettings(**case["settings"])
        resume = (out / name / "checkpoint.pt").exists()
        try:
            train(config, sums, settings, out / name, resume, case["seconds"], press, sharding=case["sharding"])
        except (KeyboardInterrupt, TrainingError) as error:
            say(f"{name}: {error}")
    for make in (adamw, MuonAndAdamW):
        settings, model = TrainSettings(batch=2), Transformer(ModelConfig(**cases["mixture"]["config"]))
        spread(model, "full")
        kept, loaded = make(model, settings), make(model, settings)
        take_step(model, kept, sums, settings, 2, 0.0)
        load(loaded, whole(kept.state_dict()))
        say(f"{make.__name__}: {len(places(kept))} {places(loaded) == places(kept)}")
"""


def torchrun(*arguments: str) -> subprocess.Popen:
    """Two ranks of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def ten(brief):
    return replace(brief, steps=10, evaluate_every=4, checkpoint_every=5)


@pytest.fixture(scope="module")
def cases(small, ten):
    """By name: config, settings, sharding, the step after which rank 1 hears Ctrl-C, and the time limit."""
    dense, muon, bf16 = small.dense_twin(), replace(ten, optimizer="muon"), replace(ten, precision="bf16")
    v3 = ModelConfig.preset("tiny-deepseek-v3")
    tiny = {"vocab": 280, "context": 16, "width": 16, "layers": 2, "heads": 2, "mtp_layers": 1, "bias_rate": 0.01}
    deepseek = replace(v3, **tiny, sequence_balance_weight=0.1, balance_weight=0.01)
    return {
        "dense": (dense, ten, "none", None, None),
        "dense, sharded": (dense, ten, "full", None, None),
        "mixture": (small, ten, "none", None, None),
        "mixture, sharded": (small, ten, "full", None, None),
        "muon": (small, muon, "none", None, None),
        "muon, sharded": (small, muon, "full", None, None),
        "deepseek": (deepseek, ten, "none", None, None),
        "deepseek, sharded": (deepseek, ten, "full", None, None),
        "bf16": (small, bf16, "none", None, None),
        "bf16, sharded": (small, bf16, "full", None, None),
        "capacity": (replace(small, capacity_factor=1.0), ten, "none", None, None),
        "few windows": (small, replace(ten, evaluation_sequences=1), "full", None, None),
        "stopped": (small, ten, "none", 4, None),
        "stopped, sharded": (small, ten, "full", 7, None),
        "stopped, muon sharded": (small, muon, "full", 7, None),
        "resumed": (small, ten, "none", None, None),
        "resumed, sharded": (small, ten, "full", None, None),
        "resumed, muon sharded": (small, muon, "full", None, None),
        "timed": (small, ten, "none", None, 1e-9),
        "odd batch": (small, replace(ten, batch=3), "none", None, None),
        "odd width": (replace(small, expert_width=9), ten, "full", None, None),
    }


@pytest.fixture(scope="module")
def two(cases, text, sums, tmp_path_factory):
    """What two ranks made of the cases: their folder, and what they said."""
    out = tmp_path_factory.mktemp("two")
    for name, (config, settings, *_) in cases.items():
        if name.startswith("resumed"):
            stopped(config, sums, settings, out / name, 6)
    told = {
        name: {"config": asdict(config), "settings": asdict(settings), "sharding": sharding, "stop": stop, "seconds": s}
        for name, (config, settings, sharding, stop, s) in cases.items()
    }
    (out / "ranked.py").write_text(RANKED)
    process = torchrun(str(out / "ranked.py"), str(text), str(out), json.dumps(told))
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, said


@pytest.fixture(scope="module")
def one(cases, sums):
    """The rows of one process, by the name of a case."""
    return cache(lambda name: train(cases[name][0], sums, cases[name][1]).rows)


def stopped(config, sums, settings, out, stop):
    """One process that hears Ctrl-C after step `stop`."""

    def press(row, routings):
        if row.step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, sums, settings, out, on_step=press)


def numbers(rows):
    """What must not depend on the ranks."""
    return [
        number or 0.0 for row in rows for number in (row.loss, row.gradient_norm, row.max_violation, row.validation)
    ]


def same(rows, wanted, rel=2e-6):
    return [row.step for row in rows] == [row.step for row in wanted] and numbers(rows) == pytest.approx(
        numbers(wanted), rel=rel
    )


@pytest.mark.parametrize(
    "name", ["dense", "dense, sharded", "mixture", "mixture, sharded", "deepseek", "deepseek, sharded", "few windows"]
)
def test_two_ranks_train_as_one_to_rounding(name, one, two):
    assert same(read_log(two[0] / name / "log.csv"), one(name))


def test_so_they_do_with_muon_which_computes_in_bf16(one, two):
    for name in ("muon", "muon, sharded"):
        assert same(read_log(two[0] / name / "log.csv"), one("muon"), rel=1e-3)


def test_so_they_do_in_bf16(one, two):
    for name in ("bf16", "bf16, sharded"):
        assert same(read_log(two[0] / name / "log.csv"), one("bf16"), rel=1e-2)


def test_a_checkpoint_does_not_show_how_many_ranks_wrote_it(cases, sums, two, tmp_path):
    def flat(tree):
        if isinstance(tree, dict | list | tuple):
            return [leaf for each in (tree.values() if isinstance(tree, dict) else tree) for leaf in flat(each)]
        return [tree]

    for name in ("mixture", "muon"):
        config, settings, *_ = cases[name]
        train(config, sums, settings, tmp_path / name)
        alone = Checkpoint.read(tmp_path / name)
        for written in (name, f"{name}, sharded"):
            kept = Checkpoint.read(two[0] / written)
            assert (kept.config, kept.settings, kept.data) == (alone.config, alone.settings, alone.data)
            for part in ("model", "optimizer"):
                got, wanted = flat(getattr(kept, part)), flat(getattr(alone, part))
                assert [type(leaf) for leaf in got] == [type(leaf) for leaf in wanted]
                tensors = [(a, b) for a, b in zip(got, wanted, strict=True) if isinstance(a, torch.Tensor)]
                assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in tensors)


@pytest.mark.parametrize("name", ["stopped", "stopped, sharded", "stopped, muon sharded"])
def test_ctrl_c_on_any_rank_stops_all_and_one_process_goes_on(name, cases, sums, one, two):
    config, settings, _, stop, _ = cases[name]
    out, said = two
    assert said.count(f"{name}: stopped after step {stop}\n") == 2
    assert len(read_log(out / name / "log.csv")) == len(Checkpoint.read(out / name).rows) == stop
    resumed = train(config, sums, settings, out / name, resume=True).rows
    assert same(resumed, one(name), rel=1e-4 if settings.optimizer == "muon" else 2e-6)


@pytest.mark.parametrize("name", ["resumed", "resumed, sharded", "resumed, muon sharded"])
def test_two_ranks_go_on_where_one_process_stopped(name, cases, one, two):
    rows = Checkpoint.read(two[0] / name).rows
    assert numbers([Row(*row) for row in rows[:6]]) == numbers(one(name)[:6])
    assert same([Row(*row) for row in rows], one(name), rel=1e-4 if cases[name][1].optimizer == "muon" else 2e-6)


def test_a_loaded_optimizer_lies_on_the_ranks_as_the_one_that_was_saved(two):
    told = re.findall(r"^(adamw|MuonAndAdamW): (\d+) (True|False)$", two[1], re.MULTILINE)
    assert sorted((name, alike) for name, _, alike in told) == 2 * [("MuonAndAdamW", "True")] + 2 * [("adamw", "True")]
    assert all(int(states) > 50 for _, states, _ in told)


def test_time_is_up_for_all_ranks_after_the_same_step(two):
    assert len(read_log(two[0] / "timed" / "log.csv")) == len(Checkpoint.read(two[0] / "timed").rows) == 1


def test_a_batch_that_does_not_divide_gets_a_sentence(two):
    assert "a batch of 3 sequences does not divide among 2 ranks: start as many as divide it (1, 3)\n" in two[1]


def test_a_width_that_does_not_divide_gets_a_sentence(two):
    assert "and 9, that of blocks.0.feed_forward.down_EDI, does not divide among 2 ranks: start fewer" in two[1]


def test_capacity_limits_each_ranks_part(cases, sums, one, two):
    """As on real machines; so with a capacity factor the losses do depend on the cut."""
    config, settings, *_ = cases["capacity"]
    torch.manual_seed(settings.seed)
    model = Transformer(config)
    windows = training_batch(sums, config.context, settings.batch, settings.seed, step=1)
    halves = zip(*(window_BS.chunk(2) for window_BS in windows), strict=True)
    losses = [model.loss(*half).cross_entropy.item() for half in halves]
    rows = read_log(two[0] / "capacity" / "log.csv")
    assert rows[0].loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert not same(rows, one("capacity"), rel=1e-3)


def test_the_mean_of_the_parts_balance_losses_is_that_of_the_whole():
    probabilities_TE = torch.rand(12, 4).softmax(-1).requires_grad_()
    indices_TK = torch.randint(0, 4, (12, 2))
    whole = balance_loss(probabilities_TE, indices_TK)
    shares_E = indices_TK.flatten().bincount(minlength=4) / 12
    parts = list(zip(probabilities_TE.chunk(2), indices_TK.chunk(2), strict=True))
    with balanced_over(lambda own_E: shares_E):
        together = torch.stack([balance_loss(*part) for part in parts]).mean()
    torch.testing.assert_close(together, whole)
    for got, want in zip(*(torch.autograd.grad(loss, probabilities_TE) for loss in (together, whole)), strict=True):
        torch.testing.assert_close(got, want)
    apart = torch.stack([balance_loss(*part) for part in parts]).mean()
    assert abs(apart - whole) > 1e-3


def test_one_process_makes_no_group_and_hands_back_what_it_was_given(monkeypatch):
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: pytest.fail("a group of one"))
    tensor = torch.arange(3)
    with ranks.joined():
        assert (ranks.count(), ranks.rank(), ranks.first()) == (1, 0, True)
        assert ranks.mean(tensor) is ranks.total(tensor) is tensor
        assert torch.equal(ranks.part(tensor), tensor)
        assert [ranks.any_says(flag) for flag in (True, False)] == [True, False]
        assert ranks.in_turn(lambda: 7) == 7


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """`course train` on two ranks, its launcher stopped by Ctrl-C in the first steps: options, and what it said."""
    out = tmp_path_factory.mktemp("command")
    options = ["--data", str(text), "--vocab", "270", "--steps", "10", "--out", str(out)]
    process = torchrun("-m", "course", "train", *options)
    while process.poll() is None and (not (out / "log.csv").exists() or not read_log(out / "log.csv")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=120)
    assert "Stopped." in said, err
    return out, options, said


def test_the_command_under_torchrun_speaks_once_and_ctrl_c_leaves_a_checkpoint(run):
    out, _, said = run
    assert said.count("1 threads on each of 2 ranks") == said.count("step     1 ") == said.count("Stopped.") == 1
    assert len(Checkpoint.read(out).rows) == len(read_log(out / "log.csv")) < 10
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "log.csv"]


def test_the_command_resumed_ends_as_one_process_does(run, text, tmp_path):
    out, options, _ = run
    process = torchrun("-m", "course", "train", *options, "--resume", "--sharding", "full")
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert said.count("The model writes:") == 1
    train_command(tmp_path, data=str(text), vocab=270, steps=10, say=lambda line: None)
    assert same(read_log(out / "log.csv"), read_log(tmp_path / "log.csv"), rel=1e-5)


def test_a_fault_that_all_ranks_find_is_said_once(tmp_path):
    process = torchrun("-m", "course", "train", "--resume", "--out", str(tmp_path / "nothing"))
    said, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (said, err.count("there is no checkpoint at")) == ("", 1)
