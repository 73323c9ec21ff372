"""06.2: grouped-query attention with a sink for each query head (Ainslie et al. 2023, section 2.2; sinks as in gpt-oss)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # batch, query heads, kv heads, queries, positions, width of a key, of a value, size of the scores
    (2, 6, 3, 4, 4, 4, 4, 1.0),
    (1, 6, 2, 2, 5, 8, 3, 1.0),
    (1, 4, 4, 3, 3, 4, 5, 1.0),  # as many: multi-head attention
    (2, 3, 1, 1, 6, 4, 4, 1.0),  # one: multi-query attention
    (1, 8, 2, 3, 7, 6, 2, 60.0),  # scores of hundreds and thousands
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "q_BHSC": torch.zeros(1, 4, 1, 1),
            "k_BGNC": torch.ones(1, 2, 1, 1),
            "v_BGNV": torch.tensor([10.0, 20.0]).view(1, 2, 1, 1),
            "sink_H": torch.tensor([0.0, math.log(3), 0.0, math.log(3)]),
        }
    if len(EDGES) < number <= len(EDGES) + 3:
        return far_from_zero(rng, [-16384.0, 512.0, -512.0][number - len(EDGES) - 1])
    if number <= len(EDGES):
        B, H, G, S, N, C, V, size = EDGES[number - 1]
    else:
        B, G, S, C, V = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5), (1, 6), (2, 9), (1, 9)))
        H, N, size = G * int(rng.integers(2, 6)), S + int(rng.integers(0, 6)), float(rng.choice([1.0, 30.0]))
    shapes = ((B, H, S, C), (B, G, N, C), (B, G, N, V), (H,))
    q, k, v, sink = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes)
    return {"q_BHSC": 1.5 * size * q, "k_BGNC": k, "v_BGNV": v, "sink_H": (size * 1.5) ** 0.5 * sink}


def far_from_zero(rng, base):
    """Scores and sinks that all lie near `base`: a little apart near 512, far apart near -16,384, where rounding would show."""
    q, k, v, sink = (
        torch.tensor(rng.integers(-4, 5, size=shape) / 4, dtype=torch.float32)
        for shape in ((1, 4, 3, 16), (1, 2, 5, 16), (1, 2, 5, 3), (4,))
    )
    if abs(base) > 1000:
        q, k, sink = 0 * q, 0 * k, 32 + 64 * torch.tensor([-3.0, 0.0, 1.0, 5.0])
        q[..., 1] = torch.tensor([8.0, -8.0, 8.0, -8.0])[:, None]
        k[..., 1] = 32 * torch.stack([torch.tensor(rng.permutation(5)) for _ in range(2)])
    q[..., 0], k[..., 0] = base / 2, 8.0  # their product over sqrt(16) is the base
    return {"q_BHSC": q, "k_BGNC": k, "v_BGNV": v, "sink_H": base + sink}


def reference(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    q_BGRSC = q_BHSC.unflatten(1, (G, H // G))
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BGRSC, k_BGNC) / C**0.5
    hidden_SN = torch.ones(S, N, dtype=torch.bool).triu(N - S + 1)
    scores_BGRSN = scores_BGRSN.masked_fill(hidden_SN, float("-inf"))
    sink_BGRS1 = sink_H.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1)
    weights_BGRSN = torch.cat([scores_BGRSN, sink_BGRS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


def head_by_head(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (H, S, C), (G, N) = q_BHSC.shape[1:], k_BGNC.shape[1:3]
    out = []
    for h in range(H):
        k_BNC, v_BNV = k_BGNC[:, h // (H // G)].double(), v_BGNV[:, h // (H // G)].double()
        scores_BSN = q_BHSC[:, h].double() @ k_BNC.mT * C**-0.5
        scores_BSN = scores_BSN + torch.full((S, N), -torch.inf).double().triu(N - S + 1)
        total_BS1 = torch.logaddexp(scores_BSN.logsumexp(-1, keepdim=True), sink_H[h].double())
        out.append(((scores_BSN - total_BS1).exp() @ v_BNV).float())
    return torch.stack(out, dim=1)


def a_key_of_nothing(q_BHSC, k_BGNC, v_BGNV, sink_H):
    """The sink as one more position with a value of zero, in one more feature, by PyTorch's attention."""
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    q = torch.cat([q_BHSC / C**0.5, sink_H.view(1, H, 1, 1).expand(B, H, S, 1)], dim=-1).unflatten(1, (G, H // G))
    k = torch.nn.functional.pad(k_BGNC, (0, 1))
    k = torch.cat([torch.eye(C + 1)[-1].expand(B, G, 1, C + 1), k], dim=2)
    v = torch.nn.functional.pad(v_BGNV, (0, 0, 1, 0))
    seen_SN = torch.nn.functional.pad(torch.ones(S, N, dtype=torch.bool).tril(N - S), (1, 0), value=True)
    y = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, None], v[:, :, None], seen_SN, scale=1.0)
    return y.flatten(1, 2)


def tiled(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    heads = torch.arange(H) % G
    scores_BHSN = torch.einsum("bhsc,bhnc->bhsn", q_BHSC, k_BGNC[:, heads]) / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    sink_BHS1 = sink_H.view(1, H, 1, 1).expand(B, -1, S, -1)
    weights_BHSN = torch.cat([scores_BHSN, sink_BHS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bhsn,bhnv->bhsv", weights_BHSN, v_BGNV[:, heads])


def divides_by_kv_heads(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    heads = (torch.arange(H) // G).clamp(max=G - 1)
    scores_BHSN = torch.einsum("bhsc,bhnc->bhsn", q_BHSC, k_BGNC[:, heads]) / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    sink_BHS1 = sink_H.view(1, H, 1, 1).expand(B, -1, S, -1)
    weights_BHSN = torch.cat([scores_BHSN, sink_BHS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bhsn,bhnv->bhsv", weights_BHSN, v_BGNV[:, heads])


def keys_grouped_values_tiled(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    scores_BHSN = torch.einsum("bhsc,bhnc->bhsn", q_BHSC, k_BGNC[:, torch.arange(H) // (H // G)]) / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    sink_BHS1 = sink_H.view(1, H, 1, 1).expand(B, -1, S, -1)
    weights_BHSN = torch.cat([scores_BHSN, sink_BHS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bhsn,bhnv->bhsv", weights_BHSN, v_BGNV[:, torch.arange(H) % G])


def no_sink(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (H, S, C), (G, N) = q_BHSC.shape[1:], k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return torch.einsum("bgrsn,bgnv->bgrsv", scores_BGRSN.softmax(dim=-1), v_BGNV).flatten(1, 2)


def scaled_sink(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC)
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    sink_BGRS1 = sink_H.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1)
    weights_BGRSN = (torch.cat([scores_BGRSN, sink_BGRS1], dim=-1) / C**0.5).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


def sink_not_exponentiated(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (H, S, C), (G, N) = q_BHSC.shape[1:], k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    parts_BGRSN = (scores_BGRSN - scores_BGRSN.amax(dim=-1, keepdim=True)).exp()
    total_BGRS1 = parts_BGRSN.sum(dim=-1, keepdim=True) + sink_H.view(1, G, H // G, 1, 1)
    return torch.einsum("bgrsn,bgnv->bgrsv", parts_BGRSN / total_BGRS1, v_BGNV).flatten(1, 2)


def sink_beside_the_largest(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (H, S, C), (G, N) = q_BHSC.shape[1:], k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    parts_BGRSN = (scores_BGRSN - scores_BGRSN.amax(dim=-1, keepdim=True)).exp()
    total_BGRS1 = parts_BGRSN.sum(dim=-1, keepdim=True) + sink_H.exp().view(1, G, H // G, 1, 1)
    return torch.einsum("bgrsn,bgnv->bgrsv", parts_BGRSN / total_BGRS1, v_BGNV).flatten(1, 2)


def sink_of_the_group(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    sink_BGRS1 = sink_H[:G].view(1, G, 1, 1, 1).expand(B, -1, H // G, S, -1)
    weights_BGRSN = torch.cat([scores_BGRSN, sink_BGRS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


def from_the_first_position(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(1), float("-inf"))
    sink_BGRS1 = sink_H.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1)
    weights_BGRSN = torch.cat([scores_BGRSN, sink_BGRS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


def sees_the_future(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, C), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    sink_BGRS1 = sink_H.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1)
    weights_BGRSN = torch.cat([scores_BGRSN, sink_BGRS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


def overflows(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (H, S, C), (G, N) = q_BHSC.shape[1:], k_BGNC.shape[1:3]
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BHSC.unflatten(1, (G, H // G)), k_BGNC) / C**0.5
    scores_BGRSN = scores_BGRSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    parts_BGRSN = scores_BGRSN.exp()
    total_BGRS1 = parts_BGRSN.sum(dim=-1, keepdim=True) + sink_H.exp().view(1, G, H // G, 1, 1)
    return torch.einsum("bgrsn,bgnv->bgrsv", parts_BGRSN / total_BGRS1, v_BGNV).flatten(1, 2)


def not_scaled(q_BHSC, k_BGNC, v_BGNV, sink_H):
    (B, H, S, _), (G, N) = q_BHSC.shape, k_BGNC.shape[1:3]
    q_BGRSC = q_BHSC.unflatten(1, (G, H // G))
    scores_BGRSN = torch.einsum("bgrsc,bgnc->bgrsn", q_BGRSC, k_BGNC)
    hidden_SN = torch.ones(S, N, dtype=torch.bool).triu(N - S + 1)
    scores_BGRSN = scores_BGRSN.masked_fill(hidden_SN, float("-inf"))
    sink_BGRS1 = sink_H.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1)
    weights_BGRSN = torch.cat([scores_BGRSN, sink_BGRS1], dim=-1).softmax(dim=-1)[..., :N]
    return torch.einsum("bgrsn,bgnv->bgrsv", weights_BGRSN, v_BGNV).flatten(1, 2)


EXERCISE = Exercise(
    id="06.2",
    unit="06",
    title="grouped queries, with sinks",
    entry="grouped_attention",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("the result", rtol=1e-4),
    misconceptions=(
        Misconception(
            "tiled",
            tiled,
            "It looks like query head h reading kv head h % G, as tiling the keys would give it. Neighbours share: "
            "head h reads kv head h // (H / G).",
            "ekzhang/jax-js pull request 180 and onnx/onnx pull request 7274: tile where repeat was meant",
        ),
        Misconception(
            "divides-by-kv-heads",
            divides_by_kv_heads,
            "It looks like query head h reading kv head h // G. Divide by the number of query heads that share one: "
            "h // (H / G).",
            "PSAL-POSTECH/ONNXim pull request 34: a head's number divided by the number of kv heads",
        ),
        Misconception(
            "keys-grouped-values-tiled",
            keys_grouped_values_tiled,
            "It looks like keys of one kv head and values of another. A query head reads both from kv head h // (H / G).",
        ),
        Misconception(
            "no-sink",
            no_sink,
            "It looks like attention without the sink (added to every score of a head it would cancel as well). It is "
            "one more term, exp(sink), in the sum that the weights are divided by.",
        ),
        Misconception(
            "scaled-sink",
            scaled_sink,
            "It looks like a sink divided by sqrt(C) along with the scores. It is a logit as it stands.",
        ),
        Misconception(
            "sink-not-exponentiated",
            sink_not_exponentiated,
            "It looks like the sink itself added to a sum of exponentials. It is a logit: exp(sink) is added.",
        ),
        Misconception(
            "sink-beside-the-largest",
            sink_beside_the_largest,
            "It looks like exp(sink) added to exponentials from which the largest score was taken. Take it from the "
            "sink as well.",
        ),
        Misconception(
            "sink-of-the-group",
            sink_of_the_group,
            "It looks like one sink a kv head. There is one for each *query* head.",
        ),
        Misconception(
            "from-the-first-position",
            from_the_first_position,
            "It looks like queries that stand at the first S positions. They are the last of the N: query s sees keys "
            "0 to N - S + s.",
            "lucidrains/x-transformers issue 187: is_causal hides a cache, for its mask begins at the top left",
        ),
        Misconception(
            "sees-the-future",
            sees_the_future,
            "It looks like attention without a mask. Query s stands at position N - S + s and sees nothing after it.",
        ),
        Misconception(
            "overflows",
            overflows,
            "It looks like exponentials of the scores as they are: they overflow. Take the largest away first, or let "
            "softmax do it.",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like scores that are not divided by the root of C. The sink is not, the scores are.",
        ),
    ),
    alternatives=(head_by_head, a_key_of_nothing),
    hints=(
        "Query heads that share a kv head are neighbours: give q a dimension for the group and one within it.",
        "The sink is one more column of the scores, after the mask; softmax over N + 1, then drop that column.",
        "q.unflatten(1, (G, H // G)); einsum of bgrsc with bgnc; cat the sink as column N; softmax; [..., :N] against v.",
    ),
    forbids=("torch.repeat_interleave", "Tensor.repeat_interleave", "torch.tile", "Tensor.tile", "Tensor.repeat"),
)
