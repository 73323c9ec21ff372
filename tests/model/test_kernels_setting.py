"""A model on the course's Triton kernels has the logits, losses and gradients of the one on PyTorch."""

from dataclasses import replace

import pytest
import torch

from course.kernels.checked import checked
from course.model import ModelConfig, Transformer

SMALL = {"vocab": 61, "context": 16, "width": 32, "layers": 2}
CONFIGS = {
    "dense": ModelConfig(**SMALL, heads=4, kv_heads=2, mlp_width=48, qk_norm=True),
    "mixture": ModelConfig(**SMALL, heads=2, kv_heads=2, experts=4, top_k=2, expert_width=24),
    "deepseek": replace(
        ModelConfig.preset("tiny-deepseek-v3"),
        **SMALL,
        heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        mlp_width=48,
        expert_width=16,
        mtp_layers=1,
    ),
}

MIXTURE = {
    *("router_kernel", "expert_places_kernel", "grouped_gate_up_kernel", "grouped_gemm_kernel", "combine_kernel"),
    *("router_backward_kernel", "grouped_swiglu_backward_kernel", "grouped_weight_gradient_kernel"),
}


def pair(config):
    models = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(3)
        models.append(Transformer(replace(config, kernels=kernels)))
    return models


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_losses_and_gradients_are_those_of_pytorch(name):
    eager, fused = pair(CONFIGS[name])
    tokens_BS = torch.randint(61, (1, 5), generator=torch.Generator().manual_seed(0))
    targets_BS = tokens_BS.roll(-1, 1)
    with checked() as log:
        logits_BSV, loss = fused(tokens_BS), fused.loss(tokens_BS, targets_BS)
        loss.total.backward()
    wanted = eager.loss(tokens_BS, targets_BS)
    wanted.total.backward()
    torch.testing.assert_close(logits_BSV, eager(tokens_BS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.total, wanted.total)
    for (place, p), (_, q) in zip(fused.named_parameters(), eager.named_parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm() + 1e-9, place
    launched = {launch.kernel for launch in log.launches}
    assert {f"{name}_kernel" for name in ("rmsnorm", "rmsnorm_dx", "rope", "cross_entropy")} <= launched
    assert {"cross_entropy_backward_kernel", *(MIXTURE if CONFIGS[name].experts else ())} <= launched
    dense = name != "mixture"  # the others have a dense layer or a shared expert
    assert dense == ("swiglu_kernel" in launched) == ("swiglu_backward_kernel" in launched)


def test_cached_steps_are_those_of_pytorch():
    eager, fused = pair(CONFIGS["deepseek"])
    tokens_BS = torch.randint(61, (1, 5), generator=torch.Generator().manual_seed(0))
    caches = fused.new_caches(1, 8)
    with torch.no_grad(), checked():  # Triton 3.6's own interpreter fails on numpy 2.4
        steps = [fused(tokens_BS[:, i : i + 1], caches) for i in range(5)]
        torch.testing.assert_close(torch.cat(steps, dim=1), eager(tokens_BS), rtol=1e-5, atol=1e-5)


def test_the_setting_changes_no_number_of_the_model():
    eager, fused = pair(CONFIGS["mixture"])
    assert eager.state_dict().keys() == fused.state_dict().keys()
    with pytest.raises(AssertionError, match="kernels 'cuda' is none of torch, triton"):
        ModelConfig(mlp_width=8, kernels="cuda")
