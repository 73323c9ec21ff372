"""12.1: back through SwiGLU with the activation made again, for sorted rows and the routing weights of their pairs."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # rows of each expert, pairs without a row, hidden width, dtype, spread of gate and up
    ([5, 0, 9], 3, 37, BF16, 2.0),
    ([3, 4], 0, 64, FP32, 2.0),  # whole powers of two, nothing dropped
    ([0, 0], 6, 10, FP32, 1.0),  # no row is anybody's
    ([], 0, 8, BF16, 1.0),  # no rows at all
    ([1], 0, 1, FP32, 1.0),
    ([2, 7, 0, 4], 2, 100, FP32, 300.0),  # far out: exp overflows on one side
    ([0, 11, 0], 5, 300, BF16, 3.0),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "dact_PI": torch.tensor([[2.0], [4.0], [9.0], [9.0]]),
            "gate_up_PF": torch.tensor([[0.0, 3.0], [1.0, -2.0], [float("nan"), 9.0], [9.0, 9.0]]),
            "weights_TK": torch.tensor([[0.5, 9.0], [9.0, 0.25]]),
            "pairs_P": torch.tensor([3, 0, 1, 2]),
            "offsets_E1": torch.tensor([0, 1, 1, 2]),
        }
    if number <= len(EDGES):
        counts, lost, I, dtype, spread = EDGES[number - 1]  # noqa: E741
    else:
        counts, lost = rng.integers(0, 12, size=int(rng.integers(1, 6))).tolist(), int(rng.integers(0, 6))
        counts[0] += 2
        I, dtype, spread = int(rng.integers(2, 200)), (BF16, FP32)[int(rng.integers(2))], 2.0  # noqa: E741
    offsets_E1 = torch.tensor([0, *counts]).cumsum(0) if counts else torch.zeros(3, dtype=torch.int64)
    P, R = sum(counts) + lost, sum(counts)
    K = next(k for k in (3, 2, 1) if P % k == 0)
    gate_up_PF = torch.tensor(rng.normal(size=(P, 2 * I)) * spread).to(dtype)
    dact_PI = torch.tensor(rng.normal(size=(P, I))).to(dtype)
    gate_up_PF[R:] = dact_PI[R:] = float("nan")  # not data
    return {
        "dact_PI": dact_PI,
        "gate_up_PF": gate_up_PF,
        "weights_TK": torch.tensor(0.1 + rng.random(size=(P // K, K)), dtype=torch.float32),
        "pairs_P": torch.tensor(rng.permutation(P), dtype=torch.int64),
        "offsets_E1": offsets_E1,
    }


def reference(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    somebodys_P1 = (torch.arange(len(pairs_P)) < offsets_E1[-1])[:, None]
    gate_PI, up_PI = gate_up_PF.double().chunk(2, dim=-1)
    own_P1 = weights_TK.flatten()[pairs_P].double()[:, None]
    share_PI = torch.sigmoid(gate_PI)
    slope_PI = share_PI * (1 + gate_PI * (1 - share_PI))
    grad_PI = own_P1 * dact_PI.double()
    dgate_up_PF = torch.cat([grad_PI * up_PI * slope_PI, grad_PI * gate_PI * share_PI], dim=-1)
    weighted_PI = own_P1 * gate_PI * share_PI * up_PI
    return tuple(torch.where(somebodys_P1, t, 0.0).to(gate_up_PF.dtype) for t in (dgate_up_PF, weighted_PI))


@triton.jit
def _row(dact, gate_up, weights, pairs, last, dgate_up, weighted, width, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < width) & (p < tl.load(last))
    gate = tl.load(gate_up + p * 2 * width + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + p * 2 * width + width + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weights + tl.load(pairs + p))
    grad = w * tl.load(dact + p * width + i, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    kind = dgate_up.dtype.element_ty
    tl.store(dgate_up + p * 2 * width + i, (grad * up * (share + silu * (1 - share))).to(kind), mask=i < width)
    tl.store(dgate_up + p * 2 * width + width + i, (grad * silu).to(kind), mask=i < width)
    tl.store(weighted + p * width + i, (w * silu * up).to(kind), mask=i < width)


def a_program_a_row(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    (P, width), BLOCK = dact_PI.shape, 128
    dgate_up_PF, weighted_PI = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    _row[(P, triton.cdiv(width, BLOCK))](
        dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1[-1:], dgate_up_PF, weighted_PI, width, BLOCK=BLOCK
    )
    return dgate_up_PF, weighted_PI


@triton.jit
def _tile(
    dact, gate_up, weights, pairs, offsets, dgate_up, weighted, P, E, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    p = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (p < P) & (p < tl.load(offsets + E))
    pair = tl.load(pairs + p, mask=there, other=0)
    w = tl.load(weights + pair, mask=there, other=0.0)[:, None]
    for begin in range(0, width, BLOCK):
        i = begin + tl.arange(0, BLOCK)[None, :]
        inside, kept = there[:, None] & (i < width), (p < P)[:, None] & (i < width)
        at = p[:, None] * width + i
        gate = tl.load(gate_up + at + p[:, None] * width, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + at + p[:, None] * width + width, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(dact + at, mask=inside, other=0.0).to(tl.float32) * w
        share = 1.0 / (1.0 + tl.exp(-gate))
        slope = share * (1.0 + gate * (1.0 - share))
        tl.store(dgate_up + at + p[:, None] * width, grad * up * slope, mask=kept)
        tl.store(dgate_up + at + p[:, None] * width + width, grad * gate * share, mask=kept)
        tl.store(weighted + at, gate * share * up * w, mask=kept)


def tiles_of_rows(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    dgate_up_PF, weighted_PI = torch.zeros_like(gate_up_PF), torch.zeros_like(dact_PI)
    if P:
        _tile[(triton.cdiv(P, 8),)](
            dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, dgate_up_PF, weighted_PI, P, len(offsets_E1) - 1, width,
            ROWS=8, BLOCK=64,
        )  # fmt: skip
    return dgate_up_PF, weighted_PI


@triton.jit
def _faulty(
    dact, gate_up, weights, pairs, offsets, dgate_up, weighted, E, width, FAULT: tl.constexpr, BLOCK: tl.constexpr
):
    p = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < width
    somebodys = p < tl.load(offsets + E)
    gate = tl.load(gate_up + p * 2 * width + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + p * 2 * width + width + i, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dact + p * width + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weights + tl.load(pairs + p))
    if FAULT == 1:  # 1: the weight of the row's number
        w = tl.load(weights + p)
    share = tl.sigmoid(gate)
    silu = gate * share
    slope = share + silu * (1 - share)
    if FAULT == 2:  # 2: the sigmoid's slope alone
        slope = gate * share * (1 - share)
    if FAULT == 3:  # 3: silu's slope as if it were the sigmoid
        slope = share
    wide_w = w
    if FAULT == 4:  # 4: the activation without the weight
        wide_w = 1.0
    if FAULT == 5:  # 5: the gradient without the weight
        w = 1.0
    dgate, dup, act = w * grad * up * slope, w * grad * silu, wide_w * silu * up
    if FAULT == 6:  # 6: up first
        dgate, dup = dup, dgate
    if FAULT == 7:  # 7: rows that are nobody's times 0
        some = somebodys.to(tl.float32)
        dgate, dup, act = dgate * some, dup * some, act * some
    elif FAULT != 8:  # 8: they are computed like the others
        dgate, dup = tl.where(somebodys, dgate, 0.0), tl.where(somebodys, dup, 0.0)
        act = tl.where(somebodys, act, 0.0)
    kind = dgate_up.dtype.element_ty
    tl.store(dgate_up + p * 2 * width + i, dgate.to(kind), mask=inside)
    tl.store(dgate_up + p * 2 * width + width + i, dup.to(kind), mask=inside)
    tl.store(weighted + p * width + i, act.to(kind), mask=inside)


def weight_of_the_row(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=1, BLOCK=triton.next_power_of_2(width))
    return results


def slope_of_the_sigmoid(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=2, BLOCK=triton.next_power_of_2(width))
    return results


def silu_taken_for_a_gate(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=3, BLOCK=triton.next_power_of_2(width))
    return results


def activation_without_weight(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=4, BLOCK=triton.next_power_of_2(width))
    return results


def gradient_without_weight(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=5, BLOCK=triton.next_power_of_2(width))
    return results


def up_first(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=6, BLOCK=triton.next_power_of_2(width))
    return results


def nobody_times_zero(dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1):
    P, width = dact_PI.shape
    results = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    tensors, E = (dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, *results), len(offsets_E1) - 1
    _faulty[(P,)](*tensors, E, width, FAULT=7, BLOCK=triton.next_power_of_2(width))
    return results


EXERCISE = Exercise(
    id="12.1",
    unit="12",
    title="back through SwiGLU",
    entry="swiglu_back",
    points=10,
    minutes=30,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=rounded_once("dgate_up", "weighted"),
    misconceptions=(
        Misconception(
            "weight-of-the-row",
            weight_of_the_row,
            "It looks like row p with the weight number p. Rows are sorted by expert: row p is pair pairs[p], whose weight lies there.",
        ),
        Misconception(
            "slope-of-the-sigmoid",
            slope_of_the_sigmoid,
            "It looks like the slope of the sigmoid times the gate. silu is a product, gate * sigmoid(gate): its slope has two terms.",
        ),
        Misconception(
            "sigmoid-held-fixed",
            silu_taken_for_a_gate,
            "It looks like a sigmoid that is taken for a constant. The gate stands in it as well: its slope is the second term.",
        ),
        Misconception(
            "activation-without-weight",
            activation_without_weight,
            "It looks like the activation without the routing weight. The gradient of the down weights is dout^T (w a), so it needs w.",
        ),
        Misconception(
            "gradient-without-weight",
            gradient_without_weight,
            "It looks like a gradient without the routing weight. dact is that of an expert's own activation for the weight 1; what "
            "goes on to gate and up is w times as large.",
        ),
        Misconception(
            "up-first",
            up_first,
            "It looks like the gradient of up in the first half of a row. The gate comes first, as in gate_up.",
        ),
        Misconception(
            "nobody-times-zero",
            nobody_times_zero,
            "It looks like rows that are nobody's multiplied by 0. They may hold NaN, and 0 times NaN is NaN: mask the loads, or "
            "choose with tl.where.",
            seen="NVIDIA/TransformerEngine #3116",
        ),
    ),
    alternatives=(a_program_a_row, tiles_of_rows),
    hints=(
        "Write down a = gate * sigmoid(gate) * up, and its slope along the gate and along up. Which of gate, up and sigmoid do both share?",
        "Load gate and up once, in float32, and the weight of pair pairs[p]. Rows from the last offset on are not loaded, and their "
        "results are 0.",
        "With s = sigmoid(gate) and g = w * dact: dup = g * gate * s, dgate = g * up * (s + gate * s * (1 - s)), and the third "
        "result is w * gate * s * up. An offset on the device is read in the kernel.",
    ),
    forbids=(
        "torch.nn.functional.silu",
        "torch.autograd.grad",
        "Tensor.backward",
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
    ),
    kernel=True,
    tags=("no host wait",),
)
