"""The operations of one layer, each with its FLOPs, its bytes and the sizes that decide its time.

batch = Batch(tokens=4096, context=4096, expert_ranks=64)
layer_operations(config, layer=10, phase="forward", batch=batch)

Phases. Training: "forward", "backward_input" (what the gradient of the input costs, attention's whole way back included),
"backward_weight", and "recompute", what V3 computes a second time on the way back (report, section 3.2.3, and 3.3.3 for
SwiGLU). Serving: "prefill" and "decode". Latent attention is expanded in training and prefill and absorbed in decode; with
an indexer it is absorbed in prefill too, once the context exceeds what a query may see (V3.2-Exp report, section 2.1).

Number formats. In "fp8" every product of weights is FP8 but the gate, the head and the products that absorption adds,
which are BF16 as attention is (V3 report, section 3.3.1; DeepSeek-V3, inference/model.py, expands them to BF16). Scores of
an indexer are FP8 too. What a product writes is BF16, a gradient of weights is added up in FP32.

FLOPs are counted as `course.model.count` does: products alone, 2 a multiply and add, attention causal. What an operation
computes a second time, such as attention's scores on the way back, stands in its work and is told apart in `extra`:
forward and backward without it are what `train_flops_per_token` says. Bytes are what must pass the memory at least: every
operand once, weights of an expert once where any token comes. Experts are loaded evenly, each token choosing by itself.
Symbols: T tokens on this GPU, D width, E experts, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from course.hardware import layer_parts as parts
from course.hardware.layer_parts import ACTIVATION, Operation, elementwise, grouped, product

if TYPE_CHECKING:  # the model's package imports torch
    from course.model.config import ModelConfig

PHASES = ("forward", "backward_input", "backward_weight", "recompute", "prefill", "decode")
AGAIN = ("attention_norm", "latent_norms", "mlp_norm", "query_up", "kv_up", "swiglu", "shared_swiglu", "experts_swiglu")


@dataclass(frozen=True)
class Batch:
    """What passes through a layer at once on one GPU.

    tokens: new ones, on this GPU. context: tokens of a sequence, in decode the keys that a query finds in the cache.
    cached: in prefill, how many of them are in the cache already. queries: in decode, tokens a sequence (2 with one
    speculated). expert_ranks: GPUs that share the experts out; each brings `tokens`. slots: places for experts on one GPU,
    where more than experts / expert_ranks because some stand twice.
    """

    tokens: float
    context: float
    cached: float = 0
    queries: float = 1
    expert_ranks: int = 1
    slots: float | None = None
    precision: str = "fp8"

    def __post_init__(self):
        if self.precision not in ("fp8", "bf16"):
            raise ValueError(f"products are in fp8 or bf16, not {self.precision!r}")
        if not 0 <= self.cached < self.context:
            raise ValueError(f"{self.cached} cached tokens leave nothing new of a context of {self.context}")


def layer_operations(config: ModelConfig, layer: int, phase: str, batch: Batch) -> tuple[Operation, ...]:
    """What one GPU does for layer number `layer` (0 the first). Raises: ValueError for a phase that does not exist."""
    if phase not in PHASES:
        raise ValueError(f"there is no phase {phase!r}; there are {', '.join(PHASES)}")
    form = phase if phase in ("prefill", "decode") else "forward"
    mixture = config.is_mixture(layer)
    operations = [*_attention(config, form, batch), *(_mixture if mixture else _dense)(config, form, batch)]
    return _way_back(operations, phase, batch)


def head_operations(config: ModelConfig, phase: str, batch: Batch) -> tuple[Operation, ...]:
    """The output head, in BF16, on every token of the batch. In prefill only a sequence's last token needs it: give a batch
    with as many tokens as sequences."""
    head = product("head", batch.tokens, config.width, config.vocab, "bf16")
    return () if phase == "recompute" else _way_back([head], phase, batch)


def model_operations(
    config: ModelConfig, phase: str, batch: Batch, head: Batch | None = None
) -> list[tuple[int, tuple[Operation, ...]]]:
    """(how many times, operations): dense layers, mixture layers, and the head. Multi-token modules are left out.

    head: the batch that the head sees, where it is another one.
    """
    dense = config.dense_layers if config.experts else config.layers
    stack = [(dense, 0), (config.layers - dense, config.layers - 1)]
    found = [(times, layer_operations(config, layer, phase, batch)) for times, layer in stack if times]
    return [*found, (1, head_operations(config, phase, head or batch))]


def _way_back(operations: list[Operation], phase: str, batch: Batch) -> tuple[Operation, ...]:
    products = [one for one in operations if "k" in one.shape]
    if phase == "backward_input":
        back = [parts.input_gradient(one) for one in reversed(operations) if one.name != "quantise"]
        return (*back, *_quantised(products, inputs=False))
    if phase == "backward_weight":
        return (*(parts.weight_gradient(one) for one in reversed(products)), *_quantised(products, inputs=True))
    if phase == "recompute":
        return tuple(replace(one, extra=one.work.flops) for one in operations if one.name in AGAIN)
    return tuple(operations)


def _quantised(products: list[Operation], inputs: bool) -> list[Operation]:
    """The gradients of FP8 products made FP8, and for the gradients of weights their inputs once more, 128 x 1 (V3 report,
    section 3.3.2). All of them as one operation."""
    wide, narrow = 2.0, ACTIVATION["fp8"]
    read = written = 0.0
    for one in products:
        if one.work.dtype == "fp8":
            rows, s = one.shape.get("groups", 1) * one.shape["m"], one.shape
            read += rows * (wide * s["n"] + inputs * narrow * s["k"])
            written += rows * narrow * (s["n"] + inputs * s["k"])
    return [elementwise("quantise_gradients", read, written)] if read else []


def _attention(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    T, dtype = batch.tokens, batch.precision
    inside = ACTIVATION[dtype]
    norm = elementwise("attention_norm", 4 * T * c.width, (2 + inside) * T * c.width)
    values = T * c.heads * c.value_width
    end = [elementwise("quantise", 2 * values, inside * values)] if dtype == "fp8" else []
    end.append(product("output", T, c.heads * c.value_width, c.width, dtype))
    middle = _latent_attention if c.latent else _grouped_query_attention
    return [norm, *middle(c, form, batch), *end]


def _grouped_query_attention(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    T, heads = batch.tokens, c.heads + 2 * c.kv_heads
    turned = T * (c.heads + c.kv_heads) * c.head_width
    return [
        product("query_key_value", T, c.width, heads * c.head_width, batch.precision),
        elementwise("rope", 2 * turned, 2 * turned),
        parts.attention("attention", c.heads, c.kv_heads, c.head_width, c.value_width, form, batch),
    ]


def _latent_attention(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    T, dtype, inside = batch.tokens, batch.precision, ACTIVATION[batch.precision]
    latents, turned = T * (c.q_lora_rank + c.kv_lora_rank), T * (c.heads + 1) * c.qk_rope_head_dim
    sparse = bool(c.index_topk) and batch.context > c.index_topk
    absorbed = form == "decode" or (sparse and form == "prefill")
    found = [product("query_down", T, c.width, c.q_lora_rank, dtype)] if c.q_lora_rank else []
    found += [
        product("kv_down", T, c.width, c.kv_lora_rank + c.qk_rope_head_dim, dtype),
        elementwise("latent_norms", 2 * latents, inside * latents),
        product("query_up", T, c.q_lora_rank or c.width, c.heads * c.head_width, dtype),
        elementwise("rope", 2 * turned, 2 * turned),
    ]
    most = c.index_topk or float("inf")
    if c.index_topk:
        found += _indexer(c, form, batch)
    if not absorbed:
        rows = T * batch.context / (batch.context - batch.cached)  # latents of cached tokens are expanded again
        found.append(product("kv_up", rows, c.kv_lora_rank, c.heads * (c.qk_nope_head_dim + c.v_head_dim), dtype))
        return [
            *found,
            parts.attention("attention", c.heads, c.heads, c.head_width, c.v_head_dim, form, batch, most),
        ]
    return [
        *found,
        grouped("query_absorb", c.heads, T, c.qk_nope_head_dim, c.kv_lora_rank, "bf16", "masked"),
        parts.latent_attention("attention", c, form, batch, most),
        grouped("value_absorb", c.heads, T, c.kv_lora_rank, c.v_head_dim, "bf16", "masked"),
    ]


def _indexer(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    T, dtype = batch.tokens, batch.precision
    scores = parts.index_scores("index_scores", c, form, batch)
    logits = scores.shape["scored"] * T
    return [
        product("index_query", T, c.q_lora_rank, c.index_heads * c.index_head_dim, dtype),
        product("index_key", T, c.width, c.index_head_dim, dtype),
        product("index_weight", T, c.width, c.index_heads, "bf16", kind="gate"),
        scores,
        elementwise("index_choice", 4 * logits, 4 * min(c.index_topk, batch.context) * T),
    ]


def _dense(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    return [_mlp_norm(c, batch), *_swiglu("", batch.tokens, c.width, c.mlp_width, batch.precision)]


def _mixture(c: ModelConfig, form: str, batch: Batch) -> list[Operation]:
    T, dtype, inside = batch.tokens, batch.precision, ACTIVATION[batch.precision]
    slots = batch.slots or c.experts / batch.expert_ranks
    rows = T * c.top_k  # sent away, and as many received: loads are even
    copies = slots * batch.expert_ranks / c.experts
    hit = slots * (1 - (1 - c.top_k / c.experts / copies) ** (T * batch.expert_ranks))
    curve = "masked" if form == "decode" else "contiguous"
    widths = c.width, 2 * c.expert_width
    found = [
        _mlp_norm(c, batch),
        product("gate", T, c.width, c.experts, "bf16", kind="gate"),
        elementwise("routing", 4 * T * c.experts, 8 * T * c.top_k),
    ]
    if c.shared_experts:
        found += _swiglu("shared_", T, c.width, c.shared_experts * c.expert_width, dtype)
    if form != "decode":  # rows into the order of experts; low-latency dispatch delivers them so
        found.append(elementwise("permute", inside * rows * c.width, inside * rows * c.width))
    sums = rows + (T if c.shared_experts else 0)
    return [
        *found,
        grouped("experts_gate_up", hit, rows / hit, *widths, dtype, curve),
        elementwise("experts_swiglu", 2 * rows * 2 * c.expert_width, inside * rows * c.expert_width),
        grouped("experts_down", hit, rows / hit, c.expert_width, c.width, dtype, curve),
        elementwise("combine", 2 * sums * c.width, 2 * T * c.width),
    ]


def _mlp_norm(c: ModelConfig, batch: Batch) -> Operation:
    read, written = 4 * batch.tokens * c.width, (2 + ACTIVATION[batch.precision]) * batch.tokens * c.width
    return elementwise("mlp_norm", read, written)


def _swiglu(name: str, T: float, width: float, hidden: float, dtype: str) -> list[Operation]:
    return [
        product(f"{name}gate_up", T, width, 2 * hidden, dtype),
        elementwise(f"{name}swiglu", 2 * T * 2 * hidden, ACTIVATION[dtype] * T * hidden),
        product(f"{name}down", T, hidden, width, dtype),
    ]
