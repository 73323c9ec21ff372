"""The reference language model, one idea a file.

config       the shape of a model, presets, parameter counts
norm         RMSNorm
rope         rotary position embedding
attention    causal attention, grouped kv heads, the KV cache
swiglu       the dense feed-forward layer
router       softmax top-k gate, balance loss, statistics of load
dispatch     sort by expert, capacity and drops, combine
experts      the experts in a loop and as one grouped product
moe          the mixture-of-experts layer
transformer  block, model, loss, generation
"""

from course.model.attention import Attention, KVCache, causal_attention
from course.model.config import PRESETS, ModelConfig, active_parameters, total_parameters
from course.model.dispatch import capacity_mask, combine, expert_capacity, sort_by_expert
from course.model.experts import expert_loop, grouped_experts, grouped_product
from course.model.moe import MoE, Routing
from course.model.norm import RMSNorm, rms_norm
from course.model.rope import apply_rope, rope_table
from course.model.router import (
    Load,
    balance_loss,
    expert_counts,
    gate_probabilities,
    largest_k,
    load,
    renormalised,
    softmax_topk_gate,
)
from course.model.swiglu import SwiGLU, swiglu
from course.model.transformer import Block, Output, Transformer, sample
