import itertools
import time

import matplotlib.pyplot as plt
import pytest

from course.hardware.pipeline import Times, run
from course.hardware.schedules import SCHEDULES, dualpipe, dualpipe_v, one_f_one_b, zero_bubble

EVEN = Times(forward=1, backward=2, weights=1)
UNEVEN = Times(forward=1.13, backward=1.99, weights=0.48)


def each(stages, micro_batches):
    """The schedules for so many stages."""
    for name, make in SCHEDULES.items():
        yield make(stages // 2 if name == "DualPipeV" else stages, micro_batches)


@pytest.mark.parametrize("stages", [2, 4, 8, 16])
@pytest.mark.parametrize("times", [EVEN, UNEVEN, Times(3, 7, 3)])
def test_bubbles_of_one_direction_are_the_published_ones(stages, times):
    F, B, W = times.forward, times.backward, times.weights
    for micro_batches in (stages, 3 * stages + 1):
        assert run(one_f_one_b(stages, micro_batches), times).bubble == pytest.approx([(stages - 1) * (F + B)] * stages)
        split = run(zero_bubble(stages, micro_batches), times).bubble
        assert split == pytest.approx([(stages - 1) * (F + B - 2 * W)] * stages)


@pytest.mark.parametrize("stages", [4, 6, 8, 16])
@pytest.mark.parametrize("both", [None, 2.5, 2.0])
def test_dualpipes_longest_bubble_is_the_published_one_where_passes_are_even(stages, both):
    times = Times(1, 2, 1, both)
    published = (stages / 2 - 1) * ((3 if both is None else both) + 2 - 3 * 1)
    for micro_batches in (2 * stages, 2 * stages + 4):
        assert max(run(dualpipe(stages, micro_batches), times).bubble) == pytest.approx(published)
        assert max(run(dualpipe_v(stages // 2, micro_batches), times).bubble) == pytest.approx(published)


def test_activations_held_and_copies_are_the_published_ones():
    held = {schedule.name: (max(run(schedule, EVEN).most_held), schedule.copies) for schedule in each(8, 20)}
    assert held == {"1F1B": (8, 1), "ZB1P": (8, 1), "DualPipe": (9, 2), "DualPipeV": (9, 1)}


@pytest.mark.parametrize("micro_batches", [16, 20])
def test_every_micro_batch_goes_once_each_way_through_every_stage(micro_batches):
    for schedule in each(8, micro_batches):
        parts = [part for order in schedule.ranks for slot in order for part in slot.parts]
        assert len(parts) == len(set(parts))
        wanted = {(stage, micro) for stage in range(8) for micro in range(micro_batches)}
        assert {part[1:] for part in parts if part[0] == "F"} == wanted
        back = [part[1:] for part in parts if part[0] in "BI"]
        assert len(back) == len(wanted)
        assert set(back) == wanted
        apart = {part[1:] for part in parts if part[0] == "I"}
        assert {part[1:] for part in parts if part[0] == "W"} == apart


@pytest.mark.parametrize("send", [0.0, 0.25])
def test_nothing_starts_before_what_it_needs_has_come(send):
    for schedule in each(8, 16):
        times = Times(1, 2, 1, 2.5, send)
        made = {}
        for work in run(schedule, times).done:
            for what, stage, micro in work.slot.parts:
                made["I" if what == "B" else what, stage, micro] = work
        for (what, stage, micro), work in made.items():
            if what == "F" and stage:
                assert work.start >= made["F", stage - 1, micro].end + send - 1e-9
            if what == "I" and stage < 7:
                assert work.start >= made["I", stage + 1, micro].end + send - 1e-9
            if what in "IW":
                assert work.start >= made["F" if what == "I" else "I", stage, micro].end - 1e-9


def test_a_rank_does_one_thing_at_a_time():
    for schedule in each(8, 16):
        for rank in range(len(schedule.ranks)):
            its = sorted((work.start, work.end) for work in run(schedule, UNEVEN).done if work.rank == rank)
            assert all(later[0] >= earlier[1] - 1e-9 for earlier, later in itertools.pairwise(its))


def test_twice_the_times_make_twice_the_span():
    for schedule in each(8, 16):
        assert run(schedule, Times(2, 4, 2)).span == pytest.approx(2 * run(schedule, EVEN).span)


def test_more_micro_batches_thin_the_bubble_out():
    for name in SCHEDULES:
        few, many = (run(SCHEDULES[name](8, count), EVEN).bubble_share for count in (16, 64))
        assert 3 < few / many < 5


def test_sending_lengthens_the_way_there_and_back_at_least():
    for schedule in each(8, 16):
        way = 2 * (schedule.stages - 1) * 0.5 if schedule.name in ("1F1B", "ZB1P") else 7 * 0.5
        assert run(schedule, Times(1, 2, 1, send=0.5)).span >= run(schedule, EVEN).span + way - 1e-9


def test_a_schedule_of_2048_gpus_takes_under_two_seconds():
    began = time.process_time()
    for schedule in each(16, 120):  # 16 stages, and 128 such pipelines beside each other that do the same
        assert run(schedule, UNEVEN).span > 0
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("make", "ranks", "micro_batches", "says"),
    [
        (one_f_one_b, 8, 7, "7 micro-batches do not fill"),
        (dualpipe, 8, 14, "16 or more"),
        (dualpipe, 7, 20, "even number of ranks"),
        (dualpipe, 8, 21, "not 8 and 21"),
        (dualpipe_v, 8, 15, "16 or more"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(make, ranks, micro_batches, says):
    with pytest.raises(ValueError, match=says):
        make(ranks, micro_batches)


def test_a_drawing_has_a_row_for_each_rank():
    for schedule in each(8, 16):
        _, axis = plt.subplots()
        run(schedule, EVEN).draw(axis)
        assert axis.get_title() == schedule.name
        drawn = sum(len(bars.get_paths()) for bars in axis.collections)
        assert drawn == sum(len(order) for order in schedule.ranks)
        plt.close()
