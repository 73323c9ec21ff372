"""Every expert's gate and up projection with SwiGLU behind them, as one kernel (DeepSeek-V3 report, section 2.1.2; Shazeer 2020).

As `grouped_gemm`, but a program computes the same tile of gate and of up, and what it writes is silu(gate) * up: the two
products never reach memory. They stay in float32 until the result is rounded. Training needs them again, and so either
writes them after all or computes them twice.

Elements moved a pair, beside the weights, which both ways read once:
  eager   gathers a row for every pair (reads D, writes D), reads D, writes 2 I, and SwiGLU, if it is one kernel already,
          reads 2 I and writes I: 3 D + 5 I
  fused   reads the token's own row and writes the result: D + I
With a few hundred rows an expert and more, the products are bound by arithmetic, and what there is to gain is the time of
gather and SwiGLU: a factor of 1.21 for D 7168 and I 2048 in bfloat16 on an H800.

Shapes: T tokens, P pairs in sorted order, E experts, E1 = E + 1, D width, I an expert's hidden width, F = 2I: gate first.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.grouped_gemm import check_groups, grouped_gemm_torch, most_tiles, ragged_tile
from course.kernels.matmul import tile_place

BLOCKS = {torch.float32: (64, 32, 32), torch.float16: (128, 128, 64), torch.bfloat16: (128, 128, 64)}


def grouped_gate_up_torch(x_TD: Tensor, gate_up_EFD: Tensor, rows_P: Tensor | None, offsets_E1: Tensor) -> Tensor:
    """The twin: the same in PyTorch, where offsets[E] is P."""
    gate_PI, up_PI = grouped_gemm_torch(x_TD.float(), gate_up_EFD, rows_P, offsets_E1).chunk(2, dim=-1)
    return (F.silu(gate_PI) * up_PI).to(x_TD.dtype)


@triton.jit
def grouped_gate_up_kernel(
    x, weight, rows, offsets, out, TILES, E, width, D, x_row, x_column, w_expert, w_row, w_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, column = tile_place(tl.program_id(0), TILES * BLOCK_M, width, BLOCK_M, BLOCK_N, GROUP)
    expert, first, height = ragged_tile(offsets, tile, E, BLOCK_M, EXPERTS)
    if height <= 0:
        return
    m = tl.arange(0, BLOCK_M)
    i = column * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_K)
    token = first + m if rows is None else tl.load(rows + first + m, mask=m < height, other=0)
    x_at = x + token[:, None] * x_row + d[None, :] * x_column
    gate_at = weight + expert * w_expert + i.to(tl.int64)[None, :] * w_row + d[:, None] * w_column
    to_up = tl.cast(width, tl.int64) * w_row
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        inside = d < D - start
        w_inside = inside[:, None] & (i < width)[None, :]
        x_tile = tl.load(x_at, mask=(m < height)[:, None] & inside[None, :], other=0.0)
        gate = tl.dot(x_tile, tl.load(gate_at, mask=w_inside, other=0.0), gate, input_precision=PRECISION)
        up = tl.dot(x_tile, tl.load(gate_at + to_up, mask=w_inside, other=0.0), up, input_precision=PRECISION)
        x_at += BLOCK_K * x_column
        gate_at += BLOCK_K * w_column
    mask = (m < height)[:, None] & (i < width)[None, :]
    tl.store(
        out + first * width + m[:, None] * width + i[None, :],
        (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty),
        mask=mask,
    )


def grouped_gate_up(
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    rows_P: Tensor | None,
    offsets_E1: Tensor,
    block: tuple[int, int, int] | None = None,
    group: int = 8,
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """out[p] = silu(gate) * up of x[rows[p]] @ gate_up[e]^T for every p in offsets[e]:offsets[e + 1], rounded once.

    gate_up_EFD: an expert's gate in its first I rows, up in the others. block: tile sizes of P, I and D. All else is as
    `grouped_gemm` has it.
    Returns: [P, I], contiguous, in the dtype of x; rows from offsets[E] on are not written.
    Raises: ValueError for sizes that do not fit each other, an odd F, another dtype.
    """
    block = check_groups("grouped_gate_up", x_TD, gate_up_EFD, rows_P, offsets_E1, block, BLOCKS)
    (E, both, D), P = gate_up_EFD.shape, len(x_TD if rows_P is None else rows_P)
    if both % 2:
        raise ValueError(f"weights of shape {list(gate_up_EFD.shape)} do not split into gate and up of equal length")
    out_PI = x_TD.new_empty(P, both // 2)
    if out_PI.numel() == 0 or D == 0:
        return out_PI.zero_()
    tiles = most_tiles(P, E, block[0])
    grouped_gate_up_kernel[(tiles * triton.cdiv(both // 2, block[1]),)](
        x_TD,
        gate_up_EFD,
        rows_P,
        offsets_E1,
        out_PI,
        *(tiles, E, both // 2, D),
        *x_TD.stride(),
        *gate_up_EFD.stride(),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        EXPERTS=triton.next_power_of_2(E),
        GROUP=group,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_PI
