"""02.6: the parameters of a dense model, part by part, from its published shape (Llama 3 report, Table 3; Qwen's)."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

NAMES = ["vocab", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "qkv_bias", "qk_norm", "tied"]
PUBLISHED = [
    (128_256, 16_384, 126, 128, 8, 128, 53_248, False, False, False),  # Llama-3.1-405B
    (152_064, 8_192, 80, 64, 8, 128, 29_568, True, False, False),  # Qwen2.5-72B
    (151_936, 1_024, 28, 16, 8, 128, 3_072, False, True, True),  # Qwen3-0.6B
]


def inputs(rng, number):
    if number < len(PUBLISHED):
        return dict(zip(NAMES, PUBLISHED[number], strict=True))
    heads = int(rng.choice([8, 12, 16, 24]))
    return {
        "vocab": int(rng.integers(500, 5000)),
        "width": 16 * int(rng.integers(3, 40)),
        "layers": int(rng.integers(2, 60)),
        "heads": heads,
        "kv_heads": heads // int(rng.choice([2, 4])),
        "head_width": int(rng.choice([32, 48, 64, 128])),
        "mlp_width": int(rng.integers(10, 3000)),
        "qkv_bias": bool(rng.integers(2)),
        "qk_norm": bool(rng.integers(2)),
        "tied": bool(rng.integers(2)),
    }


def reference(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def shape_by_shape(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    queries, keys = heads * head_width, kv_heads * head_width
    block = {
        "attention": [(queries, width), (keys, width), (keys, width), (width, queries)],
        "feed_forward": [(mlp_width, width), (mlp_width, width), (width, mlp_width)],
        "norms": [(width,), (width,)],
    }
    if qkv_bias:
        block["attention"] += [(queries,), (keys,), (keys,)]
    if qk_norm:
        block["norms"] += [(head_width,), (head_width,)]
    counts = {part: layers * sum(map(math.prod, shapes)) for part, shapes in block.items()}
    counts["norms"] += width
    counts["embedding"] = vocab * width + (0 if tied else vocab * width)
    counts["total"] = counts["embedding"] + counts["attention"] + counts["feed_forward"] + counts["norms"]
    return counts


def no_grouped_heads(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * heads * head_width * (4 * width + 3 * qkv_bias),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def head_width_from_the_width(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    head_width = width // heads
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def output_of_width_squared(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def two_matrices(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 2 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def never_tied(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * 2,
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def head_not_counted(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width,
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def bias_on_the_output_too(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width + width * qkv_bias),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def biases_of_the_width(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * width + 3 * width * qkv_bias + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def never_a_bias(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * width + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


def last_norm_missing(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + 2 * head_width * qk_norm),
    }
    return parts | {"total": sum(parts.values())}


def a_norm_a_head(vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied):
    into = head_width * (heads + 2 * kv_heads)
    parts = {
        "embedding": vocab * width * (1 if tied else 2),
        "attention": layers * (into * (width + qkv_bias) + heads * head_width * width),
        "feed_forward": layers * 3 * width * mlp_width,
        "norms": layers * (2 * width + (heads + kv_heads) * head_width * qk_norm) + width,
    }
    return parts | {"total": sum(parts.values())}


EXERCISE = Exercise(
    id="02.6",
    unit="02",
    title="parameter count",
    entry="count_dense_model",
    points=5,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("the result"),
    misconceptions=(
        Misconception(
            "no-grouped-heads",
            no_grouped_heads,
            "It looks like as many key and value heads as query heads. Keys and values are kv_heads * head_width wide.",
        ),
        Misconception(
            "head-width-from-width",
            head_width_from_the_width,
            "It looks like a head width of width / heads. It is a number of its own: Qwen3-0.6B has 16 heads of 128 in a model 1,024 wide.",
            "pytorch/torchtitan, issue 1920, and eole-nlp/eole, pull request 78: 551M parameters that nobody could explain",
        ),
        Misconception(
            "output-of-width-squared",
            output_of_width_squared,
            "It looks like an output matrix of width x width. It leads from what the query heads give, heads * head_width, to the width.",
        ),
        Misconception(
            "two-matrices",
            two_matrices,
            "It looks like two matrices in the feed-forward layer. SwiGLU has three: gate, up and down.",
            "TransformerLensOrg/TransformerLens, issue 448: Llama-7B counted as 5.0 billion",
        ),
        Misconception(
            "never-tied",
            never_tied,
            "It looks like a head of its own in every model. When tied, the head *is* the embedding matrix, and counts once.",
            "karpathy/llama2.c, issue 378: the 42M model counted as 58M",
        ),
        Misconception(
            "head-not-counted",
            head_not_counted,
            "It looks like the output head left out. When it is not tied to the embedding it is a second matrix, vocab x width.",
            "jranaraki/vllm-fit, issue 27: a memory estimate without the head",
        ),
        Misconception(
            "bias-on-the-output",
            bias_on_the_output_too,
            "It looks like a bias on the output matrix too. qkv_bias means query, key and value, and none of the others.",
        ),
        Misconception(
            "biases-of-the-width",
            biases_of_the_width,
            "It looks like three biases of the width. A bias is as long as what its matrix gives: heads or kv_heads times head_width.",
        ),
        Misconception(
            "never-a-bias",
            never_a_bias,
            "It looks like matrices alone. With qkv_bias, query, key and value each add one number for each of their outputs.",
        ),
        Misconception(
            "last-norm-missing",
            last_norm_missing,
            "It looks like the norm after the last block left out. It has `width` numbers, once in the whole model.",
        ),
        Misconception(
            "a-norm-a-head",
            a_norm_a_head,
            "It looks like norms of queries and keys with weights for every head. All heads of a layer share head_width numbers, one set "
            "for queries and one for keys.",
        ),
    ),
    alternatives=(shape_by_shape,),
    hints=(
        "Write down the shape of every matrix and vector of one layer, then of what stands outside the layers.",
        "Queries are heads * head_width wide, keys and values kv_heads * head_width; the output matrix leads from heads * head_width back.",
        "Each of the (heads + 2 kv_heads) * head_width outputs costs width numbers, with a bias one more. Norms: 2 a layer, 1 at the end.",
    ),
)
