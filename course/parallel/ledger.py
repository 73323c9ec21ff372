"""The byte ledger: what each rank sent to each, counted where it is sent, and what the routing alone says it must be.

with Ledger() as ledger:
    y, routing = layer(x)
    y.sum().backward()
matrices = ledger.gathered()                      # on all ranks: by the exchange's word, bytes from rank to rank

A matrix has senders in rows, receivers in columns. Its diagonal are bytes that a rank kept: copied, and never on a link.

Shapes: R ranks, T tokens of one rank, K experts a token, D width.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from course.parallel.grid import Grid

DISPATCHES = ("pair", "rank", "node")
ELEMENT = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes of what travels as it is
COUNT, EXPERT, WEIGHT = (
    8,
    4,
    4,
)  # bytes of a count (int64), an expert's number (int32), a routing weight (float32 or wider)

_open: list["Ledger"] = []


class Ledger:
    """Counts what this rank sends while it is open; ledgers may be open in one another."""

    def __init__(self):
        self.sent: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))  # word -> receiver -> bytes

    def __enter__(self) -> "Ledger":
        _open.append(self)
        return self

    def __exit__(self, *_) -> None:
        _open.remove(self)

    def gathered(self) -> dict[str, np.ndarray]:
        """By word, bytes from each rank to each, [R, R] int64. All ranks ask together."""
        import torch.distributed as dist

        ranks = dist.get_world_size()
        all_sent: list = [None] * ranks
        dist.all_gather_object(all_sent, {what: dict(to) for what, to in self.sent.items()})
        words = sorted({what for sent in all_sent for what in sent})
        matrices = {what: np.zeros((ranks, ranks), dtype=np.int64) for what in words}
        for sender, sent in enumerate(all_sent):
            for what, to in sent.items():
                for receiver, count in to.items():
                    matrices[what][sender, receiver] += count
        return matrices


def written(what: str, group, sent_bytes: Sequence[int]) -> None:
    """Called by an exchange: what this rank has sent to each rank of the group."""
    if not _open:
        return
    import torch.distributed as dist

    receivers = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
    for ledger in _open:
        for receiver, count in zip(receivers, sent_bytes, strict=True):
            ledger.sent[what][receiver] += count


class Hops(NamedTuple):
    """Bytes by the link they took, and those that took none."""

    across: int  # from node to node
    within: int  # between ranks of one node
    kept: int


def by_hop(bytes_RR: np.ndarray, grid: Grid) -> Hops:
    """Sums of a matrix, or of the sum of several."""
    ranks = np.arange(grid.ranks)
    same_node = grid.node(ranks)[:, None] == grid.node(ranks)[None, :]
    kept = int(bytes_RR.trace())
    return Hops(int(bytes_RR[~same_node].sum()), int(bytes_RR[same_node].sum()) - kept, kept)


def row_bytes(width: int, wire: str, dtype: str = "float32") -> tuple[int, int]:
    """Bytes of one row on the wire, and of its scales: D + 4 ceil(D / 128) in FP8, 2 D in BF16, as many as it has as it is."""
    if wire == "fp8":
        return width, 4 * -(-width // 128)
    return width * (2 if wire == "bf16" else ELEMENT[dtype]), 0


def copies(experts_of: Sequence[np.ndarray], experts: int, grid: Grid, dispatch: str) -> list[np.ndarray]:
    """Rows that travel from each rank to each, [R, R] for each hop, from the routing alone.

    experts_of: for each rank [T, K], the experts of its tokens, -1 for a dropped pair. Let r be a token's rank, and let
    the kept experts of the token be on the ranks q, with repetitions:

      pair   one copy from r to each q
      rank   one copy from r to each different q
      node   first one copy from r to the rank of r's index on each different node of a q; then from there one copy to each
             different q of that node
    """
    if dispatch not in DISPATCHES:
        raise ValueError(f"there is no dispatch {dispatch!r}; there are: {', '.join(DISPATCHES)}")
    each = grid.experts_each(experts)
    hops = [np.zeros((grid.ranks, grid.ranks), dtype=np.int64) for _ in range(1 + (dispatch == "node"))]
    for rank, experts_TK in enumerate(experts_of):
        token, slot = np.nonzero(experts_TK >= 0)
        goal = experts_TK[token, slot] // each
        if dispatch == "pair":
            hops[0][rank] += np.bincount(goal, minlength=grid.ranks)
            continue
        visits = np.unique(np.stack([token, goal]), axis=1)
        if dispatch == "rank":
            hops[0][rank] += np.bincount(visits[1], minlength=grid.ranks)
            continue
        _, node = np.unique(np.stack([token, grid.node(goal)]), axis=1)
        hops[0][rank] += np.bincount(node * grid.per_node + grid.index(rank), minlength=grid.ranks)
        relays = grid.node(visits[1]) * grid.per_node + grid.index(rank)
        np.add.at(hops[1], (relays, visits[1]), 1)
    return hops


def expected(
    experts_of: Sequence[np.ndarray],
    experts: int,
    grid: Grid,
    width: int,
    dispatch: str = "pair",
    wire: str = "same",
    wire_back: str = "same",
    dtype: str = "float32",
    backward: bool = False,
) -> dict[str, np.ndarray]:
    """The ledger of one layer, calculated: what `Ledger.gathered` must say, to the byte.

    With c[r, q] the copies of a hop, summed over the hops:

      dispatch   c * row bytes, and c * bytes of scales
      experts    c * 4 K, their numbers; with a row a pair K is 1
      weights    c * 4 K, their weights
      combine    c transposed * row bytes of the way back: each copy is answered by one row
      counts     8 bytes to each rank of the hop's group

    `backward` adds the gradients, each the other way: those of the dispatch travel as the combine does, and those of the
    combine as the dispatch does. Arguments are those of `copies`, and of `ExpertParallelMoE`.
    """
    count = sum(copies(experts_of, experts, grid, dispatch))
    k, weight = 1 if dispatch == "pair" else experts_of[0].shape[1], max(WEIGHT, ELEMENT[dtype])
    (out, out_scales), (back, back_scales) = (row_bytes(width, name, dtype) for name in (wire, wire_back))
    told = {"dispatch": count * out, "experts": count * EXPERT * k, "weights": count * weight * k}
    told |= {"combine": count.T * back, "counts": _counts(grid, dispatch)}
    told |= {"dispatch, scales": count * out_scales, "combine, scales": count.T * back_scales}
    if backward:
        told |= {"dispatch, gradient": count.T * back, "dispatch, gradient, scales": count.T * back_scales}
        told |= {"combine, gradient": count * out, "combine, gradient, scales": count * out_scales}
        told |= {"weights, gradient": count.T * weight * k}
    formats = {"dispatch": wire, "dispatch, gradient": wire_back, "combine": wire_back, "combine, gradient": wire}
    unscaled = {f"{what}, scales" for what, format in formats.items() if format != "fp8"}
    return {what: bytes_RR for what, bytes_RR in told.items() if what not in unscaled}


def _counts(grid: Grid, dispatch: str) -> np.ndarray:
    counts_RR = np.zeros((grid.ranks, grid.ranks), dtype=np.int64)
    for rank in range(grid.ranks):
        groups = [grid.across(rank), grid.within(rank)] if dispatch == "node" else [range(grid.ranks)]
        for group in groups:
            counts_RR[rank, list(group)] += COUNT
    return counts_RR
