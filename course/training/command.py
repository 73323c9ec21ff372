"""What `course train` does. Lines are handed to `say`; every fault is a TrainingError."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from course.model import ModelConfig, Routing, active_parameters, total_parameters
from course.training import ranks
from course.training.checkpoint import NAME, Checkpoint
from course.training.data import Data, load
from course.training.errors import TrainingError
from course.training.generation import generate_command
from course.training.log import Row
from course.training.settings import TrainSettings, require_choice
from course.training.sharding import SHARDINGS
from course.training.trainer import evaluate, train

SOURCES = ("code", "prose")
STATE = 16  # bytes a parameter: weight, gradient and two moments, in float32


@ranks.joined()
def train_command(
    out: Path,
    preset: str = "tiny-moe",
    data: str = "code",
    steps: int = 500,
    seconds: float | None = None,
    resume: bool = False,
    seed: int = 0,
    vocab: int = 1024,
    optimizer: str = "adamw",
    precision: str = "float32",
    sharding: str = "none",
    cache: Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> float:
    """Train a preset, telling how it goes, and end with the validation loss and some text.

    Where torchrun started several of this process, they train one model, and the first of them speaks.

    out: folder of the run. data: "code" or "prose", the embedded corpus, or the path of a file or folder.
    resume: go on from the checkpoint in `out`; preset, steps, seed, vocab, optimizer and precision are then the
    checkpoint's. sharding: "none" or "full", how several ranks hold the model.
    Returns: the validation loss in nats a token. Raises: TrainingError; KeyboardInterrupt after Ctrl-C, with a
    checkpoint written and a line on how to go on.
    """
    if steps < 1:
        raise TrainingError(f"{steps} steps train nothing: ask for at least 1")
    if seconds is not None and seconds <= 0:
        raise TrainingError(f"{seconds} seconds train nothing: ask for more than 0")
    require_choice("sharding", sharding, SHARDINGS)
    say = say if ranks.first() else lambda line: None
    if resume:
        checkpoint = Checkpoint.read(out)
        config, settings = ModelConfig(**checkpoint.config), TrainSettings(**checkpoint.settings)
        text = ranks.in_turn(lambda: load(_source(data), checkpoint.vocab, cache))
    else:
        if (out / NAME).exists():
            raise TrainingError(
                f"{out} already holds a run: go on with --resume, or train into another folder with --out"
            )
        config = _config(preset)
        settings = TrainSettings(steps=steps, seed=seed, optimizer=optimizer, precision=precision)
        text = ranks.in_turn(lambda: load(_source(data), vocab, cache))
        config = replace(config, vocab=text.tokenizer.vocab)
    say(_introduction(config, settings, text))

    def report(row: Row, routings: list[Routing]) -> None:
        if row.validation is not None:
            say(_line(row))

    try:
        model, rows = train(
            config, text, settings, out, resume, seconds, report, progress, sharding, device=ranks.device()
        )
    except KeyboardInterrupt:
        say(f"Stopped. The checkpoint is in {out}; the same command with --resume goes on from it.")
        raise
    validation = rows[-1].validation
    if validation is None:
        validation = evaluate(model, text, settings.evaluation_sequences)
    if rows[-1].step < settings.steps:
        say(f"Time is up after step {rows[-1].step} of {settings.steps}; the same command with --resume goes on.")
    say(
        f"Validation loss {validation:.3f} nats a token (an even guess: {math.log(config.vocab):.3f}), "
        f"{text.bits_per_byte(validation):.2f} bits a byte."
    )
    if ranks.first():
        say("The model writes:\n")
        say(generate_command(out, seed=seed))
    return validation


def _source(data: str) -> Path | str:
    return data if data in SOURCES else Path(data)


def _config(preset: str) -> ModelConfig:
    try:
        config = ModelConfig.preset(preset)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    needed = STATE * total_parameters(config)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise TrainingError(
            f"{preset} takes {needed / 1e9:,.0f} GB to train, and this machine has {there / 1e9:,.0f}: "
            "train one of the tiny presets"
        )
    return config


def _introduction(config: ModelConfig, settings: TrainSettings, text: Data) -> str:
    experts = f"{config.experts} experts, top-{config.top_k}" if config.experts else "dense"
    return (
        f"{total_parameters(config):,} parameters, {active_parameters(config):,} of them active a token ({experts}); "
        f"{len(text.train):,} tokens of text, {settings.steps * settings.batch * config.context:,} to train on; "
        f"{torch.get_num_threads()} threads" + (f" on each of {ranks.count()} ranks" if ranks.count() > 1 else "")
    )


def _line(row: Row) -> str:
    speed = row.tokens / row.seconds
    return (
        f"step {row.step:5}   {row.tokens:>9,} tokens   training loss {row.loss:.3f}   "
        f"validation loss {row.validation:.3f}   {speed:>7,.0f} tokens/s"
    )
