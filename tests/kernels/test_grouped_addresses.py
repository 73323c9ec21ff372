"""Offsets of the mixture's kernels where tensors have more elements than 32 bits count: no sum or product wraps around."""

from pathlib import Path

import pytest
import torch

from course.kernels import combine, expert_offsets, grouped_gate_up, grouped_gemm
from course.kernels import grouped_swiglu_backward as swiglu
from course.kernels import grouped_weight_gradient as gradient

from address_ranges import beyond, overflows  # isort: skip

T, K, E, D, I = 2**20, 8, 512, 7168, 2048  # noqa: E741
P = T * K
LONG = torch.int64


def meta(*shape, of=torch.bfloat16):
    return torch.empty(shape, dtype=of, device="meta")


def x():
    return meta(T, D)


def order():
    return meta(P, of=LONG), meta(E + 1, of=LONG)


def experts():
    return meta(E, 2 * I, D), meta(E, D, I)


SMALL = {"block": (64, 64, 32), "num_warps": 4, "num_stages": 1}  # compiled sooner, with the same arithmetic on offsets


def gate_up():
    grouped_gate_up.grouped_gate_up(x(), experts()[0], *order(), **SMALL)


def gathered():
    grouped_gemm.grouped_gemm(x(), experts()[0], *order(), **SMALL)


def products():
    gathered()
    grouped_gemm.grouped_gemm(meta(P, I), experts()[1], None, order()[1], **SMALL)
    grouped_gemm.grouped_gemm(meta(P, 2 * I), experts()[0].mT, None, order()[1], **SMALL)  # dx


def back_through_swiglu():
    weights, places = meta(T, K, of=torch.float32), meta(T, K, of=LONG)
    swiglu.grouped_swiglu_backward(x(), x(), *experts(), weights, *order(), places, **SMALL)


def gradient_of_down():
    gradient.grouped_weight_gradient(x(), meta(P, I), order()[0], None, order()[1], **SMALL)


def weights_gradients():
    gradient.grouped_weight_gradient(meta(P, 2 * I), x(), None, *order(), **SMALL)
    gradient_of_down()


def weighted_sum():
    combine.combine(meta(P, D), meta(T, K, of=LONG), meta(T, K, of=torch.float32))


def places():
    expert_offsets.expert_offsets(meta(T, K, of=LONG), E)


CALLS = {
    gate_up: grouped_gate_up,
    products: grouped_gemm,
    back_through_swiglu: swiglu,
    weights_gradients: gradient,
    weighted_sum: combine,
    places: expert_offsets,
}


MUTANTS = {  # what makes an offset one of 64 bits, and what it would be without
    "the expert's": (grouped_gemm, gathered, "return expert.to(tl.int64), first,", "return expert, first,"),
    "the result's": (grouped_gemm, gathered, "out + first * N", "out + first.to(tl.int32) * N"),
    "a weight gradient's": (
        gradient,
        gradient_of_down,
        "(tl.program_id(0) // tiles).to(tl.int64)",
        "tl.program_id(0) // tiles",
    ),
    "a pair's": (
        swiglu,
        back_through_swiglu,
        "at = (first + m)[:, None] * width",
        "at = (first + m).to(tl.int32)[:, None] * width",
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    jobs = {call.__name__: (Path(file.__file__), call) for call, file in CALLS.items()}
    for number, (name, (file, call, right, wrong)) in enumerate(MUTANTS.items()):
        text = Path(file.__file__).read_text()
        assert text.count(right) == 1
        mutant = tmp_path_factory.mktemp("mutants") / f"mutant_{number}.py"
        mutant.write_text(text.replace(right, wrong))
        jobs[name] = mutant, call
    return overflows(jobs, largest=P)


@pytest.mark.parametrize("name", [call.__name__ for call in CALLS])
def test_no_offset_wraps_around(name, found):
    assert found[name] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_an_offset_of_32_bits_would_be_found(name, found):
    assert found[name]


def test_32_bits_do_not_count_the_elements_of_these_tensors():
    assert beyond(T, D)
    assert beyond(P, I)
    assert beyond(E, 2 * I, D)
