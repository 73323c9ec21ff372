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
# # Lesson 02 · A transformer
#
# DeepSeek-V3 is one block, repeated 61 times (quoted: V3 report, section 4.2). Llama-3.1-405B is one block, repeated 126 times
# (quoted: Llama 3 report, Table 3). The model in this lesson is one block, repeated twice. Between 2017 and today that block has
# hardly changed, and every part of it is short enough to write in a few lines. So: **what does each part do, and what breaks
# without it?**
#
# In this lesson you build the parts in the open and hold each against `course.model`. Then you train the whole on Python source,
# look at what the parts do to a file it has not seen, and take them out one by one.
#
# About 50 minutes. Names carry their shape: **B** sequences, **S** positions in each (**N** where keys are counted), **D** width
# of the model, **H** heads, **C** features of a head, **P** = C/2 pairs, **I** hidden width of the feed-forward layer, **F** =
# 2I, **V** vocabulary.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import functools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
torch.manual_seed(2)
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## The plan of a block
#
# A token enters as a vector of D numbers, its row of the embedding matrix. From there on it is a *stream*: each part of each
# block reads the stream, and **adds** something to it. At the end one matrix turns the stream into a score for every token that
# might come next.

# %%
figure, axis = plt.subplots(figsize=(9.5, 2.7))
axis.annotate(
    "", (10.3, 0), (-0.6, 0), arrowprops={"arrowstyle": "-|>", "lw": 5, "color": "#9ecae1", "mutation_scale": 22}
)
for x, name, detail, colour in [
    (1.0, "attention", "tokens look at\nearlier tokens", ORANGE),
    (5.6, "SwiGLU", "each token\nby itself", GREEN),
]:
    axis.annotate("", (x, 1.25), (x, 0.05), arrowprops={"arrowstyle": "-", "color": "black"})
    axis.annotate("", (x + 3.0, 0.08), (x + 3.0, 1.55), arrowprops={"arrowstyle": "-|>", "color": "black"})
    axis.plot([x, x + 3.0], [1.55, 1.55], color="black", lw=1.2)
    for place, text, fill in [(x, "norm", "white"), (x + 1.6, name, colour)]:
        half = 0.38 if text == "norm" else 0.85
        axis.add_patch(plt.Rectangle((place - half, 1.25), 2 * half, 0.6, facecolor=fill, edgecolor="black", zorder=3))
        ink = "black" if text == "norm" else "white"
        axis.text(place, 1.55, text, ha="center", va="center", color=ink, zorder=4, weight="bold")
    axis.text(x + 1.6, 0.62, detail, ha="center", va="center", fontsize=9)
    axis.text(x + 3.0, 0, "+", ha="center", va="center", fontsize=17, weight="bold", zorder=5)
axis.text(-0.6, 0.28, "the stream", color=BLUE, weight="bold")
axis.set(xlim=(-0.7, 10.4), ylim=(-0.35, 2.1), title="One pre-norm block")
axis.axis("off")
plt.show()

# %% [markdown]
# *Figure: a thick arrow from left to right, the stream. Twice a line leaves it upwards, passes through a norm and then through
# attention or SwiGLU, and comes back down to be added. Nothing stands on the stream itself.*
#
# Attention also needs to know where tokens stand: that is RoPE's work. Norm, RoPE, attention, SwiGLU, and the stream: five ideas.
# One at a time.

# %% [markdown]
# ## The norm
#
# Each part reads the stream through RMSNorm: divide a token's vector by its root mean square, then multiply each feature by a learned weight.


# %%
def rms_norm(x, weight_D, eps):
    wide = x.float()
    rms = torch.sqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (wide / rms).to(x.dtype) * weight_D


from course.model import rms_norm as course_rms_norm

x_TD, weight_D = torch.randn(5, 128), torch.rand(128) + 0.5
torch.testing.assert_close(rms_norm(x_TD, weight_D, 1e-5), course_rms_norm(x_TD, weight_D, 1e-5))
for size in (0.01, 1.0, 100.0):
    before, after = size * x_TD[0], rms_norm(size * x_TD[0], torch.ones(128), 1e-5)
    print(f"root mean square {before.pow(2).mean().sqrt():8.3f} before, {after.pow(2).mean().sqrt():.4f} after")

# %% [markdown]
# So the direction of the vector is kept, its length is not. (Look at the first row: it is a little less than 1. That is `eps`,
# and it shows when the mean square is not much larger than it.)
#
# Three details. **The first is `eps` itself.** It belongs under the root, so that a vector of zeros stays what it is:

# %%
zeros_D = torch.zeros(128)
print("with eps   ", rms_norm(zeros_D, torch.ones(128), 1e-5)[:3].tolist())
print("without eps", rms_norm(zeros_D, torch.ones(128), 0.0)[:3].tolist())

# %% [markdown]
# **The second is the dtype.** Large models keep the stream in 16 bits. What if the squares and their mean stay in 16 bits as well?
#
# **Predict:** float16 holds numbers up to 65,504. From which size on does a norm in float16 go wrong, and is it in doubt about
# large vectors only?

# %%
sizes = torch.logspace(-5, 4, 60)
figure, axis = plt.subplots()
for dtype, colour in [(torch.float16, ORANGE), (torch.bfloat16, BLUE)]:
    name = str(dtype).removeprefix("torch.")
    narrow, wide = [], []
    for size in sizes:
        x_TD = (size * torch.randn(16, 1024)).to(dtype)
        exact_TD = x_TD.double() / (x_TD.double().pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        in_16_bits = x_TD * torch.rsqrt(x_TD.pow(2).mean(-1, keepdim=True) + torch.tensor(1e-12, dtype=dtype))
        in_32_bits = rms_norm(x_TD, torch.ones(1024, dtype=dtype), 1e-12)
        for errors, result in [(narrow, in_16_bits), (wide, in_32_bits)]:
            error = (result.double() - exact_TD).norm() / exact_TD.norm()
            errors.append(min(error.nan_to_num(1.0, 1.0).item(), 1.0))
    axis.plot(sizes, narrow, color=colour, label=f"{name} throughout")
    axis.plot(sizes, wide, color=colour, linestyle=":", label=f"{name}, the mean in float32")
axis.set(
    xscale="log", yscale="log", xlabel="size of x", ylabel="relative error", title="A norm in 16 bits", ylim=(1e-4, 2)
)
axis.legend(loc="upper center", bbox_to_anchor=(0.46, 0.97), fontsize=9)
plt.show()

# %% [markdown]
# *Figure: relative error of the norm against the size of x. In float16 the error is total above a size of about 60, where the
# largest of 1,024 features passes 256 and its square overflows, and again below 0.0002, where squares vanish; it is already bad
# from 0.003 down. With the mean in float32 it is flat at the error of rounding the result. In bfloat16 it is flat everywhere,
# about twice as large when nothing is widened.*
#
# Real streams do get that large: trackers of real projects hold the reports (meta-llama/llama, issue 1048: a float16 norm, and
# the generations "totally crash"; pytorch, pull request 133085). Hence the rule in `course.model`: whatever the dtype of x, the
# mean is taken in float32.
#
# (What 16 bits do to a *sum* is worse than what they do to a square, which is why PyTorch adds up in float32 even when you do not ask:)

# %%
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1024):
    total += 1
print("1 + 1 + ... 1,024 times, one after the other in bfloat16:", total.item())
print("the same sum by torch.sum:                              ", torch.ones(1024, dtype=torch.bfloat16).sum().item())

# %% [markdown]
# **The third is the mean.** LayerNorm, the older norm, subtracts the mean of the features first. RMSNorm leaves it in. We will
# measure on a trained model how much that matters.

# %% [markdown]
# ## Positions
#
# Attention, which comes next, is a weighted mean over earlier tokens. A mean knows no order: shuffle the past, and it comes out the same.
#
# **Predict:** what then tells `a - b` from `b - a`?

# %%
q_BHSC, k_BHNC, v_BHNC = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 9, 32), torch.randn(1, 1, 9, 32)
shuffled = torch.randperm(9)
in_order = (q_BHSC @ k_BHNC.mT / 32**0.5).softmax(-1) @ v_BHNC
out_of_order = (q_BHSC @ k_BHNC[:, :, shuffled].mT / 32**0.5).softmax(-1) @ v_BHNC[:, :, shuffled]
torch.testing.assert_close(in_order, out_of_order)
print("the past in any order gives the same result")

# %% [markdown]
# Nothing does: positions must be put in. RoPE puts them into queries and keys (Su et al. 2021, section 3.2). Take the C features
# of a head in pairs, see each pair as the hand of a clock, and turn it by an angle that grows with the position. Each pair has a
# speed of its own: the first turns one radian a token, the next ones ever more slowly.


# %%
def rope_angles(positions_S, head_width, theta=10_000.0):
    speeds_P = theta ** (-torch.arange(0, head_width, 2) / head_width)
    return positions_S[:, None] * speeds_P


def rope(x_BHSC, angles_SP):
    first, second = x_BHSC.chunk(2, dim=-1)  # feature i is paired with feature i + C/2
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    return torch.cat([first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP], dim=-1)


from course.model import apply_rope, rope_table

x_BHSC, positions_S = torch.randn(1, 4, 256, 32), torch.arange(256)
ours = rope(x_BHSC, rope_angles(positions_S, 32))
torch.testing.assert_close(ours, apply_rope(x_BHSC, *rope_table(positions_S, 32)), atol=1e-4, rtol=1e-4)
torch.testing.assert_close(ours.norm(dim=-1), x_BHSC.norm(dim=-1))
print("our RoPE equals course.model's, and no vector has changed its length")

# %%
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.9), width_ratios=[1, 1, 1, 1.75])
angles_SP = rope_angles(torch.arange(256), 32)
for axis, pair in zip(axes, [0, 4, 10], strict=False):
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#d8dee4"))
    for position in range(8):
        angle = angles_SP[position, pair]
        shade = plt.get_cmap("viridis")(position / 8)
        axis.annotate(
            "", (angle.cos(), angle.sin()), (0, 0), arrowprops={"arrowstyle": "-|>", "color": shade, "lw": 1.6}
        )
    turns = angles_SP[1, pair] / (2 * math.pi)
    axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", title=f"pair {pair}")
    axis.text(0, -1.4, f"a turn in {1 / turns:,.0f} tokens", ha="center")
    axis.axis("off")
picture = axes[3].imshow(angles_SP.cos(), aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
axes[3].set(xlabel="pair", ylabel="position", title="cosine of the angle")
axes[3].grid(visible=False)
figure.colorbar(picture, ax=axes[3])
plt.show()

# %% [markdown]
# *Figure: on the left three clocks, each with the hands of positions 0 to 7, dark to light. Pair 0 goes around in 6 tokens, pair
# 4 in 63, pair 10 hardly moves. On the right the cosine of all angles, position downwards and pair to the right: fast stripes on
# the left, and from about pair 9 on, columns that do not come round once in 256 positions.*
#
# What is it good for? **Predict:** take one query and one key, and put them at all pairs of positions. On how many numbers does
# their score depend?

# %%
q_C, k_C = torch.randn(2, 32, dtype=torch.float64)
angles_SP = rope_angles(torch.arange(48, dtype=torch.float64), 32)
q_SC, k_SC = (rope(x_C.expand(1, 1, 48, 32), angles_SP)[0, 0] for x_C in (q_C, k_C))
scores_SN = q_SC @ k_SC.T
distance_SN = torch.arange(48)[:, None] - torch.arange(48)

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), width_ratios=[1, 1.5])
axes[0].imshow(scores_SN, cmap="RdBu")
axes[0].set(xlabel="position of the key", ylabel="position of the query", title="score of one query and key")
axes[0].grid(visible=False)
axes[1].plot(distance_SN.flatten(), scores_SN.flatten(), ".", markersize=3, color=BLUE)
axes[1].set(xlabel="distance, query - key (tokens)", ylabel="score", title="the same 2,304 scores")
plt.show()

for distance in range(-47, 48):
    diagonal = scores_SN.diagonal(-distance)
    torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-9, rtol=1e-9)
print("each diagonal holds one number: the score depends on the distance alone")

# %% [markdown]
# *Figure: on the left scores as a matrix of the two positions, striped along the diagonal; on the right the same scores against
# the distance: 2,304 points on one curve.*
#
# On one: the distance. Turning both by the same angle changes nothing, so `a - b` in line 3 looks like `a - b` in line 300.
# Nothing was learned, no parameter was added, and the values v stay as they are.
#
# ### Two layouts of one idea
#
# We paired feature i with i + C/2, as Llama, Mixtral and Qwen do. The paper and DeepSeek pair neighbours, 2i with 2i + 1. Is that
# another model?

# %%
neighbours = torch.arange(32).view(2, 16).T.flatten()  # 0, 16, 1, 17, 2, ...: the two of a pair side by side
as_halves = apply_rope(x_BHSC, *rope_table(positions_S, 32), layout="half")
as_neighbours = apply_rope(x_BHSC[..., neighbours], *rope_table(positions_S, 32), layout="interleaved")
torch.testing.assert_close(as_neighbours, as_halves[..., neighbours])
print("the same numbers, in another order of the features")

# %% [markdown]
# It is the same one, with the features of each head in another order, and that order is in the rows of the query and key
# matrices. So a checkpoint can be converted by sorting rows. Forget it, and every shape still fits, no error comes, and the model
# writes nonsense (seen in jzhang38/TinyLlama, issue 24, and still being repaired elsewhere in 2026: huggingface/nanotron, pull
# request 427). We will measure *how much* nonsense.

# %% [markdown]
# ## Attention
#
# Each token asks with a *query*, offers a *key*, and hands over a *value*. The score of a query and a key is their dot product; a
# softmax over the earlier tokens makes weights of the scores; the result is the weighted mean of the values. Later tokens are
# hidden: their score is minus infinity, and the exponential of that is zero.


# %%
def attention(q_BHSC, k_BHNC, v_BHNC):
    scores_BHSN = q_BHSC @ k_BHNC.mT / q_BHSC.shape[-1] ** 0.5
    future_SN = torch.ones(scores_BHSN.shape[-2:], dtype=torch.bool).triu(1)
    weights_BHSN = scores_BHSN.masked_fill(future_SN, -math.inf).softmax(dim=-1)
    return weights_BHSN @ v_BHNC, weights_BHSN, scores_BHSN


from course.model import causal_attention

q_BHSC, k_BHNC, v_BHNC = torch.randn(3, 1, 2, 8, 32)
y_BHSC, weights_BHSN, scores_BHSN = attention(q_BHSC, k_BHNC, v_BHNC)
torch.testing.assert_close(y_BHSC, causal_attention(q_BHSC, k_BHNC, v_BHNC))
torch.testing.assert_close(weights_BHSN.sum(-1), torch.ones(1, 2, 8))

figure, axes = plt.subplots(1, 3, figsize=(9, 2.7))
hidden_SN = torch.where(weights_BHSN[0, 0] > 0, scores_BHSN[0, 0], math.nan)
for axis, matrix_SN, title, colours in [
    (axes[0], scores_BHSN[0, 0], "scores", "RdBu"),
    (axes[1], hidden_SN, "the future hidden", "RdBu"),
    (axes[2], weights_BHSN[0, 0], "weights: each row adds to 1", "Blues"),
]:
    limits = (0, 1) if colours == "Blues" else (-3, 3)
    figure.colorbar(axis.imshow(matrix_SN, cmap=colours, vmin=limits[0], vmax=limits[1]), ax=axis, shrink=0.8)
    axis.set(title=title, xlabel="key", ylabel="query")
    axis.grid(visible=False)
plt.show()
print("our attention equals course.model.causal_attention")

# %% [markdown]
# *Figure: three 8 by 8 grids, query downwards and key to the right: scores of either sign; the same with the upper right triangle
# blank; weights, one bright cell in the first row and ever wider mixtures below.*
#
# ### Why the square root
#
# A dot product of C random products has a size of about $\sqrt{C}$. What does a softmax make of such scores? A good measure is
# *how many keys* a query really uses: $e^{H}$, where H is the entropy of its weights.
#
# **Predict:** 64 keys, random vectors of width 128. How many does a query use when the scores are divided by $\sqrt{128}$, and
# how many when they are not?

# %%
widths = [2**n for n in range(1, 11)]
used = {"divided by sqrt(C)": [], "not divided": [], "divided by C": []}
for C in widths:
    scores = torch.randn(400, C) @ torch.randn(64, C).T
    for name, scale in zip(used, (C**-0.5, 1.0, 1 / C), strict=True):
        weights = (scores * scale).softmax(-1)
        used[name].append(torch.special.entr(weights).sum(-1).exp().mean())

figure, axis = plt.subplots()
for (name, counts), colour in zip(used.items(), (BLUE, ORANGE, GREEN), strict=True):
    axis.plot(widths, counts, "o-", color=colour, label=name)
axis.set_xscale("log", base=2)
axis.set_xticks(widths, widths)
axis.set(
    xlabel="width of a head, C",
    ylabel="keys really used, of 64",
    title="What the scale does to the softmax",
    ylim=(0, 66),
)
axis.legend(loc="center right", bbox_to_anchor=(1.0, 0.36))
plt.show()

# %% [markdown]
# *Figure: keys in use against the width of a head. Divided by the square root it stays near 40 at every width; undivided it falls
# to little more than one; divided by C it rises to all 64.*
#
# Without the scale a wide head can only pick one key, and it does so from the first step on, at random: a softmax that is
# saturated has next to no gradient. Divided by too much, it can only average.
#
# ### Is it really blind to the future?
#
# A mask is easy to get wrong by one, and a model that sees its answer has a wonderful training loss. So test it on the result,
# not on the mask: change one input, watch *all* outputs.

# %%
from course.model import ModelConfig, Transformer

config = ModelConfig.preset("tiny-dense")
torch.manual_seed(0)
fresh = Transformer(config)
with torch.no_grad():
    for parameter in fresh.parameters():
        parameter.mul_(3 if parameter.ndim > 1 else 1)  # an untrained model hardly mixes tokens: make it mix
    tokens_BS = torch.randint(config.vocab, (1, 20))
    before_SV = fresh(tokens_BS)[0]
    moved_NS = torch.zeros(20, 20)
    for position in range(20):
        other_BS = tokens_BS.clone()
        other_BS[0, position] = (tokens_BS[0, position] + 1) % config.vocab
        moved_NS[position] = (fresh(other_BS)[0] - before_SV).norm(dim=-1) / before_SV.norm(dim=-1)

figure, axis = plt.subplots(figsize=(5.2, 3.8))
picture = axis.imshow(moved_NS.T.clamp(min=1e-9).log10(), cmap="magma", vmin=-4, vmax=0)
axis.set(xlabel="position of the changed token", ylabel="position of the output", title="Who hears of whom")
axis.set(xticks=range(0, 20, 5), yticks=range(0, 20, 5))
axis.grid(visible=False)
figure.colorbar(picture, label="relative change, power of ten", ticks=range(-4, 1))
plt.show()
leaks = int((moved_NS.T.triu(1) > 0).sum())
assert leaks == 0
print(f"{leaks} of {20 * 19 // 2} outputs changed when a later token did")

# %% [markdown]
# *Figure: a 20 by 20 grid, bright on and below the diagonal and black above it: an output moves when its own or an earlier token
# changes, and never when a later one does.*
#
# This test costs a few forward passes and needs to know nothing about the inside. Keep it: it finds a leak in any language model,
# whatever it is made of.

# %% [markdown]
# ## The gate
#
# After the tokens have talked, each one is worked on alone. The classical layer for it widens the vector, bends each feature, and
# narrows it again. SwiGLU has *two* projections up, and multiplies one by a bent version of the other:
# $\mathrm{down}(\mathrm{silu}(\mathrm{gate}) \odot \mathrm{up})$, with $\mathrm{silu}(z) = z \cdot \mathrm{sigmoid}(z)$.


# %%
def feed_forward(x, gate_up_FD, down_DI):
    gate, up = (x @ gate_up_FD.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down_DI.T


layer = fresh.blocks[0].feed_forward
x_TD = torch.randn(5, 128)
torch.testing.assert_close(feed_forward(x_TD, layer.gate_up_FD, layer.down_DI), layer(x_TD))
print("our SwiGLU equals course.model's")

# %%
z = torch.linspace(-6, 6, 241)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=[1.2, 1])
for up, colour in [(2.0, BLUE), (1.0, SKY), (-1.0, YELLOW), (-2.0, ORANGE)]:
    axes[0].plot(z, F.silu(z) * up, color=colour, label=f"up = {up:g}")
axes[0].set(xlabel="gate", ylabel="silu(gate) * up", title="A feature that another one opens", ylim=(-6, 6))
axes[0].legend(loc="upper left", ncols=2, columnspacing=1, fontsize=9)
picture = axes[1].imshow(F.silu(z) * z[:, None], origin="lower", extent=(-6, 6, -6, 6), cmap="RdBu", vmin=-20, vmax=20)
axes[1].set(xlabel="gate", ylabel="up", title="the same as a map")
axes[1].grid(visible=False)
figure.colorbar(picture, ax=axes[1])
plt.show()

# %% [markdown]
# *Figure: on the left silu(gate) times up for four values of up: flat near zero while the gate is negative, then straight lines
# whose slope is up. On the right the same as a map: a white left half, and on the right red below, blue above.*
#
# A negative gate closes: whatever `up` says is dropped. An open one lets it through, and then the layer *multiplies* two things
# that it computed from the token. How well can a layer multiply?
#
# **Predict:** how many SwiGLU features does it take to compute the product of two inputs *exactly*, and how many silu features of
# a plain layer?

# %%
a, b = torch.randn(2, 1000, dtype=torch.float64)
two_features = F.silu(a) * b + F.silu(-a) * (-b)
print(f"two SwiGLU features, largest error of the product: {(two_features - a * b).abs().max():.0e}")

# %% [markdown]
# Two, because $\mathrm{sigmoid}(a) + \mathrm{sigmoid}(-a) = 1$. A plain layer cannot do it exactly with any number: far away silu
# is a straight line, and sums of straight lines are no product. Products of features are what a plain layer must approximate, and
# a gated one has for free. (That is an argument for why it might help. Whether it does help, at equal parameters, is a question
# for an experiment; it comes below.)

# %% [markdown]
# ## The stream
#
# Now the block, in two lines of substance. It must equal `course.model.Block`, and a few of them with an embedding below and a
# head above must equal `course.model.Transformer`.


# %%
def block(x_BSD, part, angles_SP, heads=4):
    """A pre-norm block with the weights of `part`, a course.model.Block."""
    split = lambda linear, h_BSD: (h_BSD @ linear.weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    h_BSD = rms_norm(x_BSD, part.attention_norm.weight, 1e-5)
    q_BHSC, k_BHSC = (rope(split(p, h_BSD), angles_SP) for p in (part.attention.query, part.attention.key))
    y_BHSC, weights_BHSN, _ = attention(q_BHSC, k_BHSC, split(part.attention.value, h_BSD))
    attended_BSD = y_BHSC.transpose(1, 2).flatten(2) @ part.attention.output.weight.T
    x_BSD = x_BSD + attended_BSD
    h_BSD = rms_norm(x_BSD, part.feed_forward_norm.weight, 1e-5)
    worked_BSD = feed_forward(h_BSD, part.feed_forward.gate_up_FD, part.feed_forward.down_DI)
    return x_BSD + worked_BSD, {"attention": attended_BSD, "SwiGLU": worked_BSD, "weights": weights_BHSN}


def run(model, tokens_BS):
    """Logits, and what every block added to the stream."""
    angles_SP = rope_angles(torch.arange(tokens_BS.shape[1]), 32)
    x_BSD, seen = model.embedding.weight[tokens_BS], []
    for part in model.blocks:
        y_BSD, inside = block(x_BSD, part, angles_SP)
        seen.append(inside | {"before": x_BSD, "after": y_BSD})
        x_BSD = y_BSD
    return rms_norm(x_BSD, model.norm.weight, 1e-5) @ model.head.weight.T, seen


# %%
with torch.no_grad():
    x_BSD, (cos, sin) = torch.randn(2, 30, 128), rope_table(torch.arange(30), 32)
    ours_BSD, _ = block(x_BSD, fresh.blocks[1], rope_angles(torch.arange(30), 32))
    torch.testing.assert_close(ours_BSD, fresh.blocks[1](x_BSD, cos, sin, None)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(fresh, tokens_BS)[0], fresh(tokens_BS), atol=1e-4, rtol=1e-4)
print("our block equals course.model.Block, and our model course.model.Transformer")

# %% [markdown]
# A language model, whole, in about forty lines. One question about it is left: why is the norm *beside* the stream and not on it,
# and why is there a stream at all? With two blocks nobody would notice. So take 24, untrained, and look at how large the numbers
# get on the way up, and how large the gradients on the way down.
#
# **Predict:** of the four designs below, which one will not reach layer 24?


# %%
DESIGNS = {
    "pre-norm, x + part(norm(x))": lambda x, part, norm: x + part(norm(x)),
    "post-norm, norm(x + part(x))": lambda x, part, norm: norm(x + part(x)),
    "no stream, part(norm(x))": lambda x, part, norm: part(norm(x)),
    "no norm, x + part(x)": lambda x, part, norm: x + part(x),
}


def depth(design, layers=24, width=128):
    """Size of the stream before each block of a fresh model, and of the gradient of each block's last matrix."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab=256, context=64, width=width, layers=layers, mlp_width=256))
    for name, p in model.named_parameters():
        if p.ndim > 1:  # each part gives about the size that it takes
            torch.nn.init.normal_(p, std=1.0 if name.startswith("embedding") else p.shape[1] ** -0.5)
    tokens_BS, targets_BS = torch.randint(256, (2, 4, 64))
    x_BSD, (cos, sin), sizes = model.embedding(tokens_BS), rope_table(torch.arange(64), width // 4), []
    for part in model.blocks:
        sizes.append(x_BSD.pow(2).mean().sqrt().item())
        attend = functools.partial(part.attention, cos_SP=cos, sin_SP=sin)
        x_BSD = DESIGNS[design](x_BSD, attend, part.attention_norm)
        x_BSD = DESIGNS[design](x_BSD, part.feed_forward, part.feed_forward_norm)
    F.cross_entropy(model.head(model.norm(x_BSD)).flatten(0, 1), targets_BS.flatten()).backward()
    return sizes, [part.feed_forward.down_DI.grad.norm().item() for part in model.blocks]


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
for design, colour in zip(DESIGNS, (BLUE, ORANGE, GREEN, PINK), strict=True):
    sizes, gradients = depth(design)
    axes[0].plot(sizes, "o-", color=colour, markersize=3.5, label=design)
    axes[1].plot(gradients, "o-", color=colour, markersize=3.5)
    finite = [size for size in sizes if math.isfinite(size)]
    print(f"{design:30s} size {finite[0]:.1f} to {finite[-1]:.3g}, finite in {len(finite)} of 24 layers")
axes[0].set(yscale="log", xlabel="layer", ylabel="root mean square", title="Size of the stream", ylim=(0.2, 1e5))
axes[1].set(yscale="log", xlabel="layer", ylabel="norm", title="Gradient of each layer's last matrix")
axes[0].legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# *Figure: on the left the size of the stream by layer, on the right the gradient of each layer's down matrix, both on logarithmic
# axes. Without norms the size shoots up and is infinite after a few layers. With a norm and no stream, sizes are fine, and the
# gradient of the first layer is thousands of times that of the last. Post-norm keeps the size at 1; its gradients differ by a
# factor of about 20. Pre-norm's stream grows slowly, and its gradients differ least.*
#
# Without a norm each SwiGLU roughly *squares* the size of what it reads: that is what a product of two features does, and a two
# that is squared five times has ten digits. Without a stream every gradient must pass through every part on its way down. With a
# stream it can go straight: the derivative of $x + f(x)$ is $1 + f'(x)$, and the 1 is a road.
#
# Post-norm blocks that road 48 times, gently. Pre-norm never does, and pays with a stream that grows. That is why `course.model`
# draws the matrices that write to the stream smaller, by $\sqrt{2 \cdot \mathrm{layers}}$, the number of things that are added
# (GPT-2 report, section 2.3).

# %% [markdown]
# ## It reads Python
#
# Enough of random numbers. Two blocks, 200 steps, on the standard library that came with this interpreter.

# %%
from dataclasses import replace

from course.model import total_parameters
from course.training.data import load, validation_batches
from course.training.trainer import TrainSettings, train

data = load("code", vocab=1024)
config = replace(ModelConfig.preset("tiny-dense"), vocab=data.tokenizer.vocab, layers=2, context=128)
settings = TrainSettings(steps=200, batch=16, warmup=20, evaluate_every=50, evaluation_sequences=64)
model, rows = train(config, data, settings, progress=True)
model.requires_grad_(False)
print(f"{total_parameters(config):,} parameters, {rows[-1].tokens:,} tokens in {rows[-1].seconds:.0f} s")
print(f"an even guess costs {math.log(config.vocab):.2f} nats a token")
print("validation loss by step:", {row.step: round(row.validation, 2) for row in rows if row.validation})

# %% [markdown]
# ### What each part adds
#
# Four parts write to the stream: attention and SwiGLU, twice. Because they only ever add, we may stop after any of them, hold the
# head against the stream as it stands, and ask how well it would predict the next token.
#
# **Predict:** which of the four parts lowers the loss most?

# %%
inputs_BS, targets_BS = validation_batches(data, 128, sequences=32, batch=32)[0]
_, seen = run(model, inputs_BS)
stages = {"embedding": seen[0]["before"]}
for layer, inside in enumerate(seen):
    stages[f"attention {layer}"] = inside["before"] + inside["attention"]
    stages[f"SwiGLU {layer}"] = inside["after"]


def loss_if_stopped(x_BSD):
    return F.cross_entropy(model.head(model.norm(x_BSD)).flatten(0, 1), targets_BS.flatten()).item()


length = lambda x_BSD: x_BSD.norm(dim=-1).mean().item()  # noqa: E731
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3))
added = {
    f"{part} {layer}": length(inside[part]) for layer, inside in enumerate(seen) for part in ("attention", "SwiGLU")
}
axes[0].bar(stages.keys(), [length(x_BSD) for x_BSD in stages.values()], color="#c6dbef", label="the stream there")
axes[0].bar(added.keys(), added.values(), width=0.4, color=BLUE, label="what the part added")
axes[0].set(ylabel="length of the vector", title="Who writes how much", ylim=(0, 1.4 * length(stages["SwiGLU 1"])))
axes[0].legend()
axes[1].plot(stages.keys(), [loss_if_stopped(x_BSD) for x_BSD in stages.values()], "o-", color=ORANGE)
axes[1].set(ylabel="loss (nats a token)", title="The loss if we stopped here")
for axis in axes:
    axis.tick_params(axis="x", rotation=20)
plt.show()
for name, x_BSD in stages.items():
    share = (x_BSD.mean(-1) ** 2 / x_BSD.pow(2).mean(-1)).mean()
    print(f"{name:12s} loss {loss_if_stopped(x_BSD):.2f}, mean of the features: {share:.1%} of the mean square")

# %% [markdown]
# *Figure: on the left, for each stage, the length of the stream and of what was just added; the first SwiGLU adds most. On the
# right the loss when the head is held against each stage: it falls at every part.*
#
# The head was never trained to read the stream half way, and yet it can: all parts write in one language. (This view is known as
# the *logit lens*.) And look at the last column: the mean of the features is about one percent of their mean square. That is all
# that LayerNorm would have removed, and why RMSNorm can leave it in and save the work.

# %% [markdown]
# ### Who looks at whom
#
# Here is a real function from a file that the model has not read. For each head, where does its attention go: to the token
# itself, to the one before, to the first? The last column is a subtler habit. If the current token has occurred before, how much
# attention goes to the token that *followed* it then? A head that does this can copy: it is called an *induction head* (Olsson et
# al. 2022).
#
# **Predict:** four heads in each of two layers, 200 steps old. Do they differ?

# %%
import collections
import inspect

source = inspect.getsource(collections.UserString.find)
print(source)


def habits(weights_BHSS, tokens_BS):
    """Mean attention of each head to itself, the one before, the first; after an earlier copy; and the keys in use."""
    S = tokens_BS.shape[1]
    copies = tokens_BS[:, :, None] == tokens_BS[:, None, :]
    after = F.pad(copies, (1, 0))[:, :, :-1] & torch.ones(S, S, dtype=torch.bool).tril()
    return {
        "itself": weights_BHSS.diagonal(0, -2, -1)[..., 8:].mean((0, 2)),
        "one before": weights_BHSS.diagonal(-1, -2, -1)[..., 8:].mean((0, 2)),
        "first": weights_BHSS[..., 8:, 0].mean((0, 2)),
        "induction": (weights_BHSS * after[:, None]).sum((0, 2, 3)) / after.any(-1).sum(),
        "keys in use": torch.special.entr(weights_BHSS).sum(-1).exp()[..., 8:].mean((0, 2)),
    }


for layer, inside in enumerate(seen):
    for name, values_H in habits(inside["weights"], inputs_BS).items():
        numbers = "  ".join(f"{value:5.2f}" if value < 10 else f"{value:5.1f}" for value in values_H)
        print(f"layer {layer}, heads 0 to 3   {name:12s} {numbers}")

# %%
ids = data.tokenizer.encode(source)
names = [data.tokenizer.decode([i]).replace("\n", "↵").replace(" ", "·")[-9:] for i in ids]
_, inside = run(model, torch.tensor([ids]))


def show_heads(pictures, names, rows=range(0, 40)):
    """Attention of some heads over the same stretch of tokens; pictures: title -> [S, S]."""
    _, axes = plt.subplots(1, len(pictures), figsize=(4.9 * len(pictures), 5.2), sharey=True)
    first, last = rows[0], rows[-1] + 1
    for axis, (title, weights_SS) in zip(axes, pictures.items(), strict=True):
        axis.imshow(weights_SS[first:last, first:last] ** 0.5, cmap="Blues", vmin=0, vmax=1)
        ticks = range(last - first)
        axis.set_xticks(ticks, names[first:last], rotation=90, fontsize=7, family="monospace")
        axis.set_yticks(ticks, names[first:last], fontsize=7, family="monospace")
        axis.set(title=title, xlabel="looked at")
        axis.grid(visible=False)
    axes[0].set(ylabel="token that looks")
    plt.show()


show_heads({f"200 steps: layer {layer}, head 0": inside[layer]["weights"][0, 0] for layer in (0, 1)}, names)

# %% [markdown]
# *Figure: attention of head 0 of both layers over the first forty tokens of the function, tokens as labels (· is a space, ↵ a new
# line; the darker, the more attention). In the first layer every token looks at the whole past about equally; in the second the
# weight lies near the diagonal, on the last few tokens.*
#
# They hardly differ yet: the first layer takes the mean of everything, the second looks at its neighbours. What would become of
# them? The same model was trained ten times longer, with three seeds, and its attention on the same function was kept:

# %%
older = course.recorded("look_inside")
print(f"{older['steps']:,} steps; loss by seed", [round(run["within"], 2) for run in older["runs"]])
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6))
for axis, habit in zip(axes, ("previous", "first", "induction"), strict=True):
    grid = torch.tensor([run["habits"][habit] for run in older["runs"]]).flatten(0, 1)
    axis.imshow(grid, cmap="Blues", vmin=0, vmax=0.7, aspect="auto")
    for (row, column), value in zip(
        torch.cartesian_prod(torch.arange(6), torch.arange(4)).tolist(), grid.flatten(), strict=True
    ):
        axis.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.4 else "black"
        )
    labels = [f"seed {run['seed']}, layer {layer}" for run in older["runs"] for layer in (0, 1)]
    axis.set_yticks(range(6), labels if habit == "previous" else [""] * 6)
    axis.set(title=habit, xlabel="head", xticks=range(4))
    axis.grid(visible=False)
plt.show()

# %% [markdown]
# *Figure: three grids of numbers, two layers of three seeds down, four heads across: mean attention to the previous token, to the
# first token, and to the token after an earlier copy.*


# %%
older_names = [token.replace("\n", "↵").replace(" ", "·")[-9:] for token in older["maps"]["tokens"]]


def picture(layer, head):
    """The recorded attention of one head of the first seed as a matrix."""
    rows = [[float(w) for w in row.split()] for row in older["maps"]["hundredths"][layer][head].split("/")]
    return torch.tensor([row + [0.0] * (len(rows) - len(row)) for row in rows]) / 100


marks = {"on line breaks": ["↵" in name for name in older_names], "on (": [name == "(" for name in older_names]}
for head in range(4):
    weights_SS = picture(1, head)[5:]
    shares = {what: weights_SS[:, torch.tensor(where)].sum(-1).mean() for what, where in marks.items()}
    print(f"layer 1, head {head}: " + ", ".join(f"{share:.0%} {what}" for what, share in shares.items()))
show_heads({f"2,000 steps: layer 1, head {head}": picture(1, head) for head in (2, 1)}, older_names)

# %% [markdown]
# *Figure: the first forty tokens of the same function, seen by two heads of the older model. On the left tokens inside brackets
# look back at the bracket that opened: dark columns under each `(`. On the right they look at the last line break and its indentation.*
#
# Nobody asked for a bracket head or for a line head. Knowing that a bracket is open helps to predict the next token, and there is
# one kind of layer that can fetch it.
#
# And the induction head? In none of the three seeds is there one. It takes two heads: one in the *first* layer that looks at the
# token before, and one above it that uses what the first has written. Here the heads of the first layer average over dozens of
# tokens to the end. Larger models form such pairs early in training (Olsson et al. 2022); this one, in four million tokens, has
# not.

# %% [markdown]
# ### What a gate opens for
#
# A SwiGLU of our model has 256 features. Each has a gate, which reads the stream, and a column of the down matrix, which is what
# it writes there. For the gates that open *seldom*: which tokens open them, and which next tokens does the write that follows
# favour? (Held against the head, as above.)
#
# **Predict:** what might a feature of a model that reads Python be about?

# %%
from collections import Counter


def describe_gates(layer, count=8):
    """For the most selective gates of a layer: the tokens that open them widest, and what they write in favour of."""
    part, tokens_T = model.blocks[layer].feed_forward, inputs_BS.flatten()
    h_TD = model.blocks[layer].feed_forward_norm(stages[f"attention {layer}"]).flatten(0, 1)
    gate_TI, up_TI = (h_TD @ part.gate_up_FD.T).chunk(2, dim=-1)
    open_TI = F.silu(gate_TI)
    peaked_I = ((open_TI - open_TI.mean(0)) ** 4).mean(0) / open_TI.var(0) ** 2
    say = lambda ids: " ".join(repr(data.tokenizer.decode([i])) for i in ids)  # noqa: E731
    for feature in peaked_I.topk(count).indices.tolist():
        widest_T = open_TI[:, feature].topk(40).indices
        direction_D = part.down_DI[:, feature] * up_TI[widest_T, feature].mean().sign() * model.norm.weight
        favoured = (model.head.weight @ direction_D).topk(4).indices.tolist()
        opens = Counter(tokens_T[widest_T].tolist()).most_common(3)
        share = sum(number for _, number in opens) / 40
        print(f"{feature:4d}  {share:4.0%} of its widest: {say(i for i, _ in opens):40s} writes for {say(favoured)}")
    print(f"gates that are negative, so nearly closed: {(gate_TI < 0).float().mean():.0%}")


describe_gates(layer=0)

# %% [markdown]
# Each row is one feature: the three commonest tokens among its forty widest openings, and then the tokens that its write makes
# likelier. Some read like little rules, such as a feature that opens after `self` and writes a dot. The feed-forward layer has
# been described as a memory of keys and values (Geva et al. 2021, section 2), and at this size one can nearly read it.

# %% [markdown]
# ### When positions go wrong
#
# Two questions about RoPE are still open. First: a checkpoint whose pairs are read in the wrong layout.
#
# **Predict:** the loss was about 4 nats. What is it with the right weights and the wrong pairs?

# %%
wrong = Transformer(replace(config, rope_layout="interleaved"))
wrong.load_state_dict(model.state_dict())
converted = Transformer(wrong.config)
weights = model.state_dict()
for name in weights:
    if name.endswith(("query.weight", "key.weight")):  # sort the rows of each head: 0, 16, 1, 17, ...
        weights[name] = weights[name].unflatten(0, (4, 2, 16)).transpose(1, 2).flatten(0, 2)
converted.load_state_dict(weights)
with torch.no_grad():
    for name, reader in {"as trained": model, "wrong pairs": wrong, "rows sorted": converted}.items():
        logits_BSV = reader(inputs_BS)
        print(f"{name:12s} {F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten()):.3f} nats  (measured here)")
    torch.testing.assert_close(logits_BSV, model(inputs_BS), atol=1e-4, rtol=1e-4)
pairs = older["verdicts"]["other layout"]
print(
    f"after 2,000 steps wrong pairs cost {pairs['mean']:.2f} nats, seeds spread over {pairs['spread']:.2f}  (recorded)"
)

# %% [markdown]
# No exception, no warning, a worse model: the sort of fault that only a comparison finds. Here each head's rows were sorted, and
# all is well again. In lab 02 you write both layouts.
#
# Second: **beyond the trained context**. RoPE can turn by any angle. Our model has read windows of 128 tokens. Give the older one 512.
#
# **Predict:** what happens to the loss at position 129?

# %%
figure, axis = plt.subplots()
labels = {"as it is": "as it is", "linear": "positions squeezed by 4", "yarn": "YaRN, factor 4"}
for (name, label), colour in zip(labels.items(), (ORANGE, GREEN, BLUE), strict=True):
    curves = torch.tensor([run["by_position"][name] for run in older["runs"]])
    at = 512 / curves.shape[1] * (torch.arange(curves.shape[1]) + 0.5)
    axis.plot(at, curves.mean(0), color=colour)
    axis.fill_between(at, curves.amin(0), curves.amax(0), color=colour, alpha=0.2, linewidth=0)
    axis.text(520, curves.mean(0)[-2:].mean(), label, color=colour, va="center")
axis.axvline(128, color="black", linewidth=1, linestyle="--")
axis.text(132, axis.get_ylim()[1], "end of the windows in training", va="top", fontsize=9)
axis.set(xlabel="position (tokens)", ylabel="loss (nats a token)", title="Beyond the trained context (recorded)")
axis.set(xlim=(0, 700), xticks=range(0, 513, 64))
plt.show()
for name, label in labels.items():
    v = older["verdicts"][f"beyond, {name}"]
    says = "resolved" if v["resolved"] else "not resolved"
    print(f"{label:24s} last 64 of 512 tokens: {v['mean']:+.2f} nats, spread {v['spread']:.2f}, {says}")

# %% [markdown]
# *Figure: loss against position, means over three seeds with a band from the lowest to the highest; a dashed line where the
# training windows ended.*
#
# The numbers are for the last 64 of 512 tokens, against the same tokens read in a window as long as in training. As it is, the
# model loses more than a nat there: its slow pairs now stand at angles that they never had in training. Squeezing all positions by
# four brings the angles back, and blurs the near ones, which the fast pairs tell apart. YaRN (Peng et al. 2023, section 3.2) lets
# fast pairs turn as they did and slows the slow ones alone: most of the damage is gone, and no step of training was needed.
# DeepSeek-V3 went from 4K to 128K with YaRN, and trained on a little after each stretch (V3 report, section 4.3).

# %% [markdown]
# ## Take one out
#
# So each part does something. Which of them *matter*? The same two-block model was trained with one thing changed at a time,
# three seeds each; and once more at 24 layers, since the norm's place was a question of depth. The rule stood before the runs:

# %%
parts = course.recorded("block_parts")

# %%
losses = {arm: [run["validation"] for run in about["runs"]] for arm, about in parts["arms"].items()}
order = sorted((arm for arm in losses if not arm.startswith("deep")), key=lambda arm: sum(losses[arm]))
figure, axis = plt.subplots(figsize=(8.5, 4))
for row, arm in enumerate(order):
    resolved = arm != "whole" and parts["verdicts"][arm]["verdict"] != "not resolved"
    colour = BLUE if arm == "whole" else "#9ecae1" if resolved else "#d9d9d9"
    axis.barh(row, sum(losses[arm]) / 3, color=colour, height=0.7)
    axis.plot(losses[arm], [row] * 3, "|", color="black", markersize=9)
axis.axvline(sum(losses["whole"]) / 3, color=BLUE, linewidth=1, linestyle="--")
axis.axvline(parts["even_guess"], color="black", linewidth=1, linestyle=":")
axis.text(parts["even_guess"] - 0.03, 0, "an even guess", ha="right", va="center", fontsize=9)
axis.set_yticks(range(len(order)), order)
axis.set(xlim=(3, 7.1), xlabel="validation loss (nats a token); marks are seeds", title="One part changed (recorded)")
axis.grid(axis="y", visible=False)
plt.show()
for arm, v in parts["verdicts"].items():
    print(f"{arm:16s} {v['mean']:.2f} nats: {v['loses_nats']:+.3f}, spread {v['largest_spread']:.3f}, {v['verdict']}")
peeking = [round(run["as_trained"][-1], 2) for run in parts["arms"]["no mask"]["runs"]]
print("no mask, measured as it was trained, the answer in sight:", peeking)

# %% [markdown]
# *Figure: bars of validation loss, one for each change, sorted; marks are the three seeds; grey where the difference from the
# whole is not resolved; a dashed line at the whole model, a dotted one at an even guess.*
#
# Read it from the bottom of the damage to the top.
#
# - **No mask** is the worst of all, and the best while it trained: with the answer in sight the loss falls to nearly nothing, and
#   with the mask back the model knows less than any other. It learned to copy.
# - **No stream** and **no norm** cost more than a nat with only two blocks.
# - **No attention** leaves a model that sees one token. It still beats the two above.
# - **RoPE** is worth a fifth of a nat. Without it the mask alone tells a little about position: who sees less stands earlier.
# - **SwiGLU against a plain layer** of equal parameters: 0.16, resolved. The question from above is answered, for this size.
# - **No feed-forward layer** is *not resolved*: its mean is 0.24 worse, and its three seeds lie further apart than that.
# - **LayerNorm** cannot be told from RMSNorm, as the one percent promised.
# - **Post-norm** loses a little with two layers, and it is resolved.
#
# And then the last line, at 24 layers. The picture of gradients above spoke for pre-norm; every recent model has it. Here
# **post-norm wins**, by more than half a nat, and by more than the spread. We did not expect it, so what may and what may not be
# concluded? The models are narrow (width 64) and the runs short: 300 steps, one learning rate, tuned for two layers. The deep
# pre-norm model ends *above* the two-layer one, with seeds 0.44 apart: something in it trains badly at this rate. The case against
# post-norm in the literature is about training *without a warm-up* (Xiong et al. 2020), and all of these runs have one. So: at
# this size, rate and length pre-norm has no advantage, and a figure of gradients at step 0 is not an experiment. Whether another rate
# turns the verdict is a question for you: `benchmarks/block_parts.py` has all that it takes.

# %% [markdown]
# ## Where the parameters are
#
# Norms and RoPE are most of the ideas and none of the weight. Built on PyTorch's *meta* device, which has shapes and no memory,
# even the largest models can be asked where their parameters are:
#
# **Predict:** which part of Llama-3.1-405B has four fifths of it? And of our little one?

# %%
groups = {"embedding and head": ("embedding", "head"), "attention": ("attention.",), "SwiGLU": ("feed_forward.",)}
shapes = {"this lesson's": config} | {name: ModelConfig.preset(name) for name in ("Qwen2.5-72B", "Llama-3.1-405B")}
figure, axis = plt.subplots(figsize=(8.5, 2.6))
for row, (name, shape) in enumerate(shapes.items()):
    with torch.device("meta"):
        sizes = {key: p.numel() for key, p in Transformer(shape).named_parameters()}
    total, left = sum(sizes.values()), 0.0
    for (group, marks), colour in zip(groups.items(), (YELLOW, ORANGE, GREEN), strict=True):
        share = sum(n for key, n in sizes.items() if any(m in key for m in marks) and "norm" not in key) / total
        axis.barh(row, share, left=left, color=colour, label=group if row == 0 else None)
        if share > 0.05:
            axis.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", color="white", weight="bold")
        left += share
    axis.text(1.01, row, f"{total:,}", va="center")
    print(f"{name:15s} norms: {1 - left:.4%}")
axis.set_yticks(range(3), shapes)
axis.set(xlim=(0, 1.28), xticks=[], title="Share of the parameters")
axis.invert_yaxis()
axis.grid(visible=False)
axis.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.02))
plt.show()

# %% [markdown]
# *Figure: three bars cut into embedding and head, attention and SwiGLU, with the number of parameters behind each. In the little
# model the vocabulary takes nearly half; in the largest, SwiGLU takes 81 %, attention 18 %, and the vocabulary the sliver that is
# left.*
#
# If you want a model to own more than it uses, that green part is the one to work on. Unit 04 cuts it into experts.

# %% [markdown]
# ## Turn the knobs
#
# How slow should the slowest pair be? Llama 3 raised theta from 10,000 to 500,000 to carry longer contexts (quoted: Llama 3
# report, section 3.2). Below, each dot is a pair. Those under the line come round at least once within the context, so that some
# distances look alike to them; those above see each distance as an angle of its own.

# %%
from course.model import rope_speeds


def knobs(theta=10_000, context=128, head_width=32):
    turn_P = 2 * math.pi / rope_speeds(head_width, float(theta))
    pair_P, slow_P = torch.arange(head_width // 2), turn_P > context
    _, axis = plt.subplots(figsize=(7.5, 3))
    axis.plot(pair_P[~slow_P], turn_P[~slow_P], "o", color=ORANGE, label="comes round within the context")
    axis.plot(pair_P[slow_P], turn_P[slow_P], "o", color=BLUE, label="does not")
    axis.axhline(context, color="black", linestyle="--", linewidth=1)
    title = f"{int(slow_P.sum())} of {len(pair_P)} pairs do not come round"
    axis.set(yscale="log", xlabel="pair", ylabel="tokens a turn", title=title)
    axis.legend(loc="upper left")
    plt.show()


knobs(theta=500_000, context=8192, head_width=128)

# %% [markdown]
# *Figure: tokens a turn for the 64 pairs of a Llama 3 head, a straight line on a logarithmic axis from 6 to some millions; a
# dashed line at the context of 8,192.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import SelectionSlider, interact

controls = interact(
    knobs,
    theta=SelectionSlider(options=[100, 1000, 10_000, 100_000, 500_000, 1_000_000], value=10_000),
    context=SelectionSlider(options=[128, 512, 2048, 8192, 32_768, 131_072], value=2048),
    head_width=SelectionSlider(options=[32, 64, 128], value=128),
)

# %% [markdown]
# Three things to try: a theta of 100, where every pair comes round; the theta that leaves half of the pairs slow at 8,192 tokens; and how
# little the width of the head matters.
#
# ## What we measured
#
# - Every part in the open equals `course.model`'s: norm, both layouts of RoPE, attention, SwiGLU, block, model.
# - A norm in 16 bits fails where squares overflow or vanish; with its mean in float32 it does not.
# - A score under RoPE depends on the distance alone. Pairs read in the wrong layout raise no error and cost more than a nat
#   (recorded, three seeds).
# - Two SwiGLU features multiply two inputs exactly; against a plain layer of equal parameters that is worth 0.16 nats
#   (recorded, three seeds, 300 steps, two layers).
# - Four times beyond its context the model loses 1.3 nats, squeezed 0.65, with YaRN 0.11 (recorded, three seeds).
# - In none of three seeds did a two-layer model form an induction head within 2,000 steps.
#
# **What surprised:** that at 24 narrow layers post-norm wins, against the picture that we drew ourselves; and that a model that sees its answers
# has a wonderful loss and is the worst of all.
#
# **To read**
#
# - Vaswani et al. 2017, *Attention Is All You Need*, section 3: the block, still with the norm on the stream.
# - Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*, section 4.
# - Su et al. 2021, *RoFormer*, sections 3.2 to 3.4: RoPE, with neighbours as pairs.
# - Shazeer 2020, *GLU Variants Improve Transformer*: two pages of results and no explanation, as it says itself.
# - Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*: where the norm stands, and the warm-up.
# - Olsson et al. 2022, *In-context Learning and Induction Heads*.
#
# **Now the lab:** `labs/02_transformer.ipynb`. You write all of these parts with a twist each, and then read a trained model's weights into them.
