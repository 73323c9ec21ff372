"""Sets of time as sorted intervals that do not touch: [N, 2], start and end of each, in one unit."""

import numpy as np
from jaxtyping import Float


def union(spans: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """What any of the intervals covers. They may overlap, lie inside each other, touch, and come in any order.

    Raises: ValueError where an interval ends before it starts.
    """
    spans = np.asarray(spans, dtype=float).reshape(-1, 2)
    if (spans[:, 1] < spans[:, 0]).any():
        raise ValueError("an interval ends before it starts")
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(spans[:, 1])
    begins = np.concatenate([[True], spans[1:, 0] > reached[:-1]])
    ends = np.concatenate([reached[:-1][begins[1:]], reached[-1:]])
    return np.stack([spans[begins, 0], ends], axis=1)


def length(spans: Float[np.ndarray, "N 2"]) -> float:
    """How long a union is."""
    return float((spans[:, 1] - spans[:, 0]).sum())


def gaps(spans: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """What lies between the intervals of a union."""
    return np.stack([spans[:-1, 1], spans[1:, 0]], axis=1) if len(spans) else spans


def intersection(one: Float[np.ndarray, "N 2"], other: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "K 2"]:
    """What two unions both cover."""
    edges = np.unique(np.concatenate([one.ravel(), other.ravel()]))
    if len(edges) < 2:
        return np.zeros((0, 2))
    middles = (edges[1:] + edges[:-1]) / 2
    both = _covers(one, middles) & _covers(other, middles)
    return union(np.stack([edges[:-1], edges[1:]], axis=1)[both])


def _covers(spans: np.ndarray, moments: np.ndarray) -> np.ndarray:
    started = np.searchsorted(spans[:, 0], moments, side="right")
    ended = np.searchsorted(spans[:, 1], moments, side="right")
    return started > ended
