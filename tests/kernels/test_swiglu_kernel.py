"""SwiGLU, the kernel: equal to float64, one read and one write, and no spills on sm_90."""

import pytest
import torch

from course.kernels import swiglu as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.swiglu import swiglu, swiglu_torch, tile
from course.model.swiglu import swiglu as model_swiglu

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 2), (1, 100), (5, 64), (7, 258), (2, 3, 66), (1000,), (0, 16), (3, 0), (3, 4096), (700, 6), (2, 2050)]


def exact(gate_up):
    return model_swiglu(gate_up.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype):
    for shape in SHAPES:
        gate_up = drawn(shape, dtype)
        with checked():
            got = swiglu(gate_up)
        assert (got.shape, got.dtype) == ((*shape[:-1], shape[-1] // 2), dtype)
        assert relative_error(got, exact(gate_up)) <= STEP[dtype] + 3e-7, shape
        torch.testing.assert_close(got, swiglu_torch(gate_up))


def test_it_equals_the_model_s_own_in_float32():
    gate_up = drawn((2, 3, 66))
    with checked():
        torch.testing.assert_close(swiglu(gate_up), model_swiglu(gate_up))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype):
    gate_up = drawn((20, 2000), dtype)
    with checked():
        rounded_once(swiglu(gate_up), exact(gate_up))


def test_far_from_zero_the_gate_opens_and_closes():
    gate = torch.tensor([200.0, 100.0, -100.0, -200.0, -3e38, 3e38, float("inf"), -float("inf"), float("nan")])
    gate_up = torch.cat([gate, torch.ones(9)])
    with checked():
        got = swiglu(gate_up)
    torch.testing.assert_close(got, swiglu_torch(gate_up), equal_nan=True)
    assert got[:6].isfinite().all()


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    base = drawn((6, 40))
    for gate_up in (base[:, :34], base[::2, 1:35], base[:1, :34].expand(4, 34), base[:, :6].T[:, :6]):
        with checked():
            got = swiglu(gate_up)
        assert got.is_contiguous()
        torch.testing.assert_close(got, swiglu_torch(gate_up))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_reads_once_and_writes_once(dtype):
    gate_up = drawn((5, 100), dtype)
    with checked() as log:
        swiglu(gate_up)
    (launch,) = log.launches
    assert (launch.load_bytes, launch.store_bytes) == (gate_up.nbytes, gate_up.nbytes // 2)


def test_a_tile_is_as_wide_as_a_row_and_as_high_as_fits():
    assert [tile(width) for width in (1, 33, 1024, 1025, 7168)] == [
        (2048, 1),
        (32, 64),
        (2, 1024),
        (2, 1024),
        (2, 1024),
    ]
    with checked() as log:
        swiglu(drawn((5, 3000)))
    assert log.launches[0].grid == (3 * 2,)


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each, narrow in ((torch.bfloat16, 38, 10), (torch.float32, 20, 20)):
        gate_up = drawn((512, 512), dtype)
        assert bytes_each(swiglu_torch, gate_up, elements=512 * 256) == pytest.approx(each, rel=0.02)
        assert bytes_each(model_swiglu, gate_up, elements=512 * 256) == pytest.approx(narrow, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    with pytest.raises(ValueError, match=r"swiglu takes float32, bfloat16 and float16, not torch\.int64"):
        swiglu(torch.zeros(2, 8).long())
    with pytest.raises(ValueError, match=r"shape \[2, 7\] does not split into gate and up of equal length"):
        swiglu(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"shape \[\] does not split into gate and up of equal length"):
        swiglu(torch.tensor(1.0))


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        swiglu(drawn((2, 258), torch.bfloat16))
        swiglu(drawn((2, 4096)))
        swiglu(drawn((1, 2)))  # ones are constants to the compiler
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
