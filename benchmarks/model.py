"""Whole models against `transformers` with the same weights: a training step and cached decoding, as ratios.

    python benchmarks/model.py [--out benchmarks/results/model.json]

training   forward, cross entropy, backward, clipping, fused AdamW; tokens drawn at random, the same for both
decoding   one token after the other, greedy, behind a cache that already holds 1,024 tokens or more, batch 1; and how
           our time grows with the cache, beside the bytes that a token reads (goal: no faster than they do)

Two families: Llama, and DeepSeek-V3 (latent attention, absorbed in decoding; a mixture of 32 experts behind a sigmoid
gate). The peer is what transformers' defaults build: attention by PyTorch's scaled_dot_product_attention, experts by
grouped_mm, a DynamicCache, which for DeepSeek-V3 holds latents and expands them in every step.
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
from dataclasses import replace
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

from course.model import (
    ModelConfig,
    Transformer,
    active_parameters,
    kv_bytes_per_token,
    save_pretrained,
    total_parameters,
)

GOALS = {  # at least so many times the peer's speed, in every row
    "Llama": {"training": 1.0, "decoding": 1.5},
    "DeepSeek-V3": {"training": 1.25, "decoding": 2.0},
}
V3 = replace(
    ModelConfig.preset("tiny-deepseek-v3"),
    vocab=2048,
    width=256,
    layers=3,
    heads=8,
    q_lora_rank=96,
    kv_lora_rank=64,
    mlp_width=768,
    experts=32,
    top_k=4,
    expert_width=128,
)
TRAINING = {  # family, shape, sequences a step
    "tiny": ("Llama", ModelConfig(mlp_width=256), 8),
    "small": (
        "Llama",
        ModelConfig(vocab=4096, context=512, width=512, layers=8, heads=8, kv_heads=4, mlp_width=1408),
        2,
    ),
    "mixture": ("DeepSeek-V3", V3, 8),
}
DECODING = {  # shape, tokens in the cache
    "Llama": (
        ModelConfig(vocab=4096, context=8192, width=512, layers=8, heads=8, kv_heads=2, mlp_width=1408),
        (1024, 4096),
    ),
    "DeepSeek-V3": (replace(V3, context=10_000), (1024, 4096, 8192)),
}


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
    family, config, batch = TRAINING[name]
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
    about = {"family": family, "what": "training", "size": name, "parameters": total_parameters(config)}
    return about | figures(seconds)


def bytes_read(config: ModelConfig, context: int) -> int:
    """What our decoder must read for a token, in float32: the weights that the token meets, and the cache."""
    weights = active_parameters(config) - config.vocab * config.width
    return 4 * weights + context * kv_bytes_per_token(config, bytes_each=4)


@torch.no_grad()
def decoder(model: torch.nn.Module, prompt_BS: Tensor, steps: int) -> Callable[[], tuple[float, list[int]]]:
    """A function that decodes `steps` tokens, always from the same full cache: seconds a token, and the tokens."""
    length = prompt_BS.shape[1]
    if isinstance(model, Transformer):
        caches = model.new_caches(1, length + steps)

        def logits_of_next(tokens_BS: Tensor) -> Tensor:
            return model(tokens_BS, caches)

        def rewind() -> None:
            for cache in caches:
                cache.length = length

    else:
        cache = DynamicCache()

        def logits_of_next(tokens_BS: Tensor) -> Tensor:
            return model(tokens_BS, cache=cache, use_cache=True).logits

        def rewind() -> None:
            cache.crop(-steps)

    first = logits_of_next(prompt_BS)[:, -1:].argmax(-1)

    @torch.no_grad()
    def decode() -> tuple[float, list[int]]:
        token, written = first, []
        start = time.perf_counter()
        for _ in range(steps):
            token = logits_of_next(token)[:, -1:].argmax(-1)
            written.append(token.item())
        seconds = (time.perf_counter() - start) / steps
        rewind()
        return seconds, written

    return decode


def decoding(family: str, context: int, rounds: int, steps: int) -> dict:
    """Seconds a token behind a cache of `context` tokens, in turns."""
    config, _ = DECODING[family]
    prompt_BS = torch.randint(0, config.vocab, (1, context))
    decoders = {who: decoder(model.eval(), prompt_BS, steps) for who, model in pair(config).items()}
    written: dict[str, list[int]] = {}

    def decode(who: str) -> float:
        seconds, written[who] = decoders[who]()
        return seconds

    def same_tokens() -> None:
        assert written["ours"] == written["transformers"], "the two decode different tokens"

    seconds = in_turns(list(decoders), decode, rounds, check=same_tokens)
    return {
        "family": family,
        "what": "decoding",
        "size": f"{context:,} tokens cached",
        "parameters": total_parameters(config),
        "bytes_read": bytes_read(config, context),
        **figures(seconds),
    }


def growth(family: str, rounds: int, steps: int) -> dict:
    """How much longer a token of ours takes behind a longer cache, in turns, and how many more bytes it reads."""
    config, contexts = DECODING[family]
    model = pair(config)["ours"].eval()
    decoders = {
        str(context): decoder(model, torch.randint(0, config.vocab, (1, context)), steps) for context in contexts
    }
    seconds = in_turns(list(decoders), lambda context: decoders[context]()[0], rounds, check=lambda: None)
    shortest, longest = (seconds[str(context)] for context in (contexts[0], contexts[-1]))
    return {
        "family": family,
        "what": "decode time against bytes read",
        "size": f"from {contexts[0]:,} to {contexts[-1]:,} tokens cached",
        "bytes_times": round(bytes_read(config, contexts[-1]) / bytes_read(config, contexts[0]), 4),
        "time_times": quartiles([long / short for short, long in zip(shortest, longest, strict=True)]),
        "milliseconds": {context: round(1e3 * statistics.median(times), 4) for context, times in seconds.items()},
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
    return {
        "milliseconds": {who: round(1e3 * statistics.median(times), 4) for who, times in seconds.items()},
        "times_as_fast": quartiles(ratios),
    }


def quartiles(ratios: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def show(results: list[dict], console: Console) -> None:
    table = Table(title="Ours and transformers' model, the same weights: milliseconds, and how many times as fast")
    for column in ("family", "what", "size", "parameters", "ours", "transformers", "times as fast (quartiles)", "goal"):
        table.add_column(column, justify="left" if column in ("family", "what", "size") else "right")
    for row in results:
        ratio, goal = row["times_as_fast"], GOALS[row["family"]][row["what"]]
        met = "met" if ratio["median"] >= goal else "MISSED"
        table.add_row(
            row["family"],
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
    parser.add_argument("--families", nargs="+", choices=list(DECODING), default=list(DECODING), help="that decode")
    parser.add_argument("--contexts", type=int, nargs="+", help="tokens in the cache when decoding")
    args = parser.parse_args()
    results = [training(name, args.rounds) for name in args.sizes]
    for family in args.families:
        for context in args.contexts or DECODING[family][1]:
            results.append(decoding(family, context, args.rounds, args.steps))
    show(results, Console(width=150))
    growths = [growth(family, args.rounds, args.steps) for family in args.families]
    for row in growths:
        time_times = "{median:.2f} ({low:.2f}-{high:.2f})".format(**row["time_times"])
        print(f"{row['family']}, {row['size']}: {time_times} times the time, {row['bytes_times']:.2f} times the bytes")
    if args.out:
        about = record.circumstances()
        about["versions"]["transformers"] = transformers.__version__
        reached: dict[str, dict[str, bool]] = {family: {} for family in GOALS}
        for row in results:
            fast = row["times_as_fast"]["median"] >= GOALS[row["family"]][row["what"]]
            reached[row["family"]][row["what"]] = reached[row["family"]].get(row["what"], True) and fast
        record.write(args.out, about | {"goals": GOALS, "met": reached, "results": results, "growth": growths})


if __name__ == "__main__":
    main()
