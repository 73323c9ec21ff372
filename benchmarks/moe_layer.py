"""Four ways to run a mixture layer, and `transformers` with the same weights: forward and backward, as ratios.

    python benchmarks/moe_layer.py [--out benchmarks/results/moe_layer.json]

The layer is tiny-moe's own: width 128, top-2, experts of hidden width 128, on 2,048 tokens. Only the number of experts
grows, 8 to 256, so the active parameters of the experts stay the same and all that grows is how thin each slice is.

loop           expert after expert, weights unbound once (`course.model.expert_loop`)
sorted loop    the same on sorted slices: the least that a loop can cost
padded         every expert as long as the busiest one, one batched product (`course.model.padded_experts`)
grouped        sort, one grouped product, combine (`course.model.MoE`)
transformers   MixtralSparseMoeBlock with its default back end, `grouped_mm`
dense twin     one SwiGLU with the same FLOPs a token and no routing: the roof

What backward needs is counted as well, without being timed: bytes that the forward pass keeps for it, as the grouped layer
does it and as the layer on Triton kernels does, which computes gate and up again (interpreted kernels have no speed).

Outputs and all gradients are compared with transformers' before anything is timed. The ways take turns within a round,
so that a slow moment of the machine hits them all. A time is the median over rounds; a ratio is the median of the
ratios within a round, with its quartiles.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # launches are planned here, also where there is a GPU

import record
import torch
import torch.nn.functional as F
import transformers
from kept import kept_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from course.kernels.planned import launches_of
from course.model import (
    ModelConfig,
    MoE,
    SwiGLU,
    combine,
    expert_loop,
    padded_experts,
    softmax_topk_gate,
    sort_by_expert,
    swiglu,
)

PEER, OURS = "transformers", "grouped"
GOALS = {"at most this multiple of transformers, at every size": 1.05, "times faster than the loop at 256 experts": 2.5}


def sorted_loop(x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor) -> Tensor:
    order_R, offsets_E1 = sort_by_expert(indices_TK, len(gate_up_EFD))
    slices = x_TD.index_select(0, order_R // indices_TK.shape[1]).split(offsets_E1.diff().tolist())
    experts = zip(slices, gate_up_EFD.unbind(), down_EDI.unbind(), strict=True)
    return combine(torch.cat([F.linear(swiglu(F.linear(x, up)), down) for x, up, down in experts]), order_R, weights_TK)


def mixtral_block(moe: MoE) -> torch.nn.Module:
    """transformers' block as a model would build it, holding the very parameters of `moe`."""
    experts, width, hidden = moe.down_EDI.shape
    config = transformers.MixtralConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_local_experts=experts,
        num_experts_per_tok=moe.config.top_k,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=8,
    )
    block = transformers.MixtralModel(config).layers[0].mlp
    assert block.experts.config._experts_implementation == "grouped_mm", "this is no longer transformers' default"
    block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj = moe.gate_ED, moe.gate_up_EFD, moe.down_EDI
    return block


def ways(moe: MoE, twin: SwiGLU, x_TD: Tensor) -> dict[str, Callable[[], Tensor]]:
    block = mixtral_block(moe)

    def routed(experts: Callable[..., Tensor]) -> Callable[[], Tensor]:
        gate = lambda: softmax_topk_gate(x_TD, moe.gate_ED, moe.config.top_k)  # noqa: E731
        return lambda: experts(x_TD, *gate(), moe.gate_up_EFD, moe.down_EDI)

    return {
        "loop": routed(expert_loop),
        "sorted loop": routed(sorted_loop),
        "padded": routed(padded_experts),
        OURS: lambda: moe(x_TD)[0],
        PEER: lambda: block(x_TD[None])[0],
        "dense twin": lambda: twin(x_TD),
    }


def assert_equal(methods: dict[str, Callable], leaves: list[Tensor], seed_TD: Tensor, tolerance: float = 1e-5) -> float:
    """Every way's output and gradients against transformers', norm-relative. Returns the worst error seen."""

    def values(forward: Callable[[], Tensor]) -> list[Tensor]:
        y_TD = forward()
        return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, seed_TD)]

    wanted, worst = values(methods[PEER]), 0.0
    for name in set(methods) - {PEER, "dense twin"}:
        for want, got in zip(wanted, values(methods[name]), strict=True):
            error = ((got - want).norm() / want.norm()).item()
            assert error < tolerance, f"{name} differs from transformers by {error:.1e}"
            worst = max(worst, error)
    return worst


def kept(moe: MoE, x_TD: Tensor) -> dict[str, float]:
    """What the layer keeps beside its weights, grouped and on kernels, in bytes, and the one over the other.

    The kernels' launches are only planned: what is kept depends on no number that they compute.
    """
    fused, weights = copy.copy(moe), list(moe.parameters())
    fused.config = replace(moe.config, kernels="triton")
    found: list[int] = []
    launches_of(lambda: found.append(kept_bytes(lambda: fused(x_TD), weights)))
    grouped = kept_bytes(lambda: moe(x_TD), weights)
    return {OURS: grouped, "kernels": found[0], "ratio": round(grouped / found[0], 2)}


def measure(experts: int, tokens: int, rounds: int) -> dict:
    torch.manual_seed(experts)
    config = ModelConfig(experts=experts, top_k=2, expert_width=128)
    moe, twin = MoE(config), SwiGLU(config.width, config.top_k * config.expert_width)
    for parameter in [*moe.parameters(), *twin.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    x_TD, seed_TD = torch.randn(tokens, config.width, requires_grad=True), torch.randn(tokens, config.width)
    methods = ways(moe, twin, x_TD)
    leaves = [x_TD, *moe.parameters()]
    error = assert_equal(methods, leaves, seed_TD)

    seconds = {name: [] for name in methods}
    for _ in range(rounds):
        for name, forward in methods.items():
            for leaf in [*leaves, *twin.parameters()]:
                leaf.grad = None
            start = time.perf_counter()
            forward().backward(seed_TD)
            seconds[name].append(time.perf_counter() - start)
    return {
        "experts": experts,
        "worst_relative_error": error,
        "kept_bytes": kept(moe, x_TD),
        "milliseconds": {name: quartiles([1e3 * s for s in times]) for name, times in seconds.items()},
        "times_transformers": {name: ratios(times, seconds[PEER]) for name, times in seconds.items()},
        "loop_over_grouped": ratios(seconds["loop"], seconds[OURS]),
        "share_of_dense_twin": ratios(seconds["dense twin"], seconds[OURS]),
    }


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def ratios(times: list[float], base: list[float]) -> dict[str, float]:
    return quartiles([t / b for t, b in zip(times, base, strict=True)])


def show(results: list[dict], console: Console) -> None:
    table = Table(title="One mixture layer, forward and backward: time in multiples of transformers' (quartiles)")
    table.add_column("experts", justify="right")
    for name in results[0]["times_transformers"]:
        table.add_column(name if name != PEER else f"{PEER} [ms]", justify="right")
    table.add_column("loop / grouped", justify="right")
    table.add_column("kept [MB]: grouped, kernels", justify="right")
    for row in results:
        cells = [f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in row["times_transformers"].values()]
        cells[list(row["times_transformers"]).index(PEER)] = f"{row['milliseconds'][PEER]['median']:.1f}"
        kept_MB = [f"{row['kept_bytes'][who] / 1e6:.1f}" for who in (OURS, "kernels")]
        table.add_row(str(row["experts"]), *cells, f"{row['loop_over_grouped']['median']:.2f}", ", ".join(kept_MB))
    console.print(table)


def verdicts(results: list[dict]) -> dict[str, bool]:
    """Each goal, and whether this run met it."""
    peer, loop = GOALS
    slowest = max(row["times_transformers"][OURS]["median"] for row in results)
    at_256 = [row["loop_over_grouped"]["median"] for row in results if row["experts"] == 256]
    reached = {peer: slowest <= GOALS[peer]}
    return reached | ({loop: at_256[0] >= GOALS[loop]} if at_256 else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    results = [measure(experts, args.tokens, args.rounds) for experts in args.experts]
    console = Console(width=150)
    show(results, console)
    reached = verdicts(results)
    for goal, met in reached.items():
        console.print(f"{'met' if met else 'MISSED'}: {goal} ({GOALS[goal]})")
    if args.out:
        about = record.circumstances()
        about["versions"]["transformers"] = transformers.__version__
        settings = {"tokens": args.tokens, "rounds": args.rounds, "width": 128, "top_k": 2, "expert_width": 128}
        record.write(args.out, about | {"settings": settings, "goals": GOALS, "met": reached, "results": results})


if __name__ == "__main__":
    main()
