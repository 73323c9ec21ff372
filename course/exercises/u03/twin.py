"""03.5: the dense layer that costs a token as much as a mixture layer: equal FLOPs, and then not equal parameters."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # width, experts, k, shared, expert width, multiple
    (64, 6, 1, 1, 10, 4),  # the text's example: 22
    (7168, 256, 8, 1, 2048, 128),  # DeepSeek-V3
    (4096, 8, 2, 0, 14_336, 256),  # Mixtral
    (128, 12, 1, 1, 8, 8),  # exactly between two multiples: 20
    (64, 6, 1, 0, 3, 16),  # less than half a multiple
    (96, 24, 2, 1, 20, 1),
    (64, 5, 1, 0, 8, 4),  # 9 2/3: to whole widths first, it would be 10, and then 12
    (64, 5, 1, 0, 8, 1),
]


def inputs(rng, number):
    if number < len(EDGES):
        width, experts, k, shared, expert_width, multiple = EDGES[number]
    else:
        width, experts, k = int(rng.integers(4, 60)) * 16, int(rng.integers(20, 260)), int(rng.integers(1, 9))
        shared, expert_width = int(rng.integers(1, 3)), int(rng.integers(20, 400))
        multiple = int(rng.choice([8, 16, 32, 64]))
    return {
        "width": width,
        "experts": experts,
        "k": k,
        "shared": shared,
        "expert_width": expert_width,
        "multiple": multiple,
    }


def reference(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    steps = (2 * tripled + 3 * multiple) // (6 * multiple)
    hidden = (steps or 1) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def by_search(width, experts, k, shared, expert_width, multiple):
    router = width * experts
    wanted = 2 * router + (k + shared) * 2 * 3 * width * expert_width
    hidden = multiple
    while abs(6 * width * (hidden + multiple) - wanted) <= abs(6 * width * hidden - wanted):
        hidden += multiple
    parameters = router + (experts + shared) * 3 * width * expert_width
    return hidden, (6 * width * hidden - wanted) / wanted, parameters / (3 * width * hidden)


def without_the_router(width, experts, k, shared, expert_width, multiple):
    mixture = 3 * (k + shared) * expert_width
    hidden = max(1, (2 * mixture + 3 * multiple) // (6 * multiple)) * multiple
    owned = 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / mixture - 1, owned / (3 * hidden)


def router_as_wide_as_all_three(width, experts, k, shared, expert_width, multiple):
    exact = (k + shared) * expert_width + experts
    hidden = max(1, (2 * exact + multiple) // (2 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, hidden / exact - 1, owned / (3 * hidden)


def without_the_shared(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * k * expert_width + experts
    hidden = max(1, (2 * tripled + 3 * multiple) // (6 * multiple)) * multiple
    owned = experts + 3 * experts * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def equal_parameters(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (experts + shared) * expert_width + experts
    hidden = max(1, (2 * tripled + 3 * multiple) // (6 * multiple)) * multiple
    return hidden, 3 * hidden / tripled - 1, tripled / (3 * hidden)


def two_matrices(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, (tripled + multiple) // (2 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 2 * hidden / tripled - 1, owned / (2 * hidden)


def rounded_down(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, tripled // (3 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def rounded_up(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = -(-tripled // (3 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def as_python_rounds(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, round(tripled / (3 * multiple))) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def rounded_twice(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    whole = (2 * tripled + 3) // 6
    hidden = max(1, (2 * whole + multiple) // (2 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def exact_width_owned(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, (2 * tripled + 3 * multiple) // (6 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / tripled


def shared_among_the_experts(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, (2 * tripled + 3 * multiple) // (6 * multiple)) * multiple
    owned = experts + 3 * experts * expert_width
    return hidden, 3 * hidden / tripled - 1, owned / (3 * hidden)


def upside_down(width, experts, k, shared, expert_width, multiple):
    tripled = 3 * (k + shared) * expert_width + experts
    hidden = max(1, (2 * tripled + 3 * multiple) // (6 * multiple)) * multiple
    owned = experts + 3 * (experts + shared) * expert_width
    return hidden, 1 - 3 * hidden / tripled, 3 * hidden / owned


EXERCISE = Exercise(
    id="03.5",
    unit="03",
    title="iso-FLOP dense twin",
    entry="dense_twin",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("hidden", "excess", "owned"),
    misconceptions=(
        Misconception(
            "router-left-out",
            without_the_router,
            "It looks like a mixture without its router. To choose, a token is multiplied with a row of `width` numbers for every expert.",
            "`ModelConfig.dense_twin` of this course leaves it out too, and says so",
        ),
        Misconception(
            "router-thrice",
            router_as_wide_as_all_three,
            "It looks like a router row that buys a hidden unit. A hidden unit costs three products (gate, up, down), a router row one.",
        ),
        Misconception(
            "shared-left-out",
            without_the_shared,
            "It looks like the routed experts alone. Every token meets the shared ones as well.",
        ),
        Misconception(
            "equal-parameters",
            equal_parameters,
            "It looks like a twin with as many parameters. The twin has as many FLOPs a token: as wide as what a token meets.",
        ),
        Misconception(
            "two-matrices",
            two_matrices,
            "It looks like a dense layer of two matrices. A SwiGLU has three: gate, up and down.",
        ),
        Misconception(
            "rounded-down",
            rounded_down,
            "It looks like a width rounded down. Take the nearest multiple.",
        ),
        Misconception(
            "rounded-up",
            rounded_up,
            "It looks like a width rounded up. Take the nearest multiple.",
        ),
        Misconception(
            "python-rounds",
            as_python_rounds,
            "It looks like a half taken down, or to the even neighbour as Python's round does. Exactly between two multiples, take the "
            "wider one.",
            "round(2.5) is 2: documented behaviour of Python 3",
        ),
        Misconception(
            "rounded-twice",
            rounded_twice,
            "It looks like a width rounded to a whole number, and then to the multiple. Round once: 9 2/3 is nearer to 8 than to 12.",
        ),
        Misconception(
            "exact-width-owned",
            exact_width_owned,
            "It looks like parameters compared with a twin that was not rounded. `owned` is over the twin that will be built, `hidden` "
            "wide.",
        ),
        Misconception(
            "shared-among-the-experts",
            shared_among_the_experts,
            "It looks like shared experts counted among `experts` in what the mixture owns. `experts` are the routed ones; the shared come "
            "on top.",
        ),
        Misconception(
            "upside-down",
            upside_down,
            "It looks like ratios turned over. Excess is the twin's FLOPs over the mixture's, minus one; owned is the mixture's parameters "
            "over the twin's.",
        ),
    ),
    alternatives=(by_search,),
    hints=(
        "Write the FLOPs of one token in the mixture layer, and in a dense layer of hidden width h. Set them equal.",
        "The width of the model cancels. What a router row costs, in thirds of a hidden unit, is left.",
        "In whole numbers, 3 * exact width = 3 * (k + shared) * expert_width + experts; then the nearest multiple, halves up, at least 1.",
    ),
)
