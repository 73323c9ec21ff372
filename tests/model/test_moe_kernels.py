"""A mixture layer on Triton kernels has the outputs, gradients and routing of the one on PyTorch, or is the one on PyTorch."""

import copy
from dataclasses import replace

import pytest
import torch

from course.kernels import router as router_file
from course.kernels.checked import checked
from course.model import ModelConfig, MoE, balance_loss, bias_step, expert_counts, sequence_balance_loss
from course.model.router import largest_k

CONFIGS = {
    "Mixtral's": {"experts": 5, "top_k": 2},
    "V2's": {  # softmax, groups by their best, weights as they are and scaled, shared experts
        **{"experts": 12, "top_k": 3, "groups": 4, "top_groups": 2, "group_best": 1, "normalised": False},
        **{"routed_scale": 16.0, "shared_experts": 2, "sequence_balance_weight": 0.1},
    },
    "V3's": {  # sigmoid, groups by their two best, a bias for the choice, normalised and scaled, a shared expert
        **{"experts": 16, "top_k": 4, "groups": 4, "top_groups": 2, "gate": "sigmoid", "selection_bias": True},
        **{"routed_scale": 2.5, "shared_experts": 1, "bias_rate": 0.01},
    },
    "one expert a token": {"experts": 6, "top_k": 1, "normalised": False},
    "all experts": {"experts": 3, "top_k": 3, "gate": "sigmoid", "normalised": False},
    "one expert": {"experts": 1, "top_k": 1},
    "a capacity": {"experts": 4, "top_k": 2, "capacity_factor": 0.6, "gate": "sigmoid", "selection_bias": True},
}


def pair(width=20, expert_width=12, dtype=torch.float32, **settings):
    """The layer on PyTorch and on kernels with the same weights, of some size, and a bias that moves the choice."""
    rng = torch.Generator().manual_seed(7)
    eager = MoE(ModelConfig(width=width, heads=1, kv_heads=1, expert_width=expert_width, **settings))
    for parameter in eager.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    if eager.config.selection_bias:
        eager.bias_E.normal_(0, 0.3, generator=rng)
    fused = copy.deepcopy(eager)
    fused.config = replace(eager.config, kernels="triton")
    if eager.config.shared_experts:
        fused.shared.kernels = "triton"
    return eager.to(dtype), fused.to(dtype)


def drawn(T, width=20, dtype=torch.float32):
    return torch.randn(T, width, generator=torch.Generator().manual_seed(T)).to(dtype)


def step(moe, x_TD):
    """Outputs, routing, balance losses, and the gradients of all that learns from output and losses together."""
    x_TD = x_TD.clone().requires_grad_()
    y_TD, routing = moe(x_TD)
    batch = balance_loss(routing.probabilities_TE, routing.indices_TK)
    largest_TK = largest_k(routing.probabilities_TE.detach(), moe.config.top_k)
    sequence = sequence_balance_loss(routing.probabilities_TE[None], largest_TK[None]) if len(x_TD) else batch
    total = (y_TD.float() * drawn(len(x_TD)).cos()).sum() + batch + sequence
    gradients = torch.autograd.grad(total, [x_TD, *moe.parameters()])
    names = ["x", *(name for name, _ in moe.named_parameters())]
    return y_TD.detach(), routing, (batch.detach(), sequence.detach()), dict(zip(names, gradients, strict=True))


def equal(eager, fused, x_TD, bound=1e-5, floor=1e-6):
    with checked() as log:
        got = step(fused, x_TD)
    wanted = step(eager, x_TD)
    y_TD, routing, losses, gradients = got
    assert (y_TD.dtype, y_TD.shape) == (wanted[0].dtype, wanted[0].shape)
    assert (y_TD - wanted[0]).norm() <= bound * wanted[0].norm()
    assert torch.equal(routing.indices_TK, wanted[1].indices_TK)
    torch.testing.assert_close(routing.weights_TK, wanted[1].weights_TK)
    torch.testing.assert_close(routing.probabilities_TE, wanted[1].probabilities_TE)
    assert (routing.kept_TK is None) == (wanted[1].kept_TK is None)
    if routing.kept_TK is not None:
        assert torch.equal(routing.kept_TK, wanted[1].kept_TK)
    torch.testing.assert_close(losses, wanted[2])
    for name, right in wanted[3].items():
        assert gradients[name].dtype == right.dtype
        assert (gradients[name] - right).norm() <= bound * right.norm() + floor, name
    return {launch.kernel for launch in log.launches}


@pytest.mark.parametrize("T", [23, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_gradients_and_routing_are_those_of_pytorch(name, T):
    launched = equal(*pair(**CONFIGS[name]), drawn(T))
    assert {"router_kernel", "router_backward_kernel", "grouped_weight_gradient_kernel"} <= launched


def test_the_bias_moves_by_the_same_step():
    eager, fused = pair(**CONFIGS["V3's"])
    x_TD = drawn(23)
    with torch.no_grad(), checked():
        routings = eager.route(x_TD), fused.route(x_TD)
    moved = [bias_step(eager.bias_E, expert_counts(routing.indices_TK, 16), 0.01) for routing in routings]
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], eager.bias_E)


def test_experts_that_nobody_chose_get_no_gradient():
    eager, fused = pair(**CONFIGS["V3's"])
    for moe in (eager, fused):
        moe.bias_E.fill_(0.0)
        moe.bias_E[5] = -100.0
    x_TD = drawn(23)
    equal(eager, fused, x_TD)
    with checked():
        *_, gradients = step(fused, x_TD)
    assert not gradients["gate_up_EFD"][5].any()
    assert not gradients["down_EDI"][5].any()
    assert gradients["gate_up_EFD"].flatten(1).any(1).sum() > 4


def test_pairs_beyond_an_expert_s_capacity_are_dropped_alike_and_others_are_not():
    eager, fused = pair(**CONFIGS["a capacity"])
    with torch.no_grad(), checked():
        (wanted, _), (got, routing) = eager(drawn(23)), fused(drawn(23))
    assert 0 < routing.kept_TK.sum() < routing.kept_TK.numel()
    lost = ~routing.kept_TK.any(1)
    assert lost.any()
    assert not got[lost].any()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_no_tokens_pass_and_train_nothing():
    for name in ("Mixtral's", "V3's"):
        _, fused = pair(**CONFIGS[name])
        with checked():
            y_TD, routing = fused(torch.zeros(0, 20))
            y_TD.sum().backward()
        assert y_TD.shape == (0, 20)
        assert routing.indices_TK.shape == (0, fused.config.top_k)
        assert not fused.gate_up_EFD.grad.any()


def relative(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def test_in_bfloat16_both_are_as_far_from_float32():
    eager, fused = pair(**CONFIGS["V3's"], dtype=torch.bfloat16)
    wide, _ = pair(**CONFIGS["V3's"])
    wide.load_state_dict({name: tensor.float() for name, tensor in eager.state_dict().items()})
    x_TD = drawn(23, dtype=torch.bfloat16)
    with checked():
        got = step(fused, x_TD)
    theirs, exact = step(eager, x_TD), step(wide, x_TD.float())
    assert torch.equal(got[1].indices_TK, theirs[1].indices_TK)
    assert relative(got[0], exact[0]) < min(1.5 * relative(theirs[0], exact[0]), 0.01)
    for name, right in exact[3].items():
        mine = relative(got[3][name], right)
        assert mine < min(1.5 * relative(theirs[3][name], right), 0.02), name


def test_under_autocast_products_are_bfloat16_and_the_router_is_not():
    eager, fused = pair(**CONFIGS["V3's"])
    x_TD = drawn(23)
    exact = step(eager, x_TD)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = step(eager, x_TD)
        with checked() as log:
            got = step(fused, x_TD)
    products = [launch for launch in log.launches if launch.kernel.startswith("grouped")]
    assert len(products) == 6
    assert {launch.signature["x"] for launch in products} == {"*bf16"}
    assert next(launch for launch in log.launches if launch.kernel == "router_kernel").signature["logits"] == "*fp32"
    assert torch.equal(got[1].indices_TK, exact[1].indices_TK)
    assert got[0].dtype == theirs[0].dtype
    assert 1e-4 < relative(got[0], exact[0]) < min(1.5 * relative(theirs[0], exact[0]), 0.01)
    for name, right in exact[3].items():
        assert got[3][name].dtype == torch.float32
        assert relative(got[3][name], right) < min(1.5 * relative(theirs[3][name], right), 0.02), name


def test_what_the_kernels_do_not_take_is_left_to_pytorch(monkeypatch):
    eager, fused = pair(**(CONFIGS["V3's"] | {"shared_experts": 0}), dtype=torch.float64)
    assert equal(eager, fused, drawn(23, dtype=torch.float64), 1e-12, 0) == set()
    monkeypatch.setattr(router_file, "LONGEST", 8)  # experts
    eager, fused = pair(**CONFIGS["Mixtral's"])
    assert "router_kernel" in equal(eager, fused, drawn(23))
    eager, fused = pair(**(CONFIGS["V3's"] | {"shared_experts": 0}))
    assert equal(eager, fused, drawn(23)) == set()


def test_a_bias_of_another_precision_moves_the_choice_alike():
    eager, fused = pair(**CONFIGS["V3's"])
    for moe in (eager, fused):
        moe.bias_E = moe.bias_E.bfloat16()
    equal(eager, fused, drawn(23))


def test_equal_scores_go_to_the_lower_index():
    eager, fused = pair(**CONFIGS["V3's"])
    for moe in (eager, fused):
        moe.bias_E.zero_()
        moe.gate_ED.data.zero_()
    x_TD = drawn(5)
    with torch.no_grad(), checked():
        (wanted, theirs), (got, routing) = eager(x_TD), fused(x_TD)
    assert torch.equal(routing.indices_TK, theirs.indices_TK)
    assert routing.indices_TK.tolist() == [[0, 1, 2, 3]] * 5
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
