"""What a comparison says: nothing when right, else one line with what differs, where, what was wanted and what came."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course.checking.compare import kind, same
from course.checking.wire import Foreign, tree

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
I = torch.tensor([[0, 1, 2], [3, 4, 5]])  # noqa: E741
NAN, INF = math.nan, math.inf


def says(wanted, got, *names, **more) -> str | None:
    return same(*names, **more)({}, tree(wanted), tree(got))


RIGHT = [None, True, 3, -0.5, "text", X, I, X > 2, [1, [2.0, None]], {"a": X, "b": []}, X.bfloat16(), torch.ones(0, 3)]


@pytest.mark.parametrize("value", [*RIGHT, NAN, INF, torch.tensor([NAN, INF, -INF, 1.0]), torch.tensor(2.0)])
def test_a_value_equals_itself(value):
    assert says(value, value) is None


@pytest.mark.parametrize("wanted", RIGHT, ids=str)
@pytest.mark.parametrize("got", RIGHT, ids=str)
def test_two_different_values_are_never_taken_for_each_other(wanted, got):
    assert (says(wanted, got) is None) == (wanted is got)


@pytest.mark.parametrize(
    ("wanted", "got", "message"),
    [
        (X, None, "returned nothing (None); is a return missing?"),
        (X, 3.0, "the result: wanted a tensor of shape [2, 3], float32, got float 3.0"),
        (X, X.tolist(), "the result: wanted a tensor of shape [2, 3], float32, got 2 values"),
        (X, (X, X), "the result: wanted a tensor of shape [2, 3], float32, got 2 values"),
        (X, {"out": X}, "the result: wanted a tensor of shape [2, 3], float32, got a dict with the keys out"),
        (X, object(), "the result: wanted a tensor of shape [2, 3], float32, got a object"),
        (X, X.T, "the result: shape [3, 2], wanted [2, 3]"),
        (X, X[:, :, None], "the result: shape [2, 3, 1], wanted [2, 3]"),
        (X, X.double(), "the result: dtype float64, wanted float32"),
        (I, I.float(), "the result: dtype float32, wanted int64"),
        (I, I.int(), "the result: dtype int32, wanted int64"),
        (X > 2, (X > 2).long(), "the result: dtype int64, wanted bool"),
        (3, 3.0, "the result: wanted 3, got float 3.0"),
        (3, True, "the result: wanted 3, got bool True"),
        (True, 1, "the result: wanted True, got int 1"),
        (3, torch.tensor(3), "the result: wanted 3, got a tensor of shape [], int64"),
        (3, 4, "the result: wanted 3, got 4"),
        (0.5, torch.tensor(0.5), "the result: wanted 0.5, got a tensor of shape [], float32"),
        (0.5, 0.25, "the result: wanted 0.5, got 0.25"),
        (0.5, NAN, "the result: wanted 0.5, got nan"),
        (NAN, 0.5, "the result: wanted nan, got 0.5"),
        (0.5, INF, "the result: wanted 0.5, got inf"),
        (1.0, False, "the result: wanted 1.0, got bool False"),
        (None, 0, "the result: wanted None, got int 0"),
        ("ab", "abc", "the result: wanted 'ab', got 'abc'"),
        ([1, 2], [1, 2, 3], "the result: wanted 2 values, got 3 values"),
        ([1, 2], 1, "the result: wanted 2 values, got int 1"),
        ([1, [2, 3]], [1, [2, 4]], "the result[1][1]: wanted 3, got 4"),
        ({"a": 1}, {"b": 1}, "the result: the keys lack a; not wanted b"),
        ({"a": 1, "b": 2}, {"b": 2}, "the result: the keys lack a"),
        ({}, {name: 1 for name in "abcde"}, "the result: not wanted a, b, c and 2 more"),
        ({"a": 1}, 1, "the result: wanted a dict, got int 1"),
        ({"a": 1}, None, "returned nothing (None); is a return missing?"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 3}, "the result['a']: wanted 1, got 3"),
    ],
)
def test_a_difference_of_kind_is_said(wanted, got, message):
    assert says(wanted, got) == message


def test_a_float_may_be_an_integer_and_need_not_be_exact():
    assert says(2.0, 2) is None
    assert says(1.0, 1 + 1e-7) is None
    assert says(1.0, 1 + 1e-4) == "the result: wanted 1, got 1.0001"
    assert says(1.0, 2**255) == f"the result: wanted 1, got {2.0**255:.8g}"


def test_integers_are_compared_exactly_however_large():
    assert says(2**200, 2**200) is None
    assert says(2**200, 2**200 + 1) is not None
    big = torch.tensor([2**53])
    assert says(big, big + 1) == f"the result: wanted [{2**53}], got [{2**53 + 1}]"


def test_floats_are_close_by_the_norm_of_the_difference():
    assert says(X, X * (1 + 1e-6)) is None
    off = X.clone()
    off[1, 2] += 0.6
    assert says(X, off) == "the result: relative error 6.3e-02, allowed 1e-05; worst at [1, 2]: wanted 6, got 6.6"
    assert says(X, off, rtol=0.1) is None
    assert "allowed 1e-02" in says(X, off, rtol=0.01)


def test_a_small_number_beside_large_ones_is_forgiven_what_the_large_ones_are():
    wanted = torch.tensor([1e6, 1e-3])
    assert says(wanted, wanted + torch.tensor([0.0, 1.0])) is None


def test_where_zeros_are_wanted_the_error_is_absolute():
    zeros = torch.zeros(3)
    assert says(zeros, zeros + 1e-7) is None
    assert says(zeros, zeros + 1e-3) is not None


def test_the_worst_index_is_named_in_any_number_of_dimensions():
    for shape in [(), (4,), (2, 3, 2)]:
        wanted = torch.ones(shape)
        got = wanted.clone()
        got[tuple(size - 1 for size in shape)] = 3.0
        assert f"worst at {[size - 1 for size in shape]}: wanted 1, got 3" in says(wanted, got)


def test_nan_must_be_where_it_is_wanted_and_nowhere_else():
    wanted = torch.tensor([1.0, NAN, 3.0])
    assert says(wanted, torch.tensor([1.0, NAN, 3.0])) is None
    for got in ([NAN, NAN, 3.0], [NAN, 2.0, 3.0]):
        assert says(wanted, torch.tensor(got)) == "the result: 1 of 3 numbers are NaN and should not be"
    assert says(wanted, torch.tensor([1.0, 2.0, 3.0])) == "the result: 1 of 3 numbers should be NaN and are not"
    assert says(wanted, torch.tensor([1.0, NAN, 4.0])).endswith("worst at [2]: wanted 3, got 4")


def test_infinity_must_be_where_it_is_wanted_with_its_sign():
    wanted = torch.tensor([1.0, INF, -INF])
    assert says(wanted, wanted.clone()) is None
    start = "the result: infinite in other places than wanted, 1 of them; first at "
    assert says(wanted, torch.tensor([1.0, -INF, -INF])) == start + "[1]: wanted inf, got -inf"
    assert says(wanted, torch.tensor([1.0, 2.0, -INF])) == start + "[1]: wanted inf, got 2"
    assert says(wanted, torch.tensor([INF, INF, -INF])) == start + "[0]: wanted 1, got inf"
    assert says(wanted, torch.tensor([2.0, INF, -INF])).endswith("worst at [0]: wanted 1, got 2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_low_precision_is_compared_in_double(dtype):
    wanted = torch.tensor([1.0, 200.0, -3.5]).to(dtype)
    assert says(wanted, wanted.clone()) is None
    got = torch.tensor([1.0, 208.0, -3.5]).to(dtype)
    assert "worst at [1]" in says(wanted, got)


def test_indices_say_how_many_rows_differ_and_show_the_first():
    got = I.clone()
    got[1, 0] = 7
    assert says(I, got) == "the result differ in 1 of 2 rows; first in row 1: wanted [3, 4, 5], got [7, 4, 5]"
    wide = torch.zeros(2, 30, dtype=torch.int64)
    assert "wanted [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...], got [1," in says(wide, wide + 1)


def test_a_long_row_of_integers_shows_the_first_that_differs():
    wanted = torch.arange(40)
    got = wanted.clone()
    got[17:] = 0
    assert says(wanted, got) == "the result: first differs at [17]: wanted 17, got 0"


def test_each_part_of_a_tuple_has_its_name():
    right = (I, X)
    assert says(right, right, "indices", "weights") is None
    assert says(right, [I, X], "indices", "weights") is None
    assert says(right, (I, X.double()), "indices", "weights") == "weights: dtype float64, wanted float32"
    assert says(right, (I + 1, X + 1), "indices", "weights").startswith("indices differ in 2 of 2 rows")


@pytest.mark.parametrize(
    ("got", "what"),
    [(X, "a tensor of shape [2, 3], float32"), ((I,), "1 values"), ((I, X, X), "3 values")],
)
def test_a_tuple_of_another_length_says_what_was_wanted(got, what):
    message = says((I, X), got, "indices", "weights")
    assert message.startswith(f"returned {what}")
    assert message.endswith("wanted 2 values: indices, weights")


def test_kind_describes_what_could_not_cross():
    assert kind(Foreign("a numpy.ndarray")) == "a numpy.ndarray"


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_a_tensor_passes_exactly_when_its_relative_error_is_within_the_tolerance(values, data):
    wanted = torch.tensor(values, dtype=torch.float64)
    step = torch.tensor(data.draw(st.lists(st.floats(-1, 1), min_size=len(values), max_size=len(values))))
    got = wanted + step.double() * data.draw(st.sampled_from([0.0, 1e-9, 1e-3, 1.0]))
    error = (got - wanted).norm() / (wanted.norm() if wanted.norm() else 1.0)  # squares of tiny numbers vanish
    assert (says(wanted, got) is None) == (error.item() <= 1e-5)
