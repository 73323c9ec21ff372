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
# # Lesson 10 · Fused kernels
#
# RMSNorm is one line of arithmetic: divide a row by its root mean square. That is four operations for each number of a token, where the matrix products of one layer of DeepSeek-V3 take more than a hundred thousand. Yet people write kernels for it by hand, and every serving engine has one. Why would anybody care about less than a
# thousandth of the arithmetic?
#
# In this lesson you count. First the bytes that PyTorch moves for such a line, operator by operator, and the bytes that one kernel moves for the same. Then you build the kernel and its gradient, see what rounding once is worth, why sums by atomics are not the same twice, and what need not be kept at all. You find the place where a
# training step needs the most memory, and read the machine code of it all. At the end a whole model trains on these kernels.
#
# About 45 minutes. Names carry their shape: **N** rows (tokens), **D** width, **I** hidden width of SwiGLU and **F** = 2I, **V** vocabulary, **H** heads, **S** positions, **P** partial sums.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import os

# this lesson counts, checks and compiles; it runs no kernel on a GPU, not even where there is one
os.environ["TRITON_INTERPRET"] = "1"

import math
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

plt.style.use("course.lesson")
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0], "· triton", triton.__version__)

# %% [markdown]
# ## What one line moves
#
# Here is the line, as careful people write it: in float32 inside, whatever comes in.


# %%
def rmsnorm_eager(x_ND, weight_D, eps=1e-6):
    wide_ND = x_ND.float()
    scale_N1 = torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + eps)
    return (wide_ND * scale_N1 * weight_D.float()).to(x_ND.dtype)


print(rmsnorm_eager(torch.tensor([[3.0, 4.0]]), torch.ones(2)).tolist())

# %% [markdown]
# PyTorch runs this as a row of operators. Each is a kernel of its own: it reads its inputs from memory, and writes its result to memory. So count, for each operator, the bytes of the tensors that go in and of the tensor that comes out. PyTorch lets us listen.
#
# **Predict:** x is BF16, so reading it once and writing the result once takes 4 bytes an element. How many does the line take?

# %%
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def nbytes(tree):
    """Of each tensor in it."""
    return [leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Traffic(TorchDispatchMode):
    """Bytes that each operator reads and writes. Views move nothing, and picking reads no more than it picks."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, read, written = func.overloadpacket.__name__, nbytes((args, kwargs)), nbytes(result)
        if name.startswith(("gather", "scatter")):
            read, written = [min(read)] * len(read), [min(read)] * len(written)
        if not func.is_view:
            self.rows.append((name, sum(read), sum(written)))
        return result


# %%
def meta(*shape, dtype=torch.bfloat16):
    """A tensor that has a shape and no numbers."""
    return torch.empty(shape, dtype=dtype, device="meta")


x_ND, weight_D = meta(8192, 7168), meta(7168)
with Traffic() as traffic:
    rmsnorm_eager(x_ND, weight_D)
for name, read, written in traffic.rows:
    print(f"{name:10s} reads {read / 1e6:6.1f} MB, writes {written / 1e6:6.1f} MB")

# %%
heavy = [row for row in traffic.rows if sum(row[1:]) > 1e6]
x_bytes = x_ND.nbytes
figure, axis = plt.subplots(figsize=(8, 3.2))
left = 0
for place, (_, read, written) in enumerate(heavy):
    axis.barh(place, read / x_bytes * 2, left=left, color=SKY, label="read" if not place else None)
    axis.barh(
        place,
        written / x_bytes * 2,
        left=left + read / x_bytes * 2,
        color=ORANGE,
        label="written" if not place else None,
    )
    left += (read + written) / x_bytes * 2
axis.barh(len(heavy), 2, color=SKY)
axis.barh(len(heavy), 2, left=2, color=ORANGE)
names = {"_to_copy": "convert", "pow": "square", "mul": "multiply"}
axis.set_yticks(range(len(heavy) + 1), [names.get(name, name) for name, *_ in heavy] + ["one kernel"])
axis.set(xlabel="bytes an element, one operator after the other", title="RMSNorm in BF16: what moves")
axis.invert_yaxis()
axis.legend(loc="upper right")
plt.show()
print(f"eager: {left:.1f} bytes an element; at the very least: 4")

# %% [markdown]
# *Figure: a staircase of bars, one an operator, each beginning where the last ended: read in blue, written in orange. Six operators lead to 40 bytes an element. The bar of one kernel, below, ends at 4.*
#
# Ten times what is needed. No operator is at fault: each does its part well, and the waste is *between* them. What one writes, the next reads again. Only the small tensors, one number a row, do not show.
#
# The counter believes that everything comes from memory and goes there. Is that so? An H800 has an L2 cache of 50 MB (the H100's data sheet, second-hand: it is the same chip). In between our tensors are 117 MB in BF16 and 235 in float32; they do not fit. With a few hundred tokens they would, and then the time is not in the bytes: we come back to that at the end.
#
# ## One program a row
#
# A *fused* kernel does all six steps while the row is in registers. In Triton that is nearly the same line: one program for each row, which loads it once.


# %%
@triton.jit
def norm_rows(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # 8,192 rows of 300,000 elements are more than 2^31
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / D + eps)
    tl.store(out + row * D + d, (values * scale * gain).to(out.dtype.element_ty), mask=d < D)


def norm(x_ND, weight_D, eps=1e-6):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    norm_rows[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND


# %% [markdown]
# A row of 500 is not a power of two, so 12 lanes are masked off. They hold 0 (`other=0.0`), which adds nothing to a sum of squares; and the mean divides by `D`, not by `BLOCK`. Two slips that no error message will tell you of.

# %%
from course.kernels.checked import checked
from course.kernels.rmsnorm import rmsnorm

draw = torch.Generator().manual_seed(0)
x_ND = torch.randn(16, 500, generator=draw).bfloat16()
weight_D = (1 + 0.1 * torch.randn(500, generator=draw)).bfloat16()
with checked() as log:
    out_ND = norm(x_ND, weight_D)
assert torch.equal(out_ND, rmsnorm_eager(x_ND, weight_D))
with checked():
    assert torch.equal(out_ND, rmsnorm(x_ND, weight_D))
launch = log.launches[0]
print(f"{launch.grid[0]} programs; equal to the eager line and to course.kernels.rmsnorm, bit by bit")
print(f"loads {launch.load_bytes / x_ND.numel():.1f}, stores {launch.store_bytes / x_ND.numel():.1f} bytes an element")

# %% [markdown]
# (Bit by bit is luck of this size: sums of 500 may be added in another order.)
#
# **Predict:** the log says 4 loaded and 2 stored: 6, not 4. Who is the third?

# %%
WIDTH = {"*bf16": 2, "*fp32": 4, "*i64": 8}


def by_argument(log):
    """Of each argument of all launches: bytes asked for, and bytes of the different elements among them."""
    found = {}
    for number, launch in enumerate(log.launches):
        for name in dict.fromkeys(access.argument for access in launch.accesses):
            places = np.concatenate([a.elements for a in launch.accesses if a.argument == name])
            each = WIDTH[launch.signature[name]]
            found[number, name] = each * len(places), each * len(np.unique(places))
    return found


for (_, name), (asked, different) in by_argument(log).items():
    print(f"{name:7s} asked for {asked:6,} bytes, of {different:6,} different ones")

# %% [markdown]
# Every program asks for the weight, and it is the same 14 kB each time (at width 7,168). On a GPU all but the first few askings are answered by a cache. A log of *accesses* is not a log of *memory traffic*: it is an upper bound of it, and the different bytes are a lower one. From here on we count the weight once, and all else as it is asked for.
#
# ## Before and after
#
# The same for the four lines of a transformer that are not matrix products, each with its gradient. Eager is the PyTorch twin that stands beside each kernel of the course. The kernels run on small inputs in the checked interpreter; once rows are long and many, bytes an element do not depend on the size (what stands behind the point below is the weight, cosine and sine, and partial sums, which 32 rows do not quite hide).
#
# **Predict:** which of the eight gains most? Which least?

# %%
from course.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_backward_torch,
    cross_entropy_torch,
)
from course.kernels.rmsnorm_backward import rmsnorm_backward, rmsnorm_backward_torch
from course.kernels.rope import rope, rope_torch
from course.kernels.swiglu import swiglu, swiglu_torch
from course.kernels.swiglu_backward import swiglu_backward, swiglu_backward_torch

PARTS = {  # eager, kernel
    "RMSNorm": (rmsnorm_eager, rmsnorm),
    "RMSNorm, backward": (rmsnorm_backward_torch, rmsnorm_backward),
    "SwiGLU": (swiglu_torch, swiglu),
    "SwiGLU, backward": (swiglu_backward_torch, swiglu_backward),
    "RoPE": (rope_torch, rope),
    "RoPE, backward": (rope_torch, lambda dy, cos, sin: rope(dy, cos, -sin)),
    "cross entropy": (cross_entropy_torch, cross_entropy),
    "cross entropy, backward": (cross_entropy_backward_torch, cross_entropy_backward),
}


# %%
def inputs_of(part, make, N, D, I, H, V, dtype):
    """What a part is called with, and how many elements we divide by."""
    table = make(N, 32, dtype=torch.float32), make(N, 32, dtype=torch.float32)
    targets_N = make(N, dtype=torch.int64)
    match part:
        case "RMSNorm":
            return (make(N, D, dtype=dtype), make(D, dtype=dtype)), N * D
        case "RMSNorm, backward":
            return (make(N, D, dtype=dtype), make(N, D, dtype=dtype), make(D, dtype=dtype)), N * D
        case "SwiGLU":
            return (make(N, 2 * I, dtype=dtype),), N * I
        case "SwiGLU, backward":
            return (make(N, I, dtype=dtype), make(N, 2 * I, dtype=dtype)), N * I
        case "RoPE" | "RoPE, backward":
            return (make(1, H, N, 64, dtype=dtype), *table), H * N * 64
        case "cross entropy":
            return (make(N, V, dtype=dtype), targets_N), N * V
        case "cross entropy, backward":
            return (make(N, V, dtype=dtype), targets_N, 1 / N), N * V


def zeros(*shape, dtype):
    return torch.zeros(shape, dtype=dtype)


V3 = dict(N=8192, D=7168, I=2048, H=128, V=129_280)
SMALL = dict(N=32, D=512, I=512, H=32, V=8192)


# %%
def eager_bytes(part, dtype, sizes=V3):
    """An element."""
    inputs, elements = inputs_of(part, meta, **sizes, dtype=dtype)
    with Traffic() as traffic:
        PARTS[part][0](*inputs)
    return sum(read + written for _, read, written in traffic.rows) / elements


def kernel_bytes(part, dtype):
    """An element, by the log; the weight counts once."""
    inputs, elements = inputs_of(part, zeros, **SMALL, dtype=dtype)
    with checked() as log:
        PARTS[part][1](*inputs)
    found = by_argument(log)
    return sum(pair[name == "weight"] for (_, name), pair in found.items()) / elements


FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
before = {name: {part: eager_bytes(part, dtype) for part in PARTS} for name, dtype in FORMATS.items()}
after = {name: {part: kernel_bytes(part, dtype) for part in PARTS} for name, dtype in FORMATS.items()}
for part in PARTS:
    pairs = (f"{name} {before[name][part]:6.1f} -> {after[name][part]:4.1f}" for name in FORMATS)
    print(f"{part:24s}" + "   ".join(pairs))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
for axis, name in zip(axes, FORMATS, strict=True):
    rows = np.arange(len(PARTS))
    axis.barh(rows - 0.2, before[name].values(), 0.38, color=ORANGE, label="operator by operator")
    axis.barh(rows + 0.2, after[name].values(), 0.38, color=BLUE, label="one kernel (two for RMSNorm's backward)")
    for row, part in enumerate(PARTS):
        text = f"{before[name][part] / after[name][part]:.1f}x"
        axis.annotate(
            text, (before[name][part], row - 0.2), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set(xlabel="bytes an element", title=f"Moved, in {name}", xlim=(0, 155))
    axis.set_yticks(rows, PARTS)
    axis.grid(axis="y", visible=False)
axes[0].invert_yaxis()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
plt.show()

# %% [markdown]
# *Figure: two panels of paired bars for eight parts, BF16 and float32. Before fusing 14 to 134 bytes an element in BF16, after it 2 to 10; the ratio stands at each bar: about 13 for SwiGLU's backward and 10 for RMSNorm, 5 to 7 for cross entropy. In float32 the ratios are smaller, down to 1.3.*
#
# Two things to take along. In float32 fusing gains less, as there is nothing to convert: a third of the BF16 bytes are conversions to float32 and back. And the ratio of bytes is what is gained if both sides run at the memory's speed. Who finds more in a benchmark has found something else as well: launches that are spared, or a slow rival.
#
# It also matters whom one races. The eager lines here compute in float32, for the sake of the last digit. SwiGLU that stays in BF16 moves less:

# %%
gate_NI, up_NI = meta(8192, 4096).chunk(2, dim=-1)
with Traffic() as traffic:
    F.silu(gate_NI) * up_NI
print(f"{sum(r + w for _, r, w in traffic.rows) / gate_NI.numel():.0f} bytes an element, and it rounds twice")

# %% [markdown]
# Against that there are 10 / 6 to gain, not 38 / 6. And `torch.compile` fuses such chains by itself, into Triton kernels like ours (Ansel et al. 2024). For RMSNorm alone it is a fair rival. What a compiler does not find out for you is in the second half of this page: what not to keep, how to go through a row of 129,280 logits once, and sums that are the same every time.
#
# ## What it is worth
#
# From bytes to a bound on time: an H800's roofs (lesson 08; its float32 is taken to be the H100's). The arithmetic of these kernels is float32, outside the tensor cores, so that is the roof to take.

# %%
from course.hardware import GPUS, Work, bound

h800 = GPUS["h800"]
FLOPS = {"RMSNorm": 4, "RMSNorm, backward": 10, "SwiGLU": 5, "SwiGLU, backward": 12, "RoPE": 3, "RoPE, backward": 3}
FLOPS |= {"cross entropy": 4, "cross entropy, backward": 6}  # an element, about
for part in PARTS:
    _, elements = inputs_of(part, meta, **V3, dtype=torch.bfloat16)
    eager, fused = (
        bound(Work(FLOPS[part] * elements, each["bf16"][part] * elements, "fp32"), h800) for each in (before, after)
    )
    assert eager.by == fused.by == "memory"
    print(
        f"{part:24s} at least {1e3 * eager.time:6.3f} ms eager, {1e3 * fused.time:6.3f} ms fused   ({fused.work.intensity:.1f} FLOPs a byte)"
    )
print(f"ridge in float32: {fused.ridge:.0f} FLOPs a byte")

# %% [markdown]
# All are bound by memory, fused or not, and by far. So a kernel's whole art is to move little, and to keep the memory busy while doing so.
#
# But is it worth it? One mixture layer of DeepSeek-V3, forward, 8,192 tokens in sequences of 4,096, as if one H800 had all of it. Each part at its bound: products by FLOPs, the rest by bytes.
#
# **Predict:** norms, RoPE and SwiGLU, run eagerly: what share of the layer's time? And fused?

# %%
from course.model import PRESETS

c = PRESETS["deepseek-v3"]
R, Q, H = c.kv_lora_rank, c.q_lora_rank, c.heads
attention_weights = c.width * (Q + R + c.rope_width) + Q * H * c.head_width
attention_weights += R * H * (c.qk_nope_head_dim + c.v_head_dim) + H * c.v_head_dim * c.width
met = c.top_k + c.shared_experts  # experts that a token meets
expert_weights = met * 3 * c.width * c.expert_width + c.width * c.experts
itself = 2 * H * (c.head_width + c.v_head_dim) * 4096 / 2  # FLOPs a token; half is masked
elements = {  # a token
    "RMSNorm": 2 * c.width + Q + R,
    "SwiGLU": met * c.expert_width,
    "RoPE": (H + 1) * c.rope_width,
}
added = 2 * 6 * c.width  # bytes a token: two residual additions
large = 2 * (attention_weights + expert_weights)
little = sum(FLOPS[part] * count for part, count in elements.items())
print(f"products {large / 1e9:.2f} GFLOP a token, {large / c.width:,.0f} FLOPs for each of its {c.width:,} numbers")
print(f"attention itself {itself / 1e9:.2f} GFLOP; norms, SwiGLU and RoPE {little / (large + itself):.3%} of all FLOPs")
for name, each in (("eager", before), ("fused", after)):
    print(
        f"{name}: " + ", ".join(f"{part} {count * each['bf16'][part] / 1e3:.0f} kB" for part, count in elements.items())
    )

# %%
memory, tokens = h800.memory_roof().value, 8192
bars, shares = {}, {}
for number in ("bf16", "fp8"):
    products = tokens * large / h800.roof(number).value
    core = tokens * itself / h800.roof("bf16").value
    for name, each in (("eager", before), ("fused", after)):
        times = {"products": products, "attention itself": core}
        times |= {part: tokens * count * each["bf16"][part] / memory for part, count in elements.items()}
        times["residual additions"] = tokens * added / memory
        title = f"products in {number.upper()}, {name}"
        bars[title], shares[title] = times, sum(times[part] for part in elements) / sum(times.values())
figure, axis = plt.subplots(figsize=(9, 3.3))
for row, (title, times) in enumerate(bars.items()):
    left = 0
    for (part, seconds), colour in zip(times.items(), (BLUE, SKY, ORANGE, YELLOW, PINK, BLACK), strict=True):
        axis.barh(row, 1e3 * seconds, left=left, color=colour, label=part if not row else None)
        left += 1e3 * seconds
    axis.annotate(f"{shares[title]:.0%}", (left, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
axis.set_yticks(range(len(bars)), bars)
axis.set(xlabel="least time (ms)", title="One layer of DeepSeek-V3, 8,192 tokens on an H800: bounds")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
plt.show()

# %% [markdown]
# *Figure: four stacked bars of the least time of a layer: products in BF16 and in FP8, each with eager and with fused norms, SwiGLU and RoPE. The percentages at the ends are the share of those three: more than a quarter in the first bar, about four percent when fused, and about two fifths when the products run in FP8 and nothing is fused.*

# %%
for number in ("BF16", "FP8"):
    slow, fast = (sum(bars[f"products in {number}, {name}"].values()) for name in ("eager", "fused"))
    hasty = slow - tokens * elements["SwiGLU"] * (before["bf16"]["SwiGLU"] - 10) / memory  # SwiGLU stays in BF16
    print(f"products in {number}: {1e3 * slow:.1f} -> {1e3 * fast:.1f} ms, at most {slow / fast:.2f} times as fast")
    print(f"    against an eager SwiGLU that stays in BF16: {1e3 * hasty:.1f} ms, {hasty / fast:.2f} times  (computed)")

# %% [markdown]
# So much for less than a thousandth of the arithmetic. And the faster the products, the more the rest weighs: who halves the time of the products by FP8 and fuses nothing, gains much less than half. (Both kinds of parts are at their bounds here; real products reach some two thirds of theirs (quoted: FlashMLA's README, 660 of 990 TFLOP/s), which makes the rest look smaller. Left out: routing, moving tokens to experts, quantising; units 11 and 13 come to them.)
#
# ## Rounding once
#
# Fewer bytes were the reason. There is a second gain, which is free: a kernel keeps float32 in registers between its steps, and rounds to BF16 once, at the end. Eager code that is in a hurry stays in BF16 all the way and rounds after each operator. In between lies what many models do, ours in `course.model` too: normalise in float32, round, and multiply by the weight in BF16.
#
# Error against float64, in units of the last place: BF16's distance from one number to the next. Rounding once is off by 0.5 at most.
#
# **Predict:** five roundings instead of one. Is the error five times as large?


# %%
def throughout(x_ND, weight_D, eps=1e-6):
    return x_ND * torch.rsqrt(x_ND.pow(2).mean(-1, keepdim=True) + eps) * weight_D


def twice(x_ND, weight_D, eps=1e-6):
    wide_ND = x_ND.float()
    return (wide_ND * torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + eps)).bfloat16() * weight_D


x_ND = torch.randn(512, 1024, generator=draw).bfloat16()
weight_D = (1 + 0.1 * torch.randn(1024, generator=draw)).bfloat16()
wide_ND = x_ND.double()
exact_ND = wide_ND * torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + 1e-6) * weight_D.double()
place_ND = 2.0 ** (exact_ND.abs().log2().floor() - 7)
with checked():
    kernel_ND = rmsnorm(x_ND, weight_D)
results = {"BF16 throughout": throughout(x_ND, weight_D), "weight in BF16": twice(x_ND, weight_D), "kernel": kernel_ND}
errors = {name: (out.double() - exact_ND) * exact_ND.sign() / place_ND for name, out in results.items()}
for name, error_ND in errors.items():
    wrong = (results[name] != exact_ND.bfloat16()).float().mean()
    print(
        f"{name:16s} spread {error_ND.std():.2f}, bias {error_ND.mean():+.3f}, largest {error_ND.abs().max():.2f}",
        end="",
    )
    print(f", not the nearest {wrong:.2%}; rows' means {error_ND.mean(1).std():.3f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
for (name, error_ND), colour in zip(errors.items(), (ORANGE, YELLOW, BLUE), strict=True):
    axes[0].hist(
        error_ND.flatten().numpy(),
        np.linspace(-2, 2, 81),
        density=True,
        histtype="step",
        color=colour,
        label=name,
        linewidth=1.6,
    )
    axes[1].hist(
        error_ND.mean(1).numpy(),
        np.linspace(-1, 1, 81),
        density=True,
        histtype="step",
        color=colour,
        label=name,
        linewidth=1.6,
    )
axes[0].set(xlabel="error of an element (units in the last place)", ylabel="density", title="Elements")
axes[1].set(xlabel="mean error of a row (units in the last place)", title="Whole rows", yscale="log")
axes[1].set_xticks([-1, -0.5, 0, 0.5, 1])
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
plt.show()

# %% [markdown]
# *Figure: left, histograms of the error of single elements: the kernel's is a box from -0.5 to 0.5, the other two are bells that reach beyond 1. Right, the mean error of each row, on a logarithmic axis: the kernel's rows all stand at zero, a narrow spike; rows computed in BF16 throughout spread over half a unit to both sides.*
#
# Not five times: roundings are independent and add as random numbers do, so the spread not even doubles. The right picture is the one that matters. In BF16 throughout, the row's *scale* is rounded, and then the whole row is too long or too short together. Such an error does not average out over the row: in a dot product with a thousand terms it stays as it is, while the box of the kernel shrinks. That is how a
# sum of harmless roundings becomes a bias.
#
# One trap lies in the comparison itself: a kernel that equals the *model's* eager line bit by bit cannot round once. `course.model` rounds before the weight, as the published code of Llama does, and its kernel path does not. In BF16 the two differ in a quarter of all elements, by one place. The kernel is nearer to the truth. It is not nearer to a checkpoint that was trained with the other.
#
# ## The gradient, on paper
#
# A row $x$ with $D$ elements, $r = 1/\sqrt{\tfrac1D \sum_i x_i^2 + \varepsilon}$, the normalised row $n = r x$, and $y_i = n_i w_i$. Let $g_i = \mathrm{d}y_i\, w_i$ be the gradient that arrives at $n$. Since $n_i = r x_i$,
#
# $$\mathrm{d}x_j = r\,g_j + \Big(\sum_i g_i x_i\Big)\frac{\partial r}{\partial x_j}, \qquad \frac{\partial r}{\partial x_j} = -\tfrac12\, r^3 \cdot \frac{2 x_j}{D} = -\frac{r^2 n_j}{D},$$
#
# and with $x_i = n_i / r$ one $r$ goes away:
#
# $$\mathrm{d}x = r\,\Big(g - n \cdot \tfrac1D \textstyle\sum_i g_i n_i\Big), \qquad \mathrm{d}w_i = \sum_{\text{rows}} \mathrm{d}y_i\, n_i .$$
#
# The first is a matter of one row. The second adds up *all rows*. Keep that in mind.
#
# **Predict:** how large is the dot product of dx and x?


# %%
def backward_on_paper(dy_ND, x_ND, weight_D, eps):
    r_N1 = torch.rsqrt(x_ND.pow(2).mean(-1, keepdim=True) + eps)
    n_ND, g_ND = x_ND * r_N1, dy_ND * weight_D
    return r_N1 * (g_ND - n_ND * (g_ND * n_ND).mean(-1, keepdim=True)), (dy_ND * n_ND).sum(0)


x_ND, dy_ND = (torch.randn(6, 40, generator=draw, dtype=torch.float64) for _ in range(2))
weight_D = torch.randn(40, generator=draw, dtype=torch.float64)
x_ND.requires_grad_(), weight_D.requires_grad_()
y_ND = x_ND * torch.rsqrt(x_ND.pow(2).mean(-1, keepdim=True) + 1e-6) * weight_D
wanted = torch.autograd.grad(y_ND, (x_ND, weight_D), dy_ND)
with torch.no_grad():
    found = backward_on_paper(dy_ND, x_ND, weight_D, 1e-6)
for name, ours, theirs in zip(("dx", "dweight"), found, wanted, strict=True):
    print(f"{name:8s} off from autograd by {(ours - theirs).norm() / theirs.norm():.0e}")
    torch.testing.assert_close(ours, theirs)
cosine_N = F.cosine_similarity(found[0], x_ND.detach())
print(f"cosine of dx and x: at most {cosine_N.abs().max():.0e}")

# %% [markdown]
# Nearly zero: a longer row has the same norm, so nothing can be gained by making $x$ longer, and the gradient stands upright on it. (Only nearly, because of $\varepsilon$.) The second term does this: it takes out of $g$ what lies along $n$. Who forgets it gets a gradient that is *mostly* right, and trains; that is why it is worth a check.

# %%
without = (dy_ND * weight_D * torch.rsqrt(x_ND.pow(2).mean(-1, keepdim=True) + 1e-6)).detach()
print(
    f"without the mean term: off by {(without - wanted[0]).norm() / wanted[0].norm():.0%} of the gradient's length, at a width of 40"
)
print(f"in a row of 7,168 with random dy it would be about {1 / math.sqrt(7168):.1%}")

# %% [markdown]
# In a random test of long rows, a tolerance of 2 % would let it pass.
#
# The kernel for dx is the forward kernel with a second load and a second sum. It computes $r$ again: the row is in registers anyway.


# %%
@triton.jit
def norm_rows_backward(dy, x, weight, dx, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(values * values) / D + eps)
    n = values * r
    gain = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    g = tl.load(dy + row * D + d, mask=d < D, other=0.0).to(tl.float32) * gain
    result = r * (g - n * (tl.sum(g * n) / D))
    tl.store(dx + row * D + d, result.to(dx.dtype.element_ty), mask=d < D)


x_ND, dy_ND = (torch.randn(12, 300, generator=draw) for _ in range(2))
weight_D, dx_ND = torch.randn(300, generator=draw), torch.empty(12, 300)
with checked() as log:
    norm_rows_backward[(12,)](dy_ND, x_ND, weight_D, dx_ND, 300, 1e-6, BLOCK=512)
    theirs = rmsnorm_backward(dy_ND, x_ND, weight_D, 1e-6)
torch.testing.assert_close(dx_ND, theirs[0])
torch.testing.assert_close(theirs[1], backward_on_paper(dy_ND, x_ND, weight_D, 1e-6)[1])
print("dx equals course.kernels', which launched:")
for each in log.launches[1:]:
    print(f"    {each.kernel}, grid {list(each.grid)}")

# %% [markdown]
# ## A sum that is the same every time
#
# Now dweight: 8,192 rows, one sum for each column. A program that has a row could add its part to the result by `tl.atomic_add`. No race, no lost update (lesson 09). But programs come in any order, and in float32 the order of a sum changes its last digits.
#
# Let us simulate: one column, 4,096 contributions, added in a thousand random orders.
#
# **Predict:** how many different results? 1, 2, dozens, a thousand?

# %%
part_N = torch.randn(4096, generator=torch.Generator().manual_seed(0))
exact = part_N.double().sum()
orders_ON = torch.rand(1000, 4096, generator=draw).argsort(1)
total_O = torch.zeros(1000)
for arriving_O in part_N[orders_ON].T:  # one program after the other, in each of the thousand runs
    total_O += arriving_O
blocks_PN = part_N.view(64, 64)  # 64 programs, each sums a block of its own; then the 64 are added
partial_P = torch.zeros(64)
for arriving_P in blocks_PN.T:
    partial_P += arriving_P
fixed = torch.zeros(())
for partial in partial_P:
    fixed += partial
step = 2.0 ** (exact.abs().log2().floor() - 23)
print(f"{len(total_O.unique())} different results of 1000 orders; sum {exact:.6f}")
away_O, off = (total_O.double() - exact) / step, abs(fixed.double() - exact) / step
print(f"by atomics: {away_O.std():.1f} last places of spread, at most {away_O.abs().max():.0f}")
farther = (away_O.abs() > off).float().mean()
print(f"by partial sums: {off:.1f} off, every time; {farther:.0%} of the orders are farther off")

# %%
figure, axis = plt.subplots(figsize=(8, 3.2))
axis.hist(
    away_O.numpy(),
    np.arange(float(away_O.min()) // 1 - 0.5, float(away_O.max()) + 1.5, 2),
    color=ORANGE,
    label="1,000 orders of arrival",
)
axis.axvline(0, color=BLACK, linewidth=1.2, linestyle="--", label="float64")
axis.axvline(float((fixed.double() - exact) / step), color=BLUE, label="partial sums, fixed order")
axis.set(
    xlabel="difference from float64 (units in the last place of the sum)",
    ylabel="orders",
    title="One column of dweight, added in float32",
)
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# *Figure: a histogram of a thousand sums of the same numbers: a hill some tens of units in the last place wide around the float64 sum, with a long tail to one side. A blue line marks the one result of partial sums, within the hill.*
#
# Dozens of results for the same numbers. No result is wrong by more than a few parts in a hundred thousand, and yet two runs with the same seed part company, and after a thousand steps they are two different models. Whoever then looks for the cause of a loss spike cannot make it happen again.
#
# The course's kernel does without. A program takes a block of rows and some columns, sums in float32, and writes into a row *of its own* in a scratch tensor of P rows. Then P rows are added, in a fixed order. This costs a few bytes: P is at most 64, beside 8,192 rows. It is also more accurate as a rule: a sum of 64 sums of 64 has fewer roundings one upon the other than one of 4,096. The blocks must not depend on how many SMs
# the chip has, or else the next chip has other digits.

# %%
from course.kernels.planned import launches_of

plan = launches_of(lambda: rmsnorm_backward(meta(8192, 7168), meta(8192, 7168), meta(7168)))
for each in plan:
    print(f"{each.kernel}: grid {list(each.grid)}")
scratch, both = plan[1].grid[0] * 7168 * 4, 5 * 8192 * 7168 * 2
print(f"scratch: {scratch / 1e6:.1f} MB, {scratch / both:.2%} of what the two kernels move  (computed)")

# %% [markdown]
# ## Keep, or compute again
#
# Backward needs things from forward. PyTorch's autograd keeps whatever each operator's gradient asks for. Listen again, now to what is *kept*: `saved_tensors_hooks` sees every tensor that autograd puts aside.
#
# **Predict:** SwiGLU's gradient can be computed from gate and up alone: 4 bytes for each element of the result. How many does the eager line keep?

# %%
from course.kernels.autograd import rmsnorm_with_grad, swiglu_with_grad


def kept(call, elements):
    """Bytes an element that autograd keeps, each storage once."""
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), checked():
        result = call()
    return sum(storages.values()) / elements, result  # the result lives until here, so no address comes twice


x_ND, gate_up_NF = torch.zeros(64, 512).bfloat16().requires_grad_(), torch.zeros(64, 1024).bfloat16().requires_grad_()
weight_D = torch.ones(512).bfloat16().requires_grad_()
calls = {
    "RMSNorm, eager": lambda: rmsnorm_eager(x_ND, weight_D),
    "RMSNorm, kernel": lambda: rmsnorm_with_grad(x_ND, weight_D),
    "SwiGLU, eager": lambda: swiglu_torch(gate_up_NF),
    "SwiGLU, kernel": lambda: swiglu_with_grad(gate_up_NF),
}
saved = {name: kept(call, 64 * 512)[0] for name, call in calls.items()}
print("\n".join(f"{name:16s} keeps {each:5.2f} bytes an element" for name, each in saved.items()))

# %% [markdown]
# Eager SwiGLU keeps gate, up and silu(gate), all in float32. The kernel keeps its *input*, which exists anyway, and computes the sigmoid again, in registers, while gate and up pass by. That costs no byte at all: backward must load both in any case.
#
# One can go on. The next product needs SwiGLU's *output* for its own gradient, another 2 bytes. It too can be thrown away and made again in backward, for the price of one more run of the forward kernel. DeepSeek did so (quoted: V3 report, section 3.2.3 for all RMSNorms and the up-projections of attention, section 3.3.3 for SwiGLU's output, whose *inputs* they keep in FP8).

# %%
norms, hidden = elements["RMSNorm"], elements["SwiGLU"]  # a token, of a V3 layer
keeping = {  # bytes an element: norm, SwiGLU, each with the output that the next product keeps
    "eager": (saved["RMSNorm, eager"] + 2, saved["SwiGLU, eager"] + 2),
    "kernels": (saved["RMSNorm, kernel"] + 2, saved["SwiGLU, kernel"] + 2),
    "outputs made again": (saved["RMSNorm, kernel"], saved["SwiGLU, kernel"]),
    "and gate, up in FP8": (saved["RMSNorm, kernel"], 2 * (1 + 4 / 128)),  # one float32 scale for 128
}
figure, axis = plt.subplots(figsize=(8.5, 2.9))
for row, (of_norm, of_swiglu) in enumerate(keeping.values()):
    sizes = [8192 * norms * of_norm / 1e9, 8192 * hidden * of_swiglu / 1e9]
    axis.barh(row, sizes[0], color=SKY, label="norms" if not row else None)
    axis.barh(row, sizes[1], left=sizes[0], color=ORANGE, label="SwiGLU" if not row else None)
    axis.annotate(
        f"{sum(sizes):.2f} GB", (sum(sizes), row), (4, 0), textcoords="offset points", va="center", fontsize=9
    )
axis.set_yticks(range(len(keeping)), keeping)
axis.set(xlabel="kept for backward (GB)", title="Norms and SwiGLU of one V3 layer, 8,192 tokens", xlim=(0, 4.2))
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="lower right")
plt.show()
again = 8192 * (norms * after["bf16"]["RMSNorm"] + hidden * after["bf16"]["SwiGLU"]) / memory
thrice = 3 * bars["products in BF16, fused"]["products"]  # forward, and two in backward
print(
    f"making the outputs again: {1e3 * again:.2f} ms at least; products there and back {1e3 * thrice:.0f} ms  (computed)"
)

# %% [markdown]
# *Figure: four bars, what norms and SwiGLU of one layer keep for 8,192 tokens, shrinking from more than 3 GB by eager operators to about 0.6 GB when outputs are made again and gate and up lie in FP8.*
#
# Less than two percent more time for several times less memory: this is the rare trade that is nearly free, because what is made again is bound by memory and cheap, and what is expensive, the products, is not made again.
#
# ## A row of 129,280 logits
#
# The last line of the model is its widest. A row of logits of DeepSeek-V3 has 129,280 numbers and does not fit into a program's registers. Cross entropy needs two things of it: the largest logit $m$ and $s = \sum_v e^{z_v - m}$; the loss is then $m + \log s - z_{\text{target}}$. Two passes, it seems: the maximum first, for without it there is no sum that cannot overflow.
#
# Milakov and Gimelshein (2018) do it in one. Go block by block, and keep the sum *as of the largest so far*. When a block brings a larger one, the old sum is off by a known factor:
#
# $$m' = \max(m, \max_{\text{block}} z), \qquad s' = s\,e^{m - m'} + \sum_{\text{block}} e^{z - m'} .$$

# %%
logits_V = 3 * torch.randn(129_280, generator=torch.Generator().manual_seed(5))
largest, total, story = torch.tensor(-torch.inf), torch.tensor(0.0), []
for block in logits_V.split(4096):
    larger = torch.maximum(largest, block.max())
    total = total * (largest - larger).exp() + (block - larger).exp().sum()
    largest = larger
    story.append((block.max().item(), largest.item(), total.item()))
print(f"largest {largest:.4f}, log of the sum {largest + total.log():.6f}, torch.logsumexp {logits_V.logsumexp(0):.6f}")
torch.testing.assert_close(largest + total.log(), logits_V.logsumexp(0))

# %% [markdown]
# **Predict:** 32 blocks. How often does a block bring a new largest, in a row of random logits?

# %%
highest, running, sums = (np.array(column) for column in zip(*story, strict=True))
new = np.flatnonzero(np.diff(running, prepend=-np.inf) > 0)
figure, axes = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True)
axes[0].plot(highest, "o", color=SKY, markersize=4, label="largest of the block")
axes[0].step(range(32), running, where="post", color=BLUE, label="largest so far")
axes[0].plot(new, running[new], "o", color=ORANGE, label="new largest")
axes[0].set(ylabel="logit", title="One pass over a row of 129,280 logits, in blocks of 4,096")
axes[0].legend(fontsize=9, loc="upper left")
axes[1].step(range(32), sums, where="post", color=BLUE, label="sum, relative to the largest so far")
axes[1].step(
    range(32),
    sums * np.exp(running - running[-1]),
    where="post",
    color=GREEN,
    linestyle="--",
    label="the same, relative to the final largest",
)
axes[1].vlines(new[1:], 0, sums.max(), color=ORANGE, linewidth=1, linestyle=":")
axes[1].set(xlabel="block", ylabel="sum of exp")
axes[1].legend(fontsize=9, loc="upper right")
plt.show()

# %% [markdown]
# *Figure: above, the largest logit of each of 32 blocks as dots and the largest so far as a staircase, its few steps marked. Below, the running sum: it grows block by block and falls back where the staircase rises by much, as all that was added before is scaled down. The dashed line, on the scale of the end, only grows.*

# %%
tops_RB = torch.stack([torch.randn(32, 4096, generator=draw).amax(1) for _ in range(200)])
records = (tops_RB.cummax(1).values.diff(dim=1) > 0).sum(1) + 1.0
harmonic = sum(1 / block for block in range(1, 33))
print(f"new largest: {records.mean():.2f} times a row on average of 200 rows; 1 + 1/2 + ... + 1/32 = {harmonic:.2f}")

# %% [markdown]
# About four times. The k-th block of like blocks is the highest so far with probability 1/k. So the correction is nearly always multiplication by 1; a GPU makes it anyway, as it is cheaper than asking. One number a block, beside 4,096 exponentials.
#
# The course's kernel does just this, a program a row:

# %%
logits_NV = 3 * torch.randn(3, 10_000, generator=draw).bfloat16()
targets_N = torch.tensor([5, -1, 9_999])  # -1 counts as nothing
with checked() as log:
    mean, losses_N = cross_entropy(logits_NV, targets_N)
torch.testing.assert_close(mean, F.cross_entropy(logits_NV.float(), targets_N, ignore_index=-1))
print(f"losses {[round(loss, 3) for loss in losses_N.tolist()]}")
for (_, name), (asked, _) in by_argument(log).items():
    print(f"{name:8s} {asked:6,} bytes")

# %% [markdown]
# Two rows of 10,000 numbers of two bytes, once, and the targets' own logits. The row that counts as nothing is not even read.
#
# ## Where memory peaks
#
# Bytes that move are time. Bytes that *stay* decide whether a model fits at all. Listen a third time: every new storage adds to what is alive, until Python lets it go. One sequence of 4,096 tokens, V3's vocabulary, loss and gradient of the logits. Nothing of it exists: these are shapes on the meta device.
#
# **Predict:** the logits in BF16 are 1.06 GB. How high does it go?

# %%
import weakref


class Alive(TorchDispatchMode):
    """Bytes of all storages that were made inside and still live, after each operator."""

    def __init__(self):
        super().__init__()
        self.now, self.known, self.story = 0, set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.story.append((func.overloadpacket.__name__, self.now))
        return result

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


# %%
from course.kernels.autograd import cross_entropy_with_grad


def alive(loss_of, N=4096, V=129_280):
    with Alive() as watched:
        logits_NV = meta(N, V).requires_grad_()
        loss_of(logits_NV, meta(N, dtype=torch.int64)).backward()
    return watched.story


eager = alive(lambda logits, targets: F.cross_entropy(logits.float(), targets))
fused = []
launches_of(lambda: fused.extend(alive(lambda logits, targets: cross_entropy_with_grad(logits, targets)[0])))
for name, bytes_now in eager:
    if name != "detach":
        print(f"{name:32s} {bytes_now / 1e9:5.2f} GB")

# %%
sizes = [size / 1e9 for name, size in eager if name not in ("empty", "detach", "ones_like")]
heights = {"logits": eager[0][1] / 1e9}
names = ("to float32", "log softmax", "pick", "gradient of pick", "of log softmax", "to BF16")
heights |= dict(zip(names, sizes, strict=True))
peaks = max(sizes), max(size for _, size in fused) / 1e9
figure, axis = plt.subplots(figsize=(8.5, 3.6))
axis.bar(list(heights), heights.values(), color=ORANGE, label="operator by operator")
axis.bar(["loss", "gradient"], [heights["logits"], peaks[1]], color=BLUE, label="kernels")
axis.tick_params(axis="x", rotation=25, labelsize=9)
axis.set(ylabel="alive (GB)", title="Loss and gradient of 4,096 tokens of 129,280 logits", ylim=(0, 9))
axis.grid(axis="x", visible=False)
axis.legend(loc="upper left")
plt.show()
print(f"peak {peaks[0]:.1f} GB by operators, {peaks[1]:.1f} GB by kernels  (computed from shapes)")

# %% [markdown]
# *Figure: bars of what is alive after each operator. By operators it climbs from 1 GB of logits over 3 and 5 to more than 7 GB at the gradient of log softmax. By kernels it is the logits, then logits and their gradient: 2 GB.*
#
# Seven times the logits, from one line of Python. (Who leaves out `.float()` halves it, and gets losses in BF16: near 11 its numbers are 1/16 of a nat apart.) How many layers weigh as much?

# %%
peak = 1e9 * peaks[0] / 4096  # bytes a token
for name, (of_norm, of_swiglu) in keeping.items():
    print(f"{peak / (norms * of_norm + hidden * of_swiglu):5.1f} layers' norms and SwiGLU weigh as much: {name}")
for name in ("deepseek-v3", "qwen3-30b-a3b"):
    its = PRESETS[name]
    print(f"{name}: {its.vocab / its.width:.0f} logits for each number of the stream")

# %% [markdown]
# And it comes at the worst moment: all that the layers keep is still there when the loss is computed, and only then does backward begin to free it. So the loss sets the peak, most of all where a small model has a large vocabulary.
#
# Liger Kernel (Hsu et al. 2024) goes one step further: the head's product is done in chunks of tokens, and of each chunk loss and gradient are taken at once; the logits never exist as a whole.

# %%
head = 129_280 * 7168  # numbers
for chunks in (1, 2, 4, 8, 16, 64):
    rows = 4096 // chunks
    compute = 3 * 2 * 4096 * head / h800.roof("bf16").value  # logits, and both gradients
    traffic = chunks * (2 * 2 * head + 2 * 4 * head) / memory  # the head twice; its gradient in and out, in float32
    held = 2 * 2 * rows * 129_280 / 1e9
    print(f"{chunks:3d} chunks hold {held:5.2f} GB", end="; ")
    print(f"products {1e3 * compute:.0f} ms, reading the head and adding to its gradient {1e3 * traffic:4.0f} ms")
print(f"and always the head's gradient, {4 * head / 1e9:.1f} GB in float32  (computed)")

# %% [markdown]
# Not for nothing: each chunk reads the head again, for its logits and for the gradient of its hidden states, and adds to the gradient of the head. With four chunks the products still take longer than that, and most of the memory is saved. With 64, reading sets the pace, by a multiple: too few rows for so large a matrix, which is lesson 08 again.
#
# ## The machine code
#
# All these kernels, compiled for the H800 at the sizes of DeepSeek-V3, on this machine, which has none.
#
# **Predict:** what does RMSNorm need more of than SwiGLU: registers, or shared memory? And which of them use the special function unit (`MUFU`) for exponentials (`EX2`), and which for roots (`RSQ`)?

# %%
from course.hardware.report import report
from course.kernels.catalogue import example

NAMES = ("rmsnorm", "rmsnorm_backward", "swiglu", "swiglu_backward", "rope", "cross_entropy")

examples = [example(name) for name in NAMES]  # launches planned, not run
reports = {it.name: report(it.path, it.launch, Work(it.flops, it.bytes)) for it in examples}
print(f"{'for sm_90':17s} warps registers spilled shared  occupancy  limited by")
for name, its in reports.items():
    one, fits = its.compiled, its.occupancy
    print(
        f"{name:17s} {one.warps:5d} {one.registers:9d} {one.spills:7d} {one.shared_bytes:6d} {fits.share:10.0%}  {', '.join(fits.limited_by)}"
    )

# %%
print(f"{'in the text':17s} loads{'':36s} stores{'':22s} special functions")
for name, its in reports.items():
    kinds = (its.code.count(pattern) for pattern in ("LDG", "STG", "MUFU"))
    listed = [
        ", ".join(f"{count} {kind.removesuffix('.CONSTANT')}" for kind, count in found.items()) for found in kinds
    ]
    print(f"{name:17s} {listed[0]:40s} {listed[1]:27s} {listed[2]}")

# %% [markdown]
# `LDG.E.128` is a load of 16 bytes a thread, eight BF16 numbers: the widest on this chip. `LDG.E.64` in RoPE: its halves of a head are 32 features, and a tile of 16 rows times 32 pairs over 128 threads leaves four numbers to a thread. A scalar kernel would show `LDG.E.U16`, as cross entropy does for the one logit of the target.
#
# The special functions tell what is computed. RMSNorm: one `RSQ` a row (and a reciprocal, for the division by D). SwiGLU: a sigmoid is $1 / (1 + 2^{-x \log_2 e})$, one `EX2` and one `RCP` each for the 16 numbers of a thread. Cross entropy: 16 `EX2` for the block, and one for the factor of the old sum. (The odd `RCP` in SwiGLU and RoPE belongs to a division of whole numbers: which tile am I?)
#
# RMSNorm in the order in which it runs, without the arithmetic:

# %%
shown = ("LDG", "SHFL", "STS", "LDS", "BAR", "MUFU", "STG")
skeleton = [each for each in reports["rmsnorm"].code.instructions if each.name.startswith(shown)]
runs = []
for each in skeleton:
    if runs and runs[-1][0] == each.name:
        runs[-1][1] += 1
    else:
        runs.append([each.name, 1, each.means])
for name, count, means in runs:
    print(f"{count:2d} x {name:24s} {means}")

# %% [markdown]
# First the row is loaded, then the weight, whose loads stand between the first exchanges: while it is on its way the sum has begun. And here is the answer to the first question. A row is spread over 16 warps; its sum of squares goes by `SHFL` through each warp, then through shared memory, where all warps meet at a barrier. 64 bytes are enough for 16 partial sums. SwiGLU has nothing to add up, and needs none.
#
# ## What limits it
#
# `rmsnorm` takes 16 warps for a row of 7,168 in a block of 8,192: 16 numbers a thread. Of an SM's 64 warps it fills 75 %, limited by registers: with 32 of them a thread, a fourth block would fit. What else could be had?
#
# **Predict:** fewer warps a row, so more numbers a thread: does the occupancy rise or fall?

# %%
from course.hardware.occupancy import occupancy
from course.kernels.machine import compile_all

it = example("rmsnorm")
variants = {f"{warps} warps a row": {"num_warps": warps} for warps in (4, 8)}
variants["16 warps, 32 registers at most"] = {"num_warps": 16, "maxnreg": 32}
launches = [replace(it.launch, options=options) for options in variants.values()]
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536)
launches += [replace(it.launch, constexprs={"BLOCK": length}, options={"num_warps": 16}) for length in LENGTHS]
made = compile_all(it.path, launches, "sm_90")
lengths = dict(zip(LENGTHS, made[len(variants) :], strict=True))
for name, one in {**dict(zip(variants, made, strict=False)), "16 warps a row": lengths[8192]}.items():
    fits = occupancy(h800, one.warps, one.registers, one.shared_bytes)
    print(f"{name:31s} {one.registers:3d} registers, {one.spills} bytes spilled a thread", end=": ")
    print(f"{fits.blocks} rows at once, {fits.warps} warps, {fits.share:.0%} ({', '.join(fits.limited_by)})")

# %% [markdown]
# Fewer warps, lower occupancy: 25 % with four. And yet *more rows* at once. The registers of a row hardly change, whoever holds them: a row of 8,192, widened to float32, is 8,192 registers, and an SM has 65,536, so never more than eight such rows are there. What is not the row comes on top, once for every thread: addresses, offsets, the weight. Sixteen warps
# pay that most often. What the memory wants is many bytes asked for at any time, and that is rows at once times bytes a row, not warps. So a high occupancy is no end in itself, and no time either. The version with 32 registers has all 64 warps, and pays with a small spill. Which of the four is fastest is for a GPU to say.
#
# What if a row is longer? Registers grow with it, until a thread may have no more: 65,536 for 512 threads is 128 each.
#
# **Predict:** at which length does RMSNorm, by one program of 16 warps, begin to spill?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
axes[0].plot(LENGTHS, [one.registers for one in lengths.values()], "o-", color=BLUE)
axes[0].axhline(128, color=BLACK, linestyle="--", linewidth=1)
axes[0].annotate("65,536 / 512 threads", (4096, 128), (0, -13), textcoords="offset points", fontsize=9)
axes[0].set(ylabel="registers a thread", ylim=(0, 145), title="Registers")
axes[1].plot(LENGTHS, [one.spills for one in lengths.values()], "o-", color=ORANGE)
axes[1].set(ylabel="bytes a thread", title="Spilled")
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
    axis.set_xlabel("elements a row, in one program of 16 warps")
plt.show()
for length, one in lengths.items():
    print(f"{length:6,} elements: {one.registers:3d} registers and {one.spills:4d} bytes spilled a thread", end="; ")
    print(f"{512 * one.spills // 1024} kB spilled of a row of {2 * length // 1024} kB")

# %% [markdown]
# *Figure: left, registers a thread against row length: they rise with it up to the dashed line at 128. Right, bytes spilled: none up to 32k, then hundreds a thread.*
#
# At the longest row, values that were just loaded are put back into memory, from where they came, because there is nowhere else to keep them. The kernel still gives the right result; nothing warns. Each such row must be read twice, so one may as well do it by plan: two passes over blocks, as cross entropy does. The course's `rmsnorm` refuses rows beyond 16,384, one step before it gets tight.
#
# ## A whole model on kernels
#
# `ModelConfig(kernels="triton")` puts all of this under a model: norms, RoPE, SwiGLU, loss, and their gradients; and under the mixture layer kernels of its own, router and grouped products included, which are not this lesson's. The other products stay PyTorch's. Two small models of DeepSeek's kind with the same weights, one training step each.
#
# **Predict:** two layers, latent attention, one dense layer and one mixture. How many launches of the forward RMSNorm?

# %%
from course.model import ModelConfig, Transformer

small = dict(vocab=500, context=16, width=32, layers=2, heads=2, q_lora_rank=16, kv_lora_rank=16, mlp_width=48)
config = replace(ModelConfig.preset("tiny-deepseek-v3"), **small, expert_width=16, mtp_layers=0)
models = {}
for kernels in ("torch", "triton"):
    torch.manual_seed(3)
    models[kernels] = Transformer(replace(config, kernels=kernels))
text_BS = torch.randint(500, (1, 13), generator=draw)
read_BS, wanted_BS = text_BS[:, :-1], text_BS[:, 1:]
losses, optimizers = {}, {name: torch.optim.AdamW(model.parameters(), lr=1e-2) for name, model in models.items()}
with checked() as log:
    for name, model in models.items():
        loss = model.loss(read_BS, wanted_BS)
        loss.total.backward()
        losses[name] = loss.total.item()
print(f"loss by PyTorch {losses['torch']:.6f}, by kernels {losses['triton']:.6f}")
pairs = zip(*(model.parameters() for model in models.values()), strict=True)
worst = max(((q.grad - p.grad).norm() / (p.grad.norm() + 1e-9)).item() for p, q in pairs)
print(f"gradients: off by at most {worst:.0e} of their length, over {len(list(model.parameters()))} tensors")
assert worst < 1e-5

# %%
for optimizer in optimizers.values():
    optimizer.step()
with torch.no_grad(), checked():
    then = {name: model.loss(read_BS, wanted_BS).total.item() for name, model in models.items()}
print(f"after the step: {then['torch']:.5f} and {then['triton']:.5f}, from {losses['torch']:.5f}")
assert abs(then["torch"] - then["triton"]) < 1e-3
counts = Counter(launch.kernel.removesuffix("_kernel") for launch in log.launches)
moved = Counter()
for launch in log.launches:
    moved[launch.kernel.removesuffix("_kernel")] += launch.load_bytes + launch.store_bytes
figure, axes = plt.subplots(1, 2, figsize=(9, 5.6), sharey=True)
for axis, its, colour, label in ((axes[0], counts, BLUE, "launches"), (axes[1], moved, ORANGE, "kB asked for")):
    values = [its[name] / (1 if its is counts else 1000) for name in counts]
    axis.bar_label(axis.barh(list(counts), values, color=colour), fmt="%.0f", padding=3, fontsize=9)
    axis.set(xlabel=label, xlim=(0, 1.15 * max(values)))
    axis.grid(axis="y", visible=False)
axes[0].set_title("One training step of 12 tokens: the log")
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# *Figure: left, launches of each kernel in one training step: nine of RMSNorm forward and of each of its two backward kernels, eight of RoPE, two of SwiGLU each way, one of the loss each way; the rest is the mixture layer's, one or two each. Right, the bytes that each asked for in all: the loss, with one launch, beside the norms, and before both the grouped products, which read the experts' weights.*
#
# Nine norms: four a layer (before attention, before the feed-forward part, and on the two latents) and one at the end. RoPE turns queries and keys, in both layers, forth and back. SwiGLU: the dense layer and the shared expert; that of all routed experts *together* is inside a grouped product. After one step of AdamW the two are still the same to five digits or so; not for ever, as they add in other orders.
#
# ## What this page cannot show
#
# No kernel here ran on a GPU, and no time on this page was measured on one. Bytes, launches and registers were counted, errors measured on this CPU, bounds computed. What that leaves open:
#
# - whether the kernels *reach* their bounds. Latency, the tail of the last programs, and too few bytes on their way come on top. Good kernels of this kind come near the memory's roof; 85 % of a copy is what the course sets itself as a goal, and `benchmarks/kernels.py` is the harness that would tell, against eager PyTorch and `torch.compile`. Its rows stay empty without a GPU, and **none have been measured**.
# - small inputs. With 64 tokens, x is under 1 MB: everything lies in L2, and what eager PyTorch pays for is seven launches instead of one. Fusing helps there for another reason, and by another factor, than the one counted here.
# - the interpreter's speed says nothing. It runs programs one after another, in Python.
# - the precise rounding of a GPU: its `EX2` and `RSQ` are approximations good to one or two units in the last place of float32, and sums go in the order of the hardware's tree. In BF16 results this rarely shows.
#
# ## Turn the knobs
#
# Tokens, width and format: what moves before and after, and the least time on an H800.


# %%
def knobs(tokens=8192, width=7168, dtype="bf16"):
    sizes = dict(N=tokens, D=width, I=width, H=128, V=129_280)
    parts = list(PARTS)[:4]
    _, axis = plt.subplots(figsize=(8.5, 2.9))
    for row, part in enumerate(parts):
        many = tokens * width
        for shift, each, colour in (
            (-0.2, eager_bytes(part, FORMATS[dtype], sizes), ORANGE),
            (0.2, after[dtype][part], BLUE),
        ):
            least = bound(Work(FLOPS[part] * many, each * many, "fp32"), h800).time
            axis.barh(row + shift, each * many / 1e6, 0.38, color=colour)
            text = f"{each * many / 1e6:,.1f} MB, {1e6 * least:,.1f} us at least"
            axis.annotate(
                text, (each * many / 1e6, row + shift), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
    axis.axvline(h800.cache.value / 1e6, color=BLACK, linestyle=":", linewidth=1, label="L2 of an H800")
    axis.set_yticks(range(len(parts)), parts)
    axis.set(xlabel="bytes moved (MB)", title=f"{tokens:,} rows of {width:,} in {dtype}: eager and fused")
    axis.set_xlim(0, axis.get_xlim()[1] * 1.4)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=9)
    plt.show()


knobs()

# %% [markdown]
# *Figure: paired bars of the megabytes that RMSNorm, SwiGLU and their gradients move, eager and fused, for 8,192 rows of 7,168, each with its least time on an H800. A dotted line marks the L2.*
#
# Run the next cell to drag them yourself (it needs a running notebook).

# %%
from ipywidgets import Dropdown, IntSlider, interact

controls = interact(
    knobs,
    tokens=IntSlider(8192, min=64, max=16_384, step=64),
    width=IntSlider(7168, min=256, max=16_384, step=256),
    dtype=Dropdown(options=list(FORMATS), value="bf16"),
)

# %% [markdown]
# Three things to try: the number of tokens at which all that the eager RMSNorm moves would fit into the L2; float32, where the gain shrinks; and a width at which the least time falls under a microsecond, which is less than a launch costs.
#
# ## What we measured
#
# - RMSNorm in eager PyTorch moves 40 bytes an element in BF16, a kernel 4 (counted here); over eight parts the ratio lies between 1.3 and 13.
# - One V3 layer, 8,192 tokens, all at their bounds: norms, RoPE and SwiGLU by operators are a quarter and more of the time, fused a few percent; with FP8 products the gap is wider (computed).
# - Rounding once leaves a box of half a place. BF16 throughout has an error with less than twice the spread, but it is shared by whole rows (measured here).
# - A thousand orders of one float32 sum gave dozens of results; partial sums give one (measured here).
# - The kernels keep their inputs alone. With outputs made again, norms and SwiGLU of a layer keep several times less, for less than two percent of the time (measured bytes an element; computed).
# - Loss and gradient of V3's logits peak at seven times the logits by operators, at twice by kernels (computed from shapes).
# - For sm_90 all six kernels compile without spills; a row that is too long for the registers spills in silence (compiled here).
#
# **What surprised:** that the waste lies between operators and not in any; that the rounding of one number a row is worse than that of all others; that a new maximum comes only four times in 32 blocks; and that one line at the end of the model, not the 61 layers, sets the peak.
#
# **To read**
#
# - Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*, section 4: the equation, and why a longer row has the same norm.
# - Shazeer 2020, *GLU Variants Improve Transformer*, section 2. It is short; read the last sentence too.
# - Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*, sections 2 and 3.
# - Hsu et al. 2024, *Liger Kernel: Efficient Triton Kernels for LLM Training* (arXiv 2410.10989), section 3.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, sections 3.2.3 and 3.3.3.
# - Ansel et al. 2024, *PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph Compilation*: what a compiler fuses by itself.
#
# **Now the lab:** `labs/10_fused_kernels.ipynb`. You fuse a residual addition into the norm, write its gradient without atomics, a SwiGLU with clamps on an interleaved row, a RoPE that turns part of a head at given positions, and loss and gradient in one launch. Then a block of DeepSeek's kind runs on your kernels.
