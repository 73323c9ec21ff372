"""13.2: dX = dY W of E4M3 codes, a scale for 1 x span of dY and span x span of W (DeepSeek-V3 report, section 3.3)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u13._codes import rows_close

EDGES = [  # T, N, K, span
    (33, 64, 40, 32),
    (5, 70, 33, 32),  # short last blocks of both
    (1, 1, 1, 128),
    (17, 100, 70, 64),
    (0, 40, 32, 32),
    (40, 0, 33, 32),  # nothing to sum
    (3, 129, 5, 32),
    (20, 32, 100, 32),  # one block to sum
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        dy_TN = torch.zeros(2, 33, dtype=torch.uint8)
        dy_TN[0, 0], dy_TN[0, 32], dy_TN[1, 1] = 56, 64, 184
        w_NK = torch.zeros(33, 2, dtype=torch.uint8)
        w_NK[0], w_NK[1], w_NK[32] = torch.tensor([56, 48]), torch.tensor([72, 0]), torch.tensor([56, 64])
        scales = {"dy_scales_TA": torch.tensor([[0.5, 2.0], [3.0, 1.0]]), "w_scales_AB": torch.tensor([[1.0], [10.0]])}
        return {"dy_TN": dy_TN, "w_NK": w_NK, **scales, "span": 32}
    if number <= len(EDGES):
        T, N, K, span = EDGES[number - 1]
    else:
        T, N, K = int(rng.integers(1, 50)), int(rng.integers(2, 140)), int(rng.integers(2, 80))
        span = int(rng.choice([32, 64]))
    A, B = -(-N // span), -(-K // span)

    def codes(rows, columns):
        return torch.tensor(rng.integers(0, 127, size=(rows, columns)) + 128 * rng.integers(0, 2, size=(rows, columns)))

    def scales(rows, columns):
        return torch.tensor(2.0 ** rng.uniform(-6, 6, size=(rows, columns)), dtype=torch.float32)

    return {
        "dy_TN": codes(T, N).to(torch.uint8),
        "w_NK": codes(N, K).to(torch.uint8),
        "dy_scales_TA": scales(T, A) * 1e-6,
        "w_scales_AB": scales(A, B),
        "span": span,
    }


def reference(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    N, K = w_NK.shape
    dy, w = (codes.view(torch.float8_e4m3fn).double() for codes in (dy_TN, w_NK))
    dy = dy * dy_scales_TA.double().repeat_interleave(span, 1)[:, :N]
    w = w * w_scales_AB.double().repeat_interleave(span, 0)[:N].repeat_interleave(span, 1)[:, :K]
    return (dy @ w).float()


@triton.jit
def _by_spans(dy, w, dy_scales, w_scales, dx, T, N, K, TILE: tl.constexpr, SPAN: tl.constexpr):
    t = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    spans, across = tl.cdiv(N, SPAN), tl.cdiv(K, SPAN)
    total = tl.zeros([TILE, SPAN], tl.float32)
    for span in range(spans):
        n = span * SPAN + tl.arange(0, SPAN)
        left = tl.load(dy + t[:, None] * N + n[None, :], mask=(t[:, None] < T) & (n[None, :] < N), other=0.0)
        right = tl.load(w + n[:, None] * K + k[None, :], mask=(n[:, None] < N) & (k[None, :] < K), other=0.0)
        scale = tl.load(dy_scales + t * spans + span, mask=t < T, other=0.0)
        scale *= tl.load(w_scales + span * across + tl.program_id(1))
        total += tl.dot(left, right) * scale[:, None]
    tl.store(dx + t[:, None] * K + k[None, :], total, mask=(t[:, None] < T) & (k[None, :] < K))


def span_by_span(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _by_spans[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, TILE=32, SPAN=span)
    return dx_TK


@triton.jit
def _widened(
    dy, w, dy_scales, w_scales, dx, T, N, K, span, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, N, DEPTH):
        n = begin + tl.arange(0, DEPTH)
        along, down = n[None, :], n[:, None]
        left = tl.load(dy + t * N + along, mask=(t < T) & (along < N), other=0.0).to(tl.float32)
        left *= tl.load(dy_scales + t * tl.cdiv(N, span) + along // span, mask=(t < T) & (along < N), other=0.0)
        right = tl.load(w + down * K + k, mask=(down < N) & (k < K), other=0.0).to(tl.float32)
        right *= tl.load(w_scales + down // span * tl.cdiv(K, span) + k // span, mask=(down < N) & (k < K), other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(dx + t * K + k, total, mask=(t < T) & (k < K))


def dequantised_on_the_way(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dx_TK = torch.zeros(T, K, dtype=torch.float32)
    if T and N:
        tensors = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), dy_scales_TA, w_scales_AB, dx_TK
        _widened[(triton.cdiv(T, 16), triton.cdiv(K, 64))](*tensors, T, N, K, span, ROWS=16, COLUMNS=64, DEPTH=32)
    return dx_TK


@triton.jit
def _faulty(dy, w, dy_scales, w_scales, dx, T, N, K, FAULT: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr):
    t = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    spans, across = tl.cdiv(N, SPAN), tl.cdiv(K, SPAN)
    total = tl.zeros([TILE, SPAN], tl.float32)
    steps = N // SPAN if FAULT == 1 else spans  # 1: what is left of N is dropped
    scale = tl.zeros([TILE], tl.float32)
    for span in range(steps):
        n = span * SPAN + tl.arange(0, SPAN)
        left = tl.load(dy + t[:, None] * N + n[None, :], mask=(t[:, None] < T) & (n[None, :] < N), other=0.0)
        right = tl.load(w + n[:, None] * K + k[None, :], mask=(n[:, None] < N) & (k[None, :] < K), other=0.0)
        scale = tl.load(dy_scales + t * spans + span, mask=t < T, other=0.0)
        at = span * across + tl.program_id(1)
        if FAULT == 2:  # 2: the scales of w as for the forward product
            at = (tl.program_id(1) * spans + span) % (spans * across)
        scale *= tl.load(w_scales + at)
        if FAULT == 3:  # 3: bare sums, one scale at the end
            total = tl.dot(left, right, total)
        elif FAULT == 4:  # 4: the running total is scaled again
            total = tl.dot(left, right, total) * scale[:, None]
        elif FAULT == 5:  # 5: only the last
            total = tl.dot(left, right) * scale[:, None]
        elif FAULT == 6:  # 6: in bfloat16
            total = (total + tl.dot(left, right) * scale[:, None]).to(tl.bfloat16).to(tl.float32)
        else:
            total += tl.dot(left, right) * scale[:, None]
    if FAULT == 3:
        total *= scale[:, None]
    tl.store(dx + t[:, None] * K + k[None, :], total, mask=(t[:, None] < T) & (k[None, :] < K))


def tail_dropped(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 1, 32, span)
    return dx_TK


def scales_as_in_the_forward_product(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 2, 32, span)
    return dx_TK


def scaled_once_at_the_end(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 3, 32, span)
    return dx_TK


def the_total_scaled_again(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 4, 32, span)
    return dx_TK


def the_last_span_alone(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 5, 32, span)
    return dx_TK


def total_in_bfloat16(dy_TN, w_NK, dy_scales_TA, w_scales_AB, span):
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dy, w, dx_TK = dy_TN.view(torch.float8_e4m3fn), w_NK.view(torch.float8_e4m3fn), torch.empty(T, K)
    grid = (triton.cdiv(T, 32), triton.cdiv(K, span))
    if dx_TK.numel():
        _faulty[grid](dy, w, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 6, 32, span)
    return dx_TK


EXERCISE = Exercise(
    id="13.2",
    unit="13",
    title="the product of the backward pass, scaled span by span",
    entry="input_gradient",
    points=15,
    minutes=35,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=rows_close("gradient", 1e-5),
    misconceptions=(
        Misconception(
            "scaled-once-at-the-end",
            scaled_once_at_the_end,
            "It looks like one sum over all of N with the scales applied once, after it. Scales change every span: each span's bare sum "
            "is to be scaled before it joins the others.",
        ),
        Misconception(
            "the-total-scaled-again",
            the_total_scaled_again,
            "It looks like a running total that is multiplied by the scale of each span. Only the sum of this span belongs to this "
            "scale; let tl.dot begin from zero.",
        ),
        Misconception(
            "scales-as-in-the-forward-product",
            scales_as_in_the_forward_product,
            "It looks like W's scales in the order of the forward product. Here the sum runs down W's rows: span by span the row of "
            "w_scales_AB changes, and the column stays.",
        ),
        Misconception(
            "tail-dropped",
            tail_dropped,
            "It looks like N // span whole spans. The last one may be short: round up, and mask.",
        ),
        Misconception(
            "the-last-span-alone",
            the_last_span_alone,
            "It looks like a total that each span overwrites. Add the scaled sum of a span to those before it.",
        ),
        Misconception(
            "total-in-bfloat16",
            total_in_bfloat16,
            "It looks like a total that is rounded to bfloat16 after every span. Promotion is to float32; keep it there.",
        ),
    ),
    alternatives=(span_by_span, dequantised_on_the_way),
    hints=(
        "Write the sum over n for one element of dX. Which scales are the same for all n of a span, and can stand before its sum?",
        "The scale of dY depends on the row t and the span; that of W on the span and the block of columns of k. If a tile of the result "
        "is one span wide, it meets one scale of W a span.",
        "In the loop over spans: tl.dot of bare codes from zero, times (a column of dy's scales times one scale of W), added to the "
        "float32 total. dy's scales lie at t * A + span, W's at span * B + (which block of columns).",
    ),
    forbids=(
        *(
            f"{owner}.{name}"
            for owner in ("torch", "Tensor")
            for name in ("matmul", "mm", "addmm", "bmm", "__matmul__")
        ),
        "torch.einsum",
        "torch.nn.functional.linear",
    ),
    kernel=True,
)
