import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course.hardware.intervals import gaps, intersection, length, union

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12)


def spans(pairs):
    return np.array([(start, start + long) for start, long in pairs], dtype=float).reshape(-1, 2)


def moments(found):
    """The unit intervals that a set of spans with whole ends covers."""
    return {moment for start, end in found for moment in range(int(start), int(end))}


@given(pieces)
def test_a_union_covers_what_its_parts_cover_and_nothing_twice(pairs):
    found = union(spans(pairs))
    assert moments(found) == moments(spans(pairs))
    assert length(found) == len(moments(spans(pairs)))
    assert (found[1:, 0] > found[:-1, 1]).all()


@given(pieces, pieces)
def test_an_intersection_is_what_both_cover(one, other):
    found = intersection(union(spans(one)), union(spans(other)))
    assert moments(found) == moments(spans(one)) & moments(spans(other))
    assert length(found) == len(moments(found))


@given(pieces)
def test_gaps_and_union_make_up_the_span(pairs):
    found = union(spans(pairs))
    whole = found[-1, 1] - found[0, 0] if len(found) else 0
    assert length(found) + length(gaps(found)) == whole


def test_an_interval_inside_another_adds_nothing():
    assert union(np.array([[0.0, 10.0], [2.0, 3.0]])).tolist() == [[0, 10]]


def test_intervals_that_touch_are_one():
    assert union(np.array([[3.0, 4.0], [0.0, 3.0]])).tolist() == [[0, 4]]


def test_an_interval_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="before it starts"):
        union(np.array([[3.0, 2.0]]))
