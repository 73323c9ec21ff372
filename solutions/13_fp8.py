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
# # Lab 13 · Eight bits
#
# One linear layer has three products: forward, and two gradients. Here you write what lets all three run in eight bits: codes with a scale a block, the product of the backward pass on such codes, the sum of an accumulator that cuts bits off, codes
# turned from rows to columns, and a prediction of what it all costs. Then a layer runs and learns on your functions.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **13.1, 13.2 and 13.4 ask for Triton kernels**: the answer is a function that launches at least one kernel of your own, in one cell with its kernels. The parameters of the kernels are a suggestion; only the function's name and arguments stay.
#   13.3 and 13.5 are PyTorch.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: **T** tokens, **N** outputs and **K** inputs of a layer, **A** and **B** blocks along a dimension.
# - Stuck? `course hint 13.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# What holds for the whole lab:
#
# - **E4M3 codes** are bytes: `torch.uint8` where they are passed or returned. `codes.view(torch.float8_e4m3fn)` shows them to a kernel as numbers, and a tensor of that dtype has a view as uint8: neither copies anything.
#   In a kernel `x.to(tl.float32)` widens codes exactly, and `x.to(tl.float8e4nv)` rounds to the nearest code, ties to even.
# - **A scale is what to multiply codes with**, in float32. Blocks have `span` numbers along a dimension (DeepSeek-V3 has 128). Where a dimension is no multiple of the span, its last block is short.
# - Kernels run in an interpreter on the CPU that tells of lanes outside a tensor, of two programs at one element, and of NaN in what was never loaded or written. An answer that is right is then compiled for an H100 (sm_90), without a GPU. Spans that reach a kernel are powers of two.
# - Beside your kernels PyTorch may allocate, fill, view, copy, cast, count, compare and add up. All tensors are contiguous, those you get and those you return, and results have memory of their own.
# - Where a result has no elements, no kernel need be launched. Nothing that you get is infinite or NaN.

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

os.environ["TRITON_INTERPRET"] = "1"  # also beside a GPU: these are lessons in counting
del os

import triton
import triton.language as tl

# %% [markdown]
# ## 13.1 · A scale for a row of numbers, or for a square
#
# Write the kernel that quantises: a matrix in, codes and scales out. Blocks are 1 × span numbers (as V3 has them for activations and gradients), or span × span with `square` (for weights).
#
# - The scale of a block is its largest **magnitude** over 448, in float32. With `power_of_two` it is the **smallest power of two that is not below** that quotient: a quotient that is a power of two stays, one a little above it is doubled, were it by the last bit of float32. These scales are compared exactly, others to a millionth of their size.
# - A block of nothing but zeros has the scale 1. Otherwise no scale is smaller than $2^{-126}$, the smallest float32 with all its digits, so that one over it is finite. There is no other floor: gradients of $10^{-7}$ keep their digits.
# - A code is the nearest E4M3 number to x over the scale, in float32, ties to even. Where rounding in that quotient decides between two neighbours, either passes. A zero may have either sign.
# - In the interpreter `/` is exact to float32's last bit. On a chip Triton's `/` is approximate in its last bits; `tl.div_rn` divides as PyTorch does. Here either passes.
#
# The example is case 1, with span 16, blocks in a row and powers of two. `x_NK` has two rows of 18, so two blocks a row, the second of 2 numbers. Row 0 begins with `[1, -3.5, 0.01]` and ends with `[224, 500]`; all else is 0. Its first block: 3.5 / 448 = $2^{-7}$, a power of two. Over it the numbers are 128, -448 and 1.28; the codes are
# `[112, 254, 58]`, for 128, -448 and 1.25. Its second: 500 / 448 is 1.116, so the scale is 2; the codes `[110, 120]` stand for 112 and 256. Row 1 is zeros: scales 1.
#
# | | shape | |
# |---|---|---|
# | `x_NK` | `[N, K]` | float32 or bfloat16, K ≥ 1 |
# | `span` | int | 16, 32, 64 or 128 |
# | `square`, `power_of_two` | bool | |
# | returns codes | `[N, K]` uint8 | |
# | returns scales | `[N, B]`, or `[A, B]` where `square`; A = ⌈N / span⌉, B = ⌈K / span⌉ | float32 |
#
# **Exercise 13.1** · difficulty 3 of 5 · 35 minutes · 15 points · spine


# %% tags=["exercise:13.1"]
# exercise 13.1
@triton.jit
def quantise_kernel(
    x, codes, scales, N, K, SPAN: tl.constexpr, ROWS: tl.constexpr, SQUARE: tl.constexpr, POWER_OF_TWO: tl.constexpr
):
    """One program for ROWS rows of a block's width."""
    ### BEGIN SOLUTION
    down, right, across = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.cdiv(K, SPAN)
    n = down * ROWS + tl.arange(0, ROWS)[:, None]
    k = right * SPAN + tl.arange(0, SPAN)[None, :]
    held = (n < N) & (k < K)
    wide = tl.load(x + n * K + k, mask=held, other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(wide), axis=1, keep_dims=True)
    if SQUARE:
        peak = tl.max(peak, axis=0, keep_dims=True)
    scale = tl.where(peak == 0.0, 1.0, tl.maximum(peak / 448.0, 2.0**-126))
    if POWER_OF_TWO:  # any fraction carries into the exponent, and is cut off
        raised = scale.to(tl.int32, bitcast=True) + 0x7FFFFF
        scale = (raised & 0x7F800000).to(tl.float32, bitcast=True)
    tl.store(codes + n * K + k, (wide / scale).to(tl.float8e4nv), mask=held)
    place = down + tl.zeros([1, 1], tl.int64) if SQUARE else n
    tl.store(scales + place * across + right, scale, mask=(place < N))
    ### END SOLUTION


def quantise(x_NK: Tensor, span: int, square: bool, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """E4M3 codes, and a scale for each block of 1 x span or span x span numbers."""
    ### BEGIN SOLUTION
    N, K = x_NK.shape
    ROWS = span if square else 16
    codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    scales = torch.empty(triton.cdiv(N, span) if square else N, triton.cdiv(K, span))
    if codes_NK.numel():
        programs = triton.cdiv(N, ROWS), scales.shape[1]
        quantise_kernel[programs](x_NK, codes_NK, scales, N, K, span, ROWS, square, power_of_two)
    return codes_NK.view(torch.uint8), scales
    ### END SOLUTION


# %% tags=["check:13.1", "nbval-check-output"]
check("13.1", quantise)

# %% [markdown]
# ## 13.2 · The product of the backward pass
#
# The lesson built the forward product, Y = X Wᵀ, which sums over the inputs K. Write the other one that needs W: the gradient of the input, which sums over the **outputs** N,
#
# $$\mathrm{dX}_{tk} = \sum_{a} \Bigl(\textit{dy\_scales}_{t a} \cdot \textit{w\_scales}_{a b(k)} \sum_{n \in \text{span } a} \mathrm{dY}_{tn}\, W_{nk}\Bigr) \qquad b(k) = \lfloor k / \textit{span} \rfloor$$
#
# - dY has a scale for each token and span of N. W's codes and scales are **those of the forward product**, as they lie: blocks of span × span are square, so they serve in both directions. (On a chip W's codes would be transposed first, since its tensor cores take FP8 only where the summed dimension lies side by side. The compiler does
#   it on the way here, at a price.)
# - Scales change every span of N. Sum bare codes in a span, from zero; scale; add to a **float32** total. Scaling an operand first is wrong: `tl.dot` rounds float32 to TF32, 10 bits of fraction, unless told not to. That is also promotion, which is exercise 13.3. (A total that is fed into `tl.dot` as its accumulator, and rescaled around it, would never be promoted. In the interpreter it has the same value: that is not checked.)
# - `tl.dot` takes codes as they are (`float8e4nv` tiles) and returns float32; how a chip sums on the way is 13.3. It wants tiles of at least 16 × 16 (fewer than 64 rows miss Hopper's fast instruction), and of FP8 at least 32 of the summed dimension.
# - Products by PyTorch are out of bounds. The result is float32, compared row by row, 1e-5 of a row's norm. With N = 0 it is all zeros.
#
# The example is case 1, with span 32: N is 33, so that there are two spans, and K is 2. dY's codes are 0 but for dY[0, 0] = 1, dY[0, 32] = 2 and dY[1, 1] = -1 (codes 56, 64 and 184). W's rows 0, 1 and 32 are `[1, 0.5]`, `[4, 0]` and `[1, 2]`. `dy_scales_TA` is `[[0.5, 2], [3, 1]]`, `w_scales_AB` is `[[1], [10]]`. Row 0:
# 0.5 · 1 · `[1, 0.5]` + 2 · 10 · `[2, 4]` = `[40.5, 80.25]`. Row 1: 3 · 1 · `[-4, 0]` = `[-12, 0]`.
#
# | | shape | |
# |---|---|---|
# | `dy_TN` | `[T, N]` uint8 | codes |
# | `w_NK` | `[N, K]` uint8 | codes |
# | `dy_scales_TA` | `[T, A]` float32 | A = ⌈N / span⌉ |
# | `w_scales_AB` | `[A, B]` float32 | B = ⌈K / span⌉ |
# | `span` | int | 32, 64 or 128 |
# | returns | `[T, K]` float32 | zeros where N is 0 |
#
# **Exercise 13.2** · difficulty 3 of 5 · 35 minutes · 15 points


# %% tags=["exercise:13.2"]
# exercise 13.2
@triton.jit
def input_gradient_kernel(dy, w, dy_scales, w_scales, dx, T, N, K, TILE: tl.constexpr, SPAN: tl.constexpr):
    """One program for TILE tokens and one block of columns."""
    ### BEGIN SOLUTION
    b = tl.program_id(1)
    t = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = b * SPAN + tl.arange(0, SPAN)
    A, B = tl.cdiv(N, SPAN), tl.cdiv(K, SPAN)
    rows, columns = t[:, None] < T, k[None, :] < K
    total = tl.zeros([TILE, SPAN], tl.float32)
    for a in range(A):
        n = a * SPAN + tl.arange(0, SPAN)
        dy_tile = tl.load(dy + t[:, None] * N + n[None, :], mask=rows & (n[None, :] < N), other=0.0)
        w_tile = tl.load(w + n[:, None] * K + k[None, :], mask=(n[:, None] < N) & columns, other=0.0)
        both = tl.load(dy_scales + t * A + a, mask=t < T, other=0.0) * tl.load(w_scales + a * B + b)
        total += tl.dot(dy_tile, w_tile) * both[:, None]
    tl.store(dx + t[:, None] * K + k[None, :], total, mask=rows & columns)
    ### END SOLUTION


def input_gradient(dy_TN: Tensor, w_NK: Tensor, dy_scales_TA: Tensor, w_scales_AB: Tensor, span: int) -> Tensor:
    """dX = dY W of block-scaled codes, in float32."""
    ### BEGIN SOLUTION
    (T, N), K = dy_TN.shape, w_NK.shape[1]
    dx_TK = torch.empty(T, K)
    if T:
        numbers = (codes.view(torch.float8_e4m3fn) for codes in (dy_TN, w_NK))
        programs = triton.cdiv(T, 32), triton.cdiv(K, span)
        input_gradient_kernel[programs](*numbers, dy_scales_TA, w_scales_AB, dx_TK, T, N, K, 32, span)
    return dx_TK
    ### END SOLUTION


# %% tags=["check:13.2", "nbval-check-output"]
check("13.2", input_gradient)

# %% [markdown]
# ## 13.3 · An accumulator that cuts, and promotion
#
# Write the sum as Hopper's tensor cores take it in FP8, with the promotion that DeepSeek put around it, for any width of the accumulator. You get products as numbers (rows of them, one row for each result), and no codes.
#
# One **instruction** adds `group` products to a running sum. With *e* the exponent of the largest magnitude among those products **and the running sum** ($2^e \le \text{largest} < 2^{e+1}$), a step is $2^{e - \textit{bits}}$. Every term, the running sum too, is cut to whole steps **toward zero**; then they are added, exactly. The result
# may have grown, so it is cut once more, to steps of $2^{e' - \textit{bits}}$ with its own exponent $e'$. That is the new running sum.
#
# After every `every` products the running sum is **promoted**: times the scale of this span, added to a float32 total; and the next span starts from zero. What is left after the last whole span is promoted too, with its own scale. The last instruction may have fewer products.
#
# - Work in float64 in between: cuts and sums are exact there. Products are any float32 numbers, small ones and such of 24 bits too. (A group's cut terms and their sum mostly fit into float32's 24 bits as well, so float32 in between passes here.) The total is float32. Compared row by row, to 1e-6 of the row's sum.
# - A group of zeros has no exponent: whatever the step, nothing is left of it.
# - `bits` counts those after the leading one. Hopper has 13, groups of 32, and V3 promotes every 128.
#
# The example is case 1: group 2, every 4, bits 2. Row 0 has the products `[8, 1.5, -1.5, 3, 5, 0.75]` and the scales `[1, 10]`. First instruction: the largest is 8, the step $2^{3-2}$ = 2; 8 stays, 1.5 becomes 0. Second: the running sum 8 is the largest, the step still 2: 8 + 0 + 2 = 10. Promoted: 10 · 1. Third: from zero, the largest is 5, the step 1:
# 5 + 0 = 5, promoted 5 · 10. The total is 60; exactly it would be 68.5. Row 1 has `[-8, -1.5, 1.5, -3, 16, 0]` and `[0.5, 1]`, and gives -10 · 0.5 + 16 = 11.
#
# | | shape | |
# |---|---|---|
# | `products_RK` | `[R, K]` float32 | K ≥ 1 |
# | `scales_RB` | `[R, B]` float32 | B = ⌈K / every⌉ |
# | `group` | int | 1 or more |
# | `every` | int | a multiple of `group` |
# | `bits` | int | 2 to 13 |
# | returns | `[R]` float32 | |
#
# **Exercise 13.3** · difficulty 4 of 5 · 40 minutes · 15 points


# %% tags=["exercise:13.3"]
# exercise 13.3
def promoted_sum(products_RK: Tensor, scales_RB: Tensor, group: int, every: int, bits: int) -> Tensor:
    """Each row's sum by an accumulator of so many bits, promoted and scaled after every so many products."""
    ### BEGIN SOLUTION

    def cut(terms_RC, largest_R1):
        step_R1 = 2.0 ** (torch.frexp(largest_R1).exponent.double() - 1 - bits)
        return torch.trunc(terms_RC / step_R1) * step_R1

    total_R = torch.zeros(len(products_RK))
    for b, span_RC in enumerate(products_RK.double().split(every, dim=1)):
        running_R1 = torch.zeros(len(products_RK), 1, dtype=torch.float64)
        for some_RC in span_RC.split(group, dim=1):
            terms_RC = torch.cat([running_R1, some_RC], dim=1)
            aligned_RC = cut(terms_RC, terms_RC.abs().amax(dim=1, keepdim=True))
            running_R1 = aligned_RC.sum(dim=1, keepdim=True)
            running_R1 = cut(running_R1, running_R1.abs())
        total_R += running_R1[:, 0].float() * scales_RB[:, b]
    return total_R
    ### END SOLUTION


# %% tags=["check:13.3", "nbval-check-output"]
check("13.3", promoted_sum)

# %% [markdown]
# ## 13.4 · From rows to columns
#
# The gradient of the weight, dW = dYᵀ X, sums over tokens. X was quantised along its rows for the forward pass, a scale for each token, and V3 keeps just those codes for the backward pass (report, section 3.3.3). So they have to be quantised anew: a scale for `span` **tokens of one column**. Write the kernel that goes from the kept codes
# straight to the new ones, and stores them **transposed**, as the product wants them.
#
# - A number is its code times the scale of its token and block of columns. The scales you get are powers of two, between $2^{-40}$ and $2^{20}$.
# - The new scale of a column and span of tokens is the **smallest power of two that is not below** the largest magnitude there over 448. Where all are zero it is 1. There is no floor: new scales go down to $2^{-57}$.
# - The new code is the nearest E4M3 number to number over new scale, ties to even. Since all scales are powers of two, nothing but this rounding happens, and it mostly finds nothing to round. A zero may have either sign.
#
# The example is case 1, span 16, with 17 tokens and K = 2: two spans of tokens, the second of one. All codes are 0, and all scales 1, but for these: token 0 has `[56, 126]` (1 and 448) with scale 4, token 1 has `[126, 57]` (448 and 1.125) with scale 1/16, token 16 has `[184, 8]` (-1 and 1/64) with scale 1. Column 0 holds 4, 28 and
# zeros in its first span: 28 / 448 = 1/16 is its new scale, and the codes are `[104, 126, 0, ...]` for 64 and 448. Its second span has -1 alone: 1 / 448 rounds up to $2^{-8}$, code 248 for -256. Column 1: 1,792 and 0.0703, scale 4, codes `[126, 9, 0, ...]`, then scale $2^{-14}$ and code 120.
#
# | | shape | |
# |---|---|---|
# | `codes_TK` | `[T, K]` uint8 | K ≥ 1 |
# | `scales_TB` | `[T, B]` float32, B = ⌈K / span⌉ | powers of two |
# | `span` | int | 16, 32, 64 or 128 |
# | returns codes | `[K, T]` uint8 | |
# | returns scales | `[K, A]` float32, A = ⌈T / span⌉ | |
#
# **Exercise 13.4** · difficulty 4 of 5 · 35 minutes · 15 points


# %% tags=["exercise:13.4"]
# exercise 13.4
@triton.jit
def requantise_kernel(codes, scales, turned, anew, T, K, SPAN: tl.constexpr, COLUMNS: tl.constexpr):
    """One program for a span of tokens and some columns."""
    ### BEGIN SOLUTION
    a = tl.program_id(0).to(tl.int64)
    t = a * SPAN + tl.arange(0, SPAN)[:, None]
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    held = (t < T) & (k < K)
    old = tl.load(scales + t * tl.cdiv(K, SPAN) + k // SPAN, mask=held, other=0.0)
    values = tl.load(codes + t * K + k, mask=held, other=0.0).to(tl.float32) * old
    peak = tl.max(tl.abs(values), axis=0, keep_dims=True)
    raised = (peak / 448.0).to(tl.int32, bitcast=True) + 0x7FFFFF
    scale = tl.where(peak == 0.0, 1.0, (raised & 0x7F800000).to(tl.float32, bitcast=True))
    tl.store(turned + k * T + t, (values / scale).to(tl.float8e4nv), mask=held)
    tl.store(anew + k * tl.cdiv(T, SPAN) + a, scale, mask=k < K)
    ### END SOLUTION


def requantise(codes_TK: Tensor, scales_TB: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Codes with a scale for span tokens of a column, transposed, from codes with a scale for span columns of a token."""
    ### BEGIN SOLUTION
    T, K = codes_TK.shape
    codes_KT = torch.empty(K, T, dtype=torch.float8_e4m3fn)
    scales_KA = torch.empty(K, triton.cdiv(T, span))
    if T:
        programs = scales_KA.shape[1], triton.cdiv(K, 32)
        numbers_TK = codes_TK.view(torch.float8_e4m3fn)
        requantise_kernel[programs](numbers_TK, scales_TB, codes_KT, scales_KA, T, K, span, 32)
    return codes_KT.view(torch.uint8), scales_KA
    ### END SOLUTION


# %% tags=["check:13.4", "nbval-check-output"]
check("13.4", requantise)

# %% [markdown]
# ## 13.5 · An error budget
#
# Before you trust eight bits with a layer: what will they cost? Predict the error of Y = X Wᵀ from its operands alone, without rounding anything. X has blocks of 1 × span, W of span × span, scales are largest magnitude over 448, in float64, and 1 for a block of zeros; there is no floor.
#
# **One number.** With *u* = |x| over its scale:
#
# - $u \le 2^{-10}$: it becomes zero, and is lost whole. Its squared error is $x^2$. (For a zero that is 0.)
# - otherwise it lies between two numbers of E4M3 which are $2^{\max(e, -6) - 3}$ apart, where $2^e \le u < 2^{e+1}$. The error is as likely here as there within a step, so its square is on average $\text{step}^2 / 12$, times the scale squared.
#
# **The product.** Errors of different numbers are independent, so their squares add up. With $\mathrm{N}^x_{mk}$ and $\mathrm{N}^w_{nk}$ the squared errors above, column k of X and W adds, over all results together,
#
# $$c_k = \sum_m \mathrm{N}^x_{mk} \sum_n w_{nk}^2 \;+\; \sum_m x_{mk}^2 \sum_n \mathrm{N}^w_{nk}$$
#
# (The product of both errors is left out: it is small.) Return a dict:
#
# | key | |
# |---|---|
# | `"zeroed"` | float: the share of X's nonzero numbers that become zero |
# | `"error"` | float: $\sqrt{\sum_k c_k}$ over the norm of the exact product $\lVert X W^\top \rVert$, all in float64 |
# | `"by_x"` | float: the share of $\sum_k c_k$ that comes from rounding X, its first term |
# | `"by_span_B"` | `[B]` float64: the share of $\sum_k c_k$ of each span of K; they sum to 1 |
#
# The example is case 1, with span 2: X is `[[448, 1, 448, 2⁻¹¹]]`, W is `[[0, 448, 0, 448]]`. X's scales are 1 and 1, so $2^{-11}$ becomes zero: `zeroed` is 0.25. Rounding 1 costs $(1/8)^2 / 12$ = 0.0013 and meets $448^2$ in W: 261.33. W's 448 has steps of 32: $32^2/12$ = 85.33, and meets $1^2$. The lost number adds $2^{-22} \cdot 448^2$ = 0.0479, and
# 0.00002 more. (448 meets a 0 in W, twice.) Together 346.71; the product is 448.21875; so the error is 0.0415, `by_x` is 0.7539 and `by_span_B` is `[0.99986, 0.00014]`. (The formula does not know that 448 itself is an E4M3 number: on average over many numbers that hardly matters.)
#
# | | shape | |
# |---|---|---|
# | `x_MK` | `[M, K]` float32 | |
# | `w_NK` | `[N, K]` float32 | |
# | `span` | int | any, 1 or more |
# | returns | dict | $\sum_k c_k$ and the product's norm are above 0, and some number of X is not 0 |
#
# PyTorch's FP8 dtypes are out of bounds: a prediction is asked for. Compared to 1e-4.
#
# **Exercise 13.5** · difficulty 3 of 5 · 35 minutes · 10 points


# %% tags=["exercise:13.5"]
# exercise 13.5
def error_budget(x_MK: Tensor, w_NK: Tensor, span: int) -> dict:
    """What rounding to block-scaled E4M3 will cost x w^T, and which numbers and spans are to blame."""
    ### BEGIN SOLUTION

    def noise_of(wide, rows):
        """Squared errors expected, and which numbers become zero."""
        scale = torch.ones_like(wide)
        for n in range(0, len(wide), rows):
            for k in range(0, wide.shape[1], span):
                if peak := wide[n : n + rows, k : k + span].abs().max().item():
                    scale[n : n + rows, k : k + span] = peak / 448
        u = wide.abs() / scale
        exponent = torch.clamp(torch.frexp(u).exponent - 1, min=-6)
        gone = u <= 2**-10
        return torch.where(gone, wide**2, (scale * 2.0 ** (exponent - 3)) ** 2 / 12), gone & (wide != 0)

    x, w = x_MK.double(), w_NK.double()
    (noise_x, gone), (noise_w, _) = noise_of(x, 1), noise_of(w, span)
    from_x_K, from_w_K = noise_x.sum(0) * (w * w).sum(0), (x * x).sum(0) * noise_w.sum(0)
    total = float(from_x_K.sum() + from_w_K.sum())
    return {
        "zeroed": int(gone.sum()) / int((x != 0).sum()),
        "error": math.sqrt(total) / float((x @ w.T).norm()),
        "by_x": float(from_x_K.sum()) / total,
        "by_span_B": torch.stack([c.sum() for c in torch.split(from_x_K + from_w_K, span)]) / total,
    }
    ### END SOLUTION


# %% tags=["check:13.5", "nbval-check-output"]
check("13.5", error_budget)

# %% [markdown]
# ## One layer, three products
#
# From here on you only run cells. They use *your* functions (or the reference, where an exercise is not done yet). A linear layer with 256 tokens, 256 inputs and 128 outputs, spans of 128 as in V3, and one feature of X twenty times as large as the others. First the codes, all from your 13.1; scales of activations and gradients are powers of two.

# %%
import matplotlib.pyplot as plt

from course.kernels.checked import checked
from course.kernels.fp8_accumulator import fp8_accumulate
from course.kernels.fp8_gemm import fp8_gemm
from course.kernels.fp8_weight_gradient import fp8_weight_gradient

plt.style.use("course.lesson")
own = {name: mine(name) for name in ("13.1", "13.2", "13.3", "13.4", "13.5")}
draw = torch.Generator().manual_seed(0)
T, K, N, SPAN = 256, 256, 128, 128
x_TK, w_NK = torch.randn(T, K, generator=draw), 0.06 * torch.randn(N, K, generator=draw)
dy_TN = 1e-5 * torch.randn(T, N, generator=draw)
x_TK[:, 7] *= 20
with checked():
    x = own["13.1"](x_TK, SPAN, False, True)
    w = own["13.1"](w_NK, SPAN, True, False)
    dy = own["13.1"](dy_TN, SPAN, False, True)
for name, (codes, scales), of in (("X", x, x_TK), ("W", w, w_NK), ("dY", dy, dy_TN)):
    held = f"{codes.nbytes + scales.nbytes:7,} as codes and {scales.numel():3d} scales"
    print(f"{name:3s} {of.nbytes:7,} bytes in float32, {held}")


# %% [markdown]
# The three products. The forward one is your 13.2 once more, with W transposed: both of its blocks are square, so `input_gradient` cannot tell. For dW your 13.4 turns the codes of dY and X, and the course's kernel multiplies them. Beside each result, the course's kernel on the same codes.


# %%
def e4m3(codes):
    return codes.contiguous().view(torch.float8_e4m3fn)


def three_products(x, w, dy):
    """Y, dX and dW by your functions, from codes and scales."""
    y = own["13.2"](x[0], w[0].T.contiguous(), x[1], w[1].T.contiguous(), SPAN)
    dx = own["13.2"](dy[0], w[0], dy[1], w[1], SPAN)
    (dy_turned, dy_scales), (x_turned, x_scales) = (own["13.4"](*pair, SPAN) for pair in (dy, x))
    return y, dx, fp8_weight_gradient(e4m3(dy_turned), e4m3(x_turned), dy_scales, x_scales)


with checked():
    y, dx, dw = three_products(x, w, dy)
    theirs = fp8_gemm(e4m3(x[0]), e4m3(w[0]), x[1], w[1], torch.float32)
    theirs_dx = fp8_gemm(e4m3(dy[0]), e4m3(w[0].T), dy[1], w[1].T.contiguous(), torch.float32)
off = lambda got, wanted: ((got - wanted).norm() / wanted.norm()).item()  # noqa: E731
print(f"Y  against course.kernels.fp8_gemm: {off(y, theirs):.0e}")
print(f"dX against course.kernels.fp8_gemm: {off(dx, theirs_dx):.0e}")
assert off(y, theirs) < 1e-5
assert off(dx, theirs_dx) < 1e-5

# %% [markdown]
# ## What it cost, and what you had predicted
#
# The same products with other roundings: bfloat16, and E4M3 with one scale for a whole matrix. And your error budget, which has never rounded anything. (It supposes square blocks for its second operand. In dW both operands have blocks of one row; that makes little difference here.)
#
# **Predict:** one feature is twenty times as large. Which of the three products suffers most from having one scale for all of X?


# %%
def one_scale(matrix):
    scale = matrix.abs().max() / 448
    return (matrix / scale).to(torch.float8_e4m3fn).float() * scale


exact = {"Y": x_TK @ w_NK.T, "dX": dy_TN @ w_NK, "dW": dy_TN.T @ x_TK}
errors = {"yours, in blocks": [off(got, wanted) for got, wanted in zip((y, dx, dw), exact.values(), strict=True)]}
for name, rounded in (("one scale", one_scale), ("bfloat16", lambda matrix: matrix.bfloat16().float())):
    a, b, c = (rounded(matrix) for matrix in (x_TK, w_NK, dy_TN))
    errors[name] = [off(got, wanted) for got, wanted in zip((a @ b.T, c @ b, c.T @ a), exact.values(), strict=True)]
operands = (x_TK, w_NK), (dy_TN, w_NK.T.contiguous()), (dy_TN.T.contiguous(), x_TK.T.contiguous())
budgets = [own["13.5"](*pair, SPAN) for pair in operands]
figure, axis = plt.subplots(figsize=(8.5, 3.3))
for shift, (name, values) in enumerate(errors.items()):
    bars = axis.bar(np.arange(3) + 0.27 * (shift - 1), [100 * v for v in values], width=0.25, label=name)
    axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=4)
axis.plot(np.arange(3) - 0.27, [100 * b["error"] for b in budgets], "D", color="black", label="your prediction")
axis.set_xticks(range(3), ["Y = X W\u1d40", "dX = dY W", "dW = dY\u1d40 X"])
axis.set(ylabel="relative error (%)", title="Three products, three roundings", ylim=(0, 4.6))
axis.grid(axis="x", visible=False)
axis.legend(ncols=4, loc="upper center", fontsize=9)
plt.show()
for name, budget in zip(exact, budgets, strict=True):
    print(f"{name:3s} zeroed {budget['zeroed']:.4f}, share of the first operand {budget['by_x']:.2f}", end=", ")
    print("by span", [round(share, 2) for share in budget["by_span_B"].tolist()])

# %% [markdown]
# *Figure: bars of the relative error of Y, dX and dW: in blocks and with one scale between 3 and 4 percent, in bfloat16 a few tenths of a percent; a black diamond at your prediction, at the top of the bars in blocks.*
#
# One outlier of twenty does nothing to either: a float carries its own exponent, and below 448 E4M3 has fifteen binades in which its numbers are equally fine (lesson 07 found the same for weights). We would not read anything into which of the two bars is lower. What the outlier does is to weigh: the span that holds it makes most of Y's error, as your last line shows, because most of Y comes from there. So turn it up.

# %%
sizes = [2.0**n for n in range(0, 21, 2)]
lines = {"in blocks": [], "one scale": []}
predicted = []
others = torch.arange(K) != 7
for size in sizes:
    grown_TK = x_TK.clone()
    grown_TK[:, 7] = size * torch.randn(T, generator=draw).sign()
    with checked():
        codes, scales = own["13.1"](grown_TK[:16], SPAN, False, False)
    back = e4m3(codes).float() * scales.repeat_interleave(SPAN, 1)
    for name, rounded in (("in blocks", back), ("one scale", one_scale(grown_TK)[:16])):
        lines[name].append(100 * (rounded[:, others] == 0).double().mean().item())
    predicted.append(100 * own["13.5"](grown_TK[:16], w_NK, SPAN)["zeroed"])
figure, axis = plt.subplots(figsize=(7.5, 3))
for name, values in lines.items():
    axis.plot(sizes, values, "o-", label=name)
axis.plot(sizes, predicted, "D", color="black", markersize=4, label="your prediction, in blocks")
axis.set_xscale("log", base=2)
axis.set(
    xlabel="size of one feature, the others have 1", ylabel="of the others, zero (%)", title="What one feature costs"
)
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# *Figure: the share of X's other numbers that become zero, against the size of one feature: nothing until some ten thousand, then with one scale it climbs towards 100 percent, and in blocks of 128 only to about 50, as the other block of each row is out of reach. Black diamonds, your prediction, lie on the line of the blocks.*
#
# ## The accumulator
#
# 4,096 products of one sign, eight sums, by your 13.3, for three widths of the accumulator. The course's emulator aligns by the exponents of the factors, as far as is known of the chip; yours by the products themselves.

# %%
a, b = (torch.rand(rows, 4096, generator=draw).to(torch.float8_e4m3fn) for rows in (8, 1))
products = a.float() * b.float()
right = products.double().sum(1)
every = [32 * 2**n for n in range(8)]
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for bits in (7, 10, 13):
    found = [own["13.3"](products, torch.ones(8, 4096 // span), 32, span, bits) for span in every]
    axis.plot(every, [100 * off(sums.double(), right) for sums in found], "o-", label=f"{bits} bits, yours")
chip = [100 * off(fp8_accumulate(a, b, span)[:, 0].double(), right) for span in every]
axis.plot(every, chip, "x--", color="black", label="13 bits, the course's")
axis.axvline(128, color="black", linestyle=":", linewidth=1)
axis.annotate("DeepSeek: 128", (128, 60), (5, 0), textcoords="offset points", fontsize=9)
axis.set_xscale("log", base=2)
axis.set_yscale("log")
axis.set(xlabel="products until promotion", ylabel="relative error (%)", title="What the accumulator loses")
axis.legend(fontsize=9, loc="lower right")
plt.show()
never, at_128 = (100 * off(found[n].double(), right) for n in (-1, 2))
print(f"13 bits: {never:.2f} % without promotion, {at_128:.3f} % at 128")

# %% [markdown]
# *Figure: relative error of eight sums against the promotion interval, both logarithmic: three rising lines for accumulators of 7, 10 and 13 bits, each ten times and more under the one before; a dashed line of the course's emulator lies on that of 13 bits. A dotted line marks 128, where 13 bits lose a twentieth of a percent.*
#
# ## It learns
#
# A layer as an `autograd.Function`: what goes forward and what comes back are your three products, weights and steps stay in float32. Two layers learn to imitate two others, in float32, with your eight bits, and with E4M3 without scales.


# %%
class InEightBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK, w_NK):
        x, w = own["13.1"](x_TK, SPAN, False, True), own["13.1"](w_NK, SPAN, True, False)
        ctx.save_for_backward(*x, *w)
        return own["13.2"](x[0], w[0].T.contiguous(), x[1], w[1].T.contiguous(), SPAN)

    @staticmethod
    def backward(ctx, dy_TN):
        x, x_scales, w, w_scales = ctx.saved_tensors
        dy = own["13.1"](dy_TN.contiguous(), SPAN, False, True)
        return three_products((x, x_scales), (w, w_scales), dy)[1:]


class Unscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK, w_NK):
        x_TK, w_NK = (m.to(torch.float8_e4m3fn).float() for m in (x_TK, w_NK))
        ctx.save_for_backward(x_TK, w_NK)
        return x_TK @ w_NK.T

    @staticmethod
    def backward(ctx, dy_TN):
        x_TK, w_NK = ctx.saved_tensors
        dy_TN = dy_TN.to(torch.float8_e4m3fn).float()
        return dy_TN @ w_NK, dy_TN.T @ x_TK


# %%
seen_TK = torch.randn(128, 128, generator=draw)
start = [0.05 * torch.randn(128, 128, generator=draw) for _ in range(2)]
teacher = [0.13 * torch.randn(128, 128, generator=draw) for _ in range(2)]


def run(weights, product):
    return product(torch.relu(product(seen_TK, weights[0])), weights[1])


wanted_TN = run(teacher, F.linear)


def learn(product, steps=16, rate=0.01):
    weights = [w.clone().requires_grad_() for w in start]
    optimizer, losses = torch.optim.Adam(weights, lr=rate), []
    for _ in range(steps):
        loss = F.mse_loss(run(weights, product), wanted_TN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


plain, unscaled = learn(F.linear), learn(Unscaled.apply)
with checked():
    eight = learn(InEightBits.apply)
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(plain, linewidth=4, alpha=0.4, label="float32")
axis.plot(eight, linewidth=1.4, label="your eight bits")
axis.plot(unscaled, linewidth=1.4, label="E4M3 without scales")
axis.set(xlabel="step", ylabel="squared error", title="Two layers imitate two others", ylim=(0, None))
axis.legend(fontsize=9)
plt.show()
print(f"last: float32 {plain[-1]:.4f}, yours {eight[-1]:.4f}, without scales {unscaled[-1]:.4f}")
assert abs(eight[-1] / plain[-1] - 1) < 0.1

# %% [markdown]
# *Figure: squared error over sixteen steps: float32 and your eight bits fall together, one line upon the other; without scales the line stays where it began.*
#
# The gradients here are about a ten-thousandth, under all that E4M3 can say without a scale. That is the whole secret of training in eight bits: not that three bits of fraction were enough for a number, but that a scale puts each block where the format is good, and that errors of many roundings cancel in a sum of many terms.
#
# **Next:** lesson 14, attention as one kernel.
