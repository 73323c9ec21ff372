"""09.6: the sum of rows longer than any block: a loop over blocks, and a wide accumulator that it carries."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

LONGEST = 1 << 20  # elements that a block may have in Triton
EDGES = [  # rows, columns, bfloat16
    (0, 7, False),
    (3, 0, False),
    (1, 1, True),
    (2, 4096, False),
    (2, 4097, True),
    (3, 9000, False),
    (1, LONGEST + 4099, True),
]


def inputs(rng, number):
    if number == 0:
        return {"x_ND": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    if number <= len(EDGES):
        N, D, narrow = EDGES[number - 1]
    else:
        N, D, narrow = int(rng.integers(1, 5)), int(rng.integers(5000, 20000)), bool(rng.integers(2))
    x_ND = torch.tensor(rng.normal(size=(N, D)) + 1, dtype=torch.float32)
    return {"x_ND": x_ND.bfloat16() if narrow else x_ND}


def reference(x_ND):
    return torch.einsum("nd->n", x_ND.double()).float()


@triton.jit
def _blocks(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32))
    tl.store(out + row, total)


def block_by_block(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _blocks[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _lanes(x, out, D, BLOCK: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * D
    total = tl.zeros([BLOCK], tl.float32)
    left = D
    while left > 0:
        d = tl.arange(0, BLOCK)
        total += tl.load(x + d, mask=d < left, other=0.0)
        x += BLOCK
        left -= BLOCK
    tl.store(out + tl.program_id(0), tl.sum(total))


def a_total_a_lane(x_ND):
    out_N = torch.zeros(len(x_ND))
    _lanes[(len(x_ND),)](x_ND, out_N, x_ND.shape[1], BLOCK=8192)
    return out_N


@triton.jit
def _last(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total = tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32))
    tl.store(out + row, total)


def last_block_only(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _last[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


def first_block_only(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _first[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _first(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    tl.store(out + row, tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)))


@triton.jit
def _whole(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for block in range(0, D // BLOCK):
        d = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x + row * D + d).to(tl.float32))
    tl.store(out + row, total)


def tail_dropped(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _whole[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _unfilled(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x + row * D + d, mask=d < D).to(tl.float32))
    tl.store(out + row, total)


def nothing_in_masked_lanes(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _unfilled[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _still(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    total = 0.0
    for begin in range(0, D, BLOCK):
        total += tl.sum(tl.load(x + row * D + d, mask=begin + d < D, other=0.0).to(tl.float32))
    tl.store(out + row, total)


def pointer_never_moved(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _still[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _narrow(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.load(x + row * D + d, mask=d < D, other=0.0)
    tl.store(out + row, tl.sum(total.to(tl.float32)))


def narrow_accumulator(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _narrow[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _late(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0)).to(tl.float32)
    tl.store(out + row, total)


def widened_after_the_sum(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _late[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


@triton.jit
def _twice(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32))
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32))
    tl.store(out + row, total)


def first_block_twice(x_ND):
    N, D = x_ND.shape
    out_N = torch.empty(N)
    _twice[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N


EXERCISE = Exercise(
    id="09.6",
    unit="09",
    title="the sum of long rows",
    entry="long_row_sum",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("sums"),
    misconceptions=(
        Misconception(
            "last-block-only",
            last_block_only,
            "It looks like each block's sum put over the one before. The loop carries a total: add to it.",
        ),
        Misconception(
            "first-block-only",
            first_block_only,
            "It looks like the first block alone. A row is longer than a block: the program must go on until D is reached.",
        ),
        Misconception(
            "tail-dropped",
            tail_dropped,
            "It looks like D // BLOCK whole blocks, without what is left over. Take one block more, and mask it.",
        ),
        Misconception(
            "nothing-in-masked-lanes",
            nothing_in_masked_lanes,
            "It looks like a last block whose masked lanes hold nothing defined (NaN here). Fill them: other=0.0.",
            seen="flagos-ai/FlagGems #3716",
        ),
        Misconception(
            "pointer-never-moved",
            pointer_never_moved,
            "It looks like the first block added again and again. The offsets must move with the loop: begin + arange.",
        ),
        Misconception(
            "narrow-accumulator",
            narrow_accumulator,
            "It looks like a total in bfloat16, which stands still once it is 256 times what is added. Widen each block to "
            "float32, and add in float32.",
            seen="triton-lang/triton #1960 (float16)",
        ),
        Misconception(
            "widened-after-the-sum",
            widened_after_the_sum,
            "It looks like sums of bfloat16 blocks that are bfloat16 themselves: each is rounded to 8 bits. Widen the block to "
            "float32 before tl.sum.",
            seen="pytorch/pytorch #141052",
        ),
        Misconception(
            "first-block-twice",
            first_block_twice,
            "It looks like a total that begins with the first block and then meets it again. Begin with 0, or let the loop begin "
            "at the second block.",
        ),
    ),
    alternatives=(block_by_block, a_total_a_lane),
    hints=(
        "One program still owns one row. How does it get over a row that no block can hold?",
        "`for begin in range(0, D, BLOCK)` works in a kernel. What changes from turn to turn, and what is carried along?",
        "Start a float32 total at zero, move the offsets by begin, mask the last block with other=0.0, widen before adding, and "
        "store after the loop.",
    ),
    forbids=("torch.sum", "Tensor.sum"),
    kernel=True,
)
