"""06.5: attention on the latents themselves, without keys or values (DeepSeek-V2 report, section 2.1.2)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # batch, heads, queries, positions, latent, turned, nope, value
    (2, 2, 3, 3, 6, 4, 4, 4),
    (1, 3, 2, 6, 8, 4, 5, 3),
    (2, 1, 1, 5, 4, 2, 3, 7),
    (1, 4, 4, 9, 5, 2, 5, 5),  # as wide as the latent: transposed matrices fit
    (1, 1, 1, 70_000, 6, 4, 8192, 8192),  # keys, or values, would take 4.6 GB
    (1, 2, 2, 4, 3, 2, 3, 2),  # all scores far below zero
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "q_BHSC": torch.tensor([2.0, 1.0]).double().view(1, 1, 1, 2) * 2**0.5,
            "rows_BNL": torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 3.0]]]).double(),
            "kv_up_FR": torch.tensor([[1.0, 0.0], [3.0, 5.0]]).double(),
            "nope": 1,
        }
    if number <= len(EDGES):
        B, H, S, N, R, P2, O, V = EDGES[number - 1]  # noqa: E741
    else:
        B, H, S, R, O, V = (int(n) for n in rng.integers((1, 1, 1, 2, 2, 1), (4, 5, 5, 9, 9, 9)))  # noqa: E741
        N, P2 = S + int(rng.integers(0, 8)), 2 * int(rng.integers(1, 4))
    shapes = ((B, H, S, O + P2), (B, N, R + P2), (H * (O + V), R))
    q, rows, up = (torch.tensor(rng.normal(size=shape)) for shape in shapes)
    q = 1.5 * q
    if number == len(EDGES):
        q[..., -1], rows[..., -1] = -40_000.0, 1.0
    return {"q_BHSC": q, "rows_BNL": rows, "kv_up_FR": up, "nope": O}


def reference(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    hidden_SN = torch.ones(S, N, dtype=torch.bool).triu(N - S + 1)
    weights_BHSN = scores_BHSN.masked_fill(hidden_SN, float("-inf")).softmax(dim=-1)
    mixed_BHSR = weights_BHSN @ rows_BNL[:, None, :, :R]
    return mixed_BHSR @ value_HVR.mT


def head_by_head(q_BHSC, rows_BNL, kv_up_FR, nope):
    S, C, N, R = *q_BHSC.shape[2:], rows_BNL.shape[1], kv_up_FR.shape[1]
    latent_BNR, turned_BNr = rows_BNL[..., :R], rows_BNL[..., R:]
    out = []
    for h, part_FR in enumerate(kv_up_FR.chunk(q_BHSC.shape[1])):
        asks_BSR = torch.einsum("bso,or->bsr", q_BHSC[:, h, :, :nope], part_FR[:nope])
        scores = torch.einsum("bsr,bnr->bsn", asks_BSR, latent_BNR)
        scores = (scores + torch.einsum("bsr,bnr->bsn", q_BHSC[:, h, :, nope:], turned_BNr)) * C**-0.5
        scores = scores + torch.full((S, N), -torch.inf).double().triu(N - S + 1)
        mixed_BSR = torch.einsum("bsn,bnr->bsr", (scores - scores.logsumexp(-1, keepdim=True)).exp(), latent_BNR)
        out.append(mixed_BSR @ part_FR[nope:].T)
    return torch.stack(out, dim=1)


def as_one_kv_head(q_BHSC, rows_BNL, kv_up_FR, nope):
    """All heads' queries against one key, which is the row, as multi-query attention has it."""
    (B, H, S, C), N, R = q_BHSC.shape, rows_BNL.shape[1], kv_up_FR.shape[1]
    up_HFR = kv_up_FR.unflatten(0, (H, -1))
    q_BHSL = torch.cat([torch.einsum("bhso,hor->bhsr", q_BHSC[..., :nope], up_HFR[:, :nope]), q_BHSC[..., nope:]], -1)
    seen_SN = torch.ones(S, N, dtype=torch.bool).tril(N - S)
    rows_B1NL = rows_BNL[:, None].expand(B, H, N, rows_BNL.shape[-1])
    mixed = torch.nn.functional.scaled_dot_product_attention(q_BHSL, rows_B1NL, rows_B1NL, seen_SN, scale=C**-0.5)
    return torch.einsum("bhsr,hvr->bhsv", mixed[..., :R], up_HFR[:, nope:])


def scale_of_the_row(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S), (N, L), R = q_BHSC.shape[1:3], rows_BNL.shape[1:], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / L**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def scale_of_nope(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S), N, R = q_BHSC.shape[1:3], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / nope**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def scale_of_the_latent(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S), N, R = q_BHSC.shape[1:3], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / R**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def rope_term_dropped(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    scores_BHSN = q_BHSC[..., :nope] @ key_HOR @ rows_BNL[:, None, :, :R].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def value_before_key(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    per_head_HFR = kv_up_FR.view(H, -1, R)
    key_HOR, value_HVR = per_head_HFR[:, -nope:], per_head_HFR[:, :-nope]
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def all_keys_then_all_values(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR[: H * nope].view(H, -1, R), kv_up_FR[H * nope :].view(H, -1, R)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def heads_innermost(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(-1, H, R).transpose(0, 1).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def from_the_first_position(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def sees_the_future(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, _, C), R = q_BHSC.shape[1:], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    weights_BHSN = (q_BHSL @ rows_BNL[:, None].mT / C**0.5).softmax(dim=-1)
    return weights_BHSN @ rows_BNL[:, None, :, :R] @ value_HVR.mT


def last_features_mixed(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, -R:] @ value_HVR.mT


def in_float32(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, C), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    q_BHSC, rows_BNL, kv_up_FR = q_BHSC.float(), rows_BNL.float(), kv_up_FR.float()
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT / C**0.5
    scores_BHSN = scores_BHSN.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    return (scores_BHSN.softmax(dim=-1) @ rows_BNL[:, None, :, :R] @ value_HVR.mT).double()


def not_scaled(q_BHSC, rows_BNL, kv_up_FR, nope):
    (H, S, _), N, R = q_BHSC.shape[1:], rows_BNL.shape[1], kv_up_FR.shape[1]
    key_HOR, value_HVR = kv_up_FR.view(H, -1, R).tensor_split([nope], dim=1)
    q_BHSL = torch.cat([q_BHSC[..., :nope] @ key_HOR, q_BHSC[..., nope:]], dim=-1)
    scores_BHSN = q_BHSL @ rows_BNL[:, None].mT
    hidden_SN = torch.ones(S, N, dtype=torch.bool).triu(N - S + 1)
    weights_BHSN = scores_BHSN.masked_fill(hidden_SN, float("-inf")).softmax(dim=-1)
    mixed_BHSR = weights_BHSN @ rows_BNL[:, None, :, :R]
    return mixed_BHSR @ value_HVR.mT


EXERCISE = Exercise(
    id="06.5",
    unit="06",
    title="weight absorption",
    entry="absorbed_attention",
    points=20,
    minutes=25,
    difficulty=4,
    spine=True,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("the result", rtol=1e-9),
    misconceptions=(
        Misconception(
            "scale-of-the-row",
            scale_of_the_row,
            "It looks like a scale from the width of a row, 576 in DeepSeek-V3. Absorption changes no score: divide by "
            "sqrt(nope + rope), 192 there, the width of the key that is never made.",
            "ollama/ollama pull request 13893: scale from 576 features, where the model was trained with 256",
        ),
        Misconception(
            "scale-of-nope",
            scale_of_nope,
            "It looks like a scale from the nope features alone. The key that is never made has nope and rope features.",
        ),
        Misconception(
            "scale-of-the-latent",
            scale_of_the_latent,
            "It looks like a scale from the latent's width. The scale is that of a key: 1 / sqrt(nope + rope).",
        ),
        Misconception(
            "rope-term-dropped",
            rope_term_dropped,
            "It looks like scores without their rope term. The turned part of the query meets the last features of the "
            "row, which nothing absorbs.",
        ),
        Misconception(
            "value-before-key",
            value_before_key,
            "It looks like a head's value rows before its key rows. The first `nope` rows of a head make its key.",
        ),
        Misconception(
            "all-keys-then-all-values",
            all_keys_then_all_values,
            "It looks like kv_up read as all heads' keys, then all heads' values. It goes head by head.",
        ),
        Misconception(
            "heads-innermost",
            heads_innermost,
            "It looks like kv_up with the heads as its fastest dimension. Each head's nope + V rows lie together.",
        ),
        Misconception(
            "from-the-first-position",
            from_the_first_position,
            "It looks like queries that stand at the first S positions. They are the last of the N: query s sees rows "
            "0 to N - S + s.",
        ),
        Misconception(
            "sees-the-future",
            sees_the_future,
            "It looks like attention without a mask. Query s stands at position N - S + s and sees nothing after it.",
        ),
        Misconception(
            "last-features-mixed",
            last_features_mixed,
            "It looks like a mean of the last R features of the rows. Values come from the latent: the first R.",
        ),
        Misconception(
            "in-float32",
            in_float32,
            "It looks like float32 on the way. The inputs are float64, and so is everything between.",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like scores that are not divided. Divide by the root of O + r.",
        ),
    ),
    alternatives=(head_by_head, as_one_kv_head),
    hints=(
        "q . (W c) = (W^T q) . c: a head's key matrix can be applied to its query. Where can its value matrix go?",
        "H queries share one key, the row: [absorbed query | turned query] . [latent | turned key]. Mix latents, then values.",
        "kv_up_FR.view(H, -1, R); q_nope @ its first nope rows gives [B, H, S, R]; the mixed latents @ the other rows' .mT.",
    ),
)
