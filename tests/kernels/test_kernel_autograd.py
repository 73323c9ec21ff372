"""Kernels inside autograd: the gradients of the same in float64, and of a small model of all of them."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels.autograd import cross_entropy_with_grad, rmsnorm_with_grad, rope_with_grad, swiglu_with_grad
from course.kernels.checked import checked
from course.kernels.rope import LAYOUTS
from course.model.rope import apply_rope, rope_table
from course.model.swiglu import swiglu as model_swiglu

from kernel_measures import DTYPES, STEP, drawn, relative_error  # isort: skip

COS, SIN = rope_table(torch.arange(7), 6)
TARGETS = torch.tensor([3, -1, 0, 8])


def exact_rmsnorm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1) * weight


def exact_losses(logits):
    losses = F.cross_entropy(logits, TARGETS, ignore_index=-1, reduction="none")
    return losses.sum() / 3, losses


def table(like):
    return COS.to(like), SIN.to(like)


CASES = {
    "rmsnorm": (lambda x, w: rmsnorm_with_grad(x, w, 0.1), exact_rmsnorm, [(2, 3, 33), (33,)]),
    "swiglu": (swiglu_with_grad, model_swiglu, [(2, 3, 34)]),
    "rope half": (
        lambda x: rope_with_grad(x, COS, SIN, "half"),
        lambda x: apply_rope(x, *table(x), "half"),
        [(2, 3, 7, 6)],
    ),
    "rope interleaved": (
        lambda x: rope_with_grad(x, COS, SIN, "interleaved"),
        lambda x: apply_rope(x, *table(x), "interleaved"),
        [(2, 3, 7, 6)],
    ),
    "mean loss": (
        lambda x: cross_entropy_with_grad(x, TARGETS)[0],
        lambda x: exact_losses(x)[0],
        [(4, 9)],
    ),
    "losses": (
        lambda x: cross_entropy_with_grad(x, TARGETS)[1],
        lambda x: exact_losses(x)[1],
        [(4, 9)],
    ),
    "both": (
        lambda x: torch.cat([part.reshape(-1) for part in cross_entropy_with_grad(x, TARGETS)]),
        lambda x: torch.cat([part.reshape(-1) for part in exact_losses(x)]),
        [(4, 9)],
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_float64(name, dtype):
    function, exact, shapes = CASES[name]
    leaves = [drawn(shape, dtype, seed, mean=0.5).requires_grad_() for seed, shape in enumerate(shapes)]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with checked():
        result = function(*leaves)
        dy = drawn(result.shape, result.dtype, seed=9)
        got = torch.autograd.grad(result, leaves, dy)
    wanted_result = exact(*wide)
    wanted = torch.autograd.grad(wanted_result, wide, dy.double())
    assert relative_error(result.detach(), wanted_result.detach()) <= STEP[dtype] + 3e-7
    for one, right, leaf in zip(got, wanted, leaves, strict=True):
        assert (one.shape, one.dtype) == (leaf.shape, dtype)
        assert relative_error(one, right) <= STEP[dtype] + 3e-7


def kernels(x, weight, gate_up, head, layout):
    h = rmsnorm_with_grad(x, weight)
    h = rope_with_grad(h.unflatten(-1, (3, 6)).transpose(1, 2), COS, SIN, layout).transpose(1, 2).flatten(2)
    return cross_entropy_with_grad((swiglu_with_grad(h @ gate_up) @ head).flatten(0, 1), TARGETS.repeat(7)[:14])[0]


def exact_model(x, weight, gate_up, head, layout):
    h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    h = apply_rope(h.unflatten(-1, (3, 6)).transpose(1, 2), *table(x), layout).transpose(1, 2).flatten(2)
    return F.cross_entropy((model_swiglu(h @ gate_up) @ head).flatten(0, 1), TARGETS.repeat(7)[:14], ignore_index=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_small_model_of_all_kernels_learns_what_float64_learns(layout):
    shapes = [(2, 7, 18), (18,), (18, 20), (10, 9)]
    leaves = [drawn(shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with checked():
        loss = kernels(*leaves, layout)
        loss.backward()
    wanted = exact_model(*wide, layout)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for leaf, right in zip(leaves, wide, strict=True):
        assert relative_error(leaf.grad, right.grad) < 1e-6


def test_a_gradient_that_was_expanded_from_one_number_arrives_right():
    gate_up = drawn((3, 10)).requires_grad_()
    with checked():
        swiglu_with_grad(gate_up).sum().backward()
    wide = gate_up.detach().double().requires_grad_()
    model_swiglu(wide).sum().backward()
    assert relative_error(gate_up.grad, wide.grad) < 1e-6


def test_a_gradient_of_a_gradient_is_refused():
    x = drawn((2, 8)).requires_grad_()
    with checked():
        (dx,) = torch.autograd.grad(swiglu_with_grad(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_what_is_saved_is_inputs_alone():
    saved = []
    with checked(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        logits = drawn((4, 9)).requires_grad_()
        cross_entropy_with_grad(logits, TARGETS)
        gate_up = drawn((4, 8)).requires_grad_()
        swiglu_with_grad(gate_up)
    assert [tensor.data_ptr() for tensor in saved] == [t.data_ptr() for t in (logits, TARGETS, gate_up)]
