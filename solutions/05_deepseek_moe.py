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
# # Lab 05 · DeepSeekMoE
#
# In the lesson you saw what DeepSeek changed in the mixture layer, one change after the other. Here you write each of them, with the details that a real run meets:
# an expert that is out of order, a count of the groups a token has to travel to, padding in a balance loss, counts from many machines, loads of devices
# rather than experts, and several shared experts. When you are done, the last cells train a small DeepSeek-style model whose gate, groups and biases are yours.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: `x_TD` is `[T, D]`. **T** tokens, **D** width, **E** routed experts, **K** = k of them a token, **N** parts of a batch (in 05.6: shared experts),
#   **L** layers, **B** sequences of **S** positions, **F** = 2I, where **I** is the hidden width of an expert.
# - Stuck? `course hint 05.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

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

# %% [markdown]
# ## 05.1 · A gate that chooses with one number and weighs with another
#
# DeepSeek-V3 (report, section 2.1.2) scores every expert by itself, and keeps a bias for each that takes part in the choice alone:
#
# $$s_{t,e} = \sigma(x_t \cdot g_e) \qquad \text{chosen: the } k \text{ largest } s_{t,e} + b_e \qquad
# w_{t,e} = \text{scale} \cdot \frac{s_{t,e}}{\sum_{c\ \text{chosen}} s_{t,c}}$$
#
# The rules that the formula leaves open:
#
# - Routing runs in **float32**: widen `x_TD` and `gate_ED` *before* their product. `bias_E` is float32 already; never cast it to the dtype of `x_TD`: after long training biases are large and the
#   steps that moved them small.
# - The chosen stand in the order of their **biased** scores, best first; of two equal ones the lower expert comes first.
# - A bias may be minus infinity: that expert is out of order and is never chosen. At least k are at work.
# - Nothing is added to the sum before you divide by it, however small all scores are. (It is never 0 here.)
# - The last cells train with your gate, so stay in PyTorch: a gradient has to find its way back to the weights.
#
# | | shape | |
# |---|---|---|
# | `x_TD` | `[T, D]` | float32 or bfloat16 |
# | `gate_ED` | `[E, D]` | same dtype |
# | `bias_E` | `[E]` float32 | positive, negative or minus infinity |
# | `k` | int | |
# | `scale` | float | 2.5 in V3 |
# | returns `indices_TK` | `[T, K]` int64 | best biased score first |
# | returns `weights_TK` | `[T, K]` float32 | in the same order; each row sums to `scale` |
#
# For example, one token with the logits 2, 1, 0 and -1 has the scores 0.881, 0.731, 0.5 and 0.269. With the biases 0, -0.5, 0 and 0.5 and k = 2 it chooses `[0, 3]`, and with scale 2.5 the weights
# are 2.5 times 0.881 and 0.269 over 1.150: `[1.915, 0.585]`.
#
# **Exercise 05.1** · difficulty 2 of 5 · 15 minutes · 10 points · spine


# %% tags=["exercise:05.1"]
# exercise 05.1
def sigmoid_gate(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    """The k experts with the best biased scores, and weights from the scores without the bias."""
    ### BEGIN SOLUTION
    logits_TE = F.linear(x_TD.float(), gate_ED.float())
    scores_TE = torch.sigmoid(logits_TE)
    order_TE = torch.argsort(scores_TE + bias_E, dim=-1, descending=True, stable=True)
    indices_TK = order_TE[:, :k]
    weights_TK = torch.take_along_dim(scores_TE, indices_TK, dim=1)
    return indices_TK, weights_TK / weights_TK.sum(dim=1, keepdim=True) * scale
    ### END SOLUTION


# %% tags=["check:05.1", "nbval-check-output"]
check("05.1", sigmoid_gate)

# %% [markdown]
# ## 05.2 · Only the best groups are open
#
# Experts live on machines, and a token that is sent to many machines is expensive. So V3's 256 experts stand in 8 groups of neighbours, one a node, and a token may choose its 8 experts only
# from the 4 groups that suit it best:
#
# 1. A group's rank is the sum of its `best` largest scores (of all its scores, where it has fewer). V2 ranks by the largest alone (`best` 1); the code of V3 takes 2; the report of V3
#    says `k / top_groups`, which is 2 for V3's own numbers.
# 2. The `top_groups` groups with the largest ranks are open; of equal groups the lower one opens first.
# 3. From the experts of all open groups take the k with the largest scores, best first; of equal scores the lower expert comes first.
#
# The scores here have their bias in them already, so **they may be negative**, by any finite amount: a closed expert must lose to every open one all the same. The open groups always hold at least k experts.
#
# A token does not always meet every group that is open to it. Return also how many different groups its k experts lie in: that is how many nodes it is sent to.
#
# | | shape |
# |---|---|
# | `scores_TE` | `[T, E]` float32, finite |
# | `groups` | int: group 0 is the first E / groups experts, group 1 the next, ... |
# | `top_groups` | int, how many are open |
# | `best` | int, how many scores rank a group |
# | `k` | int |
# | returns `indices_TK` | `[T, K]` int64, counted over all E experts |
# | returns `met_T` | `[T]` int64, how many groups each token's experts lie in |
#
# For example, eight experts with the scores `[8, 0, 5, 4, 7, 1, 3, 3]` in 4 groups, of which 2 open. With `best=2` the sums are 8, 9, 8 and 6: groups 1 and 0 open, and k = 3 takes `[0, 2, 3]` from 2 groups.
# With `best=1` groups 0 and 2 open, and k = 3 takes `[0, 4, 5]`. Subtract 10 from every score and nothing may change; with `best=2` and k = 1 the answer is then `[0]`, and it meets 1 group.
#
# **Exercise 05.2** · difficulty 3 of 5 · 20 minutes · 15 points · spine


# %% tags=["exercise:05.2"]
# exercise 05.2
def group_limited_topk(scores_TE: Tensor, groups: int, top_groups: int, best: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best experts of the best groups, and how many groups they lie in."""
    ### BEGIN SOLUTION
    size = scores_TE.shape[1] // groups
    in_groups_TGe = scores_TE.unflatten(1, (groups, size))
    rank_TG = in_groups_TGe.topk(min(best, size), dim=2).values.sum(dim=2)
    order_TG = torch.argsort(rank_TG, dim=1, descending=True, stable=True)
    closed_TG = torch.ones_like(rank_TG, dtype=torch.bool).scatter(1, order_TG[:, :top_groups], False)
    open_TE = in_groups_TGe.masked_fill(closed_TG.unsqueeze(2), float("-inf")).flatten(1)
    indices_TK = torch.argsort(open_TE, dim=1, descending=True, stable=True)[:, :k]
    met_TG = F.one_hot(indices_TK // size, groups).amax(dim=1)
    return indices_TK, met_TG.sum(dim=1)
    ### END SOLUTION


# %% tags=["check:05.2", "nbval-check-output"]
check("05.2", group_limited_topk)

# %% [markdown]
# ## 05.3 · One batch, many sequences: two losses
#
# The balance loss of V3 (report, equations 17 to 20), for a list of $n$ tokens:
#
# $$f_e = \frac{E}{k\,n}\,\bigl|\{t : e \text{ is among the } k \text{ largest } s_t\}\bigr| \qquad
# P_e = \frac{1}{n}\sum_{t} \frac{s_{t,e}}{\sum_{j=1}^{E} s_{t,j}} \qquad \text{loss} = \sum_e f_e P_e$$
#
# It is 1 at balance. The scores $s$ are sigmoids, without the bias; $f$ comes from the plain k largest of them, without groups; of equal scores the lower expert is chosen. Everything hangs on *which
# tokens are in the list*:
#
# - **batch-wise**: all tokens of the batch in one list;
# - **sequence-wise**: one list for each sequence, and then the mean of the sequences' losses, in which each counts the same, long or short.
#
# And real batches are padded: where `real_BS` is False there is no token, at the beginning, at the end or anywhere, and neither $f$ nor $P$ nor $n$ may hear of it. A sequence with no real token
# is left out of the mean; if the batch has none at all, both losses are 0. The scores at padding are there, finite, and mean nothing. Stay in PyTorch: in training a gradient flows through $P$.
#
# | | shape |
# |---|---|
# | `scores_BSE` | `[B, S, E]` float32, sigmoids, all above 0, however little |
# | `real_BS` | `[B, S]` bool |
# | `k` | int |
# | returns `batch` | float32 tensor without dimensions |
# | returns `sequences` | float32 tensor without dimensions |
#
# For example, two experts, k = 1, and two sequences of two tokens: in the first both tokens score 0.6 and 0.2, in the second 0.2 and 0.6. Each sequence sends everything to one expert: $f$ is 2 and 0,
# $P$ 0.75 and 0.25, the loss 1.5. The batch as a whole is in perfect balance, and its loss is 1.
#
# **Exercise 05.3** · difficulty 3 of 5 · 20 minutes · 15 points


# %% tags=["exercise:05.3"]
# exercise 05.3
def balance_losses(scores_BSE: Tensor, real_BS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The balance loss of all real tokens, and the mean of the losses of the sequences."""

    ### BEGIN SOLUTION
    def of_list(scores_TE: Tensor) -> Tensor:
        T, E = scores_TE.shape
        ranked_TE = torch.argsort(scores_TE, dim=1, descending=True, stable=True)
        f_E = ranked_TE[:, :k].flatten().bincount(minlength=E) * (E / (k * T))
        p_E = F.normalize(scores_TE, p=1, dim=1).mean(dim=0)
        return torch.dot(f_E.to(p_E.dtype), p_E)

    lists = [scores_SE[real_S] for scores_SE, real_S in zip(scores_BSE, real_BS, strict=True) if real_S.any()]
    if not lists:
        return scores_BSE.new_zeros(()), scores_BSE.new_zeros(())
    return of_list(torch.cat(lists)), torch.stack([of_list(scores_TE) for scores_TE in lists]).mean()
    ### END SOLUTION


# %% tags=["check:05.3", "nbval-check-output"]
check("05.3", balance_losses)

# %% [markdown]
# ## 05.4 · The controller
#
# After each step of training the biases move, without any gradient (Wang et al. 2024, algorithm 1):
#
# $$b_e \leftarrow b_e + \text{rate} \cdot \mathrm{sign}\bigl(\overline{c} - c_e\bigr)$$
#
# where $c_e$ is how many (token, slot) pairs expert $e$ of that layer received, and $\overline{c}$ their mean. Only the direction counts. In a real run it is not so plain what $c_e$ is:
#
# - One step is computed in N **parts**: micro-batches one after the other, on many machines side by side. Each reports its counts. The load is that of the whole step, so the counts of all
#   parts are added *before* anything is compared.
# - Each layer has biases of its own, and its own mean.
# - An expert whose bias is minus infinity is out of order. It received nothing, stays at minus infinity, and is **not in the mean**: the others have to share its work. An idle expert with a finite bias is in it.
# - An expert **exactly** at the mean stays. "Exactly" is meant: the mean need not be a whole number, and counts go into the hundreds of millions, where float32 no longer holds every one.
#
# The steps are not shifted or scaled in any other way, and the biases are neither centred nor clipped: they may become as large as they like. At least one expert of each layer is at work.
#
# | | shape |
# |---|---|
# | `bias_LE` | `[L, E]` float32 |
# | `counts_NLE` | `[N, L, E]` int64 |
# | `rate` | float, 0 or more |
# | returns | `[L, E]` float32, the biases after the step |
#
# For example, one layer of four experts with biases of 0, rate 0.125, and two parts with the counts `[6, 2, 0, 4]` and `[0, 2, 6, 4]`: together 6, 4, 6 and 8, the mean is 6, and the new biases
# are `[0, 0.125, 0, -0.125]`. The first part alone would have moved every expert.
#
# **Exercise 05.4** · difficulty 2 of 5 · 12 minutes · 10 points · spine


# %% tags=["exercise:05.4"]
# exercise 05.4
def update_biases(bias_LE: Tensor, counts_NLE: Tensor, rate: float) -> Tensor:
    """The biases after a step whose parts received these counts."""
    ### BEGIN SOLUTION
    load_LE = counts_NLE.sum(dim=0)
    at_work_L = bias_LE.isfinite().sum(dim=1)
    total_L = load_LE.sum(dim=1)
    times_LE = load_LE * at_work_L[:, None]  # whole numbers: compared with the total, not with a rounded mean
    below_LE, above_LE = times_LE < total_L[:, None], times_LE > total_L[:, None]
    return bias_LE + rate * (below_LE.float() - above_LE.float())
    ### END SOLUTION


# %% tags=["check:05.4", "nbval-check-output"]
check("05.4", update_biases)

# %% [markdown]
# ## 05.5 · Max violation
#
# How far from balance is a layer? Wang et al. 2024 measure how much more than the mean the busiest expert has:
#
# $$\text{MaxVio} = \frac{\max_i \text{load}_i - \overline{\text{load}}}{\overline{\text{load}}}$$
#
# 0 is balance, 1 means that someone has twice the mean. What the clock feels, however, is the busiest *device*, which computes for all of its experts. So here a load is that of a **device**: device 0 holds the first
# E / devices experts, device 1 the next, and so on; its load is the sum of their counts, and the mean is over the devices. With as many devices as experts it is the paper's measure.
#
# Wang et al. report it in two ways, and they say different things. Return both, for each layer:
#
# - `batch_L`: the violation of each batch by itself, then the **mean over the batches**. A batch without any (token, slot) pair in a layer, all its counts 0, is left out of that layer's mean; all other batches count the same, large or small.
# - `whole_L`: the counts of all batches are **added first**; then one violation.
#
# A layer without any pair at all counts as balanced, 0 in both.
#
# | | shape |
# |---|---|
# | `counts_NLE` | `[N, L, E]` int64: N batches |
# | `devices` | int, divides E |
# | returns `batch_L` | `[L]` float32 |
# | returns `whole_L` | `[L]` float32 |
#
# For example, one layer, four experts, and two batches that went to one expert each: `[8, 0, 0, 0]` and `[0, 0, 8, 0]`. With 4 devices each batch has a violation of 8 / 2 - 1 = 3; added up the loads are 8, 0, 8, 0, and it is 1.
# With 2 devices each batch still has 8 / 4 - 1 = 1, and the two together 0: *in the long run* is not *at every step*.
#
# **Exercise 05.5** · difficulty 2 of 5 · 12 minutes · 5 points


# %% tags=["exercise:05.5"]
# exercise 05.5
def max_violation(counts_NLE: Tensor, devices: int) -> tuple[Tensor, Tensor]:
    """The mean violation of the batches, and the violation of their sum, for each layer."""

    ### BEGIN SOLUTION
    def violation(loads: Tensor) -> Tensor:  # NaN where there are no pairs
        return loads.amax(dim=-1) / loads.mean(dim=-1) - 1

    loads_NLV = counts_NLE.unflatten(-1, (devices, -1)).sum(dim=-1).to(torch.float64)
    batch_L = violation(loads_NLV).nanmean(dim=0)
    whole_L = violation(loads_NLV.sum(dim=0))
    return batch_L.nan_to_num(0.0).float(), whole_L.nan_to_num(0.0).float()
    ### END SOLUTION


# %% tags=["check:05.5", "nbval-check-output"]
check("05.5", max_violation)

# %% [markdown]
# ## 05.6 · Shared experts, and the whole layer
#
# Now the layer as a whole. Every token meets k routed experts, and beside them **all N shared experts**, which nobody routes to:
#
# $$y_t = \sum_{e\ \text{chosen}} w_{t,e}\,\mathrm{FFN}_e(x_t) \;+\; \sum_{n=1}^{N} \mathrm{FFN}^{\,shared}_n(x_t)$$
#
# - The scores are sigmoids, in float32 as in 05.1. The choice is that of 05.2, on the biased scores. The weights are those of 05.1: from the scores without the bias, over the sum of the chosen, times `scale`.
# - Each FFN is a SwiGLU, its gate and up projection in one matrix of F = 2I rows: **first the I rows of the gate**, then those of up.
# - A shared expert counts once, as it is: no weight, no scale, no part in k. N may be 0.
# - The residual connection is not part of the layer.
# - Return also how many tokens each *routed* expert received: what the controller of 05.4 needs.
#
# Experts may run in the dtype of x. Whether you weigh and sum in that dtype or in float32 is up to you (for bfloat16 the check allows two percent), but `y_TD` has the dtype of x. There may be experts that no token
# chose, and there may be no tokens.
#
# When this cell is checked, `swiglu(x, fused_FD, down_DI, layout)` of 02.4 and `group_limited_topk` of 05.2 are there for you to call, in the course's own version. In this notebook, `swiglu` is your own of lab 02, if it has
# passed, and `group_limited_topk` is your cell above. `swiglu` takes x with no rows, too.
# The layout that you need is `"gate_up"`.
#
# | | shape |
# |---|---|
# | `x_TD` | `[T, D]` float32 or bfloat16, and so are all matrices |
# | `gate_ED` | `[E, D]`, the router |
# | `bias_E` | `[E]` float32, finite |
# | `gate_up_EFD`, `down_EDI` | `[E, F, D]`, `[E, D, I]`: the routed experts |
# | `shared_gate_up_NFD`, `shared_down_NDI` | `[N, F, D]`, `[N, D, I]`: the shared ones |
# | `groups`, `top_groups`, `best`, `k` | ints, as in 05.2 |
# | `scale` | float |
# | returns `y_TD` | `[T, D]`, dtype of x |
# | returns `counts_E` | `[E]` int64 |
#
# For example, one token x = 1, two routed experts with the gate 0 and the bias 0, k = 2 and scale 2.5: both weights are 1.25. All matrices hold ones, but for the up projection of expert 1, which is 3. silu(1) is 0.731, so
# the routed experts say 0.731 and 2.193, the one shared expert says 0.731, and y = 1.25 * 0.731 + 1.25 * 2.193 + 0.731 = 4.386. The counts are `[1, 1]`.
#
# **Exercise 05.6** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:05.6"]
# exercise 05.6
swiglu = mine("02.4")


def deepseek_moe(
    x_TD: Tensor,
    gate_ED: Tensor,
    bias_E: Tensor,
    gate_up_EFD: Tensor,
    down_EDI: Tensor,
    shared_gate_up_NFD: Tensor,
    shared_down_NDI: Tensor,
    groups: int,
    top_groups: int,
    best: int,
    k: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The routed experts' weighted sum plus the shared experts, and how many tokens each routed expert received."""
    ### BEGIN SOLUTION
    scores_TE = torch.sigmoid(F.linear(x_TD.float(), gate_ED.float()))
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    chosen_TK = torch.take_along_dim(scores_TE, indices_TK, dim=1)
    weights_TK = chosen_TK * (scale / chosen_TK.sum(dim=1, keepdim=True))
    y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    for gate_up_FD, down_DI in zip(shared_gate_up_NFD, shared_down_NDI, strict=True):
        y_TD = y_TD + swiglu(x_TD, gate_up_FD, down_DI, "gate_up")
    for e, (gate_up_FD, down_DI) in enumerate(zip(gate_up_EFD, down_EDI, strict=True)):
        row_R, slot_R = (indices_TK == e).nonzero(as_tuple=True)
        said_RD = swiglu(x_TD[row_R], gate_up_FD, down_DI, "gate_up")
        y_TD = y_TD.index_add(0, row_R, weights_TK[row_R, slot_R].unsqueeze(1) * said_RD)
    return y_TD.type_as(x_TD), F.one_hot(indices_TK, len(gate_ED)).sum(dim=(0, 1))
    ### END SOLUTION


# %% tags=["check:05.6", "nbval-check-output"]
check("05.6", deepseek_moe)

# %% [markdown]
# ## Your layer beside the course's
#
# No exercise from here on: run the cells. `mine("05.1")` is your own function once it has passed, and the course's until then. First your whole layer, your gate and your two losses
# are compared with what `course.model` computes for the preset `tiny-deepseek-v3`, on the same weights and with biases that are not zero.

# %%
from dataclasses import replace

from course.model import ModelConfig, MoE, Routing, balance_loss, gate_scores, sequence_balance_loss

gate, groups_of, losses_of = mine("05.1"), mine("05.2"), mine("05.3")
update, violation, layer_of = mine("05.4"), mine("05.5"), mine("05.6")

torch.manual_seed(5)
c = ModelConfig.preset("tiny-deepseek-v3")
layer = MoE(c)
for weight in layer.parameters():
    torch.nn.init.normal_(weight, std=0.1)
layer.bias_E.uniform_(-0.2, 0.2)
x_TD = torch.randn(64, c.width)
with torch.no_grad():
    wanted_TD, routing = layer(x_TD)
    experts = layer.gate_up_EFD, layer.down_EDI, layer.shared.gate_up_FD[None], layer.shared.down_DI[None]
    settings = c.groups, c.top_groups, c.group_best, c.top_k, c.routed_scale
    got_TD, counts_E = layer_of(x_TD, layer.gate_ED, layer.bias_E, *experts, *settings)
torch.testing.assert_close(got_TD, wanted_TD, atol=1e-5, rtol=1e-5)
print("your layer and course.model.MoE agree on", tuple(got_TD.shape), "· tokens of each expert:", counts_E.tolist())

# %%
open_layer = MoE(replace(c, groups=1, top_groups=1))  # the same layer without groups: the gate of 05.1
open_layer.load_state_dict(layer.state_dict())
with torch.no_grad():
    routing = open_layer.route(x_TD)
    indices_TK, weights_TK = gate(x_TD, open_layer.gate_ED, open_layer.bias_E, c.top_k, c.routed_scale)
    scores_BSE = gate_scores(x_TD, open_layer.gate_ED, c.gate).view(4, 16, -1)
torch.testing.assert_close(indices_TK, routing.indices_TK)
torch.testing.assert_close(weights_TK, routing.weights_TK)

in_batch, in_sequences = losses_of(scores_BSE, torch.ones(4, 16, dtype=torch.bool), c.top_k)
p_TE = routing.probabilities_TE
plain_TK = scores_BSE.flatten(0, 1).topk(c.top_k).indices
torch.testing.assert_close(in_batch, balance_loss(p_TE, plain_TK) / c.top_k)
torch.testing.assert_close(in_sequences, sequence_balance_loss(p_TE.view(4, 16, -1), plain_TK.view(4, 16, -1)))
print(f"your gate and your losses too; batch {in_batch:.3f}, four sequences of it {in_sequences:.3f}")

# %% [markdown]
# ## A model with your controller in it
#
# Now the preset is cut down to three layers, two of them mixtures of 16 experts in 4 groups, and reads Python. The course trains it; but **who goes where is decided by your functions**: each mixture's `route`
# is replaced by one that calls your gate, or your groups where there are some. Each step is computed in two micro-batches; their counts go to your controller together.
#
# Three models that start from the same weights, eighty steps each: biases that never move; your biases with the choice free; your biases with two of four groups open.
#
# **Predict:** the picture below has a row for each expert and a column for each step. What will a row look like when its bias never moves, and what when your controller is at work?

# %%
from course.model import Transformer, expert_counts
from course.model.router import renormalised
from course.training.data import load, training_batch

data = load("code", vocab=512)
small = replace(c, vocab=data.tokenizer.vocab, context=64, width=64, layers=3, mlp_width=128)
free = replace(small, groups=1, top_groups=1)
arms = {"biases at rest": (free, 0.0), "your biases": (free, 0.01), "your biases and groups": (small, 0.01)}


def routed_by_you(mixture):
    """A `route` for a mixture of course.model that lets your functions choose."""
    c = mixture.config

    def route(x_TD):
        scores_TE = gate_scores(x_TD, mixture.gate_ED, c.gate)
        if c.groups == 1:
            indices_TK, weights_TK = gate(x_TD, mixture.gate_ED, mixture.bias_E, c.top_k, c.routed_scale)
        else:
            ranked_TE = scores_TE.detach() + mixture.bias_E
            indices_TK, _ = groups_of(ranked_TE, c.groups, c.top_groups, c.group_best, c.top_k)
            weights_TK = c.routed_scale * renormalised(scores_TE, indices_TK)
        assert weights_TK.requires_grad, "no gradient reaches the router: your gate leaves PyTorch (NumPy? tolist?)"
        return Routing(scores_TE / scores_TE.sum(dim=-1, keepdim=True), indices_TK, weights_TK, None)

    return route


# %%
def train(config, rate, steps=80):
    """Train for some steps; the counts of each step and micro-batch, and the losses."""
    torch.manual_seed(0)
    model = Transformer(config)
    mixtures = list(model.mixtures())
    for mixture in mixtures:
        mixture.route = routed_by_you(mixture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    counts, losses = [], []
    for step in range(steps):
        inputs_BS, targets_BS = training_batch(data, config.context, batch=16, seed=0, step=step)
        parts = []
        for tokens_BS, wanted_BS in zip(inputs_BS.chunk(2), targets_BS.chunk(2), strict=True):
            loss = model.loss(tokens_BS, wanted_BS)
            (loss.total / 2).backward()
            parts.append(torch.stack([expert_counts(r.indices_TK, config.experts) for r in loss.routings]))
        optimizer.step()
        optimizer.zero_grad()
        moved_LE = update(torch.stack([mixture.bias_E for mixture in mixtures]), torch.stack(parts), rate)
        for mixture, bias_E in zip(mixtures, moved_LE, strict=True):
            mixture.bias_E.copy_(bias_E)
        counts.append(torch.stack(parts))
        losses.append(loss.cross_entropy.item())
    return torch.stack(counts), losses


runs = {name: train(*arm) for name, arm in arms.items()}
for name, (_, losses) in runs.items():
    print(f"{name:22s} {losses[0]:.2f} nats a token at first, {sum(losses[-5:]) / 5:.2f} in the end")

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
for axis, (name, (counts_SNLE, _)) in zip(axes, runs.items(), strict=True):
    loads_SE = counts_SNLE.sum(dim=1)[:, -1].double()
    share_ES = (loads_SE / loads_SE.mean(dim=1, keepdim=True)).T
    picture = axis.imshow(share_ES, aspect="auto", cmap="viridis", vmin=0, vmax=4, interpolation="nearest")
    axis.set(title=name, xlabel="training step", xticks=range(0, len(loads_SE), 20))
    axis.grid(visible=False)
axes[0].set(ylabel="expert of the last layer", yticks=range(0, small.experts, 4))
figure.colorbar(picture, ax=axes, label="load over the mean load", ticks=range(5), extend="max")
plt.show()

# %% [markdown]
# *Figure: three panels, a row for each of the 16 experts of the last layer and a column for each step; dark purple is an idle expert, blue the mean load, green more than twice as much, yellow four times the mean or more.*
#
# And your measure, over the steps: for experts, and for four devices of four experts each.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
for axis, devices, what in zip(axes, (small.experts, 4), ("experts", "four devices"), strict=True):
    for name, (counts_SNLE, _) in runs.items():
        by_step = [violation(counts_NLE.sum(dim=0, keepdim=True), devices)[0].mean() for counts_NLE in counts_SNLE]
        axis.plot(by_step, label=name)
    axis.set(title=f"Max violation of {what}", xlabel="training step", ylim=(0, None))
axes[0].set(ylabel="busiest over the mean, minus one")
axes[1].legend()
plt.show()
print("over the last ten steps            each step   all ten together   one micro-batch")
for name, (counts_SNLE, _) in runs.items():
    late_SLE = counts_SNLE[-10:].sum(dim=1)
    each, whole = (value.mean().item() for value in violation(late_SLE, small.experts))
    part = violation(counts_SNLE[-10:].flatten(0, 1), small.experts)[0].mean().item()
    print(f"{name:32s} {each:11.2f} {whole:18.2f} {part:17.2f}")

# %% [markdown]
# *Figure: the max violation of every step, mean of the two mixture layers. Left of experts: all three models rise at once; with the biases at rest the line stays high, with your controller it comes down. Right of four
# devices, on a lower scale.*
#
# What to see in it:
#
# - **The router runs away first.** All three start near balance and within a few steps send most tokens to a few experts. Nothing in the language loss objects. The biases can move by one step of 0.01 at a time only, so they need a while to catch up with
#   the scores; then dark rows light up, one after the other. (Which ones, depends on the machine and on the text.)
# - **It ends in a flicker, not in balance.** With your biases, the violation of ten steps taken together lies well below that of a single step: an expert above the mean in one step is pushed below it in the next, and a thousand tokens also differ by chance.
# - **Devices are nearer to balance than experts** are: four experts on one device make up for each other a little. It is the device that the clock waits for.
# - **The losses say little.** One seed, eighty steps: by the rule of 03.6 a difference between them is not resolved. What balance is for shows elsewhere, in the time of the slowest device and in the experts that learn nothing.
#
# Try a rate of 0.1, or counts of the first micro-batch alone (`torch.stack(parts[:1])`), or your controller with its sign flipped.
#
# **Next:** lesson 06, where attention keeps a latent instead of keys and values.
