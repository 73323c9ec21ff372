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
# # Lesson 14 · Attention kernels
#
# Attention compares every token with every token before it. One layer of DeepSeek-V3 has 128 heads, and each has its own table of scores, tokens by tokens. How large does that get, from 4 thousand tokens to the 128 thousand that the model can read? And where should it all go?
#
# Nowhere. In this lesson you watch scores go by in blocks and never keep them: a softmax that does not wait for its row, attention tile by tile, then decoding, where one query must feed a whole GPU. You meet the kernel that DeepSeek serves with, see in its machine code what 16 heads cost, and at the end you measure how well a small network can guess which tokens are worth
# looking at.
#
# About 45 minutes. Names carry their shape: **B** sequences, **H** heads, **S** queries of each, **N** keys, **C** features of a key and **V** of a value, **J** splits; in latent attention **R** of the latent, **L** = R + r of a cached row.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import os

# this lesson counts, checks and compiles; it runs no kernel on a GPU, not even where there is one
os.environ["TRITON_INTERPRET"] = "1"

import math
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(14)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0], "· triton", triton.__version__)

# %% [markdown]
# ## The table that nobody needs
#
# **Predict:** the scores of one layer, in BF16, for one sequence of 4,096 tokens. Megabytes, or gigabytes? And at 131,072?

# %%
from course.hardware import GPUS, Work, bound
from course.model import PRESETS

h800, v3 = GPUS["h800"], PRESETS["deepseek-v3"]
H, C, V = v3.heads, v3.head_width, v3.v_head_dim
LENGTHS = [4096 * 2**i for i in range(6)]
scores = [2 * H * N * N / 1e9 for N in LENGTHS]
rows = [2 * H * N * (2 * C + 2 * V) / 1e9 for N in LENGTHS]
for N, table, inputs in zip(LENGTHS, scores, rows, strict=True):
    print(f"{N:7,} tokens: scores {table:7,.1f} GB; queries, keys, values and results {inputs:5.1f} GB  (computed)")

# %%
figure, axis = plt.subplots(figsize=(7, 3.3))
axis.loglog(LENGTHS, scores, "o-", color=ORANGE, label="scores")
axis.loglog(LENGTHS, rows, "o-", color=BLUE, label="queries, keys, values, results")
axis.axhline(h800.memory.value / 1e9, color=BLACK, linestyle="--", linewidth=1, label="memory of an H800")
axis.set_xscale("log", base=2)
axis.set_xticks(LENGTHS, [f"{N // 1024}k" for N in LENGTHS])
axis.set(xlabel="tokens", ylabel="GB, BF16", title="One layer of DeepSeek-V3, one sequence")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: gigabytes of one layer against the number of tokens, both axes logarithmic. The scores rise twice as steeply as queries, keys, values and results, and cross the memory of an H800 between 16k and 32k tokens.*
#
# Four gigabytes at the length V3 was trained with, and four terabytes at the length it can read: in one of 61 layers. No table is needed, though. A score serves two purposes, a sum and a mix of values, and both are sums. All that stands in the way is the softmax, which seems to ask for the whole row first.
#
# ## What a large score does
#
# Softmax in its plain form, $e^{s_n} / \sum_m e^{s_m}$. Scores may be shifted by any number and nothing changes: in mathematics.
#
# **Predict:** scores of spread 2 and a little around 0, then around 40, 80, 100. What happens to the plain form in float32? And around -110?


# %%
def plain(scores_N, values_NV):
    weights_N = scores_N.exp()
    return (weights_N @ values_NV) / weights_N.sum()


def shifted(scores_N, values_NV):
    weights_N = (scores_N - scores_N.max()).exp()
    return (weights_N @ values_NV) / weights_N.sum()


def error(found_V, scores_N, values_NV):
    exact_V = scores_N.double().softmax(0) @ values_NV.double()
    return ((found_V.double() - exact_V).norm() / exact_V.norm()).item()


later_N = torch.linspace(-2, 2, 4096)  # later keys score a little higher, as recent tokens often do
scores_N, values_NV = 2 * torch.randn(4096, generator=draw) + later_N, 1 + torch.randn(4096, 32, generator=draw)
for around in (0, 40, 80, 100, -60, -90, -110):
    its = scores_N + around
    errors = [error(form(its, values_NV), its, values_NV) for form in (plain, shifted)]
    print(f"around {around:4d}: relative error {errors[0]:8.1e} plain, {errors[1]:8.1e} with the largest taken off")

# %% [markdown]
# In between, the plain form is as good as the other. Outside it is not worse but gone: infinite sums, or nothing left. Near the lower end it first loses digits, where float32 has only coarse numbers near zero. Nothing in attention keeps its scores below 88. So the largest comes off, and to know it one needs the row, all of it.
#
# ## A softmax that does not wait
#
# Unless one goes on with the largest *so far*. Lesson 10 did so for a loss, with one number to carry, the sum. Here a vector comes along: the mix of values, made with weights relative to the largest so far. When a block brings a larger one, sum **and** mix were made with the old one, and both are off by the same factor:
#
# $$m' = \max(m, \max_{\text{block}} s), \qquad \ell' = \ell\,e^{m - m'} + \sum_{\text{block}} e^{s_n - m'}, \qquad a' = a\,e^{m - m'} + \sum_{\text{block}} e^{s_n - m'}\, v_n .$$
#
# At the end the result is $a / \ell$: one division a row, and none on the way.


# %%
def online(scores_N, values_NV, block=256):
    largest, total, mix_V = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(values_NV.shape[1])
    story = []
    for score_n, value_nV in zip(scores_N.split(block), values_NV.split(block), strict=True):
        larger = torch.maximum(largest, score_n.max())
        shrink, weight_n = (largest - larger).exp(), (score_n - larger).exp()
        total = total * shrink + weight_n.sum()
        mix_V = mix_V * shrink + weight_n @ value_nV
        largest = larger
        story.append((score_n.max().item(), largest.item(), shrink.item(), mix_V / total))
    return mix_V / total, story


found_V, story = online(scores_N, values_NV)
torch.testing.assert_close(found_V, scores_N.softmax(0) @ values_NV)
print(f"16 blocks: off from float64 by {error(found_V, scores_N, values_NV):.0e}")
print("the first factor is", story[0][2], "- there was nothing before it")

# %% [markdown]
# **Predict:** the mix of the first block alone is a mean of 256 values of 4,096. When does the running result come near the final one: gradually, or at the last block?

# %%
tops, running, shrinks, mixes = zip(*story, strict=True)
away = [((mix_V - found_V).norm() / found_V.norm()).item() for mix_V in mixes[:-1]]
figure, axes = plt.subplots(1, 3, figsize=(10, 3))
axes[0].plot(tops, "o", color=SKY, label="of the block")
axes[0].step(range(16), running, where="post", color=BLUE, label="so far")
axes[0].set(xlabel="block of 256 keys", ylabel="score", title="Largest score")
axes[0].legend(fontsize=9)
axes[1].bar(range(16), shrinks, color=ORANGE)
axes[1].set(xlabel="block of 256 keys", ylabel="factor", title="What came before, times")
axes[2].semilogy(range(15), away, "o-", color=GREEN)
axes[2].set(xlabel="block of 256 keys", ylabel="relative distance", title="Result so far, from the last")
plt.show()

# %% [markdown]
# *Figure: three panels over 16 blocks. Left, the largest score of each block as dots, and the largest so far as a staircase with few steps. Middle, the factor on what came before: 0 in the first block, below 1 where the staircase rises, else 1. Right, the distance of the running result from the final one, which falls slowly over the blocks.*
#
# Gradually. At any block the carried state is a complete softmax over what has been seen. That is worth remembering: it means that one can stop anywhere, and that two such states can be *merged*. We come back to it.
#
# One accident waits at the beginning. If a whole block is closed by a mask, its largest is minus infinity, and so is the largest so far:

# %%
nothing = torch.tensor(-torch.inf)
print("exp(-inf - -inf) =", (nothing - nothing).exp().item(), "- and it stays, whatever comes later")
base = torch.where(nothing == -torch.inf, 0.0, nothing)
print("with 0 in its place:", (nothing - base).exp().item())

# %% [markdown]
# ## Tile by tile
#
# Now many queries: a program takes a tile of them and goes over the keys in blocks. Scores are a tile of queries by keys, live in registers for a moment, and are gone (Dao et al. 2022, *FlashAttention*, algorithm 1; the loops in this order since Dao 2023). Here for one head after the other, each as long as its keys; widths that are powers of two.


# %%
from course.kernels.checked import checked


@triton.jit
def flash_kernel(q, k, v, out, lse, N, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, C: tl.constexpr):
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    m, c = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, C)[None, :]
    query = tl.load(q + (head * N + m)[:, None] * C + c, mask=(m < N)[:, None], other=0.0)
    largest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, C], tl.float32)
    for start in range(0, tl.minimum(tile * ROWS + ROWS, N), KEYS):  # and no key after the tile's last query
        n = start + tl.arange(0, KEYS)
        at = (head * N + n)[:, None] * C + c
        keys = tl.load(k + at, mask=(n < N)[:, None], other=0.0)
        values = tl.load(v + at, mask=(n < N)[:, None], other=0.0)
        scores = tl.dot(query, keys.T, input_precision="ieee") * scale
        scores = tl.where(n[None, :] <= m[:, None], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - larger[:, None]), tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision="ieee")
        largest = larger
    place = head * N + m
    tl.store(out + place[:, None] * C + c, (mix / total[:, None]).to(out.dtype.element_ty), mask=(m < N)[:, None])
    tl.store(lse + place, largest + tl.log(total), mask=m < N)


# %%
def flash(q_HNC, k_HNC, v_HNC, rows=32, keys=32):
    (H, N, C), out_HNC = q_HNC.shape, torch.empty_like(q_HNC)
    lse_HN, grid = torch.empty(H, N), (triton.cdiv(N, rows), H)
    flash_kernel[grid](q_HNC, k_HNC, v_HNC, out_HNC, lse_HN, N, C**-0.5, ROWS=rows, KEYS=keys, C=C)
    return out_HNC, lse_HN


q, k, v = (torch.randn(1, 40, 16, generator=draw) for _ in range(3))
with checked() as log:
    out, lse = flash(q, k, v)
print(f"{log.launches[0].kernel}{log.launches[0].grid}: results {list(out.shape)}, logs {list(lse.shape)}")


# %% [markdown]
# No block is closed for any of its queries here, since every query sees key 0, which comes first; so the accident cannot happen. It returns two things, the mix and the log of the sum, $\log \sum_n e^{s_n} = m + \log \ell$. A backward pass needs that, to make the weights again (Dao 2023), and so will we.

# %%
from course.kernels.flash_attention import flash_attention, flash_attention_torch

q, k, v = (torch.randn(2, 200, 64, generator=draw) for _ in range(3))
with checked() as log:
    out, lse = flash(q, k, v)
with checked():
    theirs = flash_attention(q[None], k[None], v[None], 64**-0.5)
exact = flash_attention_torch(q[None].double(), k[None].double(), v[None].double(), 64**-0.5)
for name, mine, its, right in zip(("mix", "log"), (out, lse), theirs, exact, strict=True):
    apart = ((mine - right[0]).norm() / right.norm()).item()
    torch.testing.assert_close(mine, its[0], rtol=1e-4, atol=1e-5)
    print(f"{name}: off from float64 by {apart:.0e}, equal to course.kernels.flash_attention to rounding")
launch = log.launches[0]
print(f"{launch.grid[0]} tiles x {launch.grid[1]} heads = {len({a.program for a in launch.accesses})} programs")

# %% [markdown]
# The interpreter wrote down every access. So let us see *which* keys each tile of queries asked for.
#
# **Predict:** of 8 by 8 tiles, how many are loaded?


# %%
def tiles_loaded(launch, rows, C, head=0):
    """Which blocks of keys each tile of queries loaded, as the log has it."""
    tiles, found = launch.grid[0], np.zeros((launch.grid[0],) * 2)
    for access in launch.accesses:
        if access.argument == "k" and access.program[1] == head:
            for block in np.unique(access.elements // C // rows):
                found[access.program[0], int(block)] += 1
    return found[:, :tiles]


from matplotlib.colors import ListedColormap

q, k, v = (torch.randn(1, 256, 64, generator=draw) for _ in range(3))
with checked() as log:
    flash(q, k, v, rows=32, keys=32)
found = tiles_loaded(log.launches[0], 32, 64)
figure, axis = plt.subplots(figsize=(4.4, 3.6))
axis.imshow(found + np.eye(8), cmap=ListedColormap(["white", SKY, BLUE]))
axis.set(xlabel="block of 32 keys", ylabel="tile of 32 queries", title="Tiles that were loaded")
axis.grid(visible=False)
plt.show()
print(f"{int(found.sum())} of {found.size} tiles; 8 of them need a mask")

# %% [markdown]
# *Figure: a square of 8 by 8 tiles, queries by keys. The lower triangle with its diagonal is filled: those keys were loaded. The upper half is empty. The tiles on the diagonal, which need a mask, are darker.*
#
# 36 of 64, on the way to a half: n (n + 1) / 2 of n². Keys after a tile's last query are not masked away; they are never touched. Only tiles on the diagonal need a mask at all, and the course's kernel has two loops, one without.
#
# ## Bytes
#
# What does eager PyTorch move? As in lesson 10 we listen to every operator, on tensors that have a shape and no numbers.

# %%
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Bytes that each operator reads and writes; views move nothing."""

    def __init__(self):
        super().__init__()
        self.moved = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "view" not in func.overloadpacket.__name__:
            leaves = tree_leaves((args, kwargs, result))
            self.moved[func.overloadpacket.__name__] += sum(t.nbytes for t in leaves if isinstance(t, torch.Tensor))
        return result


# %%
def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def eager_bytes(N, H, C, V):
    with Traffic() as traffic:
        flash_attention_torch(meta(1, H, N, C), meta(1, H, N, C), meta(1, H, N, V), C**-0.5)
    return sum(traffic.moved.values()), traffic.moved


moved, by_operator = eager_bytes(4096, 128, 192, 128)
for name, size in by_operator.most_common(7):
    print(f"{name:16s} {size / 1e9:6.1f} GB")
print(f"all together     {moved / 1e9:6.1f} GB, {moved / (128 * 4096**2):.0f} bytes a score")

# %% [markdown]
# And the kernel, from its log. A tile of queries reads all keys and values before it, once more for each tile.
#
# **Predict:** twice the queries in a tile. How do the bytes change?

# %%
by_rows = {}
for N in (128, 256, 512):
    q, k, v = (torch.randn(1, N, 64, generator=draw).bfloat16() for _ in range(3))
    for rows in (16, 32, 64, 128):
        with checked() as log:
            flash(q, k, v, rows=rows, keys=16)
        by_rows[N, rows] = log.launches[0].load_bytes + log.launches[0].store_bytes
once = {N: 4 * 2 * N * 64 + 4 * N for N in (128, 256, 512)}  # queries, keys, values, results and logs, once
print("kB asked for, one head of 64 features, BF16; at the least, everything once")
print("tokens    16    32    64   128     least    eager   (16 to 128: queries a tile)")
for N in once:
    sizes = "".join(f"{by_rows[N, rows] / 1e3:6.0f}" for rows in (16, 32, 64, 128))
    print(f"{N:6d}{sizes}{once[N] / 1e3:10.0f}{eager_bytes(N, 1, 64, 64)[0] / 1e3:9.0f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
sizes = np.array([16, 32, 64, 128])
for N, colour in zip(once, (SKY, BLUE, GREEN), strict=True):
    keyed = np.array([by_rows[N, int(rows)] for rows in sizes]) - 2 * 2 * N * 64 - 4 * N  # of keys and values
    axes[0].plot(sizes, keyed / 1e3, "o-", color=colour, label=f"{N} tokens")
    axes[1].plot(sizes, keyed * sizes / N**2 / (2 * 2 * 64), "o", color=colour, label=f"{N} tokens")
    axes[1].plot(sizes, 0.5 * (1 + sizes / N), ":", color=colour)
axes[0].set(xscale="log", yscale="log", ylabel="kB", title="Keys and values that were asked for")
axes[1].set(xscale="log", ylabel="times tile / tokens²", title="The same, scaled", ylim=(0, 1.15))
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, sizes)
    axis.set_xlabel("queries in a tile")
axes[0].legend()
plt.show()

# %% [markdown]
# *Figure: left, kilobytes of keys and values loaded against the queries in a tile, for three lengths, on logarithmic axes: falling lines. Right, the same multiplied by tile over tokens squared: all points lie on dotted curves, which are a half and, for large tiles in short texts, up to one.*
#
# Half the bytes for twice the tile. The paper puts it as follows (quoted: Dao et al. 2022, section 3.2): eager attention needs on the order of $Nd + N^2$ accesses to memory, theirs on the order of $N^2 d^2 / M$, with fast memory of size M. Tiles of t rows of d numbers fill M, so t is on the order of M / d, and $N^2 d / t$ is what we counted: the dotted curve is $\tfrac12 (1 + t / N)$, from the causal half and its diagonal,
# and the counts lie on it. It is still *quadratic* in N! Only by a much smaller factor. The claim holds for what programs ask for; what an L2 cache answers comes on top, in their favour.
#
# What is it worth? V3's layer at 4,096 tokens, with the course's tiles of 128 queries, both at their bounds on an H800:


# %%
def flash_bytes(N, H, C, V, rows):
    """Asked for by all tiles: keys and values up to the tile's last query; queries, results and logs once."""
    seen = sum(min(first + rows, N) for first in range(0, N, rows))
    return H * (2 * seen * (C + V) + 2 * N * (C + V) + 4 * N)


assert flash_bytes(512, 1, 64, 64, 64) == by_rows[512, 64]
N, flops = 4096, 2 * (C + V) * H * 4096 * 4097 / 2
for name, size, work in (
    ("eager", moved, 2 * flops),  # no half is spared
    ("flash, as asked for", flash_bytes(N, H, C, V, 128), flops),
    ("flash, each byte once", H * (2 * 2 * N * (C + V) + 4 * N), flops),
):
    least = bound(Work(work, size), h800)
    print(f"{name:21s} {size / 1e9:6.2f} GB, {least.work.intensity:6.1f} FLOPs a byte", end=": ")
    print(f"at least {1e3 * least.time:5.2f} ms, bound by {least.by}  (computed)")

# %% [markdown]
# Between the last two lines lies what really happens. Neighbouring tiles of a head read the same keys at nearly the same time, so most of what is asked for comes from the L2 cache, and what is left is bound by the tensor cores. From eager to flash the bound falls by a factor of 17 at least and of 40 at most, for the same numbers. And once a kernel is bound by arithmetic, the half that is skipped counts in full. (Both are bounds: no kernel has been timed here.)
#
# ## One query and 132 multiprocessors
#
# Now decoding. A sequence has *one* query, and all of its N keys to look at. A program a tile of queries, as before, would be one program a head, or in latent attention, where 64 heads are a tile: two programs for 128 heads. An H800 has 132 SMs.
#
# So split the *keys*. J programs take N / J keys each, and leave their own mix and log. The states can be merged, as we saw. With parts $o_j$, each divided by its own sum, and their logs $L_j$:
#
# $$L = \log \sum_j e^{L_j}, \qquad o = \sum_j e^{L_j - L}\, o_j .$$

# %%
from course.kernels.mla_decode import mla_decode, mla_decode_torch


def in_splits(q_HL, rows_NL, R, scale, J):
    """Latent attention of one query in J spans, and the merge; all in PyTorch."""
    mixes, logs = [], []
    for span_nL in rows_NL.chunk(J):
        scores_Hn = scale * q_HL @ span_nL.T
        mixes.append(scores_Hn.softmax(-1) @ span_nL[:, :R])  # the values are the first R of the same rows
        logs.append(scores_Hn.logsumexp(-1))
    logs_JH = torch.stack(logs)
    weights_JH = (logs_JH - logs_JH.logsumexp(0)).exp()
    return (weights_JH[..., None] * torch.stack(mixes)).sum(0), logs_JH.logsumexp(0)


R, r = 64, 16
q_HL, rows_NL = torch.randn(16, R + r, generator=draw), torch.randn(500, R + r, generator=draw)
exact_HR, _ = in_splits(q_HL.double(), rows_NL.double(), R, 0.2, 1)
with checked():
    theirs_BHR, _ = mla_decode(q_HL[None, :, :R], q_HL[None, :, R:], rows_NL[None], 0.2, splits=4)
torch.testing.assert_close(theirs_BHR[0], in_splits(q_HL, rows_NL, R, 0.2, 4)[0], rtol=1e-4, atol=1e-5)
for J in (1, 2, 4, 16, 64, 250):
    mix_HR, _ = in_splits(q_HL, rows_NL, R, 0.2, J)
    print(
        f"{J:3d} split{'s' if J > 1 else ' '}: off from float64 by {((mix_HR - exact_HR).norm() / exact_HR.norm()).item():.1e}"
    )

# %% [markdown]
# Any number of splits gives the same result, to rounding: the merge is exact. But the last digits differ from J to J. An engine that picks J by how full the chip is answers one prompt in slightly different ways, depending on who else is asking. The course's kernel cuts spans by rules that do not know the chip.
#
# How many splits are worth it? A simple model, and its assumptions in the open: 64 heads a program; the two programs that read the same rows do so together, so that each row comes from memory once; each SM has 1/132 of the memory's rate and of the tensor cores, and one program at a time, which takes what its bytes or its FLOPs take; and *waves*: the 133rd program begins when the first is done. Parts are
# written and read once more.
#
# **Predict:** one sequence of 65,536 positions. From 1 split to 64 to 200: what happens?

# %%
SMS, R, r = int(h800.sms.value), v3.kv_lora_rank, v3.qk_rope_head_dim
rate, peak = h800.bandwidth.value, h800.roof("bf16").value


def decode_time(B, N, J, heads=64):
    """Seconds of one layer's decoding, by the model above."""
    blocks, span = 128 // heads, math.ceil(N / J / 64) * 64
    a_program = max(2 * span * (R + r) / blocks / (rate / SMS), 2 * heads * span * (2 * R + r) / (peak / SMS))
    waves = math.ceil(B * blocks * math.ceil(N / span) / SMS)
    return waves * a_program + 2 * 4 * B * 128 * J * R / rate


SPLITS = np.arange(1, 265)
figure, axis = plt.subplots(figsize=(8, 3.6))
for B, colour in ((1, BLUE), (8, GREEN), (64, ORANGE)):
    times = [1e6 * decode_time(B, 65_536, int(J)) for J in SPLITS]
    axis.plot(SPLITS, times, color=colour, label=f"{B} sequence{'s' if B > 1 else ''}")
    best = int(np.argmin(times))
    axis.plot(SPLITS[best], times[best], "o", color=colour)
    print(
        f"{B:2d} sequence{'s' if B > 1 else ' '}: {times[0]:7,.0f} us in one split, least {times[best]:6,.0f} us with {SPLITS[best]}"
    )
axis.set(xscale="log", yscale="log", xlabel="splits of a sequence", ylabel="least time (us)")
axis.set_title("Latent attention, 128 heads, 65,536 positions: a model of an H800")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: the modelled time against the number of splits, logarithmic, for 1, 8 and 64 sequences, each with its least marked. For one sequence it falls in proportion to the splits until 64, where two blocks of heads times 64 nearly fill 132 SMs, and jumps up soon after. For eight it is a saw, whose teeth are waves. For 64 it is flat from the start, and rises as parts are written.*
#
# One sequence gains a factor of more than forty. Beyond 66 splits a last wave with two programs costs as much as a full one: that is *wave quantisation*, the saw's teeth. With many sequences the programs are there anyway. Such a model is a bound with waves; no latency is in it, and a real program gets more than 1/132 of the memory's rate when the others have nothing to do.
#
# ## At the ridge
#
# Bytes and FLOPs of absorbed decoding, for each cached position: a row of 576 numbers is read once, and each of 128 heads multiplies it with 576 and mixes 512.

# %%
for heads in (16, 64, 128):
    work = Work(2 * heads * (2 * R + r), 2 * (R + r))
    print(
        f"{heads:3d} heads: {work.flops:9,.0f} FLOPs and {work.bytes:,} bytes a position: {work.intensity:5.1f} a byte"
    )
print(
    f"ridges: peak {990 / 3.35:.0f}; of FlashMLA's text 865 / 3.35 = {865 / 3.35:.0f}; reached 660 / 3.0 = {660 / 3.0:.0f}"
)

# %% [markdown]
# The authors of FlashMLA reckon with 2 FLOPs for each head and byte, 256 for 128 heads, against 865 TFLOP/s over 3.35 TB/s, and say: bound by arithmetic, from 128 heads on (quoted: FlashMLA, deep dive of 22 April 2025). 865 is what their chip did at the clock it fell to under this load, about 1,600 MHz; it is no property of the H800 in general, and must not be mixed with 990 from a data sheet. We count
# 242 FLOPs a byte. Against the peak's ridge that is memory, against what is reached it is arithmetic. It sits at the edge.
#
# What do people measure? The makers of InferSim timed FlashMLA on an H800 (quoted: alibaba/InferSim, bench_data, commit f2293da; 128 heads, BF16). Here against the bound by peaks.

# %%
MEASURED = {  # sequences -> microseconds at 1k, 4k, 8k, 16k, 32k, 64k, 128k positions
    1: (20.91, 21.653, 26.256, 33.986, 45.53, 62.724, 94.21),
    16: (24.906, 53.437, 83.951, 146.112, 268.708, 544.051, 1085.607),
    64: (51.974, 155.153, 288.668, 619.0, 1119.284, 2263.203, 4655.842),
}
POSITIONS = [1024, *LENGTHS]


def least_time(B, N):
    rows, queries = 2 * B * N * (R + r), 2 * B * 128 * (2 * R + r)
    return bound(Work(2 * B * 128 * N * (2 * R + r), rows + queries), h800).time


figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for (B, times), colour in zip(MEASURED.items(), (BLUE, GREEN, ORANGE), strict=True):
    bounds = [1e6 * least_time(B, N) for N in POSITIONS]
    axes[0].loglog(POSITIONS, times, "o-", color=colour, markersize=4, label=f"{B} sequence{'s' if B > 1 else ''}")
    axes[0].loglog(POSITIONS, bounds, ":", color=colour)
    axes[1].semilogx(POSITIONS, [a / b for a, b in zip(bounds, times, strict=True)], "o-", color=colour, markersize=4)
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(POSITIONS, [f"{N // 1024}k" for N in POSITIONS])
    axis.set_xlabel("positions of each sequence")
axes[0].set(ylabel="us", title="Measured by others, and the bound (dotted)")
axes[1].set(ylabel="bound / measured", title="Share of the bound", ylim=(0, 1))
axes[0].legend(fontsize=9)
plt.show()
print(f"16 sequences of 32k: {100 * 1e6 * least_time(16, 32_768) / 268.708:.0f} % of the bound by peaks")

# %% [markdown]
# *Figure: left, measured microseconds against positions for 1, 16 and 64 sequences, logarithmic, with the bounds as dotted lines below. The line of one sequence begins flat, at some 20 us, far above its bound. Right, the share of the bound that was reached: it climbs to about two thirds for 16 and 64 sequences, and to about a half for one.*
#
# The shape is the bound's, at about two thirds of it: a kernel at the edge would have to keep the memory and the tensor cores busy at once. And for one short sequence there is a floor of 20 us that no roof explains: launches, two kernels in a row, and splits too small to fill anything.
#
# ## Sixteen heads
#
# Attention can be divided over GPUs by heads: eight GPUs, 16 heads each. Then the tile of `mla_decode` has 16 rows in place of 64. Let the compiler speak.
#
# **Predict:** `HGMMA` is Hopper's product, made by four warps together, with 64 rows. What does the compiler do with 16?

# %%
from course.hardware.machine_code import read_code
from course.kernels import compile_all
from course.kernels.catalogue import example

SETTINGS = [(64, 8), (64, 4), (32, 8), (16, 8), (16, 4)]  # heads of a program, warps
examples = [example("mla_decode", heads=heads, num_warps=warps) for heads, warps in SETTINGS]
compiled = compile_all(examples[0].path, [it.launch for it in examples], code=True)
print(f"{'for sm_90':22s}registers  spilled   shared  products")
for (heads, warps), one in zip(SETTINGS, compiled, strict=True):
    kinds = Counter()
    for name, count in read_code(one.code["sass"]).tensor_core.items():
        kinds[name.split(".")[0]] += count
    shown = ", ".join(f"{count} {name}" for name, count in kinds.items())
    print(f"{heads:3d} heads, {warps} warps{'':6s}{one.registers:10d}{one.spills:9,d}{one.shared_bytes:9,d}  {shown}")

# %% [markdown]
# With 16 heads, and with 32, there is no `HGMMA` at all: it falls back to `HMMA`, the product of a single warp, as Ampere had it, which does not reach Hopper's full rate. Nothing warns. The result is right, and every test of values passes.
#
# Is that bad? Count again: 16 heads do 30 FLOPs a byte, a tenth of the ridge. They are bound by memory by far, and the slower product may well be hidden. The real loss stands one line up: each of eight GPUs now reads *the whole cache*, for a latent belongs to all heads. That is why DeepSeek does not divide decoding attention by heads (quoted: Open Infra Index, day 6: data parallel).
#
# And the second line: with four warps the mix of 64 heads times 512 numbers does not fit. 32,768 float32 are 256 registers for each of 128 threads, and a thread has at most 255; the rest is spilled, a thousand bytes a thread. FlashMLA's text says the same: half of an SM's registers for one tile of results, so there is room for no second one.
#
# ## Not looking at everything
#
# DeepSeek-V3.2 asks a small network first. Its *lightning indexer* (V3.2-Exp report, section 2.1) has 64 heads of 128 features and one key a position, and scores
#
# $$I_{s,n} = \sum_h w_{s,h} \cdot \mathrm{ReLU}(q_{s,h} \cdot k_n),$$
#
# and only the 2,048 best positions are attended to. There is no softmax to be carried along: a sum over heads, in registers.

# %%
from course.kernels.indexer import indexer

q_BHSC, k_BNC = torch.randn(1, 4, 40, 32, generator=draw), torch.randn(1, 40, 32, generator=draw)
weight_BSH = torch.randn(1, 40, 4, generator=draw)
agreement_BHSN = (q_BHSC @ k_BNC[:, None].mT).relu()
scores_BSN = (weight_BSH.mT[..., None] * agreement_BHSN).sum(1)
scores_BSN = scores_BSN.masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -torch.inf)
with checked() as log:
    theirs_BSN = indexer(q_BHSC, k_BNC, weight_BSH)
torch.testing.assert_close(scores_BSN, theirs_BSN, rtol=1e-4, atol=1e-4)
zero = (scores_BSN == 0).sum().item()
print(f"equal to course.kernels.indexer; {zero} of {40 * 41 // 2} scores that count are exactly 0")

# %% [markdown]
# (With four heads some scores are exactly 0, because every head disagrees: ties, which a choice must settle by a rule. The course's is the earlier position.)
#
# **Predict:** the indexer still looks at *every* position. From which length on does it pay?

# %%
index_flops, index_bytes = 2 * 64 * 128, 128 + 4  # a position: one key in FP8 with its scale
dense_flops, dense_bytes, K = 2 * 128 * (2 * R + r), 2 * (R + r), 2048
print(
    f"a position costs {dense_flops:,} FLOPs dense, {index_flops:,} to index: {dense_flops / index_flops:.0f} times less"
)
even = dense_flops * K / (dense_flops - index_flops)
print(
    f"FLOPs are even at {even:,.0f} positions; bytes at {dense_bytes * K / (dense_bytes - index_bytes):,.0f}  (computed)"
)
for N in (4096, 32_768, 131_072):
    sparse = N * index_flops + K * dense_flops
    print(f"{N:7,} positions: {N * dense_flops / sparse:4.1f} times fewer FLOPs", end=", ")
    print(f"{N * dense_bytes / (N * index_bytes + K * dense_bytes):4.1f} times fewer bytes;", end=" ")
    print(f"indexing is {N * index_flops / sparse:.0%} of the FLOPs")

# %% [markdown]
# Still quadratic over a whole text, by a smaller factor: 17 times smaller, and in FP8. What was measured (quoted: InferSim as above, 64 sequences; the time of the top-k itself is in neither)?

# %%
SPARSE = (91.245, 95.827, 96.312, 96.533, 96.624, 96.311, 96.536)  # us, attention to 2,048, FP8 cache
INDEX = (9.108, 20.916, 36.21, 61.446, 108.896, 205.456, 394.036)  # us, the indexer's scores
figure, axis = plt.subplots(figsize=(7.5, 3.5))
both = [a + b for a, b in zip(SPARSE, INDEX, strict=True)]
axis.loglog(POSITIONS, MEASURED[64], "o-", color=ORANGE, label="dense, BF16")
axis.loglog(POSITIONS, SPARSE, "o-", color=SKY, label="2,048 chosen positions, FP8 cache")
axis.loglog(POSITIONS, INDEX, "o-", color=GREEN, label="scores of the indexer")
axis.loglog(POSITIONS, both, "o-", color=BLUE, linewidth=2.5, label="indexer and chosen together")
axis.set_xscale("log", base=2)
axis.set_xticks(POSITIONS, [f"{N // 1024}k" for N in POSITIONS])
axis.set(
    xlabel="positions of each sequence",
    ylabel="us",
    title="Decoding one layer, 64 sequences on an H800, measured by others",
)
axis.legend(fontsize=9)
plt.show()
for place in (0, 1, 2, 6):
    print(
        f"{POSITIONS[place]:7,} positions: dense {MEASURED[64][place]:7,.0f} us, sparse {both[place]:5.0f} us", end=""
    )
    print(f": {MEASURED[64][place] / both[place]:.1f} times")

# %% [markdown]
# *Figure: microseconds against positions, logarithmic, from 1k to 128k. Dense attention rises in proportion. Attention to chosen positions is flat. The indexer's scores begin far below and rise, and overtake the flat line at about 32k. Their sum lies above dense attention at 1k, below it from 4k on, and nearly ten times below it at 128k.*
#
# At a thousand positions the sparse way is the slower one: there is nothing to leave out (its kernel takes as long for 1k positions as for more). From 4k on it wins, and at 128k the *indexer* is what takes the time.
#
# ## Does it choose well?
#
# Where all positions may be chosen, nothing is lost, by construction:

# %%
from course.model import LatentAttention, ModelConfig, rope_table

tiny = replace(ModelConfig.preset("tiny-deepseek-v3"), width=64, context=128)
layers = {}
for topk in (0, 64, 16):
    torch.manual_seed(3)
    layers[topk] = LatentAttention(
        replace(tiny, index_topk=topk, index_heads=4 * (topk > 0), index_head_dim=32 * (topk > 0))
    )
    layers[topk].load_state_dict(layers[0].state_dict(), strict=False)
x_BSD = torch.randn(1, 64, 64, generator=draw)
tables = rope_table(torch.arange(64), tiny.rope_width, tiny.rope_theta)
with torch.no_grad():
    results = {topk: layer(x_BSD, *tables) for topk, layer in layers.items()}
for topk in (64, 16):
    apart = ((results[topk] - results[0]).norm(dim=-1) / results[0].norm(dim=-1))[0]
    print(
        f"top {topk} of 64 positions: off by {apart[:16].max():.0e} up to position 16, {apart.max():.0e} at most behind it"
    )
torch.testing.assert_close(results[64], results[0])

# %% [markdown]
# Equal as long as there are no more positions than places. Behind that, an indexer with random weights chooses anything. So train one, the way DeepSeek began (report, section 2.1): freeze the model, sum its attention over the heads, and let the indexer's softmax come near that by the KL divergence.
#
# The model: two layers with latent attention, width 64, 8 heads, trained here for some twenty seconds on the course's Python corpus. It is no language model worth the name; but its attention is learnt, and not noise.

# %%
from course.training.data import load
from course.training.trainer import TrainSettings, train

data = load("code", vocab=512)
config = replace(
    ModelConfig.preset("tiny-deepseek-v3"), vocab=data.tokenizer.vocab, layers=2, width=64, heads=8, experts=8,
    top_k=2, groups=1, top_groups=1, expert_width=32, mlp_width=128, context=128,
)  # fmt: skip
settings = TrainSettings(steps=300, batch=8, warmup=20, evaluate_every=300, evaluation_sequences=16)
model, history = train(config, data, settings)
print(f"validation: {history[-1].validation:.2f} nats a token; an even guess is {math.log(config.vocab):.2f}")

# %%
from course.model import apply_rope
from course.model.indexer import Indexer, indexer_loss

parts, seen = [block.attention for block in model.requires_grad_(False).blocks], {}
for part in parts:
    part.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].detach()}))


@torch.no_grad()
def inputs_and_attention(tokens_BS, part=parts[0]):
    """What a layer's attention is given, and the weights that it computes."""
    model(tokens_BS)
    c, x_BSD = config, seen[part]
    turn = lambda x: apply_rope(x, cos, sin, c.rope_layout)  # noqa: E731
    cos, sin = rope_table(torch.arange(tokens_BS.shape[1]), c.rope_width, c.rope_theta)
    latent_BSQ = part.query_norm(part.query_down(x_BSD))
    q_BHSC = part.query_up(latent_BSQ).unflatten(-1, (c.heads, -1)).transpose(1, 2)
    q_BHSC = torch.cat([q_BHSC[..., : c.qk_nope_head_dim], turn(q_BHSC[..., c.qk_nope_head_dim :])], -1)
    latent_BSR, k_BSr = part.kv_down(x_BSD).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
    rows_BSL = torch.cat([part.kv_norm(latent_BSR), turn(k_BSr[:, None])[:, 0]], -1)
    k_BHSC, _ = part.expand(rows_BSL)
    scores_BHSN = part.scale * q_BHSC @ k_BHSC.mT
    later_SN = torch.ones(scores_BHSN.shape[-2:], dtype=torch.bool).triu(1)
    return x_BSD, latent_BSQ, cos, sin, scores_BHSN.masked_fill(later_SN, -torch.inf).softmax(-1)


# %%
def windows(ids, starts):
    return torch.stack([torch.from_numpy(ids[s : s + 128].astype(np.int64)) for s in starts.tolist()])


starts = torch.randint(len(data.validation) - 128, (8,), generator=draw)
held_out_BS = windows(data.validation, starts)
for number, part in enumerate(parts):
    mass_BSN = inputs_and_attention(held_out_BS, part)[-1].mean(1)[:, 64:]
    print(
        f"layer {number}: the best 16 of 65 to 128 positions hold {mass_BSN.topk(16).values.sum(2).mean():.0%}",
        end=", ",
    )
    print(f"16 of 96 at random {16 / 96:.0%}")

# %% [markdown]
# The second layer's attention is still nearly even, after so short a training; there is little to choose. So the indexer is for the first.

# %%
index_config = replace(config, index_topk=16, index_heads=4, index_head_dim=32)
torch.manual_seed(0)
untrained, trained = Indexer(index_config), Indexer(index_config)
optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-3)
losses = []
for _ in range(120):
    starts = torch.randint(len(data.train) - 128, (4,), generator=draw)
    *given, attention_BHSN = inputs_and_attention(windows(data.train, starts))
    loss = indexer_loss(trained.scores(*given), attention_BHSN)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"KL divergence: {np.mean(losses[:5]):.2f} nats at first, {np.mean(losses[-10:]):.2f} after {len(losses)} steps")

# %% [markdown]
# Now held-out text, queries at positions 64 to 127. For each choice of k positions: what share of the attention, summed over the heads, lies on them?
#
# **Predict:** of 128 positions choose 16. The best possible choice, the trained indexer, the last sixteen, an untrained indexer, sixteen at random: in which order, and how far apart?

# %%
*given, attention_BHSN = inputs_and_attention(held_out_BS)
mass_BSN = attention_BHSN.mean(1)
later_SN = torch.ones(128, 128, dtype=torch.bool).triu(1)
with torch.no_grad():
    rankings = {
        "best possible": mass_BSN.masked_fill(later_SN, -1),
        "trained indexer": trained.scores(*given),
        "the last k": torch.arange(128.0).expand_as(mass_BSN).masked_fill(later_SN, -1),
        "untrained indexer": untrained.scores(*given),
        "random": torch.rand(mass_BSN.shape, generator=draw).masked_fill(later_SN, -1),
    }
for name, ranking in rankings.items():
    chosen, right = (each.topk(16).indices for each in (ranking, rankings["best possible"]))
    shared = (chosen[..., None] == right[..., None, :]).any(-1)[:, 64:].float().mean()
    held = mass_BSN.gather(2, chosen).sum(2)[:, 64:].mean()
    print(f"{name:18s} 16 positions hold {held:.0%} of the attention, {shared:.0%} of them are among the 16 best")

# %%
KS = (1, 2, 4, 8, 16, 32, 64)
figure, axis = plt.subplots(figsize=(7.5, 3.6))
colours = (BLACK, BLUE, GREEN, SKY, ORANGE)
for (name, ranking), colour in zip(rankings.items(), colours, strict=True):
    covered = [mass_BSN.gather(2, ranking.topk(k).indices).sum(2)[:, 64:].mean().item() for k in KS]
    axis.plot(KS, covered, "o-", color=colour, label=name)
axis.set(xscale="log", xlabel="positions chosen", ylabel="share of the attention", ylim=(0, 1.02))
axis.set_xscale("log", base=2)
axis.set_xticks(KS, KS)
axis.set_title("What a choice of k of 65 to 128 positions holds")
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# *Figure: the share of attention on the chosen positions against their number, five rising lines. The best possible choice is on top, the trained indexer just below it, then, at a distance, the last k positions, and below them the untrained indexer and a random choice on one line.*
#
# Sixteen positions that the trained indexer chooses hold nearly all of what any sixteen could hold, and much more than the last sixteen. It misses about a quarter of the sixteen best and loses little by that, for what it misses are positions of little weight: overlap is the wrong measure, and attention held is the right one. Without training an indexer is no better than chance.
#
# That the best possible choice holds only about half has to do with the model: eight heads look at different things, and training was short. It says nothing about 2,048 positions in DeepSeek-V3.2.
#
# ## What this page cannot show
#
# No kernel here ran on a GPU, and no time on this page was measured here. Bytes, tiles and registers were counted, errors measured on this CPU, bounds computed; the microseconds are InferSim's. What that leaves open:
#
# - how near our own kernels come to their bounds. FlashMLA overlaps products, exponentials and copies by hand; a compiler does some of it. `benchmarks/kernels.py` is the harness that would tell, and its rows are empty without a GPU.
# - what the L2 cache answers of the bytes that programs ask for: most of what neighbouring tiles read twice, probably.
# - FP8: V3.2's cache of 656 bytes a position and its FP8 indexer are quoted; here everything is BF16 or float32.
# - the top-k over 131,072 scores, which is a kernel of its own. A loop over 2,048 argmaxes, as in the lab, would read the row 2,048 times; real ones count digits.
# - whether a model *stays* good under a sparse choice. DeepSeek trained on for 943.7 billion tokens with the choice in place (quoted: V3.2-Exp report, section 2.1); we trained an indexer for 120 steps and looked at a share of attention.
#
# ## Turn the knobs
#
# Sequences, positions and heads a program: what a number of splits does to the modelled time.


# %%
def knobs(sequences=4, positions=32_768, heads=64):
    _, axis = plt.subplots(figsize=(7.5, 2.8))
    times = [1e6 * decode_time(sequences, positions, int(J), heads) for J in SPLITS]
    axis.plot(SPLITS, times, color=BLUE)
    axis.axhline(1e6 * least_time(sequences, positions), color=BLACK, linestyle=":", label="bound, without waves")
    axis.set(xlabel="splits", ylabel="us", yscale="log", xscale="log")
    axis.yaxis.set_minor_formatter("")
    axis.set_title(f"{sequences} x {positions:,} positions, {heads} heads a program")
    axis.legend(fontsize=9)
    plt.show()


knobs()

# %% [markdown]
# *Figure: the modelled time against splits for four sequences of 32,768 positions: it falls to the bound at the splits that fill 132 SMs, and goes on as a saw above it.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import IntSlider, SelectionSlider, interact

controls = interact(
    knobs,
    sequences=IntSlider(4, min=1, max=132),
    positions=SelectionSlider(options=POSITIONS, value=32_768),
    heads=SelectionSlider(options=[16, 32, 64], value=64),
)

# %% [markdown]
# Three things to try: the fewest sequences at which splits hardly matter; 66 sequences, then 67, without splits; and 16 heads a program, which makes more programs and fewer splits.
#
# ## What we measured
#
# - The scores of one V3 layer take 4.3 GB at 4k tokens and 4.4 TB at 128k (computed).
# - A softmax in blocks with rescaling has the error of one that knows its largest score; the plain one is gone once a score passes 88 (measured here).
# - Flash attention skips the tiles behind the diagonal; keys and values are asked for in inverse proportion to the tile, as the paper's theorem says (counted here, for three lengths and four tiles).
# - Splits change only rounding (measured here); for one long sequence they are worth a factor of more than forty, in a model with waves (computed).
# - Absorbed latent attention does 242 FLOPs a byte with 128 heads and 30 with 16 (computed). FlashMLA reaches about two thirds of its bound (quoted times, our bound).
# - For sm_90, 64 heads become HGMMA, 16 and 32 heads HMMA, and four warps spill a thousand bytes a thread (compiled here).
# - The indexer pays from between 1k and 4k positions on, and takes most of the time at 128k (quoted times).
#
# **What surprised:** that attention without its scores is still quadratic in what it moves; that a merge of partial results is exact, and yet changes the last digits; that nobody tells you when a tile is too small for the tensor core; and that a sparse attention can lose, at a length where everyone would expect a draw.
#
# **To read**
#
# - Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*, section 3.
# - Dao et al. 2022, *FlashAttention*, section 3; Dao 2023, *FlashAttention-2*, section 3.
# - Dao, Haziza, Massa and Sizov 2023, *Flash-Decoding for long-context inference* (a blog post).
# - DeepSeek-AI 2025, *A Deep-Dive Into the New Flash MLA Kernel* (FlashMLA, docs, 22 April 2025).
# - DeepSeek-AI 2025, *DeepSeek-V3.2-Exp* report, section 2.1.
#
# **Now the lab:** `labs/14_attention_kernels.ipynb`. You write a weighted mean over ragged segments, flash attention with a window for heads that share, a combine with sinks, latent attention on pages, and the indexer's choice with its ties. Then a layer decodes on all five.
