"""09.2: add a column and a row: offsets with two dimensions, made by broadcasting, and a grid with two axes."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(0, 5), (1, 1), (32, 64), (33, 31), (5, 90), (90, 5), (1, 40), (40, 1), (7, 0), (65, 96)]  # M, N


def inputs(rng, number):
    if number == 0:
        return {"column_M": torch.tensor([1.0, 2.0, 3.0]), "row_N": torch.tensor([10.0, 20.0])}
    M, N = EDGES[number - 1] if number <= len(EDGES) else rng.integers(1, 97, size=2).tolist()
    return {
        "column_M": torch.tensor(rng.normal(size=M), dtype=torch.float32),
        "row_N": torch.tensor(rng.normal(size=N), dtype=torch.float32),
    }


def reference(column_M, row_N):
    return column_M[:, None] + row_N


@triton.jit
def _tiles(column, row, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(column + m, mask=m < M)[:, None] + tl.load(row + n, mask=n < N)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], values, mask=(m[:, None] < M) & (n[None, :] < N))


def in_tiles(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _tiles[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


@triton.jit
def _rows(column, row, out, N, BLOCK: tl.constexpr):
    m = tl.program_id(0)
    value = tl.load(column + m)
    for begin in range(0, N, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        tl.store(out + m * N + n, value + tl.load(row + n, mask=n < N), mask=n < N)


def one_program_a_row(column_M, row_N):
    out_MN = torch.empty(len(column_M), len(row_N))
    _rows[(len(column_M),)](column_M, row_N, out_MN, len(row_N), BLOCK=64)
    return out_MN


@triton.jit
def _flat(column, row, out, M, N, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < M * N
    values = tl.load(column + place // N, mask=inside) + tl.load(row + place % N, mask=inside)
    tl.store(out + place, values, mask=inside)


def flat_places(column_M, row_N):
    M, N = len(column_M), len(row_N)
    out_MN = torch.empty(M, N)
    _flat[(triton.cdiv(M * N, 1024),)](column_M, row_N, out_MN, M, N, BLOCK=1024)
    return out_MN


def transposed(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_NM = torch.empty(N, M)
    _tiles[(triton.cdiv(N, TILE), triton.cdiv(M, TILE))](row_N, column_M, out_NM, N, M, TILE=TILE)
    return out_NM


def grid_rounded_down(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _tiles[(M // TILE, N // TILE)](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


def grid_of_one_axis(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _tiles[(triton.cdiv(M, TILE),)](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


def axes_swapped(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _tiles[(triton.cdiv(N, TILE), triton.cdiv(M, TILE))](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


@triton.jit
def _diagonals(column, row, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(column + m, mask=m < M) + tl.load(row + n, mask=n < N)
    tl.store(out + m * N + n, values, mask=(m < M) & (n < N))


def without_broadcasting(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _diagonals[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


@triton.jit
def _one_value(column, row, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(column + tl.program_id(0) * TILE) + tl.load(row + n, mask=n < N)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], values, mask=(m[:, None] < M) & (n[None, :] < N))


def one_value_a_tile(column_M, row_N):
    M, N, TILE = len(column_M), len(row_N), 32
    out_MN = torch.empty(M, N)
    _one_value[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](column_M, row_N, out_MN, M, N, TILE=TILE)
    return out_MN


EXERCISE = Exercise(
    id="09.2",
    unit="09",
    title="a column plus a row",
    entry="outer_sum",
    points=5,
    minutes=10,
    difficulty=1,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=same("out"),
    misconceptions=(
        Misconception(
            "transposed",
            transposed,
            "It looks like a result with rows and columns exchanged. Row m belongs to column_M[m], so the shape is [M, N].",
        ),
        Misconception(
            "grid-rounded-down",
            grid_rounded_down,
            "It looks like a grid rounded down: tiles that stick out over an edge have no program. Round up on both axes "
            "(triton.cdiv); the mask cuts the rest.",
        ),
        Misconception(
            "grid-of-one-axis",
            grid_of_one_axis,
            "It looks like a grid with one axis: tl.program_id(1) is then always 0, and only the first tile of columns is "
            "written. Give the grid a second number.",
        ),
        Misconception(
            "axes-swapped",
            axes_swapped,
            "It looks like the two numbers of the grid in each other's places. The first counts what program_id(0) runs "
            "over, the second what program_id(1) does.",
        ),
        Misconception(
            "without-broadcasting",
            without_broadcasting,
            "It looks like one lane a row where a whole tile is meant: only a diagonal of each tile is written. [:, None] "
            "and [None, :] make two dimensions of the two vectors.",
        ),
        Misconception(
            "one-value-a-tile",
            one_value_a_tile,
            "It looks like one element of column_M for the whole tile. A tile has many rows, each with an element of its own: "
            "load a vector, and turn it into a column with [:, None].",
        ),
    ),
    alternatives=(in_tiles, one_program_a_row, flat_places),
    hints=(
        "A tile has rows and columns. Which of the two inputs does each of them need?",
        "Two vectors of indices, m and n: m[:, None] is a column, n[None, :] a row, and what they are added to is a tile.",
        "The place of element (m, n) in a contiguous [M, N] tensor is m * N + n; both masks must hold, joined by &, with "
        "parentheses around each comparison.",
    ),
    kernel=True,
)
