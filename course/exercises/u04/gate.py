"""04.1: the softmax top-k gate, with and without renormalised weights (Mixtral report, 2.1; Qwen3 and V1 differ)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # tokens, width, experts, k, renormalise, dtype
    (5, 8, 4, 2, True, torch.float32),
    (6, 8, 6, 3, False, torch.float32),
    (3, 4, 5, 1, False, torch.float32),
    (7, 16, 24, 12, True, torch.bfloat16),  # past 16 entries a sort that is not stable moves ties
]


def inputs(rng, number):
    """Eighths and quarters: logits are exact in float32, so that ties are ties on every machine."""
    if number < len(EDGES):
        T, D, E, k, renormalise, dtype = EDGES[number]
    else:
        T, D, E = int(rng.integers(1, 20)), int(rng.integers(2, 24)), int(rng.integers(2, 17))
        k, renormalise = int(rng.integers(1, min(E, 6) + 1)), bool(rng.integers(2))
        dtype = [torch.float32, torch.bfloat16][int(rng.integers(2))]
    x_TD = torch.tensor(rng.integers(-12, 13, size=(T, D)) / 8)
    gate_ED = torch.tensor(rng.integers(-10, 11, size=(E, D)) / 8)
    gate_ED[-1] = gate_ED[0]  # a tie in every row
    return {"x_TD": x_TD.to(dtype), "gate_ED": gate_ED.to(dtype), "k": k, "renormalise": renormalise}


def reference(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


def from_logits(x_TD, gate_ED, k, renormalise):
    logits_TE = torch.einsum("td,ed->te", x_TD.double(), gate_ED.double())
    order = [sorted(range(len(row)), key=lambda e: (-row[e], e))[:k] for row in logits_TE.tolist()]
    indices_TK = torch.tensor(order)
    chosen_TK = logits_TE.gather(1, indices_TK)
    total_T = (chosen_TK if renormalise else logits_TE).logsumexp(dim=-1, keepdim=True)
    return indices_TK, (chosen_TK - total_T).exp().float()


def over_tokens(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=0)
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


def always_renormalised(x_TD, gate_ED, k, renormalise):
    logits_TE = x_TD.float() @ gate_ED.float().T
    indices_TK = logits_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, logits_TE.gather(1, indices_TK).softmax(dim=-1)


def never_renormalised(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, probabilities_TE.gather(1, indices_TK)


def softmax_twice(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    return indices_TK, weights_TK.softmax(dim=-1) if renormalise else weights_TK


def in_low_precision(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD @ gate_ED.T).softmax(dim=-1).float()
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


def widened_too_late(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD @ gate_ED.T).float().softmax(dim=-1)
    indices_TK = probabilities_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


def ties_as_topk_likes(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    weights_TK, indices_TK = probabilities_TE.topk(k, dim=-1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


def ties_to_the_higher(x_TD, gate_ED, k, renormalise):
    probabilities_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    indices_TK = probabilities_TE.sort(dim=-1, stable=True).indices.flip(1)[:, :k]
    weights_TK = probabilities_TE.gather(1, indices_TK)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK


EXERCISE = Exercise(
    id="04.1",
    unit="04",
    title="softmax top-k gate",
    entry="softmax_topk_gate",
    points=10,
    minutes=15,
    difficulty=2,
    spine=True,
    inputs=inputs,
    cases=6,
    reference=reference,
    compare=same("indices", "weights"),
    misconceptions=(
        Misconception(
            "over-tokens",
            over_tokens,
            "It looks like a softmax over the tokens. Each token spreads one unit of probability over the experts: dim=-1.",
        ),
        Misconception(
            "always-renormalised",
            always_renormalised,
            "It looks like weights that always sum to one. With renormalise=False the chosen keep their share of the "
            "softmax over all experts.",
            "softmax over the top-k logits is right for Mixtral and wrong for models with norm_topk_prob=False",
        ),
        Misconception(
            "never-renormalised",
            never_renormalised,
            "It looks like weights that are never renormalised. With renormalise=True they are divided by their sum.",
        ),
        Misconception(
            "softmax-twice",
            softmax_twice,
            "It looks like a softmax of probabilities. To renormalise, divide by the sum; a second softmax flattens them.",
        ),
        Misconception(
            "low-precision",
            in_low_precision,
            "It looks like routing in the inputs' own precision. Bfloat16 has 8 bits: widen x and gate to float32 first.",
        ),
        Misconception(
            "widened-too-late",
            widened_too_late,
            "It looks like a product in bfloat16 that is widened afterwards. What was rounded stays rounded: widen x and gate first.",
        ),
        Misconception(
            "topk-ties",
            ties_as_topk_likes,
            "It looks like torch.topk: right but for ties, which it breaks as it likes. Of two equal experts the lower index comes first.",
            "torch.topk's documentation promises no order among equal entries",
        ),
        Misconception(
            "ties-to-the-higher",
            ties_to_the_higher,
            "It looks like ties that go to the higher index. Of two equal experts the lower index comes first.",
        ),
    ),
    alternatives=(from_logits,),
    hints=(
        "One row of logits for each token. Over which dimension does a token's probability sum to one?",
        "torch.topk leaves ties open. Which sort keeps the order of equal entries?",
        "Widen to float32, softmax over dim=-1, stable descending sort, first k, gather; divide by the sum if asked to.",
    ),
)
