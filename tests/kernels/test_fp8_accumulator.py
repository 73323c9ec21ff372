"""The emulated FP8 accumulator: as a sum of fractions by hand, and what promotion saves."""

import math
from fractions import Fraction

import pytest
import torch

from course.kernels.fp8_accumulator import fp8_accumulate

from kernel_measures import relative_error  # isort: skip

E4M3 = torch.float8_e4m3fn


def dot(x, w, *settings):
    """One sum of products."""
    x, w = (torch.tensor([values], dtype=torch.float64).to(E4M3) for values in (x, w))
    return fp8_accumulate(x, w, *settings).item()


def drawn(kind, seed, rows=16, K=4096):
    rng = torch.Generator().manual_seed(seed)
    if kind == "even":
        return [torch.rand(rows, K, generator=rng).to(E4M3) for _ in range(2)]
    pair = [torch.randn(rows, K, generator=rng) for _ in range(2)]
    return [(values.abs() if kind == "magnitudes" else values).to(E4M3) for values in pair]


def lost(x, w, *settings):
    return relative_error(fp8_accumulate(x, w, *settings), x.double() @ w.double().T)


def by_fractions(x, w, bits=13):
    """The same sum in exact arithmetic, a number at a time; no promotion."""

    def exponent(value):
        return math.frexp(value)[1] - 1

    def cut(value, step):
        return math.trunc(value / step) * step

    total = Fraction(0)
    for start in range(0, len(x), 32):
        pairs = [(a, b) for a, b in zip(x[start : start + 32], w[start : start + 32], strict=True) if a and b]
        powers = [max(exponent(a), -6) + max(exponent(b), -6) for a, b in pairs]
        if total:
            powers.append(exponent(float(total)))
        if powers:
            step = Fraction(2) ** (max(powers) - bits)
            total = sum((cut(Fraction(a) * Fraction(b), step) for a, b in pairs), cut(total, step))
        if total:
            total = cut(total, Fraction(2) ** (exponent(float(total)) - bits))
    return float(total)


def test_it_equals_a_sum_of_fractions_bit_for_bit():
    rng = torch.Generator().manual_seed(0)
    for K in (1, 31, 32, 33, 100, 256):
        codes = torch.randint(0, 256, (2, 5, K), generator=rng, dtype=torch.uint8)
        codes[codes & 127 == 127] = 0  # no NaN
        codes[torch.rand(codes.shape, generator=rng) < 0.2] = 0
        x, w = codes.view(E4M3)
        got = fp8_accumulate(x, w).tolist()
        assert got == [[by_fractions(a, b) for b in w.tolist()] for a in x.tolist()]


def test_a_product_keeps_what_lies_within_thirteen_bits_below_the_largest():
    assert dot([16, 2**-3], [16, 2**-2]) == 256 + 2**-5
    assert dot([16, 2**-3], [16, 2**-3]) == 256
    assert dot([16, 2**-3], [16, 2**-3], None, 14) == 256 + 2**-6


def test_bits_are_cut_toward_zero():
    assert dot([16, -(2**-3)], [16, 2**-3]) == 256
    assert dot([-16, 2**-3], [16, 2**-3]) == -256


def test_a_product_is_aligned_by_the_exponents_of_its_factors():
    assert dot([1.75, 2**-6, 2**-6], [1.75, 2**-7, 2**-7]) == 1.75**2 + 2**-12
    assert dot([2**-9, 2**-6], [256, 2**-6]) == 0.5  # the exponent of 2^-9 is stored as -6, as that of all subnormals
    assert dot([2**-8, 0], [2**-4, 1]) == 2**-12
    assert dot([2**-6, 0], [2**-6, 0], None, 1) == 2**-12  # zeros have no say


def test_the_running_sum_takes_part_and_costs_small_products_their_bits():
    x, w = [16.0] * 32 + [1.0] * 32, [16.0] * 32 + [0.5] * 32
    assert dot(x, w) == 8192
    assert dot(x, w, 64) == 8192
    assert dot(x, w, 32) == 8192 + 16


def test_the_losses_without_promotion_and_with_it_are_those_of_the_docstring():
    for kind, without, at_512, at_128 in (("even", 0.066, 0.0052, 0.0005), ("magnitudes", 0.07, 0.0061, 0.00062)):
        for seed in range(2):
            x, w = drawn(kind, seed)
            assert lost(x, w) == pytest.approx(without, rel=0.03)
            assert lost(x, w, 512) == pytest.approx(at_512, rel=0.04)
            assert lost(x, w, 128) == pytest.approx(at_128, rel=0.04)


def test_with_both_signs_the_loss_hides():
    losses = [lost(*drawn("both signs", seed)) for seed in range(3)]
    assert 0.0009 < min(losses) <= max(losses) < 0.0017
    assert sum(losses) / 3 == pytest.approx(0.0012, rel=0.15)


def test_most_of_the_loss_is_products_aligned_with_the_running_sum():
    x, w = drawn("even", 0)
    total = torch.zeros(16, 16, dtype=torch.float64)
    for start in range(0, 4096, 32):
        total += fp8_accumulate(x[:, start : start + 32], w[:, start : start + 32])
        step = 2.0 ** (total.log2().floor() - 13)
        total = (total / step).trunc() * step
    assert relative_error(total, x.double() @ w.double().T) == pytest.approx(0.0026, rel=0.03)


def test_sums_of_one_sign_are_always_too_small_and_each_shorter_interval_loses_less():
    x, w = drawn("even", 3, rows=8, K=2048)
    assert (fp8_accumulate(x, w).double() < x.double() @ w.double().T).all()
    losses = [lost(x, w, every) for every in (None, 1024, 512, 256, 128, 64, 32)]
    assert losses == sorted(losses, reverse=True)


def test_with_bits_enough_the_sum_is_exact():
    x, w = drawn("both signs", 0, rows=4, K=512)
    assert lost(x, w, None, 40) < 2**-24


def test_an_interval_longer_than_the_sum_changes_nothing():
    x, w = drawn("even", 1, rows=4, K=200)
    assert torch.equal(fp8_accumulate(x, w, 256), fp8_accumulate(x, w))


def test_zeros_and_nothing_give_zeros_and_nan_stays_in_its_row():
    for M, N, K in ((3, 2, 64), (3, 2, 0), (0, 2, 32), (3, 0, 32)):
        out = fp8_accumulate(torch.zeros(M, K).to(E4M3), torch.zeros(N, K).to(E4M3), 32)
        assert (out.dtype, out.shape, out.count_nonzero()) == (torch.float32, (M, N), 0)
    x, w = drawn("even", 0, rows=3, K=96)
    x.view(torch.uint8)[1, 40] = 0x7F
    for every in (None, 32):
        assert fp8_accumulate(x, w, every).isnan().tolist() == [[False] * 3, [True] * 3, [False] * 3]


def test_wrong_inputs_get_a_sentence():
    x = torch.zeros(2, 64).to(E4M3)
    for call, said in (
        (lambda: fp8_accumulate(x, x[:, :32]), r"shapes \[2, 64\] and \[2, 32\] have no product x w\^T"),
        (lambda: fp8_accumulate(x, x.float()), r"takes float8_e4m3fn, not torch.float8_e4m3fn and torch\.float32"),
        (lambda: fp8_accumulate(x, x, 48), "every 32, 64, 96, ... products, and not every 48"),
        (lambda: fp8_accumulate(x, x, 0), "and not every 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
