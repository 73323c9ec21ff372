"""09.5: the sum of each row, a row in one block: what a masked-off lane must hold in a reduction."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(0, 5), (1, 1), (4, 64), (5, 129), (3, 1000), (8, 3), (9, 100)]  # rows, columns


def inputs(rng, number):
    if number == 0:
        return {"x_ND": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    N, D = EDGES[number - 1] if number <= len(EDGES) else (int(rng.integers(2, 11)), int(rng.integers(130, 700)))
    return {"x_ND": torch.tensor(rng.normal(size=(N, D)) + 0.5, dtype=torch.float32)}


def reference(x_ND):
    return torch.einsum("nd->n", x_ND.double()).float()


@triton.jit
def _row(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0)))


def one_program_a_row(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _row[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _several(x, out, N, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (n[:, None] < N) & (d[None, :] < D)
    values = tl.load(x + n[:, None] * D + d[None, :], mask=inside)
    tl.store(out + n, tl.sum(tl.where(inside, values, 0.0), axis=1), mask=n < N)


def several_rows_a_program(x_ND):
    N, D = x_ND.shape
    out_N = torch.zeros(N)
    _several[(triton.cdiv(N, 4),)](x_ND, out_N, N, D, ROWS=4, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _unfilled(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * D + d, mask=d < D)))


def nothing_in_masked_lanes(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _unfilled[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _ones(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * D + d, mask=d < D, other=1.0)))


def filled_with_one(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _ones[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _minus_infinity(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * D + d, mask=d < D, other=-float("inf"))))


def filled_with_minus_infinity(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _minus_infinity[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _column(x, out, N, D, BLOCK: tl.constexpr):
    column = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    tl.store(out + column, tl.sum(tl.load(x + n * D + column, mask=n < N, other=0.0)))


def columns_summed(x_ND):
    N, D = x_ND.shape
    out_D = torch.empty(D)
    _column[(D if N else 0,)](x_ND, out_D, N, D, BLOCK=triton.next_power_of_2(N))
    return out_D


def fixed_block(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _row[(N,)](x_ND, out_N, D, BLOCK=128) if D > 128 else _row[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N


@triton.jit
def _whole_tile(x, out, N, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (n[:, None] < N) & (d[None, :] < D)
    total = tl.sum(tl.load(x + n[:, None] * D + d[None, :], mask=inside, other=0.0))
    tl.store(out + n, total, mask=n < N)


def axis_forgotten(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _whole_tile[(triton.cdiv(N, 4),)](x_ND, out_N, N, D, ROWS=4, BLOCK=triton.next_power_of_2(D))
    return out_N


def dimension_kept(x_ND):
    N, D = x_ND.shape
    out_N1 = torch.empty(N, 1)
    _row[(N,)](x_ND, out_N1, D, BLOCK=triton.next_power_of_2(D))
    return out_N1


EXERCISE = Exercise(
    id="09.5",
    unit="09",
    title="the sum of each row",
    entry="row_sum",
    points=5,
    minutes=10,
    difficulty=1,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("sums"),
    misconceptions=(
        Misconception(
            "nothing-in-masked-lanes",
            nothing_in_masked_lanes,
            "It looks like a masked load without `other` that goes into a sum. What such lanes hold is undefined (NaN here): "
            "fill them with the identity of the sum, 0.",
            seen="flagos-ai/FlagGems #3716",
        ),
        Misconception(
            "filled-with-one",
            filled_with_one,
            "It looks like masked lanes that hold 1, and each of them is added. The identity of a sum is 0; 1 is that of a product.",
        ),
        Misconception(
            "filled-with-minus-infinity",
            filled_with_minus_infinity,
            "It looks like masked lanes that hold minus infinity. That is the identity of a maximum; of a sum it is 0.",
        ),
        Misconception(
            "columns-summed",
            columns_summed,
            "It looks like the sum of each column. A row is summed over its D elements: the result has N numbers.",
        ),
        Misconception(
            "block-of-128",
            fixed_block,
            "It looks like a block of 128 elements for rows that are longer: the rest is never read. Take a block of "
            "triton.next_power_of_2(D).",
        ),
        Misconception(
            "axis-forgotten",
            axis_forgotten,
            "It looks like the sum of a whole tile, given to each of its rows. tl.sum without an axis adds up everything; "
            "axis=1 leaves the rows.",
        ),
        Misconception(
            "dimension-kept",
            dimension_kept,
            "It looks like a result of shape [N, 1]. One number a row is a vector: [N].",
        ),
    ),
    alternatives=(one_program_a_row, several_rows_a_program),
    hints=(
        "A block must have a power of two of lanes, and D is none. What do the lanes past the end contribute?",
        "tl.load has an argument `other` for lanes that are masked off. Which number changes no sum?",
        "One program a row: load the row into one block with other=0.0, reduce it with tl.sum, and store one scalar.",
    ),
    forbids=("torch.sum", "Tensor.sum"),
    kernel=True,
)
