"""09.10: rows fetched by their ids: a pointer that depends on what was loaded."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # rows of x, width, ids, what the numbers are like
    (4, 5, 0, "plain"),
    (1, 1, 1, "plain"),
    (6, 64, 9, "plain"),
    (3, 65, 10, "dropped"),
    (9, 100, 7, "infinite"),
    (5, 7, 12, "all dropped"),
    (12, 1, 5, "dropped"),  # one number a row: a block of one lane
    (2, 200, 8, "infinite"),
]


def inputs(rng, number):
    if number == 0:
        return {"x_ND": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "ids_P": torch.tensor([2, -1, 0, 2])}
    if number <= len(EDGES):
        N, D, P, kind = EDGES[number - 1]
    else:
        N, D, P, kind = int(rng.integers(2, 20)), int(rng.integers(2, 200)), int(rng.integers(5, 13)), "dropped"
    x_ND = torch.tensor(rng.normal(size=(N, D)), dtype=torch.float32)
    ids_P = torch.tensor(rng.integers(0, N, size=P))
    if kind == "infinite":
        x_ND[0, ::2], x_ND[-1, 1::2] = torch.inf, -torch.inf
    if kind == "all dropped":
        ids_P[:] = -1
    if kind in ("dropped", "infinite"):
        ids_P[torch.tensor(rng.random(P) < 0.4)] = -1
        ids_P[1] = -1
        ids_P[2] = N - 1
    return {"x_ND": x_ND, "ids_P": ids_P}


def reference(x_ND, ids_P):
    rows_PD = [torch.zeros(x_ND.shape[1]) if i < 0 else x_ND[i] for i in ids_P.tolist()]
    return torch.stack(rows_PD) if rows_PD else x_ND[:0]


@triton.jit
def _row(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    values = tl.load(x + row * D + d, mask=(d < D) & (row >= 0), other=0.0)
    tl.store(out + p * D + d, values, mask=d < D)


def one_program_an_id(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _row[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _tile(x, ids, out, P, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(ids + p, mask=p < P, other=-1)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        there = (row >= 0)[:, None] & (d < D)[None, :]
        values = tl.where(there, tl.load(x + row[:, None] * D + d[None, :], mask=there), 0.0)
        tl.store(out + p[:, None] * D + d[None, :], values, mask=(p < P)[:, None] & (d < D)[None, :])


def several_ids_a_program(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = x_ND.new_zeros(P, D)
    _tile[(triton.cdiv(P, 4),)](x_ND, ids_P, out_PD, P, D, ROWS=4, BLOCK=32)
    return out_PD


@triton.jit
def _wrapped(x, ids, out, N, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    row = tl.where(row < 0, row + N, row)
    tl.store(out + p * D + d, tl.load(x + row * D + d, mask=d < D), mask=d < D)


def last_row_for_minus_one(x_ND, ids_P):
    P, (N, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _wrapped[(P,)](x_ND, ids_P, out_PD, N, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _clamped(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.maximum(tl.load(ids + p), 0)
    tl.store(out + p * D + d, tl.load(x + row * D + d, mask=d < D), mask=d < D)


def first_row_for_minus_one(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _clamped[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _skipped(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    there = d < tl.where(row < 0, 0, D)
    tl.store(out + p * D + d, tl.load(x + row * D + d, mask=there), mask=there)


def left_unwritten(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _skipped[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _times_zero(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    values = tl.load(x + tl.maximum(row, 0) * D + d, mask=d < D)
    tl.store(out + p * D + d, values * (row >= 0).to(tl.float32), mask=d < D)


def multiplied_by_zero(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _times_zero[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _element(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    values = tl.load(x + row + d, mask=d < tl.where(row < 0, 0, D), other=0.0)
    tl.store(out + p * D + d, values, mask=d < D)


def id_as_an_offset(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _element[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _one_id(x, ids, out, P, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + tl.program_id(0) * ROWS)
    values = tl.load(x + row * D + d, mask=(d < D) & (row >= 0), other=0.0)
    tl.store(out + p[:, None] * D + d[None, :], values[None, :], mask=(p < P)[:, None] & (d < D)[None, :])


def one_id_for_a_tile(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _one_id[(triton.cdiv(P, 4),)](x_ND, ids_P, out_PD, P, D, ROWS=4, BLOCK=triton.next_power_of_2(D))
    return out_PD


@triton.jit
def _narrow(x, ids, out, D, BLOCK: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    values = tl.load(x + row * D + d, mask=(d < D) & (row >= 0), other=0.0)
    tl.store(out + p * D + d, values, mask=d < D)


def columns_cut_off(x_ND, ids_P):
    P, (_, D) = len(ids_P), x_ND.shape
    out_PD = torch.empty(P, D)
    _narrow[(P,)](x_ND, ids_P, out_PD, D, BLOCK=64)
    return out_PD


EXERCISE = Exercise(
    id="09.10",
    unit="09",
    title="rows gathered by their ids",
    entry="gather_rows",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("rows"),
    misconceptions=(
        Misconception(
            "last-row-for-minus-one",
            last_row_for_minus_one,
            "It looks like the last row where the id is -1, as Python's negative indices would give it. -1 stands for no row: "
            "zeros.",
            seen="pytorch/pytorch #151918",
        ),
        Misconception(
            "first-row-for-minus-one",
            first_row_for_minus_one,
            "It looks like ids clamped to 0, and so row 0 where the id is -1. -1 stands for no row: zeros.",
        ),
        Misconception(
            "left-unwritten",
            left_unwritten,
            "It looks like rows that were given no value where the id is -1: neither a masked load nor torch.empty holds zeros. Load "
            "with other=0.0, and store every row.",
        ),
        Misconception(
            "multiplied-by-zero",
            multiplied_by_zero,
            "It looks like some row times 0 where the id is -1. Infinity times 0 is NaN: do not load that row at all.",
        ),
        Misconception(
            "id-as-an-offset",
            id_as_an_offset,
            "It looks like ids added to the pointer as they are. A row is D elements long: row i begins at i * D.",
        ),
        Misconception(
            "one-id-for-a-tile",
            one_id_for_a_tile,
            "It looks like one id for several rows of the result. Each row has its own id: load a vector of them, [:, None].",
        ),
        Misconception(
            "columns-cut-off",
            columns_cut_off,
            "It looks like rows cut off at 64 columns. The block must hold D columns (triton.next_power_of_2), or a loop go "
            "over them.",
        ),
    ),
    alternatives=(one_program_an_id, several_ids_a_program),
    hints=(
        "The address of what is loaded depends on another load. Which of the two comes first?",
        "One program an id: load one scalar from ids_P, and use it where the row number stood before. For -1 the load of the "
        "row must be masked off.",
        "The mask of the load is a condition on the id and one on d, joined by &, with other=0.0; the mask of the store is d < D "
        "alone.",
    ),
    forbids=(
        "torch.index_select",
        "Tensor.index_select",
        "torch.gather",
        "Tensor.gather",
        "torch.nn.functional.embedding",
    ),
    kernel=True,
)
