"""A corpus as two long rows of token ids, one to train on and one to validate on, cached by content."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from course.training import atomic, corpus, tokenizer
from course.training.bpe import PATTERN
from course.training.errors import TrainingError
from course.training.tokenizer import Tokenizer

Windows = tuple[Int64[Tensor, "B S"], Int64[Tensor, "B S"]]  # inputs, and the same one token later


@dataclass(frozen=True)
class Data:
    tokenizer: Tokenizer
    train: np.ndarray  # uint16 token ids; documents are separated by the tokenizer's `end`
    validation: np.ndarray
    vocab: int  # asked for; a short text may not fill it
    key: str  # a hash of what was read and of how it was cut

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss on the validation text that does not depend on the tokenizer."""
        size = len(self.tokenizer.decode_bytes(self.validation.tolist()))
        return nats_per_token / math.log(2) * len(self.validation) / size


def load(source: Path | str = "code", vocab: int = 1024, cache: Path | None = None) -> Data:
    """Read, split by document, and tokenise with a vocabulary of `vocab` learned from the training part.

    source: "code" or "prose" for the embedded corpus, or the path of a text file or folder. A vocabulary of 257 is
    the byte-level tokenizer. The result is kept in the folder `cache`, under a hash of the texts.
    Raises: TrainingError when there is nothing to read, or vocab is out of range.
    """
    if not 257 <= vocab <= 2**16:
        raise TrainingError(f"a vocabulary of {vocab} does not work: take 257 (bytes) to 65,536 ids")
    documents = corpus.read(source) if isinstance(source, Path) else corpus.embedded(source)
    key = hashlib.sha256(f"{corpus.fingerprint(documents)} {vocab} {PATTERN}".encode()).hexdigest()[:32]
    stored = cache / f"tokens-{key}.npz" if cache else None
    if stored and stored.exists():
        arrays = np.load(stored)
        return Data(Tokenizer(arrays["merges"].tolist()), arrays["train"], arrays["validation"], vocab, key)

    parts = corpus.split(documents)
    learned = tokenizer.train([document.text.encode() for document in parts[0]], vocab)
    train, validation = (_ids(learned, part) for part in parts)
    if stored:
        merges = np.array(learned.merges, dtype=np.int32).reshape(-1, 2)
        atomic.write(stored, lambda file: np.savez(file, train=train, validation=validation, merges=merges))
    return Data(learned, train, validation, vocab, key)


def training_batch(data: Data, context: int, batch: int, seed: int, step: int) -> Windows:
    """`batch` windows from random places of the training text. A function of seed and step alone, so that a resumed
    run reads what the unbroken one would have read."""
    starts = np.random.default_rng([seed, step]).integers(0, len(data.train) - context, size=batch)
    return _windows(data.train, starts, context)


def validation_batches(data: Data, context: int, sequences: int, batch: int = 16) -> list[Windows]:
    """The same windows every time: up to `sequences` of them, spread evenly over the validation text."""
    last = len(data.validation) - context - 1
    starts = np.unique(np.linspace(0, last, sequences).astype(int))
    return [_windows(data.validation, starts[i : i + batch], context) for i in range(0, len(starts), batch)]


def require_length(data: Data, context: int) -> None:
    """Raises: TrainingError when either part is shorter than one window."""
    train, validation = len(data.train), len(data.validation)
    if min(train, validation) <= context:
        raise TrainingError(
            f"the text is too short: {train:,} tokens to train on and {validation:,} to validate on, "
            f"where a context of {context} needs more than that in each; give more text"
        )


def _ids(learned: Tokenizer, documents: list[corpus.Document]) -> np.ndarray:
    rows = [np.array([*learned.encode(document.text), learned.end], dtype=np.uint16) for document in documents]
    return np.concatenate(rows)


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Windows:
    window = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return window[:, :-1], window[:, 1:]
