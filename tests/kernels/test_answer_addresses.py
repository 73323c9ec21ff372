"""Offsets in the right answers of unit 11, at sizes that no case can hold: the check cannot tell, a test can."""

from pathlib import Path

import pytest
import torch

from course.exercises.u11 import expert_places, gather_gate_up, grouped_product, weighted_combine

from address_ranges import overflows  # isort: skip

T, K, E, D, I = 2**20, 8, 512, 7168, 2048  # noqa: E741
P, LONG, BF16 = T * K, torch.int64, torch.bfloat16


def product(answer):
    return answer(meta(P, D), meta(E, D, I), meta(E, I), meta(E + 1, of=LONG))


def gate_up(answer):
    tiles = (meta(P // 64 + E, of=LONG) for _ in range(3))
    return answer(meta(T, D), meta(E, 2 * I, D), meta(P, of=LONG), *tiles, K, 64)


def combine(answer):
    return answer(meta(P, D), meta(T, K, of=LONG), meta(T, K, of=torch.float32), meta(T, D))


def places(answer):
    return answer(meta(T, K, of=LONG), 0, E)


def meta(*shape, of=BF16):
    return torch.empty(shape, dtype=of)


CALLS = {expert_places: places, grouped_product: product, gather_gate_up: gate_up, weighted_combine: combine}


@pytest.mark.deep
def test_no_offset_in_a_right_answer_wraps_around(tmp_path):
    jobs = {}
    for file, call in CALLS.items():
        for answer in file.EXERCISE.alternatives:
            jobs[answer.__name__] = Path(file.__file__), lambda call=call, answer=answer: call(answer)
    path, call = jobs["all_slots_at_once"]
    narrow = tmp_path / "narrow.py"
    narrow.write_text(path.read_text().replace("t, k = tl.program_id(0).to(tl.int64),", "t, k = tl.program_id(0),"))
    jobs["narrow"] = narrow, call
    with torch.device("meta"):
        found = overflows(jobs, largest=P)
    assert found.pop("narrow")
    assert not any(found.values()), found
