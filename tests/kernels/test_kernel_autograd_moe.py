"""Routed experts and router inside autograd: gradients of float64, of what is asked for alone, the same bits every time."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels.autograd_moe import routed_experts_with_grad, router_with_grad
from course.kernels.checked import checked
from course.kernels.planned import launches_of
from course.kernels.routed_experts import order_by_expert, routed_experts
from course.kernels.routed_experts_backward import routed_experts_backward
from course.kernels.router import router_torch
from course.model.experts import expert_loop

from kernel_measures import DTYPES, STEP, Traffic, drawn, relative_error  # isort: skip

BLOCK = (16, 32, 32)
NAMES = ("x", "weights", "gate_up", "down")


def inputs(T, K, D=24, width=20, E=5, dtype=torch.float32, experts=None):
    """ids, which may be no expert of the E, and the leaves of `NAMES`."""
    rng = torch.Generator().manual_seed(T + K)
    ids = torch.rand(T, experts or E, generator=rng).argsort(1)[:, :K]
    leaves = (
        drawn((T, D), dtype, 1),
        torch.rand(T, K, generator=rng) + 0.1,
        drawn((E, 2 * width, D), dtype, 2) / 5,
        drawn((E, D, width), dtype, 3) / 5,
    )
    return ids, [leaf.requires_grad_() for leaf in leaves]


def exact(ids, leaves, dout):
    """By autograd in float64, over the model's loop."""
    x, weights, gate_up, down = wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ids = torch.where(ids < len(gate_up), ids, len(gate_up))
    ids = torch.where(ids < 0, len(gate_up), ids)
    out = expert_loop(x, ids, weights, gate_up, down)
    grads = torch.autograd.grad(out, wide, dout.double(), allow_unused=True, materialize_grads=True)
    return out.detach(), grads


def run(ids, leaves, dout):
    x, *rest = leaves
    with checked() as log:
        out = routed_experts_with_grad(x, ids, *rest, block=BLOCK)
        return out.detach(), torch.autograd.grad(out, leaves, dout), log.launches


@pytest.mark.parametrize(("T", "K"), [(23, 2), (1, 1), (3, 1), (1, 3), (40, 5), (0, 2)])
def test_gradients_are_those_of_float64(T, K):
    ids, leaves = inputs(T, K)
    dout = drawn((T, 24), seed=9)
    out, got, launches = run(ids, leaves, dout)
    wanted_out, wanted = exact(ids, leaves, dout)
    assert relative_error(out, wanted_out) < 1e-6
    for name, one, right, leaf in zip(NAMES, got, wanted, leaves, strict=True):
        assert (one.shape, one.dtype) == (leaf.shape, leaf.dtype)
        assert relative_error(one, right) < 3e-6, name
    assert {access.kind for launch in launches for access in launch.accesses} <= {"load", "store"}


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_in_sixteen_bits_they_are_off_by_their_roundings(dtype):
    ids, leaves = inputs(23, 3, D=33, width=17, dtype=dtype)
    dout = drawn((23, 33), dtype, 9)
    out, got, _ = run(ids, leaves, dout)
    wanted_out, wanted = exact(ids, leaves, dout)
    assert relative_error(out, wanted_out) <= 2 * STEP[dtype]
    for name, one, right, steps in zip(NAMES, got, wanted, (3, 1, 2, 2), strict=True):
        assert relative_error(one, right) <= steps * STEP[dtype], name


def test_an_expert_with_nothing_learns_nothing_and_dropped_pairs_teach_nobody():
    ids, leaves = inputs(23, 4, experts=12)
    ids[5] = torch.tensor([-1, 7, 6, 5])
    ids[ids == 2] = -1
    dout = drawn((23, 24), seed=9)
    _, got, _ = run(ids, leaves, dout)
    for one, right in zip(got, exact(ids, leaves, dout)[1], strict=True):
        assert relative_error(one, right) < 3e-6
    dx, dweights, dgate_up, ddown = got
    assert not dx[5].any()
    assert not dweights[(ids < 0) | (ids > 4)].any()
    assert not dgate_up[2].any()
    assert not ddown[2].any()
    nobody = torch.full_like(ids, -1)
    assert not any(gradient.any() for gradient in run(nobody, leaves, dout)[1])


def test_gradients_of_two_ranks_add_up_to_the_whole():
    ids, (x, weights, gate_up, down) = inputs(23, 3, E=6)
    dout = drawn((23, 24), seed=9)
    whole = run(ids, [x, weights, gate_up, down], dout)[1]
    parts = []
    for shift, mine in ((0, slice(0, 2)), (2, slice(2, None))):
        leaves = [t.detach().clone().requires_grad_() for t in (x, weights, gate_up[mine], down[mine])]
        parts.append(run(ids - shift, leaves, dout)[1])
    for i in (0, 1):
        torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i])
    for i in (2, 3):
        torch.testing.assert_close(torch.cat([parts[0][i], parts[1][i]]), whole[i])


def test_two_runs_give_the_same_bits():
    ids, leaves = inputs(23, 4)
    dout = drawn((23, 24), seed=9)
    first, second = (run(ids, leaves, dout)[1] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_gradient_that_was_expanded_from_one_number_arrives_right():
    ids, leaves = inputs(7, 2)
    with checked():
        routed_experts_with_grad(leaves[0], ids, *leaves[1:], block=BLOCK).sum().backward()
    for leaf, right in zip(leaves, exact(ids, leaves, torch.ones(7, 24))[1], strict=True):
        assert relative_error(leaf.grad, right) < 3e-6


def test_what_nobody_asked_for_is_not_computed():
    def launched(*asked):
        ids, leaves = inputs(7, 2)
        for name, leaf in zip(NAMES, leaves, strict=True):
            leaf.requires_grad_(name in asked)
        with checked():
            out = routed_experts_with_grad(leaves[0], ids, *leaves[1:], block=BLOCK)
        with checked() as log:
            out.backward(torch.ones_like(out))
        assert [leaf.grad is not None for leaf in leaves] == [name in asked for name in NAMES]
        return [launch.kernel.removesuffix("_kernel") for launch in log.launches]

    first, gradient = ["grouped_swiglu_backward", "routing_gradient"], ["grouped_weight_gradient"]
    assert launched(*NAMES) == [*first, *gradient, *gradient, "grouped_gemm", "combine"]
    assert launched("weights") == first
    assert launched("down") == launched("gate_up") == first + gradient
    assert launched("x") == [*first, "grouped_gemm", "combine"]


def test_what_is_saved_is_x_the_order_and_the_weights():
    ids, leaves = inputs(23, 3)
    saved = []
    with checked(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        routed_experts_with_grad(leaves[0], ids, *leaves[1:], block=BLOCK)
    inputs_saved = {t.data_ptr() for t in leaves}
    assert inputs_saved < {t.data_ptr() for t in saved}
    order = [t for t in saved if t.data_ptr() not in inputs_saved]
    assert sum(t.nbytes for t in order) == 8 * (2 * 23 * 3 + 6)


def test_the_host_reads_nothing_of_the_device_in_either_direction():
    ids, leaves = inputs(7, 2)
    leaves = [leaf.detach().to("meta").requires_grad_() for leaf in leaves]

    def step():
        routed_experts_with_grad(leaves[0], ids.to("meta"), *leaves[1:]).sum().backward()

    assert len(launches_of(step)) == 12
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


def test_the_docstring_counts_the_elements_of_eager_pytorch_and_of_the_kernels_right():
    T, K, D, width = 64, 4, 128, 64
    ids, (x, weights, gate_up, down) = inputs(T, K, D, width)
    P, dout = T * K, drawn((T, D), seed=9)
    with checked():
        order = order_by_expert(ids, 5)
    rows, ends = order.rows_P, order.offsets_E1[1:].int()
    y, dy, both, gated = (drawn((P, size)) for size in (D, D, 2 * width, width))
    with torch.no_grad(), Traffic() as traffic:
        gathered = dout.index_select(0, rows)
        F.grouped_mm(gathered * weights.flatten()[order.pairs_P][:, None], down, offs=ends)
        (gathered * y).sum(1)
        F.grouped_mm(dy.T, gated, offs=ends)
        F.grouped_mm(both.T, y, offs=ends)
        dx = F.grouped_mm(both, gate_up, offs=ends)
        dx.new_zeros(T, D).index_add(0, rows, dx)
    counted = traffic.bytes / 4 + (P - T) * D - 2 * (down.numel() + gate_up.numel())
    counted -= P * D  # new_zeros reads nothing of the tensor that it takes its dtype from
    assert counted / P + 5 * width == pytest.approx(13 * D + 11 * width + 3 * D / K, rel=0.03)  # SwiGLU as a kernel
    with torch.no_grad(), checked() as log:
        routed_experts_backward(dout, x, order, weights, gate_up, down, block=(256, 128, 64))
    moved = sum(launch.load_bytes + launch.store_bytes for launch in log.launches) / 4
    moved -= 3 * gate_up.numel() + 2 * down.numel()
    assert moved / P == pytest.approx(6 * D + 8 * width + D / K, rel=0.06)
    D, width, K = 7168, 2048, 8
    assert (13 * D + 11 * width + 3 * D / K) / (6 * D + 8 * width + D / K) == pytest.approx(2, abs=0.05)


ROUTERS = {
    "softmax": {"gate": "softmax"},
    "softmax, not normalised": {"gate": "softmax", "normalised": False, "routed_scale": 16.0},
    "sigmoid, groups": {"gate": "sigmoid", "groups": 4, "top_groups": 2, "routed_scale": 2.5},
    "one group by its best": {"gate": "softmax", "groups": 4, "top_groups": 2, "group_best": 1, "normalised": False},
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ROUTERS)
def test_the_router_s_gradient_is_that_of_float64_and_the_bias_has_none(name, biased):
    for T, K in ((9, 3), (1, 1)):
        logits = drawn((T, 12), seed=4).requires_grad_()
        bias = drawn((12,), seed=5) / 4 if biased else None
        dweights = drawn((T, K), seed=6)
        with checked():
            ids, weights = router_with_grad(logits, bias, K, **ROUTERS[name])
            (got,) = torch.autograd.grad(weights, logits, dweights)
        wide = logits.detach().double().requires_grad_()
        wanted_ids, wanted = router_torch(wide, None if bias is None else bias.double(), K, **ROUTERS[name])
        assert torch.equal(ids, wanted_ids)
        assert not ids.requires_grad
        assert relative_error(weights.detach(), wanted.detach()) < 1e-6
        (right,) = torch.autograd.grad(wanted, wide, dweights.double())
        assert (got.double() - right).norm() <= 1e-6 * right.norm() + 3e-7  # exactly 0 for K = 1, normalised


def test_a_router_learns_through_the_experts_what_float64_teaches_it():
    _, (x, _, gate_up, down) = inputs(23, 2, E=8)
    gate, dout = drawn((8, 24), seed=7).requires_grad_(), drawn((23, 24), seed=9)
    with checked():
        ids, weights = router_with_grad(x @ gate.T, None, 2, "sigmoid", 4, 2)
        out = routed_experts_with_grad(x, ids, weights, gate_up, down, block=BLOCK)
        got = torch.autograd.grad(out, (x, gate), dout)
    wide = [t.detach().double().requires_grad_() for t in (x, gate, gate_up, down)]
    wanted_ids, weights = router_torch(wide[0] @ wide[1].T, None, 2, "sigmoid", 4, 2)
    assert torch.equal(ids, wanted_ids)
    wanted = torch.autograd.grad(expert_loop(wide[0], ids, weights, *wide[2:]), wide[:2], dout.double())
    for one, right in zip(got, wanted, strict=True):
        assert relative_error(one, right) < 3e-6


def test_a_gradient_of_a_gradient_is_refused():
    ids, leaves = inputs(3, 2)
    with checked():
        out = routed_experts_with_grad(leaves[0], ids, *leaves[1:], block=BLOCK)
        (dx,) = torch.autograd.grad(out.pow(2).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_wrong_inputs_get_a_sentence():
    ids, (x, *rest) = inputs(5, 2)
    with checked(), pytest.raises(ValueError, match=r"ids are int64, a row for each of 5 tokens, not \[4, 2\]"):
        routed_experts_with_grad(x, ids[:4], *rest)
    with torch.no_grad(), checked():
        assert torch.equal(routed_experts(x, ids, *rest), routed_experts_with_grad(x, ids, *rest))
