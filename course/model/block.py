"""One layer of the model: attention and feed-forward, each beside the residual stream.

Shapes: B batch, S sequence, D width.
"""

from torch import Tensor, nn

from course.model.attention import Attention, KVCache
from course.model.config import ModelConfig
from course.model.latent_attention import LatentAttention, LatentCache
from course.model.moe import MoE, Routing
from course.model.norm import RMSNorm
from course.model.swiglu import SwiGLU

Cache = KVCache | LatentCache


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): the residual stream itself is never normalised."""

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps, config.kernels)
        self.attention = LatentAttention(config) if config.latent else Attention(config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps, config.kernels)
        self.feed_forward = (
            MoE(config) if config.is_mixture(layer) else SwiGLU(config.width, config.mlp_width, config.kernels)
        )

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> tuple[Tensor, Routing | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos, sin, cache)
        h_BSD = self.feed_forward_norm(x_BSD)
        if isinstance(self.feed_forward, SwiGLU):
            return x_BSD + self.feed_forward(h_BSD), None
        y_TD, routing = self.feed_forward(h_BSD.flatten(0, 1))
        return x_BSD + y_TD.view_as(x_BSD), routing
