"""Every expert's rows times its weight, as one kernel over ragged groups (MegaBlocks, Gale et al. 2022, section 5).

The rows are pairs of a token and an expert, sorted by expert, and no tile holds rows of two experts. The host knows how
many pairs there are and not how they are shared out, so it launches the most tiles that any sharing needs. Expert e's
tiles begin at number offsets[e] // BLOCK_M + e: this leaves each expert enough of them, grows with e, and so lets a program
find its expert by counting how many begin at or before its own number. Programs that find no rows end.

Elements moved a pair, beside the weights, which both ways read once:
  eager   gathers a row for every pair (reads K, writes K), then reads K and writes N: 3 K + N
  fused   reads the token's own row and writes the result: K + N
With a few hundred rows an expert and more, the product is bound by arithmetic, and all there is to gain is the time of the
copy: a factor of 1.14 for K 7168 and N 4096 in bfloat16 on an H800. With few rows the weights are nearly all that moves,
and there is nothing to gain over one grouped product; a loop over experts pays for its launches.

Shapes: T tokens, P pairs in sorted order, E experts, E1 = E + 1, x [T, K], weight [E, N, K], out [P, N].
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.matmul import tile_place
from course.kernels.rows import check_floats

BLOCKS = {torch.float32: (64, 64, 32), torch.float16: (128, 256, 64), torch.bfloat16: (128, 256, 64)}


def grouped_gemm_torch(x_TK: Tensor, weight_ENK: Tensor, rows_P: Tensor | None, offsets_E1: Tensor) -> Tensor:
    """The twin: the same in PyTorch, where offsets[E] is P."""
    x_PK = (x_TK if rows_P is None else x_TK[rows_P]).float()
    slices = [x_PK[start:end] for start, end in pairwise(offsets_E1.tolist())]
    return torch.cat([x_RK @ w_NK.float().T for x_RK, w_NK in zip(slices, weight_ENK, strict=True)]).to(x_TK.dtype)


@triton.jit
def ragged_tile(offsets, tile, E, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert whose tile this is, the first of the tile's rows, and how many rows it has: none if it is a surplus tile."""
    e = tl.arange(0, EXPERTS)
    begins = tl.load(offsets + e, mask=e < E, other=0) // BLOCK_M + e
    expert = tl.sum(((begins <= tile) & (e < E)).to(tl.int32)) - 1
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    first = start + (tile - (start // BLOCK_M + expert)) * BLOCK_M
    return expert.to(tl.int64), first, tl.minimum(end - first, BLOCK_M).to(tl.int32)


@triton.jit
def grouped_gemm_kernel(
    x, weight, rows, offsets, out, TILES, E, N, K, x_row, x_column, w_expert, w_row, w_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, column = tile_place(tl.program_id(0), TILES * BLOCK_M, N, BLOCK_M, BLOCK_N, GROUP)
    expert, first, height = ragged_tile(offsets, tile, E, BLOCK_M, EXPERTS)
    if height <= 0:
        return
    m = tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    token = first + m if rows is None else tl.load(rows + first + m, mask=m < height, other=0)
    x_at = x + token[:, None] * x_row + k[None, :] * x_column
    w_at = weight + expert * w_expert + n.to(tl.int64)[None, :] * w_row + k[:, None] * w_column
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x_tile = tl.load(x_at, mask=(m < height)[:, None] & inside[None, :], other=0.0)
        w_tile = tl.load(w_at, mask=inside[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(x_tile, w_tile, total, input_precision=PRECISION)
        x_at += BLOCK_K * x_column
        w_at += BLOCK_K * w_column
    mask = (m < height)[:, None] & (n < N)[None, :]
    tl.store(out + first * N + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=mask)


def grouped_gemm(
    x_TK: Tensor,
    weight_ENK: Tensor,
    rows_P: Tensor | None,
    offsets_E1: Tensor,
    block: tuple[int, int, int] | None = None,
    group: int = 8,
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """out[p] = x[rows[p]] @ weight[e]^T for every p in offsets[e]:offsets[e + 1], summed in float32 and rounded once.

    x_TK, weight_ENK: float32, bfloat16 or float16, the same for both, of any strides; float32 is multiplied exactly, not as
    TF32. rows_P: int64, the token of each sorted pair; None where x is sorted already, and P is T. offsets_E1: int64, from 0
    upwards to P at most. Pairs from offsets[E] on are nobody's (dropped), and their rows of the result are not written.
    The host reads neither rows nor offsets, so it does not wait for the device.
    block: tile sizes of P, N and K, powers of two from 16 up; by default as large as the dtype allows. group: rows of tiles
    that are worked on together.
    Returns: [P, N], contiguous, in the dtype of x.
    Raises: ValueError for sizes that do not fit each other or another dtype.
    """
    block = check_groups("grouped_gemm", x_TK, weight_ENK, rows_P, offsets_E1, block, BLOCKS)
    (E, N, K), P = weight_ENK.shape, len(x_TK if rows_P is None else rows_P)
    out_PN = x_TK.new_empty(P, N)
    if out_PN.numel() == 0 or K == 0:
        return out_PN.zero_()
    tiles = most_tiles(P, E, block[0])
    grouped_gemm_kernel[(tiles * triton.cdiv(N, block[1]),)](
        x_TK,
        weight_ENK,
        rows_P,
        offsets_E1,
        out_PN,
        *(tiles, E, N, K),
        *x_TK.stride(),
        *weight_ENK.stride(),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        EXPERTS=triton.next_power_of_2(E),
        GROUP=group,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_PN


def most_tiles(P: int, E: int, height: int) -> int:
    """Tiles of so many rows that P pairs need at most, however they are shared out among E experts."""
    return P // height + E


def check_groups(
    name: str,
    x_TK: Tensor,
    weight_ENK: Tensor,
    rows_P: Tensor | None,
    offsets_E1: Tensor,
    block: tuple[int, int, int] | None,
    blocks: dict[torch.dtype, tuple[int, int, int]],
) -> tuple[int, int, int]:
    """The block to work with: the one that was asked for, or the dtype's own. Raises: ValueError for what does not fit."""
    check_floats(name, x_TK, weight_ENK)
    if x_TK.dtype != weight_ENK.dtype:
        raise ValueError(f"{name} takes rows and weights of one dtype, not {x_TK.dtype} and {weight_ENK.dtype}")
    if x_TK.ndim != 2 or weight_ENK.ndim != 3 or x_TK.shape[1] != weight_ENK.shape[2] or len(weight_ENK) == 0:
        raise ValueError(f"rows of {list(x_TK.shape)} do not fit experts' weights of {list(weight_ENK.shape)}")
    for what, order in (("rows", rows_P), ("offsets", offsets_E1)):
        if order is not None and (order.dtype != torch.int64 or order.ndim != 1 or not order.is_contiguous()):
            raise ValueError(f"{what} are one contiguous line of int64, not {list(order.shape)} of {order.dtype}")
    if len(offsets_E1) != len(weight_ENK) + 1:
        raise ValueError(f"{len(weight_ENK)} experts have {len(weight_ENK) + 1} offsets, not {len(offsets_E1)}")
    block = block or blocks[x_TK.dtype]
    if len(block) != 3 or any(size < 16 or size & (size - 1) for size in block):
        raise ValueError(f"a block has three sizes, powers of two from 16 up, and this one is {block}")
    return block
