"""Text to token ids and back, without loss: single bytes, or byte-pair encoding on top of them.

`course.training.bpe`, written to be read, and the `tokenizers` library give the same merges and the same ids. The
library learns several times faster; to encode, a dictionary of the pieces seen is as fast.
"""

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import SupportsIndex

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and a later fork do not go together

import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from course.training import bpe


class Tokenizer:
    """Ids 0 to 255 are bytes, then come the merged tokens, and the last id, `end`, stands between documents.

    Without merges it is the byte-level tokenizer, with a vocabulary of 257.
    """

    def __init__(self, merges: Sequence[Sequence[int]] = ()):
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.tokens = [bytes([byte]) for byte in range(256)]
        ids = {token: i for i, token in enumerate(self.tokens)}
        self.ranks: dict[bpe.Pair, tuple[int, int]] = {}
        for rank, (a, b) in enumerate(self.merges):
            token = self.tokens[a] + self.tokens[b]
            if token not in ids:
                ids[token] = len(self.tokens)
                self.tokens.append(token)
            self.ranks[a, b] = (rank, ids[token])
        self.end = len(self.tokens)
        self.vocab = self.end + 1
        self._seen: dict[bytes, list[int]] = {}

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids. A piece is worked out when it is first seen, then looked up."""
        ids = []
        for piece in bpe.pieces(_bytes(text)):
            if piece not in self._seen:
                self._seen[piece] = bpe.encode_piece(piece, self.ranks)
            ids += self._seen[piece]
        return ids

    def encode_with_library(self, text: str | bytes) -> list[int]:
        """The same ids, by the `tokenizers` library."""
        return self._library.encode(_bytes(text).decode("latin-1")).ids

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """The bytes that were encoded; `end` stands for none."""
        return b"".join(self.tokens[i] for i in ids if i != self.end)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text; bytes that are not UTF-8, as a model may produce, become the replacement character."""
        return self.decode_bytes(ids).decode(errors="replace")

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        names = [token.decode("latin-1") for token in self.tokens]
        vocab = {name: i for i, name in enumerate(names)}
        return _cut(models.BPE(vocab=vocab, merges=[(names[a], names[b]) for a, b in self.merges]))


def train(texts: Iterable[bytes], vocab: int) -> Tokenizer:
    """Learn a vocabulary of `vocab` ids, `end` included, by the `tokenizers` library."""
    library = _cut(models.BPE())
    alphabet = [chr(byte) for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator((text.decode("latin-1") for text in texts), trainer)
    model = json.loads(library.to_str())["model"]
    return Tokenizer([(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]])


def train_by_hand(texts: Iterable[bytes], vocab: int) -> Tokenizer:
    """The same vocabulary, by `course.training.bpe`."""
    return Tokenizer(bpe.train(texts, vocab - 1))


def _cut(model: models.Model) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Split(Regex(bpe.PATTERN), behavior="isolated")
    return library


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
