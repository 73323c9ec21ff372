import pytest
import torch
from torch.autograd import gradcheck
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from course.model import ModelConfig, MoE, expert_loop, softmax_topk_gate


def mixture(experts, top_k, width=16, expert_width=12, **settings):
    torch.manual_seed(experts)
    moe = MoE(ModelConfig(width=width, experts=experts, top_k=top_k, expert_width=expert_width, **settings))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe


def mixtral_block(moe, experts):
    config = MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=experts, num_experts_per_tok=moe.config.top_k
    )
    config._experts_implementation = "eager"
    block = MixtralSparseMoeBlock(config)
    block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj = moe.gate_ED, moe.gate_up_EFD, moe.down_EDI
    return block


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (5, 5), (32, 3)])
@pytest.mark.parametrize("tokens", [1, 29])
def test_the_layer_equals_transformers_mixtral_in_output_and_gradients(experts, top_k, tokens):
    moe = mixture(experts, top_k)
    x_TD = torch.randn(tokens, 16, requires_grad=True)
    leaves, direction = [x_TD, *moe.parameters()], torch.randn(tokens, 16)
    results = []
    for y_TD in (moe(x_TD)[0], mixtral_block(moe, experts)(x_TD[None])[0]):
        results.append([y_TD, *torch.autograd.grad(y_TD, leaves, direction)])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-6


def test_the_layer_is_the_expert_loop_over_the_gates_choice():
    moe, x_TD = mixture(6, 2), torch.randn(11, 16)
    y_TD, routing = moe(x_TD)
    indices_TK, weights_TK = softmax_topk_gate(x_TD, moe.gate_ED, 2)
    assert torch.equal(routing.indices_TK, indices_TK)
    torch.testing.assert_close(y_TD, expert_loop(x_TD, indices_TK, weights_TK, moe.gate_up_EFD, moe.down_EDI))


def test_the_gradients_of_the_layer_are_right():
    moe = mixture(4, 2, width=8, expert_width=3).double()
    x_TD = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: moe(x)[0], (x_TD, *moe.parameters()))


def test_no_tokens_pass_and_train_nothing():
    moe = mixture(4, 2)
    y_TD, routing = moe(torch.zeros(0, 16))
    y_TD.sum().backward()
    assert y_TD.shape == (0, 16)
    assert routing.indices_TK.shape == (0, 2)
    assert all(parameter.grad.abs().max() == 0 for parameter in moe.parameters())


def test_ample_capacity_drops_nothing_and_changes_nothing():
    x_TD = torch.randn(20, 16)
    y_TD, routing = mixture(4, 2, capacity_factor=4.0)(x_TD)
    assert routing.kept_TK.all()
    torch.testing.assert_close(y_TD, mixture(4, 2)(x_TD)[0])


def test_a_dropped_pair_adds_nothing_and_the_kept_ones_keep_their_weight():
    moe, x_TD = mixture(4, 2, capacity_factor=0.5), torch.randn(20, 16)
    y_TD, routing = moe(x_TD)
    assert 0 < routing.kept_TK.sum() <= 4 * 5
    weights_TK = routing.weights_TK * routing.kept_TK
    torch.testing.assert_close(y_TD, expert_loop(x_TD, routing.indices_TK, weights_TK, moe.gate_up_EFD, moe.down_EDI))
    assert y_TD[~routing.kept_TK.any(1)].abs().max() == 0


def test_dropped_tokens_still_send_zero_gradients_not_nan():
    moe, x_TD = mixture(4, 2, capacity_factor=0.25), torch.randn(20, 16, requires_grad=True)
    moe(x_TD)[0].sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x_TD, *moe.parameters()))
