"""04.6: total and active parameters of a Mixtral-shaped model (Mixtral report, section 2; 47B and 13B are published)."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

MIXTRAL = {
    "vocab": 32_000,
    "width": 4096,
    "layers": 32,
    "heads": 32,
    "kv_heads": 8,
    "head_width": 128,
    "experts": 8,
    "k": 2,
    "expert_width": 14_336,
}


def inputs(rng, number):
    if number == 0:
        return dict(MIXTRAL)
    heads = int(rng.choice([4, 8, 16]))
    return {
        "vocab": int(rng.integers(500, 5000)),
        "width": int(rng.integers(3, 40)) * 16,
        "layers": int(rng.integers(2, 60)),
        "heads": heads,
        "kv_heads": heads // int(rng.choice([2, 4])),
        "head_width": int(rng.choice([32, 64, 128])),
        "experts": int(rng.integers(6, 200)),
        "k": int(rng.integers(2, 6)),
        "expert_width": int(rng.integers(10, 900)),
    }


def reference(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    embeddings = 2 * vocab * width
    attention = 2 * width * head_width * (heads + kv_heads)
    expert = 3 * width * expert_width
    rest = attention + experts * width + 2 * width
    total = embeddings + layers * (rest + experts * expert) + width
    active = embeddings + layers * (rest + k * expert) + width
    return total, active


def matrix_by_matrix(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    def shapes(used):
        yield from [(vocab, width), (vocab, width), (width,)]
        for _ in range(layers):
            yield from [(heads * head_width, width), (kv_heads * head_width, width), (kv_heads * head_width, width)]
            yield from [(width, heads * head_width), (experts, width), (width,), (width,)]
            yield from [(expert_width, width), (expert_width, width), (width, expert_width)] * used

    return sum(math.prod(s) for s in shapes(experts)), sum(math.prod(s) for s in shapes(k))


def attention_in_each_expert(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    attention = 2 * width * head_width * (heads + kv_heads)
    one = attention + 3 * width * expert_width
    fixed, rest = 2 * vocab * width + width, experts * width + 2 * width
    return fixed + layers * (rest + experts * one), fixed + layers * (rest + k * one)


def two_matrices(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    expert = 2 * width * expert_width
    rest = 2 * width * head_width * (heads + kv_heads) + experts * width + 2 * width
    fixed = 2 * vocab * width + width
    return fixed + layers * (rest + experts * expert), fixed + layers * (rest + k * expert)


def no_grouped_heads(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    expert = 3 * width * expert_width
    rest = 4 * width * head_width * heads + experts * width + 2 * width
    fixed = 2 * vocab * width + width
    return fixed + layers * (rest + experts * expert), fixed + layers * (rest + k * expert)


def no_router(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    expert = 3 * width * expert_width
    rest = 2 * width * head_width * (heads + kv_heads) + 2 * width
    fixed = 2 * vocab * width + width
    return fixed + layers * (rest + experts * expert), fixed + layers * (rest + k * expert)


def router_of_the_chosen(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    expert = 3 * width * expert_width
    rest = 2 * width * head_width * (heads + kv_heads) + 2 * width
    fixed = 2 * vocab * width + width
    total = fixed + layers * (rest + experts * width + experts * expert)
    return total, fixed + layers * (rest + k * width + k * expert)


def share_of_the_total(vocab, width, layers, heads, kv_heads, head_width, experts, k, expert_width):
    expert = 3 * width * expert_width
    rest = 2 * width * head_width * (heads + kv_heads) + experts * width + 2 * width
    total = 2 * vocab * width + layers * (rest + experts * expert) + width
    return total, total * k // experts


EXERCISE = Exercise(
    id="04.6",
    unit="04",
    title="active parameters",
    entry="count_parameters",
    points=5,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=4,
    reference=reference,
    compare=same("total", "active"),
    misconceptions=(
        Misconception(
            "attention-in-each-expert",
            attention_in_each_expert,
            "It looks like attention counted once an expert, as the name 8x7B suggests. Only the feed-forward layer is "
            "multiplied: attention, norms and embeddings are shared.",
            "8 x 7 = 56 is a common misreading of Mixtral's name; the model has 46.7 billion parameters",
        ),
        Misconception(
            "two-matrices",
            two_matrices,
            "It looks like two matrices an expert. SwiGLU has three: gate, up and down.",
        ),
        Misconception(
            "no-grouped-heads",
            no_grouped_heads,
            "It looks like as many key and value heads as query heads. K and V are kv_heads * head_width wide.",
        ),
        Misconception(
            "no-router",
            no_router,
            "It looks like a model without routers. Each layer has one row of width numbers for each expert.",
        ),
        Misconception(
            "router-of-the-chosen",
            router_of_the_chosen,
            "It looks like only the chosen experts' rows of the router in the active count. To choose k, all rows are read.",
        ),
        Misconception(
            "share-of-the-total",
            share_of_the_total,
            "It looks like k / experts of everything. Attention, norms, routers and embeddings are active for every token.",
        ),
    ),
    alternatives=(matrix_by_matrix,),
    hints=(
        "List the matrices of one layer with their shapes; then the parts outside the layers.",
        "Attention has four matrices, an expert three, the router one; each layer has two norms, the model one more.",
        "Total and active differ in one factor only: experts or k in front of 3 * width * expert_width.",
    ),
)
