"""SwiGLU backward, the kernel: autograd of float64, one read and one write, and no spills on sm_90."""

import pytest
import torch

from course.kernels import swiglu_backward as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.swiglu_backward import swiglu_backward, swiglu_backward_torch
from course.model.swiglu import swiglu as model_swiglu

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 2), (1, 100), (5, 64), (7, 258), (2, 3, 66), (1000,), (0, 16), (3, 0), (3, 4096), (700, 6), (2, 2050)]


def inputs(shape, dtype=torch.float32):
    return drawn((*shape[:-1], shape[-1] // 2), dtype, 1), drawn(shape, dtype, 2)


def exact(dy, gate_up):
    """By autograd, in float64."""
    gate_up = gate_up.double().requires_grad_()
    return torch.autograd.grad(model_swiglu(gate_up), gate_up, dy.double())[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_autograd_in_float64_for_every_shape(dtype):
    for shape in SHAPES:
        dy, gate_up = inputs(shape, dtype)
        with checked():
            got = swiglu_backward(dy, gate_up)
        assert (got.shape, got.dtype) == (shape, dtype)
        assert relative_error(got, exact(dy, gate_up)) <= STEP[dtype] + 3e-7, shape
        torch.testing.assert_close(got, swiglu_backward_torch(dy, gate_up))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype):
    dy, gate_up = inputs((20, 2000), dtype)
    wanted = exact(dy, gate_up)
    with checked():
        got = swiglu_backward(dy, gate_up)
    large = wanted.abs() > 1e-2  # where the slope is near 0, terms cancel
    rounded_once(got[large], wanted[large])


def test_far_from_zero_the_gradient_is_finite_and_right():
    gate = torch.tensor([200.0, 100.0, -100.0, -200.0, -3e38, 3e38])
    dy, gate_up = torch.ones(6), torch.cat([gate, torch.ones(6)])
    with checked():
        got = swiglu_backward(dy, gate_up)
    torch.testing.assert_close(got.double(), torch.cat([(gate > 0).double(), gate.clamp(min=0).double()]))


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    base, dy_base = drawn((6, 40)), drawn((6, 20), seed=1)
    for dy, gate_up in (
        (dy_base[:, :17], base[:, :34]),
        (dy_base[::2, 1:18], base[::2, 1:35]),
        (dy_base[:1, :17].expand(4, 17), base[:1, :34].expand(4, 34)),
        (torch.ones(()).expand(6, 3), base[:, :6].T[:, :6]),
    ):
        with checked():
            got = swiglu_backward(dy, gate_up)
        assert got.is_contiguous()
        torch.testing.assert_close(got, swiglu_backward_torch(dy, gate_up))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_reads_once_and_writes_once(dtype):
    dy, gate_up = inputs((5, 100), dtype)
    with checked() as log:
        swiglu_backward(dy, gate_up)
    (launch,) = log.launches
    assert (launch.load_bytes, launch.store_bytes) == (dy.nbytes + gate_up.nbytes, gate_up.nbytes)


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each in ((torch.bfloat16, 134), (torch.float32, 104)):
        dy, gate_up = inputs((512, 512), dtype)
        assert bytes_each(swiglu_backward_torch, dy, gate_up, elements=dy.numel()) == pytest.approx(each, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, not torch\.int64 and torch\.float32"):
        swiglu_backward(torch.zeros(2, 4).long(), torch.zeros(2, 8))
    for dy, gate_up in (((2, 3), (2, 8)), ((3, 4), (2, 8)), ((2, 3), (2, 7)), ((4,), (2, 8)), ((), ())):
        with pytest.raises(ValueError, match=r"a gradient of shape \[.*\] does not fit gate and up of shape \[.*\]"):
            swiglu_backward(torch.zeros(dy), torch.zeros(gate_up))


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        swiglu_backward(*inputs((2, 258), torch.bfloat16))
        swiglu_backward(*inputs((2, 4096)))
        swiglu_backward(*inputs((1, 2)))  # ones are constants to the compiler
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
