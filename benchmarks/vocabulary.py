"""Does a larger vocabulary help a transformer? The same text in tokens of three sizes, with tiny-dense.

    python benchmarks/vocabulary.py [--out benchmarks/results/vocabulary.json]

Three arms, three seeds each: single bytes (257 ids), and byte-pair encoding with 1,024 and with 4,096 ids. Every arm reads
the same number of bytes of the embedded corpus, in 2,048 tokens a step, so the arms differ in steps and in time; the
context is 256 tokens in each, which is more text where tokens are longer. An interrupted run goes on where it stopped:
every training run's checkpoint and result are kept in .cache/.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import record
import torch
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, Transformer, total_parameters
from course.training import data
from course.training.checkpoint import NAME
from course.training.trainer import TrainSettings, adamw, take_step, train

RULE = (
    "An arm's result is the cross entropy of the whole validation text after the last step, in bits for each byte of it, "
    "mean over the seeds; its spread is the largest minus the smallest over the seeds. Two arms differ when their means "
    "differ by more than the larger of their spreads; else, or with one seed, they are not resolved. Every arm reads the "
    "same number of bytes, with warm-up and schedule stretched to its steps and all other settings equal. Nats a token "
    "and seconds are recorded beside it and decide nothing."
)
VOCABS = (257, 1024, 4096)
SEEDS = (0, 1, 2)
MEGABYTES = 2.0  # of text that every arm reads
NAT = 1 / math.log(2)  # bits


def bytes_of(text: data.Data, tokens: np.ndarray) -> int:
    """How much text some tokens stand for; `end` stands for none."""
    sizes = np.array([*map(len, text.tokenizer.tokens), 0])
    return int(sizes[tokens].sum())


def settings_for(text: data.Data, megabytes: float, seed: int) -> TrainSettings:
    """As many steps as it takes to read so much text."""
    context, batch = ModelConfig.preset("tiny-dense").context, TrainSettings().batch
    a_token = bytes_of(text, text.train) / len(text.train)
    steps = max(1, round(megabytes * 1e6 / (batch * context * a_token)))
    return TrainSettings(
        steps=steps, batch=batch, warmup=max(1, steps // 10), seed=seed, evaluate_every=steps, evaluation_sequences=16
    )


@torch.no_grad()
def nats(model: Transformer, tokens: np.ndarray, batch: int = 32) -> tuple[float, int]:
    """The summed cross entropy of a row of tokens, in windows that do not overlap, and how many tokens were predicted."""
    context, total = model.config.context, 0.0
    row = torch.from_numpy(tokens.astype(np.int64))
    whole = (len(row) - 1) // context
    inputs_WS, targets_WS = (row[i : i + whole * context].view(whole, context) for i in (0, 1))
    parts = list(zip(inputs_WS.split(batch), targets_WS.split(batch), strict=True)) if whole else []
    if rest := len(row) - 1 - whole * context:
        parts.append((row[None, -1 - rest : -1], row[None, -rest:]))
    for inputs_BS, targets_BS in parts:
        total += model.loss(inputs_BS, targets_BS).cross_entropy.item() * targets_BS.numel()
    return total, len(row) - 1


def run(vocab: int, seed: int, text: data.Data, megabytes: float, work: Path) -> dict:
    """One training run and its measurement, gone on with where an earlier one stopped."""
    out = work / f"{vocab}-{megabytes:g}-{seed}-{text.key[:8]}"
    if (kept := out / "result.json").exists():
        return json.loads(kept.read_text())
    config = replace(ModelConfig.preset("tiny-dense"), vocab=text.tokenizer.vocab)
    settings = settings_for(text, megabytes, seed)
    model, rows = train(config, text, settings, out, resume=(out / NAME).exists())
    total, predicted = nats(model, text.validation)
    result = {
        "seed": seed,
        "bits_per_byte": total * NAT / bytes_of(text, text.validation[1:]),
        "nats_per_token": total / predicted,
        "seconds": round(rows[-1].seconds, 1),  # on a machine with other work; see `cost_of_a_step`
    }
    record.write(kept, result)
    print(f"{vocab:6} seed {seed}: {settings.steps} steps, {result}", flush=True)
    return result


def cost_of_a_step(texts: dict[str, data.Data], rounds: int) -> dict[str, float]:
    """Median seconds of a training step of each arm; the arms take turns, so that a slow moment of the machine hits all."""
    seconds, settings = {}, TrainSettings(steps=100 * rounds, evaluate_every=100 * rounds)
    models = {
        arm: Transformer(replace(ModelConfig.preset("tiny-dense"), vocab=text.tokenizer.vocab))
        for arm, text in texts.items()
    }
    optimizers = {arm: adamw(model, settings) for arm, model in models.items()}
    for step in range(2, rounds + 2):
        for arm, model in models.items():
            row, _ = take_step(model, optimizers[arm], texts[arm], settings, step, before=0.0)
            seconds.setdefault(arm, []).append(row.seconds)
    return {arm: statistics.median(times) for arm, times in seconds.items()}


def verdicts(runs: dict[str, Sequence[dict]]) -> dict[str, dict]:
    """RULE, applied to every two arms."""
    bits = {arm: [run["bits_per_byte"] for run in runs[arm]] for arm in runs}
    found = {}
    for one, other in combinations(runs, 2):
        gap = statistics.mean(bits[one]) - statistics.mean(bits[other])
        spread = max(max(bits[arm]) - min(bits[arm]) for arm in (one, other))
        resolved = len(bits[one]) > 1 and abs(gap) > spread
        better = (other if gap > 0 else one) if resolved else "not resolved"
        found[f"{one} against {other}"] = {"better": better, "gap": gap, "largest_spread": spread}
    return found


def show(runs: dict[str, Sequence[dict]], arms: dict[str, dict], found: dict[str, dict], console: Console) -> None:
    table = Table(title="tiny-dense on the same text, mean over the seeds")
    for name in ("vocabulary", "nats a token", "bits a byte", "lowest", "highest", "steps", "ms a step"):
        table.add_column(name, justify="right")
    for arm, its in runs.items():
        bits = [run["bits_per_byte"] for run in its]
        means = (statistics.mean(run["nats_per_token"] for run in its), statistics.mean(bits), min(bits), max(bits))
        step = 1e3 * arms[arm]["seconds_of_a_step"]
        table.add_row(arm, *(f"{m:.4f}" for m in means), str(arms[arm]["settings"]["steps"]), f"{step:.0f}")
    console.print(table)
    for pair, v in found.items():
        console.print(f"{pair}: gap {v['gap']:+.4f}, largest spread {v['largest_spread']:.4f}, better: {v['better']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--vocabs", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--megabytes", type=float, default=MEGABYTES, help="of training text that every arm reads")
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--rounds", type=int, default=30, help="steps of each arm to measure what one costs")
    parser.add_argument("--work", type=Path, default=Path(".cache/vocabulary"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    runs, arms, texts = {}, {}, {}
    for vocab in args.vocabs:
        text = texts[str(vocab)] = data.load(source, vocab, args.work)
        runs[str(vocab)] = [run(vocab, seed, text, args.megabytes, args.work) for seed in args.seeds]
        settings = asdict(settings_for(text, args.megabytes, 0))
        settings.pop("seed")
        config = replace(ModelConfig.preset("tiny-dense"), vocab=text.tokenizer.vocab)
        arms[str(vocab)] = {
            "settings": settings,
            "parameters": total_parameters(config),
            "bytes_per_token": bytes_of(text, text.validation) / len(text.validation),
        }
    for arm, seconds in cost_of_a_step(texts, args.rounds).items():
        arms[arm]["seconds_of_a_step"] = seconds
    found = verdicts(runs)
    show(runs, arms, found, Console(width=110))
    if args.out:
        result = {"rule": RULE, "seeds": list(args.seeds), "megabytes": args.megabytes, "arms": arms}
        record.write(args.out, record.circumstances() | result | {"verdicts": found, "runs": runs})


if __name__ == "__main__":
    main()
