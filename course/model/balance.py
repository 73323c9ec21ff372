"""How evenly the work is spread over the experts: measured, and pushed by two losses or by a bias.

Shapes: T tokens, E experts, K experts a token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


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
    """E * sum over experts of (share of tokens that chose it) * (mean probability given to it), over the whole batch.

    Switch Transformer, equations 4 to 6, with the shares summed over the K slots as Mixtral's code in `transformers`
    does and without a factor 1/K: it is K at balance, and E when one expert has everything and K = 1. The shares are
    counts, so the gradient flows through the probabilities alone. Zero for no tokens.

    One layer at a time. `transformers` pools all layers before the product, so there one layer can make up for
    another.
    """
    T, E = probabilities_TE.shape
    shares_E = _mean_over_ranks.get()(expert_counts(indices_TK, E) / max(T, 1))
    return E * (shares_E * probabilities_TE.sum(dim=0) / max(T, 1)).sum()


def sequence_balance_loss(
    probabilities_BSE: Float[Tensor, "B S E"], indices_BSK: Int64[Tensor, "B S K"]
) -> Float[Tensor, ""]:
    """The mean over sequences of E / K * sum over experts of (share of its tokens) * (mean probability), which is 1 at
    balance (V3 report, equations 17 to 20).

    probabilities_BSE: scores divided by their sum over all experts. indices_BSK: the report counts the K largest scores,
    without bias and groups; what was dispatched counts in some open implementations instead (Megatron). Give either.
    """
    B, S, E = probabilities_BSE.shape
    K = indices_BSK.shape[-1]
    counts_BE = probabilities_BSE.new_zeros(B, E)
    counts_BE.scatter_add_(1, indices_BSK.flatten(1), torch.ones_like(counts_BE[:, :1]).expand(B, S * K))
    shares_BE = counts_BE * (E / (K * max(S, 1)))
    return (shares_BE * probabilities_BSE.mean(dim=1)).sum(dim=1).mean()


def bias_step(bias_E: Float[Tensor, " E"], counts_E: Int64[Tensor, " E"], rate: float) -> Float[Tensor, " E"]:
    """The selection bias after a step: up by `rate` for each expert below the mean load, down for each above it.

    The direction counts, not how far (Wang et al. 2024, algorithm 1). counts_E: of the whole batch, on all ranks.
    """
    counts_E = counts_E.to(torch.float64)
    return bias_E + rate * (counts_E.mean() - counts_E).sign().to(bias_E.dtype)


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
