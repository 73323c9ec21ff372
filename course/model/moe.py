"""The mixture-of-experts layer: route, sort, run the experts as one grouped product, combine.

Shapes: T tokens, D width, E experts, K experts a token, I hidden width of one expert, F = 2I, R rows (kept pairs).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.dispatch import capacity_mask, combine, expert_capacity, sort_by_expert, sort_kept
from course.model.experts import grouped_experts
from course.model.router import gate_probabilities, largest_k, renormalised


class Routing(NamedTuple):
    """What the router decided for one layer: enough for a balance loss, a heat map, or statistics of load."""

    probabilities_TE: Tensor
    indices_TK: Tensor  # the choice, before any drop
    weights_TK: Tensor
    kept_TK: Tensor | None  # None: no capacity, all pairs kept


class MoE(nn.Module):
    """y = sum over the chosen experts of weight * SwiGLU_expert(x)   (Mixtral report, section 2.1).

    With `capacity_factor` an expert takes a limited number of rows; a dropped pair adds nothing, the other weights
    stay as they are, and a token that lost all its experts is left to the residual stream.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.experts, self.top_k = config.experts, config.top_k
        self.capacity_factor = config.capacity_factor
        self.gate_ED = nn.Parameter(0.02 * torch.randn(config.experts, config.width))
        self.gate_up_EFD = nn.Parameter(0.02 * torch.randn(config.experts, 2 * config.expert_width, config.width))
        self.down_EDI = nn.Parameter(0.02 * torch.randn(config.experts, config.width, config.expert_width))

    def forward(self, x_TD: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T D"], Routing]:
        routing = self.route(x_TD)
        if routing.kept_TK is None:
            order_R, offsets_E1 = sort_by_expert(routing.indices_TK, self.experts)
        else:
            order_R, offsets_E1 = sort_kept(routing.indices_TK, routing.kept_TK, self.experts)
        rows_RD = x_TD.index_select(0, order_R // self.top_k)
        rows_RD = grouped_experts(rows_RD, self.gate_up_EFD, self.down_EDI, offsets_E1)
        return combine(rows_RD, order_R, routing.weights_TK), routing

    def route(self, x_TD: Float[Tensor, "T D"]) -> Routing:
        probabilities_TE = gate_probabilities(x_TD, self.gate_ED)
        indices_TK = largest_k(probabilities_TE, self.top_k)
        kept_TK = None
        if self.capacity_factor is not None:
            capacity = expert_capacity(len(x_TD), self.experts, self.top_k, self.capacity_factor)
            kept_TK = capacity_mask(indices_TK, self.experts, capacity)
        return Routing(probabilities_TE, indices_TK, renormalised(probabilities_TE, indices_TK), kept_TK)
