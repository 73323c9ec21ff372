"""02.4: SwiGLU from one fused matrix, in the three layouts that checkpoints have (Shazeer 2020, equation 6)."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [((1, 2), 1, "gate_up"), ((3, 4), 3, "interleaved"), ((2, 3, 6), 4, "up_gate"), ((5, 7), 6, "gate_up")]
LAYOUTS = ["gate_up", "up_gate", "interleaved"]


def inputs(rng, number):
    if number < len(EDGES):
        shape, hidden, layout = EDGES[number]
    else:
        shape = (int(rng.integers(2, 20)), int(rng.integers(3, 16)))
        hidden, layout = int(rng.integers(2, 24)), LAYOUTS[int(rng.integers(3))]
    D = shape[-1]

    def normal(*sizes):
        return torch.tensor(rng.normal(size=sizes), dtype=torch.float32)

    return {
        "x": 2 * normal(*shape),
        "fused_FD": normal(2 * hidden, D),
        "down_DI": normal(D, hidden),
        "layout": layout,
    }


def reference(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    if layout == "interleaved":
        gate, up = both[..., 0::2], both[..., 1::2]
    else:
        gate, up = both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (F.silu(gate) * up) @ down_DI.T


def rows_of_the_matrix(x, fused_FD, down_DI, layout):
    hidden = down_DI.shape[1]
    rows = {
        "gate_up": (fused_FD[:hidden], fused_FD[hidden:]),
        "up_gate": (fused_FD[hidden:], fused_FD[:hidden]),
        "interleaved": tuple(fused_FD.view(hidden, 2, -1).unbind(dim=1)),
    }
    gate_ID, up_ID = rows[layout]
    gate = F.linear(x, gate_ID)
    return F.linear(gate * torch.sigmoid(gate) * F.linear(x, up_ID), down_DI)


def always_gate_first(x, fused_FD, down_DI, layout):
    gate, up = (x @ fused_FD.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down_DI.T


def always_up_first(x, fused_FD, down_DI, layout):
    up, gate = (x @ fused_FD.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down_DI.T


def interleaved_as_halves(x, fused_FD, down_DI, layout):
    gate, up = (x @ fused_FD.T).chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (F.silu(gate) * up) @ down_DI.T


def interleaved_up_first(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 1::2], both[..., 0::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (F.silu(gate) * up) @ down_DI.T


def silu_on_up(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (gate * F.silu(up)) @ down_DI.T


def sigmoid_alone(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (torch.sigmoid(gate) * up) @ down_DI.T


def gelu_for_silu(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (F.gelu(gate) * up) @ down_DI.T


def relu_for_silu(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return (F.relu(gate) * up) @ down_DI.T


def silu_of_the_product(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    return F.silu(gate * up) @ down_DI.T


def silu_on_both(x, fused_FD, down_DI, layout):
    both = F.silu(x @ fused_FD.T)
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    return (gate * up) @ down_DI.T


def nothing_gates(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return F.silu(gate) @ down_DI.T


def added_to_x(x, fused_FD, down_DI, layout):
    both = x @ fused_FD.T
    gate, up = (both[..., 0::2], both[..., 1::2]) if layout == "interleaved" else both.chunk(2, dim=-1)
    if layout == "up_gate":
        gate, up = up, gate
    return x + (F.silu(gate) * up) @ down_DI.T


EXERCISE = Exercise(
    id="02.4",
    unit="02",
    title="SwiGLU",
    entry="swiglu",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=6,
    reference=reference,
    compare=same("the result", rtol=1e-5),
    misconceptions=(
        Misconception(
            "always-gate-first",
            always_gate_first,
            "It looks like the first half as the gate in every layout. In up_gate it is the second half, in interleaved every other row.",
        ),
        Misconception(
            "always-up-first",
            always_up_first,
            "It looks like the second half as the gate in every layout. In gate_up it is the first half, in interleaved every other row.",
        ),
        Misconception(
            "interleaved-as-halves",
            interleaved_as_halves,
            "It looks like halves where rows alternate. In interleaved row 0 is a gate, row 1 an up, row 2 a gate again: 0::2 and 1::2.",
            "vllm-project/vllm, pull request 29273: gpt-oss wrote garbage on CPUs until its rows were read as pairs",
        ),
        Misconception(
            "interleaved-up-first",
            interleaved_up_first,
            "It looks like the odd rows taken for gates in interleaved. Rows 0, 2, 4, ... are gates, rows 1, 3, 5, ... are ups.",
        ),
        Misconception(
            "silu-on-up",
            silu_on_up,
            "It looks like silu on the up projection. The gate goes through silu, and the other one is multiplied as it is.",
            "ml-explore/mlx-lm, pull request 767: silu(x) * gate where silu(gate) * x was meant",
        ),
        Misconception(
            "sigmoid",
            sigmoid_alone,
            "It looks like a sigmoid for the gate, which is the older GLU. Silu is gate * sigmoid(gate).",
        ),
        Misconception(
            "gelu",
            gelu_for_silu,
            "It looks like GELU for the gate: that layer is GeGLU. In SwiGLU it is silu, x * sigmoid(x).",
        ),
        Misconception(
            "relu",
            relu_for_silu,
            "It looks like a gate cut off at zero: that layer is ReGLU. Silu is x * sigmoid(x), and a little below zero for negative x.",
        ),
        Misconception(
            "silu-of-the-product",
            silu_of_the_product,
            "It looks like silu of the product. Only the gate goes through silu, before the two are multiplied.",
        ),
        Misconception(
            "silu-on-both",
            silu_on_both,
            "It looks like silu on gate and up together. Silu goes on the gate alone: split first.",
        ),
        Misconception(
            "nothing-gates",
            nothing_gates,
            "It looks like the up projection left out. Then nothing is gated: multiply silu(gate) by up before the last matrix.",
        ),
        Misconception(
            "added-to-x",
            added_to_x,
            "It looks like the residual connection in here. The block adds what this function returns: return the product alone.",
        ),
    ),
    alternatives=(rows_of_the_matrix,),
    hints=(
        "One product with the fused matrix, then take it apart. Which of its columns are gates, in each layout?",
        "Halves come from chunk(2, dim=-1), alternating ones from the slices 0::2 and 1::2.",
        "gate and up for each layout, then silu(gate) times up, then the down matrix, transposed, from the right.",
    ),
)
