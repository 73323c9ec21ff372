"""What was never loaded or never written shows."""

import torch
import triton
import triton.language as tl

from course.kernels.checked import checked
from course.kernels.low_precision import POISON


@triton.jit
def masked_load(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n))


@triton.jit
def masked_load_of_zeros(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0))


@triton.jit
def reduce_unmasked(x, out, n, BLOCK: tl.constexpr):
    values = tl.load(x + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < n)
    tl.store(out, tl.sum(values))
    tl.store(out + 1, tl.max(values))
    tl.store(out + 2, tl.min(values))


@triton.jit
def follow(index, x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + tl.load(index + i, mask=i < n)))


@triton.jit
def half_written(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), 1.0)


@triton.jit
def masked_scalar_of_zero(x, out, there):
    tl.store(out, tl.load(x, mask=there > 0, other=0.0))


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def test_masked_off_lanes_of_floats_hold_nan():
    for dtype in FLOATS:
        out = torch.zeros(8, dtype=dtype)
        with checked():
            masked_load[(1,)](torch.ones(5).to(dtype), out, 5, BLOCK=8)
        assert out.float().isnan().tolist() == [False] * 5 + [True] * 3, dtype


def test_other_is_taken_where_it_is_a_single_zero():
    out = torch.ones(2)
    with checked():
        masked_load_of_zeros[(1,)](torch.ones(1), out, 0, BLOCK=1)
        masked_scalar_of_zero[(1,)](torch.ones(1), out[1:], 0)
    assert out.tolist() == [0.0, 0.0]


def test_masked_off_lanes_of_integers_hold_the_poison():
    for dtype in INTEGERS:
        out = torch.zeros(8, dtype=dtype)
        with checked():
            masked_load[(1,)](torch.ones(5, dtype=dtype), out, 5, BLOCK=8)
        bits = 8 * dtype.itemsize
        assert [int(v) % (1 << bits) for v in out[5:]] == [POISON % (1 << bits)] * 3, dtype


def test_other_is_what_masked_off_lanes_hold_when_it_is_given():
    for dtype in FLOATS + INTEGERS:
        out = torch.full((8,), 3).to(dtype)
        with checked():
            masked_load_of_zeros[(1,)](torch.ones(5).to(dtype), out, 5, BLOCK=8)
        assert out.float().tolist() == [1] * 5 + [0] * 3, dtype


def test_reductions_do_not_hide_what_was_not_loaded():
    out = torch.zeros(3)
    with checked():
        reduce_unmasked[(1,)](torch.ones(5), out, 5, BLOCK=8)
    assert out.isnan().all()


def test_an_index_that_was_not_loaded_leads_out_of_bounds(in_child):
    index, x = torch.arange(5, dtype=torch.int32), torch.zeros(5)
    said = in_child(lambda: follow[(1,)](index, x, torch.zeros(8), 5, BLOCK=8))
    assert f"loads x[{POISON % (1 << 32)}], but x has 5 elements" in said


def test_fresh_memory_is_poisoned_only_inside():
    with checked():
        fresh = [
            torch.empty(4),
            torch.empty_like(torch.ones(4)),
            torch.ones(2).new_empty(4),
            torch.empty_strided((4,), (1,)),
        ]
        assert all(t.isnan().all() for t in fresh)
        assert torch.empty(2, dtype=torch.float8_e4m3fn).float().isnan().all()
        assert torch.empty(2, dtype=torch.bfloat16).isnan().all()
        assert torch.empty(2, dtype=torch.int64).tolist() == [POISON] * 2
        assert torch.zeros(4).tolist() == [0] * 4
        assert torch.empty(2, requires_grad=True).isnan().all()


def test_an_element_that_no_program_writes_stays_nan():
    with checked():
        out = torch.empty(6)
        half_written[(1,)](out, BLOCK=4)
    assert out.isnan().tolist() == [False] * 4 + [True] * 2
