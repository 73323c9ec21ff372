"""The shape of a model in one frozen record.

config = ModelConfig.preset("tiny-moe")
config = ModelConfig.from_hf("folder/config.json")
"""

import os
import re
from dataclasses import dataclass, replace
from typing import Any

from course.model.rope import LAYOUTS, RopeScaling

GATES = ("softmax", "sigmoid")
KERNELS = ("torch", "triton")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape and its numbers; two models with equal configs have the same state dict.

    Attention is grouped-query attention (`kv_heads`, `head_dim`), or with `kv_lora_rank` multi-head latent attention, to
    which `index_topk` adds the sparse attention of DeepSeek-V3.2. A feed-forward layer is dense (`mlp_width`) or a mixture
    (`experts`, `top_k`, `expert_width`); in a mixture the first `dense_layers` layers are dense.
    """

    vocab: int = 1024  # token ids
    context: int = 256  # longest sequence in tokens
    width: int = 128  # of the residual stream
    layers: int = 4
    heads: int = 4  # query heads
    kv_heads: int = 4  # key and value heads; fewer than `heads` is grouped-query attention
    head_dim: int | None = None  # features a head; None: width / heads
    qkv_bias: bool = False  # as in Qwen2
    output_bias: bool = False  # of the attention's output projection
    qk_norm: bool = False  # RMSNorm of every head's query and key, before RoPE, as in Qwen3
    kv_lora_rank: int = 0  # width of the latent of keys and values; 0: no latent attention
    q_lora_rank: int = 0  # width of the latent of queries; 0: queries come from the stream itself
    qk_nope_head_dim: int = 0  # features of a query and key head that are not turned
    qk_rope_head_dim: int = 0  # and those that are; the key's are shared by all heads
    v_head_dim: int = 0  # features of a value head
    index_topk: int = 0  # keys that a query attends to, chosen by the lightning indexer; 0: all
    index_heads: int = 0
    index_head_dim: int = 0
    mlp_width: int = 0  # hidden width of a dense feed-forward layer
    experts: int = 0  # routed experts in each mixture layer
    top_k: int = 0  # routed experts a token
    expert_width: int = 0  # hidden width of one expert
    dense_layers: int = 0  # how many first layers of a mixture are dense
    shared_experts: int = 0  # experts that every token meets, beside the routed ones
    gate: str = "softmax"  # or "sigmoid": how the router scores
    normalised: bool = True  # whether the weights of the chosen experts are divided by their sum
    routed_scale: float = 1.0  # what they are multiplied with then
    selection_bias: bool = False  # a number an expert that is added to its score for the choice alone
    groups: int = 1  # the experts stand in so many groups, of which
    top_groups: int = 1  # so many may be chosen from,
    group_best: int = (
        2  # ranked by the sum of their so many best scores (V2: 1; V3's code: 2; V3's report: top_k / top_groups)
    )
    capacity_factor: float | None = None  # rows an expert takes, in multiples of the mean load; None: no limit
    balance_weight: float = 0.01  # of the balance loss over the batch
    sequence_balance_weight: float = 0.0  # of the balance loss over each sequence, V3's alpha
    bias_rate: float = 0.0  # how far a selection bias moves after each training step, V3's gamma
    mtp_layers: int = 0  # modules that predict further tokens
    mtp_weight: float = 0.3  # of their mean loss, V3's lambda
    rope_theta: float = 10_000.0
    rope_layout: str = "half"  # or "interleaved": which features make a pair
    rope_scaling: RopeScaling | None = None  # how the turning is slowed for a longer context
    norm_eps: float = 1e-5
    tied: bool = False  # whether the output head is the embedding matrix
    kernels: str = "torch"  # or "triton": what norms, RoPE, mixtures, SwiGLU and the loss run on; no number changes

    def __post_init__(self):
        self._check_attention()
        self._check_feed_forward()

    @property
    def latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank > 0

    @property
    def head_width(self) -> int:
        """Features of one key: what a query is multiplied with."""
        if self.latent:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.width // self.heads

    @property
    def value_width(self) -> int:
        """Features of one value."""
        return self.v_head_dim if self.latent else self.head_width

    @property
    def rope_width(self) -> int:
        """Features of a head that RoPE turns."""
        return self.qk_rope_head_dim if self.latent else self.head_width

    def is_mixture(self, layer: int) -> bool:
        """Whether the feed-forward part of a layer is a mixture; multi-token modules follow the last layer."""
        return self.experts > 0 and layer >= self.dense_layers

    def dense_twin(self) -> "ModelConfig":
        """The dense model that does the same work a token: feed-forward layers as wide as all experts that a token meets.

        Equal in active parameters and FLOPs but for the router's width x experts a layer.
        """
        assert self.experts, "only a mixture has a dense twin"
        assert not self.dense_layers, "the twin of a mixture with dense layers would need two widths"
        wide = (self.top_k + self.shared_experts) * self.expert_width
        plain = {name: getattr(ModelConfig, name) for name in MIXTURE}
        return replace(self, mlp_width=wide, **plain)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """A preset by name; capitals and punctuation do not matter."""
        from course.model.presets import PRESETS

        found = {_plain(known): config for known, config in PRESETS.items()}.get(_plain(name))
        if found is None:
            raise ValueError(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
        return found

    @classmethod
    def from_hf(cls, config: str | os.PathLike | dict[str, Any]) -> "ModelConfig":
        """The shape that a published config.json describes: the file, its folder, or what it holds.

        Raises: PretrainedError when it cannot be read or describes a model of another kind.
        """
        from course.model.hf_config import config_from_hf, read_config

        return config_from_hf(config if isinstance(config, dict) else read_config(config))

    def _check_attention(self):
        assert self.kernels in KERNELS, f"kernels {self.kernels!r} is none of {', '.join(KERNELS)}"
        assert self.rope_layout in LAYOUTS, f"rope_layout {self.rope_layout!r} is none of {', '.join(LAYOUTS)}"
        if self.latent:
            assert self.qk_nope_head_dim > 0, "latent attention needs qk_nope_head_dim"
            assert self.qk_rope_head_dim > 0, "latent attention needs qk_rope_head_dim"
            assert self.v_head_dim > 0, "latent attention needs v_head_dim"
        else:
            if self.head_dim is None:
                assert self.width % self.heads == 0, f"width {self.width} does not divide into {self.heads} heads"
            shared = self.heads % self.kv_heads == 0
            assert shared, f"{self.heads} query heads do not share {self.kv_heads} kv heads evenly"
        assert self.latent or not self.index_topk, "only latent attention has an indexer"
        assert self.rope_width % 2 == 0, f"RoPE turns pairs, so the head width {self.rope_width} must be even"
        if self.index_topk:
            assert self.q_lora_rank > 0, "the indexer reads the latent of the queries: give q_lora_rank"
            assert self.index_heads > 0, "an indexer needs index_heads"
            assert self.index_head_dim >= self.qk_rope_head_dim, "index_head_dim must hold the turned features"

    def _check_feed_forward(self):
        if not self.experts:
            assert self.mlp_width > 0, "give either mlp_width (dense) or experts (a mixture)"
            return
        both = (self.mlp_width > 0) == (self.dense_layers > 0)
        assert both, "give either mlp_width (dense) or experts (a mixture), or both with dense_layers"
        assert 1 <= self.top_k <= self.experts, f"top_k {self.top_k} must lie between 1 and {self.experts} experts"
        assert self.expert_width > 0, "a mixture needs expert_width, the hidden width of one expert"
        assert self.gate in GATES, f"gate {self.gate!r} is none of {', '.join(GATES)}"
        assert self.experts % self.groups == 0, f"{self.experts} experts do not make {self.groups} equal groups"
        assert 1 <= self.top_groups <= self.groups, f"top_groups {self.top_groups} must lie between 1 and {self.groups}"
        open_to = self.top_groups * self.experts // self.groups
        assert self.top_k <= open_to, f"{self.top_groups} groups have {open_to} experts, fewer than top_k {self.top_k}"
        assert self.capacity_factor is None or self.capacity_factor > 0, "capacity_factor must be positive or None"


MIXTURE = (  # the settings that only a mixture has
    *("experts", "top_k", "expert_width", "shared_experts", "gate", "normalised", "routed_scale", "selection_bias"),
    *("groups", "top_groups", "group_best", "capacity_factor", "sequence_balance_weight", "bias_rate"),
)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
