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
# # Lab 04 · Mixture of experts
#
# In the lesson you watched an MoE layer being built. Here you build one, a little differently in every part: a gate
# with a switch, experts that can lose a token, a sort without a sort, a combine that gathers.
# When you are done, the last cells put your own parts together and let them learn.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: `x_TD` is `[T, D]`. **T** tokens, **D** width, **E** experts, **K** experts a token,
#   **I** hidden width of an expert, **P** = T * K pairs.
# - Stuck? `course hint 04.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

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
# ## 04.1 · The gate
#
# The router is one matrix, `gate_ED`: row `e` scores expert `e`. For each token, take a softmax over the experts
# and keep the `k` most probable.
#
# Models differ in one line. Mixtral and DeepSeek-V3 divide the chosen weights by their sum, so that they add to one;
# DeepSeekMoE-16B and OLMoE leave them as they came out of the softmax over *all* experts. Your gate has a switch for it.
#
# Two rules that hurt when they are forgotten. Routing runs in **float32**: widen `x_TD` and `gate_ED` *before* their product, whatever
# their dtype. And of two equal experts **the lower index comes first**: for the scores `[1, 3, 3, 3, 2]` and k = 2 the answer is `[1, 2]`,
# where `torch.topk` promises nothing.
#
# | | shape | |
# |---|---|---|
# | `x_TD` | `[T, D]` | float32 or bfloat16 |
# | `gate_ED` | `[E, D]` | same dtype |
# | `k` | int | |
# | `renormalise` | bool | whether the chosen weights are divided by their sum |
# | returns `indices_TK` | `[T, K]` int64 | most probable first |
# | returns `weights_TK` | `[T, K]` float32 | |
#
# **Exercise 04.1** · difficulty 2 of 5 · 15 minutes · 10 points · spine


# %% tags=["exercise:04.1"]
# exercise 04.1
def softmax_topk_gate(x_TD: Tensor, gate_ED: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The k most probable experts of each token, and their weights."""
    ### BEGIN SOLUTION
    logits_TE = x_TD.float() @ gate_ED.float().T
    probabilities_TE = F.softmax(logits_TE, dim=-1)
    by_rank = probabilities_TE.sort(dim=-1, descending=True, stable=True)
    indices_TK, weights_TK = by_rank.indices[:, :k], by_rank.values[:, :k]
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return indices_TK, weights_TK
    ### END SOLUTION


# %% tags=["check:04.1", "nbval-check-output"]
check("04.1", softmax_topk_gate)

# %% [markdown]
# ## 04.2 · The experts, one after the other
#
# Now the plain way to run them: for each expert, find its tokens, run its SwiGLU on them, weigh the result, add it up.
#
# $$y_t = \sum_{s} w_{t,s}\; W^{down}_{e}\,\bigl(\mathrm{silu}(W^{gate}_{e} x_t) \odot W^{up}_{e} x_t\bigr), \qquad e = \mathrm{indices}_{t,s}$$
#
# (Two things are called *gate* here, as everywhere in the field: the router, and the projection inside an expert that goes through silu.)
#
# Real layers drop pairs when an expert is full (04.5). Here a dropped pair has the index **-1**: it adds nothing, and the
# token's other weights stay as they are. Think about what `down_EDI[-1]` means in Python before you start.
#
# | | shape |
# |---|---|
# | `x_TD` | `[T, D]` float32, as all that follow but the indices |
# | `indices_TK` | `[T, K]` int64, -1 for a dropped pair; a token never has the same expert twice |
# | `weights_TK` | `[T, K]` |
# | `gate_EID`, `up_EID` | `[E, I, D]` |
# | `down_EDI` | `[E, D, I]` |
# | returns `y_TD` | `[T, D]` |
#
# **Exercise 04.2** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:04.2"]
# exercise 04.2
def expert_loop(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_EID: Tensor, up_EID: Tensor, down_EDI: Tensor
) -> Tensor:
    """Each token's weighted sum of what its experts return."""
    ### BEGIN SOLUTION
    y_TD = torch.zeros_like(x_TD)
    for e, (gate_ID, up_ID, down_DI) in enumerate(zip(gate_EID, up_EID, down_EDI, strict=True)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R]
        out_RD = F.linear(F.silu(F.linear(rows_RD, gate_ID)) * F.linear(rows_RD, up_ID), down_DI)
        y_TD.index_add_(0, token_R, out_RD * weights_TK[token_R, slot_R].unsqueeze(1))
    return y_TD
    ### END SOLUTION


# %% tags=["check:04.2", "nbval-check-output"]
check("04.2", expert_loop)

# %% [markdown]
# ## 04.3 · Sorting, without a sort
#
# The loop launches a handful of small operations for each expert. To run all experts as *one* grouped product, the rows
# of each expert must lie side by side. The lesson used `argsort`. A GPU kernel does not sort: it **counts**.
#
# A *pair* is one visit of a token to an expert: pair `p = token * K + slot`, the row-major order of `indices_TK`.
#
# 1. Count the pairs of each expert.
# 2. `offsets[e]`: how many pairs belong to experts before `e`. There are E + 1 of them, the last is P.
# 3. `place[p]`: the row that pair `p` takes: its expert's offset plus the number of *earlier* pairs of that expert.
# 4. `order[r]`: the pair that took row `r`. It is the inverse of `place`.
#
# Within an expert pairs keep their order (the sort is *stable*). Sorting functions, torch's, numpy's and Python's, are out of bounds, and
# the check notices them; how you count is up to you.
#
# | | shape |
# |---|---|
# | `indices_TK` | `[T, K]` int64 |
# | `experts` | int, E |
# | returns `order_P` | `[P]` int64 |
# | returns `offsets_E1` | `[E + 1]` int64 |
# | returns `place_P` | `[P]` int64 |
#
# For example, `indices_TK = [[2, 0], [2, 1]]` with 3 experts gives the order `[1, 3, 0, 2]`, the offsets `[0, 1, 2, 4]`
# and the places `[2, 0, 3, 1]`.
#
# **Exercise 04.3** · difficulty 3 of 5 · 30 minutes · 15 points · spine


# %% tags=["exercise:04.3"]
# exercise 04.3
def sort_by_expert(indices_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs lined up by expert: which pair is in each row, where each expert begins, which row each pair takes."""
    ### BEGIN SOLUTION
    expert_P = indices_TK.reshape(-1)
    mine_PE = F.one_hot(expert_P, experts)
    counts_E = mine_PE.sum(dim=0)
    offsets_E1 = F.pad(counts_E.cumsum(dim=0), (1, 0))
    earlier_PE = mine_PE.cumsum(dim=0) - mine_PE
    pairs_P = torch.arange(expert_P.numel())
    place_P = offsets_E1[expert_P] + earlier_PE[pairs_P, expert_P]
    order_P = torch.zeros_like(place_P).scatter(0, place_P, pairs_P)
    return order_P, offsets_E1, place_P
    ### END SOLUTION


# %% tags=["check:04.3", "nbval-check-output"]
check("04.3", sort_by_expert)

# %% [markdown]
# ## 04.4 · Bringing the results home
#
# After the grouped product, `rows_PD` holds one result for each pair, sorted by expert: pair `p` lies in row `place_P[p]`.
# Each token needs the weighted sum of its K rows.
#
# One can *scatter*: every row is added to its token. On a GPU then several programs add to one token at once, and the
# sum depends on who came first. Or one can *gather*: every token fetches its K rows and adds them in slot order, always the
# same. Write the gather. (The check compares numbers and takes either; the kernel of unit 11 will not.)
#
# | | shape |
# |---|---|
# | `rows_PD` | `[P, D]` float32 |
# | `place_P` | `[P]` int64, a permutation |
# | `weights_TK` | `[T, K]` float32 |
# | returns `y_TD` | `[T, D]` float32 |
#
# **Exercise 04.4** · difficulty 2 of 5 · 10 minutes · 10 points


# %% tags=["exercise:04.4"]
# exercise 04.4
def combine(rows_PD: Tensor, place_P: Tensor, weights_TK: Tensor) -> Tensor:
    """Each token's weighted sum of its rows, in slot order."""
    ### BEGIN SOLUTION
    T, K = weights_TK.shape
    home_TKD = rows_PD.index_select(0, place_P).reshape(T, K, rows_PD.shape[1])
    return torch.einsum("tk,tkd->td", weights_TK, home_TKD)
    ### END SOLUTION


# %% tags=["check:04.4", "nbval-check-output"]
check("04.4", combine)

# %% [markdown]
# ## 04.5 · A limited number of seats
#
# If the experts live on different machines, buffers must be sized before anyone knows who chooses what. So each expert
# gets a fixed number of seats, and pairs that find none are **dropped**:
#
# $$\mathrm{capacity} = \left\lceil \frac{\mathrm{factor} \cdot T \cdot K}{E} \right\rceil$$
#
# Who is served first? The lesson's layer goes token by token, as Switch Transformer does. GShard serves **all first choices before
# any second choice** (then by token), so that a token's favourite is not full of others' second thoughts. Do it GShard's way.
#
# For example, three tokens choose `[[0, 1], [0, 1], [1, 0]]` among 2 experts at factor 0.67: 4.02 / 2, so 3 seats each. Expert 0 is asked by
# token 0, token 1, and then, as a second choice, by token 2; expert 1 by token 2 first, then by tokens 0 and 1: nobody is dropped. At
# factor 0.5 there are 2 seats each, and the last to ask go without: `[[True, True], [True, False], [True, False]]`.
#
# When this cell is checked, `sort_by_expert` of 04.3 is there for you to call, in the course's own version, so that one mistake costs one
# exercise. It takes any matrix of expert indices, row by row.
#
# | | shape |
# |---|---|
# | `indices_TK` | `[T, K]` int64, slot 0 is the first choice |
# | `experts` | int, E |
# | `factor` | float |
# | returns `kept_TK` | `[T, K]` bool |
# | returns `capacity` | int |
#
# **Exercise 04.5** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:04.5"]
# exercise 04.5
def capacity_and_drops(indices_TK: Tensor, experts: int, factor: float) -> tuple[Tensor, int]:
    """Which pairs find a seat, all first choices served first; and how many seats an expert has."""
    ### BEGIN SOLUTION
    T, K = indices_TK.shape
    capacity = math.ceil(factor * T * K / experts)
    asked_KT = indices_TK.T
    _, offsets_E1, place_P = sort_by_expert(asked_KT, experts)
    rank_KT = (place_P - offsets_E1[asked_KT.reshape(-1)]).reshape(K, T)
    return rank_KT.T < capacity, capacity
    ### END SOLUTION


# %% tags=["check:04.5", "nbval-check-output"]
check("04.5", capacity_and_drops)

# %% [markdown]
# ## 04.6 · What is in a name: 8x7B
#
# Mixtral 8x7B has 46.7 billion parameters, not 56, and a token meets 12.9 billion of them. Both numbers
# follow from the shapes, exactly. Count them for any model of that family:
#
# - an embedding and an output head, `vocab x width` each (not tied);
# - in each layer: attention with `heads` query heads and `kv_heads` key and value heads of `head_width`, no biases (four
#   matrices: query, key, value, output); a router; `experts` SwiGLU experts of hidden width `expert_width`; two
#   RMSNorms, `width` numbers each;
# - one last RMSNorm.
#
# *Active* are those that one token meets: everything but the experts it was not sent to. Embedding and head count in full.
#
# | | |
# |---|---|
# | arguments | ints, as named above; `k` experts a token |
# | returns | `total`, `active`: two ints |
#
# **Exercise 04.6** · difficulty 2 of 5 · 15 minutes · 5 points


# %% tags=["exercise:04.6"]
# exercise 04.6
def count_parameters(
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    experts: int,
    k: int,
    expert_width: int,
) -> tuple[int, int]:
    """All parameters of a Mixtral-shaped model, and those that one token meets."""
    ### BEGIN SOLUTION
    query_and_output = 2 * width * heads * head_width
    key_and_value = 2 * width * kv_heads * head_width
    router, norms = experts * width, 2 * width
    one_expert = 3 * width * expert_width
    shared = 2 * vocab * width + layers * (query_and_output + key_and_value + router + norms) + width
    return shared + layers * experts * one_expert, shared + layers * k * one_expert
    ### END SOLUTION


# %% tags=["check:04.6", "nbval-check-output"]
check("04.6", count_parameters)

# %% [markdown]
# ## 04.7 · How a gradient reaches the router
#
# Top-k is a choice of indices: nothing flows through it. The router learns only through the *weights* of the experts it chose.
#
# With renormalised weights, $w = \mathrm{softmax}(z_{\text{chosen}})$. The layer above hands down
# $g = \partial L / \partial w$. Find $\partial L / \partial z$ for **all** logits: what of those that were not chosen?
#
# Write it by hand, without autograd (the check notices that too). In unit 12 these lines become a kernel, and the
# commonest way for a fast MoE to fail is to leave them out.
#
# | | shape |
# |---|---|
# | `logits_TE` | `[T, E]` float32 |
# | `indices_TK` | `[T, K]` int64, the chosen |
# | `grad_weights_TK` | `[T, K]` float32, $\partial L / \partial w$ |
# | returns `grad_logits_TE` | `[T, E]` float32 |
#
# **Exercise 04.7** · difficulty 4 of 5 · 30 minutes · 15 points


# %% tags=["exercise:04.7"]
# exercise 04.7
def gate_backward(logits_TE: Tensor, indices_TK: Tensor, grad_weights_TK: Tensor) -> Tensor:
    """The gradient of the logits, from the gradient of the renormalised weights of the chosen."""
    ### BEGIN SOLUTION
    w_TK = F.softmax(logits_TE.gather(1, indices_TK), dim=-1)
    pull_TK = w_TK * grad_weights_TK
    grad_chosen_TK = pull_TK - w_TK * pull_TK.sum(dim=-1, keepdim=True)
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, grad_chosen_TK)
    ### END SOLUTION


# %% tags=["check:04.7", "nbval-check-output"]
check("04.7", gate_backward)

# %% [markdown]
# ## Your layer, whole
#
# No exercise here: run the cells. `mine("04.1")` is your own function once it has passed, and the course's until then.
# (*The version that last passed*: what you change afterwards counts when it passes again.) First the parts are joined into a layer, and
# compared with your loop and with `course.model`'s layer on the same weights. Its experts are your own SwiGLU of lab 02. **F** = 2I: gate and up
# projection in one matrix.

# %%
from course.model import ModelConfig, MoE

gate, loop, order_pairs, bring_home = mine("04.1"), mine("04.2"), mine("04.3"), mine("04.4")
swiglu = mine("02.4")


def my_moe(x_TD, gate_ED, gate_up_EFD, down_EDI, k):
    """Route, line up, run each expert's rows, bring the results home."""
    indices_TK, weights_TK = gate(x_TD, gate_ED, k, renormalise=True)
    order_P, offsets_E1, place_P = order_pairs(indices_TK, len(gate_ED))
    rows_of_each = x_TD[order_P // k].split(offsets_E1.diff().tolist())
    experts = zip(rows_of_each, gate_up_EFD.unbind(), down_EDI.unbind(), strict=True)
    rows_PD = torch.cat([swiglu(rows_RD, fused_FD, down_DI, "gate_up") for rows_RD, fused_FD, down_DI in experts])
    return bring_home(rows_PD, place_P, weights_TK)


torch.manual_seed(4)
layer = MoE(ModelConfig.preset("tiny-moe"))
for weight in layer.parameters():
    torch.nn.init.normal_(weight, std=0.1)
x_TD = torch.randn(64, 128)
with torch.no_grad():
    wanted_TD, _ = layer(x_TD)
    got_TD = my_moe(x_TD, layer.gate_ED, layer.gate_up_EFD, layer.down_EDI, k=2)
    indices_TK, weights_TK = gate(x_TD, layer.gate_ED, 2, renormalise=True)
    looped_TD = loop(x_TD, indices_TK, weights_TK, *layer.gate_up_EFD.chunk(2, dim=1), layer.down_EDI)
torch.testing.assert_close(got_TD, looped_TD)
torch.testing.assert_close(got_TD, wanted_TD)
kept_TK, capacity = mine("04.5")(indices_TK, 8, 1.0)
print("your layer, your loop and course.model.MoE agree on", tuple(got_TD.shape))
print(f"with {capacity} seats an expert, {int((~kept_TK).sum())} of {kept_TK.numel()} pairs would be dropped")

# %% [markdown]
# And the gradient that you derived by hand, against autograd's, through your own gate:

# %%
logits_TE = torch.randn(32, 8, requires_grad=True)
indices_TK, weights_TK = gate(logits_TE, torch.eye(8), 2, renormalise=True)
g_TK = torch.randn(32, 2)
weights_TK.backward(g_TK)
by_hand_TE = mine("04.7")(logits_TE.detach(), indices_TK, g_TK)
torch.testing.assert_close(by_hand_TE, logits_TE.grad, atol=1e-6, rtol=1e-5)
print("logits that receive no gradient:", int((by_hand_TE == 0).sum()), "of", by_hand_TE.numel())

# %% [markdown]
# Let the layer learn something. The task suits a mixture: points from eight clouds, each to be turned by a rotation of its own. No one tells
# the router which cloud a point came from.

# %%
torch.manual_seed(0)
centres_CD, turns_CDD = 3 * torch.randn(8, 16), torch.linalg.qr(torch.randn(8, 16, 16)).Q
weights = [torch.randn(8, 16), torch.randn(8, 64, 16) / 4, torch.randn(8, 16, 32) / 6]
for weight in weights:
    weight.requires_grad_()
optimizer = torch.optim.Adam(weights, lr=1e-2)
losses = []
for _ in range(150):
    cloud_T = torch.randint(8, (256,))
    x_TD = centres_CD[cloud_T] + torch.randn(256, 16)
    wanted_TD = torch.einsum("td,tde->te", x_TD, turns_CDD[cloud_T])
    loss = (my_moe(x_TD, *weights, k=2) - wanted_TD).pow(2).mean() / wanted_TD.pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"relative error {losses[0]:.2f} at first, {losses[-1]:.2f} after {len(losses)} steps on your own layer")

# %% [markdown]
# ## A language model of nothing but your parts
#
# Norm, RoPE and attention of lab 02 around the mixture of this one: that is a whole language model, and none of it is the course's once you have passed both labs.
# `mine` says whose each part is. The weights come from a small `course.model.Transformer` with mixtures in both of its layers.

# %%
from course.model import Transformer
from course.training.data import load, training_batch

norm, rope, attention = mine("02.1"), mine("02.2"), mine("02.3")
data = load("code", vocab=512)
config = ModelConfig(
    vocab=data.tokenizer.vocab, context=64, width=64, layers=2, experts=8, top_k=2, expert_width=64, norm_eps=1e-5
)
torch.manual_seed(0)
theirs = Transformer(config)
weights = {name: weight.detach().clone().requires_grad_() for name, weight in theirs.named_parameters()}


def my_block(x_BSD, part):
    """Attention, then your mixture, each reading a normed copy of the stream and adding to it."""

    def heads(name, h_BSD):
        return (h_BSD @ part[f"attention.{name}.weight"].T).unflatten(-1, (config.heads, -1)).transpose(1, 2)

    S = x_BSD.shape[1]
    h_BSD = norm(x_BSD, part["attention_norm.weight"], config.norm_eps, False)
    q_BHSC, k_BHSC = (
        rope(heads(name, h_BSD), torch.arange(S), config.rope_theta, config.head_width, "half")
        for name in ("query", "key")
    )
    y_BHSC = attention(q_BHSC, k_BHSC, heads("value", h_BSD), S)
    x_BSD = x_BSD + y_BHSC.transpose(1, 2).flatten(2) @ part["attention.output.weight"].T
    h_BSD = norm(x_BSD, part["feed_forward_norm.weight"], config.norm_eps, False)
    experts = (part[f"feed_forward.{name}"] for name in ("gate_ED", "gate_up_EFD", "down_EDI"))
    return x_BSD + my_moe(h_BSD.flatten(0, 1), *experts, k=config.top_k).view_as(x_BSD)


def my_model(tokens_BS):
    x_BSD = weights["embedding.weight"][tokens_BS]
    for layer in range(config.layers):
        first = f"blocks.{layer}."
        x_BSD = my_block(x_BSD, {n.removeprefix(first): w for n, w in weights.items() if n.startswith(first)})
    return norm(x_BSD, weights["norm.weight"], config.norm_eps, False) @ weights["head.weight"].T


# %%
tokens_BS, _ = training_batch(data, config.context, batch=4, seed=0, step=0)
with torch.no_grad():
    wanted_BSV, got_BSV = theirs(tokens_BS), my_model(tokens_BS)
torch.testing.assert_close(got_BSV, wanted_BSV, atol=1e-4, rtol=1e-4)
print(f"your model and course.model.Transformer agree on {tuple(got_BSV.shape)} logits")

# %% [markdown]
# Now it learns to read Python, through your gate, your sort, your combine, your norm and your attention. Each number below passed through functions that you wrote, and each
# gradient came back through them.

# %%
optimizer = torch.optim.AdamW(weights.values(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
losses = []
for step in range(120):
    inputs_BS, targets_BS = training_batch(data, config.context, batch=16, seed=1, step=step)
    loss = F.cross_entropy(my_model(inputs_BS).flatten(0, 1), targets_BS.flatten())
    loss.backward()
    if step == 0:
        deaf = [name for name, weight in weights.items() if weight.grad is None]
        assert not deaf, f"no gradient reaches {deaf[0]}: one of your functions leaves PyTorch (NumPy? tolist?)"
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
first, last = losses[0], sum(losses[-10:]) / 10
assert last < first - 1
print(
    f"{first:.2f} nats a token at first, an even guess is {math.log(config.vocab):.2f}; {last:.2f} after {len(losses)} steps"
)

# %% [markdown]
# One thing to take along. Six of eight logits of every token learned nothing from it. A router hears only about the experts it already chose; unit 05 shows
# what DeepSeek does about the ones that are never chosen.
#
# **Next:** lesson 05, where softmax becomes sigmoid, experts come in groups, and a bias keeps the balance.
