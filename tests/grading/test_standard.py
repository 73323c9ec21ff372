"""The standard sizes: the same for everybody, right answers are right there, and nobody moves less than the least."""

import re
from dataclasses import replace

import pytest
import torch
from cheats import HONEST

from course.checking.answer import source_of
from course.checking.judge import run
from course.checking.launch import start
from course.checking.wire import tree
from course.exercises import every
from course.grading import GradingError
from course.grading.bench import Refused, counted, refuse_impossible
from course.grading.standard import drawn, least_stored, standard
from course.kernels.checked import checked

MOST = {  # times the least that the first right answer of each exercise may move: what its tiles read again
    "11.2": 2.3,  # ids twice, by two launches, and a table of counts
    "11.4": 2.7,  # rows once for 32 columns of a weight, a weight once for 32 rows
    "11.5": 3.3,  # tokens once for 16 columns of gate and up
    "11.6": 1.02,
    "12.1": 1.02,
    "12.2": 3.7,  # each row's product is written, and read again by its token
    "12.3": 1.7,  # tokens and gradients once for a tile of 32 x 32
    "12.4": 1.0,
    "13.1": 1.0,
    "13.2": 2.4,
    "13.4": 2.95,  # a scale for each code
    "14.1": 1.0,
    "14.2": 2.5,  # keys and values once for 32 queries of a head
    "14.3": 1.01,
    "14.4": 1.04,
    "14.5": 2.9,  # keys once for each query
}
BYTES = {"i64": 8, "i32": 4, "fp32": 4, "bf16": 2, "fp8e4nv": 1, "u8": 1}
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


def called(name, source):
    """One call of an answer at the standard size."""
    with start() as worker:
        (one,) = run(every()[name], source, every(), worker, [(0, drawn(standard(every()[name]), 3))], 30)
    return one


def moved(name, answer=None):
    """The call of an answer at the standard size, and what it moved over the least to load and to store."""
    exercise = every()[name]
    its, one = standard(exercise), called(name, answer or source_of(exercise.alternatives[0], exercise.entry))
    assert one.case.what is None
    counts = counted(one)
    refuse_impossible(its, exercise, one, counts)
    return one, counts["loaded"] - its.loads(one.inputs), counts["stored"] - least_stored(one.value)


@pytest.mark.parametrize("name", ["09.3", "09.10", "10.1", "10.4", "10.5"])  # some of their inputs need not be read
def test_right_answers_are_right_there_and_move_no_less_than_the_least(name):
    _, more_loaded, more_stored = moved(name)
    assert more_loaded >= 0
    assert more_stored >= 0


@pytest.mark.parametrize("name", MOST)
def test_the_first_right_answer_moves_the_least_a_stated_number_of_times_at_most(name):
    one, more_loaded, more_stored = moved(name)
    its = standard(every()[name])
    loads, stores = its.loads(one.inputs), least_stored(one.value)
    assert more_loaded >= 0
    assert more_stored >= 0
    assert round(1 + (more_loaded + more_stored) / (loads + stores), 2) <= MOST[name]
    counts = {"loaded": loads, "stored": stores}
    refuse_impossible(its, every()[name], one, counts)
    for what in counts:
        with pytest.raises(Refused, match="Faster than the roof"):
            refuse_impossible(its, every()[name], one, counts | {what: counts[what] - 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_no_right_answer_reads_fewer_different_bytes_than_the_least(name):
    exercise, its = every()[name], standard(every()[name])
    inputs, read = drawn(its, 4), []
    for answer in exercise.alternatives[: 1 if name == "12.3" else 2]:  # in the second one PyTorch reads what is kept
        arguments = tree(inputs)
        with checked() as log:
            value = tree(answer(**arguments))
        assert exercise.compare(inputs, tree(exercise.reference(**inputs)), value) is None
        read.append(read_once(log.launches))
    assert its.loads(inputs) <= min(read) <= 1.05 * its.loads(inputs)


def read_once(launches):
    """Bytes of all elements of all arguments that no launch writes, each counted once however often it was read."""
    written = {access.argument for launch in launches for access in launch.accesses if access.kind != "load"}
    elements, width = {}, {}
    for launch in launches:
        for access in launch.accesses:
            if access.argument not in written:
                elements.setdefault(access.argument, set()).update(access.elements.tolist())
                width[access.argument] = BYTES[launch.signature[access.argument].lstrip("*")]
    return sum(width[name] * len(seen) for name, seen in elements.items())


HIDES = """
import sys
Launch = sys.modules["course.kernels.launch"].Launch
told = Launch.to_json
Launch.to_json = lambda self: told(self) | {"%s": 0}
"""


@pytest.mark.parametrize("name", ["11.6", "12.3", "13.1", "14.4"])
@pytest.mark.parametrize(("what", "says"), [("load_bytes", "it loaded 0 bytes"), ("store_bytes", "it stored 0 bytes")])
def test_an_entry_that_hides_what_it_moves_is_refused(name, what, says):
    exercise = every()[name]
    with pytest.raises(Refused, match=says):
        moved(name, HIDES % what + source_of(exercise.alternatives[0], exercise.entry))


@pytest.mark.parametrize(
    ("name", "all_of_it", "less"),
    [
        ("11.4", "range(0, K, BLOCK_K)", "range(0, K - BLOCK_K, BLOCK_K)"),  # not all is read
        ("12.3", "range(begin, end, BLOCK_P)", "range(begin, end - 1, BLOCK_P)"),
        ("13.1", "mask=inside)", "mask=inside & (n > 0))"),  # not all is written
        ("14.4", "range(0, length, SIZE)", "range(0, length - SIZE, SIZE)"),
    ],
)  # fmt: skip
def test_an_entry_that_leaves_something_out_is_wrong_at_the_standard_size(name, all_of_it, less):
    exercise = every()[name]
    source = source_of(exercise.alternatives[0], exercise.entry)
    assert all_of_it in source
    assert re.search("differ|relative error|NaN", called(name, source.replace(all_of_it, less)).case.what)


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
