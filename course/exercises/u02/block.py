"""02.5: a pre-norm block out of the four parts before it, with Qwen3's norms on queries and keys where they exist."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u02.attention import reference as causal_attention
from course.exercises.u02.norm import reference as rms_norm
from course.exercises.u02.rope import reference as rope
from course.exercises.u02.swiglu import reference as swiglu

EDGES = [  # batch, sequence, width, heads, width of a head, hidden, whether queries and keys are normed
    (1, 1, 4, 1, 4, 3, False),
    (1, 4, 8, 2, 4, 6, False),
    (2, 5, 6, 3, 4, 5, True),
    (2, 3, 12, 2, 6, 7, False),
]


def inputs(rng, number):
    if number < len(EDGES):
        B, S, D, H, C, hidden, normed = EDGES[number]
    else:
        B, S, H, pairs, hidden = (
            int(rng.integers(low, high)) for low, high in ((1, 4), (3, 9), (2, 5), (2, 5), (3, 12))
        )
        D, C, normed = int(rng.integers(5, 20)), 2 * pairs, bool(rng.integers(2))

    def matrix(rows, columns):
        return torch.tensor(rng.normal(size=(rows, columns)) / columns**0.5, dtype=torch.float32)

    def gain(width):
        return torch.tensor(1 + 0.4 * rng.normal(size=width), dtype=torch.float32)

    weights = {
        "attention_norm": gain(D),
        "query": 2 * matrix(H * C, D),
        "key": 2 * matrix(H * C, D),
        "value": matrix(H * C, D),
        "output": matrix(D, H * C),
        "feed_forward_norm": gain(D),
        "gate_up": matrix(2 * hidden, D),
        "down": matrix(D, hidden),
    }
    if normed:
        weights |= {"query_norm": gain(C), "key_norm": gain(C)}
    x_BSD = torch.tensor(rng.normal(size=(B, S, D)) * 2, dtype=torch.float32)
    return {"x_BSD": x_BSD, "weights": weights, "heads": H, "theta": float(rng.choice([100.0, 1e4])), "eps": 1e-5}


def reference(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]

    def split(name, h_BSD):
        return torch.einsum("bsd,hcd->bhsc", h_BSD, weights[name].unflatten(0, (heads, -1)))

    def normed(name, x):
        return rms_norm(x, weights[name], eps, False)

    h_BSD = normed("attention_norm", x_BSD)
    q_BHSC, k_BHSC, v_BHSC = (split(name, h_BSD) for name in ("query", "key", "value"))
    if "query_norm" in weights:
        q_BHSC, k_BHSC = normed("query_norm", q_BHSC), normed("key_norm", k_BHSC)
    C = q_BHSC.shape[-1]
    q_BHSC, k_BHSC = (rope(t_BHSC, torch.arange(S), theta, C, "half") for t_BHSC in (q_BHSC, k_BHSC))
    y_BHSC = causal_attention(q_BHSC, k_BHSC, v_BHSC, S)
    x_BSD = x_BSD + torch.einsum("bhsc,dhc->bsd", y_BHSC, weights["output"].unflatten(1, (heads, -1)))
    return x_BSD + swiglu(normed("feed_forward_norm", x_BSD), weights["gate_up"], weights["down"], "gate_up")


def head_by_head(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    C = weights["query"].shape[0] // heads
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    for head in range(heads):
        rows = slice(head * C, (head + 1) * C)
        q, k, v = (h_BSD @ weights[name][rows].T for name in ("query", "key", "value"))
        if "key_norm" in weights:
            q = rms_norm(q, weights["query_norm"], eps, False)
            k = rms_norm(k, weights["key_norm"], eps, False)
        q, k = (rope(part[:, None], torch.arange(S), theta, C, "half") for part in (q, k))
        y = causal_attention(q, k, v[:, None], S)[:, 0]
        x_BSD = x_BSD + y @ weights["output"][:, rows].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def post_norm(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    q, k, v = ((x_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    y_BSD = causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    x_BSD = rms_norm(x_BSD + y_BSD, weights["attention_norm"], eps, False)
    y_BSD = swiglu(x_BSD, weights["gate_up"], weights["down"], "gate_up")
    return rms_norm(x_BSD + y_BSD, weights["feed_forward_norm"], eps, False)


def without_residual(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def stream_is_normed(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    x_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((x_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    x_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(x_BSD, weights["gate_up"], weights["down"], "gate_up")


def in_parallel(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    y_BSD = causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + y_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def second_norm_missing(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    return x_BSD + swiglu(x_BSD, weights["gate_up"], weights["down"], "gate_up")


def feed_forward_not_added(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def heads_cut_across_tokens(x_BSD, weights, heads, theta, eps):
    B, S = x_BSD.shape[:2]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).reshape(B, heads, S, -1) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def heads_joined_across_tokens(x_BSD, weights, heads, theta, eps):
    B, S = x_BSD.shape[:2]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).reshape(B, S, -1) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def values_turned_too(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k, v = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k, v))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def queries_turned_alone(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q = rope(q, torch.arange(S), theta, q.shape[-1], "half")
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def turned_before_the_split(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T)[:, None] for n in ("query", "key", "value"))
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    q, k, v = (t[:, 0].unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def no_norm_on_queries(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def normed_after_turning(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


def norms_exchanged(x_BSD, weights, heads, theta, eps):
    S = x_BSD.shape[1]
    h_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, False)
    q, k, v = ((h_BSD @ weights[n].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
    if "query_norm" in weights:
        q, k = rms_norm(q, weights["query_norm"], eps, False), rms_norm(k, weights["key_norm"], eps, False)
    q, k = (rope(t, torch.arange(S), theta, t.shape[-1], "half") for t in (q, k))
    x_BSD = x_BSD + causal_attention(q, k, v, S).transpose(1, 2).flatten(2) @ weights["output"].T
    h_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, False)
    return x_BSD + swiglu(h_BSD, weights["gate_up"], weights["down"], "gate_up")


EXERCISE = Exercise(
    id="02.5",
    unit="02",
    title="pre-norm block",
    entry="block",
    points=15,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=7,
    reference=reference,
    compare=same("the result", rtol=2e-5),
    misconceptions=(
        Misconception(
            "post-norm",
            post_norm,
            "It looks like norms after the additions, as in 2017. Pre-norm: the part reads a normed copy, and the sum stays as it is.",
        ),
        Misconception(
            "no-residual",
            without_residual,
            "It looks like parts that replace the stream. What attention and feed-forward return is added to x.",
        ),
        Misconception(
            "stream-normed",
            stream_is_normed,
            "It looks like the norm written back into the stream. Only the part reads normed values: x + part(norm(x)), with the raw x.",
            "Howuhh/faster-trajectory-transformer, issue 3: norm_x + attn(norm_x), found after the checkpoints were trained",
        ),
        Misconception(
            "in-parallel",
            in_parallel,
            "It looks like both parts reading the same x, as in GPT-J. Here the feed-forward layer reads the stream with attention added.",
        ),
        Misconception(
            "second-norm-missing",
            second_norm_missing,
            "It looks like a feed-forward layer that reads the raw stream. It has a norm of its own, feed_forward_norm.",
        ),
        Misconception(
            "feed-forward-not-added",
            feed_forward_not_added,
            "It looks like the feed-forward result returned alone. It is added to the stream, like attention's.",
        ),
        Misconception(
            "heads-cut-across-tokens",
            heads_cut_across_tokens,
            "It looks like a view as [B, heads, S, C]: that mixes tokens. Split each token's features, [B, S, heads, C], then transpose.",
            "reczoo/FuxiCTR, issue 30: heads split by a view without a transpose",
        ),
        Misconception(
            "heads-joined-across-tokens",
            heads_joined_across_tokens,
            "It looks like heads joined without a transpose. Bring [B, H, S, C] back to [B, S, H, C] before the last two become one.",
            "jsbaan/transformer-from-scratch, pull request 6: a missing permute before the reshape",
        ),
        Misconception(
            "values-turned",
            values_turned_too,
            "It looks like RoPE on the values too. Positions matter for who looks at whom: only queries and keys turn.",
        ),
        Misconception(
            "queries-turned-alone",
            queries_turned_alone,
            "It looks like RoPE on the queries alone. Then the score depends on the query's position, not on the distance: turn both.",
        ),
        Misconception(
            "turned-before-the-split",
            turned_before_the_split,
            "It looks like RoPE over the whole width, before the heads are taken apart. Each head has all speeds: split first.",
        ),
        Misconception(
            "no-norm-on-queries",
            no_norm_on_queries,
            "It looks like query_norm and key_norm left out. Where they are among the weights, each head's queries and keys are normed.",
        ),
        Misconception(
            "normed-after-turning",
            normed_after_turning,
            "It looks like queries and keys normed after RoPE. Their sizes would be the same, but each feature's weight would meet turned "
            "features: norm first, then turn.",
            "karpathy/nanochat, issue 743: without weights on that norm the order does not matter, with them it does",
        ),
        Misconception(
            "norms-exchanged",
            norms_exchanged,
            "It looks like the two norms' weights in each other's place. attention_norm is attention's, feed_forward_norm is SwiGLU's.",
        ),
    ),
    alternatives=(head_by_head,),
    hints=(
        "Draw the stream as a line from left to right. Where do the two parts read from it, and where do they write to it?",
        "Attention: norm, three products, [B, S, H, C], transpose, (norms), RoPE on two of them, attention, transpose back, output matrix.",
        "x = x + attention of the first norm of x; then x + swiglu of the second norm of this new x. unflatten(-1, (heads, -1)) splits.",
    ),
    uses=("02.1", "02.2", "02.3", "02.4"),
)
