"""Is there a mixture that beats dense models by the clock, on two cores? Several of both, at equal time and at equal FLOPs.

    python benchmarks/moe_vs_dense.py [--out benchmarks/results/moe_vs_dense.json]

Every arm trains with as many steps as fit into one budget of seconds, and with a schedule that ends there. What a step of
each arm costs is measured first, all arms taking turns, so that a slow moment of the machine hits them all; steps are the
budget over the median. So the runs themselves may be slow, and may be interrupted: the costs, and every run's checkpoint,
are kept in .cache/. The curves of loss against FLOPs come from the same runs.

The dense arms are not straw men: a wider one, and one with a larger batch, have the same choice of shape as the mixtures.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import record
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, Transformer, active_parameters, total_parameters, train_flops_per_token
from course.training import data
from course.training.checkpoint import NAME
from course.training.log import Row
from course.training.trainer import TrainSettings, adamw, take_step, train

RULE = (
    "An arm's result is the validation loss after its last step, mean over the seeds; its spread is the largest minus the "
    "smallest. By the clock, every arm has the same seconds. A mixture wins by the clock when its mean is below that of "
    "every dense arm by more than the larger of the two spreads, and loses when it is above that of some dense arm by more "
    "than the larger of the two spreads; else, or with one seed, it is not resolved. By FLOPs, a mixture is compared in the "
    "same way with each dense arm at the largest number of FLOPs that both have spent, losses interpolated linearly in the "
    "logarithm of FLOPs between measured steps. No arm is added or left out after its result is known."
)
DENSE = ModelConfig.preset("tiny-dense")
MOE = ModelConfig.preset("tiny-moe")
FINE = replace(MOE, experts=16, top_k=4, expert_width=64)
ARMS = {  # shape, and what differs from the usual settings
    "dense": (DENSE, {}),
    "dense, wide": (replace(DENSE, mlp_width=512), {}),
    "dense, batch 16": (DENSE, {"batch": 16}),
    "8 experts, top 2": (MOE, {}),
    "8 experts, top 2, batch 16": (MOE, {"batch": 16}),
    "8 experts, top 2, slower experts": (MOE, {"expert_rate": 0.5}),
    "8 experts, top 2, faster experts": (MOE, {"expert_rate": 2.0}),
    "8 wide experts, top 1": (replace(MOE, top_k=1, expert_width=256), {}),
    "8 experts, top 1, and a shared one": (replace(MOE, top_k=1, shared_experts=1), {}),
    "16 fine experts, top 4": (FINE, {}),
    "32 experts, top 2": (replace(MOE, experts=32), {}),
    "32 experts, top 2, batch 16": (replace(MOE, experts=32), {"batch": 16}),
}
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text


def config_of(arm: str, text: data.Data) -> ModelConfig:
    return replace(ARMS[arm][0], vocab=text.tokenizer.vocab)


def settings_of(arm: str, steps: int, seed: int) -> TrainSettings:
    usual = TrainSettings(steps=steps, seed=seed, evaluate_every=max(1, steps // 15), evaluation_sequences=128)
    return replace(usual, **ARMS[arm][1])


def costs(arms: list[str], text: data.Data, work: Path, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each arm, from rounds in turns. Kept in `work`, arm by arm."""
    kept = work / f"costs-{rounds}.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if not set(arms) <= set(known):
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        models = {arm: Transformer(config_of(arm, text)) for arm in arms}
        optimizers = {arm: adamw(model, settings_of(arm, 100, 0)) for arm, model in models.items()}
        for step in range(2, rounds + 4):
            for arm, model in models.items():
                settings = settings_of(arm, 1000 * rounds, 0)
                row, _ = take_step(model, optimizers[arm], text, replace(settings, evaluate_every=10**9), step, 0.0)
                seconds[arm].append(row.seconds)
        known = {arm: statistics.median(times[2:]) for arm, times in seconds.items()}
        record.write(kept, known)
    return known


def run(arm: str, steps: int, seed: int, text: data.Data, work: Path) -> list[Row]:
    """One training run, gone on with where an earlier one stopped."""
    out = work / f"{arm.replace(',', '').replace(' ', '_')}-{steps}-{seed}-{text.key[:8]}"
    rows = train(config_of(arm, text), text, settings_of(arm, steps, seed), out, resume=(out / NAME).exists()).rows
    print(f"{arm:36} seed {seed}: {steps} steps, {rows[-1].seconds:.1f} s, loss {rows[-1].validation:.4f}", flush=True)
    return rows


def curve(arm: str, rows: list[Row], seed: int, cost: float, text: data.Data) -> dict:
    """Validation loss against tokens, seconds (steps times what one costs) and FLOPs, where it was measured."""
    config, measured = config_of(arm, text), [row for row in rows if row.validation is not None]
    per_token = train_flops_per_token(config, config.context)
    return {
        "seed": seed,
        "step": [row.step for row in measured],
        "tokens": [row.tokens for row in measured],
        "seconds": [round(row.step * cost, 3) for row in measured],
        "gflop": [round(row.tokens * per_token / 1e9, 1) for row in measured],
        "validation": [row.validation for row in measured],
    }


def judged(mixture: list[float], dense: dict[str, list[float]]) -> dict:
    """RULE's comparison of one mixture's losses, a number a seed, with those of every dense arm."""
    against = {}
    for name, losses in dense.items():
        gain = statistics.mean(losses) - statistics.mean(mixture)
        spread = max(max(values) - min(values) for values in (losses, mixture))
        resolved = len(mixture) > 1 and abs(gain) > spread
        verdict = ("wins" if gain > 0 else "loses") if resolved else "not resolved"
        against[name] = {"gain": gain, "largest_spread": spread, "verdict": verdict}
    return together(against)


def together(against: dict[str, dict]) -> dict:
    """One that loses to some dense arm loses; to win it must beat them all."""
    said = {one["verdict"] for one in against.values()}
    verdict = "loses" if "loses" in said else "wins" if said == {"wins"} else "not resolved"
    return {"verdict": verdict, "against": against}


def at_flops(curves: list[dict], gflop: float) -> list[float]:
    """The losses of an arm's runs at a number of FLOPs that all of them have spent."""
    return [float(np.interp(np.log(gflop), np.log(c["gflop"]), c["validation"])) for c in curves]


def verdicts(curves: dict[str, list[dict]]) -> dict[str, dict[str, dict]]:
    dense = [arm for arm in curves if arm.startswith("dense")]
    by_clock, by_flops = {}, {}
    for arm in curves:
        if arm in dense:
            continue
        last = {name: [c["validation"][-1] for c in curves[name]] for name in (*dense, arm)}
        by_clock[arm] = judged(last.pop(arm), last)
        against = {}
        for name in dense:
            both = min(c["gflop"][-1] for c in (*curves[arm], *curves[name]))
            against |= judged(at_flops(curves[arm], both), {name: at_flops(curves[name], both)})["against"]
        by_flops[arm] = together(against)
    return {"by the clock": by_clock, "by FLOPs": by_flops}


def show(curves: dict[str, list[dict]], found: dict[str, dict[str, dict]], console: Console) -> None:
    table = Table(title="Validation loss in nats a token, mean over the seeds")
    for name in ("arm", "steps", "GFLOP", "loss", "spread", "by the clock", "by FLOPs"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, runs in sorted(curves.items(), key=lambda item: statistics.mean(c["validation"][-1] for c in item[1])):
        losses = [c["validation"][-1] for c in runs]
        said = [found[kind][arm]["verdict"] if arm in found[kind] else "" for kind in ("by the clock", "by FLOPs")]
        numbers = (f"{runs[0]['step'][-1]:,}", f"{runs[0]['gflop'][-1]:,.0f}", f"{statistics.mean(losses):.4f}")
        table.add_row(arm, *numbers, f"{max(losses) - min(losses):.4f}", *said)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--seconds", type=float, default=60.0, help="budget of each run, on an idle machine")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--rounds", type=int, default=30, help="steps of each arm to measure what one costs")
    parser.add_argument("--work", type=Path, default=Path(".cache/moe_vs_dense"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)

    cost = costs(args.arms, text, args.work, args.rounds)
    curves: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            rows = run(arm, max(2, round(args.seconds / cost[arm])), seed, text, args.work)
            curves[arm].append(curve(arm, rows, seed, cost[arm], text))
    found = verdicts(curves)
    show(curves, found, Console(width=120))
    if args.out:
        models = {}
        for arm in args.arms:
            config = config_of(arm, text)
            settings = asdict(settings_of(arm, curves[arm][0]["step"][-1], seed=0))
            settings.pop("seed")
            counts = {"total": total_parameters(config), "active": active_parameters(config)}
            models[arm] = {"settings": settings, "seconds_a_step": cost[arm], **counts}
        about = record.circumstances() | {"rule": RULE, "seeds": list(args.seeds), "seconds": args.seconds}
        record.write(args.out, about | {"models": models, "verdicts": found, "runs": curves})


if __name__ == "__main__":
    main()
