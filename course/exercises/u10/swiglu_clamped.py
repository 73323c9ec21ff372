"""10.3: SwiGLU with clamps over an interleaved gate and up, as gpt-oss has it but for its factor inside the sigmoid."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # N, I, dtype, limit, offset, spread of the inputs
    (3, 50, BF16, 7.0, 1.0, 6.0),
    (2, 64, FP32, 1.5, 1.0, 3.0),  # a power of two
    (1, 1, FP32, 7.0, 0.0, 3.0),
    (0, 8, BF16, 7.0, 1.0, 1.0),  # no rows
    (5, 37, FP32, 0.5, -0.25, 2.0),
    (3, 100, FP32, 1e4, 1.0, 300.0),  # far out: exp overflows on one side and must not end as NaN
    (4, 600, BF16, 2.0, 1.0, 2.0),
    (4, 300, BF16, 6.3, 0.7, 6.0),  # settings that bfloat16 does not hold
    (3, 41, FP32, 0.0, 2.0, 2.0),  # limit 0: up counts as 0, and the gate stays below 0
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        gate_up = torch.tensor([[1.0, 2.0, 9.0, -9.0], [-9.0, 0.5, 0.0, 3.0]])
        return {"gate_up_NF": gate_up, "limit": 7.0, "offset": 1.0}
    if number <= len(EDGES):
        N, I, dtype, limit, offset, spread = EDGES[number - 1]  # noqa: E741
    else:
        N, I, dtype = int(rng.integers(1, 7)), int(rng.integers(2, 300)), (BF16, FP32)[int(rng.integers(2))]  # noqa: E741
        limit, offset = float(rng.choice([0.75, 2.0, 7.0])), float(rng.choice([0.0, 1.0, 0.5, -0.75]))
        spread = 1.5 * limit
    gate_up_NF = torch.tensor(rng.normal(size=(N, 2 * I)) * spread).to(dtype)
    return {"gate_up_NF": gate_up_NF, "limit": limit, "offset": offset}


def reference(gate_up_NF, limit, offset):
    gate_NI, up_NI = gate_up_NF.double().unflatten(-1, (-1, 2)).unbind(-1)
    gate_NI = gate_NI.clamp(max=limit)
    return (gate_NI * torch.sigmoid(gate_NI) * (up_NI.clamp(-limit, limit) + offset)).to(gate_up_NF.dtype)


@triton.jit
def _pairs(gate_up, out, count, limit, offset, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + 2 * i, mask=i < count).to(tl.float32)
    up = tl.load(gate_up + 2 * i + 1, mask=i < count).to(tl.float32)
    gate = tl.minimum(gate, limit)
    up = tl.clamp(up, -limit, limit)
    tl.store(out + i, (gate * tl.sigmoid(gate) * (up + offset)).to(out.dtype.element_ty), mask=i < count)


def pair_by_pair(gate_up_NF, limit, offset):
    N, F = gate_up_NF.shape
    out_NI = gate_up_NF.new_empty(N, F // 2)
    count, BLOCK = out_NI.numel(), 512
    _pairs[(triton.cdiv(count, BLOCK),)](gate_up_NF, out_NI, count, limit, offset, BLOCK=BLOCK)
    return out_NI


@triton.jit
def _split(gate_up, out, width, limit, offset, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c, i = tl.arange(0, 2 * BLOCK), tl.arange(0, BLOCK)
    both = tl.load(gate_up + row * 2 * width + c, mask=c < 2 * width, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    gate = tl.where(gate > limit, limit, gate)
    up = tl.maximum(tl.minimum(up, limit), -limit)
    tl.store(out + row * width + i, gate / (1.0 + tl.exp(-gate)) * (up + offset), mask=i < width)


def loaded_whole_and_split(gate_up_NF, limit, offset):
    (N, F), dtype = gate_up_NF.shape, gate_up_NF.dtype
    out_NI = torch.empty(N, F // 2, dtype=dtype)
    if out_NI.numel():
        _split[(N,)](gate_up_NF, out_NI, F // 2, limit, offset, BLOCK=triton.next_power_of_2(F // 2))
    return out_NI


@triton.jit
def _faulty(
    gate_up, out, N, width, row_pitch, pitch, up_shift, limit, offset, FAULT: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    places = i // width * row_pitch + i % width * pitch
    gate = tl.load(gate_up + places, mask=i < N * width, other=0.0).to(tl.float32)
    up = tl.load(gate_up + places + up_shift, mask=i < N * width, other=0.0).to(tl.float32)
    if FAULT == 1:  # 1: up first
        gate, up = up, gate
    lower, upper = tl.minimum(gate, limit), tl.maximum(tl.minimum(up, limit), -limit)
    if FAULT == 2:  # 2: the gate from below as well
        lower = tl.maximum(lower, -limit)
    if FAULT == 3:  # 3: up from above alone
        upper = tl.minimum(up, limit)
    shifted = upper + offset
    if FAULT == 4:  # 4: the offset before the clamp
        shifted = tl.maximum(tl.minimum(up + offset, limit), -limit)
    if FAULT == 5:  # 5: always one
        shifted = upper + 1.0
    if FAULT == 13:  # 13: no offset
        shifted = upper
    if FAULT == 6:  # 6: nothing is clamped
        lower, shifted = gate, up + offset
    share = lower * tl.sigmoid(lower)
    if FAULT == 7:  # 7: clamped after silu
        share = tl.minimum(gate * tl.sigmoid(gate), limit)
    if FAULT == 8:  # 8: the sigmoid of the unclamped gate
        share = lower * tl.sigmoid(gate)
    if FAULT == 9:  # 9: silu of up
        share, shifted = upper * tl.sigmoid(upper), lower + offset
    if FAULT == 10:  # 10: gpt-oss's factor in the sigmoid
        share = lower * tl.sigmoid(1.702 * lower)
    if FAULT == 11:  # 11: rounded on the way
        share = share.to(out.dtype.element_ty).to(tl.float32)
        shifted = shifted.to(out.dtype.element_ty).to(tl.float32)
    if FAULT == 12:  # 12: a sigmoid alone
        share = tl.sigmoid(lower)
    tl.store(out + i, (share * shifted).to(out.dtype.element_ty), mask=i < N * width)


def gate_and_up_as_halves(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 1, F // 2  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=0, BLOCK=BLOCK
    )
    return out_NI


def up_first(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=1, BLOCK=BLOCK
    )
    return out_NI


def gate_clamped_from_below(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=2, BLOCK=BLOCK
    )
    return out_NI


def up_clamped_above_alone(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=3, BLOCK=BLOCK
    )
    return out_NI


def offset_before_the_clamp(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=4, BLOCK=BLOCK
    )
    return out_NI


def offset_always_one(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=5, BLOCK=BLOCK
    )
    return out_NI


def offset_lost(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=13, BLOCK=BLOCK
    )
    return out_NI


def nothing_clamped(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=6, BLOCK=BLOCK
    )
    return out_NI


def clamped_after_silu(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=7, BLOCK=BLOCK
    )
    return out_NI


def sigmoid_of_the_unclamped_gate(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=8, BLOCK=BLOCK
    )
    return out_NI


def silu_of_up(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=9, BLOCK=BLOCK
    )
    return out_NI


def factor_in_the_sigmoid(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=10, BLOCK=BLOCK
    )
    return out_NI


def rounded_on_the_way(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=11, BLOCK=BLOCK
    )
    return out_NI


def sigmoid_alone(gate_up_NF, limit, offset):
    (N, F), BLOCK = gate_up_NF.shape, 512
    out_NI = gate_up_NF.new_empty(N, F // 2)
    layout = F, 2, 1  # from row to row, from gate to gate, from gate to up
    _faulty[(triton.cdiv(N * F // 2, BLOCK),)](
        gate_up_NF, out_NI, N, F // 2, *layout, limit, offset, FAULT=12, BLOCK=BLOCK
    )
    return out_NI


EXERCISE = Exercise(
    id="10.3",
    unit="10",
    title="SwiGLU with clamps, interleaved",
    entry="swiglu_clamped",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=rounded_once("out"),
    misconceptions=(
        Misconception(
            "halves",
            gate_and_up_as_halves,
            "It looks like gate and up taken as the two halves of a row. They alternate here: gate 0, up 0, gate 1, up 1.",
        ),
        Misconception(
            "swapped",
            up_first,
            "It looks like gate and up exchanged. Of each pair the gate comes first.",
        ),
        Misconception(
            "gate-from-below",
            gate_clamped_from_below,
            "It looks like a gate clamped on both sides. It has a limit above and none below.",
        ),
        Misconception(
            "up-above-alone",
            up_clamped_above_alone,
            "It looks like up clamped from above alone. It lies between -limit and limit.",
        ),
        Misconception(
            "offset-before-clamp",
            offset_before_the_clamp,
            "It looks like the offset added before the clamp. Clamp up first, then add.",
        ),
        Misconception(
            "offset-always-one",
            offset_always_one,
            "It looks like an offset of 1 whatever is asked. It is an argument.",
        ),
        Misconception(
            "offset-lost",
            offset_lost,
            "It looks like silu(gate) * up without the offset, plain SwiGLU with clamps. The clamped up gets it added first.",
            seen="sgl-project/sglang #39939",
        ),
        Misconception(
            "not-clamped",
            nothing_clamped,
            "It looks like SwiGLU without its clamps: the gate ends at limit, and up lies between -limit and limit.",
        ),
        Misconception(
            "clamp-after-silu",
            clamped_after_silu,
            "It looks like a clamp after silu. The gate is clamped first, and silu of the limit is less than the limit.",
        ),
        Misconception(
            "sigmoid-of-unclamped",
            sigmoid_of_the_unclamped_gate,
            "It looks like the sigmoid of the gate as it came. Both factors of silu take the clamped gate.",
        ),
        Misconception(
            "silu-of-up",
            silu_of_up,
            "It looks like silu of up. The gate goes through silu, and up is clamped and shifted.",
        ),
        Misconception(
            "factor-in-sigmoid",
            factor_in_the_sigmoid,
            "It looks like gate * sigmoid(1.702 gate), the form in gpt-oss's own code. Here silu is meant, with the factor 1.",
        ),
        Misconception(
            "rounded-on-the-way",
            rounded_on_the_way,
            "It looks like silu and up + offset rounded before their product. Stay in float32 and round once.",
        ),
        Misconception(
            "sigmoid-alone",
            sigmoid_alone,
            "It looks like sigmoid(gate), the older GLU. silu(gate) is gate * sigmoid(gate).",
        ),
    ),
    alternatives=(pair_by_pair, loaded_whole_and_split),
    hints=(
        "The result has half as many elements as the input. Where do gate and up of element i lie?",
        "Number the results through, over all rows: the gate of number i lies at 2 i and its up beside it.",
        "gate = minimum(gate, limit); up = maximum(minimum(up, limit), -limit); store gate * sigmoid(gate) * (up + offset), "
        "all in float32, rounded by the store.",
    ),
    forbids=("torch.nn.functional.silu",),
    kernel=True,
)
