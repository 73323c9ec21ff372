"""To the experts and back: sort the (token, slot) pairs by expert, limit what an expert takes, add the results up.

A *pair* p = token * K + slot is one visit of one token to one expert. There are T * K of them; R is how many are kept.

Shapes: T tokens, K experts a token, D width, E experts, R rows, one a kept pair, sorted by expert.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def sort_by_expert(
    indices_TK: Int64[Tensor, "T K"], experts: int
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " {experts}+1"]]:
    """Line the pairs up by expert, so that each expert's rows are one slice.

    Returns: order_P, the pairs sorted by expert (stable: within an expert, in order of token, then slot), so that
    order_P // K is each row's token; and offsets_E1, E + 1 numbers: rows offsets[e]:offsets[e+1] go to expert e.
    A pair whose index is `experts` (one past the last) is dropped: it sorts behind offsets[E].
    """
    flat_P = indices_TK.flatten()
    counts_E = flat_P.bincount(minlength=experts)[:experts]
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    return flat_P.argsort(stable=True), offsets_E1


def sort_kept(
    indices_TK: Int64[Tensor, "T K"], kept_TK: Bool[Tensor, "T K"], experts: int
) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " {experts}+1"]]:
    """`sort_by_expert` for the kept pairs alone: the order is cut where the dropped ones begin."""
    order_P, offsets_E1 = sort_by_expert(indices_TK.masked_fill(~kept_TK, experts), experts)
    return order_P[: offsets_E1[-1]], offsets_E1


def capacity_mask(indices_TK: Int64[Tensor, "T K"], experts: int, capacity: int) -> Bool[Tensor, "T K"]:
    """Which pairs are kept when an expert takes at most `capacity` of them.

    First come, first served, in order of token and then of slot, as in Switch Transformer; GShard instead serves all
    first choices before any second choice.
    """
    order_P, offsets_E1 = sort_by_expert(indices_TK, experts)
    place_P = torch.arange(order_P.numel(), device=order_P.device) - offsets_E1[indices_TK.flatten()[order_P]]
    kept_P = torch.empty_like(order_P, dtype=torch.bool)
    kept_P[order_P] = place_P < capacity
    return kept_P.view_as(indices_TK)


def expert_capacity(tokens: int, experts: int, k: int, factor: float) -> int:
    """Rows an expert takes: `factor` times the mean load, rounded up (Switch Transformer, equation 3)."""
    return math.ceil(factor * tokens * k / experts)


def combine(
    rows_RD: Float[Tensor, "R D"], order_R: Int64[Tensor, " R"], weights_TK: Float[Tensor, "T K"]
) -> Float[Tensor, "T D"]:
    """Each token's sum of its experts' outputs, weighted. A dropped pair is no row and adds nothing."""
    T, K = weights_TK.shape
    weighted_RD = rows_RD * weights_TK.flatten().index_select(0, order_R)[:, None]
    return weighted_RD.new_zeros(T, rows_RD.shape[1]).index_add(0, order_R // K, weighted_RD)
