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
# # Lesson 04 · Mixture of experts
#
# DeepSeek-V3 owns 671 billion parameters, and a token that passes through it meets 37 billion of them (quoted: V3 report,
# section 4.2). How can a model be eighteen times larger than what it uses, and what does it pay for that?
#
# In this lesson you build the layer that does it, one piece at a time, and hold every piece against `course.model`. Then you train
# a small one on Python source, look at which expert reads what, watch a router collapse, and compare the
# mixture with a dense model that does the same work for each token.
#
# About 45 minutes. Names carry their shape: **T** tokens, **D** width, **E** experts, **K** experts a token, **I** hidden width of an
# expert, **P** = T * K pairs.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
torch.manual_seed(4)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## Owning more than you use
#
# Here are some published models. Total is what must be stored; active is what one token is multiplied with, hence what it
# costs to compute.
#
# **Predict:** by which factor do the two differ in Mixtral, the model that made mixtures popular in 2023, and by which in those of
# 2025?

# %%
published = {  # billions of parameters: total, active (quoted; sources below)
    "Mixtral 8x7B (2023)": (46.7, 12.9),
    "DeepSeek-V2 (2024)": (236, 21),
    "DeepSeek-V3 (2024)": (671, 37),
    "Qwen3-235B-A22B (2025)": (235, 22),
    "gpt-oss-120b (2025)": (117, 5.1),
    "Kimi K2 (2025)": (1000, 32),
}
figure, axis = plt.subplots()
names = list(published)
total, active = zip(*published.values(), strict=True)
axis.barh(names, total, color="#c6dbef", label="total")
axis.barh(names, active, color="#0072B2", label="active")
for row, (t, a) in enumerate(zip(total, active, strict=True)):
    axis.text(t + 12, row, f"{t / a:.0f} times", va="center")
axis.set(xlabel="parameters (billions)", title="What a model owns, and what a token meets", xlim=(0, 1150))
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="upper right")
plt.show()

# %% [markdown]
# *Figure: bars of total and active parameters in billions; the ratio of the two grows from 4 for Mixtral to 18 for DeepSeek-V3 and 31
# for Kimi K2.*
#
# *Quoted from: Mixtral, its published configuration, counted; DeepSeek-V2 report, 3.1.2; DeepSeek-V3 report, 4.2; the Qwen3 model card; the READMEs of gpt-oss and
# Kimi-K2. In lab 04 you compute the first of these rows from the shapes, to the last parameter.*
#
# The trick is old and simple. A transformer block has a feed-forward layer. Make E copies of it with weights of their own, the
# *experts*, and let a small *router* send each token to K of them.

# %% [markdown]
# ## The router
#
# The router is one matrix with a row for each expert. A token's dot product with row e is its score for expert e; a softmax makes
# probabilities of the scores; the K largest win. Six tokens, four experts:

# %%
T, D, E, K = 6, 16, 4, 2
x_TD = torch.randn(T, D)
gate_ED = torch.randn(E, D) / D**0.5
logits_TE = x_TD @ gate_ED.T
probabilities_TE = logits_TE.softmax(dim=-1)
print(probabilities_TE.round(decimals=2))

# %% [markdown]
# **Predict:** which two experts does the first token go to?

# %%
weights_TK, indices_TK = probabilities_TE.topk(K, dim=-1)
print("experts:\n", indices_TK)
print("weights as they are:\n", weights_TK.round(decimals=2))
weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
print("weights that add to one:\n", weights_TK.round(decimals=2))

# %% [markdown]
# Dividing by the sum keeps the size of the output independent of how sure the router is. It also has a surprising reading:
# the renormalised weights are a softmax over the *chosen logits alone*. The experts that lost have vanished from the formula.

# %%
chosen_logits_TK = logits_TE.gather(1, indices_TK)
torch.testing.assert_close(weights_TK, chosen_logits_TK.softmax(dim=-1))

from course.model import softmax_topk_gate

theirs = softmax_topk_gate(x_TD, gate_ED, K)
assert torch.equal(indices_TK, theirs[0])
torch.testing.assert_close(weights_TK, theirs[1])
print("our gate equals course.model.softmax_topk_gate")

# %% [markdown]
# One line separates our gate from the course's: what happens when two experts score the same. `torch.topk` promises nothing:

# %%
scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0, 3.0]])
print("torch.topk      ", scores.topk(2).indices.tolist())
print("a stable sort   ", scores.sort(descending=True, stable=True).indices[:, :2].tolist())

# %% [markdown]
# Two machines that break a tie differently send a token to different experts, and their outputs drift apart. The course's rule: ties go to the
# lower index.

# %% [markdown]
# ## The experts, in a loop
#
# An expert is a SwiGLU: two projections up, one of them through silu, multiplied, and one projection down. The plain
# way to run them is a loop: whose tokens are these, run them, weigh, add.

# %%
I = 32  # hidden width of an expert
gate_up_EFD = torch.randn(E, 2 * I, D) / D**0.5
down_EDI = torch.randn(E, D, I) / I**0.5


def one_expert(rows_RD, gate_up_FD, down_DI):
    gate_RI, up_RI = (rows_RD @ gate_up_FD.T).chunk(2, dim=-1)
    return (F.silu(gate_RI) * up_RI) @ down_DI.T


y_TD = torch.zeros_like(x_TD)
for e in range(E):
    token_R, slot_R = torch.where(indices_TK == e)
    rows_RD = one_expert(x_TD[token_R], gate_up_EFD[e], down_EDI[e])
    y_TD.index_add_(0, token_R, rows_RD * weights_TK[token_R, slot_R, None])
    print(f"expert {e}: tokens {token_R.tolist()}")

# %%
from course.model import expert_loop

torch.testing.assert_close(y_TD, expert_loop(x_TD, indices_TK, weights_TK, gate_up_EFD, down_EDI))
print("our loop equals course.model.expert_loop")

# %% [markdown]
# This is right, and slow: every expert costs a dozen small operations, however few tokens it has. With 256 experts that is thousands
# of launches in each layer. We want **one** operation for all experts. For that, the rows of each expert must lie side by side.

# %% [markdown]
# ## Lining up
#
# Each token visits K experts, so it is *pairs* (token, slot) that we sort, not tokens: pair `p = token * K + slot`.

# %%
expert_P = indices_TK.flatten()
order_P = expert_P.argsort(stable=True)
counts_E = expert_P.bincount(minlength=E)
offsets_E1 = torch.cat([torch.zeros(1, dtype=torch.long), counts_E.cumsum(0)])
print("expert of each pair ", expert_P.tolist())
print("pairs, sorted       ", order_P.tolist())
print("tokens of those     ", (order_P // K).tolist())
print("expert e begins at  ", offsets_E1.tolist())

# %%
figure, axes = plt.subplots(2, 1, figsize=(7.5, 2.6))
colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
for axis, pairs, title in [
    (axes[0], torch.arange(T * K), "Before: pairs in token order"),
    (axes[1], order_P, "After: each expert's rows side by side"),
]:
    for row, pair in enumerate(pairs.tolist()):
        expert = int(expert_P[pair])
        axis.add_patch(plt.Rectangle((row, 0), 0.92, 1, color=colours[expert]))
        axis.text(row + 0.46, 0.5, f"t{pair // K}", ha="center", va="center", color="white", weight="bold")
    axis.set(xlim=(0, T * K), ylim=(0, 1), title=title)
    axis.axis("off")
for e in range(E):
    axes[0].plot([], [], "s", color=colours[e], label=f"expert {e}")
axes[0].legend(ncols=E, loc="lower right", bbox_to_anchor=(1, 0.95), columnspacing=1, handletextpad=0)
plt.show()

# %% [markdown]
# *Figure: twelve boxes, one a pair, labelled with their token and coloured by expert; mixed colours above, four solid runs of one colour
# each below. Each token appears twice.*
#
# ## One product for all
#
# Now rows `offsets[e]` to `offsets[e+1]` meet the weights of expert e. PyTorch has an operation for just this, a *grouped product*:

# %%
rows_PD = x_TD[order_P // K]
ends_E = offsets_E1[1:].to(torch.int32)
hidden_PF = F.grouped_mm(rows_PD, gate_up_EFD.transpose(1, 2), offs=ends_E)
gate_PI, up_PI = hidden_PF.chunk(2, dim=-1)
rows_PD = F.grouped_mm(F.silu(gate_PI) * up_PI, down_EDI.transpose(1, 2), offs=ends_E)
print(tuple(rows_PD.shape), "one row a pair, sorted by expert")

# %% [markdown]
# Last, every row goes home to its token, weighted. `index_add` may meet the same token more than once, and adds each time; plain
# indexing, `y[token] += row`, would keep only one of them.

# %%
weight_P = weights_TK.flatten()[order_P]
together_TD = torch.zeros_like(x_TD).index_add(0, order_P // K, rows_PD * weight_P[:, None])
torch.testing.assert_close(together_TD, y_TD)

forgetful_TD = torch.zeros_like(x_TD)
forgetful_TD[order_P // K] += rows_PD * weight_P[:, None]
print("grouped product equals the loop")
print(f"plain indexing loses {1 - (forgetful_TD.norm() / y_TD.norm()) ** 2:.0%} of the squared size of the output")

# %% [markdown]
# That is the whole layer: *route, line up, grouped product, combine*. `course.model.MoE` is these four steps, and its forward
# pass reads like this lesson.


# %% [markdown]
# ## Does one product pay?
#
# Below, the work for a token stays the same: more experts, but each token still meets two of the same width. Only the number of pieces grows.
#
# **Predict:** how much slower is the loop than the grouped product at 8 experts, and at 128?

# %%
import time

from course.model import grouped_experts, sort_by_expert


def seconds(experts, width=128, tokens=2048, k=2, hidden=64):
    """Median times of forward and backward, the loop's and the grouped product's."""
    x = torch.randn(tokens, width)
    up = (torch.randn(experts, 2 * hidden, width) / width**0.5).requires_grad_()
    down = (torch.randn(experts, width, hidden) / hidden**0.5).requires_grad_()
    weights, indices = torch.rand(tokens, experts).topk(k)
    order, offsets = sort_by_expert(indices, experts)
    times = {"loop": [], "grouped": []}
    for _ in range(5):
        for name in times:
            start = time.perf_counter()
            if name == "loop":
                expert_loop(x, indices, weights, up, down).sum().backward()
            else:
                grouped_experts(x[order // k], up, down, offsets).sum().backward()
            times[name].append(time.perf_counter() - start)
    return [sorted(t)[2] * 1e3 for t in times.values()]


# %%
for experts in (8, 32, 128):
    loop, grouped = seconds(experts)
    print(
        f"{experts:4d} experts: loop {loop:5.1f} ms, grouped {grouped:5.1f} ms: {loop / grouped:.1f} times  (measured here)"
    )

# %% [markdown]
# The loop's overhead grows with the number of experts, the grouped product's hardly. How far this goes up to 256 experts, beside padding
# and beside another library's layer, is recorded by `benchmarks/moe_layer.py`:

# %%
layers = course.recorded("moe_layer")["results"]
figure, axis = plt.subplots()
for name in ["loop", "padded", "grouped", "transformers", "dense twin"]:
    times = [row["milliseconds"][name]["median"] for row in layers]
    axis.plot([str(row["experts"]) for row in layers], times, "o-", label=name)
axis.set(
    xlabel="experts, two for each token",
    ylabel="forward and backward (ms)",
    title="One layer, 2,048 tokens",
    ylim=(0, None),
)
axis.legend()
plt.show()
for row in layers:
    print(
        f"{row['experts']:4d} experts: the loop takes {row['loop_over_grouped']['median']:.1f} times as long as the grouped product"
    )

# %% [markdown]
# *Figure: time against the number of experts. The loop and padding climb; the grouped product and the layer of the `transformers`
# library, which also runs one, climb least; the dense twin, one SwiGLU with the same work and no routing, is the floor.*
#
# Why does even the grouped product get slower, when the work for a token does not change? Because each expert's slice gets thinner: weights
# are fetched for ever fewer rows. Unit 08 gives this a name, and unit 11 fights it.

# %% [markdown]
# ## A small one that reads Python
#
# Now a whole language model with such layers. `tiny-moe` has four layers of eight experts, two for each token. Its *dense twin* has one
# feed-forward layer as wide as two experts: the same parameters at work, the same multiplications for a token.

# %%
from dataclasses import replace

from course.model import ModelConfig, active_parameters, total_parameters
from course.training.data import load

data = load("code", vocab=1024)
mixture = replace(ModelConfig.preset("tiny-moe"), vocab=data.tokenizer.vocab)
twin = mixture.dense_twin()
for name, config in {"mixture": mixture, "dense twin": twin}.items():
    print(f"{name:10s} owns {total_parameters(config):9,}, a token meets {active_parameters(config):9,}")
print(f"{len(data.train):,} tokens of Python to train on: the standard library that came with this interpreter")

# %% [markdown]
# Both read the same batches in the same order, eighty steps each.
#
# **Predict:** which of the two has the lower loss after the same number of tokens? And after the same number of *seconds*?

# %%
from course.model import expert_counts
from course.training.trainer import TrainSettings, train

settings = TrainSettings(steps=80, batch=8, warmup=20, evaluate_every=20, evaluation_sequences=24)


def run(config, seed=0):
    """Train, and keep how many pairs each expert of each layer received at each step."""
    loads = []

    def count(row, routings):
        loads.append([expert_counts(r.indices_TK, config.experts) for r in routings])

    model, rows = train(config, data, replace(settings, seed=seed), on_step=count, progress=True)
    return model, rows, loads


model, rows, loads = run(mixture)

# %%
_, twin_rows, _ = run(twin)

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
for name, its_rows in {"mixture": rows, "dense twin": twin_rows}.items():
    measured = [row for row in its_rows if row.validation]
    axes[0].plot([row.tokens / 1e3 for row in measured], [row.validation for row in measured], "o-", label=name)
    axes[1].plot([row.seconds for row in measured], [row.validation for row in measured], "o-", label=name)
axes[0].set(xlabel="thousand tokens", ylabel="validation loss (nats a token)", title="By tokens")
axes[1].set(xlabel="seconds of training", title="By the clock")
axes[0].legend()
plt.show()
for name, its_rows in {"mixture": rows, "dense twin": twin_rows}.items():
    print(
        f"{name:10s} {its_rows[-1].validation:.3f} nats after {its_rows[-1].seconds:.1f} s  (measured here, one seed)"
    )

# %% [markdown]
# *Figure: validation loss of the mixture and of its dense twin, against tokens on the left and against seconds on the right.*
#
# Eighty steps and one seed decide nothing. How far apart do two seeds of the *same* model lie? The recorded experiment trains longer, with
# three seeds each, and fixed its rule before it ran:

# %%
contest = course.recorded("dense_vs_moe")

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
for axis, arm, over in [(axes[0], "moe", "tokens"), (axes[1], "moe timed", "seconds")]:
    for name, label in {arm: "mixture", "dense": "dense twin"}.items():
        runs = contest["runs"][name]
        unit = 1e6 if over == "tokens" else 1
        across = torch.tensor([run[over] for run in runs]).float().mean(0) / unit
        losses_RS = torch.tensor([run["validation"] for run in runs])
        (line,) = axis.plot(across, losses_RS.mean(0), label=label)
        axis.fill_between(across, losses_RS.amin(0), losses_RS.amax(0), color=line.get_color(), alpha=0.2)
axes[0].set(xlabel="million tokens", ylabel="validation loss (nats a token)", title="By tokens", ylim=(None, 5))
axes[1].set(xlabel="seconds of training", title="By the clock")
axes[0].legend()
plt.show()
for name, verdict in contest["verdicts"].items():
    gain, spread = verdict["moe_gains_nats"], verdict["largest_spread"]
    print(f"{name:12s}: the mixture gains {gain:+.3f} nats, seeds spread over {spread:.3f}: {verdict['better']}")

# %% [markdown]
# *Figure: the same two panels from the record, means over three seeds with a band from the lowest to the highest seed.*
#
# The record answers both halves of the prediction, and not as the newspaper would have it. From the same **tokens** the mixture learns more,
# by three times the spread of the seeds. In the same **time** it learns less. Its extra parameters are nearly free in multiplications
# and not at all free on this machine: thin slices, rows carried to and fro, more weights to update. The step costs about
# 1.27 times the dense twin's, and the gain does not pay for it.
#
# So what would have to be true for the claim "strong results with little computation"? That computation is counted in
# multiplications, or that the hardware makes multiplications the bottleneck. At 37 billion active parameters on 2,048 GPUs that is much
# more nearly so than on a laptop; units 11 to 18 are about how it was made so.

# %% [markdown]
# ## Which expert reads what
#
# Let the trained model read a file that it has not seen, and ask each token where it went. First, what kind of text is each token?
# Python's own `tokenize` knows.

# %%
import io
import keyword
import tokenize

from course.training.corpus import embedded, split

KINDS = ["space", "name", "keyword", "operator", "number", "string", "comment"]
KIND_OF = {tokenize.OP: "operator", tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment"}


def kinds(text):
    """The kind of every character."""
    lines = text.splitlines(keepends=True)
    found = [["space"] * len(line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = KIND_OF.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        for row in range(token.start[0] - 1, token.end[0]) if kind else ():
            first = token.start[1] if row == token.start[0] - 1 else 0
            last = token.end[1] if row == token.end[0] - 1 else len(lines[row])
            found[row][first:last] = [kind] * (last - first)
    return [kind for line in found for kind in line]


# %%
unseen = [
    document
    for document in split(embedded("code"))[1]
    if 8_000 < len(document.text) < 30_000 and document.text.isascii()
]
document = unseen[0]
ids = torch.tensor(data.tokenizer.encode(document.text))
windows = ids[: len(ids) // 256 * 256].view(-1, 256)
with torch.no_grad():
    routings = model.outputs(windows).routings
first_choice = torch.stack([routing.indices_TK[:, 0] for routing in routings])  # [layers, tokens]

pieces = [data.tokenizer.decode([i]) for i in windows.flatten().tolist()]
of_character, place, token_kinds = kinds(document.text), 0, []
for piece in pieces:
    inked = [kind for kind, c in zip(of_character[place : place + len(piece)], piece, strict=True) if not c.isspace()]
    token_kinds.append(inked[0] if inked else "space")
    place += len(piece)
print(document.name, "·", len(pieces), "tokens ·", {kind: token_kinds.count(kind) for kind in KINDS})

# %%
figure, axes = plt.subplots(1, 4, figsize=(9.5, 3.2), sharey=True)
for layer, axis in enumerate(axes):
    share = torch.zeros(len(KINDS), 8)
    for kind, expert in zip(token_kinds, first_choice[layer].tolist(), strict=True):
        share[KINDS.index(kind), expert] += 1
    picture = axis.imshow(share / share.sum(1, keepdim=True).clamp(min=1), vmin=0, vmax=1, aspect="auto")
    axis.set(title=f"layer {layer}", xlabel="expert", xticks=range(8), yticks=range(len(KINDS)), yticklabels=KINDS)
    axis.grid(visible=False)
figure.colorbar(picture, ax=axes, label="share of the kind's tokens")
plt.show()

# %% [markdown]
# *Figure: for each layer, a grid of kinds of text against experts; a bright cell means that most tokens of that kind have that expert
# as their first choice.*
#
# Nobody told the router what an operator is. And yet the experts are not "the Python expert" and "the prose expert" of
# popular accounts: they divide text by the humblest properties, spaces here, punctuation there. The Mixtral report found the same at a
# size twenty thousand times larger (section 5): no topics, but syntax.
#
# Here is the text itself, each token coloured by its first choice in the last layer:

# %%
figure, axis = plt.subplots(figsize=(9.5, 3.6))
palette = plt.get_cmap("Set3").colors
column = 0
start = document.text[: len(document.text) // 3].count("\n")
line = 0
for piece, expert in zip(pieces, first_choice[-1].tolist(), strict=True):
    for c in piece:
        if start <= line < start + 16 and c != "\n" and column < 96:
            y = line - start
            axis.add_patch(plt.Rectangle((column, y), 1, 0.94, color=palette[expert], linewidth=0))
            axis.text(column + 0.5, y + 0.72, c, family="monospace", fontsize=7.5, ha="center")
        line, column = (line + 1, 0) if c == "\n" else (line, column + 1)
axis.set(xlim=(0, 96), ylim=(16, 0), title=f"{document.name}, line {start + 1}")
axis.axis("off")
for expert, colour in enumerate(palette[:8]):
    axis.plot([], [], "s", color=colour, label=f"{expert}")
axis.legend(ncols=8, title="expert", loc="upper right", bbox_to_anchor=(1, 1.05), columnspacing=0.8, handletextpad=0)
plt.show()

# %% [markdown]
# *Figure: sixteen lines of Python, the background of each token coloured by expert: indentation, names and punctuation tend to have colours
# of their own.*

# %% [markdown]
# ## Collapse
#
# A router is trained by the experts it uses. An expert that is chosen often learns, becomes better, and is chosen more often: the rich
# get richer. So one adds a *balance loss*, small and proportional to
#
# $$E \sum_e f_e\, P_e$$
#
# where $f_e$ is the share of tokens that chose expert e and $P_e$ its mean probability (Switch Transformer, equations 4 to 6). It is
# lowest when all experts get the same.
#
# **Predict:** without it, what happens to the load of the eight experts in eighty steps? And to the loss?

# %%
_, free_rows, free_loads = run(replace(mixture, balance_weight=0.0))

# %%
figure, axes = plt.subplots(2, 1, figsize=(7.5, 3.8), sharex=True)
for axis, its_loads, title in [(axes[0], loads, "With the balance loss"), (axes[1], free_loads, "Without it")]:
    last_layer = torch.stack([step[-1] for step in its_loads]).T.float()  # [experts, steps]
    picture = axis.imshow(last_layer / last_layer.sum(0), aspect="auto", vmin=0, vmax=0.5, cmap="magma")
    axis.set(ylabel="expert", title=f"{title}: last layer")
    axis.grid(visible=False)
axes[1].set(xlabel="step")
figure.colorbar(picture, ax=axes, label="share of all pairs")
plt.show()
for name, its_rows in {"with balance loss": rows, "without": free_rows}.items():
    print(
        f"{name:18s} busiest expert {1 + its_rows[-1].max_violation:.1f} times the mean · loss {its_rows[-1].validation:.3f}"
    )

# %% [markdown]
# *Figure: two heat maps of load, experts against steps. With the balance loss the colours even out; without it, two experts of the last layer
# take nearly everything within a few dozen steps and keep it.*
#
# Look at the losses too. One seed cannot tell; three seeds and 300 steps are recorded:

# %%
collapse = course.recorded("router_collapse")["verdicts"]
for what, unit in [("imbalance", ""), ("idle_experts", " of 32"), ("loss", " nats")]:
    means = " · ".join(f"{arm} {mean:.2f}{unit}" for arm, mean in collapse[what]["means"].items())
    print(f"{what.replace('_', ' '):13s} {means} · {'resolved' if collapse[what]['resolved'] else 'not resolved'}")

# %% [markdown]
# The loads differ far beyond the spread of the seeds, and a sixth of all experts sit idle. The *loss* does not differ: at this size and
# length, collapse cannot be seen in it. What it costs is what you paid for: idle experts are parameters that you own and do not use, and on many
# machines the busiest expert sets the pace for all. Unit 05 returns to this, with DeepSeek's cure that needs no loss at all.

# %% [markdown]
# ## Seats
#
# If an expert's buffer is fixed beforehand, at `factor` times the mean load, pairs beyond it are dropped. How many would *our* model drop on
# the file it just read?

# %%
from course.model import capacity_mask, expert_capacity

factors = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for layer, routing in enumerate(routings):
    dropped = []
    for factor in factors:
        capacity = expert_capacity(len(routing.indices_TK), 8, 2, factor)
        kept_TK = capacity_mask(routing.indices_TK, 8, capacity)
        dropped.append(100 * (1 - kept_TK.float().mean().item()))
    axis.plot(factors, dropped, "o-", label=f"layer {layer}")
axis.set(xlabel="capacity factor", ylabel="pairs dropped (%)", title="The price of a fixed buffer", ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# *Figure: share of dropped pairs against the capacity factor, one line a layer, falling from about half at factor 0.5 towards zero at 3.*
#
# At factor 1 a perfectly balanced router drops nothing; ours does. A buffer twice the mean wastes half of its room and still may not be enough.
# DeepSeek-V3 drops no tokens at all, in training or in inference (V3 report, 2.1.2): it balances well enough not to need to.

# %% [markdown]
# ## How the router learns
#
# Choosing the largest k has no derivative. So what teaches the router?
#
# **Predict:** in this matrix of gradients, how many of the eight columns of a token are zero?

# %%
logits_TE = torch.randn(5, 8, requires_grad=True)
top = logits_TE.topk(2, dim=-1)
weights_TK = top.values.softmax(dim=-1)
usefulness_TK = torch.randn(5, 2)  # stands for how much each expert's answer helped
(weights_TK * usefulness_TK).sum().backward()
figure, axis = plt.subplots(figsize=(7.5, 2.5))
limit = logits_TE.grad.abs().max()
picture = axis.imshow(logits_TE.grad, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
axis.set(xlabel="expert", ylabel="token", title="Gradient of the router's logits")
axis.grid(visible=False)
figure.colorbar(picture, label="dL / dlogit")
plt.show()
print("rows add up to", logits_TE.grad.sum(dim=1).abs().max().item() < 1e-6 and "zero")

# %% [markdown]
# *Figure: a grid of five tokens by eight experts, white but for two cells in each row, one red, one blue, of equal size.*
#
# The gradient comes through the *weights*, and there are only two of them for each token; since they add to one, what one gains the other loses. The
# six experts that were not chosen get no word of it, good or bad. In the lab you derive this by hand; in unit 12 a kernel that forgets it trains a model
# whose router never learns.

# %% [markdown]
# ## Turn the knobs
#
# How many experts, how many for each token? Load below is that of an untrained router on random tokens: chance alone.


# %%
def knobs(experts=8, k=2):
    config = replace(mixture, experts=experts, top_k=min(k, experts))
    owned, met = total_parameters(config) / 1e6, active_parameters(config) / 1e6
    torch.manual_seed(0)
    counts_E = expert_counts(torch.randn(4096, experts).topk(config.top_k).indices, experts)
    _, axes = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[1, 2])
    axes[0].bar(["owned", "met by\na token"], [owned, met], color=["#c6dbef", "#0072B2"])
    axes[0].set(ylabel="million parameters", title=f"{owned / met:.1f} times")
    axes[1].bar(range(experts), counts_E)
    axes[1].axhline(counts_E.float().mean(), color="black", linestyle="--", linewidth=1, label="mean")
    busiest = counts_E.max() / counts_E.float().mean()
    axes[1].set(xlabel="expert", ylabel="pairs of 4,096 tokens", title=f"busiest expert: {busiest:.2f} times the mean")
    axes[1].set_ylim(0, 1.25 * counts_E.max())
    axes[1].legend(loc="upper right")
    plt.show()


knobs(experts=64, k=4)

# %% [markdown]
# *Figure: on the left two bars, parameters owned and parameters met by a token; on the right the load of 64 experts scattered around its mean by chance.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import IntSlider, interact

controls = interact(knobs, experts=IntSlider(8, 2, 128), k=IntSlider(2, 1, 8))

# %% [markdown]
# Three things to try: raise `experts` alone and watch what a token meets (the router grows, nothing else does); raise `k` until mixture and
# dense are the same thing; and find how uneven chance alone is at 128 experts.
#
# ## What we measured
#
# - A layer in four steps, each equal to `course.model`'s: route, line up, one grouped product, combine.
# - The loop of experts costs 2.4 times the grouped product at 256 experts, and hardly more than it at 8 (recorded, two cores).
# - More from each token, less in each second: with three seeds, the mixture gains 0.055 nats by tokens and loses 0.069 by the clock (recorded, two
#   cores, models of two million parameters).
# - Without a balance loss two experts of a layer take nearly all; the loss does not show it.
# - Of eight logits, six get no gradient.
#
# **What surprised:** that collapse does not show in the loss, and that the twin wins by the clock. Both are claims about *this*
# size and machine. A course that hid them would have lost you at the next benchmark.
#
# **To read**
#
# - Shazeer et al. 2017, *Outrageously Large Neural Networks*, sections 2 and 4: the gate, and the first balance loss.
# - Fedus et al. 2021, *Switch Transformers*, section 2: one expert a token, capacity, the loss used here.
# - Jiang et al. 2024, *Mixtral of Experts*, sections 2.1 and 5: the layer of this lesson, and what its experts read.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, section 2.1.2: where unit 05 goes.
#
# **Now the lab:** `labs/04_mixture_of_experts.ipynb`. You write the gate with a switch, the loop with drops, a sort without a sort, the gather, the
# seats, the count, and the gradient that teaches the router.
