"""06.4: scores of decoupled RoPE: one turned key for all heads, beside each head's own (DeepSeek-V2 report, 2.1.3)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # positions of each sequence's keys (-1: padding), queries, heads, nope, turned, theta
    ([[0, 1, 2, 3], [0, 1, 2, 3]], 4, 2, 4, 4, 100.0),
    ([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]], 2, 3, 3, 6, 10_000.0),
    ([[0, 1, 7, 8, 9, 20]], 1, 2, 6, 4, 10_000.0),  # gaps
    ([[-1, 0, 1], [-1, -1, 5], [3, 8, 9]], 3, 1, 5, 8, 100.0),  # padding among the queries
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "q_BHSC": torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3),
            "k_nope_BHNO": torch.tensor([1.0, 2.0]).view(1, 1, 2, 1),
            "k_rope_BNr": torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]),
            "positions_BN": torch.tensor([[0, 1]]),
            "cos_TP": torch.tensor([[1.0], [0.0]]),
            "sin_TP": torch.tensor([[0.0], [1.0]]),
        }
    if number <= len(EDGES):
        positions, S, H, O, P2, theta = EDGES[number - 1]  # noqa: E741
    else:
        B, N, H, O = (int(rng.integers(low, high)) for low, high in ((1, 4), (2, 9), (1, 4), (2, 8)))  # noqa: E741
        S, P2, theta = int(rng.integers(1, N + 1)), 2 * int(rng.integers(2, 5)), 100.0
        positions = []
        for _ in range(B):
            padding = int(rng.integers(0, N))
            steps = 1 + rng.integers(0, 4, size=N - padding) * rng.integers(0, 2, size=N - padding)
            positions.append([-1] * padding + (steps.cumsum() - steps[0]).tolist())
    positions_BN = torch.tensor(positions)
    B, N = positions_BN.shape
    shapes = ((B, H, S, O + P2), (B, H, N, O), (B, N, P2))
    q, k_nope, k_rope = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes)
    table = torch.arange(int(positions_BN.max()) + 4)[:, None] * theta ** -(torch.arange(0, P2, 2) / P2)
    return {
        "q_BHSC": q, "k_nope_BHNO": k_nope, "k_rope_BNr": k_rope, "positions_BN": positions_BN,
        "cos_TP": table.cos(), "sin_TP": table.sin(),
    }  # fmt: skip


def reference(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions_B1N):
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions_B1N], sin_TP[positions_B1N]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope = turned(q_BHSC[..., O:], at_B1S)
    k_rope = turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    key_at = positions_BN[:, None, None]
    seen = (key_at >= 0) & (key_at <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def one_long_key(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    """Even features first, then odd ones, in query and key alike: the products are the same."""
    (B, H, S, C), (N, O) = q_BHSC.shape, k_nope_BHNO.shape[2:]  # noqa: E741

    def turned(x_BHNr, positions_BN):
        pairs = torch.view_as_complex(x_BHNr.double().unflatten(-1, (-1, 2)).contiguous())
        turns = torch.complex(cos_TP.double(), sin_TP.double())[positions_BN.clamp(min=0)]
        numbers = pairs * turns[:, None]
        return torch.cat([numbers.real, numbers.imag], dim=-1)

    k_rope = turned(k_rope_BNr[:, None].expand(B, H, N, C - O), positions_BN)
    k_BHNC = torch.cat([k_nope_BHNO.double(), k_rope], dim=-1)
    new_BS = positions_BN[:, N - S :]
    q_BHSC = torch.cat([q_BHSC[..., :O].double(), turned(q_BHSC[..., O:], new_BS)], dim=-1) * C**-0.5
    hidden_BSN = (positions_BN[:, None] < 0) | (positions_BN[:, None] > new_BS[..., None])
    scores = torch.einsum("bhsc,bhnc->bhsn", q_BHSC, k_BHNC).float()
    return torch.where(hidden_BSN[:, None], torch.tensor(-math.inf), scores)


def by_halves(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x.chunk(2, dim=-1)
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def rope_in_front(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., : C - O], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., C - O :] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def turns_the_first_features(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        P2 = 2 * cos_TP.shape[-1]
        a, b = x[..., 0:P2:2], x[..., 1:P2:2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        turning = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        return torch.cat([turning, x[..., P2:]], dim=-1)

    H, S, C = q_BHSC.shape[1:]
    at_B1S = positions_BN[:, None, -S:]
    k_BHNC = torch.cat([k_nope_BHNO, k_rope_BNr[:, None].expand(-1, H, -1, -1)], dim=-1)
    scores_BHSN = turned(q_BHSC, at_B1S) @ turned(k_BHNC, positions_BN[:, None]).mT / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def key_not_turned(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope = turned(q_BHSC[..., O:], at_B1S)
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope_BNr[:, None].mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def key_turned_back(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions, way):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], way * sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S, 1), turned(k_rope_BNr[:, None], positions_BN[:, None], -1)
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def the_other_way_round(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos + b * sin, b * cos - a * sin], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def scale_of_nope(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    S, O = q_BHSC.shape[2], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / O**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def each_part_its_scale(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = q_BHSC[..., :O] @ k_nope_BHNO.mT / O**0.5 + q_rope @ k_rope.mT / (C - O) ** 0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def queries_from_the_first(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, :S]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def rows_for_positions(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), (N, O) = q_BHSC.shape[2:], k_nope_BHNO.shape[2:]  # noqa: E741
    rows_N = torch.arange(N).clamp(max=len(cos_TP) - 1)
    q_rope, k_rope = turned(q_BHSC[..., O:], rows_N[N - S :]), turned(k_rope_BNr[:, None], rows_N)
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    at_B1S = positions_BN[:, None, -S:]
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def sees_padding(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), (N, O) = q_BHSC.shape[2:], k_nope_BHNO.shape[2:]  # noqa: E741
    q_rope = turned(q_BHSC[..., O:], positions_BN[:, None, -S:])
    k_rope = turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    return scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))


def blind_to_itself(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions):
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions], sin_TP[positions]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope, k_rope = turned(q_BHSC[..., O:], at_B1S), turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    seen = (positions_BN[:, None, None] >= 0) & (positions_BN[:, None, None] < at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def not_scaled(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions_B1N):
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions_B1N], sin_TP[positions_B1N]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    S, O = q_BHSC.shape[2], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope = turned(q_BHSC[..., O:], at_B1S)
    k_rope = turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT
    key_at = positions_BN[:, None, None]
    seen = (key_at >= 0) & (key_at <= at_B1S[..., None])
    return scores_BHSN.masked_fill(~seen, float("-inf"))


def sees_later_positions(q_BHSC, k_nope_BHNO, k_rope_BNr, positions_BN, cos_TP, sin_TP):
    def turned(x, positions_B1N):
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = cos_TP[positions_B1N], sin_TP[positions_B1N]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    (S, C), O = q_BHSC.shape[2:], k_nope_BHNO.shape[-1]  # noqa: E741
    at_B1S = positions_BN[:, None, -S:]
    q_rope = turned(q_BHSC[..., O:], at_B1S)
    k_rope = turned(k_rope_BNr[:, None], positions_BN[:, None])
    scores_BHSN = (q_BHSC[..., :O] @ k_nope_BHNO.mT + q_rope @ k_rope.mT) / C**0.5
    key_at = positions_BN[:, None, None]
    seen = (key_at >= 0).expand(-1, -1, S, -1)
    return scores_BHSN.masked_fill(~seen, float("-inf"))


EXERCISE = Exercise(
    id="06.4",
    unit="06",
    title="decoupled RoPE",
    entry="decoupled_scores",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("the scores"),
    misconceptions=(
        Misconception(
            "by-halves",
            by_halves,
            "It looks like pairs by halves, feature i with feature i + P. Here neighbours turn: 2i with 2i + 1.",
            "DeepAuto-AI/hip-attention pull request 56: DeepSeek models worked once interleaved RoPE was supported",
        ),
        Misconception(
            "rope-in-front",
            rope_in_front,
            "It looks like queries read as rope, then nope. A query's first O features are nope.",
        ),
        Misconception(
            "turns-the-first-features",
            turns_the_first_features,
            "It looks like a rotation that begins at the first feature, so that nope features turn. Only the last 2P "
            "of a query turn, and the shared key.",
            "junfanz1/MiniGPT-and-DeepSeek-MLA-Multi-Head-Latent-Attention issue 1: RoPE made for the nope features",
        ),
        Misconception(
            "key-not-turned",
            key_not_turned,
            "It looks like a shared key that did not turn. Query and key both turn, each by its own position.",
        ),
        Misconception(
            "key-turned-back",
            key_turned_back,
            "It looks like a key turned against its query. Both turn the same way, so that the distance remains.",
        ),
        Misconception(
            "the-other-way-round",
            the_other_way_round,
            "It looks like a rotation with its sign reversed: (a, b) becomes (a cos - b sin, a sin + b cos).",
        ),
        Misconception(
            "scale-of-nope",
            scale_of_nope,
            "It looks like a scale from the nope features alone. A key has nope and rope features: divide by the square "
            "root of both together.",
        ),
        Misconception(
            "each-part-its-scale",
            each_part_its_scale,
            "It looks like a scale for each of the two parts. Their products are added first, then divided once by "
            "sqrt(O + 2P).",
        ),
        Misconception(
            "queries-from-the-first",
            queries_from_the_first,
            "It looks like queries at the first S positions. They are the last S columns of positions_BN.",
        ),
        Misconception(
            "rows-for-positions",
            rows_for_positions,
            "It looks like a column's number taken for its position. The table is read at positions_BN, which has gaps.",
        ),
        Misconception(
            "sees-padding",
            sees_padding,
            "It looks like padding that is seen. A key at position -1 is hidden from every query.",
        ),
        Misconception(
            "blind-to-itself",
            blind_to_itself,
            "It looks like queries that do not see their own position. A key is seen up to and including the query's.",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like scores that are not divided. Divide by the root of O + r.",
        ),
        Misconception(
            "sees-the-future",
            sees_later_positions,
            "It looks like queries that see what comes after them. A key's position may not be above the query's own.",
        ),
    ),
    alternatives=(one_long_key,),
    hints=(
        "Split the query at O, turn what is behind it, and add two products: one per head, one with the shared key.",
        "cos_TP[positions_BN] is [B, N, P]: with a dimension for the heads it turns queries (its last S) and keys alike.",
        "even, odd = x[..., 0::2], x[..., 1::2]; k_rope_BNr[:, None] lets one key meet all heads; -inf where not seen.",
    ),
)
