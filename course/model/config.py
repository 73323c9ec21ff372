"""The shape of a model in one frozen record, and presets.

config = ModelConfig.preset("tiny-moe")
"""

import re
from dataclasses import dataclass, replace

from course.model.rope import LAYOUTS, Llama3Scaling, RopeScaling


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape and its numbers; two models with equal configs have the same state dict.

    A feed-forward layer is either dense (`mlp_width`) or a mixture (`experts`, `top_k`, `expert_width`), never both.
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
    mlp_width: int = 0  # hidden width of the dense feed-forward layer
    experts: int = 0  # in each layer
    top_k: int = 0  # experts a token
    expert_width: int = 0  # hidden width of one expert
    capacity_factor: float | None = None  # rows an expert takes, in multiples of the mean load; None: no limit
    balance_weight: float = 0.01  # of the load-balancing loss
    rope_theta: float = 10_000.0
    rope_layout: str = "half"  # or "interleaved": which features make a pair
    rope_scaling: RopeScaling | None = None  # how the turning is slowed for a longer context
    norm_eps: float = 1e-5
    tied: bool = False  # whether the output head is the embedding matrix

    def __post_init__(self):
        if self.head_dim is None:
            assert self.width % self.heads == 0, f"width {self.width} does not divide into {self.heads} heads"
        assert self.head_width % 2 == 0, f"RoPE turns pairs, so the head width {self.head_width} must be even"
        assert self.heads % self.kv_heads == 0, f"{self.heads} query heads do not share {self.kv_heads} kv heads evenly"
        assert self.rope_layout in LAYOUTS, f"rope_layout {self.rope_layout!r} is none of {', '.join(LAYOUTS)}"
        assert (self.mlp_width > 0) != (self.experts > 0), "give either mlp_width (dense) or experts (a mixture)"
        if self.experts:
            assert 1 <= self.top_k <= self.experts, f"top_k {self.top_k} must lie between 1 and {self.experts} experts"
            assert self.expert_width > 0, "a mixture needs expert_width, the hidden width of one expert"
        assert self.capacity_factor is None or self.capacity_factor > 0, "capacity_factor must be positive or None"

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    def dense_twin(self) -> "ModelConfig":
        """The dense model that does the same work a token: one feed-forward layer as wide as the k chosen experts.

        Equal in active parameters and FLOPs but for the router's width x experts a layer.
        """
        assert self.experts, "only a mixture has a dense twin"
        return replace(self, mlp_width=self.top_k * self.expert_width, experts=0, top_k=0, expert_width=0)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """A preset by name; capitals and punctuation do not matter."""
        found = {_plain(known): config for known, config in PRESETS.items()}.get(_plain(name))
        if found is None:
            raise ValueError(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
        return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_tiny_moe = ModelConfig(experts=8, top_k=2, expert_width=128)

PRESETS = {
    "tiny-moe": _tiny_moe,
    "tiny-dense": _tiny_moe.dense_twin(),
    "llama-3.1-405b": ModelConfig(  # Llama 3 report, table 3; the vocabulary and RoPE of the published config.json
        vocab=128_256,
        context=131_072,
        width=16_384,
        layers=126,
        heads=128,
        kv_heads=8,
        mlp_width=53_248,
        rope_theta=500_000.0,
        rope_scaling=Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_context=8192),
    ),
    "qwen2.5-72b": ModelConfig(  # the published config.json
        vocab=152_064,
        context=131_072,
        width=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        qkv_bias=True,
        mlp_width=29_568,
        rope_theta=1_000_000.0,
    ),
}
