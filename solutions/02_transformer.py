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
# # Lab 02 · A transformer
#
# In the lesson you watched a transformer block being built, and each part being taken out again. Here you write the parts, each
# with something that the lesson did not need: a second convention, a second layout, a window, a cache. Those are what you meet
# when you load other people's checkpoints. When you are done, the last cells load a trained model into your own functions and let
# it write.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Stay with PyTorch's operations where you can. The check looks at values only; but in lab 04 your functions are *trained through*, and a
#   gradient does not find its way through NumPy or `.tolist()`.
# - Stuck? `course hint 02.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# Names carry their shape: `x_BSD` is `[B, S, D]`. **B** sequences, **S** positions in each, **D** width of the model, **H**
# heads, **C** features of a head, **P** pairs of features, **I** hidden width of a feed-forward layer, **F** = 2I. A matrix
# `down_DI` leads from I numbers to D numbers: `x @ down_DI.T`.

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
# ## 02.1 · RMSNorm, twice
#
# Each vector is divided by its root mean square, then multiplied feature by feature with a learned weight. The first half is the
# same everywhere:
#
# $$\mathrm{norm}(x) = \frac{x}{\sqrt{\frac{1}{D} \sum_i x_i^2 + \varepsilon}}$$
#
# It is computed in **float32**, whatever the dtype of $x$: a float16 cannot hold the square of 256. For the second half there are two
# conventions, and with 16-bit numbers they do not give the same result:
#
# - `zero_centred=False`, Llama's way: round norm(x) to the dtype of `x` **first**, then multiply by the weight, in that dtype.
# - `zero_centred=True`, Gemma's way: the weight is stored as its distance from one. Multiply by `1 + weight`, all in float32 (the
#   sum `1 + weight` as well), and round to the dtype of `x` **last**.
#
# For example, with `x = [3, 4]`, `eps = 0` and `weight_D = [2, 0.5]`: norm(x) is `[0.8485, 1.1314]`, and the result `[1.6971, 0.5657]` in the
# first convention, `[2.5456, 1.6971]` in the second. With eps above 0, a vector of zeros
# stays zero in both.
#
# PyTorch's own RMSNorm functions are out of bounds.
#
# | | shape | |
# |---|---|---|
# | `x` | `[..., D]` | float32, bfloat16 or float16; any number of dimensions before the last |
# | `weight_D` | `[D]` | same dtype |
# | `eps` | float | |
# | `zero_centred` | bool | |
# | returns | `[..., D]` | the dtype of `x` |
#
# **Exercise 02.1** · difficulty 2 of 5 · 10 minutes · 10 points


# %% tags=["exercise:02.1"]
# exercise 02.1
def rms_norm(x: Tensor, weight_D: Tensor, eps: float, zero_centred: bool) -> Tensor:
    """Each vector divided by its root mean square, and multiplied by the weight in one of two conventions."""
    ### BEGIN SOLUTION
    x32 = x.to(torch.float32)
    mean_of_squares = (x32 * x32).mean(-1, keepdim=True)
    unit = x32 / (mean_of_squares + eps).sqrt()
    if not zero_centred:
        return unit.to(x.dtype) * weight_D
    return (unit * (weight_D.to(torch.float32) + 1)).to(x.dtype)
    ### END SOLUTION


# %% tags=["check:02.1", "nbval-check-output"]
check("02.1", rms_norm)

# %% [markdown]
# ## 02.2 · RoPE, in both layouts
#
# The features of a head are taken in pairs, and each pair is turned like the hand of a clock, by an angle that grows with the
# position. Pair $i$ of the `rotary / 2` pairs turns by
#
# $$\mathrm{angle} = \mathrm{position} \cdot \theta^{-2i/\mathrm{rotary}} \qquad (a, b) \rightarrow (a \cos - b \sin,\; b \cos + a \sin)$$
#
# Three things that checkpoints do differently:
#
# - **Which features are a pair.** `layout="half"`: feature $i$ with feature $i + \mathrm{rotary}/2$ (Llama, Mixtral, Qwen).
#   `layout="interleaved"`: feature $2i$ with feature $2i + 1$ (DeepSeek, GPT-J). Each feature *stays in its place* either way.
# - **How many features turn.** Only the first `rotary` of the C features; the others pass as they are (GPT-NeoX turned a quarter).
# - **Where a row stands.** Row $s$ of `x` stands at position `positions_S[s]`: any whole numbers from 0 on, in any order. With a
#   cache, the new row may be the only one, and stand at position 900.
#
# For example, take one vector `[1, 2, 3, 4]` at position 1, with theta = 100 and rotary = 4. The first pair turns by 1 radian,
# the second by 0.1. Layout "half" has the pairs (1, 3) and (2, 4) and gives `[-1.9841, 1.5907, 2.4624, 4.1797]`; "interleaved"
# has (1, 2) and (3, 4) and gives `[-1.1426, 1.9221, 2.5857, 4.2795]`.
#
# Compute the angles in float32 or better.
#
# | | shape | |
# |---|---|---|
# | `x_BHSC` | `[B, H, S, C]` float32 | queries or keys |
# | `positions_S` | `[S]` int64 | |
# | `theta` | float | |
# | `rotary` | int | even, at most C |
# | `layout` | str | `"half"` or `"interleaved"` |
# | returns | `[B, H, S, C]` float32 | |
#
# **Exercise 02.2** · difficulty 3 of 5 · 20 minutes · 15 points


# %% tags=["exercise:02.2"]
# exercise 02.2
def rope(x_BHSC: Tensor, positions_S: Tensor, theta: float, rotary: int, layout: str) -> Tensor:
    """The first `rotary` features of each head, turned in pairs by their position; the rest as they are."""
    ### BEGIN SOLUTION
    pair_P = torch.arange(rotary // 2, device=x_BHSC.device)
    angle_SP = positions_S.float().unsqueeze(1) * theta ** (-2 * pair_P / rotary)
    if layout == "half":
        one_P, two_P = pair_P, pair_P + rotary // 2
    else:
        one_P, two_P = 2 * pair_P, 2 * pair_P + 1
    one, two = x_BHSC[..., one_P], x_BHSC[..., two_P]
    out_BHSC = x_BHSC.clone()
    out_BHSC[..., one_P] = one * angle_SP.cos() - two * angle_SP.sin()
    out_BHSC[..., two_P] = two * angle_SP.cos() + one * angle_SP.sin()
    return out_BHSC
    ### END SOLUTION


# %% tags=["check:02.2", "nbval-check-output"]
check("02.2", rope)

# %% [markdown]
# ## 02.3 · Causal attention, with a cache and a window
#
# Now the part that lets tokens talk:
#
# $$\mathrm{softmax}\!\left(\frac{q\, k^\top}{\sqrt{C}}\right) v$$
#
# with a mask, of course. Two things make it more than a triangle.
#
# - **The S queries are the last of the N positions.** During generation the keys of the past lie in a cache, and only a few
#   queries are new: query $s$ stands at position $N - S + s$ and sees no key after that.
#   `F.scaled_dot_product_attention(is_causal=True)` gets just this wrong when S and N differ; the function is out of bounds here, with
#   any arguments.
# - **A window.** Mistral and Gemma let a token see only the nearest `window` positions: its own and the `window - 1` before it. A
#   window of N or more hides nothing.
#
# With S = 2, N = 5 and `window = 3`, `x` marks what is seen:
#
# ```
#             key 0  key 1  key 2  key 3  key 4
# query 0       .      x      x      x      .       stands at position 3
# query 1       .      .      x      x      x       stands at position 4
# ```
#
# Weights of hidden keys are exactly zero, those of the others add to one. Scores can be in the hundreds, of either sign,
# and the result must stay finite and right. Values may have a width V of their own (in DeepSeek's models they do); the scale comes from C.
#
# | | shape | |
# |---|---|---|
# | `q_BHSC` | `[B, H, S, C]` float32 | queries, already turned |
# | `k_BHNC` | `[B, H, N, C]` float32 | keys, already turned; N is at least S |
# | `v_BHNV` | `[B, H, N, V]` float32 | values |
# | `window` | int | at least 1 |
# | returns | `[B, H, S, V]` float32 | |
#
# **Exercise 02.3** · difficulty 3 of 5 · 25 minutes · 15 points · spine


# %% tags=["exercise:02.3"]
# exercise 02.3
def causal_attention(q_BHSC: Tensor, k_BHNC: Tensor, v_BHNV: Tensor, window: int) -> Tensor:
    """Each query's weighted mean of the values it sees: those of its window, its own position the last of them."""
    ### BEGIN SOLUTION
    S, C = q_BHSC.shape[-2:]
    N = k_BHNC.shape[-2]
    scores_BHSN = torch.einsum("bhsc,bhnc->bhsn", q_BHSC, k_BHNC) * C**-0.5
    query_at_S = torch.arange(S, device=q_BHSC.device).unsqueeze(1) + (N - S)
    key_at_N = torch.arange(N, device=q_BHSC.device)
    seen_SN = (key_at_N <= query_at_S) & (key_at_N > query_at_S - window)
    scores_BHSN = scores_BHSN.where(seen_SN, float("-inf"))
    return torch.einsum("bhsn,bhnv->bhsv", F.softmax(scores_BHSN, dim=-1), v_BHNV)
    ### END SOLUTION


# %% tags=["check:02.3", "nbval-check-output"]
check("02.3", causal_attention)

# %% [markdown]
# ## 02.4 · SwiGLU, out of one matrix
#
# $$y = W^{down} \bigl(\mathrm{silu}(W^{gate} x) \odot W^{up} x\bigr) \qquad \mathrm{silu}(z) = z \cdot \mathrm{sigmoid}(z)$$
#
# One large product is faster than two small ones, so gate and up usually lie in *one* matrix, `fused_FD` with 2I rows. In
# which order? There are at least three answers in use, the shapes are the same in all, and a wrong guess gives no error, only
# nonsense:
#
# | `layout` | rows of `fused_FD` | for instance in |
# |---|---|---|
# | `"gate_up"` | all I gate rows, then all I up rows | this course, Mixtral and DeepSeek-V3 in `transformers` |
# | `"up_gate"` | all I up rows, then all I gate rows | the gated MLPs of Mamba and of `diffusers` |
# | `"interleaved"` | gate, up, gate, up, ... beginning with a gate | gpt-oss |
#
# For example, `x = [1]`, `fused_FD = [[1], [2], [3], [4]]` and `down_DI = [[1, 1]]`: in layout "gate_up" the gates are 1 and 2,
# the ups 3 and 4, and the result is silu(1) · 3 + silu(2) · 4 = 9.240. In "up_gate" it is 10.714, in "interleaved" 12.893.
#
# | | shape | |
# |---|---|---|
# | `x` | `[..., D]` float32 | any number of dimensions before the last |
# | `fused_FD` | `[2I, D]` float32 | |
# | `down_DI` | `[D, I]` float32 | |
# | `layout` | str | one of the three |
# | returns | `[..., D]` float32 | |
#
# **Exercise 02.4** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:02.4"]
# exercise 02.4
def swiglu(x: Tensor, fused_FD: Tensor, down_DI: Tensor, layout: str) -> Tensor:
    """down(silu(gate(x)) * up(x)), with gate and up in one matrix."""
    ### BEGIN SOLUTION
    hidden_F = F.linear(x, fused_FD)
    if layout == "interleaved":
        gate_I, up_I = hidden_F.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first_I, second_I = hidden_F.tensor_split(2, dim=-1)
        gate_I, up_I = (first_I, second_I) if layout == "gate_up" else (second_I, first_I)
    return F.linear(gate_I * gate_I.sigmoid() * up_I, down_DI)
    ### END SOLUTION


# %% tags=["check:02.4", "nbval-check-output"]
check("02.4", swiglu)

# %% [markdown]
# ## 02.5 · The block
#
# Now put the four together. A **pre-norm** block: each part reads a normed copy of the stream, and what it returns is added to
# the stream itself.
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{norm}_1(x)) \qquad\quad x \leftarrow x + \mathrm{feedforward}(\mathrm{norm}_2(x))$$
#
# The second line reads the $x$ that the first has made. When this cell is checked, `rms_norm`, `rope`, `causal_attention` and
# `swiglu` are there for you to call, with the arguments of 02.1 to 02.4, in the course's own version: one mistake costs one
# exercise. In detail:
#
# - All norms are Llama's (`zero_centred=False`).
# - `query`, `key` and `value` give each token H * C numbers: the first C belong to head 0, the next C to head 1, and so on. C
#   follows from the shape of `query`; it need not be D / H. `output` takes the H * C results of a token, in the same order, back
#   to D.
# - **If** the weights have a `query_norm` and a `key_norm` (Qwen3 does, older models do not), each head's query and key is normed
#   over its C features, after the heads are split and *before* RoPE.
# - RoPE turns queries and keys, all C features, layout "half", at the positions 0, 1, ..., S - 1.
# - Attention sees all of the past: a window of S or more hides nothing.
# - The feed-forward layer is SwiGLU in layout "gate_up".
#
# | | shape |
# |---|---|
# | `x_BSD` | `[B, S, D]` float32 |
# | `weights` | a dict of float32 tensors: |
# | `"attention_norm"`, `"feed_forward_norm"` | `[D]` each |
# | `"query"`, `"key"`, `"value"` | `[H*C, D]` each |
# | `"output"` | `[D, H*C]` |
# | `"gate_up"`, `"down"` | `[2I, D]` and `[D, I]` |
# | `"query_norm"`, `"key_norm"` | `[C]` each, both or neither |
# | `heads` | int, H |
# | `theta`, `eps` | floats, for RoPE and for every norm |
# | returns | `[B, S, D]` float32 |
#
# **Exercise 02.5** · difficulty 3 of 5 · 25 minutes · 15 points


# %% tags=["exercise:02.5"]
# exercise 02.5
def block(x_BSD: Tensor, weights: dict[str, Tensor], heads: int, theta: float, eps: float) -> Tensor:
    """One pre-norm block: attention, then SwiGLU, each added to the stream."""
    ### BEGIN SOLUTION
    B, S, _ = x_BSD.shape
    C = weights["query"].shape[0] // heads

    def heads_of(name):
        return F.linear(normed_BSD, weights[name]).view(B, S, heads, C).permute(0, 2, 1, 3)

    normed_BSD = rms_norm(x_BSD, weights["attention_norm"], eps, zero_centred=False)
    q_BHSC, k_BHSC, v_BHSC = heads_of("query"), heads_of("key"), heads_of("value")
    if "key_norm" in weights:
        q_BHSC = rms_norm(q_BHSC, weights["query_norm"], eps, zero_centred=False)
        k_BHSC = rms_norm(k_BHSC, weights["key_norm"], eps, zero_centred=False)
    positions_S = torch.arange(S, device=x_BSD.device)
    q_BHSC = rope(q_BHSC, positions_S, theta, rotary=C, layout="half")
    k_BHSC = rope(k_BHSC, positions_S, theta, rotary=C, layout="half")
    seen_BHSC = causal_attention(q_BHSC, k_BHSC, v_BHSC, window=S)
    x_BSD = x_BSD + F.linear(seen_BHSC.permute(0, 2, 1, 3).reshape(B, S, heads * C), weights["output"])
    normed_BSD = rms_norm(x_BSD, weights["feed_forward_norm"], eps, zero_centred=False)
    return x_BSD + swiglu(normed_BSD, weights["gate_up"], weights["down"], layout="gate_up")
    ### END SOLUTION


# %% tags=["check:02.5", "nbval-check-output"]
check("02.5", block)

# %% [markdown]
# ## 02.6 · Where the parameters are
#
# From the numbers in its `config.json`, count a dense model to the last parameter, part by part. The real ones are among the
# cases: Llama-3.1-405B has 405,853,388,800, Qwen2.5-72B has 72,706,203,648. The model is
#
# - an embedding, `vocab x width`, and an output head of the same size: when `tied`, the head *is* the embedding, and is counted once;
# - `layers` times all of these:
#   - attention with `heads` query heads and `kv_heads` key and value heads of `head_width` each, four matrices (query, key, value,
#     output). With `qkv_bias`, query, key and value have a bias each, and `output` has none;
#   - a SwiGLU of hidden width `mlp_width`, three matrices without biases;
#   - two norms, `width` numbers each. With `qk_norm`, two more of `head_width` numbers each: one for the queries and one for the
#     keys, shared by all heads of the layer;
# - at the end one last norm of `width` numbers.
#
# Return a dict of five ints: `"embedding"` (with the head), `"attention"` (with its biases, all layers), `"feed_forward"` (all
# layers), `"norms"` (all of them, with those of queries and keys and the last one), and `"total"`.
#
# | | |
# |---|---|
# | `vocab`, `width`, `layers`, `heads`, `kv_heads`, `head_width`, `mlp_width` | ints |
# | `qkv_bias`, `qk_norm`, `tied` | bools |
# | returns | a dict of ints with the five keys above |
#
# **Exercise 02.6** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:02.6"]
# exercise 02.6
def count_dense_model(
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    mlp_width: int,
    qkv_bias: bool,
    qk_norm: bool,
    tied: bool,
) -> dict[str, int]:
    """How many parameters each part of a Llama- or Qwen-shaped model has, and all together."""
    ### BEGIN SOLUTION
    query, key = heads * head_width, kv_heads * head_width
    one_attention = 2 * query * width + 2 * key * width + (query + 2 * key if qkv_bias else 0)
    one_pair_of_norms = 2 * width + (2 * head_width if qk_norm else 0)
    count = {
        "embedding": (2 - tied) * vocab * width,
        "attention": layers * one_attention,
        "feed_forward": 3 * layers * width * mlp_width,
        "norms": layers * one_pair_of_norms + width,
    }
    count["total"] = sum(count.values())
    return count
    ### END SOLUTION


# %% tags=["check:02.6", "nbval-check-output"]
check("02.6", count_dense_model)

# %% [markdown]
# ## Your parts, as a language model
#
# No exercise here: run the cells. `mine("02.1")` is your own function once it has passed, and the course's until then.
#
# First something to load. The course's trainer makes the lesson's little model, two blocks that read Python: 150 steps, ten to twenty seconds.

# %%
from dataclasses import replace

from course.model import ModelConfig
from course.training.data import load, validation_batches
from course.training.trainer import TrainSettings, train

data = load("code", vocab=1024)
config = replace(ModelConfig.preset("tiny-dense"), vocab=data.tokenizer.vocab, layers=2, context=128)
settings = TrainSettings(steps=150, batch=16, warmup=20, evaluate_every=75, evaluation_sequences=32)
theirs, rows = train(config, data, settings, progress=True)
print(f"trained by the course: {rows[-1].validation:.2f} nats a token, an even guess is {math.log(config.vocab):.2f}")

# %% [markdown]
# Now your block, calling your own norm, RoPE, attention and SwiGLU (the second line puts them in the place of the course's). A
# whole model is little more: look up the embeddings, run the blocks, norm once more, multiply with the head.

# %%
from types import FunctionType

own = {"rms_norm": mine("02.1"), "rope": mine("02.2"), "causal_attention": mine("02.3"), "swiglu": mine("02.4")}
my_block = mine("02.5")
my_block = FunctionType(my_block.__code__, my_block.__globals__ | own)
state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}


def weights_of(layer):
    """The weights of one layer of the trained model, under the names of 02.5."""
    part = {name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith(f"blocks.{layer}.")}
    short = {name.removeprefix("attention.").removesuffix(".weight"): tensor for name, tensor in part.items()}
    short["gate_up"], short["down"] = part["feed_forward.gate_up_FD"], part["feed_forward.down_DI"]
    return short


def my_model(tokens_BS, block=my_block):
    x_BSD = state["embedding.weight"][tokens_BS]
    for layer in range(config.layers):
        x_BSD = block(x_BSD, weights_of(layer), config.heads, config.rope_theta, config.norm_eps)
    return own["rms_norm"](x_BSD, state["norm.weight"], config.norm_eps, False) @ state["head.weight"].T


# %% [markdown]
# **Predict:** how near will your logits be to those of the model that the course trained?

# %%
tokens_BS, targets_BS = validation_batches(data, config.context, sequences=16)[0]
with torch.no_grad():
    wanted_BSV, got_BSV = theirs(tokens_BS), my_model(tokens_BS)
torch.testing.assert_close(got_BSV, wanted_BSV, atol=1e-4, rtol=1e-4)
print(f"the same logits, {tuple(got_BSV.shape)}; the largest difference is {(got_BSV - wanted_BSV).abs().max():.0e}")

# %% [markdown]
# The same model, then, and every number in it went through functions that you wrote. Let it write a little Python. After 300
# thousand tokens it knows what Python looks like, and not much of what it means.

# %%
from course.model import sample

torch.manual_seed(2)
ids = data.tokenizer.encode("def read(self, path):\n    ")
with torch.no_grad():
    for _ in range(60):
        ids.append(sample(my_model(torch.tensor([ids]))[0, -1], temperature=0.7))
print(data.tokenizer.decode(ids))

# %% [markdown]
# ## How far back does it look?
#
# Your attention has a window, so you can find out. Below, each layer sees only its nearest `window` positions, its own included;
# nothing else changes.
#
# **Predict:** window 1 leaves a token alone with itself, window 128 takes nothing away. Which window gives back half of what lies between?

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
attention = own["causal_attention"]


def loss_with(window):
    def narrow(q_BHSC, k_BHNC, v_BHNV, _all=None, **_named):
        return attention(q_BHSC, k_BHNC, v_BHNV, window)

    block = FunctionType(my_block.__code__, my_block.__globals__ | {"causal_attention": narrow})
    with torch.no_grad():
        return F.cross_entropy(my_model(tokens_BS, block).flatten(0, 1), targets_BS.flatten()).item()


windows = [1, 2, 3, 4, 8, 16, 32, 64, 128]
losses = [loss_with(window) for window in windows]
figure, axis = plt.subplots()
axis.plot(windows, losses, "o-")
axis.set_xscale("log", base=2)
axis.set_xticks(windows, windows)
axis.set(xlabel="window (tokens)", ylabel="loss (nats a token)", title="What a window takes away, on your attention")
plt.show()

# %% [markdown]
# *Figure: loss against the window, on a logarithmic axis. Alone with itself (window 1) a token predicts badly; the first few
# neighbours give most of it back, and beyond a dozen or two of tokens the curve is flat.*
#
# A model this small and this young uses its neighbours, hardly more. That is why a window costs it so little, and it is also a
# warning: a benchmark that only needs neighbours cannot tell whether long attention works.
#
# Last, your count, on models that nobody's laptop holds:

# %%
from course.model import total_parameters

published = {  # vocab, width, layers, heads, kv_heads, head_width, mlp_width, qkv_bias, qk_norm, tied
    "Qwen3-0.6B": (151_936, 1_024, 28, 16, 8, 128, 3_072, False, True, True),
    "Qwen2.5-72B": (152_064, 8_192, 80, 64, 8, 128, 29_568, True, False, False),
    "Llama-3.1-405B": (128_256, 16_384, 126, 128, 8, 128, 53_248, False, False, False),
}
count = mine("02.6")
for name, shape in published.items():
    parts = count(*shape)
    total = parts.pop("total")
    shares = " · ".join(f"{part.replace('_', '-')} {number / total:.1%}" for part, number in parts.items())
    print(f"{name:15s} {total:15,}   {shares}")
    if name != "Qwen3-0.6B":  # the course's model has no norms on queries and keys
        assert total == total_parameters(ModelConfig.preset(name))

# %% [markdown]
# The larger the model, the more of it is feed-forward: four fifths of the 405 billion. If you wanted to make a model own more
# than it uses, that is the part you would cut into experts, and unit 04 does.
#
# **Next:** lesson 03, where you train such a model yourself, and find out how far two seeds lie apart.
