"""00.2: from tokens to days, GPU hours and dollars. First the lab's example, then DeepSeek-V3's pre-training."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EXAMPLE = {"tokens": 32.4e6, "gpus": 9, "tokens_per_second": 1000.0, "price": 2.0, "node": 8}  # one hour, 16 GPUs
V3 = {  # 14.8T tokens in 2.664M GPU hours on 2,048 H800, in nodes of 8 (V3 report, sections 3.1, 4.1 and Table 1)
    "tokens": 14.8e12,
    "gpus": 2048,
    "tokens_per_second": 14.8e12 / (2.664e6 * 3600),
    "price": 2.0,
    "node": 8,
}
EDGES = [
    EXAMPLE,
    V3,
    {"tokens": 1e9, "gpus": 1, "tokens_per_second": 2500.0, "price": 3.5, "node": 8},
    {"tokens": 1e9, "gpus": 9, "tokens_per_second": 2500.0, "price": 3.5, "node": 8},
    {"tokens": 0.0, "gpus": 16, "tokens_per_second": 1800.0, "price": 2.0, "node": 8},
]


def inputs(rng, number):
    if number < len(EDGES):
        return dict(EDGES[number])
    node = int(rng.choice([4, 8, 16]))
    return {
        "tokens": float(rng.integers(1, 5000)) * 1e9,
        "gpus": node * int(rng.integers(2, 200)) + int(rng.integers(1, node)),
        "tokens_per_second": float(rng.integers(300, 9000)),
        "price": float(rng.integers(3, 18)) / 2,
        "node": node,
    }


def reference(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    rented = math.ceil(gpus / node) * node
    gpu_hours = hours * rented
    return hours / 24, gpu_hours, gpu_hours * price


def node_by_node(tokens, gpus, tokens_per_second, price, node):
    nodes, left = divmod(gpus, node)
    nodes += left > 0
    days = tokens / tokens_per_second / gpus / 86_400
    return days, days * 24 * node * nodes, days * (24 * node * price) * nodes


def speed_of_the_cluster(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / tokens_per_second / 3600
    gpu_hours = hours * math.ceil(gpus / node) * node
    return hours / 24, gpu_hours, gpu_hours * price


def only_the_gpus_in_use(tokens, gpus, tokens_per_second, price, node):
    gpu_hours = tokens / tokens_per_second / 3600
    return gpu_hours / gpus / 24, gpu_hours, gpu_hours * price


def rounded_down(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * (gpus // node) * node
    return hours / 24, gpu_hours, gpu_hours * price


def one_node_too_many(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * (gpus // node + 1) * node
    return hours / 24, gpu_hours, gpu_hours * price


def hours_on_the_clock(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    return hours / 24, hours, hours * price


def idle_gpus_that_work(tokens, gpus, tokens_per_second, price, node):
    rented = math.ceil(gpus / node) * node
    gpu_hours = tokens / tokens_per_second / 3600
    return gpu_hours / rented / 24, gpu_hours, gpu_hours * price


def minutes_for_hours(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 60
    gpu_hours = hours * math.ceil(gpus / node) * node
    return hours / 24, gpu_hours, gpu_hours * price


def price_of_a_node(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    nodes = math.ceil(gpus / node)
    return hours / 24, hours * nodes * node, hours * nodes * price


def nodes_for_gpus(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * math.ceil(gpus / node)
    return hours / 24, gpu_hours, gpu_hours * price


def hours_for_days(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * math.ceil(gpus / node) * node
    return hours, gpu_hours, gpu_hours * price


def hours_rounded_up(tokens, gpus, tokens_per_second, price, node):
    hours = math.ceil(tokens / (gpus * tokens_per_second) / 3600)
    gpu_hours = float(hours * math.ceil(gpus / node) * node)
    return hours / 24, gpu_hours, gpu_hours * price


def idle_gpus_for_free(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    return hours / 24, hours * math.ceil(gpus / node) * node, hours * gpus * price


def price_of_a_day(tokens, gpus, tokens_per_second, price, node):
    days = tokens / (gpus * tokens_per_second) / 86_400
    rented = math.ceil(gpus / node) * node
    return days, days * 24 * rented, days * rented * price


def gpu_days(tokens, gpus, tokens_per_second, price, node):
    days = tokens / (gpus * tokens_per_second) / 86_400
    paid = days * math.ceil(gpus / node) * node
    return days, paid, paid * price


def gpu_hours_first(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * math.ceil(gpus / node) * node
    return gpu_hours, hours / 24, gpu_hours * price


def dollars_before_gpu_hours(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * math.ceil(gpus / node) * node
    return hours / 24, gpu_hours * price, gpu_hours


def dollars_first(tokens, gpus, tokens_per_second, price, node):
    hours = tokens / (gpus * tokens_per_second) / 3600
    gpu_hours = hours * math.ceil(gpus / node) * node
    return gpu_hours * price, gpu_hours, hours / 24


EXERCISE = Exercise(
    id="00.2",
    unit="00",
    title="GPU hours to dollars",
    entry="training_bill",
    points=5,
    minutes=10,
    difficulty=2,
    spine=True,
    inputs=inputs,
    cases=7,
    reference=reference,
    compare=same("days", "gpu_hours", "dollars", rtol=1e-9),
    misconceptions=(
        Misconception(
            "speed-of-the-cluster",
            speed_of_the_cluster,
            "It looks like `tokens_per_second` taken for all GPUs together. It is the speed of one: the cluster is `gpus` times as fast.",
        ),
        Misconception(
            "only-the-gpus-in-use",
            only_the_gpus_in_use,
            "It looks like a bill for the GPUs that work. Whole nodes are rented: those that stand idle in the last one are paid as well.",
        ),
        Misconception(
            "rounded-down",
            rounded_down,
            "It looks like nodes rounded down. Nine GPUs do not fit into one node of eight: round up.",
        ),
        Misconception(
            "one-node-too-many",
            one_node_too_many,
            "It looks like one node more than the full ones, always. When `gpus` fills its nodes exactly, none is added.",
        ),
        Misconception(
            "hours-on-the-clock",
            hours_on_the_clock,
            "It looks like hours on the clock. Two GPUs that run for one hour are two GPU hours, and each of them costs `price`.",
        ),
        Misconception(
            "idle-gpus-that-work",
            idle_gpus_that_work,
            "It looks like the whole of the rented nodes at work. Only `gpus` of them train; the rest of the last node is paid and idle.",
        ),
        Misconception(
            "minutes-for-hours",
            minutes_for_hours,
            "It looks like seconds divided by 60: that gives minutes. An hour has 3,600 seconds.",
        ),
        Misconception(
            "price-of-a-node",
            price_of_a_node,
            "It looks like `price` paid once for a node. It is the price of one GPU hour, and a node holds `node` GPUs.",
        ),
        Misconception(
            "nodes-for-gpus",
            nodes_for_gpus,
            "It looks like nodes counted where GPUs are meant. A node holds `node` GPUs: multiply once more.",
        ),
        Misconception(
            "hours-for-days",
            hours_for_days,
            "It looks like hours where days are wanted. The first value is in days: divide the hours by 24.",
        ),
        Misconception(
            "hours-rounded-up",
            hours_rounded_up,
            "It looks like hours rounded up to whole ones. Only the number of nodes is rounded; time is paid as it runs.",
        ),
        Misconception(
            "idle-gpus-for-free",
            idle_gpus_for_free,
            "It looks like dollars for the GPUs that work alone. The GPU hours are right: multiply those with `price`.",
        ),
        Misconception(
            "price-of-a-day",
            price_of_a_day,
            "It looks like `price` paid once a day. It is the price of one GPU hour, and a day has 24.",
        ),
        Misconception(
            "gpu-days",
            gpu_days,
            "It looks like GPU days where GPU hours are wanted: 24 times too few, and so are the dollars.",
        ),
        Misconception(
            "gpu-hours-first",
            gpu_hours_first,
            "It looks like the right values with days and GPU hours in each other's place. Return days, GPU hours, dollars.",
        ),
        Misconception(
            "dollars-before-gpu-hours",
            dollars_before_gpu_hours,
            "It looks like the right values with GPU hours and dollars in each other's place. Return days, GPU hours, dollars.",
        ),
        Misconception(
            "dollars-first",
            dollars_first,
            "It looks like the right values from the last to the first. Return days, GPU hours, dollars.",
        ),
    ),
    alternatives=(node_by_node,),
    hints=(
        "Two questions, one after the other: how long does it run (who works?), and what does an hour of it cost (who is paid?).",
        "All `gpus` together read gpus * tokens_per_second tokens a second. Paid are math.ceil(gpus / node) whole nodes.",
        "hours = tokens / (gpus * tokens_per_second) / 3600; gpu_hours = hours * math.ceil(gpus / node) * node; dollars = that * price.",
    ),
)
