"""09.12: a matrix product by tiles: tl.dot on tiles, a loop over K, a float32 accumulator, masks at odd sizes."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # M, K, N, bfloat16
    (0, 3, 4, False),
    (3, 0, 4, False),
    (1, 1, 1, False),
    (32, 32, 32, True),
    (33, 35, 31, False),
    (5, 100, 70, True),
    (70, 9, 5, False),
    (40, 97, 40, True),
    (3, 700, 4, True),
]


def inputs(rng, number):
    if number == 0:
        return {
            "a_MK": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
            "b_KN": torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]),
        }
    if number <= len(EDGES):
        M, K, N, narrow = EDGES[number - 1]
    else:
        (M, K, N), narrow = rng.integers(33, 97, size=3).tolist(), bool(rng.integers(2))
    a_MK, b_KN = (torch.tensor(rng.normal(size=size), dtype=torch.float32) for size in ((M, K), (K, N)))
    return {"a_MK": a_MK.bfloat16(), "b_KN": b_KN.bfloat16()} if narrow else {"a_MK": a_MK, "b_KN": b_KN}


def reference(a_MK, b_KN):
    return (a_MK.double()[:, :, None] * b_KN.double()).sum(dim=1).float()


@triton.jit
def _tiled(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def tile_by_tile(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _tiled[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _walking(a, b, c, M, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    across = tl.cdiv(N, COLUMNS)
    m = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    k = tl.arange(0, DEPTH)
    a += m * K + k[None, :]
    b += k[:, None] * N + n
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for left in range(K, 0, -DEPTH):
        a_tile = tl.load(a, mask=(m < M) & (k[None, :] < left), other=0.0)
        b_tile = tl.load(b, mask=(k[:, None] < left) & (n < N), other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
        a += DEPTH
        b += DEPTH * N
    tl.store(c + m * N + n, total, mask=(m < M) & (n < N))


def pointers_that_walk(a_MK, b_KN):
    (M, K), (_, N) = a_MK.shape, b_KN.shape
    c_MN = torch.zeros(M, N, dtype=torch.float32)
    grid = (triton.cdiv(M, 64) * triton.cdiv(N, 32),)
    _walking[grid](a_MK, b_KN, c_MN, M, N, K, ROWS=64, COLUMNS=32, DEPTH=16)
    return c_MN


@triton.jit
def _unfilled(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K))
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N))
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def nothing_in_masked_lanes(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _unfilled[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _whole(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for block in range(0, K // TILE):
        k = block * TILE + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=m[:, None] < M, other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def tail_of_k_dropped(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _whole[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _last(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total = tl.dot(left, right, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def last_block_of_k_only(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _last[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _narrow(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], a.dtype.element_ty)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total += tl.dot(left, right, input_precision="ieee").to(a.dtype.element_ty)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def narrow_accumulator(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _narrow[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _still(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    still = tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + still[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def b_never_moved(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _still[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _rounded(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total += tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16))
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def inputs_rounded(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _rounded[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


def result_as_narrow_as_the_inputs(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N, dtype=a_MK.dtype)
    _tiled[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


def grid_rounded_down(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _tiled[(M // TILE, N // TILE)](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


@triton.jit
def _cut(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total = tl.dot(left, right, total)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def cut_to_tf32(a_MK, b_KN):
    (M, K), (_, N), TILE = a_MK.shape, b_KN.shape, 32
    c_MN = torch.empty(M, N)
    _cut[(triton.cdiv(M, TILE), triton.cdiv(N, TILE))](a_MK, b_KN, c_MN, M, N, K, TILE=TILE)
    return c_MN


EXERCISE = Exercise(
    id="09.12",
    unit="09",
    title="a matrix product by tiles",
    entry="matmul",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=same("product"),
    misconceptions=(
        Misconception(
            "nothing-in-masked-lanes",
            nothing_in_masked_lanes,
            "It looks like masked lanes that hold nothing defined (NaN here), and each product along K meets them. Give both loads "
            "other=0.0.",
            seen="triton-lang/triton #630",
        ),
        Misconception(
            "tail-of-k-dropped",
            tail_of_k_dropped,
            "It looks like K // BLOCK whole steps, without what is left of K. Take one step more and mask it.",
        ),
        Misconception(
            "last-block-of-k-only",
            last_block_of_k_only,
            "It looks like a total that each step overwrites. tl.dot gives the product of two tiles: add it to what the steps "
            "before gave.",
        ),
        Misconception(
            "narrow-accumulator",
            narrow_accumulator,
            "It looks like a total that is rounded to bfloat16 after every step. Keep it in float32 until the loop has ended.",
        ),
        Misconception(
            "b-never-moved",
            b_never_moved,
            "It looks like the first rows of b_KN at every step. Both tiles move along K: to the right in a, down in b.",
        ),
        Misconception(
            "inputs-rounded",
            inputs_rounded,
            "It looks like float32 inputs rounded to bfloat16 before the product. Multiply them as they are.",
        ),
        Misconception(
            "cut-to-tf32",
            cut_to_tf32,
            "It looks like float32 inputs cut to TF32, which is what tl.dot does unless told otherwise: say "
            'input_precision="ieee".',
        ),
        Misconception(
            "result-as-narrow-as-the-inputs",
            result_as_narrow_as_the_inputs,
            "It looks like a result in the dtype of the inputs. It is float32, also for bfloat16 inputs: nothing is rounded here.",
        ),
        Misconception(
            "grid-rounded-down",
            grid_rounded_down,
            "It looks like a grid rounded down: tiles that stick out over an edge have no program. Round up on both axes.",
        ),
    ),
    alternatives=(tile_by_tile, pointers_that_walk),
    hints=(
        "A program owns one tile of the result. Which rows of a, and which columns of b, does it need?",
        "It meets them in pieces along K: a tile of a times a tile of b, added up. Pieces past the end must add nothing.",
        "Three index vectors m, n, k; only k moves in the loop. Masks for a: m and k; for b: k and n; for c: m and n. The total "
        "is tl.zeros([rows, columns], tl.float32).",
    ),
    forbids=(
        *(
            f"{owner}.{name}"
            for owner in ("torch", "Tensor")
            for name in ("matmul", "mm", "addmm", "bmm", "__matmul__")
        ),
        "torch.einsum",
        "torch.nn.functional.linear",
    ),
    kernel=True,
)
