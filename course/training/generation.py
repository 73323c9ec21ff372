"""What `course generate` does: text from a run of this course, or from open weights."""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import tokenizers
import torch

from course.model import Transformer, from_pretrained, generate, speculate
from course.training.checkpoint import Checkpoint
from course.training.errors import TrainingError

Tell = Callable[[str], None]


def generate_command(
    checkpoint: Path,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    tell: Tell | None = None,
) -> str:
    """The prompt and what the model makes of it. Without a prompt it starts a document of its own.

    checkpoint: a run's folder, or its checkpoint.pt.
    tell: speculate, and be told how many guesses were right; the text is that of temperature 0.
    Raises: TrainingError.
    """
    _require(tokens, temperature, top_p)
    model, tokenizer = Checkpoint.read(checkpoint).load()
    start = [tokenizer.end, *tokenizer.encode(prompt)]
    return tokenizer.decode(start + continued(model, start, tokens, temperature, top_p, seed, (), tell))


def generate_open_command(
    folder: Path,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    tell: Tell | None = None,
) -> str:
    """The prompt and what open weights make of it, up to their end-of-text token.

    folder: config.json and safetensors, and tokenizer.json; without the last, prompt and text are token ids with blanks
    between them. Without a prompt it starts from the config's beginning-of-text token.
    tell: as in `generate_command`.
    Raises: TrainingError, PretrainedError.
    """
    _require(tokens, temperature, top_p)
    model = from_pretrained(folder)
    marks = _marks(folder)
    library = _tokenizer(folder)
    ids = library.encode(prompt).ids if library else _ids(prompt, folder)
    if not ids and marks.get("bos_token_id") is not None:
        ids = [marks["bos_token_id"]]
    if not ids:
        raise TrainingError(f"{folder} names no token to begin with: give a prompt")
    vocab = model.config.vocab
    if wrong := [i for i in ids if not 0 <= i < vocab]:
        raise TrainingError(f"token id {wrong[0]} of the prompt is outside the model's vocabulary of {vocab:,}")
    ends = marks.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    new = continued(model, ids, tokens, temperature, top_p, seed, ends, tell)
    return library.decode(ids + new) if library else " ".join(map(str, ids + new))


def continued(
    model: Transformer,
    start: list[int],
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    ends: Collection[int] = (),
    tell: Tell | None = None,
) -> list[int]:
    """The tokens that follow. Raises: TrainingError when asked to speculate with a model that cannot."""
    if tell is None:
        generator = torch.Generator().manual_seed(seed)
        return [*generate(model, torch.tensor(start), tokens, temperature, top_p, generator, ends)]
    if not model.mtp:
        raise TrainingError("this model has no multi-token modules to guess with: write without --speculate")
    rounds = [*speculate(model, torch.tensor(start), tokens, ends)]
    new = [token for one in rounds for token in one.tokens]
    right, guessed = sum(one.right for one in rounds), sum(one.guessed for one in rounds)
    tell(f"{len(new)} tokens in {len(rounds)} rounds: {right} of {guessed} guesses were right")
    return new


def _require(tokens: int, temperature: float, top_p: float) -> None:
    if tokens < 1:
        raise TrainingError(f"{tokens} tokens are no text: ask for at least 1")
    if not 0 <= temperature < math.inf:
        raise TrainingError(f"a temperature of {temperature} does not work: take 0 (always the likeliest) or more")
    if not 0 < top_p <= 1:
        raise TrainingError(f"top_p {top_p} does not work: take more than 0 and at most 1")


def _marks(folder: Path) -> dict[str, Any]:
    """The ids that begin and end a text: of generation_config.json where it is there and says so, else of config.json."""
    marks: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        try:
            found = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue
        marks |= {key: found[key] for key in ("bos_token_id", "eos_token_id") if found.get(key) is not None}
    return marks


def _tokenizer(folder: Path) -> tokenizers.Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TrainingError(f"{path} is not a tokenizer that the tokenizers library can read: {error}") from None


def _ids(prompt: str, folder: Path) -> list[int]:
    try:
        return [int(part) for part in prompt.split()]
    except ValueError:
        raise TrainingError(
            f"{folder} has no tokenizer.json, so that the prompt must be token ids, such as '1 15 9'; it is {prompt!r}"
        ) from None
