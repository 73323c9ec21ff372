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
# # Lesson 08 · The roofline
#
# An H800 computes 990 trillion BF16 operations a second. A token of DeepSeek-V3 costs 75 billion. Divide, and one chip should write thirteen thousand tokens a second for you. Nobody has ever seen that. Where does the rest go?
#
# In this lesson you count two things, operations and bytes, and from these two alone get a bound on the time of every part of the model. You test the bound against times that others measured on real H800s. Then you go down: to the bits of a number, to the tiles of a product, and
# to the machine code of a kernel that you wrote, for a chip that need not be there.
#
# About 55 minutes. Names carry their shape: **M** rows (tokens), **K** summed over, **N** columns of a product; **D** width, **E** experts, **H** heads, **S** positions.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import os

os.environ["TRITON_INTERPRET"] = "1"  # this lesson counts and compiles, also where there is a GPU

import math
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)  # one core: its roof is easier to see
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## Two ways to be slow
#
# To write one token, every parameter that the token meets is multiplied once: two operations each. And every such parameter must first come from memory.
#
# **Predict:** which takes longer, and by which factor?

# %%
from course.hardware import GPUS
from course.model import PRESETS, active_parameters

h800 = GPUS["h800"]
active = active_parameters(PRESETS["deepseek-v3"])
compute = 2 * active / h800.peak["bf16"].value
memory = 2 * active / h800.bandwidth.value  # two bytes a parameter
print(f"{active / 1e9:.1f} billion active parameters (as if one H800 held the whole model, which it cannot)")
print(f"compute them: {1e3 * compute:6.2f} ms   {1 / compute:8,.0f} tokens a second")
print(f"read them:    {1e3 * memory:6.2f} ms   {1 / memory:8,.0f} tokens a second")
print(f"factor {memory / compute:.1f}")

# %% [markdown]
# There is the rest. The chip waits for its memory 295 times as long as it computes. (All *computed* from data-sheet figures; embedding counted in, so it is a little rough.) Keep the factor in mind, it will come back under another name.
#
# Every figure about a GPU in this course says where it comes from and of which kind it is:

# %%
shown = {
    "BF16, peak": h800.peak["bf16"],
    "FP8, peak": h800.peak["fp8"],
    "memory, peak": h800.bandwidth,
    "BF16, achieved": h800.achieved["bf16"],
    "FP8, achieved": h800.achieved["fp8"],
    "memory, achieved": h800.achieved_bandwidth,
}
for name, figure in shown.items():
    print(f"{name:17s} {figure.value:8.3g}  {figure.kind:9s} {figure.source}")

# %% [markdown]
# Two sets. A **peak** is what the data sheet promises; **achieved** is what somebody is known to have reached, in one kernel, on one day. They answer different questions, and a fraction of the first must not be set beside a fraction of the second. (You may meet a third number for this chip, 865 TFLOP/s. That is what FlashMLA's
# authors computed for the clock to which *their* kernel had throttled the chip, about 1.6 GHz instead of 1.83. It belongs to that kernel and is no general roof.)
#
# ## Where numbers live
#
# A number that is about to be multiplied lies in a register. Before that it lay in shared memory, before that perhaps in the L2 cache, and first of all in HBM, the chips of memory beside the processor.
#
# **Predict:** registers, shared memory, L2: which is the largest on an H800, all SMs together?

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(3, 2))
levels = h800.memory_levels()
bars = axes[0].barh([name for name, _ in levels], [size / 1e6 for _, size in levels], color=[BLUE, SKY, GREEN, ORANGE])
axes[0].bar_label(bars, [f"{size / 1e6:,.0f} MB" for _, size in levels], padding=4, fontsize=9)
axes[0].set(xscale="log", xlabel="size (MB), all SMs together", title="Memory of an H800", xlim=(10, 1e6))
links = {
    "HBM, peak": h800.bandwidth.value,
    "HBM, achieved": h800.achieved_bandwidth.value,
    "NVLink, both ways": h800.nvlink.value,
}
bars = axes[1].barh(list(links), [rate / 1e9 for rate in links.values()], color=[ORANGE, YELLOW, PINK])
axes[1].bar_label(bars, [f"{rate / 1e9:,.0f}" for rate in links.values()], padding=4, fontsize=9)
axes[1].set(xlabel="GB/s", title="What has a sourced bandwidth", xlim=(0, 4200))
for axis in axes:
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# *Figure: left, sizes of four levels of memory on a logarithmic axis: registers 35 MB and shared memory 31 MB, L2 50 MB, HBM 85,000 MB. Right, bandwidths of HBM (3,350 GB/s, of which 3,000 have been reached) and of NVLink (400 GB/s, both directions together).*
#
# The registers hold more than the shared memory, and nearly as much as the cache: a GPU keeps its hierarchy the other way up from what a CPU has taught us. Everything on the chip together is 115 MB, a seven-hundredth of what is beside it. One expert of V3 has 88 MB in BF16. So weights cannot stay: for each use, they come from HBM again.
# (Bandwidths of the inner levels are missing because we know no source for the H800's that we would sign.)
#
# ## Felt on this machine
#
# Your CPU has such a hierarchy as well, and it can be measured. Add up arrays of growing size; and read single numbers at random places of arrays of growing size.
#
# **Predict:** how much longer does it take per number in the largest array than in the smallest? For adding in order, and for random reads?


# %%
def seconds(work, budget=0.08):
    """The shortest of up to 7 runs, fewer where they take long."""
    work()
    begun, best = time.perf_counter(), math.inf
    for _ in range(7):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > budget:
            break
    return best


sizes = [2**power for power in range(17, 29)]  # bytes
in_order, at_random = [], []
for size in sizes:
    x = torch.ones(size // 4)
    places = torch.randint(len(x), (2**17,))
    repeat = max(1, 2**22 // size)
    in_order.append(seconds(lambda x=x, n=repeat: [x.sum() for _ in range(n)]) / repeat / len(x))
    at_random.append(seconds(lambda x=x, places=places: torch.take(x, places)) / len(places))

# %%
figure, axis = plt.subplots(figsize=(8, 3.4))
for times, label, colour in [(at_random, "reads at random places", ORANGE), (in_order, "a sum, in order", BLUE)]:
    axis.loglog([size / 1e6 for size in sizes], [1e9 * t for t in times], "o-", color=colour, label=label)
axis.set(xlabel="size of the array (MB)", ylabel="time per number (ns)", title="The hierarchy of this machine")
axis.legend(loc="center right")
plt.show()
print(f"in order:  {max(in_order) / min(in_order):4.0f} times between the fastest and the slowest size")
print(f"at random: {max(at_random) / min(at_random):4.0f} times")
print(f"from the largest array: {at_random[-1] / in_order[-1]:.0f} times dearer at random than in order")

# %% [markdown]
# *Figure: time per number against the size of the array, both axes logarithmic. The sum in order stays at a fraction of a nanosecond and rises in one step of several times where the array outgrows the last cache. Random reads start at about a nanosecond and climb in stairs to tens of nanoseconds.*
#
# Each stair is a cache that has become too small. (*Measured here*, one core of a shared machine: expect other heights on yours.) Reading in order hides nearly all of it, for two reasons: the hardware guesses what comes next, and memory does not deliver numbers. It delivers *lines*, of 64 bytes on this CPU: sixteen neighbours, wanted or not.
#
# **Predict:** copy every second, every fourth, ... every 64th number. From where on does the time per number stop growing?

# %%
n, strides = 2**19, (1, 2, 4, 8, 16, 32, 64)
wide, narrow = torch.ones(n * strides[-1]), torch.empty(n)
per_number = [1e9 * seconds(lambda s=s: narrow.copy_(wide[: n * s : s])) / n for s in strides]
figure, axis = plt.subplots(figsize=(8, 3))
axis.loglog(strides, per_number, "o-", color=BLUE)
axis.axvline(16, color="black", linestyle="--", linewidth=1)
axis.annotate("a line of 64 bytes", (16, min(per_number)), (6, 0), textcoords="offset points", fontsize=9)
axis.set(
    xlabel="stride (numbers)", ylabel="time per number (ns)", title="Half a million numbers, copied from further apart"
)
axis.set_xticks(strides, strides)
axis.xaxis.minorticks_off()
plt.show()
print(f"stride 16 against stride 1: {per_number[4] / per_number[0]:.0f} times the time for the same work")

# %% [markdown]
# *Figure: time per copied number against the stride, logarithmic. It jumps from 1 to 2, and then grows with the stride up to 16 or 32 numbers, where each number sits in a line of its own, and little beyond.*
#
# The same work, the same count of numbers, and many times the time. (The first jump has a cause of its own: vector instructions load neighbours only. And past 16 it may grow once more, as many CPUs fetch lines in pairs.) A GPU has this too: a warp of 32 threads that reads neighbours gets its numbers in few pieces. Whoever lays out tensors decides this, and it is why kernels of this course care which dimension is the last.
#
# ## Operations and bytes
#
# For every kernel, two counts. **FLOPs**: a multiplication and an addition are two. **Bytes**: what must come from memory and go back, if everything is read once and written once. Their ratio is the **intensity**, in FLOPs a byte. For a product of $[M, K]$ and $[K, N]$:
#
# $$\text{FLOPs} = 2MKN \qquad \text{bytes} = s_x MK + s_w KN + s_y MN$$
#
# with $s$ the bytes of one element. The time is at least
#
# $$t \ge \max\left(\frac{\text{FLOPs}}{\text{FLOP/s}},\ \frac{\text{bytes}}{\text{bytes/s}}\right)$$
#
# since at best both go on at once. That is the **roofline** (Williams, Waterman and Patterson 2009), all of it.

# %%
from course.hardware import Work, bound


def product(M, K, N, s_x=2, s_w=2, s_y=2, dtype="bf16"):
    """Work of one matrix product."""
    return Work(2 * M * K * N, s_x * M * K + s_w * K * N + s_y * M * N, dtype)


def least_time(work, gpu, roof="peak"):
    return max(work.flops / gpu.roof(work.dtype, roof).value, work.bytes / gpu.memory_roof(roof).value)


for M in (1, 128, 8192):
    work = product(M, 7168, 4096)
    assert least_time(work, h800) == bound(work, h800).time
    print(f"{M:5,} tokens: {work.flops:.2e} FLOPs, {work.bytes:.2e} bytes, {work.intensity:7.1f} FLOPs a byte")
    print(f"              {bound(work, h800)}")

# %% [markdown]
# One token does one FLOP for each byte (two FLOPs for a weight of two bytes). Each further token uses the same weight again. Where the two times are equal lies the **ridge**: 990 TFLOP/s over 3.35 TB/s is 295.5 FLOPs a byte. *That* was the factor of the first cell.
#
# ## Is it true?
#
# So far this is arithmetic. DeepSeek published for its FP8 products, on an H800, both rates: TFLOP/s and GB/s. Eighteen shapes (*quoted*: deepseek-ai/DeepGEMM, README of February 2025). The quotient of the two is their intensity, and our count must give the same.

# %%
DEEPGEMM = [  # M, N, K, TFLOP/s, GB/s
    (64, 2112, 7168, 206, 1688), (64, 24576, 1536, 289, 2455), (64, 32768, 512, 219, 2143),
    (64, 7168, 16384, 336, 2668), (64, 4096, 7168, 287, 2320), (64, 7168, 2048, 295, 2470),
    (128, 2112, 7168, 352, 1509), (128, 24576, 1536, 535, 2448), (128, 32768, 512, 358, 2103),
    (128, 7168, 16384, 645, 2604), (128, 4096, 7168, 533, 2221), (128, 7168, 2048, 510, 2277),
    (4096, 2112, 7168, 1058, 527), (4096, 24576, 1536, 990, 786), (4096, 32768, 512, 590, 1232),
    (4096, 7168, 16384, 1358, 343), (4096, 4096, 7168, 1304, 500), (4096, 7168, 2048, 1025, 697),
]  # fmt: skip
counted = [product(M, K, N, s_x=1, s_w=1, s_y=2, dtype="fp8") for M, N, K, _, _ in DEEPGEMM]
theirs = [tflops / gigabytes * 1e3 for *_, tflops, gigabytes in DEEPGEMM]
apart = max(abs(work.intensity / its - 1) for work, its in zip(counted, theirs, strict=True))
print(f"18 shapes: our intensity and theirs differ by at most {apart:.1%}")
assert apart < 0.01

# %% [markdown]
# **Predict:** how close to the roof does the best library for this chip come, left of the ridge and right of it?

# %%
figure, axis = plt.subplots(figsize=(8.5, 4))
span = torch.logspace(1, 3.7, 200)
for roof, style in (("peak", "-"), ("achieved", "--")):
    flops, rate = h800.roof("fp8", roof).value, h800.memory_roof(roof).value
    axis.loglog(span, (span * rate).clamp(max=flops) / 1e12, style, color="black", linewidth=1.5, label=f"roof, {roof}")
for M, colour in ((64, SKY), (128, BLUE), (4096, ORANGE)):
    rows = [(work.intensity, row[3]) for work, row in zip(counted, DEEPGEMM, strict=True) if row[0] == M]
    axis.plot(*zip(*rows, strict=True), "o", color=colour, label=f"{M:,} tokens")
ridge = h800.peak["fp8"].value / h800.bandwidth.value
axis.axvline(ridge, color="black", linestyle=":", linewidth=1)
axis.annotate(f"ridge {ridge:.0f}", (ridge, 60), (5, 0), textcoords="offset points", fontsize=9)
axis.set(xlabel="FLOPs a byte (counted)", ylabel="TFLOP/s (published)", title="DeepGEMM on an H800, FP8")
axis.set(xlim=(20, 5000), ylim=(50, 3000))
axis.legend(loc="upper left", ncols=2, fontsize=9)
plt.show()
shares = [1e12 * row[3] * least_time(work, h800) / work.flops for work, row in zip(counted, DEEPGEMM, strict=True)]
for label, its in (("64 and 128 tokens", shares[:12]), ("4,096 tokens", shares[12:])):
    print(f"{label}: {min(its):.0%} to {max(its):.0%} of the peak roof")

# %% [markdown]
# *Figure: eighteen published points under the FP8 roofline of the H800, logarithmic. With 64 and 128 tokens they lie along the slanted part, at half to four fifths of it; with 4,096 tokens most lie under the flat part, at half to two thirds, and one left of the ridge, at a third. The dashed roof of what has been achieved lies a little below the peak.*
#
# None is above the roof: it is a bound. And the slope explains most of what is there: a product that runs at 206 TFLOP/s, a tenth of the chip's promise, is not bad. It *cannot* run at more than twice that. The lowest orange point has K of 512: even with 4,096 tokens it
# stays left of the ridge, since most of its traffic are results, of two bytes each.
#
# (One must take the FP8 roof for FP8 work. Against the BF16 roof some of these would stand at 137 %.)
#
# ## A layer of DeepSeek-V3
#
# Now count a whole mixture layer. For few tokens we are writing: each token belongs to another user with 4,096 tokens in the cache, and attention is absorbed (lesson 06). For 8,192 we are reading two texts of 4,096, and keys and values are expanded. Of the 256 experts we assume that the router chooses evenly; then $T$ tokens
# meet $256\,(1 - (1 - 8/256)^T)$ different ones.

# %%
c = PRESETS["deepseek-v3"]
D, H, E, I = c.width, c.heads, c.experts, c.expert_width
Q, L, R, r, V = c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
S = 4096


def add(*works):
    return sum(works[1:], works[0])


def attention_itself(T, writing):
    """Scores and values; in BF16 always."""
    if writing:  # each token reads the latents of its own text, once for all heads
        return Work(2 * T * S * H * (2 * L + r), 2 * T * (S * (L + r) + H * (2 * L + r)))
    return Work(
        2 * T * (S + 1) / 2 * H * (R + r + V), 2 * T * H * 2 * (R + r + V)
    )  # causal, nothing kept of the scores


def per_head(T, s, dtype):
    """Absorbed: a small product for each head, of its query and of its result."""
    return Work(2 * T * H * L * (R + V), s * H * L * (R + V) + T * H * ((s + 2) * L + s * R + 2 * V), dtype)


# %%
def parts(T, dtype="bf16", writing=True):
    """Work of the parts of one mixture layer."""
    s = {"bf16": 2, "fp8": 1}[dtype]

    def matrix(rows, K, N):
        return product(rows, K, N, s_x=s, s_w=s, dtype=dtype)

    up = per_head(T, s, dtype) if writing else matrix(T, L, H * (R + V))
    met, pairs = E * (1 - (1 - c.top_k / E) ** T), c.top_k * T
    each = pairs / met  # tokens of an expert that is met
    experts = add(matrix(each, D, 2 * I), matrix(each, I, D))
    return {
        "norms and SwiGLU": Work(8 * T * D + 5 * (pairs + T) * I, 2 * (4 * T * D + 3 * (pairs + T) * I)),
        "attention's matrices": add(
            matrix(T, D, Q), matrix(T, Q, H * (R + r)), matrix(T, D, L + r), up, matrix(T, H * V, D)
        ),
        "attention itself": attention_itself(T, writing),
        "router": product(T, D, E),
        "shared expert": add(matrix(T, D, 2 * I), matrix(T, I, D)),
        "routed experts": Work(met * experts.flops, met * experts.bytes, dtype),
    }


# %% [markdown]
# Counting by hand goes wrong easily. So hold it against the model itself: for one token, the FLOPs of all products must be twice the parameters that it meets in the layer.

# %%
from course.model import Transformer
from course.model.shapes import without_numbers

with without_numbers():
    block = Transformer(c).blocks[-1]
its = {"attention's matrices": 0, "shared expert": 0, "routed experts": 0, "router": 0}
for name, p in block.named_parameters():
    if p.ndim < 2:
        continue
    kind = "attention's matrices" if name.startswith("attention") else "shared expert" if "shared" in name else "router"
    kind = "routed experts" if p.ndim == 3 else kind
    its[kind] += p.numel() * (c.top_k / E if p.ndim == 3 else 1)
for kind, count in its.items():
    assert parts(1)[kind].flops == 2 * count
    print(f"{kind:21s} {count / 1e6:7.1f} million parameters met, {parts(1)[kind].flops / 1e6:7.1f} million FLOPs")

# %% [markdown]
# **Predict:** at 1, 128 and 8,192 tokens: which part takes the most time, and how many of the six are bound by compute?

# %%
STYLE = dict(zip(parts(1), zip("osD^vP", (BLACK, SKY, BLUE, PINK, GREEN, ORANGE), strict=True), strict=True))
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), sharey=True)
span = torch.logspace(-1, 4, 200)
for axis, T in zip(axes, (1, 128, 8192), strict=True):
    flops, rate = h800.peak["bf16"].value, h800.bandwidth.value
    axis.loglog(span, (span * rate).clamp(max=flops) / 1e12, color="black", linewidth=1.5)
    axis.axvline(flops / rate, color="black", linestyle=":", linewidth=1)
    for name, work in parts(T, writing=T < 8192).items():
        height = work.flops / bound(work, h800).time / 1e12
        mark = {"marker": STYLE[name][0], "color": STYLE[name][1]}
        axis.plot(work.intensity, height, linestyle="", label=name, markersize=9, alpha=0.85, **mark)
    axis.set(xlabel="FLOPs a byte", title=f"{T:,} token{'s' * (T > 1)}", ylim=(0.2, 3000))
axes[0].set(ylabel="TFLOP/s at most, BF16")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
plt.show()

# %% [markdown]
# *Figure: three rooflines of an H800 in BF16, with the six parts of a layer as marks. For one token all lie far down the slope at about 1 FLOP a byte, only attention itself stands right below the ridge. For 128 tokens the dense matrices have moved up near the ridge, the routed experts hang back at 4. For 8,192 the dense matrices and
# attention are on the flat part, and the routed experts still left of the ridge.*
#
# Two things to see. Attention itself has the same place for one user and for 128, as each brings a cache of its own. And the routed experts hang behind, by a factor of 32: with 8 of 256, an expert gets only a 32nd of the tokens.

# %%
figure, axis = plt.subplots(figsize=(9.5, 2.9))
box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
for row, T in enumerate((1, 128, 8192)):
    bounds = {name: bound(work, h800) for name, work in parts(T, writing=T < 8192).items()}
    total, left = sum(its.time for its in bounds.values()), 0.0
    for name, its in bounds.items():
        share = 100 * its.time / total
        bar = axis.barh(row, share, left=left, color=STYLE[name][1], edgecolor="white", label="" if row else name)
        bar[0].set_hatch("///" if its.by == "memory" else "")
        if share > 7:
            axis.text(left + share / 2, row, f"{share:.0f} %", ha="center", va="center", fontsize=9, bbox=box)
        left += share
    print(f"{T:5,} tokens: a layer takes at least {1e6 * total:8,.0f} us, {1e6 * total / T:7.2f} us a token")
axis.set_yticks(range(3), ["1 token", "128 tokens", "8,192 tokens"])
axis.invert_yaxis()
axis.set(xlabel="share of the least time (%)", title="Where the time goes (hatched: bound by memory)", xlim=(0, 100))
axis.grid(axis="y", visible=False)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
plt.show()

# %% [markdown]
# *Figure: three bars of the least time of a layer by parts. For one token three fifths go to the routed experts and a third to attention's matrices, all hatched; for 128 tokens 95 % go to the experts; for 8,192 the experts, still hatched, keep 57 %, and attention, its matrices and the shared expert, now solid, share most of the rest.*
#
# (The parts are added up: they run one after the other, so it is a sum of maxima, not the maximum of two sums. Fusing and overlapping would change that.) 128 users cost twenty times as much as one: they wake nearly all experts, and the price of a layer is then the reading of 256 experts. From there on tokens are nearly free, until an expert has enough of them.
#
# ## When does an expert pay?
#
# **Predict:** how many tokens must *one expert* get until it is bound by compute? In FP8, where a weight has one byte, is it half as many?


# %%
def turning_point(dtype, roof="peak", gpu=h800):
    """The fewest tokens of one expert at which its first product is bound by compute."""
    s = {"bf16": 2, "fp8": 1}[dtype]
    return next(M for M in range(1, 20_000) if bound(product(M, D, 2 * I, s, s, 2, dtype), gpu, roof).by == "compute")


for dtype in ("bf16", "fp8"):
    for roof in ("peak", "achieved"):
        M = turning_point(dtype, roof)
        ridge = h800.roof(dtype, roof).value / h800.memory_roof(roof).value
        print(
            f"{dtype}, {roof:8s} roofs: ridge {ridge:3.0f}, turns at {M} tokens an expert: a batch of {M * E // c.top_k:,}"
        )

# %% [markdown]
# No. FP8 halves the bytes of a weight *and* doubles the FLOP/s: twice the intensity against twice the ridge. The turning point stays where it was, somewhat above 300 tokens an expert (it even rises a little, since results keep two bytes); both sides just go twice as fast. By achieved roofs it lies lower, since BF16 work is known to have reached two thirds of its peak and FP8 four
# fifths, while memory came to nine tenths.
#
# Times 32: a batch of ten thousand tokens *at once*, before one GPU with all experts is busy computing. That is one reason why DeepSeek writes with each GPU holding a few experts and receiving their tokens from more than a hundred others (unit 16).
#
# Here are kernel times that Alibaba measured on an H800, of FP8 experts of just these sizes: the first product of 16 experts on one GPU, and of 4 (*quoted*: alibaba/InferSim, `bench_data`, Apache-2.0).

# %%
INFERSIM = {  # experts on the GPU: tokens an expert, microseconds
    16: [(8, 171.6), (16, 171.2), (32, 171.5), (64, 196.7), (128, 217.6), (256, 280.5)],
    4: [(32, 51.6), (64, 60.0), (128, 63.2), (256, 93.8), (512, 134.9), (1024, 216.3)],
}
figure, axis = plt.subplots(figsize=(8.5, 3.8))
for (count, rows), colour in zip(INFERSIM.items(), (ORANGE, BLUE), strict=True):
    span = torch.logspace(2, 10.5, 300, base=2).tolist()
    for roof, style in (("peak", "-"), ("achieved", "--")):
        line = [1e6 * count * bound(product(M, D, 2 * I, 1, 1, 2, "fp8"), h800, roof).time for M in span]
        axis.loglog(span, line, style, color=colour, linewidth=1.3, label=f"{count} experts, bound by {roof} roofs")
    axis.plot(*zip(*rows, strict=True), "o", color=colour, label=f"{count} experts, measured on an H800")
axis.set(xlabel="tokens an expert", ylabel="time (us)", title="An expert's first product: bound and measurement")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
plt.show()
for count, rows in INFERSIM.items():
    ratios = [us / 1e6 / (count * bound(product(M, D, 2 * I, 1, 1, 2, "fp8"), h800).time) for M, us in rows]
    print(
        f"{count:2d} experts: measured over bound",
        ", ".join(f"{M}: {ratio:.2f}" for (M, _), ratio in zip(rows, ratios, strict=True)),
    )

# %% [markdown]
# *Figure: time of an expert's first product against tokens per expert, logarithmic, for 16 and for 4 experts on a GPU. Lines are bounds, flat up to about 300 tokens and then rising; dots are published measurements, all above them: 16 experts stay level from 8 to 32 tokens, a fifth above the bound, and leave it upwards towards the turn; 4 experts lie 1.4 to 2.4 times above it.*
#
# From 8 to 32 tokens an expert, 16 experts: four times the work in the same time, to a third of a percent. And by counting bytes, on a laptop, we come within a quarter of a time that somebody measured on the other side of the world. With 4 experts the work is so short, some 50 us, that starting and ending weigh more (our reading). Around the turn the bound is loosest: where
# both roofs matter at once, real kernels overlap reading and computing only in part.
# So use it as what it is: a bound of 140 us tells you that 100 us are impossible, and 400 us a fault; it does not tell 170.
#
# ## One edge, three answers
#
# Attention itself, while writing, stood right at the ridge. There it matters *which* roof you take:

# %%
work = parts(128)["attention itself"]
print(f"absorbed attention, {S:,} tokens in each cache: {work.intensity:.0f} FLOPs a byte")
for label, flops, rate in [
    ("peak (990, 3.35)", 990e12, 3.35e12),
    ("FlashMLA's throttled clock (865, 3.35)", 865e12, 3.35e12),
    ("achieved (660, 3.0)", 660e12, 3.0e12),
]:
    print(
        f"  {label:40s} ridge {flops / rate:3.0f}: bound by {'compute' if work.intensity > flops / rate else 'memory'}"
    )
print(f"without queries and results: {2 * H * (2 * L + r) / (2 * (L + r)):.0f} FLOPs a byte")

# %% [markdown]
# The authors of FlashMLA take 865 and twice the number of heads as the intensity, and find that 128 heads are just bound by compute (*quoted*: their deep dive of April 2025). We count a little less work per byte, and by peak figures it is memory. Nobody is wrong. It lies *at* the edge, within what was left out; a kernel there has to be good at both.
# That the number of heads puts it there is MLA's doing: all 128 heads share what is read. With one latent a head, intensity would be about 2.
#
# ## This CPU's roof
#
# A roof is easy to measure. A copy gives the slope, a large product the flat part; products of one weight matrix with more and more tokens walk from one to the other.
#
# **Predict:** the same curve as the H800's? At how many tokens will the turn be, here?

# %%
weight = torch.randn(4096, 4096).bfloat16()  # 34 MB: more than the caches of most CPUs
tokens = (1, 2, 4, 8, 16, 32, 64, 128)
times = []
for M in tokens:
    x = torch.randn(M, 4096).bfloat16()
    times.append(seconds(lambda x=x: F.linear(x, weight), budget=0.3))
square = {}
for n in (64, 128, 256, 512, 1024):
    x = torch.randn(n, n).bfloat16()
    square[n] = seconds(lambda x=x: F.linear(x, x), budget=0.3)
source, target = torch.ones(2**24), torch.empty(2**24)
copied = 2 * source.nbytes / seconds(lambda: target.copy_(source), budget=0.3)
read = weight.nbytes / min(times)
best = max(2 * n**3 / t for n, t in square.items())
best = max(best, *(2 * M * weight.numel() / t for M, t in zip(tokens, times, strict=True)))
print(f"copying {copied / 1e9:.1f} GB/s, reading weights {read / 1e9:.1f} GB/s, best product {best / 1e9:.0f} GFLOP/s")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
slope = max(copied, read)
span = torch.logspace(-0.3, 2.7, 100)
axes[0].loglog(span, (span * slope).clamp(max=best) / 1e9, color="black", linewidth=1.5, label="roof, measured")
works = {M: product(M, 4096, 4096) for M in tokens}
cubes = {n: product(n, n, n) for n in square}
for its, taken, mark, colour, label in [
    (works, times, "o", BLUE, "more tokens, one weight"),
    (cubes, square.values(), "s", ORANGE, "square, 64 to 1,024"),
]:
    rates = [work.flops / t / 1e9 for work, t in zip(its.values(), taken, strict=True)]
    axes[0].plot([work.intensity for work in its.values()], rates, mark, color=colour, label=label)
axes[0].set(xlabel="FLOPs a byte", ylabel="GFLOP/s", title="The roofline of one core")
axes[0].legend(loc="lower right", fontsize=9)
axes[1].loglog(tokens, [1e3 * t for t in times], "o-", color=BLUE, label="measured")
least = [1e3 * max(work.flops / best, work.bytes / slope) for work in works.values()]
axes[1].loglog(tokens, least, color="black", linewidth=1.5, label="bound by this core's roofs")
axes[1].set(xlabel="tokens", ylabel="time (ms)", title="One weight matrix, more tokens")
axes[1].legend(loc="upper left", fontsize=9)
plt.show()
ridges = {gpu.name.split()[0]: gpu.peak["bf16"].value / gpu.bandwidth.value for gpu in GPUS.values()}
print(
    f"ridge of this core: {best / slope:.0f} FLOPs a byte; BF16, peak:",
    {name: round(its) for name, its in ridges.items()},
)

# %% [markdown]
# *Figure: left, the measured roofline of one core, with products of one weight matrix climbing along the slope as tokens are added, and square products. Right, time against tokens: nearly flat for the first few tokens and then rising in proportion, above the bound.*
#
# The same picture at a thousandth of the scale. (*Measured here*, in BF16, on one core of a machine that had other work too: single points scatter. A CPU without instructions for BF16 has another roof. Small squares may lie *above* the slope: they never leave the cache, and their bytes do not come from memory at all.) The ridge is lower, so a CPU is content with fewer tokens. And the GPUs? From A100 to H100 it nearly doubled: FLOP/s grew faster than bytes/s, and with it the batch that one needs. H200, the same
# chip with faster memory, took a step back.
#
# ## What is in a number
#
# Half the bytes, and on this chip twice the FLOP/s: a smaller number is twice the speed on both sides of the ridge. So look at what is bought and sold. A floating-point number is a sign, an exponent and a fraction:
#
# $$(-1)^{s} \cdot 2^{e - \text{bias}} \cdot \left(1 + \frac{f}{2^{m}}\right)$$
#
# with $e$ and $f$ as whole numbers and $m$ bits of fraction. Where $e$ is 0 the leading 1 is missing and the exponent is that of $e = 1$: these are the **subnormals**, which fill the gap around zero.

# %%
FORMATS = {  # bits of exponent, bits of fraction, torch's names for the number and for its bits
    "float32": (8, 23, torch.float32, torch.int32),
    "BF16": (8, 7, torch.bfloat16, torch.int16),
    "E5M2": (5, 2, torch.float8_e5m2, torch.uint8),
    "E4M3": (4, 3, torch.float8_e4m3fn, torch.uint8),
}


def bits_of(value, name):
    exponent, fraction, dtype, whole = FORMATS[name]
    code = int(torch.tensor(value).to(dtype).view(whole))
    width = 1 + exponent + fraction
    return f"{code % 2**width:0{width}b}"


for name in FORMATS:
    print(f"{name:8s} {bits_of(-1.0, name)}  minus one")

# %%
figure, axis = plt.subplots(figsize=(10, 2.5))
for row, (name, (exponent, _, dtype, _)) in enumerate(FORMATS.items()):
    for place, bit in enumerate(bits_of(0.3, name)):
        colour = PINK if not place else YELLOW if place <= exponent else SKY
        axis.add_patch(plt.Rectangle((place, row), 0.92, 0.8, color=colour))
        axis.text(place + 0.46, row + 0.4, bit, ha="center", va="center", fontsize=9)
    axis.text(33, row + 0.4, f"{torch.tensor(0.3).to(dtype).item():.9g}", va="center", fontsize=10)
axis.set_yticks([row + 0.4 for row in range(4)], list(FORMATS))
axis.set(xlim=(0, 39), ylim=(4, -0.1), title="0.3 in four formats: sign, exponent, fraction, and what it has become")
axis.grid(visible=False)
axis.set_xticks([])
axis.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# *Figure: the bits of 0.3 as coloured boxes in four formats: one for the sign, then exponent, then fraction; to the right the number that is really stored: 0.300000012, 0.30078125, 0.3125, 0.3125.*
#
# BF16 is float32 cut short: the same exponent, so the same range, and 7 bits of fraction instead of 23. The two formats of eight bits divide what is left in two ways: E5M2 for range, E4M3 for precision. DeepSeek-V3 trains with E4M3 throughout (report, section 3.3) and gets its range from a scale for each block (lesson 07).
#
# Eight bits are so few that one can look at all. Decode the 256 codes with the formula, and compare with torch:


# %%
def decoded(codes, exponent, fraction):
    """The numbers of these codes, special ones left aside."""
    sign, e, f = codes >> (exponent + fraction), codes >> fraction & 2**exponent - 1, codes & 2**fraction - 1
    bias = 2 ** (exponent - 1) - 1
    size = torch.where(e > 0, (1 + f / 2**fraction) * 2.0 ** (e - bias), f / 2**fraction * 2.0 ** (1 - bias))
    return (1 - 2 * sign) * size


codes = torch.arange(256)
values = {}
for name in ("E4M3", "E5M2"):
    exponent, fraction, dtype, _ = FORMATS[name]
    real = codes.to(torch.uint8).view(dtype).float()
    finite = real.isfinite()
    assert torch.equal(decoded(codes, exponent, fraction)[finite], real[finite])
    values[name] = real[finite & (real >= 0)].unique()
    print(
        f"{name}: {int(finite.sum())} finite codes, from {values[name][1]:.3g} (above zero) to {real[finite].max():g}"
    )

# %% [markdown]
# E4M3 has no infinity: only two of its 256 codes, one for each sign, are NaN, and 448 is the end. E5M2 keeps the rules of its larger relatives and spends eight codes on infinities and NaN.
#
# **Predict:** half of all E4M3 numbers are smaller than which?

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(5, 6))
for row, (name, colour) in enumerate((("E4M3", BLUE), ("E5M2", ORANGE))):
    axes[0].eventplot(values[name][values[name] <= 33], lineoffsets=row, linelengths=0.7, color=colour, linewidths=1.2)
axes[0].set_yticks((0, 1), ("E4M3", "E5M2"))
axes[0].set(xlabel="number", title="All there are from 0 to 32", xlim=(-0.5, 33))
axes[0].grid(visible=False)
spot = torch.logspace(-9, 6, 4000, dtype=torch.float64)
for name, colour in (("E5M2", ORANGE), ("E4M3", BLUE), ("BF16", GREEN), ("float32", BLACK)):
    exponent, fraction, *_ = FORMATS[name]
    lowest, largest = 2 - 2 ** (exponent - 1), {"E4M3": 448, "E5M2": 57344}.get(name, 1e38)
    step = 2.0 ** ((torch.frexp(spot).exponent - 1).clamp(min=lowest) - fraction)
    relative = torch.where((spot <= largest) & (spot >= step), step / spot, math.nan)
    axes[1].loglog(spot, relative, color=colour, label=name, linewidth=1.2)
axes[1].set(xlabel="number", ylabel="distance to the next, relative", title="Steps against size", ylim=(3e-8, 3))
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for name, its in values.items():
    print(f"{name}: half of the numbers from zero up are at most {its[len(its) // 2]:g}")

# %% [markdown]
# *Figure: left, ticks for all numbers of E4M3 and E5M2 between 0 and 32: dense near zero, and twice as sparse after each power of two; E5M2's are half as dense. Right, distance to the next number relative to its size: saw-teeth between two levels for each format, around a tenth for E4M3 and a fifth for E5M2, 0.6 % for BF16 and a ten-millionth for float32. E4M3
# rises to 1 on the left, below about a hundredth, and ends at 448; E5M2 reaches further on both sides.*
#
# A floating format has the same *relative* step everywhere, within a factor of two, and gives up at both ends. Near zero a format becomes a fixed-point one: the subnormals have equal steps, and their relative error grows.
#
# ## Rounding
#
# What lies between two numbers goes to the nearer one. What lies exactly in the middle goes to the one with an *even* fraction. Done by arithmetic (your lab does it by bits):


# %%
def rounded(x, name):
    """The nearest number of a format, ties to even, for numbers within its range."""
    exponent, fraction, *_ = FORMATS[name]
    lowest = 2 - 2 ** (exponent - 1)
    step = 2.0 ** ((torch.frexp(x.double()).exponent - 1).clamp(min=lowest) - fraction)
    return ((x.double() / step).round() * step).float()  # torch rounds halves to even


draw = torch.Generator().manual_seed(8)
x = torch.randn(1_000_000, generator=draw) * 10 ** (4 * torch.rand(1_000_000, generator=draw) - 3)
x = x.clamp(-448, 448)
for name in ("BF16", "E4M3", "E5M2"):
    assert torch.equal(rounded(x, name), x.to(FORMATS[name][2]).float())
    off = (rounded(x, name) - x).abs() / x.abs()
    print(
        f"{name}: as torch rounds; relative error {off.median():.2%} in the middle, {off.quantile(0.99):.1%} at the 99th percentile"
    )

# %% [markdown]
# (A million numbers, most of them between a thousandth and 448. Some are too small for E4M3: below half of its smallest number, a thousandth, it has nothing but zero, and the error is 100 %.)
#
# Why *even*, and not up as at school? **Predict:** take numbers of which half are exact and half lie in the middle. What is the mean error of each rule?

# %%
x = torch.randint(16, 32, (100_000,), generator=draw) / 2  # 8, 8.5, 9, ... 15.5; E4M3 has the whole ones
rules = {"cut off": x.floor(), "half up": (x + 0.5).floor(), "half to even": x.to(torch.float8_e4m3fn).float()}
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.3))
fine = torch.linspace(8, 14, 1201)
axes[0].plot(fine, fine, color="black", linewidth=1, linestyle="--")
axes[0].plot(fine, fine.to(torch.float8_e4m3fn).float(), color=BLUE)
middles = torch.arange(8, 14) + 0.5
axes[0].plot(middles, middles.to(torch.float8_e4m3fn).float(), "o", color=ORANGE, label="a middle goes to the even one")
axes[0].set(xlabel="number", ylabel="in E4M3", title="Stairs from 8 to 14")
axes[0].legend(loc="upper left", fontsize=9)
for (rule, its), colour in zip(rules.items(), (ORANGE, YELLOW, BLUE), strict=True):
    axes[1].plot((its - x).cumsum(0)[::100].numpy(), color=colour, label=f"{rule}: mean error {(its - x).mean():+.3f}")
axes[1].set(xlabel="numbers added (hundreds)", ylabel="error of the sum", title="Errors that add up, and do not")
axes[1].set(ylim=(-28_000, 62_000))
axes[1].legend(loc="upper left", fontsize=9)
plt.show()

# %% [markdown]
# *Figure: left, E4M3 as stairs with steps of 1 between 8 and 14; the middles go alternately down and up. Right, the error of a sum of a hundred thousand rounded numbers: cutting off falls in a straight line, half up rises in one, half to even stays near zero.*
#
# One rounding is off by at most half a step, whatever the rule. Over a sum, a rule that leans to one side leans a hundred thousand times.
#
# ## What a sum loses
#
# **Predict:** add 1 to itself a thousand times, and round after each addition: in BF16, E4M3, E5M2, float32. Which sums come out?

# %%
for name in ("float32", "BF16", "E4M3", "E5M2"):
    total = torch.zeros(())
    for _ in range(1000):
        total = (total + 1).to(FORMATS[name][2]).float()
    print(f"{name:8s} {total.item():6g}    2 to the power of (bits of fraction + 1): {2 ** (FORMATS[name][1] + 1):,}")

# %% [markdown]
# BF16 stops at 256. There the next number is 258; 257 lies in the middle, and the even one is 256, so it stays there for ever. (float32 would stop at 16,777,216.) With numbers between 0 and 1, as they come:

# %%
x = torch.rand(4096, generator=draw)
true, ends = x.double().cumsum(0), {}
figure, axis = plt.subplots(figsize=(8.5, 3.5))
axis.plot(true, color="black", linestyle="--", label="exact")
for name, colour in (("BF16", ORANGE), ("E4M3", BLUE)):
    total, path = torch.zeros(()), []
    for value in x.to(FORMATS[name][2]).float():
        total = (total + value).to(FORMATS[name][2]).float()
        path.append(total.item())
    axis.plot(path, color=colour, label=f"numbers and sum in {name}")
    ends[f"all in {name}"] = path[-1]
once = x.bfloat16().float().cumsum(0).bfloat16()
ends["summed in float32"] = once[-1].item()
axis.plot(once.float(), color=GREEN, label="numbers in BF16, sum in float32, rounded at the end", linewidth=1)
axis.set(xlabel="numbers added", ylabel="sum", title="Sums that stand still", yscale="log", ylim=(0.3, 4000))
axis.legend(loc="lower right", fontsize=9)
plt.show()
print(f"exact {true[-1]:.1f}; " + ", ".join(f"{label} {value:g}" for label, value in ends.items()))

# %% [markdown]
# *Figure: running sums of 4,096 numbers between 0 and 1 on a logarithmic axis. Exact and float32 rise together to about 2,000; the sum kept in BF16 leaves them and stands still at about 256, that in E4M3 within the first dozens at 16.*
#
# Not one of the *inputs* is to blame: in the green line they are as coarse. What is lost is lost in the sum. So products take inputs of few bits and sum in more; remember it when you read an instruction named `HGMMA.64x256x16.F32.BF16`. (Unit 13 measures how many bits the FP8 sums of this chip really have. Fewer than its name says.)
#
# ## A product by tiles
#
# A product of 8,192 cubed has 2,731 FLOPs a byte, if everything is read once. But nobody can read everything once: $a$ and $b$ together are 268 MB, and there is no place on the chip for them. Instead a program computes one **tile** of the result, and walks along K. In Triton:

# %%
import triton
import triton.language as tl


@triton.jit
def my_matmul(a, b, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row, column = tl.program_id(0) // (N // BN), tl.program_id(0) % (N // BN)
    m, n, k = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a_tile = tl.load(a + m[:, None] * K + (start + k)[None, :])
        b_tile = tl.load(b + (start + k)[:, None] * N + n[None, :])
        total = tl.dot(a_tile, b_tile, total)
    tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty))


def launch(a, b, out, BM, BN, BK=64, **options):
    (M, K), N = a.shape, b.shape[1]
    my_matmul[(M // BM * (N // BN),)](a, b, out, M, N, K, BM=BM, BN=BN, BK=BK, **options)


# %% [markdown]
# Ten lines, no masks, sizes must be multiples. (Unit 11 writes it with care.) It runs here in the course's checked interpreter, which watches every access and counts bytes.
#
# **Predict:** tiles of 32 x 32 against 128 x 128, product 256 cubed: how many times the bytes?

# %%
from course.kernels.checked import checked

draw = torch.Generator().manual_seed(8)
a, b = (torch.randn(256, 256, generator=draw).bfloat16() for _ in range(2))
tiles = [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (16, 256), (32, 128)]
moved = {}
for BM, BN in tiles:
    out = torch.empty(256, 256, dtype=torch.bfloat16)
    with checked() as log:
        launch(a, b, out, BM, BN)
    torch.testing.assert_close(out, (a.float() @ b.float()).bfloat16(), rtol=1e-2, atol=1e-2)
    moved[BM, BN] = log.launches[0].load_bytes
    assert moved[BM, BN] == 256**3 * (1 / BM + 1 / BN) * 2
    print(f"tiles {BM:3d} x {BN:3d}: {len(log.launches[0].accesses):5,} accesses, {moved[BM, BN] / 1e6:5.2f} MB read")

# %% [markdown]
# Each element of $a$ is read once for every column of tiles, each of $b$ for every row of them: $s \cdot MNK\,(1/B_M + 1/B_N)$ bytes, and the log agrees to the byte.

# %%
figure, axis = plt.subplots(figsize=(8, 3.4))
squares = [BM for BM, BN in tiles if BM == BN]
formula = [2 * 256**3 * 2 / size / 1e6 for size in squares]
axis.loglog(squares, formula, color="black", linewidth=1.4, label="formula")
axis.plot(squares, [moved[size, size] / 1e6 for size in squares], "o", color=BLUE, label="square tiles, from the log")
for (BM, BN), colour in (((32, 128), GREEN), ((16, 256), ORANGE)):
    label = f"tiles {BM} x {BN}, as many results as 64 x 64"
    axis.plot(64, moved[BM, BN] / 1e6, "D", color=colour, markersize=8, label=label)
axis.axhline(2 * 256 * 256 * 2 / 1e6, color="black", linestyle="--", linewidth=1, label="everything read once")
axis.set_xticks(squares, squares)
axis.set_yticks((0.25, 0.5, 1, 2, 4), (0.25, 0.5, 1, 2, 4))
axis.minorticks_off()
axis.set(xlabel="side of a square of as many results", ylabel="read (MB)", title="What tiles cost: 256 cubed in BF16")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
plt.show()

# %% [markdown]
# *Figure: megabytes read against the size of the tiles, logarithmic. Dots for square tiles fall on the line of the formula, halving with each doubling, down to the dashed level where everything is read once; a tile of 32 x 128 costs more than a square one of as many results, one of 16 x 256 twice as much.*
#
# Large tiles, and square ones. What stops them from growing is the accumulator, which lives in registers: 128 x 256 sums in float32 are 131 kB, half of all the registers of an SM. And even that is not much:

# %%
BM, BN = 128, 256
print(f"intensity of a tile of {BM} x {BN}: {BM * BN / (BM + BN):.1f} FLOPs a byte; ridge {990 / 3.35:.0f}")
n = 8192
all_reads = 2 * n**3 * (1 / BM + 1 / BN)
print(f"8,192 cubed: all programs together read {all_reads / 1e9:.1f} GB")
print(f"  from HBM {1e3 * all_reads / 3.35e12:.2f} ms; the arithmetic takes {1e3 * 2 * n**3 / 990e12:.2f} ms")

# %% [markdown]
# If every program fetched its tiles from HBM, this product, the model case of "bound by compute", would be bound by memory, three and a half times over. That it is not has one reason: programs that run at the same time want the *same* tiles, and the L2 cache hands them out.
#
# ## The order of the tiles
#
# An SM takes one such program at a time, so 132 run together: a wave. Which tiles they compute is up to the order in which programs are numbered.
#
# **Predict:** row after row, or in bundles of eight rows? Which wave reads less?


# %%
def place(tile, rows, columns, group):
    """Row and column of a tile, `group` rows at a time, down their columns first."""
    first = tile // (group * columns) * group
    height, inside = min(rows - first, group), tile % (group * columns)
    return first + inside % height, inside // height


from course.kernels.matmul import tiles_read

rows, columns, wave = 8192 // 128, 8192 // 256, 132


def wanted(group):
    """Rows of tiles of a, and columns of tiles of b, that the first wave wants."""
    places = [place(tile, rows, columns, group) for tile in range(wave)]
    its = {row for row, _ in places}, {column for _, column in places}
    assert len(its[0]) + len(its[1]) == tiles_read(rows, columns, wave, group)
    return its


print("row after row:", *(len(its) for its in wanted(1)), " eight rows at a time:", *(len(its) for its in wanted(8)))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
for axis, (group, title) in zip(axes, ((1, "row after row"), (8, "eight rows at a time")), strict=True):
    grid = torch.zeros(20, columns)
    for tile in range(wave):
        row, column = place(tile, rows, columns, group)
        grid[row, column] = 1 + tile / wave
    axis.imshow(grid, cmap="Blues", vmin=0, vmax=2.4, aspect="auto")
    of_a, of_b = wanted(group)
    axis.scatter([-1.3] * len(of_a), list(of_a), color=ORANGE, s=16, marker="s", clip_on=False)
    axis.scatter(list(of_b), [-1.3] * len(of_b), color=GREEN, s=16, marker="s", clip_on=False)
    axis.set(xlim=(-2.2, columns - 0.5), ylim=(19.5, -2.2), xlabel="column of tiles", ylabel="row of tiles")
    axis.set_title(f"{title}: {len(of_a)} of a, {len(of_b)} of b")
    axis.set_yticks(range(0, 20, 4))
    axis.grid(visible=False)
plt.show()

# %% [markdown]
# *Figure: the first twenty rows of the grid of 64 x 32 tiles, with those that the first 132 programs compute in blue, the later the darker. Row after row they fill four rows and a bit: 5 rows of a (orange marks) and all 32 columns of b (green). In groups of eight rows they fill a block of 8 by 17.*
#
# The same 132 tiles, the same arithmetic, and a smaller rim. A column of $b$ is twice as wide as a row of $a$ is high, so count bytes:

# %%
groups = [1, 2, 4, 8, 16, 32, 64]
per_wave = []
for group in groups:
    of_a, of_b = wanted(group)
    per_wave.append(2 * 8192 * (len(of_a) * 128 + len(of_b) * 256) / 1e6)
figure, axis = plt.subplots(figsize=(8, 3))
axis.plot(groups, per_wave, "o-", color=BLUE)
axis.set(xscale="log", xlabel="rows of tiles in a group", ylabel="read by a wave (MB)", ylim=(0, 165))
axis.set(title="The first wave, if shared tiles are read once (computed)")
axis.set_xticks(groups, groups)
axis.minorticks_off()
plt.show()
best_group = groups[per_wave.index(min(per_wave))]
flops_of_wave = 132 * 128 * 256 * 8192 * 2
for group in (1, best_group):
    megabytes = per_wave[groups.index(group)]
    print(f"groups of {group:2d}: {megabytes:3.0f} MB, {flops_of_wave / megabytes / 1e6:.0f} FLOPs a byte")

# %% [markdown]
# *Figure: megabytes that the first wave reads against the number of rows in a group: level at about 150 from 1 to 4 rows, then a dip with its floor of 71 at 16 rows, where the block of tiles is about square in elements, and up to 147 again at 64.*
#
# All of these stand right of the ridge. For this shape even the naive order does, because a row has only 32 tiles. In a matrix with 132 columns of tiles and more, a wave in naive order would lie within one row or two, and read 132 columns of $b$ for them. This is a *model*: it assumes that programs of a wave run in step and that the L2 keeps what they share for as long as they need
# it. Whether it does, a CPU cannot show.
#
# ## Your matmul as machine code
#
# Now the moment for which this lesson exists. The kernel above is text. Triton brings its own compiler and NVIDIA's assembler along, and neither needs a GPU. Write the text to a file, plan the launch for matrices of 8,192 (which exist nowhere: the *meta* device has shapes and no numbers), and compile it for `sm_90`, the H800.
#
# **Predict:** how many instructions has the inner loop of your ten lines? And how many of them multiply?

# %%
import inspect
import tempfile
from pathlib import Path

from course.hardware.report import report
from course.kernels.planned import launches_of
from rich.console import Console

path = Path(tempfile.mkdtemp()) / "mine.py"
path.write_text("import triton\nimport triton.language as tl\n\n\n" + inspect.getsource(my_matmul.fn))


def planned(BM, BN, BK=64, num_warps=8, num_stages=3):
    a, b, out = (torch.empty(n, n, dtype=torch.bfloat16, device="meta") for _ in range(3))
    return launches_of(lambda: launch(a, b, out, BM, BN, BK, num_warps=num_warps, num_stages=num_stages))[0]


console = Console(width=116, force_jupyter=False, force_terminal=True, highlight=False)
mine = report(path, planned(128, 256), product(n, n, n))
console.print(mine)

# %% [markdown]
# That is a program for an H800, ready to run, with what it takes: registers, shared memory, warps. We shall go through the rows. First, how it got there. Triton's own representation of the loop still knows tiles:

# %%
import re

stages = mine.compiled.code
loop = [line.strip() for line in stages["ttir"].splitlines() if re.search(r"scf\.for|tt\.load|tt\.dot", line)]
for line in loop:
    print(re.sub(r" loc\(.*|, inputPrecision = \w+", "", line)[:110])
print("lines:", {stage: len(stages[stage].splitlines()) for stage in ("ttir", "ttgir", "ptx", "sass")})

# %% [markdown]
# PTX, NVIDIA's portable assembly, knows threads, and instructions of a chip. A product of tiles has become `wgmma`, *warp-group matrix multiply-accumulate*: four warps together multiply 64 x 16 with 16 x 256 and add to 64 x 256 sums, which lie in their registers; the inputs stay in shared memory. A load has become `cp.async`, a copy past the registers.

# %%
for wanted_name in ("cp.async.cg", "wgmma.fence", "wgmma.mma_async", "wgmma.commit_group", "wgmma.wait_group"):
    lines = [line.strip() for line in stages["ptx"].splitlines() if wanted_name in line]
    text = re.sub(r"\{(%r\d+),.*,(%r\d+)\}", r"{\1, ... \2}", lines[0])
    print(f"{len(lines):3d} times  {text[:112]}")
sums = re.search(r"wgmma\.mma_async[^{]*\{([^}]*)\}", stages["ptx"])[1].count("%r")
print(f"sums in registers: {sums} a thread, times 256 threads = {sums * 256:,} = 128 x 256")
assert sums * 256 == 128 * 256

# %% [markdown]
# And **SASS**, what the chip executes. Here is the hot loop, whole, with a word for each instruction. Read it once from top to bottom, like a score: wait for a tile; multiply, four times (in bold); start copies for the tile after next; jump. (Long constants are written in two halves.)

# %%
with console.capture() as printed:
    console.print(mine.annotated(width=62))
print(re.sub(r"0x(\w{4})(\w{4}\b.*?)  ", r"0x\1_\2 ", printed.get()))

# %% [markdown]
# Count. An `HGMMA.64x256x16` does 64 x 256 x 16 multiplications and additions, once for four warps, and this block has eight:

# %%
hot = mine.code.hot_loop()
products = [one for one in hot if one.name in mine.code.tensor_core]
M, N, K = map(int, re.search(r"(\d+)x(\d+)x(\d+)", products[0].name).groups())
flops_of_pass = len(products) * 2 * M * N * K * (mine.compiled.warps // 4)
assert flops_of_pass == 2 * 128 * 256 * 64
print(f"{len(products)} of {len(hot)} instructions multiply: {flops_of_pass:,} FLOPs a pass = 2 x 128 x 256 x 64")
programs = (n // 128) * (n // 256)
print(f"{n // 64} passes in each of {programs:,} programs: {flops_of_pass * (n // 64) * programs:.4g} FLOPs in all")
assert flops_of_pass * (n // 64) * programs == 2 * n**3

# %% [markdown]
# Four instructions of a hundred do everything that was asked for. Is the rest waste? A tensor core needs time. An SM does 4,096 BF16 FLOPs in a clock (*quoted*: FlashMLA's `docs/20250929-hopper-fp8-sparse-deep-dive.md`, 989 TFLOP/s over 132 SMs over 1.83 GHz), and has four schedulers that start one instruction of a warp in a clock each (CUDA C++ Programming Guide, Compute Capability 9.0).

# %%
clocks = flops_of_pass / 4096
slots = len(hot) * mine.compiled.warps / 4
tile_bytes = (128 + 256) * 64 * 2
print(f"one pass keeps the tensor cores busy for {clocks:,.0f} clocks")
print(f"all instructions of all {mine.compiled.warps} warps take {slots:.0f} of them to start: {slots / clocks:.0%}")
print(f"it needs {tile_bytes:,} bytes: {tile_bytes / clocks:.0f} a clock")
print(f"HBM brings {3.35e12 / 132 / 1.83e9:.0f} bytes a clock to each SM")

# %% [markdown]
# The other instructions fit into the time that the four products take, several times over. And the last two lines are the ridge once more, seen from one SM: it wants three and a half times the bytes that HBM can give, and L2 must bring them. (All *computed*; nothing here was timed.)
#
# ## Copies by hand, copies by TMA
#
# Most of the hundred instructions compute addresses, for twelve `LDGSTS` a pass: each thread copies its own 16 bytes. Hopper has a unit for whole tiles, the **TMA**, which is told the shape of the tensor once (a *descriptor*) and then fetches tiles by coordinates. The course's matmul has a variant that uses it.
#
# **Predict:** what becomes of the address arithmetic, and of the number of registers?

# %%
from course.hardware.report import side_by_side
from course.kernels.catalogue import example

tma = example("matmul", variant="descriptors")
by_tma = report(tma.path, tma.launch)
console.print(side_by_side({"my_matmul": mine, "matmul, descriptors": by_tma}))

# %%
KINDS = {
    "tensor cores": (r"HGMMA", ORANGE),
    "copies": (r"LDGSTS|UTMALDG|LDGDEPBAR", BLUE),
    "waiting": (r"DEPBAR|BAR|WARPGROUP|SYNCS|MEMBAR|FENCE|NOP|WARPSYNC|ELECT", YELLOW),
    "all else: addresses, counters": (r".", "#d0d7de"),
}


def kind_of(one):
    return next(kind for kind, (pattern, _) in KINDS.items() if re.match(pattern, one.name))


figure, axis = plt.subplots(figsize=(11, 2.4))
for row, its in enumerate((mine, by_tma)):
    for place_in_loop, one in enumerate(its.code.hot_loop()):
        axis.barh(row, 0.9, left=place_in_loop, color=KINDS[kind_of(one)][1], height=0.7)
for kind, (_, colour) in KINDS.items():
    axis.barh(0, 0, color=colour, label=kind)
axis.set_yticks((0, 1), ("my_matmul", "descriptors"))
axis.invert_yaxis()
axis.set(xlabel="place in the loop", title="One pass, instruction by instruction")
axis.grid(visible=False)
figure.legend(loc="outside lower center", ncols=4, fontsize=9)
plt.show()

# %% [markdown]
# *Figure: both hot loops as rows of small boxes, one for each instruction, coloured by kind. In mine, four orange products stand in the middle among grey address arithmetic, and a dozen blue copies follow at the end. With descriptors the loop is shorter, with two or three blue boxes.*
#
# Fewer registers (no addresses of copies are kept), and copies that one thread starts. Both compute the same. Which is faster, on which shape, is a question for a GPU.
#
# ## Four chips
#
# The course's matmul once more, the same text for four machines (tiles of 128 x 128 x 32, so that AMD's smaller shared memory has room):

# %%
small = example("matmul", block=(128, 128, 32), num_stages=2)
work = Work(small.flops, small.bytes, "bf16")
chips = {arch: report(small.path, small.launch, work, arch) for arch in ("sm_80", "sm_90", "sm_100", "gfx942")}

# %%
from rich.table import Table


def in_words(value):
    if isinstance(value, dict):
        return ", ".join(f"{count} {name.removesuffix('.F32.BF16')}" for name, count in value.items()) or "none"
    return f"{value:,}"


table = Table("", "A100: sm_80", "H800: sm_90", "B200: sm_100", "MI300: gfx942", box=None, pad_edge=False)
shown = {"products": "tensor_core_shapes", "copies": "asynchronous_copies", "shared bytes": "shared_bytes"}
for label, key in ({"registers": "registers", "instructions": "instructions"} | shown).items():
    table.add_row(label, *(in_words(its.to_json()[key]) for its in chips.values()))
least = (f"{1e3 * its.bound.time:.2f} ms, {its.bound.by}" if its.bound else "no roofs here" for its in chips.values())
table.add_row("time, at least", *least)
console.print(table)

# %% [markdown]
# In 2020 a product was an affair of one warp (`HMMA`, 16 x 8 x 16). In 2022 four warps share one. In 2024 a single thread starts it for the whole block (`UTCHMMA`), and the sums have left the registers for a memory of their own. AMD's warps have 64 threads and an instruction of 32 x 32. Each step makes the unit of work larger, since feeding it is what costs.
#
# ## Four warps, and what the assembler says
#
# **Predict:** the same tile of 128 x 256 with 4 warps instead of 8. What could go wrong? Count registers first: how many sums does each thread hold?

# %%
narrow_one = report(path, planned(128, 256, num_warps=4))
print(f"sums a thread: {128 * 256 // (4 * 32)}; registers that a thread may have: {h800.limits.registers_a_thread}")
print(f"registers {narrow_one.compiled.registers}, spilled {narrow_one.compiled.spills:,} bytes a thread")
print(f"hot loop: {len(narrow_one.code.hot_loop())} instructions instead of {len(hot)}")
for remark in narrow_one.remarks:
    print("ptxas:", remark.replace("serialized due", "serialized\n       due"))
print(f"loads and stores of spilled registers: {sum(narrow_one.code.spills.values())} instructions")

# %% [markdown]
# 256 sums do not fit into 255 registers, and addresses want some too. So the compiler puts registers away into memory and fetches them back, in the loop that should do nothing but multiply; and `ptxas` says that it had to *serialise* the products: each waits for the last. The product would be right all the same, and no test of correctness would ever show it.
#
# Is it a rule? Several tiles, 4 and 8 warps:

# %%
from course.kernels.machine import compile_all

settings = [(64, 64, 4), (64, 128, 4), (128, 128, 4), (128, 256, 4), (64, 128, 8), (128, 128, 8), (128, 256, 8)]
compiled = compile_all(path, [planned(BM, BN, num_warps=warps) for BM, BN, warps in settings])
for (BM, BN, warps), its in zip(settings, compiled, strict=True):
    print(
        f"{BM:3d} x {BN:3d}, {warps} warps: {BM * BN // (32 * warps):3d} sums, {its.registers} registers, {its.spills} spilled"
    )

# %%
figure, axis = plt.subplots(figsize=(8, 3.6))
for (BM, BN, warps), its in zip(settings, compiled, strict=True):
    sums, few = BM * BN // (32 * warps), warps == 4
    axis.plot(sums, its.registers, "s" if few else "o", color=ORANGE if its.spills else BLUE, markersize=8)
    label = f"{BM} x {BN}, {warps} warps" + (" (spills)" if its.spills else "")
    where = {
        "xytext": (-8, 2) if few and not its.spills else (8, -11),
        "ha": "right" if few and not its.spills else "left",
    }
    axis.annotate(
        label, (sums, its.registers), textcoords="offset points", fontsize=8, bbox=box | {"pad": 0.5}, **where
    )
axis.plot([0, 256], [0, 256], color="black", linewidth=1, linestyle="--", label="the sums alone")
axis.axhline(255, color="black", linewidth=1, linestyle=":", label="the most that a thread may have")
axis.set(xlabel="sums of a thread", ylabel="registers of a thread", title="Registers against sums, sm_90")
axis.set(xlim=(-60, 360), ylim=(0, 285))
axis.legend(loc="lower right", fontsize=9)
plt.show()

# %% [markdown]
# *Figure: registers a thread against sums a thread, for seven tiles. Six lie some dozens above the dashed diagonal; the one with 256 sums is pressed against the dotted ceiling of 255, and spills.*
#
# The sums, and 30 to 80 registers for everything else. That is the arithmetic behind the choice of a tile, and it can be done before anything is written.
#
# ## How many fit
#
# An SM can hold 64 warps. The share of them that a kernel really fills is its **occupancy**. By hand for your matmul: registers are given to a warp in portions of 256.

# %%
from course.hardware.occupancy import occupancy

registers, warps, shared = mine.compiled.registers, mine.compiled.warps, mine.compiled.shared_bytes
a_warp = -(-32 * registers // 256) * 256
print(f"registers: {a_warp:,} a warp, so {65_536 // a_warp} warps, so {65_536 // a_warp // warps} block of {warps}")
print(f"shared memory: {shared:,} bytes a block, 1,024 for the system: {233_472 // (shared + 1024)} block in 233,472")
its = occupancy(h800, warps, registers, shared)
print(f"course.hardware: {its.blocks} block, {its.share:.1%}, limited by {' and '.join(its.limited_by)}")

# %% [markdown]
# 12.5 %, and profilers would paint it red. **Predict:** is that a fault? Compare with what other kernels of the course get:

# %%
rows = {"my_matmul": mine}
for name in ("softmax", "rmsnorm", "swiglu", "rope"):
    one = example(name)
    rows[name] = report(one.path, one.launch, Work(one.flops, one.bytes, one.dtype))
for name, its in rows.items():
    print(
        f"{name:10s} {its.compiled.registers:3d} registers, occupancy {its.occupancy.share:6.1%}, bound by {its.bound.by}"
    )

# %%
figure, axis = plt.subplots(figsize=(9, 3.7))
for warps, colour in ((4, BLUE), (8, GREEN), (16, YELLOW)):
    span = range(16, min(255, 65_536 // (32 * warps)) + 1)
    shares = [100 * occupancy(h800, warps, count, 0).share for count in span]
    axis.step(span, shares, where="post", color=colour, label=f"{warps} warps a block, registers alone")
taken = {}
for name, its in rows.items():
    key = its.compiled.registers, 100 * its.occupancy.share
    taken.setdefault(key, []).append(name)
for (registers, share), labels in taken.items():
    axis.plot(registers, share, "o", color=ORANGE, markersize=9)
    axis.annotate(", ".join(labels), (registers, share), (7, 6), textcoords="offset points", fontsize=9)
axis.set(xlabel="registers a thread", ylabel="occupancy (%)", title="What registers leave room for, on an H800")
axis.set(ylim=(0, 115))
axis.legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# *Figure: occupancy against registers a thread, as falling stairs for blocks of 4, 8 and 16 warps: all of it up to 32 registers, half at 64, an eighth to a quarter above 128. Dots: softmax, SwiGLU and RoPE at the top left, RMSNorm below, my_matmul at the bottom right.*
#
# It is no fault. Many warps are *one* way to keep a chip busy: while one waits for memory, another computes. The small kernels live by it; they are bound by memory and want many reads on their way at once. The matmul has the other way: its copies run by themselves, two tiles ahead, its products run by themselves, and eight warps suffice to start both, as you
# counted above. It *spends* registers on sums, which is what makes its tile large and its intensity high. More occupancy would mean smaller tiles, and more bytes.
#
# A story about trusting a tool. DeepSeek published a profile of its training on H800s. Its recorder (Kineto, PyTorch's) writes an estimate of occupancy beside each kernel. We read that file, and saw this (*quoted and counted* from deepseek-ai/profile-data, `train.json`; the file is not part of the course): of 963 kernels, 228 ask for more than 49,152 bytes of shared
# memory, and all 228 are said to have an occupancy of 0 %. They ran all the same, and make up 96.5 of the 244.0 ms that the kernels' times add up to. Among them are the matrix products of the experts: 168 registers, 384 threads, 218,052 bytes of shared memory.

# %%
its = occupancy(h800, 384 // 32, 168, 218_052)
print(f"{its.blocks} block of {its.warps} warps: {its.share:.1%}, limited by {' and '.join(its.limited_by)}")
for name, count in its.limits.items():
    print(f"  {name} would allow {count}")

# %% [markdown]
# 49,152 bytes is what a block may have without asking, and 232,448 what it may have if it asks; the file itself gives both numbers. The estimate asks for the first only: Kineto calls `cudaOccMaxActiveBlocksPerMultiprocessor` without the option for the second. (299 kernels are said to have 0 % in all; the other 71 have so few blocks that their share rounds to nothing.) A 0 that means "more than I know" looks exactly like a 0 that means "nothing runs".
#
# ## What this page cannot show
#
# Everything here was counted, compiled or quoted. Some things can only be seen on the chip, and no CPU gives an idea of them:
#
# - **stalls**: how long a warp waits, and for what;
# - **L2 hits**: whether the tiles of a wave are still there when the next program wants them;
# - **bank conflicts** in shared memory;
# - **clocks**: what the chip's power lets it run at (FlashMLA's 865 comes from this);
# - and so, any *time*. Two kernels with the same bound can differ by a factor.
#
# A bound needs two counts and two roofs, and holds as long as these four do. A forecast needs a measurement.
#
# ## Turn the knobs
#
# A layer of DeepSeek-V3, on any chip of the course, in either format.


# %%
def knobs(tokens=128, dtype="bf16", gpu="h800", roof="peak"):
    """Time of the arithmetic and of the traffic, for each part of a layer."""
    chip = GPUS[gpu]
    try:
        bounds = {name: bound(work, chip, roof) for name, work in parts(tokens, dtype, writing=tokens < 4096).items()}
    except ValueError as missing:
        print(missing)
        return
    _, axis = plt.subplots(figsize=(8.5, 3.2))
    rows = torch.arange(len(bounds))
    for shift, side, colour in ((-0.2, "compute", ORANGE), (0.2, "memory", BLUE)):
        axis.barh(rows + shift, [1e6 * getattr(its, side) for its in bounds.values()], 0.38, color=colour, label=side)
    axis.set_yticks(rows, list(bounds))
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="time (us)", title=f"{chip.name}, {roof} roofs, {dtype}, {tokens:,} tokens")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()
    total = sum(its.time for its in bounds.values())
    computing = ", ".join(name for name, its in bounds.items() if its.by == "compute") or "nothing"
    print(f"a layer: at least {1e6 * total:,.0f} us; bound by compute: {computing}")


knobs()

# %% [markdown]
# *Figure: for each part of a layer two bars on a logarithmic axis, the time of its arithmetic and the time of its traffic; the longer of the two is the bound. At 128 tokens the traffic is longer everywhere.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import Dropdown, SelectionSlider, interact

controls = interact(
    knobs,
    tokens=SelectionSlider(options=[2**power for power in range(15)], value=128),
    dtype=Dropdown(options=["bf16", "fp8"]),
    gpu=Dropdown(options=list(GPUS)),
    roof=Dropdown(options=["peak", "achieved"]),
)

# %% [markdown]
# Three things to try: the number of tokens at which the routed experts turn to compute; the chip with the lowest ridge; and the step at which attention itself jumps (there the knob goes from writing to reading).
#
# ## What we measured
#
# - Writing a token for one user, an H800 waits for memory 295 times as long as it computes: the ridge (computed).
# - Our count of FLOPs and bytes equals DeepSeek's on 18 published shapes, within one percent; measured times of experts lie 1.2 to 2.4 times above our bound, and closest where memory binds and the work is long (quoted and computed).
# - An expert needs some 300 tokens, a batch of ten thousand, to be bound by compute; in FP8 just as many (computed).
# - Memory has stairs and lines: this CPU reads the same number many times slower at random than in order (measured here).
# - A sum in BF16 stops at 256 ones. Inputs may be coarse, sums may not (computed).
# - Tiles move $s\,MNK(1/B_M + 1/B_N)$ bytes, to the byte (measured here, by the log of the interpreter).
# - Ten lines of Triton are a loop of about a hundred instructions on an H800, four of which do all the work; with 4 warps the same tile spills (compiled here).
#
# **What surprised:** that FP8 does not move the turning point; that the model case of a compute-bound kernel would be memory-bound without a cache; that 12 % occupancy is right; and that a machine without a GPU can tell all this.
#
# **To read**
#
# - Williams, Waterman and Patterson 2009, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*: the model itself, and its ceilings.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, section 3.3, and *Insights into DeepSeek-V3* (arXiv 2505.09343), sections 3 and 4.
# - deepseek-ai/FlashMLA, `docs/20250422-new-kernel-deep-dive.md` and `docs/20250929-hopper-fp8-sparse-deep-dive.md`: a roofline used in anger.
# - Micikevicius et al. 2022, *FP8 Formats for Deep Learning*, section 3.
# - NVIDIA, *CUDA C++ Programming Guide*, Compute Capability 9.0; *PTX ISA*, the `wgmma` instructions.
#
# **Now the lab:** `labs/08_roofline.ipynb`. You count intensities of whole batches of experts, find least times, round to BF16 and E4M3 by bits, compute occupancy, and read tensor-core FLOPs out of SASS.
