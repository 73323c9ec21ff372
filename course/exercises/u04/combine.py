"""04.4: bring the experts' results home, by gathering: no two writers for one token, the same sum every time."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(1, 2, 1), (4, 3, 2), (2, 5, 3)]  # tokens, width, k


def inputs(rng, number):
    T, D, K = EDGES[number] if number < len(EDGES) else tuple(int(rng.integers(2, high)) for high in (20, 12, 5))
    return {
        "rows_PD": torch.tensor(rng.normal(size=(T * K, D)), dtype=torch.float32),
        "place_P": torch.tensor(rng.permutation(T * K)),
        "weights_TK": torch.tensor(rng.dirichlet([1.0] * K, size=T), dtype=torch.float32),
    }


def reference(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    home_TKD = rows_PD[place_P].view(T, K, -1)
    return (home_TKD * weights_TK[..., None]).sum(dim=1)


def by_adding(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    token_P = torch.empty_like(place_P)
    token_P[place_P] = torch.arange(T * K) // K
    weight_P = torch.empty(T * K)
    weight_P[place_P] = weights_TK.flatten()
    return torch.zeros(T, rows_PD.shape[1]).index_add(0, token_P, rows_PD * weight_P[:, None])


def not_permuted_back(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    return (rows_PD.view(T, K, -1) * weights_TK[..., None]).sum(dim=1)


def permuted_forward(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    home_TKD = rows_PD[place_P.argsort()].view(T, K, -1)
    return (home_TKD * weights_TK[..., None]).sum(dim=1)


def loses_repeats(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    y_TD = torch.zeros(T, rows_PD.shape[1])
    for slot in range(K):
        y_TD[torch.arange(T)] = rows_PD[place_P.view(T, K)[:, slot]] * weights_TK[:, slot, None]
    return y_TD


def weights_out_of_order(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    weighted_PD = rows_PD * weights_TK.flatten()[:, None]
    return weighted_PD[place_P].view(T, K, -1).sum(dim=1)


def unweighted(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    return rows_PD[place_P].view(T, K, -1).sum(dim=1)


def averaged(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    return (rows_PD[place_P].view(T, K, -1) * weights_TK[..., None]).mean(dim=1)


def slots_first(rows_PD, place_P, weights_TK):
    T, K = weights_TK.shape
    return (rows_PD[place_P].view(K, T, -1) * weights_TK.T[..., None]).sum(dim=0)


EXERCISE = Exercise(
    id="04.4",
    unit="04",
    title="combine",
    entry="combine",
    points=10,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=5,
    reference=reference,
    compare=same("y"),
    misconceptions=(
        Misconception(
            "not-permuted-back",
            not_permuted_back,
            "It looks like rows taken as they lie, sorted by expert. Pair p's result lies in row place[p].",
        ),
        Misconception(
            "permuted-forward",
            permuted_forward,
            "It looks like the permutation applied the wrong way round. place maps a pair to its row: rows[place].",
        ),
        Misconception(
            "loses-repeats",
            loses_repeats,
            "It looks like only one of a token's k results arriving: an assignment to y[token] keeps the last one. Sum them.",
            "y[idx] += rows keeps one of several equal indices in PyTorch; index_add_ keeps all",
        ),
        Misconception(
            "weights-out-of-order",
            weights_out_of_order,
            "It looks like weights in token order multiplied into rows in expert order. Bring the rows home first, then weigh.",
        ),
        Misconception(
            "unweighted",
            unweighted,
            "It looks like a plain sum. Each row is multiplied by its pair's weight, weights_TK[token, slot].",
        ),
        Misconception(
            "averaged",
            averaged,
            "It looks like a mean over the k results. The weights already say how much each counts: sum.",
        ),
        Misconception(
            "slots-first",
            slots_first,
            "It looks like a view as [k, T, D]. Pair p = token * k + slot, so the rows come home as [T, k, D].",
        ),
    ),
    alternatives=(by_adding,),
    hints=(
        "Where does the result of token 3, slot 1 lie?",
        "rows_PD[place_P] is in pair order again; what shape can it be viewed as?",
        "rows_PD[place_P].view(T, K, -1), times weights_TK[..., None], summed over the slots.",
    ),
)
