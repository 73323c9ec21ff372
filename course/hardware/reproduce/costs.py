"""GPU hours, days, dollars and utilisation of DeepSeek-V3's training, and the prices it is compared by."""

from functools import lru_cache

from course.hardware.gpus import H800
from course.hardware.reproduce.row import Row
from course.model.config import ModelConfig
from course.model.count import train_flops_per_token

REPORT = "DeepSeek-V3 Technical Report (arXiv 2412.19437)"
ISCA = "Insights into DeepSeek-V3 (arXiv 2505.09343), table 4"
V2 = "DeepSeek-V2 report (arXiv 2405.04434), section 3.2.3"
PRICES = "api-docs.deepseek.com, prices of February 2025; OpenAI's list prices (second-hand)"
GPUS, DOLLARS_AN_HOUR = 2048, 2.0
HOURS = {"pre-training": 2_664_000, "context extension": 119_000, "post-training": 5_000}
SEQUENCES, CONTEXT, STEP = 15_360, 4096, 19.926  # of a batch; tokens; seconds
TOKENS = 14.8e12


@lru_cache
def flops_a_token(causal: bool) -> float:
    """Of training. Not causal: every query is counted with all keys, as if none were masked."""
    config = ModelConfig.preset("deepseek-v3")
    seen = (CONTEXT + 1) / 2
    masked = CONTEXT - seen
    attention = 2 * config.heads * (config.head_width + config.value_width) * masked
    return train_flops_per_token(config, CONTEXT) + (0 if causal else 3 * config.layers * attention)


def tflops(causal: bool) -> float:
    """TFLOP/s of a GPU, from a step's time."""
    return SEQUENCES * CONTEXT * flops_a_token(causal) / STEP / GPUS / 1e12


def mfu(causal: bool) -> float:
    """Percent of the BF16 peak, by which the source counts."""
    return 100 * tflops(causal) * 1e12 / H800.roof("bf16").value


ROWS = (
    Row(
        "cost.hours",
        "V3: GPU hours in all",
        2_788_000,
        "h",
        f"{REPORT}, table 1",
        "definition",
        lambda: sum(HOURS.values()),
        1000,
    ),
    Row(
        "cost.dollars",
        "V3: rent of its GPU hours",
        5.576e6,
        "$",
        f"{REPORT}, table 1",
        "definition",
        lambda: sum(HOURS.values()) * DOLLARS_AN_HOUR,
        1000,
    ),
    Row(
        "cost.pretraining",
        "V3: rent of pre-training",
        5.328e6,
        "$",
        f"{REPORT}, table 1",
        "definition",
        lambda: HOURS["pre-training"] * DOLLARS_AN_HOUR,
        1000,
    ),
    Row(
        "cost.days_a_trillion",
        "V3: days for a trillion tokens",
        3.7,
        "d",
        f"{REPORT}, section 1",
        "definition",
        lambda: 180_000 / GPUS / 24,
        0.1,
    ),
    Row(
        "cost.hours_a_trillion",
        "V3: GPU hours for a trillion tokens",
        180_000,
        "h",
        f"{REPORT}, section 1",
        "definition",
        lambda: HOURS["pre-training"] / (TOKENS / 1e12),
        1000,
    ),
    Row(
        "cost.saving_v2",
        "V2 against the dense 67B: training saved",
        42.5,
        "%",
        f"{V2} and abstract",
        "definition",
        lambda: 100 * (1 - 172.8 / 300.6),
        0.1,
    ),
    Row(
        "cost.hours_llama",
        "Llama 3.1 405B against V3: GPU hours",
        11.06,
        "x",
        "30.84 M H100 hours (meta-llama, model card) over 2.788 M",
        "definition",
        lambda: 30.84e6 / sum(HOURS.values()),
        0.01,
    ),
    Row(
        "training.tokens_a_day",
        "V3: tokens a day from a step of 19.926 s",
        272.8,
        "G",
        ISCA,
        "definition",
        lambda: SEQUENCES * CONTEXT / STEP * 86_400 / 1e9,
        0.1,
    ),
    Row(
        "training.parts",
        "V3: the parts of a step add up",
        STEP,
        "s",
        ISCA,
        "definition",
        lambda: 1.13 + 2.06 + 1.99 + 0.48 + 13.95 + 0.29,
        0.06,
        "printed to 0.01 s each: six roundings; a tautology, kept because it is published",
    ),
    Row(
        "training.days",
        "V3: days for 14.8 T tokens, from GPU hours",
        54.2,
        "d",
        f"{REPORT}: 2,664 K hours on 2,048 GPUs",
        "model",
        lambda: TOKENS / (SEQUENCES * CONTEXT / STEP) / 86_400,
        0.1,
        "from the step's time and the batch at its end; the batch was smaller for the first 469 G tokens",
    ),
    Row(
        "flops.deepseek-v3.full",
        "deepseek-v3: training a token, no mask",
        281,
        "GFLOP",
        "implied by table 4's 432 TFLOP/s",
        "model",
        lambda: flops_a_token(False) / 1e9,
        1,
    ),
    Row(
        "training.tflops", "V3: TFLOP/s a GPU, attention causal", 385, "TFLOP/s", ISCA, "model", lambda: tflops(True), 1
    ),
    Row("training.tflops_full", "V3: TFLOP/s a GPU, no mask", 432, "TFLOP/s", ISCA, "model", lambda: tflops(False), 1),
    Row(
        "training.mfu",
        "V3: MFU, attention causal",
        38.94,
        "%",
        ISCA,
        "model",
        lambda: mfu(True),
        0.01,
        "of the BF16 peak, though most products are FP8",
    ),
    Row(
        "training.mfu_full",
        "V3: MFU, no mask",
        43.73,
        "%",
        ISCA,
        "model",
        lambda: mfu(False),
        0.01,
        "of the BF16 peak, though most products are FP8",
    ),
    Row("price.r1_o1_in", "o1 against R1: price of input", 27.3, "x", PRICES, "definition", lambda: 15 / 0.55, 0.1),
    Row("price.r1_o1_out", "o1 against R1: price of output", 27.4, "x", PRICES, "definition", lambda: 60 / 2.19, 0.1),
)
