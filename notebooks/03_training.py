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
# # Lesson 03 · Training
#
# Someone changes one line of a training run and the loss falls by 0.05. Is the new line better? Before you can answer, you must know how far apart two runs
# lie in which *nothing* was changed but the seed. Few people have looked. In this lesson you will, and from then on no comparison in this
# course is made without it.
#
# On the way there, one step of training is taken apart: the gradient, the optimizer, the schedule, the clip, and what a step costs in memory and in FLOPs. Each
# piece is built in the open and held against PyTorch's.
#
# About 50 minutes. **B** sequences a batch, **S** tokens a sequence; $t$ counts steps from 1; `lr` is the learning rate.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## The gradient
#
# The model is `tiny-dense`: four layers, not quite a million parameters. The text is the Python that came with your interpreter. One batch goes in.
#
# **Predict:** the model has learned nothing yet. What is its loss on 1,024 possible tokens?

# %%
import math
from dataclasses import replace

from course.model import ModelConfig, Transformer, total_parameters
from course.training.data import load, training_batch

data = load("code", vocab=1024)
config = replace(ModelConfig.preset("tiny-dense"), vocab=data.tokenizer.vocab, context=128)
torch.manual_seed(0)
model = Transformer(config)
tokens_BS, targets_BS = training_batch(data, config.context, batch=8, seed=0, step=1)
loss = model.loss(tokens_BS, targets_BS).total
loss.backward()
print(f"{total_parameters(config):,} parameters, {tokens_BS.numel():,} tokens in a batch")
print(f"loss {loss.item():.2f}; an even guess would have ln({config.vocab}) = {math.log(config.vocab):.2f}")

# %% [markdown]
# Every parameter now has a gradient: by how much the loss would change if it moved.
#
# **Predict:** the largest and the smallest of those numbers, not counting zeros: how many powers of ten lie between them?

# %%
kinds = {
    "embedding": "embedding",
    "attention": "attention.",
    "feed-forward": "feed_forward.",
    "norms": "norm",
    "head": "head",
}
sizes = {
    kind: torch.cat([p.grad.abs().flatten() for name, p in model.named_parameters() if part in name])
    for kind, part in kinds.items()
}
figure, axis = plt.subplots()
parts = axis.violinplot(
    [s[s > 0].log10()[:20_000].numpy() for s in sizes.values()], showextrema=False, showmedians=True
)
for body in parts["bodies"]:
    body.set(facecolor=COLOURS[0], alpha=0.6)
axis.set(
    xticks=range(1, 6),
    xticklabels=kinds,
    ylabel="size of the gradient (log10)",
    title="One batch, one gradient, many sizes",
)
plt.show()
every = torch.cat(list(sizes.values()))
print(f"zero for {(every == 0).float().mean():.0%} of all parameters: embeddings of tokens that are not in the batch")

# %% [markdown]
# *Figure: five violins, one a kind of parameter, of the sizes of gradients on a logarithmic scale. Within a kind they spread over several powers of ten, and the kinds differ from each other as well.*
#
# The plain step, *stochastic gradient descent*, is `p -= lr * g`. With one rate for all, numbers with large gradients fly off at a rate at which those with small ones hardly stir.
#
# ## Three ways down a valley
#
# The smallest picture of that trouble: a valley that is fifty times steeper across than along. *Momentum* replaces the gradient by a running mean of past ones, which cancels the
# zigzag. *Adam* also divides by the running size of the gradient, number by number, so that steep and flat directions advance alike.

# %%
STEEPNESS = torch.tensor([1.0, 50.0])


def descend(step, steps=80, start=(-4.0, 1.5)):
    """The path of one optimizer in the valley 0.5 * (x^2 + 50 y^2)."""
    p, memory, path = torch.tensor(start), {}, [start]
    for t in range(1, steps + 1):
        p = p + step(STEEPNESS * p, memory, t)
        path.append(tuple(p.tolist()))
    return torch.tensor(path)


def sgd(g, memory, t):
    return -0.035 * g


def momentum(g, memory, t):
    memory["m"] = 0.9 * memory.get("m", 0) + g
    return -0.012 * memory["m"]


def adam(g, memory, t):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["v"] = 0.95 * memory.get("v", 0) + 0.05 * g**2
    return -0.25 * (memory["m"] / (1 - 0.9**t)) / (memory["v"] / (1 - 0.95**t)).sqrt()


# %%
x, y = torch.meshgrid(torch.linspace(-5, 2.5, 200), torch.linspace(-2, 2, 200), indexing="xy")
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, rule, colour in zip(axes, (sgd, momentum, adam), COLOURS, strict=False):
    axis.contour(x, y, 0.5 * (x**2 + 50 * y**2), levels=[0.3, 2, 6, 15, 35, 70], colors="#c0c6cc", linewidths=0.8)
    path = descend(rule)
    axis.plot(*path.T, ".-", color=colour, linewidth=1, markersize=4)
    axis.plot(0, 0, "k*", markersize=9)
    near = int((path.norm(dim=1) > 0.1).nonzero().max()) + 1
    axis.set(
        title=f"{rule.__name__}: {'near at step ' + str(near) if near <= 80 else 'still on its way'}", xlabel="flat"
    )
    axis.grid(visible=False)
axes[0].set(ylabel="steep")
plt.show()

# %% [markdown]
# *Figure: three copies of a narrow valley with its lowest point marked by a star. SGD bounces between the walls and creeps along the floor; momentum swings past and around; Adam heads
# diagonally, as fast along as across, and circles in.*
#
# None of the three is best at everything: Adam, which ignores how steep it is, has to be slowed down at the end. The schedule will do that.

# %% [markdown]
# ## AdamW, by hand
#
# Adam keeps two running means for each parameter: of the gradient, $m$, and of its square, $v$. AdamW adds a *decay* that pulls weights towards zero. Here it is, whole:

# %%
beta1, beta2, eps = 0.9, 0.95, 1e-8


@torch.no_grad()
def adamw_(p, g, m, v, t, lr, decay):
    """One AdamW step on one parameter, in place."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g * g, 1 - beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p.mul_(1 - lr * decay)
    p.sub_(lr * m_hat / (v_hat.sqrt() + eps))


# %% [markdown]
# Decay is for matrices; norms, which have one dimension, are left out. Five steps on the real model, beside `torch.optim.AdamW` as the course's trainer makes it:

# %%
import copy

from course.training.trainer import TrainSettings, adamw

model.zero_grad()
twin = copy.deepcopy(model)
optimizer = adamw(twin, TrainSettings(learning_rate=1e-3, weight_decay=0.1))
memory = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}
for t in range(1, 6):
    batch = training_batch(data, config.context, 8, seed=0, step=t)
    for net in (model, twin):
        net.zero_grad()
        net.loss(*batch).total.backward()
    for p, (m, v) in memory.items():
        adamw_(p, p.grad, m, v, t, lr=1e-3, decay=0.1 if p.ndim > 1 else 0.0)
    optimizer.step()
    apart = max((p - q).abs().max().item() for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    print(
        f"step {t}: loss {model.loss(*batch).total.item():.3f}, our weights and torch's differ by at most {apart:.0e}"
    )
assert apart < 1e-6

# %% [markdown]
# ## How far does a step go?
#
# **Predict:** at the very first step, how far does a parameter move whose gradient is a thousand times smaller than another's?
#
# At $t=1$ the corrected means are $\hat m = g$ and $\hat v = g^2$. So the step is $g/|g|$: every number moves by exactly the learning rate, up or down. Later the two means differ, and the ratio
# says how *consistent* the gradient has been. Gradients and moves, of a fresh model and after twenty steps:

# %%
torch.manual_seed(0)
model = Transformer(config)
memory = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}
pick = torch.Generator().manual_seed(0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for t in range(1, 21):
    model.zero_grad()
    model.loss(*training_batch(data, config.context, 8, seed=0, step=t)).total.backward()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    for p, (m, v) in memory.items():
        adamw_(p, p.grad, m, v, t, lr=1e-3, decay=0.0)
    if t in (1, 20):
        g = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
        moved = (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).abs() / 1e-3
        some = torch.randperm(len(g), generator=pick)[:6000]
        some = some[g[some] > 0]
        axis = axes[t // 20]
        axis.loglog(g[some], moved[some], ".", markersize=1.5, alpha=0.6, label="AdamW")
        axis.loglog([1e-9, 1], [1e-7, 100], color=COLOURS[1], label="SGD, 100 times the lr")
        axis.set(xlabel="size of the gradient", title=f"Step {t}", xlim=(1e-9, 1), ylim=(1e-4, 10))
axes[0].set_ylabel("move, in learning rates")
axes[0].legend(loc="center left", markerscale=8, fontsize=9)
plt.show()

# %% [markdown]
# *Figure: size of the move against size of the gradient, both logarithmic. At step 1 AdamW's points lie on a level line at one learning rate, bending down only where gradients come near
# eps. At step 20 they form a cloud between about a hundredth and one learning rate, hardly dependent on the gradient's size. SGD is a diagonal in both.*
#
# This is why a learning rate for Adam can be quoted as a bare number, 2.2e-4 for DeepSeek-V3 (report, section 4.2), and carried from model to model: it is a distance. It is also why eps
# matters only where gradients are tiny: it is added to the *root*, outside, so it is a gradient size below which a number stops counting.

# %% [markdown]
# ## The first steps
#
# Both means start at zero, hence the *bias correction*: the division by $1-\beta^t$.
#
# **Predict:** without it, are the first steps too small or too large?

# %%
t = torch.arange(1, 61, dtype=torch.float64)
figure, axis = plt.subplots()
for second, colour in [(0.95, COLOURS[0]), (0.999, COLOURS[1])]:
    m, v = 1 - 0.9**t, 1 - second**t  # of a gradient that is always 1
    axis.plot(t, m / v.sqrt(), color=colour, label=f"without, beta2 = {second}")
    print(
        f"beta2 = {second}: without the correction, {m[0] / v[0].sqrt():.2f} learning rates at step 1, at most {(m / v.sqrt()).max():.1f}"
    )
axis.plot(t, torch.ones_like(t), "k--", linewidth=1.2, label="with the correction")
axis.set(xlabel="step", ylabel="move, in learning rates", title="A gradient that is always 1", ylim=(0, 7.5))
axis.legend()
plt.show()

# %% [markdown]
# *Figure: the move against the step, for a constant gradient. With the correction it is one throughout. Without, and beta2 = 0.95, it starts below one half and rises slightly above one; with beta2 = 0.999 it starts at three
# and climbs to more than six learning rates before it comes down.*
#
# Too *large*, with PyTorch's default of 0.999: $m$ is too small by a factor of ten, but the root of $v$ is too small by thirty. BERT's optimizer left the correction out and got away
# with it because a warm-up hid it: "mostly an oversight", its author wrote (google-research/bert, issue 153). With 0.95, as in DeepSeek-V3, there is much less to hide.

# %% [markdown]
# ## Decay is not L2
#
# The old way to keep weights small is to add $\lambda p$ to the gradient, the derivative of $\frac{\lambda}{2}p^2$. Under SGD that is the same as shrinking the weight. Under Adam it is not: what is added is divided by the
# gradient's size with the rest.
#
# **Predict:** two weights receive nothing but noise, one of size 3, one of size 0.03. Which one does L2 pull harder?


# %%
def shrink(noise, decoupled, steps=300, lr=0.01, decay=0.1, copies=200):
    """The mean of many weights that start at 1 and see nothing but noise, under Adam with one or the other decay."""
    draw = torch.Generator().manual_seed(0)
    p, m, v, path = torch.ones(copies), torch.zeros(copies), torch.zeros(copies), []
    for t in range(1, steps + 1):
        g = noise * torch.randn(copies, generator=draw) + (0 if decoupled else decay * p)
        adamw_(p, g, m, v, t, lr, decay if decoupled else 0.0)
        path.append(p.mean().item())
    return path


figure, axis = plt.subplots()
for noise, colour, width in [(3.0, COLOURS[0], 5), (0.03, COLOURS[1], 1.8)]:
    axis.plot(shrink(noise, decoupled=False), color=colour, label=f"L2, gradients of size {noise:g}")
    axis.plot(
        shrink(noise, decoupled=True), "--", color=colour, linewidth=width, label=f"AdamW, gradients of size {noise:g}"
    )
axis.set(xlabel="step", ylabel="mean weight", title="What is left of a weight of 1", ylim=(-0.1, 1.1))
axis.legend(loc=(0.5, 0.3))
plt.show()

# %% [markdown]
# *Figure: mean weight over 300 steps. Under L2 the weight with small gradients is gone after some hundred steps, while the one with large gradients has hardly shrunk. Under AdamW both shrink alike, to about three quarters.*
#
# That is the W in AdamW, *decoupled* decay (Loshchilov and Hutter 2019): every weight loses the same share, $\eta\lambda$, at each step. In PyTorch, `Adam(weight_decay=...)` is still L2 unless told otherwise.

# %% [markdown]
# ## The schedule
#
# The rate climbs for a while, because the first gradients are those of a model that knows nothing; then it falls, so that the noise of single batches averages out. The course's schedule is a straight warm-up and half a cosine:


# %%
def rate(step, steps, peak, warmup, final=0.1):
    """The learning rate of step 1 to `steps`."""
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


from course.training.schedule import learning_rate

ours = [rate(step, 300, 3e-3, 50) for step in range(1, 301)]
assert ours == [learning_rate(step, 300, 3e-3, 50) for step in range(1, 301)]
print(
    f"ours equals the course's: {ours[0]:.0e} at step 1, {max(ours):.0e} at step {1 + ours.index(max(ours))}, {ours[-1]:.0e} at step 300"
)

# %% [markdown]
# Four runs of forty steps: the usual rate with and without a warm-up, and ten times that rate, with and without.
#
# **Predict:** which of the four fail?

# %%
from course.training.trainer import train

short = TrainSettings(steps=40, batch=4, warmup=10, evaluate_every=40, evaluation_sequences=16)
trials = {
    "3e-3": short,
    "3e-3, no warm-up": replace(short, warmup=0),
    "3e-2": replace(short, learning_rate=3e-2),
    "3e-2, no warm-up": replace(short, learning_rate=3e-2, warmup=0),
}
rows = {name: train(config, data, settings).rows for name, settings in trials.items()}

# %%
figure, axis = plt.subplots()
for (name, run), colour in zip(rows.items(), [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]], strict=True):
    axis.plot(
        [row.step for row in run], [row.loss for row in run], "--" if "no" in name else "-", color=colour, label=name
    )
axis.set(xlabel="step", ylabel="training loss (nats a token)", title="Four ways to begin")
axis.legend(title="peak rate")
plt.show()

# %% [markdown]
# *Figure: training loss over forty steps. The two runs at the usual rate fall together. Ten times the rate without a warm-up shoots up within the first steps, above the loss of an even guess, and comes back; with a
# warm-up it does not shoot up.*
#
# After forty steps nobody has failed for good. At the usual rate the warm-up seems not to matter; at the high one it prevents an accident, and the run that had the accident has nearly caught up. Would you stop
# here, and save yourself the warm-up? Write your answer down. The record below has run on to step 300.

# %% [markdown]
# ## The clip
#
# Now and then a batch has a gradient many times longer than its neighbours. *Clipping* shortens it: take the norm of **all** gradients together, as one long vector, and if it is above a limit multiply them all by one factor. The direction stays. (Clipping
# each tensor by itself would turn it.)

# %%
model.zero_grad()
model.loss(tokens_BS, targets_BS).total.backward()
gradients = [p.grad.clone() for p in model.parameters()]
norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
clipped = [g * min(1.0, 0.5 / norm.item()) for g in gradients]

theirs = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
torch.testing.assert_close(norm, theirs)
for g, p in zip(clipped, model.parameters(), strict=True):
    torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-8)
print(f"norm {norm:.3f} before, {torch.cat([g.flatten() for g in clipped]).norm():.3f} after, ours as torch's")

# %% [markdown]
# Adam divides by the gradient's size anyway. Why clip at all? Below, the gradient of step 30 is multiplied by 100, as happens when someone sums a loss instead of averaging it. One run clips, one does not. At each step we
# look at the *move*, the change of all weights: how long it is, and whether it still points where step 30 alone would have gone.
#
# **Predict:** without a clip, how far does step 30 throw the weights: one learning rate, ten, a hundred? And for how many steps is it felt?


# %%
def with_a_spike(clip, spike=30, steps=70, lr=1e-3):
    """Losses, sizes of the moves, and their cosine with the way of step `spike`, seen on 20,000 of the weights."""
    torch.manual_seed(1)
    net = Transformer(config)
    optimizer = adamw(net, TrainSettings(learning_rate=lr))
    some = torch.randperm(total_parameters(config))[:20_000]
    losses, moves = [], []
    for step in range(1, steps + 1):
        loss = net.loss(*training_batch(data, config.context, 4, 1, step)).total
        loss.backward()
        if step == spike:
            for p in net.parameters():
                p.grad *= 100.0
            its_way = -torch.cat([p.grad.flatten() for p in net.parameters()])[some].sign()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        before = torch.cat([p.detach().flatten() for p in net.parameters()])[some]
        optimizer.step()
        optimizer.zero_grad()
        moves.append((torch.cat([p.detach().flatten() for p in net.parameters()])[some] - before) / lr)
        losses.append(loss.item())
    return losses, [m.square().mean().sqrt() for m in moves], [F.cosine_similarity(m, its_way, dim=0) for m in moves]


# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
spiked = {name: with_a_spike(clip) for name, clip in {"clipped at 1": 1.0, "not clipped": 1e9}.items()}
for name, (losses, lengths, cosines) in spiked.items():
    axes[0].plot(range(1, 71), lengths, label=name)
    axes[1].plot(range(1, 71), cosines, label=name)
    axes[2].plot(range(1, 71), losses, linewidth=1.2, label=name)
axes[0].set(title="Length of a move", ylabel="learning rates (root mean square)", ylim=(0, 1))
axes[1].set(title="Still the way of step 30?", ylabel="cosine", ylim=(0, 1.02))
axes[2].set(title="Loss", ylabel="nats a token")
for axis in axes:
    axis.axvline(30, color="black", linestyle="--", linewidth=1)
    axis.set_xlabel("step")
axes[1].legend(loc="upper right", fontsize=9)
plt.show()
gap = np.mean(np.subtract(spiked["not clipped"][0][30:], spiked["clipped at 1"][0][30:]))
print(f"over the forty steps after it, the run without a clip lies {gap:.2f} nats higher  (measured here, one seed)")

# %% [markdown]
# *Figure: three panels over seventy steps, a dashed line at step 30. The clipped run shows hardly a trace of it. Without a clip, the moves become a little longer at step 30 and then shorter, down to half; their cosine with the way of that one batch jumps to nearly one and
# comes down over some twenty to forty steps; and the loss stays above that of the clipped run.*
#
# So the spike does not throw the weights far: whatever the gradient, a move is less than a learning rate. What it does is fill both memories. For many steps $m$ *is* that one batch, and $\sqrt v$, which forgets more slowly, makes every later gradient look small. AdamW without a clip is
# not unstable; it is deaf.

# %% [markdown]
# ## What a step holds in memory
#
# Weights, gradients, $m$ and $v$: four numbers of four bytes a parameter. And what the forward pass keeps for the backward pass, the *activations*.
#
# **Predict:** of the memory of one step of this small model, how much is activations?

# %%
kept = {}


def note(tensor):
    storage = tensor.untyped_storage()
    kept[storage.data_ptr()] = storage.nbytes()
    return tensor


with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
    loss = model.loss(*training_batch(data, config.context, 8, 0, 1)).total
for p in model.parameters():
    kept.pop(p.untyped_storage().data_ptr(), None)
held = {name: 4 * total_parameters(config) / 1e6 for name in ("weights", "gradients", "m", "v")}
held["activations"] = sum(kept.values()) / 1e6

figure, axis = plt.subplots(figsize=(7.5, 1.9))
left = 0
for (name, size), colour in zip(held.items(), ["#0072B2", "#56B4E9", "#009E73", "#7fd0b8", "#E69F00"], strict=True):
    axis.barh(0, size, left=left, color=colour, label=f"{name} {size:.1f}")
    left += size
axis.set(xlabel="megabytes", yticks=[], title=f"One step of tiny-dense, 1,024 tokens: {left:.0f} MB", ylim=(-0.5, 1.2))
axis.legend(ncols=5, loc="upper center", columnspacing=1, handlelength=1)
axis.grid(visible=False)
plt.show()
del loss

# %% [markdown]
# *Figure: one bar in five pieces, in megabytes; the activations take by far the longest.*
#
# The four pieces grow with the model, the activations with the batch: here 1,024 tokens, each of which leaves its mark in every layer. For DeepSeek-V3 it is the other way round. It keeps master weights and gradients in FP32 and the moments in BF16 (report, section 3.3.3):

# %%
bytes_each = {"master weights": 4, "gradients": 4, "m": 2, "v": 2}
total = 671e9 * sum(bytes_each.values())
print(
    f"{sum(bytes_each.values())} bytes a parameter, {total / 1e12:.1f} TB in all, {total / 2048 / 1e9:.1f} GB on each of 2,048 GPUs  (computed)"
)

# %% [markdown]
# ## What a step costs
#
# A product of a token with a matrix of N numbers is N multiplications and N additions: 2N FLOPs. The backward pass makes two such products, one for the gradient of the token, one for that of the matrix. So training costs **6N** a token, where N counts
# the matrices that a token meets: not the embedding, which is a look-up; not the norms; but the head. PyTorch can count for itself.
#
# **Predict:** do the two agree to a percent, or exactly?

# %%
from torch.utils.flop_counter import FlopCounterMode

model.zero_grad()
batch = training_batch(data, config.context, 8, 0, 1)
tokens = batch[0].numel()
with FlopCounterMode(display=False) as forward:
    loss = model.loss(*batch).total
with FlopCounterMode(display=False) as backward:
    loss.backward()
N = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "embedding" not in name)
print(f"forward {forward.get_total_flops() / tokens:,.0f} FLOPs a token, 2N is {2 * N:,}")
print(f"backward {backward.get_total_flops() / forward.get_total_flops():.1f} times the forward pass")
assert forward.get_total_flops() == 2 * N * tokens
assert backward.get_total_flops() == 4 * N * tokens

# %% [markdown]
# Exactly. *Too* exactly: 6N has no attention in it, and attention multiplies queries with keys and weights with values. The counter looks up each operation in a table, and the fused attention of the CPU is not in that table: it is counted as **nothing**, without a
# word (pytorch/pytorch, issue 195460; found in PyTorch 2.13). Made to run attention as plain products, it counts them:

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
    model.loss(*batch)
attention = (plain.get_total_flops() - 2 * N * tokens) / tokens
square = 4 * config.heads * config.head_width * config.layers * config.context
print(f"attention, forward: counted {attention:,.0f} FLOPs a token")
print(f"every query with every key:  {square:,}")
print(f"every query with the keys before it and its own: {square * (config.context + 1) // (2 * config.context):,}")
assert attention == square

# %% [markdown]
# And now it counts twice too much: the causal mask hides half of the pairs, a good kernel never computes them, and the counter does not know. Two traps in one tool. Count by hand, and say which convention you use:
#
# $$\text{FLOPs a token} = 6N + 3 \cdot 4 \cdot \text{heads} \cdot \text{head width} \cdot \text{layers} \cdot \frac{S+1}{2}$$
#
# That is what `course.model.train_flops_per_token` computes:

# %%
from course.model import train_flops_per_token

by_hand = 6 * N + 3 * square * (config.context + 1) / (2 * config.context)
assert by_hand == train_flops_per_token(config, config.context)
print(
    f"{by_hand:,.0f} FLOPs a token, ours and the course's; {by_hand * tokens / 1e9:.1f} GFLOP in a step of {tokens:,} tokens"
)

# %% [markdown]
# Does the formula carry as far as a published figure? *Insights into DeepSeek-V3* (2025, Table 2) gives 250 GFLOP a token for its training at sequences of 4,096. From the published
# shapes (report, section 4.2), with its latent attention, which units 06 and 07 explain:

# %%
width, heads, layers, dense = 7168, 128, 61, 3
latent = width * 1536 + 1536 * heads * (128 + 64)  # queries, through a bottleneck of 1,536
latent += width * (512 + 64) + 512 * heads * (128 + 128) + heads * 128 * width  # keys and values, through 512; output
mixture = width * 256 + (8 + 1) * 3 * width * 2048  # router, eight routed experts and a shared one
met = layers * latent + dense * 3 * width * 18432 + (layers - dense) * mixture + width * 129280  # and the head
scores = 3 * layers * 2 * heads * ((128 + 64) + 128)  # forward and backward, for one key
causal, full = (6 * met + scores * keys for keys in ((4096 + 1) / 2, 4096))
print(
    f"{met / 1e9:.1f} billion numbers met; {causal / 1e9:.1f} GFLOP a token with causal attention, {full / 1e9:.1f} with the full square"
)
print(f"times 14.8e12 tokens: {14.8e12 * causal:.2e} FLOPs to train DeepSeek-V3  (computed)")

# %% [markdown]
# 250, then, with causal attention. (The same paper's Table 4 reports the machine's use as 38.9 % and 43.7 %, for the one and the other convention: a difference of five points by counting alone.)
#
# Attention's share grows with the context, since every token meets more keys:

# %%
contexts = 2.0 ** torch.arange(7, 21)
figure, axis = plt.subplots()
per_key = 6 * config.heads * config.head_width * config.layers
for name, weights, for_one in [("tiny-dense", 6 * N, 2 * per_key), ("DeepSeek-V3", 6 * met, scores)]:
    cost = for_one * (contexts + 1) / 2
    axis.semilogx(contexts, 100 * cost / (cost + weights), "o-", base=2, label=name)
axis.axvline(4096, color="black", linestyle="--", linewidth=1)
axis.text(4300, 3, "V3's pre-training")
axis.set(
    xlabel="tokens in a sequence", ylabel="share of attention (%)", title="Where the FLOPs of a token go", ylim=(0, 100)
)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: share of attention in the FLOPs of a token against the length of the sequence, from 128 to a million tokens. Both curves rise from near zero to near one hundred percent; DeepSeek-V3's, whose weights are so many, rises much later.*
#
# ## How well is the machine used?
#
# The FLOPs that the model *needs*, over what the machine *could* do in the same time, is its **model FLOPs utilisation**, MFU. The roof here is what a large product reaches:

# %%
import time


def seconds(work, times=5):
    """The shortest of a few runs."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def one_step():
    model.loss(*batch).total.backward()
    optimizer.step()


a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
roof = 2 * 2048 * 1024 * 1024 / seconds(lambda: a @ b)
needed = tokens * (6 * N + 2 * per_key * (config.context + 1) / 2)
speed = needed / seconds(one_step)
print(f"roof {roof / 1e9:.0f} GFLOP/s, training {speed / 1e9:.0f} GFLOP/s: MFU {speed / roof:.0%}  (measured here)")
print(f"at that speed, one DeepSeek-V3 would take {14.8e12 * causal / speed / 3.15e7:,.0f} years")

# %% [markdown]
# Published figures for comparison (quoted): DeepSeek-V3 on 2,048 H800s, 38.9 % of the BF16 peak (*Insights*, Table 4, causal); Llama 3 405B on up to 16,384 H100s, 38 to 43 % (Llama 3 report, section 3.3). Theirs are of the data sheet's peak, ours of a measured
# roof: ours is the kinder convention. Unit 08 measures roofs with care.

# %% [markdown]
# ## Two seeds
#
# Now the question of the beginning. A seed decides the initial weights and the order of the data, and nothing else. Three runs of eighty steps, with seeds 0, 1 and 2:
#
# **Predict:** how far apart are their validation losses at the end: 0.001, 0.01, 0.1 nats?

# %%
live = TrainSettings(steps=80, batch=4, warmup=20, evaluate_every=20, evaluation_sequences=32)
runs = {seed: train(config, data, replace(live, seed=seed), progress=True).rows for seed in range(3)}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for seed, run in runs.items():
    measured = [row for row in run if row.validation]
    axes[0].plot([row.step for row in measured], [row.validation for row in measured], "o-", label=f"seed {seed}")
    axes[1].semilogy([row.step for row in run], [row.gradient_norm for row in run], linewidth=1.2)
axes[1].axhline(live.clip, color="black", linestyle="--", linewidth=1)
axes[0].set(xlabel="step", ylabel="validation loss (nats a token)", title="Nothing but the seed")
axes[1].set(xlabel="step", ylabel="norm of the gradient", title="Above the line: clipped")
axes[0].legend()
plt.show()
ends = [run[-1].validation for run in runs.values()]
print(f"three seeds: {', '.join(f'{end:.3f}' for end in ends)}: {max(ends) - min(ends):.3f} apart  (measured here)")

# %% [markdown]
# *Figure: left, the validation losses of three seeds over eighty steps; right, the norm of the gradient at each step on a logarithmic axis, with the limit of the clip as a dashed line. Spikes come at different steps in each run.*
#
# Three seeds and eighty short steps are a glimpse. The record (`benchmarks/seed_spread.py`) trains sixteen seeds, 300 steps of 2,048 tokens each, with the course's own settings. Its rule was fixed before the first run:

# %%
spreads = course.recorded("seed_spread")

# %%
curves = {arm: torch.tensor([run["validation"] for run in arm_runs]) for arm, arm_runs in spreads["runs"].items()}
ends = {arm: curve[:, -1].double() for arm, curve in curves.items()}
seeds = ends["both"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=[1.2, 1])
axes[0].plot(spreads["step"], curves["both"].T, color=COLOURS[0], linewidth=0.9, alpha=0.7)
axes[0].set(xlabel="step", ylabel="validation loss (nats a token)", title="Sixteen seeds of one model")
order = seeds.argsort()
axes[1].plot(seeds[order], range(16), "o", color=COLOURS[0])
axes[1].set(
    xlabel="loss after the last step",
    ylabel="seed",
    yticks=range(16),
    yticklabels=order.tolist(),
    title="The same sixteen, sorted",
)
for edge in (seeds.min(), seeds.max()):
    axes[1].axvline(edge, color="black", linestyle="--", linewidth=1)
plt.show()
print(f"mean {seeds.mean():.3f}, standard deviation {seeds.std():.3f}, from {seeds.min():.3f} to {seeds.max():.3f}")
widths = curves["both"].amax(0) - curves["both"].amin(0)
told = [f"{width:.2f} after {step}" for step, width in zip(spreads["step"], widths.tolist(), strict=True)]
print(f"spread: {', '.join(told)} steps")

# %% [markdown]
# *Figure: left, sixteen validation curves that run as one broad band. Right, their last values sorted, one dot a seed, between two dashed lines.*
#
# **This is the moment to remember.** Nothing was changed, and the losses differ by that much. A paper that reports one run of each method, and a gain of half this spread, has reported a seed.
#
# ## Where does the spread come from?
#
# A seed does two things. Vary one at a time: eight initial weights on one order of the data; eight orders from the same weights. And a third: the same weights and the same data, but *one* of 918,656 weights is moved to the next float32 number, by
# about one part in ten million.
#
# **Predict:** how far do eight runs spread that differ in the last bit of one weight?

# %%
figure, axis = plt.subplots()
labels = {
    "both": "weights and data",
    "weights": "weights alone",
    "data": "data alone",
    "last bit": "one bit of\none weight",
}
for place, arm in enumerate(labels):
    eight = ends[arm][:8]
    axis.plot(place + 0.04 * (torch.arange(1, 8) - 3.5), eight[1:], "o", color=COLOURS[place])
    axis.plot(place, eight[0], "o", color=COLOURS[place], markerfacecolor="white")
    axis.hlines([eight.min(), eight.max()], place - 0.25, place + 0.25, color=COLOURS[place], linewidth=1)
    axis.text(place + 0.28, eight.mean(), f"s = {eight.std():.3f}", va="center", fontsize=9)
axis.set(
    xticks=range(4),
    xticklabels=labels.values(),
    ylabel="loss after the last step",
    title="Eight runs each: what was varied?",
    xlim=(-0.4, 3.7),
)
plt.show()
for pair, verdict in spreads["sources"]["verdicts"].items():
    print(f"{pair:18s} {verdict}")
print(f"the eight runs that differ by one bit lie {ends['last bit'].max() - ends['last bit'].min():.4f} nats apart")

# %% [markdown]
# *Figure: four columns of eight dots each, with their lowest and highest marked and the standard deviation s beside them. The hollow dot is the run of seed 0, which all four share.*
#
# Weights and order each make a spread of the same kind, and eight runs do not tell which is the larger. The hollow dot is instructive. Seed 0 is the unluckiest of all sixteen; yet with any other order its weights do better, and with any other weights its
# order does. The luck is in the combination: there is no good seed to be found and kept.
#
# And one bit? After 300 steps the runs differ in the third digit after the point. That is more than thirty times less than the seeds make, by their standard deviations, and it is a floor under every comparison between two machines, two versions of PyTorch, or two ways to
# order a sum, *with all seeds fixed*. Fixing a seed makes a run repeatable on one machine. It does not make it typical.
#
# ## How often would you have been fooled?
#
# Take two *identical* arms: the same sixteen runs, dealt at random into two hands. One of the hands will look better. By how much?
#
# **Predict:** with one seed each, how often do two identical arms differ by more than 0.02 nats?

# %%
deal = torch.Generator().manual_seed(0)


def two_hands(losses, n, deals=4000):
    """Deal the losses into two hands of n, many times: two tensors [deals, n]."""
    order = torch.stack([torch.randperm(len(losses), generator=deal) for _ in range(deals)])
    return losses[order[:, :n]], losses[order[:, n : 2 * n]]


figure, axis = plt.subplots()
x = torch.linspace(0, 0.12, 121)
for n in (1, 2, 3, 5, 8):
    a, b = two_hands(seeds, n)
    gaps = (a.mean(1) - b.mean(1)).abs()
    axis.plot(x, 100 * (gaps[:, None] > x).double().mean(0), label=f"{n} seed{'s' if n > 1 else ''} each")
    print(
        f"{n} each: more than 0.02 in {(gaps > 0.02).double().mean():.0%} of all deals; 5 % differ by more than {gaps.quantile(0.95):.3f}"
    )
axis.set(
    xlabel="difference of the means (nats)",
    ylabel="identical arms that differ by more (%)",
    title="Winners among equals",
    xlim=(0, 0.12),
    ylim=(0, 100),
)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: five falling curves, one for each number of seeds: the share of comparisons of identical arms whose means differ by more than x. With one seed the curve is highest; with eight it has fallen to one in twenty by about 0.03.*
#
# With one seed each, in more than half of all deals one of two identical arms leads by more than 0.02 nats. More seeds help as their square root: four times as many for half the width.
#
# So how good is the course's rule, *more than the larger spread*? It can err in two ways: call a difference that is none, or miss one that is there. Both can be computed from the
# record: deal two hands, and push one of them down by a known amount.


# %%
def resolved(a, b):
    """The rule, for many deals at once: which are resolved."""
    widest = torch.maximum(a.amax(1) - a.amin(1), b.amax(1) - b.amin(1))
    return (a.mean(1) - b.mean(1)).abs() > widest


def two_errors(a, b):
    """Another rule: a difference of more than two standard errors."""
    return (a.mean(1) - b.mean(1)).abs() > 2 * ((a.var(1) + b.var(1)) / a.shape[1]).sqrt()


figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
pushes = torch.linspace(0, 0.16, 33, dtype=torch.float64)
for axis, rule in zip(axes, (resolved, two_errors), strict=True):
    for n in (2, 3, 5, 8):
        a, b = two_hands(seeds, n)
        shares = [100 * rule(a, b - push).double().mean().item() for push in pushes]
        axis.plot(pushes, shares, label=f"{n} seeds each")
        half = next(push.item() for push, share in zip(pushes, shares, strict=True) if share >= 50)
        print(
            f"{rule.__name__:10s} {n} seeds each: {shares[0]:4.1f} % of identical arms; half of the time from {half:.3f} nats on"
        )
    axis.set(xlabel="true difference (nats)", ylim=(0, 101))
axes[0].set(title="More than the larger spread", ylabel="called different (%)")
axes[1].set(title="More than two standard errors")
axes[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# *Figure: share of comparisons called different against the true difference, for two, three, five and eight seeds. On the left, by the rule of spreads, only the curve for two seeds starts clearly above zero, and more seeds move the curves to the right. On the right, by
# two standard errors, all curves start above zero, and more seeds move them to the left.*
#
# The two rules fail in opposite ways. With two seeds the rule of spreads calls equal arms different about once in six; with three, about once in forty; with five, hardly ever. But it becomes *less* able with more seeds: a spread widens with every run that is added, and the bar
# with it. Two standard errors see more, and ever more with more seeds; their price is a false alarm now and then, often with two or three seeds and never quite gone.
#
# This course judges by spreads. Its records have three seeds or little more, and it would rather miss a difference than report one that is not there. But read *not resolved* as it is written: it does not say that there is no difference.
#
# ## Pairs
#
# Both arms of a comparison can use the *same* seeds: same initial weights, same batches. If a lucky seed is lucky in both arms, the luck cancels in the difference. Twelve seeds with weight decay 0.1 and without:

# %%
a, b = ends["both"][:12], ends["no decay"]
low, high = min(a.min(), b.min()) - 0.01, max(a.max(), b.max()) + 0.01
figure, axis = plt.subplots(figsize=(4.6, 4.2))
axis.plot([low, high], [low, high], color="#57606a", linestyle="--", linewidth=1)
axis.plot(a, b, "o")
axis.set(
    xlabel="loss with decay",
    ylabel="loss without",
    title="Twelve seeds, twice",
    xlim=(low, high),
    ylim=(low, high),
    aspect="equal",
)
plt.show()
together = torch.corrcoef(torch.stack([a, b]))[0, 1]
strangers = (a.var() / 12 + b.var() / 12).sqrt()
print(f"difference {(b - a).mean():+.4f} nats; correlation of the pairs {together:.2f}")
print(f"standard error: {strangers:.4f} as strangers, {(b - a).std() / 12**0.5:.4f} as pairs")

# %% [markdown]
# *Figure: loss without decay against loss with decay, one dot a seed, with a dashed diagonal on which the two are equal.*
#
# The dots lie along the diagonal: a seed that is unlucky with decay is unlucky without it. So the luck cancels, and the error of the difference is a fifth or sixth of what it would be between strangers. Even so, nothing is left to see: the difference is about as large as its
# own error. At this size and length, weight decay does not matter in either direction, and now that is known to a few thousandths of a nat, where the rule of spreads could only say *not resolved*.
#
# Pairing helps when the change is small, so that both runs of a pair go through the same events. It helps less where the change is large and the two soon have nothing in common.
#
# ## Five settings, judged
#
# Each arm below changes one setting of the usual run, and is judged by the rule. You have met all of them above.
#
# **Predict:** for which of the five does it matter, at this size and length?

# %%
arms = ["slow", "fast", "no warm-up", "no clip", "no decay"]
says = {
    "slow": "a third of the rate",
    "fast": "ten times the rate",
    "no warm-up": "no warm-up",
    "no clip": "no clip",
    "no decay": "no weight decay",
}
figure, axis = plt.subplots()
for place, arm in enumerate(arms):
    verdict = spreads["verdicts"][arm]
    colour = COLOURS[1] if verdict["verdict"] == "resolved" else "#57606a"
    axis.barh(place, 2 * verdict["largest_spread"], left=-verdict["largest_spread"], height=0.5, color="#d8dee4")
    axis.plot(verdict["difference"], place, "o", color=colour, markersize=8)
    print(
        f"{says[arm]:20s} {len(ends[arm]):2d} seeds  {verdict['difference']:+.3f} nats, largest spread {verdict['largest_spread']:.3f}: {verdict['verdict']}"
    )
axis.axvline(0, color="black", linewidth=1)
axis.set(
    yticks=range(5),
    yticklabels=says.values(),
    xlabel="loss above that of the usual run (nats)",
    title="Grey: the spread over seeds. Dots: the difference",
)
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# *Figure: five rows with a grey bar from minus to plus the larger spread, and a dot at the difference of the means; dots outside of their bar are coloured: resolved.*
#
# Three are resolved: the rate matters in both directions, and ten times the rate without anything else changed costs more than a nat. The warm-up that looked idle in the first steps is worth most of a nat after 300.
#
# Two are not. No decay we have seen. *No clip* is the instructive one: all six of its seeds end higher than their partners with the clip, by 0.15 nats in the mean, and yet the rule says *not resolved*, because one unclipped seed may land a quarter of a nat from another. The rule
# was fixed before the runs, so that is the verdict. What it means is: with six seeds and this rule, we cannot say. The pairs suggest that the clip helps, and more seeds, judged by a rule for pairs that is fixed beforehand, would be the next experiment.
#
# ## Equal in what?
#
# The next unit compares a mixture of experts with a dense model, and a comparison needs something that is held equal. `tiny-moe` has eight experts in each layer, of which a token meets two, and a router that chooses.

# %%
mixture = replace(ModelConfig.preset("tiny-moe"), vocab=data.tokenizer.vocab)
equals = {"two experts wide": 2 * 128, "equal FLOPs": 2 * 128 + 8 / 3, "equal parameters": 8 * 128 + 8 / 3}


def per_layer(hidden):
    """Parameters of one dense feed-forward layer; a token's FLOPs in it are six times as many."""
    return 3 * mixture.width * hidden


router, expert = mixture.width * mixture.experts, per_layer(mixture.expert_width)
rows = {"mixture": (router + 8 * expert, router + 2 * expert)}
rows |= {f"dense, {name}": (per_layer(hidden), per_layer(hidden)) for name, hidden in equals.items()}
for name, (owned, met_by_one) in rows.items():
    print(
        f"{name:24s} owns {owned:9,.0f}, a token costs {6 * met_by_one:9,.0f} FLOPs: {met_by_one / rows['mixture'][1]:.3f} of the mixture's"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for axis, column, scale, label in [(axes[0], 1, 6e-6, "MFLOP a token"), (axes[1], 0, 1e-3, "thousand parameters")]:
    axis.barh(list(rows), [scale * row[column] for row in rows.values()], color=[COLOURS[0], *["#9ecae1"] * 3])
    axis.set(xlabel=f"{label}, one layer")
    axis.grid(axis="y", visible=False)
axes[0].set_title("What it costs")
axes[1].set_title("What it owns")
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# *Figure: bars for the mixture layer and three dense ones. By cost the first two dense layers equal the mixture and the third is four times as dear; by parameters the third equals it and the others own a quarter.*
#
# Three kinds of equality, three different opponents:
#
# - **Equal FLOPs.** As wide as the experts that a token meets, and a little wider: a router row costs a third of a hidden unit. It is the fairest question about *computation*, and the one of the claim "a tenth of the compute". The difference
#   of one percent that the router makes here grows with the number of experts, and falls with their width.
# - **Equal parameters.** The question of someone who runs out of *memory*.
# - **Equal time.** The question of someone who pays by the *hour*. It depends on the machine: lesson 04 finds that on two CPU cores it turns the verdict around.
#
# In the lab you compute the twin for any mixture.
#
# ## Turn the knobs
#
# How many seeds does it take to see a difference of a given size, at the spread of our record?


# %%
def draw_arms(axis, a, b):
    """Twelve comparisons, each two rows of dots."""
    for arm, name, up in [(a, "first arm", 0), (b, "second arm, truly lower", 0.25)]:
        places = torch.arange(12)[:, None].expand(12, arm.shape[1]) + up
        axis.plot(arm[:12].flatten(), places.flatten(), "o", markersize=4, label=name)
    axis.set(xlabel="loss, from the true mean of the first arm (nats)", title="Twelve comparisons", xlim=(-0.25, 0.12))
    axis.set(yticks=[])
    axis.legend(loc="upper left", fontsize=8, handletextpad=0)


# %%
def knobs(n=3, difference=0.05):
    """What two rules say of two arms that truly differ, four thousand times over."""
    draw = torch.Generator().manual_seed(n)
    a, b = seeds.std() * torch.randn(2, 4000, n, generator=draw, dtype=torch.float64)
    b, names = b - difference, ["right arm", "not resolved", "wrong arm"]
    _, axes = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[1.6, 1])
    draw_arms(axes[0], a, b)
    right = a.mean(1) > b.mean(1)
    for place, (name, rule) in enumerate({"spread": resolved, "two errors": two_errors}.items()):
        sure = rule(a, b)
        shares = [100 * share.double().mean().item() for share in (sure & right, ~sure, sure & ~right)]
        axes[1].bar(torch.arange(3) + 0.4 * place, shares, width=0.38, label=name)
    axes[1].set(xticks=[0.2, 1.2, 2.2], xticklabels=names, ylim=(0, 100), ylabel="% of 4,000")
    axes[1].set_title(f"{n} seeds, {difference:.2f} nats")
    axes[1].legend(title="rule", fontsize=8, title_fontsize=8)
    plt.show()


knobs()

# %% [markdown]
# *Figure: left, twelve simulated comparisons as two rows of dots each. Right, bars for two rules: how often each names the right arm, says "not resolved", or names the wrong one.*
#
# Run the next cell to drag the knobs yourself (it needs a running notebook).

# %%
from ipywidgets import FloatSlider, IntSlider, interact

controls = interact(knobs, n=IntSlider(3, 2, 16), difference=FloatSlider(0.05, min=0, max=0.15, step=0.01))

# %% [markdown]
# Three things to try: no difference at all (how often does either rule find one?); the smallest n with which two errors find 0.05 nine times in ten; and what raising n does to the rule of spreads.
#
# ## What we measured
#
# - AdamW in a few lines, equal to `torch.optim.AdamW` to a millionth; its step is a distance, at first exactly one learning rate.
# - FLOPs by formula equal to what PyTorch counts.
# - Sixteen seeds of one unchanged model lie 0.11 nats apart (recorded, two cores, 300 steps; standard deviation 0.03). Weights and order each make such a spread; one bit of one weight makes about a fortieth of it.
# - Of five settings, three differ from the usual run by more than the seeds do: a third of the rate, ten times the rate, no warm-up. Two are not resolved: no clip, no weight decay.
# - Pairs with the same seed agree so well (correlation 0.97 for weight decay) that they see five times finer.
#
# **What surprised:** that one bit is enough to part two runs; that the luckiest weights and the luckiest order are not properties of themselves; and that a rule made to be careful grows blinder with more seeds.
#
# **To read**
#
# - Kingma and Ba 2015, *Adam*, sections 2 and 3: the step, and why the means are corrected.
# - Loshchilov and Hutter 2019, *Decoupled Weight Decay Regularization*, section 2: why L2 is not decay.
# - Pascanu, Mikolov and Bengio 2013, *On the difficulty of training recurrent neural networks*, section 3.2: the clip.
# - Kaplan et al. 2020, *Scaling Laws for Neural Language Models*, section 2.1: counting FLOPs.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, section 4.2: every setting of the run.
# - Bouthillier et al. 2021, *Accounting for Variance in Machine Learning Benchmarks*: the same question, asked of five tasks.
#
# **Now the lab:** `labs/03_training.ipynb`. You write an AdamW that skips what has no gradient, DeepSeek-V3's schedule, a clip that refuses bad steps, the FLOPs of any model of the family, the twin, and the rule.
