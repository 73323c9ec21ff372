"""03.4: the FLOPs that training spends on one token (Kaplan et al. 2020, section 2.1; here to the last product)."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

LLAMA_405B = {  # Llama 3 report, table 3
    "vocab": 128_256,
    "width": 16_384,
    "layers": 126,
    "heads": 128,
    "kv_heads": 8,
    "head_width": 128,
    "dense_width": 53_248,
    "dense_layers": 126,
    "experts": 0,
    "k": 0,
    "shared": 0,
    "expert_width": 0,
    "context": 4096,
    "causal": True,
}


DENSE = {  # the text's example, and the same with a mixture layer
    "vocab": 10,
    "width": 4,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "head_width": 2,
    "dense_width": 6,
    "dense_layers": 1,
    "experts": 0,
    "k": 0,
    "shared": 0,
    "expert_width": 0,
    "context": 3,
    "causal": True,
}
MIXTURE = DENSE | {"dense_layers": 0, "experts": 5, "k": 2, "shared": 1, "expert_width": 3, "causal": False}
BY_HAND = [DENSE, MIXTURE, LLAMA_405B]


def inputs(rng, number):
    if number < len(BY_HAND):
        return dict(BY_HAND[number])
    heads = int(rng.choice([4, 8, 16]))
    layers = int(rng.integers(4, 40))
    return {
        "vocab": int(rng.integers(500, 5000)),
        "width": int(rng.integers(3, 40)) * 16,
        "layers": layers,
        "heads": heads,
        "kv_heads": heads // int(rng.choice([2, 4])),
        "head_width": int(rng.choice([32, 64, 96])),
        "dense_width": int(rng.integers(100, 3000)),
        "dense_layers": 0 if number == 5 else int(rng.integers(1, 4)),
        "experts": int(rng.integers(8, 100)),
        "k": int(rng.integers(2, 7)),
        "shared": 0 if number == 3 else int(rng.integers(1, 3)),
        "expert_width": int(rng.integers(30, 900)),
        "context": int(rng.integers(100, 5000)),
        "causal": number % 2 == 1,
    }


def reference(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    dense = 3 * width * dense_width
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = layers * attention + dense_layers * dense + (layers - dense_layers) * mixture + width * vocab
    seen_twice = context + 1 if causal else 2 * context
    return 6 * met, 3 * layers * 2 * heads * head_width * seen_twice


def product_by_product(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    products, pairs = [(width, vocab)], 0
    for layer in range(layers):
        products += [(width, heads * head_width), (width, kv_heads * head_width), (width, kv_heads * head_width)]
        products += [(heads * head_width, width)]
        wide = [dense_width] if layer < dense_layers else [expert_width] * (k + shared)
        products += [(width, experts)] if layer >= dense_layers else []
        products += [shape for w in wide for shape in ((width, w), (width, w), (w, width))]
        pairs += sum(range(1, context + 1)) if causal else context * context
    forward = sum(2 * a * b for a, b in products)
    backward = 2 * forward
    return forward + backward, 3 * (pairs * heads * 2 * (2 * head_width)) // context


def embedding_counted(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention
        + dense_layers * 3 * width * dense_width
        + (layers - dense_layers) * mixture
        + 2 * width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def head_left_out(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def every_expert(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (experts + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def shared_left_out(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + k * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def router_left_out(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def forward_alone(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 2 * met, 2 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def backward_like_forward(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 4 * met, 4 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def multiply_adds(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 3 * met, 3 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def always_the_full_square(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 12 * layers * heads * head_width * context


def half_the_square(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * context * (1 if causal else 2)


def scores_by_kv_heads(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * kv_heads * head_width * (context + 1 if causal else 2 * context)


def keys_as_wide_as_queries(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 4 * width * head_width * heads
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def two_matrices(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 2 * width * expert_width
    met = (
        layers * attention + dense_layers * 2 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 6 * layers * heads * head_width * (context + 1 if causal else 2 * context)


def scores_alone(
    vocab, width, layers, heads, kv_heads, head_width, dense_width, dense_layers, experts, k, shared, expert_width, context, causal
):  # fmt: skip
    attention = 2 * width * head_width * (heads + kv_heads)
    mixture = width * experts + (k + shared) * 3 * width * expert_width
    met = (
        layers * attention + dense_layers * 3 * width * dense_width + (layers - dense_layers) * mixture + width * vocab
    )
    return 6 * met, 3 * layers * heads * head_width * (context + 1 if causal else 2 * context)


EXERCISE = Exercise(
    id="03.4",
    unit="03",
    title="FLOPs of a token",
    entry="training_flops",
    points=15,
    minutes=30,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("weights", "attention"),
    misconceptions=(
        Misconception(
            "embedding-counted",
            embedding_counted,
            "It looks like the embedding among the products. It is a look-up: a row is copied, nothing is multiplied. The head counts.",
            "huggingface/trl pull request 5698, tenstorrent/tt-metal pull request 50114",
        ),
        Misconception(
            "head-left-out",
            head_left_out,
            "It looks like a model without its head. To score the vocabulary is a product of width x vocab for every token.",
            "'non-embedding parameters' leave it out: Kaplan et al. 2020, section 2.1",
        ),
        Misconception(
            "every-expert",
            every_expert,
            "It looks like all experts at work for each token. A token meets k routed experts and the shared ones.",
            "AI-Hypercomputer/maxtext pull request 678, PrimeIntellect-ai/prime-rl issue 778",
        ),
        Misconception(
            "shared-left-out",
            shared_left_out,
            "It looks like a mixture without its shared experts. Every token meets them, beside its k.",
        ),
        Misconception(
            "router-left-out",
            router_left_out,
            "It looks like a mixture without a router. To choose k, the token is multiplied with a row for each of the experts.",
        ),
        Misconception(
            "forward-alone",
            forward_alone,
            "It looks like the forward pass alone. The backward pass makes two products for each of the forward's, one for the input and "
            "one for the weight.",
        ),
        Misconception(
            "backward-like-forward",
            backward_like_forward,
            "It looks like a backward pass as dear as the forward. It costs twice as much: one product for the gradient of the input, one "
            "for that of the weight.",
        ),
        Misconception(
            "multiply-adds",
            multiply_adds,
            "It looks like multiply-adds counted. A multiplication and an addition are two FLOPs.",
        ),
        Misconception(
            "full-square",
            always_the_full_square,
            "It looks like every query meeting every key. Under a causal mask position n meets n keys: (context + 1) / 2 on average.",
            "AI-Hypercomputer/maxtext issue 1972; PyTorch's own FlopCounterMode counts the square as well",
        ),
        Misconception(
            "half-the-square",
            half_the_square,
            "It looks like context / 2 keys for a causal query. Each position meets itself too: 1 + 2 + ... + context keys are "
            "(context + 1) / 2 on average.",
        ),
        Misconception(
            "keys-as-wide-as-queries",
            keys_as_wide_as_queries,
            "It looks like key and value matrices as wide as the query's. They have kv_heads heads, not heads.",
        ),
        Misconception(
            "two-matrices",
            two_matrices,
            "It looks like a SwiGLU of two matrices. It has three: gate, up and down.",
        ),
        Misconception(
            "scores-alone",
            scores_alone,
            "It looks like one product in attention. There are two: queries with keys, and the probabilities with the values.",
        ),
        Misconception(
            "scores-by-kv-heads",
            scores_by_kv_heads,
            "It looks like scores counted by key heads. Sharing keys saves memory and no scores: every query head makes its own.",
            "allenai/OLMo-core pull request 478",
        ),
    ),
    alternatives=(product_by_product,),
    hints=(
        "List the matrices that one token is multiplied with, in a dense layer, in a mixture layer, and after the last layer.",
        "A product with a matrix of a x b costs 2ab forward and 4ab backward. Attention: each query head, each key it may see, twice.",
        "weights = 6 * (numbers in the matrices met); attention = 3 * layers * heads * (mean keys seen) * 4 * head_width, as ints.",
    ),
)
