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
# # Lab 10 · Fused kernels
#
# Between two matrix products a transformer only moves memory: norms, activations, rotations, the loss. Written as eager PyTorch each of their lines reads and writes whole tensors; written as one kernel
# they read once and write once. Here you write five such kernels, none of them quite the lesson's. Then a small DeepSeek-style block runs and learns on them, and you count what was saved.
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
# - Names carry their shape: **N** rows, **D** elements a row, **F** = 2I gate and up together, **B** sequences of **S** positions, **H** heads, **P** pairs, **T** rows of a table, **V** vocabulary.
# - Stuck? `course hint 10.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# What holds for all five:
#
# - Kernels run in an interpreter on the CPU that tells of lanes outside a tensor, of two programs at one element, and of NaN in what was never loaded or written. An answer that is right is then compiled for an H100 (sm_90), without a GPU.
# - All tensors are contiguous, those you get and those you return. Inputs of floats are float32 or bfloat16. **Compute in float32** and **round once**, at the end, unless the text says otherwise.
# - The arithmetic belongs in kernels. Beside them PyTorch may allocate, fill, view, copy, cast, count, compare, and add up partial results; what else makes more than one floating-point number there does not
#   pass. Results have memory of their own: a view of an input does not count.
# - A float32 result is compared by the norm of the error, 1e-5 of the norm of what is right. A bfloat16 result has to be the nearest bfloat16; one number in 50 may be its neighbour, since the order of a sum can tip a number over.
# - Where there are no rows, results have no rows either, and no kernel need be launched.
# - Each exercise names **the least bytes**: every input read once, every result written once. The check does not count them; the last cells of this lab do.

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
# ## 10.1 · Add, then norm
#
# Every layer adds its result to the residual stream, and the next thing that happens to the stream is a norm. Eager PyTorch writes the sum, then reads it again, several times. Write both in one kernel:
#
# $$s = \mathrm{round}(x + \textit{residual}) \qquad y = \mathrm{round}\Bigl(\frac{s}{\sqrt{\tfrac1D\sum_d s_d^2 + \varepsilon}} \cdot \textit{weight}\Bigr)$$
#
# - The sum is taken in float32 and rounded to the dtype of `x_NX`. That is what goes on to the next layer, and **the norm is of the rounded sum**, widened to float32 again. (A fused kernel that norms the unrounded sum computes another model than the one that
#   was trained: such a difference was found in vllm-omni, pull request 6878, where it added up over denoising steps.)
# - `y` is rounded once, after the weight.
# - **Rows lie apart.** Of each row of `x_NX` the first D elements count, D being the length of `weight_D`; what lies behind them does not belong to the row: keep it out of sum, mean and result. (`x_NX` itself is contiguous; you use its first D columns.) A row of x begins X elements after the one before, a row of the residual R elements.
# - D is any number from 1 up to a few thousand. The weight's dtype may differ from that of x; the residual's does not. eps is above 0.
#
# The example is case 1: x is `[[3, 1, 9], [256, 2, 9]]` and the residual `[[-1, 1], [1, -2]]` in bfloat16, the weight is `[1, 2]`, eps 0.5; so D = 2, X = 3, R = 2. The sum is `[[2, 2], [256, 0]]`: 257 has no bfloat16 and becomes 256. Row 0 has the mean square 4, and
# y = `[0.942809, 1.885618]` before rounding, `[0.941406, 1.882812]` after it. Row 1 has the mean square 32768, and y is `[1.414203, 0]`, rounded `[1.414062, 0]`.
#
# | | shape | |
# |---|---|---|
# | `x_NX` | `[N, X]`, X ≥ D | float32 or bfloat16 |
# | `residual_NR` | `[N, R]`, R ≥ D | of x's dtype |
# | `weight_D` | `[D]` | float32 or bfloat16 |
# | `eps` | float | |
# | returns `sum` | `[N, D]` | of x's dtype |
# | returns `normed` | `[N, D]` | of x's dtype |
#
# The least bytes, with b bytes a number: 4 N D b for two rows in and two out, and the weight once.
#
# **Exercise 10.1** · difficulty 2 of 5 · 25 minutes · 10 points · spine


# %% tags=["exercise:10.1"]
# exercise 10.1
@triton.jit
def add_norm_kernel(x, residual, weight, total, normed, X, R, D, eps, BLOCK: tl.constexpr):
    """One program a row."""
    ### BEGIN SOLUTION
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    stream = tl.load(residual + n * R + d, mask=inside, other=0.0).to(tl.float32)
    stream += tl.load(x + n * X + d, mask=inside, other=0.0).to(tl.float32)
    narrow = stream.to(total.dtype.element_ty)
    tl.store(total + n * D + d, narrow, mask=inside)
    stream = narrow.to(tl.float32)
    gain = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    stream *= gain * tl.rsqrt(tl.sum(stream * stream) / D + eps)
    tl.store(normed + n * D + d, stream.to(normed.dtype.element_ty), mask=inside)
    ### END SOLUTION


def rmsnorm_add(x_NX: Tensor, residual_NR: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The rounded sum of x and residual, and its RMSNorm."""
    ### BEGIN SOLUTION
    N, D = x_NX.shape[0], weight_D.shape[0]
    sum_ND, normed_ND = (torch.empty(N, D, dtype=x_NX.dtype) for _ in range(2))
    add_norm_kernel[(N,)](
        x_NX, residual_NR, weight_D, sum_ND, normed_ND,
        x_NX.shape[1], residual_NR.shape[1], D, eps, BLOCK=triton.next_power_of_2(D),
    )  # fmt: skip
    return sum_ND, normed_ND
    ### END SOLUTION


# %% tags=["check:10.1", "nbval-check-output"]
check("10.1", rmsnorm_add)

# %% [markdown]
# ## 10.2 · And back
#
# The gradients of 10.1. Two gradients arrive: `dy` for the normed rows, and `dsum` for the sum, from all layers behind. With $r$ the row's scale, $n = r\,s$ the normed row before the weight, and $g = dy \cdot \textit{weight}$:
#
# $$dx = r\,\Bigl(g - n\,\tfrac1D \sum_d g_d\, n_d\Bigr) + \textit{dsum} \qquad\qquad \textit{dweight} = \sum_{\text{rows}} dy \cdot n$$
#
# - `dx` is the gradient of the sum, hence of x and of the residual alike; the rounding of the sum counts as if it were not there. It is rounded once, after `dsum` was added.
# - $r$ may have been saved by the forward pass: `scale_N` holds it, and is then **taken as it is**, whatever eps says. Some cases give scales that belong to another eps. Where `scale_N` is None, compute it: $r = 1/\sqrt{\tfrac1D\sum_d s_d^2 + \varepsilon}$. None may be passed to a kernel: there it is a constant, and an `if` on it is decided when the kernel is compiled.
# - `dweight` sums over rows, and different programs have different rows. **No atomics**: the order in which programs arrive would change the last digits from run to run. Let each program write the sum over its rows, in float32, into a row of its own of a scratch tensor, and
#   add those up afterwards (`torch.sum` will do). The sum is float32 throughout; rounded to the weight's dtype at the end.
# - The calls `tl.atomic_add`, `atomic_xchg` and `atomic_cas`, and autograd, are out of bounds. With no rows `dweight` is 0.
#
# The example is case 1: `dy` is `[[3, 1], [1, 0]]`, `dsum` is `[[1, 7], [2, 0]]`, `s` is `[[10, 20], [0, 0]]`, the weight `[1, 2]`, `scale_N` is `[0.2, 0.5]`. Row 0 has n = `[2, 4]`, g = `[3, 2]`, the mean of g n is 7, so dx = 0.2 · (`[3, 2]` - `[14, 28]`) + `[1, 7]` = `[-1.2, 1.8]`.
# In row 1 n is 0: dx = 0.5 · `[1, 0]` + `[2, 0]` = `[2.5, 0]`. And dweight = `[3 · 2 + 1 · 0, 1 · 4 + 0 · 0]` = `[6, 4]`.
#
# | | shape | |
# |---|---|---|
# | `dy_ND`, `dsum_ND`, `s_ND` | `[N, D]` | float32 or bfloat16, all three the same; N from 0 to some hundreds here, in training a million: let offsets be int64 |
# | `weight_D` | `[D]` | float32 or bfloat16 |
# | `scale_N` | `[N]` float32, or None | |
# | `eps` | float | above 0 where `scale_N` is None |
# | returns `dx` | `[N, D]` | of s's dtype |
# | returns `dweight` | `[D]` | of the weight's dtype |
#
# The least bytes: 4 N D b, for dy, dsum, s in and dx out, and what is small beside them: weight, scales, partial sums. Reading s and dy a second time for dweight makes it 6 N D b.
#
# **Exercise 10.2** · difficulty 4 of 5 · 40 minutes · 15 points


# %% tags=["exercise:10.2"]
# exercise 10.2
@triton.jit
def add_norm_backward_kernel(
    dy, dsum, s, weight, scales, dx, partials, N, D, eps, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    """One program for SPAN rows: their dx, and their part of dweight."""
    ### BEGIN SOLUTION
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    gain = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    part = tl.zeros([BLOCK], tl.float32)
    for row in range(p * SPAN, tl.minimum(p * SPAN + SPAN, N)):
        stream = tl.load(s + row * D + d, mask=inside, other=0.0).to(tl.float32)
        arrived = tl.load(dy + row * D + d, mask=inside, other=0.0).to(tl.float32)
        past = tl.load(dsum + row * D + d, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scales + row) if scales is not None else tl.rsqrt(tl.sum(stream * stream) / D + eps)
        unit = stream * r
        mean = tl.sum(arrived * gain * unit) / D
        back = r * (arrived * gain - unit * mean) + past
        tl.store(dx + row * D + d, back.to(dx.dtype.element_ty), mask=inside)
        part += arrived * unit
    tl.store(partials + p * D + d, part, mask=inside)
    ### END SOLUTION


def rmsnorm_backward(
    dy_ND: Tensor, dsum_ND: Tensor, s_ND: Tensor, weight_D: Tensor, scale_N: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the sum and of the weight."""
    ### BEGIN SOLUTION
    N, D = s_ND.shape
    SPAN = max(16, triton.cdiv(N, 64))  # at most 64 programs, on any chip: the same sums every time
    dx_ND, partials_PD = torch.empty_like(s_ND), torch.empty(triton.cdiv(N, SPAN), D, dtype=torch.float32)
    add_norm_backward_kernel[(len(partials_PD),)](
        dy_ND, dsum_ND, s_ND, weight_D, scale_N, dx_ND, partials_PD, N, D, eps,
        SPAN=SPAN, BLOCK=triton.next_power_of_2(D),
    )  # fmt: skip
    return dx_ND, partials_PD.sum(0).to(weight_D.dtype)
    ### END SOLUTION


# %% tags=["check:10.2", "nbval-check-output"]
check("10.2", rmsnorm_backward)

# %% [markdown]
# ## 10.3 · SwiGLU with a limit
#
# Large activations are hard on narrow number formats, so gpt-oss clamps what enters its SwiGLU, and shifts up by one. Its gate and up projections alternate in one row, `gate 0, up 0, gate 1, up 1, ...`, as lab 07 met them in its weights. Write
#
# $$\textit{out}_i = \mathrm{silu}\bigl(\min(\textit{gate}_i, \textit{limit})\bigr) \cdot \bigl(\mathrm{clamp}(\textit{up}_i, -\textit{limit}, \textit{limit}) + \textit{offset}\bigr) \qquad \mathrm{silu}(z) = z \cdot \mathrm{sigmoid}(z)$$
#
# - The gate has a limit above and none below: silu is nearly 0 there anyway. Up has both. The offset comes after the clamp. Limit (0 or more) and offset are arguments: gpt-oss has 7 and 1.
# - gpt-oss's own code has gate · sigmoid(1.702 · gate), an approximation of GELU. Here it is silu.
# - Inputs may lie far out, at a thousand and more on either side. They hold no NaN and nothing infinite. Forward only.
#
# The example is case 1, in float32, limit 7 and offset 1: `[[1, 2, 9, -9], [-9, 0.5, 0, 3]]`. Row 0: silu(1) · 3 = 2.193176, and silu(7) · (-7 + 1) = -41.961736. Row 1: silu(-9) · 1.5 = -0.00166583, and silu(0) · 4 = 0.
#
# | | shape | |
# |---|---|---|
# | `gate_up_NF` | `[N, 2I]` | float32 or bfloat16 |
# | `limit`, `offset` | float | |
# | returns | `[N, I]` | of gate_up's dtype |
#
# The least bytes: 3 N I b, two numbers in for each one out. Loads that skip every other number still move whole sectors of 32 bytes; since both of a pair are wanted here, nothing is wasted as long as both are asked for close together.
#
# **Exercise 10.3** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:10.3"]
# exercise 10.3
@triton.jit
def swiglu_kernel(gate_up, out, count, limit, offset, BLOCK: tl.constexpr):
    """One program for BLOCK results."""
    ### BEGIN SOLUTION
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    gate = tl.load(gate_up + 2 * i, mask=inside).to(tl.float32)
    up = tl.load(gate_up + 2 * i + 1, mask=inside).to(tl.float32)
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit) + offset
    tl.store(out + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
    ### END SOLUTION


def swiglu_clamped(gate_up_NF: Tensor, limit: float, offset: float) -> Tensor:
    """SwiGLU of alternating gate and up, both clamped, up shifted."""
    ### BEGIN SOLUTION
    N, F = gate_up_NF.shape
    out_NI = torch.empty(N, F // 2, dtype=gate_up_NF.dtype)
    programs = triton.cdiv(out_NI.numel(), 1024)
    swiglu_kernel[(programs,)](gate_up_NF, out_NI, out_NI.numel(), limit, offset, BLOCK=1024)
    return out_NI
    ### END SOLUTION


# %% tags=["check:10.3", "nbval-check-output"]
check("10.3", swiglu_clamped)

# %% [markdown]
# ## 10.4 · Turning a part of each head
#
# In DeepSeek's attention the last features of each query head are turned by their position, and the others are not. Write that, for tokens that may stand anywhere: a batch that is served holds one token of each of many sequences, at positions of their own.
#
# - Each head has D features. The **first D - 2P stay** as they are. The **last 2P** are P pairs of **neighbours**: pair p is the features D - 2P + 2p and D - 2P + 2p + 1.
# - A pair (a, b) becomes (a cos - b sin, b cos + a sin), each feature at its old place. Cosine and sine of pair p are in column p of the tables, in the row that the **position** of the token names.
# - `backward` says that x is the gradient of the result, and the gradient of the input is wanted: the same with -sin in place of sin. The tables may be scaled, as YaRN scales them, so that cos² + sin² is not 1; do not divide by it.
# - The tables stay float32. x is left alone, and the result is a new tensor.
#
# The example is case 1: one sequence, two tokens, one head, D = 3 and P = 1, x = `[[9, 1, 2]]` and `[[8, 3, 5]]` at the positions 1 and 2. The tables have three rows: cos `[[1], [0], [-1]]`, sin `[[0], [1], [0]]`. Token 0 is turned by a quarter: `[[9, -2, 1]]`. Token 1 by a half: `[[8, -3, -5]]`.
#
# | | shape | |
# |---|---|---|
# | `x_BSHD` | `[B, S, H, D]` | float32 or bfloat16; D may be odd |
# | `positions_BS` | `[B, S]` int64 | each from 0 to T - 1 |
# | `cos_TP`, `sin_TP` | `[T, P]` float32 | 1 ≤ P, 2P ≤ D |
# | `backward` | bool | |
# | returns | `[B, S, H, D]` | of x's dtype |
#
# The least bytes: 2 B S H D b for x and the result, and for each token 8 for its position and 8 P for cosine and sine. A token's heads share those: a program that serves one head alone loads them H times.
#
# **Exercise 10.4** · difficulty 3 of 5 · 30 minutes · 10 points


# %% tags=["exercise:10.4"]
# exercise 10.4
@triton.jit
def rope_kernel(x, positions, cos, sin, out, H, D, P, backward, KEPT: tl.constexpr, PAIRS: tl.constexpr):
    """One program for all heads of a token."""
    ### BEGIN SOLUTION
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(positions + token)
    k, p = tl.arange(0, KEPT), tl.arange(0, PAIRS)
    cosine = tl.load(cos + row * P + p, mask=p < P)
    sine = tl.load(sin + row * P + p, mask=p < P)
    sine = tl.where(backward, -sine, sine)
    stays = D - 2 * P
    for h in range(H):
        head = (token * H + h) * D
        tl.store(out + head + k, tl.load(x + head + k, mask=k < stays), mask=k < stays)
        first = head + stays + 2 * p
        a = tl.load(x + first, mask=p < P).to(tl.float32)
        b = tl.load(x + first + 1, mask=p < P).to(tl.float32)
        tl.store(out + first, (a * cosine - b * sine).to(out.dtype.element_ty), mask=p < P)
        tl.store(out + first + 1, (b * cosine + a * sine).to(out.dtype.element_ty), mask=p < P)
    ### END SOLUTION


def rope_partial(x_BSHD: Tensor, positions_BS: Tensor, cos_TP: Tensor, sin_TP: Tensor, backward: bool) -> Tensor:
    """x with the last features of each head turned by their token's position, or its gradient turned back."""
    ### BEGIN SOLUTION
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    blocks = {"KEPT": triton.next_power_of_2(max(D - 2 * P, 1)), "PAIRS": triton.next_power_of_2(P)}
    rope_kernel[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, H, D, P, backward, **blocks)
    return out_BSHD
    ### END SOLUTION


# %% tags=["check:10.4", "nbval-check-output"]
check("10.4", rope_partial)

# %% [markdown]
# ## 10.5 · The loss and its gradient at once
#
# V3 has 129,280 tokens to choose from. For 8,192 positions the logits alone are 2.1 GB in bfloat16, and eager PyTorch makes float32 copies of them, for the logarithms and for the gradient. But the gradient of cross entropy needs nothing that the loss does not have at hand. Write both **in one launch**.
#
# For a row with the target $t$, with $p = \mathrm{softmax}(\textit{logits})$ in float32, and smoothing $\varepsilon$, the wanted shares are
#
# $$w_v = \frac{\varepsilon}{V} + (1 - \varepsilon)\,[v = t] \qquad \textit{loss} = -\sum_v w_v \log p_v \qquad \textit{dlogits}_v = (p_v - w_v) \cdot \frac{\textit{upstream}}{\text{rows that count}}$$
#
# - A target of **-1** marks a row that does not count: its loss is 0 and its gradient 0, whatever its logits hold, NaN too. Where no row counts at all, everything is 0.
# - The losses are one a row, in float32: not averaged, and not multiplied by anything. The gradient is that of the **mean over the rows that count**, times `upstream`, the gradient that arrives from behind the loss. It has the dtype of the logits.
# - Subtract the row's largest logit before any `exp`: logits may lie around 120 or -120. V is any number from 1 on and rarely a power of two.
# - Logits may be **minus infinity** where smoothing is 0, as when a part of the vocabulary is closed; never that of the target. Such a class has share 0 and gradient 0, and the loss is finite (beware of 0 times minus infinity). Plus infinity does not occur in a row that counts. A whole block of them may come first: a largest value so far of minus infinity, from which
#   minus infinity is subtracted, is NaN.
# - A vocabulary does not fit into a program's registers, so go over the row in blocks: once for the largest and the sum (where a block brings a larger one, the sum so far is multiplied by exp(old - new)), and once more for the gradient. A kernel with the whole row in one block passes the
#   check as well, V being small here; it is no answer to 129,280.
# - How many rows count you may find out with PyTorch before the launch. The check sees values and not launches; the last cells of this lab show how many there were. PyTorch's softmax, logsumexp and cross entropy are out of bounds.
#
# The example is case 1: bfloat16 logits `[[1, 1, 1, 1], [7, 7, 7, 7], [3, 0, 2, 1]]`, targets `[2, 0, -1]`, no smoothing, upstream 2. Two rows count, so the factor is 1. The losses are `[1.386294, 1.386294, 0]` (ln 4), the gradients
# `[0.25, 0.25, -0.75, 0.25]`, `[-0.75, 0.25, 0.25, 0.25]` and `[0, 0, 0, 0]`.
#
# | | shape | |
# |---|---|---|
# | `logits_NV` | `[N, V]` | float32 or bfloat16 |
# | `targets_N` | `[N]` int64 | from 0 to V - 1, or -1 |
# | `smoothing` | float | from 0 to 1 |
# | `upstream` | float | |
# | returns `losses` | `[N]` float32 | |
# | returns `dlogits` | `[N, V]` | of the logits' dtype |
#
# The least bytes: 2 N V b, the logits once in and the gradient once out. With two visits to each row it is 3 N V b.
#
# **Exercise 10.5** · difficulty 4 of 5 · 40 minutes · 15 points


# %% tags=["exercise:10.5"]
# exercise 10.5
@triton.jit
def loss_kernel(logits, targets, losses, dlogits, V, smoothing, factor, BLOCK: tl.constexpr):
    """One program a row."""
    ### BEGIN SOLUTION
    n = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + n)
    logits += n * V
    dlogits += n * V
    classes = tl.where(target == -1, 0, V)  # of a row that does not count nothing is read
    largest, total, whole = float("-inf"), 0.0, 0.0
    for begin in range(0, classes, BLOCK):
        v = begin + tl.arange(0, BLOCK)
        block = tl.load(logits + v, mask=v < V, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(block))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(block - base))
        whole += tl.sum(tl.where(v < V, block, 0.0))
        largest = larger
    own = tl.load(logits + target, mask=target >= 0, other=0.0).to(tl.float32)
    spread = tl.where(smoothing > 0.0, smoothing * (largest - whole / V), 0.0)
    loss = tl.log(total) + (1.0 - smoothing) * (largest - own) + spread
    tl.store(losses + n, tl.where(target == -1, 0.0, loss))
    for begin in range(0, V, BLOCK):
        v = begin + tl.arange(0, BLOCK)
        block = tl.load(logits + v, mask=v < classes, other=0.0).to(tl.float32)
        wanted = smoothing / V + tl.where(v == target, 1.0 - smoothing, 0.0)
        gradient = (tl.exp(block - largest) / total - wanted) * factor
        gradient = tl.where(target == -1, 0.0, gradient)
        tl.store(dlogits + v, gradient.to(dlogits.dtype.element_ty), mask=v < V)
    ### END SOLUTION


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, smoothing: float, upstream: float) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the gradient of the logits, in one launch."""
    ### BEGIN SOLUTION
    N, V = logits_NV.shape
    losses_N, dlogits_NV = torch.empty(N, dtype=torch.float32), torch.empty_like(logits_NV)
    factor = upstream / max(1, int((targets_N >= 0).sum()))
    block = min(triton.next_power_of_2(V), 4096)
    loss_kernel[(N,)](logits_NV, targets_N, losses_N, dlogits_NV, V, smoothing, factor, BLOCK=block)
    return losses_N, dlogits_NV
    ### END SOLUTION


# %% tags=["check:10.5", "nbval-check-output"]
check("10.5", cross_entropy)

# %% [markdown]
# ## What fusing saved
#
# No exercise from here on: run the cells. `mine("10.1")` is your own function once it has passed, and the course's until then; the course's is plain PyTorch in float64, so that there is no kernel to count.
#
# First the bytes. Here is each part once more as eager PyTorch, computed in float32 like yours. A *dispatch mode* sees every operation that PyTorch runs, also those of autograd, and adds up what it reads and writes.

# %%
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

names = {"10.1": "add + norm", "10.2": "its gradients", "10.3": "SwiGLU", "10.4": "rotation", "10.5": "loss + gradient"}
own = {name: mine(name) for name in names}


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write. A view moves nothing; a pick moves what it picks."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        picks = func.overloadpacket.__name__.startswith(("gather", "nll_loss_forward"))
        self.bytes += 0 if func.is_view else (len(sizes) * min(sizes) if picks else sum(sizes))
        return result


# %%
def eager_add_norm(x, residual, weight, eps):
    total = x + residual
    wide = total.float()
    return total, (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def eager_swiglu(gate_up, limit, offset):
    gate, up = gate_up.float().unflatten(-1, (-1, 2)).unbind(-1)
    return (F.silu(gate.clamp(max=limit)) * (up.clamp(-limit, limit) + offset)).to(gate_up.dtype)


def eager_rope(x, positions, cos, sin):
    stays, turns = x.split([x.shape[-1] - 2 * cos.shape[1], 2 * cos.shape[1]], dim=-1)
    a, b = turns.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[positions][:, :, None], sin[positions][:, :, None]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([stays, turned.to(x.dtype)], dim=-1)


def eager_loss(logits, targets, smoothing=0.0):
    return F.cross_entropy(logits.float(), targets, ignore_index=-1, label_smoothing=smoothing)


# %% [markdown]
# Your kernels run in the checked interpreter, which writes down every byte that a lane loads or stores. **Predict:** which of the five saves most?

# %%
from course.kernels.checked import checked

torch.manual_seed(0)
N, D, I, V, H, C, r = 8, 1024, 768, 5000, 8, 192, 64  # noqa: E741
draw = lambda *shape: torch.randn(shape).bfloat16()  # noqa: E731
x, residual, weight, dy, dsum = draw(N, D), draw(N, D), draw(D), draw(N, D), draw(N, D)
heads, places = draw(1, N, H, C), torch.randint(100, (1, N))
angles = torch.arange(100)[:, None] * 0.5 ** torch.arange(r // 2)
cos, sin = angles.cos(), angles.sin()
logits, targets = draw(N, V), torch.randint(V, (N,))
inputs = {
    "10.1": (x, residual, weight, 1e-6),
    "10.2": (dy, dsum, x, weight, None, 1e-6),
    "10.3": (draw(N, 2 * I), 7.0, 1.0),
    "10.4": (heads, places, cos, sin, False),
    "10.5": (logits, targets, 0.0, 1.0),
}
launches, results = {}, {}
for name, arguments in inputs.items():
    with checked() as log:
        results[name] = own[name](*arguments)
    launches[name] = log.launches
    print(
        f"{name} {names[name]:16s}", ", ".join(f"{each.kernel}{each.grid}" for each in log.launches) or "no kernel yet"
    )


# %% [markdown]
# And the same in eager PyTorch; of the gradients only the backward pass is counted, of the loss both passes. What is not a picked number counts whole, tables of cosines too.


# %%
def eager_bytes(name):
    """Bytes of the same work in eager PyTorch."""
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight)]
    if name == "10.2":
        total, normed = eager_add_norm(*leaves, 1e-6)
        with Traffic() as traffic:
            torch.autograd.grad([total, normed], leaves, [dsum, dy])
        return traffic.bytes
    leaf = logits.clone().requires_grad_()
    with Traffic() as traffic:
        if name == "10.1":
            eager_add_norm(*inputs[name])
        if name == "10.3":
            eager_swiglu(*inputs[name])
        if name == "10.4":
            eager_rope(*inputs[name][:4])
        if name == "10.5":
            torch.autograd.grad(eager_loss(leaf, targets), leaf)
    return traffic.bytes


def moved(name):
    """Bytes that your kernels loaded and stored; None where there is no kernel."""
    return sum(each.load_bytes + each.store_bytes for each in launches[name]) if launches[name] else None


def least(name):
    """Bytes of all inputs and all results, each once; of the tables the rows that are used."""
    values = [value for value in tree_leaves((inputs[name], results[name])) if isinstance(value, Tensor)]
    tables = cos.nbytes + sin.nbytes - 2 * N * cos[0].nbytes if name == "10.4" else 0
    return sum(value.nbytes for value in values) - tables


bytes_of = {name: (eager_bytes(name), moved(name), least(name)) for name in names}
print(f"{'':22s}{'eager':>10s}{'yours':>10s}{'least':>10s}   bytes, bfloat16")
for name, (before, after, floor) in bytes_of.items():
    gain = f"   {before / after:.1f} times fewer" if after else "   no kernel yet"
    print(f"{name} {names[name]:17s}{before:10,}{f'{after:,}' if after else '-':>10s}{floor:10,}{gain}")

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axis = plt.subplots(figsize=(9, 3.4))
places_on_axis = np.arange(len(names))
for shift, (label, column) in enumerate([("eager PyTorch", 0), ("your kernel", 1), ("least", 2)]):
    heights = [(bytes_of[name][column] or 0) / bytes_of[name][2] for name in names]
    bars = axis.bar(places_on_axis + 0.27 * (shift - 1), heights, width=0.25, label=label)
    axis.bar_label(bars, [f"{height:.1f}" if height else "" for height in heights], fontsize=8, padding=1)
axis.set(xticks=places_on_axis, xticklabels=[f"{name}\n{its}" for name, its in names.items()])
axis.set(ylabel="bytes moved, the least = 1", title="Before and after fusing, bfloat16")
axis.grid(axis="x", visible=False)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: for each of the five parts three bars, in units of the least bytes: eager PyTorch, several times the least; your kernel, at or near it; the least itself, 1. Where a part has no kernel yet, the middle bar is missing.*
#
# Where your bar stands above 1, look for the second visit: a kernel with a program a row asks for the weight in each row, which on a chip the cache mostly answers; a loss in blocks reads its logits twice. All five are bound by memory (lesson 08), so the quotient of the
# first two bars is also what can be gained in time on a GPU, where both run at the speed of its memory.
#
# ## A block that learns on your kernels
#
# A layer in DeepSeek's style: latent attention with a turned part, a SwiGLU with gpt-oss's clamps, norms, a loss. To learn, each kernel needs a gradient, and autograd is told of it by a `torch.autograd.Function`. The backward pass of the rotation is your kernel with `backward` set; the
# loss has its gradient at hand since the forward pass; SwiGLU's backward is not among your exercises, so eager PyTorch does it.


# %%
class AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        rows = (t.flatten(0, -2).contiguous() for t in (x, residual))
        total, normed = (t.view_as(x) for t in own["10.1"](*rows, weight, eps))
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return total, normed

    @staticmethod
    def backward(ctx, dsum, dy):
        total, weight = ctx.saved_tensors
        rows = (t.flatten(0, -2).contiguous() for t in (dy, dsum, total))
        dx, dweight = own["10.2"](*rows, weight, None, ctx.eps)
        return dx.view_as(total), dx.view_as(total), dweight, None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, limit, offset):
        ctx.save_for_backward(gate_up)
        ctx.settings = limit, offset
        return own["10.3"](gate_up.flatten(0, -2), limit, offset).unflatten(0, gate_up.shape[:-1])

    @staticmethod
    def backward(ctx, dout):
        with torch.enable_grad():
            gate_up = ctx.saved_tensors[0].detach().requires_grad_()
            return *torch.autograd.grad(eager_swiglu(gate_up, *ctx.settings), gate_up, dout), None, None


# %%
class Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *tables):
        ctx.tables = tables
        return own["10.4"](x.contiguous(), *tables, False)

    @staticmethod
    def backward(ctx, dout):
        return own["10.4"](dout.contiguous(), *ctx.tables, True), None, None, None


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, smoothing):
        losses, dlogits = own["10.5"](logits, targets, smoothing, 1.0)
        ctx.save_for_backward(dlogits)
        return losses.sum() / max(1, int((targets != -1).sum()))

    @staticmethod
    def backward(ctx, dloss):
        return ctx.saved_tensors[0] * dloss, None, None


eager = {"norm": eager_add_norm, "swiglu": eager_swiglu, "rope": eager_rope, "loss": eager_loss}
fused = {"norm": AddNorm.apply, "swiglu": SwiGLU.apply, "rope": Rope.apply, "loss": Loss.apply}

# %% [markdown]
# The layer takes what the layer before it returned and the stream, and adds them in the norm that comes next anyway. That is how serving engines thread the residual through a model. At the first norm, and at the latent's, the residual is 0.

# %%
B, S, D, H, O, r, R, I, V = 2, 6, 64, 4, 16, 8, 24, 96, 100  # noqa: E741
shapes = {
    "embedding": (V, D), "norm_1": (D,), "query": (D, H * (O + r)), "kv_down": (D, R + r), "norm_kv": (R,),
    "kv_up": (R, H * 2 * O), "output": (H * O, D), "norm_2": (D,), "gate_up": (D, 2 * I), "down": (I, D),
    "norm_3": (D,), "head": (D, V),
}  # fmt: skip
angles = torch.arange(200)[:, None] * 0.3 ** torch.arange(r // 2)
cos, sin = angles.cos(), angles.sin()


def run(w, tokens_BS, targets_BS, positions_BS, part):
    """Logits and loss; `part` holds the four functions."""
    x = w["embedding"][tokens_BS]
    stream, h = part["norm"](x, torch.zeros_like(x), w["norm_1"], 1e-6)
    q_BSHC = part["rope"]((h @ w["query"]).unflatten(-1, (H, O + r)), positions_BS, cos, sin)
    latent, k_rope = (h @ w["kv_down"]).split([R, r], dim=-1)
    _, latent = part["norm"](latent, torch.zeros_like(latent), w["norm_kv"], 1e-6)
    k_rope = part["rope"](k_rope[:, :, None], positions_BS, cos, sin).expand(B, S, H, r)
    k_nope, v_BSHO = (latent @ w["kv_up"]).unflatten(-1, (H, 2 * O)).split([O, O], dim=-1)
    qkv = (t.transpose(1, 2) for t in (q_BSHC, torch.cat([k_nope, k_rope], dim=-1), v_BSHO))
    mixed = F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).flatten(2)
    stream, h = part["norm"](mixed @ w["output"], stream, w["norm_2"], 1e-6)
    x = part["swiglu"](h @ w["gate_up"], 7.0, 1.0) @ w["down"]
    _, h = part["norm"](x, stream, w["norm_3"], 1e-6)
    logits_NV = (h @ w["head"]).flatten(0, 1)
    return logits_NV, part["loss"](logits_NV, targets_BS.flatten(), 0.1)


# %% [markdown]
# Two sequences, the second one with positions further on, and targets that do not count here and there. Logits, loss and the gradient of every weight, on your kernels and in eager PyTorch:

# %%
torch.manual_seed(1)
start = {name: torch.randn(shape) * shape[0] ** -0.5 + (len(shape) == 1) for name, shape in shapes.items()}
tokens_BS, targets_BS = torch.randint(V, (B, S)), torch.randint(V, (B, S))
targets_BS[:, -1] = targets_BS[0, 2] = -1
positions_BS = torch.arange(S) + torch.tensor([[0], [150]])


def with_gradients(part):
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    logits_NV, loss = run(w, tokens_BS, targets_BS, positions_BS, part)
    loss.backward()
    return {"logits": logits_NV.detach(), "loss": loss.detach()} | {name: value.grad for name, value in w.items()}


with checked() as log:
    yours = with_gradients(fused)
plain = with_gradients(eager)
apart = {name: ((yours[name] - plain[name]).norm() / plain[name].norm()).item() for name in plain}
print(f"{len(log.launches)} launches; relative differences:")
for name, difference in apart.items():
    print(f"  {name if name in ('logits', 'loss') else 'gradient of ' + name:22s} {difference:.0e}")
assert max(apart.values()) < 1e-5

# %% [markdown]
# Equal to the last digits of float32. So it learns as well: fifteen steps of gradient descent on one batch, once each way.


# %%
def descend(part, steps=15, rate=0.3):
    w, history = {name: value.clone().requires_grad_() for name, value in start.items()}, []
    for _ in range(steps):
        _, loss = run(w, tokens_BS, targets_BS, positions_BS, part)
        gradients = torch.autograd.grad(loss, list(w.values()))
        w = {name: (v - rate * g).detach().requires_grad_() for (name, v), g in zip(w.items(), gradients, strict=True)}
        history.append(loss.item())
    return history


with checked():
    on_kernels = descend(fused)
in_eager = descend(eager)
figure, axis = plt.subplots(figsize=(6, 2.8))
axis.plot(in_eager, linewidth=4, alpha=0.4, label="eager PyTorch")
axis.plot(on_kernels, linewidth=1.2, label="your kernels")
axis.set(xlabel="step", ylabel="loss (nats)", title="One batch, learnt by heart")
axis.legend()
plt.show()
print(f"last losses: {on_kernels[-1]:.5f} and {in_eager[-1]:.5f}")

# %% [markdown]
# *Figure: two falling curves of the loss over fifteen steps, one on top of the other.*
#
# ## For an H100
#
# The same kernels as machine code, compiled here without a GPU, for the launches of the byte count: how many registers a thread takes, whether any had to be spilled to memory, and how many of an SM's 64 warps fit at once.

# %%
import linecache

from course.hardware.gpus import GPUS
from course.hardware.occupancy import occupancy
from course.kernels import compile_texts

print(f"{'':7s}{'kernel':28s}{'registers':>10s}{'spilled':>9s}{'shared':>8s}{'warps':>7s}{'of an SM':>10s}")
for name, made in launches.items():
    text = "".join(linecache.getlines(own[name].__code__.co_filename))  # what the function was defined by
    single = list({each.kernel: each for each in made}.values())
    for c in compile_texts(text, single):
        if c["error"]:
            print(f"{name:7s}{c['kernel']:28s} refused: {c['error']}")
            continue
        fits = occupancy(GPUS["h800"], c["warps"], c["registers"], c["shared_bytes"])
        row = f"{c['registers']:10d}{c['spills']:9d}{c['shared_bytes']:8d}{c['warps']:7d}{fits.share:10.0%}"
        print(f"{name:7s}{c['kernel']:28s}{row}")
    if not made:
        print(f"{name:7s}no kernel yet")

# %% [markdown]
# *Spilled* and *shared* are bytes, a thread and a block. A kernel that only moves memory wants no spills and enough warps at once to have many loads under way; more it does not need.
#
# You have fused what lies between two matrix products. What is left is the products themselves, and in a mixture of experts they are ragged: each expert has as many rows as the router sent it.
#
# **Next:** lesson 11, the kernels of a mixture of experts.
