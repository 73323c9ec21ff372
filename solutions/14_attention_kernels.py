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
# # Lab 14 · Attention kernels
#
# The scores of attention are the largest thing in a transformer that nobody needs to keep. In the lesson you watched them go by in blocks. Here you write five kernels for it, each with something that the lesson left out: ragged segments,
# a window, a sink, pages, ties. At the end a layer of latent attention decodes on all five, over a paged cache in several splits, and equals the course's model.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer is a function that launches at least one Triton kernel of your own**, in one cell with its kernels. The check calls the function with tensors and looks at what it returns: new tensors. The
#   parameters of the kernels are a suggestion; change them, split a kernel or write a second one, as you like. Only the function's name and arguments stay.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: **B** sequences, **S** queries of each, **N** keys or positions, **H** query heads, **G** heads of keys, **C** features of a key and **V** of a value; in latent attention **R** of the latent, **r** of the turned part, **L** = R + r.
# - Stuck? `course hint 14.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# What holds for all five:
#
# - Kernels run in an interpreter on the CPU that tells of lanes outside a tensor, of two programs at one element, and of NaN in what was never loaded or written. An answer that is right is then compiled for an H100 (sm_90), without a GPU.
# - All tensors are contiguous, those you get and those you return. **Compute in float32**, and round once, at the end, unless the text says otherwise.
# - The arithmetic belongs in kernels. Beside them PyTorch may allocate, fill, view, copy, cast, count, compare, and add up partial results; what else makes more than one floating-point number there does not
#   pass. Results have memory of their own. PyTorch's softmax, logsumexp and attention are out of bounds.
# - `tl.dot` wants sizes of 16 and more, and powers of two: pad with masked lanes. For float32 tiles say `input_precision="ieee"`, or a chip cuts them to TF32, with 10 bits; the interpreter would not show it.
# - In large models offsets pass $2^{31}$: let those that grow with positions or pages be int64. (The checks are too small to see it.)
# - **A log** is the natural logarithm of the sum that a softmax divides by, $\log \sum_n e^{\textit{score}_n}$, float32, that of the scores as they are and not relative to the largest; where nothing is summed it is minus infinity.
# - Every score is finite or minus infinity. A whole block of minus infinity may come first, and minus infinity less itself is NaN.
# - A float32 result is compared by the norm of the error, 1e-5 of the norm of what is right.
# - A kernel that takes everything in one block passes the check where the cases are small; it is no answer to 128,000 positions. Go in blocks.

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

import os

os.environ["TRITON_INTERPRET"] = "1"  # also beside a GPU: the interpreter counts bytes
del os

import triton
import triton.language as tl

# %% [markdown]
# ## 14.1 · A weighted mean in one pass
#
# A batch of texts lies one after the other in one tensor, and each text is to become one vector: the mean of its rows, weighted by the softmax of their scores. That is attention with one query, whose scores are there already. Segment s has the positions from `offsets_P[s]` up to, not including, `offsets_P[s + 1]`:
#
# $$\textit{pooled}_s = \sum_n \frac{e^{\textit{score}_n}}{e^{\textit{log}_s}}\, \textit{values}_n \qquad \textit{log}_s = \log \sum_n e^{\textit{score}_n}$$
#
# - **In one pass:** scores and values are read once, block by block, with a largest score, a sum and a vector that are carried along. What was added before a new largest has to be rescaled, all of it.
# - Scores may be **minus infinity**: closed positions. Their values do not count, **whatever they hold**, NaN and infinity too: $0 \cdot \mathrm{NaN}$ is NaN. They are not loaded.
# - A segment may be empty, or have closed positions alone: its pooled row is 0, its log minus infinity.
# - Scores may lie around 120 or -120. D is any number from 1 up to a few hundred. The offsets begin with 0, end with N, and never fall; S is at least 1.
# - Values are float32 or bfloat16; a bfloat16 result has to be the nearest bfloat16, and one number in 50 may be its neighbour. So weights stay float32 here.
#
# The example is case 1: scores `[ln 1, ln 3, -inf, ln 1]`, values `[[8, 0], [0, 4], [nan, inf], [5, 6]]`, offsets `[0, 3, 3, 4]`. Segment 0 has the weights 1/4, 3/4 and none: `[2, 3]`, its log is ln 4 = 1.386294. Segment 1 is empty: `[0, 0]` and minus infinity. Segment 2 is `[5, 6]` and 0.
#
# | | shape | |
# |---|---|---|
# | `scores_N` | `[N]` | float32 |
# | `values_ND` | `[N, D]` | float32 or bfloat16 |
# | `offsets_P` | `[S + 1]` int64 | |
# | returns `pooled` | `[S, D]` | of the values' dtype |
# | returns `logs` | `[S]` | float32 |
#
# The least bytes: N (4 + D b) for scores and values of b bytes, once, and S (D b + 4) for the results.
#
# **Exercise 14.1** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:14.1"]
# exercise 14.1
@triton.jit
def pool_kernel(scores, values, offsets, pooled, logs, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program a segment, ROWS positions at a time."""
    ### BEGIN SOLUTION
    s = tl.program_id(0)
    d = tl.arange(0, COLUMNS)
    end = tl.load(offsets + s + 1)
    largest, total = float("-inf"), 0.0
    mix = tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.load(offsets + s), end, ROWS):
        n = start + tl.arange(0, ROWS)
        score = tl.load(scores + n, mask=n < end, other=float("-inf"))
        larger = tl.maximum(largest, tl.max(score))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(score - base)
        shrink = tl.exp(largest - base)
        inside = (weight > 0.0)[:, None] & (d < D)[None, :]
        rows = tl.load(values + n[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        mix = mix * shrink + tl.sum(rows * weight[:, None], axis=0)
        total = total * shrink + tl.sum(weight)
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)
    tl.store(pooled + s * D + d, mix.to(pooled.dtype.element_ty), mask=d < D)
    tl.store(logs + s, largest + tl.log(total))
    ### END SOLUTION


def attention_pool(scores_N: Tensor, values_ND: Tensor, offsets_P: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax-weighted mean of each segment's values, and the log of its sum."""
    ### BEGIN SOLUTION
    S, D = len(offsets_P) - 1, values_ND.shape[1]
    pooled_SD, logs_S = torch.empty(S, D, dtype=values_ND.dtype), torch.empty(S)
    tensors = scores_N, values_ND, offsets_P, pooled_SD, logs_S
    pool_kernel[(S,)](*tensors, D, ROWS=32, COLUMNS=triton.next_power_of_2(D))
    return pooled_SD, logs_S
    ### END SOLUTION


# %% tags=["check:14.1", "nbval-check-output"]
check("14.1", attention_pool)

# %% [markdown]
# ## 14.2 · Attention without its scores
#
# Now the queries, and a tile of them at a time. The lesson's kernel has a head's tokens one below the other; serving engines have **token-major** tensors, as the projection leaves them: all heads of a token side by side. And many models look back only so far:
#
# - Query s of S stands at **position** N - S + s: the queries are the last of the N positions. It sees key n where n ≤ position and **n > position - window**: at most `window` keys, its own position included. The window is 1 or more; one of N or more hides nothing.
# - Query head h reads key head **h // (H / G)**: neighbours share. H is a multiple of G, and N is S or more.
# - C and V are any two numbers from 1 to 128, and need not be equal. The score of a query and a key is `scale` times their product.
# - A tile of queries need not look at keys that none of them sees. The check sees values and not bytes; the last cells of this lab count.
# - With a window the *first* block of a tile may hold no key at all for its later queries.
# - **bfloat16**: a tensor core wants both factors in bfloat16, so the weights may be rounded to it before they meet the values, and the result is compared to 5e-3 of its norm. Sum and log are not made of rounded weights: the log is compared to 1e-5.
#
# The example is case 1: one sequence, one head, S = 3 and N = 4, C = 1, V = 2, window 2, scale 1. Queries are 0, 0, 1, keys 0, 0, 0, ln 3, values `[8, 0]`, `[0, 4]`, `[6, 2]`, `[2, 6]`. The query at position 1 sees keys 0 and 1, equally: `[4, 2]`, its log is ln 2. That at 2 sees keys 1 and 2:
# `[3, 3]`, ln 2. That at 3 sees keys 2 and 3 with weights 1/4 and 3/4: `[3, 5]`, ln 4 = 1.386294.
#
# | | shape | |
# |---|---|---|
# | `q_BSHC` | `[B, S, H, C]` | float32 or bfloat16, the same for all three |
# | `k_BNGC` | `[B, N, G, C]` | |
# | `v_BNGV` | `[B, N, G, V]` | |
# | `window` | int | |
# | `scale` | float | |
# | returns `out` | `[B, S, H, V]` | of q's dtype |
# | returns `logs` | `[B, S, H]` | float32 |
#
# The least bytes: queries, keys, values and results, each once. A tile of queries reads its keys again; larger tiles, fewer readings.
#
# **Exercise 14.2** · difficulty 4 of 5 · 45 minutes · 15 points


# %% tags=["exercise:14.2"]
# exercise 14.2
@triton.jit
def flash_kernel(
    q, k, v, out, logs, S, H, N, G, C, V, window, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, BROAD: tl.constexpr,
):  # fmt: skip
    """One program for ROWS queries of a head, KEYS keys at a time."""
    ### BEGIN SOLUTION
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c, w = tl.arange(0, WIDE)[None, :], tl.arange(0, BROAD)[None, :]
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (b * S + m) * H + h
    query = tl.load(q + row[:, None] * C + c, mask=(m < S)[:, None] & (c < C), other=0.0)
    at = N - S + m[:, None]
    first = N - S + tl.program_id(0) * ROWS
    largest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, BROAD], tl.float32)
    for start in range(tl.maximum(first - window + 1, 0), tl.minimum(first + ROWS, N), KEYS):
        n = start + tl.arange(0, KEYS)
        place = (b * N + n[:, None]) * G + h // (H // G)
        keys = tl.load(k + place * C + c, mask=(n < N)[:, None] & (c < C), other=0.0)
        values = tl.load(v + place * V + w, mask=(n < N)[:, None] & (w < V), other=0.0)
        scores = tl.dot(query, keys.T, input_precision="ieee") * scale
        sees = (n[None, :] <= at) & (n[None, :] > at - window)
        scores = tl.where(sees, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision="ieee")
        largest = larger
    mix = mix / total[:, None]
    tl.store(out + row[:, None] * V + w, mix.to(out.dtype.element_ty), mask=(m < S)[:, None] & (w < V))
    tl.store(logs + row, largest + tl.log(total), mask=m < S)
    ### END SOLUTION


def flash_forward(q_BSHC: Tensor, k_BNGC: Tensor, v_BNGV: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention within a window, and the log of each query's sum."""
    ### BEGIN SOLUTION
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    wide, broad = (max(triton.next_power_of_2(width), 16) for width in (C, V))
    flash_kernel[(triton.cdiv(S, 32), H, B)](
        q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH, S, H, N, G, C, V, window, scale,
        ROWS=32, KEYS=16, WIDE=wide, BROAD=broad,
    )  # fmt: skip
    return out_BSHV, logs_BSH
    ### END SOLUTION


# %% tags=["check:14.2", "nbval-check-output"]
check("14.2", flash_forward)

# %% [markdown]
# ## 14.3 · One result from many splits
#
# In decoding a sequence has one query, too few to fill a GPU, so its keys are dealt out to several programs. Each attends to its own span, and leaves a **part**, divided by the sum of its own exponentials, and the log of that sum. Combine them:
#
# $$\textit{log} = \log\Bigl(e^{\textit{sink}} + \sum_j e^{\textit{lse}_j}\Bigr) \qquad \textit{out} = \sum_j e^{\textit{lse}_j - \textit{log}}\, \textit{part}_j$$
#
# - Of sequence b only the **first `counts_B[b]`** splits were written, from 0 up to J. What lies behind them is what an earlier step left there: numbers, or anything.
# - A split that was written may have been **empty**: its log is minus infinity, and its part was never filled. It may hold NaN, and must not be read.
# - The **sink** of a head is one more log in the sum, with no value: gpt-oss learns one a head, so that a head may look away (exercise 06.2). It belongs to the whole softmax, so it is added here, once, and not in every split. Minus infinity: the head has none.
# - Where there is neither a split nor a sink, out is 0 and the log minus infinity.
# - Logs may lie around 130 or -130. All is float32. J, H and V are 1 or more, V up to a few hundred; B may be 0.
#
# The example is case 1: three splits of one sequence and one head, of which two were written: parts `[4, 0]` and `[0, 8]`, logs ln 1 and ln 2; behind them `[9, 9]` and ln 5. The sink is 0. The sum is 1 + 1 + 2: out = `[4 · 1/4, 8 · 2/4]` = `[1, 4]`, the log is ln 4 = 1.386294.
#
# | | shape | |
# |---|---|---|
# | `parts_JBHV` | `[J, B, H, V]` | float32 |
# | `lses_JBH` | `[J, B, H]` | float32 |
# | `counts_B` | `[B]` int64 | 0 to J |
# | `sinks_H` | `[H]` | float32 |
# | returns `out` | `[B, H, V]` | float32 |
# | returns `logs` | `[B, H]` | float32 |
#
# The least bytes: the parts that count, once, with their logs, and the results.
#
# **Exercise 14.3** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:14.3"]
# exercise 14.3
@triton.jit
def combine_kernel(parts, lses, counts, sinks, out, logs, B, H, V, WIDE: tl.constexpr):
    """One program for a head of a sequence."""
    ### BEGIN SOLUTION
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = tl.arange(0, WIDE)
    largest = tl.load(sinks + h)
    total = tl.where(largest > float("-inf"), 1.0, 0.0)
    mix = tl.zeros([WIDE], tl.float32)
    for j in range(tl.load(counts + b)):
        row = (j * B + b) * H + h
        log = tl.load(lses + row)
        larger = tl.maximum(largest, log)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(log - base)
        shrink = tl.exp(largest - base)
        part = tl.load(parts + row * V + v, mask=(v < V) & (weight > 0.0), other=0.0)
        mix = mix * shrink + part * weight
        total = total * shrink + weight
        largest = larger
    row = b * H + h
    tl.store(out + row * V + v, mix / tl.where(total > 0.0, total, 1.0), mask=v < V)
    tl.store(logs + row, largest + tl.log(total))
    ### END SOLUTION


def combine_splits(parts_JBHV: Tensor, lses_JBH: Tensor, counts_B: Tensor, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """The whole from its parts and their logs, with a sink."""
    ### BEGIN SOLUTION
    _, B, H, V = parts_JBHV.shape
    out_BHV, logs_BH = torch.empty(B, H, V), torch.empty(B, H)
    tensors = parts_JBHV, lses_JBH, counts_B, sinks_H, out_BHV, logs_BH
    combine_kernel[(B, H)](*tensors, B, H, V, WIDE=triton.next_power_of_2(V))
    return out_BHV, logs_BH
    ### END SOLUTION


# %% tags=["check:14.3", "nbval-check-output"]
check("14.3", combine_splits)

# %% [markdown]
# ## 14.4 · Latent attention on pages
#
# The kernel that DeepSeek serves with. Absorbed (exercise 06.5), latent attention has one key head for all query heads, and its key is the cached row: R numbers of the latent, then r of the turned key. **The values are the first R numbers of the same row.** So a block of rows is read once, and used twice.
#
# A serving engine does not know how long a sequence will get, so it gives out memory in **pages** of K positions. Position n of sequence b lies in row `n % K` of page `table_BW[b, n // K]`.
#
# - Sequence b has `lengths_B[b]` positions; its one query sees all of them. A length may be 0: out is 0, the log minus infinity. Behind the last position the page holds **anything**, also NaN.
# - Table entries that a sequence does not need are -1. Pages come in any order, and two sequences with the same beginning may share one.
# - K is a power of two from 16 to 64. R and r are powers of two from 16 up, R up to 512 (the argument `rank`), r up to 64. H is any number from 1 up to 128; a tile needs 16 rows.
# - `scale` is that of the keys that were never made (1 / sqrt(192) in DeepSeek-V3), and is given. It multiplies the whole score, latent and turned part. The queries come absorbed and turned.
# - As in 14.2 weights may be rounded to bfloat16 in front of the second product, and a bfloat16 result is compared to 5e-3.
# - One program for all positions of a sequence will do. If you like, cut a sequence into spans, and merge them in a second kernel.
#
# The example is case 1: one sequence of two positions, one head, R = r = 16, K = 16, scale 0.5, table `[[2, -1]]`. The first row of page 2 is 4 at place 0, the second one 8 at place 1 and 1 at place 16, the first turned number; else they are 0. The query is ln 9 at place 16, else 0.
# The scores are 0 and ln 9 / 2 = ln 3, the weights 1/4 and 3/4, out is `[1, 6, 0, ...]`, the log ln 4 = 1.386294.
#
# | | shape | |
# |---|---|---|
# | `q_BHL` | `[B, H, R + r]` | float32 or bfloat16, the same for both |
# | `pages_PKL` | `[P, K, R + r]` | |
# | `table_BW` | `[B, W]` int32 | -1 or a page |
# | `lengths_B` | `[B]` int64 | 0 to W K |
# | `scale` | float | |
# | `rank` | int | R |
# | returns `out` | `[B, H, R]` | of q's dtype |
# | returns `logs` | `[B, H]` | float32 |
#
# The least bytes: each position's row once, queries and results. A program with 16 of 128 heads reads rows that seven others read as well.
#
# **Exercise 14.4** · difficulty 4 of 5 · 45 minutes · 20 points


# %% tags=["exercise:14.4"]
# exercise 14.4
@triton.jit
def pages_kernel(
    q, pages, table, lengths, out, logs, H, W, scale,
    R: tl.constexpr, L: tl.constexpr, SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One program for HEADS heads of a sequence, a page at a time."""
    ### BEGIN SOLUTION
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    r, p = tl.arange(0, R)[None, :], R + tl.arange(0, L - R)[None, :]
    row = b * H + h
    there = (h < H)[:, None]
    query = tl.load(q + row[:, None] * L + r, mask=there, other=0.0)
    turned = tl.load(q + row[:, None] * L + p, mask=there, other=0.0)
    length = tl.load(lengths + b)
    largest, total = tl.full([HEADS], float("-inf"), tl.float32), tl.zeros([HEADS], tl.float32)
    mix = tl.zeros([HEADS, R], tl.float32)
    for start in range(0, length, SIZE):
        page = tl.load(table + b * W + start // SIZE).to(tl.int64)
        n = tl.arange(0, SIZE)
        inside = start + n < length
        at = pages + (page * SIZE + n)[:, None] * L
        latent = tl.load(at + r, mask=inside[:, None], other=0.0)
        rope = tl.load(at + p, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, latent.T, input_precision="ieee")
        scores = tl.dot(turned, rope.T, scores, input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(latent.dtype), latent, mix * shrink[:, None], input_precision="ieee")
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + row[:, None] * R + r, mix.to(out.dtype.element_ty), mask=there)
    tl.store(logs + row, largest + tl.log(total), mask=h < H)
    ### END SOLUTION


def mla_decode_paged(
    q_BHL: Tensor, pages_PKL: Tensor, table_BW: Tensor, lengths_B: Tensor, scale: float, rank: int
) -> tuple[Tensor, Tensor]:
    """One query of each sequence against the latents on its pages, and the logs."""
    ### BEGIN SOLUTION
    (B, H, L), SIZE = q_BHL.shape, pages_PKL.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    heads = min(max(triton.next_power_of_2(H), 16), 64)  # 64 rows are what wgmma takes
    pages_kernel[(triton.cdiv(H, heads), B)](
        q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH, H, table_BW.shape[1], scale,
        R=rank, L=L, SIZE=SIZE, HEADS=heads, num_warps=8 if heads == 64 else 4,
    )  # fmt: skip
    return out_BHR, logs_BH
    ### END SOLUTION


# %% tags=["check:14.4", "nbval-check-output"]
check("14.4", mla_decode_paged)

# %% [markdown]
# ## 14.5 · The lightning indexer's choice
#
# DeepSeek-V3.2 lets each query look at the 2,048 positions that a small side network likes best (V3.2-Exp report, section 2.1). Its score of a query and a position is a sum over *index heads* h, with one key a position for all of them:
#
# $$\textit{score}(s, n) = \sum_h \textit{weight}_{sh} \cdot \mathrm{ReLU}(q_{sh} \cdot k_n)$$
#
# - Sequence b has `lengths_B[b]` positions, 0 to N; the rows of `k_BNC` behind them do not count. Its S queries are the last of these positions: query s stands at position `lengths_B[b] - S + s`, and **sees the keys up to and including its own**. Where that is negative, it sees none.
# - Return, for each query, the positions of its `top` best scores, **the best first; of equal scores the earlier position first**. Ties are common: with which every head disagrees has score 0. Weights may be negative, so scores may be, too.
# - Where a query sees fewer than `top` keys, the places left are **-1**. `top` may exceed N.
# - The cases hold small whole numbers, halves and quarters, so that every sum is exact in float32, in any order: your indices must be the reference's, ties included. N is at most some hundreds here: a program may hold a whole row of scores.
# - PyTorch's topk, sort and argmax are out of bounds; those of Triton are not, but `tl.sort` and `tl.topk` are slow in the interpreter. A loop over `top` with `tl.argmax` is enough.
#
# The example is case 1: one query of two heads, `[1, 0]` with weight 1 and `[0, 1]` with weight -1. The keys are `[2, 1]`, `[-1, 3]`, `[1, 0]`, `[3, 3]`, `[9, 0]`, the length is 4. The scores are 2 - 1 = 1, 0 - 3 = -3, 1 and 0; the last key does not count. The three best: `[0, 2, 3]`.
#
# | | shape | |
# |---|---|---|
# | `q_BSHC` | `[B, S, H, C]` | float32 or bfloat16 |
# | `k_BNC` | `[B, N, C]` | of q's dtype |
# | `weight_BSH` | `[B, S, H]` | float32 |
# | `lengths_B` | `[B]` int64 | |
# | `top` | int | 1 or more |
# | returns | `[B, S, top]` | int64 |
#
# The least bytes: queries, keys, weights and positions. Scores that go through memory between two kernels add 8 a query and key; those of single heads would add 8 H, and stay in registers.
#
# **Exercise 14.5** · difficulty 3 of 5 · 35 minutes · 15 points


# %% tags=["exercise:14.5"]
# exercise 14.5
@triton.jit
def index_kernel(
    q, k, weights, lengths, scores, S, N, H, C, HEADS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """One program a query: its heads are the rows of a tile, KEYS keys at a time."""
    ### BEGIN SOLUTION
    s, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    h, c = tl.arange(0, HEADS), tl.arange(0, WIDE)[None, :]
    row = b * S + s
    seen = tl.load(lengths + b) - S + s + 1
    query = tl.load(q + (row * H + h)[:, None] * C + c, mask=(h < H)[:, None] & (c < C), other=0.0)
    weight = tl.load(weights + row * H + h, mask=h < H, other=0.0)
    for start in range(0, seen, KEYS):
        n = start + tl.arange(0, KEYS)
        keys = tl.load(k + (b * N + n)[:, None] * C + c, mask=(n < seen)[:, None] & (c < C), other=0.0)
        agreement = tl.maximum(tl.dot(query, keys.T, input_precision="ieee"), 0.0)
        tl.store(scores + row * N + n, tl.sum(agreement * weight[:, None], axis=0), mask=n < seen)
    ### END SOLUTION


@triton.jit
def choose_kernel(scores, lengths, chosen, S, N, top, BLOCK: tl.constexpr):
    """One program a query: the best, again and again."""
    ### BEGIN SOLUTION
    s, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = b * S + s
    n = tl.arange(0, BLOCK)
    seen = tl.load(lengths + b) - S + s + 1
    score = tl.load(scores + row * N + n, mask=n < seen, other=float("-inf"))
    for place in range(top):
        best = tl.argmax(score, axis=0)
        tl.store(chosen + row * top + place, tl.where(place < seen, best, -1))
        score = tl.where(n == best, float("-inf"), score)
    ### END SOLUTION


def lightning_topk(q_BSHC: Tensor, k_BNC: Tensor, weight_BSH: Tensor, lengths_B: Tensor, top: int) -> Tensor:
    """The positions that each query is to look at, the best first."""
    ### BEGIN SOLUTION
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    scores_BSN, chosen_BSK = torch.empty(B, S, N), torch.empty(B, S, top, dtype=torch.int64)
    heads, wide = (max(triton.next_power_of_2(size), 16) for size in (H, C))
    tensors = q_BSHC, k_BNC, weight_BSH, lengths_B, scores_BSN
    index_kernel[(S, B)](*tensors, S, N, H, C, HEADS=heads, KEYS=32, WIDE=wide)
    choose_kernel[(S, B)](scores_BSN, lengths_B, chosen_BSK, S, N, top, BLOCK=triton.next_power_of_2(N))
    return chosen_BSK
    ### END SOLUTION


# %% tags=["check:14.5", "nbval-check-output"]
check("14.5", lightning_topk)
