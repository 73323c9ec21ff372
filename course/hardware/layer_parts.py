"""One operation of a layer: its kind, its sizes, its work, and which published measurement it resembles.

Products are (m rows) x (k to n); a grouped product has `groups` of them. Bytes a number: BF16 2; FP8 1, with a scale of 4
bytes for 128 activations or for a block of 128 x 128 weights (V3 report, section 3.3.2). Attention's FLOPs are 2 a
multiply and add of every query with the keys that it sees.
"""

from dataclasses import dataclass

from course.hardware.roofline import Work

ACTIVATION = {"bf16": 2.0, "fp8": 1 + 4 / 128}  # bytes of one number with its share of a scale
WEIGHT = {"bf16": 2.0, "fp8": 1 + 4 / 128**2}
SPARSE_CACHE = 656  # bytes a token: 512 E4M3, 4 FP32 scales, 64 BF16 (deepseek-ai/FlashMLA, README.md)
ADDED_UP = 8  # bytes a gradient of a weight in FP32, read and written
KINDS = ("gemm", "grouped_gemm", "attention", "elementwise", "gate")


@dataclass(frozen=True)
class Operation:
    """name; kind, one of KINDS; shape, its sizes by name; work; curve, the measurement it is timed by
    (`course.hardware.measured`); extra, FLOPs of the work that no model counts: done a second time, or for nothing."""

    name: str
    kind: str
    shape: dict[str, float]
    work: Work
    curve: str
    extra: float = 0.0

    @property
    def model_flops(self) -> float:
        """FLOPs as a model is counted by."""
        return self.work.flops - self.extra


def product(name: str, m: float, k: float, n: float, dtype: str, kind: str = "gemm") -> Operation:
    """(m, k) times (k, n), written in BF16."""
    traffic = ACTIVATION[dtype] * m * k + WEIGHT[dtype] * k * n + 2 * m * n
    return Operation(name, kind, {"m": m, "k": k, "n": n}, Work(2 * m * k * n, traffic, dtype), "gemm")


def grouped(name: str, groups: float, m: float, k: float, n: float, dtype: str, curve: str) -> Operation:
    """`groups` products of m rows each, with weights of their own; those without rows are not among them.

    curve: "masked", rows in a fixed place for each group, as in decode, or "contiguous", one after the other.
    """
    one = product(name, m, k, n, dtype).work
    shape = {"groups": groups, "m": m, "k": k, "n": n}
    return Operation(name, "grouped_gemm", shape, Work(groups * one.flops, groups * one.bytes, dtype), curve)


def elementwise(name: str, read: float, written: float) -> Operation:
    """Reads and writes so many bytes. Its few FLOPs are not counted, as `course.model.count` leaves them out."""
    return Operation(name, "elementwise", {"read": read, "written": written}, Work(0.0, read + written), "elementwise")


def mean_seen(first: float, last: float, most: float = float("inf")) -> float:
    """Keys that the queries at positions first to last see in the mean: as many as the position, and `most` at most."""
    if last <= most:
        return (first + last) / 2
    if first > most:
        return most
    below = most - first + 1
    return (below * (first + most) / 2 + (last - most) * most) / (last - first + 1)


def _keys(form: str, batch, most: float) -> tuple[float, float]:
    """Keys a query sees in the mean, and rows of the cache (or new keys) that all of them read."""
    if form == "decode":
        return min(batch.context, most), batch.tokens / batch.queries * batch.context
    new = batch.context - batch.cached
    return mean_seen(batch.cached + 1, batch.context, most), batch.tokens * batch.context / new


def _sizes(form: str, batch, **more: float) -> dict[str, float]:
    new = batch.queries if form == "decode" else batch.context - batch.cached
    return {"batch": batch.tokens / new, "queries": new, "context": batch.context, **more}


def attention(
    name: str, heads: int, kv_heads: int, key: int, value: int, form: str, batch, most: float = float("inf")
) -> Operation:
    """Of queries with `kv_heads` heads of keys and values, in BF16. most: keys a query sees at most."""
    seen, rows = _keys(form, batch, most)
    flops = 2 * heads * (key + value) * seen * batch.tokens
    traffic = 2 * batch.tokens * heads * (key + value) + 2 * rows * kv_heads * (key + value)
    shape = _sizes(form, batch, seen=seen, heads=heads, kv_heads=kv_heads, key=key, value=value)
    return Operation(name, "attention", shape, Work(flops, traffic), "gqa_decode" if form == "decode" else "prefill")


def latent_attention(name: str, config, form: str, batch, most: float = float("inf")) -> Operation:
    """Absorbed: all heads share one key, the latent with its turned part, and one value, the latent. In BF16; a cache that
    an indexer chooses from is stored as FP8 where products are (what FlashMLA's sparse decode reads). A query with fewer keys
    than it may choose costs as much as one with all: the measured times do not fall below 2,048 keys."""
    key, value = config.kv_lora_rank + config.qk_rope_head_dim, config.kv_lora_rank
    seen, rows = _keys(form, batch, most)
    a_key = 2 * config.heads * (key + value) * batch.tokens
    row, curve, work = 2 * key, "mla_decode", a_key * seen
    if config.index_topk:
        curve, work = f"sparse_{form}", a_key * config.index_topk
        if form == "decode":
            row = SPARSE_CACHE if batch.precision == "fp8" else row
            rows = batch.tokens * seen
    traffic = 2 * batch.tokens * config.heads * (key + value) + row * rows
    shape = _sizes(form, batch, seen=work / a_key, heads=config.heads, kv_heads=1, key=key, value=value)
    return Operation(name, "attention", shape, Work(work, traffic), curve, work - a_key * seen)


def index_scores(name: str, config, form: str, batch) -> Operation:
    """Scores of every key before a query, written in FP32. Keys are read as FP8 with one scale each where products are."""
    heads, width, dtype = config.index_heads, config.index_head_dim, batch.precision
    scored, rows = _keys(form, batch, float("inf"))
    key = width + 4 if dtype == "fp8" else 2 * width
    traffic = key * rows + ACTIVATION[dtype] * batch.tokens * heads * width + 4 * scored * batch.tokens
    shape = _sizes(form, batch, scored=scored, heads=heads, key=width)
    work = Work(2 * heads * width * scored * batch.tokens, traffic, dtype)
    return Operation(name, "attention", shape, work, "index_decode" if form == "decode" else "index_prefill")


def input_gradient(one: Operation) -> Operation:
    """What the gradient of its input costs; of attention, the gradients of queries, keys and values.

    A product's is the product with the weights turned. An elementwise one reads its input and the gradient, and writes
    one. Attention computes its scores again and four products more: of scores and values twice each.
    """
    s, w = one.shape, one.work
    if one.kind in ("gemm", "gate"):
        return product(one.name, s["m"], s["n"], s["k"], w.dtype, one.kind)
    if one.kind == "grouped_gemm":
        return grouped(one.name, s["groups"], s["m"], s["n"], s["k"], w.dtype, one.curve)
    if one.kind == "elementwise":
        return elementwise(one.name, s["read"] + s["written"], s["read"])
    second = w.flops * s["key"] / (s["key"] + s.get("value", 0))
    work = Work(2 * w.flops + second, 2 * w.bytes, w.dtype)
    return Operation(one.name, "attention", {**s, "backward": 1.0}, work, one.curve, second)


def weight_gradient(one: Operation) -> Operation:
    """Of a product: (k, m) times (m, n), both FP8 where the product was, added to a sum in FP32."""
    s, dtype = one.shape, one.work.dtype
    groups = s.get("groups", 1)
    traffic = groups * (ACTIVATION[dtype] * s["m"] * (s["k"] + s["n"]) + ADDED_UP * s["k"] * s["n"])
    shape = {**s, "m": s["k"], "k": s["m"], "backward": 1.0}
    return Operation(one.name, one.kind, shape, Work(one.work.flops, traffic, dtype), one.curve)
