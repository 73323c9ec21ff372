"""Does a model train in FP8? A small one, with the products of its linear layers rounded in several ways.

    python benchmarks/fp8_training.py [--seconds 170] [--out benchmarks/results/fp8_training.json]

A dense transformer of two layers, 256 wide, so that a row has two blocks of 128; 512 tokens a step, four blocks of tokens.
Weights, gradients and AdamW are float32 in every arm; what the products read is rounded (`course.training.fp8`), forward and
backward, and summed in float32. Seven arms, three seeds each:

float32    nothing is rounded: what all others are compared with, seed by seed
last bit   the same, and one weight of the head moved to the next float32 number before the first step
bf16       bfloat16
fp8        E4M3 as in DeepSeek-V3: blocks of 1 x 128, 128 x 128 for weights, 128 x 1 for their gradients
square     blocks of 128 x 128 for everything
tensor     one scale for a whole matrix
unscaled   E4M3 without any scale

Every finished run is kept in .cache/; an interrupted script goes on with the next one. With --seconds it starts no
further run after that time, and says how many are left.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import record
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from course.model import ModelConfig, Transformer
from course.training import data
from course.training.fp8 import FP8Products
from course.training.schedule import learning_rate
from course.training.trainer import TrainSettings, adamw, evaluate

RULE = (
    "Training losses are smoothed by an exponential moving average with coefficient 0.9, as in figure 10 of the DeepSeek-V3 "
    "report. A run's relative error is the largest |loss - float32's loss| / float32's loss over the steps after the warm-up, "
    "both smoothed, with the same seed: the same initial weights and data. An arm keeps the report's bound when the relative "
    "errors of all its runs are below 0.25 %. It is told apart from the last bit when the smallest of its relative errors is "
    "larger than the largest of the arm last bit. It differs from float32 in its result when the means of the validation loss "
    "after the last step differ by more than the larger of the two spreads over the seeds (largest minus smallest); else, or "
    "with one seed, that is not resolved. An arm is worse than fp8 when the smallest of its relative errors is larger than the "
    "largest of fp8's. The report compares with BF16: fp8's relative errors against the arm bf16 stand beside the verdict and "
    "decide nothing."
)
BOUND = 0.0025
ARMS = ("float32", "last bit", "bf16", "fp8", "square", "tensor", "unscaled")
ROUNDED = ARMS[2:]
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text
BASE = replace(ModelConfig.preset("tiny-dense"), width=256, layers=2, heads=4, kv_heads=4, mlp_width=512, context=128)


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch=4, seed=seed, warmup=min(50, steps // 4), evaluate_every=steps)


@torch.no_grad()
def initial_model(arm: str, config: ModelConfig, seed: int) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config)
    if arm == "last bit":
        number = model.head.weight[1, :1]
        number.copy_(torch.nextafter(number, torch.tensor(torch.inf)))
    return model


def run(arm: str, steps: int, seed: int, text: data.Data) -> dict:
    """Train once, with the course's own settings; the loss of every step, and on validation text after the last."""
    s, config = settings_for(steps, seed), replace(BASE, vocab=text.tokenizer.vocab)
    model = initial_model(arm, config, seed)
    optimizer, losses, started = adamw(model, s), [], time.perf_counter()
    products = FP8Products(model, arm) if arm in ROUNDED else nullcontext()
    for step in tqdm(range(1, steps + 1), desc=f"{arm}, seed {seed}", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, s.learning_rate, s.warmup, s.final)
        with products:
            loss = model.loss(*data.training_batch(text, config.context, s.batch, seed, step)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with products:
        validation = evaluate(model, text, s.evaluation_sequences)
    seconds = round(time.perf_counter() - started, 1)
    return {
        "arm": arm,
        "seed": seed,
        "validation": validation,
        "loss": [round(loss, 5) for loss in losses],
        "seconds": seconds,
    }


def smoothed(losses: Sequence[float], keep: float = 0.9) -> list[float]:
    values = [losses[0]]
    for loss in losses[1:]:
        values.append(keep * values[-1] + (1 - keep) * loss)
    return values


def relative_errors(losses: Sequence[float], plain: Sequence[float]) -> list[float]:
    """Of every step: how far the smoothed loss is above the other one, in fractions of that."""
    return [one / other - 1 for one, other in zip(smoothed(losses), smoothed(plain), strict=True)]


def spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def largest_errors(runs: Sequence[dict], plain: Sequence[dict], warmup: int) -> list[float]:
    """Of every run, after the warm-up."""
    pairs = zip(runs, plain, strict=True)
    return [max(map(abs, relative_errors(one["loss"], other["loss"])[warmup:])) for one, other in pairs]


def verdicts(runs: dict[str, list[dict]], warmup: int) -> dict[str, dict]:
    """RULE, applied to every arm but float32."""
    plain = runs["float32"]
    errors = {arm: largest_errors(of, plain, warmup) for arm, of in runs.items()}
    results = {arm: [one["validation"] for one in of] for arm, of in runs.items()}
    found = {}
    for arm in ARMS[1:]:
        difference = statistics.mean(results[arm]) - statistics.mean(results["float32"])
        largest = max(spread(results[arm]), spread(results["float32"]))
        found[arm] = {
            "relative_errors": errors[arm],
            "below_bound": max(errors[arm]) < BOUND,
            "told_from_last_bit": min(errors[arm]) > max(errors["last bit"]),
            "worse_than_fp8": min(errors[arm]) > max(errors["fp8"]),
            "difference": difference,
            "largest_spread": largest,
            "resolved": len(plain) > 1 and abs(difference) > largest,
        }
    found["fp8"]["relative_errors_to_bf16"] = largest_errors(runs["fp8"], runs["bf16"], warmup)
    return found


def show(runs: dict[str, list[dict]], found: dict[str, dict], console: Console) -> None:
    table = Table(title="Against float32, seed by seed")
    for name in ("arm", "validation", "relative errors, %", "below 0.25 %", "over last bit", "difference", "resolved"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, of in runs.items():
        mean = f"{statistics.mean(one['validation'] for one in of):.4f}"
        if arm == "float32":
            table.add_row(arm, mean)
            continue
        v = found[arm]
        errors = " ".join(f"{100 * error:.3f}" for error in v["relative_errors"])
        said = ["yes" if v[key] else "no" for key in ("below_bound", "told_from_last_bit", "resolved")]
        table.add_row(arm, mean, errors, said[0], said[1], f"{v['difference']:+.4f}", said[2])
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--seconds", type=float, help="start no further run after so many")
    parser.add_argument("--work", type=Path, default=Path(".cache/fp8_training"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    started = time.perf_counter()
    text = data.load(source, VOCAB, args.work)

    wanted = [(arm, seed) for seed in args.seeds for arm in ARMS]
    kept = {
        (arm, seed): args.work / f"{args.steps}-{text.key[:8]}-{arm.replace(' ', '_')}-{seed}.json"
        for arm, seed in wanted
    }
    for number, (arm, seed) in enumerate(wanted):
        if kept[arm, seed].exists():
            continue
        if args.seconds is not None and time.perf_counter() - started >= args.seconds:
            print(f"{sum(not path.exists() for path in kept.values())} of {len(wanted)} runs are left")
            return
        result = run(arm, args.steps, seed, text)
        record.write(kept[arm, seed], result)
        print(
            f"{number + 1}/{len(wanted)} {arm} seed {seed}: {result['validation']:.4f}, {result['seconds']} s",
            flush=True,
        )

    runs = {arm: [json.loads(kept[arm, seed].read_text()) for seed in args.seeds] for arm in ARMS}
    settings = settings_for(args.steps, 0)
    found = verdicts(runs, settings.warmup)
    show(runs, found, Console(width=120))
    if args.out:
        config = replace(BASE, vocab=text.tokenizer.vocab)
        result = {"rule": RULE, "bound": BOUND, "seeds": list(args.seeds), "settings": asdict(settings)}
        result |= {"model": {"width": config.width, "layers": config.layers, "mlp_width": config.mlp_width}}
        record.write(args.out, record.circumstances() | result | {"verdicts": found, "runs": runs})


if __name__ == "__main__":
    main()
