"""What a model costs: parameters, bytes of cache, FLOPs. Parameters are counted on the model itself, built without
memory on PyTorch's meta device, so that a count cannot drift from the code."""

from dataclasses import replace
from functools import lru_cache

import torch

from course.model.config import ModelConfig
from course.model.moe import MoE
from course.model.shapes import without_numbers
from course.model.transformer import Transformer

CONTEXT = 4096  # tokens, where a training cost is quoted without saying at which length
BF16 = 2  # bytes


def total_parameters(config: ModelConfig) -> int:
    """All numbers of a checkpoint, selection biases included. Multi-token modules do not count, as in published totals: they
    may be dropped after training (V3 report, section 2.2)."""
    model = _on_meta(config)
    return sum(numbers.numel() for numbers in (*model.parameters(), *model.buffers()))


def active_parameters(config: ModelConfig) -> int:
    """The parameters that one token meets: all but the experts it was not sent to. Counts embedding and head."""
    return total_parameters(config) - sum(_idle(module) for module in _on_meta(config).modules())


def kv_bytes_per_token(config: ModelConfig, bytes_each: int = BF16) -> int:
    """Bytes that the cache of all layers grows by with every token, in one copy of the model: a latent is one for all
    heads, so that GPUs which share the heads out each hold it whole. An indexer's keys count, at the same width."""
    if config.latent:
        row = config.kv_lora_rank + config.qk_rope_head_dim + (config.index_head_dim if config.index_topk else 0)
        return config.layers * row * bytes_each
    return config.layers * config.kv_heads * (config.head_width + config.value_width) * bytes_each


def train_flops_per_token(config: ModelConfig, context: int = CONTEXT) -> float:
    """FLOPs of a forward and a backward pass for one token of a sequence of `context` tokens, attention causal.

    A matrix product costs 2 FLOPs a parameter forward and 4 backward (Kaplan et al. 2020, section 2.1); looking up an
    embedding costs none, norms and biases are left out. Attention's two products, of a query with the mean
    (context + 1) / 2 keys it sees and of the result with as many values, cost 3 times their forward FLOPs; latents are
    expanded, as in training. With an indexer a query sees `index_topk` keys at most, and the indexer scores them all.
    Multi-token modules are left out.
    """
    model = _on_meta(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1) - sum(_idle(m) for m in model.modules())
    if not config.tied:
        matrices -= config.vocab * config.width
    seen, scored = (context + 1) / 2, 0.0
    if config.index_topk:
        most = min(config.index_topk, context)
        seen, scored = most - most * (most - 1) / (2 * context), seen
    attention = 2 * config.heads * (config.head_width + config.value_width) * seen
    attention += 2 * config.index_heads * config.index_head_dim * scored
    return 6 * matrices + 3 * config.layers * attention


@lru_cache
def _on_meta(config: ModelConfig) -> Transformer:
    with without_numbers():
        return Transformer(replace(config, mtp_layers=0))


def _idle(module: torch.nn.Module) -> int:
    """Parameters of a layer's experts that one token does not meet."""
    if not isinstance(module, MoE):
        return 0
    return sum(p[module.config.top_k :].numel() for p in (module.gate_up_EFD, module.down_EDI))
