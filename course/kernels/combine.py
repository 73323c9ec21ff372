"""The weighted sum of each token's expert results, as one kernel: a program a token and a block of its row.

Each token gathers its own K rows, where the model's `combine` lets each row add itself to its token. Gathering needs no
atomic additions, so the terms are added in order of k, and the result is the same bits every time.

Bytes moved an element of the result, where rows are long, in bfloat16 and in float32:
  eager   gathers (4 K, 8 K), to float32 (6 K, 0), times the weight (8 K, 8 K), sum (4 K + 4, 4 K + 4), back (6, 0):
          22 K + 10 and 20 K + 4
  fused   reads K rows once and writes the result once: 2 K + 2 and 4 K + 4
Both are bound by memory, so at K = 8 the kernel can gain at most a factor of 10.3 in bfloat16 and 4.6 in float32.

A place of -1 (a pair that was dropped) counts as nothing: neither a row nor its weight is read. Without weights it is the
plain sum, which is how the gradients of a token's rows come back to the token.

Shapes: T tokens, K experts a token, R rows of results, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import as_rows, check_floats

NOWHERE = -1
BLOCK = 1024  # elements of a token's row that a program computes, at most


def combine_torch(y_RD: Tensor, places_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """The twin: the same in PyTorch, for at least one row."""
    there_TK = places_TK != NOWHERE
    weights_TK = torch.ones_like(places_TK) if weights_TK is None else weights_TK
    y_TKD = y_RD.index_select(0, places_TK.clamp(min=0).flatten()).float().unflatten(0, places_TK.shape)
    weighted_TKD = y_TKD * torch.where(there_TK, weights_TK.float(), 0.0)[:, :, None]
    return weighted_TKD.sum(1).to(y_RD.dtype)


@triton.jit
def combine_kernel(y, places, weights, out, stride, D, K: tl.constexpr, NOWHERE: tl.constexpr, BLOCK: tl.constexpr):
    across = tl.cdiv(D, BLOCK)
    t = (tl.program_id(0) // across).to(tl.int64)
    d = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        place = tl.load(places + t * K + k).to(tl.int64)
        there = place != NOWHERE
        row = tl.load(y + place * stride + d, mask=there & (d < D), other=0.0).to(tl.float32)
        if weights is not None:
            row *= tl.load(weights + t * K + k, mask=there, other=0.0).to(tl.float32)
        total += row
    tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)


def combine(y_RD: Tensor, places_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """out[t] = sum over k of weights[t, k] * y[places[t, k]], computed in float32 and rounded once.

    y_RD: float32, bfloat16 or float16. places_TK: int64 or int32, rows of y, or -1 for a pair that adds nothing. A token
    without any place gets zeros. weights_TK: one of the floats, need not be y's; None: all 1.
    Returns: [T, D], contiguous, in the dtype of y.
    Raises: ValueError when shapes do not fit or a dtype is another.
    """
    check_floats("combine", *(tensor for tensor in (y_RD, weights_TK) if tensor is not None))
    if places_TK.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"combine takes places of int64 and int32, not {places_TK.dtype}")
    if y_RD.dim() != 2 or places_TK.dim() != 2:
        raise ValueError(f"combine takes rows and places in tables, not {list(y_RD.shape)} and {list(places_TK.shape)}")
    if weights_TK is not None and weights_TK.shape != places_TK.shape:
        raise ValueError(
            f"weights of shape {list(weights_TK.shape)} do not fit places of shape {list(places_TK.shape)}"
        )
    (T, K), D = places_TK.shape, y_RD.shape[1]
    out_TD = y_RD.new_empty(T, D)
    if out_TD.numel() == 0 or K == 0:
        return out_TD.zero_()
    rows_RD = as_rows(y_RD) if len(y_RD) else y_RD
    block = min(triton.next_power_of_2(D), BLOCK)
    combine_kernel[(T * triton.cdiv(D, block),)](
        rows_RD,
        places_TK.contiguous(),
        None if weights_TK is None else weights_TK.contiguous(),
        out_TD,
        rows_RD.stride(0),
        D,
        K=K,
        NOWHERE=NOWHERE,
        BLOCK=block,
        num_warps=max(block // 256, 1),
    )
    return out_TD
