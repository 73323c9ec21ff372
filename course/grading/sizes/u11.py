"""Unit 11. Experts have as many rows in every draw, and who has which number is drawn. What need not be loaded: weights of the
expert without rows, what stands for dropped pairs, and the tile table of 11.5, parts of which follow from others.
"""

import numpy as np
import torch

from course.checking.exercise import Inputs
from course.exercises.u11 import tile_table
from course.grading.sizes import BF16, Rng, Standard, normal, rows

ROWS = (65, 0, 33, 1, 96, 45)  # of six experts, times the scale: more than whole tiles, whole ones, a single row, none
LOST = 16  # pairs that are nobody's, times the scale
SLOTS = 4
TOKENS = (sum(ROWS) + LOST) // SLOTS  # times the scale


def counts(rng: Rng, scale: int) -> np.ndarray:
    return scale * rng.permutation(ROWS)


def offsets(counts_E: np.ndarray) -> torch.Tensor:
    return torch.tensor([0, *counts_E]).cumsum(0)


def sorted_pairs(rng: Rng, counts_E: np.ndarray, scale: int) -> np.ndarray:
    """The pairs in the order of their experts. Those that are left out belong to different tokens."""
    lost = rng.permutation(TOKENS * scale)[: LOST * scale] * SLOTS + rng.integers(0, SLOTS, LOST * scale)
    kept = rng.permutation(np.setdiff1d(np.arange(TOKENS * SLOTS * scale), lost))
    return np.concatenate([np.sort(part) for part in np.split(kept, counts_E.cumsum()[:-1])])


def lost_slots(rng: Rng, T: int, K: int) -> torch.Tensor:
    """Which pairs are dropped: none, one or two of each token's."""
    places_TK = rng.permuted(np.tile(np.arange(K), (T, 1)), axis=1)
    return torch.tensor(places_TK < (np.arange(T) % 3)[:, None])


def visited(weight_E: torch.Tensor, offsets_E1: torch.Tensor) -> int:
    """Bytes of the experts that have rows, and of all offsets but the first, which is 0."""
    return int((offsets_E1.diff() > 0).sum()) * weight_E[0].nbytes + offsets_E1[1:].nbytes


def _places(rng: Rng, scale: int) -> Inputs:
    kinds = np.arange(-4, 40)  # four of 44 ids are dropped ones, 20 are of the experts here
    ids_TK = rng.permutation(np.resize(kinds, 8 * 1003 * scale)).clip(min=-1).reshape(-1, 8)
    return {"ids_TK": torch.tensor(ids_TK), "first": 8, "held": 20}


def _grouped(rng: Rng, scale: int) -> Inputs:
    counts_E, K, N = counts(rng, scale), 200, 120
    rows_PK = normal(rng, int(counts_E.sum()) + LOST * scale, K, dtype=BF16)
    rows_PK[-LOST * scale :] = torch.nan
    weight_EKN, bias_EN = normal(rng, len(ROWS), K, N, dtype=BF16), normal(rng, len(ROWS), N, dtype=BF16)
    return {"rows_PK": rows_PK, "weight_EKN": weight_EKN, "bias_EN": bias_EN, "offsets_E1": offsets(counts_E)}


def _grouped_loads(inputs: Inputs) -> int:
    """Every row that is an expert's, weight and bias of each expert that has one, and the offsets: no result without them."""
    rows_PK, weight_EKN, bias_EN, offsets_E1 = inputs.values()
    biases = int((offsets_E1.diff() > 0).sum()) * bias_EN[0].nbytes
    return int(offsets_E1[-1]) * rows_PK[0].nbytes + visited(weight_EKN, offsets_E1) + biases


def _gate_up(rng: Rng, scale: int) -> Inputs:
    counts_E, D, half, block = counts(rng, scale), 200, 60, 32
    pairs_P = torch.tensor([*sorted_pairs(rng, counts_E, scale), *[-1] * LOST * scale])
    _, experts_B, firsts_B, heights_B = tile_table.reference(torch.tensor(counts_E), len(pairs_P), block)
    return {
        "x_TD": normal(rng, TOKENS * scale, D, dtype=BF16),
        "gate_up_EFD": normal(rng, len(ROWS), 2 * half, D, dtype=BF16, spread=1.5 * D**-0.5),
        "pairs_P": pairs_P,
        "experts_B": experts_B,
        "firsts_B": firsts_B,
        "heights_B": heights_B,
        "top_k": SLOTS,
        "block": block,
    }


def _gate_up_loads(inputs: Inputs) -> int:
    """The pair of every row that a tile holds, each token that these name, and the weights of every expert with a tile."""
    pairs_P, experts_B = inputs["pairs_P"], inputs["experts_B"]
    kept = pairs_P[pairs_P >= 0]
    tokens = rows(inputs["x_TD"], kept // inputs["top_k"])
    return kept.nbytes + tokens + rows(inputs["gate_up_EFD"], experts_B[experts_B >= 0])


def _combine(rng: Rng, scale: int) -> Inputs:
    T, K, D = 30 * scale, 8, 1000
    lost_TK = lost_slots(rng, T, K)
    places_TK = torch.tensor(rng.permutation(T * K)).view(T, K).masked_fill(lost_TK, -1)
    weights_TK = torch.tensor(1.5 * rng.random((T, K)), dtype=torch.float32).masked_fill(lost_TK, torch.nan)
    y_RD, shared_TD = normal(rng, T * K, D, dtype=BF16), normal(rng, T, D, dtype=BF16, spread=2)
    return {"y_RD": y_RD, "places_TK": places_TK, "weights_TK": weights_TK, "shared_TD": shared_TD}


def _combine_loads(inputs: Inputs) -> int:
    """All places, the shared expert's rows, and for every pair that was not dropped its weight and its row."""
    y_RD, places_TK, weights_TK, shared_TD = inputs.values()
    kept = places_TK[places_TK >= 0]
    return places_TK.nbytes + shared_TD.nbytes + len(kept) * weights_TK.itemsize + rows(y_RD, kept)


SIZES = {
    "11.2": Standard(_places, gpu=64),  # every id: none is known to be another GPU's before it was read
    "11.4": Standard(_grouped, _grouped_loads, gpu=8),  # the reference holds all products of two numbers at once
    "11.5": Standard(_gate_up, _gate_up_loads, gpu=8),  # as in 11.4
    "11.6": Standard(_combine, _combine_loads, gpu=64),
}
