"""13.5: what rounding to E4M3 will cost a product, predicted from its operands (the model of independent rounding errors)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

RTOL = 1e-4
CLOSE = same("the budget", rtol=RTOL)
EDGES = [  # M, N, K, span, mean of x, mean of w, what x is like
    (8, 6, 64, 32, 0.0, 0.0, "plain"),
    (8, 6, 64, 32, 3.0, 3.0, "plain"),  # one sign
    (5, 40, 70, 32, 0.0, 0.0, "outlier"),
    (5, 4, 40, 16, 0.0, 0.0, "zeros"),
    (1, 1, 1, 16, 1.0, 1.0, "plain"),
    (6, 5, 48, 16, 0.0, 0.0, "span"),  # one span much larger than the others
    (7, 33, 33, 32, 0.0, 0.0, "wide"),  # numbers over many powers of two
    (4, 3, 32, 32, 0.0, 0.0, "edges"),  # numbers on the edges of steps
    (6, 18, 40, 16, 0.0, 0.0, "w wide"),
    (6, 5, 40, 16, 0.0, 0.0, "small"),  # below 2^-6 of their scales, where steps do not shrink any more
    (6, 20, 40, 16, 0.0, 0.0, "1e-6"),  # both operands as small as gradients are
    (6, 20, 40, 16, 0.0, 0.0, "1e-20"),  # and far smaller, the scales of w below 2^-126
    (4, 6, 48, 16, 0.0, 0.0, "uneven"),  # rows with many numbers and with few, of which many and none are lost
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        x_MK, w_NK = torch.tensor([[448.0, 1.0, 448.0, 2.0**-11]]), torch.tensor([[0.0, 448.0, 0.0, 448.0]])
        return {"x_MK": x_MK, "w_NK": w_NK, "span": 2}
    if number <= len(EDGES):
        M, N, K, span, mean_x, mean_w, kind = EDGES[number - 1]
    else:
        M, N, K = int(rng.integers(2, 20)), int(rng.integers(1, 40)), int(rng.integers(40, 90))
        span = int(rng.choice([16, 20, 32]))
        mean_x, mean_w = float(rng.choice([0.0, 2.0])), float(rng.choice([0.0, 2.0]))
        kind = str(rng.choice(["plain", "outlier", "wide", "zeros", "small"]))
    x_MK = torch.tensor(rng.normal(size=(M, K)) + mean_x)
    w_NK = torch.tensor(0.02 * (rng.normal(size=(N, K)) + mean_w))
    if kind == "outlier":
        x_MK[:, K // 2] = 3e5
    if kind == "zeros":
        x_MK[:, :span] = 0.0
        x_MK[0] = 0.0
    if kind == "span":
        x_MK[:, :span] *= 50
    if kind == "wide":
        x_MK *= 2.0 ** torch.tensor(rng.uniform(-18, 0, size=(M, K)))
    if kind == "w wide":
        w_NK *= 2.0 ** torch.tensor(rng.uniform(-18, 0, size=(N, K)))
    if kind == "small":
        x_MK = 2.0 ** torch.tensor(rng.uniform(-9, -4.5, size=(M, K))) * torch.tensor(rng.choice([-1, 1], size=(M, K)))
        x_MK[:, ::span], w_NK[:, ::span] = 448.0, 0.0
    if kind == "1e-6":
        x_MK, w_NK = 1e-6 * x_MK, 1e-6 * w_NK
    if kind == "1e-20":
        x_MK, w_NK = 1e-20 * x_MK, 5e-36 * w_NK
    if kind == "uneven":
        x_MK[0] *= 2.0 ** torch.tensor(rng.uniform(-36, 0, size=K))
        x_MK[1:, 3:] = 0.0
    if kind == "edges":
        x_MK[:] = 1.0
        x_MK[:, 0] = 448.0
        x_MK[:, 1:9] = 2.0 ** torch.tensor([-10, -9, -7, -6, -5, 0, 1, 8])
        x_MK[:, 9:12] = -(2.0 ** torch.tensor([-10.0, -6.0, -11.0]))
        x_MK[:, 12:17] = 0.0
    return {"x_MK": x_MK.float(), "w_NK": w_NK.float(), "span": span}


def compare(inputs, wanted, got):
    what, shares = CLOSE(inputs, wanted, got), got.get("by_span_B") if isinstance(got, dict) else None
    if what is None or not isinstance(shares, torch.Tensor) or shares.shape != wanted["by_span_B"].shape:
        return what
    off = ~((shares.double() - wanted["by_span_B"]).abs() <= RTOL)
    spans = ", ".join(str(b) for b in off.nonzero().flatten()[:4].tolist())
    return f"{what}; of the spans' shares those of {spans} differ" if spans else what


def reference(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def element_by_element(x_MK, w_NK, span):
    def scale_of(block):
        largest = max(abs(value) for row in block for value in row)
        return largest / 448 if largest else 1.0

    def noise(value, scale):
        size = abs(value) / scale
        if size <= 2.0**-10:
            return value * value
        exponent = max(math.frexp(size)[1] - 1, -6)
        return (2.0 ** (exponent - 3) * scale) ** 2 / 12

    x, w = x_MK.double().tolist(), w_NK.double().tolist()
    (M, K), N = x_MK.shape, len(w)
    x_scale = [[scale_of([row[b : b + span]]) for b in range(0, K, span)] for row in x]
    w_scale = [
        [scale_of([row[b : b + span] for row in w[a : a + span]]) for b in range(0, K, span)] for a in range(0, N, span)
    ]
    x_noise = [[noise(x[m][k], x_scale[m][k // span]) for k in range(K)] for m in range(M)]
    w_noise = [[noise(w[n][k], w_scale[n // span][k // span]) for k in range(K)] for n in range(N)]
    from_x, from_w, size = [0.0] * -(-K // span), [0.0] * -(-K // span), 0.0
    for m in range(M):
        for n in range(N):
            size += sum(x[m][k] * w[n][k] for k in range(K)) ** 2
            for k in range(K):
                from_x[k // span] += x_noise[m][k] * w[n][k] ** 2
                from_w[k // span] += x[m][k] ** 2 * w_noise[n][k]
    total = sum(from_x) + sum(from_w)
    some = [(value, x_scale[m][k // span]) for m in range(M) for k, value in enumerate(x[m]) if value]
    spans = [(a + b) / total for a, b in zip(from_x, from_w, strict=True)]
    return {
        "zeroed": sum(abs(value) / scale <= 2.0**-10 for value, scale in some) / len(some),
        "error": (total / size) ** 0.5,
        "by_x": sum(from_x) / total,
        "by_span_B": torch.tensor(spans, dtype=torch.float64),
    }


def worst_case(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 4) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def one_step_for_the_block(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = torch.full_like(size, 32.0)
        lost = size <= 2.0**-10
        return values, torch.where(size <= 16, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def steps_that_shrink_for_ever(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1) - 3)
        lost = size == 0
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def the_other_operand_exact(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = 0 * (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def against_the_sizes_of_the_operands(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x.square().sum() * w.square().sum())).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def lost_ones_have_a_step_too(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, step**2 / 12 * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def scales_left_out(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                scale[n : n + rows, k : k + span] = 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, span)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


def a_row_of_w_has_its_own_scales(x_MK, w_NK, span):
    def parts(values, rows):
        values = values.double()
        scale = torch.ones_like(values)
        for n in range(0, values.shape[0], rows):
            for k in range(0, values.shape[1], span):
                largest = values[n : n + rows, k : k + span].abs().max()
                scale[n : n + rows, k : k + span] = largest / 448 if largest > 0 else 1.0
        size = values.abs() / scale
        step = 2.0 ** ((torch.frexp(size).exponent - 1).clamp(min=-6) - 3)
        lost = size <= 2.0**-10
        return values, torch.where(lost, size**2, step**2 / 12) * scale**2, lost & (values != 0)

    (x, x_noise, lost), (w, w_noise, _) = parts(x_MK, 1), parts(w_NK, 1)
    by_x_K = x_noise.sum(0) * (w**2).sum(0)
    by_w_K = (x**2).sum(0) * w_noise.sum(0)
    total = (by_x_K + by_w_K).sum()
    return {
        "zeroed": (lost.sum() / (x != 0).sum()).item(),
        "error": (total / (x @ w.T).square().sum()).sqrt().item(),
        "by_x": (by_x_K.sum() / total).item(),
        "by_span_B": torch.stack([part.sum() for part in (by_x_K + by_w_K).split(span)]) / total,
    }


EXERCISE = Exercise(
    id="13.5",
    unit="13",
    title="an error budget",
    entry="error_budget",
    points=10,
    minutes=35,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=18,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "worst-case",
            worst_case,
            "It looks like the largest rounding error, half a step, for every number. On average over a step the square of the error is "
            "step^2 / 12.",
        ),
        Misconception(
            "one-step-for-the-block",
            one_step_for_the_block,
            "It looks like one step for a whole block, as for whole numbers. A float's step is an eighth of its own power of two.",
        ),
        Misconception(
            "steps-that-shrink-for-ever",
            steps_that_shrink_for_ever,
            "It looks like steps that shrink for ever. Below 2^-6 times the scale E4M3's step stays 2^-9 times the scale, and half of that "
            "is zero.",
        ),
        Misconception(
            "the-other-operand-exact",
            the_other_operand_exact,
            "It looks like a budget for x alone. W is rounded too, and adds its share.",
        ),
        Misconception(
            "against-the-sizes-of-the-operands",
            against_the_sizes_of_the_operands,
            "It looks like an error relative to the norms of x and W. It is relative to the product: where terms cancel, the product is "
            "smaller than they are.",
        ),
        Misconception(
            "lost-ones-have-a-step-too",
            lost_ones_have_a_step_too,
            "It looks like an error of a step for numbers that become zero. Such a number is lost whole: its error is itself.",
        ),
        Misconception(
            "scales-left-out",
            scales_left_out,
            "It looks like steps of the numbers as they are, without the scales of their blocks. Divide by the scale first.",
        ),
        Misconception(
            "a-row-of-w-has-its-own-scales",
            a_row_of_w_has_its_own_scales,
            "It looks like 1 x span blocks for W. A weight has one scale for span x span numbers.",
        ),
    ),
    alternatives=(element_by_element,),
    hints=(
        "One element x of a block, over its scale, lies between two numbers of E4M3. How far apart are they, and how large is the error on "
        "average, squared?",
        "Errors of different elements are independent, so their squares add up. The error of x[m, k] reaches every result of row m, each "
        "with the weight w[n, k]. Summed over m and n, a product of two sums is left for each k.",
        "With Nx the squared errors expected of x, column k adds Nx[:, k].sum() * (w[:, k] ** 2).sum(), and the same with x and w "
        "exchanged. Add both over k; the error is the root of that over the sum of squares of x W^T. The step is 2^(max(e, -6) - 3).",
    ),
    forbids=("torch.float8_e4m3fn", "torch.float8_e4m3fnuz", "torch.float8_e5m2", "torch.float8_e5m2fnuz"),
)
