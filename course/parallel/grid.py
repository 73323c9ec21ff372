"""Where ranks and experts are: ranks on nodes, and a node's ranks by their index in it.

Rank r is on node r // (ranks a node), with index r % (ranks a node), as torchrun numbers them; a node is a machine whose GPUs
are joined by NVLink. Rank r holds the experts r * E / R and following, so with as many groups of experts as nodes a group is a
node, which is what node-limited routing needs (DeepSeek-V3 report, section 2.1.2).
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    ranks: int
    nodes: int = 1

    def __post_init__(self):
        if self.nodes < 1 or self.ranks < 1 or self.ranks % self.nodes:
            raise ValueError(f"{self.ranks} ranks do not divide among {self.nodes} nodes")

    @classmethod
    def from_environment(cls) -> "Grid":
        """What torchrun or `run_ranks` told this process; one rank where nobody told anything."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(ranks, ranks // int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))

    @property
    def per_node(self) -> int:
        return self.ranks // self.nodes

    def node(self, rank):
        """Of one rank, or of an array or tensor of ranks, as the other two."""
        return rank // self.per_node

    def index(self, rank):
        return rank % self.per_node

    def experts_each(self, experts: int) -> int:
        """Experts a rank. Raises: ValueError when they do not divide among the ranks."""
        if experts % self.ranks:
            raise ValueError(f"{experts} experts do not divide among {self.ranks} ranks")
        return experts // self.ranks

    def across(self, rank: int) -> list[int]:
        """The ranks with the same index, one a node, in order of node."""
        return list(range(self.index(rank), self.ranks, self.per_node))

    def within(self, rank: int) -> list[int]:
        """The ranks of its node, in order."""
        first = self.node(rank) * self.per_node
        return list(range(first, first + self.per_node))
