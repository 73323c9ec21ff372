"""What the balance loss is for: tiny-moe's router with and without it, the load on every expert during training.

    python benchmarks/router_collapse.py [--out benchmarks/results/router_collapse.json]

Two arms, three seeds each: balance weight 0.01, the preset's, and 0. Load is counted on every training batch, layer by
layer.
"""

import argparse
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import record
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, Routing, expert_counts
from course.training import data
from course.training.log import Row
from course.training.trainer import TrainSettings, train

RULE = (
    "The imbalance of a run is the load of a layer's busiest expert over the mean load, minus one, averaged over the "
    "layers and over the last 20 steps. An expert is idle when it received less than a tenth of the mean load over the "
    "last 20 steps. The arms differ, in imbalance, in idle experts or in the validation loss after the last step, when "
    "their means over the seeds differ by more than the larger spread (largest minus smallest over the seeds); else, or "
    "with one seed, the comparison is not resolved."
)
WEIGHTS = {"with balance loss": 0.01, "without": 0.0}
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text
LAST = 20  # steps that are averaged


def run(weight: float, seed: int, text: data.Data, settings: TrainSettings) -> dict:
    """Train once; the share of the pairs that each expert received, every LAST steps and layer by layer."""
    config = replace(ModelConfig.preset("tiny-moe"), vocab=text.tokenizer.vocab, balance_weight=weight)
    counts, loads = [], []

    def note(row: Row, routings: list[Routing]) -> None:
        counts.append([expert_counts(routing.indices_TK, config.experts).tolist() for routing in routings])
        if row.step % LAST == 0:
            loads.append(shares(counts[-LAST:]))

    rows = train(config, text, replace(settings, seed=seed), on_step=note).rows
    violations = [row.max_violation for row in rows]
    return {
        "seed": seed,
        "loss": rows[-1].validation,
        "imbalance": statistics.mean(violations[-LAST:]),
        "idle_experts": sum(share < 0.1 / config.experts for layer in loads[-1] for share in layer),
        "max_violation": violations[::5],
        "loads": loads,
    }


def shares(counts: list[list[list[int]]]) -> list[list[float]]:
    """Steps x layers x experts, summed over the steps, as a share of each layer's pairs."""
    layers = [[sum(column) for column in zip(*layer, strict=True)] for layer in zip(*counts, strict=True)]
    return [[round(count / sum(layer), 5) for count in layer] for layer in layers]


def verdict(runs: dict[str, list[dict]], key: str) -> dict:
    """RULE, applied to one number of every run."""
    values = {arm: [run[key] for run in runs[arm]] for arm in runs}
    means = {arm: statistics.mean(v) for arm, v in values.items()}
    spread = max(max(v) - min(v) for v in values.values())
    difference = means["without"] - means["with balance loss"]
    resolved = len(values["without"]) > 1 and abs(difference) > spread
    return {"means": means, "difference": difference, "largest_spread": spread, "resolved": resolved}


def show(verdicts: dict[str, dict], console: Console) -> None:
    table = Table(title="tiny-moe with and without the balance loss, mean over the seeds")
    for name in ("", *WEIGHTS, "difference", "largest spread", "resolved"):
        table.add_column(name, justify="right")
    for key, v in verdicts.items():
        numbers = (*v["means"].values(), v["difference"], v["largest_spread"])
        table.add_row(key, *(f"{number:.4f}" for number in numbers), "yes" if v["resolved"] else "no")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the tokenised corpus is kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.cache)
    settings = TrainSettings(steps=args.steps, evaluate_every=args.steps)
    runs = {}
    for arm, weight in WEIGHTS.items():
        runs[arm] = [run(weight, seed, text, settings) for seed in args.seeds]
        print(f"{arm}: {args.seeds} done", flush=True)
    verdicts = {key: verdict(runs, key) for key in ("imbalance", "idle_experts", "loss")}
    show(verdicts, Console(width=110))
    if args.out:
        about = record.circumstances()
        result = {"rule": RULE, "weights": WEIGHTS, "seeds": list(args.seeds), "settings": asdict(settings)}
        record.write(args.out, about | result | {"verdicts": verdicts, "runs": runs})


if __name__ == "__main__":
    main()
