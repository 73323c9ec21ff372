"""14.3: partial results over spans of a cache, and their logs, become one result (Dao et al. 2023, "Flash-Decoding")."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # J, B, H, V, what the logs are like
    (5, 3, 4, 20, "plain"),
    (4, 3, 2, 33, "empty"),  # empty splits: minus infinity, and their parts hold NaN
    (6, 2, 3, 7, "high"),  # exp overflows
    (1, 2, 2, 16, "plain"),
    (3, 2, 2, 5, "low"),  # exp underflows
    (37, 1, 2, 8, "wide"),  # many splits; one outweighs all others
    (3, 0, 2, 4, "plain"),  # no sequences
    (4, 2, 3, 6, "sink"),  # a sink far above all logs
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        parts = torch.tensor([[4.0, 0.0], [0.0, 8.0], [9.0, 9.0]]).view(3, 1, 1, 2)
        lses = torch.log(torch.tensor([1.0, 2.0, 5.0])).view(3, 1, 1)
        return {"parts_JBHV": parts, "lses_JBH": lses, "counts_B": torch.tensor([2]), "sinks_H": torch.zeros(1)}
    if number <= len(EDGES):
        J, B, H, V, kind = EDGES[number - 1]
    else:
        J, B, H, V = (int(rng.integers(1, most)) for most in (9, 4, 4, 40))
        kind = str(rng.choice(["plain", "empty", "high", "low", "sink"]))
    shift = {"high": 130.0, "low": -130.0}.get(kind, 0.0)
    parts_JBHV = torch.tensor(rng.normal(size=(J, B, H, V)) + 0.5).float()
    lses_JBH = torch.tensor(rng.normal(size=(J, B, H)) * (20 if kind == "wide" else 1.5) + shift).float()
    counts_B = torch.tensor(rng.integers(1, J + 1, size=B), dtype=torch.int64)
    sinks_H = torch.tensor(rng.normal(size=H) + (130.0 if kind == "sink" else shift)).float()
    sinks_H[H // 2 :] = -torch.inf  # no sink
    if kind == "empty":
        counts_B[0], counts_B[-1] = J, 0
        lses_JBH[torch.tensor(rng.random((J, B, H)) < 0.5)] = -torch.inf
        lses_JBH[:, B // 2] = -torch.inf
        parts_JBHV[lses_JBH == -torch.inf] = torch.nan
    return {"parts_JBHV": parts_JBHV, "lses_JBH": lses_JBH, "counts_B": counts_B, "sinks_H": sinks_H}


def reference(parts_JBHV, lses_JBH, counts_B, sinks_H):
    written_JB = torch.arange(len(parts_JBHV))[:, None] < counts_B
    logs_JBH = torch.where(written_JB[:, :, None], lses_JBH.double(), -torch.inf)
    logs_JBH = torch.cat([logs_JBH, sinks_H.double().expand(1, *logs_JBH.shape[1:])])
    top_BH = logs_JBH.amax(dim=0)
    powers_JBH = (logs_JBH - top_BH.nan_to_num(neginf=0.0)).exp()
    total_BH = powers_JBH.sum(dim=0)
    weights_JBHV = (powers_JBH / total_BH.clamp(min=1e-30))[:-1, :, :, None]
    parts_JBHV = torch.where(weights_JBHV > 0, parts_JBHV.double(), 0.0)
    return (weights_JBHV * parts_JBHV).sum(dim=0).float(), (top_BH + total_BH.log()).float()


@triton.jit
def _one_by_one(parts, lses, counts, sinks, out, logs, B, H, V, WIDE: tl.constexpr):
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = tl.arange(0, WIDE)
    largest = tl.load(sinks + h)
    total = tl.where(largest > float("-inf"), 1.0, 0.0)
    mix = tl.zeros([WIDE], tl.float32)
    for j in range(tl.load(counts + b)):
        row = (j * B + b) * H + h
        log = tl.load(lses + row)
        larger = tl.maximum(largest, log)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(log - base)
        shrink = tl.exp(largest - base)
        part = tl.load(parts + row * V + v, mask=(v < V) & (weight > 0.0), other=0.0)
        mix = mix * shrink + part * weight
        total = total * shrink + weight
        largest = larger
    row = b * H + h
    tl.store(out + row * V + v, mix / tl.where(total > 0.0, total, 1.0), mask=v < V)
    tl.store(logs + row, largest + tl.log(total))


def one_split_after_the_other(parts_JBHV, lses_JBH, counts_B, sinks_H):
    _, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _one_by_one[(B, H)](*tensors, B, H, V, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


@triton.jit
def _together(parts, lses, counts, sinks, out, logs, rows, H, V, SPLITS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    j, v = tl.arange(0, SPLITS), tl.arange(0, WIDE)
    written = j < tl.load(counts + row // H)
    log = tl.load(lses + j * rows + row, mask=written, other=float("-inf"))
    sink = tl.load(sinks + row % H)
    top = tl.maximum(tl.max(log), sink)
    base = tl.where(top > float("-inf"), top, 0.0)
    weight = tl.exp(log - base)
    total = tl.sum(weight) + tl.exp(sink - base)
    some = (log > float("-inf"))[:, None] & (v < V)[None, :]
    part = tl.load(parts + (j * rows + row)[:, None] * V + v[None, :], mask=some, other=0.0)
    mix = tl.sum(part * weight[:, None], axis=0) / tl.maximum(total, 1e-30)
    tl.store(out + row * V + v, mix, mask=v < V)
    tl.store(logs + row, tl.where(total > 0, base + tl.log(total), float("-inf")))


def all_splits_at_once(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.zeros(B, H, V), torch.zeros(B, H)
    if B:
        tensors, blocks = (parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH), triton.next_power_of_2(J)
        _together[(B * H,)](*tensors, B * H, H, V, SPLITS=blocks, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


@triton.jit
def _faulty(parts, lses, counts, sinks, out, logs, J, B, H, V, FAULT: tl.constexpr, WIDE: tl.constexpr):
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = tl.arange(0, WIDE)
    sink = tl.load(sinks + h)
    count = tl.load(counts + b)
    if FAULT == 4:  # all splits, written or not
        count = tl.full([], J, tl.int64)
    top = sink
    for j in range(count):
        top = tl.maximum(top, tl.load(lses + (j * B + b) * H + h))
    base = tl.where(top == float("-inf"), 0.0, top)
    if FAULT == 2:  # exp of the logs as they are
        base = tl.full([], 0.0, tl.float32)
    total = tl.exp(sink - base)
    mix = tl.zeros([WIDE], tl.float32)
    for j in range(count):
        row = (j * B + b) * H + h
        weight = tl.exp(tl.load(lses + row) - base)
        some = weight > 0.0
        if FAULT == 1:  # every split counts the same
            weight = tl.where(some, 1.0, 0.0)
        if FAULT == 3:  # parts of empty splits are read
            some = weight == weight
        part = tl.load(parts + row * V + v, mask=(v < V) & some, other=0.0)
        mix += part * weight
        total += weight
        if FAULT == 5:  # the sink once a split
            total += tl.where(j > 0, tl.exp(sink - base), 0.0)
    divisor = tl.where(total > 0.0, total, 1.0)
    if FAULT == 1:
        divisor = tl.maximum(count, 1)
    mix = mix / divisor
    row = b * H + h
    tl.store(out + row * V + v, mix, mask=v < V)
    if FAULT == 6:  # without the sink
        total -= tl.exp(sink - base)
    if FAULT == 1:
        total = tl.exp(sink - base)
        for j in range(count):
            total += tl.exp(tl.load(lses + (j * B + b) * H + h) - base)
    tl.store(logs + row, base + tl.log(total))


def plain_mean(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=1, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


def without_the_largest(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=2, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


def empty_splits_read(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=3, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


def splits_that_were_not_written(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=4, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


def sink_in_every_split(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=5, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


def log_without_the_sink(parts_JBHV, lses_JBH, counts_B, sinks_H):
    J, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    _faulty[(B, H)](*tensors, J, B, H, V, FAULT=6, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH


EXERCISE = Exercise(
    id="14.3",
    unit="14",
    title="one result from many splits",
    entry="combine_splits",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("out", "logs"),
    misconceptions=(
        Misconception(
            "plain-mean",
            plain_mean,
            "It looks like the plain mean of the splits. A split weighs exp(its log), its share of all exponentials.",
        ),
        Misconception(
            "without-largest",
            without_the_largest,
            "It looks like exp of the logs as they are, which is infinite from 89 on and 0 far below zero. Subtract the largest "
            "log first, and add it to the result's.",
        ),
        Misconception(
            "empty-splits-read",
            empty_splits_read,
            "It looks like parts of empty splits multiplied by weight 0: what nobody wrote may be NaN, and NaN times 0 is NaN. "
            "Do not load them.",
        ),
        Misconception(
            "unwritten-splits",
            splits_that_were_not_written,
            "It looks like all J splits taken for every sequence. Of sequence b the first counts_B[b] were written; behind them "
            "lies what an earlier step left.",
        ),
        Misconception(
            "sink-in-every-split",
            sink_in_every_split,
            "It looks like the sink added once a split. It belongs to the whole softmax, and is added once.",
        ),
        Misconception(
            "log-without-sink",
            log_without_the_sink,
            "It looks like a log of the keys' sum alone. The log is that of all that the softmax divides by, sink included.",
        ),
    ),
    alternatives=(one_split_after_the_other, all_splits_at_once),
    hints=(
        "Each part is already divided by the sum of its own split. What must it be multiplied with, before it may be added to "
        "another one?",
        "A part weighs exp(log - largest log). The sink is one more log, whose part is 0. Do not load the part of a split "
        "whose log is minus infinity.",
        "Start with largest = sink and total = 1, or 0 where the sink is minus infinity, and take in one split after the other "
        "as 14.1 took in blocks; or find the largest of all logs first.",
    ),
    forbids=(
        "torch.nn.functional.softmax",
        "torch.softmax",
        "Tensor.softmax",
        "torch.logsumexp",
        "Tensor.logsumexp",
    ),
    kernel=True,
)
