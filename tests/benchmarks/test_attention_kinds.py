"""Kinds of attention compared: equal parameters, kept runs, the rule."""

import json
import subprocess
import sys

import attention_kinds
import pytest

from course.model import kv_bytes_per_token, total_parameters


def test_no_arm_buys_its_cache_with_parameters():
    full = total_parameters(attention_kinds.FULL)
    for arm, config in attention_kinds.ARMS.items():
        assert total_parameters(attention_kinds.matched(config)) == pytest.approx(full, rel=0.005), arm


def test_a_latent_keeps_as_much_as_the_heads_that_it_stands_against():
    kept = {arm: kv_bytes_per_token(config) for arm, config in attention_kinds.ARMS.items()}
    assert kept["latent 56"] == kept["2 kv heads"] == kept["8 kv heads"] / 4
    assert kept["latent 24"] == kept["1 kv head"]


def test_runs_are_kept_and_recorded(tmp_path):
    text = tmp_path / "sums.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(1500)))

    def recorded(name):
        options = (
            "--steps",
            "2",
            "--seeds",
            "0",
            "--source",
            text,
            "--work",
            tmp_path / "work",
            "--out",
            tmp_path / name,
        )
        command = [sys.executable, attention_kinds.__file__, *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name).read_text()), done.stdout

    first, said = recorded("first.json")
    assert said.count("seed 0:") == len(attention_kinds.ARMS)
    assert all(arm["verdict"]["verdict"] == "not resolved" for arm in first["arms"].values())
    again, said = recorded("again.json")
    assert "seed 0:" not in said
    assert again["arms"] == first["arms"]


@pytest.mark.parametrize(
    ("arm", "full", "verdict"),
    [
        ((3.3, 3.4), (3.0, 3.1), "worse"),
        ((2.8, 2.9), (3.0, 3.1), "better"),
        ((3.0, 3.2), (3.0, 3.1), "not resolved"),
        ((3.5,), (3.0,), "not resolved"),
    ],
)
def test_a_difference_must_exceed_the_spread(arm, full, verdict):
    assert attention_kinds.verdict(arm, full)["verdict"] == verdict
