"""The router: which experts see which token, with what weight.

Shapes: T tokens, D width, E experts, K experts a token, G groups of experts.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from course.model.config import ModelConfig


def gate_logits(x_TD: Float[Tensor, "T D"], gate_ED: Float[Tensor, "E D"]) -> Float[Tensor, "T E"]:
    """x gate^T in float32 or better, also under autocast: near ties are common and rounding decides them."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    with torch.autocast(x_TD.device.type, enabled=False):
        return x_TD.to(wide) @ gate_ED.to(wide).T


def scored(logits_TE: Float[Tensor, "T E"], gate: str) -> Float[Tensor, "T E"]:
    """Their softmax over the experts, or the sigmoid of each (V3 report, equation 15)."""
    return logits_TE.softmax(dim=-1) if gate == "softmax" else logits_TE.sigmoid()


def gate_scores(
    x_TD: Float[Tensor, "T D"], gate_ED: Float[Tensor, "E D"], gate: str = "softmax"
) -> Float[Tensor, "T E"]:
    """softmax(x gate^T) over the experts, or the sigmoid of each."""
    return scored(gate_logits(x_TD, gate_ED), gate)


def gate_probabilities(x_TD: Float[Tensor, "T D"], gate_ED: Float[Tensor, "E D"]) -> Float[Tensor, "T E"]:
    """softmax(x gate^T) over the experts."""
    return gate_scores(x_TD, gate_ED)


def largest_k(scores_TE: Float[Tensor, "T E"], k: int) -> Int64[Tensor, "T K"]:
    """The indices of the k largest scores in each row, largest first; ties go to the lower index. Which of several scores
    of minus infinity comes first is left open.

    `torch.topk` leaves open which of two equal entries it takes. So take one more than needed, and where two
    neighbours are equal fall back on a stable sort, which is slower and has a rule.
    """
    top = scores_TE.topk(min(k + 1, scores_TE.shape[1]), dim=-1)
    if ((top.values[:, :-1] == top.values[:, 1:]) & (top.values[:, 1:] > float("-inf"))).any():
        return scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return top.indices[:, :k]


def limit_groups(scores_TE: Float[Tensor, "T E"], groups: int, top_groups: int, best: int) -> Float[Tensor, "T E"]:
    """Minus infinity outside of the `top_groups` best groups of neighbouring experts; ties go to the lower group.

    A group is ranked by the sum of its `best` largest scores: V2 takes its largest (report, section 2.2.2), V3's code two,
    and V3's report as many as a token then takes of each group, K / top_groups (section 2.1.2). Minus infinity, since a
    biased score may be negative: against zeros an expert of a closed group would win.
    """
    scores_TGE = scores_TE.unflatten(-1, (groups, -1))
    ranks_TG = scores_TGE.topk(min(best, scores_TGE.shape[-1]), dim=-1).values.sum(dim=-1)
    open_TG = torch.zeros_like(ranks_TG, dtype=torch.bool).scatter(1, largest_k(ranks_TG, top_groups), True)
    return scores_TGE.masked_fill(~open_TG[..., None], float("-inf")).flatten(1)


def renormalised(scores_TE: Float[Tensor, "T E"], indices_TK: Int64[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    """The chosen experts' scores, divided by their sum. The only way a gradient reaches the router."""
    chosen_TK = scores_TE.gather(1, indices_TK)
    return chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


def softmax_topk_gate(
    x_TD: Float[Tensor, "T D"], gate_ED: Float[Tensor, "E D"], k: int
) -> tuple[Int64[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Pick k experts a token by softmax probability (Mixtral report, section 2.1).

    Returns: indices_TK, most probable first, ties to the lower expert index; and weights_TK, the probabilities of
    the chosen divided by their sum, which equals a softmax over the k chosen logits.
    """
    probabilities_TE = gate_probabilities(x_TD, gate_ED)
    indices_TK = largest_k(probabilities_TE, k)
    return indices_TK, renormalised(probabilities_TE, indices_TK)


def choose_experts(
    scores_TE: Float[Tensor, "T E"], bias_E: Float[Tensor, " E"] | None, config: ModelConfig
) -> tuple[Int64[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Which experts a token goes to, best first, and the weights of what they say (V3 report, equations 12 to 16).

    The bias and the groups move the choice alone: the weights come from the scores as they are, normalised over the chosen
    where the config says so, then scaled.
    """
    c = config
    ranked_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if c.groups > 1:
        ranked_TE = limit_groups(ranked_TE, c.groups, c.top_groups, c.group_best)
    indices_TK = largest_k(ranked_TE, c.top_k)
    weights_TK = renormalised(scores_TE, indices_TK) if c.normalised else scores_TE.gather(1, indices_TK)
    return indices_TK, weights_TK * c.routed_scale


def choose_on_kernels(
    logits_TE: Float[Tensor, "T E"], bias_E: Float[Tensor, " E"] | None, config: ModelConfig
) -> tuple[Int64[Tensor, "T K"], Float[Tensor, "T K"]]:
    """`choose_experts` of the scores of these logits, float32, as one Triton kernel; the gradient is another's."""
    from course.kernels.autograd_moe import router_with_grad

    c, bias_E = config, None if bias_E is None else bias_E.float()
    groups = c.groups, c.top_groups, c.group_best
    return router_with_grad(logits_TE, bias_E, c.top_k, c.gate, *groups, c.normalised, c.routed_scale)
