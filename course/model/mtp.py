"""Multi-token prediction: small modules behind the main model that predict one token further each (V3 report, section 2.2).

Shapes: B batch, S positions, D width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course.model.block import Block
from course.model.config import ModelConfig
from course.model.moe import Routing
from course.model.norm import RMSNorm


class Further(NamedTuple):
    hidden_BSD: Tensor  # normed: what the head reads, and the next module
    routing: Routing | None


class MTPModule(nn.Module):
    """Module k joins what module k-1 knew at position i with the embedding of token i+k, and predicts token i+k+1.

    Embedding and head are the main model's. The projection reads [embedding; hidden], as every published checkpoint has
    it; the report (equation 21) writes them the other way round.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding_norm = RMSNorm(config.width, config.norm_eps, config.kernels)
        self.hidden_norm = RMSNorm(config.width, config.norm_eps, config.kernels)
        self.projection = nn.Linear(2 * config.width, config.width, bias=False)
        self.block = Block(config, layer=config.layers)
        self.norm = RMSNorm(config.width, config.norm_eps, config.kernels)

    def forward(
        self,
        embedded_BSD: Float[Tensor, "B S D"],
        hidden_BSD: Float[Tensor, "B S D"],
        cos: Tensor,
        sin: Tensor,
        cache=None,
    ) -> Further:
        """hidden_BSD: of the main model after its last norm, or of the module before. Positions are those of hidden_BSD."""
        joined = torch.cat([self.embedding_norm(embedded_BSD), self.hidden_norm(hidden_BSD)], dim=-1)
        x_BSD, routing = self.block(self.projection(joined), cos, sin, cache)
        return Further(self.norm(x_BSD), routing)
