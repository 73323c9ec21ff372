"""Products in FP8: DeepGEMM prints TFLOP/s and GB/s, and one follows from the other."""

from functools import partial

from course.hardware.reproduce.row import Row

SOURCE = "deepseek-ai/DeepGEMM, README.md of February 2025, H800 SXM5"
DENSE = (  # m, n, k, TFLOP/s, GB/s
    (64, 2112, 7168, 206, 1688),
    (64, 24576, 1536, 289, 2455),
    (64, 32768, 512, 219, 2143),
    (64, 7168, 16384, 336, 2668),
    (64, 4096, 7168, 287, 2320),
    (64, 7168, 2048, 295, 2470),
    (128, 2112, 7168, 352, 1509),
    (128, 24576, 1536, 535, 2448),
    (128, 32768, 512, 358, 2103),
    (128, 7168, 16384, 645, 2604),
    (128, 4096, 7168, 533, 2221),
    (128, 7168, 2048, 510, 2277),
    (4096, 2112, 7168, 1058, 527),
    (4096, 24576, 1536, 990, 786),
    (4096, 32768, 512, 590, 1232),
    (4096, 7168, 16384, 1358, 343),
    (4096, 4096, 7168, 1304, 500),
    (4096, 7168, 2048, 1025, 697),
)
GROUPED = (  # groups, m of each, n, k, TFLOP/s, GB/s
    (4, 8192, 4096, 7168, 1297, 418),
    (4, 8192, 7168, 2048, 1099, 681),
    (8, 4096, 4096, 7168, 1288, 494),
    (8, 4096, 7168, 2048, 1093, 743),
    (1, 1024, 4096, 7168, 1233, 924),
    (1, 1024, 7168, 2048, 925, 968),
    (2, 512, 4096, 7168, 1040, 1288),
    (2, 512, 7168, 2048, 916, 1405),
    (4, 256, 4096, 7168, 932, 2064),
    (4, 256, 7168, 2048, 815, 2047),
)


def bandwidth(groups: int, m: int, n: int, k: int, tflops: float) -> float:
    """GB/s of a product at so many TFLOP/s: both operands read once in FP8, the result written once in BF16."""
    seconds = 2 * groups * m * n * k / (tflops * 1e12)
    return groups * (m * k + n * k + 2 * m * n) / seconds / 1e9


ROWS = tuple(
    Row(
        f"deepgemm.{g}x{m}x{n}x{k}",
        f"DeepGEMM: GB/s of {g} x [{m}, {k}] [{k}, {n}] at {tflops} TFLOP/s",
        gbs,
        "GB/s",
        SOURCE,
        "definition",
        partial(bandwidth, g, m, n, k, tflops),
        0.5 + 0.5 * gbs / tflops,  # half a digit of each, both printed without decimals
    )
    for g, m, n, k, tflops, gbs in (*((1, *row) for row in DENSE), *GROUPED)
)
