"""Measuring, without a GPU: a rehearsal on the CPU, and what would be refused. The GPU's part was not run."""

import pytest
import torch
from cheats import CHEATS, HONEST

from course.checking.judge import Case, Try, loading
from course.exercises import every
from course.grading import measured, sandbox
from course.grading.bench import Refused
from course.grading.measured import Card, refuse_faster_than_the_roof, refuse_two_clocks, seconds_of
from course.grading.sandbox import isolated

EXERCISE = every()["10.3"]


@pytest.fixture
def rehearse(workers, monkeypatch):
    monkeypatch.setattr(measured, "AGAIN", 1)
    monkeypatch.setattr(measured, "WARM", 1)
    return lambda source: Card("a rehearsal", "cpu", rounds=2).measure(EXERCISE, source, workers)


def timed(**times):
    times = {"seconds": 1e-3, "idle": 1e-3, "settled": True} | times
    return Try({}, Case(0, "N=1"), torch.zeros(1), True, times=times)


def test_a_rehearsal_goes_through_all_of_it(rehearse):
    found = rehearse(HONEST)
    assert found["seconds"] > 0
    assert found["share_of_roof"] > 0


def test_a_timed_result_is_compared_as_a_judged_one_is(rehearse):
    with pytest.raises(Refused, match="Wrong at the standard size"):
        rehearse(HONEST.replace("up + offset", "up"))


def test_a_result_that_depends_on_how_often_it_was_asked_for_is_refused(rehearse):
    with pytest.raises(Refused, match="other bits the second time"):
        rehearse(CHEATS["other bits each time"][0])


def test_work_on_another_stream_is_seen_by_the_device():
    assert seconds_of(timed(idle=1.1e-3)) == 1e-3
    with pytest.raises(Refused, match="another stream"):
        seconds_of(timed(idle=5e-3))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), 1e9, "soon", None])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(Refused, match="a time that no call takes"):
        seconds_of(timed(seconds=seconds, idle=seconds))


def test_a_result_that_changes_after_the_return_is_refused():
    with pytest.raises(Refused, match="changed after it had been returned"):
        seconds_of(timed(settled=False))


def test_what_is_faster_than_a_copy_on_the_same_card_is_refused():
    refuse_faster_than_the_roof(1e-6, 3_000_000, 3e12)
    with pytest.raises(Refused, match="Faster than the roof"):
        refuse_faster_than_the_roof(1e-6, 3_000_000, 2e12)


def test_a_clock_outside_finds_a_time_that_is_too_good():
    refuse_two_clocks(1e-3, 3e-3)
    with pytest.raises(Refused, match="by the clock outside"):
        refuse_two_clocks(1e-6, 5e-3)


def test_a_sandbox_with_a_gpu_holds_its_devices_and_one_without_does_not(tmp_path, monkeypatch):
    real = sandbox.Path.glob
    monkeypatch.setattr(
        sandbox.Path,
        "glob",
        lambda self, pattern: [sandbox.Path("/dev/nvidia0")] if pattern == "nvidia*" else real(self, pattern),
    )
    assert "/dev/nvidia0" in isolated(["python"], tmp_path, gpu=True)
    assert "/dev/nvidia0" not in isolated(["python"], tmp_path)


def test_a_worker_with_the_wider_sandbox_comes_up(workers):
    with workers.start(EXERCISE, gpu=True) as worker:
        source = "import os\nprint(os.path.exists('/usr/bin/env'), os.path.exists('/etc/passwd'), os.getuid())\n"
        worker.request(loading(EXERCISE, source + HONEST, every()), 20)
    assert worker.printed().split() == ["True", "False", "65534"]
