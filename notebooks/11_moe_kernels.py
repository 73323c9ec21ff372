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
# # Lesson 11 · Kernels of a mixture of experts
#
# A layer of DeepSeek-V3 has 256 experts, and each token goes to 8 of them. Which ones the router decides, token by token, and so every expert has another number of rows, and another one in the next step. A GPU wants the opposite: one large product of a known shape. A loop over the experts launches hundreds of small products. A padded batch
# gives every expert as many rows as the busiest one has, and multiplies zeros. What does *one launch* do, and who tells a program which rows are its own?
#
# In this lesson you route real text, count what loop and padding cost, see a race put whole experts out of step, and build the product over ragged rows that every serving engine has. You find out when half-empty tiles cost nothing and when they cost half of the machine, in which order tiles should run (and where the famous order does not help), and what becomes of the last
# step, the weighted sum. At the end the routed experts of the course's model run on six kernels.
#
# About 50 minutes. Names carry their shape: **T** tokens, **K** slots (experts a token), **P** = T K pairs of a token and a slot, **E** experts, **E1** = E + 1, **D** width, **I** hidden width of an expert, **F** = 2I, **N** columns.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import os

# this lesson counts, checks and compiles; it runs no kernel on a GPU, not even where there is one
os.environ["TRITON_INTERPRET"] = "1"

import matplotlib.pyplot as plt
import numpy as np
import torch
import triton
import triton.language as tl
from course.hardware import GPUS, Work, bound

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)
h800 = GPUS["h800"]
print("course", course.__version__, "· torch", torch.__version__.split("+")[0], "· triton", triton.__version__)

# %% [markdown]
# ## A load
#
# First, tokens to route. Here are 4,096 bytes of Python, the source of `argparse` that lies on your machine. Each gets a vector: a random one for the byte, mixed with those of the three bytes before it. A router that nobody trained scores 256 experts for each, and the best 8 are taken.
#
# **Predict:** 4,096 · 8 / 256 = 128 rows an expert on average. How many has the busiest?

# %%
import argparse
import inspect

T, E, K = 4096, 256, 8
draw = torch.Generator().manual_seed(0)
text = torch.tensor(list(inspect.getsource(argparse).encode()[: T + 3]))
vectors = torch.randn(256, 64, generator=draw)
x_TD = sum(share * vectors[text[3 - back : T + 3 - back]] for back, share in enumerate((1.0, 0.8, 0.6, 0.4)))
scores_TE = (x_TD @ torch.randn(64, E, generator=draw) / 12).sigmoid()


def loads(bias_E):
    """Whom each token goes to, and the rows of each expert."""
    ids_TK = (scores_TE + bias_E).topk(K).indices
    return ids_TK, ids_TK.flatten().bincount(minlength=E)


untrained_TK, untrained_E = loads(torch.zeros(E))
bias_E = torch.zeros(E)
for step in range(200):  # lesson 05: moved by the sign of the violation, here in ever smaller steps
    load_E = loads(bias_E)[1]
    bias_E += 0.03 * 0.98**step * (load_E.double().mean() - load_E).sign()
balanced_TK, balanced_E = loads(bias_E)
for name, load_E in (("untrained", untrained_E), ("balanced", balanced_E)):
    print(f"{name:10s} busiest {load_E.max():5d}, median {load_E.median():3d}, least {load_E.min():3d} rows")

# %%
figure, axis = plt.subplots(figsize=(8.5, 3.2))
for name, load_E, colour in (("untrained", untrained_E, ORANGE), ("balanced by a bias", balanced_E, BLUE)):
    axis.plot(load_E.sort(descending=True).values, color=colour, label=name)
axis.axhline(T * K / E, color=BLACK, linestyle="--", linewidth=1, label="mean")
axis.set(xlabel="expert, the busiest first", ylabel="rows", yscale="symlog", title="4,096 tokens over 256 experts")
axis.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
axis.set_ylim(0, 2000)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: rows of each expert, the busiest first, on a logarithmic axis. The untrained router's line falls from about a thousand to nothing; the balanced one is nearly level at the mean of 128, and bends only at its ends.*
#
# Both are wanted below. The balanced load is what DeepSeek's bias is there for; the skewed one is what a kernel must survive, in the first steps of a training run and whenever a prompt is all of one kind. And neither is *equal*: numbers of rows are what they are, hardly one a multiple of anything.
#
# ## Loop, padding, and neither
#
# Three ways to run the experts. `course.model.experts` has the first two, and PyTorch lets us listen to every operation that is not a mere view. On a GPU each is a launch, or several.
#
# **Predict:** how many operations does the loop take, for 256 experts? And the padded batch?

# %%
from torch.utils._python_dispatch import TorchDispatchMode

from course.kernels.planned import launches_of
from course.kernels.routed_experts import order_by_expert, routed_experts
from course.model.experts import expert_loop, padded_experts


class Operations(TorchDispatchMode):
    """Counts what is no view."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket.__name__ not in ("_unsafe_view", "detach"):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# %%
rows_TD, weights_TK = torch.randn(T, 16, generator=draw), torch.full((T, K), 1 / K)
gate_up_EFD, down_EDI = torch.randn(E, 16, 16, generator=draw), torch.randn(E, 16, 8, generator=draw)
counted = {}
for name, run in (("loop", expert_loop), ("padding", padded_experts)):
    with Operations() as operations, torch.no_grad():
        run(rows_TD, untrained_TK, weights_TK, gate_up_EFD, down_EDI)
    counted[name] = len(operations.names)
print(f"loop: {counted['loop']:,} operations; padding: {counted['padding']}")
sizes = ((T, 16), (T, K), (T, K), (E, 16, 16), (E, 16, 8))
x, ids, *weights = (torch.empty(size, device="meta") for size in sizes)
plan = launches_of(lambda: routed_experts(x, ids.long(), *weights))
names = [launch.kernel.removesuffix("_kernel") for launch in plan]
print(f"ragged: {len(plan)} kernels and a division\n  {', '.join(names)}")

# %% [markdown]
# A launch costs some microseconds of the host's time, whatever it does. (Unit 15 reads the gaps between kernels in a real trace.) With thousands of launches a layer, Python and the driver set the pace of the loop. There is worse: `torch.where` in the loop asks the device how many rows there are, and so the host **waits**, once an expert.
#
# Padding has few launches. What does it multiply?
#
# **Predict:** for each row that somebody sent, how many rows does the padded batch compute, under the untrained load? Under the balanced one? And what if each expert is only padded to the next multiple of a tile of 128 rows?


# %%
def computed(load_E, way, block=128):
    """Rows that go through a product."""
    if way == "padding":
        return E * int(load_E.max())
    return int(((load_E + block - 1) // block * block).sum())


real = T * K
for name, load_E in (("untrained", untrained_E), ("balanced", balanced_E)):
    batch, tiles = computed(load_E, "padding"), computed(load_E, "tiles")
    print(f"{name:10s} padded batch {batch / real:5.2f} rows for one, tiles of 128 {tiles / real:.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3), sharey=True)
for axis, (name, load_E) in zip(axes, (("untrained", untrained_E), ("balanced", balanced_E)), strict=True):
    order_E = load_E.sort(descending=True).values.numpy()
    axis.fill_between(np.arange(E), order_E.max(), color=ORANGE, alpha=0.5, step="mid", label="padded batch")
    axis.fill_between(np.arange(E), -(-order_E // 128) * 128, color=YELLOW, step="mid", label="tiles of 128")
    axis.fill_between(np.arange(E), order_E, color=BLUE, step="mid", label="rows that were sent")
    axis.set(xlabel="expert, the busiest first", title=f"{name} load")
axes[0].set_ylabel("rows")
axes[1].legend(loc="upper right")
plt.show()

# %% [markdown]
# *Figure: two panels of nested areas over the experts: rows that were sent in blue, what tiles of 128 add in yellow, what a padded batch adds in orange. Under the untrained load the orange area fills nearly the whole panel; under the balanced load it is about as large as the blue one.*
#
# A padded batch is as bad as the *worst* expert, tiles are as bad as one tile an expert. And the third way moves no padding: in a ragged product the yellow rows are lanes that are masked off. They take up tensor cores, but neither read nor write memory. When that matters is a question for later; first, who is where?
#
# ## Counting, and a race that shifts everybody
#
# To line the pairs up by expert one counts them, adds the counts up to offsets, and gives each pair its place: a counting sort (lesson 04). Programs have spans of pairs and add to common counts. You know what happens if they do it by load, add, store (lesson 09). Here is what it does to a mixture of experts. 64 of our tokens, so 512 pairs, 16 programs.


# %%
from course.kernels.checked import KernelFault, checked


@triton.jit
def count_carelessly(ids, counts, first, SPAN: tl.constexpr):
    begin = (first + tl.program_id(0)) * SPAN
    for pair in range(begin, begin + SPAN):
        at = counts + tl.load(ids + pair)
        tl.store(at, tl.load(at) + 1)


ids_P = untrained_TK[:64].flatten().contiguous()
right_E, counts_E = ids_P.bincount(minlength=E), torch.zeros(E, dtype=torch.int64)
count_carelessly[(16,)](ids_P, counts_E, 0, SPAN=32)
print("in the plain interpreter, right:", torch.equal(counts_E, right_E))
try:
    with checked():
        count_carelessly[(16,)](ids_P, torch.zeros(E, dtype=torch.int64), 0, SPAN=32)
except KernelFault as fault:
    print(fault)

# %% [markdown]
# The plain interpreter runs one program after the other, and in that order all is well. The checked one looks at who touched what, and needs no unlucky order. So that we see one: run each program alone, take its loads and stores from the log, and replay all of them in step.
#
# **Predict:** if one count is too small by one, how many experts get a wrong row?

# %%
scripts = []
for program in range(16):
    with checked() as log:
        count_carelessly[(1,)](ids_P, torch.zeros(E, dtype=torch.int64), program, SPAN=32)
    scripts.append([(a.kind, int(a.elements[0])) for a in log.launches[0].accesses if a.argument == "counts"])
kept_E, register = torch.zeros(E, dtype=torch.int64), [0] * 16
for step in range(64):  # all programs make their next step together
    for program, script in enumerate(scripts):
        kind, expert = script[step]
        if kind == "load":
            register[program] = int(kept_E[expert])
        else:
            kept_E[expert] = register[program] + 1
ends_E, right_ends_E = kept_E.cumsum(0), right_E.cumsum(0)
row_P = torch.arange(512)
whose_P, right_P = (torch.searchsorted(ends, row_P, right=True) for ends in (ends_E, right_ends_E))
print(f"counted {kept_E.sum()} of 512 pairs: {1 - kept_E.sum() / 512:.0%} lost")
wrong = (whose_P != right_P).float().mean()
print(f"rows that would be multiplied with another expert's weight, or none: {wrong:.0%}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.3))
axis.step(range(E), right_ends_E, where="post", color=BLUE, label="right")
axis.step(range(E), ends_E, where="post", color=ORANGE, label="counted in step")
axis.set(xlabel="expert", ylabel="row where it ends", title="Offsets of 512 pairs, from counts that race")
axis.legend()
plt.show()

# %% [markdown]
# *Figure: two rising staircases, the row at which each expert ends. The one from racing counts falls behind from the first experts on, and never comes back: every lost count shifts all experts after it.*
#
# Some pairs are lost, and nearly all rows go to the wrong expert. One lost count moves the border of *every* later expert by a row: an offset is a sum over all counts before it. Such a model still runs, and gives numbers.
#
# Atomics repair the counts. They do not repair the places: a pair that takes its place from an atomic counter gets it in the order of arrival, so rows come in another order each time. That is legal, and a debugger's nightmare. The course's `expert_offsets` uses no atomics. Each program has a span, and a row of a **table** for itself:

# %%
from course.kernels.expert_offsets import expert_offsets

SPAN = 32
met_SPE = ids_P.view(16, SPAN, 1) == torch.arange(E)
table_SE = met_SPE.sum(1)
before_SE = table_SE.cumsum(0) - table_SE  # pairs of the same expert in spans before
offsets_E1 = torch.cat([torch.zeros(1, dtype=torch.int64), table_SE.sum(0).cumsum(0)])
rank_SPE = met_SPE.long().cumsum(1) - 1  # and in the same span
place_SPE = offsets_E1[:-1] + before_SE[:, None] + rank_SPE
places_P = place_SPE[met_SPE]  # of each pair there is one
with checked() as log:
    got = expert_offsets(ids_P.view(64, 8), E)
assert torch.equal(got.places_TK.flatten(), places_P)
assert torch.equal(got.offsets_E1, offsets_E1)
print("places and offsets equal course.kernels.expert_offsets, which launches:")
for each in log.launches:
    print(f"    {each.kernel:24s} grid {list(each.grid)}")

# %% [markdown]
# Three numbers make a place: rows of lower experts, pairs of the same expert in earlier spans, pairs of the same expert earlier in this span. The first two come from the table, the third a program finds out by itself. Count, add up, place: three launches, stable, and the same every time.
#
# ## Which tile is mine?
#
# Now the rows lie sorted, and a program should compute a tile of up to 16 rows of *one* expert. The host does not know how many tiles that makes, as the counts are on the device, and it should not wait. It knows P and E.
#
# The trick of the course's kernel: expert e's tiles begin at number ⌊offsets[e] / 16⌋ + e. That leaves room enough for each, wherever the expert begins, and a program finds its expert by counting how many begin at or before its own number.


# %%
def tile_numbers(counts_E, block):
    """Of each tile that is launched: its expert, first row, and how many rows; none of them if it is surplus."""
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    e = torch.arange(len(counts_E))
    begins_E = offsets_E1[:-1] // block + e
    tile_B = torch.arange(int(counts_E.sum()) // block + len(counts_E))  # P and E suffice
    expert_B = (begins_E <= tile_B[:, None]).sum(1) - 1
    first_B = offsets_E1[expert_B] + (tile_B - begins_E[expert_B]) * block
    height_B = (offsets_E1[expert_B + 1] - first_B).clamp(0, block)
    return expert_B, first_B, height_B


small_E = torch.tensor([20, 0, 35, 7, 16, 3])
for number, (expert, first, height) in enumerate(zip(*tile_numbers(small_E, 16), strict=True)):
    what = f"expert {expert}, rows {first} to {first + height - 1}" if height else "nothing to do"
    print(f"tile {number:2d}: {what}")

# %% [markdown]
# Is it true that every row is in just one tile? A claim about all loads is best tried on many:

# %%
surplus = []
for _ in range(300):
    counts_E = torch.randint(0, 60, (12,), generator=draw) * torch.randint(0, 2, (12,), generator=draw)
    expert_B, first_B, height_B = tile_numbers(counts_E, 16)
    found = [
        (int(e), first + row)
        for e, first, h in zip(expert_B, first_B.tolist(), height_B, strict=True)
        for row in range(h)
    ]
    wanted = [(e, row) for row, e in enumerate(torch.repeat_interleave(torch.arange(12), counts_E).tolist())]
    assert sorted(found) == sorted(wanted)
    surplus.append(int((height_B == 0).sum()))
print(f"300 loads, each row in one tile of its expert; {np.mean(surplus):.1f} surplus tiles on average")

# %% [markdown]
# A surplus program loads a few offsets, finds nothing, and ends. That is the price of not asking.
#
# ## The product over ragged rows
#
# The kernel is the tiled product of lesson 09 with two changes. It begins by asking which expert and which rows; and the mask of its rows ends where the expert ends.


# %%
@triton.jit
def my_tile(offsets, tile, E, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    e = tl.arange(0, EXPERTS)
    begins = tl.load(offsets + e, mask=e < E, other=0) // BLOCK_M + e
    expert = tl.sum(((begins <= tile) & (e < E)).to(tl.int32)) - 1
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    first = start + (tile - (start // BLOCK_M + expert)) * BLOCK_M
    return expert.to(tl.int64), first, tl.minimum(end - first, BLOCK_M)


@triton.jit
def ragged(x, w, offsets, out, E, N, D, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXPERTS: tl.constexpr):
    expert, first, height = my_tile(offsets, tl.program_id(0), E, BLOCK_M, EXPERTS)
    if height > 0:
        m, n = tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside, total = (m < height)[:, None], tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, D, 32):
            d = begin + tl.arange(0, 32)
            left = tl.load(x + (first + m)[:, None] * D + d, mask=inside & (d < D), other=0.0)
            right = tl.load(w + (expert * N + n) * D + d[:, None], mask=(n < N) & (d < D)[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        tl.store(out + (first + m)[:, None] * N + n, total.to(out.dtype.element_ty), mask=inside & (n < N))


# %%
from course.kernels.grouped_gemm import grouped_gemm
from course.model.experts import grouped_product

P, N, D = int(small_E.sum()), 64, 96
sorted_PD, w_END = torch.randn(P, D, generator=draw), torch.randn(6, N, D, generator=draw)
offsets_E1 = torch.cat([small_E.new_zeros(1), small_E.cumsum(0)])
out_PN = torch.empty(P, N)
with checked() as log:
    grid = P // 16 + 6, triton.cdiv(N, 32)
    ragged[grid](sorted_PD, w_END, offsets_E1, out_PN, 6, N, D, BLOCK_M=16, BLOCK_N=32, EXPERTS=8)
    theirs_PN = grouped_gemm(sorted_PD, w_END, None, offsets_E1)
torch.testing.assert_close(out_PN, grouped_product(sorted_PD, w_END, offsets_E1))
torch.testing.assert_close(out_PN, theirs_PN)
launch = log.launches[0]
busy = len({a.program for a in launch.accesses if a.kind == "store"})
print(f"equal to the model's product and the course's kernel; {busy} of {np.prod(grid)} programs had rows")

# %% [markdown]
# No claim about tiles is as good as a look at them. From the log: which program wrote which element, and whose weight it had read for that.
#
# **Predict:** expert 2 has 35 rows. How many programs share in them, and how many rows has the last?

# %%
written_PN, weight_of = np.full(P * N, np.nan), np.full(P * N, np.nan)
for number, program in enumerate(dict.fromkeys(a.program for a in launch.accesses)):
    its = [a for a in launch.accesses if a.program == program]
    wrote = [a.elements for a in its if a.kind == "store"]
    if wrote:
        written_PN[np.concatenate(wrote)] = number % 20
        weight_of[np.concatenate(wrote)] = max(a.elements.max() for a in its if a.argument == "w") // (N * D)
pictures = {"program that wrote it": (written_PN, "tab20"), "expert whose weight it read": (weight_of, "Set2")}
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True)
for axis, (title, (its, colours)) in zip(axes, pictures.items(), strict=True):
    axis.imshow(its.reshape(P, N), cmap=colours, aspect="auto", interpolation="nearest")
    for border in offsets_E1[1:-1]:
        axis.axhline(border - 0.5, color=BLACK, linewidth=1)
    axis.set(xlabel="column", title=title)
    axis.grid(visible=False)
axes[0].set_ylabel("row, sorted by expert")
middles_E = offsets_E1[:-1] + small_E / 2 - 0.5
axes[1].set_yticks(middles_E[small_E > 0], [f"expert {e}" for e in range(6) if small_E[e]])
plt.show()

# %% [markdown]
# *Figure: the result of 81 rows by 64 columns, twice, with black lines where an expert ends. Left, the tiles of the programs: two columns of blocks, 16 rows high at most, and none across a line. Right, the expert whose weight was read: one colour between two lines, in the order 0, 2, 3, 4, 5.*
#
# Expert 2 takes three tiles, the third with three rows. Tiles begin where experts begin, at no multiple of anything. And expert 1, with no rows, is not in the picture: its weight was not even read. For a loop over padded rows one has to make sure of that; here it follows.
#
# ## Half-empty tiles
#
# A tensor core multiplies tiles of a fixed height: on this chip 64 rows for the largest instruction, 16 for the small one. An expert with three rows fills a tile of 128 to two percent. So how full are tiles, for a number of tokens?
#
# **Predict:** 128 rows an expert on average, tiles of 128: how full, if the rows are shared out at random? (Not 100 %.)


# %%
def fill(per_expert, block, share_E, draws=20):
    """Rows that were sent, over rows of the tiles they take."""
    rows = max(int(per_expert * E), 1)
    counts = torch.stack(
        [torch.multinomial(share_E, rows, True, generator=draw).bincount(minlength=E) for _ in range(draws)]
    )
    return rows * draws / int(((counts + block - 1) // block * block).sum())


# %%
even_E, skewed_E = torch.full((E,), 1 / E), untrained_E / untrained_E.sum()
sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
figure, axis = plt.subplots(figsize=(8.5, 3.5))
for block, colour in ((16, GREEN), (64, SKY), (128, BLUE)):
    even, skewed = ([100 * fill(size, block, share_E, 4) for size in sizes] for share_E in (even_E, skewed_E))
    axis.plot(sizes, even, "o-", color=colour, label=f"tiles of {block}")
    axis.plot(sizes, skewed, "--", color=colour, linewidth=1)
axis.plot([], [], "--", color=BLACK, linewidth=1, label="the same, untrained load")
axis.set(
    xlabel="rows an expert, on average",
    ylabel="rows of tiles that are real (%)",
    title="How full tiles are, 256 experts",
)
axis.set_xscale("log", base=2)
axis.set_xticks(sizes, sizes)
axis.legend(fontsize=9)
plt.show()
ours = T * K / computed(balanced_E, "tiles")
print(
    f"128 rows an expert, tiles of 128: {fill(128, 128, even_E):.0%} full at random, {ours:.0%} for our balanced load"
)

# %% [markdown]
# *Figure: share of tile rows that are real against rows an expert, for tiles of 16, 64 and 128, solid for an even load and dashed for the untrained one. All rise from a few percent to above 80; taller tiles are emptier. Tiles of 128 are about two thirds full at 128 rows an expert. A skewed load fills tiles a little better where rows are few, since fewer experts share them, and a little worse where they are many.*
#
# Just at the mean, half of the experts have a few rows more than 128, and need a second tile for them. An even load is no protection.
#
# So decoding, with two tokens an expert, wastes 98 % of the tensor cores? Here are times that Alibaba measured on an H800 with all 256 experts on one GPU, the first product, in FP8 with DeepGEMM (*quoted*: alibaba/InferSim, `bench_data`, Apache-2.0; the first five rows from its decoding table, the others from prefill).
#
# **Predict:** from 2 to 16 tokens an expert there is eight times the work. How much longer does it take?

# %%
ALONE, MEASURED = {1: 1297}, {2: 2667, 4: 2672, 8: 2673, 16: 2671, 32: 3249, 128: 3533, 256: 4531, 512: 7486}
# rows an expert: microseconds
D, F = 7168, 4096
for rows, time in {**ALONE, **MEASURED}.items():
    if rows <= 16:
        print(f"{rows:2d} rows an expert: {time:,} us, {2 * E * rows * D * F / time / 1e6:5.0f} TFLOP/s")
weights = E * F * D
least = 1e6 * weights / h800.memory_roof().value
print(f"weights of 256 experts in FP8: {weights / 1e9:.2f} GB, at least {least:,.0f} us to read")

# %% [markdown]
# No longer at all. The same 2.67 ms, to a quarter of a percent. Whoever reads 7.5 GB of weights needs 2.24 ms even at the memory's data-sheet speed, and in that time the tensor cores may multiply what they like: empty lanes are free while the weights are on their way. (With one token an expert it takes half as long. The table does not say why; perhaps its 32 tokens left about half of the
# experts without rows, and so without weights to read. We leave that point out.)
#
# When does it cease to be free? A roofline in tokens: bytes of weights, rows and results against FLOPs; and the FLOPs once more with tiles of 128 that are not full.


# %%
def product(rows, padded):
    """The first product of all experts in FP8, results in BF16: its bound by bytes and by FLOPs, in us."""
    its = bound(Work(2 * E * padded * D * F, weights + E * rows * (D + 2 * F), "fp8"), h800)
    return 1e6 * its.memory, 1e6 * its.compute


span = np.unique(np.logspace(0, 10, 120, base=2).round().astype(int))
padded = [rows / fill(rows, 128, even_E, 1) for rows in span.tolist()]
lines = {rows: (*product(rows, rows), product(rows, its)[1]) for rows, its in zip(span.tolist(), padded, strict=True)}
memory, exact, tiled = map(np.array, zip(*lines.values(), strict=True))
for label, line in (("FLOPs as sent", exact), ("tiles of 128", tiled)):
    turn = span[np.argmax(line > memory)]
    print(f"{label:14s} overtake the bytes at {turn} rows an expert, a batch of {turn * E // K:,} tokens")
print(f"2 rows an expert: bytes {memory[span == 2][0]:,.0f} us, FLOPs of tiles of 128 {tiled[span == 2][0]:,.0f} us")

# %%
figure, axis = plt.subplots(figsize=(8.5, 4))
axis.loglog(span, memory, color=SKY, label="bytes of weights, rows and results")
axis.loglog(span, exact, color=GREEN, label="FLOPs of the rows that were sent")
axis.loglog(span, tiled, "--", color=GREEN, label="FLOPs of tiles of 128, shared out at random")
axis.plot(*zip(*MEASURED.items(), strict=True), "o", color=ORANGE, label="measured on an H800 (quoted)")
axis.set(
    xlabel="rows an expert",
    ylabel="time (us)",
    title="First product of 256 experts: bounds and measurements",
    ylim=(20, 20_000),
)
axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
axis.legend(fontsize=9, loc="lower right")
plt.show()

# %% [markdown]
# *Figure: time against rows an expert, both logarithmic. The bound by bytes is level at 2.2 ms and rises slowly at the right; the FLOPs of what was sent are a straight line that crosses it between 300 and 400 rows; the FLOPs of whole tiles are level at first, at less than half of the bytes' bound, go up in steps, and join that line at the right. Measurements lie above all of them, level to 16 rows and then rising.*
#
# Tiles of 128 that hold two rows keep the tensor cores busy for less than a millisecond, and they have 2.2, while memory is read. So even the tallest tile is free where rows are few. Near the crossing it is not: there the padding of the tiles comes on top of a machine that has no more to give, and a shorter tile pays. The measured times leave the bound by bytes before any line of FLOPs reaches it. Why, they do not
# say: where both roofs are near, a kernel overlaps reading and computing only in part (lesson 08 saw the same with 16 experts); and between 16 and 32 rows the source changes from its decoding table to its prefill table, which may be another kernel, so do not read that step as a jump.
#
# And a batch of more than ten thousand tokens at once, for all experts on one GPU to be busy: that is why DeepSeek shares out the experts (unit 16).
#
# ## The order of tiles
#
# Programs start in the order of their numbers, 132 at a time if each SM takes one. Programs that run together and want the same block find it in the L2 cache, as the first one brought it there. So what does a *wave* of 132 want altogether? For one large product the answer is well known (Triton's tutorial on matrix multiplication): not row after row of tiles, but in groups, a few rows of tiles at a time and down
# their columns.


# %%
def order(rows, columns, group):
    """Places of the tiles in the order of the programs' numbers."""
    for first in range(0, rows, group):
        height = min(group, rows - first)
        for inside in range(height * columns):
            yield first + inside % height, inside // height


def wave_bytes(experts_B, columns, group, wave=132, block=(128, 256), depth=7168, width=2):
    """Bytes of different blocks that a wave wants, on average: blocks of rows, and of each expert's weight."""
    places = list(order(len(experts_B), columns, group))
    found = []
    for begin in range(0, len(places) - wave + 1, wave):
        some = places[begin : begin + wave]
        left, right = {row for row, _ in some}, {(int(experts_B[row]), column) for row, column in some}
        found.append(width * depth * (len(left) * block[0] + len(right) * block[1]))
    return sum(found) / len(found)


dense = [0] * 64  # 8,192 rows, one weight; 64 columns of tiles are N = 16,384, 16 are 4,096
for group in (1, 2, 4, 8, 16, 64):
    wide, narrow = (wave_bytes(dense, columns, group) / 1e6 for columns in (64, 16))
    print(f"groups of {group:2d}: a wave reads {wide:4.0f} MB, and {narrow:4.0f} MB where N is 4,096")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.5, 4), sharey=True)
for axis, group in zip(axes, (1, 8), strict=True):
    picture = np.full((64, 64), np.nan)
    for number, place in enumerate(order(64, 64, group)):
        picture[place] = number // 132
    shown = np.where(picture < 4, picture, np.nan)
    axis.imshow(shown, cmap="Set2", aspect="auto", interpolation="nearest", vmax=7)
    axis.set(xlabel="column of tiles", title=f"groups of {group}", ylim=(16.5, -0.5))
    axis.grid(visible=False)
axes[0].set_ylabel("row of tiles")
figure.suptitle("The first four waves of 132 programs")
plt.show()

# %% [markdown]
# *Figure: two maps of tiles, 64 columns wide, the first four waves each in a colour. Row after row a wave is a band two rows high that runs through all columns. In groups of eight it is a patch of eight rows and some sixteen columns.*
#
# A long band wants few blocks of rows and every block of columns; a patch wants few of both, and so a third of the bytes. But look at the second number of each line. With N = 4,096, the width of V3's first product, a row is only 16 tiles long, a wave is about eight rows high in *any* order, and groups of eight even want a little more. The famous order is for wide results.
#
# And with experts? A block of weight serves the tiles of *one* expert, and no other.
#
# **Predict:** 8 experts with 1,024 rows each; 256 experts with one tile each. What does grouping save?

# %%
expert_B, _, height_B = tile_numbers(balanced_E, 128)
LOADS = {
    "one weight, N 16,384": ([0] * 64, 64),
    "one weight": ([0] * 64, 16),
    "8 experts, 8 tiles each": ([e for e in range(8) for _ in range(8)], 16),
    "balanced, 256 experts": (expert_B[height_B > 0].tolist(), 16),
    "256 experts, a tile each": (list(range(256)), 16),
}
ORDERS = {"row after row": 1, "groups of 8": 8, "column after column": 10_000}
read = {name: {its: wave_bytes(*load, group) / 1e6 for its, group in ORDERS.items()} for name, load in LOADS.items()}
for name, its in read.items():
    print(f"{name:25s}" + "   ".join(f"{order_name} {size:3.0f} MB" for order_name, size in its.items()))

# %%
figure, axis = plt.subplots(figsize=(9, 3.6))
for shift, (order_name, colour) in enumerate(zip(ORDERS, (ORANGE, BLUE, SKY), strict=True)):
    places = np.arange(len(LOADS)) + 0.27 * (shift - 1)
    axis.bar(places, [its[order_name] for its in read.values()], 0.25, color=colour, label=order_name)
axis.axhline(h800.cache.value / 1e6, color=BLACK, linestyle=":", linewidth=1, label="L2 of an H800")
axis.set_xticks(range(len(LOADS)), [name.replace(", ", ",\n") for name in LOADS], fontsize=9)
axis.set(ylabel="read by a wave (MB)", title="Different blocks that 132 programs want, BF16")
axis.grid(axis="x", visible=False)
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# *Figure: for five loads three bars, the megabytes that a wave wants row after row, in groups of eight, and column after column, and a dotted line at the size of the L2, below all of them. For one wide weight groups save two thirds; with 8 tiles an expert a quarter; with one weight of 16 columns, and with 256 experts, row after row wants least. With a tile an expert each order wants 500 megabytes and more.*
#
# With one tile an expert no two programs share a block of weight, in any order. A wave reads a different block for each program, and all that an order can do is share the *rows*, which is little beside the weights; row after row does that best. So grouping is for experts with many tiles: large batches, or few experts on a GPU. (A wave's blocks pass through the L2 piece by piece, all programs being at about the same depth, so they need not
# fit into it as a whole. Whether they keep step a CPU cannot show.)
#
# ## The gather inside
#
# A token goes to eight experts. A sorted copy for the product is eight rows written and eight read, for each token. The kernel can do without: it loads the *numbers* of its tile's tokens, and then the rows where they lie. In `ragged` one line changes: `first + m` becomes a load.

# %%
tokens_TD, ids_TK = torch.randn(24, 96, generator=draw), torch.randint(0, 6, (24, 4), generator=draw)
order_of = order_by_expert(ids_TK, 6)
with checked() as log:
    gathered = grouped_gemm(tokens_TD, w_END, order_of.rows_P, order_of.offsets_E1)
    copied = grouped_gemm(tokens_TD[order_of.rows_P], w_END, None, order_of.offsets_E1)
assert torch.equal(gathered, copied)
for name, launch in zip(("gathered in the loads", "from a sorted copy"), log.launches, strict=True):
    of_x = sum(4 * a.elements.size for a in launch.accesses if a.argument == "x")
    print(f"{name:22s} asks for {of_x:,} bytes of rows", end="")
    print("" if launch is log.launches[0] else f", after {2 * 4 * 96 * 96:,} for the copy")
copy, at_least = 2 * 2 * 32_768 * 7168, 2 * (E * F * D + 32_768 * (D + F))
print(f"V3, 4,096 tokens, BF16: the copy moves {copy / 1e9:.2f} GB, the product at least {at_least / 1e9:.1f} GB")

# %% [markdown]
# The same bits, without the copy. What it is worth depends on what else moves: with 4,096 tokens over all 256 experts the weights outweigh the copy by far, and the gain is a few percent. With the experts shared out over many GPUs each has few weights and many rows, and the copy weighs more.
#
# ## Home again
#
# Each token has eight rows to add up, with weights. Let each *row* add itself to its token, by atomics, and the sum's last digits depend on the order of arrival. Eight terms have 40,320 orders.
#
# **Predict:** for one element of a token, how many different sums in float32? And in which share of a thousand elements do two random orders differ?

# %%
from itertools import permutations

terms_8 = (torch.rand(8, generator=draw) / 4 * torch.randn(8, generator=draw)).numpy().astype(np.float32)
orders = terms_8[np.array(list(permutations(range(8))))]
total = np.zeros(len(orders), np.float32)
for arriving in orders.T:
    total += arriving
many = torch.randn(1000, 8, generator=draw).numpy().astype(np.float32)
one, other = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
for place in range(8):
    one += many[:, place]
    other += many[:, [3, 6, 1, 7, 0, 2, 5, 4][place]]
print(f"{len(np.unique(total))} different sums of 40,320 orders")
print(f"of 1,000 elements two orders differ in {np.mean(one != other):.0%}")

# %% [markdown]
# So turn it round: each *token* gathers its rows, and adds them in the order of its slots. Nobody else writes there, no atomics, the same bits every time; and no tensor of zeros to begin with. A place of -1 is a dropped pair: its row is not read, nor its weight.

# %%
from course.kernels.combine import combine, combine_torch


class Bytes(Operations):
    """Bytes that operations read and write; picking moves what it picks, twice."""

    moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        picks = func.overloadpacket.__name__ == "index_select"
        self.moved += 0 if func.is_view else 2 * result.nbytes if picks else sum(t.nbytes for t in tensors)
        return result


# %%
y_PD = torch.randn(64, 1024, generator=draw).bfloat16()
places_TK = torch.randperm(64, generator=draw).view(8, 8)
weights_TK = torch.rand(8, 8, generator=draw)
places_TK[2, 3] = -1
with checked() as log:
    out_TD = combine(y_PD, places_TK, weights_TK)
with Bytes() as traffic:
    eager_TD = combine_torch(y_PD, places_TK, weights_TK)
torch.testing.assert_close(eager_TD, out_TD)
asked = log.launches[0].load_bytes + log.launches[0].store_bytes
eager, fused = traffic.moved / out_TD.numel(), asked / out_TD.numel()
print(f"eager {eager:.0f} bytes an element of the result, one kernel {fused:.1f}")

# %% [markdown]
# 2 K for the rows, 2 for the result, and little besides (BF16, K = 8). It is bound by memory, so in bytes a factor of ten is the most there is to gain.
#
# ## The whole way
#
# Order, gate and up with SwiGLU, down, weighted sum: `routed_experts` puts it together. Against a layer of `course.model` with the same weights:

# %%
from dataclasses import replace

from course.model import ModelConfig
from course.model.moe import MoE

launched = {}
for experts in (8, 32):
    sizes = dict(width=64, expert_width=32, experts=experts, top_k=4, groups=1, top_groups=1, shared_experts=0)
    layer = MoE(replace(ModelConfig.preset("tiny-deepseek-v3"), **sizes)).requires_grad_(False)
    x_TD = torch.randn(20, 64, generator=draw)
    y_TD, routing = layer(x_TD)
    with checked() as log:
        ours_TD = routed_experts(x_TD, routing.indices_TK, routing.weights_TK, layer.gate_up_EFD, layer.down_EDI)
    torch.testing.assert_close(ours_TD, y_TD)
    launched[experts] = [each.kernel for each in log.launches]
    print(f"{experts:2d} experts: {(ours_TD - y_TD).norm() / y_TD.norm():.0e} off, {len(launched[experts])} launches")
assert launched[8] == launched[32]

# %% [markdown]
# Equal to the last digits, in six launches, whatever the number of experts.
#
# ## The machine code
#
# The grouped product, compiled for the H800 on this machine: 8 experts, 1,024 rows each, D 7,168, F 4,096, BF16. `HGMMA` is the product of four warps at once, at least 64 rows high; `HMMA` the small one of a single warp.
#
# **Predict:** tiles of 16, 32, 64 and 128 rows. Which of them get `HGMMA`? Which needs most registers?

# %%
from collections import Counter

from course.hardware.report import report
from course.kernels.catalogue import example

reports = {}
for height in (16, 32, 64, 128):
    it = example("grouped_gemm", block=(height, 256, 64))
    reports[f"{height} rows"] = report(it.path, it.launch, Work(it.flops, it.bytes))
it = example("grouped_gate_up")
reports["gate and up"] = report(it.path, it.launch, Work(it.flops, it.bytes))
print(f"{'':12s}registers  spilled   shared  warps an SM  tensor cores")
for name, its in reports.items():
    one = its.compiled
    kinds = Counter()
    for instruction, count in its.code.tensor_core.items():
        kinds[instruction.split(".")[0]] += count
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{name:12s}{one.registers:9d}{one.spills:9d}{one.shared_bytes:9,}{its.occupancy.warps:13d}  {shown}")

# %%
loop = reports["128 rows"].code.hot_loop()
kinds = Counter(each.name.split(".")[0] for each in loop)
print(f"hot loop of the tile of 128 rows: {len(loop)} instructions")
for kind, count in [*kinds.most_common(7), ("HGMMA", kinds["HGMMA"])]:
    means = next(each.means for each in loop if each.name.startswith(kind))
    print(f"{count:4d} {kind:10s} {means}")

# %% [markdown]
# Below 64 rows there is no `HGMMA`: the compiler falls back to many small products that each warp loads for itself. So short tiles, which waste the fewest rows, pay with slower instructions; where the weights' bytes set the pace that may not matter, and who wins a GPU has to say. One can also turn the product round, weight times rows, so that the 64 of `HGMMA` lies along the weight, and the rows of
# tokens along its other, finer side.
#
# The tile of gate and up holds two sums in registers, 128 x 128 each, and needs 255 registers a thread, the most there are; nothing is spilled, by a hair. And in the hot loop whole numbers, for masks and addresses, outnumber four `HGMMA` by far. That looks worse than it is, since one `HGMMA` multiplies a whole slice of the tile; but masks that a full tile does not need are the first thing to take out of such a loop.
#
# ## What this page cannot show
#
# No kernel here ran on a GPU, and nothing on this page was timed on one by us. Loads, launches, bytes, tiles, orders and registers were counted or computed; the times of the grouped product are quoted. What that leaves open:
#
# - whether blocks that a wave shares are *found* in the L2. We counted what is wanted, not what hits.
# - the tail: with 256 experts of unequal size the last wave may be a single tall expert's.
# - the cost of a surplus program and of a launch: microseconds here and there, which decide for small batches.
# - how near these kernels come to DeepGEMM's. `benchmarks/kernels.py` is the harness; its rows for grouped products are empty without a GPU.
#
# ## Turn the knobs
#
# Tokens, experts on the GPU, height of a tile, and how uneven the load is.


# %%
def knobs(tokens=4096, experts=256, height=128, uneven=0.0):
    share_E = torch.exp(uneven * torch.linspace(1, -1, experts)) / experts
    same = torch.Generator().manual_seed(1)
    counts_E = torch.multinomial(share_E, tokens * K * experts // E, True, generator=same).bincount(minlength=experts)
    rows, longest = int(counts_E.sum()), int(counts_E.max())
    tiles = int(((counts_E + height - 1) // height).sum())
    moved = int((counts_E > 0).sum()) * F * D + rows * (D + 2 * F)
    times = {
        "bytes": moved / h800.memory_roof().value,
        "FLOPs, tiles": 2 * tiles * height * D * F / h800.roof("fp8").value,
        "FLOPs, padded batch": 2 * experts * -(-longest // height) * height * D * F / h800.roof("fp8").value,
    }
    _, axis = plt.subplots(figsize=(8, 2.2))
    bars = axis.barh(list(times), [1e3 * time for time in times.values()], color=[SKY, GREEN, ORANGE])
    axis.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axis.set(xlabel="least time (ms)", xlim=(0, 1.15e3 * max(times.values())))
    axis.set_title(f"{rows:,} rows, {tiles:,} tiles of {height}, {rows / tiles / height:.0%} full")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    plt.show()


knobs()

# %% [markdown]
# *Figure: three bars, the least time of the first product in FP8 on an H800 by its bytes, by the FLOPs of its tiles, and by those of a padded batch, whose tiles are as high.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import FloatSlider, IntSlider, SelectionSlider, interact

controls = interact(
    knobs,
    tokens=IntSlider(4096, min=64, max=32_768, step=64),
    experts=SelectionSlider(options=[4, 8, 16, 32, 64, 128, 256], value=256),
    height=SelectionSlider(options=[16, 32, 64, 128], value=128),
    uneven=FloatSlider(0.0, min=0.0, max=4.0, step=0.5),
)

# %% [markdown]
# (Tokens are those of 256 experts' worth: with fewer experts on the GPU it gets their share of the rows.) Three things to try: the number of tokens at which tiles of 128 overtake the bytes, and what tiles of 64 make of it; an uneven load, which hurts the padded batch and hardly the tiles; and 8 experts instead of 256.
#
# ## What we measured
#
# - One layer of 256 experts: some thousand operations by a loop, a few dozen by padding, and six kernels by ragged tiles (counted here).
# - A padded batch computes as many rows as the busiest expert asks for, several times too many under an untrained router; tiles of 128 about one and a half times, under either load (counted on real text, untrained router).
# - In step, a careless histogram loses part of its counts and sends nearly all rows to a wrong expert, though it passes in the interpreter (computed by replaying the log).
# - From 2 to 16 tokens an expert a grouped product takes the same 2.67 ms (quoted), which is 1.2 times the bytes of its weights (computed). Tiles of 128 are free there, and not near 300 rows an expert.
# - Grouping tiles saves two thirds of a wave's bytes for one wide weight; for V3's widths and one tile an expert it saves none (computed).
# - A weighted sum by gathering moves a tenth of the eager bytes in BF16 and gives the same bits every time (counted here).
# - For sm_90 tiles below 64 rows get no `HGMMA` (compiled here).
#
# **What surprised:** that one lost count shifts every later expert; that 98 % empty tiles can cost nothing; that an even load does not fill its tiles; and that the well-known order of tiles does not help where experts are many.
#
# **To read**
#
# - Gale et al. 2022, *MegaBlocks: Efficient Sparse Training with Mixture-of-Experts* (arXiv 2211.15841): neither dropping tokens nor padding them.
# - Tan et al. 2024, *Scattered Mixture-of-Experts Implementation* (arXiv 2403.08245), abstract and section 1: the gather inside the product, in Triton.
# - Triton's tutorial *Matrix Multiplication*, section "L2 Cache Optimizations": the grouped order, and its 90 against 54 blocks.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, section 2.1.2: the layer itself.
# - `moe_align_block_size` in vLLM, and pull request 4517 there, which makes its table shorter: lab 11.3 asks for the shortest.
#
# **Now the lab:** `labs/11_moe_kernels.ipynb`. You write an order that goes to and fro, the counting sort of one GPU among several, the shortest table of tiles, a grouped product with a bias, gate and up with gather and SwiGLU inside, and a weighted sum on top of the shared expert. Then a whole layer runs on your six functions.
