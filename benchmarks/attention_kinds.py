"""What does a smaller cache cost in loss? The same small model with full heads, shared heads and latents.

    python benchmarks/attention_kinds.py [--out benchmarks/results/attention_kinds.json]

Width 128, four layers, eight heads of 16 features, context 256, trained on the embedded corpus. The feed-forward layer is as
wide as makes every arm's parameters those of the first, to half a percent, so that a cache is not bought with parameters. All
runs have the same settings and, seed by seed, the same batches. Finished runs are kept in .cache/.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import record
from rich.console import Console
from rich.table import Table

from course.model import ModelConfig, kv_bytes_per_token, total_parameters
from course.training import data
from course.training.trainer import TrainSettings, train

RULE = (
    "An arm's result is the validation loss after its last step, mean over the seeds; its spread is the largest minus the "
    "smallest over the seeds. An arm differs from full heads when the two means differ by more than the larger of the two "
    "spreads; else, or with one seed, the comparison is not resolved."
)
FULL = ModelConfig(heads=8, kv_heads=8, mlp_width=256)
LATENT = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "rope_layout": "interleaved"}
ARMS = {
    "8 kv heads": FULL,
    "2 kv heads": replace(FULL, kv_heads=2),
    "1 kv head": replace(FULL, kv_heads=1),
    "latent 56": replace(FULL, kv_lora_rank=56, **LATENT),  # keeps as much as 2 kv heads
    "latent 24": replace(FULL, kv_lora_rank=24, **LATENT),  # as much as 1
}
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text


def matched(config: ModelConfig) -> ModelConfig:
    """With the feed-forward width whose parameters come nearest to those of full heads."""
    per_unit = 3 * config.width * config.layers
    missing = total_parameters(FULL) - total_parameters(config)
    return replace(config, mlp_width=config.mlp_width + round(missing / per_unit))


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, seed=seed, evaluate_every=max(1, steps // 5), evaluation_sequences=128)


def run(arm: str, steps: int, seed: int, text: data.Data, work: Path) -> dict:
    """One training run, or what is kept of it."""
    kept = work / f"{arm.replace(' ', '_')}-{steps}-{seed}-{text.key[:8]}.json"
    if not kept.exists():
        config = replace(matched(ARMS[arm]), vocab=text.tokenizer.vocab)
        rows = train(config, text, settings_for(steps, seed)).rows
        measured = [row for row in rows if row.validation is not None]
        curve = {"step": [row.step for row in measured], "validation": [row.validation for row in measured]}
        record.write(kept, {"seed": seed, **curve})
        print(f"{arm:12} seed {seed}: {rows[-1].seconds:.0f} s, loss {rows[-1].validation:.4f}", flush=True)
    return json.loads(kept.read_text())


def verdict(arm: Sequence[float], full: Sequence[float]) -> dict:
    """RULE, applied to the losses of two arms."""
    loses = statistics.mean(arm) - statistics.mean(full)
    spread = max(max(losses) - min(losses) for losses in (arm, full))
    resolved = len(arm) > 1 and abs(loses) > spread
    verdict = ("worse" if loses > 0 else "better") if resolved else "not resolved"
    return {"mean": statistics.mean(arm), "loses": loses, "largest_spread": spread, "verdict": verdict}


def show(results: dict[str, dict], console: Console) -> None:
    table = Table(title="Validation loss in nats a token, mean over the seeds, against 8 kv heads")
    for name in ("attention", "bytes a token", "parameters", "loss", "difference", "largest spread", "verdict"):
        table.add_column(name, justify="left" if name == "attention" else "right")
    for arm, row in results.items():
        v = row["verdict"]
        numbers = (f"{row['kv_bytes']:,}", f"{row['parameters']:,}", f"{v['mean']:.4f}", f"{v['loses']:+.4f}")
        table.add_row(arm, *numbers, f"{v['largest_spread']:.4f}", v["verdict"])
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--work", type=Path, default=Path(".cache/attention_kinds"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)
    runs = {arm: [run(arm, args.steps, seed, text, args.work) for seed in args.seeds] for arm in ARMS}
    last = {arm: [one["validation"][-1] for one in each] for arm, each in runs.items()}
    results = {
        arm: {
            "kv_bytes": kv_bytes_per_token(config),
            "parameters": total_parameters(matched(config)),
            "verdict": verdict(last[arm], last["8 kv heads"]),
            "runs": runs[arm],
        }
        for arm, config in ARMS.items()
    }
    show(results, Console(width=120))
    if args.out:
        about = record.circumstances() | {"rule": RULE, "seeds": list(args.seeds), "steps": args.steps}
        record.write(args.out, about | {"arms": results})


if __name__ == "__main__":
    main()
