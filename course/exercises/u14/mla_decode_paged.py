"""14.4: absorbed latent attention of one query a sequence on a paged cache (DeepSeek-V2 report, section 2.1.2)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u14._attention import mix_and_log

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # lengths, H, R, r, positions a page, dtype, what lies behind the last position; "far": heads differ much; "near": hardly
    ([40, 0, 17], 5, 32, 16, 16, FP32, "numbers"),  # odd, and a sequence of none
    ([33, 64], 70, 16, 16, 32, FP32, "nan"),  # more heads than a tile; one sequence fills its pages
    ([70], 3, 64, 32, 64, BF16, "nan far"),
    ([1, 16, 48], 16, 32, 16, 16, BF16, "numbers"),
    ([100], 1, 16, 16, 16, FP32, "nan"),
    ([500], 2, 16, 16, 16, BF16, "near"),  # many positions that count alike, and rows of one sign
]


def inputs(rng, number):
    if number == 0:  # the example of the text, padded with zeros to 16 and 16
        pages_PKL, q_BHL = torch.full((3, 16, 32), 9.0), torch.zeros(1, 1, 32)
        rows = torch.zeros(2, 32)
        rows[0, 0], rows[1, 1], rows[1, 16] = 4.0, 8.0, 1.0
        pages_PKL[2, :2], q_BHL[0, 0, 16] = rows, 2.1972246
        table_BW, lengths_B = torch.tensor([[2, -1]], dtype=torch.int32), torch.tensor([2])
        return {"q_BHL": q_BHL, "pages_PKL": pages_PKL, "table_BW": table_BW, "lengths_B": lengths_B} | {
            "scale": 0.5,
            "rank": 16,
        }
    if number <= len(EDGES):
        lengths, H, R, r, size, dtype, behind = EDGES[number - 1]
    else:
        size, r = int(rng.choice([16, 32])), 16
        lengths, H = rng.integers(0, 80, size=int(rng.integers(1, 4))).tolist(), int(rng.integers(1, 24))
        R, dtype = int(rng.choice([16, 32, 64])), (BF16, FP32)[int(rng.integers(2))]
        behind = str(rng.choice(["numbers", "nan", "nan far" if dtype == BF16 else "nan"]))
    counts = [-(-length // size) for length in lengths]
    width, needed = max(max(counts), 1) + 1, sum(counts)
    order = rng.permutation(needed + 2).tolist()
    pages_PKL = torch.tensor(rng.normal(size=(needed + 2, size, R + r))).to(dtype)
    if behind == "near":
        pages_PKL = torch.tensor(rng.uniform(1, 2, size=pages_PKL.shape)).to(dtype)
    table_BW = torch.full((len(lengths), width), -1, dtype=torch.int32)
    unused = torch.ones(needed + 2, size, dtype=torch.bool)
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = [order.pop() for _ in range(count)]
        table_BW[b, :count] = torch.tensor(mine, dtype=torch.int32)
        for place, page in enumerate(mine):
            unused[page, : length - place * size] = False
    if b := next((b for b in range(1, len(lengths)) if counts[b] > 1 and counts[b - 1] > 1), 0):
        table_BW[b, 0] = table_BW[b - 1, 0]  # two sequences with one beginning share its page
    pages_PKL[unused] = 3.0 if behind == "numbers" else torch.nan
    q_BHL = torch.tensor(rng.normal(size=(len(lengths), H, R + r))).to(dtype)
    if behind == "nan far":
        q_BHL[:, ::2] *= 64
    if behind == "near":
        q_BHL *= 0.1
    return {
        "q_BHL": q_BHL,
        "pages_PKL": pages_PKL,
        "table_BW": table_BW,
        "lengths_B": torch.tensor(lengths, dtype=torch.int64),
        "scale": 1.3 * (r + 8) ** -0.5,
        "rank": R,
    }


def reference(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    size, mixes, logs = pages_PKL.shape[1], [], []
    for q_HL, table_W, length in zip(q_BHL.double(), table_BW.tolist(), lengths_B.tolist(), strict=True):
        pages = table_W[: -(-length // size)]
        rows_NL = pages_PKL[pages].flatten(0, 1)[:length].double()
        scores_HN = q_HL @ rows_NL.T * scale
        log_H = scores_HN.new_full((len(scores_HN),), -torch.inf)
        if length:
            top_H1 = scores_HN.amax(dim=1, keepdim=True)
            log_H = top_H1[:, 0] + (scores_HN - top_H1).exp().sum(dim=1).log()
        mixes.append((scores_HN - log_H[:, None]).exp() @ rows_NL[:, :rank])
        logs.append(log_H)
    return torch.stack(mixes).to(q_BHL.dtype), torch.stack(logs).float()


@triton.jit
def _over_pages(
    q, pages, table, lengths, out, logs, H, W, scale,
    R: tl.constexpr, L: tl.constexpr, SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    r, p = tl.arange(0, R)[None, :], R + tl.arange(0, L - R)[None, :]
    row = b * H + h
    there = (h < H)[:, None]
    query = tl.load(q + row[:, None] * L + r, mask=there, other=0.0)
    turned = tl.load(q + row[:, None] * L + p, mask=there, other=0.0)
    length = tl.load(lengths + b)
    largest, total = tl.full([HEADS], float("-inf"), tl.float32), tl.zeros([HEADS], tl.float32)
    mix = tl.zeros([HEADS, R], tl.float32)
    for start in range(0, length, SIZE):
        page = tl.load(table + b * W + start // SIZE).to(tl.int64)
        n = tl.arange(0, SIZE)
        inside = start + n < length
        at = pages + (page * SIZE + n)[:, None] * L
        latent = tl.load(at + r, mask=inside[:, None], other=0.0)
        rope = tl.load(at + p, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, latent.T, input_precision="ieee")
        scores = tl.dot(turned, rope.T, scores, input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(latent.dtype), latent, mix * shrink[:, None], input_precision="ieee")
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + row[:, None] * R + r, mix.to(out.dtype.element_ty), mask=there)
    tl.store(logs + row, largest + tl.log(total), mask=h < H)


def page_by_page(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), SIZE = q_BHL.shape, pages_PKL.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    heads = min(max(triton.next_power_of_2(H), 16), 64)
    _over_pages[(triton.cdiv(H, heads), B)](
        q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH, H, table_BW.shape[1], scale,
        R=rank, L=L, SIZE=SIZE, HEADS=heads, num_warps=max(4, heads // 8), num_stages=2,
    )  # fmt: skip
    return out_BHR, logs_BH


@triton.jit
def _split(
    q, pages, table, lengths, mixes, logs, H, W, SIZE, scale,
    R: tl.constexpr, L: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A span of a sequence, over page borders: each position asks the table for its page. The whole row is one tile."""
    b, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h, c = tl.arange(0, HEADS), tl.arange(0, WIDE)[None, :]
    length = tl.load(lengths + b)
    span = tl.cdiv(length, tl.num_programs(1))
    end = tl.minimum(j * span + span, length)
    there = (h < H)[:, None] & (c < L)
    query = tl.load(q + (b * H + h)[:, None] * L + c, mask=there, other=0.0).to(tl.float32)
    largest, total = tl.full([HEADS], -1e30, tl.float32), tl.zeros([HEADS], tl.float32)
    mix = tl.zeros([HEADS, WIDE], tl.float32)
    for start in range(j * span, end, KEYS):
        n = start + tl.arange(0, KEYS)
        page = tl.load(table + b * W + n // SIZE, mask=n < end, other=0).to(tl.int64)
        at = (page * SIZE + n % SIZE)[:, None] * L + c
        rows = tl.load(pages + at, mask=(n < end)[:, None] & (c < L), other=0.0).to(tl.float32)
        scores = tl.dot(query, rows.T, input_precision="ieee") * scale
        scores = tl.where((n < end)[None, :], scores, -1e30)
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.where((n < end)[None, :], tl.exp(scores - larger[:, None]), 0.0)
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = mix * shrink[:, None] + tl.dot(weights, rows, input_precision="ieee")
        largest = larger
    row = (b * tl.num_programs(1) + j) * H + h
    tl.store(mixes + row[:, None] * R + c, mix, mask=there & (c < R))
    tl.store(logs + row * 2, largest, mask=h < H)
    tl.store(logs + row * 2 + 1, total, mask=h < H)


@triton.jit
def _merge(mixes, parts, out, logs, H, R: tl.constexpr, SPLITS: tl.constexpr):
    b, h = tl.program_id(0), tl.program_id(1)
    r = tl.arange(0, R)
    top, total = -1e30, 0.0
    for j in range(SPLITS):
        top = tl.maximum(top, tl.load(parts + ((b * SPLITS + j) * H + h) * 2))
    mix = tl.zeros([R], tl.float32)
    for j in range(SPLITS):
        row = (b * SPLITS + j) * H + h
        weight = tl.exp(tl.load(parts + row * 2) - top)
        total += weight * tl.load(parts + row * 2 + 1)
        mix += weight * tl.load(mixes + row * R + r)
    tl.store(out + (b * H + h) * R + r, mix / tl.where(total > 0, total, 1.0))
    tl.store(logs + b * H + h, tl.where(total > 0, top + tl.log(total), float("-inf")))


def spans_and_a_merge(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), SIZE = q_BHL.shape, pages_PKL.shape[1]
    out_BHR, logs_BH = torch.zeros(B, H, rank, dtype=q_BHL.dtype), torch.zeros(B, H)
    mixes_BJHR, parts_BJH2 = torch.empty(B, 2, H, rank), torch.empty(B, 2, H, 2)
    blocks = {"WIDE": triton.next_power_of_2(L), "KEYS": 16, "HEADS": max(16, triton.next_power_of_2(H))}
    _split[(B, 2)](
        q_BHL, pages_PKL, table_BW, lengths_B, mixes_BJHR, parts_BJH2, H, table_BW.shape[1], SIZE, scale,
        R=rank, L=L, **blocks,
    )  # fmt: skip
    _merge[(B, H)](mixes_BJHR, parts_BJH2, out_BHR, logs_BH, H, R=rank, SPLITS=2)
    return out_BHR, logs_BH


@triton.jit
def _faulty(
    q, pages, table, lengths, out, logs, H, W, P, scale, FAULT: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr, SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    r, p = tl.arange(0, R)[None, :], R + tl.arange(0, L - R)[None, :]
    if FAULT == 4:  # the turned part first
        r, p = L - R + tl.arange(0, R)[None, :], tl.arange(0, L - R)[None, :]
    row = b * H + h
    there = (h < H)[:, None]
    query = tl.load(q + row[:, None] * L + r, mask=there, other=0.0)
    turned = tl.load(q + row[:, None] * L + p, mask=there, other=0.0)
    length = tl.load(lengths + b)
    if FAULT == 3:  # whole pages
        length = tl.cdiv(length, SIZE) * SIZE
    largest, total = tl.full([HEADS], float("-inf"), tl.float32), tl.zeros([HEADS], tl.float32)
    mix = tl.zeros([HEADS, R], tl.float32)
    for start in range(0, length, SIZE):
        page = tl.load(table + b * W + start // SIZE).to(tl.int64)
        if FAULT == 2:  # pages in their order
            page = tl.minimum(b * W + start // SIZE, P - 1)
        n = tl.arange(0, SIZE)
        inside = start + n < length
        read = inside[:, None]
        if FAULT == 6:  # what lies behind the end is read
            read = n[:, None] >= 0
        at = pages + (page * SIZE + n)[:, None] * L
        latent = tl.load(at + r, mask=read, other=0.0)
        rope = tl.load(at + p, mask=read, other=0.0)
        scores = tl.dot(query, latent.T, input_precision="ieee")
        if FAULT != 5:  # 5: without the turned part
            scores = tl.dot(turned, rope.T, scores, input_precision="ieee")
        scores = tl.where(inside[None, :], scores * scale, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(latent.dtype), latent, mix * shrink[:, None], input_precision="ieee")
        if FAULT == 7:  # kept in the rows' format
            mix = mix.to(latent.dtype).to(tl.float32)
        largest = larger
    mix = mix / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + row[:, None] * R + tl.arange(0, R)[None, :], mix.to(out.dtype.element_ty), mask=there)
    tl.store(logs + row, largest + tl.log(total), mask=h < H)


def scale_of_the_row(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, L**-0.5)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=1, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def pages_in_their_order(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=2, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def whole_pages(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=3, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def turned_part_first(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=4, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def without_the_turned_part(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=5, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def read_behind_the_end(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=6, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


def sum_in_bfloat16(q_BHL, pages_PKL, table_BW, lengths_B, scale, rank):
    (B, H, L), (P, SIZE, _), W = q_BHL.shape, pages_PKL.shape, table_BW.shape[1]
    out_BHR, logs_BH = torch.empty(B, H, rank, dtype=q_BHL.dtype), torch.empty(B, H)
    tensors, sizes = (q_BHL, pages_PKL, table_BW, lengths_B, out_BHR, logs_BH), (H, W, P, scale)
    _faulty[(triton.cdiv(H, 16), B)](*tensors, *sizes, FAULT=7, R=rank, L=L, SIZE=SIZE, HEADS=16)
    return out_BHR, logs_BH


EXERCISE = Exercise(
    id="14.4",
    unit="14",
    title="latent attention on pages",
    entry="mla_decode_paged",
    points=20,
    minutes=45,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=mix_and_log("out", "logs", "pages_PKL"),
    misconceptions=(
        Misconception(
            "scale-of-the-row",
            scale_of_the_row,
            "It looks like 1 / sqrt(R + r) for a scale. The keys that the model was trained with were never that wide: the scale "
            "is theirs, and it is given.",
        ),
        Misconception(
            "pages-in-order",
            pages_in_their_order,
            "It looks like a cache whose pages lie in their order. Which page holds positions j * K and on is for the table to "
            "say: table_BW[b, j].",
        ),
        Misconception(
            "whole-pages",
            whole_pages,
            "It looks like whole pages, with what lies behind a sequence's last position. Only lengths_B[b] positions count.",
        ),
        Misconception(
            "turned-part-first",
            turned_part_first,
            "It looks like values from the end of a row. The latent is its first R numbers, the turned key the last r.",
        ),
        Misconception(
            "without-turned-part",
            without_the_turned_part,
            "It looks like scores of the latent alone. The turned part of queries and rows belongs to the score as well.",
        ),
        Misconception(
            "read-behind-the-end",
            read_behind_the_end,
            "It looks like rows behind the end that are loaded and weighed with 0. They may hold NaN, and 0 times NaN is NaN: "
            "mask the load.",
        ),
        Misconception(
            "sum-in-bfloat16",
            sum_in_bfloat16,
            "It looks like a sum that is kept in bfloat16 from page to page. Its eight bits are rounded at every page: keep it "
            "in float32, and round once, at the end.",
        ),
    ),
    alternatives=(page_by_page, spans_and_a_merge),
    hints=(
        "It is 14.2 with one query, whose heads are the rows of the tile, and one key head for all. What are the values?",
        "A page is a block of keys: ask the table for its number, turn that to int64, and load its rows with the mask "
        "position < length. The tile of latents serves twice, transposed for scores and as it is for the mix.",
        "Scores are two dots, latent and turned part, added and then scaled. Pad heads to 16 and mask them where you load and "
        "store. Divide by 1 where the sum is 0.",
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
