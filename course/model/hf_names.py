"""Hugging Face's tensor names as places in our tensors. They follow from the config alone.

Experts are stored one by one, as every published checkpoint has them, or all of a layer in one tensor, as `transformers`
holds them in memory. Gate and up projection share a tensor of ours.
"""

from collections.abc import Iterator
from typing import NamedTuple

from course.model.config import ModelConfig

IGNORED = ("rotary_emb.inv_freq",)  # endings of tensors in old checkpoints that follow from the config
SHARED = ("embed_tokens.weight", "shared_head.head.weight")  # of multi-token modules: the main model's, stored again


class Place(NamedTuple):
    """Where a tensor goes: a part of one of ours, from one index for each of its first dimensions."""

    tensor: str
    part: tuple[int | slice, ...] = ()


def places(config: ModelConfig, fused: bool = False) -> dict[str, Place]:
    """Every tensor of a checkpoint by its published name, and where it goes. fused: the experts of a layer in one."""
    found = {"model.embed_tokens.weight": Place("embedding.weight"), "model.norm.weight": Place("norm.weight")}
    if not config.tied:
        found["lm_head.weight"] = Place("head.weight")
    for layer in range(config.layers):
        found |= dict(_layer(config, f"model.layers.{layer}", f"blocks.{layer}", layer, fused))
    for k in range(config.mtp_layers):
        theirs, ours = f"model.layers.{config.layers + k}", f"mtp.{k}"
        found |= dict(_layer(config, theirs, f"{ours}.block", config.layers + k, fused))
        names = {"enorm": "embedding_norm", "hnorm": "hidden_norm", "eh_proj": "projection", "shared_head.norm": "norm"}
        found |= {f"{theirs}.{name}.weight": Place(f"{ours}.{own}.weight") for name, own in names.items()}
    return found


def stored_again(config: ModelConfig) -> tuple[str, ...]:
    """Names of tensors that a checkpoint may hold a second time."""
    modules = range(config.layers, config.layers + config.mtp_layers)
    return tuple(f"model.layers.{layer}.{name}" for layer in modules for name in SHARED)


def _layer(c: ModelConfig, theirs: str, ours: str, layer: int, fused: bool) -> Iterator[tuple[str, Place]]:
    yield f"{theirs}.input_layernorm.weight", Place(f"{ours}.attention_norm.weight")
    yield f"{theirs}.post_attention_layernorm.weight", Place(f"{ours}.feed_forward_norm.weight")
    for name, own in (_latent(c) if c.latent else _grouped_query(c)).items():
        yield f"{theirs}.self_attn.{name}", Place(f"{ours}.attention.{own}")
    if not c.is_mixture(layer):
        yield from _swiglu(f"{theirs}.mlp", f"{ours}.feed_forward", c.mlp_width)
        return
    mixtral = not c.latent and not c.qk_norm
    part, own = "block_sparse_moe" if mixtral and not fused else "mlp", f"{ours}.feed_forward"
    yield f"{theirs}.{part}.gate.weight", Place(f"{own}.gate_ED")
    if c.selection_bias:
        yield f"{theirs}.{part}.gate.e_score_correction_bias", Place(f"{own}.bias_E")
    if c.shared_experts:
        yield from _swiglu(f"{theirs}.{part}.shared_experts", f"{own}.shared", c.shared_experts * c.expert_width)
    if fused:
        yield f"{theirs}.{part}.experts.gate_up_proj", Place(f"{own}.gate_up_EFD")
        yield f"{theirs}.{part}.experts.down_proj", Place(f"{own}.down_EDI")
        return
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    half = c.expert_width
    for e in range(c.experts):
        yield f"{theirs}.{part}.experts.{e}.{gate}.weight", Place(f"{own}.gate_up_EFD", (e, slice(0, half)))
        yield f"{theirs}.{part}.experts.{e}.{up}.weight", Place(f"{own}.gate_up_EFD", (e, slice(half, 2 * half)))
        yield f"{theirs}.{part}.experts.{e}.{down}.weight", Place(f"{own}.down_EDI", (e,))


def _swiglu(theirs: str, ours: str, half: int) -> Iterator[tuple[str, Place]]:
    yield f"{theirs}.gate_proj.weight", Place(f"{ours}.gate_up_FD", (slice(0, half),))
    yield f"{theirs}.up_proj.weight", Place(f"{ours}.gate_up_FD", (slice(half, 2 * half),))
    yield f"{theirs}.down_proj.weight", Place(f"{ours}.down_DI")


def _grouped_query(c: ModelConfig) -> dict[str, str]:
    names = {}
    for short, own in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
        names[f"{short}_proj.weight"] = f"{own}.weight"
        if c.output_bias if short == "o" else c.qkv_bias:
            names[f"{short}_proj.bias"] = f"{own}.bias"
    if c.qk_norm:
        names |= {"q_norm.weight": "query_norm.weight", "k_norm.weight": "key_norm.weight"}
    return names


def _latent(c: ModelConfig) -> dict[str, str]:
    names = {
        "kv_a_proj_with_mqa.weight": "kv_down.weight",
        "kv_a_layernorm.weight": "kv_norm.weight",
        "kv_b_proj.weight": "kv_up.weight",
        "o_proj.weight": "output.weight",
    }
    if c.q_lora_rank:
        names |= {"q_a_proj.weight": "query_down.weight", "q_a_layernorm.weight": "query_norm.weight"}
    names["q_b_proj.weight" if c.q_lora_rank else "q_proj.weight"] = "query_up.weight"
    if c.qkv_bias:
        names["kv_a_proj_with_mqa.bias"] = "kv_down.bias"
        names |= {"q_a_proj.bias": "query_down.bias"} if c.q_lora_rank else {}
    if c.output_bias:
        names["o_proj.bias"] = "output.bias"
    if c.index_topk:
        theirs = {"wq_b.weight": "query.weight", "wk.weight": "key.weight", "weights_proj.weight": "weight.weight"}
        theirs |= {"k_norm.weight": "key_norm.weight", "k_norm.bias": "key_norm.bias"}
        names |= {f"indexer.{name}": f"indexer.{own}" for name, own in theirs.items()}
    return names
