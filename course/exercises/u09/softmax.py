"""09.8: the softmax of each row, stable: a maximum, a sum and a division in one visit to memory."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EXAMPLE = [[0.0, float(torch.tensor(3.0).log()), -torch.inf], [1000.0, 1000.0, 1000.0]]
EDGES = [  # rows, columns, what the numbers are like
    (0, 5, "plain"),
    (1, 1, "plain"),
    (4, 64, "plain"),
    (5, 129, "low"),
    (5, 100, "far"),
    (6, 37, "masked"),
    (3, 1000, "plain"),
    (4, 21, "nothing"),
    (9, 3, "far"),
]


def inputs(rng, number):
    if number == 0:
        return {"x_ND": torch.tensor(EXAMPLE)}
    if number <= len(EDGES):
        N, D, kind = EDGES[number - 1]
    else:
        N, D, kind = int(rng.integers(2, 9)), int(rng.integers(2, 500)), str(rng.choice(["plain", "far", "masked"]))
    x_ND = torch.tensor(rng.normal(size=(N, D)) * 2, dtype=torch.float32)
    if kind == "low":
        x_ND -= 30000
    if kind == "far":
        x_ND += torch.linspace(-900, 900, N)[:, None]
    if kind in ("masked", "nothing"):
        x_ND[torch.tensor(rng.random((N, D)) < 0.4)] = -torch.inf
        x_ND[:, -1] = 1.0
    if kind == "nothing":
        x_ND[1] = -torch.inf
    return {"x_ND": x_ND}


def reference(x_ND):
    wide_ND = x_ND.double()
    powers_ND = (wide_ND - wide_ND.amax(dim=-1, keepdim=True)).exp()
    return (powers_ND / powers_ND.sum(dim=-1, keepdim=True)).float()


@triton.jit
def _row(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    powers = tl.exp(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def one_program_a_row(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _row[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _tile(x, out, N, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (n[:, None] < N) & (d[None, :] < D)
    places = n[:, None] * D + d[None, :]
    values = tl.where(inside, tl.load(x + places, mask=inside), -float("inf"))
    powers = tl.exp2((values - tl.max(values, axis=1, keep_dims=True)) * 1.4426950408889634)
    tl.store(out + places, powers / tl.sum(powers, axis=1)[:, None], mask=inside)


def several_rows_a_program(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty(N, D)
    _tile[(triton.cdiv(N, 4),)](x_ND, out_ND, N, D, ROWS=4, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _thrice(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x, out = x + row * D, out + row * D
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(x + d, mask=d < D, other=float("-inf")))
    top = tl.max(largest)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(x + d, mask=d < D, other=float("-inf")) - top)
    whole = tl.sum(total)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        tl.store(out + d, tl.exp(tl.load(x + d, mask=d < D) - top) / whole, mask=d < D)


def three_passes(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _thrice[(N,)](x_ND, out_ND, D, BLOCK=128)
    return out_ND


@triton.jit
def _zero(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    powers = tl.exp(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def filled_with_zero(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _zero[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _unfilled(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D)
    powers = tl.exp(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def nothing_in_masked_lanes(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _unfilled[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _low(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=-10000.0)
    powers = tl.exp(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def filled_with_a_low_number(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _low[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _plain(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    powers = tl.exp(tl.load(x + row * D + d, mask=d < D, other=float("-inf")))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def without_maximum(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _plain[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _column(x, out, N, D, BLOCK: tl.constexpr):
    column = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    values = tl.load(x + n * D + column, mask=n < N, other=float("-inf"))
    powers = tl.exp(values - tl.max(values))
    tl.store(out + n * D + column, powers / tl.sum(powers), mask=n < N)


def over_the_columns(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _column[(D if N else 0,)](x_ND, out_ND, N, D, BLOCK=triton.next_power_of_2(N))
    return out_ND


@triton.jit
def _one_maximum(x, out, N, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (n[:, None] < N) & (d[None, :] < D)
    places = n[:, None] * D + d[None, :]
    values = tl.load(x + places, mask=inside, other=float("-inf"))
    powers = tl.exp(values - tl.max(values))
    tl.store(out + places, powers / tl.sum(powers, axis=1)[:, None], mask=inside)


def one_maximum_for_all_rows(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _one_maximum[(1 if N else 0,)](x_ND, out_ND, N, D, ROWS=triton.next_power_of_2(N), BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _base_two(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    powers = tl.exp2(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def powers_of_two(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _base_two[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _early(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf")) * 1.4426950408889634
    powers = tl.exp2(values - tl.max(values))
    tl.store(out + row * D + d, powers / tl.sum(powers), mask=d < D)


def multiplied_too_early(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _early[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _undivided(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    tl.store(out + row * D + d, tl.exp(values - tl.max(values)), mask=d < D)


def not_divided(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _undivided[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


@triton.jit
def _guarded(x, out, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    largest = tl.max(values)
    powers = tl.exp(values - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(powers)
    tl.store(out + row * D + d, powers / tl.where(total == 0.0, 1.0, total), mask=d < D)


def zeros_for_nothing(x_ND):
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _guarded[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND


EXERCISE = Exercise(
    id="09.8",
    unit="09",
    title="softmax of each row",
    entry="row_softmax",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=same("probabilities"),
    misconceptions=(
        Misconception(
            "filled-with-zero",
            filled_with_zero,
            "It looks like masked lanes that hold 0: each of them then counts in the sum, and in the maximum. They must count "
            "for nothing: exp of minus infinity is 0.",
            seen="vllm-project/vllm #55009",
        ),
        Misconception(
            "nothing-in-masked-lanes",
            nothing_in_masked_lanes,
            "It looks like a masked load without `other` that goes into two reductions. What such lanes hold is undefined (NaN "
            "here): fill them with minus infinity.",
            seen="flagos-ai/FlagGems #3716",
        ),
        Misconception(
            "filled-with-a-low-number",
            filled_with_a_low_number,
            "It looks like masked lanes that hold a large negative number, and a row that lies lower still. Fill with "
            "float('-inf').",
        ),
        Misconception(
            "without-maximum",
            without_maximum,
            "It looks like powers of the numbers as they are: exp(1000) is infinite and exp(-1000) is 0. Subtract the row's "
            "maximum first; the quotients stay the same.",
        ),
        Misconception(
            "over-the-columns",
            over_the_columns,
            "It looks like a softmax down the columns. Each row of x_ND is one distribution over its D elements.",
        ),
        Misconception(
            "one-maximum-for-all-rows",
            one_maximum_for_all_rows,
            "It looks like the maximum of the whole tile, so that the powers of lower rows all become 0. Every row needs its own: "
            "tl.max(..., axis=1).",
        ),
        Misconception(
            "powers-of-two",
            powers_of_two,
            "It looks like powers of 2 where powers of e are meant. tl.exp2 needs its argument times log2(e).",
        ),
        Misconception(
            "multiplied-too-early",
            multiplied_too_early,
            "It looks like log2(e) multiplied in before the maximum is subtracted: large numbers are rounded first, and their "
            "difference is wrong. Subtract, then multiply.",
        ),
        Misconception(
            "not-divided",
            not_divided,
            "It looks like the powers, not yet divided by their sum. The numbers of a row add up to 1.",
        ),
        Misconception(
            "zeros-for-nothing",
            zeros_for_nothing,
            "It looks like zeros for a row of nothing but minus infinity. Here, as in torch, that row is NaN, 0 divided by 0: no "
            "guard hides it, and masked lanes hold float('-inf'), not some large negative number.",
        ),
    ),
    alternatives=(one_program_a_row, several_rows_a_program, three_passes),
    hints=(
        "What must a padded lane hold so that it changes neither the maximum nor the sum?",
        "Minus infinity serves both: it is no maximum, and exp makes 0 of it. The row stays in registers between the two "
        "reductions.",
        "Load once with other=float('-inf'), subtract tl.max, tl.exp, divide by tl.sum, store masked.",
    ),
    forbids=("torch.softmax", "Tensor.softmax", "torch.nn.functional.softmax", "triton.language.softmax"),
    kernel=True,
)
