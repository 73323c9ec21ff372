"""Which way of balancing? A small DeepSeek mixture with every way, and with the groups open or closed.

    python benchmarks/routers.py [--seconds 170] [--out benchmarks/results/routers.json]

tiny-deepseek-v3, cut to three layers (two of them mixtures), a context of 128, and 32 routed experts of width 32, four for
each token, beside one shared expert. Eight arms, three seeds each:

none          nothing balances
batch         the balance loss over the whole batch, strength 0.01
batch strong  the same, strength 0.1
sequence      the balance loss over each sequence, strength 0.01
bias          the selection bias alone, moved by 0.01 after each step
mix           as DeepSeek-V3: the bias, and the loss over each sequence with strength 0.0001
mix 2 of 4    as mix, and a token chooses from the two best of four groups of eight experts
mix 1 of 4    as mix, and from the best of four groups

A strength multiplies a loss that is 1 at balance, so batch and sequence pull equally hard and differ in scope alone. Every
finished run is kept in .cache/; an interrupted script goes on with the next one. With --seconds it starts no further
run after that time, and says how many are left.
"""

import argparse
import ast
import io
import itertools
import json
import statistics
import time
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from course.model import ModelConfig, Routing, Transformer, active_parameters, expert_counts, total_parameters
from course.training import corpus, data
from course.training.trainer import TrainSettings, train

RULE = (
    "Each measure of an arm is its mean over the seeds, its spread the largest minus the smallest over the seeds. Two arms "
    "differ in a measure when their means differ by more than the larger of their two spreads; else, or with one seed, the "
    "comparison is not resolved. MaxVio of some tokens is the busiest expert's load over the mean load, minus one, averaged "
    "over the layers. Measures: loss, on validation text after the last step; step_violation, MaxVio of a training batch, mean over "
    "the last 20 steps; global_violation, MaxVio of all validation tokens together; sequence_violation, MaxVio of one validation "
    "sequence, mean over them; groups_met, in how many of the four groups a token's experts lie, mean over tokens and layers; "
    "specialisation, what an expert of a token tells about its kind (code, docstring, comment), the mutual information in "
    "bits, mean over the layers."
)
BASE = replace(
    ModelConfig.preset("tiny-deepseek-v3"),
    layers=3,
    context=128,
    experts=32,
    top_k=4,
    expert_width=32,
    groups=1,
    top_groups=1,
    selection_bias=False,
    bias_rate=0.0,
    sequence_balance_weight=0.0,
)
K, GROUPS = BASE.top_k, 4  # `balance_weight` multiplies a loss that is K at balance
BIAS = {"selection_bias": True, "bias_rate": 0.01}
MIX = BIAS | {"sequence_balance_weight": 1e-4}
ARMS = {
    "none": {},
    "batch": {"balance_weight": 0.01 / K},
    "batch strong": {"balance_weight": 0.1 / K},
    "sequence": {"sequence_balance_weight": 0.01},
    "bias": BIAS,
    "mix": MIX,
    "mix 2 of 4": MIX | {"groups": GROUPS, "top_groups": 2},
    "mix 1 of 4": MIX | {"groups": GROUPS, "top_groups": 1},
}
MEASURES = ("loss", "step_violation", "global_violation", "sequence_violation", "groups_met", "specialisation")
COMPARED = (
    *(("none", arm) for arm in ("batch", "batch strong", "sequence", "bias", "mix")),
    *(("batch", "sequence"), ("batch", "bias"), ("batch", "batch strong"), ("bias", "mix")),
    *(("mix", "mix 2 of 4"), ("mix", "mix 1 of 4"), ("mix 2 of 4", "mix 1 of 4")),
)
KINDS = ("code", "docstring", "comment")
SEEDS = (0, 1, 2)
VOCAB = 1024  # token ids, learned from the text
LAST = 20  # steps that are averaged
SEQUENCES = 128  # validation windows whose routing is looked at


def settings_for(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch=16, seed=seed, evaluate_every=steps, evaluation_sequences=2 * SEQUENCES)


def run(arm: str, steps: int, seed: int, text: data.Data) -> dict:
    """Train once; what came out, and how the load was spread on the way."""
    config = replace(BASE, vocab=text.tokenizer.vocab, **ARMS[arm])
    counts = []

    def note(_, routings: list[Routing]) -> None:
        counts.append(torch.stack([expert_counts(routing.indices_TK, config.experts) for routing in routings]))

    model, rows = train(config, text, settings_for(steps, seed), on_step=note)
    violations = [row.max_violation for row in rows]
    every = [torch.stack(counts[i : i + LAST]).sum(0) for i in range(0, steps, LAST)]
    return {
        "arm": arm,
        "seed": seed,
        "loss": rows[-1].validation,
        "step_violation": statistics.mean(violations[-LAST:]),
        **look(model, text),
        "max_violation": [round(v, 4) for v in violations[::4]],
        "loads": [shares(part) for part in (every if seed == 0 else every[-1:])],
        "seconds": round(rows[-1].seconds, 1),
    }


@torch.no_grad()
def look(model: Transformer, text: data.Data) -> dict:
    """The routing of text that it has not seen."""
    E = model.config.experts
    batches = data.validation_batches(text, model.config.context, SEQUENCES)
    per_batch = [[routing.indices_TK for routing in model.outputs(inputs).routings] for inputs, _ in batches]
    chosen_LTK = torch.stack([torch.cat(layer) for layer in zip(*per_batch, strict=True)])
    chosen_LBSK = chosen_LTK.unflatten(1, (-1, model.config.context))
    counts_LKE = kinds_by_expert(model, text)
    return {
        "global_violation": violation(chosen_LTK, E),
        "sequence_violation": statistics.mean(violation(chosen_LBSK[:, b], E) for b in range(chosen_LBSK.shape[1])),
        "groups_met": groups_met(chosen_LTK, E),
        "specialisation": statistics.mean(information(counts_KE) for counts_KE in counts_LKE),
        "kinds": counts_LKE.tolist(),
    }


def violation(chosen_LTK: Tensor, experts: int) -> float:
    """MaxVio of these tokens, mean over the layers."""
    loads_LE = torch.stack([expert_counts(layer, experts) for layer in chosen_LTK]).double()
    return (loads_LE.amax(1) / loads_LE.mean(1) - 1).mean().item()


def groups_met(chosen_LTK: Tensor, experts: int) -> float:
    """In how many groups a token's experts lie: to so many places its vector travels."""
    met = torch.zeros(*chosen_LTK.shape[:2], GROUPS).scatter_(2, chosen_LTK // (experts // GROUPS), 1.0)
    return met.sum(-1).mean().item()


def information(counts_KE: Tensor) -> float:
    """Mutual information of row and column in bits."""
    joint = counts_KE.double() / counts_KE.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return torch.where(joint > 0, joint * (joint / independent).log2(), 0.0).sum().item()


def kinds_by_expert(model: Transformer, text: data.Data) -> Tensor:
    """[layers, kinds, experts]: how many pairs of tokens of a kind each expert received, on unseen documents."""
    S, E, found = model.config.context, model.config.experts, []
    for ids, kinds in labelled(text):
        full = len(ids) // S * S
        kinds_T = torch.tensor([KINDS.index(kind) if kind else -1 for kind in kinds[:full]])
        routings = model.outputs(torch.tensor(ids[:full]).view(-1, S)).routings
        pairs = [kinds_T[kinds_T >= 0, None] * E + routing.indices_TK[kinds_T >= 0] for routing in routings]
        found.append(torch.stack([pair_TK.flatten().bincount(minlength=len(KINDS) * E) for pair_TK in pairs]))
    return torch.stack(found).sum(0).unflatten(1, (len(KINDS), E))


def labelled(text: data.Data, documents: int = 12) -> Iterator[tuple[list[int], list[str | None]]]:
    """Token ids of some unseen documents of the standard library, and the kind of each token that is not blank."""
    held_out = corpus.split(corpus.embedded("code"))[1]
    fit = (d.text for d in held_out if d.text.isascii() and 8_000 < len(d.text) < 30_000)
    for document in itertools.islice(fit, documents):
        ids, of_character, place, kinds = text.tokenizer.encode(document), kinds_of(document), 0, []
        for piece in (text.tokenizer.decode([i]) for i in ids):
            inked = [kind for kind, c in zip(of_character[place:], piece, strict=False) if not c.isspace()]
            kinds.append(inked[0] if inked else None)
            place += len(piece)
        yield ids, kinds


def kinds_of(source: str) -> list[str]:
    """The kind of every character: a comment, a string that is a statement of its own, or code."""
    lines = source.splitlines(keepends=True)
    found = [["code"] * len(line) for line in lines]
    spans = [
        (*t.start, *t.end, "comment")
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    ]
    spans += [
        (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset, "docstring")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for top, left, bottom, right, kind in spans:
        for row in range(top - 1, bottom):
            start = left if row == top - 1 else 0
            end = right if row == bottom - 1 else len(lines[row])
            found[row][start:end] = [kind] * (end - start)
    return [kind for line in found for kind in line]


def shares(counts_LE: Tensor) -> list[list[float]]:
    """The share of each layer's pairs."""
    return [[round(count / sum(layer), 4) for count in layer] for layer in counts_LE.tolist()]


def compared(one: Sequence[float], other: Sequence[float]) -> dict:
    """RULE, applied to one measure of two arms."""
    difference = statistics.mean(other) - statistics.mean(one)
    spread = max(max(values) - min(values) for values in (one, other))
    resolved = min(len(one), len(other)) > 1 and abs(difference) > spread
    return {"difference": difference, "largest_spread": spread, "resolved": resolved}


def verdicts(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Every measure of every pair in COMPARED."""
    return {
        measure: {
            f"{one} -> {other}": compared([r[measure] for r in runs[one]], [r[measure] for r in runs[other]])
            for one, other in COMPARED
        }
        for measure in MEASURES
    }


def means(runs: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    return {measure: {arm: statistics.mean(r[measure] for r in of) for arm, of in runs.items()} for measure in MEASURES}


def show(runs: dict[str, list[dict]], console: Console) -> None:
    table = Table(title="Means over the seeds")
    for name in ("", *MEASURES):
        table.add_column(name.replace("_", " "), justify="right")
    found = means(runs)
    for arm in runs:
        table.add_row(arm, *(f"{found[measure][arm]:.3f}" for measure in MEASURES))
    console.print(table)
    for measure, pairs in verdicts(runs).items():
        said = [f"{pair} {v['difference']:+.3f}" for pair, v in pairs.items() if v["resolved"]]
        console.print(f"{measure}, resolved: {'; '.join(said) or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--seconds", type=float, help="start no further run after so many")
    parser.add_argument("--work", type=Path, default=Path(".cache/routers"), help="where runs are kept")
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
            f"{number + 1}/{len(wanted)} {arm} seed {seed}: loss {result['loss']:.4f}, {result['seconds']} s",
            flush=True,
        )

    runs = {arm: [json.loads(kept[arm, seed].read_text()) for seed in args.seeds] for arm in ARMS}
    show(runs, Console(width=130))
    if args.out:
        config = replace(BASE, vocab=text.tokenizer.vocab)
        result = {
            "rule": RULE,
            "seeds": list(args.seeds),
            "settings": asdict(settings_for(args.steps, 0)),
            "arms": ARMS,
        }
        result |= {"model": {"total": total_parameters(config), "active": active_parameters(config)}, "kinds": KINDS}
        record.write(
            args.out, record.circumstances() | result | {"means": means(runs), "verdicts": verdicts(runs), "runs": runs}
        )


if __name__ == "__main__":
    main()
