"""Rotary position embedding, the kernel: the model's own, both layouts, its own backward, and no spills on sm_90."""

import pytest
import torch

from course.kernels import rope as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.rope import LAYOUTS, rope, rope_torch
from course.model import rope as model

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 1, 1, 2), (2, 3, 5, 64), (1, 4, 37, 6), (2, 1, 3, 192), (1, 2, 17, 34), (1, 1, 2, 2048)]
EMPTY = [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)]
YARN = model.YarnScaling(factor=40.0, original_context=64)


def inputs(shape, dtype=torch.float32, scaling=None):
    """x, and cosine and sine from position 3 on."""
    return drawn(shape, dtype), *model.rope_table(torch.arange(shape[2]) + 3, shape[3], scaling=scaling)


def exact(x, cos, sin, layout):
    return model.apply_rope(x.double(), cos.double(), sin.double(), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype, layout):
    for shape in SHAPES + EMPTY:
        x, cos, sin = inputs(shape, dtype)
        with checked():
            got = rope(x, cos, sin, layout)
        assert (got.shape, got.dtype) == (x.shape, dtype)
        assert relative_error(got, exact(x, cos, sin, layout)) <= STEP[dtype] + 1e-7, shape
        torch.testing.assert_close(got, rope_torch(x, cos, sin, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_float32_it_is_the_model_s_own_to_the_last_bit(layout):
    x, cos, sin = inputs((2, 3, 40, 64), scaling=YARN)
    with checked():
        assert torch.equal(rope(x, cos, sin, layout), model.apply_rope(x, cos, sin, layout))
    assert torch.equal(rope_torch(x, cos, sin, layout), model.apply_rope(x, cos, sin, layout))


def test_the_two_layouts_are_one_turn_of_features_in_another_order():
    x, cos, sin = inputs((1, 2, 5, 12))
    with checked():
        apart = rope(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), cos, sin, "half")
        together = rope(x, cos, sin, "interleaved")
    assert torch.equal(apart, torch.cat([together[..., 0::2], together[..., 1::2]], dim=-1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype, layout):
    x, cos, sin = inputs((1, 8, 64, 64), dtype)
    wanted = exact(x, cos, sin, layout)
    with checked():
        got = rope(x, cos, sin, layout)
    large = wanted.abs() > 1e-2
    rounded_once(got[large], wanted[large])


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_backward_is_itself_with_the_sine_negated(layout, scaling):
    x, cos, sin = inputs((2, 3, 17, 10), scaling=scaling)
    dy = drawn(x.shape, seed=1)
    wide = x.double().requires_grad_()
    wanted = torch.autograd.grad(exact(wide, cos, sin, layout), wide, dy.double())[0]
    with checked():
        got = rope(dy, cos, -sin, layout)
        back = rope(rope(x, cos, sin, layout), cos, -sin, layout)
    assert relative_error(got, wanted) < 1e-7
    size = scaling.attention_factor if scaling else 1.0
    torch.testing.assert_close(back, x * size**2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_that_do_not_lie_one_after_another_are_read_where_they_lie(layout):
    base = drawn((2, 5, 3, 24))
    for x in (
        base.transpose(1, 2),
        base[..., :16].transpose(1, 2),
        base[:, ::2, :, 8:],
        base[:, :, :1].expand(2, 5, 3, 24),
        base.transpose(1, 3)[..., :4],
        base[:1].expand(2, 5, 3, 24),
    ):
        cos, sin = (torch.cat([part, part]) for part in model.rope_table(torch.arange(x.shape[2]), x.shape[3]))
        cos, sin = cos[: x.shape[2]], sin[: x.shape[2]].T.contiguous().T
        with checked():
            got = rope(x, cos, sin, layout)
        assert got.is_contiguous()
        assert torch.equal(got, rope_torch(x, cos, sin, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_reads_x_once_writes_it_once_and_loads_the_table_once_for_all_heads(layout):
    x, cos, sin = inputs((2, 7, 20, 34), torch.bfloat16)
    with checked() as log:
        rope(x, cos, sin, layout)
    (launch,) = log.launches
    assert launch.load_bytes == x.nbytes + 2 * (cos.nbytes + sin.nbytes)
    assert launch.store_bytes == x.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_docstring_counts_the_bytes_of_eager_pytorch_right(layout):
    for dtype, each in ((torch.bfloat16, 48), (torch.float32, 36)):
        x, cos, sin = inputs((8, 32, 64, 16), dtype)
        assert bytes_each(rope_torch, x, cos, sin, layout, elements=x.numel()) == pytest.approx(each, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    x, cos, sin = inputs((1, 2, 3, 8))
    with pytest.raises(ValueError, match="the layout 'pairs' is neither half nor interleaved"):
        rope(x, cos, sin, "pairs")
    with pytest.raises(
        ValueError, match=r"rope takes float32, bfloat16 and float16, not torch\.float64, torch\.float32 and"
    ):
        rope(x.double(), cos, sin)
    for wrong in (x[0], x[..., :7], torch.zeros(1, 1, 3, 2050)):
        with pytest.raises(ValueError, match="an even number of features up to 2048, not a shape of"):
            rope(wrong, cos, sin)
    for c, s in ((cos[:2], sin[:2]), (cos, sin[:, :3]), (cos[0], sin[0])):
        with pytest.raises(
            ValueError, match=r"cosine of shape .* and sine of shape .* do not fit 3 positions of 4 pairs"
        ):
            rope(x, c, s)


def test_it_compiles_for_sm_90_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with checked() as log:
        for layout in LAYOUTS:
            rope(*inputs((1, 2, 20, 64), torch.bfloat16), layout)
            rope(*inputs((2, 2, 2, 2048)), layout)
            rope(*inputs((1, 1, 1, 2)), layout)  # ones are constants to the compiler
    for compiled in compile_all(file.__file__, log.launches):
        assert (compiled.error, compiled.spills) == (None, 0)
