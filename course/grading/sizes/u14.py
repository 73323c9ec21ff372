"""Unit 14. Sequences are as long in every draw, and which is which is drawn. What need not be loaded: positions behind a sequence's
end, keys that no query sees, rows whose weight is 0.
"""

import numpy as np
import torch

from course.checking.exercise import Inputs
from course.grading.sizes import BF16, Rng, Standard, normal

POOLED = (210, 0, 129, 70, 1)  # rows of the segments, all of them once for each step of the scale; so too what follows
PARTIAL = (12, 7, 0, 1, 12, 9)  # splits of a sequence that were written, of 12
CACHED = (300, 0, 170, 33, 16)  # positions in a paged cache
INDEXED = (280, 150, 97, 61, 0)  # positions that the indexer scores


def _lengths(rng: Rng, each: tuple[int, ...], scale: int) -> np.ndarray:
    return rng.permutation(each * scale)


def _pool(rng: Rng, scale: int) -> Inputs:
    offsets_P = torch.tensor([0, *_lengths(rng, POOLED, scale)]).cumsum(0)
    N, D = int(offsets_P[-1]), 200
    scores_N, values_ND = normal(rng, N, spread=2), normal(rng, N, D, dtype=BF16, middle=0.5)
    closed_n = torch.tensor(rng.permutation(N)[: N // 5])
    scores_N[closed_n], values_ND[closed_n] = -torch.inf, torch.nan
    return {"scores_N": scores_N, "values_ND": values_ND, "offsets_P": offsets_P}


def _pool_loads(inputs: Inputs) -> int:
    """Every score, all offsets but the first, which is 0, and the values of each row whose score is not minus infinity."""
    scores_N, values_ND, offsets_P = inputs.values()
    return scores_N.nbytes + offsets_P[1:].nbytes + int((scores_N > -torch.inf).sum()) * values_ND[0].nbytes


def _flash(rng: Rng, scale: int) -> Inputs:
    S, N, H, G, C, V = 90, 200, 4, 2, 96, 64
    return {
        "q_BSHC": normal(rng, scale, S, H, C, dtype=BF16),
        "k_BNGC": normal(rng, scale, N, G, C, dtype=BF16),
        "v_BNGV": normal(rng, scale, N, G, V, dtype=BF16, middle=0.5),
        "window": 70,
        "scale": 1.5 * C**-0.5,
    }


def _flash_loads(inputs: Inputs) -> int:
    """Every query, and keys and values from the first position that the first query sees."""
    q_BSHC, k_BNGC, v_BNGV, window, _ = inputs.values()
    seen = min(k_BNGC.shape[1], q_BSHC.shape[1] + window - 1)
    return q_BSHC.nbytes + k_BNGC[:, :seen].nbytes + v_BNGV[:, :seen].nbytes


def _splits(rng: Rng, scale: int) -> Inputs:
    counts_B, J, H, V = _lengths(rng, PARTIAL, scale), max(PARTIAL), 8, 130
    parts_JBHV, lses_JBH = normal(rng, J, len(counts_B), H, V, middle=0.5), normal(rng, J, len(counts_B), H, spread=1.5)
    for b, count in enumerate(counts_B):
        empty = torch.tensor(rng.permutation(count * H) < count * H // 5).view(count, H)
        lses_JBH[:count, b][empty], parts_JBHV[:count, b][empty] = -torch.inf, torch.nan
        parts_JBHV[count:, b] = torch.nan
    sinks_H = normal(rng, H)
    sinks_H[H // 2 :] = -torch.inf
    return {"parts_JBHV": parts_JBHV, "lses_JBH": lses_JBH, "counts_B": torch.tensor(counts_B), "sinks_H": sinks_H}


def _splits_loads(inputs: Inputs) -> int:
    """All counts and sinks, the log of every split that was written, and its part where that is not minus infinity."""
    parts_JBHV, lses_JBH, counts_B, sinks_H = inputs.values()
    logs = lses_JBH[torch.arange(len(lses_JBH))[:, None] < counts_B]
    parts = int((logs > -torch.inf).sum()) * parts_JBHV[0, 0, 0].nbytes
    return counts_B.nbytes + sinks_H.nbytes + logs.nbytes + parts


def _paged(rng: Rng, scale: int) -> Inputs:
    lengths_B, H, R, r, size = _lengths(rng, CACHED, scale), 20, 64, 32, 16
    pages_B = -(-lengths_B // size)
    P = int(pages_B.sum()) + 2
    table_BW = torch.full((len(lengths_B), max(pages_B) + 1), -1, dtype=torch.int32)
    pages_PKL, order = normal(rng, P, size, R + r, dtype=BF16), torch.tensor(rng.permutation(P), dtype=torch.int32)
    pages_PKL[order[-2:].long()] = torch.nan
    for b, (length, end) in enumerate(zip(lengths_B, pages_B.cumsum(), strict=True)):
        table_BW[b, : pages_B[b]] = order[end - pages_B[b] : end]
        if length % size:
            pages_PKL[order[end - 1], length % size :] = torch.nan  # behind the end
    return {
        "q_BHL": normal(rng, len(lengths_B), H, R + r, dtype=BF16),
        "pages_PKL": pages_PKL,
        "table_BW": table_BW,
        "lengths_B": torch.tensor(lengths_B),
        "scale": 1.3 * (r + 8) ** -0.5,
        "rank": R,
    }


def _paged_loads(inputs: Inputs) -> int:
    """All lengths, the queries of sequences that are not empty, each of their positions, and the numbers of their pages."""
    q_BHL, pages_PKL, table_BW, lengths_B, *_ = inputs.values()
    pages = int((-(-lengths_B // pages_PKL.shape[1])).sum()) * table_BW.itemsize
    queries = int((lengths_B > 0).sum()) * q_BHL[0].nbytes
    return lengths_B.nbytes + queries + int(lengths_B.sum()) * pages_PKL[0, 0].nbytes + pages


def _indexer(rng: Rng, scale: int) -> Inputs:
    lengths_B, S, H, C = _lengths(rng, INDEXED, scale), 3, 8, 64
    whole = {"q_BSHC": (len(lengths_B), S, H, C), "k_BNC": (len(lengths_B), max(INDEXED) + 5, C)}
    drawn = {name: torch.tensor(rng.integers(-2, 3, shape)).to(BF16) for name, shape in whole.items()}  # sums are exact
    weight_BSH = torch.tensor(rng.integers(1, 5, (len(lengths_B), S, H)) * rng.choice([-1, 1, 1], H) / 4).float()
    return drawn | {"weight_BSH": weight_BSH, "lengths_B": torch.tensor(lengths_B), "top": 16}


def _indexer_loads(inputs: Inputs) -> int:
    """All lengths, and of sequences that are not empty every query, every weight, and each key before the end."""
    q_BSHC, k_BNC, weight_BSH, lengths_B, _ = inputs.values()
    queries = int((lengths_B > 0).sum()) * (q_BSHC[0].nbytes + weight_BSH[0].nbytes)
    return lengths_B.nbytes + queries + int(lengths_B.sum()) * k_BNC[0, 0].nbytes


SIZES = {
    "14.1": Standard(_pool, _pool_loads),
    "14.2": Standard(_flash, _flash_loads, gpu=64),
    "14.3": Standard(_splits, _splits_loads, gpu=64),
    "14.4": Standard(_paged, _paged_loads, gpu=64),
    "14.5": Standard(_indexer, _indexer_loads, gpu=64),
}
