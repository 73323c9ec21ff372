"""The model of lesson 02, trained longer: what its heads look at, and what happens beyond its context.

    python benchmarks/look_inside.py [--out benchmarks/results/look_inside.json]

tiny-dense with two layers and a context of 128, three seeds, on the embedded corpus. Then, on text that it has not seen:

heads    where each head's attention goes, on average: to the token itself, the one before, the first of the window, and to
         the token *after* an earlier occurrence of the current one, which is what an induction head looks at
maps     the whole attention of the first seed on one function of the standard library, collections.UserString.find
layouts  the loss with the pairs of RoPE read in the other layout
beyond   the loss by position on windows four times as long as the context: as it is, with positions squeezed (linear
         scaling) and with YaRN, neither of them trained for; and the same tokens in a window that fits

An interrupted record goes on where it stopped: checkpoints are kept in .cache/.
"""

import argparse
import collections
import inspect
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import record
import torch
import torch.nn.functional as F
from torch import Tensor

from course.model import LinearScaling, ModelConfig, Transformer, YarnScaling, apply_rope, rope_table
from course.training import data
from course.training.checkpoint import NAME
from course.training.trainer import TrainSettings, train

RULE = (
    "A difference is taken within a seed, and is resolved when its mean over the seeds exceeds the largest minus the "
    "smallest over the seeds. Beyond the context: mean loss of the last 64 tokens of windows of 512, minus the loss of the "
    "same tokens when the window begins 128 tokens before its end, as in training. Layouts: loss in the other layout minus "
    "loss in the one trained with, within the context."
)
SEEDS = (0, 1, 2)
VOCAB, CONTEXT, TIMES, BINS = 1024, 128, 4, 32
WINDOWS = 96  # of four contexts each, spread over the validation text
SCALINGS = {
    "as it is": None,
    "linear": LinearScaling(factor=float(TIMES)),
    "yarn": YarnScaling(factor=float(TIMES), original_context=CONTEXT),
}
CONFIG = replace(ModelConfig.preset("tiny-dense"), layers=2, context=CONTEXT)


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch=16, seed=seed, evaluate_every=250, evaluation_sequences=64)


def windows(tokens, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `count` windows, spread evenly."""
    starts = torch.linspace(0, len(tokens) - length - 1, count).long()
    window = torch.from_numpy(tokens.astype("int64"))[starts[:, None] + torch.arange(length + 1)]
    return window[:, :-1], window[:, 1:]


def changed(model: Transformer, **changes) -> Transformer:
    """A model with the same weights and another config."""
    other = Transformer(replace(model.config, **changes))
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def losses(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of every position of every window."""
    rows = [
        F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="none").view(t.shape)
        for i, t in zip(inputs.split(16), targets.split(16), strict=True)
    ]
    return torch.cat(rows)


@torch.no_grad()
def attention_weights(model: Transformer, tokens_BS: Tensor) -> Tensor:
    """[layers, B, H, S, S]: what every head of every layer gives to every earlier position."""
    c, S = model.config, tokens_BS.shape[1]
    cos, sin = rope_table(torch.arange(S), c.head_width, c.rope_theta)
    x, out = model.embedding(tokens_BS), []
    for block in model.blocks:
        h, a = block.attention_norm(x), block.attention
        q, k = (
            apply_rope(linear(h).unflatten(-1, (c.heads, -1)).transpose(1, 2), cos, sin) for linear in (a.query, a.key)
        )
        scores = q @ k.mT / c.head_width**0.5
        out.append(scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf).softmax(-1))
        x, _ = block(x, cos, sin, None)
    return torch.stack(out)


def habits(weights: Tensor, tokens_BS: Tensor) -> dict[str, list[list[float]]]:
    """For each layer and head: its mean attention to self, previous and first, its induction, and the keys it uses."""
    S = tokens_BS.shape[1]
    late = torch.arange(S) >= 8  # earlier on, the first token is also one of the nearest
    same = tokens_BS[:, :, None] == tokens_BS[:, None, :]
    after = F.pad(same, (1, 0))[:, :, :-1] & torch.ones(S, S, dtype=torch.bool).tril()  # key j: token j - 1 is mine
    asked = after.any(-1)[:, None]
    found = {
        "self": weights.diagonal(0, -2, -1)[..., late].mean((1, 3)),
        "previous": weights.diagonal(-1, -2, -1)[..., late[1:]].mean((1, 3)),
        "first": weights[..., late, 0].mean((1, 3)),
        "induction": (weights * after[:, None]).sum(-1).where(asked, 0).sum((1, 3)) / asked.sum(),
        "keys used": torch.special.entr(weights).sum(-1).exp()[..., late].mean((1, 3)),
    }
    return {name: [[round(v, 4) for v in row] for row in values.tolist()] for name, values in found.items()}


def look(model: Transformer, text: data.Data) -> dict:
    """Everything that is measured on one trained model."""
    inputs, targets = windows(text.validation, WINDOWS, TIMES * CONTEXT)
    short = inputs[:, :CONTEXT], targets[:, :CONTEXT]
    other = changed(model, rope_layout="interleaved")
    last, half = (inputs[:, -CONTEXT:], targets[:, -CONTEXT:]), CONTEXT // 2
    at_home = losses(model, *last)[:, half:].mean()
    result = {
        "within": losses(model, *short).mean().item(),
        "other_layout": losses(other, *short).mean().item(),
        "habits": habits(attention_weights(model, short[0]), short[0]),
        "by_position": {},
        "beyond": {},
    }
    for name, scaling in SCALINGS.items():
        each = losses(changed(model, context=TIMES * CONTEXT, rope_scaling=scaling), inputs, targets).mean(0)
        result["by_position"][name] = [round(part.mean().item(), 4) for part in each.chunk(BINS)]
        result["beyond"][name] = (each[-half:].mean() - at_home).item()
    return result


def maps(model: Transformer, text: data.Data) -> dict:
    """The attention of every head on one function, in hundredths: a text a head, "100/37 63/..." row by row."""
    source = inspect.getsource(collections.UserString.find)
    ids = text.tokenizer.encode(source)
    weights = attention_weights(model, torch.tensor([ids]))[:, 0]

    def written(head: Tensor) -> str:
        rows = (100 * head).round().int().tolist()
        return "/".join(" ".join(map(str, row[: i + 1])) for i, row in enumerate(rows))

    tokens = [text.tokenizer.decode([i]) for i in ids]
    return {"source": source, "tokens": tokens, "hundredths": [[written(head) for head in layer] for layer in weights]}


def verdict(differences: Sequence[float]) -> dict:
    """RULE, applied."""
    mean, spread = statistics.mean(differences), max(differences) - min(differences)
    return {"mean": mean, "spread": spread, "resolved": len(differences) > 1 and abs(mean) > spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--seconds", type=float, help="train no longer than this, then stop; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path(".cache/look_inside"), help="where runs are kept")
    args = parser.parse_args()
    source = args.source if args.source in ("code", "prose") else Path(args.source)
    text = data.load(source, VOCAB, args.work)
    config = replace(CONFIG, vocab=text.tokenizer.vocab)
    runs, first = [], None
    for seed in args.seeds:
        settings, folder = settings_for(args.steps, seed), args.work / f"{args.steps}-{seed}-{text.key[:8]}"
        model, rows = train(config, text, settings, folder, (folder / NAME).exists(), args.seconds)
        print(f"seed {seed}: step {rows[-1].step}, loss {rows[-1].loss:.3f}", flush=True)
        if rows[-1].step < args.steps:
            print("Time is up; the same command goes on from here.")
            return
        first = first or model
        runs.append({"seed": seed, "seconds": round(rows[-1].seconds, 1), **look(model, text)})
    verdicts = {"other layout": verdict([run["other_layout"] - run["within"] for run in runs])}
    verdicts |= {f"beyond, {name}": verdict([run["beyond"][name] for run in runs]) for name in SCALINGS}
    for name, v in verdicts.items():
        print(
            f"{name:18} {v['mean']:+.3f} nats, spread {v['spread']:.3f}: {'resolved' if v['resolved'] else 'not resolved'}"
        )
    if args.out:
        about = {"rule": RULE, "steps": args.steps, "seeds": list(args.seeds), "config": asdict(config)}
        record.write(
            args.out, record.circumstances() | about | {"verdicts": verdicts, "runs": runs, "maps": maps(first, text)}
        )


if __name__ == "__main__":
    main()
