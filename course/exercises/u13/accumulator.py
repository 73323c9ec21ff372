"""13.3: sums in an accumulator that cuts bits off, promoted and scaled every few products (DeepSeek-V3 report, 3.3.2 and 3.5.2)."""

import math

import torch

from course.checking.exercise import Exercise, Misconception
from course.exercises.u13._codes import rows_close

EDGES = [  # rows, products, products of one instruction, products until promotion, fraction bits, what the products are like
    (3, 512, 32, 128, 13, "positive"),
    (3, 512, 32, 128, 13, "normal"),
    (2, 300, 32, 128, 13, "positive"),  # what is left after the last promotion
    (2, 40, 32, 64, 10, "positive"),  # fewer products than that
    (3, 256, 32, 32, 7, "normal"),  # promoted after every instruction
    (2, 256, 16, 256, 5, "negative"),
    (2, 128, 32, 64, 13, "zeros"),
    (0, 64, 32, 64, 13, "normal"),
    (2, 96, 1, 48, 4, "positive"),  # one product an instruction
    (3, 160, 32, 160, 6, "one large"),  # the first product is much larger than all others
    (2, 96, 32, 32, 13, "small"),  # 1e-12
    (2, 8, 4, 4, 2, "below 8"),  # a logarithm in float32 says 2^3
    (3, 6, 2, 6, 13, "wide"),  # numbers of 24 bits: a cut in bits before the sum is seen
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        products_RK = torch.tensor([[8.0, 1.5, -1.5, 3.0, 5.0, 0.75], [-8.0, -1.5, 1.5, -3.0, 16.0, 0.0]])
        return {
            "products_RK": products_RK,
            "scales_RB": torch.tensor([[1.0, 10.0], [0.5, 1.0]]),
            "group": 2,
            "every": 4,
            "bits": 2,
        }
    if number <= len(EDGES):
        R, K, group, every, bits, kind = EDGES[number - 1]
    else:
        R, K, group = int(rng.integers(1, 5)), int(rng.integers(2, 300)), int(rng.choice([4, 8, 32]))
        every, bits = group * int(rng.integers(1, 6)), int(rng.integers(3, 14))
        kind = str(rng.choice(["positive", "normal", "negative"]))
    drawn = [
        torch.tensor(rng.normal(size=(R, K)), dtype=torch.float32).to(torch.float8_e4m3fn).float() for _ in range(2)
    ]
    products_RK = drawn[0] * drawn[1]
    if kind in ("positive", "negative"):
        products_RK = products_RK.abs() * (1 if kind == "positive" else -1)
    if kind == "zeros":
        products_RK[:, : K // 2] = 0.0
        products_RK[0] = 0.0
    if kind == "one large":
        products_RK[:, 0] = 100.0
    if kind == "small":
        products_RK *= 1e-12
    if kind == "below 8":
        products_RK = torch.tensor([8 - 2.0**-21, 1.5, 1.5, 1.5]).repeat(R, 2) * torch.tensor([[1.0], [-1.0]])
    if kind == "wide":  # each lies just above a whole number of steps, or just below
        products_RK = torch.tensor([8192.0, -8191.0]).repeat(R, 3) + torch.tensor([0.0, 2.0**-10]).repeat(R, 3)
    scales_RB = torch.tensor(2.0 ** rng.uniform(-4, 4, size=(R, -(-K // every))), dtype=torch.float32)
    return {"products_RK": products_RK, "scales_RB": scales_RB, "group": group, "every": every, "bits": bits}


def reference(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        exponents = torch.frexp(largest).exponent - 1
        step = torch.ldexp(torch.ones_like(largest), exponents - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            products = products_RK[:, start : min(start + group, end)].double()
            terms = torch.cat([products, sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def in_whole_numbers(products_RK, scales_RB, group, every, bits):
    """One row after the other, in Python's integers: a number is an integer times a power of two."""
    totals = []
    for products, scales in zip(products_RK.tolist(), scales_RB.tolist(), strict=True):
        total = torch.tensor(0.0)
        for span, scale in enumerate(scales):
            kept = products[span * every : (span + 1) * every]
            running = 0.0
            for start in range(0, len(kept), group):
                terms = [*kept[start : start + group], running]
                largest = max(abs(term) for term in terms)
                if largest == 0:
                    continue
                step = 2.0 ** (math.frexp(largest)[1] - 1 - bits)
                units = sum(int(term / step) for term in terms)
                while abs(units) >= 2 ** (bits + 1):
                    units, step = int(units / 2), step * 2
                running = units * step
            total = total + torch.tensor(running) * torch.tensor(scale)
        totals.append(total)
    return torch.stack(totals) if totals else torch.zeros(0)


def never_reset(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R, sum_R = torch.zeros(R), torch.zeros(R, dtype=torch.float64)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def scaled_once(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for begin in range(0, K, every):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float()
    return total_R * scales_RB[:, -1]


def rounded_to_nearest(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).round() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def cut_downward(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).floor() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def only_the_sum_is_cut(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            sum_R = sum_R + products_RK[:, start : min(start + group, end)].double().sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def aligned_without_the_sum(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = products_RK[:, start : min(start + group, end)].double()
            sum_R = sum_R + cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def the_result_not_cut_again(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def the_rest_is_lost(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span in range(K // every):
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(span * every, (span + 1) * every, group):
            terms = torch.cat([products_RK[:, start : start + group].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


def the_leading_one_counted(products_RK, scales_RB, group, every, bits):
    def cut(values, largest):
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - bits)
        return (values / step).trunc() * step

    R, K = products_RK.shape
    total_R = torch.zeros(R)
    for span, begin in enumerate(range(0, K, every)):
        end = min(begin + every, K)
        sum_R = torch.zeros(R, dtype=torch.float64)
        for start in range(begin, end, group):
            terms = torch.cat([products_RK[:, start : min(start + group, end)].double(), sum_R[:, None]], dim=1)
            sum_R = cut(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
            sum_R = cut(sum_R, sum_R.abs())
        total_R = total_R + sum_R.float() * scales_RB[:, span]
    return total_R


EXERCISE = Exercise(
    id="13.3",
    unit="13",
    title="an accumulator that cuts, and promotion",
    entry="promoted_sum",
    points=15,
    minutes=40,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=17,
    reference=reference,
    compare=rows_close("sums", 1e-6),
    misconceptions=(
        Misconception(
            "never-reset",
            never_reset,
            "It looks like a partial sum that goes on after it was promoted: it is added again and again. After each promotion it starts "
            "from zero.",
        ),
        Misconception(
            "scaled-once",
            scaled_once,
            "It looks like the last scale applied once, to the whole sum. Each span's partial sum has a scale of its own, which it takes "
            "along when it is promoted.",
        ),
        Misconception(
            "rounded-to-nearest",
            rounded_to_nearest,
            "It looks like bits that are rounded to nearest. This hardware cuts them off, toward zero: that is why its error grows in one "
            "direction.",
        ),
        Misconception(
            "cut-downward",
            cut_downward,
            "It looks like bits cut off downward, away from zero where a number is negative. Cut toward zero: torch.trunc.",
        ),
        Misconception(
            "only-the-sum-is-cut",
            only_the_sum_is_cut,
            "It looks like a group's products added exactly, and only the sum cut. Each product is cut first, at the step of the largest "
            "among them and the running sum.",
        ),
        Misconception(
            "aligned-without-the-sum",
            aligned_without_the_sum,
            "It looks like products aligned among themselves. The running sum is one of the terms: once it is large, products lose their "
            "low bits to it.",
        ),
        Misconception(
            "the-result-not-cut-again",
            the_result_not_cut_again,
            "It looks like a sum of an instruction that is kept as it comes. It may have grown past its width: cut it again, at its own "
            "exponent, also before it is promoted.",
        ),
        Misconception(
            "the-rest-is-lost",
            the_rest_is_lost,
            "It looks like K // every promotions. What is left after the last whole span is promoted too.",
        ),
        Misconception(
            "the-leading-one-counted",
            the_leading_one_counted,
            "It looks like a step of 2^(e - bits + 1). The leading one is not counted: the step is 2^(e - bits).",
        ),
    ),
    alternatives=(in_whole_numbers,),
    hints=(
        "Do one instruction on paper: which terms does it add, which is the largest, and how wide is a step of its last bit?",
        "Two loops: over spans, and in each over groups. The running sum is one more term of a group. After the group's sum is taken, the "
        "result may have grown a bit: cut it again, at its own exponent.",
        "torch.frexp(v).exponent - 1 is e with 2^e <= |v| < 2^(e+1). A cut is trunc(v / step) * step with step = 2^(e - bits), exact in "
        "float64. A group of zeros has no exponent, and any step serves. At the end of a span: total += partial * scale, in float32, "
        "and a new partial.",
    ),
)
