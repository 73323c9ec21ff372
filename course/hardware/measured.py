"""How long an operation takes: published measurements on an H800, and curves through them.

    kernel_time(operation)                       a Part, in seconds
    kernel_time(operation, sms=112)              20 of 132 SMs are busy with something else
    kernel_times("attention", operations, H200)  an Estimate, one after the other

Measurements: alibaba/InferSim's, h800_kernels.json, and apart from them DeepGEMM's own table, h800_deepgemm.json, on which
nothing is fitted. Where the two have the same kernels they differ, DeepGEMM's being of another version and measured by
others: by how much, is part of the error of every product. Latent attention is held against what FlashMLA claims.

Assumptions, and what they add to the error:
- Another GPU reaches the same share of its roofs at the same sizes, and starts a kernel as fast.
- A BF16 product reaches the share of the BF16 peak that an FP8 product reaches of its own.
- The gradient of weights is timed as a product of its sizes; attention's way back as its way forth, FLOP for FLOP, at
  `BACKWARD` of the speed.
- An elementwise operation runs at the bandwidth that FlashMLA reaches.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from math import hypot, log
from types import SimpleNamespace

import numpy as np

from course.hardware.curves import Curve
from course.hardware.estimate import Estimate, Part
from course.hardware.gpus import GPU, H800, Figure
from course.hardware.layer_parts import (
    Operation,
    attention,
    grouped,
    index_scores,
    latent_attention,
    product,
)
from course.hardware.layers import Batch
from course.hardware.roofline import bound

FP8_PEAK = 1979e12  # FLOP/s: what InferSim's shares are of
GUESS = "assumed: no measurement on an H800 is published"
OTHER_FORMAT = Figure(0.15, GUESS, "unverified")  # relative errors
OTHER_GRADIENT = Figure(0.15, GUESS, "unverified")
OTHER_GPU = {True: Figure(0.1, GUESS, "unverified"), False: Figure(0.3, GUESS, "unverified")}  # the same architecture?
PRODUCTS = ("gemm", "masked", "contiguous")
README = "deepseek-ai/FlashMLA, README.md: up to, on an H800"
CLAIMED = {  # FLOP/s that the kernel's authors reached
    "mla_decode": Figure(660e12, README),
    "sparse_decode": Figure(410e12, README),
    "sparse_prefill": Figure(640e12, README),
}
ELEMENTWISE = Figure(0.2, GUESS, "unverified")
START = Figure(2e-6, "assumed: from one kernel to the next, its error as large as itself", "unverified")  # s
BACKWARD = Figure(
    561 / 640,
    "FlashAttention-3 (arXiv 2407.08608), figures 5 and 6: H100, heads of 128, 16k tokens, not causal; 561 of 640 TFLOP/s",
    "second-hand",
)
SIZES = {
    "gemm": ("m", "k", "n"),
    "masked": ("groups", "m", "k", "n"),
    "contiguous": ("groups", "m", "k", "n"),
    "mla_decode": ("batch", "queries", "context", "heads"),
    "gqa_decode": ("batch", "queries", "context", "heads", "kv_heads", "key"),
    "prefill": ("queries", "heads", "key", "value"),
    "sparse_decode": ("batch", "queries", "seen", "context", "heads"),
    "sparse_prefill": ("queries", "seen", "context", "heads"),
    "index_decode": ("batch", "queries", "context", "heads"),
    "index_prefill": ("queries", "scored", "heads"),
}
V3 = SimpleNamespace(heads=128, kv_lora_rank=512, qk_rope_head_dim=64, index_topk=0)  # the sizes that were measured
V32 = SimpleNamespace(**vars(V3) | {"index_topk": 2048}, index_heads=64, index_head_dim=128)


@lru_cache
def table(name: str, file: str = "h800_kernels.json") -> dict:
    """A published table: source, kind, columns and rows; times in microseconds."""
    return json.loads((files("course.hardware") / file).read_text())[name]


def measurements(name: str) -> list[tuple[Operation, float]]:
    """The measured operations of a table and their seconds. Raises: KeyError for a table that does not exist."""
    its = table(name)
    skipped = [one["row"] for one in its.get("left_out", ())]
    rows = [dict(zip(its["columns"], row, strict=True)) for row in its["rows"] if row not in skipped]
    if name in ("masked", "contiguous"):
        return [pair for row in rows for pair in _experts(name, row)]
    return [(_operation(name, row), row["us"] * 1e-6) for row in rows]


def _experts(name: str, row: dict) -> list[tuple[Operation, float]]:
    """The two products of a mixture. Rows were drawn around `rows_each`, rounded down; the share of the peak tells how many
    there were. With one row each in the mean, half of the experts had none, and their weights stayed where they were."""
    found = []
    for part, k, n in (("up", 7168, 4096), ("down", 2048, 7168)):
        seconds = row[f"{part}_us"] * 1e-6
        rows = row[f"{part}_mfu"] * FP8_PEAK * seconds / (2 * k * n)
        hit = min(row["groups"], rows)
        found.append((grouped(part, hit, rows / hit, k, n, "fp8", name), seconds))
    return found


def _operation(name: str, row: dict) -> Operation:
    if name == "gemm":
        return product(name, row["m"], row["k"], row["n"], "fp8")
    form = "decode" if name.endswith("decode") else "prefill"
    context, queries = row["context"], row.get("queries", 1 if form == "decode" else row["context"])
    tokens = row.get("batch", 1) * queries
    batch = Batch(tokens, context, context - queries if form == "prefill" else 0, queries)
    if name.startswith("index"):
        return index_scores(name, V32, form, batch)
    if name.startswith("sparse"):
        return latent_attention(name, V32, form, batch, most=2048)
    if name == "mla_decode":
        return latent_attention(name, V3, form, batch)
    heads, kv_heads, key = row.get("heads", 128), row.get("kv_heads", 128), 128 if name == "gqa_decode" else 192
    return attention(name, heads, kv_heads, key, 128, form, batch)


@lru_cache
def curve(name: str) -> Curve:
    """The curve through one table, fitted when first asked for. Tables that never meet the memory's roof hold its share at
    what FlashMLA reaches, and those of times that hardly differ hold the latency of the other attention."""
    pairs = measurements(name)
    share = H800.achieved_bandwidth.value / H800.bandwidth.value
    held = {"memory": share} if name in ("prefill", "sparse_decode", "sparse_prefill", "index_prefill") else {}
    like = {"sparse_decode": "mla_decode", "sparse_prefill": "prefill"}.get(name)
    if like:
        held["latency"] = curve(like).parameters["latency"]
    operations, seconds = zip(*pairs, strict=True)
    return Curve(f"{name}, H800", table(name)["source"], operations, seconds, SIZES[name], held)


def kernel_time(operation: Operation, gpu: GPU = H800, sms: int | None = None) -> Part:
    """Seconds that an operation takes on a GPU, or on `sms` of its SMs; its error; and the measurement it rests on.

    Raises: ValueError where the GPU has no peak in the number format, or fewer SMs.
    """
    if operation.curve == "elementwise":
        return _elementwise(operation, gpu)
    its = curve(operation.curve)
    seconds = float(its.model([operation], gpu, sms)[0])
    factor, error = its.correction(operation)
    if operation.curve in (*PRODUCTS, *CLAIMED):
        error = hypot(error, between_sources(operation.curve, bound(operation.work, gpu).by))
    if operation.work.dtype != its.operations[0].work.dtype:
        error = hypot(error, OTHER_FORMAT.value)
    if "backward" in operation.shape:
        error = hypot(error, OTHER_GRADIENT.value)
        if operation.kind == "attention":
            factor /= BACKWARD.value
    error = hypot(error, _other(gpu))
    return Part(operation.name, seconds * factor, seconds * factor * error, its.name)


def kernel_times(
    name: str, operations: Iterable[Operation], gpu: GPU = H800, sms: int | None = None, times: int = 1
) -> Estimate:
    """Seconds of operations one after the other, all of them so many times."""
    return Estimate(name, "s", tuple(kernel_time(one, gpu, sms) * times for one in operations))


def _elementwise(operation: Operation, gpu: GPU) -> Part:
    share = H800.achieved_bandwidth.value / H800.bandwidth.value
    moved = operation.work.bytes / (share * gpu.bandwidth.value)
    error = hypot(moved * hypot(ELEMENTWISE.value, _other(gpu)), START.value)
    return Part(operation.name, START.value + moved, error, "elementwise, assumed")


def _other(gpu: GPU) -> float:
    return 0.0 if gpu.name == H800.name else OTHER_GPU[gpu.arch == H800.arch].value


def deepgemm(name: str) -> list[tuple[Operation, float]]:
    """DeepGEMM's own table of "gemm", "masked" or "contiguous": operations and seconds."""
    found = []
    for *sizes, tflops in table(name, "h800_deepgemm.json")["rows"]:
        one = product(name, *sizes, "fp8") if name == "gemm" else grouped(name, *sizes, "fp8", name)
        found.append((one, one.work.flops / (tflops * 1e12)))
    return found


@lru_cache
def between_sources(name: str, by: str) -> float:
    """Relative, by how much two who measured differ.

    Of products: four of five times in DeepGEMM's table are no further from the curve, of those that one roof bounds ("memory"
    or "compute"; of all, where it has none of these). Of latent attention: the fastest in the table from what its authors
    claim.
    """
    if name in CLAIMED:
        fastest = max(one.work.flops / seconds for one, seconds in measurements(name))
        return abs(log(CLAIMED[name].value / fastest))
    pairs = deepgemm(name)
    alike = [pair for pair in pairs if bound(pair[0].work, H800).by == by] or pairs
    off = []
    for operation, seconds in alike:
        said = curve(name).model([operation])[0] * curve(name).correction(operation)[0]
        off.append(abs(log(seconds / said)))
    return float(np.quantile(off, 0.8, method="higher"))
