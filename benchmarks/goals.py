"""What the kernels are to reach on a GPU, with where each figure comes from; set before any run on one.

A share is of a roof that was measured in the same run: the product's, the copy's, or whichever binds.
"""

from dataclasses import asdict, dataclass

from moe_kernels import BOTH, FORWARD


@dataclass(frozen=True)
class Goal:
    share: float
    of: str  # which of a row's shares
    source: str


OWN = "our own, set before any run on a GPU"
LIGER = (
    "the authors of Liger-Kernel report, for an H100 and this shape, up to 501 TFLOP/s forward and 413 both ways (pull "
)
LIGER += "request 1294 there, 2026-07-08): 51 and 42 % of the data sheet"
FLASH = "FlashMLA's README: up to 660 TFLOP/s on an H800, 67 % of the data sheet"
GEMM = "DeepGEMM's README, news of 2025-04-18: up to 1,550 TFLOP/s on an H800, 78 % of the data sheet, not in Triton"
GOALS = {
    **dict.fromkeys(("rmsnorm", "swiglu", "rope", "cross_entropy"), Goal(0.85, "share_of_roof", OWN)),
    "matmul": Goal(0.75, "share_of_roof", OWN),
    "fp8_gemm": Goal(0.55, "share_of_roof", f"{OWN}; {GEMM}"),
    "mla_decode": Goal(0.70, "share_of_roof", f"{OWN}; {FLASH}"),
}
LAYER_GOALS = {
    ("qwen3-30b/32768", FORWARD): Goal(0.48, "share_of_product", f"{OWN}; {LIGER}"),
    ("qwen3-30b/32768", BOTH): Goal(0.35, "share_of_product", f"{OWN}; {LIGER}"),
    ("qwen3-30b/128", FORWARD): Goal(0.61, "share_of_copy", f"{OWN}; no published figure was found"),
}


def judged(row: dict, goal: Goal | None, on_gpu: bool) -> dict:
    """The row with its goal, and whether ours met it: None where no GPU measured, or nothing was set."""
    about = {"goal": asdict(goal) if goal else None}
    if goal and on_gpu and row["seconds"]:
        about["met"] = row[goal.of]["ours"] >= goal.share
    return row | about
