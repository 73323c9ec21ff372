"""08.3: float32 to bfloat16 by its bits, rounded to nearest, ties to even (IEEE 754, roundTiesToEven)."""

import numpy as np
import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # bits of float32: what lies near a place where something can go wrong
    [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3F828000, 0x3F838000],  # ties, and beside them
    [0xBF808000, 0xBF818000, 0xBF808001, 0xBF817FFF, 0xC0490FDB],  # the same below zero
    [0x00000000, 0x80000000],
    [0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0xFF7F8000],  # infinite, or nearly so
    [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FA12345, 0x7FBF8000],  # NaN
    [0x00000001, 0x00008000, 0x00008001, 0x00018000, 0x807FFFFF, 0x007F8000, 0x00400000],  # subnormal
    [0x3FFFFFFF, 0x3F7F8000, 0x40FFC000, 0xC07F8001],  # rounding goes up into the exponent
    [],
    0x3FC0C000,  # no dimension at all
    np.reshape(0x3F800000 + 0x4000 * np.arange(24), (2, 3, 4)),  # three dimensions, ties among them
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        bits_N = np.array([0x3F800000, 0x3F80C000, 0x3F808000, 0x3F818000, 0xBF802000, 0x7F800001], dtype=np.uint32)
    elif number <= len(EDGES):
        bits_N = np.array(EDGES[number - 1], dtype=np.uint32)
    elif number % 2:  # any bits at all
        bits_N = rng.integers(0, 2**32, size=int(rng.integers(2, 200)), dtype=np.uint32)
        bits_N[::3] = bits_N[::3] & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    else:  # numbers of a usual size, in two dimensions
        bits_N = (
            rng.standard_normal((int(rng.integers(1, 9)), int(rng.integers(1, 40)))).astype(np.float32).view(np.uint32)
        )
    return {"x": torch.from_numpy(bits_N.view(np.int32)).view(torch.float32)}


def compare(inputs, wanted, got):
    """As `same`, and of codes that differ the bits from which the first one comes."""
    what = same("codes")(inputs, wanted, got)
    if what is None or not isinstance(got, torch.Tensor) or (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
        return what
    differs = (wanted != got).flatten()
    place = differs.nonzero()[0].item()
    bits = inputs["x"].flatten().view(torch.int32)[place].item() & 0xFFFFFFFF
    ours, theirs = (_hex(codes.flatten()[place].item()) for codes in (wanted, got))
    return f"{differs.sum()} of {differs.numel()} codes differ; first of the bits 0x{bits:08X}: wanted {ours}, got {theirs}"


def _hex(code):
    return f"{'-' * (code < 0)}0x{abs(code):04X}"


def reference(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return codes.to(torch.int32)


def by_adding(x):
    bits = x.contiguous().view(torch.int32)
    low = (bits & 0x7FFFFFFF).long()
    rounded = (low + 0x7FFF + ((low >> 16) & 1)) >> 16
    quiet = (low >> 16) | 0b100_0000
    magnitude = torch.where(low > 0x7F800000, quiet, rounded)
    return (magnitude + 0x8000 * (bits < 0)).to(torch.int32)


def by_nearest(x):
    """Of the two neighbours with 16 bits take the nearer, compared as numbers of 64 bits."""
    bits = x.numpy().view(np.uint32)
    below = bits & np.uint32(0xFFFF0000)
    above = below + np.uint32(0x10000)

    def number(b):  # above the largest number comes 2^128, which float32 has not
        infinite = (b & np.uint32(0x7FFFFFFF)) == np.uint32(0x7F800000)
        sign = np.where(b >> np.uint32(31), -1.0, 1.0)
        return np.where(infinite, sign * 2.0**128, b.view(np.float32).astype(np.float64))

    with np.errstate(invalid="ignore"):
        exact = number(bits)
        off = np.abs(number(below) - exact) - np.abs(number(above) - exact)
    even = (below >> np.uint32(16)) % 2 == 0
    code = np.where((off < 0) | ((off == 0) & even), below, above) >> np.uint32(16)
    code = np.where(np.isinf(x.numpy()), below >> np.uint32(16), code)
    code = np.where(np.isnan(x.numpy()), (below >> np.uint32(16)) | np.uint32(0x40), code)
    return torch.from_numpy(np.ascontiguousarray(code.astype(np.int32))).reshape(x.shape)


def cut_off(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper = bits // 0x10000
    codes = torch.where(x.isnan(), upper | 0x40, upper)
    return codes.to(torch.int32)


def cut_off_with_its_nan(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper = bits // 0x10000
    codes = upper
    return codes.to(torch.int32)


def ties_away(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = lower >= 0x8000
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return codes.to(torch.int32)


def ties_towards_zero(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = lower > 0x8000
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return codes.to(torch.int32)


def ties_to_odd(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 0))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return codes.to(torch.int32)


def nan_rounded(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = (upper + up) % 2**16
    return codes.to(torch.int32)


def nan_not_quiet(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper, upper + up)
    return codes.to(torch.int32)


def one_nan_for_all(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), 0x7FC0, upper + up)
    return codes.to(torch.int32)


def always_up(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = lower > 0
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return codes.to(torch.int32)


def largest_kept(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    over = ~x.isinf() & ~x.isnan() & (codes % 2**15 == 0x7F80)
    codes = codes - over.long()
    return codes.to(torch.int32)


def subnormals_lost(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    codes = torch.where(codes % 2**15 < 0x80, codes // 2**15 * 2**15, codes)
    return codes.to(torch.int32)


def zero_without_sign(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    codes = torch.where(codes == 0x8000, 0, codes)
    return codes.to(torch.int32)


def signed_codes(x):
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper, lower = bits // 0x10000, bits % 0x10000
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    codes = torch.where(x.isnan(), upper | 0x40, upper + up)
    return (codes - 2**16 * (codes >= 2**15)).to(torch.int32)


EXERCISE = Exercise(
    id="08.3",
    unit="08",
    title="float32 to bfloat16 by its bits",
    entry="to_bfloat16",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    cases=14,
    inputs=inputs,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "cut-off",
            cut_off,
            "It looks like the lower 16 bits cut off. That rounds towards zero; nearest looks at what is cut off.",
            "stillwater-sc/universal issue 1133, groonga/groonga pull request 2961, tenstorrent/tt-metal pull "
            "request 19882",
        ),
        Misconception(
            "cut-off-with-its-nan",
            cut_off_with_its_nan,
            "It looks like the upper 16 bits as they are. That rounds towards zero, and a NaN whose bits stand "
            "low becomes an infinity.",
            "dotnet/runtime pull request 130583",
        ),
        Misconception(
            "ties-away",
            ties_away,
            "It looks like ties that always go away from zero. Exactly in the middle the even code wins, the "
            "one whose last bit is 0.",
        ),
        Misconception(
            "ties-towards-zero",
            ties_towards_zero,
            "It looks like ties that always go towards zero. Exactly in the middle the even code wins, the one "
            "whose last bit is 0.",
        ),
        Misconception(
            "ties-to-odd",
            ties_to_odd,
            "It looks like ties that go to the odd code. The last bit of the result is to be 0, so go up where "
            "the upper half's last bit is 1.",
        ),
        Misconception(
            "nan-rounded",
            nan_rounded,
            "It looks like NaN that went through rounding like a number. A carry can make an infinity of it, or "
            "even a zero: set NaN apart first.",
            "ooples/AiDotNet.Tensors pull request 355: 0x7f800001 rounds to 0x7f80",
        ),
        Misconception(
            "nan-not-quiet",
            nan_not_quiet,
            "It looks like NaN with its upper half alone. Where all its set bits stand in the lower half that "
            "is an infinity: set bit 0x40, which makes it a quiet NaN.",
            "dotnet/runtime pull request 130583",
        ),
        Misconception(
            "one-nan-for-all",
            one_nan_for_all,
            "It looks like one code for every NaN. Many libraries do so; here sign and upper bits of a NaN "
            "stay, and bit 0x40 is set.",
            "pytorch/pytorch pull request 179282: one NaN on one platform, kept bits on another",
        ),
        Misconception(
            "always-up",
            always_up,
            "It looks like rounding away from zero, whatever was cut off. Below the middle the lower neighbour "
            "is nearer.",
        ),
        Misconception(
            "largest-kept",
            largest_kept,
            "It looks like large numbers held at the largest finite one. Rounding to nearest carries them to "
            "infinity, 0x7F80.",
        ),
        Misconception(
            "subnormals-lost",
            subnormals_lost,
            "It looks like subnormal numbers flushed to zero. bfloat16 has the same smallest exponents as "
            "float32: round them like all others.",
        ),
        Misconception(
            "zero-without-sign",
            zero_without_sign,
            "It looks like minus zero turned into plus zero. Its code is 0x8000: the sign stays.",
        ),
        Misconception(
            "signed-codes",
            signed_codes,
            "It looks like codes with a sign: a shift to the right fills up with ones. Codes are 0 to 65,535; "
            "keep 16 bits of them.",
        ),
    ),
    alternatives=(
        by_adding,
        by_nearest,
    ),
    hints=(
        "`x.view(torch.int32)` shows the bits. Which 16 of them stay, and what do the others decide?",
        "Beyond half goes up, below half does not; exactly half asks the last bit that stays. Going up is "
        "adding 1 to the upper half, and a carry into the exponent is right. NaN is a case of its own.",
        "With 64-bit integers nothing overflows: `upper` is the bits divided by 65,536, `lower` the rest. "
        "Compare `lower` with 0x8000; at equality add 1 only where `upper` is odd; for NaN take `upper` with "
        "bit 0x40 set.",
    ),
    forbids=("torch.bfloat16", "Tensor.bfloat16"),
)
