"""How far apart do two seeds of one model lie, and what does that do to comparisons? tiny-dense, many times over.

    python benchmarks/seed_spread.py [--seconds 170] [--out benchmarks/results/seed_spread.json]

A seed decides two things, the initial weights and the order of the data. The runs:

both         16 seeds, weights and data with the same seed: the settings that every other arm is compared with
weights      8 initial weights, all on the data order of seed 0
data         8 data orders, all from the initial weights of seed 0
last bit     the initial weights and data of seed 0, and one weight of the head moved to the next float32 number
slow         4 seeds, a third of the learning rate
fast         4 seeds, ten times the learning rate
no warm-up   6 seeds, the full rate from the first step on
no clip      6 seeds, gradients as they come
no decay     12 seeds, no weight decay

The first three share the run of seed 0, and `last bit` counts it as its first. Every finished run is kept in .cache/; an
interrupted script goes on with the next one. With --seconds it starts no further run after that time, and says how
many are left.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import record
import torch
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, Transformer
from course.training import data
from course.training.schedule import learning_rate
from course.training.trainer import TrainSettings, adamw, evaluate

RULE = (
    "A run's result is its validation loss after the last step. An arm's spread is the largest minus the smallest over "
    "its runs. Two arms differ when their means differ by more than the larger of their spreads; else, or with one run, "
    "the comparison is not resolved. What makes the spread: the arms weights, data, last bit and the first eight runs of "
    "both are compared by their standard deviations over eight runs (a range grows with the number of runs); one is "
    "larger than another when it is more than twice as large, else not resolved. The other arms change one setting and are "
    "compared with both, over the same seeds; the standard error of the paired differences (same seed: same initial weights, "
    "same data) is reported beside the verdict and decides nothing."
)
SEEDS, FEW = 16, 8
ALIKE = ("both", "weights", "data", "last bit")  # arms of the same settings
COMPARED = ("slow", "fast", "no warm-up", "no clip", "no decay")
PRESET = "tiny-dense"
VOCAB = 1024  # token ids, learned from the text


class Run(NamedTuple):
    """What tells two runs apart. Arms share a run where all of it is the same."""

    weights: int = 0  # seed of the initial weights
    order: int = 0  # seed of the data order
    nudged: int = 0  # which row of the head has its first number moved to the next float32; 0: none
    rate: float = 3e-3
    decay: float = 0.1
    warmup: int = 50
    clip: float = 1.0

    @property
    def name(self) -> str:
        """For the file that keeps it: the first five values, and the others where they are not the usual ones."""
        usual = [*self[:5], *Run()[5:]] == [*self]
        return "-".join(f"{value:g}" for value in (self[:5] if usual else self))


def arms(seeds: int, few: int) -> dict[str, list[Run]]:
    """Every arm's runs, in the order of their seeds."""
    return {
        "both": [Run(n, n) for n in range(seeds)],
        "weights": [Run(n, 0) for n in range(few)],
        "data": [Run(0, n) for n in range(few)],
        "last bit": [Run(nudged=n) for n in range(few)],
        "slow": [Run(n, n, rate=1e-3) for n in range(few // 2)],
        "fast": [Run(n, n, rate=3e-2) for n in range(few // 2)],
        "no warm-up": [Run(n, n, warmup=0) for n in range(few * 3 // 4)],
        "no clip": [Run(n, n, clip=1e9) for n in range(few * 3 // 4)],
        "no decay": [Run(n, n, decay=0.0) for n in range(seeds * 3 // 4)],
    }


@torch.no_grad()
def initial_model(run: Run, config: ModelConfig) -> Transformer:
    torch.manual_seed(run.weights)
    model = Transformer(config)
    if run.nudged:
        number = model.head.weight[run.nudged, :1]
        number.copy_(torch.nextafter(number, torch.tensor(torch.inf)))
    return model


def train_once(run: Run, steps: int, text: data.Data) -> dict:
    """One training run with the course's own settings; validation loss every 50 steps and at the last one."""
    settings = TrainSettings(
        steps=steps,
        learning_rate=run.rate,
        weight_decay=run.decay,
        warmup=run.warmup,
        clip=run.clip,
        seed=run.order,
    )
    config = replace(ModelConfig.preset(PRESET), vocab=text.tokenizer.vocab)
    model = initial_model(run, config)
    optimizer = adamw(model, settings)
    measured, validation = [], []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.learning_rate, settings.warmup, settings.final)
        loss = model.loss(*data.training_batch(text, config.context, settings.batch, settings.seed, step)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        if step % settings.evaluate_every == 0 or step == steps:
            measured.append(step)
            validation.append(evaluate(model, text, settings.evaluation_sequences))
    return {**run._asdict(), "settings": asdict(settings), "step": measured, "validation": validation}


def kept(run: Run, steps: int, text: data.Data, work: Path) -> Path:
    return work / f"{steps}-{text.key[:8]}-{run.name}.json"


def spread(losses: Sequence[float]) -> float:
    return max(losses) - min(losses)


def compared(one: Sequence[float], other: Sequence[float]) -> dict:
    """RULE, applied to two arms; the paired view beside it."""
    difference, largest = statistics.mean(other) - statistics.mean(one), max(spread(one), spread(other))
    resolved = min(len(one), len(other)) > 1 and abs(difference) > largest
    pairs = [b - a for a, b in zip(one, other, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None
    return {
        "difference": difference,
        "largest_spread": largest,
        "verdict": "resolved" if resolved else "not resolved",
        "paired_standard_error": error,
        "pairs_in_which_it_is_worse": sum(pair > 0 for pair in pairs),
    }


def sources(losses: Mapping[str, Sequence[float]], few: int) -> dict:
    """RULE, applied to what makes the spread: standard deviations over equally many runs, and their ratios."""
    deviations = {arm: statistics.stdev(losses[arm][:few]) for arm in ALIKE}
    pairs = [(one, other) for i, one in enumerate(ALIKE) for other in ALIKE[i + 1 :]]
    verdicts = {}
    for one, other in pairs:
        low, high = sorted((one, other), key=deviations.get)
        larger = deviations[high] > 2 * deviations[low]
        verdicts[f"{one}, {other}"] = f"{high} is larger" if larger else "not resolved"
    return {"runs": few, "standard_deviations": deviations, "verdicts": verdicts}


def show(losses: Mapping[str, Sequence[float]], verdicts: Mapping[str, dict], console: Console) -> None:
    table = Table(title="Validation loss in nats a token")
    for name in ("arm", "runs", "mean", "spread", "against both", "verdict"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, values in losses.items():
        v = verdicts.get(arm)
        more = (f"{v['difference']:+.4f}", v["verdict"]) if v else ("", "")
        table.add_row(arm, str(len(values)), f"{statistics.mean(values):.4f}", f"{spread(values):.4f}", *more)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="runs of the arm both; no decay has three quarters of them"
    )
    parser.add_argument(
        "--few", type=int, default=FEW, help="runs of the other arms, or half or three quarters of them"
    )
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further run after this time")
    parser.add_argument("--work", type=Path, default=Path(".cache/seed_spread"), help="where runs are kept")
    args = parser.parse_args()
    started = time.monotonic()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)

    every = arms(args.seeds, args.few)
    wanted = list(dict.fromkeys(run for runs in every.values() for run in runs))
    missing = [run for run in wanted if not kept(run, args.steps, text, args.work).exists()]
    for done, run in enumerate(missing):
        if time.monotonic() - started > args.seconds:
            print(f"{len(missing) - done} of {len(wanted)} runs are left: the same command goes on")
            return
        result = train_once(run, args.steps, text)
        record.write(kept(run, args.steps, text, args.work), result)
        print(f"{run.name}: {result['validation'][-1]:.4f}", flush=True)

    results = {run: json.loads(kept(run, args.steps, text, args.work).read_text()) for run in wanted}
    losses = {arm: [results[run]["validation"][-1] for run in runs] for arm, runs in every.items()}
    verdicts = {arm: compared(losses["both"][: len(losses[arm])], losses[arm]) for arm in COMPARED}
    show(losses, verdicts, Console(width=110))
    if args.out:
        settings = results[wanted[0]]["settings"]
        for varied in ("seed", "learning_rate", "weight_decay", "warmup", "clip"):
            settings.pop(varied)
        runs = {
            arm: [run._asdict() | {"validation": results[run]["validation"]} for run in these]
            for arm, these in every.items()
        }
        result = {"rule": RULE, "preset": PRESET, "tokens": len(text.train), "settings": settings}
        result |= {"step": results[wanted[0]]["step"], "sources": sources(losses, args.few), "verdicts": verdicts}
        record.write(args.out, record.circumstances() | result | {"runs": runs})


if __name__ == "__main__":
    main()
