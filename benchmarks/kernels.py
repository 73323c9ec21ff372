"""The course's kernels on a GPU: right there, and then how near to the roofs that were measured on the same card.

    python benchmarks/kernels.py [--out benchmarks/results/kernels_CARD.json] [--rehearse]

Roofs    bytes/s of a large copy, and FLOP/s of a large bf16 product by cuBLAS: what this card does today.
Rows     each kernel beside eager PyTorch (its twin; for the product torch.matmul) and torch.compile of the same. Every timed
         call gets inputs of its own, drawn before it, finds a flushed L2, and leaves a fingerprint of its output that must
         agree with the others'. A time is the median over rounds, the contestants in turns.
Goals    RMSNorm, SwiGLU, RoPE and cross entropy at least 85 % of the copy's bytes/s; the bf16 product at least 75 % of cuBLAS.

Without a GPU it says so, leaves what is measured empty, and ends well. `--rehearse` walks through all of it on the CPU, with
interpreted kernels and tiny sizes: its times mean nothing and are not written.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import record
import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor

from course.kernels.catalogue import INPUTS, Sizes, moved
from course.kernels.checked import checked
from course.kernels.planned import launches_of

GOALS = {"rmsnorm": 0.85, "swiglu": 0.85, "rope": 0.85, "cross_entropy": 0.85, "matmul": 0.75}
GROUPED = ("grouped_gemm", "grouped_gate_up", "grouped_weight_gradient", "grouped_swiglu_backward")
PRODUCTS = dict.fromkeys(("matmul", *GROUPED), 1) | {
    "fp8_gemm": 2,
    "fp8_weight_gradient": 2,
}  # their format's peak over bf16's
TINY = Sizes(tokens=24, width=64, heads=2, turned=16, hidden=32, vocab=100, square=64)
TOLERANCE = 2e-2  # of a bf16 output's norm, and of its fingerprint
FLUSHED = 256 * 2**20  # bytes, several times any L2
WARM = 3  # rounds that are not counted


@dataclass(frozen=True)
class Clock:
    """Seconds that a call takes on a device."""

    device: str

    def seconds(self, call: Callable[[], Any]) -> tuple[float, Any]:
        if self.device == "cpu":
            begun = time.perf_counter()
            result = call()
            return time.perf_counter() - begun, result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, result


@dataclass(frozen=True)
class Bench:
    """A device, its clock, and what flushes its cache."""

    clock: Clock
    flush: Tensor
    rounds: int

    def medians(self, calls: dict[str, Callable], draw: Callable[[int], tuple]) -> dict[str, float]:
        """Seconds of each call, in turns; all must agree on every round's inputs."""
        seconds: dict[str, list[float]] = {who: [] for who in calls}
        for number in range(WARM + self.rounds):
            inputs, prints = draw(number), {}
            for who in calls if number % 2 else reversed(calls):
                self.flush.zero_()
                taken, out = self.clock.seconds(lambda who=who, inputs=inputs: calls[who](*inputs))
                prints[who] = fingerprint(out)
                if number >= WARM:
                    seconds[who].append(taken)
            first = next(iter(calls))
            for who, its in prints.items():
                assert near(its, prints[first]), f"{who} and {first} differ: {its} and {prints[first]}"
        return {who: statistics.median(taken) for who, taken in seconds.items()}


def fingerprint(out: Any) -> list[float]:
    """The norm of each tensor of an output."""
    parts = out if isinstance(out, tuple) else (out,)
    floats = (part if part.is_floating_point() and part.itemsize > 1 else part.float() for part in parts)  # not FP8
    return [torch.linalg.vector_norm(part, dtype=torch.float32).item() for part in floats]


def near(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) <= TOLERANCE * max(abs(y), 1e-6) for x, y in zip(a, b, strict=True))


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


def contestants(name: str, compiled: bool) -> dict[str, Callable]:
    module = import_module(f"course.kernels.{name}")
    eager = torch.matmul if name == "matmul" else getattr(module, f"{name}_torch")
    calls = {"eager": eager, "ours": getattr(module, name)}
    return calls | ({"compiled": torch.compile(eager, dynamic=False)} if compiled else {})


def require_right(calls: dict[str, Callable], inputs: tuple) -> float:
    """Largest relative error of ours against eager, over the tensors of the output."""
    worst = 0.0
    pairs = [out if isinstance(out, tuple) else (out,) for out in (calls["ours"](*inputs), calls["eager"](*inputs))]
    for ours, theirs in zip(*pairs, strict=True):
        worst = max(worst, ((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-9)).item())
    assert worst < TOLERANCE, f"a relative error of {worst:.2g} against eager"
    return worst


def roofs(bench: Bench, sizes: Sizes, copied: int) -> dict[str, float]:
    """Bytes/s of a copy of `copied` bytes (read and written), FLOP/s of a bf16 product by torch.matmul."""
    device, n = bench.clock.device, sizes.square
    source, target = (torch.empty(copied // 2, dtype=torch.bfloat16, device=device) for _ in range(2))
    copy = bench.medians({"copy": target.copy_}, lambda seed: (source.fill_(seed),))["copy"]
    draw = drawing("matmul", sizes, device)
    product = bench.medians({"product": torch.matmul}, draw)["product"]
    return {"copy_bytes_per_second": 2 * copied / copy, "product_flops_per_second": 2 * n**3 / product}


def row(name: str, sizes: Sizes, bench: Bench | None, measured: dict[str, float] | None, compiled: bool) -> dict:
    """What a kernel moves and computes; with a bench, how long it takes and which share of its roof that is."""
    inputs, flops, size = INPUTS[name](
        lambda *shape, of=torch.bfloat16: torch.empty(shape, dtype=of, device="meta"), sizes
    )
    about = {"kernel": name, "size": size, "bytes": None, "flops": flops, "goal": GOALS.get(name)}
    if bench is None:
        made: list[Any] = []
        launches_of(lambda: made.append(contestants(name, False)["ours"](*inputs)))
        return about | {"bytes": moved(inputs, made[0]), "error": None, "seconds": None, "share_of_roof": None}
    draw, calls = drawing(name, sizes, bench.clock.device), contestants(name, compiled)
    inputs = draw(10**6)
    error, traffic = require_right(calls, inputs), moved(inputs, calls["ours"](*inputs))
    seconds = bench.medians(calls, draw)
    if name in PRODUCTS:
        roof = PRODUCTS[name] * measured["product_flops_per_second"]
        shares = {who: flops / taken / roof for who, taken in seconds.items()}
    else:
        shares = {who: traffic / taken / measured["copy_bytes_per_second"] for who, taken in seconds.items()}
    return about | {"bytes": traffic, "error": error, "seconds": seconds, "share_of_roof": shares}


def card() -> dict[str, str] | None:
    if not torch.cuda.is_available():
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[0].strip()
    return {"name": torch.cuda.get_device_name(0), "driver": driver, "cuda": str(torch.version.cuda)}


def show(rows: list[dict], console: Console) -> None:
    table = Table(title="Share of the measured roof: copy for all but the product, cuBLAS for the product")
    for column in ("kernel", "size", "GB", "GFLOP", "ours", "eager", "compiled", "goal"):
        table.add_column(column, justify="left" if column in ("kernel", "size") else "right")
    for its in rows:
        shares = its["share_of_roof"] or {}
        said = [f"{shares[who]:.0%}" if who in shares else "" for who in ("ours", "eager", "compiled")]
        goal = its["goal"]
        told = (
            ""
            if goal is None
            else f"{goal:.0%}" + (f": {'met' if shares['ours'] >= goal else 'MISSED'}" if shares else "")
        )
        table.add_row(its["kernel"], its["size"], f"{its['bytes'] / 1e9:.3g}", f"{its['flops'] / 1e9:.3g}", *said, told)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kernels", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--rehearse", action="store_true", help="all steps on the CPU, tiny and interpreted")
    args = parser.parse_args()
    its_card, console = card(), Console(width=150)
    bench, sizes, measured = None, Sizes(), None
    if args.rehearse:
        bench, sizes = Bench(Clock("cpu"), torch.empty(1024, dtype=torch.uint8), 1), TINY
    elif its_card:
        flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        bench = Bench(Clock("cuda"), flush, args.rounds)
    else:
        print("No GPU here: what would be measured stays empty. `course compile` shows the kernels' machine code.")
    if bench:
        measured = roofs(bench, sizes, 2**31 if bench.clock.device == "cuda" else 2**16)
        print(*(f"{name}: {value:.4g}" for name, value in measured.items()), sep="\n")
    rows = []
    with checked() if args.rehearse else nullcontext():
        for name in args.kernels:
            rows.append(row(name, sizes, bench, measured, compiled=bool(its_card) and not args.rehearse))
            print(f"{name}: done", file=sys.stderr)
    show(rows, console)
    if args.out and not args.rehearse:
        about = record.circumstances() | {"card": its_card}
        about["versions"]["triton"] = triton.__version__
        record.write(args.out, about | {"roofs": measured, "rows": rows})


if __name__ == "__main__":
    main()
