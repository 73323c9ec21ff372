"""13.1: E4M3 codes with a scale for 1 x span or span x span numbers, as a kernel (DeepSeek-V3 report, section 3.3.2)."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u13._codes import compare_codes, compare_scales, pair, spread

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # N, K, span, square, power of two, dtype, what the numbers are like
    (5, 70, 32, False, False, FP32, "plain"),  # the last block of each row is short
    (35, 70, 32, True, False, BF16, "plain"),
    (3, 64, 32, False, True, FP32, "negative"),  # the largest magnitudes are negative
    (40, 33, 32, True, True, FP32, "zeros"),  # whole blocks of zeros, and the last column alone in its blocks
    (2, 128, 64, False, False, BF16, "small"),  # as gradients are: 1e-7
    (4, 64, 32, False, True, FP32, "above"),  # scales just above a power of two
    (4, 64, 32, False, True, FP32, "one unit above"),  # the quotient is the next float32 after a power of two
    (4, 64, 32, False, True, FP32, "exact"),  # scales that are powers of two already
    (0, 40, 32, False, False, FP32, "plain"),
    (1, 1, 128, True, False, FP32, "plain"),
    (3, 32, 32, False, False, FP32, "tiny"),  # amax / 448 is below 2^-126
    (3, 32, 32, False, True, FP32, "tiny"),
    (34, 33, 16, True, False, FP32, "rows"),  # rows of very different size
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        x_NK = torch.zeros(2, 18)
        x_NK[0, :3] = torch.tensor([1.0, -3.5, 0.01])
        x_NK[0, 16:] = torch.tensor([224.0, 500.0])
        return {"x_NK": x_NK, "span": 16, "square": False, "power_of_two": True}
    if number <= len(EDGES):
        N, K, span, square, power_of_two, dtype, kind = EDGES[number - 1]
    else:
        N, K, span = int(rng.integers(1, 36)), int(rng.integers(2, 70)), int(rng.choice([16, 32, 64]))
        square, power_of_two = bool(rng.integers(2)), bool(rng.integers(2))
        dtype, kind = (
            (BF16, FP32)[int(rng.integers(2))],
            str(rng.choice(["plain", "negative", "zeros", "small", "rows"])),
        )
    x_NK = torch.tensor(rng.normal(size=(N, K)), dtype=FP32)
    if kind == "negative":
        x_NK = x_NK.abs() / 8
        x_NK[:, :: span - 1] = -1.0 - torch.tensor(rng.random(size=x_NK[:, :: span - 1].shape), dtype=FP32)
    if kind == "zeros":
        x_NK[:, :span] = 0.0
        x_NK[: min(N, span)] = 0.0
    if kind == "small":
        x_NK *= 1e-7
    if kind in ("above", "one unit above", "exact"):
        x_NK = x_NK.clamp(-1, 1)
        x_NK[:, ::span] = 448.0 + {"above": 448 * 2.0**-21, "one unit above": 2.0**-15, "exact": 0.0}[kind]
        x_NK *= 2.0 ** torch.tensor([[-17], [-6], [11], [-30]])
    if kind == "tiny":
        x_NK *= torch.tensor([[1e-37], [3e-39], [1e-30]])
    if kind == "rows":
        x_NK *= 2.0 ** torch.tensor(rng.integers(-12, 13, size=(N, 1)))
    return {"x_NK": x_NK.to(dtype), "span": span, "square": square, "power_of_two": power_of_two}


def compare(inputs, wanted, got):
    if (what := pair(wanted, got, "codes, scales")) is not None:
        return what
    x_NK, span = inputs["x_NK"], inputs["span"]
    if (what := compare_scales("scales", wanted[1], got[1], inputs["power_of_two"])) is not None:
        return what
    exact_NK = x_NK.double() / spread(wanted[1], span if inputs["square"] else 1, span, x_NK.shape)
    return compare_codes("codes", wanted[0], got[0], exact_NK)


def reference(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 1
    wide_NK = F.pad(x_NK.float(), (0, -K % span, 0, -N % rows))
    down, across = wide_NK.shape[0] // rows, wide_NK.shape[1] // span
    blocks = wide_NK.view(down, rows, across, span)
    largest = blocks.abs().amax((1, 3), keepdim=True)
    scales = torch.where(largest == 0, 1.0, (largest / 448).clamp(min=2.0**-126))
    if power_of_two:
        fraction, exponent = torch.frexp(scales.double())
        scales = torch.where(fraction == 0.5, scales, torch.ldexp(torch.ones_like(fraction), exponent).float())
    codes_NK = (blocks / scales).to(torch.float8_e4m3fn).view(wide_NK.shape)[:N, :K]
    return codes_NK.contiguous().view(torch.uint8), scales[:, 0, :, 0].contiguous()


@triton.jit
def _tiles(
    x, codes, scales, N, K, SPAN: tl.constexpr, ROWS: tl.constexpr, SQUARE: tl.constexpr, POWER_OF_TWO: tl.constexpr
):
    down, right, across = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.cdiv(K, SPAN)
    n = down * ROWS + tl.arange(0, ROWS)[:, None]
    k = right * SPAN + tl.arange(0, SPAN)[None, :]
    inside = (n < N) & (k < K)
    values = tl.load(x + n * K + k, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), axis=1, keep_dims=True)
    if SQUARE:
        largest = tl.max(largest, axis=0, keep_dims=True)
    scale = tl.where(largest == 0.0, 1.0, tl.maximum(largest / 448.0, 2.0**-126))
    if POWER_OF_TWO:
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    tl.store(codes + n * K + k, (values / scale).to(tl.float8e4nv), mask=inside)
    if SQUARE:
        tl.store(scales + (down * across + right + tl.zeros([1, 1], tl.int32)), scale)
    else:
        tl.store(scales + n * across + right, scale, mask=n < N)


def tile_by_tile(x_NK, span, square, power_of_two):
    N, K = x_NK.shape
    rows = span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _tiles[grid](x_NK, codes_NK, scales, N, K, SPAN=span, ROWS=rows, SQUARE=square, POWER_OF_TWO=power_of_two)
    return codes_NK.view(torch.uint8), scales


@triton.jit
def _walk(x, codes, scales, N, K, rows, SPAN: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    across = tl.cdiv(K, SPAN)
    down = tl.program_id(0) // across
    k = tl.program_id(0) % across * SPAN + tl.arange(0, SPAN)
    begin, end = down * rows, tl.minimum(down * rows + rows, N)
    highest = tl.zeros([SPAN], tl.float32)
    for n in range(begin, end):
        highest = tl.maximum(highest, tl.abs(tl.load(x + n * K + k, mask=k < K, other=0.0).to(tl.float32)))
    largest = tl.max(highest, axis=0)
    scale = tl.maximum(largest * (1 / 448.0), 1.1754943508222875e-38)
    if POWER_OF_TWO:
        power = tl.exp2(tl.floor(tl.log2(scale)) - 1.0)
        power = tl.where(power < scale, power * 2.0, power)
        power = tl.where(power < scale, power * 2.0, power)
        scale = tl.where(power < scale, power * 2.0, power)
    scale = tl.where(largest == 0.0, 1.0, scale)
    for n in range(begin, end):
        values = tl.load(x + n * K + k, mask=k < K, other=0.0).to(tl.float32)
        tl.store(codes + n * K + k, (values * (1.0 / scale)).to(tl.float8e4nv), mask=k < K)
    tl.store(scales + tl.program_id(0), scale)


def block_by_block(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 1
    codes_NK, blocks = torch.zeros(N, K, dtype=torch.float8_e4m3fn), (triton.cdiv(N, rows), triton.cdiv(K, span))
    scales = torch.zeros(blocks, dtype=torch.float32)
    if scales.numel():
        _walk[(scales.numel(),)](x_NK, codes_NK, scales, N, K, rows, SPAN=span, POWER_OF_TWO=power_of_two)
    return codes_NK.view(torch.uint8), scales


@triton.jit
def _faulty(
    x, codes, scales, N, K, FAULT: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, SQUARE: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    down, right, across = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.cdiv(K, SPAN)
    n = down * ROWS + tl.arange(0, ROWS)[:, None]
    k = right * SPAN + tl.arange(0, SPAN)[None, :]
    inside = (n < N) & (k < K)
    values = tl.load(x + n * K + k, mask=inside, other=0.0).to(tl.float32)
    sized = values if FAULT == 1 else tl.abs(values)  # 1: the largest number, not the largest magnitude
    largest = tl.max(sized, axis=1, keep_dims=True)
    if SQUARE:
        largest = tl.max(largest, axis=0, keep_dims=True)
    if FAULT == 2:  # 2: a floor that is larger than gradients are
        largest = tl.maximum(largest, 1e-4)
    scale = tl.maximum(largest / 448.0, 2.0**-126)
    scale = tl.where(largest == 0.0, 0.0 if FAULT == 3 else 1.0, scale)  # 3: a block of zeros has the scale 0
    if POWER_OF_TWO:
        if FAULT == 4:  # 4: the nearest power
            scale = tl.exp2(tl.floor(tl.log2(scale) + 0.5))
        elif FAULT == 5:  # 5: the next power down
            scale = (scale.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        elif FAULT == 6:  # 6: a logarithm in float32, rounded up
            scale = tl.exp2(tl.ceil(tl.log2(scale)))
        else:
            scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    tl.store(codes + n * K + k, (values / scale).to(tl.float8e4nv), mask=inside)
    kept = 1.0 / scale if FAULT == 7 else scale  # 7: what to divide by is kept, not what to multiply with
    if SQUARE:
        tl.store(scales + (down * across + right + tl.zeros([1, 1], tl.int32)), kept)
    else:
        tl.store(scales + n * across + right, kept, mask=n < N)


def without_magnitudes(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 1, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def a_floor_under_the_largest(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 2, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def zeros_over_zero(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 3, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def nearest_power(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 4, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def power_below(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 5, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def logarithm_in_float32(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 6, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


def the_inverse_kept(x_NK, span, square, power_of_two):
    (N, K), rows = x_NK.shape, span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if N:
        grid = (triton.cdiv(N, rows), triton.cdiv(K, span))
        _faulty[grid](x_NK, codes_NK, scales, N, K, 7, span, rows, square, power_of_two)
    return codes_NK.view(torch.uint8), scales


EXERCISE = Exercise(
    id="13.1",
    unit="13",
    title="a scale for a row of numbers, or for a square",
    entry="quantise",
    points=15,
    minutes=35,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=16,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "without-magnitudes",
            without_magnitudes,
            "It looks like the largest number of a block where its largest magnitude is wanted. A block whose largest is negative "
            "then overflows: take tl.abs first.",
        ),
        Misconception(
            "a-floor-under-the-largest",
            a_floor_under_the_largest,
            "It looks like a floor of 1e-4 under the largest magnitude. Gradients are smaller than that, and lose their digits; only a "
            "block of zeros needs care, and scales below 2^-126.",
            seen="deepseek-ai/DeepGEMM, per_token_cast_to_fp8: the largest magnitude clamped to 1e-4",
        ),
        Misconception(
            "zeros-over-zero",
            zeros_over_zero,
            "It looks like a scale of 0 for a block of zeros, which makes its codes 0 / 0, NaN. Such a block has the scale 1.",
        ),
        Misconception(
            "nearest-power",
            nearest_power,
            "It looks like scales rounded to the nearest power of two. Half of them go down, and their blocks overflow beyond 448: "
            "round up.",
        ),
        Misconception(
            "power-below",
            power_below,
            "It looks like scales rounded down to a power of two. The largest numbers of such a block are beyond 448: round up.",
        ),
        Misconception(
            "logarithm-in-float32",
            logarithm_in_float32,
            "It looks like the ceiling of a logarithm in float32. Just above a power of two it comes out as a whole number, and is not "
            "rounded up any more; work on the exponent's bits, or compare.",
        ),
        Misconception(
            "the-inverse-kept",
            the_inverse_kept,
            "It looks like 448 / amax in place of the scale. What is stored is what to multiply codes with, amax / 448.",
        ),
    ),
    alternatives=(tile_by_tile, block_by_block),
    hints=(
        "Which numbers share a scale? Give a program whole blocks, so that nobody else needs its maximum.",
        "Masked lanes hold 0, which changes no largest magnitude. For rows reduce along axis 1; for squares along both. keep_dims=True "
        "leaves a shape that divides the tile. What is the scale where the largest magnitude is 0?",
        "For the power of two look at float32's bits: sign, 8 of exponent, 23 of fraction. Adding 0x7FFFFF carries into the exponent "
        "unless the fraction is 0, and & 0x7F800000 cuts the fraction off; `.to(tl.int32, bitcast=True)` shows the bits. Cast with "
        "`.to(tl.float8e4nv)` into a tensor of torch.float8_e4m3fn, and return its view as uint8.",
    ),
    kernel=True,
)
