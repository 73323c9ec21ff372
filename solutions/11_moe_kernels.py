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
# # Lab 11 · Kernels of a mixture of experts
#
# A router sends each token to a few experts, and how many rows an expert gets nobody knows before it happens. Here you write what runs the experts all the same in a handful of launches: the order of tiles, a counting sort, a table of tiles, two grouped products and the weighted sum. At the end your six functions
# are the routed experts of a DeepSeek-style layer, and equal the model's.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **11.1 and 11.3 are plain functions** on tensors and numbers. **11.2, 11.4, 11.5 and 11.6 are kernels**: a function that launches at least one Triton kernel of your own, in one cell with its kernels. The parameters of the kernels are a suggestion; change them, split a kernel or write a
#   second one, as you like. Only the function's name and arguments stay.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: **T** tokens, **K** slots (experts a token), **P** = T K pairs of a token and a slot, **E** experts, **E1** = E + 1, **D** width, **I** hidden width of an expert, **F** = 2I, **B** tiles, **N** columns of a result. Pair p is slot p % K of token p // K.
# - Stuck? `course hint 11.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# What holds for the kernels:
#
# - They run in an interpreter on the CPU that tells of lanes outside a tensor, of two programs at one element of which one writes, and of NaN in what was never loaded or written. (Where both use atomics nothing is lost, and nothing told; 11.2 and 11.6 say why they do without.) An answer that is right is then compiled for an H100 (sm_90), without a GPU: the sizes of a `tl.dot` are powers of two from 16 up.
# - All tensors are contiguous, those you get and those you return. Floats are float32 or bfloat16. **Compute in float32** and **round once**, at the end. Give `tl.dot` the setting `input_precision="ieee"`: without it float32 is cut to TF32, with 10 bits of fraction, by a GPU and by the check alike.
# - Lanes that are masked off hold on a GPU whatever was there, unless you give `other`. The interpreter fills them with NaN, and whole numbers with 8911984642227026640, which is no row; in one case of 11.2 it is an expert. Give `other` wherever such a lane could count.
# - Whole numbers that count rows are **int64**, in results and in what is multiplied by a row's length. `tl.program_id` has 32 bits until you convert it (`.to(tl.int64)`).
# - The arithmetic belongs in kernels. Beside them PyTorch **allocates, fills and views, and reads nothing**: a copy (of transposed weights, too), a cast, a sum, arithmetic on ids and counts such as `tril() @ counts` do not pass. Give a new tensor its dtype when you make it. A copy that a kernel of your own makes is allowed; its bytes count like all others. Results have memory of their own.
# - A float32 result is compared by the norm of the error, 1e-5 of the norm of what is right. A bfloat16 result has to be the nearest bfloat16; one number in 50 may be its neighbour. Whole numbers are compared exactly.
# - Where there are no tokens, results have no rows either, and no kernel need be launched.
# - **The host does not wait for the device.** On a GPU, `.item()`, `.tolist()`, `int()`, `bool()`, an `if` on a tensor's value, a tensor as the bound of a slice or range, or an index by a mask (`a[a > 0]`: how long is it?) stop the host until all launches before it are done. From 11.2 to 11.6 they are out of bounds: sizes of results and grids follow from shapes and from plain numbers.
# - **What the check does not see.** Offsets of 32 bits wrap around only in a tensor of more than 2³¹ elements, and no case can hold one: with rows of 7,168 numbers that is from row 299,594 on, with V3's experts (each 4,096 x 7,168) from expert 74 on. Numbers that are read inside a tensor and thrown away leave no trace in a result. Look for these yourself.

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

import os

os.environ["TRITON_INTERPRET"] = "1"  # also beside a GPU: the interpreter counts bytes
del os

import triton
import triton.language as tl

# %% [markdown]
# ## 11.1 · To and fro
#
# A product of M x N is cut into tiles of `block_m` x `block_n`, and each program computes one. Which one? The programs that run at the same time, a *wave*, find each other's blocks in the L2 cache. So their tiles should lie in a compact patch, and that is what a grouped order is for. Yours has one thing more: every second group goes back.
#
# - There are ⌈M / block_m⌉ rows of tiles and ⌈N / block_n⌉ columns of tiles. Tiles at the right and at the lower edge may stick out.
# - Rows of tiles are taken in **groups** of `group`, from the top: group 0, 1, 2, ... The last group may have fewer.
# - Within a group the programs go **down a column**, all its rows of tiles from the top, then to the next column.
# - Groups 0, 2, 4, ... take their columns from left to right, **groups 1, 3, 5, ... from right to left**.
# - Programs run in waves of `wave`, in the order of their numbers; the last wave may be shorter. Of each wave count how many different rows of tiles (blocks of the left matrix) and how many different columns of tiles (blocks of the right one) it wants.
#
# The example is case 1: M 33, N 40, blocks of 16 x 16, group 2, wave 4. There are 3 x 3 tiles. Group 0 has two rows: (0,0), (1,0), (0,1), (1,1), (0,2), (1,2). Group 1 has one, and goes back: (2,2), (2,1), (2,0). The first four programs want 2 rows and 2 columns, the next four (0,2), (1,2), (2,2), (2,1): 3 rows and 2 columns; the last one 1 and 1.
#
# | | shape | |
# |---|---|---|
# | `M`, `N` | int | 0 or more; where either is 0, there is no tile |
# | `block_m`, `block_n`, `group`, `wave` | int | 1 or more |
# | returns `places` | `[programs, 2]` int64 | row and column of tiles of each program |
# | returns `wanted` | `[waves, 2]` int64 | different rows, different columns of each wave |
#
# **Exercise 11.1** · difficulty 2 of 5 · 25 minutes · 10 points


# %% tags=["exercise:11.1"]
# exercise 11.1
def tile_order(M: int, N: int, block_m: int, block_n: int, group: int, wave: int) -> tuple[Tensor, Tensor]:
    """Each program's tile, and what each wave of programs wants to read."""
    ### BEGIN SOLUTION
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for band, top in enumerate(range(0, rows, group)):
        there = range(columns) if band % 2 == 0 else range(columns - 1, -1, -1)
        places += [(row, column) for column in there for row in range(top, min(top + group, rows))]
    wanted = []
    for begin in range(0, len(places), wave):
        of_rows, of_columns = zip(*places[begin : begin + wave], strict=True)
        wanted.append((len(set(of_rows)), len(set(of_columns))))
    return torch.tensor(places).long().view(-1, 2), torch.tensor(wanted).long().view(-1, 2)
    ### END SOLUTION


# %% tags=["check:11.1", "nbval-check-output"]
check("11.1", tile_order)

# %% [markdown]
# ## 11.2 · Counts, offsets, places
#
# With expert parallelism a GPU holds some of the experts: here `held` of them, those with the global numbers `first`, `first + 1`, ..., `first + held - 1`. It is shown all ids, and has to line up the pairs that are its own:
#
# - `counts[e]`: how many pairs the e-th expert **here** has (global number first + e).
# - `offsets[e]`: where its rows begin, if all rows lie one expert after the other without gaps. `offsets[0]` is 0, `offsets[held]` the number of all rows.
# - `places[t, k]`: the row of pair (t, k). **Within an expert pairs keep their order**: by token, then by slot. A pair that belongs to no expert here (an id below `first`, -1 too, or from `first + held` on) has the place **-1**.
# - **No race, no atomics.** A load, an addition and a store to one counter from two programs lose updates; the interpreter runs one program after the other and would not show it, but it writes down who touched what, and the check refuses it. Atomic counters do not lose anything, but hand out places in the order in which programs arrive, so the
#   rows would come in another order each time: `tl.atomic_*` is out of bounds.
# - So is PyTorch's counting: sort, argsort, topk, sum, cumsum, bincount, histc, unique, searchsorted, bucketize, scatter, index_add, index_put, nonzero, count_nonzero, one_hot. And so is all other arithmetic of PyTorch's on ids, counts or offsets, element by element or as a product: it may allocate, fill and view, and the kernels count.
#
# Some ways that work: one launch that counts, for spans of neighbouring pairs, into a table with a row a span; one program that turns the table into running sums; one launch that places. Or two launches with a program an expert, which walks over all pairs. (`tl.sum` and `tl.cumsum` along an axis are at hand.)
#
# The example is case 1: first 3, held 2, ids `[[4, 2], [3, 4], [-1, 5], [4, 3]]`. Expert 3 has two pairs, expert 4 three: counts `[2, 3]`, offsets `[0, 2, 5]`, places `[[2, -1], [0, 3], [-1, -1], [4, 1]]`.
#
# | | shape | |
# |---|---|---|
# | `ids_TK` | `[T, K]` int64 | global numbers of experts, or -1 |
# | `first`, `held` | int | 0 or more, and in one case as large as only int64 holds; 1 or more |
# | returns `counts` | `[held]` int64 | zeros where there is no pair |
# | returns `offsets` | `[held + 1]` int64 | |
# | returns `places` | `[T, K]` int64 | |
#
# The least bytes: 16 a pair, an id in and a place out. Counting and placing in two launches read the ids twice: 24, and a table. A program an expert reads all ids for each expert, twice.
#
# **Exercise 11.2** · difficulty 4 of 5 · 50 minutes · 15 points · spine


# %% tags=["exercise:11.2"]
# exercise 11.2
@triton.jit
def count_kernel(ids, table, P, first, held, SPAN: tl.constexpr, BINS: tl.constexpr):
    """One program for SPAN pairs."""
    ### BEGIN SOLUTION
    span = tl.program_id(0).to(tl.int64)
    p = span * SPAN + tl.arange(0, SPAN)
    e = tl.arange(0, BINS)
    expert = tl.load(ids + p, mask=p < P, other=-1) - first
    met = (expert[:, None] == e[None, :]).to(tl.int32)
    tl.store(table + span * held + e, tl.sum(met, axis=0).to(tl.int64), mask=e < held)
    ### END SOLUTION


@triton.jit
def prefix_kernel(table, counts, offsets, spans, held, BINS: tl.constexpr):
    """A single program."""
    ### BEGIN SOLUTION
    e = tl.arange(0, BINS)
    so_far = tl.zeros([BINS], tl.int64)
    for span in range(0, spans):
        met = tl.load(table + span * held + e, mask=e < held, other=0)
        tl.store(table + span * held + e, so_far, mask=e < held)
        so_far += met
    tl.store(counts + e, so_far, mask=e < held)
    tl.store(offsets + e + 1, tl.cumsum(so_far), mask=e < held)
    tl.store(offsets, 0)
    ### END SOLUTION


@triton.jit
def place_kernel(ids, table, offsets, places, P, first, held, SPAN: tl.constexpr, BINS: tl.constexpr):
    """One program for SPAN pairs."""
    ### BEGIN SOLUTION
    span = tl.program_id(0).to(tl.int64)
    p = span * SPAN + tl.arange(0, SPAN)
    e = tl.arange(0, BINS)
    expert = tl.load(ids + p, mask=p < P, other=-1) - first
    met = ((expert[:, None] == e[None, :]) & (e < held)[None, :]).to(tl.int32)
    rank = tl.sum(met * tl.cumsum(met, axis=0), axis=1)  # 0 for a pair that is none of ours
    ours = rank > 0
    begin = tl.load(offsets + expert, mask=ours, other=0) + tl.load(table + span * held + expert, mask=ours, other=0)
    tl.store(places + p, tl.where(ours, begin + rank - 1, -1), mask=p < P)
    ### END SOLUTION


def expert_places(ids_TK: Tensor, first: int, held: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, offsets and places of the pairs that go to experts first ... first + held - 1."""
    ### BEGIN SOLUTION
    P, span, bins = ids_TK.numel(), 32, triton.next_power_of_2(held)
    spans = triton.cdiv(P, span)
    table_SE = torch.empty(spans, held, dtype=torch.int64)
    counts_E, offsets_E1 = torch.empty(held, dtype=torch.int64), torch.empty(held + 1, dtype=torch.int64)
    places_TK = torch.empty_like(ids_TK)
    count_kernel[(spans,)](ids_TK, table_SE, P, first, held, SPAN=span, BINS=bins)
    prefix_kernel[(1,)](table_SE, counts_E, offsets_E1, spans, held, BINS=bins)
    place_kernel[(spans,)](ids_TK, table_SE, offsets_E1, places_TK, P, first, held, SPAN=span, BINS=bins)
    return counts_E, offsets_E1, places_TK
    ### END SOLUTION


# %% tags=["check:11.2", "nbval-check-output"]
check("11.2", expert_places)

# %% [markdown]
# ## 11.3 · A table of tiles
#
# A tile of a grouped product holds up to `block` rows **of one expert**, since it multiplies them with one weight. An expert with 5 rows and tiles of 4 has two tiles, the second with a single row; an expert with no rows has none. Write the table that tells a program what its tile is. PyTorch on tensors, no kernel, and **no wait for the device**.
#
# - `aligned[e]` is where expert e would begin if the rows of each expert were padded to a multiple of `block`; `aligned[E]` is the end of all. (Kernels that pad, such as vLLM's, lay the rows out like that.) Tile b begins at b `block` in that layout.
# - Tile b has its expert, the **first** of its rows, and its **height**, the number of its rows, from 1 to `block`. First is the place among the sorted rows **without** gaps, as 11.2 has them.
# - How many tiles there are only the device knows: it has the counts. So the table is as long as **any** way to share `pairs` pairs among E experts could need, and **no longer**: the least such length, which you find from `pairs`, `block` and E. The counts may add up to less than `pairs`, as some pairs were dropped.
# - Tiles that there are not come last: expert -1, first 0, height 0.
# - Out of bounds: `.item()`, `.tolist()`, `.numpy()`, `int()`, `float()`, `bool()` of a tensor, a tensor as the bound of a slice or a range, nonzero, argwhere, `torch.where` with a condition alone, masked_select, an index by a mask (`counts_E[counts_E > 0]`), unique, bincount, repeat_interleave. They make the host wait. All that has a shape known beforehand is fine: arithmetic, comparisons, cumsum, searchsorted, `torch.where` with two values, and looking values up by a tensor of indices, `a[indices]`.
#
# The example is case 1: counts `[5, 0, 4, 1]`, 12 pairs, so two were dropped; block 4. Four experts can need six tiles for 12 pairs: `[9, 1, 1, 1]` does. Here there are four. aligned `[0, 8, 8, 12, 16]`, experts `[0, 0, 2, 3, -1, -1]`, firsts `[0, 4, 5, 9, 0, 0]`, heights `[4, 1, 4, 1, 0, 0]`.
#
# | | shape | |
# |---|---|---|
# | `counts_E` | `[E]` int64 | E is 1 or more; any may be 0, all too |
# | `pairs` | int | at least the sum of the counts; 0 too |
# | `block` | int | 1 or more |
# | returns `aligned` | `[E + 1]` int64 | |
# | returns `experts`, `firsts`, `heights` | `[B]` int64 each | |
#
# **Exercise 11.3** · difficulty 3 of 5 · 30 minutes · 10 points


# %% tags=["exercise:11.3"]
# exercise 11.3
def tile_table(counts_E: Tensor, pairs: int, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where padded experts begin; and of each tile its expert, first row and height."""
    ### BEGIN SOLUTION
    E = len(counts_E)
    B = pairs if pairs < E else E + (pairs - E) // block  # the worst: one row for each, and all others to one
    last_E = ((counts_E + block - 1) // block).cumsum(0)  # tiles up to the end of each expert
    tile_B = torch.arange(B)
    expert_B = (last_E[None, :] <= tile_B[:, None]).sum(dim=1)
    own_B = expert_B.clamp(max=E - 1)
    aligned_E1 = F.pad(last_E * block, (1, 0))
    past_B = tile_B * block - aligned_E1[own_B]  # rows of the expert in tiles before
    first_B = (counts_E.cumsum(0) - counts_E)[own_B] + past_B
    height_B = (counts_E[own_B] - past_B).clamp(max=block)
    there_B = expert_B < E
    return aligned_E1, expert_B.where(there_B, -1), first_B.where(there_B, 0), height_B.where(there_B, 0)
    ### END SOLUTION


# %% tags=["check:11.3", "nbval-check-output"]
check("11.3", tile_table)

# %% [markdown]
# ## 11.4 · A grouped product
#
# All experts' products in one launch. Rows offsets[e] ... offsets[e + 1] - 1 belong to expert e:
#
# $$\textit{out}_p = \mathrm{round}\bigl(\textit{rows}_p \cdot W_e + b_e\bigr) \qquad \text{for } \textit{offsets}_e \le p < \textit{offsets}_{e+1}$$
#
# - The weights are `[E, K, N]`: an expert's matrix stands ready for rows @ weight, not transposed. (Here K is the length of the sum, and no number of slots.) `bias_EN` may be None, and may then be passed to a kernel: there it is a constant.
# - The table of 11.3 is not at hand, only the offsets, and only on the device. A program **finds its tile by itself**: it loads the offsets (E is small enough for one block) and works out which expert its tile belongs to. How many tiles to launch follows from P and E alone; surplus programs do nothing.
# - **No tile may spill**: the last tile of an expert must not write rows of the next one. Two programs that write the same row are a race, and told. Mask the loads as well: rows of the next expert that are read, multiplied and not stored are wasted bytes, though the check does not see them.
# - Rows from offsets[E] on belong to nobody. They may hold NaN; their result is **0**.
# - Add over K in float32, add the bias in float32, round once.
# - One launch for all experts is the point. The check sees values and not launches; the last cells count them.
# - The offset of an expert's weight, e K N, and of a row, p K and p N, are where 32 bits do not suffice. Numbers loaded from `offsets_E1` are int64: leave them so.
# - Out of bounds: what makes the host wait (`.item()`, `.tolist()`, `int()`, a tensor as the bound of a slice), PyTorch's products, and copies of rows or weights made by PyTorch.
#
# The example is case 1: four rows `[1, 2]`, `[3, 4]`, `[5, 6]`, `[7, 8]`, three experts, N = 1, offsets `[0, 1, 1, 3]`. Expert 0 has the weight `[[1], [0]]` and the bias 0.5, expert 1 has no rows, expert 2 has `[[0], [1]]` and -0.5. The last row is nobody's. The result is `[[1.5], [3.5], [5.5], [0]]`.
#
# | | shape | |
# |---|---|---|
# | `rows_PK` | `[P, K]` | float32 or bfloat16; K is 1 or more |
# | `weight_EKN` | `[E, K, N]` | of the rows' dtype; E is 1 or more, small |
# | `bias_EN` | `[E, N]`, or None | of the rows' dtype |
# | `offsets_E1` | `[E + 1]` int64 | from 0, never falling, to P at most |
# | returns | `[P, N]` | of the rows' dtype |
#
# The least bytes: rows, results, and the weights of experts that have rows, each once. A program a tile reads its expert's columns of the weight once a tile, so tall tiles read less.
#
# **Exercise 11.4** · difficulty 4 of 5 · 45 minutes · 15 points · spine


# %% tags=["exercise:11.4"]
# exercise 11.4
@triton.jit
def grouped_kernel(
    rows, weight, bias, offsets, out, E, K, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """One program for a tile of one expert's rows and BLOCK_N columns."""
    ### BEGIN SOLUTION
    tile, e = tl.program_id(0), tl.arange(0, EXPERTS)
    begins = tl.load(offsets + e, mask=e < E, other=0)
    tiles = (tl.load(offsets + e + 1, mask=e < E, other=0) - begins + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum(((tl.cumsum(tiles) <= tile) & (e < E)).to(tl.int64))  # those whose tiles all come before
    if expert == E:
        return
    p = tl.load(offsets + expert) + (tile - tl.sum(tl.where(e < expert, tiles, 0))) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = (p < tl.load(offsets + expert + 1))[:, None]
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    weight += expert * K * N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        left = tl.load(rows + p[:, None] * K + k[None, :], mask=own & (k < K)[None, :], other=0.0)
        right = tl.load(weight + k[:, None] * N + n, mask=(k < K)[:, None] & (n < N), other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + expert * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + p[:, None] * N + n, total.to(out.dtype.element_ty), mask=own & (n < N))
    ### END SOLUTION


def grouped_product(rows_PK: Tensor, weight_EKN: Tensor, bias_EN: Tensor | None, offsets_E1: Tensor) -> Tensor:
    """Each expert's rows times its weight, plus its bias; 0 for rows that are nobody's."""
    ### BEGIN SOLUTION
    P, (E, K, N) = len(rows_PK), weight_EKN.shape
    out_PN = torch.zeros(P, N, dtype=rows_PK.dtype)
    grouped_kernel[(P // 16 + E, triton.cdiv(N, 64))](
        rows_PK, weight_EKN, bias_EN, offsets_E1, out_PN, E, K, N,
        BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, EXPERTS=triton.next_power_of_2(E),
    )  # fmt: skip
    return out_PN
    ### END SOLUTION


# %% tags=["check:11.4", "nbval-check-output"]
check("11.4", grouped_product)

# %% [markdown]
# ## 11.5 · The gather inside
#
# The experts' first product reads tokens, and a token goes to several experts. Copying it once for each of them, sorted, costs K rows written and K rows read again. Leave the tokens where they lie, and let the product gather them: a tile loads the numbers of its pairs, and then those rows. And since gate and up are computed by the same program, SwiGLU is done before anything is written:
#
# $$\textit{out}_r = \mathrm{silu}(g_r)\cdot u_r, \qquad g_r = x_t \cdot \textit{gate}_e^{\top}, \quad u_r = x_t \cdot \textit{up}_e^{\top}, \qquad t \text{ the token of row } r$$
#
# - This time the **table of 11.3 is given**: tile b holds rows firsts[b] ... firsts[b] + heights[b] - 1 of the result, all of expert experts[b]. Tiles with the expert -1 have height 0: nothing to do. `block` is the greatest height, and how the table was cut.
# - `pairs_P[r]` is the pair that came to lie in row r: its token is t = pairs[r] // `top_k`. In rows that no tile holds it is -1, and the result there is **0**.
# - An expert's weight has its I rows of gate first, then its I rows of up: `[E, 2I, D]`, row by row as in `course.model`.
# - silu(z) = z sigmoid(z). Gate and up stay in float32; round once, after SwiGLU.
# - The offset of a token, t D, and of an expert's weight, e 2I D, are int64, as the numbers in the table are. The check cannot tell.
# - Out of bounds: a copy of the tokens or of the weights made by PyTorch, gathered or transposed; its products; and what makes the host wait. A kernel of yours that gathers the tokens first would pass, and spend just the bytes that this exercise is to save.
#
# The example is case 1: tokens `[1, 0]` and `[0, 2]`, top_k 2, I = 1. Expert 0 has gate `[1, 1]` and up `[3, 0.5]`, expert 1 has `[2, 0]` and `[1, 1]`. pairs `[1, 2, 0, -1]`, experts `[0, 1]`, firsts `[0, 2]`, heights `[2, 1]`, block 16. Row 0 is pair 1, so token 0, at expert 0: silu(1) · 3 = 2.193176. Row 1 is pair 2, token 1: silu(2) · 1 = 1.761594. Row 2 is pair 0, token 0, at
# expert 1: silu(2) · 1 again. Row 3 is in no tile: 0.
#
# | | shape | |
# |---|---|---|
# | `x_TD` | `[T, D]` | float32 or bfloat16 |
# | `gate_up_EFD` | `[E, 2I, D]` | of x's dtype |
# | `pairs_P` | `[P]` int64 | sorted by expert; P may be more or less than T |
# | `experts_B`, `firsts_B`, `heights_B` | `[B]` int64 each | |
# | `top_k` | int | 1 or more |
# | `block` | int | a power of two from 16 up |
# | returns | `[P, I]` | of x's dtype |
#
# The least bytes: tokens, results, and the weights of experts that have rows, each once. A tile reads its tokens again for each block of columns, on a chip from the cache.
#
# **Exercise 11.5** · difficulty 4 of 5 · 40 minutes · 15 points


# %% tags=["exercise:11.5"]
# exercise 11.5
@triton.jit
def gate_up_kernel(
    x, weight, pairs, experts, firsts, heights, out, D, inner, top_k,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program for a tile of the table and BLOCK_I columns of the result."""
    ### BEGIN SOLUTION
    tile, m = tl.program_id(0), tl.arange(0, BLOCK_M)
    height = tl.load(heights + tile)
    if height == 0:
        return
    row = tl.load(firsts + tile) + m
    token = tl.load(pairs + row, mask=m < height, other=0) // top_k
    i = (tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I))[None, :]
    to_gate = weight + (tl.load(experts + tile) * 2 * inner + i) * D
    gate, up = tl.zeros([BLOCK_M, BLOCK_I], tl.float32), tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
    for begin in range(0, D, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        seen = tl.load(x + token[:, None] * D + d[None, :], mask=(m < height)[:, None] & (d < D)[None, :], other=0.0)
        inside = (i < inner) & (d < D)[:, None]
        gate = tl.dot(seen, tl.load(to_gate + d[:, None], mask=inside, other=0.0), gate, input_precision="ieee")
        up = tl.dot(seen, tl.load(to_gate + inner * D + d[:, None], mask=inside, other=0.0), up, input_precision="ieee")
    gated = gate * tl.sigmoid(gate) * up
    tl.store(out + row[:, None] * inner + i, gated.to(out.dtype.element_ty), mask=(m < height)[:, None] & (i < inner))
    ### END SOLUTION


def gather_gate_up(
    x_TD: Tensor, gate_up_EFD: Tensor, pairs_P: Tensor,
    experts_B: Tensor, firsts_B: Tensor, heights_B: Tensor, top_k: int, block: int,
) -> Tensor:  # fmt: skip
    """silu(gate) * up of each pair's token by its expert, in the order of the experts."""
    ### BEGIN SOLUTION
    D, inner = x_TD.shape[1], gate_up_EFD.shape[1] // 2
    out_PI = torch.zeros(len(pairs_P), inner, dtype=x_TD.dtype)
    gate_up_kernel[(len(experts_B), triton.cdiv(inner, 64))](
        x_TD, gate_up_EFD, pairs_P, experts_B, firsts_B, heights_B, out_PI, D, inner, top_k,
        BLOCK_M=block, BLOCK_I=64, BLOCK_D=64,
    )  # fmt: skip
    return out_PI
    ### END SOLUTION


# %% tags=["check:11.5", "nbval-check-output"]
check("11.5", gather_gate_up)

# %% [markdown]
# ## 11.6 · The weighted sum
#
# The last step brings every token's rows home. A kernel where each *row* adds itself to its token needs atomics, and its last digits depend on who comes first. Turn it round: each **token gathers** its rows, and adds the shared expert's on top:
#
# $$\textit{out}_t = \mathrm{round}\Bigl(\sum_{k} w_{tk}\; y_{\textit{places}_{tk}} + \textit{shared}_t\Bigr)$$
#
# - A place of **-1** is a dropped pair, or one of another GPU. It adds nothing. **No row is read for it**: in one case y has no rows at all, so that any read is one outside. And its weight may be **NaN**, of which nothing may come through. Mask its load too; one that is loaded and thrown away the check does not see.
# - The other weights are taken as they are; they need not add up to 1.
# - `shared_TD` may be None. It has the weight 1. None may be passed to a kernel, where it is a constant; a tensor of zeros in its place is a row written and a row read a token, for nothing, and the check does not see it.
# - Sum in float32, with the shared row in it, and round once. Each element of the result is written once, by one program, and the same inputs give the same bits: `tl.atomic_*` is out of bounds.
# - Offsets of a place, of a token and of a pair (place D, t D, t K) are int64, also those that begin with `tl.program_id`; the check cannot tell. D is any number from 1 up to some thousands.
#
# The example is case 1: y is `[[1, 2], [10, 20], [100, 200]]`, places `[[2, 0], [-1, 1], [-1, -1]]`, weights `[[0.5, 2], [NaN, 0.25], [7, 8]]`, shared `[[1, 1], [0, -1], [3, 4]]`. The result is `[[53, 105], [2.5, 4], [3, 4]]`.
#
# | | shape | |
# |---|---|---|
# | `y_RD` | `[R, D]` | float32 or bfloat16; R is 0 or more |
# | `places_TK` | `[T, K]` int64 | rows of y, or -1 |
# | `weights_TK` | `[T, K]` float32 | |
# | `shared_TD` | `[T, D]`, or None | of y's dtype |
# | returns | `[T, D]` | of y's dtype |
#
# The least bytes: K + 2 rows a token (K of y, one of shared, one out), and 12 K for places and weights.
#
# **Exercise 11.6** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:11.6"]
# exercise 11.6
@triton.jit
def combine_kernel(y, places, weights, shared, out, D, K: tl.constexpr, BLOCK: tl.constexpr):
    """One program for BLOCK elements of a token."""
    ### BEGIN SOLUTION
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        place = tl.load(places + t * K + k)
        weight = tl.load(weights + t * K + k, mask=place >= 0, other=0.0)
        total += weight * tl.load(y + place * D + d, mask=(place >= 0) & (d < D), other=0.0).to(tl.float32)
    if shared is not None:
        total += tl.load(shared + t * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)
    ### END SOLUTION


def weighted_combine(y_RD: Tensor, places_TK: Tensor, weights_TK: Tensor, shared_TD: Tensor | None) -> Tensor:
    """Each token's weighted sum of its rows, and its shared row."""
    ### BEGIN SOLUTION
    (T, K), D = places_TK.shape, y_RD.shape[1]
    out_TD, block = torch.empty(T, D, dtype=y_RD.dtype), min(triton.next_power_of_2(D), 1024)
    combine_kernel[(T, triton.cdiv(D, block))](y_RD, places_TK, weights_TK, shared_TD, out_TD, D, K=K, BLOCK=block)
    return out_TD
    ### END SOLUTION


# %% tags=["check:11.6", "nbval-check-output"]
check("11.6", weighted_combine)

# %% [markdown]
# ## A layer on your kernels
#
# No exercise from here on: run the cells. `mine("11.1")` is your own function once it has passed, and the course's until then.
#
# Here is a layer of `course.model`: 16 experts, 4 of them for each of 40 tokens, one shared expert, and a bias in the router that makes the load as uneven as it is before training has evened it out.

# %%
from dataclasses import replace

from course.kernels.checked import checked
from course.model import ModelConfig
from course.model.moe import MoE

names = ("11.1", "11.2", "11.3", "11.5", "11.4", "11.6")  # in the order in which a layer needs them
own, launches = {name: mine(name) for name in names}, {}

torch.manual_seed(2)
sizes = dict(width=96, expert_width=48, experts=16, top_k=4, shared_experts=1, groups=1, top_groups=1)
config = replace(ModelConfig.preset("tiny-deepseek-v3"), **sizes)
layer = MoE(config).requires_grad_(False)
layer.bias_E += 0.004 * torch.linspace(3, -3, config.experts)[torch.randperm(config.experts)] ** 3
x_TD = torch.randn(40, config.width)
y_TD, routing = layer(x_TD)
ids_TK, weights_TK = routing.indices_TK.contiguous(), routing.weights_TK
print("rows of each expert:", ids_TK.flatten().bincount(minlength=config.experts).tolist())

# %% [markdown]
# And here is the same layer on your six functions. Between them only views, and one line that turns places round: from *where does a pair go* to *which pair lies here*.


# %%
def run(name, *arguments):
    """One of your functions, in the checked interpreter; its launches are kept."""
    with checked() as log:
        result = own[name](*arguments)
    launches[name] = log.launches
    return result


def routed(x_TD, ids_TK, weights_TK, first, held, shared_TD, block=16):
    """What the experts first ... first + held - 1 have to say about these tokens, plus what is shared."""
    P, here = ids_TK.numel(), slice(first, first + held)
    counts_E, offsets_E1, places_TK = run("11.2", ids_TK, first, held)
    _, *tiles = run("11.3", counts_E, P, block)
    pairs_P = torch.full([P + 1], -1)
    pairs_P[places_TK.flatten()] = torch.arange(P)  # a place of -1 is the one more at the end
    pairs_P = pairs_P[:-1].clone()
    gated_PI = run("11.5", x_TD, layer.gate_up_EFD[here], pairs_P, *tiles, ids_TK.shape[1], block)
    y_PD = run("11.4", gated_PI, layer.down_EDI[here].transpose(1, 2).contiguous(), None, offsets_E1)
    return run("11.6", y_PD, places_TK, weights_TK, shared_TD), counts_E, tiles


# %%
got_TD, counts_E, (experts_B, firsts_B, heights_B) = routed(
    x_TD, ids_TK, weights_TK, 0, config.experts, layer.shared(x_TD)
)
whole = dict(launches)
apart = ((got_TD - y_TD).norm() / y_TD.norm()).item()
print(f"off from the model's layer by {apart:.0e} of its length")
assert apart < 1e-5
for name, made in whole.items():
    for each in made:
        moved = f"loads {each.load_bytes:9,} bytes, stores {each.store_bytes:7,}"
        print(f"{name} {each.kernel:18s} grid {list(each.grid)!s:9s} {moved}")

# %% [markdown]
# Equal to float32's last digits, and no launch more if there were 256 experts.
#
# ## Whose rows a program has
#
# From the log: each row of the down product's result, in the colour of its tile. Below it, in grey and white, whose rows they are.

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
rows, strip = dict(aspect="auto", interpolation="nearest"), int(counts_E.sum())
tile_of_row = np.full(strip, np.nan)
stores = [a for each in whole["11.4"] for a in each.accesses if a.kind == "store"]
for number, program in enumerate(dict.fromkeys(a.program[0] for a in stores)):
    touched = np.concatenate([a.elements // config.width for a in stores if a.program[0] == program])
    tile_of_row[touched[touched < strip]] = number % 10
owner = np.repeat(np.arange(len(counts_E)) % 2, counts_E.numpy())
figure, axis = plt.subplots(figsize=(9.5, 2.2))
axis.imshow(tile_of_row[None], cmap="tab10", extent=(0, strip, 0, 1), **rows)
axis.imshow(owner[None], cmap="Greys", extent=(0, strip, -0.6, -0.1), vmax=2, **rows)
axis.set(xlabel="row, sorted by expert", ylim=(-0.6, 1), xlim=(0, strip))
axis.set_title("Tiles of the down product, and experts")
axis.set_yticks([0.5, -0.35], ["program", "expert"])
axis.grid(visible=False)
plt.show()
there_B = heights_B[experts_B >= 0]
print(f"{len(experts_B)} tiles could have been, {len(there_B)} are, {int((there_B < 16).sum())} of them are not full")

# %% [markdown]
# *Figure: a strip of all rows, sorted by expert. Above, the colour of the program that wrote a row; below, grey and white stripes for the experts. Colours change at every border of two experts, and inside a large expert after each full tile; none crosses a border. (Where a program walks over many tiles, the strip has fewer colours.)*
#
# ## Two GPUs
#
# The same layer with its experts shared out: one GPU holds experts 0 to 7, the other 8 to 15, and each sees all tokens. What they say is added; the shared expert speaks once.

# %%
one_TD, counts_one, _ = routed(x_TD, ids_TK, weights_TK, 0, 8, layer.shared(x_TD))
other_TD, counts_other, _ = routed(x_TD, ids_TK, weights_TK, 8, 8, None)
print(f"{int(counts_one.sum())} and {int(counts_other.sum())} rows")
apart = ((one_TD + other_TD - y_TD).norm() / y_TD.norm()).item()
print(f"together off from the whole layer by {apart:.0e}")
assert apart < 1e-5

# %% [markdown]
# That is expert parallelism without its network: unit 16 adds the sending.
#
# ## Bytes
#
# What the log counts, beside eager PyTorch, which gathers the rows, runs one product after another, and adds up. Both count what is asked for: a weight that three tiles ask for counts three times. What the experts' weights weigh, each once, is shown apart.

# %%
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write. A view moves nothing; a pick moves what it picks."""

    bytes, calls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        picks = func.overloadpacket.__name__.startswith(("gather", "index_select"))
        moves = not func.is_view and func.overloadpacket.__name__ not in ("_unsafe_view", "detach")
        self.calls += moves
        self.bytes += (2 * result.nbytes if picks else sum(sizes)) if moves else 0
        return result


def eager(x_TD, ids_TK, weights_TK):
    """Expert after expert."""
    y_TD = torch.zeros_like(x_TD)
    for e, (gate_up_FD, down_DI) in enumerate(zip(layer.gate_up_EFD, layer.down_EDI, strict=True)):
        token_R, slot_R = torch.where(ids_TK == e)
        gate_RI, up_RI = F.linear(x_TD.index_select(0, token_R), gate_up_FD).chunk(2, dim=-1)
        rows_RD = F.linear(F.silu(gate_RI) * up_RI, down_DI) * weights_TK[token_R, slot_R, None]
        y_TD.index_add_(0, token_R, rows_RD)
    return y_TD


# %%
with Traffic() as traffic:
    eager_TD = eager(x_TD, ids_TK, weights_TK)
torch.testing.assert_close(eager_TD + layer.shared(x_TD), y_TD)
weights_bytes = int((counts_E > 0).sum()) * 3 * config.width * config.expert_width * 4
made = [each for its in whole.values() for each in its]
moved = sum(each.load_bytes + each.store_bytes for each in made)
print(f"eager: {traffic.calls} operations, {traffic.bytes:,} bytes")
print(f"kernels: {len(made)} launches, {moved:,} bytes")
print(f"weights of the experts that have rows, once: {weights_bytes:,} bytes")

# %% [markdown]
# The number of operations grows with the experts on one side and not on the other. Most of what the kernels ask for are weights, and tiles of 16 rows ask for a weight once a tile; the eager bytes beyond that are copies, results between two operations, and a result that each expert reads and writes anew.
#
# ## The order of tiles
#
# Your order at a size where it counts: [8192, 7168] times [7168, 4096] in bfloat16, blocks of 128 x 128, waves of 132 programs, one for each SM of an H800. A program reads a block of rows and a block of columns, 7,168 long; a block that several programs of a wave want comes from memory once, if the L2 cache holds it.

# %%
block_bytes, GROUPS = 128 * 7168 * 2, (1, 2, 4, 8, 16, 32, 64)
read = {group: own["11.1"](8192, 4096, 128, 128, group, 132)[1].sum(1).double().mean() for group in GROUPS}
figure, axis = plt.subplots(figsize=(7.5, 3))
axis.plot(GROUPS, [value * block_bytes / 1e6 for value in read.values()], "o-")
square = 2 * 132**0.5 * block_bytes / 1e6
axis.axhline(square, linestyle="--", linewidth=1, color="black", label="a square of tiles")
axis.set_xscale("log", base=2)
axis.set_xticks(GROUPS, GROUPS)
axis.set(xlabel="rows of tiles in a group", ylabel="read by a wave (MB)")
axis.set_title("What 132 programs read together")
axis.set_ylim(0)
axis.legend()
plt.show()
best = min(read, key=read.get)
print(f"fewest bytes with groups of {best}: {read[best] * block_bytes / 1e6:.0f} MB a wave")

# %% [markdown]
# *Figure: megabytes that a wave of 132 programs reads on average, against the rows of tiles in a group. High on the left, where a group is one row, lowest in the middle, near the dashed line of a square patch, and higher again on the right.*
#
# ## For an H100
#
# Your kernels as machine code, compiled here without a GPU: registers a thread, what was spilled, shared memory, warps a program.

# %%
import linecache

from course.kernels import compile_texts

print(f"{'':7s}{'kernel':18s}{'registers':>10s}{'spilled':>9s}{'shared':>8s}{'warps':>7s}")
for name, its in whole.items():
    text = "".join(linecache.getlines(own[name].__code__.co_filename))  # what the function was defined by
    for c in compile_texts(text, list({each.kernel: each for each in its}.values())) if its else []:
        if c["error"]:
            print(f"{name:7s}{c['kernel']:18s} refused: {c['error']}")
        else:
            row = f"{c['registers']:10d}{c['spills']:9d}{c['shared_bytes']:8d}{c['warps']:7d}"
            print(f"{name:7s}{c['kernel']:18s}{row}")

# %% [markdown]
# *Spilled* and *shared* are bytes, a thread and a block. A plain function has no row here.
#
# **Next:** lesson 12, the way back through all of this: the gradients of the rows, of the experts' weights, and of the router.
