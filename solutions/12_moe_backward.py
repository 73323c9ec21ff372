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
# # Lab 12 · The way back through the experts
#
# Forward, a mixture layer is two products, a SwiGLU and a weighted sum. On the way back each of them has a gradient or two, and one of them has a gradient that is easily forgotten, without which the router learns nothing. Here you write the whole way back: SwiGLU, the tokens' gradient, the experts' weights, the routing weights; and you count what has to be kept for it. At the end
# a layer of DeepSeek's kind learns on your kernels.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **12.1 to 12.4 are kernels**: a function that launches at least one Triton kernel of your own, in one cell with its kernels. The check calls the function with tensors and looks at what it returns: new tensors. The parameters of the kernels are a suggestion; change them, split a kernel or write a
#   second one, as you like. Only the function's name and arguments stay. **12.5 is a plain function** on whole numbers.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: **T** tokens, **K** slots (experts a token), **P** = T K pairs of a token and a slot, **E** experts, **E1** = E + 1, **D** width, **I** hidden width of an expert, **F** = 2I with gate first, **N** columns of a result. Pair p is slot p % K of token p // K.
# - Stuck? `course hint 12.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# One layout for all of them. Rows are pairs, sorted by expert, and expert e has the rows `offsets_E1[e]` up to, not including, `offsets_E1[e + 1]`; it may have none. **Rows from `offsets_E1[E]` on belong to nobody**: their pairs were dropped. They lie there all the same and may hold NaN. `places_TK[t, k]` is the row of a pair, or
# -1 if it was dropped.
#
# What holds for the kernels:
#
# - They run in an interpreter on the CPU that tells of lanes outside a tensor, of two programs at one element, and of NaN in what was never loaded or written. An answer that is right is then compiled for an H100 (sm_90), without a GPU: the sizes of a `tl.dot` are powers of two from 16 up.
# - All tensors are contiguous, those you get and those you return. Floats are float32 or bfloat16. **Compute in float32** (`tl.dot` with `input_precision="ieee"`: without it float32 is cut to TF32, by a chip and by the check, which is too coarse) and **round once**, at the end.
# - Row numbers and offsets are **int64**, and so is what is multiplied by a row's length: in a large model it passes $2^{31}$. (The checks are too small to see it.)
# - The arithmetic belongs in kernels. Beside them PyTorch may allocate, fill, view, copy, cast, and add up partial results; what else makes more than one floating-point number there does not pass. Results have memory of their own, on the device of the inputs.
# - **The host does not wait for the device**: `.item()`, `.tolist()`, `int()`, `bool()`, an `if` on a tensor's value, a mask as an index, `nonzero`, `unique`, `repeat_interleave` by a tensor are out of bounds. Sizes of results and grids follow from shapes. A kernel reads offsets itself.
# - **The same inputs give the same bits**: no atomics. Each element of a result is written by one program, and sums have an order that does not depend on who comes first. What a program stores it does not load again: another of its threads may not have stored yet, and the interpreter, which has none, cannot tell.
# - Autograd, and PyTorch's products, are out of bounds.
# - A float32 result is compared by the norm of the error, 1e-5 of the norm of what is right. A bfloat16 result has to be the nearest bfloat16; one number in 50 may be its neighbour, since the order of a sum can tip a number over.
# - Where there are no rows, results have no rows either, and no kernel need be launched. Go in blocks: a kernel that takes a whole row of I or a whole expert in one block may pass, where the cases are small, and is no answer to 7,168 and 4,096.

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
# ## 12.1 · Back through SwiGLU
#
# An expert's activation is $a = \mathrm{silu}(\textit{gate})\cdot\textit{up}$, and its output is multiplied by the routing weight of its pair. The gradient that comes back through the down product, $\textit{dact}$, is that of $a$ **for a weight of 1**. Two things are wanted of it. The gradients of gate and up, which go on to tokens and weights; there the routing weight $w$ belongs. And the activation
# itself, which the gradient of the down product needs and which nobody kept: make it again in the same pass, times $w$:
#
# $$\textit{dgate}, \textit{dup} = w\,\textit{dact} \cdot \frac{\partial a}{\partial\,\textit{gate}}, \frac{\partial a}{\partial\,\textit{up}} \qquad \textit{weighted} = w\, a \qquad \mathrm{silu}(z) = z \cdot \mathrm{sigmoid}(z)$$
#
# - Row p holds pair `pairs_P[p]`, and its weight is at that place of the weights: slot `pairs_P[p] % K` of token `pairs_P[p] // K`.
# - Of each row of `gate_up_PF` the first I numbers are gate, the others up; the result has the same layout.
# - Rows that are nobody's are **0** in both results, whatever they hold. Their entries in `pairs_P` are valid pairs, so that their weight may be loaded.
# - Gate and up may lie at a few hundred, on either side, where exp overflows: no NaN may come of it.
#
# The example is case 1: I = 1, dact `[[2], [4], [9], [9]]`, gate and up `[[0, 3], [1, -2], [NaN, 9], [9, 9]]`, weights `[[0.5, 9], [9, 0.25]]`, pairs `[3, 0, 1, 2]`, offsets `[0, 1, 1, 2]`: two rows are somebody's. Row 0 is pair 3, with the weight 0.25: dgate = 0.25 · 2 · 3 · 0.5 = 0.75, dup and the activation are 0. Row 1 is pair 0, weight 0.5, sigmoid(1) = 0.731059: dgate = -3.710683,
# dup = 1.462117, weighted = -0.731059. Rows 2 and 3 are 0.
#
# | | shape | |
# |---|---|---|
# | `dact_PI` | `[P, I]` | float32 or bfloat16 |
# | `gate_up_PF` | `[P, 2I]` | of dact's dtype |
# | `weights_TK` | `[T, K]` float32 | |
# | `pairs_P` | `[P]` int64 | the pair of each row: a permutation of 0 ... P - 1 |
# | `offsets_E1` | `[E + 1]` int64 | from 0, never falling, to P at most |
# | returns `dgate_up` | `[P, 2I]` | of dact's dtype |
# | returns `weighted` | `[P, I]` | of dact's dtype |
#
# The least bytes: 6 P I b with b bytes a number, three in and three out.
#
# **Exercise 12.1** · difficulty 3 of 5 · 30 minutes · 10 points


# %% tags=["exercise:12.1"]
# exercise 12.1
@triton.jit
def swiglu_back_kernel(dact, gate_up, weights, pairs, offsets, dgate_up, weighted, E, width, BLOCK: tl.constexpr):
    """One program for BLOCK numbers of one row."""
    ### BEGIN SOLUTION
    p = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < width) & (p < tl.load(offsets + E))
    gate = tl.load(gate_up + p * 2 * width + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + p * 2 * width + width + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weights + tl.load(pairs + p))
    grad = w * tl.load(dact + p * width + i, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    dgate = grad * up * (share + silu * (1 - share))
    kind = dgate_up.dtype.element_ty
    tl.store(dgate_up + p * 2 * width + i, dgate.to(kind), mask=i < width)
    tl.store(dgate_up + p * 2 * width + width + i, (grad * silu).to(kind), mask=i < width)
    tl.store(weighted + p * width + i, (w * silu * up).to(kind), mask=i < width)
    ### END SOLUTION


def swiglu_back(
    dact_PI: Tensor, gate_up_PF: Tensor, weights_TK: Tensor, pairs_P: Tensor, offsets_E1: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of gate and up, and the activation times the routing weight."""
    ### BEGIN SOLUTION
    (P, width), E = dact_PI.shape, len(offsets_E1) - 1
    dgate_up_PF, weighted_PI = torch.empty_like(gate_up_PF), torch.empty_like(dact_PI)
    swiglu_back_kernel[(P, triton.cdiv(width, 512))](
        dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1, dgate_up_PF, weighted_PI, E, width, BLOCK=512
    )
    return dgate_up_PF, weighted_PI
    ### END SOLUTION


# %% tags=["check:12.1", "nbval-check-output"]
check("12.1", swiglu_back)

# %% [markdown]
# ## 12.2 · The tokens' gradient
#
# Forward, a row was $x_t W_e$, with the expert's weight as `[D, F]`. Backward, a row is $\textit{dgate\_up}_p W_e^{\top}$: the same weight, summed over the other axis. Turning all experts' weights round would copy them, and they are most of the model. A kernel need not, and yours should not: it reads the same memory with other strides. (A copy passes the check; count its bytes.) Then each token adds up its rows, and what arrived by other ways:
#
# $$\textit{dx}_t = \mathrm{round}\Bigl(\textit{dother}_t + \sum_{k:\ \textit{places}_{tk} \ge 0} \textit{dgate\_up}_{\textit{places}_{tk}}\, W_e^{\top}\Bigr)$$
#
# - Each row times the weight of the expert that has it, by the offsets. A program finds its expert by itself, as in lab 11 (cdiv(P, BLOCK_M) + E programs are always enough, whatever the offsets; those left over do nothing); **no tile may hold rows of two experts**. The weight of an expert without rows is not read: it may hold NaN.
# - Rows between the products and the sum stay **float32**: there is one rounding, after the sum. (A large model would keep them in bfloat16, at half the bytes.)
# - A place of -1 adds nothing. A token that lost all its pairs has `dother`, or 0.
# - `dother_TD` is what came through the shared expert and past the layer. It may be None. None may be passed to a kernel as an argument: `if other is not None:` is then decided when the kernel is compiled.
# - Two kernels, one for products and one for sums, are the plain way. One will do as well.
#
# The example is case 1: rows `[1, 2]`, `[3, 0]`, `[0, 1]` and a fourth that is nobody's, offsets `[0, 2, 3]`. D = 3, F = 2; expert 0 has `[[1, 10], [0, 2], [5, 0]]`, expert 1 `[[1, 1], [2, 0], [0, 4]]`. The products are `[21, 4, 5]`, `[3, 0, 15]` and `[1, 0, 4]`. Places `[[2, 0], [-1, 1]]`, dother `[[0.5, 0.5, 0.5], [0, 1, 0]]`: dx is `[[22.5, 4.5, 9.5], [3, 1, 15]]`.
#
# | | shape | |
# |---|---|---|
# | `dgate_up_PF` | `[P, F]` | float32 or bfloat16 |
# | `weight_EDF` | `[E, D, F]` | of dgate_up's dtype; E from 1 to 256 |
# | `offsets_E1` | `[E + 1]` int64 | |
# | `places_TK` | `[T, K]` int64 | rows, each at most once, or -1 |
# | `dother_TD` | `[T, D]`, or None | of dgate_up's dtype |
# | returns | `[T, D]` | of dgate_up's dtype |
#
# The least bytes: rows, results, what comes by other ways, and the weights of experts that have rows, each once; the float32 rows between two kernels cost 8 P D more.
#
# **Exercise 12.2** · difficulty 4 of 5 · 45 minutes · 15 points


# %% tags=["exercise:12.2"]
# exercise 12.2
@triton.jit
def row_products_kernel(
    dgate_up, weight, offsets, rows, E, D, F,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK_M rows of one expert and BLOCK_D columns."""
    ### BEGIN SOLUTION
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins, ends = tl.load(offsets + e, mask=e < E, other=0), tl.load(offsets + e + 1, mask=e < E, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum(((tl.cumsum(tiles) <= tile) & (e < E)).to(tl.int64))
    if expert < E:
        first = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M
        p = first + tl.arange(0, BLOCK_M)
        inside = p < tl.load(offsets + expert + 1)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for begin in range(0, F, BLOCK_F):
            f = begin + tl.arange(0, BLOCK_F)
            left = tl.load(dgate_up + p[:, None] * F + f[None, :], mask=inside[:, None] & (f < F)[None, :], other=0.0)
            at = weight + expert * D * F + d[None, :] * F + f[:, None]
            right = tl.load(at, mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        tl.store(rows + p[:, None] * D + d[None, :], total, mask=inside[:, None] & (d < D)[None, :])
    ### END SOLUTION


@triton.jit
def token_sums_kernel(rows, places, other, dx, D, K, BLOCK: tl.constexpr):
    """One program for BLOCK columns of one token."""
    ### BEGIN SOLUTION
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if other is not None:
        total += tl.load(other + t * D + d, mask=d < D).to(tl.float32)
    for k in range(K):
        place = tl.load(places + t * K + k)
        total += tl.load(rows + place * D + d, mask=(d < D) & (place >= 0), other=0.0)
    tl.store(dx + t * D + d, total.to(dx.dtype.element_ty), mask=d < D)
    ### END SOLUTION


def tokens_back(
    dgate_up_PF: Tensor, weight_EDF: Tensor, offsets_E1: Tensor, places_TK: Tensor, dother_TD: Tensor | None
) -> Tensor:
    """The gradient of the tokens."""
    ### BEGIN SOLUTION
    (P, F), (E, D, _), (T, K) = dgate_up_PF.shape, weight_EDF.shape, places_TK.shape
    rows_PD = torch.empty(P, D, dtype=torch.float32)
    dx_TD = torch.empty(T, D, dtype=dgate_up_PF.dtype)
    row_products_kernel[(P // 32 + E, triton.cdiv(D, 32))](
        dgate_up_PF, weight_EDF, offsets_E1, rows_PD, E, D, F,
        BLOCK_M=32, BLOCK_D=32, BLOCK_F=32, EXPERTS=triton.next_power_of_2(E),
    )  # fmt: skip
    token_sums_kernel[(T, triton.cdiv(D, 256))](rows_PD, places_TK, dother_TD, dx_TD, D, K, BLOCK=256)
    return dx_TD
    ### END SOLUTION


# %% tags=["check:12.2", "nbval-check-output"]
check("12.2", tokens_back)

# %% [markdown]
# ## 12.3 · The experts' weights
#
# The gradient of an expert's weight is a product whose *inner* dimension is ragged: it sums over the expert's rows, however many there are.
#
# $$\textit{dW}_e = \textit{so\_far}_e + \sum_{p=\textit{offsets}_e}^{\textit{offsets}_{e+1}-1} x_{\textit{tokens}_p}^{\top}\, \textit{dy}_p$$
#
# - The tokens lie where they lie: row p of dy came from token `tokens_P[p]`. Gather inside the kernel; no copy.
# - **A row too many changes the result.** In a forward product a tile that sticks out makes rows that nobody reads. Here the rows of the next expert would be *added*: the last step along the rows needs its mask. A relative of this bug: a kernel wanted every expert to begin at a multiple of 64 rows, got others, and all gradients of weights were off by up to half (marin-community/marin, issue 8339). Mask both operands: 0 times NaN is NaN.
# - **An expert without rows has a gradient, and it is 0**: its part of the result has to be written all the same. (MSLK's kernel left it as it was allocated, and training ended in NaN: pull request 158.)
# - Large batches are taken in pieces, and the gradients of the pieces add up, in float32 whatever the model's dtype is, since small terms on a large bfloat16 sum are lost. `so_far_EDN` is the sum of the pieces before, float32, or None for the first piece. The result is a **new float32** tensor: this piece added to it.
# - Nobody's rows add nothing.
#
# The example is case 1: tokens `[1, 2]` and `[3, 0]`; dy `[[1], [2], [5], [NaN]]`, tokens_P `[1, 0, 0, 1]`, offsets `[0, 2, 2, 3]`, so_far `[[[0.5], [0]], [[7], [8]], [[0], [1]]]`. Expert 0: `[3, 0]` · 1 + `[1, 2]` · 2 = `[5, 4]`, and `[5.5, 4]` with what was there. Expert 1 has no rows: `[7, 8]`. Expert 2: `[1, 2]` · 5 + `[0, 1]` = `[5, 11]`.
#
# | | shape | |
# |---|---|---|
# | `x_TD` | `[T, D]` | float32 or bfloat16; T is 1 or more |
# | `dy_PN` | `[P, N]` | of x's dtype; P need not be a multiple of T |
# | `tokens_P` | `[P]` int64 | 0 ... T - 1 |
# | `offsets_E1` | `[E + 1]` int64 | E is 1 or more |
# | `so_far_EDN` | `[E, D, N]` float32, or None | |
# | returns | `[E, D, N]` float32 | |
#
# The least bytes: x and dy once, 4 E D N for the result and as much for so_far. With few rows an expert the result is nearly all of it.
#
# **Exercise 12.3** · difficulty 4 of 5 · 40 minutes · 15 points · spine


# %% tags=["exercise:12.3"]
# exercise 12.3
@triton.jit
def weights_back_kernel(
    x, dy, tokens, offsets, so_far, out, D, N, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr
):
    """One program for a tile of one expert's gradient, along all rows of that expert."""
    ### BEGIN SOLUTION
    e = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        token = tl.load(tokens + p, mask=p < end, other=0)
        left = tl.load(x + token[None, :] * D + d[:, None], mask=(d < D)[:, None] & (p < end)[None, :], other=0.0)
        right = tl.load(dy + p[:, None] * N + n[None, :], mask=(p < end)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    at, inside = (e * D + d)[:, None] * N + n[None, :], (d < D)[:, None] & (n < N)[None, :]
    if so_far is not None:
        total += tl.load(so_far + at, mask=inside)
    tl.store(out + at, total, mask=inside)
    ### END SOLUTION


def weights_back(
    x_TD: Tensor, dy_PN: Tensor, tokens_P: Tensor, offsets_E1: Tensor, so_far_EDN: Tensor | None
) -> Tensor:
    """The gradient of every expert's weight, added to what was there."""
    ### BEGIN SOLUTION
    E, D, N = len(offsets_E1) - 1, x_TD.shape[1], dy_PN.shape[1]
    out_EDN = torch.empty(E, D, N, dtype=torch.float32)
    weights_back_kernel[(E, triton.cdiv(D, 32), triton.cdiv(N, 32))](
        x_TD, dy_PN, tokens_P, offsets_E1, so_far_EDN, out_EDN, D, N, BLOCK_D=32, BLOCK_N=32, BLOCK_P=32
    )
    return out_EDN
    ### END SOLUTION


# %% tags=["check:12.3", "nbval-check-output"]
check("12.3", weights_back)

# %% [markdown]
# ## 12.4 · The routing weights, and the router
#
# The layer's result is $\sum_k w_{tk}\, y_{tk}$, so the gradient of a routing weight is $\langle \textit{dout}_t, y_{tk}\rangle$. Keeping every $y$ for that is D numbers a pair, the most expensive thing that an eager layer keeps. It need not be. With $y = W a$ the dot product turns into one over I numbers, both of which the way back has at hand anyway:
#
# $$\textit{dw}_{tk} = \langle \textit{dout}_t,\, W a\rangle = \langle W^{\top} \textit{dout}_t,\, a\rangle = \langle \textit{dact}_p,\, a_p\rangle, \qquad p = \textit{places}_{tk}, \qquad a = \mathrm{silu}(\textit{gate})\cdot\textit{up}$$
#
# Then go on through V3's gate, to the logits of the chosen. Their scores are $s = \mathrm{sigmoid}(\textit{logit})$, and the weights were normalised over the chosen and scaled: $w_k = \textit{scale} \cdot s_k / S$ with $S = \sum_j s_j$ over all K slots.
#
# $$\textit{ds}_k = \frac{\textit{scale}}{S}\Bigl(\textit{dw}_k - \frac1S\sum_j \textit{dw}_j\, s_j\Bigr) \qquad \textit{dlogit}_k = \textit{ds}_k\; s_k (1 - s_k)$$
#
# - `dact_PI` is as in 12.1: for a weight of 1, so nothing is to be divided out.
# - **A dropped pair** (place -1) said nothing: its dw is exactly 0, whatever the rows hold. (In transformers, issue 48687, such slots collected a gradient; the loss was right all along.) But its score **stands in S**: the router normalised before anything was dropped. So its logit has a gradient all the same, by the formula.
# - Rows that nobody has may hold NaN.
# - With K = 1 a normalised weight is always `scale`, and the logits' gradient is 0: rounding may leave 1e-5 of it, absolutely.
# - K is at most 8. Scores lie between 0 and 1, and are not all 0. Go along I in blocks, in float32. Gate and up may lie at a few hundred, as in 12.1.
#
# The example is case 1: I = 2; dact `[[3, 1], [0.5, 2], [NaN, 0], [4, 0]]`, gate and up `[[1, 0, 2, 5], [0, 2, 7, 1], [9, 9, 9, 9], [-1, 3, 1, 1]]`, places `[[1, 0], [3, -1]]`, scores `[[0.5, 0.25], [0.75, 0.25]]`, scale 2. Token 0, slot 0, is row 1: 0.5 · silu(0) · 7 + 2 · silu(2) · 1 = 3.523188; slot 1 is row 0: 3 · silu(1) · 2 + 1 · silu(0) · 5 = 4.386352. Token 1 has
# -1.075766 and 0. The logits' gradients are `[[-0.191814, 0.287721], [-0.100853, 0.302559]]`.
#
# | | shape | |
# |---|---|---|
# | `dact_PI` | `[P, I]` | float32 or bfloat16 |
# | `gate_up_PF` | `[P, 2I]` | of dact's dtype |
# | `places_TK` | `[T, K]` int64 | rows, each at most once, or -1 |
# | `scores_TK` | `[T, K]` float32 | of the chosen |
# | `scale` | float | may be negative |
# | returns `dweights` | `[T, K]` float32 | |
# | returns `dlogits` | `[T, K]` float32 | of the chosen; all others have 0 |
#
# The least bytes: 3 P I b. (A kernel that did this and 12.1 together would read these rows once for both. The course's does: `grouped_swiglu_backward`.)
#
# **Exercise 12.4** · difficulty 4 of 5 · 40 minutes · 15 points


# %% tags=["exercise:12.4"]
# exercise 12.4
@triton.jit
def routing_back_kernel(
    dact, gate_up, places, scores, dweights, dlogits, width, K, scale, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a token: its dot products, then its gate."""
    ### BEGIN SOLUTION
    t = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    at = tl.load(places + t * K + slots, mask=slots < K, other=-1)[:, None]
    along = tl.zeros([SLOTS, BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        i = begin + tl.arange(0, BLOCK)[None, :]
        there = (at >= 0) & (i < width)
        gate = tl.load(gate_up + at * 2 * width + i, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up + at * 2 * width + width + i, mask=there, other=0.0).to(tl.float32)
        grad = tl.load(dact + at * width + i, mask=there, other=0.0).to(tl.float32)
        along += grad * gate * tl.sigmoid(gate) * up
    dw = tl.sum(along, axis=1)
    tl.store(dweights + t * K + slots, dw, mask=slots < K)
    s = tl.load(scores + t * K + slots, mask=slots < K, other=0.0)
    total = tl.sum(s)
    ds = scale / total * (dw - tl.sum(dw * s) / total)
    tl.store(dlogits + t * K + slots, ds * s * (1.0 - s), mask=slots < K)
    ### END SOLUTION


def routing_back(
    dact_PI: Tensor, gate_up_PF: Tensor, places_TK: Tensor, scores_TK: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the routing weights, and of the chosen logits."""
    ### BEGIN SOLUTION
    (T, K), width = places_TK.shape, dact_PI.shape[1]
    dweights_TK, dlogits_TK = (torch.empty(T, K, dtype=torch.float32) for _ in range(2))
    routing_back_kernel[(T,)](
        dact_PI, gate_up_PF, places_TK, scores_TK, dweights_TK, dlogits_TK, width, K, scale,
        SLOTS=triton.next_power_of_2(K), BLOCK=256,
    )  # fmt: skip
    return dweights_TK, dlogits_TK
    ### END SOLUTION


# %% tags=["check:12.4", "nbval-check-output"]
check("12.4", routing_back)

# %% [markdown]
# ## 12.5 · What is kept
#
# Between forward and backward some tensors must stay, and in training they are what fills the memory. Count them for one mixture layer, under four policies. The gradient of every weight needs the *rows* it was multiplied with: so x is always kept, in some form; what else is needed can be kept or made again.
#
# R is the number of rows, the sum of `counts_E`: how many rows each expert has. Dropped pairs have no row, so R may be less than T K. The experts' weights, the shared expert and the router's logits are not counted.
#
# | name | elements | bytes of each | kept by |
# |---|---|---|---|
# | `weights` | T K | 4, float32 | all |
# | `places` | T K | 8, int64 | all |
# | `pairs` | R | 8, int64 | all |
# | `offsets` | E + 1 | 8, int64 | all |
# | `x` | T D | itemsize; 1 in `fp8` | all |
# | `gate_up` | R 2I | itemsize; 1 in `fp8` | `eager`, `gate_up`, `fp8` |
# | `rows`: the gathered tokens | R D | itemsize | `eager` |
# | `silu`: silu(gate) | R I | itemsize | `eager` |
# | `activation`: silu(gate) times up | R I | itemsize | `eager` |
# | `y`: what experts said | R D | itemsize | `eager` |
# | `weighted`: y times its weight | R D | 4: the weights are float32 | `eager` |
# | `x_scales` | a scale for each tile of each token's row | 4, float32 | `fp8` |
# | `gate_up_scales` | a scale for each tile of each row's gate, and of its up | 4, float32 | `fp8` |
# | `columns`: x once more, gathered, as FP8 for sums over rows | R D | 1 | `fp8`, if `columns` is set |
# | `columns_scales` | a scale for each tile of each column | 4, float32 | `fp8`, if `columns` is set |
#
# - **Tiles of a row** are 128 neighbours; the last may be shorter. Gate and up are cut each by itself: no tile holds some of both.
# - **Tiles of a column** are 128 rows *of one expert* by one column; an expert's last tile may be shorter, and an expert without rows has none. (The gradient of a weight sums over rows, and then the scales of a product in FP8 have to run along the rows: V3 report, section 3.3. Who does not want to convert in the backward pass keeps both.)
# - Every tensor is an allocation of its own and is **rounded up to a multiple of `granule`** bytes; PyTorch's allocator for CUDA has 512. An empty tensor stays at 0.
# - Return a dict: for each tensor that the policy keeps its bytes under its name, empty ones too, and under `total` their sum. Names of tensors that are not kept are not in it. All are whole numbers, exact.
#
# The example is case 1: `fp8` with `columns`, counts `[3, 0, 130]`, 80 tokens, top_k 2, width 200, hidden 130, granule 512. So R = 133: 27 pairs were dropped. weights 640 bytes, rounded up to 1024; places 1280, 1536; pairs 1064, 1536; offsets 32, 512. x 16000, 16384; x_scales: 2 tiles a row, 640, 1024. gate_up 34580, 34816; gate_up_scales: 4 tiles a row, 2128, 2560.
# columns 26600, 26624; columns_scales: 1 + 0 + 2 tiles in each of 200 columns, 2400, 2560. The total is 88576.
#
# | | | |
# |---|---|---|
# | `policy` | `"eager"`, `"gate_up"`, `"inputs"` or `"fp8"` | |
# | `counts_E` | list of int | rows of each expert |
# | `tokens`, `top_k`, `width`, `hidden` | int | T, K, D, I |
# | `itemsize` | int | bytes of a number of x: 2 or 4 |
# | `granule` | int | 1 or more |
# | `columns` | bool | counts in `fp8` alone |
# | returns | dict of int | |
#
# **Exercise 12.5** · difficulty 2 of 5 · 30 minutes · 10 points


# %% tags=["exercise:12.5"]
# exercise 12.5
def kept_bytes(
    policy: str,
    counts_E: list[int],
    tokens: int,
    top_k: int,
    width: int,
    hidden: int,
    itemsize: int,
    granule: int,
    columns: bool,
) -> dict[str, int]:
    """Bytes of each tensor that is kept, and of all together."""
    ### BEGIN SOLUTION
    rows, fp8 = sum(counts_E), policy == "fp8"
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * rows}
    kept["offsets"] = 8 * (len(counts_E) + 1)
    kept["x"] = tokens * width * (1 if fp8 else itemsize)
    if policy != "inputs":
        kept["gate_up"] = 2 * rows * hidden * (1 if fp8 else itemsize)
    if policy == "eager":
        kept |= {"rows": rows * width * itemsize, "silu": rows * hidden * itemsize}
        kept |= {"activation": rows * hidden * itemsize, "y": rows * width * itemsize}
        kept["weighted"] = 4 * rows * width
    if fp8:
        kept["x_scales"] = 4 * tokens * -(-width // 128)
        kept["gate_up_scales"] = 4 * rows * 2 * -(-hidden // 128)
    if fp8 and columns:
        kept["columns"] = rows * width
        kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}
    ### END SOLUTION


# %% tags=["check:12.5", "nbval-check-output"]
check("12.5", kept_bytes)

# %% [markdown]
# ## A layer that learns on your kernels
#
# No exercise from here on: run the cells. `mine("12.1")` is your own function once it has passed, and the course's until then.
#
# Here is a layer of `course.model`: 8 experts, 2 of them for each of 48 tokens, a limited capacity, so that some pairs are dropped, and sigmoid scores, normalised and scaled. Its loss is the distance to what another layer, the teacher, says.

# %%
from dataclasses import replace

from course.kernels.checked import checked
from course.kernels.grouped_gemm import grouped_gemm
from course.model import ModelConfig
from course.model.moe import MoE

names = {"12.1": "SwiGLU", "12.2": "tokens", "12.3": "weights", "12.4": "routing", "12.5": "bytes"}
own = {name: mine(name) for name in names}

sizes = dict(width=64, expert_width=48, experts=8, top_k=2, shared_experts=0, groups=1, top_groups=1)
config = replace(ModelConfig.preset("tiny-deepseek-v3"), **sizes, capacity_factor=1.0)
torch.manual_seed(4)
teacher, layer = MoE(config).requires_grad_(False), MoE(config)
with torch.no_grad():
    for one in (teacher, layer):
        for weight, size in ((one.gate_ED, 0.2), (one.gate_up_EFD, 0.15), (one.down_EDI, 0.15)):
            weight.copy_(size * torch.randn(weight.shape))
x_TD = torch.randn(48, config.width)
target_TD, _ = teacher(x_TD)
routing = layer.route(x_TD)
counts = routing.indices_TK[routing.kept_TK].bincount(minlength=config.experts)
print("rows of each expert:", counts.tolist(), "· dropped pairs:", int((~routing.kept_TK).sum()))

# %% [markdown]
# The order of the pairs is sorting, as in lab 11. Then the routed experts as one `torch.autograd.Function`. It gets logits, not weights: your 12.4 goes back to the logits by itself. Between forward and backward it keeps x, the scores of the chosen and the order; gate and up are made again by the course's grouped product.


# %%
def in_order(ids_TK, kept_TK, experts):
    """Each row's pair, the offsets of the experts, each pair's row or -1."""
    ids_P = torch.where(kept_TK, ids_TK, experts).flatten()
    pairs_P = ids_P.argsort(stable=True)
    offsets_E1 = torch.searchsorted(ids_P[pairs_P], torch.arange(experts + 1))
    places_P = torch.empty_like(pairs_P).scatter_(0, pairs_P, torch.arange(len(pairs_P)))
    return pairs_P, offsets_E1, torch.where(kept_TK, places_P.view(ids_TK.shape), -1)


class Routed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, logits_TE, gate_up_EFD, down_EDI, ids_TK, kept_TK, scale):
        pairs_P, offsets_E1, places_TK = in_order(ids_TK, kept_TK, len(down_EDI))
        scores_TK = logits_TE.gather(1, ids_TK).sigmoid()
        weights_TK = scale * scores_TK / scores_TK.sum(dim=1, keepdim=True)
        ctx.save_for_backward(
            x_TD, scores_TK, weights_TK, pairs_P, offsets_E1, places_TK, ids_TK, gate_up_EFD, down_EDI
        )
        ctx.scale, ctx.experts = scale, logits_TE.shape[1]
        gate_PI, up_PI = grouped_gemm(x_TD, gate_up_EFD, pairs_P // ids_TK.shape[1], offsets_E1).chunk(2, dim=1)
        y_PD = grouped_gemm(F.silu(gate_PI) * up_PI, down_EDI, None, offsets_E1)
        terms_TKD = torch.where((places_TK >= 0)[:, :, None], y_PD[places_TK.clamp(min=0)], 0.0)
        return (weights_TK[:, :, None] * terms_TKD).sum(dim=1)

    @staticmethod
    def backward(ctx, dout_TD):
        x, scores_TK, weights_TK, pairs_P, offsets_E1, places_TK, ids_TK, gate_up_EFD, down_EDI = ctx.saved_tensors
        dout_TD, tokens_P = dout_TD.contiguous(), pairs_P // ids_TK.shape[1]
        gate_up_PF = grouped_gemm(x, gate_up_EFD, tokens_P, offsets_E1)  # once more
        dact_PI = grouped_gemm(dout_TD, down_EDI.transpose(1, 2), tokens_P, offsets_E1)
        dgate_up_PF, weighted_PI = own["12.1"](dact_PI, gate_up_PF, weights_TK, pairs_P, offsets_E1)
        weight_EDF = gate_up_EFD.transpose(1, 2).contiguous()  # as the exercise has it
        dx_TD = own["12.2"](dgate_up_PF, weight_EDF, offsets_E1, places_TK, None)
        dgate_up_EDF = own["12.3"](x, dgate_up_PF, tokens_P, offsets_E1, None)
        ddown_EDI = own["12.3"](dout_TD, weighted_PI, tokens_P, offsets_E1, None)
        _, dlogits_TK = own["12.4"](dact_PI, gate_up_PF, places_TK, scores_TK, ctx.scale)
        dlogits_TE = torch.zeros(len(x), ctx.experts).scatter(1, ids_TK, dlogits_TK)
        return dx_TD, dlogits_TE, dgate_up_EDF.transpose(1, 2), ddown_EDI, None, None, None


# %% [markdown]
# The gradients of everything, by your kernels and by the model's own layer with autograd:


# %%
def on_kernels(layer, x_TD):
    routing = layer.route(x_TD)
    settings = routing.indices_TK, routing.kept_TK, config.routed_scale
    return Routed.apply(x_TD, x_TD @ layer.gate_ED.T, layer.gate_up_EFD, layer.down_EDI, *settings)


def gradients(run):
    x = x_TD.clone().requires_grad_()
    loss = (run(layer, x) - target_TD).square().mean()
    tensors = {"tokens": x, "router": layer.gate_ED, "gate and up": layer.gate_up_EFD, "down": layer.down_EDI}
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


with checked() as log:
    yours = gradients(on_kernels)
models = gradients(lambda layer, x: layer(x)[0])
for name, wanted in models.items():
    apart = ((yours[name] - wanted).norm() / wanted.norm()).item()
    print(f"{name:12s} off by {apart:.0e} of its length, which is {wanted.norm():.2f}")
    assert apart < 1e-5
print()
for each in log.launches:
    print(
        f"{each.kernel:24s} grid {list(each.grid)!s:12s} loads {each.load_bytes:9,}, stores {each.store_bytes:8,} bytes"
    )

# %% [markdown]
# So it learns as well. A few steps of gradient descent, once each way, and a third time with a gradient of 0 for the logits, as if 12.4 had been forgotten:


# %%
def descend(run, steps=12, rate=0.5, forgotten=False):
    """The losses, and how far the router has moved."""
    weights = [layer.gate_ED, layer.gate_up_EFD, layer.down_EDI]
    start, losses = [weight.detach().clone() for weight in weights], []
    for _ in range(steps):
        loss = (run(layer, x_TD) - target_TD).square().mean()
        found = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in list(zip(weights, found, strict=True))[1 if forgotten else 0 :]:
                weight -= rate * gradient
        losses.append(loss.item())
    moved = (layer.gate_ED - start[0]).norm().item()
    with torch.no_grad():
        for weight, first in zip(weights, start, strict=True):
            weight.copy_(first)
    return losses, moved


with checked():
    losses, moved = descend(on_kernels)
    losses_without, moved_without = descend(on_kernels, forgotten=True)
losses_model, moved_model = descend(lambda layer, x: layer(x)[0])
print(
    f"last losses: {losses[-1]:.5f} on your kernels, {losses_model[-1]:.5f} by the model; the router moved {moved:.4f}"
)
print(f"without the routing weights' gradient: {losses_without[-1]:.5f}; the router moved {moved_without:.4f}")

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(losses_model, linewidth=5, alpha=0.35, label="the model's layer, by autograd")
axis.plot(losses, linewidth=1.4, label="your kernels")
axis.plot(losses_without, "--", linewidth=1.4, label="your kernels, without 12.4")
axis.set(xlabel="step", ylabel="squared distance to the teacher", title="A mixture layer learns on your kernels")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: three falling curves of the squared distance to the teacher. That of your kernels lies on the model's; the dashed one, whose router never learns, falls as well, and no slower.*
#
# That is what makes the missing gradient so hard to see: the loss falls all the same, as the experts learn whatever tokens they are given. Here it falls even a little further; a dozen steps of one batch say nothing about which is better, and everything about what a loss curve can hide. The lesson looks at it with care.
#
# ## What is kept
#
# What autograd keeps for the model's layer can be listened to: it tells of every tensor that it saves. Those with a row a pair should be those of your 12.5 under `eager`. Beside it what the function above keeps.


# %%
def saved(run):
    """Shape and bytes of every tensor that is kept, weights aside, each memory once."""
    seen, parameters = {}, {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape), tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        seen["result"] = run(layer, x_TD.clone().requires_grad_())  # alive, so that no memory is used twice
    del seen["result"]
    return [entry for place, entry in seen.items() if place not in parameters]


counted = own["12.5"]("eager", counts.tolist(), 48, 2, config.width, config.expert_width, 4, 1, False)
R = int(counts.sum())
long = sorted(
    size for shape, size in saved(lambda layer, x: layer(x)[0]) if len(shape) == 2 and shape[0] == R and shape[1] > 1
)
listed = sorted(counted[name] for name in ("rows", "gate_up", "silu", "activation", "y", "weighted"))
print("autograd keeps, of tensors with a row a pair:", long)
print("12.5 says                                   :", listed)
assert long == listed
with checked():
    few = sum(size for _, size in saved(on_kernels))
print(
    f"all that is kept: {sum(size for _, size in saved(lambda layer, x: layer(x)[0])):,} bytes by the model, {few:,} on your kernels"
)

# %% [markdown]
# And for one layer of DeepSeek-V3: 8,192 tokens, 8 of 256 experts each, all experts with the same number of rows. (58 of its 61 layers are of this kind.)

# %%
policies = {"eager": False, "gate_up": False, "inputs": False, "fp8": False, "fp8 + columns": True}
bytes_of = {
    name: own["12.5"](name.split()[0], [256] * 256, 8192, 8, 7168, 2048, 2, 512, columns)
    for name, columns in policies.items()
}
figure, axis = plt.subplots(figsize=(9, 3.2))
parts = {"x": ("x", "x_scales"), "gate and up": ("gate_up", "gate_up_scales"), "gathered rows": ("rows",)}
parts |= {
    "silu and activation": ("silu", "activation"),
    "y": ("y",),
    "weighted y": ("weighted",),
    "columns": ("columns", "columns_scales"),
}
parts |= {"routing": ("weights", "places", "pairs", "offsets")}
left = np.zeros(len(policies))
for name, tensors in parts.items():
    widths = np.array([sum(kept.get(tensor, 0) for tensor in tensors) for kept in bytes_of.values()]) / 1e9
    axis.barh(range(len(policies)), widths, left=left, label=name)
    left += widths
for row, kept in enumerate(bytes_of.values()):
    axis.annotate(
        f"{kept['total'] / 1e9:.2f}", (left[row], row), (4, 0), textcoords="offset points", va="center", fontsize=9
    )
axis.set_yticks(range(len(policies)), policies)
axis.set(
    xlabel="GB kept for backward",
    title="One mixture layer of DeepSeek-V3, 8,192 tokens, bfloat16",
    xlim=(0, 1.1 * left.max()),
)
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# *Figure: five bars of gigabytes. Eager keeps about 5, of which the weighted results in float32 are the longest part; with gate and up alone it is about 0.66, with x and the routing alone 0.12, in FP8 0.34, and with the columns about 0.8.*
#
# (`weighted` is kept by `index_add`, whose backward pass looks at its shape alone: the most expensive tensor of the eager layer is kept for nothing.) A layer that keeps FP8 *and* a second copy for the weight gradient keeps more than one that keeps gate and up in bfloat16: the copy is gathered, so it has a row for each of the 8 experts of a token.
#
# ## For an H100
#
# Your kernels as machine code, compiled here without a GPU: the products once more for bfloat16, since only those run on tensor cores when float32 must not be cut to TF32. (With tiles as small as in the checks little of them is used; real ones are 128 and more.)

# %%
import linecache

from course.kernels import compile_texts

pairs_P, offsets_E1, places_TK = in_order(routing.indices_TK, routing.kept_TK, config.experts)
wide, half = torch.randn(96, 96).bfloat16(), torch.randn(96, 48).bfloat16()
calls = {
    "12.1": (half, wide, routing.weights_TK.detach(), pairs_P, offsets_E1),
    "12.2": (wide, torch.randn(8, 64, 96).bfloat16(), offsets_E1, places_TK, None),
    "12.3": (x_TD.bfloat16(), wide, pairs_P // 2, offsets_E1, None),
    "12.4": (half, wide, places_TK, torch.rand(48, 2), 2.5),
}
print(f"{'':7s}{'kernel':24s}{'registers':>10s}{'spilled':>9s}{'shared':>8s}{'warps':>7s}")
for name, arguments in calls.items():
    with checked() as log:
        own[name](*arguments)
    text = "".join(linecache.getlines(own[name].__code__.co_filename))  # what the function was defined by
    for c in compile_texts(text, list({each.kernel: each for each in log.launches}.values())) if log.launches else []:
        if c["error"]:
            print(f"{name:7s}{c['kernel']:24s} refused: {c['error']}")
        else:
            row = f"{c['registers']:10d}{c['spills']:9d}{c['shared_bytes']:8d}{c['warps']:7d}"
            print(f"{name:7s}{c['kernel']:24s}{row}")

# %% [markdown]
# *Spilled* and *shared* are bytes, a thread and a block.
#
# **Next:** lesson 13, the same products in eight bits.
