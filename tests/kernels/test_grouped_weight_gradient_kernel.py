"""Gradients of the experts' weights: equal to float64 however the rows are shared out, zeros for nothing, tensor cores on sm_90."""

from itertools import pairwise

import pytest
import torch

from course.kernels import grouped_weight_gradient as file
from course.kernels.checked import checked
from course.kernels.grouped_weight_gradient import grouped_weight_gradient, grouped_weight_gradient_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of

from kernel_measures import DTYPES, SHARES, STEP, Traffic, drawn, relative_error  # isort: skip

BLOCK = (32, 16, 16)


def inputs(counts, N=40, K=50, tokens=9, dtype=torch.float32, gather="x"):
    """dy, x, where the rows of each are (None: as they lie) and the offsets. gather: dy, x, both or neither."""
    P, rng = sum(counts), torch.Generator().manual_seed(1)
    rows = [torch.randint(tokens, (P,), generator=rng) if gather in (name, "both") else None for name in ("dy", "x")]
    lengths = [P if its is None else tokens for its in rows]
    dy, x = (drawn((length, width), dtype, width) for length, width in zip(lengths, (N, K), strict=True))
    return dy, x, *rows, torch.tensor([0, *counts]).cumsum(0)


def exact(dy, x, dy_rows, x_rows, offsets):
    dy, x = (t.double() if rows is None else t.double()[rows] for t, rows in ((dy, dy_rows), (x, x_rows)))
    return torch.stack([dy[start:end].T @ x[start:end] for start, end in pairwise(offsets.tolist())])


@pytest.mark.parametrize("counts", SHARES.values(), ids=SHARES)
def test_it_equals_float64_however_rows_are_shared_out(counts):
    for gather in ("dy", "x", "both", "neither"):
        given = inputs(counts, gather=gather)
        with checked() as log:
            got = grouped_weight_gradient(*given, block=BLOCK)
        assert relative_error(got, exact(*given)) < 1e-6
        torch.testing.assert_close(got, grouped_weight_gradient_torch(*given))
        assert log.launches[0].stores == got.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_sizes_in_every_dtype_are_rounded_once(dtype):
    for N, K in ((1, 1), (33, 31), (7, 100), (64, 16)):
        given = inputs([5, 0, 19], N, K, dtype=dtype)
        with checked():
            got = grouped_weight_gradient(*given, block=BLOCK)
        assert (got.shape, got.dtype) == ((3, N, K), dtype)
        assert relative_error(got, exact(*given)) <= max(STEP[dtype], 1e-6), (N, K)


def test_rounding_goes_neither_up_nor_down_on_the_whole():
    dy, x, *order = inputs([70, 26], 96, 64, dtype=torch.bfloat16, gather="neither")
    given = dy.abs(), x.abs(), *order
    with checked():
        got = grouped_weight_gradient(*given, block=(32, 64, 64))
    wanted = exact(*given)
    assert ((got.double() - wanted) / wanted).mean().abs() < 4 * 2**-9 / (3 * got.numel()) ** 0.5


def test_an_expert_without_rows_gets_zeros_and_so_do_all_where_there_are_none():
    given = inputs([0, 7, 0])
    with checked():
        got = grouped_weight_gradient(*given, block=BLOCK)
    assert torch.equal(got[::2], torch.zeros(2, 40, 50))
    for gather in ("x", "neither"):
        with checked():
            none = grouped_weight_gradient(*inputs([0, 0], gather=gather), block=BLOCK)
        assert torch.equal(none, torch.zeros(2, 40, 50))
    with checked():
        assert grouped_weight_gradient(*inputs([2, 3], 0, 6)).shape == (2, 0, 6)


def test_rows_behind_the_last_expert_are_not_read():
    dy, x, _, x_rows, offsets = inputs([4, 0, 19])
    wanted = exact(dy, x, None, x_rows, offsets)
    behind = torch.cat([dy, torch.full((30, 40), torch.nan)]), x, None, torch.cat([x_rows, torch.full((30,), 10**9)])
    with checked():
        got = grouped_weight_gradient(*behind, offsets, block=BLOCK)
        nobody = grouped_weight_gradient(*behind, torch.zeros_like(offsets), block=BLOCK)
    assert relative_error(got, wanted) < 1e-6
    assert torch.equal(nobody, torch.zeros_like(nobody))


def test_tensors_are_read_where_they_lie():
    dy, x, *order = inputs([5, 0, 19], 20, 24)
    one = torch.ones(()).expand(24, 20)  # as the gradient of a sum comes
    for a, b in ((dy.T.contiguous().T, x.repeat(1, 2)[:, ::2]), (one, x)):
        with checked():
            got = grouped_weight_gradient(a, b, *order, block=BLOCK)
        assert relative_error(got, exact(a, b, *order)) < 1e-6


def test_two_runs_give_the_same_bits_and_nothing_is_added_atomically():
    given = inputs([20, 0, 33])
    with checked() as log:
        first, second = (grouped_weight_gradient(*given, block=BLOCK) for _ in range(2))
    assert torch.equal(first, second)
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}


def test_each_tile_reads_its_expert_s_rows_once_and_the_result_is_written_once():
    dy, _, _, x_rows, _ = given = inputs([5, 0, 19], 70, 50, dtype=torch.bfloat16)
    with checked() as log:
        got = grouped_weight_gradient(*given, block=BLOCK)
    (launch,) = log.launches
    across, along = 4, 3  # tiles of 50 and 70
    assert launch.grid == (3 * across * along,)
    assert launch.store_bytes == got.nbytes
    order = across * along * (x_rows.nbytes + 3 * 2 * 8)
    assert launch.load_bytes == across * dy.nbytes + along * 24 * 50 * 2 + order


def test_the_docstring_counts_the_elements_and_the_gain_of_eager_pytorch_right():
    P, N, K = 64, 48, 32
    dy, x, _, rows, offsets = inputs([40, 24], N, K, tokens=P)
    ends = offsets[1:].int()
    with torch.no_grad(), Traffic() as traffic:
        got = torch.nn.functional.grouped_mm(dy.T, x.index_select(0, rows), offs=ends)
    torch.testing.assert_close(got, grouped_weight_gradient_torch(dy, x, None, rows, offsets))
    assert traffic.bytes == 4 * P * (3 * K + N) + got.nbytes + rows.nbytes + ends.nbytes
    copy, product = 2 * 7168 * 2 / 3.35e12, 2 * 7168 * 4096 / 990e12
    assert 1 + copy / product == pytest.approx(1.14, abs=0.005)


def test_on_hopper_it_uses_tensor_cores_and_spills_nothing_at_deepseek_v3_s_sizes():
    def called(P, E, N, K, dtype, gather, block=None):
        dy, x = (torch.empty(P, width, dtype=dtype, device="meta") for width in (N, K))
        rows, offsets = (x.new_empty(size, dtype=torch.int64) for size in (P, E + 1))
        return grouped_weight_gradient(
            dy, x, rows if gather == "dy" else None, rows if gather == "x" else None, offsets, block
        )

    launches = launches_of(
        lambda: (
            called(8192, 8, 4096, 7168, torch.bfloat16, "x"),  # of gate and up
            called(8192, 8, 7168, 2048, torch.bfloat16, "dy"),  # of down
            called(8192, 8, 4096, 7168, torch.float32, "x"),
            called(5, 1, 7, 33, torch.bfloat16, "x", (64, 64, 32)),
        )
    )
    found = compile_all(file.__file__, launches, code=True)
    for made in found:
        assert (made.error, made.spills) == (None, 0)
    for made in found[:2]:
        assert "HGMMA.64x256x16.F32.BF16" in made.code["sass"]
        assert "LDGSTS.E.BYPASS.128" in made.code["sass"]  # both sides are copied 16 bytes at a time, in the background
    assert "HGMMA" not in found[2].code["sass"]


def test_wrong_inputs_get_a_sentence():
    dy, x, _, rows, offsets = inputs([5, 4])
    for call, said in (
        (lambda: grouped_weight_gradient(dy, x, None, None, offsets[:1]), "offsets of no expert"),
        (lambda: grouped_weight_gradient(dy[:8], x, None, rows, offsets), "8 rows of gradients do not fit 9 rows of"),
        (lambda: grouped_weight_gradient(dy, x.half(), None, rows, offsets), r"one dtype, not torch\.float32 and"),
        (lambda: grouped_weight_gradient(dy.double(), x.double(), None, rows, offsets), "takes float32, bfloat16 and"),
        (lambda: grouped_weight_gradient(dy, x[0], None, rows, offsets), r"are tables, not \[9, 40\] and \[50\]"),
        (lambda: grouped_weight_gradient(dy, x, rows.int(), None, offsets), "rows are one contiguous line of int64"),
        (lambda: grouped_weight_gradient(dy, x, None, rows, offsets.int()), "offsets are one contiguous line of int64"),
        (lambda: grouped_weight_gradient(dy, x, None, rows, offsets, (8, 32, 32)), "powers of two from 16 up"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
