"""00.1: how many numbers a stack of dense layers learns. The first exercise: short, exact, and easy to get nearly right."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [([3, 2], True), ([3, 2], False), ([7], True), ([5, 4, 3, 2], True), ([784, 128, 10], True)]


def inputs(rng, number):
    if number < len(EDGES):
        widths, bias = EDGES[number]
        return {"widths": list(widths), "bias": bias}
    count = int(rng.integers(3, 7))
    return {"widths": rng.choice(range(2, 3000), size=count, replace=False).tolist(), "bias": number % 2 == 0}


def reference(widths, bias):
    total = 0
    for layer in range(len(widths) - 1):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        total += fan_in * fan_out
        if bias:
            total += fan_out
    return total


def in_one_line(widths, bias):
    return sum((widths[i] + bias) * widths[i + 1] for i in range(len(widths) - 1))


def asked_of_torch(widths, bias):
    with torch.device("meta"):
        layers = [torch.nn.Linear(widths[i], widths[i + 1], bias=bias) for i in range(len(widths) - 1)]
    return sum(weight.numel() for layer in layers for weight in layer.parameters())


def never_a_bias(widths, bias):
    return sum(widths[i] * widths[i + 1] for i in range(len(widths) - 1))


def always_a_bias(widths, bias):
    return sum((widths[i] + 1) * widths[i + 1] for i in range(len(widths) - 1))


def one_bias_a_layer(widths, bias):
    return sum(widths[i] * widths[i + 1] + bias for i in range(len(widths) - 1))


def bias_on_the_input(widths, bias):
    return sum(widths[i] * (widths[i + 1] + bias) for i in range(len(widths) - 1))


def bias_for_every_width(widths, bias):
    return sum(widths[i] * widths[i + 1] for i in range(len(widths) - 1)) + bias * sum(widths)


def units(widths, bias):
    return sum(widths)


def last_layer_missed(widths, bias):
    return sum((widths[i] + bias) * widths[i + 1] for i in range(len(widths) - 2))


def first_layer_only(widths, bias):
    return (widths[0] + bias) * widths[1] if len(widths) > 1 else 0


def return_in_the_loop(widths, bias):
    for i in range(len(widths) - 1):
        return (widths[i] + bias) * widths[i + 1]


def every_second_pair(widths, bias):
    return sum((widths[i] + bias) * widths[i + 1] for i in range(0, len(widths) - 1, 2))


def layer_between_the_ends(widths, bias):
    return (widths[0] + bias) * widths[-1] if len(widths) > 1 else 0


EXERCISE = Exercise(
    id="00.1",
    unit="00",
    title="dense layer parameters",
    entry="count_dense",
    points=5,
    minutes=10,
    difficulty=1,
    spine=True,
    inputs=inputs,
    cases=7,
    reference=reference,
    compare=same("parameters"),
    misconceptions=(
        Misconception(
            "never-a-bias",
            never_a_bias,
            "It looks like weights alone. When `bias` is true, each layer also learns one number for each of its outputs.",
        ),
        Misconception(
            "always-a-bias",
            always_a_bias,
            "It looks like a bias in every case. When `bias` is false, a layer is its weights and nothing else.",
        ),
        Misconception(
            "one-bias-a-layer",
            one_bias_a_layer,
            "It looks like one bias for a whole layer. A bias is a vector: each output has a number of its own.",
        ),
        Misconception(
            "bias-on-the-input",
            bias_on_the_input,
            "It looks like a bias for each input of a layer. It is added to what comes out, so count the outputs.",
        ),
        Misconception(
            "bias-for-every-width",
            bias_for_every_width,
            "It looks like a bias for the first width too. That is the data going in: it belongs to no layer and learns nothing.",
        ),
        Misconception(
            "units",
            units,
            "It looks like the widths added up: those are the units. A layer learns one number for each pair of an input and an output.",
        ),
        Misconception(
            "last-layer-missed",
            last_layer_missed,
            "It looks like a loop that ends one layer early. Four widths make three layers, and the last one counts too.",
        ),
        Misconception(
            "first-layer-only",
            first_layer_only,
            "It looks like the first layer alone. Every two neighbours in `widths` make a layer: go through them all and add up.",
        ),
        Misconception(
            "return-in-the-loop",
            return_in_the_loop,
            "It looks like a `return` inside the loop, which ends it after one layer. It belongs after the loop, one step to the left.",
        ),
        Misconception(
            "every-second-pair",
            every_second_pair,
            "It looks like every second pair of widths. Layers share widths: what one gives is what the next one takes.",
        ),
        Misconception(
            "layer-between-the-ends",
            layer_between_the_ends,
            "It looks like one layer from the first width straight to the last. Those between are layers' outputs, and count.",
        ),
    ),
    alternatives=(in_one_line, asked_of_torch),
    hints=(
        "Take one layer, from 3 numbers to 2. Draw a line from each input to each output and count the lines; then add the biases.",
        "A layer lies between two neighbours in `widths`: zip(widths[:-1], widths[1:]) gives those pairs, and none for a single width.",
        "Add up fan_in * fan_out over the pairs, and fan_out once more for each pair when bias is true.",
    ),
)
