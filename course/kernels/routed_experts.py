"""The routed experts of one layer, forward, on three kernels: gate and up, down, weighted sum (DeepSeek-V3 report, eq. 12).

  order     the pairs of token and expert sorted by expert, by PyTorch; a pair whose expert is not here comes last
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

from course.kernels.combine import NOWHERE, combine
from course.kernels.grouped_gate_up import grouped_gate_up
from course.kernels.grouped_gemm import grouped_gemm


class Order(NamedTuple):
    """The pairs in the order of their experts. Pair p = token * K + slot."""

    rows_P: Tensor  # of each sorted pair, its token
    offsets_E1: Tensor  # sorted pairs offsets[e]:offsets[e + 1] are expert e's
    places_TK: Tensor  # where a pair came to lie; -1 if its expert is not here


def order_by_expert(ids_TK: Tensor, experts: int) -> Order:
    """Sort stably: within an expert by token, then by slot. An id that is none of 0 ... experts - 1 belongs to nobody.

    The host does not wait for the device, as `bincount` would make it.
    """
    here_P = ((ids_TK >= 0) & (ids_TK < experts)).flatten()
    sorted_P, order_P = torch.where(here_P, ids_TK.flatten(), experts).sort(stable=True)
    offsets_E1 = torch.searchsorted(sorted_P, torch.arange(experts + 1, device=ids_TK.device, dtype=sorted_P.dtype))
    numbers_P = torch.arange(len(order_P), device=ids_TK.device)
    places_P = torch.zeros_like(order_P).scatter_(0, order_P, numbers_P)
    places_TK = torch.where(here_P, places_P, NOWHERE).view_as(ids_TK)
    return Order(order_P // max(ids_TK.shape[1], 1), offsets_E1, places_TK)


def routed_experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, **settings: int
) -> Tensor:
    """out[t] = sum over k of weights[t, k] * (silu(gate) * up of expert ids[t, k]) @ down^T; no gradient.

    x_TD, gate_up_EFD, down_EDI: float32, bfloat16 or float16, the same for all. ids_TK: int64; a pair whose id is no
    expert here adds nothing. weights_TK: one of the floats. settings: block, group, num_warps and num_stages of both products.
    Returns: [T, D], contiguous, in the dtype of x; rounded to it after gate and up, after down, and after the sum.
    Raises: ValueError for what does not fit.
    """
    if ids_TK.ndim != 2 or ids_TK.dtype != torch.int64 or len(ids_TK) != len(x_TD):
        raise ValueError(
            f"ids are int64, a row for each of {len(x_TD)} tokens, not {list(ids_TK.shape)} of {ids_TK.dtype}"
        )
    rows_P, offsets_E1, places_TK = order_by_expert(ids_TK, len(gate_up_EFD))
    gated_PI = grouped_gate_up(x_TD, gate_up_EFD, rows_P, offsets_E1, **settings)
    return combine(grouped_gemm(gated_PI, down_EDI, None, offsets_E1, **settings), places_TK, weights_TK)
