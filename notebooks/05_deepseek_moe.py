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
# # Lesson 05 · DeepSeekMoE
#
# A router has two masters. The task wants every token at the experts that serve it best. The hardware wants every expert equally busy. Lesson 04 settled the
# matter with a balance loss, which pulls at the same weights as the task. Can the load be kept even *without touching what the router learns*?
#
# DeepSeek's answer is a number for each expert, moved up or down by a rule that any thermostat knows. In this lesson you build it, and everything around it: experts cut
# finer, experts that everybody meets, a gate without softmax, groups, and three ways of balancing, which a recorded experiment then holds against each other.
#
# About 50 minutes. Names carry their shape: **T** tokens, **D** width, **E** experts, **K** experts a token, **G** groups, **B** sequences of **S** tokens.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.manual_seed(5)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## Finer experts
#
# Take one SwiGLU expert and cut its hidden units into four. Each quarter is an expert of its own, a quarter as wide.
#
# **Predict:** how far is the sum of the four quarters from the whole?

# %%
from course.model import swiglu

D, I = 64, 128
x_TD = torch.randn(5, D)
gate_ID, up_ID, down_DI = torch.randn(I, D) / 8, torch.randn(I, D) / 8, torch.randn(D, I) / 11
whole_TD = swiglu(x_TD @ torch.cat([gate_ID, up_ID]).T) @ down_DI.T

quarters_TD = torch.zeros_like(whole_TD)
for units in torch.arange(I).chunk(4):
    quarters_TD += (F.silu(x_TD @ gate_ID[units].T) * (x_TD @ up_ID[units].T)) @ down_DI[:, units].T
print("largest difference:", f"{(whole_TD - quarters_TD).abs().max().item():.1e}")
torch.testing.assert_close(whole_TD, quarters_TD, atol=1e-5, rtol=1e-4)

# %% [markdown]
# Only rounding: a hidden unit of a SwiGLU never talks to another. So a mixture of 16 experts with two for each token is *contained* in one of 64 quarter experts with eight for each
# token: the same parameters, the same multiplications. What is new is the freedom to combine quarters that never belonged together.
#
# **Predict:** 16 experts taken two at a time make 120 combinations. How many do 64 quarters make, taken eight at a time?

# %%
cuts = [1, 2, 4, 8, 16]
counts = [math.comb(16 * cut, 2 * cut) for cut in cuts]
for cut, count in zip(cuts, counts, strict=True):
    print(f"{16 * cut:4d} experts of width 1/{cut:<2d}, {2 * cut:2d} a token: {float(count):.3g} combinations")

figure, axis = plt.subplots(figsize=(7.5, 3))
axis.bar([f"{2 * cut} of {16 * cut}" for cut in cuts], [math.log10(count) for count in counts], color=COLOURS[0])
axis.set(
    xlabel="experts a token, of how many (same work, same parameters)",
    ylabel="combinations (power of ten)",
    title="Cut finer, choose more: the number of choices explodes",
)
axis.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# *Figure: the logarithm of the number of combinations for experts cut into 1, 2, 4, 8 and 16: it nearly doubles with each cut, from 2 to above 40.*
#
# These are *computed*; the first and the third are the example of the DeepSeekMoE paper (section 3.1). A combination is not a skill, of course: the count says what could be told apart, not what is learned.
# And finer is not free: in lesson 04 you saw thinner slices cost time.
#
# ## Experts that everybody meets
#
# If each of 64 experts must know how English spells, that knowledge is stored 64 times. So DeepSeekMoE gives every token one or two *shared* experts
# beside those the router chooses. They have no gate: weight one, always.

# %%
from dataclasses import replace

from course.model import ModelConfig, MoE, expert_loop

config = replace(ModelConfig.preset("tiny-deepseek-v3"), experts=32, top_k=4, expert_width=32)
layer = MoE(config)
h_TD = torch.randn(256, config.width)
with torch.no_grad():
    output_TD, routing = layer(h_TD)
    shared_TD = layer.shared(h_TD)
    routed_TD = expert_loop(h_TD, routing.indices_TK, routing.weights_TK, layer.gate_up_EFD, layer.down_EDI)
torch.testing.assert_close(output_TD, routed_TD + shared_TD, atol=1e-6, rtol=1e-4)
print("course.model.MoE is the sum of what the routed experts say and what the shared one says")
print("routed experts of the first three tokens:", routing.indices_TK[:3].tolist(), "· the shared one: always")

# %% [markdown]
# Two shared experts are the same as one of twice the width, by the argument with the quarters, and that is how they are stored. Here is what published models chose:

# %%
from course.model import PRESETS

names = ["mixtral-8x7b", "deepseek-moe-16b", "deepseek-v2", "deepseek-v3", "kimi-k2", "qwen3-235b-a22b"]
head = f"{'':17s} {'experts':>7s} {'a token':>7s} {'shared':>6s} {'groups':>10s} {'width/D':>8s}"
print(f"{head} {'gate':>8s} {'scale':>6s} {'combinations':>13s}")
for name in names:
    c = PRESETS[name]
    groups = f"{c.top_groups} of {c.groups}" if c.groups > 1 else "-"
    row = f"{name:17s} {c.experts:7d} {c.top_k:7d} {c.shared_experts:6d} {groups:>10s} {c.expert_width / c.width:8.2f}"
    print(f"{row} {c.gate:>8s} {c.routed_scale:6.3g} {float(math.comb(c.experts, c.top_k)):13.1e}")

# %% [markdown]
# *From the models' published configurations, which are `course.model.PRESETS`; combinations computed, without the groups.*
#
# Read the column of widths downwards: an expert of Mixtral is three and a half times as wide as the stream, one of DeepSeek-V3 two sevenths of it. Kimi K2 took more experts of that width and no
# groups; Qwen3 has no shared expert. These are choices, not laws.
#
# ## A gate without softmax
#
# A softmax is a competition: what one expert gains, the others lose. DeepSeek-V3 scores each expert by itself, with a sigmoid.
#
# **Predict:** raise the logit of expert 2 by 1. Which other scores change?

# %%
logits_E = torch.tensor([0.5, -0.3, 0.8, 0.1])
raised_E = logits_E + torch.tensor([0.0, 0.0, 1.0, 0.0])
for name, score in {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}.items():
    print(f"{name}: before {score(logits_E).numpy().round(2)}, after {score(raised_E).numpy().round(2)}")

# %% [markdown]
# With a sigmoid, none. That will matter in a moment: we are going to add numbers to scores, and want each to mean the same thing for all tokens. The scores of the chosen are then divided by their
# sum, as before, and multiplied by a constant: 2.5 in V3.
#
# Why a constant? Eight answers that have little to do with each other, each with weight 1/8, cancel. Their sum shrinks like one over the root of K:

# %%
for k in (1, 2, 4, 8):
    answers_KTD = torch.randn(k, 1000, 64)
    size = answers_KTD.mean(0).norm(dim=-1).mean() / answers_KTD.norm(dim=-1).mean()
    print(f"K = {k}: the mean of the answers has {size:.2f} of the size of one · root of K: {k**0.5:.2f}")

# %% [markdown]
# The root of eight is 2.828, and Kimi K2's constant is 2.827; V3's is 2.5. The agreement is our observation; the V3 report gives no derivation. Weights that differ, and answers that agree a little, both
# make the sum larger, so that a smaller constant is enough.
#
# ## The bias
#
# Now the idea of this unit (Wang et al. 2024; V3 report, equation 16). Each expert gets a number, its *bias*. It is added to the score when experts are **chosen**, and left out when their answers are **weighed**.
#
# **Predict:** below, expert 3 has the lowest score and a bias of 0.5. Is it chosen? With what weight?

# %%
from course.model import choose_experts

scores_TE = torch.tensor([[0.9, 0.7, 0.6, 0.3]])
bias_E = torch.tensor([-0.1, 0.0, 0.0, 0.5])
indices_TK = (scores_TE + bias_E).topk(2, dim=-1).indices
raw_TK = scores_TE.gather(1, indices_TK)
weights_TK = raw_TK / raw_TK.sum(dim=-1, keepdim=True)
biased_TK = (scores_TE + bias_E).gather(1, indices_TK)
print("chosen:", indices_TK.tolist(), "· weights from raw scores:", weights_TK.numpy().round(2))
print("a common mistake, weights from biased scores:", (biased_TK / biased_TK.sum(-1, keepdim=True)).numpy().round(2))

plain = replace(config, experts=4, top_k=2, groups=1, top_groups=1, routed_scale=1.0)
theirs = choose_experts(scores_TE, bias_E, plain)
assert torch.equal(indices_TK, theirs[0])
torch.testing.assert_close(weights_TK, theirs[1])
print("ours equals course.model.choose_experts")

# %% [markdown]
# Expert 3 gets its token, and speaks softly: a quarter of the weight, since its own score says that it has little to offer. With biased weights it would have spoken as loudly as the best. That mistake has a history: an early
# version of vLLM weighed with the biased scores until somebody compared it with DeepSeek's code (vllm-project/vllm, pull request 12002).
#
# ## Who pulls at the router?
#
# The claim is that a bias leaves the gradient alone where a loss does not. Let us look. Take a layer with a skewed router, a target that stands for the task, and compute the gradient of the router's logits, once from the task
# and once from a balance loss.

# %%
from course.model import balance_loss


def pulls(bias_E=None, T=512, E=8, k=2):
    """What the task and a balance loss, of strength 0.01, ask of each expert's logits; and each expert's load."""
    draw = torch.Generator().manual_seed(1)
    logits_TE = torch.randn(T, E, generator=draw) + torch.linspace(1.5, -1.5, E)
    answers_TED = torch.randn(T, E, 16, generator=draw)
    target_TD = torch.randn(T, 16, generator=draw)
    logits_TE.requires_grad_()
    scores_TE = logits_TE.sigmoid()
    here = replace(plain, experts=E, top_k=k)
    indices_TK, weights_TK = choose_experts(scores_TE, bias_E, here)
    said_TKD = answers_TED.gather(1, indices_TK[..., None].expand(-1, -1, 16))
    task = ((said_TKD * weights_TK[..., None]).sum(1) - target_TD).square().mean()
    balance = 0.01 / k * balance_loss(scores_TE / scores_TE.sum(-1, keepdim=True), indices_TK)
    gradients = [torch.autograd.grad(loss, logits_TE, retain_graph=True)[0] for loss in (task, balance)]
    return *gradients, indices_TK


task_TE, balance_TE, chosen_TK = pulls()
print("entries that are not zero: task", f"{(task_TE != 0).float().mean():.0%}", end=" · ")
print("balance loss", f"{(balance_TE != 0).float().mean():.0%}")

# %% [markdown]
# The task speaks about two experts of eight, those which the token met. The balance loss speaks about all eight, for every token, whatever the token is. Averaged over the tokens:

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3))
load_E = chosen_TK.flatten().bincount(minlength=8) / chosen_TK.numel()
axes[0].bar(range(8), 100 * load_E, color="#8c959f")
axes[0].axhline(12.5, color="black", linestyle="--", linewidth=1)
axes[0].set(xlabel="expert", ylabel="share of all pairs (%)", title="Load")
for axis, gradient_TE, title, colour in [
    (axes[1], task_TE, "Pull of the task", COLOURS[0]),
    (axes[2], balance_TE, "Pull of the balance loss", COLOURS[1]),
]:
    axis.bar(range(8), -1e3 * gradient_TE.sum(0), color=colour)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="expert", ylabel="-dL/dlogit, summed (1e-3)", title=title)
for axis in axes:
    axis.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# *Figure: three bar charts over eight experts. The load falls from left to right. The task's pull has no order. The balance loss pushes the two
# busiest experts down, leaves the third, whose load is near the mean, and pushes the others up.*
#
# The two pulls are added, and the optimizer obeys the sum. A bias is different in kind. It changes *which* weights are computed, and no derivative passes through a choice:

# %%
bias_E = torch.linspace(-0.3, 0.3, 8).requires_grad_()
task_with_bias_TE, _, chosen_with_bias_TK = pulls(bias_E)
load_with_bias_E = chosen_with_bias_TK.flatten().bincount(minlength=8) / chosen_with_bias_TK.numel()
print("load without bias:", (100 * load_E).numpy().round(0))
print("load with a bias: ", (100 * load_with_bias_E).numpy().round(0))
print("gradient of the bias:", bias_E.grad)

same_T = (chosen_TK.sort().values == chosen_with_bias_TK.sort().values).all(1)
torch.testing.assert_close(task_TE[same_T], task_with_bias_TE[same_T])
print(f"{same_T.float().mean():.0%} of the tokens keep their experts, and exactly their gradient")

# %% [markdown]
# The tokens that stay get exactly the gradient that they had. Those that moved are taught by the experts that they now meet, and by nothing else. Careful with the slogan: a bias does not leave *training* alone, since it decides who learns from
# which token. It leaves the *gradient* of what was chosen alone.
#
# ## The controller
#
# Who sets the bias? A thermostat. After each step count the pairs of every expert; raise the bias of those below the mean, lower that of those above, all by the same small step $\gamma$:
#
# $$b_e \leftarrow b_e + \gamma\, \operatorname{sign}(\bar c - c_e)$$
#
# The measure is **MaxVio** (Wang et al. 2024): the busiest expert's load over the mean load, minus one; 0 is perfect balance. Four experts by hand:

# %%
from course.model import bias_step, expert_load

counts_E = torch.tensor([5, 40, 12, 23])
ours_E = torch.zeros(4) + 0.01 * (counts_E.float().mean() - counts_E).sign()
assert torch.equal(ours_E, bias_step(torch.zeros(4), counts_E, 0.01))
print("loads", counts_E.tolist(), "mean 20: the biases move by", [f"{b:+.2f}" for b in ours_E])

pairs_TK = torch.arange(4).repeat_interleave(counts_E)[:, None]  # the same loads, as choices
assert expert_load(pairs_TK, 4).max_violation == 40 / 20 - 1
print("MaxVio is 40 / 20 - 1 = 1: both equal course.model's")

# %% [markdown]
# To see the rule alone, freeze the router: 32 experts with fixed, skewed logits, 2,048 fresh tokens at each step.


# %%
from course.model import expert_counts

SKEW_E = 0.6 * torch.randn(32, generator=torch.Generator().manual_seed(3))


def control(rate, steps=300, T=2048, k=4, skew_E=SKEW_E, proportional=False):
    """Loads [steps, experts] and biases under the rule, on a router that does not learn."""
    draw, bias_E, loads, biases = torch.Generator().manual_seed(0), torch.zeros(len(skew_E)), [], []
    for _ in range(steps):
        scores_TE = (skew_E + torch.randn(T, len(skew_E), generator=draw)).sigmoid()
        counts_E = expert_counts((scores_TE + bias_E).topk(k, dim=-1).indices, len(skew_E))
        gap_E = counts_E.float().mean() - counts_E
        bias_E = bias_E + rate * (gap_E / counts_E.float().mean() if proportional else gap_E.sign())
        loads.append(counts_E / counts_E.float().mean())
        biases.append(bias_E)
    return torch.stack(loads), torch.stack(biases)


# %% [markdown]
# **Predict:** three step sizes, 0.001, 0.01 and 0.1. Which is fastest, and which ends best?

# %%
RATES = {0.001: "too slow", 0.01: "right", 0.1: "never settles"}
loads = {rate: control(rate)[0] for rate in RATES}
figure, axis = plt.subplots(figsize=(7.5, 3.4))
for rate, its_loads in loads.items():
    axis.plot(its_loads.amax(1) - 1, label=f"step {rate}: {RATES[rate]}", linewidth=1.4)
axis.set(xlabel="training step", ylabel="MaxVio", title="A bias as controller, at three step sizes", ylim=(0, None))
axis.legend(loc="upper right")
plt.show()
for rate, its_loads in loads.items():
    violation = its_loads.amax(1) - 1
    early, late = violation[100], violation[-50:].mean()
    print(f"step {rate:<5}: MaxVio {violation[0]:.1f} at first, {early:.2f} after 100 steps, {late:.2f} at the end")

# %% [markdown]
# *Figure: MaxVio against steps. With 0.001 a slow slope of some 150 steps; with 0.01 a fall within twenty and a quiet floor; with 0.1 a fall to a ragged level that is
# far from balance and stays there.*
#
# The same three, expert by expert:

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 6), sharex=True)
order_E = SKEW_E.argsort()
for axis, (rate, its_loads) in zip(axes, loads.items(), strict=True):
    picture = axis.imshow(its_loads[:, order_E].T, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", origin="lower")
    axis.set(ylabel="expert, by its skew", title=f"step {rate}: {RATES[rate]}")
    axis.grid(visible=False)
axes[-1].set(xlabel="training step")
figure.colorbar(picture, ax=axes, label="load over mean load (2 and above: darkest)")
plt.show()

# %% [markdown]
# *Figure: three heat maps, experts against steps; red is too much, blue too little, white balanced. The first fades slowly from red above and blue below; the second turns pale at once; the third
# flickers between red and blue to the end.*
#
# Both failures can be computed beforehand. **How long:** a bias moves one step at a time, so that the way it must go, divided by the step, is the time it takes. **How quiet:** at the end every bias still moves by a step
# each time, up and down, and takes along all tokens whose scores lie within that step.

# %%
_, biases = control(0.001, steps=600)
final_E = biases[-1]
way = (final_E - final_E.mean()).abs().max().item()
print(f"the longest way is {way:.2f}")
for rate in RATES:
    print(f"step {rate:<5}: {way / rate:5.0f} steps to get there; one step is {rate / way:5.1%} of the way")

# %% [markdown]
# V3 takes 0.001 and has hundreds of thousands of steps; it sets the step to 0 for the last 500 billion of 14.8 trillion tokens (quoted: V3 report, section 4.2). A run of 200 steps on a laptop with V3's number would be over before the controller had
# arrived: copied settings must be read together with the length of the run.
#
# **Predict:** the step is up or down by the same amount. Does the mean of all biases stay at zero?

# %%
figure, axis = plt.subplots(figsize=(7.5, 3))
for rate, colour in zip([0.01, 0.1], COLOURS[1:], strict=False):
    mean_of_biases = control(rate)[1].mean(1)
    axis.plot(mean_of_biases, label=f"step {rate}", color=colour)
    print(f"step {rate}: after 300 steps the mean bias is {mean_of_biases[-1]:+.2f}")
axis.set(xlabel="training step", ylabel="mean of the 32 biases", title="Biases drift together")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: the mean bias against steps; with the small step it hardly leaves zero in 300 steps, with the large one it climbs to about 1.5.*
#
# It drifts, slowly or fast, because there are rarely as many experts above the mean as below. A number common to all biases changes no choice, so nothing in the rule pulls it back. Published weights show it: somebody who looked found that the smallest bias in any layer of
# DeepSeek-V3 is above 2 (quoted, second-hand: huggingface/transformers, pull request 45441). Keep this in mind; it decides whether the next trap is sprung.
#
# ## Groups
#
# V3's 256 experts stand on different machines. If the eight experts of a token lie on eight machines, its vector travels eight times. So V3 divides the experts into eight *groups* and lets a token choose from four of them only.
#
# **Predict:** without a limit, in how many groups do eight random experts of 256 lie, on average?

# %%
expected = 8 * (1 - math.comb(224, 8) / math.comb(256, 8))
print(f"computed: {expected:.2f} groups, and at most 4 with the limit")


def combinations(E, k, G, M):
    """How many sets of k experts lie within M of G groups: by inclusion and exclusion."""
    size = E // G
    in_exactly = [
        math.comb(G, j) * sum((-1) ** (j - i) * math.comb(j, i) * math.comb(i * size, k) for i in range(j + 1))
        for j in range(1, M + 1)
    ]
    return sum(in_exactly)


assert combinations(256, 8, 8, 8) == math.comb(256, 8)
left, every = combinations(256, 8, 8, 4), math.comb(256, 8)
print(f"combinations left: {left:.2e} of {every:.2e}, {left / every:.0%}")

# %% [markdown]
# Which four? A group must be given a score. V2 takes its best expert. V3's code takes the sum of its best **two**. Here is a token for which the difference matters: four groups of four, two may stay open, four experts wanted.

# %%
from course.model import limit_groups

scores_E = torch.tensor(
    [0.92, 0.15, 0.10, 0.12, 0.70, 0.68, 0.30, 0.20, 0.66, 0.64, 0.61, 0.22, 0.78, 0.11, 0.14, 0.09]
)
best_two_G = scores_E.view(4, 4).topk(2, dim=-1).values.sum(-1)
keep_G = best_two_G.topk(2).indices
open_G = torch.zeros(4, dtype=torch.bool).index_fill(0, keep_G, True)
limited_E = scores_E.view(4, 4).masked_fill(~open_G[:, None], -math.inf).flatten()
print("sum of the best two of each group:", best_two_G.numpy().round(2), "· open:", sorted(keep_G.tolist()))
assert torch.equal(limited_E, limit_groups(scores_E[None], groups=4, top_groups=2, best=2)[0])
print("ours equals course.model.limit_groups")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), sharey=True)
ways = {"No limit": None, "By the best (V2)": 1, "By the best two (V3's code)": 2}
for axis, (title, best) in zip(axes, ways.items(), strict=True):
    limited_E = scores_E if best is None else limit_groups(scores_E[None], 4, 2, best)[0]
    chosen = limited_E.topk(4).indices.tolist()
    colours = [
        COLOURS[0] if e in chosen else "#9ecae1" if limited_E[e] > -math.inf else "#d0d7de"
        for e in range(len(scores_E))
    ]
    axis.bar(range(16), scores_E, color=colours)
    for edge in (3.5, 7.5, 11.5):
        axis.axvline(edge, ymax=0.87, color="#57606a", linewidth=0.8, linestyle=":")
    axis.set(xlabel="expert", title=title, xticks=[1.5, 5.5, 9.5, 13.5])
    axis.set_xticklabels([f"group {g}" for g in range(4)], fontsize=8)
    axis.grid(axis="x", visible=False)
    total = scores_E[chosen].sum().item()
    axis.text(0.5, 0.94, f"chosen add up to {total:.2f}", transform=axis.transAxes, ha="center", fontsize=9)
axes[0].set(ylabel="score", ylim=(0, 1.12))
plt.show()

# %% [markdown]
# *Figure: the same sixteen scores three times, in four groups. Dark: chosen; light blue: open and not chosen; grey: closed. Without a limit the four best lie in three groups. Ranked by the best alone, groups 0 and 3 stay open,
# each with a lone star; ranked by the best two, groups 1 and 2.*
#
# By the best alone, two groups with one star each win, and the token fills up with leftovers. It wanted four experts from two groups, hence two from each, and so the best *two* of a group are what it will really get.
#
# That is the report's rule: the sum of the best $K/M$ scores, where M groups stay open (V3 report, section 2.1.2). The code has a fixed 2. For V3 itself, 8 / 4 is 2 and they agree. For others they do not:

# %%
draw_TE = torch.rand(4096, 256)
for M in (4, 2):
    chosen = {
        best: limit_groups(draw_TE, 8, M, best).topk(8, dim=-1).indices.sort(-1).values for best in {1, 2, 8 // M}
    }
    report = (chosen[2] != chosen[8 // M]).any(-1).float().mean()
    v2 = (chosen[2] != chosen[1]).any(-1).float().mean()
    print(f"{M} of 8 groups: code and report differ on {report:.0%} of tokens, V3 and V2 on {v2:.0%}  (random scores)")

# %% [markdown]
# Who trains a model with two open groups by the report and serves it by the code would route half of the tokens to another set of experts, without an error message. `course.model` has a setting for it, `group_best`, and follows the code by default.
#
# ## Closed means minus infinity
#
# How does one close a group? DeepSeek-V2's code wrote zeros over its scores: a score from a softmax is positive, so zero is below them all. Then came the bias.
#
# **Predict:** what happens to a zero when the biases of an open group have pushed its scores below it?

# %%
scores_TE = torch.rand(2048, 32)
shifts = torch.linspace(-1.2, 0.3, 16)
leaks = []
for shift in shifts:
    limited_TE = limit_groups(scores_TE + shift, groups=4, top_groups=2, best=2)
    zeros_TE = limited_TE.masked_fill(limited_TE == -math.inf, 0.0)
    taken_TK = zeros_TE.topk(8, dim=-1).indices
    leaks.append(100 * (limited_TE.gather(1, taken_TK) == -math.inf).float().mean().item())
figure, axis = plt.subplots(figsize=(7.5, 3))
axis.plot(shifts, leaks, "o-", color=COLOURS[1], label="closed by 0")
axis.axhline(0, color=COLOURS[0], linewidth=2.5, label="closed by minus infinity")
axis.set(
    xlabel="bias, the same for all experts",
    ylabel="choices in closed groups (%)",
    title="Zero is a door that opens",
    ylim=(-4, 104),
)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: share of choices that fall into closed groups against a common bias. With zeros it is nil for positive biases, rises as they fall below zero, and reaches all of them at minus one; with minus infinity it is nil everywhere.*
#
# A common bias should change nothing at all, and with zeros it decides everything. The bug lived in many places and was found again and again: deepseek-ai/DeepSeek-V3 issue 741, vllm-project/vllm pull request 13474, sgl-project/sglang pull request 3705,
# huggingface/transformers issue 45440. Why did the models keep working? Because V3's biases have drifted above 2, as you just read: its scores never get near zero. A model that drifts the other way would have been broken.
#
# ## One sequence against the batch
#
# Two losses are in use. Over the whole batch (lesson 04), and over each sequence by itself (V3 report, equations 17 to 20), both from the shares $f_e$ and the mean probabilities $P_e$:
#
# $$\frac{E}{K} \sum_e f_e P_e \quad\text{with shares of the batch, or}\quad \frac{1}{B}\sum_b \frac{E}{K} \sum_e f_{be} P_{be} \quad\text{with shares of sequence } b$$
#
# Each is 1 at balance. (`balance_loss` leaves out the 1/K; `sequence_balance_loss` has it.)
#
# **Predict:** four sequences: code, prose, a table, a poem. Each uses two of eight experts, no two the same. What does either loss say?

# %%
from course.model import sequence_balance_loss

B, S, E, k = 4, 6, 8, 2
logits_BSE = torch.full((B, S, E), -1.0)
for b in range(B):
    logits_BSE[b, :, 2 * b : 2 * b + 2] = 1.0
logits_BSE.requires_grad_()
scores_BSE = logits_BSE.sigmoid()
p_BSE = scores_BSE / scores_BSE.sum(-1, keepdim=True)
indices_BSK = p_BSE.topk(k, dim=-1).indices

chosen_BSE = F.one_hot(indices_BSK, E).sum(2).float()  # 1 where an expert was chosen
over_batch = E / k * (chosen_BSE.mean((0, 1)) * p_BSE.mean((0, 1))).sum()
over_each = E / k * (chosen_BSE.mean(1) * p_BSE.mean(1)).sum(-1).mean()
torch.testing.assert_close(over_batch, balance_loss(p_BSE.flatten(0, 1), indices_BSK.flatten(0, 1)) / k)
torch.testing.assert_close(over_each, sequence_balance_loss(p_BSE, indices_BSK))
print(f"batch-wise {over_batch:.2f}, sequence-wise {over_each:.2f}: both equal course.model's")

# %%
batch_BSE, each_BSE = (torch.autograd.grad(loss, logits_BSE, retain_graph=True)[0] for loss in (over_batch, over_each))
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), width_ratios=[1, 1, 1.18])
axes[0].imshow(chosen_BSE.mean(1), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
axes[0].set(title="Share of tokens", ylabel="sequence")
limit = 1e3 * each_BSE.sum(1).abs().max()
for axis, gradient, title in [(axes[1], batch_BSE, "Pull, batch-wise"), (axes[2], each_BSE, "Pull, sequence-wise")]:
    picture = axis.imshow(-1e3 * gradient.sum(1), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axis.set(title=title)
for axis in axes:
    axis.set(xlabel="expert", xticks=range(8), yticks=range(4))
    axis.set_yticklabels(["code", "prose", "table", "poem"])
    axis.grid(visible=False)
figure.colorbar(picture, ax=axes[2], label="-dL/dlogit (1e-3)")
plt.show()
print(f"largest pull: batch-wise {batch_BSE.abs().max().item():.0e}, sequence-wise {each_BSE.abs().max().item():.0e}")

# %% [markdown]
# *Figure: left, four sequences by eight experts: a staircase of full cells, every column adding up to the same. Middle, the batch-wise pull: blank. Right, the sequence-wise pull: down exactly on the staircase, up everywhere else.*
#
# The batch is in perfect balance, and the batch-wise loss does not pull at all: with equal shares $f_e$ it is a constant, since the $P_e$ add up to one. The sequence-wise loss pulls at *just what makes these experts specialists*. The report measured what that costs (quoted, V3 report, section 4.5.3, a model of one billion
# parameters): validation loss 2.258 sequence-wise, 2.253 batch-wise, and 2.253 with the bias. So it was not the loss as such that did harm, but its scope; the bias, too, counts over the whole batch.
#
# Why then does V3 keep a sequence-wise loss, with strength 0.0001? Against extremes: in serving, a single long text can be a large part of what a machine has in hand.
#
# ## A router that learns
#
# So far the router stood still. Now a whole model: three layers, two of them mixtures of 32 experts with four for each token and one shared, on Python source. Once without any balancing, once as V3 does it, sixty steps each.
#
# **Predict:** does MaxVio fall at once when a bias works against a router that learns?

# %%
from course.training.data import load
from course.training.trainer import TrainSettings, evaluate, train

data = load("code", vocab=1024)
small = replace(config, vocab=data.tokenizer.vocab, layers=3, context=128, groups=1, top_groups=1)
ways = {
    "none": replace(small, selection_bias=False, bias_rate=0.0, sequence_balance_weight=0.0),
    "V3's mix": small,
}
settings = TrainSettings(steps=60, batch=16, warmup=20, evaluate_every=60, evaluation_sequences=64)
live = {name: train(its_config, data, settings, progress=True) for name, its_config in ways.items()}

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for name, (_, rows) in live.items():
    axis.plot([row.step for row in rows], [row.max_violation for row in rows], label=name)
axis.set(xlabel="training step", ylabel="MaxVio, mean of two layers", title="With a router that learns", ylim=(0, None))
axis.legend()
plt.show()
for name, (_, rows) in live.items():
    late = sum(row.max_violation for row in rows[-10:]) / 10
    print(
        f"{name:9s} MaxVio {late:.1f} over the last ten steps, loss {rows[-1].validation:.3f}  (measured here, one seed)"
    )

# %% [markdown]
# *Figure: MaxVio against steps. Both start near each other and rise sharply in the first ten or twenty steps; without balancing it stays high, with the bias it comes down again.*
#
# At first it *rises*, with and without: the router learns faster than the controller moves, like a heating in a house whose windows are being opened. After some forty steps the biases have caught up.
#
# ## What the shared expert holds
#
# Take the balanced model as it stands and remove parts of its mixtures, without training anything anew.
#
# **Predict:** which hurts more: to lose the one shared expert, or all routed ones?

# %%
model = live["V3's mix"].model
whole = evaluate(model, data, sequences=48)


def without(part):
    """The loss when one part of every mixture says nothing."""
    with torch.no_grad():
        silenced = [m.down_EDI if part == "routed" else m.shared.down_DI for m in model.mixtures()]
        kept = [parameter.clone() for parameter in silenced]
        for parameter in silenced:
            parameter.zero_()
        loss = evaluate(model, data, sequences=48)
        for parameter, before in zip(silenced, kept, strict=True):
            parameter.copy_(before)
    return loss


for part in ("shared", "routed"):
    print(f"without the {part} experts the loss rises by {without(part) - whole:.3f} nats  (measured here, one seed)")
assert evaluate(model, data, sequences=48) == whole
met = config.top_k, config.shared_experts
print(f"a token meets {met[0]} routed experts and {met[1]} shared one, all of the same width")

# %% [markdown]
# A disappointment, if your figures look like ours: the shared expert is missed least, by a few thousandths of a nat, less than its fifth of the experts that a token meets. Two things explain some of it. Its answer has weight 1, those of the routed experts 2.5
# together. And after sixty steps all mixtures together are worth a few hundredths: most of what such a young model knows is in its embedding, attention and dense layer. That a shared expert gathers what everybody needs is an idea about long training; nothing here
# shows it, and one seed could not.
#
# ## Which way of balancing?
#
# The recorded experiment trains that model for 200 steps in eight ways, three seeds each. Its rule was fixed before it ran.

# %%
record = course.recorded("routers")
means, verdicts, runs = record["means"], record["verdicts"], record["runs"]
names = ["loss", "step_violation", "global_violation", "sequence_violation", "groups_met", "specialisation"]
heads = ["loss", "MaxVio step", "MaxVio all", "MaxVio 1 seq.", "groups met", "special. bits"]
print("\n" + " " * 22 + "".join(f"{head:>14s}" for head in heads))
for arm in runs:
    print(f"{arm:22s}" + "".join(f"{means[name][arm]:14.3f}" for name in names))

# %% [markdown]
# Loss first, every seed a dot. **Predict:** is the model without any balancing the worst?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
arms = list(runs)
for row, arm in enumerate(arms):
    values = [run["loss"] for run in runs[arm]]
    axes[0].plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.6, markersize=6)
    axes[0].plot(means["loss"][arm], row, "|", color="black", markersize=16)
for shift, (measure, label) in enumerate(
    {"step_violation": "a training batch", "sequence_violation": "one unseen sequence"}.items()
):
    axes[1].barh(
        [row + 0.36 * (shift - 0.5) for row in range(len(arms))],
        [means[measure][arm] for arm in arms],
        height=0.34,
        color=COLOURS[1 + shift],
        label=label,
    )
axes[0].set(
    yticks=range(len(arms)), yticklabels=arms, xlabel="validation loss (nats a token)", title="Loss, three seeds"
)
axes[1].set(xlabel="MaxVio", title="Imbalance, mean over the seeds")
axes[0].locator_params(axis="x", nbins=5)
axes[0].invert_yaxis()
axes[1].legend(title="of", loc="lower right")
plt.show()

# %% [markdown]
# *Figure: left, the validation loss of the eight arms, a dot a seed and a bar for the mean. Right, MaxVio of the eight arms, over a training batch of 2,048 tokens and over one sequence of 128.*
#
# And by the rule:

# %%
print(" " * 22 + "".join(f"{head:>14s}" for head in heads))
for pair in verdicts["loss"]:
    found = [verdicts[name][pair] for name in names]
    shown = [f"{each['difference']:+.3f} {'*' if each['resolved'] else ' '}" for each in found]
    print(f"{pair.replace(' -> ', ', '):22s}" + "".join(f"{each:>14s}" for each in shown))
print("second minus first arm; * resolved; without a star: not resolved")

# %% [markdown]
# **Loss: nothing is resolved.** The means lie within 0.02 nats of each other, and the seeds of one arm up to 0.06 apart. The model without balancing is not worse, the one with a strong loss is not worse either, and the 0.005 by which the report sets
# the scopes apart could not be seen here if it were there. Whoever shows you such a table from one seed shows you the seed.
#
# **Imbalance: nearly everything is.** Each way beats none. At equal strength, batch and sequence are not told apart. A loss of strength 0.01 stops halfway; the bias needs no strength to be chosen and goes much farther. One pair is missing from the table, and we
# noticed after the run: the strong loss against the bias. Here it is by the same rule, *chosen afterwards*, with another that a later section needs:


# %%
def by_the_rule(one, other, measure):
    """The record's rule, for a pair that was not named before the run."""
    a, b = ([run[measure] for run in runs[arm]] for arm in (one, other))
    difference, spread = sum(b) / len(b) - sum(a) / len(a), max(max(a) - min(a), max(b) - min(b))
    said = "resolved" if abs(difference) > spread else "not resolved"
    print(f"{one} -> {other}, {measure.replace('_', ' ')}: {difference:+.3f}, largest spread {spread:.3f}: {said}")


by_the_rule("batch strong", "bias", "loss")
by_the_rule("batch strong", "bias", "step_violation")
by_the_rule("batch strong", "bias", "specialisation")
by_the_rule("sequence", "bias", "specialisation")

# %% [markdown]
# Ten times the strength, and the plain loss balances as well as the bias, at no cost that we could see. So this experiment does *not* show that a balance loss harms the model. What it shows is that 0.01, the usual strength, was too weak here, and that the step of the bias happened to be right; each way has one number to choose. Published
# comparisons that do find a harm trained for 100 billion tokens, not for 400 thousand (quoted, second-hand: Wang et al. 2024, table 2, perplexity 9.50 with the bias against 9.56 with a loss).
#
# Here are the loads themselves:

# %%
last = [torch.tensor(runs[arm][0]["loads"][-1]) for arm in arms]  # seed 0: [layers, experts]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for layer, axis in enumerate(axes):
    share_AE = torch.stack([loads_LE[layer].sort(descending=True).values for loads_LE in last])
    picture = axis.imshow(32 * share_AE, vmin=0, vmax=2, cmap="RdBu_r", aspect="auto")
    for row, busiest in enumerate((32 * share_AE).amax(1)):
        axis.text(0, row, f" {busiest:.1f}", va="center", fontsize=8, color="white" if busiest > 1.6 else "black")
    axis.set(title=f"mixture {layer + 1}", xlabel="experts, busiest first", yticks=range(len(arms)), yticklabels=arms)
    axis.grid(visible=False)
figure.colorbar(picture, ax=axes, label="load over mean load")
plt.show()

# %% [markdown]
# *Figure: for both mixture layers, eight rows, one an arm, of 32 cells, one an expert, over the last 20 steps of seed 0. Red is above the mean load, blue below, darkest from twice the mean on; the number is the busiest expert's load over the mean.*

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.4))
for arm in ("none", "batch", "sequence", "bias", "mix"):
    violation_RS = torch.tensor([run["max_violation"] for run in runs[arm]])
    steps = 1 + 4 * torch.arange(violation_RS.shape[1])
    (line,) = axis.plot(steps, violation_RS.mean(0), label=arm)
    axis.fill_between(steps, violation_RS.amin(0), violation_RS.amax(0), color=line.get_color(), alpha=0.15)
axis.set(xlabel="training step", ylabel="MaxVio, mean of two layers", title="The way to balance", ylim=(0, None))
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Figure: MaxVio of the training batches against steps for five arms, mean and range over three seeds. All rise steeply in the first twenty steps or so; then they part.*
#
# The hill at the beginning is the one you saw live. Then the two arms with a bias go down together and stay, and V3's additional loss of strength 0.0001 changes nothing that could be told apart from the bias alone. The two losses of strength 0.01 settle
# at a level of their own, as pulls do that another pull opposes: a loss negotiates, a controller insists.
#
# ## What groups cost and save
#
# The last three arms differ in the groups alone. A message is saved for each group that a token does not visit.

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for arm, label in {"mix": "no limit", "mix 2 of 4": "2 of 4 groups", "mix 1 of 4": "1 of 4 groups"}.items():
    met, losses = ([run[key] for run in runs[arm]] for key in ("groups_met", "loss"))
    axis.plot(met, losses, "o", markersize=8, alpha=0.7, label=label)
axis.set(
    xlabel="groups that a token's four experts lie in, mean",
    ylabel="validation loss (nats a token)",
    title="Fewer messages, at which loss?",
)
axis.legend()
plt.show()
for pair in ("mix -> mix 2 of 4", "mix -> mix 1 of 4"):
    loss, met = verdicts["loss"][pair], verdicts["groups_met"][pair]
    print(f"{pair}: groups met {met['difference']:+.2f}, loss {loss['difference']:+.4f}", end="")
    print(f" (largest spread {loss['largest_spread']:.4f}): {'resolved' if loss['resolved'] else 'not resolved'}")

# %% [markdown]
# *Figure: validation loss against the mean number of groups met, a dot a seed, in three colours for no limit, two of four and one of four groups.*
#
# Two of four groups save 0.79 of 2.78 visits, one of four saves 1.78, nearly two thirds. The losses are not resolved: what a limit costs is less than this experiment can see. Two side effects are resolved, both with one group: a single sequence is spread more
# evenly (MaxVio 1.25 against 1.66), and an expert tells less about what it reads (0.108 against 0.181 bits). With four experts from one group of eight, half of a group answers at a time; little room is left to be particular.
#
# ## Who reads what
#
# The report's reason for counting over the batch is that experts may then specialise. Each token of twelve unseen files is code, docstring or comment; how much more often than on average does an expert see each kind?

# %%
figure, axes = plt.subplots(4, 1, figsize=(9, 5.2), sharex=True)
for axis, arm in zip(axes, ["none", "batch", "sequence", "bias"], strict=True):
    counts_KE = torch.tensor(runs[arm][0]["kinds"][-1]).float()  # seed 0, last layer
    expected_KE = counts_KE.sum(1, keepdim=True) * counts_KE.sum(0, keepdim=True) / counts_KE.sum()
    ratio_KE = (counts_KE / expected_KE.clamp(min=1)).clamp(0.25, 4).log2()
    order_E = (ratio_KE[0] - ratio_KE[1]).argsort(descending=True)
    picture = axis.imshow(ratio_KE[:, order_E], vmin=-2, vmax=2, cmap="PuOr_r", aspect="auto")
    bits = means["specialisation"][arm]
    axis.set(title=f"{arm}: {bits:.3f} bits", yticks=range(3), yticklabels=record["kinds"])
    axis.grid(visible=False)
axes[-1].set(xlabel="experts, those for code first")
bar = figure.colorbar(picture, ax=axes, label="share of the kind, over its mean share", ticks=[-2, -1, 0, 1, 2])
bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
plt.show()

# %% [markdown]
# *Figure: for four arms, kinds of text against the 32 experts of the last layer, seed 0. Orange: the expert sees this kind more often than the mean expert does; purple: less often. In the title the mean over seeds and layers of what
# an expert tells about the kind, in bits.*
#
# Nobody told a router what a comment is. At equal strength, experts under the sequence-wise loss tell *less* about the kind of text than those under the batch-wise one (0.096 against 0.157 bits, resolved), and less than those under the bias (chosen afterwards): the report's
# argument for the batch (section 4.5.3) shows here, in a model some ten thousand times smaller than the 16 billion of the report's. In the loss it does not show.
#
# And the arm without balancing? Less than the bias, resolved too. Freedom did not make specialists. A likely reason: when a few experts take nearly all tokens, they must read everything.
#
# ## And by the clock?
#
# All this for a layer that is supposed to be *cheaper*. In lesson 04 a mixture won by tokens, and lost by the clock to its dense twin. That was one mixture. The recorded experiment here tries nine, of several grains, with and without a shared expert, with larger batches and other learning rates for
# the experts, against three dense models; each has the same sixty seconds on two cores, and three seeds. Its rule was fixed before. A mixture wins if it beats *all* dense arms.
#
# **Predict:** how many of the nine win?

# %%
frontier = course.recorded("moe_vs_dense")
ends = {arm: [run["validation"][-1] for run in runs_of] for arm, runs_of in frontier["runs"].items()}
print(f"\n{'':36s} {'ms a step':>9s} {'loss':>7s} {'spread':>7s}  {'by the clock':14s} by FLOPs")
for arm in sorted(ends, key=lambda arm: sum(ends[arm])):
    said = [frontier["verdicts"][by].get(arm, {"verdict": ""})["verdict"] for by in ("by the clock", "by FLOPs")]
    cost, spread = 1e3 * frontier["models"][arm]["seconds_a_step"], max(ends[arm]) - min(ends[arm])
    print(f"{arm:36s} {cost:9.0f} {sum(ends[arm]) / 3:7.3f} {spread:7.3f}  {said[0]:14s} {said[1]}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
shown = {"dense": "black", "8 experts, top 2": COLOURS[0], "32 experts, top 2": COLOURS[1]}
for axis, what, label in zip(axes, ("seconds", "gflop"), ("seconds of training", "GFLOP of training"), strict=True):
    for arm, runs_of in sorted(frontier["runs"].items(), key=lambda item: item[0] in shown):
        mean = torch.tensor([run["validation"] for run in runs_of]).mean(0)
        colour = shown.get(arm, "#c0c6ce")
        axis.plot(runs_of[0][what], mean, color=colour, linewidth=1.6, label=arm if arm in shown else None)
    axis.set(xlabel=label, title=f"By {'the clock' if what == 'seconds' else 'FLOPs'}", ylim=(3.4, 5))
axes[0].set(ylabel="validation loss (nats a token)")
axes[0].legend()
plt.show()

# %% [markdown]
# *Figure: validation loss, mean of three seeds, against seconds and against FLOPs, twelve lines, three of them in colour: the dense model, 8 experts, and 32 experts. Left, the dense line is the lowest throughout, and the two mixtures run close above it. Right, the order is turned round: 32 experts lie lowest. Several grey lines lie above in both.*
#
# None. The best mixtures come within a few hundredths of a nat of the plain dense model, and within the seeds; those with the larger batch, with wide experts or with experts that learn faster lose. With slower experts one seed of three went wrong (4.04 where its sisters have 3.5 to 3.7), and its spread hides whatever else there is. By FLOPs the order of the
# means turns round: a model with 32 experts gets a little more out of each multiplication, as it should, though within the seeds. By the clock it gives that back, for each of its steps costs 9 to 25 % more than the dense one's, in sorting, gathering and smaller products: a tax that a machine takes, not the idea. Larger experiments find the opposite, with thousands of times more tokens (DeepSeekMoE paper, table 2; *quoted*: with 0.24 B of 1.89 B expert parameters active it comes near a dense model that uses all of them).
# What this course can say about it on two cores is: not here, not in a minute.
#
# ## Turn the knobs
#
# The controller again, with three knobs: the step, how skewed the router is, and how many tokens are counted. And a fourth: moving each bias *in proportion* to its expert's gap, where the paper's rule looks at the sign alone.


# %%
def knobs(rate=0.02, skew=0.6, tokens=512, proportional=False):
    its_loads, biases = control(rate, 200, tokens, skew_E=skew / 0.6 * SKEW_E, proportional=proportional)
    _, axes = plt.subplots(1, 2, figsize=(9, 2.9))
    axes[0].plot(its_loads.amax(1) - 1)
    axes[0].set(xlabel="step", ylabel="MaxVio", ylim=(0, None))
    axes[0].set_title(f"at the end: {(its_loads.amax(1) - 1)[-50:].mean():.2f}")
    axes[1].plot(biases, linewidth=0.8)
    axes[1].set(xlabel="step", ylabel="bias of each expert", title="The 32 biases")
    plt.show()


knobs()

# %% [markdown]
# *Figure: left, MaxVio over 200 steps; right, 32 lines, the biases, which fan out in straight lines, then tremble, and drift upwards together.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import Checkbox, FloatLogSlider, FloatSlider, SelectionSlider, interact

controls = interact(
    knobs,
    rate=FloatLogSlider(0.02, min=-3, max=-0.5),
    skew=FloatSlider(0.6, min=0, max=2, step=0.1),
    tokens=SelectionSlider(options=[64, 512, 4096], value=512),
    proportional=Checkbox(False),
)

# %% [markdown]
# Three things to try: no skew at all and 64 tokens, where MaxVio is what chance alone makes and no controller can help; a skew of 2, and how long the way becomes; and the proportional rule at the same rates: what does it do at the end?
#
# ## What we measured
#
# - A SwiGLU cut into quarters is the same function; what is gained is choice: 120 combinations become 4.4 billion (computed).
# - A balance loss pulls at every logit of every token; a bias has no gradient, and tokens that keep their experts keep their gradient exactly.
# - The controller's speed and its noise are one number: 0.001 takes about 150 steps, 0.01 about 15, 0.1 never settles (measured here, frozen router). Biases drift together.
# - With two open groups, V3's code and V3's report choose different experts for half of all tokens (random scores). Groups closed by zeros open again below zero.
# - A batch in perfect balance, whose sequences are not: the batch-wise loss pulls at nothing there.
# - Eight ways, three seeds (recorded, 200 steps): MaxVio from 5.5 without balancing to 0.5 with the bias; in the loss nothing is resolved. Two of four groups save 28 % of the visits at no cost that shows.
# - Nine mixtures against three dense models, a minute each, three seeds (recorded): no mixture wins by the clock or by FLOPs; four lose by the clock.
#
# **What surprised:** that a strong plain loss does as well as the bias here; that unbalanced experts are *less* special; and that a published model owes its immunity to a bug to a drift that nobody designed. What stayed open: whether the shared expert holds what all need.
#
# **To read**
#
# - Dai et al. 2024, *DeepSeekMoE*, sections 3.1 and 3.2: finer experts, shared experts.
# - Wang et al. 2024, *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*: the bias as controller, MaxVio, the choice of the step.
# - DeepSeek-AI 2024, *DeepSeek-V2*, section 2.2: groups, and the three losses that V3 got rid of.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, sections 2.1.2 and 4.5.3: all of this lesson, and one sequence against the batch.
#
# **Now the lab:** `labs/05_deepseek_moe.ipynb`. You write the gate with its bias, the groups, both losses, the controller and the measure of balance, and put your own layer together.
