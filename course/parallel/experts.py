"""The expert-parallel mixture layer: each rank has some of the experts and its own tokens (GShard, section 3; DeepSeek-V3
report, section 3.2).

Route here, send tokens to the ranks of their experts, run these as one grouped product, send what they say home and add it
up. Router, grouping, experts and combine are `course.model`'s own; only the travel is new. Router and shared experts are copied
on every rank and see its tokens alone, so their gradients must be summed over the ranks; an expert's gradient is whole where the
expert is, since all its tokens came there.

Shapes: T tokens of this rank, D width, E experts of this rank, K experts a token, A rows that arrive.
"""

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.dispatch import combine, sort_kept
from course.model.experts import grouped_experts
from course.model.moe import MoE, Routing
from course.parallel.dispatch import Dispatch, Links, Visit

EXPERTS = ("gate_up_EFD", "down_EDI")


class ExpertParallelMoE(MoE):
    """`MoE` over the ranks of `links`: the same numbers as one process that holds all experts and all tokens.

    Ranks may have different numbers of tokens, or none. With a `capacity_factor` an expert takes a limited number of rows
    from each rank, in proportion to that rank's tokens; a dropped pair does not travel.
    """

    def __init__(
        self, config: ModelConfig, links: Links, dispatch: str = "rank", wire: str = "same", wire_back: str = "same"
    ):
        """dispatch: "pair", "rank" or "node"; wire, wire_back: "same", "bf16" or "fp8". Draws what `MoE` draws, then keeps
        this rank's experts. Raises: ValueError when the experts do not divide among the ranks."""
        super().__init__(config)
        self.links, self.travel = links, (dispatch, wire, wire_back)
        self.each = links.grid.experts_each(config.experts)
        Dispatch(links, config.experts, *self.travel)
        for name in EXPERTS:
            setattr(self, name, nn.Parameter(self._own(getattr(self, name).detach()).clone()))

    def load_whole(self, state: dict[str, Tensor]) -> None:
        """Take the numbers of an `MoE` of the same config, of the experts this rank's."""
        self.load_state_dict({name: self._own(value) if name in EXPERTS else value for name, value in state.items()})

    def forward(self, x_TD: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T D"], Routing]:
        """All ranks call this together, and then all or none of them `backward`. The routing is that of this rank's tokens."""
        routing = self.route(x_TD)
        experts_TK = routing.indices_TK
        if routing.kept_TK is not None:
            experts_TK = experts_TK.masked_fill(~routing.kept_TK, -1)
        trip = Dispatch(self.links, self.config.experts, *self.travel)
        rows_AD, experts_AK, weights_AK = trip.out(Visit(x_TD, experts_TK.int(), routing.weights_TK))
        kept_AK = experts_AK >= 0
        own_AK = (experts_AK.long() - self.links.rank * self.each).masked_fill(~kept_AK, 0)
        arrived = Routing(routing.probabilities_TE, own_AK, weights_AK, kept_AK)
        answers_AD = self._fused(rows_AD, arrived) if self._on_kernels(rows_AD) else self._grouped(rows_AD, arrived)
        y_TD = trip.home(answers_AD)
        return y_TD + self.shared(x_TD) if self.config.shared_experts else y_TD, routing

    def sum_gradients(self) -> None:
        """Add up over the ranks the gradients of what every rank has a copy of. All ranks call this together."""
        for name, parameter in self.named_parameters():
            if name not in EXPERTS and parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def _own(self, whole_E: Tensor) -> Tensor:
        return whole_E[self.links.rank * self.each :][: self.each]

    def _grouped(self, rows_AD: Tensor, arrived: Routing) -> Tensor:
        order_R, offsets_E1 = sort_kept(arrived.indices_TK, arrived.kept_TK, self.each)
        rows_RD = rows_AD.index_select(0, order_R // arrived.indices_TK.shape[1])
        rows_RD = grouped_experts(rows_RD, self.gate_up_EFD, self.down_EDI, offsets_E1)
        return combine(rows_RD, order_R, arrived.weights_TK).to(rows_AD.dtype)
