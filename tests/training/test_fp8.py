"""Training with products in FP8, emulated: each product is that of the course's kernels, and gradients are what they say."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels.fp8_gemm import fp8_gemm_torch
from course.kernels.fp8_quantize import fp8_quantize_torch
from course.kernels.fp8_weight_gradient import fp8_weight_gradient_torch
from course.model import ModelConfig, Transformer
from course.training.fp8 import COLUMN, RECIPES, ROW, SQUARE, FP8Linear, FP8Products, operand, rounded


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(x, w, dy, recipe="fp8"):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = FP8Linear.apply(x, w, recipe)
    y.backward(dy)
    return y.detach(), x.grad, w.grad


@pytest.mark.parametrize("shape", [(200, 300, 130), (3, 128, 1), (128, 5, 256)], ids=str)
def test_each_of_the_three_products_is_its_kernel_s_twin(shape):
    T, K, N = shape
    x, w, dy = drawn(T, K, seed=1), 0.02 * drawn(N, K, seed=2), 1e-5 * drawn(T, N, seed=3)
    y, dx, dw = products(x, w, dy)
    (xq, xs), (wq, ws), (dq, ds) = (
        fp8_quantize_torch(x, ROW, True),
        fp8_quantize_torch(w, SQUARE),
        fp8_quantize_torch(dy, ROW, True),
    )
    same = {"rtol": 1e-5, "atol": 1e-6 * float(y.abs().max())}
    torch.testing.assert_close(y, fp8_gemm_torch(xq, wq, xs, ws, torch.float32), **same)
    turned = fp8_gemm_torch(dq, wq.T.contiguous(), ds, ws.T.contiguous(), torch.float32)
    torch.testing.assert_close(dx, turned, rtol=1e-5, atol=1e-6 * float(dx.abs().max()))
    kept = xq.float() * xs.repeat_interleave(128, 1)[:, :K]
    (dt, dts), (xt, xts) = (fp8_quantize_torch(part.T, ROW, True) for part in (dy, kept))
    torch.testing.assert_close(
        dw, fp8_weight_gradient_torch(dt, xt, dts, xts), rtol=1e-5, atol=1e-6 * float(dw.abs().max())
    )


def test_the_codes_of_a_square_block_are_those_of_its_transpose():
    w = drawn(300, 200)
    assert torch.equal(rounded(w, SQUARE).T, rounded(w.T, SQUARE))
    assert not torch.equal(rounded(w, ROW).T, rounded(w.T, ROW))


def test_powers_of_two_make_the_second_rounding_nearly_exact_and_other_scales_do_not():
    x = drawn(512, 256)

    def added(power_of_two):
        once = rounded(x, ROW, power_of_two)
        return (((rounded(once, COLUMN, power_of_two) - once).norm()) / once.norm()).item()

    assert added(True) < 1e-3
    assert added(False) > 0.01


def test_gradients_are_off_by_some_percent_in_fp8_and_hardly_in_bf16():
    x, w, dy = drawn(256, 256, seed=1), 0.02 * drawn(384, 256, seed=2), 1e-5 * drawn(256, 384, seed=3)
    plain = (x @ w.T, dy @ w, dy.T @ x)
    for recipe, low, high in (
        ("bf16", 1e-3, 4e-3),
        ("fp8", 0.02, 0.06),
        ("square", 0.02, 0.06),
        ("tensor", 0.02, 0.06),
    ):
        for got, wanted in zip(products(x, w, dy, recipe), plain, strict=True):
            assert low < ((got - wanted).norm() / wanted.norm()).item() < high, recipe


def test_small_gradients_are_nothing_without_a_scale():
    x, w, dy = drawn(128, 128), drawn(128, 128, seed=1), 1e-5 * drawn(128, 128, seed=2)
    _, dx, dw = products(x, w, dy, "unscaled")
    assert not dx.any()
    assert not dw.any()
    assert operand(torch.tensor([[1e6, -1e6]]), ROW, "unscaled").tolist() == [[448.0, -448.0]]


def test_an_unknown_recipe_gets_a_sentence():
    with pytest.raises(ValueError, match="there is no recipe 'fp4'; there are fp8, square, tensor, unscaled, bf16"):
        operand(torch.zeros(1, 1), ROW, "fp4")


def test_inside_the_block_every_layer_but_the_head_is_rounded(monkeypatch):
    config = ModelConfig(vocab=40, context=16, width=32, layers=2, heads=2, kv_heads=2, mlp_width=48)
    torch.manual_seed(0)
    model, tokens = Transformer(config), torch.arange(16)[None]
    with FP8Products(model, "bf16"):
        by_mode = model(tokens)
    plain = F.linear

    def rounded_linear(x, w, bias=None):
        if w is model.head.weight:
            return plain(x, w)
        return plain(x.bfloat16().float(), w.bfloat16().float())

    monkeypatch.setattr(F, "linear", rounded_linear)
    torch.testing.assert_close(by_mode, model(tokens))
    monkeypatch.undo()
    assert not torch.allclose(by_mode, model(tokens), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_whole_model_has_gradients_near_those_in_float32(recipe):
    config = ModelConfig(vocab=40, context=16, width=32, layers=2, heads=2, kv_heads=2, mlp_width=48, qkv_bias=True)
    torch.manual_seed(0)
    model, tokens = Transformer(config), torch.arange(17)[None]

    def gradients():
        model.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    wanted = gradients()
    with FP8Products(model, recipe):
        got = gradients()
    assert got.isfinite().all()
    assert 0 < ((got - wanted).norm() / wanted.norm()).item() < (1 if recipe == "unscaled" else 0.08)
