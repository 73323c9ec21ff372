"""12.4: the gradient of the routing weights without the experts' results, and on through V3's gate to the chosen logits."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

BF16, FP32 = torch.bfloat16, torch.float32
FAR = 600
EDGES = [  # tokens, slots, hidden width, dtype, share of dropped pairs, scale; gate and up are wide where I is FAR
    (7, 3, 40, BF16, 0.3, 2.5),
    (4, 1, 33, FP32, 0.25, 2.5),  # one slot: a normalised weight is always the scale
    (0, 2, 8, FP32, 0.0, 1.0),  # no tokens
    (3, 4, FAR, FP32, 0.2, 1.0),  # wider than a block, and exp overflows on one side
    (5, 2, 1, FP32, 0.0, -1.5),
    (4, 3, 16, BF16, 1.0, 2.5),  # all dropped
    (6, 8, 64, FP32, 0.4, 2.5),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "dact_PI": torch.tensor([[3.0, 1.0], [0.5, 2.0], [float("nan"), 0.0], [4.0, 0.0]]),
            "gate_up_PF": torch.tensor(
                [[1.0, 0.0, 2.0, 5.0], [0.0, 2.0, 7.0, 1.0], [9.0, 9.0, 9.0, 9.0], [-1.0, 3.0, 1.0, 1.0]]
            ),
            "places_TK": torch.tensor([[1, 0], [3, -1]]),
            "scores_TK": torch.tensor([[0.5, 0.25], [0.75, 0.25]]),
            "scale": 2.0,
        }
    if number <= len(EDGES):
        T, K, I, dtype, out, scale = EDGES[number - 1]  # noqa: E741
    else:
        T, K, I = int(rng.integers(1, 12)), int(rng.integers(2, 9)), int(rng.integers(2, 200))  # noqa: E741
        dtype, out = (BF16, FP32)[int(rng.integers(2))], float(rng.choice([0.0, 0.3]))
        scale = float(rng.choice([1.0, 2.5, 0.5]))
    places_P = torch.tensor(rng.permutation(T * K), dtype=torch.int64)
    lost_P = torch.tensor(rng.random(T * K) < out)
    dact_PI = torch.tensor(rng.normal(size=(T * K, I))).to(dtype)
    dact_PI[places_P[lost_P]] = float("nan")  # rows that nobody has
    places_P[lost_P] = -1
    return {
        "dact_PI": dact_PI,
        "gate_up_PF": torch.tensor(rng.normal(size=(T * K, 2 * I)) * (300 if I == FAR else 2)).to(dtype),
        "places_TK": places_P.view(T, K),
        "scores_TK": torch.tensor(1 / (1 + 2.0 ** (3 * rng.normal(size=(T, K)))), dtype=torch.float32),
        "scale": scale,
    }


def reference(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    gate_PI, up_PI = gate_up_PF.double().chunk(2, dim=-1)
    along_P = (dact_PI.double() * gate_PI * torch.sigmoid(gate_PI) * up_PI).sum(dim=-1)
    dw_TK = torch.where(places_TK >= 0, along_P[places_TK.clamp(min=0).flatten()].view(places_TK.shape), 0.0)
    s_TK = scores_TK.double()
    apart_TKK = dw_TK[:, :, None] - dw_TK[:, None, :]  # 0 on the diagonal, so that one slot gives exactly 0
    ds_TK = scale * (apart_TKK * s_TK[:, None, :]).sum(dim=-1) / s_TK.sum(dim=-1, keepdim=True) ** 2
    return dw_TK.float(), (ds_TK * s_TK * (1 - s_TK)).float()


@triton.jit
def _token(dact, gate_up, places, scores, dweights, dlogits, width, K, scale, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    at = tl.load(places + t * K + slots, mask=slots < K, other=-1)[:, None]
    along = tl.zeros([SLOTS, BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        i = begin + tl.arange(0, BLOCK)[None, :]
        there = (at >= 0) & (i < width)
        gate = tl.load(gate_up + at * 2 * width + i, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up + at * 2 * width + width + i, mask=there, other=0.0).to(tl.float32)
        grad = tl.load(dact + at * width + i, mask=there, other=0.0).to(tl.float32)
        along += grad * gate * tl.sigmoid(gate) * up
    dw = tl.sum(along, axis=1)
    tl.store(dweights + t * K + slots, dw, mask=slots < K)
    s = tl.load(scores + t * K + slots, mask=slots < K, other=0.0)
    total = tl.sum(s)
    ds = scale / total * (dw - tl.sum(dw * s) / total)
    tl.store(dlogits + t * K + slots, ds * s * (1.0 - s), mask=slots < K)


def all_slots_at_once(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    dweights_TK, dlogits_TK = (torch.empty(T, K, dtype=torch.float32) for _ in range(2))
    _token[(T,)](
        dact_PI, gate_up_PF, places_TK, scores_TK, dweights_TK, dlogits_TK, width, K, scale,
        SLOTS=triton.next_power_of_2(K), BLOCK=256,
    )  # fmt: skip
    return dweights_TK, dlogits_TK


@triton.jit
def _pair(dact, gate_up, places, dweights, width, BLOCK: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    place = tl.load(places + pair)
    total = 0.0
    if place != -1:
        for begin in range(0, width, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            row = gate_up + place * width * 2 + i
            gate = tl.load(row, mask=i < width, other=0.0).to(tl.float32)
            act = gate / (1.0 + tl.exp(-gate)) * tl.load(row + width, mask=i < width, other=0.0).to(tl.float32)
            total += tl.sum(act * tl.load(dact + place * width + i, mask=i < width, other=0.0).to(tl.float32))
    tl.store(dweights + pair, total)


@triton.jit
def _gate(dweights, scores, dlogits, T, K, scale, ROWS: tl.constexpr):
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total, along = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for k in range(K):
        s = tl.load(scores + t * K + k, mask=t < T, other=1.0)
        total += s
        along += s * tl.load(dweights + t * K + k, mask=t < T, other=0.0)
    for k in range(K):
        s = tl.load(scores + t * K + k, mask=t < T, other=1.0)
        dw = tl.load(dweights + t * K + k, mask=t < T, other=0.0)
        tl.store(dlogits + t * K + k, scale * (dw * total - along) / (total * total) * s * (1.0 - s), mask=t < T)


def pairs_and_then_tokens(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    T, K = places_TK.shape
    dweights_TK, dlogits_TK = torch.zeros_like(scores_TK), torch.zeros_like(scores_TK)
    if T:
        _pair[(T * K,)](dact_PI, gate_up_PF, places_TK, dweights_TK, dact_PI.shape[1], BLOCK=128)
        _gate[(triton.cdiv(T, 16),)](dweights_TK, scores_TK, dlogits_TK, T, K, scale, ROWS=16)
    return dweights_TK, dlogits_TK


@triton.jit
def _faulty(
    dact, gate_up, places, scores, dweights, dlogits, width, K, scale,
    FAULT: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    slots, i = tl.arange(0, SLOTS), tl.arange(0, BLOCK)[None, :]
    place = tl.load(places + t * K + slots, mask=slots < K, other=-1)
    kept = place >= 0
    at = place[:, None]
    if FAULT == 1:  # 1: rows in the order of the tokens
        at = (t * K + slots)[:, None]
    there = kept[:, None] & (i < width)
    gate = tl.load(gate_up + at * 2 * width + i, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at * 2 * width + width + i, mask=there, other=0.0).to(tl.float32)
    grad = tl.load(dact + at * width + i, mask=there, other=0.0).to(tl.float32)
    act = gate * tl.sigmoid(gate) * up
    if FAULT == 2:  # 2: gate times up
        act = gate * up
    dw = tl.sum(grad * act, axis=1)
    s = tl.load(scores + t * K + slots, mask=slots < K, other=0.0)
    whole = tl.sum(s)
    if FAULT == 3:  # 3: with the weight in it
        dw *= scale * s / whole
    tl.store(dweights + t * K + slots, dw, mask=slots < K)
    part = s
    if FAULT == 4:  # 4: normalised over those that were kept
        part = tl.where(kept, s, 0.0)
        whole = tl.maximum(tl.sum(part), 1e-30)
    mean = tl.sum(dw * part) / whole
    if FAULT == 5:  # 5: the sum of the scores taken for a constant
        mean = 0.0
    if FAULT == 6:  # 6: the plain mean
        mean = tl.sum(dw) / K
    ds = (dw - mean) / whole
    if FAULT != 7:  # 7: the scale is lost
        ds *= scale
    dlogit = ds * s * (1.0 - s)
    if FAULT == 8:  # 8: softmax's slope
        dlogit = ds * s
    if FAULT == 9 or FAULT == 4:  # 9: a dropped pair's logit gets nothing
        dlogit = tl.where(kept, dlogit, 0.0)
    tl.store(dlogits + t * K + slots, dlogit, mask=slots < K)


def rows_in_the_order_of_tokens(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=1, **blocks)
    return results


def activation_without_sigmoid(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=2, **blocks)
    return results


def gradient_times_the_weight(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=3, **blocks)
    return results


def normalised_over_the_kept(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=4, **blocks)
    return results


def sum_taken_for_a_constant(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=5, **blocks)
    return results


def plain_mean(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=6, **blocks)
    return results


def scale_lost(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=7, **blocks)
    return results


def slope_of_softmax(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=8, **blocks)
    return results


def dropped_logits_left_out(dact_PI, gate_up_PF, places_TK, scores_TK, scale):
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    results = torch.empty(T, K), torch.empty(T, K)
    blocks = {"SLOTS": triton.next_power_of_2(K), "BLOCK": triton.next_power_of_2(width)}
    _faulty[(T,)](dact_PI, gate_up_PF, places_TK, scores_TK, *results, width, K, scale, FAULT=9, **blocks)
    return results


EXERCISE = Exercise(
    id="12.4",
    unit="12",
    title="the gradient of the routing weights",
    entry="routing_back",
    points=15,
    minutes=40,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("dweights", "dlogits"),
    misconceptions=(
        Misconception(
            "rows-in-token-order",
            rows_in_the_order_of_tokens,
            "It looks like row t * K + k for slot k of token t. Rows are sorted by expert: the pair's row is places[t, k].",
        ),
        Misconception(
            "activation-without-sigmoid",
            activation_without_sigmoid,
            "It looks like gate * up for the activation. It is silu(gate) * up, and silu(gate) is gate * sigmoid(gate).",
        ),
        Misconception(
            "gradient-times-weight",
            gradient_times_the_weight,
            "It looks like a gradient that has the routing weight in it. The result is the sum of w y, so the gradient of w is <dout, y>, "
            "and dact already is that of an activation for the weight 1.",
        ),
        Misconception(
            "normalised-over-kept",
            normalised_over_the_kept,
            "It looks like a normalisation over the pairs that were kept. The router divided by the sum over all it chose, before any "
            "was dropped.",
        ),
        Misconception(
            "sum-held-fixed",
            sum_taken_for_a_constant,
            "It looks like the sum of the scores taken for a constant. Each score stands in it too, so a mean weighted by the scores is "
            "taken off: a common factor of the chosen moves no weight.",
        ),
        Misconception(
            "plain-mean",
            plain_mean,
            "It looks like the plain mean of the gradients taken off. It is weighted by the scores.",
        ),
        Misconception(
            "scale-lost",
            scale_lost,
            "It looks like weights that add up to 1. They are multiplied by `scale` after the normalisation.",
        ),
        Misconception(
            "slope-of-softmax",
            slope_of_softmax,
            "It looks like the slope s. The gate is a sigmoid, whose slope is s (1 - s).",
        ),
        Misconception(
            "dropped-logits-left-out",
            dropped_logits_left_out,
            "It looks like no gradient for the logit of a dropped pair. Its own weight has none, but its score stands in the sum that "
            "the others were divided by.",
        ),
    ),
    alternatives=(all_slots_at_once, pairs_and_then_tokens),
    hints=(
        "The expert's result is y = down a. Move `down` to the other side of the dot product <dout, down a>: what is left of it, and is "
        "it at hand?",
        "dweights[t, k] is the dot product of two rows of length I: dact at the pair's place, and silu(gate) * up there. It is 0 without "
        "a place. Go along I in blocks. Then the gate: w = scale * s / S.",
        "With S the sum of all K scores: ds = scale / S * (dw - sum(dw * s) / S), also where dw is 0 because the pair was dropped, and "
        "the logit's gradient is ds * s * (1 - s).",
    ),
    forbids=(
        "torch.nn.functional.silu",
        "torch.autograd.grad",
        "Tensor.backward",
        *(f"triton.language.atomic_{name}" for name in ("add", "xchg", "cas")),
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
    ),
    kernel=True,
    tags=("no host wait",),
)
