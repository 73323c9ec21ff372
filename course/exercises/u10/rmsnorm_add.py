"""10.1: residual add and RMSNorm as one kernel; the norm is that of the rounded sum (Zhang and Sennrich 2019, eq. 4)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # rows, D, width of x, width of residual, dtype, dtype of the weight, eps
    (5, 129, 129, 160, BF16, BF16, 1e-5),  # odd, and the rows of the two lie apart differently
    (3, 64, 80, 64, FP32, FP32, 1e-6),  # a power of two: no lane is masked off
    (1, 1, 1, 1, FP32, FP32, 1e-6),
    (0, 16, 16, 16, BF16, FP32, 1e-6),  # no rows
    (4, 200, 203, 201, BF16, FP32, 1e-6),
    (2, 1500, 1500, 1501, BF16, BF16, 1e-6),
    (1, 4100, 4100, 4110, BF16, BF16, 1e-6),  # a long row
    (3, 33, 40, 37, FP32, FP32, 1e-2),  # small numbers: eps counts
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        x = torch.tensor([[3.0, 1.0, 9.0], [256.0, 2.0, 9.0]], dtype=BF16)
        residual = torch.tensor([[-1.0, 1.0], [1.0, -2.0]], dtype=BF16)
        return {"x_NX": x, "residual_NR": residual, "weight_D": torch.tensor([1.0, 2.0]), "eps": 0.5}
    if number <= len(EDGES):
        N, D, X, R, dtype, narrow, eps = EDGES[number - 1]
    else:
        N, D = int(rng.integers(2, 6)), int(rng.integers(70, 400))
        X, R = D + int(rng.integers(0, 20)), D + int(rng.integers(0, 20))
        dtype, narrow = (BF16, FP32)[int(rng.integers(2))], (BF16, FP32)[int(rng.integers(2))]
        eps = float(rng.choice([1e-6, 1e-2]))
    size = 1e-2 if eps == 1e-2 else 1.0
    x_NX = torch.tensor(rng.normal(size=(N, X)) * size + 0.5 * size).to(dtype)
    residual_NR = torch.tensor(rng.normal(size=(N, R)) * 3 * size).to(dtype)
    x_NX[:, D:], residual_NR[:, D:] = 1e4, -7e3  # not data: what lies between rows
    weight_D = torch.tensor(rng.normal(size=D)).to(narrow)
    return {"x_NX": x_NX, "residual_NR": residual_NR, "weight_D": weight_D, "eps": eps}


def reference(x_NX, residual_NR, weight_D, eps):
    D = len(weight_D)
    sum_ND = (x_NX[:, :D].float() + residual_NR[:, :D].float()).to(x_NX.dtype)
    wide_ND = sum_ND.double()
    scale_N1 = torch.rsqrt(wide_ND.pow(2).mean(dim=-1, keepdim=True) + eps)
    return sum_ND, (wide_ND * scale_N1 * weight_D.double()).to(x_NX.dtype)


@triton.jit
def _a_row(x, residual, weight, total, normed, X, R, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * X + d, mask=d < D, other=0.0).to(tl.float32)
    values += tl.load(residual + row * R + d, mask=d < D, other=0.0).to(tl.float32)
    rounded = values.to(total.dtype.element_ty)
    tl.store(total + row * D + d, rounded, mask=d < D)
    wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / D + eps)
    gain = tl.load(weight + d, mask=d < D).to(tl.float32)
    tl.store(normed + row * D + d, (wide * scale * gain).to(normed.dtype.element_ty), mask=d < D)


def one_program_a_row(x_NX, residual_NR, weight_D, eps):
    (N, X), (_, R), D = x_NX.shape, residual_NR.shape, len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _a_row[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, eps, BLOCK=BLOCK)
    return sum_ND, normed_ND


@triton.jit
def _in_pieces(x, residual, weight, total, normed, X, R, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        a = tl.load(x + row * X + d, mask=d < D, other=0.0).to(tl.float32)
        b = tl.load(residual + row * R + d, mask=d < D, other=0.0).to(tl.float32)
        both = (a + b).to(total.dtype.element_ty).to(tl.float32)
        squares += both * both
        tl.store(total + row * D + d, both.to(total.dtype.element_ty), mask=d < D)
    root = tl.sqrt(tl.sum(squares) / D + eps)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        a = tl.load(x + row * X + d, mask=d < D).to(tl.float32)
        b = tl.load(residual + row * R + d, mask=d < D).to(tl.float32)
        both = (a + b).to(total.dtype.element_ty).to(tl.float32)
        gain = tl.load(weight + d, mask=d < D).to(tl.float32)
        tl.store(normed + row * D + d, (both / root * gain).to(normed.dtype.element_ty), mask=d < D)


def long_rows_in_pieces(x_NX, residual_NR, weight_D, eps):
    N, D = len(x_NX), len(weight_D)
    sum_ND, normed_ND = (torch.empty(N, D, dtype=x_NX.dtype) for _ in range(2))
    strides = x_NX.stride(0), residual_NR.stride(0)
    if N:
        _in_pieces[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, *strides, D, eps, BLOCK=256)
    return sum_ND, normed_ND


@triton.jit
def _rows_together(x, residual, weight, out, X, R, N, D, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    inside = (n < N) & (d < D)
    both = tl.load(x + n * X + d, inside, 0.0).to(tl.float32) + tl.load(residual + n * R + d, inside, 0.0)
    both = both.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + n * D + d, both, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(both * both, axis=1) / D + eps)
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + N * D + n * D + d, both * (scale[:, None] * gain), mask=inside)


def rows_together_in_one_tensor(x_NX, residual_NR, weight_D, eps):
    N, D = x_NX.shape[0], weight_D.shape[0]
    both_2ND = torch.empty(2, N, D, dtype=x_NX.dtype)
    _rows_together[(triton.cdiv(N, 4),)](
        x_NX, residual_NR, weight_D, both_2ND, x_NX.shape[1], residual_NR.shape[1], N, D, eps,
        ROWS=4, BLOCK=triton.next_power_of_2(D),
    )  # fmt: skip
    return both_2ND[0], both_2ND[1]


@triton.jit
def _faulty(x, residual, weight, total, normed, X, R, D, count, eps, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    first = tl.load(x + row * X + d, mask=d < D, other=0.0).to(tl.float32)
    values = first + tl.load(residual + row * R + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(total + row * D + d, values.to(total.dtype.element_ty), mask=d < D)
    wide = values.to(total.dtype.element_ty).to(tl.float32)
    if FAULT == 1:  # the sum is not rounded
        wide = values
    if FAULT == 2:  # x alone is normed
        wide = first
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / count + eps)
    if FAULT == 5:  # eps outside the root
        scale = 1.0 / (tl.sqrt(tl.sum(wide * wide) / count) + eps)
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    if FAULT == 4:  # weights as offsets from one
        gain = gain + 1.0
    out = wide * scale
    if FAULT == 6:  # rounded before the weight
        out = out.to(normed.dtype.element_ty).to(tl.float32)
    tl.store(normed + row * D + d, (out * gain).to(normed.dtype.element_ty), mask=d < D)


def norm_of_the_unrounded_sum(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=1, BLOCK=BLOCK)
    return sum_ND, normed_ND


def norm_of_x_alone(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=2, BLOCK=BLOCK)
    return sum_ND, normed_ND


def mean_over_the_block(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, BLOCK, eps, FAULT=0, BLOCK=BLOCK)
    return sum_ND, normed_ND


def weight_plus_one(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=4, BLOCK=BLOCK)
    return sum_ND, normed_ND


def eps_outside_the_root(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=5, BLOCK=BLOCK)
    return sum_ND, normed_ND


def rounded_before_the_weight(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=6, BLOCK=BLOCK)
    return sum_ND, normed_ND


def rows_one_after_another(x_NX, residual_NR, weight_D, eps):
    N, D = len(x_NX), len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, D, D, D, D, eps, FAULT=0, BLOCK=BLOCK)
    return sum_ND, normed_ND


def residual_handed_on(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=0, BLOCK=BLOCK)
    return residual_NR[:, :D].clone(), normed_ND


def normed_handed_on(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = x_NX.new_empty(N, D), x_NX.new_empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=0, BLOCK=BLOCK)
    return normed_ND.clone(), normed_ND


def left_in_float32(x_NX, residual_NR, weight_D, eps):
    (N, X), R, D = x_NX.shape, residual_NR.shape[1], len(weight_D)
    sum_ND, normed_ND = torch.empty(N, D), torch.empty(N, D)
    BLOCK = triton.next_power_of_2(D)
    _faulty[(N,)](x_NX, residual_NR, weight_D, sum_ND, normed_ND, X, R, D, D, eps, FAULT=0, BLOCK=BLOCK)
    return sum_ND, normed_ND


EXERCISE = Exercise(
    id="10.1",
    unit="10",
    title="residual add and RMSNorm in one kernel",
    entry="rmsnorm_add",
    points=10,
    minutes=25,
    difficulty=2,
    spine=True,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=rounded_once("sum", "normed"),
    misconceptions=(
        Misconception(
            "unrounded-sum",
            norm_of_the_unrounded_sum,
            "It looks like the norm of the sum before it was rounded. The next layer reads the rounded sum, and its norm is "
            "what eager PyTorch computes: round first, then widen again.",
        ),
        Misconception(
            "x-alone",
            norm_of_x_alone,
            "It looks like the norm of x. The norm is of the sum of x and the residual.",
        ),
        Misconception(
            "mean-over-block",
            mean_over_the_block,
            "It looks like a mean over the padded block. Divide by D, the length of the weight: the padding is no data.",
        ),
        Misconception(
            "weight-plus-one",
            weight_plus_one,
            "It looks like 1 + weight, as Gemma's norm has it. Here the weight is the factor itself.",
        ),
        Misconception(
            "eps-outside",
            eps_outside_the_root,
            "It looks like eps added after the square root. It belongs under the root, beside the mean square.",
        ),
        Misconception(
            "rounded-before-weight",
            rounded_before_the_weight,
            "It looks like a normed row that was rounded before the weight came. The result is rounded once, after it.",
        ),
        Misconception(
            "packed-rows",
            rows_one_after_another,
            "It looks like rows D elements apart. The rows of x begin X elements apart and those of the residual R.",
        ),
        Misconception(
            "residual-handed-on",
            residual_handed_on,
            "It looks like the residual as it came. What goes on to the next layer is the sum.",
        ),
        Misconception(
            "normed-handed-on",
            normed_handed_on,
            "It looks like the normed rows twice. The first result is the sum before the norm: the residual stream is not "
            "normed.",
        ),
        Misconception(
            "left-in-float32",
            left_in_float32,
            "It looks like float32 results. Float32 is for the inside: both results have the dtype of x_NX.",
        ),
    ),
    alternatives=(one_program_a_row, long_rows_in_pieces, rows_together_in_one_tensor),
    hints=(
        "One program a row: at which address does row `row` of x begin, and at which that of the residual?",
        "The sum is rounded by .to(total.dtype.element_ty). What must happen to it before its squares are summed?",
        "Load both rows with other=0.0 and widen, add, round, store; widen the rounded row again, take 1 / sqrt(sum of squares "
        "/ D + eps), multiply by it and by the weight, round, store.",
    ),
    forbids=("torch.rms_norm", "torch.nn.functional.rms_norm"),
    kernel=True,
)
