"""bf16: the products of a step in sixteen bits, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course.model import Transformer, gate_probabilities
from course.training.data import training_batch
from course.training.trainer import train


class Products(TorchDispatchMode):
    """Notes in which dtype each kind of matrix product was computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "_grouped_mm"):
            self.seen.add((name, args[0].dtype))
        return function(*args, **(kwargs or {}))


def test_losses_stay_close_to_those_of_float32(small, sums, brief):
    for config in (small, small.dense_twin()):
        exact, rough = (train(config, sums, replace(brief, precision=each)).rows for each in ("float32", "bf16"))
        losses = [[row.loss for row in rows] for rows in (rough, exact)]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.03)
        assert rough[-1].validation == pytest.approx(exact[-1].validation, rel=0.03)


def test_weights_gradients_losses_and_the_optimizers_state_are_float32(small, sums, brief):
    for name in ("adamw", "muon"):
        model, _ = train(small, sums, replace(brief, steps=2, precision="bf16", optimizer=name))
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    windows = training_batch(sums, small.context, 2, seed=0, step=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*windows)
    loss.total.backward()
    assert loss.total.dtype == loss.cross_entropy.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_experts_are_among_the_products(small, sums):
    model = Transformer(small)
    windows = training_batch(sums, small.context, 2, seed=0, step=1)
    with torch.no_grad(), Products() as products, torch.autocast("cpu", torch.bfloat16):
        model.loss(*windows)
    assert ("_grouped_mm", torch.bfloat16) in products.seen
    assert ("_grouped_mm", torch.float32) not in products.seen


def test_the_router_computes_in_float32(small):
    x_TD, gate_ED = torch.randn(7, 16), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x_TD @ gate_ED.T).dtype == torch.bfloat16
        probabilities_TE = gate_probabilities(x_TD, gate_ED)
    assert torch.equal(probabilities_TE, gate_probabilities(x_TD, gate_ED))
