"""Rotary position embedding (Su et al. 2021, section 3.2, 3.4.2), as one kernel: a program turns a block of positions of all heads.

A pair (a, b) of features becomes (a cos - b sin, b cos + a sin). Which features make a pair is the layout:
  half          feature i and feature i + D/2
  interleaved   feature 2i and feature 2i + 1

The gradient is turned back by the same angle: the matrix ((cos, -sin), (sin, cos)) transposed is the one with -sin. So the
backward pass is this kernel with -sin, whatever a scaling has multiplied cosine and sine with.

Bytes moved an element, where heads are many enough to forget cosine and sine, in bfloat16 and in float32:
  eager   to float32 (6, 0), two products with cosine (8, 8), two with sine (8, 8), difference (6, 6), sum (6, 6), both into
          one tensor (8, 8), back (6, 0): 48 and 36
  fused   reads x once and writes the result once: 4 and 8
Both are bound by memory, so the kernel can gain at most a factor of 12 in bfloat16 and 4.5 in float32. Cosine and sine are
4 bytes an element of one head, twice as many as its bfloat16: therefore a program loads them once for all its heads.

Shapes: B batch, H heads, S sequence, D features a head, P = D/2 pairs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import check_floats, empty_rows

LAYOUTS = ("half", "interleaved")
TILE = 512  # pairs of one head that a program turns at once
WIDEST = 2048  # features a head


def rope_torch(x_BHSD: Tensor, cos_SP: Tensor, sin_SP: Tensor, layout: str = "half") -> Tensor:
    """The twin: the same in PyTorch."""
    wide_BHSD, cos_SP, sin_SP = x_BHSD.float(), cos_SP.float(), sin_SP.float()
    if layout == "half":
        first, second = wide_BHSD.chunk(2, dim=-1)
    else:
        first, second = wide_BHSD[..., 0::2], wide_BHSD[..., 1::2]
    turned = first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP
    together = torch.cat(turned, dim=-1) if layout == "half" else torch.stack(turned, dim=-1).flatten(-2)
    return together.to(x_BHSD.dtype)


@triton.jit
def rope_kernel(
    x,
    cos,
    sin,
    out,
    x_batch,
    x_head,
    x_place,
    out_batch,
    out_head,
    H,
    S,
    P,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    across = tl.cdiv(S, ROWS)
    batch = (tl.program_id(0) // across).to(tl.int64)
    s = (tl.program_id(0) % across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    p = tl.arange(0, BLOCK)[None, :]
    c = tl.arange(0, 2 * BLOCK)[None, :]
    inside, inside_both = (s < S) & (p < P), (s < S) & (c < 2 * P)
    cosine = tl.load(cos + s * P + p, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + s * P + p, mask=inside, other=0.0).to(tl.float32)
    source, target = x + batch * x_batch, out + batch * out_batch
    for _ in range(H):
        if INTERLEAVED:  # loaded side by side, then taken apart: loading every other element wastes half
            both = tl.load(source + s * x_place + c, mask=inside_both, other=0.0).to(tl.float32)
            first, second = tl.split(tl.reshape(both, (ROWS, BLOCK, 2)))
        else:
            first = tl.load(source + s * x_place + p, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(source + s * x_place + P + p, mask=inside, other=0.0).to(tl.float32)
        turned_first = (first * cosine - second * sine).to(out.dtype.element_ty)
        turned_second = (second * cosine + first * sine).to(out.dtype.element_ty)
        if INTERLEAVED:
            tl.store(target + s * 2 * P + c, tl.interleave(turned_first, turned_second), mask=inside_both)
        else:
            tl.store(target + s * 2 * P + p, turned_first, mask=inside)
            tl.store(target + s * 2 * P + P + p, turned_second, mask=inside)
        source += x_head
        target += out_head


def rope(x_BHSD: Tensor, cos_SP: Tensor, sin_SP: Tensor, layout: str = "half") -> Tensor:
    """Turn each pair of features by its position's angle, in float32, rounded once; a pair stays where it was.

    x_BHSD: float32, bfloat16 or float16; it may be a transposed [B, S, H, D], and is read where it lies. cos_SP, sin_SP:
    floating, as `course.model.rope.rope_table` makes them. layout: "half" or "interleaved".
    Returns: a contiguous tensor of x's shape and dtype.
    Raises: ValueError when x has not four dimensions or D is odd or above 2048, cosine and sine do not fit, the layout is
    unknown, or a dtype is another.
    """
    check_floats("rope", x_BHSD, cos_SP, sin_SP)
    if layout not in LAYOUTS:
        raise ValueError(f"the layout {layout!r} is neither half nor interleaved")
    if x_BHSD.dim() != 4 or x_BHSD.shape[-1] % 2 or x_BHSD.shape[-1] > WIDEST:
        raise ValueError(
            f"rope takes [batch, heads, sequence, features] with an even number of features up to {WIDEST}, "
            f"not a shape of {list(x_BHSD.shape)}"
        )
    B, H, S, D = x_BHSD.shape
    if not cos_SP.shape == sin_SP.shape == (S, D // 2):
        raise ValueError(
            f"cosine of shape {list(cos_SP.shape)} and sine of shape {list(sin_SP.shape)} do not fit {S} positions of "
            f"{D // 2} pairs"
        )
    out_BHSD = empty_rows(x_BHSD)
    if out_BHSD.numel() == 0:
        return out_BHSD
    x_BHSD = x_BHSD if x_BHSD.stride(-1) == 1 else x_BHSD.contiguous()
    block = triton.next_power_of_2(D // 2)
    rows = max(TILE // block, 1)
    rope_kernel[(B * triton.cdiv(S, rows),)](
        x_BHSD,
        cos_SP.contiguous(),
        sin_SP.contiguous(),
        out_BHSD,
        *x_BHSD.stride()[:3],
        *out_BHSD.stride()[:2],
        H,
        S,
        D // 2,
        INTERLEAVED=layout == "interleaved",
        ROWS=rows,
        BLOCK=block,
    )
    return out_BHSD
