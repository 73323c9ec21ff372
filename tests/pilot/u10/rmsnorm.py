"""10.9: RMSNorm forward as one Triton kernel, a program a row (Zhang and Sennrich 2019, eq. 4)."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

SIZES = [(1, 1), (3, 100), (2, 64), (5, 129)]


def inputs(rng, number):
    N, D = SIZES[number] if number < len(SIZES) else (int(rng.integers(1, 6)), int(rng.integers(2, 300)))
    return {
        "x_ND": torch.tensor(rng.normal(size=(N, D)) + 0.5, dtype=torch.float32),
        "weight_D": torch.tensor(rng.normal(size=D), dtype=torch.float32),
        "eps": float(rng.choice([1e-6, 1e-2])) if number else 0.5,
    }


def reference(x_ND, weight_D, eps):
    x = x_ND.double()
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight_D).float()


@triton.jit
def _kernel(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    scale = 1 / tl.sqrt(tl.sum(values * values) / D + eps)
    tl.store(out + row * D + d, values * scale * tl.load(weight + d, mask=d < D, other=0.0), mask=d < D)


def one_program_a_row(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _kernel[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _looping(x, weight, out, D, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0) * D
    total = 0.0
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        values = tl.load(x + start + d, mask=d < D, other=0.0)
        total += tl.sum(values * values)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        values = tl.load(x + start + d, mask=d < D, other=0.0) * tl.load(weight + d, mask=d < D, other=0.0)
        tl.store(out + start + d, values / tl.sqrt(total / D + eps), mask=d < D)


def in_pieces(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _looping[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=64)
    return out_ND


@triton.jit
def _over_block(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    scale = 1 / tl.sqrt(tl.sum(values * values) / BLOCK + eps)
    tl.store(out + row * D + d, values * scale * tl.load(weight + d, mask=d < D, other=0.0), mask=d < D)


def mean_over_block(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _over_block[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _outside(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    scale = 1 / (tl.sqrt(tl.sum(values * values) / D) + eps)
    tl.store(out + row * D + d, values * scale * tl.load(weight + d, mask=d < D, other=0.0), mask=d < D)


def eps_outside_the_root(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _outside[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _centred(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    values = tl.where(d < D, values - tl.sum(values) / D, 0.0)
    scale = 1 / tl.sqrt(tl.sum(values * values) / D + eps)
    tl.store(out + row * D + d, values * scale * tl.load(weight + d, mask=d < D, other=0.0), mask=d < D)


def layer_norm(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _centred[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _summed(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    scale = 1 / tl.sqrt(tl.sum(values * values) + eps)
    tl.store(out + row * D + d, values * scale * tl.load(weight + d, mask=d < D, other=0.0), mask=d < D)


def sum_for_mean(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    _summed[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


EXERCISE = Exercise(
    id="10.9",
    unit="10",
    title="RMSNorm forward, a kernel",
    entry="rmsnorm",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=5,
    reference=reference,
    compare=same("out"),
    misconceptions=(
        Misconception(
            "mean-over-block",
            mean_over_block,
            "It looks like a mean over the padded block. Divide by the row's length D: the padding is no data.",
        ),
        Misconception(
            "eps-outside",
            eps_outside_the_root,
            "It looks like eps added after the square root. It belongs under the root, beside the mean square.",
        ),
        Misconception("layer-norm", layer_norm, "It looks like LayerNorm. RMSNorm does not subtract the mean."),
        Misconception("sum-for-mean", sum_for_mean, "It looks like the sum of squares where their mean is meant."),
    ),
    alternatives=(one_program_a_row, in_pieces),
    hints=(
        "One program a row: which elements does program `row` read?",
        "tl.arange needs a power of two; mask what lies past D, on loads and on the store.",
        "Load with other=0.0, sum the squares, divide by D, add eps, take 1/sqrt, multiply by the weight, store masked.",
    ),
    kernel=True,
)
