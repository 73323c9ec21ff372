"""09.1: copy a vector, a block of elements a program: program id, tl.arange and a mask."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EXAMPLE = [3.0, 1.0, 4.0, 1.0, 5.0]
EDGES = [len(EXAMPLE), 0, 1, 256, 257, 1000, 2047]  # elements


def inputs(rng, number):
    if number == 0:
        return {"x_N": torch.tensor(EXAMPLE)}
    N = EDGES[number] if number < len(EDGES) else int(rng.integers(2, 1500))
    if number % 3 == 2:
        return {"x_N": torch.tensor(rng.integers(-(2**62), 2**62, size=N))}
    return {"x_N": torch.tensor(rng.normal(size=N), dtype=torch.float32)}


def reference(x_N):
    return torch.cat([x_N])


@triton.jit
def _copy(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + n, tl.load(x + n, mask=n < N), mask=n < N)


def in_blocks(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _copy[(triton.cdiv(N, BLOCK),)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _dealt(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) + tl.num_programs(0) * tl.arange(0, BLOCK)
    tl.store(out + n, tl.load(x + n, mask=n < N), mask=n < N)


def dealt_like_cards(x_N):
    out_N = torch.empty_like(x_N)
    _dealt[(triton.cdiv(x_N.numel(), 128),)](x_N, out_N, x_N.numel(), BLOCK=128)
    return out_N


@triton.jit
def _looping(x, out, N, BLOCK: tl.constexpr):
    for begin in range(0, N, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        tl.store(out + n, tl.load(x + n, mask=n < N), mask=n < N)


def one_program(x_N):
    out_N = torch.empty_like(x_N)
    _looping[(1,)](x_N, out_N, len(x_N), BLOCK=512)
    return out_N


def grid_rounded_down(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _copy[(N // BLOCK,)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


def first_block_only(x_N):
    out_N = torch.empty_like(x_N)
    _copy[(1,)](x_N, out_N, len(x_N), BLOCK=256)
    return out_N


def last_one_missing(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _copy[(triton.cdiv(N, BLOCK),)](x_N, out_N, N - 1, BLOCK=BLOCK)
    return out_N


@triton.jit
def _from_one(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + 1 + tl.arange(0, BLOCK)
    tl.store(out + n, tl.load(x + n, mask=n < N), mask=n < N)


def counts_from_one(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _from_one[(triton.cdiv(N, BLOCK),)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _as_float(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + n, tl.load(x + n, mask=n < N).to(tl.float32), mask=n < N)


def through_float32(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _as_float[(triton.cdiv(N, BLOCK),)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


def default_dtype(x_N):
    N, BLOCK = len(x_N), 256
    out_N = torch.empty(N)
    _copy[(triton.cdiv(N, BLOCK),)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


@triton.jit
def _half_masked(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + n, tl.load(x + n, mask=n < N), mask=tl.arange(0, BLOCK) < N % BLOCK)


def every_block_cut(x_N):
    out_N = torch.empty_like(x_N)
    N, BLOCK = len(x_N), 256
    _half_masked[(triton.cdiv(N, BLOCK),)](x_N, out_N, N, BLOCK=BLOCK)
    return out_N


EXERCISE = Exercise(
    id="09.1",
    unit="09",
    title="copy, in blocks",
    entry="copy",
    points=5,
    minutes=10,
    difficulty=1,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("out"),
    misconceptions=(
        Misconception(
            "grid-rounded-down",
            grid_rounded_down,
            "It looks like N // BLOCK programs: the last, shorter block has none. Round up (triton.cdiv), and let the mask "
            "cut what is too much.",
        ),
        Misconception(
            "first-block-only",
            first_block_only,
            "It looks like one program that copies one block. A program handles BLOCK elements; the grid must have "
            "ceil(N / BLOCK) of them.",
        ),
        Misconception(
            "last-one-missing",
            last_one_missing,
            "It looks like a mask that ends one element early. The last element is N - 1, so the lanes n < N are inside.",
        ),
        Misconception(
            "counts-from-one",
            counts_from_one,
            "It looks like offsets that begin at 1. Program 0 begins at element 0: n = program * BLOCK + arange.",
        ),
        Misconception(
            "through-float32",
            through_float32,
            "It looks like integers that went through float32, which holds 24 bits of them. A load has the dtype of its "
            "pointer; a copy changes nothing.",
        ),
        Misconception(
            "default-dtype",
            default_dtype,
            "It looks like a result of the default dtype: torch.empty makes float32. The copy has the dtype of x_N, as "
            "torch.empty_like gives it.",
        ),
        Misconception(
            "every-block-cut",
            every_block_cut,
            "It looks like a mask for the last block that is put on every block. Compare each lane's own offset n with N.",
        ),
    ),
    alternatives=(in_blocks, dealt_like_cards, one_program),
    hints=(
        "A kernel is one function that runs many times. What does one run know that the others do not?",
        "Program p handles the elements from p * BLOCK on. tl.arange(0, BLOCK) numbers its lanes; some lie past the end.",
        "One vector of offsets serves twice: add it to either pointer, and compare it with N for the mask of load and store. "
        "The grid is a tuple of one number, rounded up.",
    ),
    forbids=("Tensor.copy_", "torch.clone", "Tensor.clone"),
    kernel=True,
)
