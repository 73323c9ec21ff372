"""Parameters, cache and FLOPs of models, from their configurations."""

from collections.abc import Callable
from functools import partial

from course.hardware.reproduce.row import Row
from course.model.config import ModelConfig
from course.model.count import active_parameters, kv_bytes_per_token, total_parameters, train_flops_per_token

V3 = "DeepSeek-V3 Technical Report (arXiv 2412.19437), section 4.2"
V2 = "DeepSeek-V2 report (arXiv 2405.04434)"
ISCA = "Insights into DeepSeek-V3 (arXiv 2505.09343), table"


def _count(of, preset: str, scale: float = 1.0) -> float:
    return of(ModelConfig.preset(preset)) / scale


def _inside(preset: str) -> float:
    """Active parameters without the table of input embeddings, of which a token reads one row."""
    config = ModelConfig.preset(preset)
    return active_parameters(config) - config.vocab * config.width


def _moe_16b() -> float:
    return _inside("deepseek-moe-16b")


def _thousands(numbers: int) -> float:
    return numbers / 1e3


def _sequence(parameters: Callable[[], float], layers: int, width: int, tokens: int = 4096) -> float:
    """TFLOP of a forward and a backward pass of a sequence, every query counted with every key."""
    return tokens * (6 * parameters() + 12 * layers * width * tokens) / 1e12


TOTALS = (
    ("deepseek-v3", 671e9, 1e9, V3),
    ("deepseek-v2", 236e9, 1e9, "DeepSeek-V2 report (arXiv 2405.04434), section 3.1.2"),
    ("deepseek-v2-lite", 15.7e9, 0.1e9, "DeepSeek-V2 report (arXiv 2405.04434), appendix B"),
    ("deepseek-moe-16b", 16.4e9, 0.1e9, "DeepSeekMoE (arXiv 2401.06066), table 3"),
    ("mixtral-8x7b", 46.7e9, 0.1e9, "Mixtral of Experts, announcement: 46.7B (second-hand)"),
    ("qwen3-30b-a3b", 30.5e9, 0.1e9, "Qwen3-30B-A3B, model card: 30.5B (unverified)"),
    ("qwen3-235b-a22b", 235e9, 1e9, "Qwen3-235B-A22B, NVIDIA NeMo model list (second-hand)"),
    ("kimi-k2", 1e12, 1e12, "MoonshotAI/Kimi-K2, README.md: 1T"),
    ("llama-3.1-405b", 405e9, 1e9, "Llama 3.1 405B, by its name"),
    ("qwen2.5-72b", 72.7e9, 0.1e9, "Qwen2.5-72B, model card: 72.7B (second-hand)"),
)
ACTIVE = (
    ("deepseek-v2", 21e9, 1e9, "DeepSeek-V2 report (arXiv 2405.04434), section 3.1.2", active_parameters),
    ("deepseek-moe-16b", 2.8e9, 0.1e9, "DeepSeekMoE (arXiv 2401.06066), table 3", active_parameters),
    ("mixtral-8x7b", 12.9e9, 0.1e9, "Mixtral of Experts, announcement: 12.9B (second-hand)", active_parameters),
    ("qwen3-235b-a22b", 22e9, 1e9, "Qwen3-235B-A22B, NVIDIA NeMo model list (second-hand)", active_parameters),
)
KV = (
    ("deepseek-v3", 70.272, f"{ISCA} 1"),
    ("qwen2.5-72b", 327.68, f"{ISCA} 1"),
    ("llama-3.1-405b", 516.096, f"{ISCA} 1"),
)
FLOPS = (
    ("deepseek-v3", 250, ""),
    ("deepseek-v2", 155, ""),
    ("llama-3.1-405b", 2448, "6 FLOPs a parameter without attention make 2,435"),
    ("qwen2.5-72b", 394, "the convention is not stated; 6 FLOPs for each of 70.0 B parameters alone make 420"),
)

ROWS = (
    *(
        Row(
            f"parameters.{name}",
            f"{name}: parameters",
            value,
            "",
            source,
            "definition",
            partial(_count, total_parameters, name),
            digit,
        )
        for name, value, digit, source in TOTALS
    ),
    *(
        Row(
            f"active.{name}",
            f"{name}: parameters a token meets",
            value,
            "",
            source,
            "definition",
            partial(_count, of, name),
            digit,
        )
        for name, value, digit, source, of in ACTIVE
    ),
    Row(
        "active.deepseek-v3",
        "deepseek-v3: parameters a token meets",
        36.7e9,
        "",
        "deepseek-ai/DeepSeek-V3, README_WEIGHTS.md",
        "definition",
        partial(_inside, "deepseek-v3"),
        0.1e9,
        "said to include embedding and head; with both it is 37.55 B, without the embedding 36.63 B, printed as 36.7",
    ),
    *(
        Row(
            f"kv.{name}",
            f"{name}: cache of a token",
            value,
            "kB",
            source,
            "definition",
            partial(_count, kv_bytes_per_token, name, 1e3),
            0.001,
        )
        for name, value, source in KV
    ),
    *(
        Row(
            f"flops.{name}",
            f"{name}: training a token",
            value,
            "GFLOP",
            f"{ISCA} 2",
            "model",
            partial(_count, train_flops_per_token, name, 1e9),
            1,
            reason,
        )
        for name, value, reason in FLOPS
    ),
    Row(
        "kv.times_qwen",
        "cache of a token: Qwen2.5-72B against V3",
        4.66,
        "x",
        f"{ISCA} 1",
        "definition",
        lambda: 327.68 / 70.272,
        0.01,
    ),
    Row(
        "kv.times_llama",
        "cache of a token: Llama 3.1 405B against V3",
        7.28,
        "x",
        f"{ISCA} 1",
        "definition",
        lambda: 516.096 / 70.272,
        0.01,
        "the table's own bytes make 7.34",
        contradicts=True,
    ),
    Row(
        "kv.groups",
        "MLA's cache, in groups of GQA",
        2.25,
        "",
        f"{V2}, section 2.1.4",
        "definition",
        lambda: (512 + 64) / (2 * 128),
        0.01,
    ),
    Row(
        "kv.saving",
        "V2 against the dense 67B: cache saved",
        93.3,
        "%",
        f"{V2}, abstract",
        "definition",
        lambda: 100 * (1 - (512 + 64) * 60 * 0.75 / (2 * 8 * 128 * 95 * 2)),
        0.1,
        "V2's in 6 bits (section 3.2.3), the 67B's 95 layers of 8 groups in 16 (arXiv 2401.02954, table 2)",
    ),
    *(
        Row(
            f"kv.ablation_{name}",
            f"cache of a token, numbers: {name.replace('_', ' ')}",
            value,
            "K",
            f"{V2}, table 9",
            "definition",
            partial(_thousands, numbers),
            0.1,
        )
        for name, value, numbers in (
            ("small_MHA", 110.6, 2 * 16 * 128 * 27),
            ("small_MLA", 15.6, (512 + 64) * 27),
            ("large_MHA", 860.2, 2 * 56 * 128 * 60),
            ("large_MLA", 34.6, (512 + 64) * 60),
        )
    ),
    *(
        Row(
            f"flops_4k.{name}",
            f"{name}: training 4,096 tokens",
            value,
            "TFLOP",
            "DeepSeekMoE (arXiv 2401.06066), table 3",
            "model",
            partial(_sequence, *shape),
            0.1,
            "convention unstated: no mask, no input embedding, as for 281 GFLOP of V3",
        )
        for name, value, shape in (
            ("deepseek-moe-16b", 74.4, (_moe_16b, 28, 2048)),
            ("deepseek-7b", 183.5, (lambda: 6.9e9 - 102_400 * 4096, 30, 4096)),
            ("llama2-7b", 187.9, (lambda: 6.74e9 - 32_000 * 4096, 32, 4096)),
        )
    ),
)
