"""Tokens to the ranks that hold their experts, and what these say back home: in one hop or two.

  pair   a row for each (token, expert) pair: the all-to-all as one first writes it
  rank   a row for each (token, rank): two experts on one rank share a copy
  node   a row for each (token, node), to the rank of the same index there, which hands copies on to the ranks of its node
         (DeepSeek-V3 report, section 3.2.2: InfiniBand first, then NVLink)

With every copy go the numbers of the experts that it is meant for and their weights, so each rank adds up what its own
experts say before it answers, and so does the relay for its node: one row comes back for each row that went out.

Shapes: R rows, D width, K experts a row, G ranks of a group, C copies sent, A rows that arrive. An expert's number is -1 where
the pair was dropped or goes elsewhere.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from course.parallel.exchange import exchange, exchange_counts
from course.parallel.grid import Grid
from course.parallel.ledger import DISPATCHES


@dataclass(frozen=True)
class Links:
    """This rank's process groups: all ranks, those with its index on every node, and those of its node."""

    grid: Grid
    rank: int
    everyone: dist.ProcessGroup
    across: dist.ProcessGroup
    within: dist.ProcessGroup

    @classmethod
    def join(cls, grid: Grid) -> "Links":
        """Make the groups; all ranks call this together. Raises: ValueError when the grid has another number of ranks."""
        if grid.ranks != dist.get_world_size():
            raise ValueError(f"a grid of {grid.ranks} ranks does not fit {dist.get_world_size()} processes")
        rank = dist.get_rank()
        groups = []
        for of in (grid.across, grid.within):
            members = sorted({tuple(of(other)) for other in range(grid.ranks)})
            made = {ranks: dist.new_group(list(ranks)) for ranks in members}
            groups.append(made[tuple(of(rank))])
        return cls(grid, rank, dist.group.WORLD, *groups)


class Visit(NamedTuple):
    """Rows, and the experts that they are for: sent, or arrived."""

    rows_RD: Tensor
    experts_RK: Tensor  # int32, numbered over all ranks
    weights_RK: Tensor


class Leg:
    """One all-to-all of copies, and the way back."""

    def __init__(self, goal_RK: Tensor, group: dist.ProcessGroup):
        """goal_RK, int64: the rank in the group that each pair goes to, -1 for none."""
        self.group, self.goal_RK = group, goal_RK
        G = dist.get_world_size(group)
        wanted_RG = goal_RK.new_zeros(len(goal_RK), G + 1).scatter(1, goal_RK % (G + 1), 1)[:, :G]
        self.goal_C, self.row_C = wanted_RG.T.nonzero(as_tuple=True)  # sorted by goal, then by row
        sent_G = wanted_RG.sum(dim=0)
        self.sent, self.received = torch.stack([sent_G, exchange_counts(sent_G, group)]).tolist()

    def out(self, visit: Visit, wire: str, wire_back: str) -> Visit:
        meant_CK = self.goal_RK.index_select(0, self.row_C) == self.goal_C[:, None]
        rows_CD, experts_CK, weights_CK = (each.index_select(0, self.row_C) for each in visit)
        counts = self.sent, self.received, self.group
        return Visit(
            exchange(rows_CD, *counts, wire, wire_back, what="dispatch"),
            exchange(experts_CK.where(meant_CK, -1), *counts, what="experts"),
            exchange(weights_CK.where(meant_CK, 0.0), *counts, what="weights"),
        )

    def home(self, rows_AD: Tensor, wire: str, wire_back: str) -> Tensor:
        """Each row's sum over its copies' answers, [R, D]."""
        rows_CD = exchange(rows_AD, self.received, self.sent, self.group, wire_back, wire, what="combine")
        return rows_CD.new_zeros(len(self.goal_RK), rows_CD.shape[1]).index_add(0, self.row_C, rows_CD)


class Dispatch:
    """Out on one leg or two, and home. `wire` is the format out, of rows and of the gradient of what comes home; `wire_back`
    the format home, of answers and of the rows' gradient."""

    def __init__(self, links: Links, experts: int, dispatch: str = "pair", wire: str = "same", wire_back: str = "same"):
        if dispatch not in DISPATCHES:
            raise ValueError(f"there is no dispatch {dispatch!r}; there are: {', '.join(DISPATCHES)}")
        self.links, self.dispatch, self.wires = links, dispatch, (wire, wire_back)
        self.each = links.grid.experts_each(experts)
        self.legs: list[Leg] = []

    def out(self, visit: Visit) -> Visit:
        """What arrives here; the experts' numbers, -1 apart, are this rank's own."""
        grid, links = self.links.grid, self.links
        self.tokens, self.top_k = visit.experts_RK.shape
        if self.dispatch == "pair":
            rows_RD, experts_RK, weights_RK = visit
            each_RD = rows_RD.repeat_interleave(self.top_k, dim=0)
            visit = Visit(each_RD, experts_RK.reshape(-1, 1), weights_RK.reshape(-1, 1))
        if self.dispatch == "node":
            hops = (grid.node, links.across), (grid.index, links.within)
        else:
            hops = ((lambda rank: rank, links.everyone),)
        for goal, group in hops:
            rank_RK = visit.experts_RK.long() // self.each
            self.legs.append(Leg(goal(rank_RK).where(visit.experts_RK >= 0, -1), group))
            visit = self.legs[-1].out(visit, *self.wires)
        return visit

    def home(self, rows_AD: Tensor) -> Tensor:
        """Each token's sum over its experts' weighted answers. rows_AD: an answer for each row that arrived."""
        for leg in reversed(self.legs):
            rows_AD = leg.home(rows_AD, *self.wires)
        return rows_AD.unflatten(0, (self.tokens, self.top_k)).sum(dim=1) if self.dispatch == "pair" else rows_AD
