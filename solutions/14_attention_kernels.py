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
#   pass: no `masked_fill` and no indexing with a tensor, for instance. A single number may leave through `int(...)`, a list may not. Results have memory of their own, not that of an argument. PyTorch's softmax, logsumexp and attention are out of bounds.
# - `tl.dot` wants sizes of 16 and more, and powers of two: pad with masked lanes. For float32 tiles say `input_precision="ieee"`, or they are cut to TF32, with 10 bits of fraction, by a chip and by the check alike.
# - In large models offsets pass $2^{31}$: let those that grow with positions or pages be int64. (The checks are too small to see it.)
# - **A log** is the natural logarithm of the sum that a softmax divides by, $\log \sum_n e^{\textit{score}_n}$, float32, that of the scores as they are and not relative to the largest; where nothing is summed it is minus infinity.
# - Each row of a tile has a largest of its own: one query's scores may lie hundreds above another's.
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
# - **In one pass:** scores and values are read once, block by block, with a largest score, a sum and a vector that are carried along. What was added before a new largest has to be rescaled, all of it. (The check sees values; the last cells of this lab count bytes.)
# - Scores may be **minus infinity**: closed positions. Their values do not count, **whatever they hold**, NaN and infinity too: $0 \cdot \mathrm{NaN}$ is NaN. So do not load them: no bytes, and nothing to remove.
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
# - With a window the *first* block of a tile may hold no key at all for its later queries (where a block is shorter than the tile, or begins earlier).
# - **bfloat16**: a tensor core wants both factors in bfloat16, so the weights may be rounded to it before they meet the values, and the result is compared to 5e-3 of its norm, and to 2e-3 where no value is negative, since nothing cancels there. **The sums stay in float32**, whatever the values are: one that is rounded at every block does not pass. Sum and log are not made of rounded weights: the log is compared to 1e-5.
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
# - A split that was written may have been **empty**: its log is minus infinity, and its part was never filled. It may hold NaN: leave it out of the sum, and best unread.
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
# - As in 14.2 weights may be rounded to bfloat16 in front of the second product, and a bfloat16 result is compared to 5e-3, or to 2e-3 where no row is negative; what is carried from block to block stays in float32.
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
        R=rank, L=L, SIZE=SIZE, HEADS=heads, num_warps=max(4, heads // 8), num_stages=2,
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
# - The cases hold whole numbers and quarters, so that every sum is exact in float32, in any order, and not in bfloat16: your indices must be the reference's, ties included. N is at most some hundreds here: a program may hold a whole row of scores.
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

# %% [markdown]
# ## A layer that decodes on your kernels
#
# No exercise from here on: run the cells. `mine("14.1")` is your own function once it has passed, and the course's kernel until then.
#
# First a layer of latent attention at a small size, with random weights. Two sequences of different lengths live in a paged cache; a free page is taken when one is needed, from anywhere. What was never written holds NaN.

# %%
from dataclasses import replace

from course.kernels.checked import checked
from course.model import LatentAttention, ModelConfig, apply_rope, rope_table

own = {f"14.{n}": mine(f"14.{n}") for n in range(1, 6)}
c = replace(ModelConfig.preset("tiny-deepseek-v3"), width=64, context=128)
H, O, r, R, C = c.heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank, c.head_width  # noqa: E741
torch.manual_seed(14)
layer = LatentAttention(c).requires_grad_(False)


class Pages:
    """A paged cache of latent rows for B sequences, each of at most W pages of K positions."""

    def __init__(self, B, W=6, K=16):
        self.rows_PKL = torch.full((B * W + 3, K, R + r), math.nan)
        self.table_BW = torch.full((B, W), -1, dtype=torch.int32)
        self.lengths_B = torch.zeros(B, dtype=torch.int64)
        self.free, self.K = torch.randperm(B * W + 3).tolist(), K

    def append(self, b, rows_SL):
        for row_L in rows_SL:
            page, place = divmod(int(self.lengths_B[b]), self.K)
            if not place:
                self.table_BW[b, page] = self.free.pop()
            self.rows_PKL[self.table_BW[b, page], place] = row_L
            self.lengths_B[b] += 1


# %% [markdown]
# **The prompts**, on your 14.2. Keys and values of all heads are expanded for it, as every engine does for prompts. The second half of each prompt comes later than the first, so that queries stand behind older keys; the window is larger than the text.


# %%
def projected(part, x_SD, positions_S):
    """Queries of each head, with the latent they came from, and rows for the cache; turned by position."""
    cos, sin = rope_table(positions_S, r, c.rope_theta, c.rope_scaling)
    latent_SQ = part.query_norm(part.query_down(x_SD))
    q_HSC = part.query_up(latent_SQ).unflatten(-1, (H, C)).transpose(0, 1)
    q_HSC = torch.cat([q_HSC[..., :O], apply_rope(q_HSC[None, ..., O:], cos, sin, c.rope_layout)[0]], dim=-1)
    latent_SR, k_Sr = part.kv_down(x_SD).split([R, r], dim=-1)
    k_Sr = apply_rope(k_Sr[None, None], cos, sin, c.rope_layout)[0, 0]
    return q_HSC, latent_SQ, torch.cat([part.kv_norm(latent_SR), k_Sr], dim=-1), (cos, sin)


def prefill(x_SD, before_ML):
    """What the layer gives for new positions behind cached rows; and the new rows."""
    positions = len(before_ML) + torch.arange(len(x_SD))
    q_HSC, _, rows_SL, _ = projected(layer, x_SD, positions)
    k_BHNC, v_BHNV = layer.expand(torch.cat([before_ML, rows_SL])[None])
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_HSC[None], k_BHNC, v_BHNV))
    out_BSHV, _ = own["14.2"](q, k, v, 1000, layer.scale)
    return layer.output(out_BSHV.flatten(2))[0], rows_SL


prompts, steps = (29, 44), 6
texts = [torch.randn(length + steps, c.width) for length in prompts]
cache, results = Pages(len(texts)), [[] for _ in texts]
with checked() as prompt_log:
    for b, (text, length) in enumerate(zip(texts, prompts, strict=True)):
        y_first, rows_first = prefill(text[: length // 2], torch.zeros(0, R + r))
        y_second, rows_second = prefill(text[length // 2 : length], rows_first)
        cache.append(b, torch.cat([rows_first, rows_second]))
        results[b] += [*y_first, *y_second]
print(f"{len(prompt_log.launches)} launches; page table:")
print(cache.table_BW)

# %% [markdown]
# **Decoding**, absorbed. Each sequence's pages are dealt out to three splits: for your 14.4 a split is a sequence of its own, with its piece of the table. Your 14.3 makes one result of three.


# %%
value_HVR = layer.kv_up.weight.unflatten(0, (H, -1))[:, O:]
key_HOR = layer.kv_up.weight.unflatten(0, (H, -1))[:, :O]


def in_splits(q_BHL, cache, J):
    """Parts and logs of J splits, and how many of them each sequence has."""
    B, W = cache.table_BW.shape
    pages = -(-int(-(-cache.lengths_B.max() // cache.K)) // J)  # of a split, enough for the longest
    table = F.pad(cache.table_BW, (0, max(0, pages * J - W)), value=-1)[:, : pages * J]
    begins_J = torch.arange(J) * pages * cache.K
    lengths_BJ = (cache.lengths_B[:, None] - begins_J).clamp(0, pages * cache.K)
    queries = q_BHL.repeat_interleave(J, dim=0)
    tables = table.reshape(B * J, pages).contiguous()
    out, logs = own["14.4"](queries, cache.rows_PKL, tables, lengths_BJ.flatten(), layer.scale, R)
    parts_JBHR, logs_JBH = (t.unflatten(0, (B, J)).transpose(0, 1).contiguous() for t in (out, logs))
    return parts_JBHR, logs_JBH, (lengths_BJ > 0).sum(dim=1)


no_sink = torch.full((H,), -math.inf)
with checked() as decode_log:
    for step in range(steps):
        queries = []
        for b, (text, length) in enumerate(zip(texts, prompts, strict=True)):
            at = length + step
            q_H1C, _, rows_1L, _ = projected(layer, text[at : at + 1], torch.tensor([at]))
            cache.append(b, rows_1L)
            queries.append(torch.cat([(q_H1C[..., :O] @ key_HOR)[:, 0], q_H1C[:, 0, O:]], dim=-1))
        q_BHL = torch.stack(queries)
        parts = in_splits(q_BHL, cache, J=3)
        mixed_BHR, logs_BH = own["14.3"](*parts, no_sink)
        for b, y_HV in enumerate(torch.einsum("bhr,hvr->bhv", mixed_BHR, value_HVR)):
            results[b].append(layer.output(y_HV.flatten()))

# %%
for b, text in enumerate(texts):
    cos, sin = rope_table(torch.arange(len(text)), r, c.rope_theta, c.rope_scaling)
    wanted_SD, got_SD = layer(text[None], cos, sin)[0], torch.stack(results[b])
    apart = ((got_SD - wanted_SD).norm(dim=1) / wanted_SD.norm(dim=1)).max().item()
    print(f"sequence {b}: {prompts[b]} positions at once, {steps} one by one; off by {apart:.0e} at most")
    assert apart < 1e-5
for J in (1, 2, 4, 6):
    with checked():
        again_BHR, _ = own["14.3"](*in_splits(q_BHL, cache, J), no_sink)
    apart = (again_BHR - mixed_BHR).abs().max().item()
    print(f"{J} instead of 3 splits change the last step's mix by {apart:.0e}")
    assert apart < 1e-5

# %% [markdown]
# Equal to `course.model`, position by position, whatever the number of splits. And do you see what the combine *is*? A mean of the parts, weighted by the softmax of their logs: your 14.1, with one segment for each head of each sequence.

# %%
parts_JBHR, logs_JBH, counts_B = parts
written_JB = torch.arange(len(parts_JBHR))[:, None] < counts_B
scores_BHJ = logs_JBH.masked_fill(~written_JB[:, :, None], -math.inf).permute(1, 2, 0)
rows = parts_JBHR.permute(1, 2, 0, 3).flatten(0, 2).contiguous()
offsets = torch.arange(scores_BHJ[..., 0].numel() + 1) * len(parts_JBHR)
with checked():
    pooled, logs = own["14.1"](scores_BHJ.flatten().contiguous(), rows, offsets)
print(f"14.1 as a combine: off by {(pooled.view_as(mixed_BHR) - mixed_BHR).abs().max():.0e}")
assert torch.allclose(pooled.view_as(mixed_BHR), mixed_BHR, atol=1e-5)
assert torch.allclose(logs.view_as(logs_BH), logs_BH, atol=1e-5)

# %% [markdown]
# ## And with chosen positions
#
# The same layer with an indexer of four heads, which lets the query see 16 positions. The course's layer masks all others; yours asks your 14.5, gathers sixteen rows into a page, and looks at nothing else.

# %%
sparse = replace(c, index_topk=16, index_heads=4, index_head_dim=32)
torch.manual_seed(15)
layer = LatentAttention(sparse).requires_grad_(False)
key_HOR, value_HVR = layer.kv_up.weight.unflatten(0, (H, -1)).split([O, c.v_head_dim], dim=1)
x_BND = torch.randn(2, 60, c.width)
cos, sin = rope_table(torch.arange(60), r, c.rope_theta, c.rope_scaling)
q_BHL, rows_BNL, latents_BQ = [], [], []
for x_ND in x_BND:
    q_HNC, latent_NQ, rows_NL, _ = projected(layer, x_ND, torch.arange(60))
    q_BHL.append(torch.cat([(q_HNC[:, -1:, :O] @ key_HOR)[:, 0], q_HNC[:, -1, O:]], dim=-1))
    rows_BNL.append(rows_NL)
    latents_BQ.append(latent_NQ[-1])
q_BHL, rows_BNL, latents_BQ = (torch.stack(each) for each in (q_BHL, rows_BNL, latents_BQ))

# %%
index = layer.indexer
k_BNC = index._turned(index.key_norm(index.key(x_BND))[:, None], cos, sin)[:, 0].contiguous()
q_B1HC = index.query(latents_BQ).view(2, 1, 4, 32)
q_B1HC = index._turned(q_B1HC.transpose(1, 2), cos[-1:], sin[-1:]).transpose(1, 2).contiguous()
weight_B1H = index.weight(x_BND[:, -1:]) * (4 * 32) ** -0.5
full_B = torch.tensor([60, 60])
with checked() as sparse_log:
    chosen_BK = own["14.5"](q_B1HC, k_BNC, weight_B1H, full_B, 16)[:, 0]
    pages_PKL = torch.stack([rows[chosen] for rows, chosen in zip(rows_BNL, chosen_BK, strict=True)])
    tables = torch.arange(2, dtype=torch.int32)[:, None]
    mix_BHR, _ = own["14.4"](q_BHL, pages_PKL, tables, torch.tensor([16, 16]), layer.scale, R)
got_BD = layer.output(torch.einsum("bhr,hvr->bhv", mix_BHR, value_HVR).flatten(1))
wanted_BD = layer(x_BND, cos, sin)[:, -1]
apart = ((got_BD - wanted_BD).norm() / wanted_BD.norm()).item()
print("chosen by the first sequence's last query, the best first:", *chosen_BK[0].tolist())
print(f"off from the course's layer by {apart:.0e}")
assert apart < 1e-5

# %% [markdown]
# ## The bytes
#
# Each function once more, on inputs of bfloat16 (where it takes them) that are somewhat larger, in the checked interpreter, which writes down every byte that a lane loads or stores. Beside it the least: each input that counts once, each result once.

# %%
draw = torch.Generator().manual_seed(3)
many = lambda *shape: torch.randn(shape, generator=draw).bfloat16()  # noqa: E731
S, N = 128, 256
table_BW = torch.randperm(8, generator=draw).int().view(2, 4)
inputs = {
    "14.1": (many(N).float(), many(N, 128), torch.tensor([0, 90, N])),
    "14.2": (many(1, S, 4, 64), many(1, N, 2, 64), many(1, N, 2, 64), 64, 0.125),
    "14.3": (many(4, 2, 16, 128).float(), many(4, 2, 16).float(), torch.tensor([4, 3]), torch.zeros(16)),
    "14.4": (many(2, 32, 576), many(8, 64, 576), table_BW, torch.tensor([N, 100]), 0.07, 512),
    "14.5": (many(2, 1, 16, 128), many(2, N, 128), many(2, 1, 16).float(), torch.tensor([N, 100]), 8),
}
least = {  # by hand: what does not count is not in it
    "14.1": N * (4 + 256) + 2 * (256 + 4),
    "14.2": 2 * 64 * (2 * S * 4 + 2 * 2 * (S + 63)) + 4 * S * 4,
    "14.3": 7 * 16 * (512 + 4) + 2 * 16 * (512 + 4),
    "14.4": 2 * 576 * (N + 100) + 2 * 32 * (1152 + 1024 + 4),
    "14.5": 2 * 128 * (N + 100) + 2 * (16 * 256 + 64 + 64),
}
names = {
    "14.1": "weighted mean", "14.2": "flash, window 64", "14.3": "combine", "14.4": "MLA on pages", "14.5": "indexer",
}  # fmt: skip
launches = {}
print(f"{'':24s}{'launches':>9s}{'yours':>11s}{'least':>10s}   bytes")
for name, arguments in inputs.items():
    with checked() as log:
        own[name](*arguments)
    launches[name] = log.launches
    moved = sum(each.load_bytes + each.store_bytes for each in log.launches)
    print(
        f"{name} {names[name]:19s}{len(log.launches):9d}{moved:11,}{least[name]:10,}   {moved / least[name]:.1f} times"
    )

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axis = plt.subplots(figsize=(8, 3))
for name, made in launches.items():
    loads = sum(each.load_bytes for each in made)
    axis.barh(names[name], loads / least[name], color="C0", label="loaded" if name == "14.1" else None)
    axis.barh(
        names[name],
        sum(each.store_bytes for each in made) / least[name],
        left=loads / least[name],
        color="C1",
        label="stored" if name == "14.1" else None,
    )
axis.axvline(1, color="black", linestyle="--", linewidth=1, label="least")
axis.set(xlabel="bytes asked for, the least = 1", title="What your five kernels move")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# *Figure: for each of the five functions a bar of the bytes it loads and stores, in units of the least, which a dashed line marks. The weighted mean and the combine stand at the line; flash attention beyond it, since every tile of queries and both heads that share read the same keys again; the others are near it.*
#
# A byte that two programs ask for at about the same time comes from the memory once, and from the L2 cache the second time. The bar is what is asked for, and an upper bound of what moves.
#
# ## For an H100
#
# The same kernels as machine code, at the sizes of the real thing: a head of 128 features, 64 positions a page, rows of 512 + 64. Your 14.4 twice, with the 128 heads of a whole layer, and with the 16 that are left to each of eight GPUs. `HGMMA` is Hopper's product of four warps, whose tiles have 64 rows; `HMMA` is the product of one warp, with 16.

# %%
import linecache
import tempfile
from pathlib import Path

from course.hardware.machine_code import read_code
from course.kernels import compile_all, launches_of


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


i32, i64, f32 = torch.int32, torch.int64, torch.float32


def mla(heads):
    """64 sequences of up to 4,096 positions."""
    tables = meta(64, 64, dtype=i32), meta(64, dtype=i64)
    return meta(64, heads, 576), meta(4096, 64, 576), *tables, 0.07, 512


large = {
    "14.1": [(meta(65_536, dtype=f32), meta(65_536, 128), meta(65, dtype=i64))],
    "14.2": [(meta(1, 4096, 32, 128), meta(1, 4096, 8, 128), meta(1, 4096, 8, 128), 4096, 0.09)],
    "14.3": [
        (meta(8, 64, 128, 512, dtype=f32), meta(8, 64, 128, dtype=f32), meta(64, dtype=i64), meta(128, dtype=f32))
    ],
    "14.4": [mla(128), mla(16)],
    "14.5": [(meta(8, 1, 64, 128), meta(8, 4096, 128), meta(8, 1, 64, dtype=f32), meta(8, dtype=i64), 64)],
}

# %%
print(f"{'':7s}{'kernel':22s}{'registers':>10s}{'spilled':>9s}{'shared':>9s}  tensor cores")
for name, calls in large.items():
    text = "".join(linecache.getlines(own[name].__code__.co_filename))  # what the function was defined by
    try:
        made = [each for call in calls for each in launches_of(lambda f=own[name], a=call: f(*a))]
    except Exception:  # a function that looks at numbers, and a plan has none: its launches from above
        made = launches[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(text)
        for one in compile_all(path, made, code=True):
            if one.error:
                print(f"{name:7s}{one.kernel:22s} refused: {one.error[:70]}")
                continue
            found = read_code(one.code["sass"]).tensor_core
            kinds = ", ".join(f"{count} {kind.removesuffix('.F32.BF16')}" for kind, count in found.items()) or "none"
            print(f"{name:7s}{one.kernel:22s}{one.registers:10d}{one.spills:9d}{one.shared_bytes:9,}  {kinds}")

# %% [markdown]
# *Registers* are a thread's, *spilled* bytes a thread, *shared* bytes a block. Look at the last product of 14.4: a mix of heads times 512 numbers is held in registers all the way, and that is what decides how many heads a block may have, and how many warps it needs. Where the number of rows is 64 the compiler chooses `HGMMA`,
# where it is 16 or 32 it falls back to `HMMA`, and no message tells you of it.
#
# You now have every part of a serving engine's attention: prompts in tiles, a cache on pages, splits, one result, and a choice of what is worth looking at.
#
# **Next:** lesson 15, where such kernels are seen at work in a trace.
