"""Unit 12. Rows of experts are as in unit 11. What need not be loaded: rows that are nobody's, and weights of the expert without
rows.
"""

import torch

from course.checking.exercise import Inputs
from course.grading.sizes import BF16, Rng, Standard, normal, rows
from course.grading.sizes.u11 import LOST, ROWS, SLOTS, TOKENS, counts, lost_slots, offsets, sorted_pairs, visited


def _swiglu(rng: Rng, scale: int) -> Inputs:
    offsets_E1, width = offsets(counts(rng, scale)), 500
    P, R = TOKENS * SLOTS * scale, int(offsets_E1[-1])
    dact_PI, gate_up_PF = normal(rng, P, width, dtype=BF16), normal(rng, P, 2 * width, dtype=BF16, spread=2)
    dact_PI[R:] = gate_up_PF[R:] = torch.nan
    return {
        "dact_PI": dact_PI,
        "gate_up_PF": gate_up_PF,
        "weights_TK": torch.tensor(0.1 + rng.random((P // SLOTS, SLOTS)), dtype=torch.float32),
        "pairs_P": torch.tensor(rng.permutation(P)),
        "offsets_E1": offsets_E1,
    }


def _swiglu_loads(inputs: Inputs) -> int:
    """The last offset, and for every row before it its gate, its up, its gradient, its pair, and that pair's weight."""
    dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1 = inputs.values()
    a_row = dact_PI[0].nbytes + gate_up_PF[0].nbytes + weights_TK.itemsize + pairs_P.itemsize
    return offsets_E1.itemsize + int(offsets_E1[-1]) * a_row


def _tokens(rng: Rng, scale: int) -> Inputs:
    counts_E, D, F = counts(rng, scale), 120, 100
    T, R = TOKENS * scale, int(counts_E.sum())
    places_P = torch.full((T * SLOTS,), -1)
    places_P[torch.tensor(sorted_pairs(rng, counts_E, scale))] = torch.arange(R)
    dgate_up_PF = normal(rng, T * SLOTS, F, dtype=BF16)
    dgate_up_PF[R:] = torch.nan
    return {
        "dgate_up_PF": dgate_up_PF,
        "weight_EDF": normal(rng, len(ROWS), D, F, dtype=BF16),
        "offsets_E1": offsets(counts_E),
        "places_TK": places_P.view(T, SLOTS),
        "dother_TD": normal(rng, T, D, dtype=BF16),
    }


def _tokens_loads(inputs: Inputs) -> int:
    """All places, what arrives by other ways, every row that is an expert's, the weights of each that has one, the offsets."""
    dgate_up_PF, weight_EDF, offsets_E1, places_TK, dother_TD = inputs.values()
    taken = int(offsets_E1[-1]) * dgate_up_PF[0].nbytes
    return places_TK.nbytes + dother_TD.nbytes + taken + visited(weight_EDF, offsets_E1)


def _weights(rng: Rng, scale: int) -> Inputs:
    offsets_E1, D, N = offsets(counts(rng, scale)), 100, 72
    T, R = 80 * scale, int(offsets_E1[-1])  # each token is named by three rows
    dy_PN = normal(rng, R + LOST * scale, N, dtype=BF16)
    dy_PN[R:] = torch.nan
    tokens_P = torch.cat([torch.tensor(rng.permutation(R)), torch.tensor(rng.permutation(LOST * scale))]) % T
    return {
        "x_TD": normal(rng, T, D, dtype=BF16),
        "dy_PN": dy_PN,
        "tokens_P": tokens_P,
        "offsets_E1": offsets_E1,
        "so_far_EDN": normal(rng, len(ROWS), D, N),
    }


def _weights_loads(inputs: Inputs) -> int:
    """The whole sum so far, the offsets, every row that is an expert's, its token's number, and each token named."""
    x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN = inputs.values()
    named = tokens_P[: int(offsets_E1[-1])]
    taken = len(named) * dy_PN[0].nbytes + named.nbytes + rows(x_TD, named)
    return so_far_EDN.nbytes + offsets_E1[1:].nbytes + taken


def _routing(rng: Rng, scale: int) -> Inputs:
    T, K, width = 40 * scale, 6, 500
    lost_TK = lost_slots(rng, T, K)
    places_TK = torch.tensor(rng.permutation(T * K)).view(T, K)
    dact_PI = normal(rng, T * K, width, dtype=BF16)
    dact_PI[places_TK[lost_TK]] = torch.nan
    return {
        "dact_PI": dact_PI,
        "gate_up_PF": normal(rng, T * K, 2 * width, dtype=BF16, spread=2),
        "places_TK": places_TK.masked_fill(lost_TK, -1),
        "scores_TK": torch.sigmoid(normal(rng, T, K, spread=2)),
        "scale": 2.5,
    }


def _routing_loads(inputs: Inputs) -> int:
    """All places and scores, and for every pair that was not dropped its gradient, its gate and its up."""
    places_TK, scores_TK = inputs["places_TK"], inputs["scores_TK"]
    kept = places_TK[places_TK >= 0]
    return places_TK.nbytes + scores_TK.nbytes + rows(inputs["dact_PI"], kept) + rows(inputs["gate_up_PF"], kept)


SIZES = {
    "12.1": Standard(_swiglu, _swiglu_loads, gpu=32),
    "12.2": Standard(_tokens, _tokens_loads, gpu=8),  # the reference holds all products of two numbers at once
    "12.3": Standard(_weights, _weights_loads, gpu=4),  # as in 12.2, and once for each expert
    "12.4": Standard(_routing, _routing_loads, gpu=64),
}
