"""The GPU harness without a GPU: it ends well and leaves rows empty; rehearsed, it finds outputs that are wrong or old."""

import json
import subprocess
import sys
from pathlib import Path

import kernels as script
import pytest
import torch

FILE = Path(script.__file__)


def run(*arguments):
    return subprocess.run([sys.executable, str(FILE), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_leaves_rows_empty(tmp_path):
    out = tmp_path / "kernels.json"
    done = run("--out", out, "--kernels", "rmsnorm", "matmul")
    assert done.returncode == 0, done.stderr
    assert "No GPU here" in done.stdout
    record = json.loads(out.read_text())
    assert record["card"] is None
    assert record["roofs"] is None
    assert [(row["kernel"], row["seconds"], row["share_of_roof"]) for row in record["rows"]] == [
        ("rmsnorm", None, None),
        ("matmul", None, None),
    ]
    assert record["rows"][1]["flops"] == 2 * 8192**3


def test_a_rehearsal_goes_through_every_kernel_and_writes_nothing(tmp_path):
    out = tmp_path / "kernels.json"
    done = run("--rehearse", "--out", out)
    assert done.returncode == 0, done.stderr
    assert all(f"{name}: done" in done.stderr for name in script.INPUTS)
    assert not out.exists()


def bench():
    return script.Bench(script.Clock("cpu"), torch.empty(8), 3)


def draw(seed):
    return (torch.full((4,), float(seed + 1)),)


def test_an_output_that_was_kept_from_an_earlier_call_is_found():
    kept = []

    def lazy(x):
        kept.append(2 * x)
        return kept[0]

    with pytest.raises(AssertionError, match="lazy and eager differ"):
        bench().medians({"eager": lambda x: 2 * x, "lazy": lazy}, draw)


def test_a_wrong_output_is_found_before_anything_is_timed():
    calls = {"eager": lambda x: 2 * x, "ours": lambda x: 2.1 * x}
    with pytest.raises(AssertionError, match=r"a relative error of 0.05"):
        script.require_right(calls, draw(0))
    assert script.require_right({"eager": lambda x: 2 * x, "ours": lambda x: x + x}, draw(0)) == 0


def test_every_contestant_gets_the_same_fresh_inputs_in_every_round():
    seen = {"eager": [], "ours": []}

    def call(who):
        def double(x):
            seen[who].append(x[0].item())
            return 2 * x

        return double

    bench().medians({who: call(who) for who in seen}, draw)
    assert seen["eager"] == seen["ours"] == [float(n) for n in range(1, script.WARM + 4)]
