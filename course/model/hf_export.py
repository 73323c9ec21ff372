"""A ModelConfig as Hugging Face's config.json: which published type can express a model, and how."""

from typing import Any

from course.model.config import ModelConfig
from course.model.errors import PretrainedError
from course.model.rope import LinearScaling, Llama3Scaling, RopeScaling

Raw = dict[str, Any]

CLASSES = {  # what transformers calls them
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
}


def model_type(config: ModelConfig) -> str:
    """The published type that can express a model. Raises: PretrainedError when none can."""
    c = config
    if c.latent:
        kind = "deepseek_v32" if c.index_topk else "deepseek_v3" if c.gate == "sigmoid" else "deepseek_v2"
    else:
        kind = ("qwen3_moe" if c.qk_norm else "mixtral") if c.experts else "llama"
    grouped = c.experts // c.groups if c.groups > 1 else 2
    cannot = {
        "biases of queries, keys and values alone": c.qkv_bias != c.output_bias,
        "interleaved RoPE": not c.latent and c.rope_layout != "half",
        "RoPE by halves": kind in ("deepseek_v2", "deepseek_v32") and c.rope_layout != "interleaved",
        "norms of queries and keys": kind == "llama" and c.qk_norm,
        "a dense model with latent attention": c.latent and not c.experts,
        "dense first layers": not c.latent and c.dense_layers > 0,
        "a mixture without shared experts": c.latent and not c.shared_experts,
        "shared experts": not c.latent and c.shared_experts > 0,
        "a sigmoid gate": not c.latent and c.gate != "softmax",
        "biases in attention": kind == "mixtral" and c.qkv_bias,
        "weights of experts that are not normalised": kind == "mixtral" and not c.normalised,
        "weights of experts that are normalised": kind == "deepseek_v2" and c.normalised,
        "a scale of the routed experts": not c.latent and c.routed_scale != 1.0,
        "groups of experts": not c.latent and c.groups > 1,
        "groups ranked in another way": c.groups > 1
        and c.group_best != (1 if kind == "deepseek_v2" else min(2, grouped)),
        "a selection bias": kind in ("mixtral", "qwen3_moe", "deepseek_v2") and c.selection_bias,
        "a choice without a selection bias": kind in ("deepseek_v3", "deepseek_v32") and not c.selection_bias,
        "a capacity": c.capacity_factor is not None,
        "multi-token modules": kind not in ("deepseek_v3", "deepseek_v32") and c.mtp_layers > 0,
    }
    if any(cannot.values()):
        raise PretrainedError(f"model type {kind} cannot express {next(what for what in cannot if cannot[what])}")
    return kind


def config_to_hf(config: ModelConfig) -> Raw:
    """The config.json of a model. Raises: PretrainedError when no supported type can express it."""
    c, kind = config, model_type(config)
    raw = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads if c.latent else c.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,  # transformers 4 reads this one, 5 the next
        "rope_parameters": {"rope_theta": c.rope_theta, **_scaling_to_hf(c.rope_scaling)},
        "tie_word_embeddings": c.tied,
    }
    if kind != "mixtral":
        raw["attention_bias"] = c.qkv_bias
    if not c.latent:
        raw["head_dim"] = c.head_width
    if kind == "llama":
        return raw | {"intermediate_size": c.mlp_width, "mlp_bias": False}
    raw |= {"num_experts_per_tok": c.top_k, "router_aux_loss_coef": c.balance_weight}
    if kind == "mixtral":
        return raw | {"num_local_experts": c.experts, "intermediate_size": c.expert_width, "sliding_window": None}
    raw |= {"norm_topk_prob": c.normalised, "moe_intermediate_size": c.expert_width}
    if kind == "qwen3_moe":
        return raw | {"num_experts": c.experts, "intermediate_size": c.expert_width, "decoder_sparse_step": 1}
    return raw | _deepseek_to_hf(c, kind)


def _deepseek_to_hf(c: ModelConfig, kind: str) -> Raw:
    raw = {
        "q_lora_rank": c.q_lora_rank or None,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "intermediate_size": c.mlp_width or c.expert_width,
        "n_routed_experts": c.experts,
        "n_shared_experts": c.shared_experts,
        "first_k_dense_replace": c.dense_layers,
        "routed_scaling_factor": c.routed_scale,
        "n_group": c.groups,
        "topk_group": c.top_groups,
    }
    if kind == "deepseek_v2":
        return raw | {"topk_method": "group_limited_greedy" if c.groups > 1 else "greedy", "scoring_func": "softmax"}
    raw |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": c.mtp_layers}
    if kind == "deepseek_v3":
        return raw | {"rope_interleave": c.rope_layout == "interleaved"}
    return raw | {"index_topk": c.index_topk, "index_n_heads": c.index_heads, "index_head_dim": c.index_head_dim}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    known = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_context}
    if isinstance(scaling, Llama3Scaling):
        return {"rope_type": "llama3", **known, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    optional = {
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
        "attention_factor": scaling.attention,
    }
    return {
        "rope_type": "yarn",
        **known,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        **{key: value for key, value in optional.items() if value is not None},
    }
