"""Links between GPUs, and the time of an expert-parallel exchange over them: dispatch and combine.

Two kinds of kernels (deepseek-ai/DeepEP). The normal ones send a token once to each node that it has experts on, over
InfiniBand to the GPU in the same place there, which passes it on over NVLink to each GPU that needs it; both go on at once:

    time = latency + max(bytes over InfiniBand / its rate, bytes over NVLink / its rate)

The low-latency ones send a token straight to each of its experts, as often as it has some. DeepEP published its figures
twice, and the two contradict each other; they are versions here. "2025" is the first release, of February 2025: low
latency over InfiniBand alone, also within a node. "final" is what the archived documentation of version 1 says: normal
kernels up to 30 % faster, low latency within a node over NVLink. Its low-latency rows for 128 and 256 GPUs are those of
the first release, figure for figure: nothing is fitted on them, and how far they lie off is the error beyond 64 GPUs.

DeepEP's bandwidth counts a token's own node and its own GPU as if it were sent there (tests/test_internode.py, where all
nodes of a token are counted); here they are taken off, so that the rates below are what passes the wires.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import hypot

import numpy as np

from course.hardware.curves import least_squares
from course.hardware.estimate import Part
from course.hardware.gpus import B200, GPU, H100, H200, H800, PROFILE, Figure
from course.hardware.layer_parts import ACTIVATION
from course.hardware.routing import Routing

INSIGHTS = "Insights into DeepSeek-V3 (arXiv 2505.09343)"
DEEPEP = {
    "2025": "deepseek-ai/DeepEP@88b1622 (February 2025), README.md: H800, CX7 400 Gb/s",
    "final": "deepseek-ai/DeepEP, docs/legacy.md: H800, CX7 400 Gb/s",
}
TOKENS, LOW_TOKENS, WIDTH, EXPERTS, TOP_K = 4096, 128, 7168, 256, 8  # of those tables; the top 4 of a group a node
NORMAL = {  # GPUs: GB/s of dispatch in FP8 and combine in BF16, of NVLink for 8 GPUs and InfiniBand for more
    "2025": {8: (153, 158), 16: (43, 43), 32: (44, 47), 64: (46, 45)},
    "final": {8: (153, 158), 16: (43, 43), 32: (58, 57), 64: (51, 50)},
}
LOW_LATENCY = {  # GPUs: us of dispatch in FP8 and combine in BF16
    "2025": {8: (163, 318), 16: (173, 329), 32: (182, 350), 64: (186, 353), 128: (192, 369), 256: (194, 360)},
    "final": {8: (77, 114), 16: (118, 195), 32: (155, 273), 64: (173, 314)},
}
PROFILE_TRACE = PROFILE.split(",")[0] + ", train.json"
PROFILED = {  # s, the mean of 4 dispatches of each of two variants, and of 8 combines, 64 GPUs, with arithmetic beside them
    "dispatch": (
        Figure(3405e-6, f"{PROFILE_TRACE}: computed from its kernels"),
        Figure(4346e-6, f"{PROFILE_TRACE}: the same"),
    ),
    "combine": (Figure(6181e-6, f"{PROFILE_TRACE}: the same"),),
}
HEADER = 16  # bytes a token in a low-latency dispatch (DeepEP, tests/test_low_latency.py)
DIRECTIONS = ("dispatch", "combine")
COMMUNICATION_SMS = Figure(20, "DeepSeek-V3 report, section 3.2.2: of 132")
OTHER_NODE = Figure(0.1, "assumed: other links reach the same share of their bandwidth", "unverified")  # relative error


@dataclass(frozen=True)
class Link:
    """One way, of one GPU: latency in s, bandwidth by the data sheet and as achieved, in bytes/s."""

    latency: Figure
    bandwidth: Figure
    achieved: Figure


@dataclass(frozen=True)
class Node:
    """GPUs that reach each other over NVLink, and the network from each of them to other nodes."""

    name: str
    gpus: int
    nvlink: Link
    network: Link


def _inside(gpu: GPU) -> Link:
    """NVLink of a GPU for which no achieved rate is published: the H800's latency and share."""
    share = H800_NODE.nvlink.achieved.value / H800_NODE.nvlink.bandwidth.value
    one_way = Figure(gpu.nvlink.value / 2, gpu.nvlink.source, gpu.nvlink.kind)
    achieved = Figure(share * one_way.value, "the H800's share of its own", "computed")
    return Link(H800_NODE.nvlink.latency, one_way, achieved)


def _second_hand(value: float, what: str) -> Figure:
    return Figure(value, f"{INSIGHTS}, {what}", "second-hand")


INFINIBAND = Link(
    latency=_second_hand(3.7e-6, "table 5: across leaves; 2.8 within one"),
    bandwidth=_second_hand(50e9, "section 4: 400 Gb/s a GPU"),
    achieved=_second_hand(40e9, "section 4"),
)
H800_NODE = Node(
    name="8 H800",
    gpus=8,
    nvlink=Link(
        latency=_second_hand(3.33e-6, "table 5"),
        bandwidth=_second_hand(200e9, "section 4: one way"),
        achieved=_second_hand(160e9, "section 4; V3 report, section 3.2.2"),
    ),
    network=INFINIBAND,
)
H100_NODE = Node("8 H100", 8, _inside(H100), INFINIBAND)  # with the H800's network, for comparison
H200_NODE = Node("8 H200", 8, _inside(H200), INFINIBAND)
B200_NODE = Node("8 B200", 8, _inside(B200), INFINIBAND)
GB200_NVL72 = Node("GB200 NVL72", 72, _inside(B200), INFINIBAND)  # 900 GB/s one way a GPU: Insights, section 2.3.2
NODES = {"h800": H800_NODE, "h100": H100_NODE, "h200": H200_NODE, "b200": B200_NODE, "gb200": GB200_NVL72}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in one direction of an exchange (combine: receives), by link."""

    network: float
    nvlink: float


def token_bytes(direction: str, width: int) -> float:
    """Of one token: FP8 with a scale of 4 bytes for 128 numbers in dispatch, BF16 in combine. Raises: ValueError."""
    if direction not in DIRECTIONS:
        raise ValueError(f"an exchange has dispatch and combine, and no {direction!r}")
    return width * ACTIVATION["fp8" if direction == "dispatch" else "bf16"]


def normal_traffic(direction: str, routing: Routing, tokens: float, width: int) -> Traffic:
    """In two hops. Of the nodes that a token reaches 1 / nodes is its own, where nothing passes the network; of the GPUs in a
    node that need it one in as many as there are is the one in the same place, which has it already."""
    each, reach = tokens * token_bytes(direction, width), routing.reach
    inside = min(routing.ranks, routing.gpus_a_node)
    return Traffic(each * reach.nodes * (1 - 1 / routing.nodes), each * reach.gpus * (1 - 1 / inside))


def low_latency_traffic(
    direction: str, ranks: int, tokens: float, top_k: int, width: int, gpus_a_node: int = 8, version: str = "final"
) -> Traffic:
    """A message for each expert of each token, straight to its GPU; evenly over GPUs, the sender's own for nothing."""
    header = HEADER if direction == "dispatch" else 0
    sent = tokens * top_k * (token_bytes(direction, width) + header)
    inside = min(ranks, gpus_a_node)
    if version == "2025":
        return Traffic(sent * (ranks - 1) / ranks, 0.0)
    return Traffic(sent * (ranks - inside) / ranks, sent * (inside - 1) / ranks)


@dataclass(frozen=True)
class Rates:
    """Rates fitted to published times, least squares of their logarithms: latency in s, network and nvlink in bytes/s.

    names: what is fitted, of these; latency: what it is held at otherwise.
    """

    source: str
    traffic: Sequence[Traffic]
    seconds: Sequence[float]
    names: tuple[str, ...]
    latency: float = 0.0

    @cached_property
    def fitted(self) -> dict[str, float]:
        return self._fit(range(len(self.seconds)))

    @cached_property
    def left_out(self) -> np.ndarray:
        """log(measured / predicted) of each time, with rates fitted to all the others."""
        every = range(len(self.seconds))
        rates = [self._fit([other for other in every if other != one]) for one in every]
        return np.array([np.log(self.seconds[i] / self.time(self.traffic[i], rates[i])) for i in every])

    @property
    def error(self) -> float:
        """Relative: four of five times, predicted from the others, are no further off."""
        return float(np.quantile(np.abs(self.left_out), 0.8, method="higher"))

    def time(self, traffic: Traffic, rates: dict[str, float] | None = None) -> float:
        """Seconds."""
        rates = rates or self.fitted
        wires = [sent / rates[name] for name, sent in vars(traffic).items() if sent]
        return rates.get("latency", self.latency) + max(wires, default=0.0)

    def _fit(self, rows: Sequence[int]) -> dict[str, float]:
        start = {"latency": 20e-6, "network": 40e9, "nvlink": 160e9}

        def off(logs: np.ndarray) -> np.ndarray:
            rates = dict(zip(self.names, np.exp(logs), strict=True))
            return np.array([np.log(self.time(self.traffic[i], rates) / self.seconds[i]) for i in rows])

        found = np.exp(least_squares(off, np.log([start[name] for name in self.names])))
        return dict(zip(self.names, map(float, found), strict=True))


def deepep_routing(ranks: int) -> Routing:
    """Of DeepEP's tables: a group is a node, ranked by its best expert, and 4 may be chosen from."""
    nodes = -(-ranks // 8)
    return Routing(EXPERTS, TOP_K, ranks, groups=nodes, top_groups=min(4, nodes), group_best=1)


def published_seconds(ranks: int, direction: str, version: str) -> float:
    """What the published bandwidth of the normal kernels says: bytes as DeepEP counts them, over it."""
    reach = deepep_routing(ranks).reach
    counted = reach.gpus if ranks == 8 else reach.nodes
    rate = NORMAL[version][ranks][DIRECTIONS.index(direction)] * 1e9
    return TOKENS * token_bytes(direction, WIDTH) * counted / rate


@lru_cache
def normal_rates(version: str = "final") -> Rates:
    """Of the normal kernels, on all rows of a version's table. The latency is that of the two links: at 4,096 tokens it does
    not show. Raises: KeyError for a version that does not exist."""
    pairs = [(ranks, direction) for ranks in NORMAL[version] for direction in DIRECTIONS]
    traffic = [normal_traffic(direction, deepep_routing(ranks), TOKENS, WIDTH) for ranks, direction in pairs]
    seconds = [published_seconds(ranks, direction, version) for ranks, direction in pairs]
    latency = H800_NODE.nvlink.latency.value + H800_NODE.network.latency.value
    return Rates(DEEPEP[version], traffic, seconds, ("network", "nvlink"), latency)


@lru_cache
def low_latency_rates(version: str = "final") -> Rates:
    """Of the low-latency kernels, on all rows of a version's table."""
    pairs = [(ranks, direction) for ranks in LOW_LATENCY[version] for direction in DIRECTIONS]
    traffic = [low_latency_traffic(d, ranks, LOW_TOKENS, TOP_K, WIDTH, version=version) for ranks, d in pairs]
    seconds = [LOW_LATENCY[version][ranks][DIRECTIONS.index(direction)] * 1e-6 for ranks, direction in pairs]
    names = ("latency", "network") if version == "2025" else ("latency", "network", "nvlink")
    return Rates(DEEPEP[version], traffic, seconds, names)


def normal_time(
    direction: str, routing: Routing, tokens: float, width: int, node: Node = H800_NODE, version: str = "final"
) -> Part:
    """Seconds of a normal dispatch or combine of `tokens` tokens on each GPU, nothing else running. 20 SMs are busy with it."""
    traffic = normal_traffic(direction, routing, tokens, width)
    return _part(direction, normal_rates, traffic, node, version)


def low_latency_time(
    direction: str,
    ranks: int,
    tokens: float,
    top_k: int,
    width: int,
    node: Node = H800_NODE,
    version: str = "final",
) -> Part:
    """Seconds of a low-latency dispatch or combine of `tokens` tokens on each GPU. No SM is busy while bytes are under way."""
    traffic = low_latency_traffic(direction, ranks, tokens, top_k, width, node.gpus, version)
    beyond = _beyond() if ranks > max(LOW_LATENCY[version]) else 0.0
    return _part(direction, low_latency_rates, traffic, node, version, beyond)


@lru_cache
def _beyond() -> float:
    """Relative: how far the first release's times for 128 and 256 GPUs lie from the final rates, four of five at most."""
    off = []
    for ranks in (128, 256):
        for direction, us in zip(DIRECTIONS, LOW_LATENCY["2025"][ranks], strict=True):
            traffic = low_latency_traffic(direction, ranks, LOW_TOKENS, TOP_K, WIDTH)
            off.append(abs(np.log(us * 1e-6 / low_latency_rates("final").time(traffic))))
    return float(np.quantile(off, 0.8, method="higher"))


def beside_compute(direction: str, version: str = "2025") -> Part:
    """How many times as long a normal exchange takes beside arithmetic: DeepSeek's profile of training over `normal_time`.

    The profile is of March 2025, so of the first release. Its exchanges are taken to be of 4,096 tokens on each GPU, as its
    README names one length of 4,096; a wait for other GPUs may be in its times. The error is that of the rates, and of
    dispatch half of the distance between its two variants.
    """
    routing = Routing(EXPERTS, TOP_K, 64, groups=8, top_groups=4)  # V3's
    alone = normal_time(direction, routing, TOKENS, WIDTH, version=version)
    seen = [figure.value for figure in PROFILED[direction]]
    times, spread = sum(seen) / len(seen) / alone.value, (max(seen) - min(seen)) / 2 / alone.value
    error = hypot(times * alone.error / alone.value, spread)
    return Part(f"{direction} beside arithmetic", times, error, PROFILE_TRACE)


def _part(
    direction: str,
    rates_of: Callable[[str], Rates],
    traffic: Traffic,
    node: Node,
    version: str,
    beyond: float = 0.0,
) -> Part:
    its = rates_of(version)
    faster = {
        name: getattr(node, name).bandwidth.value / getattr(H800_NODE, name).bandwidth.value
        for name in ("network", "nvlink")
    }
    rates = {name: rate * faster.get(name, 1.0) for name, rate in its.fitted.items()}
    seconds = its.time(traffic, rates)
    error = hypot(its.error, beyond, 0.0 if node is H800_NODE else OTHER_NODE.value)
    kind = rates_of.__name__.removesuffix("_rates").replace("_", "-")
    return Part(direction, seconds, seconds * error, f"DeepEP, {kind} kernels, {version}")


def compute_sms(gpu: GPU = H800, communicate: int = int(COMMUNICATION_SMS.value)) -> int:
    """SMs left for arithmetic while so many communicate: 112 of 132. Raises: ValueError for none left."""
    left = int(gpu.sms.value) - communicate
    if left <= 0:
        raise ValueError(f"{communicate} of {gpu.name}'s {int(gpu.sms.value)} SMs leave none to compute")
    return left
