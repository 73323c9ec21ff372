"""The mixture layer's kernels with their gradients: the routed experts, and the router after its product.

Saved between forward and backward are, of the experts, x, the routing weights, the experts' weights and the order of the pairs
(two whole numbers a pair); of the router, logits and ids. Nothing is D or I elements long for a pair: backward
computes gate and up again. Differentiable once, as all kernels are.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from course.kernels.routed_experts import Order, check_ids, order_by_expert, ordered_experts
from course.kernels.routed_experts_backward import routed_experts_backward
from course.kernels.router import router
from course.kernels.router_backward import router_backward


class RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI, settings):
        order = order_by_expert(ids_TK, len(gate_up_EFD))
        ctx.save_for_backward(x_TD, order.pairs_P, order.offsets_E1, order.places_TK, weights_TK, gate_up_EFD, down_EDI)
        ctx.settings = settings
        return ordered_experts(x_TD, order, weights_TK, gate_up_EFD, down_EDI, **settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TD):
        x_TD, pairs_P, offsets_E1, places_TK, *weights = ctx.saved_tensors
        order = Order(pairs_P, pairs_P // places_TK.shape[1], offsets_E1, places_TK)
        x_wanted, _, *wanted, _ = ctx.needs_input_grad
        dx, *dweights = routed_experts_backward(dout_TD, x_TD, order, *weights, (x_wanted, *wanted), **ctx.settings)
        return dx, None, *dweights, None


class Router(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_TE, bias_E, top_k, gate, groups, top_groups, group_best, normalised, routed_scale):
        ids_TK, weights_TK = router(
            logits_TE, bias_E, top_k, gate, groups, top_groups, group_best, normalised, routed_scale
        )
        ctx.save_for_backward(logits_TE, ids_TK)
        ctx.settings = gate, normalised, routed_scale
        ctx.mark_non_differentiable(ids_TK)
        return ids_TK, weights_TK

    @staticmethod
    @once_differentiable
    def backward(ctx, _, dweights_TK):
        return router_backward(dweights_TK, *ctx.saved_tensors, *ctx.settings), *(None,) * 8


def routed_experts_with_grad(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, **settings: int
) -> Tensor:
    """`routed_experts`, with gradients of x, the routing weights, gate_up and down. Raises: what routed_experts does."""
    check_ids(ids_TK, x_TD)
    return RoutedExperts.apply(x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI, settings)


def router_with_grad(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    top_k: int,
    gate: str = "softmax",
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
    normalised: bool = True,
    routed_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`router`, with the gradient of the logits; the bias, which no gradient moves, gets none. Raises: what router does."""
    return Router.apply(logits_TE, bias_E, top_k, gate, groups, top_groups, group_best, normalised, routed_scale)
