"""What does each part of a transformer block do? A small model with one part changed at a time, trained and compared.

    python benchmarks/block_parts.py [--out benchmarks/results/block_parts.json]

The model is tiny-dense with two layers and a context of 128. Each arm is that model with one change (ARMS says which),
trained on the embedded corpus with the same settings, the same batches in the same order, three seeds. Where a norm stands
is asked a second time of a narrow model of 24 layers, since its case is one of depth. One learning rate serves all arms; it
was tuned for the whole model, so an arm that would want another one looks worse than it could.

The arm without a mask is measured twice: as it was trained, with the next token in plain sight, and with the mask back,
which is what counts. An interrupted record goes on where it stopped: finished runs are kept in .cache/.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import record
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from course.model import Attention, Block, ModelConfig, Transformer, apply_rope
from course.training import data
from course.training.trainer import TrainSettings, adamw, evaluate, take_step

RULE = (
    "An arm's result is the validation loss after its last step, with the causal mask on, mean over the seeds; its spread "
    "is the largest minus the smallest over the seeds. An arm differs from the whole model of its depth when the two means "
    "differ by more than the larger of the two spreads; else, or with one seed, the comparison is not resolved. An arm of "
    "which a seed ends with a loss that is not a number, or above that of an even guess, has diverged."
)
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text


class LayerNorm(nn.Module):
    """RMSNorm with the mean subtracted first; no bias, so that nothing else differs."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, eps=self.eps)


class PlainMLP(nn.Module):
    """down(silu(up(x))): two matrices, half as wide again as SwiGLU's three, so equal in parameters and FLOPs."""

    def __init__(self, width: int, hidden: int, layers: int):
        super().__init__()
        self.up = nn.Parameter(0.02 * torch.randn(hidden * 3 // 2, width))
        self.down = nn.Parameter(0.02 / (2 * layers) ** 0.5 * torch.randn(width, hidden * 3 // 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x @ self.up.T) @ self.down.T


class Nothing(nn.Module):
    """A part that adds nothing to the stream."""

    def forward(self, x: Tensor, *rest) -> Tensor:
        return torch.zeros_like(x)


class PostNorm(Block):
    """norm(x + part(x)), as in 2017. `feed_forward_norm` and `attention_norm` come after their parts."""

    def forward(self, x, cos, sin, cache):
        x = self.attention_norm(x + self.attention(x, cos, sin, cache))
        return self.feed_forward_norm(x + self.feed_forward(x)), None


class NoResidual(Block):
    """part(norm(x)): what a part returns replaces the stream."""

    def forward(self, x, cos, sin, cache):
        x = self.attention(self.attention_norm(x), cos, sin, cache)
        return self.feed_forward(self.feed_forward_norm(x)), None


class PreNorm(Block):
    """The block as it is, for feed-forward layers of another class than SwiGLU."""

    def forward(self, x, cos, sin, cache):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return x + self.feed_forward(self.feed_forward_norm(x)), None


class NoPositions(Attention):
    """Queries and keys that do not turn."""

    def forward(self, x, cos, sin, cache=None):
        return super().forward(x, torch.ones_like(cos), torch.zeros_like(sin), cache)


class NoMask(Attention):
    """Every position sees every other."""

    def forward(self, x, cos, sin, cache=None):
        q, k, v = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
        return self.output(y.transpose(1, 2).flatten(2))


def whole(model: Transformer) -> None:
    pass


def no_norm(model: Transformer) -> None:
    model.norm = nn.Identity()
    for block in model.blocks:
        block.attention_norm = block.feed_forward_norm = nn.Identity()


def layer_norm(model: Transformer) -> None:
    c = model.config
    model.norm = LayerNorm(c.width, c.norm_eps)
    for block in model.blocks:
        block.attention_norm, block.feed_forward_norm = (LayerNorm(c.width, c.norm_eps) for _ in range(2))


def post_norm(model: Transformer) -> None:
    model.norm = nn.Identity()
    for block in model.blocks:
        block.__class__ = PostNorm


def no_residual(model: Transformer) -> None:
    for block in model.blocks:
        block.__class__ = NoResidual


def no_positions(model: Transformer) -> None:
    for block in model.blocks:
        block.attention.__class__ = NoPositions


def no_mask(model: Transformer) -> None:
    for block in model.blocks:
        block.attention.__class__ = NoMask


def no_attention(model: Transformer) -> None:
    for block in model.blocks:
        block.attention = Nothing()


def no_feed_forward(model: Transformer) -> None:
    for block in model.blocks:
        block.__class__, block.feed_forward = PreNorm, Nothing()


def plain_mlp(model: Transformer) -> None:
    c = model.config
    for block in model.blocks:
        block.__class__, block.feed_forward = PreNorm, PlainMLP(c.width, c.mlp_width, c.layers)


ARMS: dict[str, tuple[Callable[[Transformer], None], str]] = {
    "whole": (whole, "tiny-dense with two layers, a context of 128"),
    "no norm": (no_norm, "all RMSNorms left out, the last one too"),
    "LayerNorm": (layer_norm, "every RMSNorm a LayerNorm without bias"),
    "post-norm": (post_norm, "norm(x + part(x)) instead of x + part(norm(x))"),
    "no residual": (no_residual, "part(norm(x)), nothing added"),
    "no RoPE": (no_positions, "queries and keys do not turn"),
    "no mask": (no_mask, "trained with all positions in sight, measured with the mask"),
    "no attention": (no_attention, "feed-forward layers alone: each token for itself"),
    "no feed-forward": (no_feed_forward, "attention alone"),
    "plain MLP": (plain_mlp, "two matrices and silu instead of three and a gate, equal parameters"),
    "deep": (whole, "the whole model with 24 layers of width 64"),
    "deep post-norm": (post_norm, "norm(x + part(x)) with 24 layers of width 64"),
}
SHALLOW = replace(ModelConfig.preset("tiny-dense"), layers=2, context=128)
DEEP = replace(SHALLOW, layers=24, width=64, mlp_width=128)


def base_of(arm: str) -> str:
    """The arm that an arm is compared with: the whole model of its depth."""
    return "deep" if arm.startswith("deep") else "whole"


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch=16, seed=seed, evaluate_every=max(1, steps // 6), evaluation_sequences=128)


def build(arm: str, config: ModelConfig, seed: int) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config)
    ARMS[arm][0](model)
    return model


def run(arm: str, settings: TrainSettings, text: data.Data, work: Path) -> dict:
    """One training run and what it measured, or what an earlier one left in `work`."""
    kept = work / f"{arm.replace(' ', '_')}-{settings.steps}-{settings.seed}-{text.key[:8]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    config = replace(DEEP if base_of(arm) == "deep" else SHALLOW, vocab=text.tokenizer.vocab)
    model, steps, curve = build(arm, config, settings.seed), [], []
    optimizer = adamw(model, settings)
    for step in range(1, settings.steps + 1):
        row, _ = take_step(model, optimizer, text, settings, step, before=0.0)
        if row.validation is not None:
            steps.append(step)
            curve.append(row.validation)
    result = {
        "seed": settings.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step": steps,
        "as_trained": curve,
        "validation": curve[-1],
    }
    if arm == "no mask":
        for block in model.blocks:
            block.attention.__class__ = Attention
        result["validation"] = evaluate(model, text, settings.evaluation_sequences)
    print(f"{arm:16} seed {settings.seed}: loss {result['validation']:.4f}", flush=True)
    record.write(kept, result)
    return result


def verdict(base: Sequence[float], other: Sequence[float], even_guess: float) -> dict:
    """RULE, applied: `other` against `base`, both final losses by seed."""
    means = [statistics.mean(losses) for losses in (base, other)]
    spread = max(max(losses) - min(losses) for losses in (base, other))
    loses = means[1] - means[0]
    if any(not math.isfinite(loss) or loss > even_guess for loss in other):
        says = "diverged"
    elif len(base) > 1 and abs(loses) > spread:
        says = "worse" if loses > 0 else "better"
    else:
        says = "not resolved"
    return {"verdict": says, "loses_nats": loses, "largest_spread": spread, "mean": means[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--work", type=Path, default=Path(".cache/block_parts"), help="where runs are kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further run after so many seconds")
    args = parser.parse_args()
    assert all(base_of(arm) in args.arms for arm in args.arms), "every arm is compared with a whole model: name it too"
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)

    runs, begun = {arm: [] for arm in args.arms}, time.monotonic()
    for seed in args.seeds:
        for arm in args.arms:
            if time.monotonic() - begun > args.seconds:
                print("Time is up; the same command goes on from here.")
                return
            runs[arm].append(run(arm, settings_for(args.steps, seed), text, args.work))
    losses = {arm: [result["validation"] for result in results] for arm, results in runs.items()}
    even_guess = math.log(text.tokenizer.vocab)
    others = [arm for arm in args.arms if arm != base_of(arm)]
    verdicts = {arm: verdict(losses[base_of(arm)], losses[arm], even_guess) for arm in others}

    table = Table(title=f"Validation loss after {args.steps} steps, nats a token, mean over the seeds")
    for name in ("arm", "loss", "against the base", "largest spread", "verdict"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm in sorted({base_of(arm) for arm in args.arms}):
        table.add_row(arm, f"{statistics.mean(losses[arm]):.3f}", "", "", "")
    for arm, v in verdicts.items():
        table.add_row(arm, f"{v['mean']:.3f}", f"{v['loses_nats']:+.3f}", f"{v['largest_spread']:.3f}", v["verdict"])
    Console(width=110).print(table)
    if args.out:
        settings = asdict(settings_for(args.steps, seed=0))
        settings.pop("seed")
        arms = {arm: {"what": ARMS[arm][1], "runs": runs[arm]} for arm in args.arms}
        result = {"rule": RULE, "seeds": list(args.seeds), "settings": settings, "even_guess": even_guess}
        record.write(args.out, record.circumstances() | result | {"verdicts": verdicts, "arms": arms})


if __name__ == "__main__":
    main()
