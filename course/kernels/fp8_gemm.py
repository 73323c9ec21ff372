"""A product of block-scaled E4M3 matrices, promoted every 128 of K (DeepSeek-V3 report, section 3.3).

x has a scale for each row and 128 of K, w one for 128 rows and 128 of K (`fp8_quantize` makes both). Within 128 of K all
products of a tile have scales in common, so tensor cores sum the bare codes, and the sum times both scales is added to a
float32 accumulator: one FFMA an element. That is the promotion too. Hopper's tensor cores keep 14 bits of a running FP8
sum (`fp8_accumulator`), and here each sum starts from zero and ends after 128 products. `tl.dot(x, w, total)` would let them
run through all of K.

Bytes moved by eager PyTorch, which dequantises first, and by the kernel if it reads everything once:
  eager   each element of x and w to float32 (5), its scale spread out (8), product of the two (12), read by the matrix
          product (4): 29 (M K + N K), and its result written and rounded to bfloat16: 10 M N
  fused   codes, and scales of 4 bytes: M K + N K + 4 (M + N/128) K/128, and 2 M N
Where bytes are the bound, the gain is at most a factor of 29; large products are bound by arithmetic, and FP8 has twice
the peak of bfloat16: at most a factor of 2 over a product in that, and dequantising on top.

Rows of a multiple of 16 bytes are copied 16 at a time and asynchronously. Others are right too, but read byte by byte and
with spilled registers: pad them.

The interpreter adds each dot in float32, so it shows nothing of the 14 bits.

Shapes: x [M, K], w [N, K], B = K / 128 and A = N / 128, rounded up; x_scales [M, B], w_scales [A, B], out [M, N].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.matmul import tile_place

SPAN = tl.constexpr(128)  # of K under one scale, and rows of w
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)


def fp8_gemm_torch(
    x_MK: Tensor, w_NK: Tensor, x_scales_MB: Tensor, w_scales_AB: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The twin: dequantise and multiply, in float32."""
    (N, K), span = w_NK.shape, SPAN.value
    wide_MK = x_MK.float() * x_scales_MB.repeat_interleave(span, dim=1)[:, :K]
    w_scales_NB = w_scales_AB.repeat_interleave(span, dim=0)[:N]
    wide_NK = w_NK.float() * w_scales_NB.repeat_interleave(span, dim=1)[:, :K]
    return (wide_MK @ wide_NK.T).to(dtype)


@triton.jit
def fp8_gemm_kernel(
    x, w, x_scales, w_scales, out, M, N, K, x_row, w_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = tile_place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    m, n = row * BLOCK_M + tl.arange(0, BLOCK_M), column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, SPAN)
    m_inside, n_inside = m < M, n < N
    x_at = x + m.to(tl.int64)[:, None] * x_row + k[None, :]
    w_at = w + n.to(tl.int64)[None, :] * w_row + k[:, None]
    spans = tl.cdiv(K, SPAN)
    x_scales_at = x_scales + m.to(tl.int64) * spans
    w_scales_at = w_scales + (column * BLOCK_N // SPAN).to(tl.int64) * spans
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for span in range(spans):
        inside = k < K - span * SPAN
        x_tile = tl.load(x_at, mask=m_inside[:, None] & inside[None, :], other=0.0)
        w_tile = tl.load(w_at, mask=n_inside[None, :] & inside[:, None], other=0.0)
        scale = tl.load(x_scales_at + span, mask=m_inside, other=0.0) * tl.load(w_scales_at + span)
        total += tl.dot(x_tile, w_tile) * scale[:, None]
        x_at += SPAN
        w_at += SPAN
    at = out + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=m_inside[:, None] & n_inside[None, :])


def fp8_gemm(
    x_MK: Tensor,
    w_NK: Tensor,
    x_scales_MB: Tensor,
    w_scales_AB: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    block: tuple[int, int] = (128, 128),
    group: int = 8,
    num_warps: int = 8,
    num_stages: int = 4,
) -> Tensor:
    """(x times its scales) (w times its scales)^T, summed in float32 and rounded once.

    x_MK, w_NK: float8_e4m3fn, the elements of a row side by side. x_scales_MB, w_scales_AB: float32, for blocks of 1 x 128
    and 128 x 128. dtype: of the result, bfloat16, float16 or float32. block: rows and columns of a tile of the result, powers
    of two from 16 up, at most 128 columns, which then share a scale. group: rows of tiles that are worked on together.
    Returns: [M, N], contiguous.
    Raises: ValueError for sizes that do not fit each other, another dtype, rows whose elements lie apart, another block.
    """
    _refuse(x_MK, w_NK, x_scales_MB, w_scales_AB, dtype, block)
    (M, K), N = x_MK.shape, len(w_NK)
    out_MN = torch.empty(M, N, dtype=dtype, device=x_MK.device)
    if out_MN.numel() == 0 or K == 0:
        return out_MN.zero_()
    fp8_gemm_kernel[(triton.cdiv(M, block[0]) * triton.cdiv(N, block[1]),)](
        x_MK,
        w_NK,
        x_scales_MB.contiguous(),
        w_scales_AB.contiguous(),
        out_MN,
        M,
        N,
        K,
        x_MK.stride(0),
        w_NK.stride(0),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        GROUP=group,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_MN


def _refuse(
    x_MK: Tensor, w_NK: Tensor, x_scales_MB: Tensor, w_scales_AB: Tensor, dtype: torch.dtype, block: tuple[int, int]
) -> None:
    if x_MK.ndim != 2 or w_NK.ndim != 2 or x_MK.shape[1] != w_NK.shape[1]:
        raise ValueError(f"shapes {list(x_MK.shape)} and {list(w_NK.shape)} have no product x w^T")
    if {x_MK.dtype, w_NK.dtype} != {torch.float8_e4m3fn} or {x_scales_MB.dtype, w_scales_AB.dtype} != {torch.float32}:
        dtypes = ", ".join(str(tensor.dtype) for tensor in (x_MK, w_NK, x_scales_MB, w_scales_AB))
        raise ValueError(f"fp8_gemm takes two of float8_e4m3fn with scales in float32, not {dtypes}")
    (M, K), N, span = x_MK.shape, len(w_NK), SPAN.value
    wanted = [[M, -(-K // span)], [-(-N // span), -(-K // span)]]
    if (given := [list(x_scales_MB.shape), list(w_scales_AB.shape)]) != wanted:
        raise ValueError(
            f"the scales of these matrices have shapes {wanted[0]} and {wanted[1]}, not {given[0]} and {given[1]}"
        )
    if K > 1 and (x_MK.stride(1) != 1 or w_NK.stride(1) != 1):
        raise ValueError("tensor cores want FP8 rows whose elements lie side by side; take a contiguous copy")
    if dtype not in OUTPUTS:
        raise ValueError(f"a product is written as {', '.join(map(str, OUTPUTS))}, and not as {dtype}")
    if len(block) != 2 or any(size < 16 or size & (size - 1) for size in block) or block[1] > span:
        raise ValueError(
            f"a block has two sizes, powers of two from 16 up and at most {span} columns, and this one is {block}"
        )
