from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course.training import bpe, corpus, tokenizer
from course.training.tokenizer import Tokenizer


@cache
def sample():
    """Some hundred kilobytes of code and prose, with characters outside ASCII."""
    texts = [document.text.encode() for document in corpus.embedded()[:400:20]]
    return [*texts, "Grüße, 你好, žluťoučký kůň 🙂\n".encode() * 50]


@cache
def learned():
    return tokenizer.train(sample(), 700)


def test_the_library_and_the_course_learn_the_same_merges():
    assert tokenizer.train_by_hand(sample(), 700).merges == learned().merges
    assert learned().vocab == 700


def test_the_library_and_the_course_give_the_same_ids():
    for text in sample():
        assert learned().encode(text) == learned().encode_with_library(text)


@settings(max_examples=300)
@given(st.lists(st.text("ab \n", max_size=12), min_size=1, max_size=6), st.integers(257, 275))
def test_ties_and_overlaps_are_settled_as_the_library_settles_them(texts, vocab):
    data = [text.encode() for text in texts]
    assert tokenizer.train_by_hand(data, vocab).merges == tokenizer.train(data, vocab).merges


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_nothing_is_lost(data):
    for some in (learned(), Tokenizer()):
        ids = some.encode(data)
        assert ids == some.encode_with_library(data)
        assert some.decode_bytes(ids) == data


@given(st.binary(max_size=200))
def test_pieces_joined_are_the_data(data):
    assert b"".join(bpe.pieces(data)) == data


def test_a_cut_falls_before_words_numbers_punctuation_and_blanks():
    text = "    if x_1 == 12345:\n\n        näh(π)"
    assert [piece.decode() for piece in bpe.pieces(text.encode())] == [
        *("   ", " if", " x_", "1", " ==", " 123", "45", ":", "\n\n       ", " näh", "(", "π", ")"),
    ]


def test_three_equal_ids_merge_from_the_left():
    assert bpe.merge([5, 5, 5, 7, 5, 5], (5, 5), 9) == [9, 5, 7, 9]


def test_the_most_frequent_pair_is_merged_first_and_ties_go_to_the_smaller_ids():
    assert bpe.train([b"xy xy xy ab"], 257) == [(ord("x"), ord("y"))]
    assert bpe.train([b"xy.ab"], 257) == [(ord("a"), ord("b"))]


def test_learning_stops_when_nothing_is_left_to_merge():
    assert tokenizer.train([b"ab"], 1000).vocab == tokenizer.train_by_hand([b"ab"], 1000).vocab == 258
    assert tokenizer.train([], 1000).vocab == tokenizer.train_by_hand([], 1000).vocab == 257


def test_bytes_are_their_own_ids_and_the_last_id_ends_a_document():
    plain = Tokenizer()
    assert plain.encode("hé") == list("hé".encode())
    assert (plain.end, plain.vocab) == (256, 257)
    assert plain.decode([104, plain.end, 105]) == "hi"


def test_broken_utf8_is_shown_as_a_replacement():
    assert Tokenizer().decode([104, 0xFF]) == "h\ufffd"


@pytest.mark.parametrize("size", [300, 700])
def test_a_larger_vocabulary_begins_with_the_smaller_one(size):
    assert tokenizer.train(sample(), size).merges == learned().merges[: size - 257]
