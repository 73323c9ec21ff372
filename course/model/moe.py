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
from course.model.router import choose_experts, choose_on_kernels, gate_logits, scored
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
        routing = self.route(x_TD)
        y_TD = self._fused(x_TD, routing) if self._on_kernels(x_TD) else self._grouped(x_TD, routing)
        return y_TD + self.shared(x_TD) if self.config.shared_experts else y_TD, routing

    def route(self, x_TD: Float[Tensor, "T D"]) -> Routing:
        c = self.config
        logits_TE, bias_E = gate_logits(x_TD, self.gate_ED), self.bias_E if c.selection_bias else None
        scores_TE = scored(logits_TE, c.gate)
        if self._on_kernels(x_TD):
            indices_TK, weights_TK = choose_on_kernels(logits_TE, bias_E, c)
        else:
            indices_TK, weights_TK = choose_experts(scores_TE, bias_E, c)
        kept_TK = None
        if c.capacity_factor is not None:
            capacity = expert_capacity(len(x_TD), c.experts, c.top_k, c.capacity_factor)
            kept_TK = capacity_mask(indices_TK, c.experts, capacity)
        probabilities_TE = scores_TE if c.gate == "softmax" else scores_TE / scores_TE.sum(dim=-1, keepdim=True)
        return Routing(probabilities_TE, indices_TK, weights_TK, kept_TK)

    def _on_kernels(self, x_TD: Tensor) -> bool:
        """Whether this runs on Triton kernels; PyTorch does what they do not take, float64 and more than 4,096 experts."""
        c = self.config
        if c.kernels != "triton" or x_TD.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return False
        from course.kernels.router import has_room

        return has_room(c.experts, c.groups)

    def _grouped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        c = self.config
        if routing.kept_TK is None:
            order_R, offsets_E1 = sort_by_expert(routing.indices_TK, c.experts)
        else:
            order_R, offsets_E1 = sort_kept(routing.indices_TK, routing.kept_TK, c.experts)
        rows_RD = x_TD.index_select(0, order_R // c.top_k)
        rows_RD = grouped_experts(rows_RD, self.gate_up_EFD, self.down_EDI, offsets_E1)
        return combine(rows_RD, order_R, routing.weights_TK).to(x_TD.dtype)  # weights are float32

    def _fused(self, x_TD: Tensor, routing: Routing) -> Tensor:
        from course.kernels.autograd_moe import routed_experts_with_grad

        ids_TK, device = routing.indices_TK, x_TD.device.type
        if routing.kept_TK is not None:
            ids_TK = ids_TK.masked_fill(~routing.kept_TK, -1)
        products = [x_TD, self.gate_up_EFD, self.down_EDI]
        if torch.is_autocast_enabled(device):  # which does not know the kernels
            products = [tensor.to(torch.get_autocast_dtype(device)) for tensor in products]
        return routed_experts_with_grad(products[0], ids_TK, routing.weights_TK, *products[1:]).to(x_TD.dtype)
