"""11.6: each token's weighted sum of its experts' rows, on top of the shared expert's: gathered, in a fixed order."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # tokens, slots, rows of y, width, dtype, with a shared expert, share of dropped pairs
    (0, 2, 5, 8, FP32, True, 0.0),
    (1, 1, 1, 1, FP32, False, 0.0),
    (6, 8, 48, 130, BF16, True, 0.0),  # V3's eight, in bfloat16
    (7, 3, 14, 64, FP32, True, 0.4),
    (5, 2, 0, 33, FP32, False, 1.0),  # all pairs were dropped, and y has no row that could be read
    (3, 4, 12, 1100, BF16, False, 0.2),  # a wide row
]


def inputs(rng, number):
    nan = float("nan")
    if number == 0:
        return {
            "y_RD": torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]),
            "places_TK": torch.tensor([[2, 0], [-1, 1], [-1, -1]]),
            "weights_TK": torch.tensor([[0.5, 2.0], [nan, 0.25], [7.0, 8.0]]),
            "shared_TD": torch.tensor([[1.0, 1.0], [0.0, -1.0], [3.0, 4.0]]),
        }
    if number <= len(EDGES):
        T, K, R, D, dtype, shared, lost = EDGES[number - 1]
    else:
        T, K, D = (int(rng.integers(low, high)) for low, high in ((2, 9), (2, 9), (3, 300)))
        R, dtype, shared, lost = T * K, (BF16, FP32)[int(rng.integers(2))], bool(rng.integers(2)), 0.3
    dropped_TK = torch.tensor(rng.random((T, K)) < lost)
    order = rng.permutation(T * K) if R >= T * K else rng.integers(0, max(R, 1), size=T * K)
    weights_TK = torch.tensor(rng.random((T, K)), dtype=torch.float32) * 1.5
    return {
        "y_RD": torch.tensor(rng.normal(size=(R, D))).to(dtype),
        "places_TK": torch.tensor(order).view(T, K).masked_fill(dropped_TK, -1),
        "weights_TK": weights_TK.masked_fill(dropped_TK & torch.tensor(rng.random((T, K)) < 0.5), nan),
        "shared_TD": torch.tensor(rng.normal(size=(T, D)) * 2).to(dtype) if shared else None,
    }


def reference(y_RD, places_TK, weights_TK, shared_TD):
    rows_TKD = F.pad(y_RD.double(), (0, 0, 0, 1))[places_TK]  # -1 is the row of zeros at the end
    total_TD = (rows_TKD * weights_TK.double().masked_fill(places_TK < 0, 0.0)[:, :, None]).sum(dim=1)
    return (total_TD if shared_TD is None else total_TD + shared_TD.double()).to(y_RD.dtype)


@triton.jit
def _a_token(y, places, weights, shared, out, D, K: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(K):
        place = tl.load(places + t * K + k)
        if place >= 0:
            row = tl.load(y + place * D + d, mask=d < D).to(tl.float32)
            total += tl.load(weights + t * K + k) * row
    if shared is not None:
        total += tl.load(shared + t * D + d, mask=d < D).to(tl.float32)
    tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)


def one_slot_after_another(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), D = places_TK.shape, y_RD.size(1)
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), 512
    grid = T, triton.cdiv(D, BLOCK)
    _a_token[grid](y_RD, places_TK, weights_TK, shared_TD, out_TD, D, K=K, BLOCK=BLOCK)
    return out_TD


@triton.jit
def _all_slots(y, places, weights, shared, out, D, K, SHARED: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    t, k = tl.program_id(0).to(tl.int64), tl.arange(0, SLOTS)
    place = tl.load(places + t * K + k, mask=k < K, other=-1)
    weight = tl.load(weights + t * K + k, mask=place >= 0, other=0.0)[:, None]
    for begin in range(0, D, BLOCK):
        d = (begin + tl.arange(0, BLOCK))[None, :]
        rows = tl.load(y + place[:, None] * D + d, mask=(place >= 0)[:, None] & (d < D), other=0.0)
        total = tl.sum(weight * rows.to(tl.float32), axis=0)[None, :]
        if SHARED:
            total += tl.load(shared + t * D + d, mask=d < D, other=0.0)
        tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)


def all_slots_at_once(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), D = places_TK.shape, y_RD.shape[1]
    out_TD = torch.empty(T, D, dtype=y_RD.dtype)
    if T:
        _all_slots[(T,)](
            y_RD, places_TK, weights_TK, y_RD if shared_TD is None else shared_TD, out_TD, D, K,
            SHARED=shared_TD is not None, SLOTS=triton.next_power_of_2(K), BLOCK=128,
        )  # fmt: skip
    return out_TD


@triton.jit
def _faulty(y, places, weights, shared, out, R, D, K: tl.constexpr, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    t, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    kept = 0.0
    for k in range(K):
        place = tl.load(places + t * K + k)
        weight = tl.load(weights + t * K + k, mask=place >= 0, other=0.0)
        if FAULT == 1:  # 1: a dropped pair is multiplied by 0
            weight = tl.load(weights + t * K + k) * tl.where(place >= 0, 1.0, 0.0)
        if FAULT == 2:  # 2: weights as if they were sorted, too
            weight = tl.load(weights + place, mask=place >= 0, other=0.0)
        row = tl.load(y + place * D + d, mask=(place >= 0) & (d < D), other=0.0).to(tl.float32)
        total += weight * row
        kept += weight
        if FAULT == 3:  # 3: rounded after each row
            total = total.to(out.dtype.element_ty).to(tl.float32)
    if FAULT == 4:  # 4: over the sum of the weights that are left
        total = total / tl.where(kept > 0.0, kept, 1.0)
    if FAULT == 5:  # 5: rounded before the shared expert is added
        total = total.to(out.dtype.element_ty).to(tl.float32)
    if shared is not None:
        total += tl.load(shared + t * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)


def dropped_times_0(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), (R, D) = places_TK.shape, y_RD.shape
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), triton.next_power_of_2(D)
    _faulty[(T,)](y_RD, places_TK, weights_TK, shared_TD, out_TD, R, D, K=K, FAULT=1, BLOCK=BLOCK)
    return out_TD


def weights_by_place(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), (R, D) = places_TK.shape, y_RD.shape
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), triton.next_power_of_2(D)
    _faulty[(T,)](y_RD, places_TK, weights_TK, shared_TD, out_TD, R, D, K=K, FAULT=2, BLOCK=BLOCK)
    return out_TD


def rounded_after_each_row(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), (R, D) = places_TK.shape, y_RD.shape
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), triton.next_power_of_2(D)
    _faulty[(T,)](y_RD, places_TK, weights_TK, shared_TD, out_TD, R, D, K=K, FAULT=3, BLOCK=BLOCK)
    return out_TD


def over_the_weights_left(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), (R, D) = places_TK.shape, y_RD.shape
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), triton.next_power_of_2(D)
    _faulty[(T,)](y_RD, places_TK, weights_TK, shared_TD, out_TD, R, D, K=K, FAULT=4, BLOCK=BLOCK)
    return out_TD


def rounded_before_shared(y_RD, places_TK, weights_TK, shared_TD):
    (T, K), (R, D) = places_TK.shape, y_RD.shape
    out_TD, BLOCK = torch.empty(T, D, dtype=y_RD.dtype), triton.next_power_of_2(D)
    _faulty[(T,)](y_RD, places_TK, weights_TK, shared_TD, out_TD, R, D, K=K, FAULT=5, BLOCK=BLOCK)
    return out_TD


EXERCISE = Exercise(
    id="11.6",
    unit="11",
    title="the weighted sum",
    entry="weighted_combine",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=rounded_once("out"),
    misconceptions=(
        Misconception(
            "dropped-times-0",
            dropped_times_0,
            "It looks like dropped pairs that are multiplied by 0. Their weight may be anything, and NaN times 0 is NaN: do not read it.",
        ),
        Misconception(
            "weights-by-place",
            weights_by_place,
            "It looks like weights looked up at the place of a row. The rows are sorted by expert and the weights are not: slot k of "
            "token t has weights[t, k].",
        ),
        Misconception(
            "rounded-after-each-row",
            rounded_after_each_row,
            "It looks like a sum that is rounded after each row. Keep it in float32, and round once at the end.",
        ),
        Misconception(
            "over-the-weights-left",
            over_the_weights_left,
            "It looks like a weighted mean: the sum over the weights that are left. The weights are taken as they are.",
        ),
        Misconception(
            "rounded-before-shared",
            rounded_before_shared,
            "It looks like a sum that is rounded before the shared expert's row is added. Add it in float32, and round once.",
        ),
    ),
    alternatives=(one_slot_after_another, all_slots_at_once),
    hints=(
        "Who writes one row of the result, if nobody may add to it afterwards?",
        "A program for each token: it loads K places and K weights, and gathers K rows. Which of them must it not load?",
        "A float32 block of zeros; for each k the place, and where it is not negative the weight times the row; then the shared "
        "row, if there is one; then one store.",
    ),
    forbids=(
        *(f"triton.language.atomic_{name}" for name in ("add", "xchg", "cas")),
        *("Tensor.index_add_", "Tensor.index_add", "torch.index_add", "Tensor.scatter_add_", "Tensor.index_select"),
    ),
    kernel=True,
    tags=("only kernels read",),
)
