"""RMSNorm, the kernel: equal to float64, one read and one write, and no spills on sm_90."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from course.kernels import rmsnorm as file
from course.kernels.checked import checked
from course.kernels.machine import compile_for
from course.kernels.rmsnorm import rmsnorm, rmsnorm_torch

SHAPES = [(1, 1), (1, 100), (5, 64), (7, 129), (2, 3, 33), (1000,), (0, 16), (3, 0), (2, 7168)]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def drawn(shape, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng) + 0.5).to(dtype), torch.randn(shape[-1:], generator=rng).to(dtype)


def exact(x, weight, eps):
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_equals_float64_rounded_once_for_every_shape(dtype):
    for shape in SHAPES:
        x, weight = drawn(shape, dtype)
        for eps in (1e-6, 0.5):
            with checked():
                got = rmsnorm(x, weight, eps)
            wanted = exact(x, weight, eps)
            assert (got.shape, got.dtype) == (x.shape, dtype)
            assert ((got.double() - wanted).abs() <= TOLERANCE[dtype] * wanted.abs() + 1e-6).all(), (shape, eps)
            torch.testing.assert_close(got, rmsnorm_torch(x, weight, eps))


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    base, weight = drawn((6, 40), torch.float32)
    for x in (base[:, :33], base[::2, 1:34], base[:1, :33].expand(4, 33), base[:, :6].T[:, :6]):
        with checked():
            got = rmsnorm(x, weight[: x.shape[-1]])
        torch.testing.assert_close(got, rmsnorm_torch(x, weight[: x.shape[-1]]))


def test_it_reads_a_row_once_and_writes_it_once():
    x, weight = drawn((5, 100), torch.bfloat16)
    with checked() as log:
        rmsnorm(x, weight)
    (launch,) = log.launches
    assert launch.load_bytes == x.nbytes + 5 * weight.nbytes
    assert launch.store_bytes == x.nbytes


class _Traffic(TorchDispatchMode):
    """Bytes that eager operations read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each in ((torch.bfloat16, 40), (torch.float32, 28)):
        x, weight = drawn((4096, 512), dtype)
        with _Traffic() as traffic:
            rmsnorm_torch(x, weight)
        assert traffic.bytes / x.numel() == pytest.approx(each, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="does not fit rows of 8 elements"):
        rmsnorm(x, torch.zeros(7))
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, not torch\.int64"):
        rmsnorm(x.long(), torch.zeros(8))
    with pytest.raises(ValueError, match="rows of up to 16384 elements, not 20000"):
        rmsnorm(torch.zeros(1, 20000), torch.zeros(20000))


@pytest.mark.parametrize(("dtype", "D"), [(torch.bfloat16, 129), (torch.float32, 16384)], ids=str)
def test_it_compiles_for_sm_90_without_spills(dtype, D, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        rmsnorm(*drawn((2, D), dtype))
    compiled = compile_for(file.__file__, log.launches[0])
    assert compiled.error is None
    assert compiled.spills == 0
