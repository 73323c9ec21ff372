import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from course.training import corpus, data
from course.training.errors import TrainingError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n} of a short text\n" for n in range(400)))
    return path


def test_the_tokens_are_the_text_split_once(text):
    loaded = data.load(text, vocab=300)
    assert loaded.tokenizer.vocab == 300
    assert loaded.train[-1] == loaded.validation[-1] == loaded.tokenizer.end
    whole = loaded.tokenizer.decode([*loaded.train, *loaded.validation])
    assert whole == text.read_text()


def test_documents_are_separated(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name * 30)
    loaded = data.load(tmp_path, vocab=257)
    assert (loaded.train == 256).sum() == 3
    assert loaded.train[27] == 256


def test_a_second_reading_comes_from_the_cache(text, tmp_path, monkeypatch):
    first = data.load(text, vocab=300, cache=tmp_path / "cache")
    monkeypatch.setattr(data.tokenizer, "train", lambda *_: pytest.fail("learned again"))
    second = data.load(text, vocab=300, cache=tmp_path / "cache")
    assert first.key == second.key
    assert first.tokenizer.merges == second.tokenizer.merges
    assert np.array_equal(first.train, second.train)
    assert np.array_equal(first.validation, second.validation)


def test_a_changed_text_or_vocabulary_is_read_anew(text, tmp_path):
    keys = {data.load(text, vocab=vocab, cache=tmp_path / "cache").key for vocab in (257, 300)}
    text.write_text(text.read_text() + "one more\n")
    keys.add(data.load(text, vocab=300, cache=tmp_path / "cache").key)
    assert len(keys) == len(list((tmp_path / "cache").iterdir())) == 3


def test_the_order_of_the_data_is_a_function_of_seed_and_step(text):
    loaded = data.load(text, vocab=257)
    inputs_BS, targets_BS = data.training_batch(loaded, context=10, batch=3, seed=1, step=7)
    assert torch.equal(inputs_BS[:, 1:], targets_BS[:, :-1])
    again_BS, _ = data.training_batch(loaded, 10, 3, seed=1, step=7)
    assert torch.equal(inputs_BS, again_BS)
    for seed, step in ((1, 8), (2, 7)):
        assert not torch.equal(inputs_BS, data.training_batch(loaded, 10, 3, seed, step)[0])


def test_every_training_token_can_be_a_target(text):
    loaded = data.load(text, vocab=257)
    short = replace(loaded, train=loaded.train[:5])
    targets = {tuple(data.training_batch(short, 3, 1, 0, step)[1][0].tolist()) for step in range(50)}
    assert targets == {tuple(short.train[1:4].tolist()), tuple(short.train[2:5].tolist())}


def test_validation_reads_the_same_windows_from_end_to_end(text):
    loaded = data.load(text, vocab=257)
    batches = data.validation_batches(loaded, context=20, sequences=9, batch=4)
    assert [len(inputs_BS) for inputs_BS, _ in batches] == [4, 4, 1]
    assert batches[0][0][0].tolist() == loaded.validation[:20].tolist()
    assert batches[-1][1][-1].tolist() == loaded.validation[-20:].tolist()


def test_a_text_shorter_than_a_window_gets_a_sentence(text):
    loaded = data.load(text, vocab=257)
    data.require_length(loaded, len(loaded.validation) - 1)
    with pytest.raises(TrainingError, match=r"too short: [\d,]+ tokens to train on and [\d,]+ to validate on"):
        data.require_length(loaded, len(loaded.validation))


@pytest.mark.parametrize("vocab", [256, 2**16 + 1])
def test_an_impossible_vocabulary_gets_a_sentence(text, vocab):
    with pytest.raises(TrainingError, match="does not work: take 257"):
        data.load(text, vocab=vocab)


def test_bits_per_byte_do_not_depend_on_the_tokenizer(text):
    """The same total of nats over the same text is the same number of bits a byte, in few tokens or in many."""
    total = 1000.0
    bits = [some.bits_per_byte(total / len(some.validation)) for some in (data.load(text, v) for v in (257, 400))]
    size = len(text.read_bytes()) // 10
    assert bits == pytest.approx([total / math.log(2) / size] * 2, rel=1e-3)


def test_the_embedded_corpus_is_a_source(monkeypatch):
    monkeypatch.setattr(corpus, "embedded", lambda kind: [corpus.Document(kind, "text " * 100)])
    loaded = data.load("prose", vocab=257)
    assert loaded.tokenizer.decode(loaded.train[:4]) == "text"
