"""11.5: gate and up of every expert with SwiGLU, over the tiles of 11.3, each token read where it lies."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # tokens, experts a token, experts, width, hidden width, block, dtype, what the ids are like
    (0, 2, 3, 16, 8, 16, FP32, "plain"),
    (1, 1, 2, 7, 3, 16, FP32, "plain"),  # one pair: blocks larger than the data
    (20, 2, 4, 70, 33, 16, BF16, "plain"),
    (9, 3, 6, 40, 20, 16, FP32, "dropped"),
    (18, 1, 3, 33, 16, 32, FP32, "one"),  # K = 1, and all tokens go to one expert
    (12, 2, 3, 64, 32, 16, BF16, "twice"),  # whole tiles, tokens with both pairs at one expert's rows
]


def inputs(rng, number):
    if number == 0:
        x_TD, ids, block = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1, 0], [0, -1]]), 16
        gate_up_EFD = torch.tensor([[[1.0, 1.0], [3.0, 0.5]], [[2.0, 0.0], [1.0, 1.0]]])
    else:
        if number <= len(EDGES):
            T, K, E, D, half, block, dtype, kind = EDGES[number - 1]
        else:
            T, K, E, D, half = (
                int(rng.integers(low, high)) for low, high in ((6, 24), (1, 4), (2, 6), (33, 70), (17, 40))
            )
            block, dtype, kind = 16, (BF16, FP32)[int(rng.integers(2))], "dropped"
        ids = rng.integers(0, E, size=(T, K))
        if kind == "one":
            ids[:] = 1
        if kind == "twice":
            ids = _each_slot(rng.permutation([0] * 8 + [2] * 4), K)
        if kind == "dropped":
            ids[rng.random((T, K)) < 0.2] = -1
        ids = torch.tensor(ids)
        x_TD = torch.tensor(rng.normal(size=(T, D))).to(dtype)
        gate_up_EFD = torch.tensor(rng.normal(size=(E, 2 * half, D)) * 1.5 * D**-0.5).to(dtype)
    pairs_P, experts_B, firsts_B, heights_B = _table(ids, len(gate_up_EFD), block)
    return {
        "x_TD": x_TD, "gate_up_EFD": gate_up_EFD, "pairs_P": pairs_P, "experts_B": experts_B, "firsts_B": firsts_B,
        "heights_B": heights_B, "top_k": ids.shape[1], "block": block,
    }  # fmt: skip


def _each_slot(ids_T, K):
    return ids_T[:, None].repeat(K, axis=1)


def _table(ids_TK, E, block):
    """The pairs in the order of their experts, dropped ones last and called -1; and the tiles as 11.3 has them."""
    key_P, order_P = torch.where(ids_TK < 0, E, ids_TK).flatten().sort(stable=True)
    pairs_P = torch.where(key_P < E, order_P, -1)
    rows, first = [], 0
    for e, count in enumerate((key_P[:, None] == torch.arange(E)).sum(0).tolist()):
        rows += [(e, first + at, min(block, count - at)) for at in range(0, count, block)]
        first += count
    B = min(len(key_P), E) + max(len(key_P) - E, 0) // block
    rows += [(-1, 0, 0)] * (B - len(rows))
    table_3B = torch.tensor(rows, dtype=torch.int64).view(-1, 3).T
    return pairs_P, *(part.clone() for part in table_3B)


def reference(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    p_P1 = torch.arange(len(pairs_P))[:, None]
    holds_PB = (p_P1 >= firsts_B) & (p_P1 < firsts_B + heights_B)
    expert_P = torch.where(holds_PB, experts_B, 0).sum(dim=1)
    rows_PD = x_TD.double()[pairs_P.clamp(min=0) // top_k]
    gate_PI, up_PI = (rows_PD[:, None, :] * gate_up_EFD.double()[expert_P]).sum(dim=-1).chunk(2, dim=1)
    return torch.where(holds_PB.any(dim=1)[:, None], F.silu(gate_PI) * up_PI, 0.0).to(x_TD.dtype)


@triton.jit
def _gathered(
    x, weight, pairs, experts, firsts, heights, out, D, half, top_k,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    expert, first = tl.load(experts + tl.program_id(0)), tl.load(firsts + tl.program_id(0))
    if expert >= 0:
        m = tl.arange(0, BLOCK_M)
        inside = m < tl.load(heights + tl.program_id(0))
        token = tl.load(pairs + first + m, mask=inside) // top_k
        i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
        gate = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
        for begin in range(0, D, BLOCK_D):
            d = begin + tl.arange(0, BLOCK_D)
            rows = tl.load(x + token[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
            at = weight + (expert * 2 * half + i[None, :]) * D + d[:, None]
            mask = (i < half)[None, :] & (d < D)[:, None]
            gate = tl.dot(rows, tl.load(at, mask=mask, other=0.0), gate, input_precision="ieee")
            up = tl.dot(rows, tl.load(at + half * D, mask=mask, other=0.0), up, input_precision="ieee")
        at = out + (first + m)[:, None] * half + i[None, :]
        tl.store(
            at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside[:, None] & (i < half)[None, :]
        )


def gate_and_up_side_by_side(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    D, half = x_TD.size(1), gate_up_EFD.size(1) // 2
    out_PI = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype)
    _gathered[(len(experts_B), triton.cdiv(half, 16))](
        x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI, D, half, top_k,
        BLOCK_M=block, BLOCK_I=16, BLOCK_D=64,
    )  # fmt: skip
    return out_PI


@triton.jit
def _flat_grid(
    x, weight, pairs, experts, firsts, heights, out, D, half, K,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(half, BLOCK_I)
    tile = tl.program_id(0) // across
    height, first = tl.load(heights + tile), tl.load(firsts + tile)
    if height == 0:
        return
    expert = tl.load(experts + tile)
    p = first + tl.arange(0, BLOCK_M)[:, None]
    i = tl.program_id(0) % across * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    d = tl.arange(0, BLOCK_D)
    pair = tl.load(pairs + p, mask=p < first + height, other=-1)
    x_at = x + pair // K * D + d[None, :]
    gate_at = weight + expert * 2 * half * D + i * D + d[:, None]
    up_at = gate_at + half * D
    gate = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
    for left in range(D, 0, -BLOCK_D):
        rows = tl.load(x_at, mask=(pair >= 0) & (d < left)[None, :], other=0.0)
        gate += tl.dot(rows, tl.load(gate_at, mask=(i < half) & (d < left)[:, None], other=0.0), input_precision="ieee")
        up += tl.dot(rows, tl.load(up_at, mask=(i < half) & (d < left)[:, None], other=0.0), input_precision="ieee")
        x_at += BLOCK_D
        gate_at += BLOCK_D
        up_at += BLOCK_D
    result = up * gate / (1.0 + tl.exp(-gate))
    tl.store(out + p * half + i, result.to(out.dtype.element_ty), mask=(p < first + height) & (i < half))


def in_a_flat_grid(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (_, D), (_, F, _) = x_TD.shape, gate_up_EFD.shape
    out_PI = torch.zeros(pairs_P.numel(), F // 2, dtype=x_TD.dtype)
    programs = len(experts_B) * triton.cdiv(F // 2, 32)
    if programs:
        _flat_grid[(programs,)](
            x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI, D, F // 2, top_k,
            BLOCK_M=block, BLOCK_I=32, BLOCK_D=32,
        )  # fmt: skip
    return out_PI


@triton.jit
def _faulty(
    x, weight, pairs, experts, firsts, heights, out, T, D, half, top_k, FAULT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    expert, first = tl.load(experts + tl.program_id(0)), tl.load(firsts + tl.program_id(0))
    if expert >= 0:
        m = tl.arange(0, BLOCK_M)
        inside = m < tl.load(heights + tl.program_id(0))
        pair = tl.load(pairs + first + m, mask=inside, other=0)
        token = pair // top_k
        if FAULT == 1:  # 1: pairs numbered slot after slot
            token = pair % T
        i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
        gate_row, to_up = i, half
        if FAULT == 3:  # 3: gate and up alternate
            gate_row, to_up = 2 * i, 1
        gate = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
        for begin in range(0, D, BLOCK_D):
            d = begin + tl.arange(0, BLOCK_D)
            rows = tl.load(x + token[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
            at = weight + (expert * 2 * half + gate_row[None, :]) * D + d[:, None]
            mask = (i < half)[None, :] & (d < D)[:, None]
            gate = tl.dot(rows, tl.load(at, mask=mask, other=0.0), gate, input_precision="ieee")
            up = tl.dot(rows, tl.load(at + to_up * D, mask=mask, other=0.0), up, input_precision="ieee")
        if FAULT == 2:  # 2: the other way round
            result = up * tl.sigmoid(up) * gate
        elif FAULT == 4:  # 4: sigmoid in place of silu
            result = tl.sigmoid(gate) * up
        elif FAULT == 5:  # 5: gate and up rounded first
            gate = gate.to(out.dtype.element_ty).to(tl.float32)
            result = gate * tl.sigmoid(gate) * up.to(out.dtype.element_ty).to(tl.float32)
        else:
            result = gate * tl.sigmoid(gate) * up
        at = out + (first + m)[:, None] * half + i[None, :]
        if FAULT == 6:  # 6: results where the pair came from
            at = out + pair[:, None] * half + i[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=inside[:, None] & (i < half)[None, :])


def slot_after_slot(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=1, **blocks)
    return out_PI


def up_through_silu(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=2, **blocks)
    return out_PI


def gate_and_up_alternate(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=3, **blocks)
    return out_PI


def sigmoid_for_silu(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=4, **blocks)
    return out_PI


def rounded_before_swiglu(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=5, **blocks)
    return out_PI


def back_where_the_pair_was(x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, top_k, block):
    (T, D), half = x_TD.shape, gate_up_EFD.shape[1] // 2
    out_PI, blocks = torch.zeros(len(pairs_P), half, dtype=x_TD.dtype), dict(BLOCK_M=block, BLOCK_I=32, BLOCK_D=32)
    tensors = x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI
    _faulty[(len(experts_B), triton.cdiv(half, 32))](*tensors, T, D, half, top_k, FAULT=6, **blocks)
    return out_PI


EXERCISE = Exercise(
    id="11.5",
    unit="11",
    title="gate and up with the gather inside",
    entry="gather_gate_up",
    points=15,
    minutes=40,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=rounded_once("out"),
    misconceptions=(
        Misconception(
            "slot-after-slot",
            slot_after_slot,
            "It looks like pairs numbered slot after slot (the token is pair % T). Here pair = token * top_k + slot, so the token is "
            "pair // top_k.",
        ),
        Misconception(
            "up-through-silu",
            up_through_silu,
            "It looks like silu of up, times gate. The gate comes first in the weights, and silu is taken of it.",
        ),
        Misconception(
            "gate-and-up-alternate",
            gate_and_up_alternate,
            "It looks like weights whose rows are gate and up in turns. The first I rows of an expert are its gate, the other I its up.",
        ),
        Misconception(
            "sigmoid-for-silu",
            sigmoid_for_silu,
            "It looks like sigmoid(gate) * up. silu(gate) is gate * sigmoid(gate).",
        ),
        Misconception(
            "rounded-before-swiglu",
            rounded_before_swiglu,
            "It looks like gate and up that are rounded before SwiGLU. They never leave the registers: keep them in float32, and "
            "round the result once.",
        ),
        Misconception(
            "back-where-it-was",
            back_where_the_pair_was,
            "It looks like results written to the row of the pair's number. The next product reads them sorted by expert: row "
            "firsts[b] + m of the result is the m-th row of tile b.",
        ),
    ),
    alternatives=(gate_and_up_side_by_side, in_a_flat_grid),
    hints=(
        "Which numbers does a program need before its loop begins, and which of them can it load from the table at its own number?",
        "Load the pairs of the tile, BLOCK_M at most; their tokens give the rows of x as a column of pointers, each somewhere else. "
        "From there on it is a product with two accumulators.",
        "rows at x + token[:, None] * D + d[None, :], the gate's weights at (expert * 2 I + i) * D + d, up's I * D further on; two "
        "dots a step, and gate * sigmoid(gate) * up after the loop.",
    ),
    forbids=(
        *("Tensor.index_select", "torch.index_select", "torch.gather", "Tensor.gather", "torch.matmul", "torch.bmm"),
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
    ),
    kernel=True,
    tags=("only kernels read",),
)
