"""The router, backward: from the gradient of the weights to that of the logits, as one kernel.

The choice has no gradient: it is the weights of the chosen that teach a router (DeepSeek-V3 report, equations 12 to 16).
With scores s, weights w and dw the gradient of w:
  normalised      w = scale s / sum(s of the chosen):  ds = scale (dw - mean of dw by s) / sum(s of the chosen)
  else            w = scale s:                         ds = scale dw
  sigmoid         dlogit = ds s (1 - s) for the chosen, 0 for the others
  softmax         dlogit = s (ds - sum over the chosen of ds s), which reaches all experts
The scores are computed once more, so that nothing but logits and ids is kept from the forward pass.

Bytes moved an element of the logits, for DeepSeek-V3's router (256 experts, 8 a token, sigmoid, normalised):
  eager   sigmoid (8), zeros (4), and twelve steps over the K chosen (3.4): 15.4
  fused   reads the logits once (4), writes their gradient (4), ids and dw (12 K / E = 0.4): 8.4
Both are bound by memory and launches, so the kernel can gain at most a factor of 1.8
where memory is the bound.

Shapes: T tokens, E experts, K experts a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.router import ELEMENTS, GATES, LONGEST
from course.kernels.rows import empty_rows


def router_backward_torch(
    dweights_TK: Tensor,
    logits_TE: Tensor,
    ids_TK: Tensor,
    gate: str = "softmax",
    normalised: bool = True,
    routed_scale: float = 1.0,
) -> Tensor:
    """The twin: the same in PyTorch."""
    scores_TE = logits_TE.softmax(dim=1) if gate == "softmax" else logits_TE.sigmoid()
    chosen_TK, ds_TK = scores_TE.gather(1, ids_TK), dweights_TK * routed_scale
    if normalised:
        total_T1 = chosen_TK.sum(dim=1, keepdim=True)
        ds_TK = (ds_TK - (ds_TK * chosen_TK).sum(dim=1, keepdim=True) / total_T1) / total_T1
    zeros_TE = torch.zeros(logits_TE.shape, dtype=logits_TE.dtype, device=logits_TE.device)
    if gate == "sigmoid":
        return zeros_TE.scatter_(1, ids_TK, ds_TK * chosen_TK * (1 - chosen_TK))
    ds_TE = zeros_TE.scatter_(1, ids_TK, ds_TK)
    return scores_TE * (ds_TE - (ds_TK * chosen_TK).sum(dim=1, keepdim=True))


@triton.jit
def router_backward_kernel(
    dweights, logits, ids, dlogits, stride, T, E, K, scale,
    SIGMOID: tl.constexpr, NORMALISED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)[None, :]
    inside = (row < T)[:, None] & (e < E)
    values = tl.load(logits + row[:, None] * stride + e, mask=inside, other=float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(values)
        rest = tl.sigmoid(-values)  # 1 - s would be 0 where s rounds to 1
    else:
        weights = tl.exp(values - tl.max(values, axis=1)[:, None])
        scores = weights / tl.sum(weights, axis=1)[:, None]
    ds = tl.zeros((ROWS, WIDTH), tl.float32)
    chosen = ds > 0
    for k in range(K):
        its = tl.load(ids + row * K + k, mask=row < T, other=-1)
        dw = tl.load(dweights + row * K + k, mask=row < T, other=0.0)
        found = e == its[:, None]
        ds = tl.where(found, dw[:, None] * scale, ds)
        chosen = chosen | found
    own = tl.where(chosen, scores, 0.0)
    along = tl.sum(ds * own, axis=1)
    if NORMALISED:
        total = tl.sum(own, axis=1)
        ds = tl.where(chosen, (ds - (along / total)[:, None]) / total[:, None], 0.0)
    if SIGMOID:
        ds *= rest
    elif not NORMALISED:  # where it is, nothing is left to take off: a common factor of the chosen moves no weight
        ds -= along[:, None]
    tl.store(dlogits + row[:, None] * E + e, ds * scores, mask=inside)


def router_backward(
    dweights_TK: Tensor,
    logits_TE: Tensor,
    ids_TK: Tensor,
    gate: str = "softmax",
    normalised: bool = True,
    routed_scale: float = 1.0,
) -> Tensor:
    """The gradient of the logits, given that of `router`'s weights and the ids it chose.

    dweights_TK, logits_TE: float32. ids_TK: int64, each expert at most once in a row. The rest as for `router`.
    Returns: dlogits_TE, float32, contiguous.
    Raises: ValueError when shapes do not fit, a dtype or the gate is another, or there are more than 4096 experts.
    """
    if logits_TE.dtype != torch.float32 or dweights_TK.dtype != torch.float32 or ids_TK.dtype != torch.int64:
        told = f"{dweights_TK.dtype}, {logits_TE.dtype} and {ids_TK.dtype}"
        raise ValueError(f"router_backward takes gradients and logits of float32 and ids of int64, not {told}")
    if logits_TE.dim() != 2 or dweights_TK.shape != ids_TK.shape or ids_TK.shape[:-1] != logits_TE.shape[:1]:
        told = f"{list(dweights_TK.shape)} and {list(ids_TK.shape)} do not fit logits of {list(logits_TE.shape)}"
        raise ValueError(f"gradients and ids of {told}")
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is none of {', '.join(GATES)}")
    (T, E), K = logits_TE.shape, ids_TK.shape[1]
    if not 1 <= K <= E <= LONGEST:
        raise ValueError(f"router_backward takes up to {LONGEST} experts and 1 to all of them a token, not {E} and {K}")
    dlogits_TE = empty_rows(logits_TE)
    if T == 0:
        return dlogits_TE
    logits_TE = logits_TE if logits_TE.stride(1) == 1 else logits_TE.contiguous()
    width = triton.next_power_of_2(E)
    rows = max(ELEMENTS // width, 1)
    router_backward_kernel[(triton.cdiv(T, rows),)](
        dweights_TK.contiguous(),
        logits_TE,
        ids_TK.contiguous(),
        dlogits_TE,
        logits_TE.stride(0),
        T,
        E,
        K,
        float(routed_scale),
        SIGMOID=gate == "sigmoid",
        NORMALISED=normalised,
        ROWS=rows,
        WIDTH=width,
    )
    return dlogits_TE
