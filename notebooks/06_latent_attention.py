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
# # Lesson 06 · Latent attention
#
# To write the next token, a model looks back at every token before it, and it keeps notes about each. LLaMA-3.1-405B keeps 516 kB
# a token. DeepSeek-V3, the larger model, keeps 70 kB, and its attention has as many heads. What did it throw away?
#
# Nothing, as it turns out: it writes its notes in another form. In this lesson you build the cache, shrink it the old way, then DeepSeek's
# way, and meet the three forms in which the same attention can be computed. At the end you run one step of *real* V3 attention, 128 heads
# over 4,096 tokens, on the machine in front of you.
#
# About 45 minutes. Names carry their shape: **B** sequences, **S** new positions, **N** positions so far, **D** width, **H** query heads, **G** kv heads, **C** features of a
# key (**O** that are not turned, **r** that are), **V** of a value, **R** width of the latent, **L** = R + r numbers kept a token. The lab has the same letters.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
torch.manual_seed(6)
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## What is worth keeping
#
# Writing token N + 1, attention needs the key and the value of every earlier position. They do not change, since nothing looks ahead. So they can be
# kept. First without: each step runs the whole sequence again.

# %%
from dataclasses import replace

from course.model import ModelConfig, Transformer

config = replace(ModelConfig.preset("tiny-dense"), context=512)
model = Transformer(config).eval()
tokens_BS = torch.randint(0, config.vocab, (1, 384))

# %% [markdown]
# **Predict:** 384 tokens are fed one by one. How do the times of the steps grow, without a cache and with one?


# %%
@torch.no_grad()
def step_times(caches):
    """Milliseconds of every step, and the logits of the last position."""
    times = []
    for n in range(1, tokens_BS.shape[1] + 1):
        begun = time.perf_counter()
        logits_V = model(tokens_BS[:, n - 1 : n] if caches else tokens_BS[:, :n], caches)[0, -1]
        times.append(1e3 * (time.perf_counter() - begun))
    return torch.tensor(times), logits_V


without, logits_without = step_times(None)
with_cache, logits_with = step_times(model.new_caches(1))
torch.testing.assert_close(logits_with, logits_without, rtol=1e-4, atol=1e-5)
figure, axis = plt.subplots()
for times, name, colour in [(without, "all again", ORANGE), (with_cache, "keys and values kept", BLUE)]:
    axis.plot(times.unfold(0, 9, 1).median(-1).values, color=colour, label=name)
axis.set(xlabel="position", ylabel="time of a step (ms)", title="What a cache saves (measured here)", ylim=(0, None))
axis.legend()
plt.show()
print("the same logits at the end, with and without")

# %% [markdown]
# *Figure: time of a step against position. Without a cache it climbs with the position; with one it stays nearly flat.*
#
# A step with a cache computes one position instead of all. But now it must *read*: all weights, and all that was kept. On large models
# generation is bound by reading, not by computing (unit 08 measures both roofs), and what is kept grows with every user and every token.
#
# ## Half a megabyte a token
#
# How much is kept? For each layer, a key and a value for each kv head, two bytes a number.

# %%
from course.model import PRESETS, kv_bytes_per_token

names = ["deepseek-moe-16b", "mixtral-8x7b", "qwen3-30b-a3b", "qwen2.5-72b", "llama-3.1-405b"]
names += ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "kimi-k2"]


def with_all_heads(c):
    """Bytes a token if every query head kept a key and a value of its own, of the width that the values have."""
    width = c.v_head_dim if c.latent else c.head_width
    return 2 * c.layers * 2 * c.heads * width


print(f"{'':17s} {'layers':>6s} {'heads':>6s} {'keeps a layer':>14s} {'bytes a token':>14s} {'with all heads':>15s}")
for name in names:
    c = PRESETS[name]
    kept = f"{c.kv_lora_rank} + {c.qk_rope_head_dim}" if c.latent else f"2 x {c.kv_heads} x {c.head_width}"
    print(f"{name:17s} {c.layers:6d} {c.heads:6d} {kept:>14s} {kv_bytes_per_token(c):14,} {with_all_heads(c):15,}")

# %% [markdown]
# *Computed from the published shapes, in BF16.* The figures of DeepSeek-V3, Qwen-2.5 72B and LLaMA-3.1 405B are those of table 1 of *Insights into DeepSeek-V3* (2025). Three kinds stand here: all heads keep their own
# (DeepSeek's first mixture), some share (the next four), and a latent (the last four).
#
# **Predict:** a context of 128 K tokens for one user: how many of the 80 GB of a GPU does it fill, for LLaMA-405B, and for DeepSeek-V3?

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
GPUS = 8
for row, name in enumerate(names):
    c = PRESETS[name]
    whole = kv_bytes_per_token(c) * 131_072 / 1e9
    shared = whole if c.latent else whole / min(GPUS, c.kv_heads)
    for axis, size in zip(axes, (whole, shared), strict=True):
        axis.barh(row, size, color=BLUE if c.latent else SKY)
        axis.text(size * 1.1, row, f"{size:.1f}", va="center", fontsize=9)
for axis, title in zip(axes, ("In all", f"On each of {GPUS} GPUs that share the heads out"), strict=True):
    axis.set(xscale="log", xlim=(1, 200), xlabel="cache of 131,072 tokens (GB)", title=title)
    axis.grid(axis="y", visible=False)
axes[0].set_yticks(range(len(names)), names)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# *Figure: bars of gigabytes for 131,072 tokens on a logarithmic axis, nine models, dark for those with latent attention. In all, LLaMA-405B leads
# with 68 GB and DeepSeek-V3 has 9. On each of eight GPUs LLaMA has 8.5 and DeepSeek-V3 still 9.2.*
#
# Look at the right side before you believe a bar chart. Eight GPUs that share the heads of LLaMA out keep one kv head each. A latent is not made of heads: *every* GPU
# needs all of it. By GPU the two are even. What V3 gains is that it need not share heads out so far: its attention runs in groups of 4 GPUs, and
# 80 such groups have users of their own (V3 report, section 3.4.2).
#
# ## Fewer heads
#
# The old way to shrink a cache is to let several query heads share one key and value: *grouped-query attention* (Ainslie et al. 2023). Nothing is
# computed in a new way; a kv head is used more often.


# %%
def attention(q_BHSC, k_BGNC, v_BGNV, scale):
    """S = N positions, causal. Query head h reads kv head h // (H / G)."""
    H, G, S = q_BHSC.shape[1], k_BGNC.shape[1], q_BHSC.shape[2]
    k_BHNC, v_BHNV = (kept.repeat_interleave(H // G, dim=1) for kept in (k_BGNC, v_BGNV))
    scores_BHSN = scale * q_BHSC @ k_BHNC.mT
    later_SN = torch.ones(S, S, dtype=torch.bool).triu(1)
    return scores_BHSN.masked_fill(later_SN, float("-inf")).softmax(-1) @ v_BHNV


from course.model import causal_attention

for G in (8, 4, 2, 1):
    q_BHSC, k_BGNC, v_BGNV = torch.randn(1, 8, 20, 16), torch.randn(1, G, 20, 16), torch.randn(1, G, 20, 16)
    torch.testing.assert_close(attention(q_BHSC, k_BGNC, v_BGNV, 0.25), causal_attention(q_BHSC, k_BGNC, v_BGNV))
    print(f"8 query heads, {G} kv heads: {k_BGNC.numel() + v_BGNV.numel():5,} numbers kept")

# %% [markdown]
# Eight heads that share four keys have fewer ways to differ. That is a loss of *something*; whether it is felt is a question for an experiment, below.
#
# ## A latent
#
# DeepSeek's idea: keep one narrow vector a token, the *latent* $c = W^{down} x$, and make the keys and values of **all** heads from it when they are needed,
# $k = W^{UK} c$, $v = W^{UV} c$. Nothing is shared between heads; each has matrices of its own. What is given up is rank: all keys and all values of a token come
# out of R numbers.
#
# **Predict:** V3 has 128 heads of 128 features: 16,384 numbers a key, from a stream that is 7,168 wide. What is the highest rank that keys *and* values together could have, and
# which do they have with R = 512?

# %%
D, H, C, R = 96, 6, 16, 24
down_RD = torch.randn(R, D) / D**0.5
up_key, up_value = torch.randn(2, H * C, R) / R**0.5
x_ND = torch.randn(200, D)
latent_NR = x_ND @ down_RD.T
keys, values = latent_NR @ up_key.T, latent_NR @ up_value.T
figure, axis = plt.subplots(figsize=(7.5, 3))
plain = x_ND @ torch.randn(2 * H * C, D).T / D**0.5
for matrix, name, colour in [
    (plain, "straight from the stream", ORANGE),
    (torch.cat([keys, values], 1), "through a latent", BLUE),
]:
    axis.semilogy(range(1, 193), torch.linalg.svdvals(matrix).clamp(min=1e-4), color=colour, label=name)
axis.set(
    xlabel="singular value", ylabel="size", title="200 tokens, 192 numbers each of keys and values", ylim=(1e-3, None)
)
axis.axvline(R, color="black", linestyle="--", linewidth=1)
axis.text(R + 2, 2e-3, f"R = {R}")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: singular values on a logarithmic axis. Straight from the stream there are 96, as many as the stream is wide. Through a latent there are 24, then they fall to nothing.*
#
# The stream is 7,168 wide, so that is the highest rank; a latent of 512 has a fourteenth of it. Grouped heads save by *using the same key twice*, a latent by
# *describing many keys briefly*. On paper the second is the richer: eight kv heads of 128 features keep 2 x 8 x 128 = 2,048 numbers, three and a half times V3's.
#
# ## Nobody needs the keys
#
# Now the trick that makes it fast. A score is a query times a key, and the key is a matrix times the latent:
#
# $$q^\top k = q^\top (W^{UK} c) = (W^{UK\top} q)^\top c$$
#
# Multiply the *query* with the matrix, once, and compare it with the latents as they lie in the cache. No key is ever made. Values as well: mix the latents first, and multiply the
# *mixture* with $W^{UV}$, once. This is called *absorbing* the matrices.

# %%
q_HC = torch.randn(H, C)
by_keys_HN = torch.einsum("hc,nhc->hn", q_HC, keys.view(200, H, C))
absorbed_HR = torch.einsum("hc,hcr->hr", q_HC, up_key.view(H, C, R))
by_latents_HN = absorbed_HR @ latent_NR.T
torch.testing.assert_close(by_latents_HN, by_keys_HN, rtol=1e-4, atol=1e-4)

weights_HN = (by_keys_HN / C**0.5).softmax(-1)
by_values_HC = torch.einsum("hn,nhc->hc", weights_HN, values.view(200, H, C))
mixed_HR = weights_HN @ latent_NR
torch.testing.assert_close(
    torch.einsum("hr,hcr->hc", mixed_HR, up_value.view(H, C, R)), by_values_HC, rtol=1e-4, atol=1e-4
)
print("scores and results are the same, and no key or value was made")

# %% [markdown]
# ## Positions are in the way
#
# There is a catch, and it is RoPE. It turns each key by an angle of its position, *after* $W^{UK}$: $q^\top R_{m}^\top R_{n} W^{UK} c_n$. The turn stands between query and matrix, and it is another one for
# each position.
#
# **Predict:** absorb anyway, with the query's turn alone. For which distances are the scores right?

# %%
from course.model import apply_rope, rope_table

cos, sin = rope_table(torch.arange(200), C)
turned_keys = apply_rope(keys.view(200, H, C).transpose(0, 1)[None], cos, sin)[0]
q_HQC = torch.randn(H, 64, C)  # 64 queries a head, all at position 199
turned_query = apply_rope(q_HQC[None], cos[-1:], sin[-1:])[0]
right_HQN = turned_query @ turned_keys.mT
wrong_HQN = turned_query @ up_key.view(H, C, R) @ latent_NR.T
figure, axis = plt.subplots(figsize=(7.5, 3))
off_N = (wrong_HQN - right_HQN).abs().mean((0, 1)) / right_HQN.abs().mean((0, 1))
axis.plot(off_N, color=ORANGE)
axis.axhline(1, color="black", linestyle="--", linewidth=1)
axis.set(xlabel="position of the key (the query stands at 199)", ylabel="error / size of the score")
axis.set(title="Absorbing across a turn", ylim=(0, None))
plt.show()

# %% [markdown]
# *Figure: error of a score, over its size, against the key's position: nothing at position 0, and after a few positions as large as the score itself, or larger.*
#
# It is right at position 0 alone, where the turn is none. DeepSeek's way out is to give the positions a channel of their own: each key gets 64 more features
# that *are* turned, made from the stream directly, and **one for all heads**. The 128 others are not turned at all. A score is the sum of both parts. So a token keeps
# 512 + 64 numbers, and the absorbed product stays right.
#
# ## All of it
#
# Here it is, expanded: every key and value is made. One more detail of the report: the latent is normed.


# %%
def latent_parts(x_BSD, layer, cos, sin):
    """Queries [B, H, S, C], latents [B, S, R] and turned keys [B, S, r] of an attention layer of course.model."""
    c = layer.config
    q = layer.query_up(layer.query_norm(layer.query_down(x_BSD))).unflatten(-1, (c.heads, -1)).transpose(1, 2)
    nope, rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
    q_BHSC = torch.cat([nope, apply_rope(rope, cos, sin, "interleaved")], dim=-1)
    latent_BSR, k_rope = layer.kv_down(x_BSD).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
    return q_BHSC, layer.kv_norm(latent_BSR), apply_rope(k_rope[:, None], cos, sin, "interleaved")[:, 0]


def expanded(q_BHSC, latent_BNR, k_rope_BNr, layer, scale):
    """Make every key and value, then attend as always."""
    c = layer.config
    kv = layer.kv_up(latent_BNR).unflatten(-1, (c.heads, -1)).transpose(1, 2)
    k_nope, v_BHNV = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
    k_BHNC = torch.cat([k_nope, k_rope_BNr[:, None].expand(-1, c.heads, -1, -1)], dim=-1)
    return attention(q_BHSC, k_BHNC, v_BHNV, scale)


# %% [markdown]
# And absorbed. The `S` queries of one head and of another meet the same rows, latent and turned key side by side: it is attention with a *single* key head of L features,
# and values of R.


# %%
def absorbed(q_BHSC, latent_BNR, k_rope_BNr, layer, scale):
    """Compare with the latents as they lie there."""
    c = layer.config
    per_head = layer.kv_up.weight.unflatten(0, (c.heads, -1))
    key_HOR, value_HVR = per_head.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
    nope, rope = q_BHSC.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
    q_BHSL = torch.cat([nope @ key_HOR, rope], dim=-1)
    rows_BNL = torch.cat([latent_BNR, k_rope_BNr], dim=-1)
    return attention(q_BHSL, rows_BNL[:, None], latent_BNR[:, None], scale) @ value_HVR.mT


# %% [markdown]
# **Predict:** which scale? A key has 128 + 64 features, but the absorbed query is compared over 512 + 64.

# %%
from course.model import LatentAttention

tiny = replace(ModelConfig.preset("tiny-deepseek-v3"), context=256, kv_lora_rank=96)
layer = LatentAttention(tiny).double()
for matrix in (m.weight for m in layer.children() if isinstance(m, torch.nn.Linear)):
    torch.nn.init.normal_(matrix, std=0.2)  # scores of a trained model's size
x_BSD = torch.randn(2, 40, tiny.width, dtype=torch.float64)
cos, sin = (table.double() for table in rope_table(torch.arange(40), tiny.rope_width))
parts = latent_parts(x_BSD, layer, cos, sin)
scale = (tiny.qk_nope_head_dim + tiny.qk_rope_head_dim) ** -0.5
y_BHSV = expanded(*parts, layer, scale)
apart = (absorbed(*parts, layer, scale) - y_BHSV).abs().max().item()
torch.testing.assert_close(layer.output(y_BHSV.transpose(1, 2).flatten(2)), layer(x_BSD, cos, sin))
print(f"ours equals course.model.LatentAttention; expanded and absorbed differ by {apart:.0e}")
wrong_scale = (tiny.kv_lora_rank + tiny.qk_rope_head_dim) ** -0.5
off = (absorbed(*parts, layer, wrong_scale) - y_BHSV).norm() / y_BHSV.norm()
print(f"with the root of {tiny.kv_lora_rank + tiny.qk_rope_head_dim} instead: {off:.0%} off, and no error message")

# %% [markdown]
# The same scale: absorbing changes the order of a product, not the product. Dividing by the root of 576 instead of 192 is a mistake that no shape catches; in V3 the scores come out
# too small by a factor of 1.7, and the attention too flat.
#
# (One thing more is in there: `query_down` and `query_up`. Queries go through a latent too, of 1,536 numbers in V3. They are not cached, so this saves nothing in generation; it saves parameters, and activations in
# training: V2 report, section 2.1.2.)
#
# ## Three forms, three costs
#
# During generation the cache may hold one of two things, and there are three ways to take a step:
#
# - **expanded**: keep all keys and values. Little to compute, much to keep and to read;
# - **re-expanded**: keep latents, and expand all of them again in every step. Little to keep, and absurdly much to compute;
# - **absorbed**: keep latents, and compare with them.
#
# In FLOPs and bytes, for one layer of V3 and one new token:


# %%
def costs(form, N, c=PRESETS["deepseek-v3"]):
    """GFLOP and megabytes read of one step of one layer, after the query is made and before the output; BF16."""
    H, O, r, V, R = c.heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank
    up = H * (O + V) * R
    if form == "expanded":
        flops, read = 2 * up + 2 * N * H * (O + r + V), 2 * (up + N * H * (O + r + V))
    elif form == "re-expanded":
        flops, read = 2 * N * up + 2 * N * H * (O + r + V), 2 * (up + N * (R + r))
    else:
        flops, read = 2 * up + 2 * N * H * (2 * R + r), 2 * (up + N * (R + r))
    return flops / 1e9, read / 1e6


for form in ("expanded", "re-expanded", "absorbed"):
    flops, read = costs(form, 4096)
    print(f"{form:12s} {flops:7.2f} GFLOP, {read:6.1f} MB read, {1e3 * flops / read:6.1f} FLOPs a byte  (computed)")
for N in (4096, 131_072):
    more = costs("absorbed", N)[0] / costs("expanded", N)[0]
    print(f"{N:,} tokens: absorbed over expanded {more:.1f} times the FLOPs  (computed)")

# %%
contexts = 2 ** torch.arange(8, 18)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for form, colour in [("expanded", ORANGE), ("re-expanded", PINK), ("absorbed", BLUE)]:
    flops, read = zip(*(costs(form, int(N)) for N in contexts), strict=True)
    axes[0].loglog(contexts, flops, "o-", markersize=4, color=colour, label=form)
    axes[1].loglog(contexts, read, "o-", markersize=4, color=colour, label=form)
axes[0].set(xlabel="tokens so far", ylabel="GFLOP", title="What a step computes", xscale="log")
axes[1].set(xlabel="tokens so far", ylabel="MB", title="What a step reads")
for axis in axes:
    axis.set_xscale("log", base=2)
axes[0].legend()
plt.show()

# %% [markdown]
# *Figure: GFLOP and megabytes of a step against the context, logarithmic, three lines. In FLOPs re-expanding stands far above, absorbed a little above expanded. In bytes expanded
# stands far above the other two, which read the same: the absorbed line covers that of re-expanding.*
#
# For long contexts the ratio is (2 R + r) / (O + r + V) = 1,088 / 320 = 3.4: every head compares 576 numbers and mixes 512, where it had 192 and 128. At 4,096 tokens the two products with the up matrices, which both
# forms pay once, still make it a little less.
#
# ## Real V3 attention, here
#
# Enough of counting. One layer, V3's real sizes, 128 heads, 4,096 tokens in the cache, one query, on one thread of this CPU. (The numbers in it are random. It takes some seconds: the weights of
# this part alone are 67 MB, and the expanded cache 0.7 GB.)
#
# **Predict:** absorbed computes over three times as much as expanded. Which of the three is the fastest, and by how much?

# %%
v3, N = PRESETS["deepseek-v3"], 4096
H, O, r, V, R = v3.heads, v3.qk_nope_head_dim, v3.qk_rope_head_dim, v3.v_head_dim, v3.kv_lora_rank
up_weight = torch.randn(H * (O + V), R) / R**0.5
key_HOR, value_HVR = up_weight.view(H, O + V, R).split([O, V], dim=1)
rows_NL = torch.randn(N, R + r)
q_H1O, q_H1r = torch.randn(H, 1, O), torch.randn(H, 1, r)
SCALE = (O + r) ** -0.5


def expand():
    kv = (rows_NL[:, :R] @ up_weight.T).view(N, H, O + V).transpose(0, 1)
    k_HNC = torch.cat([kv[..., :O], rows_NL[:, R:].expand(H, N, r)], dim=-1)
    return k_HNC, kv[..., O:].contiguous()


def look(k_HNC, v_HNV):
    q_H1C = torch.cat([q_H1O, q_H1r], dim=-1)
    return (SCALE * q_H1C @ k_HNC.mT).softmax(-1) @ v_HNV


def look_absorbed():
    q_HL = torch.cat([q_H1O @ key_HOR, q_H1r], dim=-1)[:, 0]
    weights_HN = (SCALE * q_HL @ rows_NL.T).softmax(-1)
    return (weights_HN @ rows_NL[:, :R])[:, None] @ value_HVR.mT


# %%
def milliseconds(work, times):
    """The shortest of some runs, and what came out."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        result = work()
        taken.append(1e3 * (time.perf_counter() - begun))
    return min(taken), result


def race():
    """Time and result of each form, and the bytes that it keeps."""
    keys_and_values = expand()
    measured = {
        "expanded": milliseconds(lambda: look(*keys_and_values), 8),
        "re-expanded": milliseconds(lambda: look(*expand()), 2),
        "absorbed": milliseconds(look_absorbed, 8),
    }
    large, small = sum(part.nbytes for part in keys_and_values), rows_NL.nbytes
    return measured, {"expanded": large, "re-expanded": small, "absorbed": small}


# %%
threads = torch.get_num_threads()
torch.set_num_threads(1)
measured, kept = race()
torch.set_num_threads(threads)
for form, (taken, y_H1V) in measured.items():
    torch.testing.assert_close(y_H1V, measured["expanded"][1], rtol=1e-3, atol=1e-3)
    print(f"{form:12s} {taken:7.1f} ms, {kept[form] / 1e6:6.1f} MB kept, {costs(form, N)[0]:6.2f} GFLOP computed")
print("times measured here, one thread, float32")
faster = measured["expanded"][0] / measured["absorbed"][0]
more = costs("absorbed", N)[0] / costs("expanded", N)[0]
print(f"absorbed is {faster:.1f} times as fast as expanded, with {more:.1f} times its FLOPs")

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
rows = [("time (ms)", [taken for taken, _ in measured.values()]), ("kept (MB)", [size / 1e6 for size in kept.values()])]
rows.append(("computed (GFLOP)", [costs(form, N)[0] for form in measured]))
for axis, (what, sizes) in zip(axes, rows, strict=True):
    axis.bar(list(measured), sizes, color=[ORANGE, PINK, BLUE])
    axis.set(title=what, yscale="log", ylim=(min(sizes) / 3, max(sizes) * 3))
    for place, size in enumerate(sizes):
        axis.text(place, size * 1.1, f"{size:.3g}", ha="center", fontsize=9)
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="x", labelsize=9)
plt.show()

# %% [markdown]
# *Figure: three groups of bars for the three forms, on logarithmic axes: time, memory kept, FLOPs. Absorbed is shortest in time and in memory, though not in FLOPs; re-expanded is the longest in time by far.*
#
# The form that computes more is the faster one, because it *reads* so much less: 9 MB of latents instead of 0.7 GB of keys and values. A CPU and a GPU agree about that. On an H800 the
# absorbed form goes one step further: 128 heads that compare with the same rows do so many FLOPs for each byte that the computation, not the memory, becomes the limit. Unit 14 builds that kernel.
#
# For a *prompt*, where thousands of queries arrive at once, the bill is another: every query pays the higher price, while the expansion is paid once for all. So the model expands
# prompts and absorbs in generation. `course.model` switches where the FLOPs do:

# %%
with torch.device("meta"):
    real = LatentAttention(v3)
most = max(S for S in range(1, 4096) if real.absorbing_pays(S))
print(f"V3's sizes: absorbing pays for up to {most} new tokens at once  (computed)")

# %% [markdown]
# ## What does a small cache cost?
#
# So the latent is cheap to keep and cheap to read. Is it as *good*? The recorded experiment trains a model of four layers with eight heads of 16 features in five ways: all heads, 2 kv heads, 1 kv head, and latents
# that keep as much as those two. The feed-forward layers are sized so that all five have the same parameters to half a percent. The rule was fixed before.
#
# **Predict:** order the five by loss.

# %%
record = course.recorded("attention_kinds")
print(f"\n{'':12s} {'bytes a token':>13s} {'parameters':>11s} {'loss':>7s} {'difference':>11s} {'largest spread':>15s}")
for arm, row in record["arms"].items():
    v = row["verdict"]
    shown = f"{arm:12s} {row['kv_bytes']:13,} {row['parameters']:11,} {v['mean']:7.3f} {v['loses']:+11.3f}"
    print(f"{shown} {v['largest_spread']:15.3f}  {v['verdict'] if arm != '8 kv heads' else ''}")

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.4))
for row, colour in zip(record["arms"].values(), [BLACK, ORANGE, PINK, BLUE, SKY], strict=True):
    losses = [run["validation"][-1] for run in row["runs"]]
    axis.plot([row["kv_bytes"]] * len(losses), losses, "o", color=colour, alpha=0.7, markersize=8)
axis.legend(list(record["arms"]), loc="center left", bbox_to_anchor=(1, 0.5))
axis.set(xlabel="bytes kept a token (BF16)", ylabel="validation loss (nats a token)", title="What a small cache costs")
axis.set_xscale("log", base=2)
plt.show()

# %% [markdown]
# *Figure: validation loss against the bytes kept a token, a dot a seed. The five clouds overlap: each is up to a tenth of a nat high, and their means lie within six hundredths.*
#
# **Nothing is resolved.** The means stand in the order that the literature has: all heads, the two latents, 2 kv heads, 1 kv head. But two seeds of one arm differ more than two arms do, and by the rule that is
# the end of it. One look more, *chosen afterwards*: seed by seed all arms read the same batches, so their differences can be taken within a seed.

# %%
full = [run["validation"][-1] for run in record["arms"]["8 kv heads"]["runs"]]
for arm, row in record["arms"].items():
    apart = [run["validation"][-1] - other for run, other in zip(row["runs"], full, strict=True)]
    print(f"{arm:12s} minus 8 kv heads, seed by seed: " + "  ".join(f"{one:+.3f}" for one in apart))

# %% [markdown]
# Fewer kv heads are worse in each of three seeds; a latent is better in one and worse in two. That is a hint, no more. For what three minutes on a laptop cannot see, the V2 report has larger runs (*quoted*, appendix D): among 7 B dense models, all heads
# beat 8 shared ones, and these a single one; and among mixtures, latent attention beat all heads while it kept 14 % (at 16 B parameters) and 4 % (at 250 B) of their cache.
#
# ## Longer than trained
#
# V3 was trained on 4,096 tokens and then stretched to 128 K with YaRN (V3 report, section 4.3). Lesson 02 showed what it does to the speeds of the pairs. It does a second thing: over a longer context a
# softmax has more keys to spread over, and YaRN sharpens it, by a factor of $0.1 \ln(s) + 1$ for a stretch by $s$. In a latent key that factor cannot sit in the cosine and the sine, as
# elsewhere: the part that is not turned never meets them. So DeepSeek multiplies the scale of the softmax with its square.
#
# **Predict:** for V3's stretch of 40, by how much does it multiply every score?

# %%
from course.model.rope import yarn_mscale

factor = yarn_mscale(40.0)
print(f"{factor:.4f} squared is {factor**2:.4f}")
print(f"the model's scale {real.scale:.5f}; 1 / sqrt(192) is {192**-0.5:.5f}")
assert abs(real.scale - factor**2 * 192**-0.5) < 1e-9

scores = 2 * torch.randn(200, 131_072)
lengths = 2 ** torch.arange(8, 18)
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for size, name, colour in [(1.0, "scale as trained", ORANGE), (factor**2, "sharpened by YaRN", BLUE)]:
    used = [torch.special.entr((size * scores[:, :n]).softmax(-1)).sum(-1).exp().mean() for n in lengths]
    axis.loglog(lengths, used, "o-", color=colour, label=name)
axis.axvline(4096, color="black", linestyle="--", linewidth=1)
axis.text(4300, 12, "trained on 4,096")
axis.set(xlabel="keys", ylabel="keys really used", title="Random scores with a standard deviation of 2")
axis.set_xscale("log", base=2)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: how many keys a softmax really uses (the exponential of its entropy) against how many there are, on logarithmic axes. As trained the number grows with the keys; sharpened it grows much more slowly, and at 131,072
# it is about where the other line stood at 4,096.*
#
# At the left, where the model was trained, the sharpened softmax is too sharp; at the right it uses about as many keys as the model was used to. (The scores are random and their size is our choice: the picture shows the direction of the effect, not its size in V3.
# YaRN's formula was found by fitting: Peng et al. 2023, section 3.4.)
#
# ## Turn the knobs
#
# What would V3 keep with other choices? Below the latent stand eight kv heads of 128, as LLaMA-3.1 has, and all heads.


# %%
def knobs(latent=512, rope=64, heads=128, layers=61):
    kept = {"latent": latent + rope, "8 kv heads": 2 * 8 * 128, "all heads": 2 * heads * 128}
    _, axis = plt.subplots(figsize=(8, 2.2))
    sizes = [2 * layers * numbers / 1e3 for numbers in kept.values()]
    axis.barh(list(kept), sizes, color=[BLUE, SKY, SKY])
    for row, size in enumerate(sizes):
        axis.text(size * 1.1, row, f"{size:,.0f} kB", va="center")
    flops = (2 * latent + rope) / (128 + rope + 128)
    axis.set(
        xscale="log", xlim=(10, 2e4), xlabel="kB a token", title=f"absorbed: {flops:.1f} times the FLOPs of expanded"
    )
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    plt.show()


knobs()

# %% [markdown]
# *Figure: three bars of kilobytes a token on a logarithmic axis: 70 with the latent, 250 with eight kv heads, 3,998 with all heads.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import IntSlider, interact

controls = interact(
    knobs,
    latent=IntSlider(512, 64, 2048, 64),
    rope=IntSlider(64, 16, 128, 16),
    heads=IntSlider(128, 16, 128, 16),
    layers=IntSlider(61, 16, 128),
)

# %% [markdown]
# Three things to try: the latent at which absorbing costs as many FLOPs as expanding; how little the turned part matters; and the number of heads, which the latent does not feel.
#
# ## What we measured
#
# - A cache turns a step over the whole sequence into a step over one token, with the same logits.
# - DeepSeek-V3 keeps 70,272 bytes a token, LLaMA-3.1-405B 516,096 (computed from published shapes). On each of eight GPUs that share heads out the two are even.
# - Keys and values from a latent have its rank. Absorbed and expanded attention are equal to rounding, in our lines and in `course.model`.
# - At V3's real sizes the absorbed form does over three times the FLOPs of the expanded one and is several times as fast (measured here, one thread); re-expanding is the slowest of all.
# - Absorbing pays for up to 170 new tokens at once; beyond, expanding does (computed).
# - Five kinds of attention with the same parameters, three seeds (recorded): their losses are not resolved.
#
# **What surprised:** that computing more is faster; and that a cache seven times smaller is no smaller on each GPU.
#
# **To read**
#
# - Ainslie et al. 2023, *GQA*, section 2: shared kv heads.
# - DeepSeek-AI 2024, *DeepSeek-V2*, section 2.1 and appendices B to D: latent attention, and fewer heads compared.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, sections 2.1.1 and 4.3.
# - DeepSeek-AI 2025, *Insights into DeepSeek-V3*, table 1: what models keep.
# - Peng et al. 2023, *YaRN*, sections 3.2 to 3.4.
#
# **Now the lab:** `labs/06_latent_attention.ipynb`. You write the cache, the groups, the latent, the turned channel, and absorb it yourself; then count what real models keep.
