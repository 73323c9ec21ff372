"""Grouped products: equal to float64 however the rows are shared out, nothing read twice for nothing, tensor cores on sm_90."""

import re

import pytest
import torch

from course.kernels import grouped_gemm as file
from course.kernels.checked import checked
from course.kernels.grouped_gemm import grouped_gemm, grouped_gemm_torch, most_tiles
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of

from kernel_measures import DTYPES, SHARES, STEP, Traffic, grouped, relative_error  # isort: skip
from kernel_measures import grouped_exact as exact  # isort: skip

BLOCK = (16, 32, 32)
SHARES = SHARES | {"a row too many": [17, 33, 1], "no power of two": [1, 0, 15, 16, 2, 0, 1]}


def inputs(counts, N=40, K=50, tokens=9, dtype=torch.float32, gather=True):
    return grouped(counts, N, K, tokens, dtype, gather)


@pytest.mark.parametrize("counts", SHARES.values(), ids=SHARES)
def test_it_equals_float64_however_rows_are_shared_out(counts):
    for gather in (True, False):
        given = inputs(counts, gather=gather)
        with checked() as log:
            got = grouped_gemm(*given, block=BLOCK)
        assert relative_error(got, exact(*given)) < 1e-6
        torch.testing.assert_close(got, grouped_gemm_torch(*given))
        assert log.launches[0].stores == got.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_sizes_in_every_dtype_are_rounded_once(dtype):
    for N, K in ((1, 1), (33, 31), (7, 100), (64, 16)):
        given = inputs([5, 0, 19], N, K, dtype=dtype)
        with checked():
            got = grouped_gemm(*given, block=BLOCK)
        assert (got.shape, got.dtype) == ((24, N), dtype)
        assert relative_error(got, exact(*given)) <= max(STEP[dtype], 1e-6), (N, K)


def test_rounding_goes_neither_up_nor_down_on_the_whole():
    x, weight, rows, offsets = inputs([70, 26], 96, 64, dtype=torch.bfloat16, gather=False)
    given = x.abs(), weight.abs(), rows, offsets
    with checked():
        got = grouped_gemm(*given, block=(32, 32, 64))
    wanted = exact(*given)
    assert ((got.double() - wanted) / wanted).mean().abs() < 4 * 2**-9 / (3 * got.numel()) ** 0.5


def test_no_rows_no_columns_or_nothing_to_sum():
    for counts, N, K in (([0, 0], 5, 6), ([2, 3], 0, 6), ([2, 3], 5, 0)):
        with checked():
            got = grouped_gemm(*inputs(counts, N, K))
        assert torch.equal(got, torch.zeros(sum(counts), N))
    with checked():
        none = grouped_gemm(torch.zeros(0, 6), torch.zeros(2, 5, 6), None, torch.zeros(3, dtype=torch.int64))
    assert none.shape == (0, 5)


def test_rows_behind_the_last_expert_are_neither_read_nor_written():
    x, weight, rows, offsets = inputs([4, 0, 19])
    wanted = exact(x, weight, rows, offsets)
    rows = torch.cat([rows, torch.full((30,), 10**9)])
    with checked():
        got = grouped_gemm(x, weight, rows, offsets, block=BLOCK)
    assert relative_error(got[:23], wanted) < 1e-6
    assert got[23:].isnan().all()  # as fresh memory is here
    with checked():
        got = grouped_gemm(x, weight, rows, torch.zeros_like(offsets), block=BLOCK)
    assert got.isnan().all()


def test_tensors_are_read_where_they_lie():
    x, weight, rows, offsets = inputs([5, 0, 19], 20, 24)
    for one, w in ((x.T.contiguous().T, weight), (x.repeat(1, 2)[:, ::2], weight.transpose(1, 2)[:, :24].contiguous())):
        w = w if w.shape == weight.shape else w.transpose(1, 2)
        with checked():
            got = grouped_gemm(one, w, rows, offsets, block=BLOCK)
        assert relative_error(got, exact(one, w, rows, offsets)) < 1e-6


def test_there_are_tiles_for_every_sharing_and_no_pair_is_left_out():
    rng = torch.Generator().manual_seed(0)
    for _ in range(12):
        E = int(torch.randint(1, 6, (), generator=rng))
        counts = torch.randint(0, 40, (E,), generator=rng) * torch.randint(0, 2, (E,), generator=rng)
        given = inputs(counts.tolist(), 2, 3)
        with checked() as log:
            got = grouped_gemm(*given, block=(16, 16, 16))
        assert relative_error(got, exact(*given)) < 1e-6
        for launch in log.launches:
            assert sum(-(-count // 16) for count in counts.tolist()) <= launch.grid[0] == most_tiles(len(got), E, 16)


def test_a_tile_reads_its_own_rows_once_and_its_expert_s_weight_once():
    x, weight, rows, offsets = inputs([5, 0, 19], 70, 50, dtype=torch.bfloat16)
    columns, tiles, programs = 3, 3, 3 * most_tiles(24, 3, 16)
    with checked() as log:
        got = grouped_gemm(x, weight, rows, offsets, block=BLOCK)
    (launch,) = log.launches
    assert launch.grid == (programs,)
    assert launch.store_bytes == got.nbytes
    order = columns * rows.nbytes + programs * (3 + 2) * 8
    assert launch.load_bytes == columns * 24 * 50 * 2 + tiles * 70 * 50 * 2 + order


def test_the_host_reads_neither_rows_nor_offsets():
    with torch.device("meta"):
        x, weight, rows, offsets = (
            torch.empty(9, 50),
            torch.empty(4, 40, 50),
            torch.empty(99).long(),
            torch.empty(5).long(),
        )
    (launch,) = launches_of(lambda: grouped_gemm(x, weight, rows, offsets, block=BLOCK))
    assert launch.grid == (2 * (99 // 16 + 4),)


def test_the_docstring_counts_the_elements_and_the_gain_of_eager_pytorch_right():
    P, N, K = 64, 48, 32
    x, weight, rows, offsets = inputs([40, 24], N, K, tokens=P)
    ends = offsets[1:].int()
    with torch.no_grad(), Traffic() as traffic:
        torch.nn.functional.grouped_mm(x.index_select(0, rows), weight.transpose(1, 2), offs=ends)
    assert traffic.bytes == 4 * P * (3 * K + N) + weight.nbytes + rows.nbytes + ends.nbytes
    copy, product = 2 * 7168 * 2 / 3.35e12, 2 * 7168 * 4096 / 990e12
    assert 1 + copy / product == pytest.approx(1.14, abs=0.005)


def test_on_hopper_it_uses_tensor_cores_and_spills_nothing_at_deepseek_v3_s_sizes():
    def empty(*shape, of=torch.bfloat16):
        return torch.empty(shape, dtype=of, device="meta")

    P, long = 8192, torch.int64
    offsets = empty(9, of=long)
    wide = [empty(P, 7168, of=torch.float32), empty(8, 4096, 7168, of=torch.float32)]
    launches = launches_of(
        lambda: (
            grouped_gemm(empty(P, 7168), empty(8, 4096, 7168), empty(P, of=long), offsets),
            grouped_gemm(*wide, empty(P, of=long), offsets),
            grouped_gemm(empty(P, 4096), empty(8, 4096, 7168).mT, None, offsets),  # backward: the weights as they lie
            grouped_gemm(empty(5, 33), empty(1, 7, 33), None, offsets[:2], (64, 64, 32)),  # a constant: E is 1
        )
    )
    made, float32, back, odd = compile_all(file.__file__, launches, code=True)
    for each in (made, float32, back, odd):
        assert (each.error, each.spills) == (None, 0)
    for each in (made, back):
        assert "HGMMA.64x256x16.F32.BF16" in each.code["sass"]
        assert len(re.findall(r"LDGSTS\S*\.128", each.code["sass"])) == len(re.findall("LDGSTS", each.code["sass"])) > 0
        assert "arith.extsi %w_expert" in each.code["ttir"]  # an expert's offset is an int64
    assert "HGMMA" not in float32.code["sass"]


def test_wrong_inputs_get_a_sentence():
    x, weight, rows, offsets = inputs([5, 4], 40, 50)
    for call, said in (
        (lambda: grouped_gemm(x[:, 1:], weight, rows, offsets), r"rows of \[9, 49\] do not fit experts' weights of"),
        (lambda: grouped_gemm(x, weight[:0], rows, offsets[:1]), "do not fit experts' weights of"),
        (lambda: grouped_gemm(x, weight.half(), rows, offsets), r"of one dtype, not torch\.float32 and torch\.float16"),
        (lambda: grouped_gemm(x.double(), weight.double(), rows, offsets), "takes float32, bfloat16 and float16"),
        (lambda: grouped_gemm(x, weight, rows.int(), offsets), "rows are one contiguous line of int64"),
        (lambda: grouped_gemm(x, weight, rows, offsets.int()), "offsets are one contiguous line of int64"),
        (lambda: grouped_gemm(x, weight, rows, offsets[:2]), "2 experts have 3 offsets, not 2"),
        (lambda: grouped_gemm(x, weight, rows, offsets, block=(8, 32, 32)), "powers of two from 16 up"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
