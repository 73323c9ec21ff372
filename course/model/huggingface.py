"""Hugging Face's config.json as a ModelConfig and back, and its tensor names as places in our parameters.

Model type `llama`: Llama 1 to 3, and everything that was published in its form.
"""

from typing import Any, NamedTuple

from course.model.config import ModelConfig
from course.model.errors import PretrainedError
from course.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

TYPES = ("llama",)
FIXED = {"hidden_act": "silu", "mlp_bias": False, "quantization_config": None}  # other values are another model
IGNORED = ("rotary_emb.inv_freq",)  # endings of tensors in old checkpoints that follow from the config


class Place(NamedTuple):
    """Where a tensor goes: some rows of a parameter."""

    parameter: str
    rows: slice = slice(None)


def config_from_hf(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes. Keys that may be absent have the defaults of the published format.

    Raises: PretrainedError when the model type is another one, a key is missing, or a value means a different model.
    """
    if raw.get("model_type") not in TYPES:
        raise PretrainedError(f"model type {raw.get('model_type')!r} is not supported; it must be {', '.join(TYPES)}")
    for key, only in FIXED.items():
        if raw.get(key, only) != only:
            raise PretrainedError(f"{key} {raw[key]!r} is not supported; it must be {only!r}")
    biased = raw.get("attention_bias", False)
    rope = raw.get("rope_parameters") or {}
    try:
        return ModelConfig(
            vocab=raw["vocab_size"],
            context=raw.get("max_position_embeddings", 2048),
            width=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=_unless_plain(raw.get("head_dim"), raw["hidden_size"], raw["num_attention_heads"]),
            qkv_bias=biased,
            output_bias=biased,
            mlp_width=raw["intermediate_size"],
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            rope_scaling=_scaling_from_hf(rope or raw.get("rope_scaling") or {}),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            tied=raw.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise PretrainedError(f"the config lacks {error}") from None
    except (AssertionError, TypeError, ValueError) as error:
        raise PretrainedError(f"the config describes no model: {error}") from None


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a dense model. Raises: PretrainedError when no supported type can express it."""
    c = config
    beyond = {
        "a mixture of experts": c.experts > 0,
        "biases of queries, keys and values alone": c.qkv_bias != c.output_bias,
        "interleaved RoPE": c.rope_layout != "half",
    }
    if any(beyond.values()):
        raise PretrainedError(f"model type llama cannot express {next(what for what in beyond if beyond[what])}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_width,
        "attention_bias": c.qkv_bias,
        "intermediate_size": c.mlp_width,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,  # transformers 4 reads this one, 5 the next
        "rope_parameters": {"rope_theta": c.rope_theta, **_scaling_to_hf(c.rope_scaling)},
        "tie_word_embeddings": c.tied,
    }


def places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor of a checkpoint by its published name, and where it goes. Gate and up projection share a parameter."""
    found = {"model.embed_tokens.weight": Place("embedding.weight"), "model.norm.weight": Place("norm.weight")}
    if not config.tied:
        found["lm_head.weight"] = Place("head.weight")
    for layer in range(config.layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        found[f"{theirs}.input_layernorm.weight"] = Place(f"{ours}.attention_norm.weight")
        found[f"{theirs}.post_attention_layernorm.weight"] = Place(f"{ours}.feed_forward_norm.weight")
        for short, name in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            found[f"{theirs}.self_attn.{short}_proj.weight"] = Place(f"{ours}.attention.{name}.weight")
            if config.output_bias if short == "o" else config.qkv_bias:
                found[f"{theirs}.self_attn.{short}_proj.bias"] = Place(f"{ours}.attention.{name}.bias")
        gate_up, half = f"{ours}.feed_forward.gate_up_FD", config.mlp_width
        found[f"{theirs}.mlp.gate_proj.weight"] = Place(gate_up, slice(0, half))
        found[f"{theirs}.mlp.up_proj.weight"] = Place(gate_up, slice(half, 2 * half))
        found[f"{theirs}.mlp.down_proj.weight"] = Place(f"{ours}.feed_forward.down_DI")
    return found


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
