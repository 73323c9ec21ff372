"""14.1: a softmax-weighted mean of ragged rows in one pass (Milakov and Gimelshein 2018, algorithm 3, and a vector to carry)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # lengths of the segments, D, dtype of the values, what the scores are like
    ([70, 0, 33, 1], 20, BF16, "plain"),  # odd, and a segment of none
    ([64, 90], 33, FP32, "closed"),  # the first 60 of each are closed, and their values are NaN; one segment wholly
    ([40, 40], 8, FP32, "high"),  # exp overflows
    ([50, 20], 5, FP32, "rising"),  # every block brings a larger score
    ([0, 0], 4, BF16, "plain"),  # nothing at all
    ([1], 1, FP32, "low"),  # exp underflows
    ([130], 100, BF16, "closed"),
    ([300, 5], 16, FP32, "rising"),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        scores_N = torch.log(torch.tensor([1.0, 3.0, 0.0, 1.0]))
        values_ND = torch.tensor([[8.0, 0.0], [0.0, 4.0], [torch.nan, torch.inf], [5.0, 6.0]])
        return {"scores_N": scores_N, "values_ND": values_ND, "offsets_P": torch.tensor([0, 3, 3, 4])}
    if number <= len(EDGES):
        lengths, D, dtype, kind = EDGES[number - 1]
    else:
        lengths, D = rng.integers(0, 100, size=int(rng.integers(2, 4))).tolist(), int(rng.integers(1, 50))
        lengths[0] += 50
        dtype, kind = (BF16, FP32)[int(rng.integers(2))], str(rng.choice(["plain", "closed", "high", "rising"]))
    offsets_P = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    N = int(offsets_P[-1])
    scores_N = torch.tensor(rng.normal(size=N) * 2) + {"high": 120.0, "low": -120.0}.get(kind, 0.0)
    if kind == "rising":
        scores_N += torch.arange(N) * 0.1
    values_ND = torch.tensor(rng.normal(size=(N, D)) + 0.5).to(dtype)
    if kind == "closed":
        for begin, end in zip(offsets_P[:-1].tolist(), offsets_P[1:].tolist(), strict=True):
            closed_n = torch.tensor(rng.random(end - begin) < 0.3)
            closed_n[:60] = True
            scores_N[begin:end][closed_n] = -torch.inf
        if len(lengths) > 1:
            scores_N[offsets_P[-2] :] = -torch.inf
        values_ND[scores_N == -torch.inf] = torch.nan
    return {"scores_N": scores_N.float(), "values_ND": values_ND, "offsets_P": offsets_P}


def reference(scores_N, values_ND, offsets_P):
    pooled, logs = [], []
    for begin, end in zip(offsets_P[:-1].tolist(), offsets_P[1:].tolist(), strict=True):
        open_n = scores_N[begin:end] > -torch.inf
        score_n, value_nD = scores_N[begin:end][open_n].double(), values_ND[begin:end][open_n].double()
        log = score_n.new_tensor(-torch.inf)
        if len(score_n):
            log = score_n.max() + (score_n - score_n.max()).exp().sum().log()
        pooled.append((score_n - log).exp() @ value_nD)
        logs.append(log)
    return torch.stack(pooled).to(values_ND.dtype), torch.stack(logs).float()


@triton.jit
def _a_segment(scores, values, offsets, pooled, logs, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    s = tl.program_id(0)
    d = tl.arange(0, COLUMNS)
    end = tl.load(offsets + s + 1)
    largest, total = float("-inf"), 0.0
    mix = tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.load(offsets + s), end, ROWS):
        n = start + tl.arange(0, ROWS)
        score = tl.load(scores + n, mask=n < end, other=float("-inf"))
        larger = tl.maximum(largest, tl.max(score))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(score - base)
        shrink = tl.exp(largest - base)
        inside = (weight > 0.0)[:, None] & (d < D)[None, :]
        rows = tl.load(values + n[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        mix = mix * shrink + tl.sum(rows * weight[:, None], axis=0)
        total = total * shrink + tl.sum(weight)
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)
    tl.store(pooled + s * D + d, mix.to(pooled.dtype.element_ty), mask=d < D)
    tl.store(logs + s, largest + tl.log(total))


def a_program_a_segment(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _a_segment[(S,)](*tensors, D, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


@triton.jit
def _columns(scores, values, offsets, pooled, logs, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Powers of two, and a largest for every lane: the lanes meet at the end."""
    s, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = (block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    n, end = tl.load(offsets + s) + tl.arange(0, ROWS), tl.load(offsets + s + 1)
    largest = tl.full([ROWS], -1e30, tl.float32)  # below every score, and no infinity to subtract
    total = tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, COLUMNS], tl.float32)
    while tl.min(n) < end:
        score = tl.load(scores + n, mask=n < end, other=float("-inf")) * 1.4426950408889634
        larger = tl.maximum(largest, score)
        weight, shrink = tl.exp2(score - larger), tl.exp2(largest - larger)
        inside = (score > float("-inf"))[:, None] & (d < D)
        rows = tl.load(values + n[:, None] * D + d, mask=inside, other=0.0)
        mix = mix * shrink[:, None] + rows.to(tl.float32) * weight[:, None]
        total = total * shrink + weight
        largest = larger
        n += ROWS
    top = tl.max(largest)
    scale = tl.exp2(largest - top)
    whole = tl.sum(total * scale)
    out = tl.sum(mix * scale[:, None], axis=0) / tl.where(whole > 0, whole, 1.0)
    tl.store(
        pooled + s * D + block * COLUMNS + tl.arange(0, COLUMNS), out, mask=block * COLUMNS + tl.arange(0, COLUMNS) < D
    )
    if block == 0:
        tl.store(logs + s, tl.where(whole > 0, (top + tl.log2(whole)) * 0.6931471805599453, float("-inf")))


def a_largest_a_lane(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.zeros(S, D, dtype=values_ND.dtype), torch.zeros(S, dtype=torch.float32)
    grid = (S, triton.cdiv(D, 32))
    _columns[grid](scores_N, values_ND, offsets_P, pooled_SD, logs_S, D, ROWS=16, COLUMNS=32)
    return pooled_SD, logs_S


@triton.jit
def _faulty(scores, values, offsets, pooled, logs, D, FAULT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    s = tl.program_id(0)
    d = tl.arange(0, COLUMNS)
    begin, end = tl.load(offsets + s), tl.load(offsets + s + 1)
    largest, total, blocks = float("-inf"), 0.0, 0
    mix = tl.zeros([COLUMNS], tl.float32)
    for start in range(begin, end, ROWS):
        n = start + tl.arange(0, ROWS)
        score = tl.load(scores + n, mask=n < end, other=float("-inf"))
        larger = tl.maximum(largest, tl.max(score))
        if FAULT == 4:  # each block's softmax by itself
            larger = tl.max(score)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        if FAULT == 2:  # minus infinity less itself
            base = larger
        weight = tl.exp(score - base)
        shrink = tl.exp(largest - base)
        inside = (weight > 0.0)[:, None] & (d < D)[None, :]
        if FAULT == 3:  # values of closed rows are read
            inside = (n < end)[:, None] & (d < D)[None, :]
        rows = tl.load(values + n[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if FAULT == 1:  # only the sum is rescaled
            mix = mix + tl.sum(rows * weight[:, None], axis=0)
        elif FAULT == 4:
            own = tl.sum(weight)
            mix += tl.sum(rows * weight[:, None], axis=0) / tl.where(own > 0.0, own, 1.0)
            blocks += 1
        else:
            mix = mix * shrink + tl.sum(rows * weight[:, None], axis=0)
        if FAULT == 4:
            larger = tl.maximum(largest, larger)
            base = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp(largest - base) + tl.sum(tl.exp(score - base))
        else:
            total = total * shrink + tl.sum(weight)
        largest = larger
    divisor = tl.where((total > 0.0) | (FAULT == 5), total, 1.0)  # 5: zero by zero
    if FAULT == 4:
        divisor = tl.maximum(blocks, 1)
    mix = mix / divisor
    tl.store(pooled + s * D + d, mix.to(pooled.dtype.element_ty), mask=d < D)
    if FAULT == 6:  # the log of the sum as it is
        tl.store(logs + s, tl.log(total))
    else:
        tl.store(logs + s, largest + tl.log(total))


def values_not_rescaled(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=1, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


def closed_block_is_nan(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=2, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


def closed_values_read(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=3, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


def softmax_a_block(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=4, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


def nothing_by_nothing(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=5, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


def log_without_the_largest(scores_N, values_ND, offsets_P):
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    _faulty[(S,)](*tensors, D, FAULT=6, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S


EXERCISE = Exercise(
    id="14.1",
    unit="14",
    title="a weighted mean in one pass",
    entry="attention_pool",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=rounded_once("pooled", "logs"),
    misconceptions=(
        Misconception(
            "values-not-rescaled",
            values_not_rescaled,
            "It looks like a sum of weights that is rescaled at a new largest score, and a mix of values that is not. Both were "
            "made with the old one: multiply both by exp(old - new).",
        ),
        Misconception(
            "closed-block-nan",
            closed_block_is_nan,
            "It looks like minus infinity subtracted from minus infinity, which is NaN: a block in which every score is minus "
            "infinity, before any other came. Subtract 0 while the largest is minus infinity.",
        ),
        Misconception(
            "closed-values-read",
            closed_values_read,
            "It looks like values of closed positions multiplied by weight 0: NaN times 0 is NaN. Do not load them.",
        ),
        Misconception(
            "softmax-a-block",
            softmax_a_block,
            "It looks like a softmax of each block, and the plain mean of the blocks' results. A block weighs as much as the sum "
            "of its exponentials.",
        ),
        Misconception(
            "zero-by-zero",
            nothing_by_nothing,
            "It looks like 0 divided by 0 where a segment has no open position. Its result is 0, its log minus infinity.",
        ),
        Misconception(
            "log-without-largest",
            log_without_the_largest,
            "It looks like the log of a sum that is relative to the largest score. Add the largest again: largest + log(total).",
        ),
    ),
    alternatives=(a_program_a_segment, a_largest_a_lane),
    hints=(
        "Three things go from block to block: the largest score so far, the sum of exponentials, and a vector. Which of them "
        "were made with the largest?",
        "At a new largest, multiply the sum and the vector by exp(old - new), then add the block's part to each. Divide once, "
        "after the last block.",
        "While the largest is minus infinity, subtract 0 in its place. Load values with a mask that leaves out closed positions, "
        "other=0.0, and divide by 1 where the sum is 0.",
    ),
    forbids=(
        "torch.nn.functional.softmax",
        "torch.softmax",
        "Tensor.softmax",
        "torch.logsumexp",
        "Tensor.logsumexp",
    ),
    kernel=True,
)
