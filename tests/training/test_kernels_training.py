"""A mixture trained on Triton kernels, interpreted, has the losses of one trained on PyTorch, and its router learns."""

from dataclasses import replace

import pytest
import torch

from course.kernels.checked import checked
from course.model import Transformer
from course.training.trainer import train

MIXTURES = {
    "softmax": {"balance_weight": 0.01},
    "sigmoid with groups, bias and a shared expert": {
        **{"gate": "sigmoid", "groups": 2, "top_groups": 1, "selection_bias": True, "bias_rate": 0.05},
        **{"shared_experts": 1, "routed_scale": 2.5, "balance_weight": 0.0, "sequence_balance_weight": 1e-3},
    },
}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_losses_are_those_of_pytorch_and_the_router_learns(name, small, sums, brief):
    config = replace(small, **MIXTURES[name])
    settings = replace(brief, steps=3, batch=1, warmup=1, evaluate_every=3, evaluation_sequences=1)
    eager, wanted = train(config, sums, settings)
    with checked() as log:
        fused, rows = train(replace(config, kernels="triton"), sums, settings)
    assert {"router_backward_kernel", "grouped_weight_gradient_kernel"} <= {launch.kernel for launch in log.launches}
    for row, right in zip(rows, wanted, strict=True):
        assert row.loss == pytest.approx(right.loss, rel=1e-5)
        assert row.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-4)
        assert row.max_violation == right.max_violation
    assert rows[-1].validation == pytest.approx(wanted[-1].validation, rel=1e-5)
    torch.manual_seed(settings.seed)
    before = Transformer(config)
    for moe, right, first in zip(fused.mixtures(), eager.mixtures(), before.mixtures(), strict=True):
        assert moe.gate_ED.shape == first.gate_ED.shape
        assert (moe.gate_ED - first.gate_ED).norm() > 0.05 * first.gate_ED.norm()
        assert (moe.gate_ED - right.gate_ED).norm() < 1e-2 * (right.gate_ED - first.gate_ED).norm()
        if config.selection_bias:
            assert moe.bias_E.any()  # three steps up or down do not cancel
            assert torch.equal(moe.bias_E, right.bias_E)
