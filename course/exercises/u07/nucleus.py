"""07.5: nucleus sampling with a given random number (Holtzman et al. 2020, section 3.1)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # rows, vocabulary, temperature, top_p, what is special
    (3, 6, 0.0, 0.9, "ties"),
    (4, 5, 1.0, 1.0, ""),
    (3, 6, 1.5, 1.0, "forbidden"),
    (3, 9, 0.2, 1.0, "sure"),  # small probabilities, which rounding loses beside the large one
    (3, 8, 0.7, 0.9, "forbidden"),
    (2, 12, 2.5, 0.3, ""),
    (3, 7, 1.0, 0.05, ""),  # one token is enough
    (4, 6, 1.3, 0.8, "ties"),
    (3, 9, 0.01, 0.95, "large"),
    (3, 7, 2.0**-40, 0.9, "near"),  # a temperature above 0, however small, divides
]


def inputs(rng, number):
    """No cumulative probability lies so near to top_p or to the random number that rounding decides."""
    if number == 0:  # the example of the text
        logits_BV = torch.tensor([[0.2, 0.5, 0.3], [0.05, 0.05, 0.9]]).log()
        return {"logits_BV": logits_BV, "temperature": 1.0, "top_p": 0.7, "uniform_B": torch.tensor([0.6, 0.99])}
    while True:
        if number <= len(EDGES):
            B, V, temperature, top_p, special = EDGES[number - 1]
        else:
            B, V, special = int(rng.integers(2, 6)), int(rng.integers(3, 30)), ""
            temperature, top_p = float(rng.uniform(0.3, 2.0)), float(rng.uniform(0.2, 0.97))
        logits_BV = torch.tensor(2 * rng.standard_normal((B, V)), dtype=torch.float32)
        if special == "ties":
            logits_BV = logits_BV.round()
            logits_BV[:, [4, 2]] = logits_BV.amax(dim=1, keepdim=True)
        if special == "large":
            logits_BV = 300 + 100 * logits_BV
        if special == "sure":
            logits_BV[:, 5] = logits_BV.amax(dim=1) + 5
        if special == "near":
            logits_BV = logits_BV * temperature
        if special == "forbidden":
            logits_BV[:, 1] = -math.inf
            logits_BV[0, 3:] = -math.inf
        uniform_B = torch.tensor(rng.uniform(0, 0.999, size=B), dtype=torch.float32)
        if temperature == 0:
            break
        sums_BV = (logits_BV.double() / temperature).softmax(-1).sort(descending=True, stable=True).values.cumsum(-1)
        kept_B = 1 + (sums_BV < top_p).sum(-1).clamp(max=V - 1)
        whole_B = sums_BV.gather(1, kept_B[:, None] - 1)[:, 0]
        near = (sums_BV / whole_B[:, None] - uniform_B[:, None]).abs().min() < 1e-4
        if not near and (top_p == 1 or (sums_BV - top_p).abs().min() > 1e-4):
            break
    return {"logits_BV": logits_BV, "temperature": temperature, "top_p": top_p, "uniform_B": uniform_B}


def reference(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def row_by_row(logits_BV, temperature, top_p, uniform_B):
    ids, kept = [], []
    for logits, u in zip(logits_BV.tolist(), uniform_B.tolist(), strict=True):
        order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
        if temperature == 0:
            ids.append(order[0])
            kept.append(1)
            continue
        largest = max(logits)
        weights = [math.exp((logits[v] - largest) / temperature) for v in order]
        total, taken, nucleus = sum(weights), 0.0, []
        for v, weight in zip(order, weights, strict=True):
            if weight > 0 and (not nucleus or taken < top_p * total or top_p == 1):
                nucleus.append((v, weight))
                taken += weight
        left = u * taken
        chosen = nucleus[-1][0]
        for v, weight in nucleus:
            left -= weight
            if left < 0:
                chosen = v
                break
        ids.append(chosen)
        kept.append(len(nucleus))
    return torch.tensor(ids), torch.tensor(kept)


def crossing_dropped(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = ((p_BV.cumsum(dim=-1) <= top_p) | (top_p >= 1)) & (p_BV > 0)
    kept_BV[:, 0] = True
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def one_too_many(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV - p_BV.roll(1, -1) < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def not_renormalised(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def temperature_multiplies(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV * temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def temperature_afterwards(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = logits_BV.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = (p_BV.cumsum(dim=-1) - p_BV < top_p) & (p_BV > 0)
    kept_BV[:, 0] = True
    scaled_BV = (logits_BV.gather(1, ids_BV) / temperature).masked_fill(~kept_BV, -math.inf).softmax(dim=-1)
    place_B = torch.minimum((scaled_BV.cumsum(-1) <= uniform_B[:, None]).sum(dim=-1), kept_BV.sum(-1) - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_BV.sum(dim=-1)


def in_order_of_ids(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = (p_BV.cumsum(dim=-1) - p_BV < top_p) & (p_BV > 0)
    kept_BV[:, 0] = True
    by_id_BV = torch.zeros_like(p_BV).scatter(1, ids_BV, p_BV * kept_BV)
    edges_BV = by_id_BV.cumsum(dim=-1) / by_id_BV.sum(dim=-1, keepdim=True)
    return (edges_BV <= uniform_B[:, None]).sum(dim=-1).clamp(max=p_BV.shape[1] - 1), kept_BV.sum(dim=-1)


def places_for_ids(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True).values
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return place_B, kept_B


def threshold(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = (p_BV >= (1 - top_p) * p_BV[:, :1]) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def greedy(logits_BV, temperature, top_p, uniform_B):
    p_BV, ids_BV = (logits_BV / max(temperature, 1e-6)).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = (p_BV.cumsum(dim=-1) - p_BV < top_p) & (p_BV > 0)
    kept_BV[:, 0] = True
    return ids_BV[:, 0], kept_BV.sum(dim=-1) if temperature else torch.ones(len(p_BV), dtype=torch.int64)


def forbidden_counted(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = (before_BV < top_p) | (top_p >= 1)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def rounded_away(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = (before_BV < top_p) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def temperature_zero_divides(logits_BV, temperature, top_p, uniform_B):
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), (kept_B - 1).clamp(min=0))
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


def same_cut_for_all(logits_BV, temperature, top_p, uniform_B):
    if temperature == 0:
        ranked_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return ranked_BV[:, 0], torch.ones(len(logits_BV), dtype=torch.int64)
    p_BV, ids_BV = (logits_BV / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(dim=-1) - p_BV
    kept_BV = ((before_BV < top_p) | (top_p >= 1)) & (p_BV > 0)
    kept_BV = kept_BV.any(dim=0, keepdim=True) & (p_BV > 0)
    p_BV = p_BV * kept_BV
    edges_BV = p_BV.cumsum(dim=-1) / p_BV.sum(dim=-1, keepdim=True)
    kept_B = kept_BV.sum(dim=-1)
    place_B = torch.minimum((edges_BV <= uniform_B[:, None]).sum(dim=-1), kept_B - 1)
    return ids_BV.gather(1, place_B[:, None])[:, 0], kept_B


EXERCISE = Exercise(
    id="07.5",
    unit="07",
    title="nucleus sampling",
    entry="top_p_sample",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=14,
    reference=reference,
    compare=same("ids", "kept"),
    misconceptions=(
        Misconception(
            "crossing-dropped",
            crossing_dropped,
            "It looks like a nucleus without the token that crosses top_p. Keep the fewest tokens whose sum "
            "reaches it: the one that crosses belongs to them.",
        ),
        Misconception(
            "one-too-many",
            one_too_many,
            "It looks like one token too many. What is summed up before a token decides whether it still is needed.",
        ),
        Misconception(
            "not-renormalised",
            not_renormalised,
            "It looks like a draw from probabilities that do not add up to one. Divide what is kept by its sum; "
            "else the last one gets what is missing.",
        ),
        Misconception(
            "temperature-multiplies",
            temperature_multiplies,
            "It looks like logits times the temperature. A higher temperature makes them flatter: divide.",
        ),
        Misconception(
            "temperature-afterwards",
            temperature_afterwards,
            "It looks like a nucleus of the probabilities at temperature 1. Temperature comes first: it decides "
            "how many tokens it takes to reach top_p.",
        ),
        Misconception(
            "in-order-of-ids",
            in_order_of_ids,
            "It looks like a draw along the order of ids. As good by chance; here the random number runs along "
            "the tokens from the most probable on, so that everybody draws the same.",
        ),
        Misconception(
            "places-for-ids",
            places_for_ids,
            "It looks like places in the sorted row. Return the ids of the tokens that stand there.",
        ),
        Misconception(
            "threshold",
            threshold,
            "It looks like a threshold for each probability. The nucleus is cut by the sum of the probabilities, "
            "not by their size.",
        ),
        Misconception(
            "greedy",
            greedy,
            "It looks like the most probable token every time. The random number chooses among those that are kept.",
        ),
        Misconception(
            "forbidden-counted",
            forbidden_counted,
            "It looks like tokens of probability 0 counted as kept. With top_p = 1 too they stay out.",
        ),
        Misconception(
            "rounded-away",
            rounded_away,
            "It looks like tokens lost to rounding: the sum reaches 1 before the last ones. With top_p = 1 all of "
            "a probability above 0 stay.",
        ),
        Misconception(
            "temperature-zero",
            temperature_zero_divides,
            "It looks like a division by a temperature of 0. There the answer is the largest logit, the lower id "
            "of equal ones, and 1 kept.",
        ),
        Misconception(
            "same-cut",
            same_cut_for_all,
            "It looks like one cut for all rows. Every row has a nucleus of its own size.",
        ),
    ),
    alternatives=(row_by_row,),
    hints=(
        "Sort the probabilities, most probable first. Which of them are needed to reach top_p?",
        "A token is needed while the sum of those before it is below top_p. The first one always is; one of "
        "probability 0 never.",
        "Divide the kept probabilities by their sum, add them up, and count how many of the sums are not above "
        "the random number.",
    ),
)
