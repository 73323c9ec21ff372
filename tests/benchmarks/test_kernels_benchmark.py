"""The GPU harness without a GPU: it ends well and leaves rows empty; rehearsed, it finds outputs that are wrong or old."""

import json
import subprocess
import sys
from pathlib import Path

import kernels as script
import pytest
import resume
import torch

FILE = Path(script.__file__)


def run(*arguments):
    return subprocess.run([sys.executable, str(FILE), *map(str, arguments)], capture_output=True, text=True)


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
MEASURED = ("error", "seconds", "share_of_roof", "share_of_product", "share_of_copy", "met", "failed", "roofs")


@no_gpu
def test_without_a_gpu_it_says_so_leaves_empty_what_is_measured_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "kernels.json"
    chosen = ("--out", out, "--layers", "--kernels", "rmsnorm", "swiglu")
    done = run(*chosen)
    assert done.returncode == 0, done.stderr
    assert "No GPU here" in done.stdout
    record = json.loads(out.read_text())
    assert (record["card"], record["roofs"], record["layers"]) == (None, None, [])
    assert [row["kernel"] for row in record["rows"]] == ["rmsnorm", "swiglu"]
    assert all(row[name] is None for row in record["rows"] for name in MEASURED)
    assert [row["goal"]["share"] for row in record["rows"]] == [0.85, 0.85]  # beside the row, and not judged
    assert record["rows"][0]["bytes"] == 2 * (2 * 8192 * 7168 + 7168)

    first = record["rows"][0] | {"mark": "kept"}
    dead = record["rows"][1] | {"mark": "made again", "failed": {"row": "OutOfMemoryError"}}
    out.write_text(json.dumps(record | {"rows": [first, dead]}))
    assert run(*chosen).returncode == 0
    assert [row.get("mark") for row in json.loads(out.read_text())["rows"]] == ["kept", None]


@no_gpu
@pytest.mark.slow
def test_without_a_gpu_a_layer_is_counted_and_compiled(tmp_path):
    out = tmp_path / "kernels.json"
    done = run("--out", out, "--kernels", "matmul", "--layers", "qwen3-30b/128")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    (matmul,), layers = record["rows"], record["layers"]
    forward, both = layers
    assert [(row["case"], row["pass"]) for row in layers] == [
        ("qwen3-30b/128", "forward"),
        ("qwen3-30b/128", "forward and backward"),
    ]
    assert all(row[name] is None for row in layers for name in (*MEASURED, "tokens_per_second", "peak_bytes"))
    assert matmul["flops"] == 2 * 8192**3
    assert forward["flops"] == 6 * 128 * 8 * 2048 * 768
    assert forward["goal"]["share"] == 0.61
    assert forward["steps_bound_seconds"] == pytest.approx(sum(its["bound"]["seconds"] for its in forward["steps"]))
    assert forward["bound"]["seconds"] < forward["steps_bound_seconds"]
    assert both["kept_bytes"]["ours"] < both["kept_bytes"]["grouped_mm"]
    code = [one for its in [matmul, *both["steps"]] for one in its["machine_code"]]
    assert all(one["error"] is None and one["registers"] > 0 and 0 < one["occupancy"] <= 1 for one in code)
    products = {one["kernel"] for one in code if "HGMMA" in one["tensor_core"]}
    assert {"matmul_kernel", "grouped_gemm_kernel", "grouped_gate_up_kernel"} <= products


def test_rows_are_kept_while_what_they_rest_on_is_the_same(tmp_path):
    out, basis = tmp_path / "kernels.json", resume.rests_on(None, 30)
    assert basis != resume.rests_on(None, 31)
    assert resume.rows_done(out, basis) == {}
    row, layer = (
        {"kernel": "rmsnorm", "failed": None},
        {"case": "a", "pass": "forward", "failed": {"loop": "no memory"}},
    )
    out.write_text(json.dumps({"rests_on": basis, "rows": [row], "layers": [layer]}))
    assert resume.rows_done(out, basis) == {("rmsnorm",): row, ("a", "forward"): layer}
    assert resume.rows_done(out, basis | {"files": "others"}) == {}


def test_a_row_that_fails_says_why_and_does_not_end_the_run(monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(script, "drawing", greedy)
    plan = {"kernel": "rmsnorm", "size": "", "flops": 1, "bytes": 1, "dtype": "bf16", "machine_code": []}
    row = script.attempt(("rmsnorm",), plan, script.Sizes(), bench(), {}, False)
    assert row["failed"] == {"row": "OutOfMemoryError: CUDA out of memory"}
    assert row["seconds"] is None
    assert row["met"] is None


def test_a_rehearsal_goes_through_every_kernel_and_layer_and_writes_nothing(tmp_path):
    out = tmp_path / "kernels.json"
    done = run("--rehearse", "--out", out)
    assert done.returncode == 0, done.stderr
    layers = [f"{case}, {way}" for case in script.TINY_CASES for way in (script.FORWARD, script.BOTH)]
    assert all(f"{name}: done" in done.stderr for name in [*script.INPUTS, *layers])
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
