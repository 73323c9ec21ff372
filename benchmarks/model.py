"""The whole model against `transformers` with the same weights: a training step and cached decoding, as ratios.

    python benchmarks/model.py [--out benchmarks/results/model.json]

training   forward, cross entropy, backward, clipping, fused AdamW; tokens drawn at random, the same for both
decoding   one token after the other, greedy, behind a cache that already holds 1,024 or 4,096 tokens, batch 1

The peer is LlamaForCausalLM as its defaults build it: attention by PyTorch's scaled_dot_product_attention, a DynamicCache.
Logits and gradients are compared before anything is timed, and the tokens that both decode. The two take turns within a
round, so that a slow moment of the machine hits both. A time is the median over rounds; a ratio is the median of the
ratios within a round, with its quartiles; above 1, ours is faster.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import record
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

from course.model import ModelConfig, Transformer, save_pretrained, total_parameters

GOALS = {"training": 1.0, "decoding": 1.5}  # at least so many times the peer's speed, in every row
TRAINING = {  # sizes, sequences a step
    "tiny": (ModelConfig(mlp_width=256), 8),
    "small": (ModelConfig(vocab=4096, context=512, width=512, layers=8, heads=8, kv_heads=4, mlp_width=1408), 2),
}
DECODING = ModelConfig(vocab=4096, context=8192, width=512, layers=8, heads=8, kv_heads=2, mlp_width=1408)
CONTEXTS = (1024, 4096)


def pair(config: ModelConfig) -> dict[str, torch.nn.Module]:
    """Our model and transformers', with equal weights."""
    torch.manual_seed(0)
    ours = Transformer(config)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(ours, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {"ours": ours, "transformers": theirs}


def logits_of(model: torch.nn.Module, tokens_BS: Tensor) -> Tensor:
    return model(tokens_BS) if isinstance(model, Transformer) else model(tokens_BS, use_cache=False).logits


def training(name: str, rounds: int) -> dict:
    """Seconds of a training step of either model, in turns."""
    config, batch = TRAINING[name]
    models = {who: model.train() for who, model in pair(config).items()}
    optimizers = {who: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for who, model in models.items()}
    tokens_BS = torch.randint(0, config.vocab, (batch, config.context + 1))

    def step(who: str) -> float:
        start = time.perf_counter()
        logits_BSV = logits_of(models[who], tokens_BS[:, :-1])
        F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten()).backward()
        norms[who] = torch.nn.utils.clip_grad_norm_(models[who].parameters(), 1.0).item()
        optimizers[who].step()
        optimizers[who].zero_grad()
        return time.perf_counter() - start

    norms: dict[str, float] = {}
    seconds = in_turns(list(models), step, rounds, check=lambda: require_near(*norms.values(), 1e-4))
    return {"what": "training", "size": name, "parameters": total_parameters(config), **figures(seconds)}


def decoding(context: int, rounds: int, steps: int) -> dict:
    """Seconds a token behind a cache of `context` tokens, in turns, each turn from the same full cache."""
    models = {who: model.eval() for who, model in pair(DECODING).items()}
    prompt_BS = torch.randint(0, DECODING.vocab, (1, context))
    with torch.no_grad():
        ours = models["ours"].new_caches(1, context + steps)
        first = models["ours"](prompt_BS, ours)[:, -1:].argmax(-1)
        theirs = DynamicCache()
        models["transformers"](prompt_BS, cache=theirs, use_cache=True)
    next_logits = {
        "ours": lambda token: models["ours"](token, ours),
        "transformers": lambda token: models["transformers"](token, cache=theirs, use_cache=True).logits,
    }
    written: dict[str, list[int]] = {}

    @torch.no_grad()
    def decode(who: str) -> float:
        token, written[who] = first, []
        start = time.perf_counter()
        for _ in range(steps):
            token = next_logits[who](token)[:, -1:].argmax(-1)
            written[who].append(token.item())
        elapsed = time.perf_counter() - start
        for cache in ours if who == "ours" else ():
            cache.length = context
        if who == "transformers":
            theirs.crop(-steps)
        return elapsed / steps

    def same_tokens() -> None:
        assert written["ours"] == written["transformers"], "the two decode different tokens"

    seconds = in_turns(list(models), decode, rounds, check=same_tokens)
    return {
        "what": "decoding",
        "size": f"{context:,} tokens cached",
        "parameters": total_parameters(DECODING),
        **figures(seconds),
    }


def in_turns(
    names: list[str], run: Callable[[str], float], rounds: int, check: Callable[[], None]
) -> dict[str, list[float]]:
    """Two rounds to warm up, compared and not counted; then `rounds` that are."""
    for _ in range(2):
        for name in names:
            run(name)
        check()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            seconds[name].append(run(name))
    return seconds


def require_near(a: float, b: float, tolerance: float) -> None:
    assert abs(a - b) <= tolerance * abs(b), f"{a} and {b} differ: the two models are not the same"


def figures(seconds: dict[str, list[float]]) -> dict:
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "milliseconds": {who: round(1e3 * statistics.median(times), 4) for who, times in seconds.items()},
        "times_as_fast": {"median": round(ratio, 4), "low": round(low, 4), "high": round(high, 4)},
    }


def show(results: list[dict], console: Console) -> None:
    table = Table(title="Ours and transformers' Llama, the same weights: milliseconds, and how many times as fast")
    for column in ("what", "size", "parameters", "ours", "transformers", "times as fast (quartiles)", "goal"):
        table.add_column(column, justify="left" if column in ("what", "size") else "right")
    for row in results:
        ratio, goal = row["times_as_fast"], GOALS[row["what"]]
        met = "met" if ratio["median"] >= goal else "MISSED"
        table.add_row(
            row["what"],
            row["size"],
            f"{row['parameters']:,}",
            *(f"{value:.2f}" for value in row["milliseconds"].values()),
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{goal}: {met}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded a round")
    parser.add_argument(
        "--sizes", nargs="+", choices=list(TRAINING), default=list(TRAINING), help="of the training step"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens in the cache when decoding")
    args = parser.parse_args()
    results = [training(name, args.rounds) for name in args.sizes]
    results += [decoding(context, args.rounds, args.steps) for context in args.contexts]
    show(results, Console(width=130))
    if args.out:
        about = record.circumstances()
        about["versions"]["transformers"] = transformers.__version__
        reached = {
            what: all(row["times_as_fast"]["median"] >= goal for row in results if row["what"] == what)
            for what, goal in GOALS.items()
        }
        record.write(args.out, about | {"goals": GOALS, "met": reached, "results": results})


if __name__ == "__main__":
    main()
