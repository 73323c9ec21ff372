# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 99 · Three pilots
#
# A lab for the tests: one exercise with exact indices, one with a distribution, one with a kernel. Their final places are
# labs 05, 07 and 10; until those stand, `test_four_runners.py` builds this one with numbers of its own.

# %% tags=["setup"]
try:
    from course import check, mine
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    from course import check, mine

import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
import triton
import triton.language as tl

# %% [markdown]
# ## 05.9 · Which experts, when only some groups are open
#
# Experts stand in `groups` groups of equal size. A group ranks by the sum of its two best biased scores (by the only one,
# where it has one expert). The `keep` best groups are open; from their experts take the `k` with the best biased
# scores. Return their indices, `[T, k]` in int64, best first. Ties go to the lower index, for groups and for experts.
#
# **Exercise 05.9** · difficulty 3 of 5 · 25 minutes · 10 points · spine


# %% tags=["exercise:05.9"]
# exercise 05.9
def group_limited_topk(scores_TE: Tensor, bias_E: Tensor, groups: int, keep: int, k: int) -> Tensor:
    """Pick k experts a token from the `keep` best of `groups` groups."""
    ### BEGIN SOLUTION
    T, E = scores_TE.shape
    choice_TE = scores_TE + bias_E
    two_TG2 = choice_TE.view(T, groups, E // groups).topk(min(2, E // groups), dim=-1).values
    best_TG = two_TG2.sum(-1).sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best_TG, True)
    closed_TE = ~open_TG.repeat_interleave(E // groups, dim=1)
    return choice_TE.masked_fill(closed_TE, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    ### END SOLUTION


# %% tags=["check:05.9", "nbval-check-output"]
check("05.9", group_limited_topk)

# %% [markdown]
# ## 07.9 · Keep the drafted token, or replace it
#
# A small model drafted tokens from the distribution `draft_V`; the big model wants `target_V`. Decide for each of the
# `N` drafted tokens: keep it, or emit another, so that what comes out follows the target and as many drafts as possible
# are kept. `uniforms_N2` holds two uniform random numbers a token: one for each thing that is left to chance. Return the
# tokens, `[N]` in int64.
#
# **Exercise 07.9** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:07.9"]
# exercise 07.9
def accept_or_resample(target_V: Tensor, draft_V: Tensor, drafted_N: Tensor, uniforms_N2: Tensor) -> Tensor:
    """Tokens that follow the target, as many of them drafted as can be."""
    ### BEGIN SOLUTION
    kept_N = uniforms_N2[:, 0] * draft_V[drafted_N] < target_V[drafted_N]
    rest_V = F.relu(target_V - draft_V)
    edges_V = rest_V.cumsum(0) / rest_V.sum().clamp(min=1e-30)
    other_N = (uniforms_N2[:, 1:] >= edges_V).sum(dim=1).clamp(max=len(edges_V) - 1)
    return torch.where(kept_N, drafted_N, other_N)
    ### END SOLUTION


# %% tags=["check:07.9", "nbval-check-output"]
check("07.9", accept_or_resample)

# %% [markdown]
# ## 10.9 · RMSNorm in one kernel
#
# Write a Triton kernel and the function that launches it: each row of `x_ND` divided by the root of its mean square plus
# `eps`, times `weight_D`. Float32 in and out, any `D` up to a few thousand.
#
# **Exercise 10.9** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:10.9"]
# exercise 10.9
@triton.jit
def rmsnorm_kernel(x, weight, out, D, eps, BLOCK: tl.constexpr):
    """One program a row."""
    ### BEGIN SOLUTION
    d = tl.arange(0, BLOCK)
    x_D = tl.load(x + tl.program_id(0) * D + d, mask=d < D, other=0.0)
    weight_D = tl.load(weight + d, mask=d < D, other=0.0)
    tl.store(out + tl.program_id(0) * D + d, x_D * tl.rsqrt(tl.sum(x_D * x_D) / D + eps) * weight_D, mask=d < D)
    ### END SOLUTION


def rmsnorm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of every row of x_ND."""
    ### BEGIN SOLUTION
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    rmsnorm_kernel[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND
    ### END SOLUTION


# %% tags=["check:10.9", "nbval-check-output"]
check("10.9", rmsnorm)
