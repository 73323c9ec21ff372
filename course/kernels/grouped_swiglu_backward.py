"""Back through every expert's down product and SwiGLU, gate and up computed again, as one kernel over ragged groups.

With h = dout[t] @ down[e], the gradient of a = silu(gate) * up for a routing weight of 1, w the weight of the pair (t, k):
  dgate, dup   of the gradient w h of a, by SwiGLU's slopes
  w a          what the gradient of down needs: dout[t]^T (w a)
  dw           <dout[t], y> = <dout[t], down[e] a> = <h, a>: y, D elements a pair, is neither kept nor computed again
One loop over D makes gate, up and h, since all three are products along D. They stay in float32 until results are rounded.
dw is a sum over all tiles of I: each tile writes its part of it, and a second kernel adds the parts in order.

Kept from the forward pass are x, the ids and the weights, nothing that is longer for a pair than one number: with D 7168,
I 2048, K 8 in bfloat16 14 KB a token, which the layer before keeps anyhow. Eager keeps the gathered rows, gate and
up, silu, a, y, and y times its weight in float32: 4 D + 4 I elements a pair more, 590 KB a token.

Elements moved a pair, beside the experts' weights:
  eager   gathers dout (2 D), times w (2 D), times y and summed (3 D, D), product (D + I), SwiGLU's, if it is one kernel
          already (5 I): 9 D + 6 I
  fused   reads x and dout (2 D), writes dgate, dup and w a (3 I): 2 D + 3 I
Memory allows a factor of 3.7. But to compute gate and up again is three products where eager has one: with many rows an
expert, where arithmetic is the bound, this takes 1.2 times as long for these sizes on an H800. What it buys is memory.

Shapes: T tokens, K experts a token, P = T K pairs in sorted order, E experts, E1 = E + 1, D width, I an expert's hidden
width, F = 2I: gate first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.combine import NOWHERE
from course.kernels.grouped_gemm import check_groups, grouped_gemm_torch, most_tiles, ragged_tile
from course.kernels.matmul import tile_place
from course.kernels.rows import check_floats
from course.kernels.swiglu_backward import swiglu_backward_torch, swiglu_slopes

BLOCKS = {torch.float32: (64, 32, 32), torch.float16: (128, 64, 64), torch.bfloat16: (128, 64, 64)}
SUMMED = 4096  # parts that a program of the second kernel adds up


def grouped_swiglu_backward_torch(
    dout_TD: Tensor, x_TD: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor,
    weights_TK: Tensor, pairs_P: Tensor, offsets_E1: Tensor, places_TK: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The twin: the same in PyTorch, where offsets[E] is P."""
    rows_P, w_P1 = pairs_P // weights_TK.shape[1], weights_TK.flatten()[pairs_P][:, None].float()
    gate_up_PF = grouped_gemm_torch(x_TD.float(), gate_up_EFD, rows_P, offsets_E1)
    h_PI = grouped_gemm_torch(dout_TD.float(), down_EDI.mT, rows_P, offsets_E1)
    gate_PI, up_PI = gate_up_PF.chunk(2, dim=-1)
    a_PI = torch.nn.functional.silu(gate_PI) * up_PI
    dw_TK = (h_PI * a_PI).sum(1)[places_TK].to(weights_TK.dtype)
    return swiglu_backward_torch(w_P1 * h_PI, gate_up_PF).to(x_TD.dtype), (w_P1 * a_PI).to(x_TD.dtype), dw_TK


@triton.jit
def grouped_swiglu_backward_kernel(
    dout, x, gate_up, down, weights, pairs, offsets, dgate_up, weighted, parts, TILES, E, width, D, K,
    dout_row, dout_column, x_row, x_column, w_expert, w_row, w_column, d_expert, d_row, d_column,
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
    pair = tl.load(pairs + first + m, mask=m < height, other=0)
    token = pair // K
    x_at = x + token[:, None] * x_row + d[None, :] * x_column
    dout_at = dout + token[:, None] * dout_row + d[None, :] * dout_column
    gate_at = gate_up + expert * w_expert + i.to(tl.int64)[None, :] * w_row + d[:, None] * w_column
    down_at = down + expert * d_expert + d[:, None] * d_row + i.to(tl.int64)[None, :] * d_column
    to_up = tl.cast(width, tl.int64) * w_row
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    h = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        inside = d < D - start
        row_inside, w_inside = (m < height)[:, None] & inside[None, :], inside[:, None] & (i < width)[None, :]
        x_tile = tl.load(x_at, mask=row_inside, other=0.0)
        gate = tl.dot(x_tile, tl.load(gate_at, mask=w_inside, other=0.0), gate, input_precision=PRECISION)
        up = tl.dot(x_tile, tl.load(gate_at + to_up, mask=w_inside, other=0.0), up, input_precision=PRECISION)
        dout_tile = tl.load(dout_at, mask=row_inside, other=0.0)
        h = tl.dot(dout_tile, tl.load(down_at, mask=w_inside, other=0.0), h, input_precision=PRECISION)
        x_at += BLOCK_K * x_column
        dout_at += BLOCK_K * dout_column
        gate_at += BLOCK_K * w_column
        down_at += BLOCK_K * d_row
    a, along_gate, along_up = swiglu_slopes(gate, up)
    tl.store(parts + (first + m) * tl.cdiv(width, BLOCK_N) + column, tl.sum(h * a, axis=1), mask=m < height)
    w = tl.load(weights + pair, mask=m < height, other=0.0).to(tl.float32)[:, None]
    mask = (m < height)[:, None] & (i < width)[None, :]
    kind = weighted.dtype.element_ty
    at = (first + m)[:, None] * width + i[None, :]
    tl.store(weighted + at, (w * a).to(kind), mask=mask)
    at += (first + m)[:, None] * width
    tl.store(dgate_up + at, (w * h * along_gate).to(kind), mask=mask)
    tl.store(dgate_up + at + width, (w * h * along_up).to(kind), mask=mask)


@triton.jit
def routing_gradient_kernel(
    parts, places, dweights, P, columns, NOWHERE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    p = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    place = tl.load(places + p, mask=p < P, other=NOWHERE)
    there = (place != NOWHERE)[:, None] & (c < columns)[None, :]
    own = tl.load(parts + place[:, None] * columns + c[None, :], mask=there, other=0.0)
    tl.store(dweights + p, tl.sum(own, axis=1).to(dweights.dtype.element_ty), mask=p < P)


def grouped_swiglu_backward(
    dout_TD: Tensor,
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDI: Tensor,
    weights_TK: Tensor,
    pairs_P: Tensor,
    offsets_E1: Tensor,
    places_TK: Tensor,
    block: tuple[int, int, int] | None = None,
    group: int = 8,
    num_warps: int = 8,
    num_stages: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the routed experts' result to those of gate and up and of the routing weights.

    dout_TD, x_TD, gate_up_EFD, down_EDI: float32, bfloat16 or float16, the same for all, of any strides. weights_TK: one of
    the floats. pairs_P, offsets_E1, places_TK: as `order_by_expert` gives them. block: tile sizes of P, I and D. All
    else is as `grouped_gemm` has it.
    Returns: dgate_up_PF and weighted_PI, silu(gate) * up times the pair's weight, both sorted, contiguous and in the dtype
    of x, not written from row offsets[E] on; and dweights_TK in the dtype of weights, 0 for a pair without a row.
    Raises: ValueError for sizes that do not fit each other, an odd F, another dtype.
    """
    block = check_groups("grouped_swiglu_backward", x_TD, gate_up_EFD, pairs_P, offsets_E1, block, BLOCKS)
    _refuse(dout_TD, x_TD, gate_up_EFD, down_EDI, weights_TK, pairs_P, places_TK)
    (E, both, D), P, K = gate_up_EFD.shape, len(pairs_P), weights_TK.shape[1]
    width, columns = both // 2, triton.cdiv(both // 2, block[1])
    dgate_up_PF, weighted_PI = x_TD.new_empty(P, both), x_TD.new_empty(P, width)
    parts_PC = x_TD.new_empty(P, columns, dtype=torch.float32)
    dweights_TK = torch.empty_like(weights_TK, memory_format=torch.contiguous_format)
    if weighted_PI.numel() == 0 or D == 0:
        return dgate_up_PF.zero_(), weighted_PI.zero_(), dweights_TK.zero_()
    tiles = most_tiles(P, E, block[0])
    grouped_swiglu_backward_kernel[(tiles * columns,)](
        dout_TD,
        x_TD,
        gate_up_EFD,
        down_EDI,
        weights_TK.contiguous(),
        pairs_P,
        offsets_E1,
        dgate_up_PF,
        weighted_PI,
        parts_PC,
        *(tiles, E, width, D, K),
        *dout_TD.stride(),
        *x_TD.stride(),
        *gate_up_EFD.stride(),
        *down_EDI.stride(),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        EXPERTS=triton.next_power_of_2(E),
        GROUP=group,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    high = triton.next_power_of_2(columns)
    rows = max(SUMMED // high, 1)
    routing_gradient_kernel[(triton.cdiv(P, rows),)](
        parts_PC, places_TK.contiguous(), dweights_TK, P, columns, NOWHERE=NOWHERE, ROWS=rows, COLUMNS=high
    )
    return dgate_up_PF, weighted_PI, dweights_TK


def _refuse(dout_TD, x_TD, gate_up_EFD, down_EDI, weights_TK, pairs_P, places_TK) -> None:
    check_floats("grouped_swiglu_backward", x_TD, weights_TK)
    E, both, D = gate_up_EFD.shape
    if both % 2:
        raise ValueError(f"weights of shape {list(gate_up_EFD.shape)} do not split into gate and up of equal length")
    if down_EDI.shape != (E, D, both // 2) or down_EDI.dtype != x_TD.dtype:
        told = f"{list(down_EDI.shape)} and {down_EDI.dtype} do not fit gate and up of {list(gate_up_EFD.shape)}"
        raise ValueError(f"weights of the down product of {told}")
    if dout_TD.shape != x_TD.shape or dout_TD.dtype != x_TD.dtype:
        told = f"{list(dout_TD.shape)} and {dout_TD.dtype} does not fit x of {list(x_TD.shape)} and {x_TD.dtype}"
        raise ValueError(f"a gradient of {told}")
    if weights_TK.ndim != 2 or len(weights_TK) != len(x_TD) or weights_TK.numel() != len(pairs_P):
        raise ValueError(f"weights of {list(weights_TK.shape)} do not fit {len(x_TD)} tokens and {len(pairs_P)} pairs")
    if places_TK.shape != weights_TK.shape or places_TK.dtype != torch.int64:
        raise ValueError(f"places of {list(places_TK.shape)} and {places_TK.dtype} are not int64 as many as weights")
