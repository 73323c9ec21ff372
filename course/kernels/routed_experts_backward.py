"""The routed experts of one layer, backward, on four kernels (DeepSeek-V3 report, equation 12).

  swiglu    gate and up again, back through down and SwiGLU, the routing weights' gradient (`grouped_swiglu_backward`)
  down      over each expert's rows, dout[t]^T (w a); of the routed result, dout is read where it lies
  gate_up   over each expert's rows, dgate_up^T x[t]    (both `grouped_weight_gradient`)
  dx        dgate_up @ gate_up of each expert, its weights read as they lie (`grouped_gemm`); then each token adds up its
            K rows in order (`combine`): no atomics, so the bits are the same every time

Elements moved a pair, beside the experts' weights, their gradients and the order, for K experts a token:
  eager   grouped_swiglu_backward's (9 D + 6 I); products (D + I, and 2 I + D, from rows that it kept); dx (2 I + D, then D
          + 2 D / K, and D / K for its zeros): 13 D + 11 I + 3 D / K
  fused   2 D + 3 I, then D + I, D + 2 I, D + 2 I, and D + D / K: 6 D + 8 I + D / K
Memory allows a factor of 2 for D 7168, I 2048 and K 8. In units of 2 D I FLOPs a pair backward takes 8 here, and 6 where
gate and up are kept.

Shapes: T tokens, K experts a token, D width, E experts, I an expert's hidden width, F = 2I (gate first), P = T K pairs.
"""

from collections.abc import Sequence

from torch import Tensor

from course.kernels.combine import combine
from course.kernels.grouped_gemm import grouped_gemm
from course.kernels.grouped_swiglu_backward import grouped_swiglu_backward
from course.kernels.grouped_weight_gradient import grouped_weight_gradient
from course.kernels.routed_experts import Order


def routed_experts_backward(
    dout_TD: Tensor,
    x_TD: Tensor,
    order: Order,
    weights_TK: Tensor,
    gate_up_EFD: Tensor,
    down_EDI: Tensor,
    wanted: Sequence[bool] = (True, True, True, True),
    **settings: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weights, gate_up and down, given that of what `routed_experts` returned.

    dout_TD: of x's shape and dtype. order: of the pairs, as the forward pass had it. wanted: which of the four; None for the
    others, and what they alone need is not computed. settings: block, group, num_warps and num_stages of all products.
    Returns: gradients of their inputs' dtypes, contiguous; each rounded once but dx, whose terms and sum are.
    Raises: ValueError for what does not fit.
    """
    dx_TD = dgate_up_EFD = ddown_EDI = None
    pairs_P, rows_P, offsets_E1, places_TK = order
    dgate_up_PF, weighted_PI, dweights_TK = grouped_swiglu_backward(
        dout_TD, x_TD, gate_up_EFD, down_EDI, weights_TK, pairs_P, offsets_E1, places_TK, **settings
    )
    if wanted[3]:
        ddown_EDI = grouped_weight_gradient(dout_TD, weighted_PI, rows_P, None, offsets_E1, **settings)
    if wanted[2]:
        dgate_up_EFD = grouped_weight_gradient(dgate_up_PF, x_TD, None, rows_P, offsets_E1, **settings)
    if wanted[0]:
        dx_PD = grouped_gemm(dgate_up_PF, gate_up_EFD.mT, None, offsets_E1, **settings)
        dx_TD = combine(dx_PD, places_TK, None)
    return dx_TD, dweights_TK if wanted[1] else None, dgate_up_EFD, ddown_EDI
