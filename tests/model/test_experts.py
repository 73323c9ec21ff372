import pytest
import torch
from torch.autograd import gradcheck

from course.model import combine, expert_loop, grouped_experts, grouped_product, padded_experts, sort_by_expert

WAYS = {"loop": expert_loop, "padded": padded_experts}


def grouped(x_TD, indices_TK, weights_TK, gate_up_EFD, down_EDI):
    order_R, offsets_E1 = sort_by_expert(indices_TK, len(gate_up_EFD))
    rows_RD = x_TD[order_R // indices_TK.shape[1]]
    return combine(grouped_experts(rows_RD, gate_up_EFD, down_EDI, offsets_E1), order_R, weights_TK)


def layer(T, D, E, K, I, dtype=torch.float64, used=None, seed=0):  # noqa: E741
    """Random inputs; only the first `used` experts are ever chosen."""
    torch.manual_seed(seed)
    indices_TK = torch.stack([torch.randperm(used or E)[:K] for _ in range(T)]) if T else torch.zeros(0, K).long()
    shapes = ((T, D), (T, K), (E, 2 * I, D), (E, D, I))
    x, weights, gate_up, down = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes)
    return x, indices_TK, weights, gate_up, down


def values(way, inputs):
    y_TD = way(*inputs)
    leaves = [value for value in inputs if value.requires_grad]
    return [y_TD, *torch.autograd.grad(y_TD, leaves, torch.cos(torch.arange(y_TD.numel())).view_as(y_TD).to(y_TD))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes",
    [(64, 16, 8, 2, 12), (1, 8, 4, 4, 4), (7, 5, 3, 1, 3), (33, 6, 5, 2, 7)],
    ids=["plain", "one token, all experts", "odd widths", "odd widths, top-2"],
)
def test_every_way_gives_the_same_output_and_gradients(way, dtype, sizes):
    inputs = layer(*sizes, dtype=dtype)
    for want, got in zip(values(grouped, inputs), values(WAYS[way], inputs), strict=True):
        assert (got - want).norm() <= (1e-6 if dtype == torch.float32 else 1e-14) * want.norm()


@pytest.mark.parametrize("way", [expert_loop, padded_experts, grouped])
def test_an_empty_expert_gets_a_zero_gradient_and_changes_nothing(way):
    inputs = layer(20, 8, 6, 2, 4, dtype=torch.float32, used=3)
    y_TD, _, _, gate_up_grad, down_grad = values(way, inputs)
    assert gate_up_grad[3:].abs().max() == down_grad[3:].abs().max() == 0
    x_TD, indices_TK, weights_TK, gate_up_EFD, down_EDI = inputs
    fewer_TD = way(x_TD, indices_TK, weights_TK, gate_up_EFD[:3], down_EDI[:3])
    torch.testing.assert_close(fewer_TD, y_TD)


@pytest.mark.parametrize("way", [expert_loop, padded_experts, grouped])
@pytest.mark.parametrize("width", [8, 5])
def test_no_tokens_give_no_rows_and_zero_gradients(way, width):
    y_TD, _, _, gate_up_grad, down_grad = values(way, layer(0, width, 4, 2, 4, dtype=torch.float32))
    assert y_TD.shape == (0, width)
    assert gate_up_grad.abs().max() == down_grad.abs().max() == 0


def test_the_gradients_of_the_grouped_product_are_right():
    torch.manual_seed(0)
    rows_RM, weight_ENM = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 3), (4, 2, 3)))
    offsets_E1 = torch.tensor([0, 2, 2, 5, 6])
    assert gradcheck(lambda rows, weight: grouped_product(rows, weight, offsets_E1), (rows_RM, weight_ENM))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_is_a_product_an_expert(dtype):
    rows_RM, weight_ENM = torch.randn(10, 16).to(dtype), torch.randn(4, 8, 16).to(dtype)
    wanted = [rows_RM[:3] @ weight_ENM[0].T, rows_RM[3:9] @ weight_ENM[2].T, rows_RM[9:] @ weight_ENM[3].T]
    got_RN = grouped_product(rows_RM, weight_ENM, torch.tensor([0, 3, 3, 9, 10]))
    torch.testing.assert_close(got_RN, torch.cat(wanted))


@pytest.mark.parametrize("reduce", [torch.sum, lambda y: y.sum(0)[0], lambda y: y.T.reshape(-1)[::2].sum()])
def test_any_gradient_may_flow_back_into_the_grouped_product(reduce):
    rows_RM, weight_ENM = torch.randn(6, 8), torch.randn(2, 4, 8)
    offsets_E1 = torch.tensor([0, 4, 6])
    results = []
    for dtype in (torch.float32, torch.float64):
        weight = weight_ENM.to(dtype, copy=True).requires_grad_()
        reduce(grouped_product(rows_RM.to(dtype), weight, offsets_E1)).backward()
        results.append(weight.grad.double())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
