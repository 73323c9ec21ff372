"""Attention without its matrix of scores, forward (Dao et al. 2022, algorithm 1; Dao 2023, algorithm 1): a program a block of
queries of one head, which goes over the keys in blocks.

The largest score of a query and the sum of its exponentials are kept as the keys go by, as in a softmax by blocks: where a
block brings a larger score, the sum and the mix of values so far are multiplied by 2^(old largest - new largest). Powers of
two, since that is what the chip has an instruction for: e^x = 2^(x log2 e), and log2 e goes into the scale.

Bytes moved a score, where keys are many and both widths are small against them, in bfloat16 and in float32:
  eager   scores (2, 4), to float32 (6, 0), times the scale (8, 8), later keys out (8, 8), softmax (8, 8), back (6, 0),
          times the values (2, 4), log of the sum (4, 4): 44 and 36
  fused   none. Queries are read once and results written once; keys and values are read once by every block of queries, and
          by neighbouring programs together, so that most of it comes from the L2 cache
What is left is arithmetic: 2 (C + V) FLOPs a score, half of the scores where each query sees none after its own. At C = 192
and V = 128 eager moves 44 bytes for 640 FLOPs, and an H100 does 295 bfloat16 FLOPs in the time of a byte: so the kernel can
gain at most a factor of 20, or of 40 where half of the scores are left out.

The weights are rounded to the dtype of the values before they are multiplied with them, and their sum is not; the result is
rounded once. A width that is no power of two is read in two parts, MLA's 192 as 128 and 64: 256 would cost a third more.

Shapes: B batch, H query heads, G key heads, S queries, N keys, C features of a key, V of a value.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import check_floats

WIDEST = 256  # features of a key or a value


def flash_attention_torch(
    q_BHSC: Tensor, k_BGNC: Tensor, v_BGNV: Tensor, scale: float, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """The twin: the same in PyTorch, for at least one key."""
    shared = q_BHSC.shape[1] // k_BGNC.shape[1]
    k_BHNC, v_BHNV = k_BGNC.repeat_interleave(shared, 1), v_BGNV.repeat_interleave(shared, 1)
    wide = torch.promote_types(q_BHSC.dtype, torch.float32)
    scores_BHSN = (q_BHSC @ k_BHNC.mT).to(wide) * scale
    if causal:
        S, N = scores_BHSN.shape[2:]
        later_SN = torch.ones(S, N, dtype=torch.bool, device=q_BHSC.device).triu(N - S + 1)
        scores_BHSN = scores_BHSN.masked_fill(later_SN, float("-inf"))
    return scores_BHSN.softmax(-1).to(v_BHNV.dtype) @ v_BHNV, scores_BHSN.logsumexp(-1)


@triton.jit
def over_keys(
    mix, largest, total, q, q_rest, k, v, k_row, v_row, begin, end, sees, N, C, V, scale,
    BLOCK_N: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the keys from begin to end. MASKED: some of them are past the last one that a query sees."""
    c, width = tl.arange(0, FIRST)[None, :], tl.arange(0, WIDTH)[None, :]
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k_at, v_at = k + n.to(tl.int64)[:, None] * k_row, v + n.to(tl.int64)[:, None] * v_row
        there = (n < N)[:, None]
        keys = tl.load(k_at + c, mask=there & (c < C), other=0.0)
        scores = tl.dot(q, keys.T, input_precision=PRECISION)
        if REST > 0:
            rest = FIRST + tl.arange(0, REST)[None, :]
            keys_rest = tl.load(k_at + rest, mask=there & (rest < C), other=0.0)
            scores = tl.dot(q_rest, keys_rest.T, scores, input_precision=PRECISION)
        scores *= scale
        if MASKED:
            scores = tl.where(n[None, :] < sees[:, None], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(v_at + width, mask=there & (width < V), other=0.0)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision=PRECISION)
        largest = larger
    return mix, largest, total


@triton.jit
def flash_attention_kernel(
    q, k, v, out, lse, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, H, SHARED, S, N, C, V, scale,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(S, BLOCK_M)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # of batch and head together
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the blocks that see the most keys start first
    batch, head = row // H, row % H
    m = first + tl.arange(0, BLOCK_M)
    c, width = tl.arange(0, FIRST)[None, :], tl.arange(0, WIDTH)[None, :]
    q_at = q + batch * q_batch + head * q_head + m.to(tl.int64)[:, None] * q_row
    there = (m < S)[:, None]
    q_tile = tl.load(q_at + c, mask=there & (c < C), other=0.0)
    q_rest = q_tile
    if REST > 0:
        rest = FIRST + tl.arange(0, REST)[None, :]
        q_rest = tl.load(q_at + rest, mask=there & (rest < C), other=0.0)
    k += batch * k_batch + head // SHARED * k_head
    v += batch * v_batch + head // SHARED * v_head
    sees = (
        tl.zeros((BLOCK_M,), tl.int32) + N
    )  # how many keys each query sees, all queries of the block, and one of them
    all_see, one_sees = N, N
    if CAUSAL:
        sees = tl.minimum(m + (N - S + 1), N)
        all_see, one_sees = tl.minimum(first + N - S + 1, N), tl.minimum(first + BLOCK_M + N - S, N)
    open_end = all_see // BLOCK_N * BLOCK_N
    mix = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    largest, total = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    mix, largest, total = over_keys(
        mix, largest, total, q_tile, q_rest, k, v, k_row, v_row, 0, open_end, sees, N, C, V, scale,
        BLOCK_N, FIRST, REST, WIDTH, False, PRECISION,
    )  # fmt: skip
    mix, largest, total = over_keys(
        mix, largest, total, q_tile, q_rest, k, v, k_row, v_row, open_end, one_sees, sees, N, C, V, scale,
        BLOCK_N, FIRST, REST, WIDTH, True, PRECISION,
    )  # fmt: skip
    mix = mix / tl.where(total > 0, total, 1.0)[:, None]  # without a key the mix is 0, and so is the result
    place = row * S + m
    tl.store(out + place[:, None] * V + width, mix.to(out.dtype.element_ty), mask=there & (width < V))
    tl.store(lse + place, (largest + tl.log2(total)) * 0.6931471805599453, mask=m < S)


def flash_attention(
    q_BHSC: Tensor,
    k_BGNC: Tensor,
    v_BGNV: Tensor,
    scale: float,
    causal: bool = True,
    block: tuple[int, int] | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v, and the log of the sum that the softmax divides by, which a backward pass wants.

    Query head h reads key head h // (H / G). causal: the S queries are the last of the N positions, and none sees a key
    after its own. Where there is no key at all, the result is 0 and the log minus infinity.

    q_BHSC, k_BGNC, v_BGNV: float32, bfloat16 or float16, one for all three, each read where it lies; float32 is multiplied
    exactly, not as TF32. block: queries of a program, and keys that it takes in at once, powers of two from 16 up.
    Returns: out_BHSV, contiguous and of q's dtype, and lse_BHS, float32, in natural logarithms.
    Raises: ValueError when shapes do not fit, a width is above 256, there are more causal queries than keys, or a dtype is
    another.
    """
    tensor_cores = q_BHSC.itemsize == 2
    tile_m, tile_n = block or ((128, 64) if tensor_cores else (32, 16))
    _check(q_BHSC, k_BGNC, v_BGNV, causal, (tile_m, tile_n))
    (B, H, S, C), (G, N), V = q_BHSC.shape, k_BGNC.shape[1:3], v_BGNV.shape[-1]
    out_BHSV = q_BHSC.new_empty(B, H, S, V)
    lse_BHS = torch.empty(B, H, S, dtype=torch.float32, device=q_BHSC.device)
    if lse_BHS.numel() == 0:
        return out_BHSV, lse_BHS
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q_BHSC, k_BGNC, v_BGNV))
    first, rest = parts(C)
    flash_attention_kernel[(B * H * triton.cdiv(S, tile_m),)](
        q,
        k,
        v,
        out_BHSV,
        lse_BHS,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        H,
        H // G,
        S,
        N,
        C,
        V,
        scale / math.log(2),
        CAUSAL=causal,
        BLOCK_M=tile_m,
        BLOCK_N=tile_n,
        FIRST=first,
        REST=rest,
        WIDTH=max(triton.next_power_of_2(V), 16),
        PRECISION="ieee",
        num_warps=num_warps or (4 if tensor_cores and tile_m <= 64 else 8),
        num_stages=num_stages or (3 if tensor_cores else 2),
    )
    return out_BHSV, lse_BHS


def parts(width: int) -> tuple[int, int]:
    """A width as two powers of two from 16 up, the second of which may be 0: 192 is 128 and 64, 100 is 64 and 64."""
    first = max(triton.next_power_of_2(width + 1) // 2, 16)
    return first, max(triton.next_power_of_2(width - first), 16) if width > first else 0


def _check(q_BHSC: Tensor, k_BGNC: Tensor, v_BGNV: Tensor, causal: bool, block: tuple[int, int]) -> None:
    shapes = q, k, v = [list(tensor.shape) for tensor in (q_BHSC, k_BGNC, v_BGNV)]
    check_floats("flash_attention", q_BHSC, k_BGNC, v_BGNV)
    if not q_BHSC.dtype == k_BGNC.dtype == v_BGNV.dtype:
        raise ValueError(
            f"queries, keys and values are of one dtype, not {q_BHSC.dtype}, {k_BGNC.dtype}, {v_BGNV.dtype}"
        )
    if any(len(shape) != 4 for shape in shapes) or k[:3] != v[:3] or q[0] != k[0] or q[3] != k[3]:
        raise ValueError(f"queries, keys and values of shapes {q}, {k} and {v} do not fit each other")
    if k[1] == 0 or q[1] % k[1]:
        raise ValueError(f"{q[1]} query heads do not share {k[1]} key heads evenly")
    if not (0 < q[3] <= WIDEST and 0 < v[3] <= WIDEST):
        raise ValueError(f"flash_attention takes 1 to {WIDEST} features of a key and of a value, not {q[3]} and {v[3]}")
    if causal and q[2] > k[2]:
        raise ValueError(f"{q[2]} queries cannot be the last of {k[2]} positions")
    if any(size < 16 or size & (size - 1) for size in block):
        raise ValueError(f"a block has two sizes, powers of two from 16 up, and this one is {block}")
