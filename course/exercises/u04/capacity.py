"""04.5: a limited seat count at each expert, first choices served first (GShard, section 2.2; Switch, equation 3)."""

import math

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u04.sort import reference as sort_by_expert

EDGES = [(1, 2, 1, 1.0), (6, 3, 2, 0.75), (8, 4, 2, 1.0), (9, 5, 3, 1.25)]  # tokens, experts, k, factor


def inputs(rng, number):
    if number < len(EDGES):
        T, E, K, factor = EDGES[number]
    else:
        T, E = int(rng.integers(4, 40)), int(rng.integers(3, 10))
        K, factor = int(rng.integers(2, min(E, 4) + 1)), float(rng.choice([0.5, 0.75, 1.0, 1.25]))
    keys = rng.exponential(size=(T, E)) / rng.dirichlet([1.0] * E)  # some experts are popular
    return {"indices_TK": torch.tensor(keys.argsort(axis=1)[:, :K].copy()), "experts": E, "factor": factor}


def reference(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    flat_P = indices_TK.T.flatten()
    _, offsets_E1, place_P = sort_by_expert(indices_TK.T, experts)
    kept_P = place_P - offsets_E1[flat_P] < capacity
    return kept_P.view(K, T).T, capacity


def counting(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = -int(-factor * T * K // experts)
    taken, kept_TK = [0] * experts, torch.zeros(T, K, dtype=torch.bool)
    for slot in range(K):
        for token in range(T):
            e = int(indices_TK[token, slot])
            kept_TK[token, slot] = taken[e] < capacity
            taken[e] += 1
    return kept_TK, capacity


def token_order(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    seen_PE = F.one_hot(indices_TK.flatten(), experts)
    rank_P = (seen_PE.cumsum(0) - 1).gather(1, indices_TK.flatten()[:, None]).squeeze(1)
    return (rank_P < capacity).view(T, K), capacity


def without_k(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T / experts)
    flat_P = indices_TK.T.flatten()
    rank_P = (F.one_hot(flat_P, experts).cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    return (rank_P < capacity).view(K, T).T, capacity


def off_by_one(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    flat_P = indices_TK.T.flatten()
    rank_P = F.one_hot(flat_P, experts).cumsum(0).gather(1, flat_P[:, None]).squeeze(1)
    return (rank_P < capacity).view(K, T).T, capacity


def rounded_down(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.floor(factor * T * K / experts)
    flat_P = indices_TK.T.flatten()
    rank_P = (F.one_hot(flat_P, experts).cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    return (rank_P < capacity).view(K, T).T, capacity


def drops_whole_tokens(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    flat_P = indices_TK.T.flatten()
    rank_P = (F.one_hot(flat_P, experts).cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    kept_TK = (rank_P < capacity).view(K, T).T
    return kept_TK.all(dim=1, keepdim=True).expand(T, K), capacity


def each_slot_alone(indices_TK, experts, factor):
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    rank_TKE = F.one_hot(indices_TK, experts).cumsum(0) - 1
    return rank_TKE.gather(2, indices_TK[..., None]).squeeze(2) < capacity, capacity


EXERCISE = Exercise(
    id="04.5",
    unit="04",
    title="capacity and drops",
    entry="capacity_and_drops",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("kept", "capacity"),
    misconceptions=(
        Misconception(
            "token-order",
            token_order,
            "It looks like seats given out token by token. Here all first choices are served before any second choice.",
            "Switch Transformer serves in token order; GShard, which this follows, by choice",
        ),
        Misconception(
            "without-k",
            without_k,
            "It looks like a capacity without k. There are T * K pairs to seat: factor * T * K / experts, rounded up.",
        ),
        Misconception(
            "off-by-one",
            off_by_one,
            "It looks like one seat too few: the first pair of an expert has rank 0, and ranks below the capacity are kept.",
        ),
        Misconception(
            "rounded-down",
            rounded_down,
            "It looks like a capacity rounded down. Round up: otherwise balanced tokens are dropped at factor 1.",
        ),
        Misconception(
            "whole-tokens",
            drops_whole_tokens,
            "It looks like a token losing all its experts when one is full. Only the pair that finds no seat is dropped.",
        ),
        Misconception(
            "each-slot-alone",
            each_slot_alone,
            "It looks like seats counted anew for each slot. An expert has one set of seats for all slots together.",
        ),
    ),
    alternatives=(counting,),
    hints=(
        "Write down the order in which the pairs ask for a seat: slot 0 of every token, then slot 1, ...",
        "sort_by_expert(indices_TK.T, experts) sees the pairs in that order; what is a pair's rank at its expert?",
        "rank = place - offsets[expert]; kept where rank < math.ceil(factor * T * K / experts); view as [K, T], transpose.",
    ),
    uses=("04.3",),
)
