"""The router: which experts see which token, with what weight, and how evenly the work is spread.

Shapes: T tokens, D width, E experts, K experts a token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def gate_probabilities(x_TD: Float[Tensor, "T D"], gate_ED: Float[Tensor, "E D"]) -> Float[Tensor, "T E"]:
    """softmax(x gate^T) over the experts, in float32 or better, also under autocast: near ties are common and rounding
    decides them."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    with torch.autocast(x_TD.device.type, enabled=False):
        return (x_TD.to(wide) @ gate_ED.to(wide).T).softmax(dim=-1)


def largest_k(scores_TE: Float[Tensor, "T E"], k: int) -> Int64[Tensor, "T K"]:
    """The indices of the k largest scores in each row, largest first; ties go to the lower index.

    `torch.topk` leaves open which of two equal entries it takes. So take one more than needed, and where two
    neighbours are equal fall back on a stable sort, which is slower and has a rule.
    """
    top = scores_TE.topk(min(k + 1, scores_TE.shape[1]), dim=-1)
    if (top.values.diff(dim=-1) == 0).any():
        return scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return top.indices[:, :k]


def renormalised(probabilities_TE: Float[Tensor, "T E"], indices_TK: Int64[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    """The chosen experts' probabilities, divided by their sum. The only way a gradient reaches the router."""
    chosen_TK = probabilities_TE.gather(1, indices_TK)
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


def expert_counts(indices_TK: Int64[Tensor, "T K"], experts: int) -> Int64[Tensor, " {experts}"]:
    """How many (token, slot) pairs each expert received."""
    return indices_TK.flatten().bincount(minlength=experts)


_mean_over_ranks: ContextVar[Callable[[Tensor], Tensor]] = ContextVar(
    "mean_over_ranks", default=lambda shares_E: shares_E
)


@contextmanager
def balanced_over(mean: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, this process holds one of several equal parts of a batch, and `balance_loss` is about the whole of it.

    mean: the mean of a tensor over the processes. The shares, which are counts, become those of the whole batch; the
    probabilities enter linearly. So the mean of the parts' losses is the whole batch's loss, and so with gradients.
    """
    token = _mean_over_ranks.set(mean)
    try:
        yield
    finally:
        _mean_over_ranks.reset(token)


def balance_loss(probabilities_TE: Float[Tensor, "T E"], indices_TK: Int64[Tensor, "T K"]) -> Float[Tensor, ""]:
    """E * sum over experts of (share of tokens that chose it) * (mean probability given to it).

    Switch Transformer, equations 4 to 6, with the shares summed over the K slots as Mixtral's code in `transformers`
    does and without a factor 1/K: it is K at balance, and E when one expert has everything and K = 1. The shares are
    counts, so the gradient flows through the probabilities alone. Zero for no tokens.

    One layer at a time. `transformers` pools all layers before the product, so there one layer can make up for
    another.
    """
    T, E = probabilities_TE.shape
    shares_E = _mean_over_ranks.get()(expert_counts(indices_TK, E) / max(T, 1))
    return E * (shares_E * probabilities_TE.sum(dim=0) / max(T, 1)).sum()


class Load(NamedTuple):
    """How the pairs of one layer were spread over its experts."""

    counts_E: Tensor  # pairs an expert
    idle: int  # experts that received none
    max_violation: float  # largest count over mean count, minus one: 0 at balance (Wang et al. 2024, MaxVio)


def expert_load(indices_TK: Int64[Tensor, "T K"], experts: int) -> Load:
    """Load statistics. The mean of no pairs counts as balanced."""
    counts_E = expert_counts(indices_TK, experts)
    mean = max(indices_TK.numel() / experts, 1 / experts)
    violation = counts_E.max().item() / mean - 1 if indices_TK.numel() else 0.0
    return Load(counts_E, int((counts_E == 0).sum()), violation)
