"""The course's kernels with sizes to compile them for: a launch as a large model would make it, its bytes and FLOPs.

Sizes are those of DeepSeek-V3 where it has some: 8,192 tokens, width 7,168, 128 heads of 64 turned features, an expert's
width 2,048, a vocabulary of 129,280, 8 of 256 experts a token. For grouped products a GPU is taken to hold 8 experts, with
1,024 tokens for each. Bytes are what must move if everything is read once and written once.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from course.kernels.launch import Launch

COUNTED = {
    "fp8_gemm": "fp8",
    "fp8_weight_gradient": "fp8",
}  # number format whose peak a kernel's FLOPs are held against, where it is its own
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class UnknownKernel(ValueError):
    """There is no kernel of that name, or it has no such setting: one sentence."""


@dataclass(frozen=True)
class Sizes:
    """Of the model whose launches these are."""

    tokens: int = 8192
    width: int = 7168
    heads: int = 128
    turned: int = 64  # features of a head that RoPE turns
    hidden: int = 2048  # of an expert
    held: int = 8  # experts on one of 32 GPUs
    vocab: int = 129_280
    square: int = 8192  # side of a matrix product
    experts: int = 256
    top_k: int = 8  # experts a token
    groups: int = 8  # of experts, of which
    top_groups: int = 4  # are open to a token


@dataclass(frozen=True)
class Example:
    """One kernel at one size. Of a function that launches several the launch is the first; FLOPs and bytes are of all."""

    name: str
    path: Path  # of its file
    launch: Launch
    flops: float
    bytes: float
    dtype: str  # number format in which its FLOPs count
    size: str  # in words


def example(name: str, dtype: str = "bf16", **settings: Any) -> Example:
    """A kernel of the catalogue, its launch planned and not run.

    settings: of the kernel's function, such as `block`, `num_warps`, `variant`.
    Raises: UnknownKernel.
    """
    import torch

    from course.kernels.planned import launches_of

    if name not in NAMES:
        raise UnknownKernel(f"there is no kernel {name!r}; there are {', '.join(NAMES)}")
    if dtype not in DTYPES:
        raise UnknownKernel(f"there is no number format {dtype!r} here; there are {', '.join(DTYPES)}")
    module = import_module(f"course.kernels.{name}")
    function = getattr(module, name)
    if unknown := [key for key in settings if key not in inspect.signature(function).parameters]:
        raise UnknownKernel(f"{name} has no setting {unknown[0]!r}")

    def empty(*shape: int, of: torch.dtype = getattr(torch, DTYPES[dtype])) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    inputs, flops, size = INPUTS[name](empty, Sizes())
    made: list[Any] = []
    try:
        launches = launches_of(lambda: made.append(function(*inputs, **settings)))
    except ValueError as error:
        raise UnknownKernel(f"{name}: {error}") from None
    return Example(
        name, Path(module.__file__), launches[0], flops, moved(inputs, made[0]), COUNTED.get(name, dtype), size
    )


def moved(inputs: tuple, outputs: Any) -> int:
    """Bytes of all tensors among a call's inputs and outputs, each once."""
    import torch

    values = (*inputs, *(outputs if isinstance(outputs, tuple) else (outputs,)))
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


# of each kernel: what it is called with, its FLOPs, and its size in words. `empty` makes a tensor: empty(*shape, of=dtype)


def _matmul(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    n = s.square
    return (empty(n, n), empty(n, n)), 2 * n**3, f"[{n:,}, {n:,}] times the same"


def _softmax(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    return (empty(s.tokens, s.tokens),), 5 * s.tokens**2, f"{s.tokens:,} rows of {s.tokens:,}"


def _rmsnorm(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    x, weight = empty(s.tokens, s.width), empty(s.width)
    return (x, weight), 4 * s.tokens * s.width, f"{s.tokens:,} rows of {s.width:,}"


def _rmsnorm_backward(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    dy, x, weight = empty(s.tokens, s.width), empty(s.tokens, s.width), empty(s.width)
    return (dy, x, weight), 10 * s.tokens * s.width, f"{s.tokens:,} rows of {s.width:,}"


def _swiglu(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    return (empty(s.tokens, 2 * s.hidden),), 5 * s.tokens * s.hidden, f"{s.tokens:,} rows of 2 times {s.hidden:,}"


def _swiglu_backward(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    dy, gate_up = empty(s.tokens, s.hidden), empty(s.tokens, 2 * s.hidden)
    return (dy, gate_up), 12 * s.tokens * s.hidden, f"{s.tokens:,} rows of 2 times {s.hidden:,}"


def _rope(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    x = empty(1, s.heads, s.tokens, s.turned)
    cos, sin = (empty(s.tokens, s.turned // 2, of=torch.float32) for _ in range(2))
    size = f"{s.heads} heads, {s.tokens:,} positions, {s.turned} features"
    return (x, cos, sin, "half"), 3 * x.numel(), size


def _cross_entropy(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    logits, targets = empty(s.tokens, s.vocab), empty(s.tokens, of=torch.int64)
    return (logits, targets), 4 * s.tokens * s.vocab, f"{s.tokens:,} rows of {s.vocab:,}"


def _expert_offsets(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    ids = empty(s.tokens, s.top_k, of=torch.int64) % s.experts
    size = f"{s.tokens:,} tokens, {s.top_k} of {s.experts} experts each"
    return (ids, s.experts), 0, size  # whole numbers are compared and added; none is a float


def _fp8_quantize(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    return (empty(s.tokens, s.width),), 4 * s.tokens * s.width, f"{s.tokens:,} rows of {s.width:,}, blocks of 1 x 128"


def _fp8_gemm(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    M, N, K, spans = s.tokens, 2 * s.hidden, s.width, -(-s.width // 128)
    x, w = (empty(rows, K, of=torch.float8_e4m3fn) for rows in (M, N))
    x_scales, w_scales = (empty(rows, spans, of=torch.float32) for rows in (M, -(-N // 128)))
    size = f"[{M:,}, {K:,}] times [{K:,}, {N:,}]"
    return (x, w, x_scales, w_scales, empty(0).dtype), 2 * M * N * K, size


def _fp8_weight_gradient(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    N, K, T, spans = 2 * s.hidden, s.width, s.tokens, -(-s.tokens // 128)
    dy, x = (empty(rows, T, of=torch.float8_e4m3fn) for rows in (N, K))
    dy_scales, x_scales = (empty(rows, spans, of=torch.float32) for rows in (N, K))
    size = f"[{N:,}, {T:,}] times [{T:,}, {K:,}]"
    return (dy, x, dy_scales, x_scales), 2 * N * K * T, size


def _flash_attention(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    S, C, V = s.tokens // 2, 128 + s.turned, 128  # V3 was trained on sequences of 4,096
    q, k, v = (empty(1, s.heads, S, width) for width in (C, C, V))
    size = f"{s.heads} heads, {S:,} positions, each sees those before it; {C} features a key, {V} a value"
    return (q, k, v, C**-0.5), s.heads * S * (S + 1) * (C + V), size


def _mla_decode(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    B, N, R = s.heads, s.tokens // 2, 512  # as many sequences as heads
    queries = empty(B, s.heads, R), empty(B, s.heads, s.turned)
    flops = 2 * B * s.heads * N * (2 * R + s.turned)
    size = f"{B} sequences of {N:,} positions, {s.heads} heads, {R} + {s.turned} features a position"
    return (*queries, empty(B, N, R + s.turned), (128 + s.turned) ** -0.5), flops, size


def _indexer(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    H, S, N, C = s.heads // 2, s.tokens // 2, s.tokens, 128  # index heads, V3.2's 64
    q, k, weight = empty(1, H, S, C), empty(1, N, C), empty(1, S, H)
    return (
        (q, k, weight, False),
        2 * H * S * N * (C + 1),
        f"{S:,} queries, {N:,} earlier keys, {H} heads of {C} features",
    )


def _router(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    logits, bias = (empty(*shape, of=torch.float32) for shape in ((s.tokens, s.experts), (s.experts,)))
    settings = (s.top_k, "sigmoid", s.groups, s.top_groups, 2, True, 2.5)
    size = f"{s.tokens:,} tokens, {s.top_k} of {s.experts} experts from {s.top_groups} of {s.groups} groups"
    return (logits, bias, *settings), (s.top_k + 8) * s.tokens * s.experts, size  # a comparison an expert and step


def _router_backward(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    dweights, logits = (empty(s.tokens, n, of=torch.float32) for n in (s.top_k, s.experts))
    first = torch.arange(s.tokens, device=logits.device)[:, None]
    ids = (first + torch.arange(s.top_k, device=logits.device)) % s.experts  # each once in a row, as a choice is
    size = f"{s.tokens:,} tokens, {s.top_k} of {s.experts} experts each"
    return (dweights, logits, ids, "sigmoid"), (s.top_k + 8) * s.tokens * s.experts, size


def _grouped(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    x, gate_up = empty(s.tokens, s.width), empty(s.held, 2 * s.hidden, s.width)
    rows = empty(s.tokens, of=torch.int64) % s.tokens
    offsets = torch.arange(s.held + 1, device=x.device) * s.tokens // s.held
    size = f"{s.tokens:,} rows of {s.width:,} over {s.held} experts, 2 times {s.hidden:,} each"
    return (x, gate_up, rows, offsets), 4 * s.tokens * s.width * s.hidden, size


def _grouped_weight_gradient(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    (x, gate_up, rows, offsets), flops, size = _grouped(empty, s)
    return (empty(len(rows), gate_up.shape[1]), x, None, rows, offsets), flops, size


def _grouped_swiglu_backward(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    T, P = s.tokens // s.top_k, s.tokens  # 1,024 pairs an expert, as for the other grouped products
    dout, x = empty(T, s.width), empty(T, s.width)
    experts = empty(s.held, 2 * s.hidden, s.width), empty(s.held, s.width, s.hidden)
    pairs = torch.arange(P, device=x.device)
    offsets = torch.arange(s.held + 1, device=x.device) * P // s.held
    weights = empty(T, s.top_k, of=torch.float32)
    size = f"{T:,} tokens, {s.top_k} of {s.held} experts each, {s.width:,} wide, 2 times {s.hidden:,} each"
    return (dout, x, *experts, weights, pairs, offsets, pairs.view(T, s.top_k)), 6 * P * s.width * s.hidden, size


def _combine(empty: Callable, s: Sizes) -> tuple[tuple, float, str]:
    import torch

    y = empty(s.tokens * s.top_k, s.width)
    places = empty(s.tokens, s.top_k, of=torch.int64) % len(y)
    weights = empty(s.tokens, s.top_k, of=torch.float32)
    return (y, places, weights), 2 * y.numel(), f"{s.tokens:,} tokens, {s.top_k} rows of {s.width:,} each"


INPUTS = {
    "matmul": _matmul,
    "softmax": _softmax,
    "rmsnorm": _rmsnorm,
    "rmsnorm_backward": _rmsnorm_backward,
    "swiglu": _swiglu,
    "swiglu_backward": _swiglu_backward,
    "rope": _rope,
    "cross_entropy": _cross_entropy,
    "expert_offsets": _expert_offsets,
    "fp8_quantize": _fp8_quantize,
    "fp8_gemm": _fp8_gemm,
    "fp8_weight_gradient": _fp8_weight_gradient,
    "flash_attention": _flash_attention,
    "mla_decode": _mla_decode,
    "indexer": _indexer,
    "router": _router,
    "router_backward": _router_backward,
    "grouped_gemm": _grouped,
    "grouped_gate_up": _grouped,
    "grouped_weight_gradient": _grouped_weight_gradient,
    "grouped_swiglu_backward": _grouped_swiglu_backward,
    "combine": _combine,
}
NAMES = tuple(INPUTS)
