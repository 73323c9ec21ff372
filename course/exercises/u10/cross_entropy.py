"""10.5: cross entropy and the gradient of its logits in one launch, with label smoothing and rows that do not count."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # N, V, share of rows that do not count, dtype, smoothing, upstream, what the logits are like
    (4, 300, 0.4, BF16, 0.1, 1.0, "plain"),
    (3, 129, 0.0, FP32, 0.0, 2.5, "plain"),
    (3, 50, 1.0, BF16, 0.1, 1.0, "plain"),  # no row counts
    (4, 77, 0.5, FP32, 0.25, -1.5, "nan"),  # NaN where nothing counts
    (3, 600, 0.3, BF16, 0.0, 1.0, "masked"),  # the first 550 classes are minus infinity: whole blocks
    (3, 40, 0.0, FP32, 0.1, 1.0, "high"),  # exp overflows
    (3, 40, 0.0, FP32, 0.1, 1.0, "low"),  # exp underflows
    (2, 1, 0.0, FP32, 0.1, 1.0, "plain"),  # one class
    (0, 10, 0.0, BF16, 0.1, 1.0, "plain"),  # no rows
    (5, 64, 0.2, BF16, 1.0, 3.0, "plain"),  # a power of two, and nothing but smoothing
    (2, 5000, 0.0, BF16, 0.1, 1.0, "plain"),
    (2, 5000, 0.0, FP32, 0.0, 1.0, "late"),  # nothing but minus infinity before the last two classes
    (2, 90, 0.0, FP32, 0.0, 1.0, "far"),  # the target's share is smaller than float32 can hold
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [7.0, 7.0, 7.0, 7.0], [3.0, 0.0, 2.0, 1.0]], dtype=BF16)
        return {"logits_NV": logits, "targets_N": torch.tensor([2, 0, -1]), "smoothing": 0.0, "upstream": 2.0}
    if number <= len(EDGES):
        N, V, out, dtype, smoothing, upstream, kind = EDGES[number - 1]
    else:
        N, V, out = int(rng.integers(2, 7)), int(rng.integers(20, 500)), float(rng.choice([0.0, 0.3]))
        dtype, smoothing = (BF16, FP32)[int(rng.integers(2))], float(rng.choice([0.0, 0.1, 0.5]))
        upstream, kind = float(rng.choice([1.0, 0.5, -2.0])), str(rng.choice(["plain", "high", "low"]))
    shift = {"high": 120.0, "low": -120.0}.get(kind, 0.0)
    logits_NV = torch.tensor(rng.normal(size=(N, V)) * 2 + shift)
    targets_N = torch.tensor(rng.integers(V, size=N), dtype=torch.int64)
    if kind == "masked":
        logits_NV[:, :550] = -torch.inf
        targets_N = 550 + targets_N % 50
    if kind == "late":
        logits_NV[:, : V - 2] = -torch.inf
        targets_N = V - 2 + targets_N % 2
    if kind == "far":
        logits_NV[0, targets_N[0]] = -120.0
        logits_NV[0, (targets_N[0] + 1) % V] = 120.0
    rows = int(out * N + 0.5) or int(out > 0)
    targets_N[torch.tensor(rng.permutation(N)[:rows], dtype=torch.int64)] = -1
    if kind == "nan":
        logits_NV[targets_N == -1] = torch.nan
    return {"logits_NV": logits_NV.to(dtype), "targets_N": targets_N, "smoothing": smoothing, "upstream": upstream}


def reference(logits_NV, targets_N, smoothing, upstream):
    V = logits_NV.shape[1]
    counts_N1 = (targets_N != -1)[:, None]
    wide_NV = torch.where(counts_N1, logits_NV.double(), 0.0)
    wanted_NV = torch.zeros_like(wide_NV).scatter(1, targets_N.clamp(min=0)[:, None], 1.0 - smoothing) + smoothing / V
    above_NV = wide_NV - wide_NV.amax(dim=1, keepdim=True)
    logs_NV = above_NV - above_NV.exp().sum(dim=1, keepdim=True).log()
    losses_NV = torch.where(counts_N1 & (wanted_NV > 0), -wanted_NV * logs_NV, 0.0)
    grads_NV = (logs_NV.exp() - wanted_NV) * (upstream / max(int(counts_N1.sum()), 1))
    return losses_NV.sum(dim=1).float(), torch.where(counts_N1, grads_NV, 0.0).to(logits_NV.dtype)


@triton.jit
def _online(logits, targets, losses, dlogits, V, smoothing, factor, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + n)
    if target == -1:
        tl.store(losses + n, 0.0)
        for begin in range(0, V, BLOCK):
            v = begin + tl.arange(0, BLOCK)
            tl.store(dlogits + n * V + v, tl.zeros([BLOCK], dlogits.dtype.element_ty), mask=v < V)
    else:
        largest, total, whole = float("-inf"), 0.0, 0.0
        for begin in range(0, V, BLOCK):
            v = begin + tl.arange(0, BLOCK)
            values = tl.load(logits + n * V + v, mask=v < V, other=float("-inf")).to(tl.float32)
            larger = tl.maximum(tl.max(values), largest)
            base = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp(largest - base) + tl.sum(tl.exp(values - base))
            whole += tl.sum(tl.where(v < V, values, 0.0))
            largest = larger
        own = tl.load(logits + n * V + target).to(tl.float32)
        spread = tl.where(smoothing > 0.0, smoothing * (largest - whole / V), 0.0)
        tl.store(losses + n, tl.log(total) + (1.0 - smoothing) * (largest - own) + spread)
        for begin in range(0, V, BLOCK):
            v = begin + tl.arange(0, BLOCK)
            values = tl.load(logits + n * V + v, mask=v < V).to(tl.float32)
            wanted = smoothing / V + tl.where(v == target, 1.0 - smoothing, 0.0)
            gradient = (tl.exp(values - largest) / total - wanted) * factor
            tl.store(dlogits + n * V + v, gradient.to(dlogits.dtype.element_ty), mask=v < V)


def online_in_blocks(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV = torch.empty(N), torch.empty_like(logits_NV)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    _online[(N,)](logits_NV, targets_N, losses_N, dlogits_NV, V, smoothing, factor, BLOCK=512)
    return losses_N, dlogits_NV


@triton.jit
def _whole_row(logits, targets, count, losses, dlogits, V, smoothing, upstream, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    target = tl.load(targets + n)
    counts = target >= 0
    inside = (v < V) & counts
    values = tl.load(logits + n * V + v, mask=inside, other=float("-inf")).to(tl.float32)
    values -= tl.where(counts, tl.max(values), 0.0)
    powers = tl.exp(values)
    log_total = tl.log(tl.where(counts, tl.sum(powers), 1.0))
    wanted = tl.where(inside, tl.where(v == target, 1.0 - smoothing, 0.0) + smoothing / V, 0.0)
    tl.store(losses + n, tl.sum(tl.where(wanted > 0.0, wanted * (log_total - values), 0.0)))
    gradient = (tl.exp(values - log_total) - wanted) * upstream / tl.maximum(tl.load(count), 1)
    tl.store(dlogits + n * V + v, tl.where(counts, gradient, 0.0), mask=v < V)


def a_row_in_registers(logits_NV, targets_N, smoothing, upstream):
    (N, V), dtype = logits_NV.shape, logits_NV.dtype
    losses_N, dlogits_NV = torch.zeros(N, dtype=torch.float32), torch.zeros(N, V, dtype=dtype)
    count = (targets_N >= 0).sum()
    if N:
        BLOCK = triton.next_power_of_2(V)
        _whole_row[(N,)](logits_NV, targets_N, count, losses_N, dlogits_NV, V, smoothing, upstream, BLOCK=BLOCK)
    return losses_N, dlogits_NV


@triton.jit
def _faulty(logits, targets, losses, dlogits, V, smoothing, factor, last, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    target = tl.load(targets + n)
    counts = target != last
    if FAULT == 1:  # 1: padded lanes hold 0 and count
        values = tl.load(logits + n * V + v, mask=v < V, other=0.0).to(tl.float32)
    else:
        values = tl.load(logits + n * V + v, mask=v < V, other=float("-inf")).to(tl.float32)
    if FAULT != 2:  # 2: no maximum
        values -= tl.max(values)
    total = tl.sum(tl.exp(values))
    logs = tl.where(v < V, values - tl.log(total), 0.0)
    shares = tl.exp(values) / total
    each, own = smoothing / V, 1.0 - smoothing
    if FAULT == 3:  # 3: smoothing over the other classes
        each = tl.where(V > 1, smoothing / tl.maximum(V - 1, 1), 0.0)
        own = 1.0 - smoothing - each
    if FAULT == 4:  # 4: smoothing without taking it from the target
        own = 1.0
    if FAULT == 5:  # 5: no smoothing at all
        each, own = 0.0, 1.0
    wanted = tl.where(v == target, own, 0.0) + each
    loss = tl.sum(tl.where((v < V) & (wanted > 0), -wanted * logs, 0.0))
    if FAULT == 6:  # 6: 0 times minus infinity
        loss = tl.sum(tl.where(v < V, -wanted * logs, 0.0))
    if FAULT == 7:  # 7: smoothing in the loss alone
        wanted = tl.where(v == target, 1.0, 0.0)
    if FAULT == 8:  # 8: the loss carries the factor as well
        loss = loss * factor
    gradient = (shares - wanted) * factor
    if FAULT == 9:  # 9: a row that does not count is multiplied by 0
        loss, gradient = loss * counts.to(tl.float32), gradient * counts.to(tl.float32)
    else:
        loss = tl.where(counts, loss, 0.0)
        if FAULT == 11:  # 11: they have their part of the smoothing
            wanted = tl.where(counts, wanted, each)
            loss = tl.sum(tl.where((v < V) & (wanted > 0), -wanted * logs, 0.0))
        if FAULT != 10:  # 10: the gradient of rows that do not count stays
            gradient = tl.where(counts, gradient, 0.0)
    tl.store(losses + n, loss)
    tl.store(dlogits + n * V + v, gradient.to(dlogits.dtype.element_ty), mask=v < V)


def padding_counts(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=1, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def without_maximum(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=2, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def smoothing_over_the_others(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=3, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def smoothing_on_top(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=4, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def no_smoothing(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=5, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def zero_times_infinity(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=6, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def smoothing_in_the_loss_alone(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=7, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def loss_with_the_factor(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=8, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def multiplied_by_zero(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=9, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def ignored_rows_pushed(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=10, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def smoothing_where_nothing_counts(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=11, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def not_divided_by_the_count(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=0, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def divided_by_all_rows(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(N, 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=0, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def upstream_left_out(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = 1.0 / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=0, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def minus_one_as_the_last_class(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty_like(logits_NV), triton.next_power_of_2(V)
    factor = upstream / max(N, 1)
    tensors = logits_NV, targets_N % V, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=0, BLOCK=BLOCK)
    return losses_N, dlogits_NV


def gradient_left_in_float32(logits_NV, targets_N, smoothing, upstream):
    N, V = logits_NV.shape
    losses_N, dlogits_NV, BLOCK = torch.empty(N), torch.empty(N, V), triton.next_power_of_2(V)
    factor = upstream / max(int((targets_N != -1).sum()), 1)
    tensors = logits_NV, targets_N, losses_N, dlogits_NV
    _faulty[(N,)](*tensors, V, smoothing, factor, -1, FAULT=0, BLOCK=BLOCK)
    return losses_N, dlogits_NV


EXERCISE = Exercise(
    id="10.5",
    unit="10",
    title="cross entropy and its gradient in one launch",
    entry="cross_entropy",
    points=15,
    minutes=40,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=16,
    reference=reference,
    compare=rounded_once("losses", "dlogits"),
    misconceptions=(
        Misconception(
            "padding-counts",
            padding_counts,
            "It looks like padded lanes that hold 0: each of them adds exp(0 - largest) to the sum. Fill with float('-inf'), "
            "whose power is 0.",
        ),
        Misconception(
            "without-maximum",
            without_maximum,
            "It looks like powers of the logits as they are: exp(120) is infinite in float32, and of exp(-120) nothing is left. "
            "Subtract the row's largest logit.",
        ),
        Misconception(
            "smoothing-over-others",
            smoothing_over_the_others,
            "It looks like smoothing shared by the V - 1 other classes. Here, as in PyTorch, all V classes get smoothing / V, the "
            "target too.",
        ),
        Misconception(
            "smoothing-on-top",
            smoothing_on_top,
            "It looks like smoothing put on top: the wanted shares add up to 1 + smoothing. The target gives up that share: "
            "1 - smoothing + smoothing / V.",
        ),
        Misconception(
            "no-smoothing",
            no_smoothing,
            "It looks like cross entropy without smoothing.",
        ),
        Misconception(
            "zero-times-infinity",
            zero_times_infinity,
            "It looks like 0 times minus infinity, which is NaN. Without smoothing, classes other than the target do not enter "
            "the loss at all.",
        ),
        Misconception(
            "smoothing-in-loss-alone",
            smoothing_in_the_loss_alone,
            "It looks like a gradient of the loss without smoothing. Every class has smoothing / V taken from its share as well.",
        ),
        Misconception(
            "loss-with-factor",
            loss_with_the_factor,
            "It looks like losses multiplied by upstream / count. The factor belongs to the gradient; the losses are per row.",
        ),
        Misconception(
            "times-zero",
            multiplied_by_zero,
            "It looks like rows that do not count multiplied by 0: NaN times 0 is NaN. Choose 0 with tl.where, or do not read the "
            "row.",
        ),
        Misconception(
            "ignored-rows-pushed",
            ignored_rows_pushed,
            "It looks like a gradient for rows that do not count. Target -1 says that the row has no part in the loss: its "
            "gradient is 0.",
        ),
        Misconception(
            "smoothing-where-nothing-counts",
            smoothing_where_nothing_counts,
            "It looks like losses that keep the smoothing's part in rows that do not count. Such a row has loss 0, all of it.",
            seen="pytorch/pytorch #73205",
        ),
        Misconception(
            "not-divided",
            not_divided_by_the_count,
            "It looks like a gradient that is not divided by the number of rows that count: that of a sum, and wanted is the "
            "mean's.",
        ),
        Misconception(
            "divided-by-all-rows",
            divided_by_all_rows,
            "It looks like a division by all N rows. The mean is over the rows that count.",
            seen="ROCm/TransformerEngine #336",
        ),
        Misconception(
            "upstream-left-out",
            upstream_left_out,
            "It looks like a gradient without upstream, the gradient that arrives from behind the loss.",
        ),
        Misconception(
            "last-class",
            minus_one_as_the_last_class,
            "It looks like target -1 taken for the last class, as Python counts. It marks a row that does not count.",
        ),
        Misconception(
            "float32-gradient",
            gradient_left_in_float32,
            "It looks like a float32 gradient. It has the dtype of the logits, and is rounded once.",
        ),
    ),
    alternatives=(online_in_blocks, a_row_in_registers),
    hints=(
        "The gradient needs the sum over the whole row. How often does a program read its row, if the row does not fit in "
        "registers?",
        "Keep the largest so far and a sum relative to it; where a block brings a larger one, multiply the sum by "
        "exp(old - new). Mind a first block in which everything is minus infinity.",
        "wanted = smoothing / V, and 1 - smoothing more for the target; loss = log(total) + largest - sum(wanted * logit); "
        "gradient = (exp(logit - largest) / total - wanted) * upstream / count.",
    ),
    forbids=(
        "torch.nn.functional.cross_entropy",
        "torch.nn.functional.nll_loss",
        "torch.nn.functional.log_softmax",
        "torch.log_softmax",
        "Tensor.log_softmax",
        "torch.nn.functional.softmax",
        "torch.softmax",
        "Tensor.softmax",
        "torch.logsumexp",
        "Tensor.logsumexp",
    ),
    kernel=True,
)
