"""Parameters, cache and FLOPs of models, from their configurations."""

from functools import partial

from course.hardware.reproduce.row import Row
from course.model.config import ModelConfig
from course.model.count import active_parameters, kv_bytes_per_token, total_parameters, train_flops_per_token

V3 = "DeepSeek-V3 Technical Report (arXiv 2412.19437), section 4.2"
ISCA = "Insights into DeepSeek-V3 (arXiv 2505.09343), table"


def _count(of, preset: str, scale: float = 1.0) -> float:
    return of(ModelConfig.preset(preset)) / scale


def _inside(preset: str) -> float:
    """Active parameters without the table of input embeddings, of which a token reads one row."""
    config = ModelConfig.preset(preset)
    return active_parameters(config) - config.vocab * config.width


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
)
