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
# # Lab 06 · Latent attention
#
# In the lesson you watched the cache shrink, from one key and value a head to one short row for all of them. Here you write every form on the way, each with
# something that the lesson did not need: a cache that rolls, heads that may look away, rows that arrive late, padding, a cache too long to expand. When you are
# done, the last cells decode with your own parts, and weigh what each form has to remember.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass. A cache is an argument too.
# - Stuck? `course hint 06.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# Names carry their shape: `x_BSD` is `[B, S, D]`. **B** sequences, **S** new positions, **N** positions so far (the new ones are the last S of them), **D** width of
# the model, **H** query heads, **G** kv heads. Features: **C** of a key, **V** of a value; in latent attention **R** of the latent, **O** of a key's part without position
# (*nope*), **r** = 2P of its turned part (*rope*), so C = O + r; **L** = R + r is one cached row. A matrix `kv_down_LD` leads from D numbers to L numbers:
# `x @ kv_down_LD.T`.

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
# ## 06.1 · A cache that rolls
#
# One step of decoding: each of B sequences brings one new position, with a key and a value for each head. They are stored, and the query
# attends to what is there. Two things make it more than a concatenation.
#
# - **Sequences have different lengths.** `lengths_B` says how many positions each has appended so far. Each writes where *it* stands, and sees what
#   *it* has.
# - **The room is limited, and rolls.** There are M slots. Position p (the first is 0) lies in slot `p % M`: once a row is full, the newest position takes the slot of the
#   oldest, and nothing else moves. Models with a sliding window keep such a cache. A length counts every position ever appended, so it may exceed M.
#
# The new position is stored first, then seen along with the others: its query sees `min(length + 1, M)` slots. **Slots that were never written hold anything**:
# zeros, old numbers, or NaN, and 0 · NaN is NaN. What comes out must not depend on them; in the caches that you return they stay as they were.
#
# Scores are divided by $\sqrt{C}$ and may be far from zero. Keys are turned already, so the order of the slots does not matter to the softmax.
#
# The example is case 1. One head, C = V = 1, M = 3; `-` is NaN:
#
# | | keys | values | length | q, k, v | slot | sees the values | y | length after |
# |---|---|---|---|---|---|---|---|---|
# | sequence 0 | `1 - -` | `6 - -` | 1 | 1, 1, 2 | 1 | 6, 2 with equal scores | 4 | 2 |
# | sequence 1 | `1 2 3` | `1 2 9` | 4 | 0, 2, 5 | 4 % 3 = 1 | 1, 5, 9 with equal scores | 5 | 5 |
#
# | | shape | |
# |---|---|---|
# | `keys_BHMC` | `[B, H, M, C]` float32 | the cache |
# | `values_BHMV` | `[B, H, M, V]` float32 | |
# | `lengths_B` | `[B]` int64 | positions appended so far, 0 or more |
# | `q_BHC`, `k_BHC` | `[B, H, C]` float32 | of the new position |
# | `v_BHV` | `[B, H, V]` float32 | |
# | returns `y_BHV` | `[B, H, V]` float32 | |
# | and `keys_BHMC`, `values_BHMV`, `lengths_B` | as above | after the step; new tensors |
#
# **Exercise 06.1** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:06.1"]
# exercise 06.1
def cache_step(
    keys_BHMC: Tensor, values_BHMV: Tensor, lengths_B: Tensor, q_BHC: Tensor, k_BHC: Tensor, v_BHV: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Store one position of every sequence, and attend to what each has: the result, and the cache after it."""
    ### BEGIN SOLUTION
    B, _, M, C = keys_BHMC.shape
    slot_BM = torch.arange(M).expand(B, M)
    here_B1M1 = (slot_BM == lengths_B.unsqueeze(1) % M)[:, None, :, None]
    keys_BHMC = torch.where(here_B1M1, k_BHC.unsqueeze(2), keys_BHMC)
    values_BHMV = torch.where(here_B1M1, v_BHV.unsqueeze(2), values_BHMV)
    seen_B1M = (slot_BM <= lengths_B.unsqueeze(1)).unsqueeze(1)
    scores_BHM = (keys_BHMC @ q_BHC.unsqueeze(-1)).squeeze(-1) / math.sqrt(C)
    weights_BHM = F.softmax(scores_BHM.where(seen_B1M, -math.inf), dim=-1)
    kept_BHMV = values_BHMV.where(seen_B1M.unsqueeze(-1), 0)
    y_BHV = (weights_BHM.unsqueeze(2) @ kept_BHMV).squeeze(2)
    return y_BHV, keys_BHMC, values_BHMV, lengths_B + 1
    ### END SOLUTION


# %% tags=["check:06.1", "nbval-check-output"]
check("06.1", cache_step)

# %% [markdown]
# ## 06.2 · Fewer kv heads, and a sink
#
# The cache of a model is as large as it has kv heads. In grouped-query attention H query heads share G of them: query head $h$ reads keys *and* values of kv head
# $\lfloor h / (H/G) \rfloor$. With H = 6 and G = 3 the query heads 0 to 5 read the kv heads 0, 0, 1, 1, 2, 2. H is a multiple of G; with H = G it is the usual
# multi-head attention, with G = 1 multi-query attention.
#
# Let each query head have a **sink** too, as gpt-oss has: a learned logit that stands for "nothing here is for me". It joins the sum that the exponentials are divided by, and
# brings no value:
#
# $$w_{n} = \frac{e^{s_n}}{e^{\mathrm{sink}_h} + \sum_{m} e^{s_m}} \qquad s_n = \frac{q \cdot k_n}{\sqrt{C}}$$
#
# so that the weights add to less than one. The sink is not divided by $\sqrt{C}$. The sums go over the keys that the query sees: the S queries are the last of the N positions, and query $s$ sees the
# keys 0 to N - S + s. Scores and sinks can be in the hundreds and beyond, of either sign, and the result must stay finite and right.
#
# The example is case 1. H = 4, G = 2, one position, all features one wide, q = 0 and k = 1, so every score is 0. Values 10 and 20, sinks `[0, ln 3, 0, ln 3]`: the weights are
# 1/2, 1/4, 1/2, 1/4, and the results `[5, 2.5, 10, 5]`.
#
# The point of sharing is that nothing is copied: `repeat`, `repeat_interleave` and `tile` are refused. (`expand` copies nothing and is fine.)
#
# | | shape |
# |---|---|
# | `q_BHSC` | `[B, H, S, C]` float32, turned already, as the keys |
# | `k_BGNC` | `[B, G, N, C]` float32; N is at least S |
# | `v_BGNV` | `[B, G, N, V]` float32 |
# | `sink_H` | `[H]` float32 |
# | returns | `[B, H, S, V]` float32 |
#
# **Exercise 06.2** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:06.2"]
# exercise 06.2
def grouped_attention(q_BHSC: Tensor, k_BGNC: Tensor, v_BGNV: Tensor, sink_H: Tensor) -> Tensor:
    """Causal attention of H query heads over G kv heads, each query head with a sink."""
    ### BEGIN SOLUTION
    B, H, S, C = q_BHSC.shape
    _, G, N, V = v_BGNV.shape
    Q = H // G
    q_BGRC = q_BHSC.reshape(B, G, Q * S, C)  # the queries of a group are as many queries of one head
    scores_BHSN = (q_BGRC @ k_BGNC.transpose(2, 3)).reshape(B, H, S, N) / math.sqrt(C)
    seen_SN = torch.arange(N) <= torch.arange(N - S, N).unsqueeze(1)
    scores_BHSN = scores_BHSN.where(seen_SN, -math.inf)
    total_BHS = torch.logaddexp(scores_BHSN.logsumexp(dim=-1), sink_H.unsqueeze(1))
    weights_BHSN = (scores_BHSN - total_BHS.unsqueeze(-1)).exp()
    return (weights_BHSN.reshape(B, G, Q * S, N) @ v_BGNV).reshape(B, H, S, V)
    ### END SOLUTION


# %% tags=["check:06.2", "nbval-check-output"]
check("06.2", grouped_attention)

# %%
rope = mine("02.2")  # RoPE of lab 02: the next exercise may call it

# %% [markdown]
# ## 06.3 · Compress, cache, expand
#
# Latent attention caches neither keys nor values. It caches one row of L = R + r numbers a position, for all heads: a latent, from which keys and values can be made, and one
# turned key that all heads share. One step of it, with M rows cached already and S new positions:
#
# 1. `kv_down_LD` makes L numbers of each new position. The first R are the latent, the last r the shared key.
# 2. **RMSNorm on the latent alone**: divide by $\sqrt{\frac{1}{R}\sum_i c_i^2 + \varepsilon}$, multiply by `norm_R`. The shared key goes by it.
# 3. **RoPE on the shared key alone**, in pairs of neighbours (`"interleaved"`). The new positions are M, M + 1, ...
# 4. The new rows, `[latent | turned key]`, join the cached ones, which had all this done when they were new. That is the new cache.
# 5. Expand **all** N = M + S rows. `kv_up_FR` has F = H (O + V) rows, **head by head**: first the O rows that make a head's nope key out of the latent, then
#    the V rows that make its value. A head's key is `[nope | turned]`, the turned part the same for every head.
#
# When this cell is checked, `rope` of 02.2 is there for you to call, in the course's own version: `rope(x_BHSC, positions_S, theta, rotary, layout)` turns the first
# `rotary` features of its last dimension. The cell above makes it available in this notebook as well.
#
# The example is case 1. D = R = r = 2, two heads with O = V = 1, eps = 0 and theta = 10,000; x = `[3, 4]` is the only new position, and one row is cached:
#
# - `kv_down_LD` = `[[1, 0], [0, 1], [1, 0], [0, 0]]`: latent `[3, 4]`, shared key `[3, 0]`.
# - With `norm_R` = `[1, 2]` the latent becomes `[0.8485, 2.2627]`. The new position is 1, so the key becomes `[3 cos 1, 3 sin 1]` = `[1.6209, 2.5244]`.
# - The rows are the cached `[1, 1, 2, 0]`, then `[0.8485, 2.2627, 1.6209, 2.5244]`.
# - `kv_up_FR` = `[[1, 0], [0, 1], [10, 0], [0, 10]]`: head 0 has the keys `[1, 2, 0]` and `[0.8485, 1.6209, 2.5244]`, and the values 1 and 2.2627; head 1 the
#   keys `[10, 2, 0]` and `[8.485, 1.6209, 2.5244]`, and the values 10 and 22.627.
#
# | | shape | |
# |---|---|---|
# | `x_BSD` | `[B, S, D]` float32 | S is at least 1 |
# | `cached_BNL` | `[B, M, L]` float32 | M may be 0 |
# | `kv_down_LD` | `[L, D]` float32 | |
# | `norm_R` | `[R]` float32 | its length tells R |
# | `kv_up_FR` | `[F, R]` float32 | |
# | `heads`, `nope` | int | H and O |
# | `theta`, `eps` | float | |
# | returns `rows_BNL` | `[B, N, L]` float32 | the cache afterwards |
# | returns `k_BHNC` | `[B, H, N, O + r]` float32 | |
# | returns `v_BHNV` | `[B, H, N, V]` float32 | |
#
# **Exercise 06.3** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:06.3"]
# exercise 06.3
def compress_and_expand(
    x_BSD: Tensor,
    cached_BNL: Tensor,
    kv_down_LD: Tensor,
    norm_R: Tensor,
    kv_up_FR: Tensor,
    heads: int,
    nope: int,
    theta: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cache after the new positions, and the keys and values of all heads that it stands for."""
    ### BEGIN SOLUTION
    R, L = len(norm_R), len(kv_down_LD)
    new_BSL = F.linear(x_BSD, kv_down_LD)
    size_BS1 = (new_BSL[..., :R].square().mean(dim=-1, keepdim=True) + eps).sqrt()
    latent_BSR = norm_R * new_BSL[..., :R] / size_BS1
    M = cached_BNL.shape[1]
    at_S = torch.arange(x_BSD.shape[1]) + M
    turned_B1Sr = rope(new_BSL[..., R:].unsqueeze(1), at_S, theta, L - R, "interleaved")
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turned_B1Sr.squeeze(1)], dim=2)], dim=1)
    kv_HFR = kv_up_FR.unflatten(0, (heads, -1))
    kv_BHNF = torch.einsum("bnr,hfr->bhnf", rows_BNL[..., :R], kv_HFR)
    shared_BHNr = rows_BNL[..., R:].unsqueeze(1).expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], shared_BHNr], dim=3), kv_BHNF[..., nope:]
    ### END SOLUTION


# %% tags=["check:06.3", "nbval-check-output"]
check("06.3", compress_and_expand)

# %% [markdown]
# ## 06.4 · Position in a part of its own
#
# Why does a latent key have two parts? Because a rotation between the two matrices would keep them from being merged (06.5). So position goes into features of its own: of the
# C = O + r features of a query the last r turn, and of the keys only the one that all heads share:
#
# $$s_{h,i,j} = \frac{q^{nope}_{h,i} \cdot k^{nope}_{h,j} + \mathrm{turn}(q^{rope}_{h,i}, p_i) \cdot \mathrm{turn}(k^{rope}_{j}, p_j)}{\sqrt{O + r}}$$
#
# Here query and shared key come *unturned*, and the turning is yours to write: features $2i$ and $2i + 1$ are a pair $(a, b)$, which at position $p$ becomes
# $(a \cos - b \sin,\ a \sin + b \cos)$ with `cos_TP[p, i]` and `sin_TP[p, i]`.
#
# And the sequences come as a server sees them. `positions_BN` says where each *column* stands in its sequence. Shorter sequences are padded on the left, with position **-1**;
# behind the padding positions rise from column to column, and may jump where tokens were thrown away. The S queries are the last S columns. A query sees the keys whose position is not -1 and not after its own; all other
# scores are **minus infinity**. A query that is padding itself sees nothing.
#
# The example is case 1. One head, O = 1, r = 2, two positions, 0 and 1, and a table that makes a quarter turn a position. The one query, at position 1, is
# `[1 | 1, 0]`, and turns into `[1 | 0, 1]`. Key 0 is `[1 | 0, 1]` and stays; key 1 is `[2 | 1, 0]` and turns into `[2 | 0, 1]`. The scores are
# $(1 + 1) / \sqrt 3 = 1.1547$ and $(2 + 1) / \sqrt 3 = 1.7321$.
#
# | | shape | |
# |---|---|---|
# | `q_BHSC` | `[B, H, S, O + r]` float32 | nope first, then rope |
# | `k_nope_BHNO` | `[B, H, N, O]` float32 | N is at least S |
# | `k_rope_BNr` | `[B, N, r]` float32 | one for all heads |
# | `positions_BN` | `[B, N]` int64 | -1 for padding |
# | `cos_TP`, `sin_TP` | `[T, P]` float32 | of the positions 0 to T - 1, all that occur and maybe more; r = 2P |
# | returns | `[B, H, S, N]` float32 | scores, before the softmax |
#
# **Exercise 06.4** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:06.4"]
# exercise 06.4
def decoupled_scores(
    q_BHSC: Tensor, k_nope_BHNO: Tensor, k_rope_BNr: Tensor, positions_BN: Tensor, cos_TP: Tensor, sin_TP: Tensor
) -> Tensor:
    """Scaled scores of queries with keys of two parts; minus infinity where a key is not seen."""
    ### BEGIN SOLUTION

    def turn(x_BHNr, at_BN):
        a, b = x_BHNr.unflatten(-1, (-1, 2)).unbind(dim=-1)
        cos_B1NP, sin_B1NP = cos_TP[at_BN].unsqueeze(1), sin_TP[at_BN].unsqueeze(1)
        return torch.stack((a * cos_B1NP - b * sin_B1NP, a * sin_B1NP + b * cos_B1NP), dim=-1).flatten(start_dim=-2)

    O, r = k_nope_BHNO.shape[-1], k_rope_BNr.shape[-1]  # noqa: E741
    S = q_BHSC.shape[2]
    query_at_BS = positions_BN[:, positions_BN.shape[1] - S :]
    q_nope, q_rope = q_BHSC.split([O, r], dim=-1)
    q_rope, k_rope = turn(q_rope, query_at_BS), turn(k_rope_BNr.unsqueeze(1), positions_BN)
    scores_BHSN = torch.einsum("bhso,bhno->bhsn", q_nope, k_nope_BHNO)
    scores_BHSN = (scores_BHSN + torch.einsum("bhsr,bnr->bhsn", q_rope, k_rope.squeeze(1))) / math.sqrt(O + r)
    not_later_BSN = positions_BN.unsqueeze(1) <= query_at_BS.unsqueeze(2)
    seen_BSN = not_later_BSN & (positions_BN != -1).unsqueeze(1)
    return scores_BHSN.where(seen_BSN.unsqueeze(1), -math.inf)
    ### END SOLUTION


# %% tags=["check:06.4", "nbval-check-output"]
check("06.4", decoupled_scores)

# %% [markdown]
# ## 06.5 · Attention without keys
#
# To decode one token, 06.3 expands *every* cached row again. It need not. A head's nope key is $W^K_h c_n$, so its score is
#
# $$q^{nope}_h \cdot (W^K_h\, c_n) = \bigl({W^K_h}^{\top} q^{nope}_h\bigr) \cdot c_n$$
#
# and the matrix can be applied to the one query in place of all N latents. The result of the head is a weighted sum of values $W^V_h c_n$, and there the matrix can wait
# until the latents are mixed. Keys and values are never made: all H heads attend to the rows themselves.
#
# Compute exactly what attention on expanded keys and values gives: softmax of $q \cdot k / \sqrt{O + r}$ times values, with keys and values as in 06.3 (`kv_up_FR` head by
# head, nope key rows before value rows; a row is `[latent | turned key]`, normed and turned already). Queries are `[nope | rope]`, turned already. The S queries are the last of the N positions: query $s$ sees the rows 0 to N - S + s.
#
# All is **float64** here, and the result has to agree to nine digits: this is algebra, not an approximation. And one case has 70,000 rows, an absurdly wide key and as wide a value, which no one can
# expand: 4.6 GB each in float64, more than the check lets an answer have.
#
# The example is case 1. One head, R = 2, r = 1, O = V = 1; the query, divided by $\sqrt 2$ already, is `[2 | 1]`; the key matrix is `[1, 0]`, the value matrix `[3, 5]`; the
# rows are `[1, 0 | 1]` and `[0, 1 | 3]`. Against the latents the query is `[2, 0]`, the scores are 2 + 1 = 3 and 0 + 3 = 3, the mixed latent is `[0.5, 0.5]` and the result 4.
#
# | | shape | |
# |---|---|---|
# | `q_BHSC` | `[B, H, S, O + r]` float64 | turned, and not yet scaled |
# | `rows_BNL` | `[B, N, R + r]` float64 | N is at least S |
# | `kv_up_FR` | `[H * (O + V), R]` float64 | |
# | `nope` | int | O |
# | returns | `[B, H, S, V]` float64 | |
#
# **Exercise 06.5** · difficulty 4 of 5 · 25 minutes · 20 points · spine


# %% tags=["exercise:06.5"]
# exercise 06.5
def absorbed_attention(q_BHSC: Tensor, rows_BNL: Tensor, kv_up_FR: Tensor, nope: int) -> Tensor:
    """Latent attention on the cached rows: no key and no value is ever made."""
    ### BEGIN SOLUTION
    S, C = q_BHSC.shape[2:]
    N, R = rows_BNL.shape[1], kv_up_FR.shape[1]
    up_HFR = kv_up_FR.unflatten(0, (q_BHSC.shape[1], -1))
    asked_BHSR = torch.einsum("bhso,hor->bhsr", q_BHSC[..., :nope], up_HFR[:, :nope])
    scores_BHSN = torch.einsum("bhsr,bnr->bhsn", asked_BHSR, rows_BNL[..., :R])
    scores_BHSN = scores_BHSN + torch.einsum("bhsr,bnr->bhsn", q_BHSC[..., nope:], rows_BNL[..., R:])
    seen_SN = torch.arange(N) <= torch.arange(N - S, N).unsqueeze(1)
    weights_BHSN = F.softmax((scores_BHSN / math.sqrt(C)).where(seen_SN, -math.inf), dim=-1)
    mixed_BHSR = torch.einsum("bhsn,bnr->bhsr", weights_BHSN, rows_BNL[..., :R])
    return torch.einsum("bhsr,hvr->bhsv", mixed_BHSR, up_HFR[:, nope:])
    ### END SOLUTION


# %% tags=["check:06.5", "nbval-check-output"]
check("06.5", absorbed_attention)

# %% [markdown]
# ## 06.6 · What a token costs
#
# Now the price, for real models, out of their `config.json`: by how many bytes does the cache of all layers grow with one token? Twice: in the whole model (copies on several GPUs count once);
# and on one GPU, when `gpus` of them share one copy of the model by heads (tensor parallelism).
#
# | key of the config | |
# |---|---|
# | `num_hidden_layers` | layers |
# | `hidden_size` | D |
# | `num_attention_heads` | H |
# | `num_key_value_heads` | G; where it is missing, G = H |
# | `head_dim` | features of a key, and of a value; where it is missing, D / H |
# | `kv_lora_rank` | R; only latent attention has it. Then `num_key_value_heads` says nothing about the cache |
# | `qk_rope_head_dim` | r, the shared turned key of latent attention |
# | `index_head_dim` | width of an indexer's key, one a token and layer, cached beside a latent row; may be missing, and is where there is no latent |
#
# Other keys may be there and do not matter.
#
# - Without a latent, a layer caches a key and a value for each kv head. GPUs share the kv heads out evenly; when there are more GPUs than kv heads, heads are copied, and each GPU
#   holds exactly one. G and `gpus` are powers of two.
# - A latent row cannot be shared out: every head reads all of it, and so every GPU holds it whole, and the indexer's key as well.
# - Each number takes `bytes_each` bytes.
#
# The example is case 1, Llama-3.1-405B in bfloat16 on 8 GPUs: 126 layers, D = 16,384, H = 128, G = 8: 516,096 bytes a token in the whole model, 64,512 on each GPU.
#
# | | |
# |---|---|
# | `config` | dict, as above |
# | `gpus`, `bytes_each` | int |
# | returns | `whole`, `per_gpu`: two ints |
#
# **Exercise 06.6** · difficulty 2 of 5 · 15 minutes · 5 points


# %% tags=["exercise:06.6"]
# exercise 06.6
def cache_bytes(config: dict, gpus: int, bytes_each: int) -> tuple[int, int]:
    """Bytes of cache a token: of the whole model, and on one of the GPUs that share it."""
    ### BEGIN SOLUTION
    each = config["num_hidden_layers"] * bytes_each
    if config.get("kv_lora_rank"):
        whole = each * sum(config.get(key, 0) for key in ("kv_lora_rank", "qk_rope_head_dim", "index_head_dim"))
        return whole, whole
    H = config["num_attention_heads"]
    G = config.get("num_key_value_heads") or H
    width = config.get("head_dim") or config["hidden_size"] // H
    return 2 * each * width * G, 2 * each * width * (G // gpus if G > gpus else 1)
    ### END SOLUTION


# %% tags=["check:06.6", "nbval-check-output"]
check("06.6", cache_bytes)

# %% [markdown]
# ## 06.7 · Reading further than trained: YaRN
#
# A model trained on short texts has never seen its slow pairs turn far. YaRN stretches the context by a `factor` in two ways.
#
# **Speeds.** Pair $i$ of the P turns by $\theta^{-i/P}$ radians a position. Fast pairs keep that speed, slow ones turn `factor` times more slowly, and between them it is blended, linearly in the pair's
# *number*. The blend begins at the pair that turns `beta_fast` times over the original context, and ends at the one that turns `beta_slow` times:
#
# $$\mathrm{pair}(\beta) = P \cdot \frac{\ln\bigl(\mathrm{original\ context} / (2\pi\beta)\bigr)}{\ln \theta} \qquad \mathit{first} = \mathrm{pair}(\beta_{fast}), \quad \mathit{last} = \mathrm{pair}(\beta_{slow})$$
#
# 1. With `truncate`, `first` is rounded down and `last` is rounded up. Without, they stay fractions.
# 2. Then `first` is at least 0 and `last` at most r - 1 = 2P - 1 (not P - 1: so the models' own code has it). (In every case `first` is then below `last`; nothing has to be done about it.)
# 3. $\mathit{slow}_i = (i - \mathit{first}) / (\mathit{last} - \mathit{first})$, limited to 0 and 1, is the share of the slowed speed.
#
# **Sharpness.** Over a longer context the softmax is made sharper. With $m(w) = 0.1\, w \ln(\mathrm{factor}) + 1$ there are two factors in DeepSeek's models, and it is easy to mix them up:
#
# - cosine and sine are multiplied by the **table factor** m(`mscale`) / m(`mscale_all_dim`). Only the turned features meet it;
# - the **softmax scale** is m(`mscale_all_dim`)² / $\sqrt{O + r}$, which all features meet.
#
# DeepSeek-V3 has mscale = mscale_all_dim = 1, so that its table factor is 1 and hides many a mistake. `mscale_all_dim` = 0 is YaRN as published.
#
# The example is case 1. r = 8, so P = 4, O = 8, theta 10, factor 16, original context 256, betas 16 and 2, mscale 1, mscale_all_dim 0.5, truncated. `first` = 1.62, so 1; `last` = 5.24, so 6; slow = `[0, 0, 0.2, 0.4]`;
# the speeds are `[1, 0.5623, 0.2569, 0.1111]`, the table factor is 1.27726 / 1.13863 = 1.12175, the softmax scale 1.13863² / 4 = 0.32412.
#
# | | |
# |---|---|
# | `rope_width`, `nope_width` | int, r and O |
# | `theta`, `factor` | float; factor at least 1 |
# | `original_context` | int, tokens |
# | `beta_fast`, `beta_slow` | float, turns |
# | `mscale`, `mscale_all_dim` | float, 0 or more |
# | `truncate` | bool |
# | returns `speeds_P` | `[P]` float32 |
# | returns `table_factor`, `softmax_scale` | two floats |
#
# **Exercise 06.7** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:06.7"]
# exercise 06.7
def yarn(
    rope_width: int,
    nope_width: int,
    theta: float,
    factor: float,
    original_context: int,
    beta_fast: float,
    beta_slow: float,
    mscale: float,
    mscale_all_dim: float,
    truncate: bool,
) -> tuple[Tensor, float, float]:
    """Every pair's slowed speed, what cosine and sine are multiplied by, and the softmax scale."""
    ### BEGIN SOLUTION
    pairs = rope_width // 2
    waves = original_context / (2 * math.pi)
    first, last = (pairs * math.log(waves / turns, theta) for turns in (beta_fast, beta_slow))
    first, last = (math.floor(first), math.ceil(last)) if truncate else (first, last)
    first, last = max(0, first), min(rope_width - 1, last)
    number_P = torch.arange(pairs, dtype=torch.float32)
    slow_P = torch.clamp((number_P - first) / (last - first), min=0.0, max=1.0)
    speed_P = theta ** (-number_P / pairs)
    speed_P = torch.lerp(speed_P, speed_P / factor, slow_P)

    def m(weight):
        return 1.0 + weight * math.log(factor) / 10

    return speed_P, m(mscale) / m(mscale_all_dim), m(mscale_all_dim) ** 2 / math.sqrt(rope_width + nope_width)
    ### END SOLUTION


# %% tags=["check:06.7", "nbval-check-output"]
check("06.7", yarn)

# %% [markdown]
# ## Four roads to the same numbers
#
# No exercise here: run the cells. `mine("06.1")` is your own function once it has passed, and the course's until then. First one layer with random weights, 12 positions, and its
# last position's attention computed in four ways:
#
# - your scores of 06.4 on unturned parts, softmax, times the values of 06.3;
# - your rolling cache of 06.1, with the expanded keys and values of the first 11 positions in it;
# - your absorbed attention of 06.5 on the rows;
# - and once more on the rows, by your *grouped* attention of 06.2: absorbed, latent attention **is** multi-query attention, one kv head for all, whose key is the row. (The sinks are put far away, and the query is
#   multiplied by $\sqrt{L / C}$: 06.2 divides by the root of what it takes for a key.)

# %%
step, grouped, compress, scores, absorbed = (mine(f"06.{n}") for n in (1, 2, 3, 4, 5))

B, N, D, H, R, O, V, r = 2, 12, 32, 4, 16, 8, 8, 4  # noqa: E741
C, L, theta = O + r, R + r, 10_000.0
torch.manual_seed(6)
x_BND = torch.randn(B, N, D)
kv_down_LD, kv_up_FR, norm_R = torch.randn(L, D) / D**0.5, torch.randn(H * (O + V), R) / R**0.5, torch.ones(R)
rows_BNL, k_BHNC, v_BHNV = compress(x_BND, torch.zeros(B, 0, L), kv_down_LD, norm_R, kv_up_FR, H, O, theta, 1e-6)
q_BH1C = torch.randn(B, H, 1, C)  # of the last position, not turned
turned_BH1r = rope(q_BH1C[..., O:], torch.tensor([N - 1]), theta, r, "interleaved")
turned_BH1C = torch.cat([q_BH1C[..., :O], turned_BH1r], dim=-1)

angles_NP = torch.arange(N)[:, None] * theta ** -(torch.arange(0, r, 2) / r)
unturned_BNr = x_BND @ kv_down_LD[R:].T
s = scores(q_BH1C, k_BHNC[..., :O], unturned_BNr, torch.arange(N).expand(B, N), angles_NP.cos(), angles_NP.sin())
roads = {"06.4 and values": (s.softmax(-1) @ v_BHNV)[:, :, 0]}

room = F.pad(k_BHNC[:, :, :-1], (0, 0, 0, 9)), F.pad(v_BHNV[:, :, :-1], (0, 0, 0, 9))
new = turned_BH1C[:, :, 0], k_BHNC[:, :, -1], v_BHNV[:, :, -1]
roads["06.1, a cache"] = step(*room, torch.full((B,), N - 1), *new)[0]

roads["06.5, absorbed"] = absorbed(turned_BH1C.double(), rows_BNL.double(), kv_up_FR.double(), O).float()[:, :, 0]

key_HOR, value_HVR = kv_up_FR.unflatten(0, (H, -1)).split([O, V], dim=1)
q_BH1L = torch.cat([turned_BH1C[..., :O] @ key_HOR, turned_BH1C[..., O:]], dim=-1) * (L / C) ** 0.5
mixed_BH1L = grouped(q_BH1L, rows_BNL[:, None], rows_BNL[:, None], torch.full((H,), -1e4))
roads["06.2, one kv head"] = (mixed_BH1L[..., :R] @ value_HVR.mT)[:, :, 0]

for name, y_BHV in roads.items():
    apart = (y_BHV - roads["06.4 and values"]).abs().max().item()
    print(f"{name:18s} {y_BHV[0, 0, :3].numpy().round(4)} ...  largest difference {apart:.0e}")
    assert apart < 1e-4

# %% [markdown]
# ## Your cache, in a language model
#
# Now a model with latent attention in both of its layers. The course's trainer makes it, out of the design of DeepSeek-V3 at a very small size: some seconds.

# %%
from dataclasses import replace

from course.model import ModelConfig
from course.training.data import load
from course.training.trainer import TrainSettings, train

data = load("code", vocab=512)
config = replace(
    ModelConfig.preset("tiny-deepseek-v3"), vocab=data.tokenizer.vocab, layers=2, width=64, heads=8, experts=8,
    top_k=2, groups=1, top_groups=1, expert_width=32, mlp_width=128, context=128,
)  # fmt: skip
settings = TrainSettings(steps=100, batch=8, warmup=20, evaluate_every=100, evaluation_sequences=16)
theirs, rows = train(config, data, settings)
print(f"trained by the course: {rows[-1].validation:.2f} nats a token, an even guess is {math.log(config.vocab):.2f}")

# %% [markdown]
# Around your attention stand the course's embedding, norms, feed-forward layers and head. The model decodes one token after the other, twice at once: by your absorbed attention, with the rows of 06.3 for a cache; and
# as its **multi-head twin**, which caches the expanded keys and values of every head in your rolling cache of 06.1. The twin has the same weights and the same answers. It only remembers more.
#
# **Predict:** 8 heads, keys of 48 and values of 32 features, against a row of 32 + 16. How many times as much?

# %%
import copy
from types import SimpleNamespace

c = config


def my_queries(part, x_BSD, positions_S):
    """Queries of new positions, turned by your RoPE of lab 02; the matrices are the model's."""
    q_BHSC = part.query_up(part.query_norm(part.query_down(x_BSD))).unflatten(-1, (c.heads, -1)).transpose(1, 2)
    q_nope, q_rope = q_BHSC.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
    return torch.cat([q_nope, rope(q_rope, positions_S, c.rope_theta, c.qk_rope_head_dim, "interleaved")], dim=-1)


class MyAttention(torch.nn.Module):
    """Yours in the place of the course's: absorbed on a cache of rows, or the twin on one of keys and values."""

    def __init__(self, part, twin):
        super().__init__()
        self.part, self.twin = part, twin

    def forward(self, x_BSD, _cos, _sin, cache):
        p, before, S = self.part, cache.length, x_BSD.shape[1]
        weights = p.kv_down.weight, p.kv_norm.weight, p.kv_up.weight
        rows_BNL = cache.rows if not self.twin else x_BSD.new_zeros(1, before, cache.rows.shape[2])
        rows_BNL, k, v = compress(x_BSD, rows_BNL, *weights, c.heads, c.qk_nope_head_dim, c.rope_theta, p.kv_norm.eps)
        q_BHSC = my_queries(p, x_BSD, torch.arange(before, before + S))
        cache.length += S
        if self.twin:  # one position at a time
            y_BHV, *cache.kv = step(*cache.kv, q_BHSC[:, :, 0], k[:, :, -1], v[:, :, -1])
            return p.output(y_BHV.flatten(1)[:, None])
        cache.rows = rows_BNL
        y_BHSV = absorbed(q_BHSC.double(), rows_BNL.double(), weights[2].double(), c.qk_nope_head_dim).float()
        return p.output(y_BHSV.transpose(1, 2).flatten(2))


def my_model(twin):
    """The trained model with your attention in every layer, and an empty cache for each."""
    model = copy.deepcopy(theirs)
    for block in model.blocks:
        block.attention = MyAttention(block.attention, twin)
    caches = []
    for _ in model.blocks:
        room = [torch.full((1, c.heads, c.context, width), math.nan) for width in (c.head_width, c.value_width)]
        rows = torch.zeros(1, 0, c.kv_lora_rank + c.qk_rope_head_dim)
        caches.append(SimpleNamespace(length=0, rows=rows, kv=[*room, torch.zeros(1, dtype=torch.int64)]))
    return model, caches


# %%
from course.model import sample

torch.manual_seed(2)
ids = data.tokenizer.encode("def read(self, path):\n    ")
models = {"latent": my_model(twin=False), "twin": my_model(twin=True)}
logits, prompt = {name: [] for name in models}, len(ids)
with torch.no_grad():
    for at in range(prompt + 60):
        for name, (model, caches) in models.items():
            logits[name].append(model(torch.tensor([[ids[at]]]), caches)[0, -1])
        if at + 1 == len(ids):
            ids.append(sample(logits["latent"][-1], temperature=0.7))
    wanted_NV = theirs(torch.tensor([ids[:-1]]))[0]
for name, each in logits.items():
    apart = (torch.stack(each) - wanted_NV).abs().max().item()
    print(
        f"{name:6s} {len(each)} steps; the logits differ from course.model's, computed at once, by {apart:.0e} at most"
    )
    assert apart < 1e-3
print(data.tokenizer.decode(ids))

# %% [markdown]
# Three computations, one of them without a cache, give the same logits. What did each have to remember? Counted on the tensors themselves, and beside it your 06.6 on models of other people.

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
count = mine("06.6")
published = {  # as their config.json says it
    "Llama-3.1-405B": dict(num_hidden_layers=126, hidden_size=16_384, num_attention_heads=128, num_key_value_heads=8),
    "Qwen2.5-72B": dict(num_hidden_layers=80, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8),
    "DeepSeek-V3": dict(
        num_hidden_layers=61, hidden_size=7168, num_attention_heads=128, kv_lora_rank=512, qk_rope_head_dim=64
    ),
}
on_eight = {name: count(config, 8, 2) for name, config in published.items()}


def held(caches, twin):
    """Bytes of what the caches of all layers hold: of the twin's room only the slots that were written."""
    parts = [
        part[:, :, : cache.length] if twin else part
        for cache in caches
        for part in (cache.kv[:2] if twin else [cache.rows])
    ]
    return sum(part.numel() * part.element_size() for part in parts)


steps = torch.arange(1, len(ids))
sizes = {name: held(caches, name == "twin") / (len(ids) - 1) for name, (_, caches) in models.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), gridspec_kw={"width_ratios": [1, 1.25]})
for name, label in (("twin", "keys and values of 8 heads"), ("latent", "latent rows")):
    left.plot(steps, steps * sizes[name] / 1024, label=label)
left.set(xlabel="tokens decoded", ylabel="cache (KiB)", title="Your two caches")
left.legend(loc="upper left")
places = np.arange(len(published))
for shift, part, label in ((-0.2, 0, "whole model"), (0.2, 1, "each of 8 GPUs")):
    bars = right.bar(places + shift, [sizes[part] / 1000 for sizes in on_eight.values()], 0.38, label=label)
    right.bar_label(bars, fmt="%.1f", fontsize=8)
right.set_xticks(places, published)
right.set(ylabel="KB a token, bfloat16", title="Published models, by your count", ylim=(0, 600))
right.legend()
plt.show()
print(
    f"{sizes['twin']:,.0f} bytes a token against {sizes['latent']:,.0f}: {sizes['twin'] / sizes['latent']:.2f} times as many"
)

# %% [markdown]
# *Figure: two panels. Left, the bytes of your two caches over the tokens decoded: two straight lines, the multi-head twin's far above that of the latent rows. Right, bars of
# the bytes a token of three published models, in the whole model and on each of eight GPUs: Llama's and Qwen's fall to an eighth on a GPU, DeepSeek-V3's stays.*
#
# In the whole model Llama-3.1-405B remembers 7.3 times as much as DeepSeek-V3 (computed: 516,096 / 70,272). On each of eight GPUs that share the heads it is the other way round by a little, for a latent cannot be shared out. That is one reason
# why DeepSeek does not serve it in that way: its attention runs data-parallel, 32 or 144 copies, each with sequences of its own (quoted: Open Infra Index, day 6; unit 18).
#
# Last, YaRN at the size of the real thing. Your speeds, factor and scale against those of `course.model` for DeepSeek-V3:

# %%
from course.model import LatentAttention, rope_speeds

v3 = ModelConfig.preset("deepseek-v3")
y = v3.rope_scaling
speeds_P, table_factor, softmax_scale = mine("06.7")(
    v3.qk_rope_head_dim, v3.qk_nope_head_dim, v3.rope_theta, y.factor, y.original_context, y.beta_fast, y.beta_slow,
    y.mscale, y.mscale_all_dim, y.truncate,
)  # fmt: skip
plain_P = rope_speeds(v3.rope_width, v3.rope_theta)
torch.testing.assert_close(speeds_P, rope_speeds(v3.rope_width, v3.rope_theta, y))
with torch.device("meta"):
    assert math.isclose(softmax_scale, LatentAttention(v3).scale)
assert math.isclose(table_factor, y.attention_factor)
slowed_P = plain_P / speeds_P
print(
    f"{int((slowed_P < 1.001).sum())} of {len(speeds_P)} pairs as fast as before, {int((slowed_P > 39.99).sum())} slowed 40 times"
)
print(
    f"table factor {table_factor:.3f}; softmax scale {softmax_scale:.4f}, {softmax_scale * 192**0.5:.3f} times 1 / sqrt(192)"
)

# %% [markdown]
# All of the sharpening sits in the softmax scale. Where it is left out, nothing breaks and nothing warns: the model only attends a little too evenly, and gets worse the longer the text.
#
# **Next:** lesson 07, where attention, mixture and multi-token prediction become one model.
