"""01.4: cross entropy that neither overflows nor drowns, in float32 whatever the logits are, with targets left out."""

import math

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

INF = float("inf")
EDGES = [  # logits, targets, ignore, dtype
    ([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]], [1, 0], -100, torch.float32),  # the lab's example
    ([[1e6, 1e6 + 1, 1e6 - 2], [-2000.0, -2001.5, -2000.5], [3.0, 1.0, 2.0]], [0, 2, 0], -100, torch.float32),
    ([[0.5, 1.5, -1.0], [2.0, 0.25, 0.0]], [-100, -100], -100, torch.float32),  # nothing is counted
    ([[5.0, 150.0, 2.0], [1.0, -140.0, 1.5], [0.5, 0.25, 0.0]], [0, 1, 2], -100, torch.float32),  # far from right
    (
        [[1.0, -INF, 2.0, -INF], [-INF, 0.5, -INF, -INF], [0.0, 1.0, -INF, 3.0], [-INF, 1.0, 2.0, 0.5]],
        [0, 1, 3, -1],  # the row left out rules out class 0
        -1,
        torch.float32,
    ),
    ([[1.0, 0.5, 2.0], [0.0, 1.5, 0.5]], [255, 2], 255, torch.float32),  # what is ignored lies beyond the classes
    ([[1.0, 3.0, 0.5], [2.0, 1.0, 0.0], [0.0, 2.5, 1.0]], [0, 2, 0], 0, torch.float32),  # the ignored one is a class
    ([[60000.0, 59968.0], [-60000.0, -59968.0], [0.5, 0.25]], [1, 0, -100], -100, torch.float16),
]


def inputs(rng, number):
    if number < len(EDGES):
        logits, targets, ignore, dtype = EDGES[number]
        return {"logits_NV": torch.tensor(logits, dtype=dtype), "targets_N": torch.tensor(targets), "ignore": ignore}
    N, V = int(rng.integers(2, 14)), int(rng.integers(3, 120))
    scale = float(rng.choice([1.0, 8.0, 300.0]))
    dtype = [torch.bfloat16, torch.float32, torch.float16][number % 3]
    logits_NV = torch.tensor(rng.normal(size=(N, V)) * scale + rng.normal(size=(N, 1)) * 10 * scale)
    targets_N = torch.tensor(rng.integers(V, size=N))
    ignore = int(rng.choice([-100, -1, 255, int(rng.integers(V))]))
    left_out_N = torch.tensor(rng.random(N) < 0.3)
    return {"logits_NV": logits_NV.to(dtype), "targets_N": targets_N.where(~left_out_N, ignore), "ignore": ignore}


def reference(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    counted_N = targets_N != ignore
    target_N1 = (targets_N * counted_N)[:, None]
    nats_N1 = z_NV.exp().sum(dim=1, keepdim=True).log() - z_NV.gather(1, target_N1)
    nats_N = torch.where(counted_N, nats_N1.squeeze(1), 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def row_by_row(logits_NV, targets_N, ignore):
    nats = []
    for row, target in zip(logits_NV.double().tolist(), targets_N.tolist(), strict=True):
        if target == ignore:
            nats.append(0.0)
            continue
        away = [z - row[target] for z in row]
        most = max(away)
        nats.append(most + math.log(math.fsum(math.exp(z - most) for z in away)))
    counted = sum(target != ignore for target in targets_N.tolist())
    mean = math.fsum(nats) / counted if counted else 0.0
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(nats, dtype=torch.float32)


def nothing_subtracted(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def one_maximum_for_all(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.max()
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def maximum_added_back(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    top_N1 = z_NV.amax(dim=1, keepdim=True)
    total_N1 = top_N1 + (z_NV - top_N1).exp().sum(dim=1, keepdim=True).log()
    nats_N = (total_N1 - z_NV.gather(1, target_N1))[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def log_of_a_softmax(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    nats_N = -F.softmax(z_NV, dim=1).gather(1, target_N1)[:, 0].log()
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def a_little_added(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    nats_N = -(F.softmax(z_NV, dim=1).gather(1, target_N1)[:, 0] + 1e-9).log()
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def times_one_hot(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    log_p_NV = z_NV - z_NV.exp().sum(dim=1, keepdim=True).log()
    nats_N = -(F.one_hot(target_N1[:, 0], z_NV.shape[1]) * log_p_NV).sum(dim=1)
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def in_low_precision(logits_NV, targets_N, ignore):
    z_NV = logits_NV
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N.float(), 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def mean_over_all(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.mean(), nats_N


def summed(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum(), nats_N


def nothing_counted_is_nan(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum(), nats_N


def only_negatives_left_out(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N >= 0
    target_N1 = targets_N.clamp(0, logits_NV.shape[1] - 1)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N, 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def left_out_from_the_mean_alone(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = nats_N
    return (nats_N * counted_N).sum() / counted_N.sum().clamp(min=1), nats_N


def in_bits(logits_NV, targets_N, ignore):
    z_NV = logits_NV.float()
    counted_N = targets_N != ignore
    target_N1 = torch.where(counted_N, targets_N, 0)[:, None]
    z_NV = z_NV - z_NV.amax(dim=1, keepdim=True)
    nats_N = z_NV.exp().sum(dim=1).log() - z_NV.gather(1, target_N1)[:, 0]
    nats_N = torch.where(counted_N, nats_N / math.log(2), 0.0)
    return nats_N.sum() / counted_N.sum().clamp(min=1), nats_N


def compare(inputs, wanted, got):
    """Shapes, types, NaN and infinity as `same` has them; then each number to 2e-6 nats or one part in 100,000.

    The rows are looked at first: where one of them is wrong, it says more than the mean.
    """
    if not isinstance(got, list) or len(got) != 2:
        return same("loss", "nats")(inputs, wanted, got)
    if fault := same("nats", "loss", rtol=math.inf)(inputs, wanted[::-1], got[::-1]):
        return fault
    for name, w, g in (("nats", wanted[1], got[1]), ("loss", wanted[0], got[0])):
        off = torch.where(w.isfinite(), (g.double() - w.double()).abs() - 1e-5 * w.double().abs(), 0.0)
        if off.max() > 2e-6:
            row = int(off.argmax())
            said = f"wanted {w.flatten()[row].item():.6g}, got {g.flatten()[row].item():.6g}"
            if name == "loss" or inputs["logits_NV"].shape[1] > 8:
                return f"{name}{f' of row {row}' if w.ndim else ''}: {said}"
            logits, target = inputs["logits_NV"][row].tolist(), int(inputs["targets_N"][row])
            return f"nats of row {row}: {said}, for the logits {logits} and the target {target}"
    return None


EXERCISE = Exercise(
    id="01.4",
    unit="01",
    title="stable cross entropy",
    entry="cross_entropy",
    points=15,
    minutes=20,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "nothing-subtracted",
            nothing_subtracted,
            "It looks like exp of the bare logits. In float32 exp(89) is infinite and exp(-104) is zero: subtract the row's maximum first.",
            "uTensor/uTensor, pull request 176: softmax overflowed until it subtracted the maximum",
        ),
        Misconception(
            "one-maximum-for-all",
            one_maximum_for_all,
            "It looks like the maximum of all logits subtracted. A row far below it drowns: each row has a maximum of its own.",
        ),
        Misconception(
            "maximum-added-back",
            maximum_added_back,
            "It looks like the maximum added back before the target's logit goes off: near a million float32 moves in steps of 0.06. "
            "Subtract it from both and leave it out.",
            "pytorch/pytorch, issue 11752: a loss of 0 where two equal logits of 1e8 cost ln 2",
        ),
        Misconception(
            "log-of-a-softmax",
            log_of_a_softmax,
            "It looks like a logarithm of the softmax. A probability below 1e-45 is zero in float32, and its logarithm infinite: "
            "take the logarithm of the sum alone.",
            "deeplearning4j/deeplearning4j, issue 785",
        ),
        Misconception(
            "a-little-added",
            a_little_added,
            "It looks like a small number added to save the logarithm. It caps the loss near 21 nats and hides how wrong the model is. "
            "With the logarithm taken of the sum alone none is needed.",
            "chainer/chainer, issue 584 asks for it; Oneflow-Inc/oneflow, issue 3137 suffers from it",
        ),
        Misconception(
            "times-one-hot",
            times_one_hot,
            "It looks like a product with a one-hot row. Where a logit is -inf that is 0 times infinity, NaN: fetch the target's entry.",
            "google-deepmind/optax, issue 896",
        ),
        Misconception(
            "in-low-precision",
            in_low_precision,
            "It looks like sums in the logits' own dtype. Widen to float32 first: bfloat16 has two to three digits.",
            "google-deepmind/optax, issue 1020: losses quantised to bfloat16",
        ),
        Misconception(
            "mean-over-all",
            mean_over_all,
            "It looks like a mean over all rows. Divide by the number of rows that count: padding must not make a loss look better.",
            "tracel-ai/burn, issue 5568",
        ),
        Misconception(
            "summed",
            summed,
            "It looks like the sum of the losses. Wanted is their mean over the rows that count.",
        ),
        Misconception(
            "nothing-counted-is-nan",
            nothing_counted_is_nan,
            "It looks like 0 divided by 0. When no row counts the loss is 0 by this exercise's rule.",
            "pytorch/pytorch, issues 70348 and 75181: NaN by design since 1.11, and a surprise to many",
        ),
        Misconception(
            "only-negatives-left-out",
            only_negatives_left_out,
            "It looks like negative targets left out. `ignore` may be any number, a valid class as well.",
        ),
        Misconception(
            "left-out-from-the-mean-alone",
            left_out_from_the_mean_alone,
            "It looks like losses kept for the rows that are left out. In nats_N they are 0.",
        ),
        Misconception(
            "in-bits",
            in_bits,
            "It looks like bits. Stay with the natural logarithm here; 01.5 converts.",
        ),
    ),
    alternatives=(row_by_row,),
    hints=(
        "What may you subtract from a row of logits without changing its softmax? Choose it so that no exp can overflow.",
        "With its maximum subtracted from all its logits, a row costs log(sum(exp(z))) - z[target]. And a target that is no index?",
        "Widen, subtract amax(dim=1, keepdim=True), gather with targets that are 0 where they do not count; torch.where makes "
        "those rows 0; divide the sum by how many count, at least 1.",
    ),
    forbids=(
        *(f"torch.nn.functional.{name}" for name in ("cross_entropy", "nll_loss", "log_softmax")),
        *(f"torch.nn.{name}" for name in ("CrossEntropyLoss", "NLLLoss", "LogSoftmax")),
        *(f"{owner}.{name}" for owner in ("torch", "Tensor") for name in ("log_softmax", "logsumexp", "logcumsumexp")),
        *(f"torch.special.{name}" for name in ("log_softmax", "logsumexp")),
    ),
)
