"""Cross entropy, the kernels: float64 and its autograd, rows of 200,000 classes, and no spills on sm_90."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels import cross_entropy as file
from course.kernels.checked import checked
from course.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_backward_torch,
    cross_entropy_torch,
)
from course.kernels.machine import compile_all

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 1), (1, 100), (5, 64), (7, 129), (3, 4096), (3, 4097), (2, 12_000)]
INFINITE, NAN = float("inf"), float("nan")


def inputs(shape, dtype=torch.float32, ignored=()):
    rng = torch.Generator().manual_seed(1)
    targets = torch.randint(shape[1], shape[:1], generator=rng)
    targets[list(ignored)] = -1
    return 3 * drawn(shape, dtype), targets


def exact(logits, targets):
    """Losses, and the gradient of their sum, by autograd in float64."""
    wide = logits.double().requires_grad_()
    losses = F.cross_entropy(wide, targets.long(), ignore_index=-1, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), wide)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_equal_float64_and_the_mean_leaves_out_ignored_rows(dtype):
    for shape in SHAPES:
        for ignored in ((), (0,)) if shape[0] > 1 else ((),):
            logits, targets = inputs(shape, dtype, ignored)
            with checked():
                mean, losses = cross_entropy(logits, targets)
            wanted, _ = exact(logits, targets)
            assert (mean.shape, mean.dtype, losses.shape, losses.dtype) == ((), torch.float32, shape[:1], torch.float32)
            assert relative_error(losses, wanted) < 3e-7, shape
            assert mean.item() == pytest.approx(wanted.sum().item() / (shape[0] - len(ignored)), rel=1e-6)
            torch.testing.assert_close((mean, losses), cross_entropy_torch(logits, targets))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_equals_autograd_in_float64_for_every_shape(dtype):
    for shape in SHAPES:
        for ignored in ((), (0,)) if shape[0] > 1 else ((),):
            logits, targets = inputs(shape, dtype, ignored)
            with checked():
                got = cross_entropy_backward(logits, targets, 0.25)
            _, wanted = exact(logits, targets)
            assert (got.shape, got.dtype) == (shape, dtype)
            assert relative_error(got, 0.25 * wanted) < STEP[dtype] + 3e-7, shape
            assert (got[list(ignored)] == 0).all()
            torch.testing.assert_close(got, cross_entropy_backward_torch(logits, targets, 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_gradient_is_rounded_once_and_so_drifts_neither_up_nor_down(dtype):
    logits, targets = inputs((6, 6000), dtype)
    with checked():
        got = cross_entropy_backward(logits, targets, 1024.0)
    rounded_once(got, 1024 * exact(logits, targets)[1])


def test_a_row_of_200_000_classes_is_one_row():
    logits, targets = inputs((2, 200_000), torch.bfloat16)
    with checked():
        _, losses = cross_entropy(logits, targets)
        got = cross_entropy_backward(logits, targets, 1.0)
    wanted, gradient = exact(logits, targets)
    assert relative_error(losses, wanted) < 1e-6
    assert relative_error(got, gradient) < STEP[torch.bfloat16]


def test_logits_far_from_zero_and_far_apart_keep_their_digits(monkeypatch):
    monkeypatch.setattr(file, "BLOCK", 4)  # many blocks, and the largest logit in any of them
    rising = torch.arange(-50.0, 50.0)
    logits = torch.stack([rising, rising.flip(0), rising + 1e4, rising * 1e3, 3e38 * rising.sign(), rising * 0 - 1e38])
    targets = torch.tensor([99, 99, 50, 99, 99, 7])
    with checked():
        _, losses = cross_entropy(logits, targets)
        got = cross_entropy_backward(logits, targets, 1.0)
    wanted, gradient = exact(logits, targets)
    torch.testing.assert_close(losses.double(), wanted, rtol=3e-7, atol=1e-7)
    torch.testing.assert_close(got.double(), gradient, rtol=1e-5, atol=1e-7)


def test_infinite_logits_and_nan_count_as_torch_counts_them(monkeypatch):
    monkeypatch.setattr(file, "BLOCK", 4)
    logits = drawn((8, 11))
    logits[0, :9] = -INFINITE  # two blocks of nothing, then a finite logit
    logits[1, 2:] = -INFINITE
    logits[2, 3] = -INFINITE  # the target itself
    logits[3, :] = -INFINITE
    logits[4, 3] = INFINITE
    logits[5, 5] = NAN
    logits[6, :] = NAN
    targets = torch.tensor([10, 1, 3, 3, 2, 2, -1, 0])
    with checked():
        mean, losses = cross_entropy(logits, targets)
        got = cross_entropy_backward(logits, targets, 1.0)
    wanted, gradient = exact(logits, targets)
    torch.testing.assert_close(losses, wanted.float(), equal_nan=True)
    torch.testing.assert_close(got, torch.where(targets[:, None] == -1, 0.0, gradient).float(), equal_nan=True)
    assert losses.isnan().tolist() == [False, False, False, True, True, True, False, False]
    assert losses[2] == INFINITE
    assert mean.isnan()


def test_a_target_that_is_no_class_gives_nan_and_reads_nothing_elsewhere():
    logits, _ = inputs((4, 10))
    targets = torch.tensor([10, -2, 3, 2**40])
    with checked():
        _, losses = cross_entropy(logits, targets)
        got = cross_entropy_backward(logits, targets, 1.0)
    assert losses.isnan().tolist() == [True, True, False, True]
    assert got.isnan().all(-1).tolist() == [True, True, False, True]
    assert got[2].isfinite().all()


def test_nothing_to_count_has_no_mean():
    logits, targets = inputs((3, 10), ignored=(0, 1, 2))
    with checked():
        mean, losses = cross_entropy(logits, targets)
        assert mean.isnan()
        assert losses.tolist() == [0, 0, 0]
        assert not cross_entropy_backward(logits, targets, 1.0).any()
        mean, losses = cross_entropy(logits[:0], targets[:0])
        assert mean.isnan()
        assert losses.shape == (0,)
        assert cross_entropy_backward(logits[:0], targets[:0], 1.0).shape == (0, 10)


def test_a_scale_is_one_number_or_one_a_row():
    logits, targets = inputs((4, 10), ignored=(2,))
    each = torch.tensor([1.0, 2.0, 3.0, -0.5])
    with checked():
        once = cross_entropy_backward(logits, targets, 1.0)
        assert torch.equal(cross_entropy_backward(logits, targets, torch.tensor(2.0)), 2 * once)
        assert torch.equal(cross_entropy_backward(logits, targets, torch.tensor([2.0])), 2 * once)
        torch.testing.assert_close(cross_entropy_backward(logits, targets, each), each[:, None] * once)
        repeated = cross_entropy_backward(logits, targets, each.repeat_interleave(2)[::2])
        torch.testing.assert_close(repeated, each[:, None] * once)


def test_rows_that_do_not_lie_one_after_another_are_read_where_they_lie():
    base, targets = inputs((6, 40))
    targets %= 33
    for logits in (base[:, :33], base[::2, 1:34], base[:1, :33].expand(4, 33), base[:, :6].T[:, :6]):
        own = targets.repeat_interleave(2)[::2][: len(logits)] % logits.shape[1]
        for kind in (torch.int64, torch.int32):
            with checked():
                _, losses = cross_entropy(logits, own.to(kind))
                got = cross_entropy_backward(logits, own.to(kind), 1.0)
            assert got.is_contiguous()
            wanted, gradient = exact(logits, own)
            assert max(relative_error(losses, wanted), relative_error(got, gradient)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_forward_reads_the_logits_once_backward_twice_and_ignored_rows_are_not_read(dtype):
    logits, targets = inputs((5, 5000), dtype, ignored=(1, 3))
    with checked() as log:
        cross_entropy(logits, targets)
        cross_entropy_backward(logits, targets, 1.0)
    forward, backward = log.launches
    read = logits[:3].nbytes
    assert forward.load_bytes == read + targets.nbytes + 3 * dtype.itemsize  # and the target's logit
    assert forward.store_bytes == 5 * 4
    assert backward.load_bytes == 2 * read + targets.nbytes + 5 * 4
    assert backward.store_bytes == logits.nbytes


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, forward, backward in ((torch.bfloat16, 14, 28), (torch.float32, 8, 16)):
        logits, targets = inputs((128, 4096), dtype)
        size = logits.numel()
        assert bytes_each(cross_entropy_torch, logits, targets, elements=size) == pytest.approx(forward, rel=0.02)
        got = bytes_each(cross_entropy_backward_torch, logits, targets, 1.0, elements=size)
        assert got == pytest.approx(backward, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    logits, targets = inputs((3, 10))
    for function in (cross_entropy, lambda *both: cross_entropy_backward(*both, 1.0)):
        with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, not torch\.float64"):
            function(logits.double(), targets)
        with pytest.raises(ValueError, match=r"takes targets of int64 and int32, not torch\.float32"):
            function(logits, targets.float())
        with pytest.raises(ValueError, match=r"targets of shape \[2\] do not fit logits of shape \[3, 10\]"):
            function(logits, targets[:2])
        for wrong in (logits[:, :0], logits[0], logits[None]):
            with pytest.raises(ValueError, match=r"takes logits of \[rows, classes\], of at least one class, not"):
                function(wrong, targets)
    with pytest.raises(ValueError, match=r"a scale of shape \[2\] is neither one number nor one for each of 3 rows"):
        cross_entropy_backward(logits, targets, torch.ones(2))


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        for shape, dtype in (((2, 129), torch.float16), ((2, 5000), torch.bfloat16), ((1, 1), torch.float32)):
            logits, targets = inputs(shape, dtype)
            cross_entropy(logits, targets)
            cross_entropy_backward(logits, targets, 1.0)
            cross_entropy_backward(logits, targets, torch.ones(shape[0]))
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
