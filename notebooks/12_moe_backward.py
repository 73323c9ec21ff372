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
# # Lesson 12 · The way back through the experts
#
# In lesson 11 a token went to its experts and came home. Then a loss is computed, and everything is walked through once more from behind: the gradients of the tokens, of all experts' weights, and of the router. Of the arithmetic of a training step the forward pass is one third; this lesson is about the other two, and about what has to be kept for them.
#
# You count what autograd keeps, and find that its most expensive tensor is kept for nothing. You build the gradients by hand, meet a product in which one row too many changes the result, and get a dot product with a tensor that nobody has. And you train a router that never learns, while its loss falls as if nothing were wrong.
#
# **The question: what does the way back need, and what must be kept for it?**
#
# About 50 minutes. Names carry their shape: **T** tokens, **K** experts a token, **P** = T K pairs, **R** rows (pairs that were kept), **E** experts, **D** width, **I** hidden width of an expert, **F** = 2I, gate first.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import os

# this lesson counts, checks and compiles; it runs no kernel on a GPU, not even where there is one
os.environ["TRITON_INTERPRET"] = "1"

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0], "· triton", triton.__version__)

# %% [markdown]
# ## Six products where there were two
#
# An expert has two weights: gate and up, `[2I, D]`, and down, `[D, I]`. Forward that is two products a row. Backward each of them becomes two: one for the gradient of what went in, one for the gradient of the weight.
#
# **Predict:** if gate and up are not kept but computed again in the backward pass, how much longer does a step get, counted in FLOPs of the experts?

# %%
from course.model import PRESETS

v3 = PRESETS["deepseek-v3"]
D, I, K = v3.width, v3.expert_width, v3.top_k  # noqa: E741
PRODUCTS = {
    "forward: gate and up": 2 * D * 2 * I,
    "forward: down": 2 * I * D,
    "gradient of the activation": 2 * D * I,
    "gradient of down": 2 * D * I,
    "gradient of the rows": 2 * 2 * I * D,
    "gradient of gate and up": 2 * 2 * I * D,
    "gate and up once more": 2 * D * 2 * I,
}
for name, flops in PRODUCTS.items():
    print(f"{name:28s}{K * flops / 1e9:6.3f} GFLOP a token, for {K} experts of DeepSeek-V3")
forward, total = sum(list(PRODUCTS.values())[:2]), sum(list(PRODUCTS.values())[:6])
print(
    f"forward is {forward / total:.0%} of a step; computing gate and up again adds {PRODUCTS['gate and up once more'] / total:.0%}"
)

# %% [markdown]
# So recomputation costs something, two ninths of the experts' arithmetic if nothing else is kept. What does it buy?
#
# ## What autograd keeps
#
# A layer of `course.model`, small and in bfloat16. PyTorch lets us listen when it saves a tensor for the backward pass. All sizes differ, so that a shape says which tensor it is.
#
# **Predict:** an expert's row goes in with D numbers. How many numbers of that row are kept, in units of D and I?

# %%
from course.model import ModelConfig
from course.model.moe import MoE

sizes = dict(width=64, expert_width=40, experts=8, top_k=3, shared_experts=0, groups=1, top_groups=1)
config = replace(ModelConfig.preset("tiny-deepseek-v3"), **sizes)
torch.manual_seed(0)
layer = MoE(config)
narrow = MoE(config).bfloat16()
kept = []


def note(tensor):
    kept.append(tensor)
    return tensor


x_TD = torch.randn(50, config.width).bfloat16().requires_grad_()
with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
    y_TD, _ = narrow(x_TD)
R = 50 * config.top_k
memory = {tensor.untyped_storage().data_ptr(): tensor for tensor in kept if len(tensor) == R and tensor.dim() == 2}
rows = [(tensor.untyped_storage().nbytes() // R, str(tensor.dtype)[6:]) for tensor in memory.values()]
print("bytes a row:", ", ".join(f"{size} ({kind})" for size, kind in rows))

# %% [markdown]
# With D = 64 and I = 40, in the order of the layer: the gathered row, D numbers of 2 bytes. Gate and up, 2I, one memory. silu(gate), I. The activation, I. A routing weight. The expert's result, D. And the result times its weight, D numbers in float32, since the weights are float32.
#
# At the sizes of DeepSeek-V3, for each token:

# %%
KEPT = {  # elements a row, bytes of each, what for
    "gathered rows": (D, 2),
    "gate and up": (2 * I, 2),
    "silu(gate)": (I, 2),
    "activation": (I, 2),
    "result": (D, 2),
    "weighted result": (D, 4),
}
small = {
    "gathered rows": 2 * 64,
    "gate and up": 4 * 40,
    "silu(gate)": 80,
    "activation": 80,
    "result": 128,
    "weighted result": 256,
}
assert sorted(small.values()) == sorted(size for size, _ in rows if size > 4)
a_token = {name: K * count * each / 1e3 for name, (count, each) in KEPT.items()}
for name, kilobytes in a_token.items():
    print(f"{name:16s}{kilobytes:7.1f} kB a token")
print(f"{'together':16s}{sum(a_token.values()):7.1f} kB a token and layer; x itself: {2 * D / 1e3:.1f} kB")
layers = v3.layers - v3.dense_layers
print(f"{layers} such layers, 4,096 tokens: {layers * 4096 * sum(a_token.values()) / 1e6:.0f} GB, and an H800 has 80")

# %% [markdown]
# The longest is the last one. `index_add` put the weighted rows onto their tokens, and keeps them. What for? The gradient of a sum is a copy. Let us hand it something else on the way back: zeros, of the same shape.
#
# **Predict:** which gradients change?


# %%
def gradients(swap):
    x = x_TD.detach().requires_grad_()

    def unpack(tensor):
        wanted = swap and tensor.dtype == torch.float32 and tensor.shape == (R, config.width)
        return torch.zeros(1).expand(tensor.shape) if wanted else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        y_TD, _ = narrow(x)
        return torch.autograd.grad(y_TD.square().sum(), [x, *narrow.parameters()])


same = [torch.equal(a, b) for a, b in zip(gradients(swap=False), gradients(swap=True), strict=True)]
print("gradients that stayed the same, bit by bit:", f"{sum(same)} of {len(same)}")
assert all(same)

# %% [markdown]
# None. Of the most expensive tensor of the layer, backward looks at the shape. (A framework keeps what it is told to keep; a kernel with its own backward pass keeps what it needs.)
#
# So what *is* needed? The gradient of gate and up needs the rows: x, and the order. SwiGLU's slopes need gate and up. The gradient of down needs the activation, which is made of gate and up. And the routing weights' gradient is the dot product of dout with the result $y$. Each can be kept, or made again:

# %%
from course.hardware import GPUS

h800 = GPUS["h800"]
bf16, traffic = h800.roof("bf16").value, h800.memory_roof().value
POLICIES = {  # kB a token; FLOPs more a pair; elements a pair that are written, and read again
    "all that autograd keeps": (sum(a_token.values()), 0, 0),
    "x, rows, gate and up, activation, result": (2 * D / 1e3 + K * 2 * (2 * D + 3 * I) / 1e3, 0, 0),
    "x, gate and up": (2 * D / 1e3 + K * 4 * I / 1e3, 0, 2 * I),
    "x alone": (2 * D / 1e3, PRODUCTS["gate and up once more"], 0),
}
step = K * total / bf16
for name, (kilobytes, flops, elements) in POLICIES.items():
    more = K * flops / bf16 + K * 2 * elements / traffic  # again from the start, or read once more for SwiGLU
    print(f"{name:42s}{kilobytes:6.0f} kB a token   at least {more / step:5.1%} more time")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.3))
left = 0
for (name, kilobytes), colour in zip(a_token.items(), (SKY, BLUE, GREEN, YELLOW, PINK, ORANGE), strict=True):
    axes[0].barh(0, kilobytes, left=left, color=colour, label=name)
    left += kilobytes
axes[0].set(xlabel="kB a token and layer", title="What autograd keeps", yticks=[], ylim=(-0.5, 1.5))
axes[0].legend(fontsize=8, ncols=2, loc="upper center")
names = ("autograd", "what it needs", "x, gate and up", "x alone")
bars = axes[1].barh(names, [kilobytes for kilobytes, *_ in POLICIES.values()], color=BLUE)
axes[1].bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
axes[1].set(xlabel="kB a token and layer", title="Four policies", xlim=(0, 720))
axes[1].invert_yaxis()
axes[1].grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# *Figure: left, one bar of about 590 kB a token, cut into gathered rows, gate and up, silu, activation, result, and the longest piece, the weighted result in float32. Right, the four policies: 590, 340, 80 and 14 kB.*
#
# The largest step, from 590 to 80 kB, costs nearly nothing: SwiGLU is made again from gate and up, the rows are gathered again from x, and the result is not needed at all, as we shall see. The last step, from 80 to 14, costs a product. What is best depends on what else fills the memory. DeepSeek recomputes RMSNorm and the up-projections of attention in the backward pass, and SwiGLU's output too, whose input they keep in FP8 (quoted: V3 report, sections 3.2.3 and 3.3.3). The course's kernels keep x alone.
#
# ## By hand
#
# Here is the way back in PyTorch, for rows sorted by expert. `grouped_mm` multiplies each expert's rows by its own weight; given two tensors of rows it sums over each expert's rows instead.


# %%
def forward(x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI):
    pairs_P = ids_TK.flatten().argsort(stable=True)
    ends_E = ids_TK.flatten().bincount(minlength=len(down_EDI)).cumsum(0).int()
    gate, up = F.grouped_mm(x_TD[pairs_P // ids_TK.shape[1]], gate_up_EFD.mT, offs=ends_E).chunk(2, dim=1)
    y_PD = F.grouped_mm(F.silu(gate) * up, down_EDI.mT, offs=ends_E)
    weighted_PD = y_PD * weights_TK.flatten()[pairs_P, None]
    return torch.zeros_like(x_TD).index_add(0, pairs_P // ids_TK.shape[1], weighted_PD), pairs_P, ends_E


def way_back(dout_TD, x_TD, pairs_P, ends_E, weights_TK, gate_up_EFD, down_EDI):
    tokens_P, w_P1 = pairs_P // weights_TK.shape[1], weights_TK.flatten()[pairs_P, None]
    x_PD, dout_PD = x_TD[tokens_P], dout_TD[tokens_P]
    gate, up = F.grouped_mm(x_PD, gate_up_EFD.mT, offs=ends_E).chunk(2, dim=1)  # once more
    s = gate.sigmoid()
    a_PI = gate * s * up
    h_PI = F.grouped_mm(dout_PD, down_EDI, offs=ends_E)  # the activation's gradient, for a weight of 1
    dw_TK = torch.zeros(pairs_P.shape).index_copy(0, pairs_P, (h_PI * a_PI).sum(1)).view_as(weights_TK)
    dgate_up_PF = w_P1 * torch.cat([h_PI * up * s * (1 + gate * (1 - s)), h_PI * gate * s], dim=1)
    dx_PD = F.grouped_mm(dgate_up_PF, gate_up_EFD, offs=ends_E)
    dx_TD = torch.zeros_like(x_TD).index_add(0, tokens_P, dx_PD)
    dgate_up_EFD = F.grouped_mm(dgate_up_PF.T, x_PD, offs=ends_E)
    return dx_TD, dw_TK, dgate_up_EFD, F.grouped_mm(dout_PD.T, w_P1 * a_PI, offs=ends_E)


# %%
with torch.no_grad():
    for weight in layer.parameters():
        weight.mul_(8)  # as drawn they are tiny
x_TD = torch.randn(50, config.width)
routing = layer.route(x_TD)
leaves = [t.detach().requires_grad_() for t in (x_TD, routing.weights_TK, layer.gate_up_EFD, layer.down_EDI)]
out_TD, pairs_P, ends_E = forward(leaves[0], routing.indices_TK, *leaves[1:])
dout_TD = torch.randn(out_TD.shape)
wanted = torch.autograd.grad(out_TD, leaves, dout_TD)
with torch.no_grad():
    got = way_back(dout_TD, leaves[0], pairs_P, ends_E, *leaves[1:])
for name, a, b in zip(("tokens", "routing weights", "gate and up", "down"), got, wanted, strict=True):
    print(f"{name:16s} off from autograd by {(a - b).norm() / b.norm():.0e} of its length")
    assert (a - b).norm() < 1e-5 * b.norm()

# %% [markdown]
# Look at the line of `dw_TK`. The gradient of a routing weight is $\langle \textit{dout}_t, y\rangle$, yet no $y$ is there. It need not be: $y = W a$, and a matrix may change sides in a dot product,
#
# $$\langle \textit{dout},\, W a\rangle = \langle W^{\top}\textit{dout},\, a\rangle = \langle h, a\rangle.$$
#
# $h$ is on the way back anyway. A sum over I numbers, where it was one over D, and the tensor that was kept for it is gone. (Multiplying the *activation* by the weight, instead of the result, comes to the same end; torchtitan, pull request 4095, is an example.)

# %%
with torch.no_grad():
    tokens_P = pairs_P // config.top_k
    gate, up = F.grouped_mm(x_TD[tokens_P], layer.gate_up_EFD.mT, offs=ends_E).chunk(2, dim=1)
    y_PD = F.grouped_mm(F.silu(gate) * up, layer.down_EDI.mT, offs=ends_E)
    kept_y = (dout_TD[tokens_P] * y_PD).sum(1)
apart = ((got[1].flatten()[pairs_P] - kept_y).norm() / kept_y.norm()).item()
print(f"<h, a> and <dout, y>: {apart:.0e} apart; {I:,} numbers a row in place of {D:,} at V3's sizes")

# %% [markdown]
# ## A product whose inner side is ragged
#
# The rows' gradient is the forward kernel once more: rows, each times its expert's weight, only that the weight is read with its strides exchanged. In `course.kernels` it is literally the same function.

# %%
from course.kernels.checked import checked
from course.kernels.grouped_gemm import grouped_gemm
from course.kernels.grouped_weight_gradient import grouped_weight_gradient

offsets_E1 = torch.cat([torch.zeros(1, dtype=torch.int64), ends_E.long()])
dgate_up_PF = torch.randn(R, 2 * config.expert_width)
with torch.no_grad(), checked() as log:
    dx_PD = grouped_gemm(dgate_up_PF, layer.gate_up_EFD.mT, None, offsets_E1, block=(16, 32, 32))
    assert torch.allclose(dx_PD, F.grouped_mm(dgate_up_PF, layer.gate_up_EFD, offs=ends_E), atol=1e-4)
rows_launch = log.launches[0]
print(f"gate_up.mT has strides {layer.gate_up_EFD.mT.stride()}: no copy; {rows_launch.grid[0]} programs")

# %% [markdown]
# The weights' gradient is another kind of problem. Its results are few and large, one matrix an expert; and the *sum* is over the rows, however many an expert has. Here is the kernel. A program has a tile of one expert's gradient, and walks along that expert's rows.


# %%
@triton.jit
def gradient_tiles(dy, x, tokens, offsets, out, P, N, D, SLOPPY: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    e = tl.program_id(0).to(tl.int64)
    n, d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    first, end = tl.load(offsets + e), tl.load(offsets + e + 1)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(first, end, STEP):
        p = start + tl.arange(0, STEP)
        there = p < (P if SLOPPY else end)
        dy_tile = tl.load(dy + p[None, :] * N + n[:, None], mask=there[None, :] & (n < N)[:, None], other=0.0)
        token = tl.load(tokens + p, mask=there, other=0)
        x_tile = tl.load(x + token[:, None] * D + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
        total = tl.dot(dy_tile, x_tile, total, input_precision="ieee")
    tl.store(out + (e * N + n)[:, None] * D + d[None, :], total, mask=(n < N)[:, None] & (d < D)[None, :])


def weight_gradient(dy_PN, x_TD, tokens_P, offsets_E1, sloppy=False):
    (P, N), width, E = dy_PN.shape, x_TD.shape[1], len(offsets_E1) - 1
    out_END = torch.empty(E, N, width)
    grid = E, triton.cdiv(N, 32), triton.cdiv(width, 32)
    gradient_tiles[grid](dy_PN, x_TD, tokens_P, offsets_E1, out_END, P, N, width, SLOPPY=sloppy, BLOCK=32, STEP=16)
    return out_END


# %% [markdown]
# `SLOPPY` is a slip that is easily made: the mask along the rows looks at the end of the tensor, not at the end of the expert. In a forward product that would have made a few rows that nobody reads.
#
# **Predict:** what does it do here, and to how many of the experts?

# %%
with checked() as log:
    right_END = weight_gradient(dgate_up_PF, x_TD, tokens_P, offsets_E1)
    theirs_END = grouped_weight_gradient(dgate_up_PF, x_TD, None, tokens_P, offsets_E1, block=(32, 32, 16))
    sloppy_END = weight_gradient(dgate_up_PF, x_TD, tokens_P, offsets_E1, sloppy=True)
tiles_launch = log.launches[0]
assert torch.allclose(right_END, theirs_END, atol=1e-4)
error_E = (sloppy_END - right_END).flatten(1).norm(dim=1) / right_END.flatten(1).norm(dim=1)
for e, (count, error) in enumerate(zip(offsets_E1.diff().tolist(), error_E.tolist(), strict=True)):
    print(f"expert {e}: {count:2d} rows, the last step has {count % 16 or 16:2d} of them; off by {error:.0%}")

# %% [markdown]
# Every expert but the last one, and those whose rows fill whole steps. The rows of the next expert were *added*, to a gradient that still looks like one: right size, finite, and it even trains. Nothing but a comparison finds it. (A relative of this bug: marin-community/marin, issue 8339. A library's kernel wanted each expert's rows to begin at a multiple of 64, got others, and all weights' gradients were off by up to half; the losses fell all the same. The other trap here is the expert without rows: its gradient is 0, and somebody has to write that: MSLK, pull request 158.)
#
# Who reads what? The log of the checked interpreter knows for every program which rows it touched.


# %%
def rows_of(launch, argument, width):
    """Of each program, the rows of an argument that it loaded."""
    found = {}
    for access in launch.accesses:
        if access.argument == argument:
            found.setdefault(access.program, set()).update((access.elements // width).tolist())
    return list(found.values())


figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharex=True)
panels = (
    ("x", rows_launch, "Rows' gradient: a program has rows"),
    ("dy", tiles_launch, "Weights' gradient: it has a tile of a weight"),
)
expert_P = routing.indices_TK.flatten()[pairs_P].numpy()
for axis, (argument, launch, title) in zip(axes, panels, strict=True):
    for program, its in enumerate(rows_of(launch, argument, 2 * config.expert_width)):
        its = np.array(sorted(its))
        axis.scatter(its, np.full(len(its), program), c=expert_P[its], cmap="tab10", vmin=0, vmax=9, s=3, marker="s")
    axis.set(xlabel="row", ylabel="program", title=title)
plt.show()

# %% [markdown]
# *Figure: which rows each program reads, coloured by expert. Left, for the rows' gradient: short dashes of at most 16 rows, two programs for each. Right, for the weights' gradient: blocks of programs that all read the same expert's rows from its first to its last, long for a busy expert, short for another.*
#
# Left, all programs have about the same to do, and a busy expert simply has more of them. Right, every expert has the same number of programs, and a busy expert's take longer; nobody helps them. How long does the whole take? On 132 SMs, with V3's sizes and loads that are even, or as uneven as a router's without balancing:


# %%
def makespan(rows_E, tiles, sms=132):
    """Steps along rows until all programs are done, when the next one goes to whoever is free; and the mean load."""
    free = np.zeros(sms)
    for count in np.repeat(np.ceil(np.asarray(rows_E) / 64), tiles):
        free[free.argmin()] += count
    return free.max(), free.mean()


draw = np.random.default_rng(0)
loads = {"even": np.full(8, 1024)}
loads |= {
    name: draw.multinomial(8192, draw.dirichlet(np.full(8, alpha))) for name, alpha in (("uneven", 4), ("one hot", 0.5))
}
for name, rows_E in loads.items():
    spans = [makespan(rows_E, tiles) for tiles in (32 * 28, 16)]
    print(f"{name:8s} busiest {rows_E.max() / rows_E.mean():.1f} times the mean:", end=" ")
    print(
        f"last SM done after {spans[0][0] / spans[0][1]:.2f} times the mean, with 16 tiles an expert {spans[1][0] / spans[1][1]:.2f}"
    )

# %% [markdown]
# (8 experts on a GPU; tiles of 128 x 256 of a gradient of 4,096 x 7,168 are 896 an expert; of one of 512 x 1,024, 16.) With many tiles the SMs even it out among themselves, however uneven the experts are. With few, in a small model, all programs run at once, and the whole takes as long as the busiest expert. Then one would cut the sum over the rows in pieces. The pieces' results belong to one tile, so either they are added by atomics, in the order in which programs arrive, or each piece writes its own, to be added in a fixed order:

# %%
gradient = 4 * 2 * I * D * 8  # bytes, float32, gate and up of 8 experts
print(f"gate and up's gradient on one GPU: {gradient / 1e9:.2f} GB in float32")
for pieces in (2, 4, 8):
    extra = 2 * pieces * gradient / traffic
    print(
        f"{pieces} pieces of their own: {pieces * gradient / 1e9:5.2f} GB of scratch, {1e3 * extra:.1f} ms to write and read it"
    )
product = 2 * 8192 * 2 * I * D / bf16
print(f"the product itself, at the tensor cores' roof: {1e3 * product:.1f} ms  (computed)")
terms = torch.randn(8, 10_000, generator=torch.Generator().manual_seed(0))
orders = {sum(terms[torch.randperm(8)].unbind()).numpy().tobytes() for _ in range(50)}
print(f"8 pieces of 10,000 numbers, added in 50 random orders: {len(orders)} different results")

# %% [markdown]
# A fixed order costs more than the product, and atomics cost the same bits every time. So the course's kernel does not split. How many rows does such a product need, to be bound by arithmetic at all?
#
# **Predict:** forward, the weights are read once, 2 bytes each. Here they are written, or added to in float32. Does the weights' gradient need more rows an expert than the forward product, or fewer?

# %%
ridge = bf16 / traffic
for name, each in (
    ("forward, weights read in BF16", 2),
    ("gradient written in BF16", 2),
    ("written in float32", 4),
    ("added to, in float32", 8),
):
    print(
        f"{name:30s} {2 / each:4.2f} FLOPs a byte and row: {ridge * each / 2:5.0f} rows an expert to reach the ridge of {ridge:.0f}"
    )

# %% [markdown]
# Adding up in float32, as one does when a batch comes in pieces, takes four times the rows. (Counted is the weight alone; rows and results come on top.)
#
# ## The router that never learns
#
# Of the four gradients, three are plain to see when they are missing. What if the fourth is, that of the routing weights? Someone writes a fast backward pass for the experts; tokens and weights have their gradients; the test compares those. Here is the way back as an autograd function, with a switch.


# %%
class Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI, forgotten):
        out_TD, pairs_P, ends_E = forward(x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI)
        ctx.save_for_backward(x_TD, pairs_P, ends_E, weights_TK, gate_up_EFD, down_EDI)
        ctx.forgotten = forgotten
        return out_TD

    @staticmethod
    def backward(ctx, dout_TD):
        dx, dw, dgate_up, ddown = way_back(dout_TD.contiguous(), *ctx.saved_tensors)
        return dx, None, torch.zeros_like(dw) if ctx.forgotten else dw, dgate_up, ddown, None


# %% [markdown]
# Two small worlds. In the first there are eight kinds of inputs, and each is to be mapped by a matrix of its own: knowing who is who helps. In the second there is one kind of input, and one smooth function. Eight experts, two for each token, a sigmoid gate, AdamW; four seeds, each once with all gradients and once with zeros for the routing weights.
#
# **Predict:** in which of these four will the training loss fall? By how much will the router move, and will the loads?


# %%
def world(kinds, seed):
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    centres, maps = (1.5 if kinds > 1 else 0.0) * normal(kinds, 16), normal(kinds, 16, 16) / 4
    spread = 0.7 if kinds > 1 else 1.0

    def batch(count, draw):
        kind = torch.randint(kinds, (count,), generator=draw)
        x = centres[kind] + spread * torch.randn(count, 16, generator=draw)
        y = torch.einsum("nd,nde->ne", x, maps[kind])
        return x, y if kinds > 1 else torch.sin(2 * y)

    weights = [0.1 * normal(8, 16), normal(8, 32, 16) / 4, normal(8, 16, 16) / 4]
    return batch, [weight.requires_grad_() for weight in weights]


def mixture(x, weights, forgotten):
    scores = (x @ weights[0].T).sigmoid()
    top, ids = scores.topk(2, dim=1)
    return Experts.apply(x, ids, top / top.sum(1, keepdim=True), *weights[1:], forgotten), ids


# %%
def train(kinds, seed, forgotten, steps=250, decay=0.0):
    batch, weights = world(kinds, seed)
    optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=decay)
    start, draw, history = weights[0].detach().clone(), torch.Generator().manual_seed(seed), []
    probe, its_y = batch(1024, torch.Generator().manual_seed(seed + 1000))
    for _ in range(steps):
        x, y = batch(256, draw)
        loss = (mixture(x, weights, forgotten)[0] - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        history.append((loss.item(), weights[0].grad.norm().item()))
        optimizer.step()
    with torch.no_grad():
        out, ids = mixture(probe, weights, forgotten)
    moved, load = weights[0].detach() - start, ids.flatten().bincount(minlength=8) / 256
    held_out = (out - its_y).square().mean().item()
    return dict(
        history=np.array(history),
        loss=held_out,
        moved=moved.norm().item(),
        load=load,
        gate=weights[0].detach(),
        start=start,
    )


# %%
SEEDS = range(4)
runs = {(kinds, lost): [train(kinds, seed, lost) for seed in SEEDS] for kinds in (8, 1) for lost in (False, True)}
for (kinds, lost), its in runs.items():
    name = f"{kinds} kind{'s' if kinds > 1 else ''}, {'forgotten' if lost else 'all gradients'}"
    print(f"{name:24s} router moved {np.mean([run['moved'] for run in its]):.2f};", end=" ")
    print("loss on new data", " ".join(f"{run['loss']:.3f}" for run in its))

# %%
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3))
styles = {False: (BLUE, "all gradients"), True: (ORANGE, "routing weights forgotten")}
for lost, (colour, label) in styles.items():
    for number, run in enumerate(runs[8, lost]):
        smooth = np.convolve(run["history"][:, 0], np.ones(9) / 9, mode="valid")
        axes[0].plot(smooth, color=colour, linewidth=1, label=None if number else label)
        axes[1].plot(run["history"][:, 1], color=colour, linewidth=1)
    loads = np.array([run["load"].sort().values.numpy() for run in runs[8, lost]])
    axes[2].plot(range(8), loads.T, color=colour, linewidth=1)
axes[0].set(xlabel="step", ylabel="squared error", title="Training loss, eight kinds", yscale="log")
axes[1].set(xlabel="step", ylabel="norm", title="The router's gradient")
axes[2].set(xlabel="expert, by load", ylabel="load, mean = 1", title="Loads at the end")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# *Figure: left, the training loss of four seeds each, on a logarithmic scale: both kinds fall steadily, those with all gradients further. Middle, the norm of the router's gradient: above 0 for the one kind, a flat line at 0 for the other. Right, sorted loads of the eight experts: both uneven.*
#
# Look at one orange curve alone, as its author would: a loss that falls smoothly, by a large factor. Loads that are uneven, but whose are not? The experts learn whatever tokens they are given, and a router as it was drawn gives similar tokens to the same experts; that is already worth something. Only beside the blue curves one sees that half of the gain is missing.

# %%
for kinds in (8, 1):
    right, lost = (np.array([run["loss"] for run in runs[kinds, forgotten]]) for forgotten in (False, True))
    gaps, name = lost - right, f"{kinds} kind{'s' if kinds > 1 else ''}"
    told = "resolved" if gaps.mean() > 2 * gaps.std(ddof=1) else "not resolved"
    print(f"{name:8s}forgotten is worse by {gaps.mean():.3f} ({gaps.mean() / right.mean():.0%}),", end=" ")
    print(f"pair by pair with a spread of {gaps.std(ddof=1):.3f}: {told}; two seeds lie {right.std(ddof=1):.3f} apart")

# %% [markdown]
# In the world with one kind the difference is a few percent: there a random cut of the input space is nearly as good as a learned one. Both runs of a pair see the same data and begin alike, so that four pairs can tell. Whoever has one run of each, with seeds of their own, cannot: two seeds lie further apart. So a loss curve is no test. Would it show with weight decay? AdamW shrinks each weight a little in each step, also where the gradient is 0.

# %%
shrunk = train(8, 0, forgotten=True, decay=0.1)
along = F.cosine_similarity(shrunk["gate"].flatten(), shrunk["start"].flatten(), dim=0).item()
print(
    f"the router moved {shrunk['moved']:.3f}: its length is {shrunk['gate'].norm() / shrunk['start'].norm():.3f} of what it was,"
)
print(f"the cosine between then and now {along:.6f}")

# %% [markdown]
# It moves, and a log of weights would show that. But it only shrinks: the choice of each token is the same to the last, since all scores shrink alike. What finds it, in a second, is a finite difference. Move the router a little along some direction, and see whether the loss does what the gradient says; in float64, so that rounding does not blur it.


# %%
def mixture_64(x, gate, gate_up, down):
    """The layer with autograd, in float64, all experts for all tokens."""
    scores = (x @ gate.T).sigmoid()
    top, ids = scores.topk(2, dim=1)
    a, b = torch.einsum("td,efd->etf", x, gate_up).chunk(2, dim=2)
    y_ETD = torch.einsum("eti,edi->etd", F.silu(a) * b, down)
    w_TE = torch.zeros_like(scores).scatter(1, ids, top / top.sum(1, keepdim=True))
    return torch.einsum("te,etd->td", w_TE, y_ETD), ids


batch, weights = world(8, 0)
x, y = batch(64, torch.Generator().manual_seed(5))
deep = [t.detach().double() for t in (x, *weights)]
direction = torch.randn(8, 16, generator=torch.Generator().manual_seed(6)).double()
direction /= direction.norm()


def loss_at(t):
    out, ids = mixture_64(deep[0], deep[1] + t * direction, *deep[2:])
    return (out - y.double()).square().mean().item(), ids.sort(dim=1).values


numeric = (loss_at(1e-5)[0] - loss_at(-1e-5)[0]) / 2e-5
for forgotten in (False, True):
    loss = (mixture(x, weights, forgotten)[0] - y).square().mean()
    slope = (torch.autograd.grad(loss, weights[0])[0].double() * direction).sum().item()
    print(f"forgotten={forgotten!s:5s} slope by gradient {slope:+.6f}, by finite difference {numeric:+.6f}")

# %% [markdown]
# So check every input of a backward pass that has a gradient, the small ones first. (A sibling of this bug, found in transformers in 2026, issue 48687: under expert parallelism routers collected gradients for slots of other ranks; the loss was right, and nothing in a run looked off.)
#
# ## The choice is a step
#
# The gradient goes through the *weights* of the chosen (lesson 04). The choice itself has none: it is constant, and jumps. So is the gradient wrong where a token changes its expert? Here is the loss along the direction from above, with the points at which some token's choice changes.

# %%
places = np.linspace(-0.06, 0.06, 961)
found = [loss_at(t) for t in places]
values = np.array([loss for loss, _ in found])
jumps = np.array([not torch.equal(a, b) for (_, a), (_, b) in pairwise(found)])
figure, axes = plt.subplots(1, 2, figsize=(10, 3.3))
between = np.flatnonzero(jumps)
for piece in np.split(np.arange(len(places)), between + 1):
    axes[0].plot(places[piece], values[piece], color=BLUE, linewidth=1.4)
axes[0].plot(places, values[480] + numeric * places, "--", color=BLACK, linewidth=1, label="slope by gradient")
axes[0].set(xlabel="step along the direction", ylabel="loss", title="Loss, as the router moves")
axes[0].legend()
steps = np.logspace(-9, -1.2, 60)
differences = [abs((loss_at(step)[0] - loss_at(-step)[0]) / (2 * step) - numeric) / abs(numeric) for step in steps]
axes[1].loglog(steps, np.maximum(differences, 1e-12), color=ORANGE)
axes[1].axvline(min(abs(places[between])), color=BLACK, linestyle=":", label="first change of a choice")
axes[1].set(xlabel="step of the difference", ylabel="relative difference", title="Finite difference against gradient")
axes[1].legend(fontsize=8)
plt.show()
print(f"{jumps.sum()} changes of a choice among 64 tokens between -0.06 and 0.06")

# %% [markdown]
# *Figure: left, the loss along a line through the router's weights: smooth pieces with jumps between them, up and down; the dashed slope touches the piece in the middle. Right, how far a finite difference is from the gradient, by its step: large for tiny steps, where float64 rounds, small in between, and large again beyond the dotted line, where a choice changes.*
#
# Inside a piece the gradient is right, and there are finitely many jumps: it is right almost everywhere. But it says nothing of what a jump would bring. A finite difference over a jump measures the jump, and blows up with a smaller step rather than settling; so a gradient check belongs into a piece, with a small step, in float64. And a router never learns that *another* expert would have been better, only that a chosen one should count more or less; that it tries others at all is left to noise, to the data, and to the balance that lesson 05 enforced.
#
# ## The whole layer
#
# `ModelConfig(kernels="triton")` runs the mixture on kernels both ways. The router has one too: it goes from the gradient of the weights to that of the logits. The same layer, twice:

# %%
with torch.no_grad():
    fused = MoE(replace(config, kernels="triton"))
    fused.load_state_dict(layer.state_dict())


def layer_gradients(layer):
    x, seen = x_TD.clone().requires_grad_(), {}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y_TD, _ = layer(x)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in seen.items() if place not in own)
    loss = (y_TD * dout_TD).sum()
    return torch.autograd.grad(loss, [x, layer.gate_ED, layer.gate_up_EFD, layer.down_EDI]), size


# %%
wanted, by_torch = layer_gradients(layer)
with checked() as log:
    got, by_kernels = layer_gradients(fused)
for name, a, b in zip(("tokens", "router", "gate and up", "down"), got, wanted, strict=True):
    print(f"{name:12s} off by {(a - b).norm() / b.norm():.0e} of its length")
    assert (a - b).norm() < 1e-5 * b.norm()
print(f"kept for the way back: {by_torch / 1e3:.0f} kB by autograd, {by_kernels / 1e3:.0f} kB on kernels")
for name, count in Counter(each.kernel for each in log.launches).items():
    print(f"  {count} {name.removesuffix('_kernel')}")

# %% [markdown]
# One kernel, `grouped_swiglu_backward`, does three products in one loop: gate, up and $h$ are all sums over D. What leaves it is the gradient of gate and up, the activation times its weight, and the dot products; gate, up, $a$ and $h$ themselves never reach memory.
#
# ## The machine code
#
# Compiled for the H800 at the sizes of DeepSeek-V3, eight experts on a GPU, 1,024 rows each.
#
# **Predict:** one of these three kernels holds three sums of a tile in registers. What will it have to give up for that?

# %%
from course.hardware import Work
from course.hardware.report import report
from course.kernels.catalogue import example

NAMES = ("grouped_gemm", "grouped_weight_gradient", "grouped_swiglu_backward")
reports = {name: (it := example(name), report(it.path, it.launch, Work(it.flops, it.bytes))) for name in NAMES}
print(f"{'for sm_90':25s} warps registers spilled  shared  occupancy  tensor-core instructions")
for name, (_, its) in reports.items():
    one, tensor = its.compiled, its.code.tensor_core
    assert not one.error
    told = ", ".join(f"{count} {kind}" for kind, count in tensor.items())
    print(
        f"{name:25s} {one.warps:5d} {one.registers:9d} {one.spills:7d} {one.shared_bytes:7d} {its.occupancy.share:10.0%}  {told}"
    )

# %%
for name, (it, its) in reports.items():
    blocks = {key: value for key, value in it.launch.constexprs.items() if key.startswith("BLOCK")}
    copies = sum(its.code.count("LDGSTS|UTMALDG").values())
    print(f"{name:24s} tile {tuple(blocks.values())!s:15s} {copies:2d} copies to shared memory; ", end="")
    print(f"{1e3 * its.bound.time:.2f} ms at least ({its.bound.by})")

# %% [markdown]
# All three run on `HGMMA`, the tensor-core instruction of four warps together, and none spills. The kernel with three sums has smaller tiles: three of 128 x 64 where the others have one of 128 x 256. Smaller tiles read their inputs more often. That is the price, besides the third product, for keeping nothing.
#
# ## What this page cannot show
#
# No kernel here ran on a GPU, and no time was measured on one. Bytes, FLOPs, launches and registers were counted, bounds computed from an H800's roofs. What that leaves open: how near to their bounds these kernels come, above all the weights' gradient, whose rows are gathered; what the second half of a training step does meanwhile (in a large run it sends tokens back between GPUs, and the two overlap); and whether recomputing pays: that depends on what else the freed memory is used for. The router's experiment
# is a tiny world, chosen so that routing matters; how much is lost in a large model by a router that never learns, it does not say.
#
# ## What we measured
#
# - Forward is a third of the experts' FLOPs; making gate and up again adds two ninths (computed).
# - Autograd keeps some 590 kB a token for one layer of V3's size, a third of it a tensor of which only the shape is read. Gate and up alone are 80 kB with x, and x alone is 14 (counted here; computed at V3's sizes).
# - The routing weights' gradient needs no results of experts: $\langle h, a\rangle$ is $\langle \textit{dout}, y\rangle$ (checked here).
# - A mask at the wrong end spoils the weights' gradient of nearly every expert by a large part (measured here), where forward it would have been harmless.
# - Without the routing weights' gradient the loss falls all the same; with eight kinds of inputs the loss on new data is about twice as high, at every seed, and with one kind a few percent, less than two seeds lie apart (measured here, four seeds).
# - For sm_90 the three grouped kernels use HGMMA and do not spill (compiled here).
#
# **What surprised:** that the largest tensor is kept for nothing; that the most delicate product is the one that looks the simplest; and that half a mixture can be broken while every curve looks healthy.
#
# **To read**
#
# - Gale et al. 2022, *MegaBlocks: Efficient Sparse Training with Mixture-of-Experts* (arXiv 2211.15841), section 5: the products of the backward pass as sparse ones.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, sections 3.2.3 and 3.3: what is recomputed, and what is kept in which format.
# - PyTorch's documentation of `torch.autograd.graph.saved_tensors_hooks` and `torch.autograd.gradcheck`.
#
# **Now the lab:** `labs/12_moe_backward.ipynb`. You write SwiGLU's way back for rows of which some are nobody's, the tokens' gradient by strides, the weights' gradient on top of earlier micro-batches, the routing weights' gradient through V3's gate to the logits, and a ledger of what is kept. Then a layer learns on your kernels.
