"""Hugging Face's config.json, read as a ModelConfig. The way back is `course.model.hf_export`.

llama         Llama 1 to 3, and everything that was published in its form
mixtral       Mixtral
qwen3_moe     Qwen3's mixtures
deepseek_v2   DeepSeek-V2 and V2-Lite
deepseek_v3   DeepSeek-V3, R1 and V3.1; Kimi-K2, which calls the same kimi_k2
deepseek_v32  DeepSeek-V3.2
"""

import os
from pathlib import Path
from typing import Any

from course.model.config import ModelConfig
from course.model.errors import PretrainedError
from course.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from course.model.tensor_files import read_json

Raw = dict[str, Any]

TYPES = ("llama", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32")
ALIASES = {"kimi_k2": "deepseek_v3"}
DEEPSEEK = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
FIXED = {  # a key may be absent; any other value than these would be another model
    "llama": {"mlp_bias": (False,)},
    "mixtral": {"sliding_window": (None,), "attention_bias": (False,)},
    "qwen3_moe": {"use_sliding_window": (False,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
    "deepseek_v2": {
        "scoring_func": ("softmax",),
        "norm_topk_prob": (False,),
        "topk_method": ("greedy", "group_limited_greedy"),
        "moe_layer_freq": (1,),
    },
    "deepseek_v3": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)},
    "deepseek_v32": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)},
}


def read_config(path: str | os.PathLike) -> Raw:
    """What a config.json holds: the file, or the folder it lies in. Raises: PretrainedError."""
    path = Path(path)
    return read_json(path / "config.json" if path.is_dir() else path)


def config_from_hf(raw: Raw) -> ModelConfig:
    """The shape that a config.json describes. Keys that may be absent have the defaults of the published format.

    Raises: PretrainedError when the model type is another one, a key is missing, or a value means a different model.
    """
    kind = ALIASES.get(raw.get("model_type"), raw.get("model_type"))
    if kind not in TYPES:
        raise PretrainedError(f"model type {raw.get('model_type')!r} is not supported; it must be {', '.join(TYPES)}")
    for key, allowed in (FIXED[kind] | {"hidden_act": ("silu",)}).items():
        if raw.get(key, allowed[0]) not in allowed:
            told = " or ".join(map(repr, allowed))
            raise PretrainedError(f"{key} {raw[key]!r} is not supported in model type {kind}; it must be {told}")
    fp8_block(raw)
    try:
        special = {"mixtral": _mixtral, "qwen3_moe": _qwen3_moe}.get(kind, _deepseek if kind in DEEPSEEK else _llama)
        return ModelConfig(**_common(raw, kind), **special(raw, kind))
    except KeyError as error:
        raise PretrainedError(f"the config lacks {error}") from None
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        raise PretrainedError(f"the config describes no model: {error}") from None


def fp8_block(raw: Raw) -> tuple[int, int] | None:
    """Rows and columns that share a scale in weights stored as FP8; None where nothing is quantised.

    Raises: PretrainedError for another quantisation.
    """
    quantised = raw.get("quantization_config")
    if quantised is None:
        return None
    block = quantised.get("weight_block_size") if isinstance(quantised, dict) else None
    if not isinstance(block, list) or quantised.get("quant_method") != "fp8" or len(block) != 2:
        raise PretrainedError(
            f"quantization_config {quantised!r} is not supported; it must be fp8 with a weight_block_size"
        )
    return int(block[0]), int(block[1])


def _common(raw: Raw, kind: str) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or {}
    theta = {"mixtral": 1_000_000.0}.get(kind, 10_000.0)
    return {
        "vocab": raw["vocab_size"],
        "context": raw.get("max_position_embeddings", 2048),
        "width": raw["hidden_size"],
        "layers": raw["num_hidden_layers"],
        "heads": raw["num_attention_heads"],
        "qkv_bias": raw.get("attention_bias", False),
        "output_bias": raw.get("attention_bias", False),
        "rope_theta": float(rope.get("rope_theta", raw.get("rope_theta", theta))),
        "rope_scaling": _scaling_from_hf(rope or raw.get("rope_scaling") or {}),
        "norm_eps": raw.get("rms_norm_eps", 1e-5 if kind == "mixtral" else 1e-6),
        "tied": raw.get("tie_word_embeddings", False),
    }


def _grouped_query(raw: Raw) -> dict[str, Any]:
    return {
        "kv_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "head_dim": _unless_plain(raw.get("head_dim"), raw["hidden_size"], raw["num_attention_heads"]),
    }


def _llama(raw: Raw, kind: str) -> dict[str, Any]:
    return {**_grouped_query(raw), "mlp_width": raw["intermediate_size"]}


def _mixtral(raw: Raw, kind: str) -> dict[str, Any]:
    return {
        **_grouped_query(raw),
        "experts": raw["num_local_experts"],
        "top_k": raw["num_experts_per_tok"],
        "expert_width": raw["intermediate_size"],
        "balance_weight": raw.get("router_aux_loss_coef", 0.001),
    }


def _qwen3_moe(raw: Raw, kind: str) -> dict[str, Any]:
    return {
        **_grouped_query(raw),
        "qk_norm": True,
        "experts": raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"],
        "top_k": raw["num_experts_per_tok"],
        "expert_width": raw["moe_intermediate_size"],
        "normalised": raw.get("norm_topk_prob", False),
        "balance_weight": raw.get("router_aux_loss_coef", 0.001),
    }


def _deepseek(raw: Raw, kind: str) -> dict[str, Any]:
    v2, experts = kind == "deepseek_v2", raw["n_routed_experts"]
    grouped = not v2 or raw.get("topk_method") == "group_limited_greedy"
    groups = (raw.get("n_group") or 1) if grouped else 1
    dense = min(raw.get("first_k_dense_replace", 0), raw["num_hidden_layers"])
    by_halves = kind == "deepseek_v3" and not raw.get("rope_interleave", True)
    settings = {
        "q_lora_rank": raw.get("q_lora_rank") or 0,
        **{key: raw[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")},
        "mlp_width": raw["intermediate_size"] if dense else 0,
        "experts": experts,
        "top_k": raw["num_experts_per_tok"],
        "expert_width": raw["moe_intermediate_size"],
        "dense_layers": dense,
        "shared_experts": raw.get("n_shared_experts") or 0,
        "gate": "softmax" if v2 else "sigmoid",
        "normalised": False if v2 else raw.get("norm_topk_prob", True),
        "routed_scale": float(raw.get("routed_scaling_factor", 1.0)),
        "selection_bias": not v2,
        "groups": groups,
        "top_groups": raw.get("topk_group") or 1 if groups > 1 else 1,
        "group_best": 1 if v2 else min(2, experts // groups),
        "balance_weight": 0.0,
        "mtp_layers": 0 if v2 else raw.get("num_nextn_predict_layers") or raw.get("num_mtp_layers") or 0,
        "rope_layout": "half" if by_halves else "interleaved",
    }
    if kind == "deepseek_v32":
        theirs = {"index_topk": "index_topk", "index_heads": "index_n_heads", "index_head_dim": "index_head_dim"}
        settings |= {ours: raw[name] for ours, name in theirs.items()}
    return settings


def _unless_plain(head_dim: int | None, width: int, heads: int) -> int | None:
    """None where the published head width is the width over the heads, so that equal models have equal configs."""
    return None if head_dim is None or head_dim * heads == width else head_dim


def _scaling_from_hf(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope["factor"])
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        return Llama3Scaling(rope["factor"], low, high, rope["original_max_position_embeddings"])
    if kind == "yarn":
        return YarnScaling(
            factor=rope["factor"],
            original_context=rope["original_max_position_embeddings"],
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            mscale=rope.get("mscale"),
            mscale_all_dim=rope.get("mscale_all_dim"),
            attention=rope.get("attention_factor"),
            truncate=rope.get("truncate", True),
        )
    raise PretrainedError(f"RoPE type {kind!r} is not supported; it must be default, linear, llama3 or yarn")
