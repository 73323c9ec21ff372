"""09.4: scale and shift bfloat16 numbers: wide right after the load, narrow once before the store."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [0, 1, 512, 513, 1500, 200, 300]  # elements
FACTORS = [1.0, 2.0**20, 2.0**-20]


def inputs(rng, number):
    """Numbers whose products and sums are exact in float32, so that every right order of operations rounds alike."""
    if number == 0:
        rows = [3.0, 1.0, 0.5], [1.0078125, 1.0078125, 3.0], [-3.0, 128.0, -0.25]
    else:
        N = EDGES[number - 1] if number <= len(EDGES) else int(rng.integers(20, 1600))
        factor = FACTORS[number % 3]
        x_N, scale_N = rng.integers(-127, 128, size=N) / 16 * factor, rng.integers(128, 256, size=N) / 128
        rows = x_N, scale_N * rng.choice([-1, 1], size=N), rng.integers(-255, 256, size=N) / 16 * factor
    return dict(zip(("x_N", "scale_N", "shift_N"), (torch.tensor(row).bfloat16() for row in rows), strict=True))


def reference(x_N, scale_N, shift_N):
    return (x_N.double() * scale_N + shift_N).bfloat16()


@triton.jit
def _wide(x, shift, scale, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float32) * tl.load(scale + n, mask=n < N).to(tl.float32)
    values += tl.load(shift + n, mask=n < N).to(tl.float32)
    tl.store(out + n, values.to(tl.bfloat16), mask=n < N)


def wide_inside(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _wide[(triton.cdiv(N, BLOCK),)](x_N, shift_N, scale_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _fused(x, scale, shift, out, N, BLOCK: tl.constexpr):
    for begin in range(0, N, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        a = tl.load(x + n, mask=n < N, other=0.0).to(tl.float32)
        b = tl.load(scale + n, mask=n < N, other=0.0).to(tl.float32)
        c = tl.load(shift + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out + n, tl.fma(a, b, c), mask=n < N)


def rounded_by_the_store(x_N, scale_N, shift_N):
    out_N = torch.zeros_like(x_N)
    _fused[(1,)](x_N, scale_N, shift_N, out_N, x_N.numel(), BLOCK=256)
    return out_N


@triton.jit
def _narrow(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N) * tl.load(scale + n, mask=n < N) + tl.load(shift + n, mask=n < N)
    tl.store(out + n, values, mask=n < N)


def in_bfloat16(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _narrow[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _half(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float16) * tl.load(scale + n, mask=n < N).to(tl.float16)
    values += tl.load(shift + n, mask=n < N).to(tl.float16)
    tl.store(out + n, values.to(tl.bfloat16), mask=n < N)


def through_float16(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _half[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _cut(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float32) * tl.load(scale + n, mask=n < N)
    values += tl.load(shift + n, mask=n < N)
    tl.store(out + n, values.to(tl.bfloat16, fp_downcast_rounding="rtz"), mask=n < N)


def cut_off(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _cut[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _shift_first(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float32) + tl.load(shift + n, mask=n < N)
    tl.store(out + n, (values * tl.load(scale + n, mask=n < N)).to(tl.bfloat16), mask=n < N)


def shifted_first(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _shift_first[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _two_steps(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float32) * tl.load(scale + n, mask=n < N)
    values += tl.load(shift + n, mask=n < N)
    tl.store(out + n, values.to(tl.float16).to(tl.bfloat16), mask=n < N)


def stored_by_way_of_float16(x_N, scale_N, shift_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 512
    _two_steps[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _unrounded(x, scale, shift, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N).to(tl.float32) * tl.load(scale + n, mask=n < N)
    values += tl.load(shift + n, mask=n < N)
    tl.store(out + n, values, mask=n < N)


def left_in_float32(x_N, scale_N, shift_N):
    out_N = torch.empty(len(x_N))
    N, BLOCK = len(x_N), 512
    _unrounded[(triton.cdiv(N, BLOCK),)](x_N, scale_N, shift_N, out_N, N, BLOCK=BLOCK)
    return out_N


EXERCISE = Exercise(
    id="09.4",
    unit="09",
    title="scale, shift and round once",
    entry="scale_and_round",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("out", rtol=1e-6),
    misconceptions=(
        Misconception(
            "in-bfloat16",
            in_bfloat16,
            "It looks like a product that was rounded to bfloat16 before the shift was added. Two bfloat16 blocks have a "
            "bfloat16 product: go to float32 right after the load, and round once, at the end.",
        ),
        Misconception(
            "through-float16",
            through_float16,
            "It looks like float16 inside: it ends at 65,504 and has 11 bits. bfloat16 has the range of float32, so go to "
            "tl.float32.",
        ),
        Misconception(
            "cut-off",
            cut_off,
            "It looks like a bfloat16 made by cutting off bits. `.to(tl.bfloat16)` rounds to the nearest, ties to even.",
        ),
        Misconception(
            "shifted-first",
            shifted_first,
            "It looks like (x + shift) * scale. The shift is added after the product: x * scale + shift.",
        ),
        Misconception(
            "by-way-of-float16",
            stored_by_way_of_float16,
            "It looks like a result that went to float16 and then to bfloat16. That rounds twice and overflows at 65,504: go "
            "from float32 to tl.bfloat16 directly.",
        ),
        Misconception(
            "left-in-float32",
            left_in_float32,
            "It looks like a float32 result. Float32 is for the inside; the result has the dtype of x_N, bfloat16.",
        ),
    ),
    alternatives=(wide_inside, rounded_by_the_store),
    hints=(
        "Which dtype does a loaded block have, and which one has the product of two such blocks?",
        "Widen what was loaded before anything is computed with it. How many times may the result be rounded?",
        "Each load is followed by .to(tl.float32); the whole expression is followed by .to(tl.bfloat16), and then stored.",
    ),
    kernel=True,
)
