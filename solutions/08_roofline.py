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
# # Lab 08 · The roofline
#
# What must a piece of work cost, whoever writes the code? In this lab you count FLOPs and bytes, turn them into a least time, round numbers to sixteen and to eight bits by hand, fit blocks onto a multiprocessor, and read from
# machine code what the tensor cores do. In the end **your functions** are held against real things: an expert layer of DeepSeek-V3 on an H800, the course's matmul compiled for it, and a million of PyTorch's roundings.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - A product of x `[M, K]` and w `[K, N]` is y `[M, N]`: **M** tokens, **K** features in, **N** features out.
# - Stuck? `course hint 08.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

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
# ## 08.1 · FLOPs a byte
#
# A layer of experts multiplies each expert's tokens with that expert's weights: y = x w, once for each expert, all with the same K and N. Count what it computes and what it moves to and from memory, if everything is read once and written
# once.
#
# - `tokens` holds M for each expert. An expert with M = 0 has no work: it moves **nothing**, not even its weights or scales.
# - FLOPs: a multiply and an add are two.
# - Read, of each expert that has work: its x, at `bytes_x` an element; its w, at `bytes_w` an element; and w's scales, if there are any. Written: its y, at `bytes_y` an element.
# - Scales: `block` is `[rows, columns]`, and each block of w of that size, `rows` along K and `columns` along N, has one **float32** scale of 4 bytes, whatever `bytes_w` is. Blocks at the edges may be cut short and have a scale as well. With `block` None there are no scales.
# - With `accumulate` the product is added to a y that is there already: y is read too, at the same bytes an element. The addition itself counts no further FLOPs.
# - The ratio is all FLOPs divided by all bytes, and 0.0 where no byte moves.
#
# The example is case 1: three experts with `[3, 0, 1]` tokens, K = 4, N = 6, one byte for elements of x and w, two for y, `block` `[4, 4]`, nothing accumulated. FLOPs: 2 · 4 · 6 · (3 + 1) = 192. Bytes: two experts have work, and
# read 24 bytes of weights each and two scales (the 6 columns are one whole block and a half): 2 · (24 + 8) = 64. Their x has 4 · 4 = 16 bytes, their y 4 · 6 · 2 = 48. In all 128 bytes, 1.5 FLOPs a byte.
#
# | | |
# |---|---|
# | `tokens` | list of ints, each 0 or more; may be empty |
# | `K`, `N` | ints, 1 or more |
# | `bytes_x`, `bytes_w`, `bytes_y` | ints |
# | `block` | list of two ints, or None |
# | `accumulate` | bool |
# | returns `flops` | int |
# | returns `moved` | int, bytes |
# | returns `ratio` | float, FLOPs a byte |
#
# **Exercise 08.1** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:08.1"]
# exercise 08.1
def intensity(
    tokens: list[int],
    K: int,
    N: int,
    bytes_x: int,
    bytes_w: int,
    bytes_y: int,
    block: list[int] | None,
    accumulate: bool,
) -> tuple[int, int, float]:
    """FLOPs, bytes and FLOPs a byte of a product for each of several experts."""
    ### BEGIN SOLUTION
    flops = moved = 0
    for M in tokens:
        if M == 0:
            continue
        flops += 2 * M * K * N
        moved += M * K * bytes_x + K * N * bytes_w + M * N * bytes_y
        if accumulate:
            moved += M * N * bytes_y
        if block is not None:
            moved += 4 * math.ceil(K / block[0]) * math.ceil(N / block[1])
    return flops, moved, flops / moved if moved else 0.0
    ### END SOLUTION


# %% tags=["check:08.1", "nbval-check-output"]
check("08.1", intensity)

# %% [markdown]
# ## 08.2 · The least time
#
# A program is a list of pieces of work that run **one after the other**. Within a piece the arithmetic and the memory traffic go on at once, so that it takes at least as long as the slower of the two:
#
# $$\text{time} = \max\left(\frac{\text{FLOPs}}{\text{roof of the dtype}},\ \frac{\text{bytes}}{\text{bandwidth}}\right)$$
#
# - Each piece is `[flops, bytes, dtype]`. `roofs` gives the FLOP/s of each dtype; all pieces share one bandwidth, in bytes/s.
# - A piece is bound by `"compute"` if its FLOPs take strictly longer than its bytes, else by `"memory"`: at a tie it is `"memory"`, and also where nothing is done at all.
# - The total adds up the times of the pieces.
# - The share is the part of the total **time** that pieces bound by compute take: the time during which one waits for the tensor cores. Where the total is 0, the share is 0.0.
#
# The example is case 1: roofs of 10^15 FLOP/s for bf16 and 2 · 10^15 for fp8, 2 · 10^12 bytes/s, and three pieces.
#
# | piece | FLOPs take | bytes take | time | bound by |
# |---|---|---|---|---|
# | 8 · 10^12 FLOPs in bf16, 10^9 bytes | 8 ms | 0.5 ms | 8 ms | compute |
# | 10^12 FLOPs in fp8, 4 · 10^9 bytes | 0.5 ms | 2 ms | 2 ms | memory |
# | 4 · 10^12 FLOPs in fp8, 8 · 10^9 bytes | 2 ms | 4 ms | 4 ms | memory |
#
# The total is 14 ms and the share 8 / 14 = 0.571.
#
# | | |
# |---|---|
# | `work` | list of `[flops, bytes, dtype]`: two numbers, 0 or more, and a string; may be empty |
# | `roofs` | dict: dtype to FLOP/s; has every dtype of `work` |
# | `bandwidth` | float, bytes/s |
# | returns `times` | list of floats, seconds, one for each piece |
# | returns `by` | list of strings |
# | returns `total` | float, seconds |
# | returns `share` | float, 0 to 1 |
#
# (Ties are exact; all other pieces are far from a tie, so rounding never decides.)
#
# **Exercise 08.2** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:08.2"]
# exercise 08.2
def least_time(
    work: list[list], roofs: dict[str, float], bandwidth: float
) -> tuple[list[float], list[str], float, float]:
    """The least time of each piece of work, what bounds it, the sum, and the share of it that compute bounds."""
    ### BEGIN SOLUTION
    pairs = [(flops / roofs[dtype], moved / bandwidth) for flops, moved, dtype in work]
    times = [max(pair) for pair in pairs]
    by = ["compute" if compute > memory else "memory" for compute, memory in pairs]
    total = math.fsum(times)
    bound = math.fsum(time for time, roof in zip(times, by, strict=True) if roof == "compute")
    return times, by, total, bound / total if total > 0 else 0.0
    ### END SOLUTION


# %% tags=["check:08.2", "nbval-check-output"]
check("08.2", least_time)

# %% [markdown]
# ## 08.3 · Sixteen bits
#
# A float32 has 32 bits: a sign, 8 of exponent, 23 of fraction. bfloat16 is its upper half: a sign, the same 8 of exponent, 7 of fraction. Turn float32 into the 16-bit **codes** of bfloat16, by the bits, without PyTorch's own bfloat16:
#
# - Round to the **nearest** bfloat16. Exactly in the middle between two, the **even** code wins: the one whose last bit is 0.
# - What rounds beyond the largest finite number becomes infinity, with its sign; 0x7F80 is the code of plus infinity. Infinity stays infinity.
# - Signs stay, also that of zero: minus zero is 0x8000.
# - Subnormal numbers (exponent bits all 0) are rounded like all others; nothing is flushed to zero that does not round to it.
# - **NaN** (exponent bits all 1, fraction not 0) stays NaN: its code is its upper 16 bits, with bit 0x40 set, which makes it a *quiet* NaN. So sign and upper fraction bits stay, and no rounding takes place. (PyTorch and others put one fixed NaN instead.)
#
# PyTorch hardly knows unsigned 16-bit integers, so return the codes, from 0 to 65,535, as int32. `x.view(torch.int32)` shows the bits of `x`; beware of the sign bit, which makes such an integer negative.
#
# The example is case 1, six numbers by their bits:
#
# | bits of x | code | |
# |---|---|---|
# | 0x3F800000 | 0x3F80 | 1.0, nothing to round |
# | 0x3F80C000 | 0x3F81 | beyond the middle |
# | 0x3F808000 | 0x3F80 | the middle; 0x3F80 is even |
# | 0x3F818000 | 0x3F82 | the middle; 0x3F81 is odd |
# | 0xBF802000 | 0xBF80 | below the middle, negative |
# | 0x7F800001 | 0x7FC0 | NaN, whose upper half alone would be an infinity |
#
# | | |
# |---|---|
# | `x` | float32, any shape, may be empty |
# | returns | shape of x, int32: codes |
#
# **Exercise 08.3** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:08.3"]
# exercise 08.3
def to_bfloat16(x: Tensor) -> Tensor:
    """The bfloat16 codes of float32 numbers: nearest, ties to even."""
    ### BEGIN SOLUTION
    bits = x.view(torch.int32).long() & 0xFFFFFFFF  # without a sign
    last = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + last) >> 16
    return torch.where(torch.isnan(x), (bits >> 16) | 0x40, rounded).int()
    ### END SOLUTION


# %% tags=["check:08.3", "nbval-check-output"]
check("08.3", to_bfloat16)

# %% [markdown]
# ## 08.4 · Eight bits
#
# E4M3 is the FP8 format of DeepSeek-V3's weights and activations (OCP 8-bit Floating Point Specification, 2023): a sign bit *s*, four of exponent *e*, three of fraction *f*. Code 128 s + 8 e + f stands for
#
# $$(-1)^s \cdot 2^{e - 7} \cdot (1 + f/8) \ \text{ for } e > 0 \qquad\qquad (-1)^s \cdot 2^{-6} \cdot f/8 \ \text{ for } e = 0 \text{ (subnormal)}$$
#
# There are no infinities. The highest exponent holds numbers too, up to code 126, which is **448**; only the codes 127 and 255 are NaN. Write the cast from float32, without PyTorch's own:
#
# - Round to the **nearest** number. In the middle between two, the even code wins. Round once: a number just beyond a middle is no tie.
# - **Too large** is what would round beyond 448 if the format went on: what is above 464, the middle between 448 and the 480 that code 127 would have been. (464 itself goes to 448, whose code is even.) With `saturate` it becomes 448, without it NaN, code 127; with its sign in both cases.
# - An infinity is too large like any other number: 448 or NaN, as `saturate` says.
# - NaN stays NaN, code 127, whatever `saturate` says.
# - **The sign bit goes along** in all cases: minus zero is 128, a small negative number that rounds to zero too, and a NaN whose sign bit is set is 255 (`torch.signbit` sees the sign of all of these).
#
# The example is case 1, with `saturate`: `[1.0, 1.2, -0.3, 0.01, 0.003, -500.0]` have the codes `[56, 58, 170, 5, 2, 254]`. 1.2 lies between 1.125 and 1.25, nearer to the latter. 0.01 and 0.003 are subnormal, in steps of $2^{-9}$ = 0.00195: 5.12 steps and 1.54 steps. And 500 is too large.
#
# | | |
# |---|---|
# | `x` | float32, any shape, may be empty |
# | `saturate` | bool |
# | returns | shape of x, uint8: codes |
#
# **Exercise 08.4** · difficulty 4 of 5 · 30 minutes · 15 points · spine


# %% tags=["exercise:08.4"]
# exercise 08.4
def to_e4m3(x: Tensor, saturate: bool) -> Tensor:
    """The E4M3 codes of float32 numbers: nearest, ties to even."""
    ### BEGIN SOLUTION
    size = x.abs()
    bound = torch.where(size < 2**9, size, 2.0**9)  # NaN and what is far too large, for now
    power = torch.floor(torch.log2(bound.double().clamp(min=2.0**-6))).long()  # exact enough: see the carry below
    step = torch.exp2(power.double() - 3)
    code = torch.round(bound.double() / step).long() + 8 * (power + 6)
    code = torch.where(code > 126, 126 if saturate else 127, code)
    code = torch.where(x.isnan(), 127, code)
    return (code + 128 * torch.signbit(x).long()).to(torch.uint8)
    ### END SOLUTION


# %% tags=["check:08.4", "nbval-check-output"]
check("08.4", to_e4m3)

# %% [markdown]
# ## 08.5 · How many blocks fit
#
# A kernel runs in blocks of warps, and a multiprocessor (SM) holds as many blocks at once as its resources allow. Four resources each allow some whole number of blocks, with these names:
#
# | name | how many blocks it allows |
# |---|---|
# | `"warps"` | an SM holds `limits["warps"]` warps |
# | `"blocks"` | an SM holds `limits["blocks"]` blocks |
# | `"registers"` | an SM has `limits["registers"]` registers. A warp is 32 threads and gets registers for all of them, rounded up to a multiple of `limits["register_unit"]`; a block gets what its warps get |
# | `"shared memory"` | an SM has `limits["shared"]` bytes. A block gets the bytes that it asks for and `limits["shared_reserved"]` more for the system, also if it asks for none; the **sum** is rounded up to a multiple of `limits["shared_unit"]` |
#
# - The smallest of the four numbers is how many blocks run at once. It may be 0.
# - *Occupancy* is the share of the SM's warps that are then in use.
# - `limited_by` names **all** resources that allow just that many blocks, sorted by the alphabet.
#
# (NVIDIA's own calculator knows one thing more: an SM has four parts, each with a quarter of the registers and of the warps, and a warp lives in one part. That matters for blocks of few or odd numbers of warps; leave it out.)
#
# The example is case 1, an H800 with 65,536 registers in units of 256, 233,472 bytes in units of 128 with 1,024 reserved, 64 warps and 32 blocks. A kernel with 6 warps, 50 registers a thread and 30,000 bytes: warps allow 10 blocks. A warp needs 1,600
# registers and gets 1,792, a block 10,752: 6 blocks. A block's 31,024 bytes become 31,104: 7 blocks. So 6 blocks run, 36 of 64 warps are in use, 0.5625, and `limited_by` is `["registers"]`.
#
# | | |
# |---|---|
# | `limits` | dict of ints, all 1 or more, with the keys named above |
# | `warps` | int, of a block, 1 or more |
# | `registers` | int, of a thread, 1 or more |
# | `shared_bytes` | int, of a block, 0 or more |
# | returns `blocks` | int |
# | returns `share` | float |
# | returns `limited_by` | list of strings |
#
# **Exercise 08.5** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:08.5"]
# exercise 08.5
def occupancy(limits: dict[str, int], warps: int, registers: int, shared_bytes: int) -> tuple[int, float, list[str]]:
    """Blocks on an SM at once, the share of its warps that they are, and what limits them."""
    ### BEGIN SOLUTION
    of_a_warp = math.ceil(32 * registers / limits["register_unit"]) * limits["register_unit"]
    of_a_block = math.ceil((shared_bytes + limits["shared_reserved"]) / limits["shared_unit"]) * limits["shared_unit"]
    room = {"blocks": limits["blocks"]}
    room["registers"] = limits["registers"] // (of_a_warp * warps)
    room["shared memory"] = limits["shared"] // of_a_block
    room["warps"] = limits["warps"] // warps
    fewest = min(room.values())
    return fewest, fewest * warps / limits["warps"], [name for name in sorted(room) if room[name] == fewest]
    ### END SOLUTION


# %% tags=["check:08.5", "nbval-check-output"]
check("08.5", occupancy)

# %% [markdown]
# ## 08.6 · Tensor cores in machine code
#
# `nvdisasm -c` prints a kernel's machine code (SASS) as text. Find the loop that does the work, and say what one pass through it does, for one block. This is case 1, with 4 warps:
#
# ```
#         /*0000*/                   HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
# .L_x_1:
#         /*0010*/               @P1 LDG.E.128 R8, desc[UR14][R6.64] ;
#         /*0020*/                   HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], R24 ;
#         /*0030*/                   HGMMA.64x8x16.F32.BF16 R24, gdesc[UR16], R24, gsb0 ;
#         /*0040*/              @!P0 BRA `(.L_x_1) ;
#         /*0050*/                   EXIT ;
# ```
#
# - A line with an **instruction** begins with an address between `/*` and `*/`: hexadecimal digits, four or more. Blanks may stand before it. Then may come a predicate, which starts with `@`; then the instruction's name, up to the next blank or semicolon; then operands, and a semicolon, with or without a blank before it. An instruction with a predicate counts like any other.
# - A line with `.L` in the first column and the colon last is a **label**: the place of the next instruction. Several labels may stand at one place. All other lines mean nothing here, whatever they hold.
# - A **loop** is a jump (`BRA`, or a name that starts with `BRA.`) to a label that stands above it: all instructions from the label to the jump, both ends included. The target is the label in the operands, written `` `(.L_x_1)``; other operands may stand before it. A jump to a label further down is none, and no other instruction makes a loop. The jump to itself that ends every kernel is a loop with one instruction.
# - A loop contains another if that one's label and jump both lie within it, ends included; of two jumps to one label the longer loop contains the shorter. Loops that overlap only in part do not contain each other.
# - Take the loops that contain no other loop. Of these take the one with the **most tensor-core instructions**: the number of HGMMA, QGMMA and HMMA, whatever their sizes; of equal ones the one whose jump comes first. If there is none with any, the result is 0 and 0.
# - **FLOPs** of one pass: an instruction multiplies an M x K by a K x N matrix and adds, which is 2 M N K.
#   - `HGMMA.64x256x16.F32.BF16` (16-bit inputs) and `QGMMA.64x256x32.F32.E4M3.E4M3` (FP8) have M x N x K in their name. **Four warps together** do one: a block of 8 warps does two of each that stands in the text.
#   - `HMMA.16816.F32.BF16` is 16 x 8 x 16 and `HMMA.1688.F32.TF32` is 16 x 8 x 8, again M x N x K. **Each warp** does one of its own.
#   - The digits decide, not the types.
# - **Loads** of one pass: how many instructions in this loop load from memory, counted as they stand in the text: `LDG`, `LDGSTS` (an asynchronous copy to shared memory) and `UTMALDG` (TMA), with or without a point and more behind it. Only these three count: `LDS`, `LDSM`, `LDL` and `LDC` load from elsewhere, `LDGDEPBAR` loads nothing, and `LD` is left out here.
#
# In the example the loop goes from 0010 to 0040. It has two HGMMA, each 2 · 64 · 8 · 16 = 16,384 FLOPs, done once by the 4 warps: 32,768, and one load. The first HGMMA stands outside.
#
# | | |
# |---|---|
# | `sass` | string, as above; may be empty |
# | `warps` | int, warps of a block, a multiple of 4 |
# | returns `flops` | int |
# | returns `loads` | int |
#
# **Exercise 08.6** · difficulty 4 of 5 · 45 minutes · 10 points · spine


# %% tags=["exercise:08.6"]
# exercise 08.6
def tensor_core_flops(sass: str, warps: int) -> tuple[int, int]:
    """FLOPs of the tensor cores and loads from memory in one pass through the hot loop."""
    ### BEGIN SOLUTION
    import re

    names, places, loops = [], {}, []
    for line in sass.splitlines():
        words = line.split()
        if line.startswith(".L") and line.rstrip().endswith(":"):
            places[line.strip()[:-1]] = len(names)
        elif words and re.fullmatch(r"/\*[0-9a-f]+\*/", words[0]):
            words = words[2:] if words[1].startswith("@") else words[1:]
            name = words[0].strip(";")
            target = re.search(r"\.L\w+", " ".join(words[1:]))
            if name.split(".")[0] == "BRA" and target and target[0] in places:
                loops.append(range(places[target[0]], len(names) + 1))
            names.append(name)

    def within(a, b):
        return a != b and a.start >= b.start and a.stop <= b.stop

    best, most = [], 0
    for loop in loops:
        body = [names[place].split(".") for place in loop]
        count = sum(parts[0] in ("HGMMA", "QGMMA", "HMMA") for parts in body)
        if count > most and not any(within(other, loop) for other in loops):
            best, most = body, count
    flops = 0
    for parts in best:
        if parts[0] in ("HGMMA", "QGMMA"):
            flops += 2 * math.prod(map(int, parts[1].split("x"))) * (warps // 4)
        elif parts[0] == "HMMA":
            flops += {"16816": 4096, "1688": 2048}[parts[1]] * warps
    return flops, sum(parts[0] in ("LDG", "LDGSTS", "UTMALDG") for parts in best)
    ### END SOLUTION


# %% tags=["check:08.6", "nbval-check-output"]
check("08.6", tensor_core_flops)

# %% [markdown]
# # Your functions, and real things
#
# From here on nothing is an exercise. `mine("08.1")` is your function once its check has passed, and the course's until then.
#
# ## An expert on an H800
#
# DeepSeek-V3's experts have width 7,168 outside and 2,048 inside: gate and up in one product, then down, in FP8 with a scale for each 128 by 128 block. Two settings, both from DeepSeek's published profiles (deepseek-ai/profile-data, README, *quoted*):
#
# - **decoding** over 128 GPUs with 128 requests on each: 2 of the 256 experts on a GPU. With 8 experts a token and even shares an expert sees $128 \cdot 128 \cdot 8 / 256 = 512$ tokens in one step (*computed*). The step runs as two micro-batches, so that one computes while the other communicates: each launch sees 256;
# - **training** over 64 GPUs with a sequence of 4,096 tokens (we take it to be one on each): 4 experts on a GPU, $64 \cdot 4096 \cdot 8 / 256 = 8192$ tokens for each (*computed*).
#
# The weight gradient is a product too: x transposed times the gradient of y. Its "tokens" are features and its K is the tokens, and it is **added** to a float32 sum. (Scales of activations, 1 by 128, are left out here: about 3 % of the bytes of x.)
#
# **Predict:** how many requests on each GPU does it take before decoding's products are bound by compute?

# %%
from course.hardware import GPUS, Work, draw_roofline

h800, count, least = GPUS["h800"], mine("08.1"), mine("08.2")
D, I, block = 7168, 2048, [128, 128]


def forward(tokens):
    """Gate and up, then down: FLOPs, bytes, dtype."""
    return [
        [*count(tokens, D, 2 * I, 1, 1, 2, block, False)[:2], "fp8"],
        [*count(tokens, I, D, 1, 1, 2, block, False)[:2], "fp8"],
    ]


def backward(tokens):
    """The gradients of the inputs, then of the weights, which are added to sums in float32."""
    data = [[*count(tokens, K, N, 1, 1, 2, block, False)[:2], "fp8"] for K, N in ((2 * I, D), (D, I))]
    rows = [(K, N) for K, N in ((D, 2 * I), (I, D))]
    return data + [[*sums(count([K], M, N, 1, 1, 4, None, True) for M in tokens if M), "fp8"] for K, N in rows]


def sums(parts):
    return [sum(values) for values in list(zip(*parts, strict=True))[:2]]


# %%
def ask(work, kind):
    """The least time of some work on an H800, by its peak or its achieved roofs."""
    roofs = {dtype: h800.roof(dtype, kind).value for dtype in ("bf16", "fp8")}
    return least(work, roofs, h800.memory_roof(kind).value)


print("requests  tokens, expert   FLOPs a byte      least time   bound by           share bound by compute")
print("a GPU     and launch       gate+up   down    peak roofs   gate+up, down      peak   achieved roofs")
for requests in (1, 8, 32, 64, 128, 256, 512):
    work = forward([2 * requests] * 2)
    _, by, total, share = ask(work, "peak")
    ratios = [flops / moved for flops, moved, _ in work]
    print(
        f"{requests:8d}  {2 * requests:9d}  {ratios[0]:13.0f} {ratios[1]:8.0f}   {1e6 * total:7.1f} us   "
        f"{', '.join(by):17s}  {share:4.0%}   {ask(work, 'achieved')[3]:4.0%}"
    )

# %% [markdown]
# Up to where memory bounds, a step takes nearly the same time whatever the batch: the weights are read anyway. That is why serving waits for many requests, and why 256 experts are spread over so many GPUs: each expert then sees the tokens of all.
#
# Training sees thousands of tokens an expert:

# %%
tokens = [8192] * 4
names = ["gate+up", "down", "d gate+up's input", "d down's input", "d gate+up's weights", "d down's weights"]
work = forward(tokens) + backward(tokens)
times, by, total, share = ask(work, "peak")
for name, (flops, moved, _), seconds, roof in zip(names, work, times, by, strict=True):
    print(f"{name:20s} {flops / moved:6.0f} FLOPs a byte   {1e3 * seconds:5.2f} ms   {roof}")
print(f"{'all':20s} {'':22s}{1e3 * total:5.2f} ms   {share:.0%} of the time bound by compute")
assert sum(piece[0] for piece in work) == 3 * sum(piece[0] for piece in forward(tokens)), "backward is twice forward"

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
pieces = {
    "decode, 1 request a GPU": forward([2] * 2)[0],
    "decode, 128 requests": forward([256] * 2)[0],
    "training, forward": work[0],
    "training, weight gradient": work[4],
}
draw_roofline(h800, {name: Work(*piece) for name, piece in pieces.items()}, "fp8", axis=left)
left.set_title("Gate and up on an H800, FP8, peak roofs")
sizes = [2**power for power in range(0, 14)]
for name, kind in (("peak", "peak"), ("achieved", "achieved")):
    right.loglog(sizes, [1e6 * ask(forward([M] * 2), kind)[2] for M in sizes], "o-", label=f"{name} roofs")
first = next(M for M in range(1, 8192) if ask(forward([M] * 2), "peak")[3] > 0)
right.axvline(first, color="black", linestyle=":", linewidth=1)
right.annotate(
    f"{first} tokens: compute takes over", (first, 100), (-8, 0), textcoords="offset points", ha="right", fontsize=9
)
right.set(xlabel="tokens an expert", ylabel="least time of the layer (us)", title="Two experts of a GPU, forward")
right.legend()
plt.show()

# %% [markdown]
# *Figure: left, the roofline of an H800 for FP8 with four of the products: decoding stands on the slope, one request a GPU far down and 128 requests near its upper end; training lies on the flat roof. Right, the least time of two experts against the tokens of each: flat while
# the weights are read, then rising in proportion; a dotted line marks where the first product becomes bound by compute.*
#
# Two roofs, two answers: "peak" is what the data sheet promises, "achieved" what somebody is known to have reached (DeepGEMM's 1,550 TFLOP/s and FlashMLA's 3,000 GB/s, *quoted*, see `course.hardware.GPUS`). All of it is a bound and no forecast.
#
# ## The course's matmul as machine code
#
# Now your 08.5 and 08.6 on a real kernel: the course's matmul, compiled here for the H800, on a machine that needs no GPU. `report` says what the compiler gave it, and has its own opinion on occupancy.

# %%
from course.hardware.report import report
from course.kernels.catalogue import example

fit, read = mine("08.5"), mine("08.6")
keys = ("warps", "blocks", "registers", "register_unit", "shared", "shared_unit", "shared_reserved")


def hold_against(arch="sm_90", block=(128, 256, 64), **settings):
    """Compile the matmul, and hold your numbers against the report's and against the size of its tile."""
    one = example("matmul", block=block, **settings)
    its = report(one.path, one.launch, arch=arch)
    c, limits = its.compiled, {key: getattr(its.gpu.limits, key) for key in keys}
    blocks, share, limited_by = fit(limits, c.warps, c.registers, c.shared_bytes)
    assert (blocks, share) == (its.occupancy.blocks, its.occupancy.share)
    assert limited_by == sorted(its.occupancy.limited_by)
    flops, loads = read(c.code["sass"], c.warps)
    assert flops == 2 * math.prod(block), "one pass multiplies one step of the tile"
    return its, blocks, share, limited_by, flops, loads


print(f"{'':24s}registers   shared     blocks, share, limited by                FLOPs a pass  loads")
variants = {
    "as it is": {},
    "smaller tiles": {"block": (128, 128, 32)},
    "with descriptors (TMA)": {"variant": "descriptors"},
    "4 warps": {"num_warps": 4},
    "for an A100 (sm_80)": {"arch": "sm_80"},
}
for name, settings in variants.items():
    its, blocks, share, limited_by, flops, loads = hold_against(**settings)
    print(
        f"{name:24s}{its.compiled.registers:6d} {its.compiled.shared_bytes:11,d}    {blocks}, {share:6.1%}, "
        f"{', '.join(limited_by):26s} {flops:13,d} {loads:6d}"
    )

# %% [markdown]
# Your reader finds $2 \cdot 128 \cdot 256 \cdot 64$ FLOPs in a pass, by four HGMMA on an H800 and by 128 HMMA on an A100: the tile that the kernel's author chose, recovered from machine code. Each line was held against the report by an `assert`. And all of it
# with 6 to 25 % occupancy: the tensor cores are kept busy by asynchronous copies, not by many warps.
#
# One pass says something about memory, too. Each of the asynchronous copies (LDGSTS) moves 16 bytes for each thread:

# %%
its, *_, flops, loads = hold_against()
moved = loads * 16 * 32 * its.compiled.warps
print(f"a pass: {flops:,} FLOPs, {moved:,} bytes asked for: {flops / moved:.0f} FLOPs a byte")
print(f"the ridge of an H800: {h800.roof('bf16').value / h800.memory_roof().value:.0f} FLOPs a byte")
passes = (8192 // 128) * (8192 // 256) * (8192 // 64)
assert passes * flops == example("matmul").flops
print(f"{passes:,} passes make the {passes * flops:.3g} FLOPs of a product of 8,192 by 8,192 by 8,192")
assert moved == 2 * (128 * 64 + 64 * 256)

# %% [markdown]
# A tile by itself lies **below** the ridge: if each block read its tiles from HBM alone, memory would bound this kernel. It need not, as neighbours ask for the same tiles at nearly the same time, and the L2 cache answers: that is what the order of tiles is
# for (lesson 08 shows it, unit 11 builds it).
#
# What would other kernels be allowed?

# %%
limits = {key: getattr(h800.limits, key) for key in keys}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), sharey=True)
registers = range(16, 256)
for warps, style in ((4, "-"), (8, "--"), (16, ":")):
    left.plot(registers, [100 * fit(limits, warps, r, 0)[1] for r in registers], style, label=f"{warps} warps a block")
left.set(xlabel="registers a thread", ylabel="occupancy (% of 64 warps)", title="Registers alone")
kilobytes = range(0, 228)
for warps, style in ((4, "-"), (8, "--"), (16, ":")):
    shares = [100 * fit(limits, warps, 32, 1024 * k)[1] for k in kilobytes]
    right.plot(kilobytes, shares, style, label=f"{warps} warps a block")
right.plot(its.compiled.shared_bytes / 1024, 100 * its.occupancy.share, "o", color="black", label="the matmul")
right.set(xlabel="shared memory a block (KiB)", title="Shared memory, with 32 registers a thread")
left.legend()
right.legend()
plt.show()

# %% [markdown]
# *Figure: occupancy falls in steps, left as threads take more registers, right as blocks take more shared memory; blocks of more warps fall in coarser steps, and 16 warps with more than 128 registers a thread do not fit at all. The matmul stands at 144 KiB and 12.5 %.*
#
# ## A million roundings
#
# At last your casts against PyTorch's, on a million random numbers over many powers of two. (Whether `torch` saturates in its cast to FP8 has changed between versions; the cell asks it first.)

# %%
generator = torch.Generator().manual_seed(8)
x = torch.randn(1_000_000, generator=generator) * torch.exp2(24 * torch.rand(1_000_000, generator=generator) - 14)
to_16, to_8 = mine("08.3"), mine("08.4")
theirs_16 = x.to(torch.bfloat16).view(torch.int16).int() & 0xFFFF
saturates = torch.tensor([1000.0]).to(torch.float8_e4m3fn).float().item() == 448
theirs_8 = x.to(torch.float8_e4m3fn).view(torch.uint8)
codes_16, codes_8 = to_16(x), to_8(x, saturates)
print(f"bfloat16: {(codes_16 != theirs_16).sum()} of {len(x):,} codes differ from torch's")
print(f"E4M3:     {(codes_8 != theirs_8).sum()} of {len(x):,} codes differ, {len(codes_8.unique())} of 256 codes occur")
print(f"{(x.abs() > 464).float().mean():.1%} were too large")
assert torch.equal(codes_16, theirs_16)
assert torch.equal(codes_8, theirs_8)

# %%
back_16 = (to_16(x) << 16).view(torch.float32)
back_8 = to_8(x, True).view(torch.float8_e4m3fn).float()
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
line = torch.linspace(0, 0.047, 4000)
left.plot(line, line, color="black", linewidth=0.8, label="exact")
left.plot(line, to_8(line, True).view(torch.float8_e4m3fn).float(), label="E4M3")
left.axvline(2.0**-6, color="black", linestyle=":", linewidth=1)
left.annotate("$2^{-6}$: subnormal to the left", (2.0**-6, 0.044), (5, 0), textcoords="offset points", fontsize=9)
left.set(xlabel="x", ylabel="x, rounded", title="E4M3's steps near zero", ylim=(-0.001, 0.048))
left.legend(loc="lower right")
some = torch.randperm(len(x), generator=generator)[:6000]
for values, name in ((back_8, "E4M3"), (back_16, "bfloat16")):
    error = ((values - x).abs() / x.abs())[some]
    right.loglog(x[some].abs(), error.clamp(min=1e-6), ".", markersize=2, alpha=0.6, label=name)
for edge, name in ((2.0**-6, "smallest normal"), (448.0, "448")):
    right.axvline(edge, color="black", linestyle=":", linewidth=1)
    right.annotate(name, (edge, 2.2e-6), (4, 0), textcoords="offset points", fontsize=9)
right.set(xlabel="|x|", ylabel="relative error", title="What rounding costs", xlim=(2e-4, 4e3), ylim=(1e-6, 3))
right.legend(loc="lower left", markerscale=5)
plt.show()

# %% [markdown]
# *Figure: left, the staircase of E4M3 near zero: steps of $2^{-9}$ up to $2^{-5}$, then twice as wide. Right, relative errors of both formats: bfloat16's stay below $2^{-8}$ = 0.4 % everywhere, E4M3's below $2^{-4}$ = 6 % between its smallest normal number and 448, and rise to
# 100 % on both sides: small numbers are lost, large ones cut off.*
#
# That narrow band is why FP8 needs scales, which unit 13 builds. And a NaN?

# %%
strange = torch.tensor([float("nan"), -float("nan"), float("inf"), -0.0])
print("yours, E4M3:     ", to_8(strange, saturates).tolist())
print("torch's:         ", strange.to(torch.float8_e4m3fn).view(torch.uint8).tolist())
print("yours, bfloat16: ", [f"{code:04X}" for code in to_16(strange).tolist()])
print("torch's:         ", [f"{code & 0xFFFF:04X}" for code in strange.to(torch.bfloat16).view(torch.int16).tolist()])

# %% [markdown]
# Libraries agree on numbers, and each has its own habit with the bits of NaN: they are all NaN.
#
# You can now say of any piece of work what it must cost at least, and look into a compiled kernel for what it does. In the next units you write such kernels yourself.
#
# **Next:** lesson 09, Triton in small puzzles.
