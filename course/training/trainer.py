"""Train a model: AdamW, a schedule, gradient clipping, evaluation, checkpoints, a log.

A run is a function of its config, settings and data. Killed at any moment it loses the steps since the last
checkpoint, and resumed it gives the losses of an unbroken run, bit for bit on the same machine.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from course.model import ModelConfig, Routing, Transformer, expert_load
from course.training.checkpoint import Checkpoint
from course.training.data import Data, require_length, training_batch, validation_batches
from course.training.errors import TrainingError
from course.training.interrupt import deferred
from course.training.log import Row, open_log
from course.training.schedule import learning_rate


@dataclass(frozen=True)
class TrainSettings:
    steps: int = 500
    batch: int = 8  # sequences a step, each as long as the config's context
    learning_rate: float = 3e-3  # at the end of the warm-up
    warmup: int = 50  # steps
    final: float = 0.1  # the last step's learning rate, as a fraction of the peak
    weight_decay: float = 0.1  # of matrices; norms have none
    clip: float = 1.0  # the largest norm of the gradient of all parameters together
    seed: int = 0  # decides the initial weights and the order of the data
    evaluate_every: int = 50  # steps
    evaluation_sequences: int = 64
    checkpoint_every: int = 50  # steps


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
) -> Result:
    """Train from scratch, or with `resume` from the checkpoint in `out`, until the last step or for `seconds`.

    config: its vocab must be the tokenizer's, `replace(config, vocab=data.tokenizer.vocab)`.
    out: folder for checkpoint.pt and log.csv; None keeps nothing.
    on_step: called after every step with its row and its routings, one a mixture layer.
    Raises: TrainingError when data, config and checkpoint do not go together; KeyboardInterrupt on Ctrl-C, after the
    step in hand was finished and a checkpoint written.
    """
    assert out or not resume, "to resume, name the folder that holds the checkpoint"
    checkpoint = Checkpoint.read(out) if resume else None
    if checkpoint:
        checkpoint.require(data=data.key, config=asdict(config), settings=asdict(settings))
    if config.vocab != data.tokenizer.vocab:
        raise TrainingError(f"the model has a vocabulary of {config.vocab}, the text one of {data.tokenizer.vocab}")
    require_length(data, config.context)
    torch.manual_seed(settings.seed)
    model = Transformer(config)
    optimizer = adamw(model, settings)
    rows: list[Row] = []
    if checkpoint:
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.rng)
        rows = [Row(*row) for row in checkpoint.rows]

    def save() -> None:
        if out:
            Checkpoint.of(model, optimizer, settings, data, rows).write(out)

    started = time.perf_counter()
    with open_log(out, rows) as log, deferred() as interrupted, _bar(settings, rows, progress) as bar:
        for step in range(len(rows) + 1, settings.steps + 1):
            row, routings = take_step(model, optimizer, data, settings, step, rows[-1].seconds if rows else 0.0)
            rows.append(row)
            log(row)
            bar.update()
            bar.set_postfix(loss=f"{row.loss:.3f}", refresh=False)
            if on_step:
                on_step(row, routings)
            stop = interrupted() or (seconds is not None and time.perf_counter() - started >= seconds)
            if stop or step % settings.checkpoint_every == 0 or step == settings.steps:
                save()
            if interrupted():
                raise KeyboardInterrupt(f"stopped after step {step}")
            if stop:
                break
    return Result(model, rows)


def adamw(model: Transformer, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def evaluate(model: Transformer, data: Data, sequences: int = 64) -> float:
    """Mean cross entropy in nats a token over fixed windows of the validation text."""
    total, tokens = 0.0, 0
    for inputs_BS, targets_BS in validation_batches(data, model.config.context, sequences):
        total += model.loss(inputs_BS, targets_BS).cross_entropy.item() * targets_BS.numel()
        tokens += targets_BS.numel()
    return total / tokens


def take_step(
    model: Transformer, optimizer: torch.optim.Optimizer, data: Data, settings: TrainSettings, step: int, before: float
) -> tuple[Row, list[Routing]]:
    """One training step, timed, and what it measured. `before`: seconds spent on the steps before it."""
    s, config = settings, model.config
    started = time.perf_counter()
    rate = learning_rate(step, s.steps, s.learning_rate, s.warmup, s.final)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model.loss(*training_batch(data, config.context, s.batch, s.seed, step))
    loss.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
    optimizer.step()
    optimizer.zero_grad()
    elapsed = time.perf_counter() - started
    violations = [expert_load(routing.indices_TK, config.experts).max_violation for routing in loss.routings]
    measure = step % s.evaluate_every == 0 or step in (1, s.steps)
    row = Row(
        step=step,
        tokens=step * s.batch * config.context,
        seconds=before + elapsed,
        loss=loss.cross_entropy.item(),
        learning_rate=rate,
        gradient_norm=norm.item(),
        max_violation=sum(violations) / len(violations) if violations else None,
        validation=evaluate(model, data, s.evaluation_sequences) if measure else None,
    )
    return row, loss.routings


def _bar(settings: TrainSettings, rows: list[Row], progress: bool) -> tqdm:
    return tqdm(total=settings.steps, initial=len(rows), desc="training", unit="step", disable=not progress)
