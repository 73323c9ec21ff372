"""13.4: activations kept as 1 x span codes, requantised over tokens and transposed (DeepSeek-V3 report, sections 3.3.2, 3.3.3)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u13._codes import compare_codes, compare_scales, numbers, pair, spread

EDGES = [  # T, K, span, exponents of the scales lie within, what the codes are like
    (32, 32, 32, 0, "plain"),  # one block, one scale
    (70, 40, 32, 6, "plain"),
    (33, 65, 32, 12, "plain"),
    (5, 3, 32, 4, "plain"),
    (40, 20, 16, 8, "zeros"),  # columns of zeros within a span of tokens
    (64, 33, 32, 20, "plain"),  # small tokens drown beside large ones
    (1, 1, 128, 3, "plain"),
    (0, 40, 32, 0, "plain"),
    (20, 40, 16, 3, "negative"),
    (33, 16, 16, 4, "full"),  # every code is 448 in magnitude: scales stay
    (18, 20, 16, 0, "lowest"),  # old scales 2^-40 and small codes: new ones down to 2^-57
    (18, 20, 16, 0, "highest"),  # old scales 2^20
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        codes_TK = torch.zeros(17, 2, dtype=torch.uint8)
        codes_TK[0], codes_TK[1], codes_TK[16] = (
            torch.tensor([56, 126]),
            torch.tensor([126, 57]),
            torch.tensor([184, 8]),
        )
        scales_TB = torch.ones(17, 1)
        scales_TB[0], scales_TB[1] = 4.0, 0.0625
        return {"codes_TK": codes_TK, "scales_TB": scales_TB, "span": 16}
    if number <= len(EDGES):
        T, K, span, reach, kind = EDGES[number - 1]
    else:
        T, K, span = int(rng.integers(1, 80)), int(rng.integers(2, 70)), int(rng.choice([16, 32]))
        reach, kind = int(rng.integers(0, 14)), "plain"
    codes_TK = torch.tensor(rng.integers(0, 127, size=(T, K)) + 128 * rng.integers(0, 2, size=(T, K)))
    if kind == "zeros":
        codes_TK[: 2 * span : 1, ::3] = 0
        codes_TK[:span] = 128 * (codes_TK[:span] // 128)
    if kind == "negative":
        codes_TK = codes_TK % 100 + 20 * (codes_TK % 2)
        codes_TK[3::span] = 128 + 126
    if kind == "full":
        codes_TK = 126 + 128 * (codes_TK // 128)
    if kind == "lowest":
        codes_TK = codes_TK % 8 + 1 + 128 * (codes_TK // 128)
        codes_TK[:, 0] = 1  # 2^-9
    middle = {"lowest": -40, "highest": 20}.get(kind, -10)
    scales_TB = 2.0 ** torch.tensor(rng.integers(-reach, reach + 1, size=(T, -(-K // span))) + middle)
    return {"codes_TK": codes_TK.to(torch.uint8), "scales_TB": scales_TB.float(), "span": span}


def compare(inputs, wanted, got):
    if (what := pair(wanted, got, "codes, scales")) is not None:
        return what
    if (what := compare_scales("scales", wanted[1], got[1], exact=True)) is not None:
        return what
    codes_TK, span = inputs["codes_TK"], inputs["span"]
    exact_TK = numbers(codes_TK) * spread(inputs["scales_TB"], 1, span, codes_TK.shape)
    return compare_codes("codes", wanted[0], got[0], exact_TK.T / spread(wanted[1], 1, span, codes_TK.T.shape))


def reference(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    x_KT = codes_TK.view(torch.float8_e4m3fn).double().T * scales_TB.double().T.repeat_interleave(span, 0)[:K]
    spans = range(0, T, span)
    largest_KA = torch.zeros(K, len(spans), dtype=torch.float64)
    for a, begin in enumerate(spans):
        largest_KA[:, a] = x_KT[:, begin : begin + span].abs().amax(1)
    fraction_KA, exponent_KA = torch.frexp(largest_KA / 448)
    scales_KA = torch.ldexp(torch.ones_like(fraction_KA), exponent_KA - (fraction_KA == 0.5).int())
    scales_KA = torch.where(largest_KA == 0, 1.0, scales_KA)
    codes_KT = (x_KT / scales_KA.repeat_interleave(span, 1)[:, :T]).float().to(torch.float8_e4m3fn)
    return codes_KT.view(torch.uint8), scales_KA.float()


@triton.jit
def _tiles(codes, scales, out, new, T, K, SPAN: tl.constexpr, COLUMNS: tl.constexpr):
    down, right = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t = down * SPAN + tl.arange(0, SPAN)[:, None]
    k = right * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (t < T) & (k < K)
    x = tl.load(codes + t * K + k, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(scales + t * tl.cdiv(K, SPAN) + k // SPAN, mask=inside, other=0.0)
    largest = tl.max(tl.abs(x), axis=0, keep_dims=True)
    bits = (largest / 448.0).to(tl.int32, bitcast=True)
    scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    scale = tl.where(largest == 0.0, 1.0, scale)
    tl.store(out + k * T + t, (x / scale).to(tl.float8e4nv), mask=inside)
    tl.store(new + k * tl.cdiv(T, SPAN) + down, scale, mask=k < K)


def tile_by_tile(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, 32))
        _tiles[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, SPAN=span, COLUMNS=32)
    return codes_KT.view(torch.uint8), scales_KA


@triton.jit
def _columns(codes, scales, out, new, T, K, across, SPAN: tl.constexpr, COLUMNS: tl.constexpr):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    block = k // SPAN
    spans = tl.cdiv(T, SPAN)
    for span in range(spans):
        begin, end = span * SPAN, tl.minimum(span * SPAN + SPAN, T)
        largest = tl.zeros([COLUMNS], tl.float32)
        for t in range(begin, end):
            x = tl.load(codes + t * K + k, mask=k < K, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x) * tl.load(scales + t * across + block, mask=k < K, other=0.0))
        wanted = largest * (1 / 448.0)
        scale = tl.exp2(tl.floor(tl.log2(tl.where(wanted > 0.0, wanted, 1.0))) - 1.0)
        scale = tl.where(scale * 448.0 < largest, 2.0 * scale, scale)
        scale = tl.where(scale * 448.0 < largest, 2.0 * scale, scale)
        scale = tl.where(scale * 448.0 < largest, 2.0 * scale, scale)
        scale = tl.where(largest > 0.0, scale, 1.0)
        tl.store(new + k * spans + span, scale, mask=k < K)
        for t in range(begin, end):
            x = tl.load(codes + t * K + k, mask=k < K, other=0.0).to(tl.float32)
            x *= tl.load(scales + t * across + block, mask=k < K, other=0.0)
            tl.store(out + k * T + t, (x / scale).to(tl.float8e4nv), mask=k < K)


def columns_walked_down(codes_TK, scales_TB, span):
    (T, K), across = codes_TK.shape, scales_TB.shape[1]
    codes_KT = torch.zeros(K, T, dtype=torch.float8_e4m3fn)
    scales_KA = torch.ones(K, -(-T // span), dtype=torch.float32)
    _columns[(triton.cdiv(K, 64),)](
        codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, across, SPAN=span, COLUMNS=64
    )
    return codes_KT.view(torch.uint8), scales_KA


@triton.jit
def _faulty(codes, scales, out, new, T, K, FAULT: tl.constexpr, SPAN: tl.constexpr, COLUMNS: tl.constexpr):
    down, right = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t = down * SPAN + tl.arange(0, SPAN)[:, None]
    k = right * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (t < T) & (k < K)
    x = tl.load(codes + t * K + k, mask=inside, other=0.0).to(tl.float32)
    old = tl.load(scales + t * tl.cdiv(K, SPAN) + k // SPAN, mask=inside, other=0.0)
    if FAULT != 1:  # 1: bare codes, without their scales
        x *= old
    largest = tl.max(tl.abs(x), axis=0, keep_dims=True)
    if FAULT == 2:  # 2: without magnitudes
        largest = tl.maximum(tl.max(x, axis=0, keep_dims=True), 0.0)
    if FAULT == 3:  # 3: over the whole tile
        largest = tl.max(largest, axis=1, keep_dims=True) + tl.zeros([1, COLUMNS], tl.float32)
    scale = largest / 448.0
    if FAULT == 4:  # 4: the largest of the old scales serves
        scale = tl.max(old, axis=0, keep_dims=True)
    elif FAULT == 5:  # 5: the next power down
        scale = (scale.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    elif FAULT != 6:  # 6: no power of two
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    if FAULT != 7:  # 7: zeros over zero
        scale = tl.where(largest == 0.0, 1.0, scale)
    tl.store(out + k * T + t, (x / scale).to(tl.float8e4nv), mask=inside)
    tl.store(new + k * tl.cdiv(T, SPAN) + down, scale, mask=k < K)


def bare_codes(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 1, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def without_magnitudes(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 2, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def one_scale_a_square(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 3, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def the_largest_old_scale(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 4, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def power_below(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 5, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def no_power_of_two(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 6, span, span)
    return codes_KT.view(torch.uint8), scales_KA


def zeros_over_zero(codes_TK, scales_TB, span):
    T, K = codes_TK.shape
    codes_KT, scales_KA = torch.empty(K, T, dtype=torch.float8_e4m3fn), torch.empty(K, triton.cdiv(T, span))
    if codes_TK.numel():
        grid = (triton.cdiv(T, span), triton.cdiv(K, span))
        _faulty[grid](codes_TK.view(torch.float8_e4m3fn), scales_TB, codes_KT, scales_KA, T, K, 7, span, span)
    return codes_KT.view(torch.uint8), scales_KA


EXERCISE = Exercise(
    id="13.4",
    unit="13",
    title="from rows to columns, for the weight gradient",
    entry="requantise",
    points=15,
    minutes=35,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=14,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "bare-codes",
            bare_codes,
            "It looks like codes without their old scales. Tokens of one column have different scales: multiply first, then look for the "
            "largest.",
        ),
        Misconception(
            "the-largest-old-scale",
            the_largest_old_scale,
            "It looks like the largest old scale of a span as the new one. A column need not reach 448 anywhere: take the largest "
            "magnitude of its numbers.",
        ),
        Misconception(
            "one-scale-a-square",
            one_scale_a_square,
            "It looks like one scale for span x span numbers. Each column has its own for a span of tokens.",
        ),
        Misconception(
            "without-magnitudes",
            without_magnitudes,
            "It looks like the largest number of a column where its largest magnitude is wanted. Take tl.abs first.",
        ),
        Misconception(
            "power-below",
            power_below,
            "It looks like scales rounded down to a power of two. The largest numbers then are beyond 448: round up.",
        ),
        Misconception(
            "no-power-of-two",
            no_power_of_two,
            "It looks like amax / 448 as it is. Between powers of two rounding again costs nothing but what underflows; other scales move "
            "nearly every number.",
        ),
        Misconception(
            "zeros-over-zero",
            zeros_over_zero,
            "It looks like a scale of 0 for a column of zeros, which makes its codes 0 / 0, NaN. It has the scale 1.",
        ),
    ),
    alternatives=(tile_by_tile, columns_walked_down),
    hints=(
        "A program needs all tokens of its span at once. How wide may its tile be?",
        "Load a tile of span x some columns, and for each element the scale of its token and block of columns. The largest magnitude goes "
        "down axis 0. Transposing is a matter of where you store.",
        "Element (t, k) lies at t * K + k, its old scale at t * B + k // span. Its new code goes to k * T + t; the scale of column k and "
        "span a to k * A + a. Divide by a power of two, and cast with `.to(tl.float8e4nv)`.",
    ),
    kernel=True,
)
