"""The mixture-of-experts layer: route, sort, run the experts as one grouped product, combine, add the shared experts.

Shapes: T tokens, D width, E experts, K experts a token, I hidden width of one expert, F = 2I, R rows (kept pairs).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.dispatch import capacity_mask, combine, expert_capacity, sort_by_expert, sort_kept
from course.model.experts import grouped_experts
from course.model.router import choose_experts, gate_scores
from course.model.swiglu import SwiGLU


class Routing(NamedTuple):
    """What the router decided for one layer: enough for a balance loss, a heat map, or statistics of load."""

    probabilities_TE: Tensor  # scores over their sum
    indices_TK: Tensor  # the choice, before any drop
    weights_TK: Tensor
    kept_TK: Tensor | None  # None: no capacity, all pairs kept


class MoE(nn.Module):
    """y = sum over the chosen experts of weight * SwiGLU_expert(x), plus the shared experts, which are one SwiGLU as wide
    as all of them together   (Mixtral report, section 2.1; DeepSeek-V3 report, section 2.1.2).

    With `capacity_factor` an expert takes a limited number of rows; a dropped pair adds nothing, the other weights
    stay as they are, and a token that lost all its experts is left to the residual stream.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gate_ED = nn.Parameter(0.02 * torch.randn(config.experts, config.width))
        if config.selection_bias:  # moved by `course.training` after a step, never by a gradient
            self.register_buffer("bias_E", torch.zeros(config.experts))
        self.gate_up_EFD = nn.Parameter(0.02 * torch.randn(config.experts, 2 * config.expert_width, config.width))
        self.down_EDI = nn.Parameter(0.02 * torch.randn(config.experts, config.width, config.expert_width))
        if config.shared_experts:
            self.shared = SwiGLU(config.width, config.shared_experts * config.expert_width, config.kernels)

    def forward(self, x_TD: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T D"], Routing]:
        c, routing = self.config, self.route(x_TD)
        if routing.kept_TK is None:
            order_R, offsets_E1 = sort_by_expert(routing.indices_TK, c.experts)
        else:
            order_R, offsets_E1 = sort_kept(routing.indices_TK, routing.kept_TK, c.experts)
        rows_RD = x_TD.index_select(0, order_R // c.top_k)
        rows_RD = grouped_experts(rows_RD, self.gate_up_EFD, self.down_EDI, offsets_E1, c.kernels)
        y_TD = combine(rows_RD, order_R, routing.weights_TK).to(x_TD.dtype)  # weights are float32
        return y_TD + self.shared(x_TD) if c.shared_experts else y_TD, routing

    def route(self, x_TD: Float[Tensor, "T D"]) -> Routing:
        c = self.config
        scores_TE = gate_scores(x_TD, self.gate_ED, c.gate)
        indices_TK, weights_TK = choose_experts(scores_TE, self.bias_E if c.selection_bias else None, c)
        kept_TK = None
        if c.capacity_factor is not None:
            capacity = expert_capacity(len(x_TD), c.experts, c.top_k, c.capacity_factor)
            kept_TK = capacity_mask(indices_TK, c.experts, capacity)
        probabilities_TE = scores_TE if c.gate == "softmax" else scores_TE / scores_TE.sum(dim=-1, keepdim=True)
        return Routing(probabilities_TE, indices_TK, weights_TK, kept_TK)
