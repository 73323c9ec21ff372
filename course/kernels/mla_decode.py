"""Multi-head latent attention in decoding, absorbed: one query a sequence against its cached latents, which are keys and
values at once (DeepSeek-V2 report, section 2.1.2; splits of the cache: Dao et al. 2023, "Flash-Decoding"; the same on
Hopper: DeepSeek's FlashMLA).

A step has as many queries as sequences, too few for a GPU. So the keys of a sequence are split as well: a program takes a
block of heads and a span of one sequence, and leaves a mix of latents and the log of its sum of exponentials. A second
kernel weighs the mixes of a sequence by those sums. Spans are cut from the length of each sequence, by numbers that do not
depend on the chip: the result is the same bits everywhere.

Bytes moved of the cache, a number in it, in bfloat16 with 128 heads:
  eager   reads the row of 576 for keys and 512 of it for values (3.8). Each of the row's 128 scores moves 44: product (2), to
          float32 (6), times the scale (8), what is past the end out (8), softmax (8), back (6), times the values (2), log of
          the sum (4), which is 9.8 a number of the row: together 13.6
  fused   2: a block of rows comes into shared memory once, and is multiplied with the queries and then with the weights
So the kernel can gain at most a factor of 6.8. It does 242 FLOPs with every byte of the cache, where an H100 balances at
295: memory is still the bound, though not by much. Blocks of 64 heads read the cache twice, but in programs that run side by
side, so that the second reading comes from the L2 cache. Mixes add 8 R bytes a head and span, written once and read once.

A product of four warps (wgmma) has 64 rows. A block of 16 heads, all that is left of 128 where 8 GPUs share them, falls back
to products of one warp (mma.sync), which has 16 rows and does not reach Hopper's full rate. But with 16 heads there are 30
FLOPs a byte, and memory is the bound by far.

Shapes: B sequences, H heads, N room in the cache, R latent, P rope features, L = R + P, J splits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import check_floats

PROGRAMS = 264  # to fill a chip of 132 multiprocessors twice; more splits than that only cost
KEYS = 64  # of one step, and the least that a split is worth


def mla_decode_torch(
    q_latent_BHR: Tensor, q_rope_BHP: Tensor, cache_BNL: Tensor, scale: float, lengths_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The twin: the same in PyTorch, for sequences of at least one position."""
    q_BHL = torch.cat([q_latent_BHR, q_rope_BHP], dim=-1)
    wide = torch.promote_types(q_BHL.dtype, torch.float32)
    scores_BHN = (q_BHL @ cache_BNL.mT).to(wide) * scale
    if lengths_B is not None:
        n_N = torch.arange(cache_BNL.shape[1], device=cache_BNL.device)
        scores_BHN = scores_BHN.masked_fill((n_N >= lengths_B[:, None])[:, None], float("-inf"))
    mix_BHR = scores_BHN.softmax(-1).to(cache_BNL.dtype) @ cache_BNL[..., : q_latent_BHR.shape[-1]]
    return mix_BHR, scores_BHN.logsumexp(-1)


@triton.jit
def mla_decode_kernel(
    q_latent, q_rope, cache, lengths, mixes, logs, q_batch, q_head, rope_batch, rope_head, cache_batch, cache_row,
    H, N, scale, R: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    split, splits, batch = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    r, p = tl.arange(0, R)[None, :], tl.arange(0, P)[None, :]
    inside = (h < H)[:, None]
    length = N
    if lengths is not None:
        length = tl.load(lengths + batch)
        length = tl.where((length >= 0) & (length <= N), length, 0).to(tl.int32)
    span = tl.cdiv(tl.cdiv(length, splits), KEYS) * KEYS
    begin = split * span
    end = tl.minimum(begin + span, length)
    query = tl.load(q_latent + batch * q_batch + h[:, None] * q_head + r, mask=inside, other=0.0)
    query_rope = tl.load(q_rope + batch * rope_batch + h[:, None] * rope_head + p, mask=inside, other=0.0)
    mix = tl.zeros((HEADS, R), tl.float32)
    largest, total = tl.full((HEADS,), float("-inf"), tl.float32), tl.zeros((HEADS,), tl.float32)
    for start in range(begin, end, KEYS):
        n = start + tl.arange(0, KEYS)
        row = cache + batch * cache_batch + n.to(tl.int64)[:, None] * cache_row
        latent = tl.load(row + r, mask=(n < end)[:, None], other=0.0)
        rope = tl.load(row + R + p, mask=(n < end)[:, None], other=0.0)
        scores = tl.dot(query, latent.T, input_precision=PRECISION)
        scores = tl.dot(query_rope, rope.T, scores, input_precision=PRECISION) * scale
        scores = tl.where((n < end)[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        mix = tl.dot(weights.to(latent.dtype), latent, mix * shrink[:, None], input_precision=PRECISION)
        largest = larger
    place = (batch * H + h) * splits + split
    some = (h < H) & (begin < end)  # an empty span leaves no mix, and a log that gives it no weight
    tl.store(mixes + place[:, None] * R + r, mix / tl.where(total > 0, total, 1.0)[:, None], mask=some[:, None])
    tl.store(logs + place, largest + tl.log2(total), mask=h < H)


@triton.jit
def mla_combine_kernel(mixes, logs, lengths, out, lse, H, N, splits, R: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # of sequence and head
    r, j = tl.arange(0, R), tl.arange(0, SPLITS)
    parts = tl.load(logs + row * splits + j, mask=j < splits, other=float("-inf"))
    largest = tl.max(parts)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # minus infinity less itself would be NaN
    total = tl.sum(tl.exp2(parts - base))
    mix = tl.zeros((R,), tl.float32)
    for split in range(splits):
        part = tl.load(logs + row * splits + split)
        some = part > float("-inf")
        mix += tl.exp2(part - base) * tl.load(mixes + (row * splits + split) * R + r, mask=some, other=0.0)
    mix = mix / tl.where(total > 0, total, 1.0)
    log = (base + tl.log2(total)) * 0.6931471805599453
    if lengths is not None:
        length = tl.load(lengths + row // H)
        possible = (length >= 0) & (length <= N)
        mix, log = tl.where(possible, mix, float("nan")), tl.where(possible, log, float("nan"))
    tl.store(out + row * R + r, mix.to(out.dtype.element_ty))
    tl.store(lse + row, log)


def mla_decode(
    q_latent_BHR: Tensor,
    q_rope_BHP: Tensor,
    cache_BNL: Tensor,
    scale: float,
    lengths_B: Tensor | None = None,
    splits: int | None = None,
    heads: int | None = None,
    num_warps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * [q_latent, q_rope] cache^T) latents, and the log of the sum that the softmax divides by.

    scale: that of the keys that were never made, 1 / sqrt(nope + rope): 1 / sqrt(192) for DeepSeek-V3, whatever R is.
    lengths_B: int64, how many positions of the cache count, the first ones; all, if not given. A sequence of none gives 0 and
    minus infinity; a length that does not fit into the cache gives NaN: to raise, the host would have to wait for the device.

    q_latent_BHR, q_rope_BHP, cache_BNL: float32, bfloat16 or float16, one for all; R and P powers of two. splits: spans that
    each sequence is cut into. heads: of a program, 16, 32 or 64; by default as many as there are, in float32 up to 32.
    Returns: mix_BHR, of q's dtype, and lse_BH, float32, in natural logarithms.
    Raises: ValueError when shapes do not fit, R or P is no power of two, or a dtype is another.
    """
    most = 64 if q_latent_BHR.itemsize == 2 else 32  # float32 has no tensor cores here, and needs more registers
    heads = heads or min(max(triton.next_power_of_2(q_latent_BHR.shape[1]), 16), most)
    _check(q_latent_BHR, q_rope_BHP, cache_BNL, lengths_B, heads, splits)
    (B, H, R), N, P = q_latent_BHR.shape, cache_BNL.shape[1], q_rope_BHP.shape[-1]
    out_BHR = q_latent_BHR.new_empty(B, H, R)
    lse_BH = torch.empty(B, H, dtype=torch.float32, device=out_BHR.device)
    if lse_BH.numel() == 0:
        return out_BHR, lse_BH
    q, rope, cache = (t if t.stride(-1) == 1 else t.contiguous() for t in (q_latent_BHR, q_rope_BHP, cache_BNL))
    lengths = None if lengths_B is None else lengths_B.contiguous()
    blocks = triton.cdiv(H, heads)
    splits = splits or max(min(PROGRAMS // (B * blocks), triton.cdiv(N, KEYS)), 1)
    mixes_BHJR = torch.empty(B, H, splits, R, dtype=torch.float32, device=out_BHR.device)
    logs_BHJ = torch.empty(B, H, splits, dtype=torch.float32, device=out_BHR.device)
    mla_decode_kernel[(blocks, splits, B)](
        q,
        rope,
        cache,
        lengths,
        mixes_BHJR,
        logs_BHJ,
        *q.stride()[:2],
        *rope.stride()[:2],
        *cache.stride()[:2],
        H,
        N,
        scale / math.log(2),
        R=R,
        P=P,
        HEADS=heads,
        KEYS=KEYS if q.itemsize == 2 else 16,
        PRECISION="ieee",
        num_warps=num_warps or 8,
        num_stages=2,
    )
    mla_combine_kernel[(B * H,)](
        mixes_BHJR, logs_BHJ, lengths, out_BHR, lse_BH, H, N, splits, R=R, SPLITS=triton.next_power_of_2(splits)
    )
    return out_BHR, lse_BH


def _check(
    q_BHR: Tensor, rope_BHP: Tensor, cache_BNL: Tensor, lengths_B: Tensor | None, heads: int, splits: int | None
) -> None:
    q, rope, cache = shapes = [list(tensor.shape) for tensor in (q_BHR, rope_BHP, cache_BNL)]
    check_floats("mla_decode", q_BHR, rope_BHP, cache_BNL)
    if not q_BHR.dtype == rope_BHP.dtype == cache_BNL.dtype:
        raise ValueError(f"queries and cache are of one dtype, not {q_BHR.dtype}, {rope_BHP.dtype}, {cache_BNL.dtype}")
    if any(len(s) != 3 for s in shapes) or q[:2] != rope[:2] or q[0] != cache[0] or q[2] + rope[2] != cache[2]:
        raise ValueError(f"latent and rope queries of shapes {q} and {rope} do not fit a cache of shape {cache}")
    if any(size < 16 or size & (size - 1) for size in (q[2], rope[2])):
        raise ValueError(f"latent and rope are powers of two from 16 up, not {q[2]} and {rope[2]}")
    if lengths_B is not None and (lengths_B.dtype != torch.int64 or list(lengths_B.shape) != q[:1]):
        raise ValueError(f"lengths are {q[0]} int64, not of shape {list(lengths_B.shape)} and {lengths_B.dtype}")
    if heads not in (16, 32, 64):
        raise ValueError(f"a program takes 16, 32 or 64 heads, not {heads}")
    if splits is not None and splits < 1:
        raise ValueError(f"a sequence is cut into one span or more, not {splits}")
