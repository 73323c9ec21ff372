"""The course's kernels on a GPU: right there, and then how near to the roofs that were measured on the same card.

    python benchmarks/kernels.py [--out benchmarks/results/kernels_CARD.json] [--rehearse]

Roofs    first of all: bytes/s of a large copy, FLOP/s of a large bf16 product by cuBLAS. FP8's roof is twice the latter.
Rows     each kernel beside eager PyTorch (its twin; for the product torch.matmul) and torch.compile of the same.
Layers   the routed experts of a mixture at published shapes, forward, and forward and backward (`moe_kernels.py`).
Share    of the roof that binds: the longer of FLOPs by the product's and bytes by the copy's, over the time. A time is the
         median over rounds (`timing.py` says how), and nothing is timed before it was compared with eager PyTorch.
Beside   what is known without running: FLOPs, bytes, the data sheet's bound, memory kept for backward, machine code (`plans.py`)
Goals    `goals.py`, each with its source; judged where a GPU measured, and nowhere else.

A row that fails, as one that finds no memory, says why and does not end the run, whose exit status is then 1. With --out a
run that was interrupted goes on: rows are kept while the files that they rest on, the card and the settings are the same.

Without a GPU it says so, leaves what is measured empty, and ends well. `--rehearse` walks through all of it on the CPU, with
interpreted kernels and tiny sizes: its times mean nothing and are not written.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import record
import torch
import triton
from goals import GOALS, LAYER_GOALS, judged
from kept import kept_bytes
from moe_kernels import (
    BOTH,
    CASES,
    FORWARD,
    REFERENCE,
    TINY,
    TINY_CASES,
    contestants,
    with_gradients,
    without,
)
from moe_kernels import drawing as layer_drawing
from resume import rests_on, rows_done, sorted_rows
from rich.console import Console
from shown import show
from timing import FLUSHED, LEAD, WARM, Bench, Clock, able, require_right, said
from torch import Tensor

from course.hardware.gpus import GPUS, REPORTED
from course.kernels.catalogue import INPUTS, Sizes
from course.kernels.checked import checked

__all__ = ["WARM", "Bench", "Clock", "require_right"]
HERE = Path(__file__).resolve().parent
UNMEASURED = dict.fromkeys(
    ("error", "seconds", "share_of_roof", "share_of_product", "share_of_copy", "met", "failed", "roofs")
)


def drawing(name: str, sizes: Sizes, device: str) -> Callable[[int], tuple]:
    """A function from a round's number to fresh bf16 inputs of a kernel."""

    def draw(seed: int) -> tuple:
        rng = torch.Generator(device).manual_seed(seed)

        def filled(*shape: int, of: torch.dtype = torch.bfloat16) -> Tensor:
            if of == torch.int64:
                return torch.randint(sizes.vocab, shape, generator=rng, device=device)
            return torch.randn(shape, generator=rng, device=device).to(of)

        return INPUTS[name](filled, sizes)[0]

    return draw


def kernel_contestants(name: str, compiled: bool) -> dict[str, Callable]:
    module = import_module(f"course.kernels.{name}")
    eager = torch.matmul if name == "matmul" else getattr(module, f"{name}_torch")
    calls = {"eager": eager, "ours": getattr(module, name)}
    return calls | ({"compiled": torch.compile(eager, dynamic=False)} if compiled else {})


def roofs(bench: Bench, sizes: Sizes, copied: int) -> dict[str, float]:
    """Bytes/s of a copy of `copied` bytes (read and written), FLOP/s of a bf16 product by torch.matmul."""
    n = sizes.square
    source, target = (torch.empty(copied // 2, dtype=torch.bfloat16, device=bench.device) for _ in range(2))
    copy = bench.medians({"copy": target.copy_}, lambda seed: (source.fill_(seed),))["copy"]
    draw = drawing("matmul", sizes, bench.device)
    product = bench.medians({"product": torch.matmul}, draw)["product"]
    return {"copy_bytes_per_second": 2 * copied / copy, "product_flops_per_second": 2 * n**3 / product}


def shares(plan: dict, seconds: dict[str, float], measured: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of each contestant's time, what the product's roof, the copy's, and the one that binds would need of it."""
    product = plan["flops"] / measured["product_flops_per_second"] / (2 if plan["dtype"] == "fp8" else 1)
    copy = plan["bytes"] / measured["copy_bytes_per_second"]
    least = {"share_of_product": product, "share_of_copy": copy, "share_of_roof": max(product, copy)}
    return {name: {who: need / taken for who, taken in seconds.items()} for name, need in least.items()}


def kernel_row(plan: dict, sizes: Sizes, bench: Bench | None, measured: dict | None, compiled: bool) -> dict:
    """What a kernel moves and computes; with a bench, how long it takes and which share of its roof that is."""
    name = plan["kernel"]
    if bench is None:
        return plan | UNMEASURED
    draw, calls = drawing(name, sizes, bench.device), kernel_contestants(name, compiled)
    inputs = draw(10**6)
    calls, died = able(calls, inputs)
    for who in ("ours", "eager"):
        if who in died:
            raise RuntimeError(f"{who}: {died[who]}")
    error = require_right(calls, inputs)
    seconds = bench.medians(calls, draw)
    its = {"error": error, "seconds": seconds, "failed": died, "roofs": measured} | shares(plan, seconds, measured)
    return plan | UNMEASURED | its


def layer_row(name: str, way: str, plan: dict, bench: Bench | None, measured: dict | None) -> dict:
    """The same of a layer's pass, with tokens/s, peak memory, and what is kept for backward."""
    case = (CASES | TINY_CASES)[name]
    row = {"case": name, "pass": way, "shape": asdict(case), **plan, **UNMEASURED}
    row |= {"tokens_per_second": None, "peak_bytes": None}
    if bench is None:
        return row
    forwards, missing = contestants(way == BOTH)
    draw, wrap = layer_drawing(case, bench.device), with_gradients if way == BOTH else without
    inputs = draw(10**6)
    calls, died = able({who: wrap(forward) for who, forward in forwards.items()}, inputs)
    if "ours" not in calls:
        raise RuntimeError(f"ours: {died['ours']}")
    against = REFERENCE if REFERENCE in calls else next((who for who in calls if who != "ours"), None)
    error = require_right(calls, inputs, against) if against else None
    seconds = bench.medians(calls, draw)
    row |= {"error": error, "seconds": seconds, "failed": missing | died, "roofs": measured}
    row["tokens_per_second"] = {who: case.tokens / taken for who, taken in seconds.items()}
    row["peak_bytes"] = {who: bench.peak_bytes(lambda call=call: call(*inputs)) for who, call in calls.items()}
    if way == BOTH:
        row["kept_bytes"] = {who: keeps(forwards[who], inputs) for who in calls}
    return row | shares(plan, seconds, measured)


def keeps(forward: Callable, inputs: tuple) -> int:
    """Bytes kept for backward beside the experts' weights."""
    x, ids, weights, gate_up, down, _ = inputs
    x, weights, gate_up, down = (tensor.detach().requires_grad_() for tensor in (x, weights, gate_up, down))
    return kept_bytes(lambda: forward(x, ids, weights, gate_up, down), [gate_up, down])


def card() -> dict[str, str] | None:
    if not torch.cuda.is_available():
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[0].strip()
    return {"name": torch.cuda.get_device_name(0), "driver": driver, "cuda": str(torch.version.cuda)}


def data_sheet(its_card: dict | None) -> str:
    """The GPU whose data sheet bounds are taken from: the card here if it is known, else the course's H800."""
    here = REPORTED.get(its_card["name"]) if its_card else None
    return next((name for name, gpu in GPUS.items() if gpu is here), "h800")


def planned(kernels: list[str], layers: list[str], gpu: str, tiny: bool) -> dict:
    """What `plans.py` says of them, in a process that interprets kernels and sees no GPU."""
    command = [sys.executable, str(HERE / "plans.py"), "--gpu", gpu, *(["--tiny"] if tiny else [])]
    command += ["--kernels", *kernels, "--layers", *layers]
    without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=without_gpu)
    if done.returncode:
        raise RuntimeError(f"plans.py ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON; go on with what is there")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kernels", nargs="*", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--layers", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rehearse", action="store_true", help="all steps on the CPU, tiny and interpreted")
    args = parser.parse_args()
    its_card, console = card(), Console(width=150)
    bench, sizes, measured, layers = None, Sizes(), None, args.layers
    if args.rehearse:
        bench, sizes = Bench(Clock("cpu"), torch.empty(1024, dtype=torch.uint8), 1), TINY
        layers = list(TINY_CASES) if layers else []
    elif its_card:
        flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        bench = Bench(Clock("cuda"), flush, args.rounds, LEAD)
    else:
        print("No GPU here: what would be measured stays empty. `course compile` shows the kernels' machine code.")
    if bench:
        measured = roofs(bench, sizes, 2**31 if bench.device == "cuda" else 2**16)
        print(*(f"{name}: {value:.4g}" for name, value in measured.items()), sep="\n")

    on_gpu, out = bool(its_card) and not args.rehearse, None if args.rehearse else args.out
    basis = rests_on(its_card, args.rounds)
    done = rows_done(out, basis)
    places = [(name,) for name in args.kernels] + [(name, way) for name in layers for way in (FORWARD, BOTH)]
    missing = dict.fromkeys(its[0] for its in places if its not in done)
    plans = planned(
        [name for name in missing if name in INPUTS],
        [name for name in missing if name not in INPUTS],
        data_sheet(its_card),
        args.rehearse,
    )
    about = record.circumstances() | {"card": its_card, "rests_on": basis}
    about["versions"]["triton"] = triton.__version__
    for its in places:
        plan = plans["kernels"].get(its[0]) or plans["layers"].get(its[0], {}).get(its[-1])
        if its not in done:
            with checked() if args.rehearse else nullcontext():
                done[its] = attempt(its, plan, sizes, bench, measured, on_gpu)
        print(f"{', '.join(its)}: {(done[its]['failed'] or {}).get('row', 'done')}", file=sys.stderr)
        if out:
            record.write(out, about | {"roofs": measured} | sorted_rows(done, places))
    found = sorted_rows(done, places)
    show(found["rows"], found["layers"], console)
    sys.exit(any((row["failed"] or {}).get("row") for row in done.values()))


def attempt(its: tuple, plan: dict, sizes: Sizes, bench: Bench | None, measured: dict | None, on_gpu: bool) -> dict:
    """A row, or the same without measurements and with what it died of."""
    layer = len(its) == 2

    def make(with_bench: Bench | None) -> dict:
        return (
            layer_row(*its, plan, with_bench, measured)
            if layer
            else kernel_row(plan, sizes, with_bench, measured, on_gpu)
        )

    try:
        row = make(bench)
    except Exception as error:
        row = make(None) | {"failed": {"row": said(error)}}
        if on_gpu:
            torch.cuda.empty_cache()
    return judged(row, LAYER_GOALS.get(its) if layer else GOALS.get(its[0]), on_gpu)


if __name__ == "__main__":
    main()
