"""08.4: float32 to FP8 E4M3 by hand (OCP 8-bit Floating Point Specification, revision 1.0, 2023)."""

import math
from itertools import pairwise

import numpy as np
import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

NUMBERS = [2.0**-9 * n for n in range(8)]  # the 127 that are not negative, by their code
NUMBERS += [2.0**e * (1 + n / 8) for e in range(-6, 9) for n in range(8)][:-1]
MIDDLES = [(a + b) / 2 for a, b in pairwise(NUMBERS)]
EDGES = [  # numbers, saturate
    ([448.0, 464.0, 464.0001, 479.0, 480.0, 496.0, 512.0, -449.0, -465.0, 1e38], False),  # the upper end
    ([448.0, 464.0, 464.0001, 479.0, 480.0, 496.0, 512.0, -449.0, -465.0, 1e38], True),
    ([math.inf, -math.inf, math.nan, -math.nan, 1.0], True),
    ([math.inf, -math.inf, math.nan, -math.nan, 1.0], False),
    ([0.0, -0.0, 2.0**-10, -(2.0**-10), 2.0**-10 + 2.0**-30, 1e-40, -1e-40, 2.0**-11], True),  # the lower end
    ([2.0**-9, 1.5 * 2.0**-9, 2.5 * 2.0**-9, 7 * 2.0**-9, 7.5 * 2.0**-9, 2.0**-6, -6.5 * 2.0**-9], False),  # subnormal
    ([1.0625, 1.1875, 1.0626, 1.0624, -1.0625, -1.1875, 1.9375, 1.96875], True),  # ties, and a carry
    (NUMBERS, False),
    (MIDDLES, True),
    (list(-np.nextafter(np.float32(MIDDLES), np.float32(0))), False),
    (list(np.nextafter(np.float32(MIDDLES), np.float32(1000))), True),
    ([], True),
    (1.5, True),  # no dimension at all
    (np.reshape(MIDDLES[60:84], (2, 3, 4)).tolist(), False),  # three dimensions
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {"x": torch.tensor([1.0, 1.2, -0.3, 0.01, 0.003, -500.0]), "saturate": True}
    if number <= len(EDGES):
        numbers, saturate = EDGES[number - 1]
        return {"x": torch.tensor(numbers, dtype=torch.float32), "saturate": saturate}
    size = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    x = 2.0 ** rng.uniform(-13, 11, size=size) * rng.choice([-1, 1], size=size)
    x[0, 0] = float(rng.choice(MIDDLES))
    x[-1, -1] = float(rng.uniform(464.01, 5000))
    return {"x": torch.tensor(x, dtype=torch.float32), "saturate": bool(rng.integers(2))}


def compare(inputs, wanted, got):
    """As `same`, and of codes that differ the number from which the first one comes."""
    what = same("codes")(inputs, wanted, got)
    if what is None or not isinstance(got, torch.Tensor) or (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
        return what
    differs = (wanted != got).flatten()
    place = differs.nonzero()[0].item()
    x, ours, theirs = (values.flatten()[place].item() for values in (inputs["x"], wanted, got))
    sign = "-" if math.copysign(1, x) < 0 else ""
    return (
        f"{differs.sum()} of {differs.numel()} codes differ; first of {sign}{abs(x):.9g}: wanted {ours}, got {theirs}"
    )


def reference(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def by_table(x, saturate):
    """Search among the middles between neighbours, 464 the last of them."""
    numbers = [2.0**-9 * n for n in range(8)]
    numbers += [2.0**e * (1 + n / 8) for e in range(-6, 9) for n in range(8)]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    size = x.double().abs()
    codes = (size[..., None] > middles).sum(-1)
    tie = (size[..., None] == middles).any(-1)
    codes = codes + (tie & (codes % 2 == 1))
    codes = torch.where(codes == 127, 126 if saturate else 127, codes)
    codes = torch.where(torch.isnan(x), 127, codes)
    return torch.where(torch.signbit(x), codes + 128, codes).to(torch.uint8)


def by_bits(x, saturate):
    bits = x.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    sign, exponent, fraction = bits >> 31, (bits >> 23) & 0xFF, bits & 0x7FFFFF
    special = exponent == 255
    whole = torch.where(exponent > 0, fraction | 0x800000, fraction)
    cut = 20 + (121 - exponent).clamp(min=0, max=10)  # bits below the last that stays
    half = torch.ones_like(cut) << (cut - 1)
    kept, rest = whole >> cut, whole & ((half << 1) - 1)
    kept = kept + ((rest > half) | ((rest == half) & (kept % 2 == 1)))
    code = kept + 8 * (exponent - 121).clamp(min=0)
    over = (code > 126) | special
    code = torch.where(over, 126 if saturate else 127, code)
    code = torch.where(special & (fraction > 0), 127, code)
    return (128 * sign + code).to(torch.uint8)


def towards_zero(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).floor().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def ties_away(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent) + 0.5).floor().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def subnormals_lost(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    codes[codes < 8] = 0
    return (codes + 128 * x.signbit()).to(torch.uint8)


def no_subnormals(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.0078125).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[size < 2.0**-10] = 0
    codes = codes.clamp(min=0)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def flag_overlooked_saturates(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def flag_overlooked_nan(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def compared_before_rounding(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    over = x.abs() > 448
    codes[over] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def tie_at_464(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[x.abs() == 464] = 127
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def highest_code(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 127] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def as_ieee(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 119] = 119 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def infinity_is_nan(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isinf()] = 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def nan_saturates(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 126 if saturate else 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def sign_of_zero_lost(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * ((x < 0) & (codes > 0) | (x.isnan() & x.signbit()))).to(torch.uint8)


def sign_by_comparison(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * (x < 0)).to(torch.uint8)


def sign_of_nan_lost(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * (x.signbit() & ~x.isnan())).to(torch.uint8)


def through_float16(x, saturate):
    size = x.half().float().abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.015625).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def zero_has_an_exponent(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = (size.frexp().exponent - 1).clamp(min=-6)
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 6)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


def bias_of_8(x, saturate):
    size = x.abs().nan_to_num().clamp(max=1000.0)
    exponent = size.clamp(min=0.0078125).frexp().exponent - 1
    eighths = (size * 2.0 ** (3 - exponent)).round().to(torch.int64)
    codes = eighths + 8 * (exponent + 7)
    codes[codes > 126] = 126 if saturate else 127
    codes[x.isnan()] = 127
    return (codes + 128 * x.signbit()).to(torch.uint8)


EXERCISE = Exercise(
    id="08.4",
    unit="08",
    title="float32 to FP8 E4M3",
    entry="to_e4m3",
    points=15,
    minutes=30,
    difficulty=4,
    spine=True,
    cases=18,
    inputs=inputs,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "towards-zero",
            towards_zero,
            "It looks like rounding towards zero. Take the nearest of the two neighbours.",
        ),
        Misconception(
            "ties-away",
            ties_away,
            "It looks like ties that always go away from zero. Exactly in the middle the even code wins.",
        ),
        Misconception(
            "subnormals-lost",
            subnormals_lost,
            "It looks like subnormal numbers flushed to zero. Below 2^-6 E4M3 goes on in steps of 2^-9.",
        ),
        Misconception(
            "no-subnormals",
            no_subnormals,
            "It looks like the steps of a power of two lower among the smallest numbers. Exponents end at -6: "
            "below 2^-6 the steps stay 2^-9.",
        ),
        Misconception(
            "flag-overlooked-saturates",
            flag_overlooked_saturates,
            "It looks like 448 for what is too large, whatever `saturate` says. With saturate=False it is NaN.",
        ),
        Misconception(
            "flag-overlooked-nan",
            flag_overlooked_nan,
            "It looks like NaN for what is too large, whatever `saturate` says. With saturate=True it is 448.",
            "jax-ml/ml_dtypes issues 260 and 400: NaN where other libraries saturate",
        ),
        Misconception(
            "compared-before-rounding",
            compared_before_rounding,
            "It looks like numbers compared with 448 before rounding. From 448 to 464 the nearest number is "
            "448, and only what rounds beyond it is too large.",
            "stillwater-sc/universal issue 1302: clamped before rounding",
        ),
        Misconception(
            "tie-at-464",
            tie_at_464,
            "It looks like 464 counted as too large. It lies in the middle between 448 and 480, and 448 has the "
            "even code.",
        ),
        Misconception(
            "highest-code",
            highest_code,
            "It looks like 480 taken for a number. Code 127 is NaN: the largest number has code 126.",
        ),
        Misconception(
            "as-ieee",
            as_ieee,
            "It looks like the highest exponent kept for infinities and NaN, as in IEEE 754. E4M3 uses it for "
            "numbers, up to 448; 240 is the end of another format.",
        ),
        Misconception(
            "infinity-is-nan",
            infinity_is_nan,
            "It looks like NaN for infinity although saturate is on. An infinity is too large a number, like "
            "any other: 448 when saturating.",
        ),
        Misconception(
            "nan-saturates",
            nan_saturates,
            "It looks like 448 for NaN. NaN is no number that is too large: it stays NaN, code 127.",
        ),
        Misconception(
            "sign-of-zero-lost",
            sign_of_zero_lost,
            "It looks like minus zero without its sign. Its code is 128; also for small negative numbers that "
            "round to zero.",
        ),
        Misconception(
            "sign-by-comparison",
            sign_by_comparison,
            "It looks like a sign by comparison with 0. Minus zero and NaN have one too, which no comparison shows.",
            "stillwater-sc/universal pull request 1351: minus NaN became plus NaN",
        ),
        Misconception(
            "sign-of-nan-lost",
            sign_of_nan_lost,
            "It looks like NaN without its sign. The sign bit goes along whatever the number is: 127 or 255.",
        ),
        Misconception(
            "through-float16",
            through_float16,
            "It looks like two roundings, over float16. A number just beyond a middle is rounded onto it first, "
            "and then to the wrong side: round once.",
        ),
        Misconception(
            "zero-has-an-exponent",
            zero_has_an_exponent,
            "It looks like the exponent that frexp tells of zero, which is 0 and means nothing. Zero has the "
            "code 0, or 128 with a sign.",
        ),
        Misconception(
            "bias-of-8",
            bias_of_8,
            "It looks like an exponent bias of 8. E4M3's is 7: 1.0 has code 56.",
        ),
    ),
    alternatives=(
        by_table,
        by_bits,
    ),
    hints=(
        "Set the sign aside. Where does the number lie, between which powers of two, and how far apart are "
        "E4M3's numbers there?",
        "Divide by that distance and round to a whole number: `torch.round` takes ties to even, and an even "
        "number of steps is an even code. Below 2^-6 the distance stays 2^-9. Look at what is too large after "
        "rounding.",
        "From 2^e the distance is 2^(e-3), where e is at least -6 (`torch.frexp` gives e + 1, except for zero). "
        "With n the rounded number of steps the code is n + 8 (e + 6): check it on 1.0, on 2^-9, and on a "
        "number that rounds up to the next power of two. Hold very large numbers down before you start.",
    ),
    forbids=(
        "torch.float8_e4m3fn",
        "torch.float8_e4m3fnuz",
        "torch.float8_e5m2",
        "torch.float8_e5m2fnuz",
        "torch.float8_e8m0fnu",
    ),
)
