"""05.3: one balance loss over the batch and one over each sequence, padding left out (V3 report, 2.1.2 and 4.5.3)."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # sequences, length, experts, k, real tokens of each sequence, step of the scores, factor
    (3, 4, 4, 1, [4, 1, 2], 1024, 1),
    (3, 5, 6, 2, [5, 0, 3], 1024, 1),  # a sequence of padding alone
    (2, 3, 5, 5, [3, 2], 1024, 1),  # every expert is chosen
    (1, 6, 8, 3, [6], 4, 1),  # many ties
    (2, 3, 4, 2, [0, 0], 1024, 1),  # nothing is real
    (2, 7, 24, 4, [7, 4], 4, 1),
    (3, 5, 6, 2, [5, 2, 3], 1024, 2.0**-30),  # every score is tiny
]


def inputs(rng, number):
    """Padding stands at the end of some sequences and at the start of others."""
    if number == 0:
        scores_BSE = torch.tensor([[[0.6, 0.2]] * 2, [[0.2, 0.6]] * 2])
        return {"scores_BSE": scores_BSE, "real_BS": torch.ones(2, 2, dtype=torch.bool), "k": 1}
    if number <= len(EDGES):
        B, S, E, k, lengths, step, factor = EDGES[number - 1]
    else:
        B, S, E = int(rng.integers(2, 6)), int(rng.integers(2, 12)), int(rng.integers(3, 17))
        k, step, factor = int(rng.integers(1, min(E - 1, 6) + 1)), int(rng.choice([4, 1024])), 1
        lengths = [int(rng.integers(0, S + 1)) for _ in range(B)]
        lengths[0] = max(1, S - 1)
    liked_BE = rng.dirichlet([0.5] * E, size=(B, 1))
    scores = 0.5 * rng.uniform(size=(B, S, E)) + 0.5 * liked_BE
    real_BS = torch.zeros(B, S, dtype=torch.bool)
    for b, length in enumerate(lengths):
        real_BS[b, S - length if b % 2 else 0 : S if b % 2 else length] = True
    scores_BSE = torch.tensor(factor * ((scores * step).round() + 1) / (step + 1), dtype=torch.float32)
    return {"scores_BSE": scores_BSE, "real_BS": real_BS, "k": k}


def reference(scores_BSE, real_BS, k):
    E = scores_BSE.shape[-1]
    real_BS1 = real_BS[..., None]
    chosen_BSK = scores_BSE.sort(descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    tokens_B = real_BS.sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    if tokens_B.sum() == 0:
        return torch.tensor(0.0), torch.tensor(0.0)
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def token_by_token(scores_BSE, real_BS, k):
    def loss(rows):
        E = len(rows[0])
        share, mean = [0.0] * E, [0.0] * E
        for row in rows:
            for e in sorted(range(E), key=lambda e: (-row[e], e))[:k]:
                share[e] += E / k / len(rows)
            for e in range(E):
                mean[e] += row[e] / sum(row) / len(rows)
        return sum(f * p for f, p in zip(share, mean, strict=True))

    sequences = [scores_SE[real_S].tolist() for scores_SE, real_S in zip(scores_BSE, real_BS, strict=True)]
    sequences = [rows for rows in sequences if rows]
    if not sequences:
        return torch.tensor(0.0), torch.tensor(0.0)
    each = [loss(rows) for rows in sequences]
    return torch.tensor(loss([row for rows in sequences for row in rows])), torch.tensor(sum(each) / len(each))


def weights_of_the_chosen(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    hot_BSE = F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1
    kept_BSE = scores_BSE * hot_BSE
    counts_BE = hot_BSE.sum(dim=1)
    totals_BE = (kept_BSE / kept_BSE.sum(dim=-1, keepdim=True).clamp(min=1e-9)).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def scores_as_they_are(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def with_epsilon(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / (scores_BSE.sum(dim=-1, keepdim=True) + 1e-6) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def softmax_of_scores(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE.softmax(dim=-1) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def without_k(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


def without_experts(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2 / k
    batch = (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2 / k
    return batch, each_B[tokens_B > 0].mean()


def padding_counted(scores_BSE, real_BS, k):
    B, S, E = scores_BSE.shape
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = F.one_hot(chosen_BSK, E).sum(dim=(1, 2))
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True)).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / S**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / (B * S) ** 2
    return batch, each_B.mean()


def padded_length(scores_BSE, real_BS, k):
    B, S, E = scores_BSE.shape
    real_BS1 = real_BS[..., None]
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / S**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / (B * S) ** 2
    return batch, each_B.mean()


def both_by_sequence(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    mean = each_B[tokens_B > 0].mean()
    return mean, mean.clone()


def both_by_batch(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, batch.clone()


def weighted_by_length(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B.clamp(min=1) ** 2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, (each_B * tokens_B).sum() / tokens_B.sum()


def empty_as_zero(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    chosen_BSK = scores_BSE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    counts_BE = (F.one_hot(chosen_BSK, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B.clamp(min=1) ** 2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum().clamp(min=1) ** 2
    return batch, each_B.mean()


def ties_as_topk_likes(scores_BSE, real_BS, k):
    E, real_BS1, tokens_B = scores_BSE.shape[-1], real_BS[..., None], real_BS.sum(dim=1)
    if not real_BS.any():
        return torch.tensor(0.0), torch.tensor(0.0)
    counts_BE = (F.one_hot(scores_BSE.topk(k, dim=-1).indices, E).sum(dim=2) * real_BS1).sum(dim=1)
    totals_BE = (scores_BSE / scores_BSE.sum(dim=-1, keepdim=True) * real_BS1).sum(dim=1)
    each_B = E / k * (counts_BE * totals_BE).sum(dim=-1) / tokens_B**2
    batch = E / k * (counts_BE.sum(dim=0) * totals_BE.sum(dim=0)).sum() / tokens_B.sum() ** 2
    return batch, each_B[tokens_B > 0].mean()


EXERCISE = Exercise(
    id="05.3",
    unit="05",
    title="two balance losses",
    entry="balance_losses",
    points=15,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("the batch's loss", "the sequences' loss"),
    misconceptions=(
        Misconception(
            "weights-of-the-chosen",
            weights_of_the_chosen,
            "It looks like P taken from the weights of the chosen experts. P is the score over the sum of all E scores, chosen or "
            "not.",
        ),
        Misconception(
            "scores-as-they-are",
            scores_as_they_are,
            "It looks like P taken from the sigmoids as they are. Divide each token's scores by their sum over the experts "
            "first.",
            "PaddlePaddle/PaddleNLP, pull request 11160: some twenty times too large",
        ),
        Misconception(
            "with-epsilon",
            with_epsilon,
            "It looks like a small number added to a token's sum of scores. All its scores may be smaller than that: divide by the "
            "sum as it is.",
        ),
        Misconception(
            "softmax-of-scores",
            softmax_of_scores,
            "It looks like a softmax over the experts. The scores are sigmoids already: divide them by their sum.",
            "NVIDIA/Megatron-LM, issue 1438",
        ),
        Misconception(
            "without-k",
            without_k,
            "It looks like a loss without 1/k, which is k at balance. V3's has the factor E/k, and is 1 at balance.",
            "the loss of Mixtral in huggingface/transformers is defined so",
        ),
        Misconception(
            "without-experts",
            without_experts,
            "It looks like a loss without the factor E: 1/E at balance. With E/k it is 1 there.",
        ),
        Misconception(
            "padding-counted",
            padding_counted,
            "It looks like padding counted as tokens. Neither f nor P hears of a position where real is False.",
            "huggingface/transformers, issue 28505; NVIDIA/Megatron-LM, pull request 2121",
        ),
        Misconception(
            "padded-length",
            padded_length,
            "It looks like sums over real tokens divided by the padded length. Divide by the number of real tokens.",
        ),
        Misconception(
            "both-by-sequence",
            both_by_sequence,
            "It looks like a batch loss that is the mean of the sequences' losses. Pool all real tokens first: in f and in P, "
            "before the product.",
        ),
        Misconception(
            "both-by-batch",
            both_by_batch,
            "It looks like the batch's loss given twice. For the second one each sequence has an f and a P of its own.",
        ),
        Misconception(
            "weighted-by-length",
            weighted_by_length,
            "It looks like a mean in which long sequences count for more. Each sequence with a real token counts the same.",
        ),
        Misconception(
            "empty-as-zero",
            empty_as_zero,
            "It looks like a sequence of padding counted as one with loss 0. It is left out of the mean.",
        ),
        Misconception(
            "topk-ties",
            ties_as_topk_likes,
            "It looks like torch.topk: right but for ties, which it breaks as it likes. Of two equal scores the lower expert is "
            "chosen.",
            "torch.topk's documentation promises no order among equal entries",
        ),
    ),
    alternatives=(token_by_token,),
    hints=(
        "Write the loss for one list of tokens. The two answers differ in which tokens stand in the list.",
        "Keep counts and sums of normalised scores for each sequence, [B, E] both; for the batch add them over B before you "
        "multiply.",
        "f = E / k * counts / tokens and P = sums / tokens, with the real tokens alone; the loss is (f * P).sum(); no tokens, "
        "no sequence.",
    ),
)
