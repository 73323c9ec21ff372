"""12.3: the gradient of every expert's weight, over ragged rows, added to what earlier micro-batches left."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # rows of each expert, rows that are nobody's, tokens, D, N, dtype, with a sum so far
    ([5, 0, 9], 2, 6, 20, 18, BF16, True),
    ([0, 0], 3, 4, 8, 5, FP32, True),  # no row is anybody's: the sum so far is the result
    ([], 0, 3, 4, 6, FP32, False),  # no rows at all
    ([40, 1, 33], 0, 30, 17, 33, FP32, False),  # more than one step along the rows, and tails
    ([0, 16, 32], 4, 20, 40, 10, BF16, False),  # whole steps
    ([1], 0, 1, 1, 1, FP32, True),
    ([0, 300, 0, 0], 0, 40, 5, 40, BF16, True),  # all to one
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "x_TD": torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
            "dy_PN": torch.tensor([[1.0], [2.0], [5.0], [float("nan")]]),
            "tokens_P": torch.tensor([1, 0, 0, 1]),
            "offsets_E1": torch.tensor([0, 2, 2, 3]),
            "so_far_EDN": torch.tensor([[[0.5], [0.0]], [[7.0], [8.0]], [[0.0], [1.0]]]),
        }
    if number <= len(EDGES):
        counts, lost, T, D, N, dtype, more = EDGES[number - 1]
    else:
        counts = (rng.integers(1, 40, size=int(rng.integers(2, 5))) * (rng.random() < 0.9)).tolist()
        counts[-2], counts[-1] = int(rng.integers(1, 40)), counts[-1] * int(rng.integers(2))
        lost, T, D, N = (int(rng.integers(low, high)) for low, high in ((0, 6), (4, 30), (2, 50), (2, 50)))
        dtype, more = (BF16, FP32)[int(rng.integers(2))], bool(rng.integers(2))
    offsets_E1 = torch.tensor([0, *counts]).cumsum(0) if counts else torch.zeros(3, dtype=torch.int64)
    E, P = len(offsets_E1) - 1, sum(counts) + lost
    dy_PN = torch.tensor(rng.normal(size=(P, N))).to(dtype)
    dy_PN[P - lost :] = float("nan")  # not data
    return {
        "x_TD": torch.tensor(rng.normal(size=(T, D))).to(dtype),
        "dy_PN": dy_PN,
        "tokens_P": torch.tensor(rng.integers(0, T, size=P), dtype=torch.int64),
        "offsets_E1": offsets_E1,
        "so_far_EDN": torch.tensor(rng.normal(size=(E, D, N)), dtype=torch.float32) if more else None,
    }


def reference(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    p, products_PDN = torch.arange(len(dy_PN)), x_TD.double()[tokens_P][:, :, None] * dy_PN.double()[:, None, :]
    own_EP = (p >= offsets_E1[:-1, None]) & (p < offsets_E1[1:, None])
    total_EDN = torch.where(own_EP[:, :, None, None], products_PDN, 0.0).sum(dim=1)
    return (total_EDN if so_far_EDN is None else total_EDN + so_far_EDN.double()).float()


@triton.jit
def _expert(
    x, dy, tokens, offsets, so_far, out, D, N, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr
):
    e = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        token = tl.load(tokens + p, mask=p < end, other=0)
        left = tl.load(x + token[None, :] * D + d[:, None], mask=(d < D)[:, None] & (p < end)[None, :], other=0.0)
        right = tl.load(dy + p[:, None] * N + n[None, :], mask=(p < end)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    at, inside = (e * D + d)[:, None] * N + n[None, :], (d < D)[:, None] & (n < N)[None, :]
    if so_far is not None:
        total += tl.load(so_far + at, mask=inside)
    tl.store(out + at, total, mask=inside)


def a_program_a_tile(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, D, N = len(offsets_E1) - 1, x_TD.shape[1], dy_PN.shape[1]
    out_EDN = torch.empty(E, D, N, dtype=torch.float32)
    _expert[(E, triton.cdiv(D, 32), triton.cdiv(N, 32))](
        x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN, D, N, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16
    )
    return out_EDN


@triton.jit
def _all_experts(
    x, dy, tokens, offsets, out, E, D, N, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr
):
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_P)
    inside = (d < D)[:, None] & (n < N)[None, :]
    for e in range(0, E):
        begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
        at = out + tl.cast(e, tl.int64) * D * N + d[:, None] * N + n[None, :]
        total = tl.load(at, mask=inside, other=0.0)
        for step in range(0, tl.cdiv(end - begin, BLOCK_P)):
            p = begin + step * BLOCK_P + m
            token = tl.load(tokens + p, mask=p < end, other=0)
            rows = tl.load(x + token[:, None] * D + d[None, :], mask=(p < end)[:, None] & (d < D)[None, :], other=0.0)
            right = tl.load(dy + p[:, None] * N + n[None, :], mask=(p < end)[:, None] & (n < N)[None, :], other=0.0)
            total += tl.dot(tl.trans(rows), right, input_precision="ieee")
        tl.store(at, total, mask=inside)


def a_program_takes_all_experts(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    (_, D), N, E = x_TD.shape, dy_PN.shape[1], offsets_E1.shape[0] - 1
    out_EDN = torch.zeros(E, D, N, dtype=torch.float32) if so_far_EDN is None else so_far_EDN.clone()
    _all_experts[(triton.cdiv(D, 64), triton.cdiv(N, 16))](
        x_TD, dy_PN, tokens_P, offsets_E1, out_EDN, E, D, N, BLOCK_D=64, BLOCK_N=16, BLOCK_P=32
    )
    return out_EDN


@triton.jit
def _faulty(
    x, dy, tokens, offsets, so_far, out, P, D, N, FAULT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
    if FAULT == 5 and begin == end:  # 5: nothing to do for an expert without rows
        return
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = p < end
        if FAULT == 1:  # 1: the last step reaches into the next expert's rows
            inside = p < P
        token = tl.load(tokens + p, mask=inside, other=0)
        left = tl.load(x + token[None, :] * D + d[:, None], mask=(d < D)[:, None] & inside[None, :], other=0.0)
        right = tl.load(dy + p[:, None] * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0)
        if FAULT == 3:  # 3: the last step overwrites
            total *= 0.0
        total = tl.dot(left, right, total, input_precision="ieee")
    at, room = (e * D + d)[:, None] * N + n[None, :], (d < D)[:, None] & (n < N)[None, :]
    if FAULT == 4:  # 4: the mean
        total = total / tl.maximum(end - begin, 1).to(tl.float32)
    if so_far is not None and FAULT != 6:  # 6: what was there is lost
        total += tl.load(so_far + at, mask=room)
    tl.store(out + at, total, mask=room)


def next_experts_rows_counted(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.empty(E, D, N)
    tensors = x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=1, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


def last_step_alone(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.empty(E, D, N)
    tensors = x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=3, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


def mean_over_rows(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.empty(E, D, N)
    tensors = x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=4, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


def experts_without_rows_left_out(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.zeros(E, D, N)
    tensors = x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=5, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


def sum_so_far_lost(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.empty(E, D, N)
    tensors = x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=6, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


def tokens_not_gathered(x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN):
    E, (P, N), D = len(offsets_E1) - 1, dy_PN.shape, x_TD.shape[1]
    out_EDN = torch.empty(E, D, N)
    rows_P = torch.arange(P) % len(x_TD)
    tensors = x_TD, dy_PN, rows_P, offsets_E1, so_far_EDN, out_EDN
    grid = E, triton.cdiv(D, 32), triton.cdiv(N, 32)
    _faulty[grid](*tensors, P, D, N, FAULT=0, BLOCK_D=32, BLOCK_N=32, BLOCK_P=16)
    return out_EDN


EXERCISE = Exercise(
    id="12.3",
    unit="12",
    title="the gradient of ragged experts' weights",
    entry="weights_back",
    points=15,
    minutes=40,
    difficulty=4,
    spine=True,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("dweight"),
    misconceptions=(
        Misconception(
            "next-experts-rows",
            next_experts_rows_counted,
            "It looks like a last step along the rows that reaches into the next expert's. The mask is p < offsets[e + 1], not the end of "
            "the tensor: a row too many changes a sum, where in a forward product it only makes a row that nobody reads.",
            seen="NVIDIA/TransformerEngine #3484",
        ),
        Misconception(
            "tokens-not-gathered",
            tokens_not_gathered,
            "It looks like row p of dy beside token p of x. Row p came from token tokens[p].",
        ),
        Misconception(
            "last-step-alone",
            last_step_alone,
            "It looks like a total that each step along the rows overwrites. Add each product to what the steps before gave.",
        ),
        Misconception(
            "mean-over-rows",
            mean_over_rows,
            "It looks like a mean over an expert's rows. It is their sum: the loss has divided by the number of tokens already, and an "
            "expert with many rows has a large gradient.",
        ),
        Misconception(
            "experts-without-rows",
            experts_without_rows_left_out,
            "It looks like experts without rows that nobody writes. Their gradient is 0, so the result is what was there so far.",
            seen="meta-pytorch/MSLK #158",
        ),
        Misconception(
            "sum-so-far-lost",
            sum_so_far_lost,
            "It looks like this micro-batch alone. Add it to so_far, the gradient of those before, where it is given.",
        ),
    ),
    alternatives=(a_program_a_tile, a_program_takes_all_experts),
    hints=(
        "The result of an expert is small and always [D, N]; what is ragged is the sum. Which program does an expert without rows have?",
        "A program holds a tile [BLOCK_D, BLOCK_N] of one expert's result and walks along that expert's rows. x comes in as "
        "[BLOCK_D, BLOCK_P]: column p is token tokens[p].",
        "for first in range(begin, end, BLOCK_P), with begin and end loaded from the offsets; p < end masks x, dy and tokens, with "
        "other=0.0; so_far is added once, after the loop.",
    ),
    forbids=(
        *(f"triton.language.atomic_{name}" for name in ("add", "xchg", "cas")),
        *("Tensor.item", "Tensor.tolist", "Tensor.__int__", "Tensor.__index__", "Tensor.__bool__"),
        *("torch.nn.functional.grouped_mm", "torch.matmul", "Tensor.matmul", "torch.bmm", "Tensor.bmm", "torch.mm"),
        *("torch.index_select", "Tensor.index_select", "torch.gather", "Tensor.gather"),
    ),
    kernel=True,
    tags=("no host wait",),
)
