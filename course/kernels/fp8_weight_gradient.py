"""dW = dY^T X of E4M3 codes with scales for 128 tokens, promoted after every 128 of them (DeepSeek-V3 report, section 3.3).

The gradient of a weight sums over tokens, so a scale has to hold for neighbours among the tokens: blocks of 128 x 1, not the
1 x 128 of the forward product, and both matrices are quantised once more. Each row and each column of a tile then has a scale
of its own every 128 tokens, where `fp8_gemm` has one for all its columns: the bare sum of 128 products is multiplied by one,
and added to the float32 total times the other: one FMUL and one FFMA an element. The scales of the columns take registers
too: a tile is half as tall as `fp8_gemm`'s, and two programs fit on a multiprocessor. All is E4M3, gradients too; with a scale for
each 128 numbers the wider range of E5M2 was not needed (report, section 3.3.2, "Mantissa over Exponents").

Hopper's tensor cores take FP8 only where the dimension that is summed lies side by side in memory, in both matrices: dY and
X are wanted transposed. `fp8_quantize(x, (128, 1), transposed=True)` writes that copy in the pass that quantises.

Bytes moved by eager PyTorch, which dequantises first, and by the kernel if it reads everything once:
  eager   each code to float32 (5), its scale spread out (8), product of the two (12), read by the matrix product (4):
          29 (N T + K T), and its result written: 4 N K
  fused   codes, and scales of 4 bytes: N T + K T + 4 (N + K) T/128, and 4 N K
Where bytes are the bound, the gain is at most a factor of 29; large products are bound by arithmetic, and FP8 has twice the
peak of bfloat16: at most a factor of 2 over a product in that, and dequantising on top.

Rows of a multiple of 16 bytes, that is of 16 tokens, are copied 16 at a time; others are right too, but slow. The
interpreter adds each dot in float32, so it shows nothing of the tensor cores' 14 bits (`fp8_accumulator`).

Shapes: T tokens, dy [N, T], x [K, T], B = T / 128, rounded up; dy_scales [N, B], x_scales [K, B], out [N, K].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.matmul import tile_place

SPAN = tl.constexpr(128)  # tokens under one scale
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)


def fp8_weight_gradient_torch(
    dy_NT: Tensor, x_KT: Tensor, dy_scales_NB: Tensor, x_scales_KB: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The twin: dequantise and multiply, in float32."""
    T, span = x_KT.shape[1], SPAN.value
    wide_NT = dy_NT.float() * dy_scales_NB.repeat_interleave(span, dim=1)[:, :T]
    wide_KT = x_KT.float() * x_scales_KB.repeat_interleave(span, dim=1)[:, :T]
    return (wide_NT @ wide_KT.T).to(dtype)


@triton.jit
def fp8_weight_gradient_kernel(
    dy, x, dy_scales, x_scales, out, N, K, T, dy_row, x_row,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = tile_place(tl.program_id(0), N, K, BLOCK_N, BLOCK_K, GROUP)
    n, k = row * BLOCK_N + tl.arange(0, BLOCK_N), column * BLOCK_K + tl.arange(0, BLOCK_K)
    t = tl.arange(0, SPAN)
    n_inside, k_inside = n < N, k < K
    dy_at = dy + n.to(tl.int64)[:, None] * dy_row + t[None, :]
    x_at = x + k.to(tl.int64)[None, :] * x_row + t[:, None]
    spans = tl.cdiv(T, SPAN)
    dy_scales_at = dy_scales + n.to(tl.int64) * spans
    x_scales_at = x_scales + k.to(tl.int64) * spans
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for span in range(spans):
        inside = t < T - span * SPAN
        dy_tile = tl.load(dy_at, mask=n_inside[:, None] & inside[None, :], other=0.0)
        x_tile = tl.load(x_at, mask=k_inside[None, :] & inside[:, None], other=0.0)
        dy_scale = tl.load(dy_scales_at + span, mask=n_inside, other=0.0)
        x_scale = tl.load(x_scales_at + span, mask=k_inside, other=0.0)
        total += tl.dot(dy_tile, x_tile) * dy_scale[:, None] * x_scale[None, :]
        dy_at += SPAN
        x_at += SPAN
    at = out + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=n_inside[:, None] & k_inside[None, :])


def fp8_weight_gradient(
    dy_NT: Tensor,
    x_KT: Tensor,
    dy_scales_NB: Tensor,
    x_scales_KB: Tensor,
    dtype: torch.dtype = torch.float32,
    block: tuple[int, int] = (64, 128),
    group: int = 8,
    num_warps: int = 4,
    num_stages: int = 4,
) -> Tensor:
    """(dy times its scales) (x times its scales)^T, summed over the tokens in float32 and rounded once.

    dy_NT, x_KT: float8_e4m3fn, the tokens of a row side by side. dy_scales_NB, x_scales_KB: float32, for 128 tokens of a row.
    dtype: of the result, float32, bfloat16 or float16. block: rows and columns of a tile of the result, powers of two from
    16 up. group: rows of tiles that are worked on together.
    Returns: [N, K], contiguous, the layout of a weight.
    Raises: ValueError for sizes that do not fit each other, another dtype, rows whose elements lie apart, another block.
    """
    _refuse(dy_NT, x_KT, dy_scales_NB, x_scales_KB, dtype, block)
    (N, T), K = dy_NT.shape, len(x_KT)
    out_NK = torch.empty(N, K, dtype=dtype, device=x_KT.device)
    if out_NK.numel() == 0 or T == 0:
        return out_NK.zero_()
    fp8_weight_gradient_kernel[(triton.cdiv(N, block[0]) * triton.cdiv(K, block[1]),)](
        dy_NT,
        x_KT,
        dy_scales_NB.contiguous(),
        x_scales_KB.contiguous(),
        out_NK,
        N,
        K,
        T,
        dy_NT.stride(0),
        x_KT.stride(0),
        BLOCK_N=block[0],
        BLOCK_K=block[1],
        GROUP=group,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_NK


def _refuse(
    dy_NT: Tensor, x_KT: Tensor, dy_scales_NB: Tensor, x_scales_KB: Tensor, dtype: torch.dtype, block: tuple[int, int]
) -> None:
    if dy_NT.ndim != 2 or x_KT.ndim != 2 or dy_NT.shape[1] != x_KT.shape[1]:
        raise ValueError(f"shapes {list(dy_NT.shape)} and {list(x_KT.shape)} have no product dy x^T over tokens")
    if {dy_NT.dtype, x_KT.dtype} != {torch.float8_e4m3fn} or {dy_scales_NB.dtype, x_scales_KB.dtype} != {torch.float32}:
        dtypes = ", ".join(str(tensor.dtype) for tensor in (dy_NT, x_KT, dy_scales_NB, x_scales_KB))
        raise ValueError(f"fp8_weight_gradient takes two of float8_e4m3fn with scales in float32, not {dtypes}")
    (N, T), K = dy_NT.shape, len(x_KT)
    spans = -(-T // SPAN.value)
    if (given := [list(dy_scales_NB.shape), list(x_scales_KB.shape)]) != [[N, spans], [K, spans]]:
        raise ValueError(
            f"the scales of these matrices have shapes {[N, spans]} and {[K, spans]}, not {given[0]} and {given[1]}"
        )
    if T > 1 and (dy_NT.stride(1) != 1 or x_KT.stride(1) != 1):
        raise ValueError("tensor cores want FP8 rows whose tokens lie side by side; quantise with transposed=True")
    if dtype not in OUTPUTS:
        raise ValueError(f"a gradient is written as {', '.join(map(str, OUTPUTS))}, and not as {dtype}")
    if len(block) != 2 or any(size < 16 or size & (size - 1) for size in block):
        raise ValueError(f"a block has two sizes, powers of two from 16 up, and this one is {block}")
