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
# # Lab 09 · Triton puzzles
#
# Twelve small kernels, from a copy to a matrix product by tiles. Each has one new idea, and units 10 to 14 are built of nothing else.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer is a kernel and the function that launches it**, in one cell. The check calls the function, with tensors, and looks at
#   what it returns: a new tensor. The kernel's parameters are a suggestion; change them, split the kernel, write a second one, as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: `x_ND` is `[N, D]`. A kernel sees no shapes, only pointers and numbers; there a name says what is counted:
#   `d` for the places within a row.
# - Stuck? `course hint 09.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.
#
# What is special about kernels:
#
# - They run **in an interpreter on the CPU**, one program after the other, a millisecond each, so sizes are small. The interpreter checks
#   what a GPU would punish in silence: a lane that is not masked off and leaves its tensor, two programs that meet at one element, NaN in lanes that were never
#   loaded and in memory that was never written. A fault is told in a sentence.
# - An answer that is right is then **compiled for an H100** (sm_90), with no GPU needed. What its compiler refuses does not pass: a `tl.dot` that is too small, a block
#   that is no power of two.
# - All tensors given to you are contiguous unless the text says otherwise, and so are the results.
# - The arithmetic belongs in kernels. Beside them PyTorch may allocate, fill, view, copy, cast, count, compare, and add up partial results; what else makes more than one floating-point number there does not
#   pass. Results have memory of their own: a view of an input does not count.
# - Each puzzle names **what a good answer moves**, in bytes. The check does not count them; you can:
#
# ```python
# from course.kernels.checked import checked
#
# with checked() as log:
#     copy(torch.randn(1000))
# log.launches[0].load_bytes, log.launches[0].store_bytes
# ```

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
# ## 09.1 · Copy, in blocks
#
# **New: program id, block, mask.** A kernel is a function that runs many times at once. One run is a *program*, and all it knows of itself is its number,
# `tl.program_id(0)`. A program handles a block of elements, here `BLOCK` of them, side by side in *lanes*: `tl.arange(0, BLOCK)` numbers them, and `BLOCK`
# must be a power of two, known when the kernel is compiled. N is seldom a multiple of it, so that the last program has lanes too many. A *mask* switches them off.
#
# The launch `kernel[(programs,)](...)` says how many programs there are. Let a block have 256 elements.
#
# | | shape | |
# |---|---|---|
# | `x_N` | `[N]` | float32 or int64; N may be 0 (a grid of no programs may be launched) |
# | returns | `[N]` | the same numbers, the same dtype, in a tensor of its own |
#
# For example, `[3, 1, 4, 1, 5]` gives `[3, 1, 4, 1, 5]`, from one program with 251 lanes masked off. Cloning with PyTorch is out of bounds, and so is `copy_`.
#
# A good answer loads each element once and stores it once: for N numbers in float32, 4N bytes each way.
#
# **Exercise 09.1** · difficulty 1 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.1"]
# exercise 09.1
@triton.jit
def copy_kernel(x, out, N, BLOCK: tl.constexpr):
    """Copy one block of x to out."""
    ### BEGIN SOLUTION
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    values = tl.load(x + n, mask=inside)
    tl.store(out + n, values, mask=inside)
    ### END SOLUTION


def copy(x_N: Tensor) -> Tensor:
    """A copy of x_N, made by a kernel."""
    ### BEGIN SOLUTION
    out_N = torch.empty_like(x_N)
    copy_kernel[(triton.cdiv(x_N.numel(), 256),)](x_N, out_N, x_N.numel(), BLOCK=256)
    return out_N
    ### END SOLUTION


# %% tags=["check:09.1", "nbval-check-output"]
check("09.1", copy)

# %% [markdown]
# ## 09.2 · A column plus a row
#
# **New: two dimensions.** A block may be a *tile*. Two vectors of indices, `m` and `n`, become a column `m[:, None]` and a row `n[None, :]`; what joins them is a
# tile, as in PyTorch's broadcasting. The grid has two axes as well: `kernel[(3, 2)]` launches six programs, and each asks for both of its numbers.
#
# | | shape | |
# |---|---|---|
# | `column_M` | `[M]` | float32; M may be 0 |
# | `row_N` | `[N]` | float32; N may be 0 |
# | returns | `[M, N]` | float32, `column_M[m] + row_N[n]` in row m, column n |
#
# For example, the column `[1, 2, 3]` and the row `[10, 20]` give `[[11, 21], [12, 22], [13, 23]]`. Tiles of 32 by 32 are a good size.
#
# A good answer stores 4MN bytes and loads little: a tile of 32 by 32 needs 64 numbers for 1,024 sums, a quarter of a byte a sum.
#
# **Exercise 09.2** · difficulty 1 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.2"]
# exercise 09.2
@triton.jit
def outer_sum_kernel(column, row, out, M, N, TILE: tl.constexpr):
    """One tile of sums."""
    ### BEGIN SOLUTION
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    left = tl.load(column + m, mask=m < M)
    top = tl.load(row + n, mask=n < N)
    inside = (m < M)[:, None] & (n < N)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], left[:, None] + top[None, :], mask=inside)
    ### END SOLUTION


def outer_sum(column_M: Tensor, row_N: Tensor) -> Tensor:
    """Every sum of an element of the column and one of the row."""
    ### BEGIN SOLUTION
    M, N = len(column_M), len(row_N)
    out_MN = torch.empty(M, N)
    grid = (triton.cdiv(M, 32), triton.cdiv(N, 32))
    outer_sum_kernel[grid](column_M, row_N, out_MN, M, N, TILE=32)
    return out_MN
    ### END SOLUTION


# %% tags=["check:09.2", "nbval-check-output"]
check("09.2", outer_sum)

# %% [markdown]
# ## 09.3 · A matrix with strides
#
# **New: pointer arithmetic.** In memory a matrix is a row of numbers and a rule: from one element to the one below it is `row_stride` elements, to the one on its right
# `column_stride`. A transposed matrix, a slice, every second column, one row shown many times: the same numbers under other rules, and stride 0 is one of them. Copy such a matrix
# to a contiguous one.
#
# You get the numbers and the rule apart. Element (r, c) lies at `storage_S[start + r * row_stride + c * column_stride]`.
#
# | | | |
# |---|---|---|
# | `storage_S` | `[S]` | float32; what the matrix does not reach is of no interest |
# | `start` | int | where element (0, 0) lies; `storage_S[start:]` is a pointer to it |
# | `rows`, `columns` | int | shape of the matrix; with 0 rows the storage is empty too |
# | `row_stride`, `column_stride` | int | in elements, zero or more |
# | returns | `[rows, columns]` | float32, contiguous |
#
# For example, the storage `[0, 1, 2, ..., 15]` with start 1, 2 rows, 3 columns, row stride 1 and column stride 4 is `[[1, 5, 9], [2, 6, 10]]`.
# `as_strided` is out of bounds.
#
# One rule that the check is too small to see: **the row index is int64**. A matrix of 70,000 rows of 32,768 has more than 2**31 elements, `tl.program_id` and
# `tl.arange` count in int32, and `r * row_stride` would come out negative. Write `.to(tl.int64)` before the product, here and wherever rows are long.
#
# A good answer loads each element of the matrix once and stores it once, 4 bytes each way.
#
# **Exercise 09.3** · difficulty 2 of 5 · 15 minutes · 5 points


# %% tags=["exercise:09.3"]
# exercise 09.3
@triton.jit
def to_contiguous_kernel(x, out, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    """Copy one tile; x points at element (0, 0)."""
    ### BEGIN SOLUTION
    r = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    source = x + (r * row_stride)[:, None] + (c * column_stride)[None, :]
    tl.store(out + (r * columns)[:, None] + c[None, :], tl.load(source, mask=inside), mask=inside)
    ### END SOLUTION


def to_contiguous(
    storage_S: Tensor, start: int, rows: int, columns: int, row_stride: int, column_stride: int
) -> Tensor:
    """The matrix that lies in storage_S, in a contiguous tensor of its own."""
    ### BEGIN SOLUTION
    out_RC = torch.empty(rows, columns)
    grid = (triton.cdiv(rows, 32), triton.cdiv(columns, 32))
    to_contiguous_kernel[grid](storage_S[start:], out_RC, rows, columns, row_stride, column_stride, TILE=32)
    return out_RC
    ### END SOLUTION


# %% tags=["check:09.3", "nbval-check-output"]
check("09.3", to_contiguous)

# %% [markdown]
# ## 09.4 · Scale, shift and round once
#
# **New: wide inside.** bfloat16 has 8 bits of precision. What memory holds in it is fine; what is *computed* in it is rounded after every operation. So a kernel
# widens right after the load, computes in float32, and rounds once, to the nearest, just before the store:
#
# $$y = \mathrm{round}_{\mathrm{bf16}}(x \cdot \mathrm{scale} + \mathrm{shift})$$
#
# | | shape | |
# |---|---|---|
# | `x_N`, `scale_N`, `shift_N` | `[N]` | bfloat16; N may be 0 |
# | returns | `[N]` | bfloat16 |
#
# For example, x = `[3, 1, 0.5]`, scale = `[1.0078125, 1.0078125, 3]` and shift = `[-3, 128, -0.25]` give `[0.0234375, 129, 1.25]`. Rounded after the product the
# first would be 0.03125, off by a third.
#
# A good answer loads 6N bytes and stores 2N. Each operation of eager PyTorch makes its own trip.
#
# **Exercise 09.4** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.4"]
# exercise 09.4
@triton.jit
def scale_and_round_kernel(x, scale, shift, out, N, BLOCK: tl.constexpr):
    """One block, in float32 between load and store."""
    ### BEGIN SOLUTION
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    x_wide = tl.load(x + n, mask=inside).to(tl.float32)
    scale_wide = tl.load(scale + n, mask=inside).to(tl.float32)
    shift_wide = tl.load(shift + n, mask=inside).to(tl.float32)
    tl.store(out + n, (x_wide * scale_wide + shift_wide).to(tl.bfloat16), mask=inside)
    ### END SOLUTION


def scale_and_round(x_N: Tensor, scale_N: Tensor, shift_N: Tensor) -> Tensor:
    """x * scale + shift, rounded to bfloat16 once."""
    ### BEGIN SOLUTION
    out_N = torch.empty_like(x_N)
    grid = (triton.cdiv(x_N.numel(), 512),)
    scale_and_round_kernel[grid](x_N, scale_N, shift_N, out_N, x_N.numel(), BLOCK=512)
    return out_N
    ### END SOLUTION


# %% tags=["check:09.4", "nbval-check-output"]
check("09.4", scale_and_round)

# %% [markdown]
# ## 09.5 · The sum of each row
#
# **New: a reduction, and its identity.** `tl.sum` folds a block into one number. All lanes take part, also those past the end of the row, and what a lane holds that was
# masked off in the load is *undefined*. `tl.load(..., mask=..., other=...)` says what it shall hold: for a sum, the number that changes no sum.
#
# A row is as long as it is, a block must be a power of two: `triton.next_power_of_2(D)` lanes hold a whole row.
#
# | | shape | |
# |---|---|---|
# | `x_ND` | `[N, D]` | float32; N may be 0, D is at least 1 and at most 1,000 or so |
# | returns | `[N]` | float32 |
#
# For example, `[[1, 2, 3], [4, 5, 6]]` gives `[6, 15]`. PyTorch's `sum` is out of bounds, `tl.sum` is meant.
#
# A good answer loads each element once, 4ND bytes, and stores 4N.
#
# **Exercise 09.5** · difficulty 1 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.5"]
# exercise 09.5
@triton.jit
def row_sum_kernel(x, out, D, BLOCK: tl.constexpr):
    """The sum of one row."""
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    tl.store(out + row, tl.sum(values, axis=0))
    ### END SOLUTION


def row_sum(x_ND: Tensor) -> Tensor:
    """The sum of each row."""
    ### BEGIN SOLUTION
    N, D = x_ND.shape
    out_N = torch.empty(N)
    row_sum_kernel[(N,)](x_ND, out_N, D, BLOCK=triton.next_power_of_2(D))
    return out_N
    ### END SOLUTION


# %% tags=["check:09.5", "nbval-check-output"]
check("09.5", row_sum)

# %% [markdown]
# ## 09.6 · The sum of long rows
#
# **New: a loop over blocks.** A block lives in registers, and Triton allows no more than 1,048,576 elements in one. A row of logits or of a flattened tensor may be longer. So the program
# that owns a row walks along it block by block and carries its total in a variable. The total is float32, whatever the row is: in bfloat16 a total of 256 no longer grows when 1 is added. (A total that begins as `0` is a whole number: begin with `0.0`.)
#
# Let a block have 4,096 elements. `for begin in range(0, D, BLOCK):` works in a kernel.
#
# | | shape | |
# |---|---|---|
# | `x_ND` | `[N, D]` | float32 or bfloat16; N or D may be 0, D may be over a million |
# | returns | `[N]` | float32, added up in float32; the sum of nothing is 0 |
#
# For example, `[[1, 2, 3], [4, 5, 6]]` gives `[6, 15]`. PyTorch's `sum` is out of bounds.
#
# A good answer loads each element once (2ND bytes in bfloat16, 4ND in float32) and stores 4N.
#
# **Exercise 09.6** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.6"]
# exercise 09.6
@triton.jit
def long_row_sum_kernel(x, out, D, BLOCK: tl.constexpr):
    """The sum of one row, block by block."""
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        total += tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(total, axis=0))
    ### END SOLUTION


def long_row_sum(x_ND: Tensor) -> Tensor:
    """The sum of each row, in float32."""
    ### BEGIN SOLUTION
    N, D = x_ND.shape
    out_N = torch.empty(N, dtype=torch.float32)
    long_row_sum_kernel[(N,)](x_ND, out_N, D, BLOCK=4096)
    return out_N
    ### END SOLUTION


# %% tags=["check:09.6", "nbval-check-output"]
check("09.6", long_row_sum)

# %% [markdown]
# ## 09.7 · The largest of each row, and where
#
# **New: another identity, and an index.** A router asks not only how large the best score is but whose it is. A maximum has an identity of its own, which no finite number is, however low. The place is found by
# comparing: the lanes that hold the maximum keep their number, the others stand back.
#
# Ties go to the **lower index**.
#
# | | shape | |
# |---|---|---|
# | `x_ND` | `[N, D]` | float32, minus infinity allowed, no NaN; N may be 0, D is at least 1 and at most 1,000 or so |
# | returns `values_N` | `[N]` | float32 |
# | returns `places_N` | `[N]` | int64, from 0 to D - 1, also where a row holds nothing but minus infinity |
#
# For example, `[[1, 7, 7], [-2, -9, -2]]` gives the values `[7, -2]` and the places `[1, 0]`. PyTorch's `max`, `amax` and `argmax` are out of bounds, Triton's are not.
#
# A good answer loads each element once, 4ND bytes, and stores 12N.
#
# **Exercise 09.7** · difficulty 2 of 5 · 15 minutes · 5 points


# %% tags=["exercise:09.7"]
# exercise 09.7
@triton.jit
def row_max_kernel(x, values, places, D, BLOCK: tl.constexpr):
    """The maximum of one row and its first place."""
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    scores = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    best = tl.max(scores, axis=0)
    tl.store(values + row, best)
    tl.store(places + row, tl.min(tl.where(scores == best, d, BLOCK), axis=0))
    ### END SOLUTION


def row_max(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row, and its lowest index."""
    ### BEGIN SOLUTION
    N, D = x_ND.shape
    values_N, places_N = torch.empty(N), torch.empty(N, dtype=torch.int64)
    row_max_kernel[(N,)](x_ND, values_N, places_N, D, BLOCK=triton.next_power_of_2(D))
    return values_N, places_N
    ### END SOLUTION


# %% tags=["check:09.7", "nbval-check-output"]
check("09.7", row_max)

# %% [markdown]
# ## 09.8 · Softmax of each row
#
# **New: two reductions on one load.** The row stays in registers while its maximum is found, subtracted, and the powers are added up:
#
# $$p_d = \frac{e^{x_d - m}}{\sum_j e^{x_j - m}}, \qquad m = \max_j x_j$$
#
# Without $m$ the row `[1000, 1000, 1000]` is infinity over infinity. An entry of minus infinity has probability 0. A row of *nothing but* minus infinity is NaN throughout, as it is in
# PyTorch; leave it so.
#
# | | shape | |
# |---|---|---|
# | `x_ND` | `[N, D]` | float32, minus infinity allowed, no infinity, no NaN; N may be 0, D is at least 1 and at most 1,000 or so |
# | returns | `[N, D]` | float32 |
#
# For example, `[[0, ln 3, -inf], [1000, 1000, 1000]]` gives `[[1/4, 3/4, 0], [1/3, 1/3, 1/3]]`. Ready-made softmaxes, PyTorch's and Triton's, are out of bounds.
#
# A good answer loads each element once and stores it once, 4ND bytes each way. Eager PyTorch, one operation after the other (max, subtract,
# exp, sum, divide), loads 20ND bytes and stores 12ND.
#
# **Exercise 09.8** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:09.8"]
# exercise 09.8
@triton.jit
def row_softmax_kernel(x, out, D, BLOCK: tl.constexpr):
    """The softmax of one row."""
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    scores = tl.load(x + row * D + d, mask=d < D, other=float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=0))
    tl.store(out + row * D + d, powers / tl.sum(powers, axis=0), mask=d < D)
    ### END SOLUTION


def row_softmax(x_ND: Tensor) -> Tensor:
    """The softmax of each row."""
    ### BEGIN SOLUTION
    N, D = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    row_softmax_kernel[(N,)](x_ND, out_ND, D, BLOCK=triton.next_power_of_2(D))
    return out_ND
    ### END SOLUTION


# %% tags=["check:09.8", "nbval-check-output"]
check("09.8", row_softmax)

# %% [markdown]
# ## 09.9 · Counts of expert ids
#
# **New: atomics.** How many pairs has each expert? Many programs now write to few places. *Load, add 1, store* is a race: two programs read the same 5, and both write 6. A plain interpreter would never notice, since it
# runs one program after the other; this one tells you. And two *lanes* of one program race just as well. `tl.atomic_add(pointers, value, mask=...)` reads, adds and writes in one step that nobody
# can interrupt, lane for lane.
#
# (There is another way round it, in which no program shares a counter. It passes too. What does it load?)
#
# | | shape | |
# |---|---|---|
# | `ids_P` | `[P]` | int64, from 0 to `experts` - 1, or **-1** for a dropped pair, which nobody counts; P may be 0 |
# | `experts` | int | E, at least 1 |
# | returns | `[E]` | int64 |
#
# For example, the ids `[2, 0, 2, -1, 1, 2]` with 4 experts give `[1, 1, 3, 0]`. PyTorch's histograms and scatters are out of bounds; `tl.histogram` is not.
#
# A good answer loads each id once, 8P bytes. An atomic counts as one load and one store of 8 bytes more; with one a pair that is 16P and 8P in all. A program that counts its own
# ids first needs only one for each expert it met.
#
# **Exercise 09.9** · difficulty 3 of 5 · 15 minutes · 10 points


# %% tags=["exercise:09.9"]
# exercise 09.9
@triton.jit
def count_experts_kernel(ids, counts, P, BLOCK: tl.constexpr):
    """Count one block of ids."""
    ### BEGIN SOLUTION
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + p, mask=p < P, other=-1)
    tl.atomic_add(counts + expert, 1, mask=expert >= 0)
    ### END SOLUTION


def count_experts(ids_P: Tensor, experts: int) -> Tensor:
    """How many pairs go to each expert."""
    ### BEGIN SOLUTION
    counts_E = torch.zeros(experts, dtype=torch.int64)
    count_experts_kernel[(triton.cdiv(ids_P.numel(), 256),)](ids_P, counts_E, ids_P.numel(), BLOCK=256)
    return counts_E
    ### END SOLUTION


# %% tags=["check:09.9", "nbval-check-output"]
check("09.9", count_experts)

# %% [markdown]
# ## 09.10 · Rows gathered by their ids
#
# **New: indirection.** Where a program reads depends on what it has just read: the id first, then the row of that id. This is how tokens are lined up for their experts. Ids are int64, and they stay so: id times D must not
# overflow.
#
# | | shape | |
# |---|---|---|
# | `x_ND` | `[N, D]` | float32, may hold infinities; N and D are at least 1, D at most 200 or so |
# | `ids_P` | `[P]` | int64, from 0 to N - 1, or **-1** for no row; P may be 0 |
# | returns | `[P, D]` | float32: row `ids_P[p]` of x, and zeros where the id is -1 |
#
# For example, x = `[[1, 2], [3, 4], [5, 6]]` with the ids `[2, -1, 0, 2]` gives `[[5, 6], [0, 0], [1, 2], [5, 6]]`. PyTorch's `index_select`, `gather` and `embedding` are out of bounds.
#
# A good answer loads 8P bytes of ids and 4D for each id that is not -1 (nothing is loaded for -1), and stores 4PD.
#
# **Exercise 09.10** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:09.10"]
# exercise 09.10
@triton.jit
def gather_rows_kernel(x, ids, out, D, BLOCK: tl.constexpr):
    """Fetch the row of one id."""
    ### BEGIN SOLUTION
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    row = tl.load(ids + p)
    width = tl.where(row < 0, 0, D)  # nothing is read for -1
    tl.store(out + p * D + d, tl.load(x + row * D + d, mask=d < width, other=0.0), mask=d < D)
    ### END SOLUTION


def gather_rows(x_ND: Tensor, ids_P: Tensor) -> Tensor:
    """The row of each id; zeros for -1."""
    ### BEGIN SOLUTION
    P, (_, D) = ids_P.numel(), x_ND.shape
    out_PD = torch.empty(P, D)
    gather_rows_kernel[(P,)](x_ND, ids_P, out_PD, D, BLOCK=triton.next_power_of_2(D))
    return out_PD
    ### END SOLUTION


# %% tags=["check:09.10", "nbval-check-output"]
check("09.10", gather_rows)

# %% [markdown]
# ## 09.11 · Transpose by tiles
#
# **New: two layouts, one tile.** Row by row, a transpose reads neighbours and writes far apart, or the other way round; and memory is fetched in pieces of 32 bytes. A tile helps: it is loaded with neighbours side by
# side, turned in the chip, and stored with neighbours side by side.
#
# | | shape | |
# |---|---|---|
# | `x_MN` | `[M, N]` | float32; M may be 0 |
# | returns | `[N, M]` | float32, contiguous, element (n, m) is `x_MN[m, n]` |
#
# For example, `[[1, 2, 3], [4, 5, 6]]` gives `[[1, 4], [2, 5], [3, 6]]`. Making PyTorch's view contiguous is out of bounds. Tiles of 32 by 32 are a good size; they need not be square.
#
# A good answer loads each element once and stores it once, 4MN bytes each way, in rows of at least 8 neighbours (32 bytes) both times.
#
# **Exercise 09.11** · difficulty 2 of 5 · 15 minutes · 5 points


# %% tags=["exercise:09.11"]
# exercise 09.11
@triton.jit
def transpose_kernel(x, out, M, N, TILE: tl.constexpr):
    """Turn one tile."""
    ### BEGIN SOLUTION
    m = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    tile = tl.load(x + m[:, None] * N + n[None, :], mask=(m < M)[:, None] & (n < N)[None, :])
    tl.store(out + n[:, None] * M + m[None, :], tl.trans(tile), mask=(n < N)[:, None] & (m < M)[None, :])
    ### END SOLUTION


def transpose(x_MN: Tensor) -> Tensor:
    """x_MN with rows and columns exchanged, in a contiguous tensor of its own."""
    ### BEGIN SOLUTION
    M, N = x_MN.shape
    out_NM = torch.empty(N, M)
    transpose_kernel[(triton.cdiv(M, 32), triton.cdiv(N, 32))](x_MN, out_NM, M, N, TILE=32)
    return out_NM
    ### END SOLUTION


# %% tags=["check:09.11", "nbval-check-output"]
check("09.11", transpose)

# %% [markdown]
# ## 09.12 · A matrix product by tiles
#
# **New: `tl.dot`, and everything before at once.** A program owns one tile of the result. It walks along K, loads a tile of `a_MK` and a tile of `b_KN`, multiplies them with `tl.dot`, and adds up in a float32 tile that stays in
# registers. M, K and N are whatever they are: three index vectors, three masks, and past the end of K the tiles must add nothing.
#
# `tl.dot` becomes a tensor-core instruction, and those have a smallest size: the tiles must be at least **16 long in K**, whatever K is (the interpreter says so when they are not). 32 by 32 by 32 is a good
# size here.
#
# | | shape | |
# |---|---|---|
# | `a_MK` | `[M, K]` | float32 or bfloat16; M may be 0 |
# | `b_KN` | `[K, N]` | the same dtype |
# | returns | `[M, N]` | **float32** in either case; zeros where K is 0 |
#
# For example, `[[1, 2, 3], [4, 5, 6]]` times `[[1, 0], [0, 1], [2, 2]]` is `[[7, 8], [16, 17]]`. PyTorch's products are out of bounds.
#
# On the chip `tl.dot` cuts float32 inputs to TF32 (11 bits) unless you say `input_precision="ieee"`. Triton's own interpreter does not, and nobody notices; the one of this course cuts as well. With bfloat16
# inputs it changes nothing: their products are exact in float32.
#
# A good answer with tiles of T by T loads `a_MK` once for every T columns of the result, and `b_KN` once for every T rows: 4 (MK ceil(N/T) + KN ceil(M/T)) bytes in float32, and half of that in bfloat16.
# It stores 4MN, once. Larger tiles load less: that is why they exist.
#
# **Exercise 09.12** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:09.12"]
# exercise 09.12
@triton.jit
def matmul_kernel(a, b, c, M, N, K, TILE: tl.constexpr):
    """One tile of the product."""
    ### BEGIN SOLUTION
    m = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for begin in range(0, K, TILE):
        k = begin + tl.arange(0, TILE)
        a_tile = tl.load(a + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        b_tile = tl.load(b + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])
    ### END SOLUTION


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """The product of two matrices, in float32."""
    ### BEGIN SOLUTION
    (M, K), (_, N) = a_MK.shape, b_KN.shape
    c_MN = torch.empty(M, N, dtype=torch.float32)
    matmul_kernel[(triton.cdiv(M, 32), triton.cdiv(N, 32))](a_MK, b_KN, c_MN, M, N, K, TILE=32)
    return c_MN
    ### END SOLUTION


# %% tags=["check:09.12", "nbval-check-output"]
check("09.12", matmul)

# %% [markdown]
# ## Your score
#
# No exercise from here on: run the cells. `mine("09.1")` is your own function once it has passed, and the course's until then.
#
# The interpreter keeps an account of every load and store. Here is yours for all twelve, beside what a good answer moves.

# %%
from course.kernels.checked import checked

rng = torch.Generator().manual_seed(9)


def normal(*shape):
    return torch.randn(shape, generator=rng)


ids_P = torch.tensor([3, 0, -1, 7, 7, 2, -1, 5, 1, 0])
kept = int((ids_P >= 0).sum())
trials = {  # what each function is called with, the bytes that a good answer loads, and those that it stores
    "09.1": ((normal(1000),), 4000, 4000),
    "09.2": ((normal(64), normal(64)), 4 * 4 * 64, 4 * 64 * 64),
    "09.3": ((normal(2000), 3, 20, 30, 1, 40), 4 * 600, 4 * 600),
    "09.4": (tuple(normal(1000).bfloat16() for _ in range(3)), 6000, 2000),
    "09.5": ((normal(5, 700),), 4 * 3500, 4 * 5),
    "09.6": ((normal(3, 5000),), 4 * 15_000, 4 * 3),
    "09.7": ((normal(5, 700),), 4 * 3500, 12 * 5),
    "09.8": ((normal(5, 700),), 4 * 3500, 4 * 3500),
    "09.9": ((torch.randint(8, (300,), generator=rng), 8), 16 * 300, 8 * 300),
    "09.10": ((normal(8, 90), ids_P), 8 * 10 + 4 * 90 * kept, 4 * 90 * 10),
    "09.11": ((normal(64, 96),), 4 * 64 * 96, 4 * 64 * 96),
    "09.12": ((normal(64, 64), normal(64, 64)), 4 * 2 * (64 * 64 * 2), 4 * 64 * 64),
}

# %%
functions = {name: mine(name) for name in trials}
logs, loads, stores = {}, {}, {}
for name, (arguments, to_load, to_store) in trials.items():
    with checked() as log:
        functions[name](*arguments)
    logs[name] = log.launches
    loads[name] = sum(launch.load_bytes for launch in log.launches) / to_load
    stores[name] = sum(launch.store_bytes for launch in log.launches) / to_store
print("bytes, over those of a good answer")
for name in trials:
    print(f"{name:6s} loaded {loads[name]:5.2f}   stored {stores[name]:5.2f}   launches {len(logs[name])}")

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, axis = plt.subplots(figsize=(9, 3.2))
for shift, (shares, label) in enumerate([(loads, "loaded"), (stores, "stored")]):
    axis.bar([place + 0.4 * shift for place in range(len(shares))], shares.values(), 0.38, label=label)
axis.axhline(1, color="black", linestyle="--", linewidth=1)
axis.set_xticks([place + 0.2 for place in range(len(trials))], list(trials))
axis.set(ylabel="bytes, over a good answer's", title="What your kernels move")
axis.grid(axis="x", visible=False)
axis.legend()
plt.show()

# %% [markdown]
# *Figure: for each puzzle two bars, the bytes that your kernels load and store, over those of a good answer; the dashed line is 1. Below it lies who found something better: larger tiles in 09.12, counts within the program in 09.9.*
#
# ## Who touches what
#
# The same account says which program touched which element. Your transpose, and your product:

# %%


def programs_of(launch, argument, kind, shape):
    """For each element of an argument, the number of the last program that touched it; NaN where none did."""
    order = {program: number for number, program in enumerate(dict.fromkeys(a.program for a in launch.accesses))}
    places = np.full(math.prod(shape), np.nan)
    for access in launch.accesses:
        if access.argument == argument and access.kind == kind:
            places[access.elements] = order[access.program]
    return places.reshape(shape)


def touched(launch, kind):
    """The arguments that a launch loaded from, or stored to."""
    return list(dict.fromkeys(access.argument for access in launch.accesses if access.kind == kind))


# %%
turned, product = logs["09.11"][-1], logs["09.12"][-1]
pictures = [(turned, "load", (64, 96), "transpose: loads"), (turned, "store", (96, 64), "transpose: stores")]
pictures += [(product, "store", (64, 64), "product: stores")]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for axis, (launch, kind, shape, title) in zip(axes, pictures, strict=True):
    axis.imshow(programs_of(launch, touched(launch, kind)[0], kind, shape), cmap="tab20", interpolation="nearest")
    axis.set(title=title, xlabel="column", ylabel="row")
    axis.grid(visible=False)
plt.show()

# %% [markdown]
# *Figure: three matrices, each element in the colour of the program that touched it. Left what your transpose loads, in the middle what it stores: the same tiles, turned. Right the result of your product, a colour for each tile.*
#
# ## On a chip that is not here
#
# And this is what the compiler makes of your twelve for an H100 or H800 (sm_90): registers and spilled bytes of a thread, shared memory of a block.

# %%
import linecache

from course.kernels import compile_text


def source(function):
    """The text in which a function stands."""
    return "".join(linecache.getlines(function.__code__.co_filename))


made = {name: [compile_text(source(functions[name]), launch) for launch in launches] for name, launches in logs.items()}
for name, compiled in made.items():
    for one in compiled:
        assert one["error"] is None, one["error"]
        numbers = (
            f"{one['registers']:3d} registers   {one['spills']:3d} spilled   {one['shared_bytes']:6,d} bytes shared"
        )
        print(f"{name:6s} {one['kernel']:24s} {numbers}")

# %% [markdown]
# The product again, in bfloat16, down to the instructions of its loop. `HMMA` and `HGMMA` are the tensor cores: one warp's, and those of four warps together.

# %%
import tempfile
from pathlib import Path

from rich.console import Console

from course.hardware.report import report

with checked() as log:
    functions["09.12"](normal(128, 128).bfloat16(), normal(128, 128).bfloat16())
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "product.py"
    path.write_text(source(functions["09.12"]))
    yours = report(path, log.launches[-1])
console = Console(width=110, highlight=False)
console.print(yours)
console.print(f"the hot loop: {len(yours.code.hot_loop())} instructions, the first 25 of them")
for one in yours.code.hot_loop()[:25]:
    print(f"{one!s:58.58s} {one.means}")

# %% [markdown]
# Small tiles, one warp's tensor cores, and most instructions compute addresses: unit 11 makes this product large.
#
# **Next:** lesson 10, where these pieces are fused into the kernels that a transformer runs on.
