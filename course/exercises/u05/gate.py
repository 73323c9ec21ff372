"""05.1: the sigmoid gate whose bias chooses and does not weigh (DeepSeek-V3 report, 2.1.2, equations 12 to 16)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

FAR = (5, 16, 8, 3, 2.5, 0.0, torch.float32)  # all logits near -16: the sum of the chosen scores is tiny
EDGES = [  # tokens, width, experts, k, scale, shift of the biases, dtype
    (5, 8, 6, 3, 1.0, 0.0, torch.float32),
    (7, 16, 24, 12, 2.5, 0.0, torch.float32),  # past 16 entries a sort that is not stable moves ties
    (9, 16, 12, 4, 2.5, 4.0, torch.bfloat16),  # biases that bfloat16 cannot hold, as large as the published ones
    (6, 12, 8, 2, 16.0, -2.0, torch.bfloat16),  # every biased score is negative
    (3, 4, 5, 1, 2.5, 0.0, torch.float32),
    FAR,
]


def inputs(rng, number):
    """Sixteenths: logits are exact in float32, and not in bfloat16."""
    if number == 0:
        return {
            "x_TD": torch.tensor([[1.0]]),
            "gate_ED": torch.tensor([[2.0], [1.0], [0.0], [-1.0]]),
            "bias_E": torch.tensor([0.0, -0.5, 0.0, 0.5]),
            "k": 2,
            "scale": 2.5,
        }
    if number <= len(EDGES):
        T, D, E, k, scale, shift, dtype = EDGES[number - 1]
    else:
        T, D, E = int(rng.integers(1, 20)), int(rng.integers(2, 24)), int(rng.integers(3, 17))
        k, scale = int(rng.integers(1, min(E - 1, 6) + 1)), float(rng.choice([1.0, 1.5, 2.5, 16.0]))
        shift, dtype = float(rng.choice([-2.0, 0.0, 4.0])), [torch.float32, torch.bfloat16][int(rng.integers(2))]
    while True:
        x_TD = torch.tensor(rng.integers(-12, 13, size=(T, D)) / 16)
        gate_ED = torch.tensor(rng.integers(-10, 11, size=(E, D)) / 16)
        bias_E = torch.tensor(rng.permutation(201)[:E] / 512 - 0.2 + shift, dtype=torch.float32)
        if number <= len(EDGES) and EDGES[number - 1] is FAR:
            x_TD, gate_ED = 1 - x_TD.abs() / 64, gate_ED.abs() / 64 - 1
        elif E > 2:  # a tie in every row: sigmoid(0) is 0.5 on every machine
            gate_ED[[0, -1]], bias_E[-1] = 0.0, bias_E[0]
        if k + 1 < E:
            bias_E[1] = -torch.inf  # out of order
        if clear((x_TD @ gate_ED.T).sigmoid() + bias_E):
            break
    return {"x_TD": x_TD.to(dtype), "gate_ED": gate_ED.to(dtype), "bias_E": bias_E, "k": k, "scale": scale}


def clear(biased_TE):
    """Whether no two of a token's biased scores are so near that rounding decides: equal, or well apart."""
    gaps_TE = biased_TE.sort(dim=-1).values.diff(dim=-1)
    return not ((gaps_TE > 1e-9) & (gaps_TE < 2e-6)).any()


def reference(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def token_by_token(x_TD, gate_ED, bias_E, k, scale):
    rows, weights, bias = [], [], bias_E.tolist()
    for x_D in x_TD.double():
        scores = (gate_ED.double() @ x_D).sigmoid().tolist()
        chosen = sorted(range(len(scores)), key=lambda e: (-(scores[e] + bias[e]), e))[:k]
        rows.append(chosen)
        weights.append([scale * scores[e] / sum(scores[c] for c in chosen) for e in chosen])
    return torch.tensor(rows), torch.tensor(weights, dtype=torch.float32)


def biased_weights(x_TD, gate_ED, bias_E, k, scale):
    biased_TE = (x_TD.float() @ gate_ED.float().T).sigmoid() + bias_E
    sorted_TE = biased_TE.sort(dim=-1, descending=True, stable=True)
    chosen_TK = sorted_TE.values[:, :k]
    return sorted_TE.indices[:, :k], scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def without_bias(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def bias_on_the_logits(x_TD, gate_ED, bias_E, k, scale):
    logits_TE = x_TD.float() @ gate_ED.float().T
    indices_TK = (logits_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = logits_TE.sigmoid().gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def over_all_experts(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, scale * scores_TE.gather(1, indices_TK) / scores_TE.sum(dim=-1, keepdim=True)


def never_normalised(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, scale * scores_TE.gather(1, indices_TK)


def scaled_too_early(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scale * scores_TE.gather(1, indices_TK)
    return indices_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def softmax_scores(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).softmax(dim=-1)
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def softmax_of_the_chosen(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, scale * scores_TE.gather(1, indices_TK).softmax(dim=-1)


def with_epsilon(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / (chosen_TK.sum(dim=-1, keepdim=True) + 1e-6)


def in_order_of_weight(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    chosen_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(dim=-1).values
    by_weight = scores_TE.gather(1, chosen_TK).sort(dim=-1, descending=True, stable=True)
    weights_TK = scale * by_weight.values / by_weight.values.sum(dim=-1, keepdim=True)
    return chosen_TK.gather(1, by_weight.indices), weights_TK


def in_low_precision(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD @ gate_ED.T).sigmoid().float()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def widened_too_late(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD @ gate_ED.T).float().sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def narrow_bias(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    biased_TE = scores_TE + bias_E.to(x_TD.dtype).float()
    indices_TK = biased_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def ties_as_topk_likes(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def ties_to_the_higher(x_TD, gate_ED, bias_E, k, scale):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK = (scores_TE + bias_E).sort(dim=-1, stable=True).indices.flip(1)[:, :k]
    chosen_TK = scores_TE.gather(1, indices_TK)
    return indices_TK, scale * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


EXERCISE = Exercise(
    id="05.1",
    unit="05",
    title="sigmoid gate with a bias",
    entry="sigmoid_gate",
    points=10,
    minutes=15,
    difficulty=2,
    spine=True,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("indices", "weights"),
    misconceptions=(
        Misconception(
            "biased-weights",
            biased_weights,
            "It looks like weights taken from the biased scores. The bias takes part in the choice alone: weigh with the sigmoids "
            "as they were.",
            "vllm-project/vllm, pull request 12002; again in huggingface/transformers, pull request 41647",
        ),
        Misconception(
            "without-bias",
            without_bias,
            "It looks like a choice by the scores alone. The bias is added before the k largest are taken.",
        ),
        Misconception(
            "bias-on-logits",
            bias_on_the_logits,
            "It looks like a bias added to the logits. It is added to the sigmoid of the logit: near 0 and 1 the same bias then "
            "counts for more.",
        ),
        Misconception(
            "over-all-experts",
            over_all_experts,
            "It looks like weights divided by the sum over all experts. Divide by the sum of the chosen.",
        ),
        Misconception(
            "never-normalised",
            never_normalised,
            "It looks like weights that are not divided by their sum. The chosen scores are divided by their sum, then multiplied "
            "by scale.",
            "pytorch/torchtitan, pull request 1419",
        ),
        Misconception(
            "scaled-too-early",
            scaled_too_early,
            "It looks like a scale that is lost: multiplied in before the division by the sum, it cancels. Each row of weights "
            "sums to scale.",
        ),
        Misconception(
            "softmax-scores",
            softmax_scores,
            "It looks like a softmax over the experts. Here every expert is scored by itself, with a sigmoid.",
        ),
        Misconception(
            "softmax-of-the-chosen",
            softmax_of_the_chosen,
            "It looks like a softmax of the chosen scores. Divide them by their sum; a softmax flattens numbers between 0 and 1.",
        ),
        Misconception(
            "with-epsilon",
            with_epsilon,
            "It looks like a small number added to the sum. Scores far below zero sum to less than that: divide by the sum as "
            "it is.",
        ),
        Misconception(
            "in-order-of-weight",
            in_order_of_weight,
            "It looks like the chosen in order of their weights. The best biased score comes first, and its weight may be small.",
        ),
        Misconception(
            "low-precision",
            in_low_precision,
            "It looks like routing in the inputs' own precision. Bfloat16 has 8 bits: widen x and gate to float32 first.",
        ),
        Misconception(
            "widened-too-late",
            widened_too_late,
            "It looks like a product in bfloat16 that is widened afterwards. What was rounded stays rounded: widen x and gate "
            "first.",
        ),
        Misconception(
            "narrow-bias",
            narrow_bias,
            "It looks like a bias rounded to the dtype of x. Near 4 bfloat16 has steps of 1/32, and a step of 0.001 disappears: "
            "leave it in float32.",
            "the bias is forced to float32 in vllm-project/vllm, pull request 23640",
        ),
        Misconception(
            "topk-ties",
            ties_as_topk_likes,
            "It looks like torch.topk: right but for ties, which it breaks as it likes. Of two equal biased scores the lower "
            "expert comes first.",
            "torch.topk's documentation promises no order among equal entries",
        ),
        Misconception(
            "ties-to-the-higher",
            ties_to_the_higher,
            "It looks like ties that go to the higher expert. Of two equal biased scores the lower expert comes first.",
        ),
    ),
    alternatives=(token_by_token,),
    hints=(
        "There are two kinds of scores: one to choose with, one to weigh with. Which of them has the bias in it?",
        "Widen, multiply, sigmoid: those are the scores. Sort a copy with the bias added, stably and in descending order.",
        "Gather the scores without the bias at the chosen indices, divide each row by its sum, multiply by scale.",
    ),
)
