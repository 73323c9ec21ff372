"""09.7: the largest number of each row and its place: minus infinity as identity, ties to the lower index."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # rows, columns, what the numbers are like
    (0, 5, "plain"),
    (1, 1, "plain"),
    (5, 100, "negative"),
    (6, 300, "ties"),
    (3, 37, "nothing"),
    (4, 64, "ties"),
    (4, 700, "low"),
    (8, 3, "plain"),
]


def inputs(rng, number):
    if number == 0:
        return {"x_ND": torch.tensor([[1.0, 7.0, 7.0], [-2.0, -9.0, -2.0]])}
    if number <= len(EDGES):
        N, D, kind = EDGES[number - 1]
    else:
        N, D, kind = int(rng.integers(2, 10)), int(rng.integers(2, 600)), str(rng.choice(["plain", "negative", "ties"]))
    x_ND = rng.normal(size=(N, D))
    if kind == "negative":
        x_ND = x_ND - 20
    if kind == "ties":
        x_ND = rng.integers(-9, -5, size=(N, D)) / 2
    if kind == "low":
        x_ND = (x_ND - 10) * 1e36
    x_ND = torch.tensor(x_ND, dtype=torch.float32)
    if kind == "nothing":
        x_ND[0], x_ND[1, ::2] = -torch.inf, -torch.inf
    return {"x_ND": x_ND}


def reference(x_ND):
    best_N1 = torch.stack([row.sort().values[-1] for row in x_ND])[:, None] if len(x_ND) else x_ND[:, :1]
    first_N = (x_ND == best_N1).to(torch.int64).sort(dim=1, descending=True, stable=True).indices[:, 0]
    return best_N1[:, 0], first_N


@triton.jit
def _row(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, tl.min(tl.where(values == largest, d, BLOCK)))


def one_program_a_row(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _row[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _tile(x, best, place, N, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (n[:, None] < N) & (d[None, :] < D)
    values = tl.load(x + n[:, None] * D + d[None, :], mask=inside, other=-float("inf"))
    largest, where = tl.max(values, axis=1, return_indices=True)
    tl.store(best + n, largest, mask=n < N)
    tl.store(place + n, where, mask=n < N)


def several_rows_a_program(x_ND):
    N, D = x_ND.shape
    best_N, place_N = x_ND.new_empty(N), torch.zeros(N, dtype=torch.int64)
    _tile[(triton.cdiv(N, 4),)](x_ND, best_N, place_N, N, D, ROWS=4, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _looping(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.load(x + row * D)
    where = tl.zeros([], tl.int64)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
        if tl.max(values) > largest:
            largest = tl.max(values)
            where = begin + tl.argmax(values, axis=0).to(tl.int64)
    tl.store(best + row, largest)
    tl.store(place + row, where)


def block_by_block(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _looping[(N,)](x_ND, best_N, place_N, D, BLOCK=64)
    return best_N, place_N


@triton.jit
def _from_zero(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, tl.min(tl.where(values == largest, d, BLOCK)))


def filled_with_zero(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _from_zero[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _from_low(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=-1e9)
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, tl.min(tl.where(values == largest, d, BLOCK)))


def filled_with_a_low_number(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _from_low[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _unfilled(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D)
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, tl.min(tl.where(values == largest, d, BLOCK)))


def nothing_in_masked_lanes(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _unfilled[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _last(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, tl.max(tl.where((values == largest) & (d < D), d, -1)))


def last_of_equals(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _last[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


@triton.jit
def _flat(x, best, place, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    largest = tl.max(values)
    tl.store(best + row, largest)
    tl.store(place + row, row * D + tl.min(tl.where(values == largest, d, BLOCK)))


def places_in_the_tensor(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _flat[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


def places_in_int32(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int32)
    _row[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return best_N, place_N


def exchanged(x_ND):
    N, D = x_ND.shape
    best_N, place_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    _row[(N,)](x_ND, best_N, place_N, D, BLOCK=triton.next_power_of_2(D))
    return place_N, best_N


EXERCISE = Exercise(
    id="09.7",
    unit="09",
    title="the largest of each row, and where",
    entry="row_max",
    points=5,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("values", "places"),
    misconceptions=(
        Misconception(
            "filled-with-zero",
            filled_with_zero,
            "It looks like masked lanes that hold 0, which is more than every number of a negative row. The identity of a "
            "maximum is minus infinity.",
        ),
        Misconception(
            "filled-with-a-low-number",
            filled_with_a_low_number,
            "It looks like masked lanes that hold a large negative number. Rows may lie lower still, or hold only minus "
            "infinity: fill with float('-inf').",
        ),
        Misconception(
            "nothing-in-masked-lanes",
            nothing_in_masked_lanes,
            "It looks like a masked load without `other` that goes into a maximum. What such lanes hold is undefined (NaN "
            "here): fill them with minus infinity.",
            seen="flagos-ai/FlagGems #3716",
        ),
        Misconception(
            "last-of-equals",
            last_of_equals,
            "It looks like the last place of the largest number where it stands more than once. Ties go to the lower index.",
            seen="pytorch/pytorch #93630",
        ),
        Misconception(
            "places-in-the-tensor",
            places_in_the_tensor,
            "It looks like places counted from the first row. A place is counted within its row, from 0 to D - 1.",
        ),
        Misconception(
            "places-in-int32",
            places_in_int32,
            "It looks like places in int32, as tl.arange counts. The result is int64: give the output tensor that dtype, and the "
            "store converts.",
        ),
        Misconception(
            "exchanged",
            exchanged,
            "It looks like places and values in each other's places. The values come first.",
        ),
    ),
    alternatives=(one_program_a_row, several_rows_a_program, block_by_block),
    hints=(
        "Which number may stand in a padded lane and never be the largest, whatever the row holds?",
        "When the largest number is known, the lanes that hold it can be found by comparing. Which of them has the lowest index?",
        "Load with other=float('-inf'); tl.max; then tl.where keeps d where the value equals it, and tl.min takes the lowest. "
        "(tl.max with return_indices=True does it too.)",
    ),
    forbids=("torch.max", "torch.amax", "torch.argmax", "Tensor.max", "Tensor.amax", "Tensor.argmax"),
    kernel=True,
)
