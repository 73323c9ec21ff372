"""11.4: every expert's rows times its own weight, one launch over ragged rows, with a bias."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # rows of each expert, rows that are nobody's, K, N, dtype, with a bias
    ([], 0, 20, 8, FP32, True),  # no rows
    ([0, 32, 0, 0, 5, 0], 0, 40, 33, FP32, True),  # experts without rows, first, between and last
    ([65, 33, 33], 0, 70, 40, BF16, True),  # a row more than whole tiles of 32, and three steps of K
    ([0, 40, 0], 6, 24, 20, FP32, False),  # all rows are one's
    ([1, 1, 0, 1], 0, 5, 3, FP32, False),  # blocks larger than the data
    ([0, 0], 9, 16, 16, FP32, True),  # all rows are nobody's
    ([31, 31, 31, 33], 0, 64, 32, BF16, False),  # a row less than whole tiles of 32
]


def inputs(rng, number):
    if number == 0:
        return {
            "rows_PK": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]),
            "weight_EKN": torch.tensor([[[1.0], [0.0]], [[9.0], [9.0]], [[0.0], [1.0]]]),
            "bias_EN": torch.tensor([[0.5], [9.0], [-0.5]]),
            "offsets_E1": torch.tensor([0, 1, 1, 3]),
        }
    if number <= len(EDGES):
        counts, lost, K, N, dtype, biased = EDGES[number - 1]
    else:
        E, K, N = (int(rng.integers(low, high)) for low, high in ((2, 5), (33, 70), (17, 50)))
        counts = (rng.integers(1, 40, size=E) * (rng.random(E) < 0.8)).tolist()
        counts[0] = max(counts[0], 7)
        lost, dtype, biased = int(rng.integers(0, 8)), (BF16, FP32)[int(rng.integers(2))], bool(rng.integers(2))
    offsets_E1 = torch.tensor([0, *counts]).cumsum(0) if counts else torch.zeros(4, dtype=torch.int64)
    E, P = len(offsets_E1) - 1, int(offsets_E1[-1]) + lost
    rows_PK, weight_EKN, bias_EN = (
        torch.tensor(rng.normal(size=size)).to(dtype) for size in ((P, K), (E, K, N), (E, N))
    )
    rows_PK[P - lost :] = float("nan")  # not data
    return {
        "rows_PK": rows_PK, "weight_EKN": weight_EKN, "bias_EN": bias_EN if biased else None, "offsets_E1": offsets_E1,
    }  # fmt: skip


def reference(rows_PK, weight_EKN, bias_EN, offsets_E1):
    expert_P = (torch.arange(len(rows_PK))[:, None] >= offsets_E1[1:]).sum(dim=1)
    own_P = expert_P.clamp(max=len(weight_EKN) - 1)
    out_PN = (rows_PK.double()[:, :, None] * weight_EKN.double()[own_P]).sum(dim=1)
    out_PN = out_PN if bias_EN is None else out_PN + bias_EN.double()[own_P]
    return torch.where(expert_P[:, None] < len(weight_EKN), out_PN, 0.0).to(rows_PK.dtype)


@triton.jit
def _ragged(
    rows, weight, bias, offsets, out, E, K, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins, ends = tl.load(offsets + e, mask=e < E), tl.load(offsets + e + 1, mask=e < E)
    tiles = tl.where(e < E, (ends - begins + BLOCK_M - 1) // BLOCK_M, 0)
    expert = tl.sum((tl.cumsum(tiles) <= tile).to(tl.int64))
    if expert < E:
        first = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M
        p = first + tl.arange(0, BLOCK_M)
        inside = p < tl.load(offsets + expert + 1)
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in range(0, K, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            left = tl.load(rows + p[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
            at = weight + expert * K * N + k[:, None] * N + n[None, :]
            right = tl.load(at, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        if bias is not None:
            total += tl.load(bias + expert * N + n, mask=n < N).to(tl.float32)[None, :]
        at = out + p[:, None] * N + n[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=inside[:, None] & (n < N)[None, :])


def a_program_a_tile(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN = torch.zeros(P, N, dtype=rows_PK.dtype)
    _ragged[(P // 32 + E, triton.cdiv(N, 32))](
        rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN, E, K, N,
        BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, EXPERTS=triton.next_power_of_2(E),
    )  # fmt: skip
    return out_PN


@triton.jit
def _walk(
    rows, weight, bias, offsets, out, P, E, K, N, BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m, k = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_K)
    for expert in range(0, E):
        end = tl.load(offsets + expert + 1)
        for first in range(tl.load(offsets + expert), end, BLOCK_M):
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for begin in range(0, K, BLOCK_K):
                left_at = rows + (first + m) * K + (begin + k)[None, :]
                right_at = weight + (begin + k)[:, None] * N + n
                left = tl.load(left_at, mask=(first + m < end) & (begin + k < K)[None, :], other=0.0)
                right = tl.load(right_at, mask=(begin + k < K)[:, None] & (n < N), other=0.0)
                total += tl.dot(left, right, input_precision="ieee")
            if BIASED:
                total += tl.load(bias + expert * N + n, mask=n < N, other=0.0)
            tl.store(out + (first + m) * N + n, total.to(out.dtype.element_ty), mask=(first + m < end) & (n < N))
        weight += tl.cast(K, tl.int64) * N
    for first in range(tl.load(offsets + E), P, BLOCK_M):
        nothing = tl.zeros([BLOCK_M, BLOCK_N], out.dtype.element_ty)
        tl.store(out + (first + m) * N + n, nothing, mask=(first + m < P) & (n < N))


def a_program_walks_all_rows(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = rows_PK.shape[0], weight_EKN.shape
    out_PN = torch.empty(P, N, dtype=rows_PK.dtype)
    biased = bias_EN is not None
    _walk[(triton.cdiv(N, 32),)](
        rows_PK, weight_EKN, bias_EN if biased else rows_PK, offsets_E1, out_PN, P, E, K, N, BIASED=biased,
        BLOCK_M=16, BLOCK_N=32, BLOCK_K=64,
    )  # fmt: skip
    return out_PN


@triton.jit
def _faulty(
    rows, weight, bias, offsets, out, P, E, K, N, FAULT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins = tl.load(offsets + e, mask=e < E, other=0)
    ends = tl.load(offsets + e + 1, mask=e < E, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum(((tl.cumsum(tiles) <= tile) & (e < E)).to(tl.int64))
    last = tl.load(offsets + E)
    first, end = last, last
    if expert < E:
        first = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M
        end = tl.load(offsets + expert + 1)
    if FAULT == 1:  # 1: fixed blocks, each with the expert of its first row
        first = tile.to(tl.int64) * BLOCK_M
        end = last
        expert = tl.sum(((ends <= first) & (e < E)).to(tl.int64))
    if FAULT == 6 and expert >= E:  # 6: rows that are nobody's by the last expert
        first = last + (tile - tl.sum(tiles)) * BLOCK_M
        end = P
    own = tl.minimum(expert, E - 1)
    if FAULT == 2:  # 2: weights numbered without the experts that have no rows
        own = tl.sum(((e < expert) & (ends > begins)).to(tl.int64))
    if first < end:
        p = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        shift = tl.zeros([BLOCK_N], tl.float32)
        if bias is not None:
            shift = tl.load(bias + own * N + n, mask=n < N, other=0.0).to(tl.float32)
        for begin in range(0, K, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            at = rows + p[:, None] * K + k[None, :]
            left = tl.load(at, mask=(p < end)[:, None] & (k < K)[None, :], other=0.0)
            at = weight + own * K * N + k[:, None] * N + n[None, :]
            right = tl.load(at, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
            if FAULT == 3:  # 3: the bias once a step
                total += shift[None, :]
            if FAULT == 4:  # 4: rounded after each step
                total = total.to(out.dtype.element_ty).to(tl.float32)
        if FAULT == 7:  # 7: rounded before the bias
            total = total.to(out.dtype.element_ty).to(tl.float32)
        if FAULT != 3:
            total += shift[None, :]
        at = out + p[:, None] * N + n[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=(p < end)[:, None] & (n < N)[None, :])


def blocks_of_fixed_size(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=1, EXPERTS=EXPERTS, **blocks)
    return out_PN


def empty_experts_not_counted(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=2, EXPERTS=EXPERTS, **blocks)
    return out_PN


def bias_once_a_step(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=3, EXPERTS=EXPERTS, **blocks)
    return out_PN


def rounded_each_step(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=4, EXPERTS=EXPERTS, **blocks)
    return out_PN


def too_few_tiles(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(triton.cdiv(P, 32), triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=5, EXPERTS=EXPERTS, **blocks)
    return out_PN


def nobodys_rows_by_the_last(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E + 1, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=6, EXPERTS=EXPERTS, **blocks)
    return out_PN


def rounded_before_the_bias(rows_PK, weight_EKN, bias_EN, offsets_E1):
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN, blocks = torch.zeros(P, N, dtype=rows_PK.dtype), dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    tensors = rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN
    EXPERTS = triton.next_power_of_2(E)
    _faulty[(P // 32 + E, triton.cdiv(N, 32))](*tensors, P, E, K, N, FAULT=7, EXPERTS=EXPERTS, **blocks)
    return out_PN


EXERCISE = Exercise(
    id="11.4",
    unit="11",
    title="a grouped product",
    entry="grouped_product",
    points=15,
    minutes=45,
    difficulty=4,
    spine=True,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=rounded_once("out"),
    misconceptions=(
        Misconception(
            "blocks-of-fixed-size",
            blocks_of_fixed_size,
            "It looks like tiles cut at multiples of the block, each with the expert of its first row. Where an expert ends inside, "
            "its tail spills into the next one's rows. Let every expert begin a tile of its own.",
        ),
        Misconception(
            "empty-experts-not-counted",
            empty_experts_not_counted,
            "It looks like weights numbered along the experts that have rows. An expert without rows has no tile and still has a weight: "
            "the number of the weight is the expert's.",
        ),
        Misconception(
            "bias-once-a-step",
            bias_once_a_step,
            "It looks like a bias that is added in each step over K. It belongs to the result: add it once, after the loop.",
        ),
        Misconception(
            "rounded-each-step",
            rounded_each_step,
            "It looks like a sum that is rounded to the result's dtype after each step over K. Keep it in float32 until the end.",
        ),
        Misconception(
            "too-few-tiles",
            too_few_tiles,
            "It looks like as many tiles as the rows fill without gaps. Each expert may have a tile that is not full: the last "
            "experts' rows are left out. Launch P // BLOCK + E.",
        ),
        Misconception(
            "nobodys-rows",
            nobodys_rows_by_the_last,
            "It looks like rows behind offsets[E] that the last expert computes. They are nobody's, and their result is 0.",
        ),
        Misconception(
            "rounded-before-the-bias",
            rounded_before_the_bias,
            "It looks like a product that is rounded before the bias is added. Add in float32, and round once.",
        ),
    ),
    alternatives=(a_program_a_tile, a_program_walks_all_rows),
    hints=(
        "The host knows P and E. How many tiles of 32 rows can the experts need at most, if each begins a tile of its own?",
        "A program loads all offsets, works out how many tiles each expert has, and counts how many experts' tiles end at or before its "
        "own number. That is its expert; if it is E, there is nothing to do.",
        "The tile's first row is offsets[expert] plus BLOCK times the tile's number inside the expert, and rows from "
        "offsets[expert + 1] on are masked off, in the load and in the store. The rest is the product of lab 09.",
    ),
    forbids=(
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
        *("torch.nn.functional.grouped_mm", "torch.matmul", "Tensor.matmul", "torch.bmm", "Tensor.bmm", "torch.mm"),
    ),
    kernel=True,
    tags=("only kernels read",),
)
