"""The scores of DeepSeek-V3.2's lightning indexer (DeepSeek-V3.2-Exp report, section 2.1, equation 1):

    I(t, s) = sum over heads h of w(t, h) * relu(q(t, h) . k(s)),  minus infinity for keys after the query's own

A program makes a tile of scores, queries by keys: it holds the tile of keys, and adds up one head after another.

Bytes moved a score, where positions are many, with H heads, from bfloat16 and from float32:
  eager   products in float32 (4), relu (8), weighted sum of the heads (4), each for every head; the sums (4), later keys out
          (8): 16 H + 12, which is 1,036 for 64 heads
  fused   4: no score of a single head is ever in memory
What is left is arithmetic, 2 C FLOPs a head and score: 16,384 FLOPs for 64 heads of 128 features, the time of 56 bytes on an
H100 in bfloat16 (295 FLOPs a byte). So against the bytes alone the kernel can gain at most a factor of 19, and twice that
where half of the scores are left out. (DeepSeek multiplies in FP8, twice as fast; here queries and keys stay as they are.)

The choice of the largest scores is left to `torch.topk` outside, or to `course.model.router.largest_k`, which has a rule for
ties; ties are common, since a key with which every head disagrees has the score 0. A K-step argmax, as for 8 experts out of
256, would go over the row 2,048 times. And a program would have to hold a whole row of scores: of 128 Ki keys, that is more
than the registers and the shared memory of a multiprocessor.

Shapes: B batch, S queries, N keys, H index heads, C features of one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import check_floats

WIDEST = 256  # features of a head


def indexer_torch(q_BHSC: Tensor, k_BNC: Tensor, weight_BSH: Tensor, causal: bool = True) -> Tensor:
    """The twin: the same in PyTorch."""
    wide = torch.promote_types(q_BHSC.dtype, torch.float32)
    agreement_BHSN = (q_BHSC.to(wide) @ k_BNC[:, None].to(wide).mT).relu()
    scores_BSN = torch.einsum("bsh,bhsn->bsn", weight_BSH.to(wide), agreement_BHSN)
    if causal:
        S, N = scores_BSN.shape[1:]
        later_SN = torch.ones(S, N, dtype=torch.bool, device=q_BHSC.device).triu(N - S + 1)
        scores_BSN = scores_BSN.masked_fill(later_SN, float("-inf"))
    return scores_BSN


@triton.jit
def indexer_kernel(
    q, k, weight, out, q_batch, q_head, q_row, k_batch, k_row, weight_batch, weight_row, weight_head, H, S, N, C,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(S, BLOCK_M) * across
    batch, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    m = tile // across * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, WIDTH)[None, :]
    heads = H
    if CAUSAL:  # a tile of later keys alone has nothing to add up
        heads = tl.where(tile % across * BLOCK_N < tl.minimum(tile // across * BLOCK_M + BLOCK_M, S) + N - S, H, 0)
    k_at = k + batch * k_batch + n.to(tl.int64)[:, None] * k_row
    keys = tl.load(k_at + c, mask=(n < N)[:, None] & (c < C), other=0.0)
    q_at = q + batch * q_batch + m.to(tl.int64)[:, None] * q_row
    weight_at = weight + batch * weight_batch + m.to(tl.int64) * weight_row
    scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(heads):
        queries = tl.load(q_at + c, mask=(m < S)[:, None] & (c < C), other=0.0)
        agreement = tl.dot(queries, keys.T, input_precision=PRECISION)
        gain = tl.load(weight_at, mask=m < S, other=0.0).to(tl.float32)
        scores += gain[:, None] * tl.maximum(agreement, 0.0, propagate_nan=tl.PropagateNan.ALL)
        q_at += q_head
        weight_at += weight_head
    if CAUSAL:
        scores = tl.where(n[None, :] <= m[:, None] + (N - S), scores, float("-inf"))
    at = out + (batch * S + m)[:, None] * N + n[None, :]
    tl.store(at, scores, mask=(m < S)[:, None] & (n < N)[None, :])


def indexer(
    q_BHSC: Tensor,
    k_BNC: Tensor,
    weight_BSH: Tensor,
    causal: bool = True,
    block: tuple[int, int] | None = None,
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """Index scores: over the heads, the sum of weight * relu(q . k), in float32.

    causal: the S queries are the last of the N positions, and keys after a query's own get minus infinity.
    q_BHSC, k_BNC: float32, bfloat16 or float16, both of one. weight_BSH: any of these, with its scale in it. All are read
    where they lie. block: queries and keys of a tile, powers of two from 16 up.
    Returns: scores_BSN, float32, contiguous.
    Raises: ValueError when shapes do not fit, C is above 256, there are more causal queries than keys, or a dtype is another.
    """
    (B, H, S, C), N = _check(q_BHSC, k_BNC, weight_BSH, causal), k_BNC.shape[1]
    most = 128 if q_BHSC.itemsize == 2 else 32  # float32 has no tensor cores here, and needs more registers
    tile_m, tile_n = block or (min(max(triton.next_power_of_2(S), 16), most), most)
    if any(size < 16 or size & (size - 1) for size in (tile_m, tile_n)):
        raise ValueError(f"a block has two sizes, powers of two from 16 up, and this one is {block}")
    scores_BSN = torch.empty(B, S, N, dtype=torch.float32, device=q_BHSC.device)
    if scores_BSN.numel() == 0:
        return scores_BSN
    q, k = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q_BHSC, k_BNC))
    indexer_kernel[(B * triton.cdiv(S, tile_m) * triton.cdiv(N, tile_n),)](
        q,
        k,
        weight_BSH,
        scores_BSN,
        *q.stride()[:3],
        *k.stride()[:2],
        *weight_BSH.stride(),
        H,
        S,
        N,
        C,
        CAUSAL=causal,
        BLOCK_M=tile_m,
        BLOCK_N=tile_n,
        WIDTH=max(triton.next_power_of_2(C), 16),
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return scores_BSN


def _check(q_BHSC: Tensor, k_BNC: Tensor, weight_BSH: Tensor, causal: bool) -> torch.Size:
    q, k, weight = (list(tensor.shape) for tensor in (q_BHSC, k_BNC, weight_BSH))
    check_floats("indexer", q_BHSC, k_BNC, weight_BSH)
    if q_BHSC.dtype != k_BNC.dtype:
        raise ValueError(f"queries and keys are of one dtype, not {q_BHSC.dtype} and {k_BNC.dtype}")
    if len(q) != 4 or len(k) != 3 or [q[0], q[3]] != [k[0], k[2]] or weight != [q[0], q[2], q[1]]:
        raise ValueError(f"queries, keys and weights of shapes {q}, {k} and {weight} do not fit each other")
    if not 0 < q[3] <= WIDEST:
        raise ValueError(f"indexer takes 1 to {WIDEST} features a head, not {q[3]}")
    if causal and q[2] > k[1]:
        raise ValueError(f"{q[2]} queries cannot be the last of {k[1]} positions")
    return q_BHSC.shape
