"""RMSNorm, backward (of Zhang and Sennrich 2019, eq. 4), as two kernels and a sum.

With r = 1 / sqrt(mean(x^2) + eps) and n = r x, so that y = n w:
  dx       r (g - n mean(g n)), where g = dy w: each row for itself, so a program a row
  dweight  the sum of dy n over all rows: a program sums a few columns over a block of rows, in float32, and writes them
           into a row of its own; the rows of partial sums are added up afterwards
Atomic additions would need no partial sums, but the order in which programs arrive would change the last digits. Here the
blocks do not depend on the chip, and the result is the same bits every time.

Bytes moved an element, where rows are long and many, in bfloat16 and in float32:
  eager   x, dy to float32 (12, 0), square, mean (12, 12), n (8, 8), g (8, 8), g n, mean (16, 16), n mean (8, 8),
          g less that (12, 12), times r (8, 8), dx back (6, 0), dy n, sum (16, 16): 106 and 88
  fused   reads dy and x twice and writes dx once: 10 and 20
Both are bound by memory, so the kernels can gain at most a factor of 10.6 in bfloat16 and 4.4 in float32.

Shapes: N rows, D elements a row, P rows of partial sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import as_rows, check_floats, check_row_length, empty_rows, warps

PARTIALS = 64  # rows of partial sums at most, on any chip
TILE_ROWS, TILE_COLUMNS = 16, 128


def rmsnorm_backward_torch(dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The twin: the same in PyTorch."""
    wide_ND, wide_dy_ND = x_ND.float(), dy_ND.float()
    scale_N1 = torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + eps)
    normed_ND = wide_ND * scale_N1
    scaled_ND = wide_dy_ND * weight_D.float()
    along_N1 = (scaled_ND * normed_ND).mean(-1, keepdim=True)
    dx_ND = (scaled_ND - normed_ND * along_N1) * scale_N1
    dweight_D = (wide_dy_ND * normed_ND).sum_to_size(weight_D.shape)
    return dx_ND.to(x_ND.dtype), dweight_D.to(weight_D.dtype)


@triton.jit
def rmsnorm_dx_kernel(dy, x, weight, dx, scales, dy_stride, x_stride, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    values = tl.load(x + row * x_stride + d, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / D + eps)
    normed = values * scale
    gain = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(dy + row * dy_stride + d, mask=inside, other=0.0).to(tl.float32) * gain
    along = tl.sum(scaled * normed) / D
    tl.store(dx + row * D + d, ((scaled - normed * along) * scale).to(dx.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def rmsnorm_dweight_kernel(
    dy, x, scales, partials, dy_stride, x_stride, N, D, SPAN, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, SPAN, ROWS):
        row = block * SPAN + start + tl.arange(0, ROWS)
        inside = (row < N)[:, None] & (d < D)[None, :]
        values = tl.load(x + row[:, None] * x_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        grads = tl.load(dy + row[:, None] * dy_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row, mask=row < N, other=0.0)
        total += tl.sum(grads * (values * scale[:, None]), axis=0)
    tl.store(partials + block * D + d, total, mask=d < D)


def rmsnorm_backward(dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The gradients of `rmsnorm(x, weight, eps)`, given the gradient dy of its result.

    x_ND, dy_ND: of one shape, float32, bfloat16 or float16 each. weight_D: likewise. All is computed in float32.
    Returns: dx_ND, a contiguous tensor of x's dtype, and dweight_D, of weight's; both are rounded once.
    Raises: ValueError when shapes do not fit, a dtype is another, or a row is longer than 16384 elements, which is what
    one program holds in its registers.
    """
    check_floats("rmsnorm_backward", dy_ND, x_ND, weight_D)
    check_row_length("rmsnorm_backward", x_ND)
    if dy_ND.shape != x_ND.shape:
        raise ValueError(f"a gradient of shape {list(dy_ND.shape)} does not fit a result of shape {list(x_ND.shape)}")
    if weight_D.shape != x_ND.shape[-1:]:
        raise ValueError(f"a weight of shape {list(weight_D.shape)} does not fit rows of {x_ND.shape[-1]} elements")
    dx_ND = empty_rows(x_ND)
    if dx_ND.numel() == 0:
        return dx_ND, torch.zeros_like(weight_D)
    dy_rows_ND, rows_ND, weight_D = as_rows(dy_ND), as_rows(x_ND), weight_D.contiguous()
    N, D = rows_ND.shape
    scales_N = torch.empty(N, dtype=torch.float32, device=x_ND.device)
    block = triton.next_power_of_2(D)
    rmsnorm_dx_kernel[(N,)](
        dy_rows_ND,
        rows_ND,
        weight_D,
        dx_ND,
        scales_N,
        dy_rows_ND.stride(0),
        rows_ND.stride(0),
        D,
        eps,
        BLOCK=block,
        num_warps=warps(block),
    )
    span = triton.cdiv(triton.cdiv(N, PARTIALS), TILE_ROWS) * TILE_ROWS
    partials_PD = torch.empty(triton.cdiv(N, span), D, dtype=torch.float32, device=x_ND.device)
    rmsnorm_dweight_kernel[(len(partials_PD), triton.cdiv(D, TILE_COLUMNS))](
        dy_rows_ND,
        rows_ND,
        scales_N,
        partials_PD,
        dy_rows_ND.stride(0),
        rows_ND.stride(0),
        N,
        D,
        span,
        ROWS=TILE_ROWS,
        COLUMNS=TILE_COLUMNS,
    )
    return dx_ND, partials_PD.sum(0).to(weight_D.dtype)
