"""E4M3 codes with a scale a block of elements, as one kernel over tiles (DeepSeek-V3 report, section 3.3).

  1 x 128     activations: a scale for 128 neighbours along a row
  128 x 128   weights
  128 x 1     activations once more, for the weight gradient, which sums over tokens: a scale for 128 neighbours down a column.
              The transposes of codes and scales are the transposed matrix in blocks of 1 x 128. That is how the product
              wants them (`fp8_weight_gradient`), and `transposed` writes them so, in the same pass.

A block's scale is its largest magnitude over 448, the largest E4M3 number, in float32, so that nothing overflows; where the
report asks for whole powers of two, the next of them, which costs up to one bit of range and makes scaling exact. A block
of zeros has the scale 1, and no scale is smaller than 2^-126, so that 1 / scale is finite.

Bytes moved an element in bfloat16, in blocks of 1 x 128, and of 128 x 128 or 128 x 1:
  eager   to float32 (6), magnitude (8), maximum (4), product with 1 / scale (8), to E4M3 (5): 31
  fused   reads x once and writes codes once: 3, and 4/128 for the scales of blocks with 128 elements
Both are bound by memory, so the kernel can gain at most a factor of 10 (eager pads the last blocks on top where sizes are
no multiples of 128).

Shapes: x [N, K], blocks of [R, C] elements, codes [N, K], scales [N / R, K / C], rounded up.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import check_floats

LARGEST = tl.constexpr(448.0)  # of E4M3
TINY = tl.constexpr(2.0**-126)  # the smallest float32 with all its digits
TILES = {(1, 128): (16, 128), (128, 128): (128, 128), (128, 1): (128, 64)}  # block -> rows and columns of a program


def fp8_quantize_torch(
    x_NK: Tensor, block: tuple[int, int] = (1, 128), power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """The twin: the same in PyTorch, for a matrix that is not empty."""
    (N, K), (R, C) = x_NK.shape, block
    wide_NK = x_NK.float()
    if N % R or K % C:
        wide_NK = F.pad(wide_NK, (0, -K % C, 0, -N % R))
    blocks = wide_NK.view(-(-N // R), R, -(-K // C), C)
    largest = blocks.abs().amax((1, 3), keepdim=True)
    scales = torch.where(largest == 0, 1.0, (largest / LARGEST.value).clamp(min=TINY.value))
    if power_of_two:
        bits = scales.view(torch.int32)
        scales = torch.where(scales.isfinite(), (bits + 0x7FFFFF & 0x7F800000).view(torch.float32), scales)
    codes = (blocks * (1 / scales)).to(torch.float8_e4m3fn)
    return codes.view(wide_NK.shape)[:N, :K].contiguous(), scales[:, 0, :, 0]


@triton.jit
def fp8_quantize_kernel(
    x, codes, scales, stride, N, K,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, POWER_OF_TWO: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(K, COLUMNS)
    down, right = (tl.program_id(0) // across).to(tl.int64), tl.program_id(0) % across
    row = down * ROWS + tl.arange(0, ROWS)[:, None]
    k = right * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < N) & (k < K)
    values = tl.load(x + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    scale_row, scale_column, scale_columns = row, k, K
    largest = tl.abs(values)
    if WIDE:  # a block is as wide as the tile
        largest = tl.max(largest, axis=1, keep_dims=True)
        scale_column, scale_columns = tl.zeros((1, 1), tl.int32) + right, across
    if TALL:
        largest = tl.max(largest, axis=0, keep_dims=True)
        scale_row = tl.zeros((1, 1), tl.int64) + down
    scale = tl.div_rn(largest, LARGEST)
    scale = tl.where(scale < TINY, TINY, scale)
    scale = tl.where(largest == 0, 1.0, scale)
    if POWER_OF_TWO:  # one less than a step of the exponent is added, and the fraction cut off
        rounded = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(scale < float("inf"), rounded, scale)
    scaled = values * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    codes_at = codes + k.to(tl.int64) * N + row if TRANSPOSED else codes + row * K + k
    tl.store(codes_at, scaled.to(codes.dtype.element_ty), mask=inside)
    held = (scale_row < (down + 1 if TALL else N)) & (scale_column < (across if WIDE else K))
    scales_at = scales + scale_row * scale_columns + scale_column
    if TRANSPOSED:
        scales_at = scales + scale_column.to(tl.int64) * (tl.cdiv(N, ROWS) if TALL else N) + scale_row
    tl.store(scales_at, scale, mask=held)


def fp8_quantize(
    x_NK: Tensor, block: tuple[int, int] = (1, 128), power_of_two: bool = False, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes and scales such that codes.float() times the scale of their block is nearly x.

    Each element is multiplied by 1 / scale in float32 and rounded to E4M3, ties to even. Where sizes are no multiples of 128
    the last blocks are cut short.

    x_NK: float32, bfloat16 or float16, of any strides. block: (1, 128), (128, 128) or (128, 1). power_of_two: round scales
    up to powers of two. transposed: write the transposes of codes and scales.
    Returns: codes_NK (float8_e4m3fn) and scales (float32), contiguous. Where x is infinite or NaN the code is NaN, and the
    others of its block mean nothing.
    Raises: ValueError for another dtype or block, or when x is not a matrix.
    """
    check_floats("fp8_quantize", x_NK)
    if x_NK.dim() != 2:
        raise ValueError(f"fp8_quantize takes a matrix, and one of shape {list(x_NK.shape)} is none")
    if tuple(block) not in TILES:
        raise ValueError(f"blocks are {', '.join(map(str, TILES))}, and not {block}")
    (N, K), (rows, columns) = x_NK.shape, TILES[tuple(block)]
    of_codes, of_scales = (N, K), (triton.cdiv(N, block[0]), triton.cdiv(K, block[1]))
    codes = x_NK.new_empty(of_codes[::-1] if transposed else of_codes, dtype=torch.float8_e4m3fn)
    scales = x_NK.new_empty(of_scales[::-1] if transposed else of_scales, dtype=torch.float32)
    if codes.numel() == 0:
        return codes, scales
    if x_NK.stride(1) != 1:
        x_NK = x_NK.contiguous()
    fp8_quantize_kernel[(triton.cdiv(N, rows) * triton.cdiv(K, columns),)](
        x_NK,
        codes,
        scales,
        x_NK.stride(0),
        N,
        K,
        ROWS=rows,
        COLUMNS=columns,
        TALL=block[0] > 1,
        WIDE=block[1] > 1,
        POWER_OF_TWO=power_of_two,
        TRANSPOSED=transposed,
        num_warps=8 if rows * columns > 4096 else 4,
    )
    return codes, scales
