"""How many nodes and GPUs a token is sent to: the expected number of distinct ones among its experts.

Each token's experts are drawn evenly and without regard to other tokens. Without a limit the number is a closed form, by
inclusion and exclusion. With one (V3 report, section 2.1.2: the experts stand in groups, only the best few groups may be
chosen from) it depends on how groups are ranked: where the best expert of each ranks it, and groups are nodes, there is a
closed form too; in general it is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the model's package imports torch
    from course.model.config import ModelConfig

SAMPLES = 20_000  # tokens; a mean of numbers below 8 is then within 0.02 in nearly all cases


def distinct(parts: int, experts: int, top_k: int, most: int | None = None) -> float:
    """Expected number of parts, of equal size, in which at least one of `top_k` different experts lies; `most`: the mean of
    the smaller of that number and `most`.

    The latter is what a limit to `most` parts leaves if the parts are ranked by their best expert: going down the experts by
    score, the first `most` parts that one meets are the ones that may be chosen from.
    Raises: ValueError where the parts are not equal.
    """
    if experts % parts:
        raise ValueError(f"{experts} experts do not make {parts} equal parts")
    each, ways = experts // parts, comb(experts, top_k)
    if most is None:
        return parts * (1 - comb(experts - each, top_k) / ways)
    chances = []  # of meeting just d parts
    for d in range(1, parts + 1):
        onto = sum((-1) ** (d - j) * comb(d, j) * comb(j * each, top_k) for j in range(1, d + 1))
        chances.append(comb(parts, d) * onto / ways)
    return sum(chance * min(most, d) for d, chance in enumerate(chances, start=1))


@dataclass(frozen=True)
class Reach:
    """What a token's experts lie on, in the mean: nodes and GPUs, its own among them where it has an expert there."""

    nodes: float
    gpus: float


@dataclass(frozen=True)
class Routing:
    """experts: places for them, copies included, over all `ranks` GPUs. groups, top_groups, group_best: as in ModelConfig."""

    experts: int
    top_k: int
    ranks: int
    gpus_a_node: int = 8
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2

    def __post_init__(self):
        for many, what in ((self.ranks, "GPUs"), (self.groups, "groups"), (self.nodes, "nodes")):
            if self.experts % many:
                raise ValueError(f"{self.experts} experts do not go evenly over {many} {what}")

    @classmethod
    def of(cls, config: ModelConfig, ranks: int, gpus_a_node: int = 8, slots: int | None = None) -> Routing:
        """Of a model's experts over `ranks` GPUs. slots: places on one GPU, where some experts stand twice; which ones is not
        known, so that the model's limit to groups does not hold then."""
        experts = slots * ranks if slots else config.experts
        limit = {} if slots and experts != config.experts else _limit(config)
        return cls(experts, config.top_k, ranks, gpus_a_node, **limit)

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.gpus_a_node)

    @property
    def limited(self) -> bool:
        return self.top_groups < self.groups

    @cached_property
    def reach(self) -> Reach:
        """Exact without a limit; else sampled, of `SAMPLES` tokens."""
        if not self.limited:
            return Reach(*(distinct(parts, self.experts, self.top_k) for parts in (self.nodes, self.ranks)))
        chosen = self._sampled()
        return Reach(*(_met(chosen, parts, self.experts) for parts in (self.nodes, self.ranks)))

    def _sampled(self) -> np.ndarray:
        """Chosen experts, (SAMPLES, top_k), of scores drawn evenly with a fixed seed."""
        scores = np.random.default_rng(0).random((SAMPLES, self.groups, self.experts // self.groups), dtype=np.float32)
        best = np.sort(scores, axis=-1)[..., -self.group_best :].sum(axis=-1)
        shut = np.argsort(-best, axis=-1)[:, self.top_groups :]
        np.put_along_axis(scores, shut[..., None], -1.0, axis=1)
        return np.argpartition(-scores.reshape(SAMPLES, -1), self.top_k, axis=-1)[:, : self.top_k]


def _limit(config: ModelConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in ("groups", "top_groups", "group_best")}


def _met(chosen: np.ndarray, parts: int, experts: int) -> float:
    met = np.zeros((len(chosen), parts), dtype=bool)
    np.put_along_axis(met, chosen * parts // experts, True, axis=1)
    return float(met.sum(axis=1).mean())
