"""The standard sizes: the same for everybody, right answers are right there, and nobody moves less than the least."""

from dataclasses import replace

import pytest
import torch
from cheats import HONEST

from course.checking.answer import source_of
from course.checking.judge import run
from course.checking.launch import start
from course.exercises import every
from course.grading import GradingError
from course.grading.bench import Refused, counted, refuse_impossible
from course.grading.standard import drawn, least_stored, standard

KERNELS = [each for each in every().values() if each.kernel]


def shapes(inputs):
    """What may not differ between two draws: a tensor's shape and dtype, and every number that is no tensor's."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return inputs | {name: (value.shape, value.dtype) for name, value in tensors.items()}


@pytest.mark.parametrize("exercise", KERNELS, ids=lambda each: each.id)
def test_every_draw_has_the_same_shapes_and_other_numbers(exercise):
    its = standard(exercise)
    one, other = drawn(its, 1), drawn(its, 2)
    assert shapes(one) == shapes(other)
    assert any(not torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor))
    assert its.loads(one) == its.loads(other)
    assert its.loads(one) <= sum(value.nbytes for value in one.values() if isinstance(value, torch.Tensor))


def moved(name, answer=None):
    """The call of an answer at the standard size, and what it moved over the least to load and to store."""
    exercise = every()[name]
    its, source = standard(exercise), answer or source_of(exercise.alternatives[0], exercise.entry)
    inputs = drawn(its, 3)
    with start() as worker:
        (one,) = run(exercise, source, every(), worker, [(0, inputs)], 30)
    assert one.case.what is None
    counts = counted(one)
    refuse_impossible(its, exercise, one, counts)
    return one, counts["loaded"] - its.loads(inputs), counts["stored"] - least_stored(one.value)


@pytest.mark.parametrize("name", ["09.3", "09.10", "10.1", "10.4", "10.5"])  # some of their inputs need not be read
def test_right_answers_are_right_there_and_move_no_less_than_the_least(name):
    _, more_loaded, more_stored = moved(name)
    assert more_loaded >= 0
    assert more_stored >= 0


def test_a_kernel_that_reads_and_writes_everything_once_moves_the_least():
    one, more_loaded, more_stored = moved("10.3", HONEST)
    assert (more_loaded, more_stored) == (0, 0)
    with pytest.raises(Refused, match=r"Faster than the roof: it loaded 9 bytes, and 192,000"):
        refuse_impossible(standard(every()["10.3"]), every()["10.3"], one, {"loaded": 9, "stored": 10**9})
    with pytest.raises(Refused, match=r"it stored 9 bytes, and its results have 96,000"):
        refuse_impossible(standard(every()["10.3"]), every()["10.3"], one, {"loaded": 10**9, "stored": 9})


def test_counts_that_no_launch_has_are_refused():
    one, _, _ = moved("09.4")
    (launch,) = one.launches
    for told in ({"load_bytes": -(10**9)}, {"load_bytes": 1.5}, {"store_bytes": True}, {"kernel": "x y"}, {"grid": 7}):
        with pytest.raises(Refused, match=r"in a form that no launch has|no number of bytes"):
            counted(replace(one, launches=(launch | told,)))
    for told in ({}, {"operations": 1, "load_bytes": "many", "store_bytes": 0}):
        with pytest.raises(Refused, match="no number of bytes"):
            counted(replace(one, beside=told))


def test_an_exercise_without_a_size_of_its_own_takes_its_largest_fixed_case(pilots):
    its = standard(pilots["10.9"])
    assert drawn(its, 1)["x_ND"].shape == (5, 129)
    assert its.loads(drawn(its, 1)) == 0
    with pytest.raises(GradingError, match="no size"):
        standard(replace(pilots["10.9"], cases=0))
