"""Softmax, the kernel: equal to float64, one read and one write, and no spills on sm_90."""

import pytest
import torch

from course.kernels import softmax as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.softmax import softmax, softmax_torch

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 1), (1, 100), (5, 64), (7, 129), (2, 3, 33), (1000,), (0, 16), (3, 0), (2, 7168)]
INFINITE = float("inf")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype):
    for shape in SHAPES:
        x = drawn(shape, dtype)
        with checked():
            got = softmax(x)
        assert (got.shape, got.dtype) == (x.shape, dtype)
        assert relative_error(got, x.double().softmax(-1)) <= STEP[dtype] + 3e-7, shape
        if x.numel():
            torch.testing.assert_close(got, softmax_torch(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype):
    x = drawn((4, 5000), dtype)
    with checked():
        rounded_once(softmax(x), x.double().softmax(-1))


def test_large_numbers_neither_overflow_nor_vanish():
    x = torch.tensor([[1e4, 1e4 - 1, -1e4], [-3e38, -3e38, -3e38], [88.8, 88.8, 100.0]])
    with checked():
        got = softmax(x)
    assert relative_error(got, x.double().softmax(-1)) < 1e-6


def test_infinite_elements_and_nan_count_as_torch_counts_them():
    x = drawn((8, 37))
    x[0, ::2] = -INFINITE
    x[1, :] = -INFINITE
    x[2, 5] = INFINITE
    x[3, 5] = float("nan")
    x[4, 1:] = -INFINITE
    x[5, 3] = x[5, 4] = INFINITE
    with checked():
        got = softmax(x)
    torch.testing.assert_close(got, x.softmax(-1), equal_nan=True)
    torch.testing.assert_close(softmax_torch(x), got, equal_nan=True)
    assert got.isnan().any(-1).tolist() == [False, True, True, True, False, True, False, False]
    assert got.isnan().all(-1).tolist() == got.isnan().any(-1).tolist()
    assert (got[0, ::2] == 0).all()


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    base = drawn((6, 40))
    for x in (base[:, :33], base[::2, 1:34], base[:1, :33].expand(4, 33), base[:, :6].T[:, :6]):
        with checked():
            got = softmax(x)
        assert got.is_contiguous()
        torch.testing.assert_close(got, x.softmax(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_reads_once_and_writes_once(dtype):
    x = drawn((5, 100), dtype)
    with checked() as log:
        softmax(x)
    (launch,) = log.launches
    assert (launch.load_bytes, launch.store_bytes) == (x.nbytes, x.nbytes)


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, steps, built_in in ((torch.bfloat16, 44, 4), (torch.float32, 32, 8)):
        x = drawn((512, 512), dtype)
        assert bytes_each(softmax_torch, x, elements=x.numel()) == pytest.approx(steps, rel=0.02)
        assert bytes_each(torch.softmax, x, -1, elements=x.numel()) == pytest.approx(built_in, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    with pytest.raises(ValueError, match=r"softmax takes float32, bfloat16 and float16, not torch\.int64"):
        softmax(torch.zeros(2, 8).long())
    with pytest.raises(ValueError, match="softmax takes rows of up to 16384 elements, not 20000"):
        softmax(torch.zeros(1, 20000))
    with pytest.raises(ValueError, match="softmax takes rows, and a tensor without dimensions has none"):
        softmax(torch.tensor(1.0))


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        softmax(drawn((2, 129), torch.bfloat16))
        softmax(drawn((2, 16384)))
        softmax(drawn((1, 1)))  # ones are constants to the compiler
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
