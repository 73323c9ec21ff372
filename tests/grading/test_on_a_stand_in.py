"""The way of an entry on a GPU, walked without one: "cuda" is this CPU, kernels are interpreted, another stream is a thread.

It shows that draws, requests, clocks and refusals fit together. It shows nothing of a driver, of CUDA's events, or of kernels
that a chip runs; a machine with a GPU has to.
"""

import json
import threading
import time
from dataclasses import replace

import pytest
import torch
from cheats import CHEATS, HONEST, cheat
from conftest import SMALL
from torch.overrides import TorchFunctionMode

from course.checking import judge, timed
from course.checking.launch import start
from course.exercises import every
from course.grading import bench_command, measured, standard
from course.grading.bench import Refused
from course.grading.measured import Card
from course.grading.workers import Workers
from course.kernels.checked import checked

EXERCISE, CARD = every()["10.3"], Card("a stand-in", "cuda", rounds=2)


class OnTheCpu(TorchFunctionMode):
    """Takes the CPU wherever "cuda" is asked for. A fork has it too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        here = {name: _here(value) for name, value in (kwargs or {}).items()}
        return func(*map(_here, args), **here)


def _here(value):
    return "cpu" if isinstance(value, str | torch.device) and str(value) == "cuda" else value


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def synchronize():
    """Until the device is idle: threads of this name are its other streams."""
    for thread in threading.enumerate():
        if thread.name == "stream":
            thread.join()


class Forked:
    """Workers without a sandbox; `sent`: the inputs of every request, and what else was asked."""

    limits = SMALL

    def __init__(self):
        self.sent, self.asked = [], []

    def start(self, exercise, interpret, gpu):
        assert (interpret, gpu) == (False, True)
        worker = start()
        request = worker.request

        def told(message, seconds):
            if message["op"] == "time":
                self.sent.append(message["arguments"])
                self.asked.append((message["device"], message["repeat"]))
            return request(message, seconds)

        worker.request = told
        return worker


@pytest.fixture
def stand_in(monkeypatch):
    """A card, twice the rows that are interpreted at the standard size, and few calls."""
    monkeypatch.setattr(timed, "EVENT", Event)
    monkeypatch.setattr(timed, "SYNCHRONIZE", synchronize)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(timed, "FLUSHED", 1 << 20)
    monkeypatch.setattr(measured, "AGAIN", 2)
    monkeypatch.setattr(measured, "WARM", 1)
    monkeypatch.setitem(standard.STANDARD, "10.3", replace(standard.STANDARD["10.3"], gpu=2))
    measured._copy.cache_clear()
    with OnTheCpu(), checked():  # Triton's own interpreter cuts bfloat16 off
        yield
    measured._copy.cache_clear()


def refused(source):
    with pytest.raises(Refused) as why:
        CARD.measure(EXERCISE, source, Forked())
    return str(why.value)


def test_every_call_has_inputs_of_its_own_and_the_first_come_again_at_the_end(stand_in):
    workers = Forked()
    found = CARD.measure(EXERCISE, HONEST, workers)
    assert 0 < found["seconds"] < 10
    assert 0 < found["share_of_roof"] < 1
    assert workers.asked == [("cuda", 1)] * 4 + [("cuda", 3)]
    assert all(inputs["gate_up_NF"].shape == (96, 2000) for inputs in workers.sent)
    first, *others, again, more = (inputs["gate_up_NF"] for inputs in workers.sent)
    assert torch.equal(first, again)
    assert torch.equal(first, more)
    assert not any(torch.equal(one, other) for one in [first, *others] for other in others if one is not other)


def test_results_that_were_kept_are_wrong_for_fresh_inputs(stand_in):
    assert refused(CHEATS["results kept by shape"][0]).startswith("Wrong at the standard size, N=96")


def test_other_bits_for_the_same_inputs_are_refused(stand_in):
    assert refused(CHEATS["other bits each time"][0].replace("48", "96")) == (
        "The same inputs gave other bits the second time."
    )


def test_work_on_another_stream_is_seen_by_a_device_that_is_not_idle(stand_in):
    body = (
        "out = fresh(gate_up_NF)\n    work = lambda: (time.sleep(0.05), launch(gate_up_NF, out, limit, offset))\n"
        "    threading.Thread(target=work, name='stream').start()\n    return out"
    )
    assert "it uses another stream" in refused(cheat(body, "import threading, time\n"))


def test_a_result_that_is_ready_only_later_is_none(stand_in):
    body = (
        "out = torch.zeros_like(fresh(gate_up_NF))\n    nothing[(1,)](gate_up_NF, BLOCK=1)\n"
        "    work = lambda: (time.sleep(1), launch(gate_up_NF, out, limit, offset))\n"
        "    threading.Thread(target=work).start()\n    return out"
    )
    assert refused(cheat(body, "import threading, time\n")).startswith("Wrong at the standard size")


def test_a_result_in_the_memory_of_an_input_is_refused(stand_in):
    assert "in the memory of the input `gate_up_NF`" in refused(CHEATS["a result in the memory of an input"][0])


def test_an_input_that_was_changed_is_refused(stand_in):
    changes = HONEST.replace(
        "tl.store(out + i", "tl.store(gate_up + 2 * i, gate, mask=i < count)\n    tl.store(out + i"
    )
    assert "changed" in refused(changes)


def test_a_clock_that_the_entry_set_to_nothing_is_faster_than_the_roof(stand_in):
    assert refused(CHEATS["another clock"][0]).startswith("Faster than the roof")


def test_a_clock_that_the_entry_slowed_is_held_against_the_one_outside(stand_in):
    slower = CHEATS["another clock"][0].replace("lambda *_: 1e-6", "lambda *_: 0.5")
    assert "by the clock outside it takes" in refused(slower)


class Half(Workers):
    """The sandbox for whatever is interpreted or compiled, and a fork for the stand-in."""

    def start(self, exercise, interpret=True, gpu=False):
        return start() if gpu else super().start(exercise, interpret)


@pytest.mark.slow
def test_the_command_ranks_by_the_median_time(workers, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_command, "your_card", lambda: CARD)
    monkeypatch.setattr(bench_command, "Workers", Half)
    monkeypatch.setattr(judge, "MORE", 1)  # as many secret cases as public ones are enough here
    slow = HONEST.replace("1024", "128")  # as many programs times as many, one after another
    for name, text in {"ann": HONEST, "bob": slow}.items():
        (tmp_path / f"{name}.py").write_text(text)
    out = tmp_path / "run.json"
    assert bench_command.bench_command("10.3", [tmp_path / "ann.py", tmp_path / "bob.py"], out) == 0
    told = json.loads(out.read_text())
    assert told["how"] == "measured on a stand-in"
    assert told["size"].startswith("N=96")
    ann, bob = told["entries"]
    assert [(each["rank"], each["student"], each["refused"]) for each in (ann, bob)] == [
        (1, "ann", None),
        (2, "bob", None),
    ]
    assert 0 < ann["seconds"] < bob["seconds"]
    assert "measured on a stand-in" in capsys.readouterr().out
