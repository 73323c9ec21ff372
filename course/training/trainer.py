"""Train a model: a schedule, gradient clipping, evaluation, checkpoints, a log.

A run is a function of its config, settings and data. Killed at any moment it loses the steps since the last
checkpoint, and resumed it gives the losses of an unbroken run, bit for bit on the same machine's CPU.

How many ranks train it (`course.training.ranks`) changes no more than rounding: each takes its part of every batch,
and losses, gradients and loads are those of the whole batch. A capacity factor is the exception: it limits what an
expert takes of one rank's part, so that which pairs are dropped depends on the cut.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course.model import Loss, ModelConfig, Routing, Transformer, balanced_over, bias_step, expert_counts
from course.training import ranks
from course.training.checkpoint import Checkpoint
from course.training.data import Data, require_length, training_batch, validation_batches
from course.training.errors import TrainingError
from course.training.interrupt import deferred
from course.training.log import Row, open_log
from course.training.optimizers import MuonAndAdamW, Optimizer, adamw
from course.training.schedule import learning_rate
from course.training.settings import TrainSettings
from course.training.sharding import load, spread, whole


class Result(NamedTuple):
    model: Transformer
    rows: list[Row]


OnStep = Callable[[Row, list[Routing]], None]


def train(
    config: ModelConfig,
    data: Data,
    settings: TrainSettings = TrainSettings(),
    out: Path | None = None,
    resume: bool = False,
    seconds: float | None = None,
    on_step: OnStep | None = None,
    progress: bool = False,
    sharding: str = "none",
    device: torch.device = torch.device("cpu"),
) -> Result:
    """Train from scratch, or with `resume` from the checkpoint in `out`, until the last step or for `seconds`.

    config: its vocab must be the tokenizer's, `replace(config, vocab=data.tokenizer.vocab)`.
    out: folder for checkpoint.pt and log.csv; None keeps nothing.
    on_step: called after every step, on every rank, with its row and the routings of the rank's own tokens, one a
    mixture layer.
    sharding: whether each of several ranks holds a copy of the model ("none") or a share of it ("full").
    device: where the model is trained and stays; several ranks give `ranks.device()`.
    Raises: TrainingError when data, config and checkpoint do not go together; KeyboardInterrupt on Ctrl-C, after the
    step in hand was finished and a checkpoint written.
    """
    assert out or not resume, "to resume, name the folder that holds the checkpoint"
    ranks.require_even(settings.batch)
    checkpoint = Checkpoint.read(out) if resume else None
    if checkpoint:
        checkpoint.require(data=data.key, config=vars(config), settings=asdict(settings))
    if config.vocab != data.tokenizer.vocab:
        raise TrainingError(f"the model has a vocabulary of {config.vocab}, the text one of {data.tokenizer.vocab}")
    require_length(data, config.context)
    torch.manual_seed(settings.seed)
    model = Transformer(config)
    rows: list[Row] = []
    if checkpoint:
        model.load_state_dict(checkpoint.model)
        torch.set_rng_state(checkpoint.rng)
        rows = [Row(*row) for row in checkpoint.rows]
    loss = spread(model.to(device), sharding)
    optimizer = MuonAndAdamW(model, settings) if settings.optimizer == "muon" else adamw(model, settings)
    if checkpoint:
        load(optimizer, checkpoint.optimizer)

    def save() -> None:
        if out:
            state = Checkpoint.of(model, optimizer, settings, data, rows)
            if ranks.first():
                state.write(out)

    started = time.perf_counter()
    shown = progress and ranks.first()
    with (
        open_log(out if ranks.first() else None, rows) as log,
        deferred() as pressed,
        tqdm(total=settings.steps, initial=len(rows), desc="training", unit="step", disable=not shown) as bar,
    ):
        for step in range(len(rows) + 1, settings.steps + 1):
            row, routings = take_step(model, optimizer, data, settings, step, rows[-1].seconds if rows else 0.0, loss)
            rows.append(row)
            log(row)
            bar.update()
            bar.set_postfix(loss=f"{row.loss:.3f}", refresh=False)
            if on_step:
                on_step(row, routings)
            interrupted = ranks.any_says(pressed())
            late = seconds is not None and ranks.any_says(time.perf_counter() - started >= seconds)
            stop = interrupted or late
            if stop or step % settings.checkpoint_every == 0 or step == settings.steps:
                save()
            if interrupted:
                raise KeyboardInterrupt(f"stopped after step {step}")
            if stop:
                break
    return Result(model, rows)


@torch.no_grad()
def evaluate(model: Transformer, data: Data, sequences: int = 64) -> float:
    """Mean cross entropy in nats a token over fixed windows of the validation text, in float32.

    Several ranks share the windows, so all of them must ask.
    """
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for windows in validation_batches(data, model.config.context, sequences):
        inputs_BS, targets_BS = map(ranks.part, windows)
        counted = targets_BS.numel()
        if not counted:  # fewer windows than ranks; a sharded model computes on all ranks or on none
            inputs_BS, targets_BS = (window_BS[:1] for window_BS in windows)
        total += model.loss(inputs_BS.to(device), targets_BS.to(device)).cross_entropy.item() * counted
        tokens += counted
    total, tokens = ranks.total(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return total / tokens


def take_step(
    model: Transformer,
    optimizer: Optimizer,
    data: Data,
    settings: TrainSettings,
    step: int,
    before: float,
    loss: Callable[[Tensor, Tensor], Loss] | None = None,
) -> tuple[Row, list[Routing]]:
    """One training step, timed, and what it measured. `before`: seconds spent on the steps before it.

    loss: what `spread` returned for this model; without it, `model.loss`.
    """
    s, config, device = settings, model.config, next(model.parameters()).device
    started = time.perf_counter()
    rate = learning_rate(step, s.steps, s.learning_rate, s.warmup, s.final)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    windows = training_batch(data, config.context, s.batch, s.seed, step)
    inputs_BS, targets_BS = (ranks.part(window_BS).to(device) for window_BS in windows)
    with torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16"), balanced_over(ranks.mean):
        measured = (loss or model.loss)(inputs_BS, targets_BS)
    measured.total.backward()
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip))
    optimizer.step()
    model.zero_grad()
    counts_LE = _loads(measured.routings, config.experts)
    if config.bias_rate and config.selection_bias:
        _move_biases(model, counts_LE)
    elapsed = time.perf_counter() - started
    measure = step % s.evaluate_every == 0 or step in (1, s.steps)
    row = Row(
        step=step,
        tokens=step * s.batch * config.context,
        seconds=before + elapsed,
        loss=ranks.mean(measured.cross_entropy).item(),
        learning_rate=rate,
        gradient_norm=norm.item(),
        max_violation=_max_violation(counts_LE),
        validation=evaluate(model, data, s.evaluation_sequences) if measure else None,
    )
    return row, measured.routings


def _loads(routings: list[Routing], experts: int) -> list[Tensor]:
    """How many pairs each expert of each mixture layer received, of all ranks' tokens."""
    if not routings:
        return []
    counts_LE = torch.stack([expert_counts(routing.indices_TK, experts) for routing in routings])
    return list(ranks.total(counts_LE))


@torch.no_grad()
def _move_biases(model: Transformer, counts_LE: list[Tensor]) -> None:
    """The bias of every mixture layer, by the loads of the whole batch: the same on all ranks."""
    for mixture, counts_E in zip(model.mixtures(), counts_LE, strict=True):
        mixture.bias_E.copy_(bias_step(mixture.bias_E, counts_E, model.config.bias_rate))


def _max_violation(counts_LE: list[Tensor]) -> float | None:
    """How much more than the mean load the busiest expert has; the mean over the layers."""
    if not counts_LE:
        return None
    violations = [max(counts_E) / (sum(counts_E) / len(counts_E)) - 1 for counts_E in map(Tensor.tolist, counts_LE)]
    return sum(violations) / len(violations)
