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
# # Lesson 09 · Triton puzzles
#
# Somebody writes a program that counts letters. It is tested, and passes. It is tested a hundred times more, and passes. Nothing in the test is wrong. Then it runs on another machine, and
# letters are missing: in one order that we shall try, two in five.
#
# In this lesson you write that program. Before that you learn how a GPU is programmed at all: by many small programs that know nothing of each other, in no order. And you learn to see what they do, because here every load and every store
# is written down. In the end a compiler makes machine code for an H100 out of a cell of this notebook, on a machine that has none.
#
# About 45 minutes. Names carry their shape: **M** rows, **N** elements or columns. In a kernel, a small `m` or `n` is a block of indices.

# %% tags=["setup"]
import os

os.environ["TRITON_INTERPRET"] = "1"  # this lesson looks into the interpreter, on a machine with a GPU as well
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import matplotlib.pyplot as plt
import numpy as np
import torch
import triton
import triton.language as tl

from course.kernels import KernelFault
from course.kernels.checked import checked

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
print("course", course.__version__, "· torch", torch.__version__.split("+")[0], "· triton", triton.__version__)

# %% [markdown]
# ## One function, many programs
#
# In PyTorch you say *what* happens to a whole tensor. In Triton you write a **kernel**: a function of which many copies run at once. Each copy is a **program**. All that tells one from another is a number, `tl.program_id(0)`.
#
# A kernel gets no tensors. It gets *pointers*: where in memory the first element lies. `x + n` with a block of indices `n` is a block of addresses, and `tl.load` fetches from all of them at once, one element a **lane**.


# %%
@triton.jit
def scale(x, out, N, factor, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    values = tl.load(x + n, mask=inside)
    tl.store(out + n, factor * values, mask=inside)


# %% [markdown]
# Five lines, and nowhere a loop. How many programs there are is said from outside, in brackets: `scale[(4,)](...)` launches four. A block must be a power of two, and a tensor seldom is a multiple of it: the last program has lanes too many, and the **mask** switches them off.
#
# **Predict:** 200 elements, blocks of 64. How many programs, and how many lanes of the last one do something?

# %%
x_N = torch.arange(200.0)
with checked() as log:
    out_N = torch.empty(200)
    scale[(triton.cdiv(200, 64),)](x_N, out_N, 200, 3.0, BLOCK=64)
assert torch.equal(out_N, 3 * x_N)
launch = log.launches[0]
print(f"grid {launch.grid}, {launch.loads} elements loaded, {launch.stores} stored")
for access in launch.accesses:
    first, last = access.elements[[0, -1]]
    print(f"program {access.program[0]} {access.kind:5s} {access.argument:3s} elements {first:3d} to {last:3d}")


# %% [markdown]
# That is the whole run, one line a `tl.load` or `tl.store`. `checked()` is this course's interpreter for kernels: it runs them on the CPU, in numpy, one program after the other, and writes down who touched what. It costs about a millisecond a program, so everything here is small.
#
# A list of accesses is tiresome to read. So we draw it: each element of a tensor, in the colour and with the number of the program that touched it. This function serves the whole lesson.


# %%
def touched(launch, argument, kind, size):
    """[programs, size]: whether a program loads or stores ("load", "store", "atomic") an element of the argument."""
    found = np.zeros((int(np.prod(launch.grid)), size), bool)
    for access in launch.accesses:
        if (access.argument, access.kind) == (argument, kind):
            found[np.ravel_multi_index(access.program, launch.grid), access.elements] = True
    return found


def draw(axis, launch, argument, kind, shape, title):
    """Elements by program; grey: nobody; a black frame: more than one program."""
    found = touched(launch, argument, kind, int(np.prod(shape)))
    owner, many = found.argmax(0).reshape(shape), found.sum(0).reshape(shape)
    colours = plt.matplotlib.colors.ListedColormap([SKY, YELLOW, GREEN, PINK, BLUE, ORANGE])
    axis.set_facecolor("#e8e8e8")
    axis.imshow(np.ma.masked_where(many == 0, owner % 6), cmap=colours, vmin=0, vmax=5, aspect="auto")
    by_element = owner.size <= 300
    for program in np.unique(owner[many > 0]):
        rows, columns = np.nonzero((owner == program) & (many > 0))
        each = zip(columns, rows, strict=True) if by_element else [(columns.mean(), rows.mean())]
        for column, row in each:
            axis.text(column, row, program, ha="center", va="center", fontsize=7 if by_element or len(found) > 9 else 9)
    for row, column in zip(*np.nonzero(many > 1), strict=True):
        axis.add_patch(plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, linewidth=1.6))
    axis.set(title=title, xlabel="element within a line", ylabel="line")
    axis.grid(visible=False)


# %% [markdown]
# Which program gets which elements is up to us, as long as each element is somebody's. Here is another way to deal them out: like cards, one to each program in turn.
#
# **Predict:** does the result change? Does the picture?


# %%
@triton.jit
def scale_dealt(x, out, N, factor, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK) * tl.num_programs(0) + tl.program_id(0)
    inside = n < N
    tl.store(out + n, factor * tl.load(x + n, mask=inside), mask=inside)


with checked() as log:
    dealt_N = torch.empty(200)
    scale_dealt[(4,)](x_N, dealt_N, 200, 3.0, BLOCK=64)
assert torch.equal(dealt_N, out_N)

# %%
figure, axes = plt.subplots(2, 1, figsize=(8, 5.4))
draw(axes[0], launch, "out", "store", (8, 25), "In blocks: who stores each of 200 elements")
draw(axes[1], log.launches[0], "out", "store", (8, 25), "Dealt out like cards")
plt.show()

# %% [markdown]
# *Figure: 200 elements in eight lines of 25, each with the number of the program that stored it. Above, three runs of 64 and a last one of 8. Below, the numbers 0, 1, 2, 3 in turn, 50 elements each.*
#
# Two pictures, one result. A result that depended on the dealing, or on which program ran first, would be a mistake in the kernel: on a GPU programs start in some order, many at the same time, and no rule says which ends first. The dealing does matter for something else: what lies *side by side in one load*. That comes back below.
#
# ## Sharing
#
# Each element above was one program's and no other's. That is too strict. Take a running average of three neighbours: the neighbour of a block's last element is another block's first.
#
# **Predict:** which elements are loaded by two programs? Stored by two?


# %%
@triton.jit
def smooth(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(x + n - 1, mask=(n >= 1) & (n < N), other=0.0)
    right = tl.load(x + n + 1, mask=n + 1 < N, other=0.0)
    here = tl.load(x + n, mask=n < N)
    tl.store(out + n, (left + here + right) / 3, mask=n < N)


with checked() as log:
    smooth_N = torch.empty(200)
    smooth[(4,)](x_N, smooth_N, 200, BLOCK=64)
assert torch.allclose(smooth_N, torch.nn.functional.avg_pool1d(x_N[None], 3, 1, 1)[0])
smoothed = log.launches[0]
print(f"{smoothed.loads} elements loaded, {smoothed.stores} stored")

# %%
figure, axes = plt.subplots(2, 1, figsize=(8, 5.4))
draw(axes[0], smoothed, "x", "load", (8, 25), "Running average: who loads (framed: two programs)")
draw(axes[1], smoothed, "out", "store", (8, 25), "Who stores")
plt.show()

# %% [markdown]
# *Figure: the same grid. Above, loads: two elements at each border of two blocks have a black frame, since both programs load them. Below, stores: no frame.*
#
# Reading together is harmless. Writing is not. **One element, two programs, one of them writes: a race**, and the rest of the lesson comes back to it.
#
# ## Four ways to be wrong
#
# What happens when the rules are broken? On a GPU, mostly nothing that one sees. A lane without a mask reads whatever lies behind the tensor; only if no memory at all is there does the driver complain, some launches later. The checked interpreter says it in one sentence, at once. Here is the kernel without its masks.
#
# **Predict:** which program is at fault, at which element?


# %%
@triton.jit
def scale_unmasked(x, out, N, factor, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + n, factor * tl.load(x + n))


def told(call):
    """Run it checked; print what the interpreter says about it."""
    try:
        with checked():
            call()
        print("no fault found")
    except KernelFault as fault:
        print(fault)


told(lambda: scale_unmasked[(4,)](x_N, torch.empty(200), 200, 3.0, BLOCK=64))

# %% [markdown]
# The second: blocks that overlap by one element, because somebody counted from 1.
#
# **Predict:** both programs store the *same* value there. Is it a race?


# %%
@triton.jit
def scale_overlapping(x, out, N, factor, BLOCK: tl.constexpr):
    n = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    inside = n < N
    tl.store(out + n, factor * tl.load(x + n, mask=inside), mask=inside)


try:
    with checked() as log:
        scale_overlapping[(4,)](x_N, torch.empty(200), 200, 3.0, BLOCK=64)
except KernelFault as fault:
    print(fault)
overlapping = log.launches[0]  # as far as it came

# %% [markdown]
# It is told as one. Equal values would come out right today; the next change of the kernel makes them unequal, and no test would notice.
#
# The third and the fourth raise nothing. A grid rounded *down* leaves elements that nobody writes; and lanes that are masked off in a load hold *something*, of which Triton says only that it is undefined. On a GPU both are often zero, or what was there before, which may even be the right answer of the last run. So the checked
# interpreter **poisons** them: fresh memory and masked lanes hold NaN (whole numbers: a huge one that nobody expects).


# %%
@triton.jit
def fold(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + n, mask=n < N)  # and in the other lanes?
    tl.store(out + tl.program_id(0), tl.sum(values))


with checked() as log:
    short_N, sums_P = torch.empty(200), torch.empty(4)
    scale[(200 // 64,)](x_N, short_N, 200, 3.0, BLOCK=64)
    fold[(4,)](x_N, sums_P, 200, BLOCK=64)
print("sums of blocks:", sums_P.tolist())
print("stored by nobody:", short_N.isnan().sum().item(), "elements")

# %%
figure, axes = plt.subplots(2, 1, figsize=(8, 5.4))
draw(axes[0], overlapping, "out", "store", (8, 25), "Overlapping blocks, up to the fault (framed: stored twice)")
draw(axes[1], log.launches[0], "out", "store", (8, 25), "A grid rounded down: eight elements are nobody's")
for element in short_N.isnan().nonzero().flatten().tolist():
    axes[1].text(element % 25, element // 25, "NaN", ha="center", va="center", fontsize=7, color=ORANGE)
plt.show()

# %% [markdown]
# *Figure: who stores, in two broken launches. Above, program 0 has stored its block and program 1 begins with the last element of it, in a black frame; everything behind program 1 is grey, since the launch ended there. Below, three whole blocks, and eight grey elements at the end which hold NaN.*
#
# NaN is a good poison because it spreads. One undefined lane made the whole sum of the last block NaN. With zeros in the undefined lanes the sum would have been right, here, and the mistake would have lived.
#
# ## Two dimensions
#
# A block may be a tile. `m[:, None]` is a column of indices and `n[None, :]` a row; whatever joins the two, a comparison, a sum of addresses, is a tile, by the same broadcasting as in PyTorch. The grid has two axes then, and `program_id(0)` and `program_id(1)` are the tile's place.
#
# In memory there is no second dimension. A matrix is a line of numbers and a rule, its **strides**: how many elements further on the next row begins, and the next column.

# %%
padded = torch.arange(40 * 48, dtype=torch.float32).view(40, 48)
for name, view in {"all": padded, "40 columns": padded[:, :40], "transposed": padded.T}.items():
    print(f"{name:10s} shape {list(view.shape)}, strides {view.stride()}, contiguous: {view.is_contiguous()}")

# %% [markdown]
# Rows with padding behind them, like the second, are common: hardware likes rows that begin at round addresses. Our kernel puts a **causal mask** on a square of attention scores: a query sees keys up to its own place, and what lies right of the diagonal becomes minus infinity. The scores are padded, the result is not.
#
# **Predict:** what stands right of the diagonal need not be loaded. How much less is loaded than stored? And which of the nine programs load nothing?


# %%
@triton.jit
def causal(scores, out, S, stride, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (m[:, None] < S) & (n[None, :] < S)
    seen = m[:, None] >= n[None, :]
    values = tl.load(scores + m[:, None] * stride + n[None, :], mask=inside & seen, other=float("-inf"))
    tl.store(out + m[:, None] * S + n[None, :], values, mask=inside)


scores_SS = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))[:, :40]
with checked() as log:
    out_SS = torch.empty(40, 40)
    causal[(3, 3)](scores_SS, out_SS, 40, scores_SS.stride(0), TILE=16)
assert torch.equal(out_SS, scores_SS.masked_fill(torch.ones(40, 40).triu(1).bool(), float("-inf")))
masked = log.launches[0]
print(f"loaded {masked.load_bytes:,} bytes, stored {masked.store_bytes:,}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.4))
draw(axes[0], masked, "scores", "load", (40, 40), "Causal mask: who loads")
draw(axes[1], masked, "out", "store", (40, 40), "Who stores")
for axis in axes:
    axis.set(xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# *Figure: a square of 40 by 40 in nine tiles, those at the right and lower edge smaller. Left, loads: a staircase up to the diagonal, grey above it; programs 1, 2 and 5 load nothing. Right, stores: all nine tiles whole.*
#
# Half the loads are saved by one more condition in the mask (and a real attention kernel does not even launch such programs: unit 14). Now the classic mistake with strides: taking the number of columns for the row stride. It works on every contiguous matrix, so it passes every test that forgets the others.

# %%
told(lambda: causal[(3, 3)](scores_SS, torch.empty(40, 40), 40, 40, TILE=16))
told(lambda: causal[(3, 3)](scores_SS.contiguous(), torch.empty(40, 40), 40, 40, TILE=16))

# %% [markdown]
# Note what the first sentence knows: that address exists, it lies within the storage, and still it is none of the elements that were *passed*. A plain bounds check would have said nothing.
#
# ## What lies side by side
#
# A GPU does not fetch numbers. It fetches **sectors** of 32 bytes: eight float32 numbers, if they lie side by side, or one number and 28 bytes for nothing. Threads work in groups of 32, a warp, and the addresses of one load by a warp are served together.
#
# Transpose a matrix the simple way: a program takes a row of `x` and writes it down as a column of `out`.
#
# **Predict:** how many bytes come along for each one that was asked for, in the load and in the store?


# %%
@triton.jit
def row_to_column(x, out, M, N, BLOCK: tl.constexpr):
    m = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    values = tl.load(x + m * N + n, mask=n < N)
    tl.store(out + n * M + m, values, mask=n < N)


x_MN = torch.arange(16.0 * 64).view(16, 64)
with checked() as log:
    out_NM = torch.empty(64, 16)
    row_to_column[(16,)](x_MN, out_NM, 16, 64, BLOCK=64)
assert torch.equal(out_NM, x_MN.T)
turned = log.launches[0]


# %%
def sectors(elements, itemsize=4, together=32):
    """Sectors of 32 bytes, where each `together` lanes are served as one. The tensor begins at a sector."""
    pieces = elements * itemsize // 32
    return sum(len(np.unique(pieces[start : start + together])) for start in range(0, len(pieces), together))


moved = {"load": [0, 0], "store": [0, 0]}
for access in turned.accesses:
    moved[access.kind][0] += 4 * access.elements.size
    moved[access.kind][1] += 32 * sectors(access.elements)
for kind, (asked, fetched) in moved.items():
    print(f"{kind:5s}: {asked:,} bytes asked for, {fetched:,} in sectors: {fetched / asked:.0f} times")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), gridspec_kw={"width_ratios": [1.5, 1, 1]})
draw(axes[0], turned, "x", "load", (16, 64), "Who loads x, 16 by 64")
draw(axes[1], turned, "out", "store", (64, 16), "Who stores out, 64 by 16")
for axis in axes[:2]:
    axis.set(xlabel="column", ylabel="row")
for shift, (part, label, colour) in enumerate([(0, "asked for", SKY), (1, "in sectors", ORANGE)]):
    bars = axes[2].bar([0.4 * shift, 1 + 0.4 * shift], [moved[kind][part] / 1e3 for kind in moved], 0.38, color=colour)
    axes[2].bar_label(bars, fmt="%.1f", fontsize=9)
    bars.set_label(label)
axes[2].set_xticks([0.2, 1.2], ["load", "store"])
axes[2].set(ylabel="moved (kB)", title="What that moves", ylim=(0, 38))
axes[2].legend(loc="upper left")
axes[2].grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# *Figure: left, x in 16 rows, each of one program. In the middle, out: each program is a column. Right, bars: loads need as many bytes in sectors as were asked for, stores eight times as many.*
#
# In the load 32 lanes share four sectors. In the store each has a sector of its own. Turn the kernel round, one column read and one row written, and it is the load that pays: a transpose by rows is bad on one side whatever you do.
#
# This is a **model**, *computed* from the log. Triton deals the lanes out to threads in its own way, and a cache keeps a sector for a while, so that the next program may find it there. What a CPU cannot show is the time.
#
# **Predict:** suppose that a program handled a tile of 1,024 elements instead of a row, reading its rows side by side and writing them side by side the other way. Which shape would it want? (Let all 1,024 lanes be served together.)

# %%
widths = [2**power for power in range(11)]
used = {"load": [], "store": []}
for width in widths:
    row, column = np.divmod(np.arange(1024), width)  # a tile of 1024 / width rows in a matrix of 1024 by 1024
    read, written = row * 1024 + column, column * 1024 + row
    used["load"].append(4 * 1024 / (32 * sectors(read, together=1024)))
    used["store"].append(4 * 1024 / (32 * sectors(written, together=1024)))

figure, axis = plt.subplots(figsize=(8, 3.2))
axis.plot(widths, [100 * share for share in used["load"]], "o-", color=BLUE, label="load")
axis.plot(widths, [100 * share for share in used["store"]], "s--", color=ORANGE, label="store, turned")
axis.set_xscale("log", base=2)
axis.set_xticks(widths, [f"{1024 // width}x{width}" for width in widths], fontsize=8)
axis.set(xlabel="tile: rows x columns", ylabel="bytes of sectors in use (%)", ylim=(0, 108))
axis.set_title("Tiles of 1,024 elements")
axis.legend(loc="lower center")
plt.show()

# %% [markdown]
# *Figure: share of the fetched bytes that are used, against the tile's shape from 1,024 by 1 to 1 by 1,024. Loads use an eighth at one column and everything from eight columns on; stores mirror it. Between 128 by 8 and 8 by 128 both are at 100 %.*
#
# Any tile with eight or more neighbours both ways is good. In the lab you build it.
#
# ## Folding
#
# `tl.sum`, `tl.max`, `tl.min` fold a block into one number, and every lane takes part, masked or not. So the masked ones must hold a number that changes nothing, the **identity** of the fold. Say the smallest of each row is wanted.
#
# **Predict:** rows of five numbers around 10, in blocks of eight. What is the minimum with `other=0.0`?


# %%
@triton.jit
def smallest(x, out, D, fill, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    values = tl.load(x + tl.program_id(0) * D + d, mask=d < D, other=fill)
    tl.store(out + tl.program_id(0), tl.min(values))


x_ND = 10 + torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
print("wanted   ", [f"{value:.2f}" for value in x_ND.amin(1).tolist()])
for fill in (0.0, 1000.0, float("inf")):
    with checked():
        least_N = torch.empty(3)
        smallest[(3,)](x_ND, least_N, 5, fill, BLOCK=8)
    print(f"other={fill:<8}", [f"{value:.2f}" for value in least_N.tolist()])

# %% [markdown]
# Zero is right for a sum and wrong here. 1,000 passes, until somebody's numbers are larger: an identity is a number that changes *no* result, not one that is out of the way today.
#
# A vector that is longer than a block is folded in two rounds: each program folds its block and writes one number, and a second launch folds those. Between the two launches lies the only order that there is. **Launches of one stream wait for each other; programs do not.**


# %%
@triton.jit
def block_sum(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + n, mask=n < N, other=0.0)))


long_N = torch.randn(5000, generator=torch.Generator().manual_seed(0))
with checked() as log:
    part_P, total_1 = torch.empty(5), torch.empty(1)
    block_sum[(5,)](long_N, part_P, 5000, BLOCK=1024)
    block_sum[(1,)](part_P, total_1, 5, BLOCK=8)
print(f"{total_1.item():.5f}, in float64 {long_N.double().sum():.5f}")
print("loaded by each launch:", [launch.loads for launch in log.launches])
assert torch.allclose(total_1[0].double(), long_N.double().sum(), atol=1e-3)

# %% [markdown]
# ## Sixteen bits
#
# Models keep their numbers in bfloat16. So let 64 programs add up ones in bfloat16: the first takes one of them, the second two, and so on up to 64. And let us leave `checked()` away for once. What runs then is Triton's own interpreter, `TRITON_INTERPRET=1`, which everybody uses who has no GPU at hand.
#
# **Predict:** the sum of 64 ones.


# %%
@triton.jit
def sums_up_to(x, out, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    last = tl.program_id(0)
    tl.store(out + last, tl.sum(tl.load(x + n, mask=n <= last, other=0.0)))


ones_N = torch.ones(64, dtype=torch.bfloat16)
plain_N = torch.zeros(64)
sums_up_to[(64,)](ones_N, plain_N, BLOCK=64)
with checked():
    checked_N = torch.empty(64)
    sums_up_to[(64,)](ones_N, checked_N, BLOCK=64)
for count in (1, 2, 3, 4, 64):
    print(f"{count:2d} ones: plain {plain_N[count - 1].item():.3g}, checked {checked_N[count - 1].item():g}")

# %%
code = int(ones_N[:1].view(torch.int16))
codes_N = np.arange(1, 65) * code % 2**16
guess_N = torch.tensor(codes_N.astype(np.uint16).view(np.int16)).view(torch.bfloat16).float()
same = ((guess_N == plain_N) | (guess_N.isnan() & plain_N.isnan())).sum().item()
print(f"1.0 in bfloat16 has the code {code:#x}; adding codes modulo 65,536 explains {same} of 64 sums")

figure, axis = plt.subplots(figsize=(8, 3.2))
axis.plot(range(1, 65), checked_N, color=GREEN, label="checked interpreter (and PyTorch)")
axis.plot(range(1, 65), plain_N, "o", color=ORANGE, markersize=4, label="plain interpreter")
axis.plot(range(1, 65), guess_N, "x", color=BLACK, markersize=6, linewidth=0.8, label="codes added as whole numbers")
axis.set_yscale("symlog", linthresh=1)
axis.set_yticks([-1e30, -1e15, 0, 1e15, 1e30])
axis.set(xlabel="ones added up", ylabel="sum (symmetric log)", title="A sum of ones in bfloat16")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
plt.show()

# %% [markdown]
# *Figure: sums of 1 to 64 ones. The checked interpreter's line rises gently from 1 to 64. The plain interpreter's points lie on three arms: odd counts close to zero, and even ones between 10 to the power of 19 and of 38, with either sign. Each lies on a black cross: the number whose code is the sum of the codes.*
#
# numpy has no bfloat16, so the plain interpreter keeps the bare 16-bit codes, and *adds the codes*. No error, no warning. A kernel that widens right after the load, `tl.load(...).to(tl.float32)`, is right in every interpreter, and it is what one should write for a GPU too: 8 bits of precision are enough to keep a number, and too
# few to add thousands of them up. The checked interpreter counts as PyTorch does either way.
#
# ## The race that passes
#
# Now the program of the beginning. Twelve programs count the letters of a sentence, six letters each. For each letter: load its count, add one, store it. One letter after the other, since two lanes of one program could hold the same letter, and would lose one just as two programs do.


# %%
@triton.jit
def count(letters, counts, N, first, BLOCK: tl.constexpr):
    begin = (first + tl.program_id(0)) * BLOCK
    for i in range(begin, begin + BLOCK):
        if i < N:
            place = counts + tl.load(letters + i)
            tl.store(place, tl.load(place) + 1)


sentence = "every letter here is counted by a program that never sees what the others have seen"
text = sentence.replace(" ", "")
letters_N = torch.tensor([ord(letter) - ord("a") for letter in text], dtype=torch.int32)
right_26 = letters_N.bincount(minlength=26)
PROGRAMS = triton.cdiv(len(text), 6)
print(f"{len(text)} letters, {PROGRAMS} programs, {right_26.max()} times e")

# %% [markdown]
# It is tested in the plain interpreter, against PyTorch, fifty times.
#
# **Predict:** how many of the fifty pass?

# %%
passed = 0
for _ in range(50):
    counts_26 = torch.zeros(26, dtype=torch.int32)
    count[(PROGRAMS,)](letters_N, counts_26, len(text), 0, BLOCK=6)
    passed += torch.equal(counts_26, right_26.int())
print(f"{passed} of 50 pass")

# %% [markdown]
# All. The interpreter runs program 0 to its end, then program 1, and so on; that is *one* order out of astronomically many, and in this one the kernel is right. Running it again runs the same order again. So this test **cannot fail** for a race, and says nothing about one.
#
# What would another order do? We have the means to find out: run each program *alone* (that is what `first` is for), take its loads and stores from the log, and replay them in any order we like.

# %%
scripts = []  # of each program, what it does to the counts: [("load", letter), ("store", letter), ...]
for program in range(PROGRAMS):
    with checked() as log:
        count[(1,)](letters_N, torch.zeros(26, dtype=torch.int32), len(text), program, BLOCK=6)
    steps = [each for each in log.launches[0].accesses if each.argument == "counts"]
    scripts.append([(each.kind, int(each.elements[0])) for each in steps])
for program in (0, 1):
    words = [f"{kind} {chr(ord('a') + letter)}" for kind, letter in scripts[program]]
    print(f"program {program}: {', '.join(words[:8])}, ... ({len(words)} steps)")


def replay(scripts, order):
    """The counts after these programs' steps in this order: a program's number each time it makes its next step."""
    counts, register, at = np.zeros(26, int), [0] * len(scripts), [0] * len(scripts)
    for program in order:
        kind, letter = scripts[program][at[program]]
        at[program] += 1
        if kind == "load":
            register[program] = counts[letter]
        else:
            counts[letter] = register[program] + 1
    return counts


# %% [markdown]
# A program has a register of its own: it remembers what it loaded, whatever others do to the count meanwhile. Two orders to begin with: one program after the other, and all in step, so that each loads before any stores.
#
# **Predict:** how many of the letters are counted in step?

# %%
in_turn = [program for program, script in enumerate(scripts) for _ in script]
in_step = [p for step in range(12) for p, script in enumerate(scripts) if step < len(script)]
assert np.array_equal(replay(scripts, in_turn), right_26)
kept_26 = replay(scripts, in_step)
print(f"in turn {replay(scripts, in_turn).sum()} of {len(text)}, in step {kept_26.sum()}")

figure, axis = plt.subplots(figsize=(8, 3.2))
names = [chr(ord("a") + letter) for letter in range(26)]
axis.bar(names, right_26, color=ORANGE, label="lost")
bars = axis.bar(names, kept_26, color=BLUE, label="counted in step")
for letter, lost in enumerate(right_26.numpy() - kept_26):
    if lost:
        axis.text(letter, right_26[letter] + 0.2, f"−{lost}", ha="center", fontsize=9)
axis.set(xlabel="letter", ylabel="count", title="The same kernel, all programs in step", ylim=(0, 18))
axis.set_yticks(range(0, 18, 4))
axis.grid(axis="x", visible=False)
axis.legend(loc="upper right")
plt.show()

# %% [markdown]
# *Figure: a bar a letter, as high as its true count; the blue part was counted, the orange part was lost, with its number above. The letter e loses eleven of sixteen, t four of eight; letters that occur once lose nothing.*
#
# A **lost update**: two programs load the same 5, both store 6. It needs two programs at one count at one time, and so it hits what is frequent. In a mixture of experts the counts are tokens of each expert, and the busiest expert, which is the one that matters, would be counted worst.
#
# How it comes about, step by step, for the letter e in one order drawn at random:


# %%
def in_flight(scripts, width, rng):
    """An order in which `width` programs run at once and a random one of them makes the next step."""
    waiting, running, order = list(range(len(scripts))), [], []
    left = [len(script) for script in scripts]
    while waiting or running:
        while waiting and len(running) < width:
            running.append(waiting.pop(0))
        program = running[rng.integers(len(running))]
        order.append(program)
        left[program] -= 1
        if not left[program]:
            running.remove(program)
    return order


# %%
def spans(order, letter):
    """Each update of one letter: program, time of its load, of its store, and the count that it stored."""
    at, began, register, value, found = [0] * len(scripts), {}, {}, 0, []
    for time, program in enumerate(order):
        kind, its = scripts[program][at[program]]
        at[program] += 1
        if its == letter and kind == "load":
            began[program], register[program] = time, value
        elif its == letter:
            value = register[program] + 1
            found.append((program, began[program], time, value))
    return found


# %%
order = in_flight(scripts, PROGRAMS, np.random.default_rng(2))
figure, axis = plt.subplots(figsize=(9.5, 3.8))
top = 0
for program, begin, end, value in spans(order, ord("e") - ord("a")):
    colour = BLUE if value > top else ORANGE
    top = value
    axis.plot([begin, end], [program, program], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.55)
    axis.plot(begin, program, "o", color=colour, markersize=5)
    axis.plot(end, program, "s", color=colour, markersize=6)
    axis.text(end, program - 0.22, value, ha="center", va="bottom", fontsize=9)
axis.plot([], [], color=BLUE, linewidth=5, alpha=0.55, label="the count goes up")
axis.plot([], [], color=ORANGE, linewidth=5, alpha=0.55, label="it stays, or goes down")
axis.set(xlabel="step of all programs together", ylabel="program")
axis.set_title("Updates of e: from load (dot) to store (square)")
axis.set(yticks=range(PROGRAMS), xlim=(-2, len(order) + 2), ylim=(PROGRAMS - 0.5, -1))
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
print(f"e counted {top} times of {right_26[4]}")

# %% [markdown]
# *Figure: a line a program, time to the right. Each update of e is a bar from its load to its store, with the stored count behind it. Where bars of two programs overlap in time, the same count is stored twice (orange), or a late store even puts the count back, as that of program 3 does.*
#
# Wherever bars overlap, updates are lost. So the question is how many programs run at once. On an H100 it may be thousands (132 multiprocessors: NVIDIA's data sheet; up to 32 blocks on each: its programming guide, technical specifications); in the plain interpreter it is one.
#
# For two programs with one letter each, all orders can be listed.
#
# **Predict:** of the six orders of load, store, load, store, how many lose one?

# %%
from itertools import permutations

pair = [[("load", 0), ("store", 0)]] * 2
orders = sorted(set(permutations([0, 0, 1, 1])))
for order in orders:
    print("".join("AB"[program] for program in order), "counts", replay(pair, order)[0])

# %% [markdown]
# Only the two in which one program is done before the other begins are right. Now for the whole sentence: random orders, with one to all programs in flight.
#
# **Predict:** with *two* programs at a time, are a half of the letters lost, a tenth, a hundredth?

# %%
rng = np.random.default_rng(0)
flights = [1, 2, 3, 4, 6, 8, PROGRAMS]
lost = {
    width: [100 * (1 - replay(scripts, in_flight(scripts, width, rng)).sum() / len(text)) for _ in range(150)]
    for width in flights
}
figure, axis = plt.subplots(figsize=(8, 3.4))
for width, shares in lost.items():
    axis.plot(width + rng.uniform(-0.15, 0.15, len(shares)), shares, ".", color=SKY, markersize=3, alpha=0.6)
axis.plot(flights, [np.mean(lost[width]) for width in flights], "o-", color=BLUE, label="mean of 150 orders")
axis.plot([], [], ".", color=SKY, label="one order")
axis.axhline(100 * (1 - kept_26.sum() / len(text)), color=ORANGE, linestyle="--", label="all in step")
axis.set(xlabel="programs in flight at once", ylabel="letters lost (%)", xticks=flights, ylim=(-1, 42))
axis.set_title("What the order decides")
axis.legend(loc="lower right")
plt.show()
for width, shares in lost.items():
    print(f"{width:2d} in flight: {np.mean(shares):4.1f} % lost; {shares.count(0)} of 150 orders lose nothing")

# %% [markdown]
# *Figure: share of lost letters against the number of programs in flight, a dot for each of 150 random orders and a line for the mean. One at a time loses nothing; with two some percent are gone, and the more are in flight, the more; the dashed line is the order in step.*
#
# These are *computed*: the steps are the kernel's own, from the log, but the orders are drawn by us, and a GPU's are not drawn by anybody. It has caches and warps in step besides. What carries over is that the loss depends on the order, that the tested order loses nothing, and that no number of repetitions would have shown it.
#
# What would have shown it is a look at the accesses instead of the result: one element, two programs, one writes. That needs no unlucky order.

# %%
told(lambda: count[(PROGRAMS,)](letters_N, torch.zeros(26, dtype=torch.int32), len(text), 0, BLOCK=6))

# %% [markdown]
# The repair is an **atomic**: load, add and store in one step, between which nobody comes.


# %%
@triton.jit
def count_atomically(letters, counts, N, first, BLOCK: tl.constexpr):
    begin = (first + tl.program_id(0)) * BLOCK
    for i in range(begin, begin + BLOCK):
        if i < N:
            tl.atomic_add(counts + tl.load(letters + i), 1)


with checked() as log:
    counts_26 = torch.zeros(26, dtype=torch.int32)
    count_atomically[(PROGRAMS,)](letters_N, counts_26, len(text), 0, BLOCK=6)
assert torch.equal(counts_26, right_26.int())
kinds = [access.kind for access in log.launches[0].accesses if access.argument == "counts"]
print(f"right; {len(kinds)} accesses of the counts, all of kind {set(kinds)}")

# %% [markdown]
# Now no order loses anything: whole numbers can be added in any order. **Floats cannot.** Atomics on floats do not race, and still the result depends on who came first.
#
# **Predict:** 68 float32 numbers, added in 1,000 random orders. How many different sums?

# %%
weights_N = torch.randn(len(text), generator=torch.Generator().manual_seed(1)).numpy()
orders = np.array([rng.permutation(len(text)) for _ in range(1000)])
sums = np.cumsum(weights_N[orders], axis=1, dtype=np.float32)[:, -1]  # one after the other, each time rounded
values, times = np.unique(sums, return_counts=True)
exact = weights_N.astype(np.float64).sum()
figure, axis = plt.subplots(figsize=(8, 2.9))
axis.vlines((values - exact) * 1e7, 0, times, color=BLUE, linewidth=3)
axis.axvline(0, color=ORANGE, linestyle="--", label="exact")
axis.set(xlabel="sum less the exact sum (times 10⁻⁷)", ylabel="orders of 1,000", title="One sum in many orders")
axis.legend()
plt.show()
print(f"{len(values)} different sums in 1,000 orders, none of them wrong")

# %% [markdown]
# *Figure: a line for each sum that occurred, as high as the number of orders that gave it, around the exact sum at 0: more than a dozen of them, a rounding step apart.*
#
# That is why kernels that must give the same bits each time (training that can be repeated) avoid float atomics: partial sums in fixed places, as in `block_sum` above, and a second launch.
#
# ## Keeping score
#
# The kernels of unit 10 are bound by memory: they take as long as their bytes take. So the log is a score. The puzzle: $\max(x, 0)^2 \cdot g + s$, for three vectors of 1,000. Solution one: a kernel for each operation, as eager PyTorch has it. Solution two: all in one.
#
# **Predict:** the least possible is to load each input once and store the result once. How many times that does solution one move?


# %%
@triton.jit
def relu_squared(x, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(x + n, mask=n < N), 0.0)
    tl.store(out + n, positive * positive, mask=n < N)


@triton.jit
def combine(x, y, out, N, BLOCK: tl.constexpr, ADD: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left, right = tl.load(x + n, mask=n < N), tl.load(y + n, mask=n < N)
    if ADD:
        tl.store(out + n, left + right, mask=n < N)
    else:
        tl.store(out + n, left * right, mask=n < N)


# %%
@triton.jit
def fused(x, g, s, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(x + n, mask=n < N), 0.0)
    values = positive * positive * tl.load(g + n, mask=n < N) + tl.load(s + n, mask=n < N)
    tl.store(out + n, values, mask=n < N)


@triton.jit
def fused_forgetful(x, g, s, out, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    squared = tl.load(x + n, mask=n < N) * tl.load(x + n, mask=n < N)
    values = tl.where(tl.load(x + n, mask=n < N) > 0, squared, 0.0)
    values = values * tl.load(g + n, mask=n < N) + tl.load(s + n, mask=n < N)
    tl.store(out + n, values, mask=n < N)


# %% [markdown]
# The third solution is also one kernel. Whoever wrote it says `tl.load` whenever `x` is needed.

# %%
x_N, g_N, s_N = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))


def in_three():
    a_N, b_N, out_N = torch.empty(1000), torch.empty(1000), torch.empty(1000)
    relu_squared[(4,)](x_N, a_N, 1000, BLOCK=256)
    combine[(4,)](a_N, g_N, b_N, 1000, BLOCK=256, ADD=False)
    combine[(4,)](b_N, s_N, out_N, 1000, BLOCK=256, ADD=True)
    return out_N


def in_one(kernel):
    out_N = torch.empty(1000)
    kernel[(4,)](x_N, g_N, s_N, out_N, 1000, BLOCK=256)
    return out_N


solutions = {"three kernels": in_three, "one": lambda: in_one(fused), "one, forgetful": lambda: in_one(fused_forgetful)}
score = {}
for name, solve in solutions.items():
    with checked() as log:
        assert torch.allclose(solve(), x_N.relu() ** 2 * g_N + s_N, atol=1e-6)
    score[name] = [sum(its) for its in zip(*((la.load_bytes, la.store_bytes) for la in log.launches), strict=True)]
least = 4 * 1000 * 3, 4 * 1000

# %%
figure, axis = plt.subplots(figsize=(8, 2.8))
loads, stores = (np.array([each[part] / 1e3 for each in score.values()]) for part in range(2))
axis.barh(list(score), loads, color=BLUE, label="loads")
axis.barh(list(score), stores, left=loads, color=YELLOW, label="stores")
for row, both in enumerate(loads + stores):
    axis.text(both + 0.4, row, f"{both:.0f} kB", va="center", fontsize=10)
axis.axvline(sum(least) / 1e3, color=BLACK, linestyle="--", linewidth=1.2, label="least possible")
axis.set(xlabel="bytes (kB), counted lane by lane", title="Three solutions of one puzzle", xlim=(0, 38))
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Figure: bars of loads and stores. Three kernels move 32 kB, one kernel 16, which is the dashed least, and the forgetful one 24.*
#
# Fusing halves it: two intermediate vectors are not written and not read again. What that would be worth for vectors of a billion numbers, at the published bandwidth of an H800:

# %%
from course.hardware.gpus import GPUS

figure_of = GPUS["h800"].bandwidth
bandwidth = figure_of.value
for name, (load, store) in score.items():
    print(f"{name:14s} at least {1e3 * (load + store) * 1e6 / bandwidth:.1f} ms  (computed)")
print(f"bandwidth {bandwidth / 1e12:.2f} TB/s, quoted: {figure_of.source}")

# %% [markdown]
# The forgetful one is *asked* for more than it may cost. Does the compiler see that it loads the same thing three times, or the cache? Half of the answer is in the machine code.
#
# ## From the puzzle to the machine
#
# A process either interprets kernels or compiles them. So we write our cells to a file, and the course starts another process, which compiles it for `sm_90`, an H100 or H800; no GPU is needed for that. First the forgetful kernel, and a cousin of it that also keeps the squares, say for a backward pass, and then reads them again from where it has just put them.


# %%
@triton.jit
def fused_keeping(x, g, s, out, squares, N, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(x + n, mask=n < N), 0.0)
    tl.store(squares + n, positive * positive, mask=n < N)
    values = tl.load(squares + n, mask=n < N) * tl.load(g + n, mask=n < N) + tl.load(s + n, mask=n < N)
    tl.store(out + n, values, mask=n < N)


# %% [markdown]
# **Predict:** how many loads from memory (`LDG`) has each of the three kernels? Three vectors have to be read in any case.

# %%
import inspect
import tempfile
from pathlib import Path

from course.hardware.machine_code import read_code
from course.kernels import compile_all, launches_of


def machine_code(kernels, calls):
    """Each planned launch of these kernels, compiled for sm_90: what came out, and its instructions."""
    source = "import triton\nimport triton.language as tl\n\n\n"
    source += "\n\n".join(inspect.getsource(kernel.fn) for kernel in kernels)
    launches = [launches_of(call)[0] for call in calls]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(source)
        made = compile_all(path, launches, "sm_90", code=True)
    return [(each, read_code((each.code or {}).get("sass", ""))) for each in made]


flat = torch.empty(5, 4096)
kernels = {fused: 4, fused_forgetful: 4, fused_keeping: 5}  # and how many vectors each takes
calls = [
    lambda kernel=kernel, many=many: kernel[(4,)](*flat[:many], 4096, BLOCK=1024) for kernel, many in kernels.items()
]
for made, code in machine_code(list(kernels), calls):
    found = code.count("LDG") | code.count("STG")
    print(f"{made.kernel:16s} {made.registers} registers, {len(code.instructions)} instructions, {found}")

# %% [markdown]
# `launches_of` runs nothing; it notes how the kernel *would* be launched, and that is what a compiler needs to know: types, constants, and which numbers are multiples of 16. The `fn` of a kernel is the function that we wrote, and Python finds its text, also in a notebook.
#
# Six loads are three vectors, two instructions each: the compiler has merged the forgetful kernel's loads of `x`. Nothing is stored between them, so they must find the same. The cousin has eight: the squares, in a register a moment ago, are stored and then fetched back, since this compiler does not follow a value through memory. So the
# log counts what you *asked for*, the machine code what the compiler could not get rid of, and what a cache makes of it neither.
#
# Now our first kernel, `scale`. A thread handles eight of a block's 1,024 elements (four warps of 32 threads). Memory instructions come in widths: `LDG.E` loads 4 bytes, `LDG.E.128` loads 16.
#
# **Predict:** the same work in six launches. In which of them are the loads wide?


# %%
@triton.jit
def scale_strided(x, out, N, factor, stride, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    tl.store(out + n, factor * tl.load(x + n * stride, mask=inside), mask=inside)


a_N, b_N = torch.empty(2, 8192)
launched = {
    "as it is, 4,096 elements": lambda: scale[(4,)](a_N, b_N, 4096, 3.0, BLOCK=1024),
    "a[1:], b[1:]": lambda: scale[(4,)](a_N[1:], b_N[1:], 4096, 3.0, BLOCK=1024),
    "4,100 elements": lambda: scale[(5,)](a_N, b_N, 4100, 3.0, BLOCK=1024),
    "bfloat16": lambda: scale[(4,)](a_N.bfloat16(), b_N.bfloat16(), 4096, 3.0, BLOCK=1024),
    "with a stride, 1": lambda: scale_strided[(4,)](a_N, b_N, 4096, 3.0, 1, BLOCK=1024),
    "with a stride, 2": lambda: scale_strided[(4,)](a_N, b_N, 4096, 3.0, 2, BLOCK=1024),
}
sizes = [128, 256, 512, 1024, 2048, 4096]
calls = [*launched.values()]
calls += [lambda N=N, B=B: scale[(9,)](a_N, b_N, N, 3.0, BLOCK=B) for N in (4096, 4100) for B in sizes]
results = machine_code([scale, scale_strided], calls)
for name, (made, code) in zip(launched, results, strict=False):
    found = ", ".join(f"{times} {kind}" for kind, times in (code.count("LDG") | code.count("STG")).items())
    print(f"{name:30s} {made.registers} registers, {len(code.instructions)} instructions: {found}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.4))
blocks = results[len(launched) :]
for N, its, colour, mark in ((4096, blocks[:6], BLUE, "o-"), (4100, blocks[6:], ORANGE, "s--")):
    found = [code.count("LDG") for made, code in its]
    many = [sum(kinds.values()) for kinds in found]
    axis.plot(sizes, many, mark, color=colour, label=f"N = {N:,}")
    for size, height, kinds in zip(sizes, many, found, strict=True):
        bits = " ".join(kind.removeprefix("LDG.E").lstrip(".") or "32" for kind in kinds)
        below = -14 if N == 4096 else 7
        axis.annotate(
            bits, (size, height), (0, below), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
axis.set_xscale("log", base=2)
axis.set_yscale("log", base=2)
axis.set_xticks(sizes, sizes)
axis.set_yticks([1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32])
axis.set(xlabel="block (elements), four warps", ylabel="LDG in the kernel", ylim=(0.6, 60))
axis.set_title("Loads of scale, and the bits that each fetches")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# *Figure: number of load instructions against the block from 128 to 4,096, both axes logarithmic; at each point the bits that one load fetches for a thread. With N = 4,096 the loads grow wider, 32, 64 and 128 bits, before they grow more. With N = 4,100 all are 32 bits wide, and four times as many from a block of 512 on.*
#
# Wide loads need a promise for all four neighbours at once. That the *address* is a multiple of 16 bytes is one half of it; `a[1:]` breaks that. The other half is the **mask**: four lanes must be in or out together, which they are if N is a multiple of 4. The compiler is told only whether a number is a multiple of 16, so 4,100 elements, a
# multiple of 4, count as *perhaps not*. (A stride of 1 is a special case of Triton's launcher, which makes it a constant. With any other the compiler does not know what lies side by side.)
#
# Nothing of that changes a result, and the interpreter cannot show it. It is why people pad rows to round sizes, as in our scores above.
#
# ## The smallest product
#
# `tl.dot` multiplies two tiles, and becomes tensor-core instructions. Those have a shape of their own, and Triton refuses what is too small for it.
#
# **Predict:** 16 by 16 by 16 in bfloat16 is fine. Is 16 by 8 by 16? And *one* row by 16 by 16?


# %%
@triton.jit
def product(a, b, c, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(left, right))


def one_tile(M, K, N, dtype=torch.bfloat16):
    a_MK, b_KN = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    c_MN = torch.empty(M, N)
    product[(1,)](a_MK, b_KN, c_MN, M, K, N)
    return c_MN, a_MK.float() @ b_KN.float()


for M, K, N in ((16, 16, 16), (16, 8, 16), (1, 16, 16)):
    print(f"{M} by {K} by {N}: ", end="")
    told(lambda M=M, K=K, N=N: torch.testing.assert_close(*one_tile(M, K, N)))
torch.testing.assert_close(*one_tile(16, 8, 16, torch.float32))
print("16 by 8 by 16 in the plain interpreter, float32: right, and no complaint")

# %%
shapes = [(16, 16, 16), (1, 16, 16), (16, 8, 16), (16, 64, 16), (64, 16, 64), (64, 64, 64)]
calls = [lambda shape=shape: one_tile(*shape) for shape in shapes]
for (M, K, N), (made, code) in zip(shapes, machine_code([product], calls), strict=True):
    found = ", ".join(f"{times} {kind}" for kind, times in code.tensor_core.items())
    print(f"{M:2d} by {K:2d} by {N:2d}: {found or 'refused: ' + made.error.split('`: ')[-1]}")

# %% [markdown]
# The checked interpreter's sentence is the compiler's own: K must be 16 or more. (The plain one multiplies whatever it is given, and one learns it on the GPU.) M and N may be as small as 1, but look what it costs: *the same instruction* as for sixteen rows. `HMMA.16816` is a product of 16 rows and 8 columns with a K of 16, by one warp, and fifteen of the sixteen rows are multiplied for nothing. (Counted is how often it stands in the text; four warps run that text.)
#
# From 64 rows on there is another kind, `HGMMA`, by four warps together, which has no form with fewer than 64 rows. This is why a kernel for experts lines its tokens up in blocks, and why a decoding step with one token a sequence uses so little of a GPU (units 11 and 14).
#
# ## Turn the knobs
#
# The picture of the beginning, with other numbers. The elements that nobody touches appear by themselves when the grid is too small, and the mask does the rest.


# %%
def knobs(N=150, block=32, programs=5, dealt=False):
    x_N = torch.arange(float(N))
    with checked() as log:
        out_N = torch.empty(N)
        (scale_dealt if dealt else scale)[(programs,)](x_N, out_N, N, 3.0, BLOCK=block)
    width = 25
    launch, lines = log.launches[0], -(-N // width)
    _, axis = plt.subplots(figsize=(8, 0.5 + 0.32 * lines))
    draw(axis, launch, "out", "store", (lines, width), f"{N} elements, {programs} programs with blocks of {block}")
    after = lines * width - N  # the last line is longer than the tensor
    axis.add_patch(plt.Rectangle((width - after - 0.5, lines - 1.5), after, 1, color="white"))
    plt.show()
    idle = programs * block - launch.stores
    print(f"{launch.stores} stores, {idle} lanes masked off, {out_N.isnan().sum()} elements that nobody wrote")


knobs()

# %% [markdown]
# *Figure: 150 elements in six lines of 25, in five blocks of 32; the last has ten lanes masked off.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import Checkbox, IntSlider, SelectionSlider, interact

controls = interact(
    knobs,
    N=IntSlider(150, min=1, max=300),
    block=SelectionSlider(value=32, options=[8, 16, 32, 64, 128]),
    programs=IntSlider(5, min=1, max=20),
    dealt=Checkbox(False, description="dealt"),
)

# %% [markdown]
# Three things to try: the fewest programs that leave nothing grey; a block so large that most lanes idle; and a grid that is too small, dealt out like cards. Who loses then, compared with blocks?
#
# ## What we measured
#
# - A launch is programs, each with a number, in no order; the log says who touched what. Dealing elements out in blocks or like cards gives the same result.
# - A missing mask, overlapping blocks and a wrong row stride are told in a sentence; a grid that is too small and undefined lanes come out as NaN (measured here, in the checked interpreter).
# - Transposing by rows costs eight bytes for each useful one on one side; any tile with eight neighbours both ways costs none extra (computed, by a model of sectors).
# - Triton's own interpreter adds bfloat16 *codes*: 64 of 64 sums are explained by that (measured here).
# - A racing kernel passed 50 of 50 tests. Its own steps, in another order, lost 26 of 68 letters; two programs in flight were enough to lose some in nearly every order (computed, by replaying the log). Looking at accesses names the race without any unlucky order.
# - Fusing three kernels halved the bytes. The compiler merged equal loads by itself, and did fetch back what had just been stored (compiled for sm_90).
# - Wide loads hang on the address *and* on the mask: 4,100 elements instead of 4,096 made four times as many load instructions. `tl.dot` wants K of 16, and one row costs what sixteen do (compiled for sm_90).
#
# Not shown, because a CPU cannot: any time; caches; how many programs are in flight; an actual lost update. The machine code is real, and nothing here ran it.
#
# **What surprised:** that a test may pass forever because of what runs it; that a wrong sum in bfloat16 comes without a warning; that a correct sum by atomics has more than one value; and that a mask decides how wide a load is.
#
# **To read**
#
# - Tillet, Kung and Cox 2019, *Triton: An Intermediate Language and Compiler for Tiled Neural Network Computations* (MAPL), sections 1 to 3.
# - Triton's tutorials, *Vector Addition*, *Fused Softmax* and *Matrix Multiplication*, in this order.
# - Sasha Rush's *Triton Puzzles*, an ancestor of this lab.
# - NVIDIA's *CUDA C++ Best Practices Guide*, "Coalesced Access to Global Memory".
#
# **Now the lab:** `labs/09_triton_puzzles.ipynb`. Twelve puzzles, from a copy to a matrix product by tiles, with one new idea each; every answer is watched as above, and then compiled for an H100.
