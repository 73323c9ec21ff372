"""Known ways to cheat at a kernel benchmark: reading an entry refuses each, and so does running it, where it can be seen there."""

import re

import pytest
from cheats import CHEATS, HONEST, LOW, TWICE
from conftest import SMALL

from course.checking import judge
from course.checking.answer import AnswerError, source_of
from course.checking.launch import start
from course.exercises import every
from course.grading import bench as step
from course.grading.bench import bench
from course.grading.entry_rules import read_entry

LOOK_AROUND = [
    name for name in CHEATS if "a look at" in name or "thread" in name
]  # what these find is the sandbox's affair


class Forked:
    """Workers without a sandbox, which start at once."""

    limits = SMALL

    def start(self, exercise):
        return start()


@pytest.fixture
def unread(monkeypatch, workers):
    """Run an entry without reading or compiling it: why it is refused."""
    monkeypatch.setattr(step, "read_entry", lambda exercise, source: None)
    monkeypatch.setattr(step, "_figures", lambda *_: {})
    monkeypatch.setattr(judge, "MORE", 1)  # as many secret cases as public ones are enough here
    return lambda name: (
        bench("eve", every()["10.3"], CHEATS[name][0], workers if name in LOOK_AROUND else Forked()).refused
    )


@pytest.mark.parametrize("tried", [name for name, (_, read, _) in CHEATS.items() if read])
def test_reading_refuses(tried):
    source, says, _ = CHEATS[tried]
    with pytest.raises(AnswerError, match=r"^The leaderboard does not take it: line \d+ ") as refused:
        read_entry(every()["10.3"], source)
    assert re.search(says, str(refused.value)), refused.value


@pytest.mark.parametrize("tried", [name for name, (_, _, ran) in CHEATS.items() if ran])
def test_running_refuses(unread, tried):
    refused = unread(tried)
    assert refused, "it was not refused"
    assert re.search(CHEATS[tried][2], refused), refused


def test_an_honest_entry_reads_well():
    read_entry(every()["10.3"], HONEST)
    read_entry(every()["10.3"], TWICE)


@pytest.mark.parametrize("kind", ["bfloat16", "float8e5"])
def test_low_precision_reads_well_and_its_numbers_give_it_away(kind):
    read_entry(every()["10.3"], LOW.format(kind))


@pytest.mark.parametrize("exercise", [each for each in every().values() if each.kernel], ids=lambda each: each.id)
def test_every_right_answer_of_the_course_may_be_entered(exercise):
    for function in exercise.alternatives:
        read_entry(exercise, source_of(function, exercise.entry))


PLAIN = HONEST.split("def swiglu_clamped")[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("global x", r"statement \(global\)"),
        ("gate_up_NF.__class__", "uses `__class__`"),
        ("launch.kept = 1", "sets the attribute `kept`"),
        ("torch.sum = 1", r"changes `torch\.sum`"),
        ("torch = 1", "uses `torch` other than for a name in it"),
        ("t = torch", "uses `torch` other than for a name in it"),
        ("tl.core", r"uses `triton\.language\.core`"),
        ("tl.math.core", r"uses `triton\.language\.core`"),
        ("triton.runtime", r"uses `triton\.runtime`"),
        ("getattr(torch, 'os')", "uses `getattr`"),
        ("eval('1')", "uses `eval`"),
        ("print(1)", "uses `print`"),
        ("yield 1", "computes later"),
        ("open = 1", "gives something the name `open`"),
        ("try:\n        pass\n    except ValueError:\n        pass", r"statement \(try\)"),
        ("import os", "imports `os`"),
        ("from torch import os", r"imports `torch\.os`"),
        ("import numpy as torch; torch.load", r"uses `numpy\.load`"),
        ("gate_up_NF.data_ptr()", r"uses `\.data_ptr`"),
        ("pairs.fn", r"uses `\.fn`"),
        ("from torch import Tensor\n    import triton.language as t\n    t.math.exp(1.0)", None),
    ],
)
def test_what_an_entry_may_be_written_in(line, says):
    source = f"{PLAIN}def swiglu_clamped(gate_up_NF, limit, offset):\n    {line}\n"
    if says is None:
        read_entry(every()["10.3"], source)
        return
    with pytest.raises(AnswerError, match=says):
        read_entry(every()["10.3"], source)


@pytest.mark.parametrize(
    "top", ["kept = [0] * 8", "kept = torch.zeros(8)", "print(1)", "for i in range(3): pass", "class Kept: pass",
            "f = lambda: 1", "@staticmethod\ndef f(): pass",
            "def f(kept=[]): pass",
            "@triton.heuristics({'B': lambda args, kept=[]: kept})\n@triton.jit\ndef f(): pass",
            "@triton.jit(noinline=[])\ndef f(): pass",
            "@(lambda kept: triton.jit)([])\ndef f(): pass"]
)  # fmt: skip
def test_nothing_outlasts_a_call(top):
    with pytest.raises(AnswerError, match="does not take it"):
        read_entry(every()["10.3"], top + "\n" + PLAIN + "def swiglu_clamped(gate_up_NF, limit, offset):\n    pass\n")


def test_constants_may_stand_outside():
    constants = "BLOCK: tl.constexpr = tl.constexpr(64)\nSIZES = (1, 2 * 8, -3)\nKIND = tl.float32\n"
    read_entry(every()["10.3"], constants + HONEST)
