"""The layer over four ranks against `MoE` in one process: forward, and every gradient."""

import pytest
import torch
from ranked_layers import CASES, RANKS, WIRED, WIRES, whole

from course.kernels.fp8_quantize import fp8_quantize_torch
from course.model.fp8_blocks import dequantise_blocks
from course.parallel.grid import Grid
from course.parallel.ledger import DISPATCHES

EACH = 2  # experts a rank


def one_process(case):
    """Values and gradients as one process has them, on PyTorch. All tokens at once, but capacity is each rank's own."""
    settings, *rest = case
    moe, x_RTD, dy_RTD = whole((settings | {"kernels": "torch"}, *rest))
    if moe.config.capacity_factor is None:
        parts, tokens = [(torch.cat(x_RTD), torch.cat(dy_RTD))], [len(x_TD) for x_TD in x_RTD]
    else:
        parts, tokens = list(zip(x_RTD, dy_RTD, strict=True)), None
    told = {"y": [], "x": [], "weights": []}
    for x_TD, dy_TD in parts:
        y_TD, routing = moe(x_TD.requires_grad_())
        routing.weights_TK.retain_grad()
        y_TD.backward(dy_TD)
        for name, value in (("y", y_TD.detach()), ("x", x_TD.grad), ("weights", routing.weights_TK.grad)):
            told[name] += value.split(tokens) if tokens else [value]
    return told, {name: parameter.grad for name, parameter in moe.named_parameters()}


def off(got, wanted) -> float:
    """Norm of the difference over norm, and zero for zero."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30)) if wanted.numel() else 0.0


def worst(ran, name, dispatch, wanted, gradients) -> float:
    """The largest difference over all ranks, values and gradients."""
    found = []
    for rank, each in enumerate(ran):
        got = each["layers"][name][dispatch]
        found += [off(got[what], wanted[what][rank]) for what in ("y", "x", "weights")]
        for parameter, gradient in gradients.items():
            if parameter in ("gate_up_EFD", "down_EDI"):
                gradient = gradient[EACH * rank : EACH * (rank + 1)]
            found.append(off(got["parameters"][parameter], gradient))
    return max(found)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_are_one_process_forward_and_backward(ran, name, dispatch):
    exact = CASES[name][2] == "float64"
    assert worst(ran, name, dispatch, *one_process(CASES[name])) < (1e-14 if exact else 1e-6)


def test_the_cases_are_what_they_are_called(ran):
    def experts(name):
        return torch.cat([each["layers"][name]["rank"]["experts"] for each in ran])

    assert (experts("all to one rank") // EACH).unique().tolist() == [2]
    assert set(experts("experts without tokens").unique().tolist()) == {1, 3, 6}
    dropped = experts("dropped pairs") < 0
    assert 0 < dropped.sum() < dropped.numel()
    assert dropped.all(dim=1).any()  # a token that lost all its experts
    assert [len(each["layers"]["a rank without tokens"]["rank"]["y"]) for each in ran] == [5, 0, 7, 0]


def test_a_gradient_that_is_not_summed_is_not_that_of_one_process(ran):
    """So the comparison would notice."""
    moe, (x_TD, *_), (dy_TD, *_) = whole(CASES["uneven"])
    moe(x_TD)[0].backward(dy_TD)
    assert off(moe.gate_ED.grad, one_process(CASES["uneven"])[1]["gate_ED"]) > 0.1


def fp8(rows):
    return dequantise_blocks(*fp8_quantize_torch(rows, (1, 128), True), (1, 128))


def rounded_once(wire):
    """One process in which tokens on their way to the experts, and the gradient of the experts' sum, are rounded once."""
    moe, x_RTD, dy_RTD = whole(WIRED)
    x_TD, dy_TD = torch.cat(x_RTD).requires_grad_(), torch.cat(dy_RTD)
    rounded = fp8 if wire == "fp8" else lambda rows: rows
    routing = moe.route(x_TD)
    routed_TD = moe._grouped(x_TD + (rounded(x_TD) - x_TD).detach(), routing)
    y_TD = routed_TD + moe.shared(x_TD)
    torch.autograd.backward([routed_TD, moe.shared(x_TD)], [rounded(dy_TD), dy_TD])
    tokens = [len(part) for part in x_RTD]
    return y_TD.detach().split(tokens), x_TD.grad.split(tokens), moe


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("wire", ["same", "fp8"])
def test_fp8_dispatch_rounds_what_goes_to_the_experts_once_and_nothing_else(ran, wire, dispatch):
    y_RTD, dx_RTD, moe = rounded_once(wire)
    for rank, each in enumerate(ran):
        got = each["wired"][wire][dispatch]
        assert off(got["y"], y_RTD[rank]) < 1e-6
        assert off(got["x"], dx_RTD[rank]) < 1e-6
        assert off(got["parameters"]["down_EDI"], moe.down_EDI.grad[EACH * rank :][:EACH]) < 1e-6
        assert off(got["parameters"]["gate_ED"], moe.gate_ED.grad) < 1e-6


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_rounding_on_the_wire_costs_as_much_as_its_format(ran, dispatch):
    exact, *_ = rounded_once("same")
    errors = {
        wire: [off(e["wired"][wire][dispatch]["y"], y) for e, y in zip(ran, exact, strict=True)] for wire in WIRES
    }
    filled = [rank for rank in range(RANKS) if len(exact[rank])]
    assert max(errors["same"]) < 1e-6
    assert all(1e-4 < errors["bf16"][rank] < 2**-8 for rank in filled)
    assert all(2**-8 < errors["fp8"][rank] < 2**-4 for rank in filled)
    assert all(2**-8 < errors["deepseek"][rank] < 2**-4 for rank in filled)


def test_a_grid_numbers_ranks_as_torchrun_does():
    grid = Grid(6, 2)
    assert [(grid.node(rank), grid.index(rank)) for rank in range(6)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert (grid.across(4), grid.within(4)) == ([1, 4], [3, 4, 5])


def test_the_groups_are_those_of_the_grid(ran):
    grid = Grid(4, 2)
    for rank, each in enumerate(ran):
        assert each["groups"] == [[0, 1, 2, 3], grid.across(rank), grid.within(rank)]


def test_what_does_not_divide_gets_a_sentence():
    with pytest.raises(ValueError, match="6 ranks do not divide among 4 nodes"):
        Grid(6, 4)
    with pytest.raises(ValueError, match="8 experts do not divide among 3 ranks"):
        Grid(3).experts_each(8)
