"""The reference language model, one idea a file.

config            the shape of a model
presets           published shapes and tiny ones
shapes            a model without its numbers, for counting and loading
count             parameters, cache bytes, FLOPs
norm              RMSNorm
rope              rotary position embedding
attention         causal attention, grouped kv heads, the KV cache
latent_attention  multi-head latent attention in three forms, and its cache
indexer           the lightning indexer of sparse attention
swiglu            the dense feed-forward layer
router            softmax and sigmoid gates, groups, the choice of experts
balance           balance losses, the bias that balances, statistics of load
dispatch          sort by expert, capacity and drops, combine
experts           the experts in a loop, padded, and as one grouped product
moe               the mixture-of-experts layer
block             one layer
mtp               multi-token prediction
transformer       the model and its loss
decoding          generation, with and without speculation
hf_config         published configs, read
hf_export         and written
hf_names          published tensor names
fp8_blocks        weights stored as FP8
tensor_files      safetensors and their faults
pretrained        open weights, read and written
"""

from course.model.attention import Attention, KVCache, causal_attention
from course.model.balance import (
    Load,
    balance_loss,
    balanced_over,
    bias_step,
    expert_counts,
    expert_load,
    sequence_balance_loss,
)
from course.model.block import Block
from course.model.config import ModelConfig
from course.model.count import active_parameters, kv_bytes_per_token, total_parameters, train_flops_per_token
from course.model.decoding import generate, sample, speculate
from course.model.dispatch import capacity_mask, combine, expert_capacity, sort_by_expert, sort_kept
from course.model.errors import PretrainedError
from course.model.experts import expert_loop, grouped_experts, grouped_product, padded_experts
from course.model.indexer import Indexer, indexer_loss
from course.model.latent_attention import LatentAttention, LatentCache
from course.model.moe import MoE, Routing
from course.model.mtp import MTPModule
from course.model.norm import RMSNorm, rms_norm
from course.model.presets import PRESETS
from course.model.pretrained import from_pretrained, save_pretrained
from course.model.rope import LinearScaling, Llama3Scaling, YarnScaling, apply_rope, rope_speeds, rope_table
from course.model.router import (
    choose_experts,
    gate_probabilities,
    gate_scores,
    largest_k,
    limit_groups,
    renormalised,
    softmax_topk_gate,
)
from course.model.swiglu import SwiGLU, swiglu
from course.model.transformer import Loss, Output, Transformer

__all__ = [
    "PRESETS",
    "Attention",
    "Block",
    "Indexer",
    "KVCache",
    "LatentAttention",
    "LatentCache",
    "LinearScaling",
    "Llama3Scaling",
    "Load",
    "Loss",
    "MTPModule",
    "MoE",
    "ModelConfig",
    "Output",
    "PretrainedError",
    "RMSNorm",
    "Routing",
    "SwiGLU",
    "Transformer",
    "YarnScaling",
    "active_parameters",
    "apply_rope",
    "balance_loss",
    "balanced_over",
    "bias_step",
    "capacity_mask",
    "causal_attention",
    "choose_experts",
    "combine",
    "expert_capacity",
    "expert_counts",
    "expert_load",
    "expert_loop",
    "from_pretrained",
    "gate_probabilities",
    "gate_scores",
    "generate",
    "grouped_experts",
    "grouped_product",
    "indexer_loss",
    "kv_bytes_per_token",
    "largest_k",
    "limit_groups",
    "padded_experts",
    "renormalised",
    "rms_norm",
    "rope_speeds",
    "rope_table",
    "sample",
    "save_pretrained",
    "sequence_balance_loss",
    "softmax_topk_gate",
    "sort_by_expert",
    "sort_kept",
    "speculate",
    "swiglu",
    "total_parameters",
    "train_flops_per_token",
]
