"""09.11: transpose by tiles: each element read once and written once, neighbours together both times."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(0, 4), (1, 1), (32, 32), (33, 50), (1, 70), (70, 1), (64, 96), (90, 20)]  # rows, columns


def inputs(rng, number):
    if number == 0:
        return {"x_MN": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    M, N = EDGES[number - 1] if number <= len(EDGES) else rng.integers(34, 97, size=2).tolist()
    return {"x_MN": torch.tensor(rng.normal(size=(M, N)), dtype=torch.float32)}


def reference(x_MN):
    return torch.einsum("mn->nm", x_MN).clone()


@triton.jit
def _tiles(x, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    values = tl.load(x + m[:, None] * N + n[None, :], mask=(m[:, None] < M) & (n[None, :] < N))
    tl.store(out + n[:, None] * M + m[None, :], tl.trans(values), mask=(n[:, None] < N) & (m[None, :] < M))


def turned_tiles(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _tiles[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


@triton.jit
def _pointers(x, out, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tiles = tl.cdiv(N, COLUMNS)
    m = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (m < M) & (n < N)
    tl.store(out + n * M + m, tl.load(x + m * N + n, mask=inside), mask=inside)


def turned_pointers(x_MN):
    M, N = x_MN.shape
    out_NM = x_MN.new_zeros((N, M))
    _pointers[(triton.cdiv(M, 64) * triton.cdiv(N, 32),)](x_MN, out_NM, M, N, ROWS=64, COLUMNS=32)
    return out_NM


@triton.jit
def _unturned(x, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(x + m[:, None] * N + n[None, :], mask=(m[:, None] < M) & (n[None, :] < N))
    tl.store(out + n[:, None] * M + m[None, :], values, mask=(n[:, None] < N) & (m[None, :] < M))


def tiles_not_turned(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _unturned[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


@triton.jit
def _unmoved(x, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(x + m[:, None] * N + n[None, :], mask=(m[:, None] < M) & (n[None, :] < N))
    tl.store(out + m[:, None] * M + n[None, :], tl.trans(values), mask=(m[:, None] < N) & (n[None, :] < M))


def tiles_not_moved(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _unmoved[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


@triton.jit
def _straight(x, out, M, N, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (m[:, None] < M) & (n[None, :] < N)
    places = m[:, None] * N + n[None, :]
    tl.store(out + places, tl.load(x + places, mask=inside), mask=inside)


def only_reshaped(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _straight[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


def not_transposed(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_MN = torch.empty_like(x_MN)
    _straight[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](x_MN, out_MN, M, N, TILE=TILE)
    return out_MN


def grid_rounded_down(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _tiles[(M // TILE, N // TILE)](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


def axes_swapped(x_MN):
    (M, N), TILE = x_MN.shape, 32
    out_NM = torch.empty(N, M)
    _tiles[(triton.cdiv(N, TILE), triton.cdiv(M, TILE))](x_MN, out_NM, M, N, TILE=TILE)
    return out_NM


EXERCISE = Exercise(
    id="09.11",
    unit="09",
    title="transpose by tiles",
    entry="transpose",
    points=5,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("out"),
    misconceptions=(
        Misconception(
            "tiles-not-turned",
            tiles_not_turned,
            "It looks like tiles that went to the right place as they were. Inside a tile rows and columns must change places "
            "too: tl.trans, or pointers of the other shape.",
        ),
        Misconception(
            "tiles-not-moved",
            tiles_not_moved,
            "It looks like tiles that were turned and stayed where they were. The tile of rows m and columns n goes to rows n and "
            "columns m.",
        ),
        Misconception(
            "only-reshaped",
            only_reshaped,
            "It looks like the same numbers in the same order under another shape. Element (m, n) goes to n * M + m.",
        ),
        Misconception(
            "not-transposed",
            not_transposed,
            "It looks like x_MN itself. Element (m, n) of the input is element (n, m) of the result, whose shape is [N, M].",
        ),
        Misconception(
            "grid-rounded-down",
            grid_rounded_down,
            "It looks like a grid rounded down: tiles that stick out over an edge have no program. Round up on both axes.",
        ),
        Misconception(
            "axes-swapped",
            axes_swapped,
            "It looks like the two numbers of the grid in each other's places. The first counts what program_id(0) runs "
            "over, the second what program_id(1) does.",
        ),
    ),
    alternatives=(turned_tiles, turned_pointers),
    hints=(
        "A tile is turned twice over: it goes to another place, and what is inside changes places too. Which line does which?",
        "Loading uses m * N + n, storing n * M + m. The shape of the pointers decides how a tile lies.",
        "tl.trans turns a tile of [rows, columns] into [columns, rows]; then pointers and mask of the store begin with n[:, None]. "
        "Each mask belongs to its own tensor.",
    ),
    forbids=("Tensor.contiguous", "torch.transpose_copy", "torch.permute_copy", "torch.t_copy"),
    kernel=True,
)
