"""14.2: attention without its scores, forward, token-major and with a window (Dao 2023, algorithm 1)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u14._attention import mix_and_log

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # B, S, N, H, G, C, V, window, dtype, and whether every second query is "far", many times as long, or all are "near" 0
    (1, 20, 45, 4, 2, 24, 16, 45, FP32, ""),  # more keys than queries, two heads share
    (2, 33, 33, 2, 1, 16, 20, 5, FP32, ""),  # a short window: whole blocks are closed for some queries of a tile
    (1, 1, 50, 6, 2, 40, 8, 17, BF16, ""),  # decoding
    (1, 18, 70, 2, 2, 20, 33, 1000, BF16, "far"),
    (1, 3, 3, 1, 1, 1, 1, 1, FP32, ""),  # each sees itself alone
    (1, 2, 500, 2, 1, 16, 16, 1000, BF16, "near"),  # many keys that count alike, and values of one sign
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        q = torch.tensor([[0.0], [0.0], [1.0]]).view(1, 3, 1, 1)
        k = torch.tensor([[0.0], [0.0], [0.0], [1.0986123]]).view(1, 4, 1, 1)
        v = torch.tensor([[8.0, 0.0], [0.0, 4.0], [6.0, 2.0], [2.0, 6.0]]).view(1, 4, 1, 2)
        return {"q_BSHC": q, "k_BNGC": k, "v_BNGV": v, "window": 2, "scale": 1.0}
    if number <= len(EDGES):
        B, S, N, H, G, C, V, window, dtype, lie = EDGES[number - 1]
    else:
        B, S, G, shared = 1, int(rng.integers(1, 24)), int(rng.integers(1, 3)), int(rng.integers(1, 4))
        N, H = S + int(rng.integers(0, 40)), G * shared
        C, V = int(rng.integers(1, 40)), int(rng.integers(1, 40))
        window, dtype = int(rng.integers(1, N + 10)), (BF16, FP32)[int(rng.integers(2))]
        lie = "far" if dtype == BF16 and rng.integers(2) else ""  # such scores cost float32 its last digits
    q_BSHC, k_BNGC = (torch.tensor(rng.normal(size=size)).to(dtype) for size in ((B, S, H, C), (B, N, G, C)))
    if lie == "far":
        q_BSHC[:, ::2] *= 64
    if lie == "near":
        q_BSHC *= 0.1
    v_BNGV = torch.tensor(rng.normal(size=(B, N, G, V)) + 0.5).to(dtype)
    if lie == "near":
        v_BNGV = torch.tensor(rng.uniform(1, 2, size=(B, N, G, V))).to(dtype)
    return {"q_BSHC": q_BSHC, "k_BNGC": k_BNGC, "v_BNGV": v_BNGV, "window": window, "scale": 1.5 * C**-0.5}


def reference(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (S, H), (N, G) = q_BSHC.shape[1:3], k_BNGC.shape[1:3]
    k_BNHC, v_BNHV = (each.double().repeat_interleave(H // G, dim=2) for each in (k_BNGC, v_BNGV))
    scores_BHSN = torch.einsum("bshc,bnhc->bhsn", q_BSHC.double(), k_BNHC) * scale
    behind_SN = (torch.arange(S) + N - S)[:, None] - torch.arange(N)
    scores_BHSN = scores_BHSN.masked_fill((behind_SN < 0) | (behind_SN >= window), -torch.inf)
    top_BHS1 = scores_BHSN.amax(dim=-1, keepdim=True)
    powers_BHSN = (scores_BHSN - top_BHS1).exp()
    total_BHS1 = powers_BHSN.sum(dim=-1, keepdim=True)
    out_BSHV = torch.einsum("bhsn,bnhv->bshv", powers_BHSN / total_BHS1, v_BNHV)
    return out_BSHV.to(q_BSHC.dtype), (top_BHS1 + total_BHS1.log())[..., 0].mT.float()


@triton.jit
def _a_head(
    q, k, v, out, logs, S, H, N, G, C, V, window, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, BROAD: tl.constexpr,
):  # fmt: skip
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c, w = tl.arange(0, WIDE)[None, :], tl.arange(0, BROAD)[None, :]
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (b * S + m) * H + h
    query = tl.load(q + row[:, None] * C + c, mask=(m < S)[:, None] & (c < C), other=0.0)
    at = N - S + m[:, None]
    first = N - S + tl.program_id(0) * ROWS
    largest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, BROAD], tl.float32)
    for start in range(tl.maximum(first - window + 1, 0), tl.minimum(first + ROWS, N), KEYS):
        n = start + tl.arange(0, KEYS)
        place = (b * N + n[:, None]) * G + h // (H // G)
        keys = tl.load(k + place * C + c, mask=(n < N)[:, None] & (c < C), other=0.0)
        values = tl.load(v + place * V + w, mask=(n < N)[:, None] & (w < V), other=0.0)
        scores = tl.dot(query, keys.T, input_precision="ieee") * scale
        sees = (n[None, :] <= at) & (n[None, :] > at - window)
        scores = tl.where(sees, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision="ieee")
        largest = larger
    mix = mix / total[:, None]
    tl.store(out + row[:, None] * V + w, mix.to(out.dtype.element_ty), mask=(m < S)[:, None] & (w < V))
    tl.store(logs + row, largest + tl.log(total), mask=m < S)


def a_program_a_head(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    wide, broad = (max(triton.next_power_of_2(width), 16) for width in (C, V))
    _a_head[(triton.cdiv(S, 32), H, B)](
        q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH, S, H, N, G, C, V, window, scale,
        ROWS=32, KEYS=16, WIDE=wide, BROAD=broad,
    )  # fmt: skip
    return out_BSHV, logs_BSH


@triton.jit
def _a_group(
    q, k, v, out, logs, S, H, N, G, C, V, window, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, BROAD: tl.constexpr,
):  # fmt: skip
    """The heads that share a key head are rows of one tile; powers of two; keys from the last to the first."""
    shared = H // G
    b, g = tl.program_id(0) // G, tl.program_id(0) % G
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    m, h = r // shared, g * shared + r % shared
    there = (m < S)[:, None]
    c, w = tl.arange(0, WIDE)[None, :], tl.arange(0, BROAD)[None, :]
    row = ((b * S + m) * H + h).to(tl.int64)
    query = tl.load(q + row[:, None] * C + c, mask=there & (c < C), other=0.0).to(tl.float32)
    at = (N - S + m)[:, None]
    largest, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, BROAD], tl.float32)
    for block in range(tl.cdiv(N, KEYS)):
        n = N - 1 - block * KEYS - tl.arange(0, KEYS)
        place = ((b * N + n) * G + g).to(tl.int64)[:, None]
        keys = tl.load(k + place * C + c, mask=(n >= 0)[:, None] & (c < C), other=0.0).to(tl.float32)
        scores = tl.dot(query, keys.T, input_precision="ieee") * (scale * 1.4426950408889634)
        sees = (n[None, :] <= at) & (n[None, :] > at - window) & (n[None, :] >= 0)
        larger = tl.maximum(largest, tl.max(tl.where(sees, scores, -1e30), axis=1))
        weights = tl.where(sees, tl.exp2(scores - larger[:, None]), 0.0)
        shrink = tl.exp2(largest - larger)
        values = tl.load(v + place * V + w, mask=(n >= 0)[:, None] & (w < V), other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = mix * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        largest = larger
    tl.store(out + row[:, None] * V + w, mix / total[:, None], mask=there & (w < V))
    tl.store(logs + row, (largest + tl.log2(total)) * 0.6931471805599453, mask=m < S)


def a_program_a_group_of_heads(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV = torch.zeros(B, S, H, V, dtype=q_BSHC.dtype)
    logs_BSH = torch.zeros(B, S, H, dtype=torch.float32)
    wide, broad = (max(triton.next_power_of_2(width), 16) for width in (C, V))
    _a_group[(B * G, triton.cdiv(S * (H // G), 16))](
        q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH, S, H, N, G, C, V, window, scale,
        ROWS=16, KEYS=32, WIDE=wide, BROAD=broad,
    )  # fmt: skip
    return out_BSHV, logs_BSH


@triton.jit
def _faulty(
    q, k, v, out, logs, S, H, N, G, C, V, window, scale,
    FAULT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, BROAD: tl.constexpr,
):  # fmt: skip
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c, w = tl.arange(0, WIDE)[None, :], tl.arange(0, BROAD)[None, :]
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (b * S + m) * H + h
    query = tl.load(q + row[:, None] * C + c, mask=(m < S)[:, None] & (c < C), other=0.0)
    ahead = N - S
    if FAULT == 1:  # counted from the first key
        ahead = 0
    at = ahead + m[:, None]
    first = ahead + tl.program_id(0) * ROWS
    reach = window
    if FAULT == 3:  # one key too many
        reach = window + 1
    begin = tl.maximum(first - reach + 1, 0)
    if FAULT == 6:  # blocks are left out by the last query of the tile
        begin = tl.maximum(tl.minimum(first + ROWS, N) - reach, 0) // KEYS * KEYS
    g = h // (H // G)
    if FAULT == 2:  # heads dealt out in turn
        g = h % G
    largest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, BROAD], tl.float32)
    for start in range(begin, tl.minimum(first + ROWS, N), KEYS):
        n = start + tl.arange(0, KEYS)
        place = (b * N + n[:, None]) * G + g
        keys = tl.load(k + place * C + c, mask=(n < N)[:, None] & (c < C), other=0.0)
        values = tl.load(v + place * V + w, mask=(n < N)[:, None] & (w < V), other=0.0)
        scores = tl.dot(query, keys.T, input_precision="ieee") * scale
        sees = (n[None, :] <= at) & (n[None, :] > at - reach)
        scores = tl.where(sees, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        if FAULT == 4:  # minus infinity less itself
            base = larger
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision="ieee")
        if FAULT == 7:  # kept in the values' format
            mix = mix.to(values.dtype).to(tl.float32)
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + row[:, None] * V + w, mix.to(out.dtype.element_ty), mask=(m < S)[:, None] & (w < V))
    log = largest + tl.log(total)
    if FAULT == 5:  # in powers of two
        log = log * 1.4426950408889634
    tl.store(logs + row, log, mask=m < S)


def counted_from_the_first_key(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=1, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def heads_in_turn(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=2, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def window_one_too_wide(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=3, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def closed_block_is_nan(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=4, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def logs_to_base_two(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=5, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def blocks_left_out_by_the_last_query(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=6, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


def sum_in_bfloat16(q_BSHC, k_BNGC, v_BNGV, window, scale):
    (B, S, H, C), (N, G), V = q_BSHC.shape, k_BNGC.shape[1:3], v_BNGV.shape[3]
    out_BSHV, logs_BSH = torch.empty(B, S, H, V, dtype=q_BSHC.dtype), torch.empty(B, S, H)
    tensors, wide = (q_BSHC, k_BNGC, v_BNGV, out_BSHV, logs_BSH), max(triton.next_power_of_2(C), 16)
    sizes, broad = (S, H, N, G, C, V, window, scale), max(triton.next_power_of_2(V), 16)
    _faulty[(triton.cdiv(S, 32), H, B)](*tensors, *sizes, FAULT=7, ROWS=32, KEYS=16, WIDE=wide, BROAD=broad)
    return out_BSHV, logs_BSH


EXERCISE = Exercise(
    id="14.2",
    unit="14",
    title="attention without its scores",
    entry="flash_forward",
    points=15,
    minutes=45,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=mix_and_log("out", "logs", "v_BNGV"),
    misconceptions=(
        Misconception(
            "counted-from-the-first-key",
            counted_from_the_first_key,
            "It looks like queries that stand at the first positions. The S queries are the last of the N positions: query s "
            "stands at N - S + s.",
        ),
        Misconception(
            "heads-in-turn",
            heads_in_turn,
            "It looks like query head h with key head h % G. Neighbours share: key head h // (H // G).",
        ),
        Misconception(
            "window-one-too-wide",
            window_one_too_wide,
            "It looks like a window of one key more. The query's own position counts: it sees `window` keys, itself the last.",
        ),
        Misconception(
            "closed-block-nan",
            closed_block_is_nan,
            "It looks like minus infinity subtracted from minus infinity, which is NaN. With a window, the first block of a tile "
            "may hold no key at all for its later queries: subtract 0 while a row's largest is minus infinity.",
        ),
        Misconception(
            "base-two",
            logs_to_base_two,
            "It looks like logs to base 2, those of exp2. Wanted are natural ones: multiply by ln 2.",
        ),
        Misconception(
            "skipped-by-last-query",
            blocks_left_out_by_the_last_query,
            "It looks like blocks left out that the last query of a tile does not see, though its first one does. A tile begins "
            "with the first key that its first query sees.",
        ),
        Misconception(
            "sum-in-bfloat16",
            sum_in_bfloat16,
            "It looks like a sum that is kept in bfloat16 from block to block. Its eight bits are rounded at every block: keep it "
            "in float32, and round once, at the end.",
        ),
    ),
    alternatives=(a_program_a_head, a_program_a_group_of_heads),
    hints=(
        "A program holds a tile of queries and meets the keys block by block, as in 14.1. What is a row there is a row of a "
        "tile here, and each row has a largest and a sum of its own.",
        "Query s stands at position N - S + s, and sees key n where n <= position and n > position - window. From this follow "
        "the mask, the first block and the last. Watch rows for which a whole block is closed.",
        "Row of q and out: (b S + s) H + h; row of k and v: (b N + n) G + h // (H // G). Two dots a block: query times keys.T, "
        "then weights, in the values' dtype, times values, added to mix * shrink[:, None].",
    ),
    forbids=(
        "torch.nn.functional.scaled_dot_product_attention",
        "torch.nn.functional.softmax",
        "torch.softmax",
        "Tensor.softmax",
        "torch.logsumexp",
        "Tensor.logsumexp",
    ),
    kernel=True,
)
