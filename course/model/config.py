"""The shape of a model in one frozen record, its presets, and how many parameters it has.

config = ModelConfig.preset("tiny-moe")
active_parameters(config), total_parameters(config)
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape; two models with equal configs have the same state dict.

    A feed-forward layer is either dense (`mlp_width`) or a mixture (`experts`, `top_k`, `expert_width`), never both.
    """

    vocab: int = 1024  # token ids
    context: int = 256  # longest sequence in tokens
    width: int = 128  # of the residual stream
    layers: int = 4
    heads: int = 4  # query heads
    kv_heads: int = 4  # key and value heads; fewer than `heads` is grouped-query attention
    mlp_width: int = 0  # hidden width of the dense feed-forward layer
    experts: int = 0  # in each layer
    top_k: int = 0  # experts a token
    expert_width: int = 0  # hidden width of one expert
    capacity_factor: float | None = None  # rows an expert takes, in multiples of the mean load; None: no limit
    balance_weight: float = 0.01  # of the load-balancing loss
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False  # whether the output head is the embedding matrix

    def __post_init__(self):
        assert self.width % self.heads == 0, f"width {self.width} does not divide into {self.heads} heads"
        assert self.head_width % 2 == 0, f"RoPE turns pairs, so the head width {self.head_width} must be even"
        assert self.heads % self.kv_heads == 0, f"{self.heads} query heads do not share {self.kv_heads} kv heads evenly"
        assert (self.mlp_width > 0) != (self.experts > 0), "give either mlp_width (dense) or experts (a mixture)"
        if self.experts:
            assert 1 <= self.top_k <= self.experts, f"top_k {self.top_k} must lie between 1 and {self.experts} experts"
            assert self.expert_width > 0, "a mixture needs expert_width, the hidden width of one expert"
        assert self.capacity_factor is None or self.capacity_factor > 0, "capacity_factor must be positive or None"

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def dense_twin(self) -> "ModelConfig":
        """The dense model that does the same work a token: one feed-forward layer as wide as the k chosen experts.

        Equal in active parameters and FLOPs but for the router's width x experts a layer.
        """
        assert self.experts, "only a mixture has a dense twin"
        return replace(self, mlp_width=self.top_k * self.expert_width, experts=0, top_k=0, expert_width=0)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
        return PRESETS[name]


_tiny_moe = ModelConfig(experts=8, top_k=2, expert_width=128)

PRESETS = {"tiny-moe": _tiny_moe, "tiny-dense": _tiny_moe.dense_twin()}


def total_parameters(config: ModelConfig) -> int:
    """All parameters of the model."""
    return _parameters(config, experts=config.experts)


def active_parameters(config: ModelConfig) -> int:
    """The parameters that one token meets: all but the experts it was not sent to. Counts embedding and head."""
    return _parameters(config, experts=config.top_k)


def _parameters(c: ModelConfig, experts: int) -> int:
    attention = 2 * c.width * c.head_width * (c.heads + c.kv_heads)
    mixture = c.experts * c.width + experts * 3 * c.width * c.expert_width  # the router, then the experts
    feed_forward = mixture if c.experts else 3 * c.width * c.mlp_width
    norms = 2 * c.width
    embeddings = c.vocab * c.width * (1 if c.tied else 2)
    return embeddings + c.layers * (attention + feed_forward + norms) + c.width
