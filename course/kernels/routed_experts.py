"""The routed experts of one layer, forward, on three kernels: gate and up, down, weighted sum (DeepSeek-V3 report, eq. 12).

  order     the pairs of token and expert sorted by expert (`expert_offsets`); a pair whose expert is not here has no row
  gate_up   reads each pair's token where it lies, writes silu(gate) * up
  down      reads that, writes one row a pair, in sorted order
  combine   each token gathers its rows, times their weights

Elements moved a pair, beside the experts' weights and the order, for K experts a token:
  eager   gather, product and SwiGLU (3 D + 5 I), product (I + D), times the weights (2 D), index_add (D + 2 D / K, and
          D / K for its zeros): 7 D + 6 I + 3 D / K
  fused   D + I, then I + D, then D + D / K: 3 D + 2 I + D / K
With few rows an expert all this is little beside the weights; with many the products are bound by arithmetic. In between,
for D 7168, I 2048 and K 8, the kernels can gain at most a factor of 2.5.

Shapes: T tokens, K experts a token, D width, E experts, I an expert's hidden width, F = 2I (gate first), P = T K pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from course.kernels.combine import combine
from course.kernels.expert_offsets import expert_offsets
from course.kernels.grouped_gate_up import grouped_gate_up
from course.kernels.grouped_gemm import grouped_gemm


class Order(NamedTuple):
    """The pairs in the order of their experts, one a row. Pair p = token * K + slot. All int64."""

    pairs_P: Tensor  # of each row, its pair; nothing is said of rows from offsets[E] on
    rows_P: Tensor  # of each row, its token; likewise
    offsets_E1: Tensor  # rows offsets[e]:offsets[e + 1] are expert e's
    places_TK: Tensor  # a pair's row; -1 if its expert is not here


def order_by_expert(ids_TK: Tensor, experts: int) -> Order:
    """Sort stably: within an expert by token, then by slot. An id that is none of 0 ... experts - 1 belongs to nobody.

    The host does not wait for the device. Raises: ValueError for what `expert_offsets` does not take.
    """
    found = expert_offsets(ids_TK, experts)
    rows_P = found.pairs_P // max(ids_TK.shape[1], 1)
    return Order(found.pairs_P, rows_P, found.offsets_E1, found.places_TK)


def routed_experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, **settings: int
) -> Tensor:
    """out[t] = sum over k of weights[t, k] * (silu(gate) * up of expert ids[t, k]) @ down^T; no gradient.

    x_TD, gate_up_EFD, down_EDI: float32, bfloat16 or float16, the same for all. ids_TK: int64; a pair whose id is no
    expert here adds nothing. weights_TK: one of the floats. settings: block, group, num_warps and num_stages of both products.
    Returns: [T, D], contiguous, in the dtype of x; rounded to it after gate and up, after down, and after the sum.
    Raises: ValueError for what does not fit.
    """
    check_ids(ids_TK, x_TD)
    order = order_by_expert(ids_TK, len(gate_up_EFD))
    return ordered_experts(x_TD, order, weights_TK, gate_up_EFD, down_EDI, **settings)


def ordered_experts(
    x_TD: Tensor, order: Order, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, **settings: int
) -> Tensor:
    """`routed_experts` where the pairs are sorted already."""
    gated_PI = grouped_gate_up(x_TD, gate_up_EFD, order.rows_P, order.offsets_E1, **settings)
    y_PD = grouped_gemm(gated_PI, down_EDI, None, order.offsets_E1, **settings)
    return combine(y_PD, order.places_TK, weights_TK)


def check_ids(ids_TK: Tensor, x_TD: Tensor) -> None:
    """Raises: ValueError when the ids are not int64, a row for each token."""
    if ids_TK.ndim != 2 or ids_TK.dtype != torch.int64 or len(ids_TK) != len(x_TD):
        told = f"{list(ids_TK.shape)} of {ids_TK.dtype}"
        raise ValueError(f"ids are int64, a row for each of {len(x_TD)} tokens, not {told}")
