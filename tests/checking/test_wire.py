"""The frames between judge and answer: all that may cross comes back as it was, and all else is refused in a sentence."""

import contextlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from course.checking.wire import DEEPEST, HEADER, LARGEST, LARGEST_TEXT, Foreign, WireError, lengths, pack, tree, unpack

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool,
]  # fmt: skip


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 3
    return values.abs().to(draw(st.sampled_from(DTYPES)))


leaves = st.one_of(st.none(), st.booleans(), st.integers(-(2**255), 2**255), st.floats(), st.text(), tensors())
trees = st.recursive(
    leaves, lambda t: st.one_of(st.lists(t, max_size=4), st.dictionaries(st.text(), t, max_size=4)), max_leaves=12
)


def send(message):
    frame = pack(message)
    text, blob = lengths(frame[: HEADER.size])
    assert len(frame) == HEADER.size + text + blob
    return unpack(frame[HEADER.size : HEADER.size + text], frame[HEADER.size + text :])


def identical(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        same_kind = a.dtype == b.dtype and a.shape == b.shape
        return same_kind and bytes(a.reshape(-1).view(torch.uint8)) == bytes(b.reshape(-1).view(torch.uint8))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[key], b[key]) for key in a)
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(st.dictionaries(st.text(), trees, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_message_of_trees_comes_back_as_it_was(message):
    assert identical(send(message), message)


@given(trees)
@settings(max_examples=60, deadline=None)
def test_tree_shows_a_value_as_the_other_side_will_see_it(value):
    assert identical(tree(value), send({"value": value})["value"])


def test_a_tuple_arrives_as_a_list():
    assert tree((1, (2.0, None))) == [1, [2.0, None]]


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0)[3:9:2],
        torch.tensor(2.0).expand(3, 2),
        torch.ones(3, requires_grad=True) * 2,
        torch.nn.Parameter(torch.ones(2)),
        torch._neg_view(torch.ones(3)),
    ],
    ids=["transposed", "strided", "expanded", "with-gradient", "parameter", "negated-view"],
)
def test_a_view_arrives_as_a_plain_tensor_with_its_values(view):
    got = tree(view)
    assert type(got) is torch.Tensor
    assert got.is_contiguous()
    assert not got.requires_grad
    assert torch.equal(got, view)


def test_two_tensors_that_share_memory_arrive_apart():
    x = torch.zeros(3)
    first, second = tree([x, x[:2]])
    first += 1
    assert second.tolist() == [0, 0]


class Odd(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "a object"),
        (len, "a builtin_function_or_method"),
        ({1: 2}, "a dict"),
        (torch.ones(2, dtype=torch.complex64), "unusual kind"),
        (torch.eye(2).to_sparse(), "unusual kind"),
        (torch.ones(2, device="meta"), "unusual kind"),
        (Odd(), "Odd"),
        (1 << 256, "an int of more than 256 bits"),
        ({1, 2}, "a set"),
    ],
)
def test_what_cannot_cross_arrives_as_a_word_for_what_it_was(value, what):
    got = tree(["before", value])[1]
    assert isinstance(got, Foreign)
    assert what in got.what


def test_a_dict_that_looks_like_a_mark_of_the_format_stays_a_dict():
    for value in ({"tensor": "0"}, {"float": "nan"}, {"foreign": "x"}, {"dict": {}}):
        assert tree(value) == value


def test_a_lone_surrogate_arrives_as_text_that_can_be_written():
    got = tree(["\ud800", {"\udfff": 1}])
    assert json.dumps(got, ensure_ascii=False).encode()


def test_a_value_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(WireError, match=f"nested more than {DEEPEST} deep"):
        pack({"value": loop})


def test_a_tensor_larger_than_a_frame_is_refused_before_it_is_copied():
    with pytest.raises(WireError, match="larger than"):
        pack({"value": torch.zeros(1).expand(1 << 40)})


GOOD_BLOB = save({"0": torch.arange(3)})
HOSTILE = {
    "empty": (b"", b""),
    "no-json": (b"{", b""),
    "not-utf8": (b"\xff\xfe\xfd", b""),
    "a-list": (b"[]", b""),
    "a-number": (b"3", b""),
    "a-foreign": (b'{"foreign": "x"}', b""),
    "unknown-kind": (b'{"dict": {"a": {"pickle": "x"}}}', b""),
    "two-kinds": (b'{"dict": {}, "tensor": "0"}', b""),
    "no-kind": (b'{"dict": {"a": {}}}', b""),
    "dict-of-list": (b'{"dict": []}', b""),
    "dict-of-null": (b'{"dict": null}', b""),
    "tensor-missing": (b'{"dict": {"a": {"tensor": "7"}}}', GOOD_BLOB),
    "tensor-by-list": (b'{"dict": {"a": {"tensor": ["0"]}}}', GOOD_BLOB),
    "tensor-by-number": (b'{"dict": {"a": {"tensor": 0}}}', GOOD_BLOB),
    "float-of-text": (b'{"dict": {"a": {"float": "1e3"}}}', b""),
    "float-of-list": (b'{"dict": {"a": {"float": [1]}}}', b""),
    "bare-nan": (b'{"dict": {"a": NaN}}', b""),
    "bare-infinity": (b'{"dict": {"a": -Infinity}}', b""),
    "nested-lists": (b'{"dict": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}", b""),
    "nested-past-the-parser": (b"[" * 200_000, b""),
    "nested-dicts": (b'{"dict": {"a": ' * 300 + b"1" + b"}}" * 300, b""),
    "number-of-many-digits": (b'{"dict": {"a": ' + b"9" * 5000 + b"}}", b""),
    "number-past-256-bits": (b'{"dict": {"a": ' + b"9" * 400 + b"}}", b""),
    "blob-is-noise": (b'{"dict": {}}', b"noise, not safetensors"),
    "blob-cut-short": (b'{"dict": {"a": {"tensor": "0"}}}', GOOD_BLOB[:-1]),
    "blob-with-a-huge-header": (b'{"dict": {}}', b"\xff" * 8 + GOOD_BLOB),
    "blob-claims-more-than-it-has": (b'{"dict": {}}', GOOD_BLOB.replace(b'"shape":[3]', b'"shape":[9]')),
    "blob-of-unknown-dtype": (b'{"dict": {}}', GOOD_BLOB.replace(b'"I64"', b'"X64"')),
}


@pytest.mark.parametrize(("text", "blob"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_refused_in_a_sentence(text, blob):
    with pytest.raises(WireError, match=r"^The reply .*\.$"):
        unpack(text, blob)


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_noise_is_a_message_or_a_wire_error_and_nothing_else(text, blob):
    with contextlib.suppress(WireError):
        assert isinstance(unpack(text, blob), dict)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_frame_with_one_byte_changed_is_a_message_or_a_wire_error(data):
    text = bytearray(json.dumps({"dict": {"a": {"tensor": "0"}, "b": [{"float": "nan"}, 3]}}).encode())
    blob = bytearray(GOOD_BLOB)
    half = data.draw(st.sampled_from([text, blob]))
    half[data.draw(st.integers(0, len(half) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(unpack(bytes(text), bytes(blob)), dict)


@pytest.mark.parametrize("sizes", [(LARGEST_TEXT + 1, 0), (0, LARGEST + 1), (2**32 - 1, 2**32 - 1)])
def test_a_header_that_announces_too_much_is_refused_before_anything_is_read(sizes):
    with pytest.raises(WireError, match="larger than"):
        lengths(HEADER.pack(*sizes))
