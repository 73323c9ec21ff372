"""12.2: the gradient of the tokens: each row times its expert's weight the other way, then each token adds up its rows."""

import numpy as np
import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # tokens, slots, experts, D, F, dtype, share of dropped pairs, with what arrives by other ways, who is chosen
    (9, 2, 3, 20, 18, BF16, 0.3, True, "plain"),
    (0, 2, 3, 8, 6, FP32, 0.0, True, "plain"),  # no tokens
    (5, 1, 2, 129, 4, FP32, 0.0, False, "plain"),  # one slot, and wider than a block
    (40, 2, 4, 17, 10, FP32, 0.1, True, "one"),  # all rows are one expert's, three tiles of them
    (4, 3, 5, 3, 2, BF16, 1.0, True, "plain"),  # all dropped
    (3, 2, 12, 1, 2, FP32, 0.2, False, "plain"),  # more experts than rows
    (6, 2, 2, 40, 70, BF16, 0.2, True, "plain"),  # more than one step along F
    (26, 5, 2, 9, 6, FP32, 0.0, False, "tight"),  # a row more than whole tiles of 32 for each expert
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "dgate_up_PF": torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]]),
            "weight_EDF": torch.tensor([[[1.0, 10.0], [0.0, 2.0], [5.0, 0.0]], [[1.0, 1.0], [2.0, 0.0], [0.0, 4.0]]]),
            "offsets_E1": torch.tensor([0, 2, 3]),
            "places_TK": torch.tensor([[2, 0], [-1, 1]]),
            "dother_TD": torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.0]]),
        }
    if number <= len(EDGES):
        T, K, E, D, F, dtype, out, more, kind = EDGES[number - 1]
    else:
        T, K, E = int(rng.integers(2, 20)), int(rng.integers(1, 4)), int(rng.integers(3, 6))
        D, F = int(rng.integers(2, 50)), 2 * int(rng.integers(1, 30))
        dtype, out = (BF16, FP32)[int(rng.integers(2))], float(rng.choice([0.0, 0.3]))
        more, kind = bool(rng.integers(2)), "plain"
    ids_TK = rng.permuted(np.tile(np.arange(E), (T, 1)), axis=1)[:, :K]
    if kind == "one":
        ids_TK[:] = E - 2
    if kind == "tight":
        ids_TK = rng.permutation(np.repeat(np.arange(2), (97, 33))).reshape(T, K)
    ids_TK[rng.random(size=(T, K)) < out] = E  # nobody's
    flat_P = torch.tensor(ids_TK.reshape(-1), dtype=torch.int64)
    order_P = flat_P.argsort(stable=True)
    offsets_E1 = torch.tensor([0, *[int((flat_P <= e).sum()) for e in range(E)]])
    places_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(T * K))
    places_P[flat_P == E] = -1
    dgate_up_PF = torch.tensor(rng.normal(size=(T * K, F))).to(dtype)
    dgate_up_PF[int(offsets_E1[-1]) :] = float("nan")  # not data
    weight_EDF = torch.tensor(rng.normal(size=(E, D, F))).to(dtype)
    weight_EDF[offsets_E1.diff() == 0] = float("nan")  # of experts without rows: nobody's business
    return {
        "dgate_up_PF": dgate_up_PF,
        "weight_EDF": weight_EDF,
        "offsets_E1": offsets_E1,
        "places_TK": places_P.view(T, K),
        "dother_TD": torch.tensor(rng.normal(size=(T, D))).to(dtype) if more else None,
    }


def reference(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    E, D, _ = weight_EDF.shape
    expert_P = (torch.arange(len(dgate_up_PF))[:, None] >= offsets_E1[1:]).sum(dim=1)
    own_PDF = weight_EDF.double()[expert_P.clamp(max=E - 1)]
    rows_PD = (own_PDF * dgate_up_PF.double()[:, None]).sum(dim=-1)
    there_TK1 = (places_TK >= 0)[:, :, None]
    terms_TKD = torch.where(there_TK1, rows_PD[places_TK.clamp(min=0).flatten()].view(*places_TK.shape, D), 0.0)
    total_TD = terms_TKD.sum(dim=1)
    return (total_TD if dother_TD is None else total_TD + dother_TD.double()).to(dgate_up_PF.dtype)


@triton.jit
def _products(
    dgate_up, weight, offsets, rows, E, D, F,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins, ends = tl.load(offsets + e, mask=e < E, other=0), tl.load(offsets + e + 1, mask=e < E, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum(((tl.cumsum(tiles) <= tile) & (e < E)).to(tl.int64))
    if expert < E:
        first = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M
        p = first + tl.arange(0, BLOCK_M)
        inside = p < tl.load(offsets + expert + 1)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for begin in range(0, F, BLOCK_F):
            f = begin + tl.arange(0, BLOCK_F)
            left = tl.load(dgate_up + p[:, None] * F + f[None, :], mask=inside[:, None] & (f < F)[None, :], other=0.0)
            at = weight + expert * D * F + d[None, :] * F + f[:, None]
            right = tl.load(at, mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        tl.store(rows + p[:, None] * D + d[None, :], total, mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def _home(rows, places, other, dx, D, K, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if other is not None:
        total += tl.load(other + t * D + d, mask=d < D).to(tl.float32)
    for k in range(K):
        place = tl.load(places + t * K + k)
        total += tl.load(rows + place * D + d, mask=(d < D) & (place >= 0), other=0.0)
    tl.store(dx + t * D + d, total.to(dx.dtype.element_ty), mask=d < D)


def products_then_sums(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD = torch.empty(P, D, dtype=torch.float32)
    dx_TD = torch.empty(T, D, dtype=dgate_up_PF.dtype)
    _products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F,
        BLOCK_M=32, BLOCK_D=32, BLOCK_F=32, EXPERTS=triton.next_power_of_2(E),
    )  # fmt: skip
    _home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, BLOCK=128)
    return dx_TD


@triton.jit
def _token(
    dgate_up, weight, offsets, places, other, dx, E, D, width, K, OTHER: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d, e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, EXPERTS)
    ends = tl.load(offsets + 1 + e, mask=e < E, other=0x7FFFFFFF)
    total = tl.zeros([BLOCK, DEPTH], tl.float32)
    for k in range(K):
        place = tl.load(places + t * K + k)
        if place >= 0:
            expert = tl.sum((ends <= place).to(tl.int64))
            for begin in range(0, width, DEPTH):
                f = begin + tl.arange(0, DEPTH)
                left = tl.load(dgate_up + place * width + f, mask=f < width, other=0.0).to(tl.float32)
                at = weight + (expert * D + d)[:, None] * width + f[None, :]
                total += left[None, :] * tl.load(at, mask=(d < D)[:, None] & (f < width)[None, :], other=0.0).to(
                    tl.float32
                )
    result = tl.sum(total, axis=1)
    if OTHER:
        result += tl.load(other + t * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(dx + t * D + d, result, mask=d < D)


def a_token_visits_its_experts(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    E, D, width = weight_EDF.shape
    T, K = places_TK.shape
    dx_TD = dgate_up_PF.new_zeros(T, D)
    if T:
        other, there = (dx_TD, False) if dother_TD is None else (dother_TD, True)
        _token[(T, triton.cdiv(D, 64))](
            dgate_up_PF, weight_EDF, offsets_E1, places_TK, other, dx_TD, E, D, width, K,
            OTHER=there, BLOCK=64, DEPTH=64, EXPERTS=triton.next_power_of_2(E),
        )  # fmt: skip
    return dx_TD


@triton.jit
def _faulty_products(
    dgate_up, weight, offsets, rows, E, D, F, FAULT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins, ends = tl.load(offsets + e, mask=e < E, other=0), tl.load(offsets + e + 1, mask=e < E, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum(((tl.cumsum(tiles) <= tile) & (e < E)).to(tl.int64))
    end = tl.load(offsets + E)
    first = end
    if expert < E:
        first = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M
        end = tl.load(offsets + expert + 1)
    if FAULT == 1:  # 1: fixed blocks, each by the expert of its first row
        first, end = tile.to(tl.int64) * BLOCK_M, tl.load(offsets + E)
        expert = tl.sum(((ends <= first) & (e < E)).to(tl.int64))
    if first < end:
        p = first + tl.arange(0, BLOCK_M)
        inside = p < end
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for begin in range(0, F, BLOCK_F):
            f = begin + tl.arange(0, BLOCK_F)
            left = tl.load(dgate_up + p[:, None] * F + f[None, :], mask=inside[:, None] & (f < F)[None, :], other=0.0)
            at = expert * D * F + d[None, :] * F + f[:, None]
            if FAULT == 2:  # 2: read as if it were [F, D]
                at = expert * D * F + f[:, None] * D + d[None, :]
            right = tl.load(weight + at, mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        if FAULT == 3:  # 3: rounded before the sum
            total = total.to(dgate_up.dtype.element_ty).to(tl.float32)
        tl.store(rows + p[:, None] * D + d[None, :], total, mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def _faulty_home(rows, places, other, dx, D, K, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(K):
        place = tl.load(places + t * K + k)
        there = place >= 0
        if FAULT == 4:  # 4: a row of its own number
            place = t * K + k
        if FAULT == 5:  # 5: -1 is read as row 0
            place = tl.maximum(place, 0)
            there = place >= 0
        row = tl.load(rows + place * D + d, mask=(d < D) & there, other=0.0)
        if FAULT == 6:  # 6: the last slot alone
            total = tl.where(there, row, total)
        else:
            total += row
    if other is not None and FAULT != 7:  # 7: what arrives by other ways is lost
        total += tl.load(other + t * D + d, mask=d < D).to(tl.float32)
    tl.store(dx + t * D + d, total.to(dx.dtype.element_ty), mask=d < D)


def fixed_blocks(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=1, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=1, BLOCK=128)
    return dx_TD


def weight_as_it_was_forward(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=2, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=2, BLOCK=128)
    return dx_TD


def rounded_before_the_sum(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=3, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=3, BLOCK=128)
    return dx_TD


def rows_in_the_order_of_tokens(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=4, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=4, BLOCK=128)
    return dx_TD


def dropped_pairs_read_row_0(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=5, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=5, BLOCK=128)
    return dx_TD


def last_slot_alone(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=6, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=6, BLOCK=128)
    return dx_TD


def other_ways_forgotten(dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD):
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD, dx_TD = torch.zeros(P, D), dgate_up_PF.new_empty(T, D)
    blocks = {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_F": 32, "EXPERTS": triton.next_power_of_2(E)}
    _faulty_products[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F, FAULT=7, **blocks
    )
    _faulty_home[(T, triton.cdiv(D, 128))](rows_PD, places_TK, dother_TD, dx_TD, D, K, FAULT=7, BLOCK=128)
    return dx_TD


EXERCISE = Exercise(
    id="12.2",
    unit="12",
    title="the gradient of the tokens",
    entry="tokens_back",
    points=15,
    minutes=45,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=rounded_once("dx"),
    misconceptions=(
        Misconception(
            "fixed-blocks",
            fixed_blocks,
            "It looks like blocks of rows that all take the weight of their first row's expert. A tile ends where its expert's rows "
            "end: the next expert has a weight of its own.",
        ),
        Misconception(
            "weight-as-forward",
            weight_as_it_was_forward,
            "It looks like the weight read as if it were [F, D]. It lies as [D, F]: element (f, d) of what you multiply by is d * F + f.",
        ),
        Misconception(
            "rounded-before-the-sum",
            rounded_before_the_sum,
            "It looks like rows that are rounded before a token adds them up. Keep them in float32: only the sum is rounded.",
        ),
        Misconception(
            "rows-in-token-order",
            rows_in_the_order_of_tokens,
            "It looks like token t adding the rows t * K and on. Rows are sorted by expert: those of token t lie at places[t].",
        ),
        Misconception(
            "dropped-reads-row-0",
            dropped_pairs_read_row_0,
            "It looks like a place of -1 taken for row 0. It is a dropped pair, and adds nothing.",
        ),
        Misconception(
            "last-slot-alone",
            last_slot_alone,
            "It looks like one slot of each token, the last one that is there. A token reached K experts: its gradient is their sum.",
        ),
        Misconception(
            "other-ways-forgotten",
            other_ways_forgotten,
            "It looks like the experts' part alone. What arrived at the token by other ways, dother, is added to it.",
        ),
    ),
    alternatives=(products_then_sums, a_token_visits_its_experts),
    hints=(
        "In the forward pass a row is x W, with W as [D, F]. Which sum is the gradient of x[d], and along which axis of W does it run?",
        "Two kernels: one makes a row of D numbers for each row of dgate_up, by tiles that never hold two experts' rows; one lets each "
        "token add up the rows at its places. Between them a float32 tensor [P, D].",
        "The right tile is [BLOCK_F, BLOCK_D], at expert * D * F + d[None, :] * F + f[:, None]: no copy, other strides. In the sum: "
        "mask=(place >= 0), other=0.0, and dother may be None, which a kernel tells apart when it is compiled.",
    ),
    forbids=(
        *(f"triton.language.atomic_{name}" for name in ("add", "xchg", "cas")),
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
        *("torch.nn.functional.grouped_mm", "torch.matmul", "Tensor.matmul", "torch.bmm", "Tensor.bmm", "torch.mm"),
        *("Tensor.index_add_", "Tensor.index_add", "torch.index_add", "Tensor.scatter_add_", "Tensor.index_select"),
    ),
    kernel=True,
    tags=("no host wait",),
)
