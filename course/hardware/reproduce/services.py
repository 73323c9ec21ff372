"""A day of DeepSeek's service in February 2025: nodes, dollars, tokens."""

from course.hardware.reproduce.row import Row

DAY6 = "deepseek-ai/open-infra-index, 202502OpenSourceWeek, day 6"
INPUT, HIT, OUTPUT = 608e9, 342e9, 168e9  # tokens a day
PREFILL, DECODE = 73_700, 14_800  # tokens/s of a node; prefill counts hits
NODES, GPUS = 226.75, 8
PRICE_HIT, PRICE_MISS, PRICE_OUTPUT = 0.14e-6, 0.55e-6, 2.19e-6  # dollars a token
DAY = 86_400


def fleet() -> float:
    """Nodes that the day's tokens need, at the speed of a node."""
    return INPUT / DAY / PREFILL + OUTPUT / DAY / DECODE


def cost() -> float:
    return NODES * GPUS * 24 * 2


def revenue() -> float:
    return HIT * PRICE_HIT + (INPUT - HIT) * PRICE_MISS + OUTPUT * PRICE_OUTPUT


_ROUNDED = 0.5e9 * (PRICE_MISS - PRICE_HIT + PRICE_MISS + PRICE_OUTPUT)  # tokens are printed in whole billions
ROWS = (
    Row(
        "day.nodes",
        "nodes in use, on average",
        NODES,
        "",
        DAY6,
        "model",
        fleet,
        0.01,
        "from the tokens and a node's speed: 95 for prefill, 131 for decode",
    ),
    Row("day.cost", "rent of the nodes", 87_072, "$", DAY6, "definition", cost, 1),
    Row("day.hits", "input tokens found in the cache", 56.3, "%", DAY6, "definition", lambda: 100 * HIT / INPUT, 0.1),
    Row(
        "day.revenue",
        "revenue if every token were paid at R1's price",
        562_027,
        "$",
        DAY6,
        "definition",
        revenue,
        _ROUNDED,
    ),
    Row(
        "day.margin",
        "that revenue above cost, over cost",
        545,
        "%",
        DAY6,
        "definition",
        lambda: 100 * (562_027 - cost()) / cost(),
        1,
        "list price times tokens: free tiers, V3's lower price and night discounts are left out, as the source says",
    ),
)
