"""10.2: the gradients of residual add and RMSNorm in one kernel, without atomics (Zhang and Sennrich 2019, eq. 4)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # N, D, dtype, dtype of the weight, what is saved, eps
    (5, 129, BF16, BF16, "right", 1e-5),  # odd
    (5, 129, BF16, FP32, None, 1e-5),
    (4, 64, FP32, FP32, None, 0.5),  # a power of two, and eps counts
    (3, 33, FP32, FP32, "other", 1e-6),  # saved by a forward with another eps: it is taken as it is
    (1, 1, FP32, FP32, None, 1e-6),
    (0, 16, BF16, BF16, None, 1e-6),  # no rows: nothing of the weight's gradient
    (150, 20, FP32, BF16, "right", 1e-6),  # many rows, one sum for each column
    (3, 700, BF16, FP32, None, 1e-6),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        rows = [[3.0, 1.0], [1.0, 0.0]], [[1.0, 7.0], [2.0, 0.0]], [[10.0, 20.0], [0.0, 0.0]]
        dy_ND, dsum_ND, s_ND = (torch.tensor(row) for row in rows)
        weight_D, scale_N = torch.tensor([1.0, 2.0]), torch.tensor([0.2, 0.5])
        return {"dy_ND": dy_ND, "dsum_ND": dsum_ND, "s_ND": s_ND, "weight_D": weight_D, "scale_N": scale_N, "eps": 0.0}
    if number <= len(EDGES):
        N, D, dtype, narrow, saved, eps = EDGES[number - 1]
    else:
        N, D = int(rng.integers(2, 9)), int(rng.integers(60, 300))
        dtype, narrow = (BF16, FP32)[int(rng.integers(2))], (BF16, FP32)[int(rng.integers(2))]
        saved, eps = (None, "right", "other")[int(rng.integers(3))], float(rng.choice([1e-6, 0.1]))
    dy_ND, dsum_ND = (torch.tensor(rng.normal(size=(N, D)) * size).to(dtype) for size in (1.0, 2.0))
    s_ND = torch.tensor(rng.normal(size=(N, D)) * 1.5 + 0.3).to(dtype)
    weight_D = torch.tensor(rng.normal(size=D) + 0.5).to(narrow)
    scale_N = torch.rsqrt(s_ND.double().pow(2).mean(dim=-1) + (1.0 if saved == "other" else eps)).float()
    return {
        "dy_ND": dy_ND,
        "dsum_ND": dsum_ND,
        "s_ND": s_ND,
        "weight_D": weight_D,
        "scale_N": scale_N if saved else None,
        "eps": eps,
    }


def reference(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    wide_ND, dy = s_ND.double(), dy_ND.double()
    if scale_N is None:
        scale_N = torch.rsqrt(wide_ND.pow(2).mean(dim=-1) + eps)
    scale_N1 = scale_N.double()[:, None]
    normed_ND = wide_ND * scale_N1
    g_ND = dy * weight_D.double()
    dx_ND = (g_ND - normed_ND * (g_ND * normed_ND).mean(dim=-1, keepdim=True)) * scale_N1
    return (dx_ND + dsum_ND.double()).to(s_ND.dtype), (dy * normed_ND).sum(dim=0).to(weight_D.dtype)


@triton.jit
def _span(dy, dsum, s, weight, scales, dx, partials, N, D, eps, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    gain = tl.load(weight + d, mask=d < D).to(tl.float32)
    partial = tl.zeros([BLOCK], tl.float32)
    begin = tl.program_id(0).to(tl.int64) * SPAN
    for n in range(begin, tl.minimum(begin + SPAN, N)):
        values = tl.load(s + n * D + d, mask=d < D, other=0.0).to(tl.float32)
        grads = tl.load(dy + n * D + d, mask=d < D).to(tl.float32)
        beside = tl.load(dsum + n * D + d, mask=d < D).to(tl.float32)
        scale = tl.load(scales + n) if scales is not None else tl.rsqrt(tl.sum(values * values) / D + eps)
        normed = values * scale
        scaled = grads * gain
        along = tl.sum(tl.where(d < D, scaled * normed, 0.0)) / D
        out = (scaled - normed * along) * scale + beside
        tl.store(dx + n * D + d, out.to(dx.dtype.element_ty), mask=d < D)
        partial += grads * normed
    tl.store(partials + tl.program_id(0) * D + d, partial, mask=d < D)


def spans_of_rows(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    N, D = s_ND.shape
    SPAN = 16
    programs = triton.cdiv(N, SPAN)
    dx_ND = torch.empty_like(s_ND)
    partials_PD = torch.empty(programs, D)
    BLOCK = triton.next_power_of_2(D)
    tensors = dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD
    _span[(programs,)](*tensors, N, D, eps, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


@triton.jit
def _dx(dy, dsum, s, weight, scales, dx, N, D, eps, SAVED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    inside = (n[:, None] < N) & (d < D)
    places = n[:, None] * D + d
    values = tl.load(s + places, mask=inside, other=0.0).to(tl.float32)
    if SAVED:
        scale = tl.load(scales + n, mask=n < N, other=0.0)
    else:
        scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=1) / D + eps)
        tl.store(scales + n, scale, mask=n < N)
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    scaled = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32) * gain
    along = tl.sum(scaled * values, axis=1) * scale * scale / D
    out = scale[:, None] * scaled - values * (along * scale)[:, None]
    out += tl.load(dsum + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + places, out, mask=inside)


@triton.jit
def _columns(dy, s, scales, dweight, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, N, ROWS):
        n = begin + tl.arange(0, ROWS)
        inside = (n < N)[:, None] & (d < D)[None, :]
        places = n[:, None] * D + d[None, :]
        values = tl.load(s + places, mask=inside, other=0.0).to(tl.float32)
        grads = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
        total += grads * values * tl.load(scales + n, mask=n < N, other=0.0)[:, None]
    tl.store(dweight + d, tl.sum(total, axis=0).to(dweight.dtype.element_ty), mask=d < D)


def a_launch_for_rows_and_one_for_columns(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    N, D = s_ND.shape
    dx_ND, dweight_D = torch.empty_like(s_ND), torch.empty_like(weight_D)
    saved = scale_N is not None
    scales = scale_N if saved else torch.empty(N)
    grid, block = (triton.cdiv(N, 32),), triton.next_power_of_2(D)
    _dx[grid](dy_ND, dsum_ND, s_ND, weight_D, scales, dx_ND, N, D, eps, SAVED=saved, ROWS=32, BLOCK=block)
    _columns[(triton.cdiv(D, 128),)](dy_ND, s_ND, scales, dweight_D, N, D, ROWS=16, COLUMNS=128)
    return dx_ND, dweight_D


@triton.jit
def _faulty(
    dy, dsum, s, weight, scales, dx, partials, N, D, eps, FAULT: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    d = tl.arange(0, BLOCK)
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    partial = tl.zeros([BLOCK], tl.float32)
    for n in range(tl.program_id(0) * SPAN, tl.minimum(tl.program_id(0) * SPAN + SPAN, N)):
        values = tl.load(s + n * D + d, mask=d < D, other=0.0).to(tl.float32)
        grads = tl.load(dy + n * D + d, mask=d < D, other=0.0).to(tl.float32)
        beside = tl.load(dsum + n * D + d, mask=d < D, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(values * values) / D + eps)
        if scales is not None and FAULT != 7:  # 7: what was saved is not used
            scale = tl.load(scales + n)
        normed = values * scale
        scaled = grads * gain
        if FAULT == 8:  # 8: the other gradient goes through the norm as well
            scaled += beside
            beside = beside * 0.0
        along = tl.sum(scaled * normed) / D
        if FAULT == 1:  # 1: no mean term
            along = 0.0
        if FAULT == 4:  # 4: the mean without the weight
            along = tl.sum(grads * normed) / D
        if FAULT == 5:  # 5: a sum where the mean is meant
            along = tl.sum(scaled * normed)
        if FAULT == 6:  # 6: the gradient that comes beside is lost
            beside = beside * 0.0
        out = (scaled - normed * along) * scale
        if FAULT == 9:  # 9: rounded before the other gradient is added
            out = out.to(dx.dtype.element_ty).to(tl.float32)
        if FAULT == 11:  # 11: not multiplied by 1 / rms at the end
            out = scaled - normed * along
        tl.store(dx + n * D + d, (out + beside).to(dx.dtype.element_ty), mask=d < D)
        if FAULT == 2:  # 2: from x instead of the normed row
            normed = values
        if FAULT == 3:  # 3: with the weight in it
            grads = scaled
        if FAULT == 10:  # 10: a sum in bfloat16
            partial = (partial + grads * normed).to(tl.bfloat16).to(tl.float32)
        else:
            partial += grads * normed
    if FAULT == 12:  # 12: a mean over the rows
        partial /= N
    tl.store(partials + tl.program_id(0) * D + d, partial, mask=d < D)


def without_the_mean_term(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=1, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def dweight_from_the_sum_itself(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=2, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def dweight_with_the_weight_in_it(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=3, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def mean_term_without_the_weight(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=4, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def sum_for_the_mean(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=5, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def other_gradient_lost(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=6, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def what_was_saved_not_used(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=7, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def other_gradient_through_the_norm(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=8, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def rounded_before_the_addition(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=9, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def partial_sums_in_bfloat16(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=10, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def not_scaled_at_the_end(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=11, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


def dweight_as_a_mean(dy_ND, dsum_ND, s_ND, weight_D, scale_N, eps):
    (N, D), SPAN = s_ND.shape, 16
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D)
    tensors, BLOCK = (dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD), triton.next_power_of_2(D)
    _faulty[(len(partials_PD),)](*tensors, N, D, eps, FAULT=12, SPAN=SPAN, BLOCK=BLOCK)
    return dx_ND, partials_PD.sum(dim=0).to(weight_D.dtype)


EXERCISE = Exercise(
    id="10.2",
    unit="10",
    title="the gradients of add and norm",
    entry="rmsnorm_backward",
    points=15,
    minutes=40,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=rounded_once("dx", "dweight"),
    misconceptions=(
        Misconception(
            "no-mean-term",
            without_the_mean_term,
            "It looks like dx without its second term. The row's rms depends on every element of the row, so each gets "
            "- n mean(g n) as well.",
        ),
        Misconception(
            "dweight-from-s",
            dweight_from_the_sum_itself,
            "It looks like a gradient of the weight taken from s. The weight was multiplied with the normed row s * scale, so its "
            "gradient is the sum of dy times that.",
        ),
        Misconception(
            "weight-in-dweight",
            dweight_with_the_weight_in_it,
            "It looks like the weight inside its own gradient. y = n * weight, so dweight is the sum of dy * n.",
        ),
        Misconception(
            "mean-without-weight",
            mean_term_without_the_weight,
            "It looks like the mean of dy * n. The gradient that reaches the normed row is g = dy * weight, in both places.",
            seen="karpathy/llm.c #763",
        ),
        Misconception(
            "sum-for-mean",
            sum_for_the_mean,
            "It looks like the sum of g * n where their mean over the row is meant: divide by D.",
        ),
        Misconception(
            "dsum-lost",
            other_gradient_lost,
            "It looks like dx without dsum. The sum went two ways, into the norm and on to the next layer; both gradients add up.",
        ),
        Misconception(
            "saved-not-used",
            what_was_saved_not_used,
            "It looks like a scale computed anew where one was given. What the forward pass saved is taken as it is.",
        ),
        Misconception(
            "dsum-through-norm",
            other_gradient_through_the_norm,
            "It looks like dsum taken through the norm. That path goes past the norm: add it at the end.",
        ),
        Misconception(
            "rounded-twice",
            rounded_before_the_addition,
            "It looks like dx rounded before dsum was added. Add in float32 and round once.",
        ),
        Misconception(
            "partial-sums-in-bfloat16",
            partial_sums_in_bfloat16,
            "It looks like a sum over rows in bfloat16, which has 8 bits: beside a large sum small terms vanish. Keep partial sums "
            "in float32, and round the whole sum once.",
            seen="linkedin/Liger-Kernel #950",
        ),
        Misconception(
            "last-scale-missing",
            not_scaled_at_the_end,
            "It looks like dx that lacks a factor: the gradient of the normed row is multiplied by the row's scale to become "
            "the gradient of s.",
        ),
        Misconception(
            "mean-over-rows",
            dweight_as_a_mean,
            "It looks like a mean over rows. Every row's share of the weight's gradient is added, and nothing is divided.",
        ),
    ),
    alternatives=(spans_of_rows, a_launch_for_rows_and_one_for_columns),
    hints=(
        "dx belongs to one row and dweight to one column. Which of the two can a program of whole rows finish by itself?",
        "Let a program walk over a span of rows with a block of zeros, add dy * n of each row to it, and store the block in a "
        "row of its own of a scratch tensor.",
        "n = s * scale, g = dy * weight, dx = (g - n * (sum(g * n) / D)) * scale + dsum; afterwards add up the rows of the "
        "scratch tensor on the host.",
    ),
    forbids=(
        "triton.language.atomic_add",
        "triton.language.atomic_xchg",
        "triton.language.atomic_cas",
        "torch.autograd.grad",
        "Tensor.backward",
        "torch.rms_norm",
        "torch.nn.functional.rms_norm",
    ),
    kernel=True,
)
