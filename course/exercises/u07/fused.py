"""07.3: the experts of a layer in one tensor, in the three layouts that libraries use, as single matrices under their names."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

LAYOUTS = ("rows", "columns", "alternating")
EDGES = [  # layout, experts, width, hidden width, dtype
    ("rows", 3, 8, 4, torch.float32),  # the square of 2I = D: no shape tells gate and up from a transpose
    ("columns", 3, 8, 4, torch.float32),
    ("alternating", 3, 8, 4, torch.float32),
    ("rows", 2, 5, 5, torch.bfloat16),
    ("columns", 2, 5, 5, torch.float32),
    ("alternating", 12, 3, 3, torch.bfloat16),
    ("rows", 1, 4, 1, torch.float32),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        gate_up = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        return {
            "gate_up": gate_up,
            "down": torch.tensor([[[5.0], [6.0]]]),
            "layout": "alternating",
            "prefix": "m.experts",
        }
    if number <= len(EDGES):
        layout, E, D, I, dtype = EDGES[number - 1]  # noqa: E741
    else:
        layout, dtype = LAYOUTS[int(rng.integers(3))], torch.float32
        E, D, I = int(rng.integers(1, 14)), int(rng.integers(2, 9)), int(rng.integers(1, 7))  # noqa: E741
    gate_up = torch.tensor(rng.standard_normal((E, 2 * I, D)), dtype=torch.float32).to(dtype)
    down = torch.tensor(rng.standard_normal((E, D, I)), dtype=torch.float32).to(dtype)
    if layout != "rows":
        gate_up, down = gate_up.mT.contiguous(), down.mT.contiguous()
    prefix = f"model.layers.{int(rng.integers(1, 60))}.mlp.experts"
    return {"gate_up": gate_up, "down": down, "layout": layout, "prefix": prefix}


def reference(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def expert_by_expert(gate_up, down, layout, prefix):
    single = {}
    for e, (both, back) in enumerate(zip(gate_up.unbind(0), down.unbind(0), strict=True)):
        if layout != "rows":
            both, back = both.t(), back.t()
        I = both.shape[0] // 2  # noqa: E741
        pairs = both.reshape(I, 2, -1) if layout == "alternating" else both.reshape(2, I, -1).transpose(0, 1)
        single[f"{prefix}.{e}.gate_proj.weight"] = pairs[:, 0].clone()
        single[f"{prefix}.{e}.up_proj.weight"] = pairs[:, 1].clone()
        single[f"{prefix}.{e}.down_proj.weight"] = back.clone()
    return single


def gate_and_up_swapped(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", up_EID), ("up", gate_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def alternating_as_halves(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def halves_as_alternating(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up[:, 0::2], gate_up[:, 1::2]
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def reshaped(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.reshape(len(half), half.shape[2], half.shape[1]) for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = (gate_up[:, :, part::2].reshape(len(gate_up), -1, gate_up.shape[1]) for part in (0, 1))
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def down_as_it_is(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def gate_up_as_it_is(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = gate_up.chunk(2, dim=2)
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2], gate_up[:, :, 1::2]
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].contiguous()
    return single


def always_rows(gate_up, down, layout, prefix):
    single = {}
    for e in range(len(gate_up)):
        half = gate_up.shape[1] // 2
        gate_ID, up_ID = gate_up[e, :half], gate_up[e, half:]
        single[f"{prefix}.{e}.gate_proj.weight"] = gate_ID.contiguous()
        single[f"{prefix}.{e}.up_proj.weight"] = up_ID.contiguous()
        single[f"{prefix}.{e}.down_proj.weight"] = down[e].contiguous()
    return single


def from_one(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e + 1}.{name}_proj.weight"] = every[e].contiguous()
    return single


def in_order_of_text(gate_up, down, layout, prefix):
    if layout == "rows":
        parts = [*gate_up.chunk(2, dim=1), down]
    elif layout == "columns":
        parts = [*(half.mT for half in gate_up.chunk(2, dim=2)), down.mT]
    else:
        parts = [gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT, down.mT]
    single = {}
    for e, number in enumerate(sorted(map(str, range(len(gate_up))))):
        for name, every in zip(("gate", "up", "down"), parts, strict=True):
            single[f"{prefix}.{number}.{name}_proj.weight"] = every[e].contiguous()
    return single


def widened(gate_up, down, layout, prefix):
    if layout == "rows":
        gate_EID, up_EID = gate_up.chunk(2, dim=1)
        down_EDI = down
    elif layout == "columns":
        gate_EID, up_EID = (half.mT for half in gate_up.chunk(2, dim=2))
        down_EDI = down.mT
    else:
        gate_EID, up_EID = gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT
        down_EDI = down.mT
    single = {}
    for e in range(len(gate_up)):
        for name, every in (("gate", gate_EID), ("up", up_EID), ("down", down_EDI)):
            single[f"{prefix}.{e}.{name}_proj.weight"] = every[e].float().contiguous()
    return single


EXERCISE = Exercise(
    id="07.3",
    unit="07",
    title="unpack fused experts",
    entry="unpack_experts",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("the matrices", rtol=1e-12),
    misconceptions=(
        Misconception(
            "gate-and-up-swapped",
            gate_and_up_swapped,
            "It looks like gate and up exchanged. The gate comes first, in rows, in columns, and of two "
            "alternating columns.",
        ),
        Misconception(
            "alternating-as-halves",
            alternating_as_halves,
            "It looks like alternating columns cut into two halves. Columns 0, 2, 4 are the gate's, columns 1, 3, "
            "5 are up's.",
        ),
        Misconception(
            "halves-as-alternating",
            halves_as_alternating,
            "It looks like halves taken for alternating rows or columns. Only the layout `alternating` alternates.",
        ),
        Misconception(
            "reshaped",
            reshaped,
            "It looks like a reshape where a transpose is meant: the shape is right, and the numbers stand in "
            "other places.",
        ),
        Misconception(
            "down-as-it-is",
            down_as_it_is,
            "It looks like the down projection left as it is. In the layouts with columns it is transposed as well.",
        ),
        Misconception(
            "gate-up-as-it-is",
            gate_up_as_it_is,
            "It looks like gate and up not transposed. A single matrix has the shape [I, D]: it leads from D "
            "numbers to I.",
        ),
        Misconception(
            "always-rows",
            always_rows,
            "It looks like one layout for all checkpoints: rows cut into halves. `layout` says which of three it is.",
        ),
        Misconception(
            "counted-from-one",
            from_one,
            "It looks like experts counted from 1. The first is expert 0.",
        ),
        Misconception(
            "sorted-as-text",
            in_order_of_text,
            "It looks like numbers sorted as text: 0, 1, 10, 11, 2. Expert e is row e of the tensor.",
        ),
        Misconception(
            "widened",
            widened,
            "It looks like matrices in another dtype. Unpacking moves numbers and changes none: keep the dtype.",
        ),
    ),
    alternatives=(expert_by_expert,),
    hints=(
        "First make three tensors of all experts, [E, I, D], [E, I, D] and [E, D, I]; then hand out one matrix "
        "after the other.",
        "In rows: two halves of dimension 1. In columns: two halves of dimension 2, transposed. Alternating: "
        "every second column, transposed.",
        "tensor[:, :, 0::2] takes every second column from the first on, and .mT exchanges the last two dimensions.",
    ),
)
