"""The experts: one SwiGLU each, computed in a loop, padded to equal length, or as one grouped product.

All three give the same numbers. The loop pays Python and a handful of small operations for every expert; padding pays
for rows that nobody sent, as many as the busiest expert has too many; the grouped product pays for neither.

Shapes: T tokens, K experts a token, D width, E experts, I hidden width of one expert, F = 2I (gate first, then up),
R rows sorted by expert, L rows of the busiest expert.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from course.model.dispatch import combine, sort_by_expert
from course.model.swiglu import swiglu


def expert_loop(
    x_TD: Float[Tensor, "T D"],
    indices_TK: Int64[Tensor, "T K"],
    weights_TK: Float[Tensor, "T K"],
    gate_up_EFD: Float[Tensor, "E F D"],
    down_EDI: Float[Tensor, "E D I"],
) -> Float[Tensor, "T D"]:
    """Expert after expert: gather its tokens, run it, add what it says. Pairs with index E or more are dropped.

    The weights are unbound once: the backward of each `gate_up_EFD[e]` would fill a tensor as large as all experts.
    """
    y_TD = torch.zeros_like(x_TD)
    for e, (gate_up_FD, down_DI) in enumerate(zip(gate_up_EFD.unbind(), down_EDI.unbind(), strict=True)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = F.linear(swiglu(F.linear(x_TD.index_select(0, token_R), gate_up_FD)), down_DI)
        y_TD.index_add_(0, token_R, rows_RD * weights_TK[token_R, slot_R, None])
    return y_TD


def padded_experts(
    x_TD: Float[Tensor, "T D"],
    indices_TK: Int64[Tensor, "T K"],
    weights_TK: Float[Tensor, "T K"],
    gate_up_EFD: Float[Tensor, "E F D"],
    down_EDI: Float[Tensor, "E D I"],
) -> Float[Tensor, "T D"]:
    """Give every expert as many rows as the busiest one has, zeros behind its own, and run one batched product.

    Every pair is kept: indices lie below E.
    """
    E, K = len(gate_up_EFD), indices_TK.shape[1]
    order_R, offsets_E1 = sort_by_expert(indices_TK, E)
    longest = int(offsets_E1.diff().max())
    expert_R = indices_TK.flatten()[order_R]
    place_R = torch.arange(len(order_R), device=x_TD.device) - offsets_E1[expert_R] + expert_R * longest
    padded_LD = x_TD.new_zeros(E * longest, x_TD.shape[1]).index_copy(0, place_R, x_TD.index_select(0, order_R // K))
    padded_ELF = padded_LD.view(E, longest, x_TD.shape[1]) @ gate_up_EFD.transpose(1, 2)
    padded_ELD = swiglu(padded_ELF) @ down_EDI.transpose(1, 2)
    return combine(padded_ELD.flatten(0, 1).index_select(0, place_R), order_R, weights_TK)


def grouped_experts(
    rows_RD: Float[Tensor, "R D"],
    gate_up_EFD: Float[Tensor, "E F D"],
    down_EDI: Float[Tensor, "E D I"],
    offsets_E1: Int64[Tensor, " E+1"],
) -> Float[Tensor, "R D"]:
    """All experts at once: rows offsets[e]:offsets[e+1] go through expert e's SwiGLU."""
    return grouped_product(swiglu(grouped_product(rows_RD, gate_up_EFD, offsets_E1)), down_EDI, offsets_E1)


def grouped_product(
    rows_RM: Float[Tensor, "R M"], weight_ENM: Float[Tensor, "E N M"], offsets_E1: Int64[Tensor, " E+1"]
) -> Float[Tensor, "R N"]:
    """rows[offsets[e]:offsets[e+1]] @ weight[e]^T for every expert, as one operation.

    `torch.nn.functional.grouped_mm` wants float32, bfloat16 or float16 and rows of a multiple of 16 bytes; for any
    other (float64 in tests, odd widths) the same product is written out, expert by expert. Autocast does not know
    grouped_mm, so its dtype is taken here. With fewer rows than experts, in decoding on a CPU, those that have rows are
    visited one by one: the grouped operation would walk over all of them.
    """
    if torch.is_autocast_enabled(rows_RM.device.type):
        dtype = torch.get_autocast_dtype(rows_RM.device.type)
        rows_RM, weight_ENM = rows_RM.to(dtype), weight_ENM.to(dtype)
    if len(rows_RM) < len(weight_ENM) and rows_RM.is_cpu and not torch.is_grad_enabled():
        return _few_rows(rows_RM, weight_ENM, offsets_E1)
    aligned = all(width * rows_RM.element_size() % 16 == 0 for width in weight_ENM.shape[1:])
    if aligned and rows_RM.dtype != torch.float64:
        y_RN = F.grouped_mm(rows_RM.contiguous(), weight_ENM.transpose(1, 2), offs=offsets_E1[1:].to(torch.int32))
        if y_RN.requires_grad:
            y_RN.register_hook(_laid_out)
        return y_RN
    slices = rows_RM.split(offsets_E1.diff().tolist())
    return torch.cat([F.linear(rows, weight) for rows, weight in zip(slices, weight_ENM.unbind(), strict=True)])


def _few_rows(rows_RM: Tensor, weight_ENM: Tensor, offsets_E1: Tensor) -> Tensor:
    ends = offsets_E1.tolist()
    visited = [(e, start, end) for e, (start, end) in enumerate(pairwise(ends)) if end > start]
    if not visited:
        return rows_RM.new_zeros(0, weight_ENM.shape[1])
    return torch.cat([F.linear(rows_RM[start:end], weight_ENM[e]) for e, start, end in visited])


def _laid_out(gradient_RN: Tensor) -> Tensor:
    """The backward of grouped_mm refuses a gradient that is one number seen many times, as `y.sum()` sends it."""
    plain = gradient_RN.stride() == (gradient_RN.shape[1], 1)
    return gradient_RN if plain else gradient_RN.clone(memory_format=torch.contiguous_format)
