"""Networks of 64-port switches, and how fast tokens could leave if only the network held them up."""

from functools import partial

from course.hardware.reproduce.row import Row

TABLE = "Insights into DeepSeek-V3 (arXiv 2505.09343), table 3"
SPEED = "Insights into DeepSeek-V3 (arXiv 2505.09343), section 2.3.2"
PORTS, PLANES = 64, 8


def two_layers(planes: int = 1) -> tuple[float, float, float]:
    """Endpoints, switches and links between switches of a fat tree of two layers: half of a leaf's ports go up."""
    leaves, spines = PORTS, PORTS // 2
    return planes * leaves * PORTS / 2, planes * (leaves + spines), planes * leaves * PORTS / 2


def three_layers() -> tuple[float, float, float]:
    endpoints = PORTS**3 / 4
    return endpoints, 5 * PORTS**2 / 4, 2 * endpoints


def slim_fly(q: int = 28) -> tuple[float, float, float]:
    """q: the size of its field; a switch has 3 q / 2 ports to switches and half as many to endpoints."""
    switches, inside = 2 * q * q, 3 * q // 2
    return switches * inside / 2, switches, switches * inside / 2


def dragonfly(groups: int = 511) -> tuple[float, float, float]:
    """A group has PORTS / 2 switches, all joined, each with a quarter of its ports to endpoints and one to other groups."""
    switches, each = PORTS // 2, PORTS // 4
    inside = switches * (switches - 1) / 2
    return groups * switches * each, groups * switches, groups * (inside + switches * each / 2)


TOPOLOGIES = {
    "fat tree, 2 layers": (two_layers, (2048, 96, 2048), 9, 4.39),
    "multi-plane fat tree": (partial(two_layers, PLANES), (16_384, 768, 16_384), 72, 4.39),
    "fat tree, 3 layers": (three_layers, (65_536, 5120, 131_072), 491, 7.5),
    "Slim Fly": (slim_fly, (32_928, 1568, 32_928), 146, 4.4),
    "Dragonfly": (dragonfly, (261_632, 16_352, 384_272), 1522, 5.8),
}
SIZED = ("Slim Fly", "Dragonfly")  # whose size, q or groups, is taken from their endpoints: those are no row


def microseconds(bandwidth: float, hidden: int = 7000, tokens: int = 32, experts: int = 9) -> float:
    """Dispatch in FP8 and combine in BF16 of a micro-batch, every expert's copy sent. bandwidth: bytes/s."""
    return (1 + 2) * tokens * experts * hidden / bandwidth * 1e6


def milliseconds_a_token(bandwidth: float) -> float:
    """61 layers, two micro-batches that take turns."""
    return 61 * 2 * microseconds(bandwidth) / 1e3


def _of(topology: str, place: int) -> float:
    return TOPOLOGIES[topology][0]()[place]


def _price(topology: str) -> float:
    _, counts, millions, _ = TOPOLOGIES[topology]
    return millions * 1e3 / counts[0]


IB, NVL72 = 50e9, 900e9
ROWS = (
    *(
        Row(
            f"network.{name}.{what}",
            f"{name}: {what}",
            published[place],
            "",
            TABLE,
            "definition",
            partial(_of, name, place),
        )
        for name, (_, published, _, _) in TOPOLOGIES.items()
        for place, what in enumerate(("endpoints", "switches", "links between switches"))
        if place or name not in SIZED
    ),
    *(
        Row(
            f"network.{name}.price",
            f"{name}: thousand dollars an endpoint",
            price,
            "k$",
            TABLE,
            "definition",
            partial(_price, name),
            0.1 if price != 4.39 else 0.01,
        )
        for name, (_, _, _, price) in TOPOLOGIES.items()
    ),
    Row(
        "speed.ib",
        "a micro-batch's dispatch and combine over InfiniBand",
        120.96,
        "us",
        SPEED,
        "definition",
        partial(microseconds, IB),
        0.01,
        "with a hidden width of 7,000; V3's 7,168 makes 123.86",
    ),
    Row(
        "speed.ib_layer",
        "a layer of two micro-batches over InfiniBand",
        241.92,
        "us",
        SPEED,
        "definition",
        lambda: 2 * microseconds(IB),
        0.01,
    ),
    Row(
        "speed.ib_token",
        "time for an output token over InfiniBand",
        14.76,
        "ms",
        SPEED,
        "definition",
        partial(milliseconds_a_token, IB),
        0.01,
    ),
    Row(
        "speed.ib_rate",
        "tokens/s of a user over InfiniBand",
        67,
        "1/s",
        SPEED,
        "definition",
        lambda: 1e3 / milliseconds_a_token(IB),
        1,
    ),
    Row(
        "speed.nvl",
        "a micro-batch's dispatch and combine over NVL72",
        6.72,
        "us",
        SPEED,
        "definition",
        partial(microseconds, NVL72),
        0.01,
    ),
    Row(
        "speed.nvl_token",
        "time for an output token over NVL72",
        0.82,
        "ms",
        SPEED,
        "definition",
        partial(milliseconds_a_token, NVL72),
        0.01,
    ),
    Row(
        "speed.nvl_rate",
        "tokens/s of a user over NVL72",
        1200,
        "1/s",
        SPEED,
        "definition",
        lambda: 1e3 / milliseconds_a_token(NVL72),
        100,
    ),
    Row(
        "speed.mtp",
        "gain by one token guessed ahead",
        1.8,
        "x",
        f"{SPEED}, and the V3 report, section 5.4.3",
        "model",
        lambda: 1 + 0.85,
        0.1,
        "1 + the lower end of the acceptance, 85 to 90 %; what guessing costs is left out",
    ),
)
