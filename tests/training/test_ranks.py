"""Two processes under torchrun train the run of one: real processes, real gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch

from course.model import Transformer, balance_loss, balanced_over
from course.training import ranks
from course.training.checkpoint import Checkpoint
from course.training.command import train_command
from course.training.data import training_batch
from course.training.log import read_log
from course.training.trainer import train

RANKED = """
import json, signal, sys
from pathlib import Path
from course.model import ModelConfig
from course.training import data, ranks
from course.training.errors import TrainingError
from course.training.trainer import TrainSettings, train

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
            print(f"{name}: {error}")
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
    return {
        "dense": (dense, ten, "none", None, None),
        "dense, sharded": (dense, ten, "full", None, None),
        "mixture": (small, ten, "none", None, None),
        "mixture, sharded": (small, ten, "full", None, None),
        "muon": (small, muon, "none", None, None),
        "muon, sharded": (small, muon, "full", None, None),
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
            alone(config, sums, settings, out / name, stop=6)
    told = {
        name: {"config": asdict(config), "settings": asdict(settings), "sharding": sharding, "stop": stop, "seconds": s}
        for name, (config, settings, sharding, stop, s) in cases.items()
    }
    (out / "ranked.py").write_text(RANKED)
    began = time.monotonic()
    process = torchrun(str(out / "ranked.py"), str(text), str(out), json.dumps(told))
    said, err = process.communicate(timeout=200)
    print("took", time.monotonic() - began, err)
    assert process.returncode == 0, err
    return out, said


def alone(config, sums, settings, out=None, stop=None, resume=False):
    """The rows of one process, which hears Ctrl-C after step `stop`."""
    rows = []

    def press(row, routings):
        rows.append(row)
        if row.step == stop:
            signal.raise_signal(signal.SIGINT)

    try:
        return train(config, sums, settings, out, resume, on_step=press).rows
    except KeyboardInterrupt:
        return rows


def numbers(rows):
    return [[x for x in (row.loss, row.gradient_norm, row.max_violation, row.validation) if x is not None] for row in rows]


def test_look(two, cases, sums):
    out, said = two
    print(said)
    for name, (config, settings, *_) in cases.items():
        if not (out/name/"log.csv").exists(): print(name, "no log"); continue
        a, b = numbers(read_log(out/name/"log.csv")), numbers(alone(config, sums, settings))
        print(name, len(a), len(b), "%.1e" % max(abs(x-y)/max(abs(y), 1e-9) for r, q in zip(a,b) for x,y in zip(r,q)), ["%.1e" % max(abs(x-y)/max(abs(y), 1e-9) for x,y in zip(r,q)) for r, q in zip(a,b)])
    assert 0
