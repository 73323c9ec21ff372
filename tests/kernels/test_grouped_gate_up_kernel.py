"""Gate, up and SwiGLU in one kernel: equal to float64 however the rows are shared out, rounded once, tensor cores on sm_90."""

import re

import pytest
import torch
import torch.nn.functional as F

from course.kernels import grouped_gate_up as file
from course.kernels.checked import checked
from course.kernels.grouped_gate_up import grouped_gate_up, grouped_gate_up_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.kernels.swiglu import swiglu

from kernel_measures import DTYPES, SHARES, STEP, Traffic, grouped, grouped_exact, relative_error, rounded_once  # isort: skip

BLOCK = (16, 16, 32)


def inputs(counts, width=20, D=50, tokens=9, dtype=torch.float32, gather=True):
    """x, the experts' gate and up, the token of each row and the offsets. Products are of a size about 1."""
    x, gate_up, rows, offsets = grouped(counts, 2 * width, D, tokens, dtype, gather)
    return x, gate_up / max(D, 1) ** 0.5, rows, offsets


def exact(x, gate_up, rows, offsets):
    gate, up = grouped_exact(x, gate_up, rows, offsets).chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("counts", SHARES.values(), ids=SHARES)
def test_it_equals_float64_however_rows_are_shared_out(counts):
    for gather in (True, False):
        given = inputs(counts, gather=gather)
        with checked() as log:
            got = grouped_gate_up(*given, block=BLOCK)
        assert relative_error(got, exact(*given)) < 1e-6
        torch.testing.assert_close(got, grouped_gate_up_torch(*given))
        assert log.launches[0].stores == got.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_sizes_in_every_dtype_are_rounded_once(dtype):
    for width, D in ((1, 1), (17, 31), (7, 100), (32, 16)):
        given = inputs([5, 0, 19], width, D, dtype=dtype)
        with checked():
            got = grouped_gate_up(*given, block=BLOCK)
        assert (got.shape, got.dtype) == ((24, width), dtype)
        assert relative_error(got, exact(*given)) <= max(STEP[dtype], 1e-6), (width, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gate_and_up_are_not_rounded_on_the_way(dtype):
    x, gate_up, rows, offsets = inputs([70, 58], 96, 64, dtype=dtype, gather=False)
    given = x.abs(), gate_up.abs(), rows, offsets  # nothing cancels
    with checked():
        got = grouped_gate_up(*given, block=(64, 32, 64))
    rounded_once(got, exact(*given))


def test_large_gates_neither_overflow_nor_turn_into_nan():
    x, gate_up = torch.ones(2, 16), torch.zeros(1, 2, 16)
    gate_up[0, 1] = 1.0
    for size, wanted in ((1000.0, 1000.0 * 16 * 16), (-1000.0, 0.0)):
        gate_up[0, 0] = size
        with checked():
            got = grouped_gate_up(x, gate_up, None, torch.tensor([0, 2]), block=BLOCK)
        assert torch.equal(got, torch.full((2, 1), wanted))


def test_no_rows_no_columns_or_nothing_to_sum():
    for counts, width, D in (([0, 0], 5, 6), ([2, 3], 0, 6), ([2, 3], 5, 0)):
        with checked():
            got = grouped_gate_up(*inputs(counts, width, D))
        assert torch.equal(got, torch.zeros(sum(counts), width))


def test_rows_behind_the_last_expert_are_neither_read_nor_written():
    x, gate_up, rows, offsets = inputs([4, 0, 19])
    behind = torch.cat([rows, torch.full((30,), 10**9)])
    with checked():
        got = grouped_gate_up(x, gate_up, behind, offsets, block=BLOCK)
    assert relative_error(got[:23], exact(x, gate_up, rows, offsets)) < 1e-6
    assert got[23:].isnan().all()  # as fresh memory is here


def test_tensors_are_read_where_they_lie():
    x, gate_up, rows, offsets = inputs([5, 0, 19], 20, 24)
    x, gate_up = x.repeat(1, 2)[:, ::2], gate_up.transpose(1, 2).contiguous().transpose(1, 2)
    with checked():
        got = grouped_gate_up(x, gate_up, rows, offsets, block=BLOCK)
    assert relative_error(got, exact(x, gate_up, rows, offsets)) < 1e-6


def test_the_two_products_never_reach_memory():
    x, gate_up, rows, offsets = inputs([5, 0, 19], 35, 50, dtype=torch.bfloat16)
    columns, tiles, programs = 3, 3, 3 * (24 // 16 + 3)
    with checked() as log:
        got = grouped_gate_up(x, gate_up, rows, offsets, block=BLOCK)
    (launch,) = log.launches
    assert launch.grid == (programs,)
    assert launch.store_bytes == got.nbytes
    order = columns * rows.nbytes + programs * (3 + 2) * 8
    assert launch.load_bytes == columns * 24 * 50 * 2 + tiles * 70 * 50 * 2 + order


def test_the_docstring_counts_the_elements_and_the_gain_of_eager_pytorch_right():
    P, width, D = 64, 24, 32
    x, gate_up, rows, offsets = inputs([40, 24], width, D, tokens=P)
    ends = offsets[1:].int()
    with torch.no_grad(), Traffic() as traffic:
        both = F.grouped_mm(x.index_select(0, rows), gate_up.transpose(1, 2), offs=ends)
    with checked() as log:
        swiglu(both)
    moved = traffic.bytes + log.launches[0].load_bytes + log.launches[0].store_bytes
    assert moved == 4 * P * (3 * D + 5 * width) + gate_up.nbytes + rows.nbytes + ends.nbytes
    around, products = (2 * 7168 + 3 * 2048) * 2 / 3.35e12, 2 * 7168 * 2 * 2048 / 990e12
    assert 1 + around / products == pytest.approx(1.21, abs=0.005)


def test_on_hopper_it_uses_tensor_cores_and_spills_nothing_at_deepseek_v3_s_sizes():
    def called(P, E, width, D, dtype, **settings):
        x, gate_up = (torch.empty(size, dtype=dtype, device="meta") for size in ((P, D), (E, 2 * width, D)))
        rows, offsets = (x.new_empty(size, dtype=torch.int64) for size in (P, E + 1))
        return grouped_gate_up(x, gate_up, rows, offsets, **settings)

    launches = launches_of(
        lambda: (
            called(8192, 8, 2048, 7168, torch.bfloat16),
            called(8192, 8, 2048, 7168, torch.float32),
            called(
                5, 1, 1, 33, torch.bfloat16, block=(64, 64, 32)
            ),  # constants to the compiler: one expert, one column
        )
    )
    made, float32, odd = compile_all(file.__file__, launches, code=True)
    for each in (made, float32, odd):
        assert (each.error, each.spills) == (None, 0)
    assert "HGMMA.64x128x16.F32.BF16" in made.code["sass"]
    assert re.search(r"LDGSTS\S*\.128", made.code["sass"])  # the gather copies 16 bytes at a time, in the background
    assert "arith.extsi %w_expert" in made.code["ttir"]  # an expert's offset is an int64
    assert "HGMMA" not in float32.code["sass"]


def test_wrong_inputs_get_a_sentence():
    x, gate_up, rows, offsets = inputs([5, 4], 20, 50)
    for call, said in (
        (lambda: grouped_gate_up(x, gate_up[:, 1:], rows, offsets), r"\[2, 39, 50\] do not split into gate and up"),
        (lambda: grouped_gate_up(x[:, 1:], gate_up, rows, offsets), r"rows of \[9, 49\] do not fit experts' weights"),
        (lambda: grouped_gate_up(x.double(), gate_up, rows, offsets), "takes float32, bfloat16 and float16"),
        (lambda: grouped_gate_up(x, gate_up, rows, offsets[:2]), "2 experts have 3 offsets, not 2"),
        (lambda: grouped_gate_up(x, gate_up, rows, offsets, block=(16, 24, 16)), "powers of two from 16 up"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
