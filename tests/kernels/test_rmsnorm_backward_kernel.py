"""RMSNorm backward, the kernels: autograd of float64, the same bits every time, and no spills on sm_90."""

import pytest
import torch

from course.kernels import rmsnorm_backward as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.rmsnorm_backward import rmsnorm_backward, rmsnorm_backward_torch

from kernel_measures import DTYPES, STEP, bytes_each, drawn, rounded_once  # isort: skip

SHAPES = [(1, 1), (1, 100), (5, 64), (7, 129), (2, 3, 33), (1000,), (0, 16), (3, 0), (2, 7168), (130, 20)]


def inputs(shape, dtype=torch.float32):
    return drawn(shape, dtype, 1), drawn(shape, dtype, 2, mean=0.5), drawn(shape[-1:], dtype, 3, mean=1.0)


def exact(dy, x, weight, eps):
    """dx and dweight by autograd, in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
    return torch.autograd.grad(y, (x, weight), dy.double())


def uncancelled(dy, x, weight, eps):
    """What dx would be if nothing were taken off, and dweight if nothing were added up: float32 is exact relative to it."""
    scaled = dy.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + eps)
    return scaled * weight.double(), scaled * x.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_autograd_in_float64_for_every_shape(dtype):
    for shape in SHAPES:
        dy, x, weight = inputs(shape, dtype)
        for eps in (1e-6, 0.5):
            with checked():
                got = rmsnorm_backward(dy, x, weight, eps)
            triples = zip(got, exact(dy, x, weight, eps), uncancelled(dy, x, weight, eps), strict=True)
            for one, wanted, parts in triples:
                assert (one.shape, one.dtype) == (wanted.shape, dtype)
                allowed = STEP[dtype] * wanted.norm() + 3e-7 * parts.norm()
                assert (one.double() - wanted).norm() <= allowed, (shape, eps)
            torch.testing.assert_close(got, rmsnorm_backward_torch(dy, x, weight, eps), rtol=1.6e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype):
    dy, x, weight = inputs((4, 16384), dtype)
    with checked():
        got = rmsnorm_backward(dy, x, weight)
    for one, wanted in zip(got, exact(dy, x, weight, 1e-6), strict=True):
        large = wanted.abs() > 0.05 * wanted.std()  # what cancels has fewer digits
        rounded_once(one[large], wanted[large])


def test_the_sum_over_rows_does_not_lose_small_rows_in_bfloat16():
    ones = torch.ones(400, 4, dtype=torch.bfloat16)  # 256 + 1 is 256 in bfloat16
    with checked():
        _, dweight = rmsnorm_backward(ones, ones, torch.ones(4))
    torch.testing.assert_close(dweight, torch.full((4,), 400.0))


def test_two_runs_give_the_same_bits_and_nothing_is_added_atomically():
    dy, x, weight = inputs((40, 300))
    with checked() as log:
        first, second = rmsnorm_backward(dy, x, weight), rmsnorm_backward(dy, x, weight)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}


def test_many_rows_share_the_rows_of_partial_sums(monkeypatch):
    monkeypatch.setattr(file, "PARTIALS", 2)
    for N, partials in ((16, 1), (17, 2), (64, 2), (65, 2), (100, 2)):
        dy, x, weight = inputs((N, 3))
        with checked() as log:
            _, dweight = rmsnorm_backward(dy, x, weight)
        assert log.launches[1].grid == (partials, 1)
        torch.testing.assert_close(dweight, rmsnorm_backward_torch(dy, x, weight)[1])


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    dy_base, base, weight = inputs((6, 40))
    for view in (
        lambda t: t[:, :33],
        lambda t: t[::2, 1:34],
        lambda t: t[:1, :33].expand(4, 33),
        lambda t: t[:, :6].T[:, :6],
    ):
        dy, x, w = view(dy_base), view(base), weight.repeat(2)[::2][: view(base).shape[-1]]
        for dy_also in (dy, torch.ones(()).expand(x.shape)):
            with checked():
                got = rmsnorm_backward(dy_also, x, w)
            torch.testing.assert_close(got, rmsnorm_backward_torch(dy_also, x, w))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_it_reads_both_inputs_twice_and_writes_dx_once(dtype):
    dy, x, weight = inputs((20, 300), dtype)
    with checked() as log:
        rmsnorm_backward(dy, x, weight)
    dx, dweight = log.launches
    assert dx.load_bytes == dy.nbytes + x.nbytes + 20 * weight.nbytes
    assert dx.store_bytes == x.nbytes + 20 * 4
    assert dweight.load_bytes == dy.nbytes + x.nbytes + 3 * 20 * 4  # the scales, for each of three blocks of columns
    assert dweight.store_bytes == 2 * 300 * 4


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each in ((torch.bfloat16, 106), (torch.float32, 88)):
        dy, x, weight = inputs((512, 512), dtype)
        assert bytes_each(rmsnorm_backward_torch, dy, x, weight, elements=x.numel()) == pytest.approx(each, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"a weight of shape \[7\] does not fit rows of 8 elements"):
        rmsnorm_backward(x, x, torch.zeros(7))
    with pytest.raises(ValueError, match=r"a gradient of shape \[8\] does not fit a result of shape \[2, 8\]"):
        rmsnorm_backward(x[0], x, weight)
    with pytest.raises(
        ValueError, match=r"takes float32, bfloat16 and float16, not torch\.float64, torch\.float32 and"
    ):
        rmsnorm_backward(x.double(), x, weight)
    with pytest.raises(ValueError, match="rows of up to 16384 elements, not 20000"):
        rmsnorm_backward(torch.zeros(1, 20000), torch.zeros(1, 20000), torch.zeros(20000))


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        rmsnorm_backward(*inputs((2, 129), torch.bfloat16))
        rmsnorm_backward(*inputs((2, 16384)))
        rmsnorm_backward(*inputs((1, 1)))  # ones are constants to the compiler
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
