"""Does a mixture learn more than the dense model that does the same work a token? tiny-moe against tiny-dense.

    python benchmarks/dense_vs_moe.py [--out benchmarks/results/dense_vs_moe.json]

Three arms, three seeds each, on the embedded corpus; the two models have the same active parameters but for the router.

dense       tiny-dense
moe         tiny-moe, as many steps, so as many tokens
moe timed   tiny-moe, as many steps as dense's time is worth, with a schedule of its own

What a step costs is measured first, the two models taking turns, so that a slow moment of the machine hits both; the
times of the curves are steps times the median. An interrupted run goes on where it stopped: the costs and every
training run's checkpoint are kept in .cache/.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import record
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, Transformer, active_parameters, total_parameters
from course.training import data
from course.training.checkpoint import NAME
from course.training.log import Row
from course.training.trainer import TrainSettings, adamw, take_step, train

RULE = (
    "An arm's result is the validation loss after its last step, mean over the seeds; its spread is the largest minus "
    "the smallest over the seeds. Two arms differ when their means differ by more than the larger of their spreads; "
    "else, or with one seed, the comparison is not resolved. By tokens: dense against moe. By the clock: dense against "
    "moe timed, whose steps are the dense arm's divided by the median ratio of moe's time a step to dense's."
)
PRESETS = {"dense": "tiny-dense", "moe": "tiny-moe", "moe timed": "tiny-moe"}
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, seed=seed, evaluate_every=max(1, steps // 15), evaluation_sequences=128)


def run(arm: str, steps: int, seed: int, text: data.Data, work: Path) -> list[Row]:
    """One training run, gone on with where an earlier one stopped."""
    out = work / f"{arm.replace(' ', '_')}-{steps}-{seed}-{text.key[:8]}"
    settings = settings_for(steps, seed)
    config = replace(ModelConfig.preset(PRESETS[arm]), vocab=text.tokenizer.vocab)
    rows = train(config, text, settings, out, resume=(out / NAME).exists()).rows
    print(f"{arm:10} seed {seed}: {steps} steps, {rows[-1].seconds:.1f} s, loss {rows[-1].validation:.4f}", flush=True)
    return rows


def cost_of_a_step(text: data.Data, work: Path, rounds: int) -> dict:
    """Median seconds a step of either model, and the median ratio within a round with its quartiles. Kept in `work`."""
    kept = work / f"cost-{rounds}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    settings, seconds = settings_for(steps=100 * rounds, seed=0), {}
    configs = {arm: replace(ModelConfig.preset(PRESETS[arm]), vocab=text.tokenizer.vocab) for arm in ("dense", "moe")}
    models = {arm: Transformer(config) for arm, config in configs.items()}
    optimizers = {arm: adamw(model, settings) for arm, model in models.items()}
    for step in range(2, rounds + 2):
        for arm, model in models.items():
            row, _ = take_step(model, optimizers[arm], text, settings, step, before=0.0)
            seconds.setdefault(arm, []).append(row.seconds)
    low, ratio, high = statistics.quantiles(
        [moe / dense for dense, moe in zip(*seconds.values(), strict=True)], n=4, method="inclusive"
    )
    cost = {"seconds": {arm: statistics.median(times) for arm, times in seconds.items()}}
    cost |= {"moe_over_dense": ratio, "quartiles": [low, high], "rounds": rounds}
    record.write(kept, cost)
    return cost


def verdict(dense: Sequence[list[Row]], moe: Sequence[list[Row]]) -> dict:
    """RULE, applied."""
    losses = {"dense": [rows[-1].validation for rows in dense], "moe": [rows[-1].validation for rows in moe]}
    means = {name: statistics.mean(values) for name, values in losses.items()}
    spreads = {name: max(values) - min(values) for name, values in losses.items()}
    gain, spread = means["dense"] - means["moe"], max(spreads.values())
    resolved = len(dense) > 1 and abs(gain) > spread
    better = ("moe" if gain > 0 else "dense") if resolved else "not resolved"
    return {"better": better, "moe_gains_nats": gain, "largest_spread": spread, "means": means, "losses": losses}


def curve(rows: list[Row], seed: int, seconds_a_step: float) -> dict:
    """Validation loss against tokens and time, where it was measured; and what the run really took on its machine."""
    measured = [row for row in rows if row.validation is not None]
    columns = {name: [getattr(row, name) for row in measured] for name in ("step", "tokens", "validation")}
    columns["seconds"] = [round(row.step * seconds_a_step, 3) for row in measured]
    return {"seed": seed, "seconds_in_run": round(rows[-1].seconds, 1), **columns}


def show(verdicts: dict[str, dict], console: Console) -> None:
    table = Table(title="Validation loss in nats a token, mean over the seeds")
    for name in ("compared", "dense", "moe", "difference", "largest spread", "better"):
        table.add_column(name, justify="left" if name == "compared" else "right")
    for name, v in verdicts.items():
        means = (v["means"]["dense"], v["means"]["moe"], v["moe_gains_nats"], v["largest_spread"])
        table.add_row(name, *(f"{value:.4f}" for value in means), v["better"])
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--rounds", type=int, default=60, help="steps of each model to measure what one costs")
    parser.add_argument("--work", type=Path, default=Path(".cache/dense_vs_moe"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)

    cost = cost_of_a_step(text, args.work, args.rounds)
    print(f"a step of moe costs {cost['moe_over_dense']:.3f} of dense's", flush=True)
    runs = {arm: [run(arm, args.steps, seed, text, args.work) for seed in args.seeds] for arm in ("dense", "moe")}
    timed = round(args.steps / cost["moe_over_dense"])
    runs["moe timed"] = [run("moe timed", timed, seed, text, args.work) for seed in args.seeds]
    verdicts = {
        "by tokens": verdict(runs["dense"], runs["moe"]),
        "by the clock": verdict(runs["dense"], runs["moe timed"]),
    }
    show(verdicts, Console(width=110))
    if args.out:
        models = {}
        for arm, preset in PRESETS.items():
            config = ModelConfig.preset(preset)
            models[arm] = {"preset": preset, "total": total_parameters(config), "active": active_parameters(config)}
        curves = {}
        for arm in runs:
            a_step = cost["seconds"][arm.split()[0]]
            curves[arm] = [curve(rows, seed, a_step) for rows, seed in zip(runs[arm], args.seeds, strict=True)]
        settings = asdict(settings_for(args.steps, seed=0))
        settings.pop("seed")
        about = record.circumstances()
        result = {
            "rule": RULE,
            "seeds": list(args.seeds),
            "settings": settings,
            "steps_moe_timed": timed,
            "cost_of_a_step": cost,
        }
        result |= {"models": models, "verdicts": verdicts, "runs": curves}
        record.write(args.out, about | result)


if __name__ == "__main__":
    main()
