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
# # Lab 03 · Training
#
# In the lesson you took one step of training apart. Here you write the pieces that every training run is made of, each with a twist that the lesson
# left out: an optimizer that skips what has no gradient, the learning rate of DeepSeek-V3, a clip that refuses to take a bad step, a count of
# FLOPs for any model of the family, and the rule that says when to believe a comparison.
# When you are done, the last cells train a small language model on your own parts, beside PyTorch's, step for step.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Stuck? `course hint 03.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

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
# ## 03.1 · One step of AdamW
#
# A parameter with gradient $g$ and moments $m$, $v$ takes the step
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \qquad
# \hat m = \frac{m}{1-\beta_1^{t}} \qquad \hat v = \frac{v}{1-\beta_2^{t}}$$
#
# $$p \leftarrow (1 - \eta\lambda)\,p \;-\; \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# with the learning rate $\eta$ (`lr`) and the decay $\lambda$ (`weight_decay`). Use the updated $m$ and $v$ in $\hat m$ and $\hat v$; the factor
# $(1 - \eta\lambda)$ multiplies the old $p$. Three things that the formula does not say, and that real models need:
#
# - Only the parameters named in `decayed` shrink. For all others the factor $(1 - \eta\lambda)$ is left out.
# - $t$ counts the updates of *this* parameter, from 1: `state[name]["step"]` is how many it has had so far, and the returned one is $t$. A parameter whose gradient is
#   `None` is left alone: same value, same moments, same count. (An expert that no token visited may have no gradient.)
# - A gradient may be bfloat16. Widen it to float32 before you use it.
#
# Return *new* dictionaries; the old ones stay as they are. They may share tensors where nothing changed. PyTorch's own optimizers are out of
# bounds.
#
# | | |
# |---|---|
# | `params` | dict of name to float32 tensor |
# | `grads` | dict of the same names to a tensor (float32 or bfloat16, the parameter's shape) or None |
# | `state` | dict of the same names to `{"step": int, "m": tensor, "v": tensor}`, float32 |
# | `decayed` | list of names |
# | `lr`, `beta1`, `beta2`, `eps`, `weight_decay` | floats |
# | returns `params`, `state` | two dicts of the same form |
#
# For example, with `lr=0.1, beta1=0.9, beta2=0.99, eps=0, weight_decay=0.5` a fresh weight of 1 with gradient 4 becomes 0.95 - 0.1 = 0.85 when it is
# decayed, and 0.9 when it is not. A gradient of 400 would give the same.
#
# **Exercise 03.1** · difficulty 3 of 5 · 25 minutes · 15 points


# %% tags=["exercise:03.1"]
# exercise 03.1
def adamw_step(
    params: dict[str, Tensor],
    grads: dict[str, Tensor | None],
    state: dict[str, dict],
    decayed: list[str],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """All parameters and their states after one AdamW step."""
    ### BEGIN SOLUTION
    stepped, moments = dict(params), dict(state)
    for name, gradient in grads.items():
        if gradient is None:
            continue
        wide, t = gradient.to(torch.float32), state[name]["step"] + 1
        first = torch.lerp(state[name]["m"], wide, 1 - beta1)
        second = torch.lerp(state[name]["v"], wide * wide, 1 - beta2)
        update = (first / (1 - beta1**t)) / (torch.sqrt(second / (1 - beta2**t)) + eps)
        shrink = lr * weight_decay if name in decayed else 0.0
        stepped[name] = (1 - shrink) * params[name] - lr * update
        moments[name] = {"step": t, "m": first, "v": second}
    return stepped, moments
    ### END SOLUTION


# %% tags=["check:03.1", "nbval-check-output"]
check("03.1", adamw_step)

# %% [markdown]
# ## 03.2 · The learning rate of DeepSeek-V3
#
# The lesson's schedule is a warm-up and a cosine: it must know the end of the run from the start. DeepSeek-V3 (report, section 4.2) did otherwise: a
# warm-up over 2,000 steps to 2.2e-4, then **constant** until 10 T tokens were read, then half a cosine down to 2.2e-5 over 4.3 T tokens,
# then constant for 333 B tokens, and 7.3e-6 for the rest. The warm-up is in *steps*, all else in *tokens*, since the batch grew during the run.
#
# Write the rate of one step:
#
# 1. while `step <= warmup`: a straight line through zero, `peak` at step `warmup`. Steps count from 1, so the first one is not wasted.
#    With `warmup = 0` there is none. The warm-up goes first, whatever the number of tokens;
# 2. then `peak`, while `tokens < hold_until`;
# 3. then half a cosine from `peak` to `floor`, over `decay` further tokens (none when `decay` is 0: the floor follows at once);
# 4. then `floor`, for `rest` further tokens;
# 5. then `last`: from exactly `hold_until + decay + rest` tokens on.
#
# | | |
# |---|---|
# | `step` | int, the number of this step, from 1 |
# | `tokens` | int, tokens read *before* this step |
# | `peak`, `floor`, `last` | floats, learning rates |
# | `warmup` | int, steps |
# | `hold_until` | int, tokens from the start of the run |
# | `decay`, `rest` | ints, tokens: the lengths of two stretches |
# | returns | a number, the learning rate |
#
# For example, with `peak=1.0, floor=0.2, last=0.1, warmup=4, hold_until=100, decay=40, rest=30` the rate is 0.25 at step 1, and later, after 100, 110, 120, 140, 169 and 170 tokens,
# it is 1.0, 0.8828, 0.6, 0.2, 0.2 and 0.1.
#
# **Exercise 03.2** · difficulty 2 of 5 · 10 minutes · 10 points


# %% tags=["exercise:03.2"]
# exercise 03.2
def learning_rate(
    step: int,
    tokens: int,
    peak: float,
    floor: float,
    last: float,
    warmup: int,
    hold_until: int,
    decay: int,
    rest: int,
) -> float:
    """The learning rate of one step: warm-up by steps, then plateau, half a cosine, floor and last by tokens."""
    ### BEGIN SOLUTION
    after = tokens - hold_until
    if 0 < step <= warmup:
        return step / warmup * peak
    if after >= decay + rest:
        return last
    if after >= decay:
        return floor
    turn = math.pi * max(0, after) / decay if decay else 0.0
    return floor + (1 + math.cos(turn)) / 2 * (peak - floor)
    ### END SOLUTION


# %% tags=["check:03.2", "nbval-check-output"]
check("03.2", learning_rate)

# %% [markdown]
# ## 03.3 · Clip, or refuse
#
# Clipping multiplies *all* gradients by one factor, so that the norm of all of them together is at most `max_norm`:
#
# $$\text{norm} = \sqrt{\textstyle\sum_{i}\sum_{j} g_{ij}^2} \qquad g_i \leftarrow g_i \cdot \frac{\text{max\_norm}}{\text{norm}}
# \quad\text{if norm} > \text{max\_norm}$$
#
# Write it so that it can be trusted in a real run:
#
# - Squares are summed in float32, also those of bfloat16 gradients. Each gradient keeps its dtype: multiply in float32, and round the product.
# - If the norm is at or below `max_norm`, all gradients stay as they are.
# - Some entries are None (no gradient): they count as nothing and stay None. If all are, the norm is 0.
# - If the norm is **not finite** (NaN, or infinite, be it because squares overflow), no step must be taken: return None in place of *every* gradient. Then your `adamw_step`
#   leaves all parameters alone.
#
# No small number is added to the norm anywhere. PyTorch's `clip_grad_norm_` and `get_total_norm` are out of bounds.
#
# | | |
# |---|---|
# | `grads` | list of tensors (float32 or bfloat16, any shape) and None |
# | `max_norm` | float |
# | returns `clipped` | list of the same length |
# | returns `norm` | float32 tensor without dimensions: the norm as it was *before* clipping, infinite or NaN if it was |
#
# For example, the gradients `[3.0]`, None and `[4.0]` have the norm 5; with `max_norm=1.0` they become `[0.6]`, None and `[0.8]`.
#
# **Exercise 03.3** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:03.3"]
# exercise 03.3
def clip_gradients(grads: list[Tensor | None], max_norm: float) -> tuple[list[Tensor | None], Tensor]:
    """The gradients, scaled together to at most max_norm, and the norm that they had."""
    ### BEGIN SOLUTION
    total = torch.zeros((), dtype=torch.float32)
    for gradient in grads:
        if gradient is not None:
            total = total + gradient.float().pow(2).sum()
    norm = total.sqrt()
    if not torch.isfinite(norm):
        return [None for _ in grads], norm
    factor = min(1.0, max_norm / norm.item()) if norm > 0 else 1.0
    return [g if g is None else (g.float() * factor).to(g.dtype) for g in grads], norm
    ### END SOLUTION


# %% tags=["check:03.3", "nbval-check-output"]
check("03.3", clip_gradients)

# %% [markdown]
# ## 03.4 · What a token costs
#
# Count the FLOPs that training spends on one token, for any model of this family. A multiplication and an addition are two FLOPs. The backward
# pass costs twice the forward pass. Only matrix products count: no norms, softmax, activations, RoPE or optimizer, and looking up an embedding
# multiplies nothing.
#
# The model, without biases:
#
# - an embedding, `layers` layers, and a head of `width x vocab` (not tied, and it does count);
# - in each layer attention with `heads` query heads and `kv_heads` key and value heads of `head_width`: four matrices (query, key, value, output);
# - then, in the first `dense_layers` layers, a SwiGLU (three matrices: gate, up, down) of hidden width `dense_width`;
# - in all other layers a mixture: a router with a row of `width` numbers for each of `experts` experts; of these a token meets `k`, and beside them
#   `shared` more that every token meets. Each expert is a SwiGLU of hidden width `expert_width`.
#
# Return two counts, for one token on average over a sequence of `context` tokens:
#
# - `weights`: the products with weight matrices;
# - `attention`: the products of queries with keys, and of attention probabilities with values. Every query head makes them, however many key heads there
#   are. With `causal`, position n meets n keys (itself too), on average (context + 1) / 2; else every position meets all `context`.
#
# Both come out whole: return ints.
#
# | | |
# |---|---|
# | arguments | ints as named above, and `causal`, a bool |
# | returns `weights`, `attention` | two ints: FLOPs of one token in training, forward and backward |
#
# For example, one dense layer with `vocab=10, width=4, heads=2, kv_heads=1, head_width=2, dense_width=6` has matrices of 48 + 72 numbers, and the head 40: 960 FLOPs in `weights`. At 3 tokens
# a query meets 2 keys on average, and `attention` is 96; without the causal mask it is 144. With a mixture layer in place of the dense one (`experts=5, k=2, shared=1, expert_width=3`)
# the router has 20 numbers, the three experts of a token 108, and `weights` is 1296.
#
# Case 3 of the check is Llama 3.1 405B at 4,096 tokens. Table 2 of *Insights into DeepSeek-V3* (2025) prints 2,448 GFLOP for a token of it; your two numbers add up to
# 1 % more than that.
#
# **Exercise 03.4** · difficulty 3 of 5 · 30 minutes · 15 points


# %% tags=["exercise:03.4"]
# exercise 03.4
def training_flops(
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    dense_width: int,
    dense_layers: int,
    experts: int,
    k: int,
    shared: int,
    expert_width: int,
    context: int,
    causal: bool,
) -> tuple[int, int]:
    """FLOPs of one token in training: in products with weights, and in attention's own two products."""
    ### BEGIN SOLUTION
    swiglu_units = dense_layers * dense_width + (layers - dense_layers) * (k + shared) * expert_width
    projections = 2 * layers * (heads + kv_heads) * head_width
    rows = 3 * swiglu_units + projections + (layers - dense_layers) * experts + vocab
    keys_twice = (1 + context) if causal else (context + context)
    forward_attention = layers * heads * 2 * head_width * keys_twice
    return 3 * (2 * width * rows), 3 * forward_attention
    ### END SOLUTION


# %% tags=["check:03.4", "nbval-check-output"]
check("03.4", training_flops)

# %% [markdown]
# ## 03.5 · The iso-FLOP twin
#
# Whoever compares a mixture with a dense model must say what is held equal. This course holds the **FLOPs of a token** equal, router included: what the mixture
# spends on choosing, the twin may spend on width.
#
# A mixture has a router (one row of `width` numbers for each of `experts`), and SwiGLU experts of hidden width `expert_width`: `experts` of them to choose from,
# of which a token meets `k`, and on top of those `shared` more that every token meets. Its twin is one SwiGLU. Find
#
# - `hidden`: the multiple of `multiple` that is nearest to the hidden width with equal FLOPs. Exactly between two multiples, take the wider one; never less than one `multiple`;
# - `excess`: the FLOPs of a token in the twin over those in the mixture, minus one (what the rounding cost; it may be negative);
# - `owned`: the parameters that the mixture owns, router and all experts, over those of the twin, with the rounded `hidden`.
#
# Attention is the same on both sides and is left out. Find `hidden` in whole numbers and round once; only the two ratios are floats.
#
# For example, `width=64, experts=6, k=1, shared=1, expert_width=10, multiple=4`: the equal width is 22, exactly between 20 and 24, so `hidden` is 24, `excess` is 24/22 - 1 = 0.0909,
# and `owned` is 216 / 72 = 3.
#
# | | |
# |---|---|
# | arguments | ints, as named above |
# | returns `hidden`, `excess`, `owned` | an int and two floats |
#
# **Exercise 03.5** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:03.5"]
# exercise 03.5
def dense_twin(
    width: int, experts: int, k: int, shared: int, expert_width: int, multiple: int
) -> tuple[int, float, float]:
    """The hidden width of the dense twin, its excess of FLOPs, and how many times its parameters the mixture owns."""
    ### BEGIN SOLUTION
    swiglu = 3 * width  # parameters of one hidden unit
    met = width * experts + (k + shared) * expert_width * swiglu
    whole, left = divmod(met, swiglu * multiple)
    units = max(1, whole + (2 * left >= swiglu * multiple))
    hidden = units * multiple
    total = width * experts + (experts + shared) * expert_width * swiglu
    return hidden, hidden * swiglu / met - 1, total / (hidden * swiglu)
    ### END SOLUTION


# %% tags=["check:03.5", "nbval-check-output"]
check("03.5", dense_twin)

# %% [markdown]
# ## 03.6 · When to believe a comparison
#
# Two arms, each run with several seeds; every run ended with a loss. Which arm is better? The course's rule, used in every record from here on: **two arms differ
# when their means differ by more than the larger of their spreads; else the comparison is not resolved.** Return
#
# - `difference`: mean of b minus mean of a;
# - `spread`: the larger of the two arms' spreads, where a spread is the largest loss minus the smallest;
# - `error`: the standard error of the difference. Each $s^2$ below is a variance that divides by its number of values minus one.
#     - Not `paired`: $\sqrt{s_a^2/N + s_b^2/M}$.
#     - `paired`: `a_N[i]` and `b_M[i]` had the same seed. Take the differences seed by seed; the error is that of their mean, $s_{b-a}/\sqrt{N}$;
# - `verdict`: `"a"` or `"b"` (the better one has the *smaller* loss) or `"not resolved"`, by the rule above. The error decides nothing.
#
# Two cases in which nothing can be said, the first before the second:
#
# - A run diverged: some loss is NaN or infinite. Then difference, spread and error are all NaN, and the verdict is `"not resolved"`. To leave the run out
#   would be to choose the seeds after having seen the results.
# - At least one arm has a single run (whose spread is 0). Then difference and spread are as defined, the error is NaN, the verdict `"not resolved"`.
#
# For example, `a = [3.5, 3.25]`, `b = [3.25, 3.0]`, not paired: the difference is -0.25, the spread 0.25, the error 0.1768, and the verdict `"not resolved"`: the
# difference is not *more* than the spread.
#
# | | |
# |---|---|
# | `a_N`, `b_M` | float64 tensors of losses; N = M when paired |
# | `paired` | bool |
# | returns `difference`, `spread`, `error`, `verdict` | three numbers (not tensors) and a string |
#
# **Exercise 03.6** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:03.6"]
# exercise 03.6
def compare_arms(a_N: Tensor, b_M: Tensor, paired: bool) -> tuple[float, float, float, str]:
    """The difference of two arms, their larger spread, the standard error of the difference, and the verdict."""
    ### BEGIN SOLUTION
    losses = torch.cat([a_N, b_M])
    if not bool(torch.isfinite(losses).all()):
        return math.nan, math.nan, math.nan, "not resolved"
    difference = float(b_M.mean() - a_N.mean())
    spread = float(max(a_N.max() - a_N.min(), b_M.max() - b_M.min()))
    if min(len(a_N), len(b_M)) == 1:
        return difference, spread, math.nan, "not resolved"
    squared = (b_M - a_N).var() / len(a_N) if paired else a_N.var() / len(a_N) + b_M.var() / len(b_M)
    better = "a" if difference > 0 else "b"
    return difference, spread, math.sqrt(squared), better if abs(difference) > spread else "not resolved"
    ### END SOLUTION


# %% tags=["check:03.6", "nbval-check-output"]
check("03.6", compare_arms)

# %% [markdown]
# ## Your training loop
#
# No exercise here: run the cells. `mine("03.1")` is your own function once it has passed, and the course's until then.
# First your loop: model and data are the course's, and all that decides a step is yours: the rate, the clip, the step. Beside it runs PyTorch's AdamW with PyTorch's clip,
# at the same rates. All cells together take about half a minute, longer on a busy machine.

# %%
from dataclasses import replace

from course.model import ModelConfig, Transformer
from course.training.data import load, training_batch
from course.training.trainer import evaluate

step_by_adamw, rate_of, clip = mine("03.1"), mine("03.2"), mine("03.3")
data = load("prose", vocab=512)  # the manual and the docstrings of the Python that runs this
small = replace(
    ModelConfig.preset("tiny-dense"),
    vocab=data.tokenizer.vocab,
    context=64,
    width=64,
    layers=2,
    heads=2,
    kv_heads=2,
    mlp_width=128,
)
BATCH, STEPS, LIMIT = 8, 80, 0.6
TOKENS = BATCH * small.context  # of one step
shape = {"peak": 5e-3, "floor": 5e-4, "last": 2e-4, "warmup": 10}
shape |= {"hold_until": 45 * TOKENS, "decay": 25 * TOKENS, "rest": 5 * TOKENS}
print(
    f"{sum(p.numel() for p in Transformer(small).parameters()):,} parameters, {TOKENS} tokens a step, {len(data.train):,} to choose from"
)


# %%
def gradients(model, seed, step):
    """The loss of one batch, and the gradient of every parameter, by name."""
    loss = model.loss(*training_batch(data, small.context, BATCH, seed, step)).total
    names = [name for name, _ in model.named_parameters()]
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def my_training(seed=0, peak=5e-3, steps=STEPS):
    """Train on your own parts. Returns the model, and of every step its loss, its rate and its norm."""
    torch.manual_seed(seed)
    model = Transformer(small)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {name: {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)} for name, p in params.items()}
    decayed = [name for name, p in params.items() if p.ndim > 1]
    told = []
    for step in range(1, steps + 1):
        loss, grads = gradients(model, seed, step)
        rate = rate_of(step, (step - 1) * TOKENS, **shape | {"peak": peak})
        clipped, norm = clip(list(grads.values()), LIMIT)
        grads = dict(zip(grads, clipped, strict=True))
        params, state = step_by_adamw(params, grads, state, decayed, rate, 0.9, 0.95, 1e-8, 0.1)
        model.load_state_dict(params)
        told.append((loss, rate, norm.item()))
    return model, torch.tensor(told)


my_model, mine_told = my_training()
print(f"your loss: {mine_told[0, 0]:.2f} at first, {mine_told[-10:, 0].mean():.2f} over the last ten steps")

# %%
torch.manual_seed(0)
model = Transformer(small)
groups = [
    {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
    {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
theirs = []
for step in range(1, STEPS + 1):
    loss, grads = gradients(model, 0, step)
    for name, p in model.named_parameters():
        p.grad = grads[name]
    for group in optimizer.param_groups:
        group["lr"] = mine_told[step - 1, 1].item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
    optimizer.step()
    theirs.append(loss)
apart = (mine_told[:, 0] - torch.tensor(theirs)).abs()
print(f"the losses differ by {apart[:10].max():.0e} in the first ten steps, and by {apart.max():.0e} in all {STEPS}")
assert apart[:10].max() < 1e-4

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
steps = range(1, STEPS + 1)
axes[0].plot(steps, theirs, color="#9ecae1", linewidth=5, label="PyTorch")
axes[0].plot(steps, mine_told[:, 0], color="#0072B2", linewidth=1, label="yours")
axes[0].set(xlabel="step", ylabel="loss (nats a token)", title="The same losses")
axes[0].legend()
axes[1].plot(steps, mine_told[:, 1] * 1e3)
axes[1].set(xlabel="step", ylabel="learning rate (thousandths)", title="Your schedule", ylim=(0, None))
axes[2].plot(steps, mine_told[:, 2])
axes[2].axhline(LIMIT, color="black", linestyle="--", linewidth=1)
axes[2].set(xlabel="step", ylabel="norm before clipping", title="Above the line: clipped")
plt.show()

# %% [markdown]
# *Figure: three panels over the steps. Left, the loss of PyTorch's run as a thick line with yours as a thin one on top of it. Middle, the learning rate: up, flat, half a cosine
# down, floor, and a last small drop. Right, the norm of the gradient, with a dashed line at the limit.*
#
# The two runs agree to the last digits at first, and drift apart as rounding errors grow: the lesson measured how far one changed bit can carry. Now the question that
# this unit is about. Two comparisons, three seeds an arm: the usual rate against a twentieth of it, and against one that is 4 % higher.
#
# **Predict:** which of the two comparisons does your rule resolve?

# %%
rule = mine("03.6")


def losses_of(peak, seeds=(0, 1, 2)):
    """Validation loss after training, one number a seed."""
    return torch.tensor([evaluate(my_training(seed, peak)[0], data) for seed in seeds], dtype=torch.float64)


usual = losses_of(5e-3)
for name, peak in {"a twentieth of the rate": 2.5e-4, "a rate 4 % higher": 5.2e-3}.items():
    difference, spread, error, verdict = rule(usual, losses_of(peak), paired=True)
    verdict = {"a": "the usual rate is better", "b": "the other is better"}.get(verdict, verdict)
    print(f"{name:24s} {difference:+.3f} nats, spread {spread:.3f}, standard error {error:.3f}: {verdict}")

# %% [markdown]
# Eighty steps of a toy, three seeds: on a serious question you would use more of all. But the verdict comes from a rule that stood before the runs did.
#
# Last, two sums. What does your count say of the model that you just trained, and of a layer of DeepSeek-V3?

# %%
import time

from course.model import train_flops_per_token

count = mine("03.4")
names = ["vocab", "width", "layers", "heads", "kv_heads", "head_width", "context"]
shapes = {name: getattr(small, name) for name in names}
no_mixture = {"experts": 0, "k": 0, "shared": 0, "expert_width": 0}
weights, attention = count(**shapes, **no_mixture, dense_width=small.mlp_width, dense_layers=small.layers, causal=True)
assert weights + attention == train_flops_per_token(small, small.context)
begun = time.perf_counter()
my_training()
speed = (weights + attention) * STEPS * TOKENS / (time.perf_counter() - begun)
print(f"{weights + attention:,} FLOPs a token, {attention / (weights + attention):.1%} of them in attention")
print(f"your loop does {speed / 1e9:.1f} GFLOP/s  (measured here)")

hidden, excess, owned = mine("03.5")(7168, 256, 8, 1, 2048, 128)
print(f"a mixture layer of DeepSeek-V3 costs what a dense one of {hidden:,} costs, and owns {owned:.1f} times as much")

# %% [markdown]
# DeepSeek-V3's first three layers *are* dense, and their hidden width is 18,432 (quoted: report, section 4.2): nine experts side by side, and nothing for the router.
#
# **Next:** lesson 04, where the mixture is built, and compared with its twin by the rule that you wrote.
