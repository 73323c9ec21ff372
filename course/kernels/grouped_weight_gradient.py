"""The gradient of every expert's weight, as one kernel: a program a tile of one expert's, over that expert's rows
(MegaBlocks, Gale et al. 2022, section 5: the product whose inner dimension is ragged).

out[e] = sum over the rows p of expert e of dy[p]^T x[p]. How many rows there are only the device knows; a program reads where
its expert's begin and end, and adds them up in their order: nothing is atomic, the bits are the same every time. An
expert without rows gets zeros. The busiest expert's programs take the longest, and nobody helps them.

Elements moved a pair, beside the weights' gradient, which both ways write once:
  eager   gathers a row for every pair (reads K, writes K), then reads K and N: 3 K + N
  fused   reads the token's own row, and N: K + N
Eager training keeps the gathered rows from the forward pass instead, K elements a pair, and there is nothing to gain but that
memory. With a few hundred rows an expert and more, the product is bound by arithmetic, and the most to gain is the
time of a copy: a factor of 1.14 for N 4096 and K 7168 in bfloat16 on an H800.

Shapes: P pairs in sorted order, E experts, E1 = E + 1, dy [P or T, N], x [P or T, K], out [E, N, K], as the weights are.
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.matmul import tile_place
from course.kernels.rows import check_floats

BLOCKS = {torch.float32: (64, 64, 32), torch.float16: (128, 256, 64), torch.bfloat16: (128, 256, 64)}


def grouped_weight_gradient_torch(
    dy_TN: Tensor, x_TK: Tensor, dy_rows_P: Tensor | None, x_rows_P: Tensor | None, offsets_E1: Tensor
) -> Tensor:
    """The twin: the same in PyTorch, where offsets[E] is P."""
    dy_PN = (dy_TN if dy_rows_P is None else dy_TN[dy_rows_P]).float()
    x_PK = (x_TK if x_rows_P is None else x_TK[x_rows_P]).float()
    ranges = pairwise(offsets_E1.tolist())
    return torch.stack([dy_PN[start:end].T @ x_PK[start:end] for start, end in ranges]).to(x_TK.dtype)


@triton.jit
def grouped_weight_gradient_kernel(
    dy, x, dy_rows, x_rows, offsets, out, N, K, dy_row, dy_column, x_row, x_column,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N) * tl.cdiv(K, BLOCK_K)
    expert = (tl.program_id(0) // tiles).to(tl.int64)
    row, column = tile_place(tl.program_id(0) % tiles, N, K, BLOCK_N, BLOCK_K, GROUP)
    n = (row * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k = (column * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)
    first, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, (end - first).to(tl.int32), BLOCK_P):
        p = first + start + tl.arange(0, BLOCK_P)
        dy_at = p if dy_rows is None else tl.load(dy_rows + p, mask=p < end, other=0)
        x_at = p if x_rows is None else tl.load(x_rows + p, mask=p < end, other=0)
        dy_mask, x_mask = (p < end)[:, None] & (n < N)[None, :], (p < end)[:, None] & (k < K)[None, :]
        dy_tile = tl.load(dy + dy_at[:, None] * dy_row + n[None, :] * dy_column, mask=dy_mask, other=0.0)
        x_tile = tl.load(x + x_at[:, None] * x_row + k[None, :] * x_column, mask=x_mask, other=0.0)
        total = tl.dot(tl.trans(dy_tile), x_tile, total, input_precision=PRECISION)
    at = out + expert * N * K + n[:, None] * K + k[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(n < N)[:, None] & (k < K)[None, :])


def grouped_weight_gradient(
    dy_TN: Tensor,
    x_TK: Tensor,
    dy_rows_P: Tensor | None,
    x_rows_P: Tensor | None,
    offsets_E1: Tensor,
    block: tuple[int, int, int] | None = None,
    group: int = 8,
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """out[e] = sum over p in offsets[e]:offsets[e + 1] of dy[dy_rows[p]]^T x[x_rows[p]], in float32, rounded once.

    dy_TN, x_TK: float32, bfloat16 or float16, the same for both, of any strides; float32 is multiplied exactly, not as
    TF32. dy_rows_P, x_rows_P: int64, where the row of each sorted pair is; None where rows are sorted already. offsets_E1: int64,
    from 0 upwards to P at most; pairs from offsets[E] on are nobody's. The host reads none of these, so it does not wait.
    block: tile sizes of N, K and P, powers of two from 16 up; by default as large as the dtype allows. group: rows of tiles
    that are worked on together.
    Returns: [E, N, K], contiguous, in the dtype of x.
    Raises: ValueError for sizes that do not fit each other or another dtype.
    """
    block = _refuse(dy_TN, x_TK, dy_rows_P, x_rows_P, offsets_E1, block)
    E, N, K = len(offsets_E1) - 1, dy_TN.shape[1], x_TK.shape[1]
    out_ENK = x_TK.new_empty(E, N, K)
    if out_ENK.numel() == 0 or len(dy_TN) == 0 or len(x_TK) == 0:
        return out_ENK.zero_()
    grouped_weight_gradient_kernel[(E * triton.cdiv(N, block[0]) * triton.cdiv(K, block[1]),)](
        dy_TN,
        x_TK,
        dy_rows_P,
        x_rows_P,
        offsets_E1,
        out_ENK,
        *(N, K),
        *dy_TN.stride(),
        *x_TK.stride(),
        BLOCK_N=block[0],
        BLOCK_K=block[1],
        BLOCK_P=block[2],
        GROUP=group,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_ENK


def _refuse(dy_TN, x_TK, dy_rows_P, x_rows_P, offsets_E1, block) -> tuple[int, int, int]:
    check_floats("grouped_weight_gradient", dy_TN, x_TK)
    if dy_TN.dtype != x_TK.dtype:
        raise ValueError(f"grouped_weight_gradient takes two tensors of one dtype, not {dy_TN.dtype} and {x_TK.dtype}")
    if dy_TN.ndim != 2 or x_TK.ndim != 2:
        raise ValueError(f"gradients and rows are tables, not {list(dy_TN.shape)} and {list(x_TK.shape)}")
    for what, order in (("rows", dy_rows_P), ("rows", x_rows_P), ("offsets", offsets_E1)):
        if order is not None and (order.dtype != torch.int64 or order.ndim != 1 or not order.is_contiguous()):
            raise ValueError(f"{what} are one contiguous line of int64, not {list(order.shape)} of {order.dtype}")
    pairs = [len(t if rows is None else rows) for t, rows in ((dy_TN, dy_rows_P), (x_TK, x_rows_P))]
    if pairs[0] != pairs[1]:
        raise ValueError(f"{pairs[0]} rows of gradients do not fit {pairs[1]} rows of inputs")
    if len(offsets_E1) < 2:
        raise ValueError("offsets of no expert")
    block = block or BLOCKS[x_TK.dtype]
    if len(block) != 3 or any(size < 16 or size & (size - 1) for size in block):
        raise ValueError(f"a block has three sizes, powers of two from 16 up, and this one is {block}")
    return block
