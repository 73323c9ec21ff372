"""The reference language model, one idea a file.

config       the shape of a model, presets
count        parameters, cache bytes, FLOPs
norm         RMSNorm
rope         rotary position embedding
attention    causal attention, grouped kv heads, the KV cache
swiglu       the dense feed-forward layer
router       softmax top-k gate, balance loss, statistics of load
dispatch     sort by expert, capacity and drops, combine
experts      the experts in a loop, padded, and as one grouped product
moe          the mixture-of-experts layer
transformer  block, model, loss, generation
huggingface  published configs and tensor names
tensor_files safetensors and their faults
pretrained   open weights, read and written
"""

from course.model.attention import Attention, KVCache, causal_attention
from course.model.config import PRESETS, ModelConfig
from course.model.count import active_parameters, kv_bytes_per_token, total_parameters, train_flops_per_token
from course.model.dispatch import capacity_mask, combine, expert_capacity, sort_by_expert, sort_kept
from course.model.errors import PretrainedError
from course.model.experts import expert_loop, grouped_experts, grouped_product, padded_experts
from course.model.moe import MoE, Routing
from course.model.norm import RMSNorm, rms_norm
from course.model.pretrained import from_pretrained, save_pretrained
from course.model.rope import LinearScaling, Llama3Scaling, YarnScaling, apply_rope, rope_speeds, rope_table
from course.model.router import (
    Load,
    balance_loss,
    expert_counts,
    expert_load,
    gate_probabilities,
    largest_k,
    renormalised,
    softmax_topk_gate,
)
from course.model.swiglu import SwiGLU, swiglu
from course.model.transformer import Block, Loss, Output, Transformer, sample

__all__ = [
    "PRESETS",
    "Attention",
    "Block",
    "KVCache",
    "LinearScaling",
    "Llama3Scaling",
    "Load",
    "Loss",
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
    "capacity_mask",
    "causal_attention",
    "combine",
    "expert_capacity",
    "expert_counts",
    "expert_load",
    "expert_loop",
    "from_pretrained",
    "gate_probabilities",
    "grouped_experts",
    "grouped_product",
    "kv_bytes_per_token",
    "largest_k",
    "padded_experts",
    "renormalised",
    "rms_norm",
    "rope_speeds",
    "rope_table",
    "sample",
    "save_pretrained",
    "softmax_topk_gate",
    "sort_by_expert",
    "sort_kept",
    "swiglu",
    "total_parameters",
    "train_flops_per_token",
]
