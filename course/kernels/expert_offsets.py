"""Where each pair of a token and an expert goes, as a counting sort in three kernels (Knuth, volume 3, section 5.2).

  count   a program a span of neighbouring pairs: how many of them each expert gets
  prefix  one program adds the counts up: over spans, which says where an expert's pairs of one span begin, and over experts
  place   a program a span again: a pair's rank is how many pairs before it in its span have its expert
Atomic additions to one counter an expert would need a single pass, but hand out places in the order in which programs
arrive. Here pairs of one expert keep their order, and the result is the same every time.

A grouped product reads blocks of BLOCK_M rows, and a block should need the weights of one expert alone. So beside the
places without gaps there are aligned ones, where each expert begins at a multiple of BLOCK_M, and a table of which
expert a block belongs to. How many blocks that takes only the device knows; the table is as long as it can come to be.

Bytes moved a pair, where pairs are many:
  eager   two flags and both (9, 9, 3), keys (17), sort (24 and more: it passes over them several times), search (8),
          row numbers (8), shift looked up and added (16, 24), then for each of two places: the dropped to -1 (9, 17),
          room (8), put where they belong (32), the pairs of the rows (26): 276, in more than twenty launches
  fused   ids for the counts (8), ids and their span's ids for the ranks (16), three numbers looked up (24), two places
          written (16), the pairs of the rows, first as nobody's (16): 80, and 24 E / SPAN for the table of counts, written,
          read and written again, in three launches
At 256 experts that is 92 bytes, so the kernels can gain at most a factor of 3 where memory is the bound. For a few
thousand tokens launches are, and there the factor is that of their number. The prefix is one program's work and grows
with the pairs: 128 rows of counts for 65,536 pairs.

Shapes: T tokens, K experts a token, P = T K pairs, E experts, E1 = E + 1, S spans, B blocks at most.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN = 512  # pairs that a program counts, and ranks by comparing each with each
STEP = 16  # pairs that it compares with at once
MOST_EXPERTS = 4096  # whose counts one program holds in its registers


class ExpertOffsets(NamedTuple):
    """Where each expert's rows begin, and where each pair goes. A dropped pair goes to -1."""

    counts_E: Tensor  # pairs of each expert
    offsets_E1: Tensor  # rows offsets[e]:offsets[e + 1] are expert e's
    places_TK: Tensor  # a pair's row
    aligned_E1: Tensor  # as offsets, where every expert begins at a multiple of the block
    aligned_TK: Tensor  # as places, likewise
    experts_B: Tensor  # whose rows a block of aligned ones holds; -1 in blocks past the last
    pairs_P: Tensor  # the pair that a row is, places turned around; -1 in rows past the last


def expert_offsets_torch(ids_TK: Tensor, experts: int, block_m: int = 128) -> ExpertOffsets:
    """The twin: the same in PyTorch."""
    ids_P, device = ids_TK.flatten(), ids_TK.device
    kept_P = (ids_P >= 0) & (ids_P < experts)
    keys_P, order_P = ids_P.where(kept_P, experts).sort(stable=True)
    offsets_E1 = torch.searchsorted(keys_P, torch.arange(experts + 1, device=device))
    counts_E = offsets_E1.diff()
    aligned_E1 = torch.nn.functional.pad(((counts_E + block_m - 1) // block_m * block_m).cumsum(0), (1, 0))
    rows_P = torch.arange(len(ids_P), device=device)
    shifted_P = rows_P + (aligned_E1 - offsets_E1)[keys_P]
    places_P, aligned_P = (
        torch.empty(len(ids_P), dtype=torch.int64, device=device).scatter_(0, order_P, its.where(keys_P < experts, -1))
        for its in (rows_P, shifted_P)
    )
    first_B = torch.arange(most_blocks(len(ids_P), experts, block_m), device=device) * block_m
    experts_B = torch.searchsorted(aligned_E1[1:], first_B, right=True).where(first_B < aligned_E1[-1], -1)
    places_TK, aligned_TK = places_P.view_as(ids_TK), aligned_P.view_as(ids_TK)
    pairs_P = order_P.where(keys_P < experts, -1)
    return ExpertOffsets(counts_E, offsets_E1, places_TK, aligned_E1, aligned_TK, experts_B, pairs_P)


def most_blocks(pairs: int, experts: int, block_m: int) -> int:
    """Blocks that pairs can fill: an expert with any has at least one, and at most block_m - 1 rows of padding."""
    return (pairs + min(pairs, experts) * (block_m - 1)) // block_m


@triton.jit
def expert_counts_kernel(ids, table, pairs, P, E, SPAN: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    counts = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, SPAN, STEP):
        p = span * SPAN + start + tl.arange(0, STEP)
        own = tl.load(ids + p, mask=p < P, other=-1)
        counts += tl.sum((own[:, None] == e[None, :]).to(tl.int32), axis=0)
        tl.store(pairs + p, -1, mask=(p < P) & (tl.program_id(1) == 0))  # nobody's, until it is placed
    tl.store(table + span * E + e, counts.to(tl.int64), mask=e < E)


@triton.jit
def expert_prefix_kernel(
    table, counts, offsets, aligned, blocks, S, E, B,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    e = tl.arange(0, COLUMNS)
    real = e < E
    total = tl.zeros((COLUMNS,), tl.int64)
    for start in range(0, S, ROWS):
        span = start + tl.arange(0, ROWS)
        at = table + span.to(tl.int64)[:, None] * E + e[None, :]
        inside = (span < S)[:, None] & real[None, :]
        here = tl.load(at, mask=inside, other=0)
        tl.store(at, total[None, :] + tl.cumsum(here, axis=0) - here, mask=inside)  # of the spans before
        total += tl.sum(here, axis=0)
    padded = (total + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    ends = tl.cumsum(padded, axis=0)
    tl.store(counts + e, total, mask=real)
    tl.store(offsets + e + 1, tl.cumsum(total, axis=0), mask=real)
    tl.store(aligned + e + 1, ends, mask=real)
    tl.store(offsets, 0)
    tl.store(aligned, 0)
    rows = tl.sum(padded)
    for start in range(0, B, ROWS):
        b = start + tl.arange(0, ROWS)
        first = b.to(tl.int64) * BLOCK_M
        before = tl.sum(((ends[None, :] <= first[:, None]) & real[None, :]).to(tl.int64), axis=1)  # experts that ended
        tl.store(blocks + b, tl.where(first < rows, before, -1), mask=b < B)


@triton.jit
def expert_places_kernel(
    ids, table, offsets, aligned, places, aligned_places, pairs, P, E, SPAN: tl.constexpr, STEP: tl.constexpr
):
    span = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SPAN)
    p = span * SPAN + lane
    own = tl.load(ids + p, mask=p < P, other=-1)
    kept = (own >= 0) & (own < E)
    key = tl.where(kept, own, -1).to(tl.int32)  # half the registers, and E fits
    rank = tl.zeros((SPAN,), tl.int32)
    for start in range(0, SPAN, STEP):
        before = start + tl.arange(0, STEP)
        q = span * SPAN + before
        other = tl.load(ids + q, mask=q < P, other=-1)
        other = tl.where((other >= 0) & (other < E), other, -1).to(tl.int32)
        rank += tl.sum(((key[:, None] == other[None, :]) & (before[None, :] < lane[:, None])).to(tl.int32), axis=1)
    within = tl.load(table + span * E + own, mask=kept, other=0) + rank
    place = tl.load(offsets + own, mask=kept, other=0) + within
    aligned_place = tl.load(aligned + own, mask=kept, other=0) + within
    tl.store(places + p, tl.where(kept, place, -1), mask=p < P)
    tl.store(aligned_places + p, tl.where(kept, aligned_place, -1), mask=p < P)
    tl.store(pairs + place, p, mask=kept)


def expert_offsets(ids_TK: Tensor, experts: int, block_m: int = 128) -> ExpertOffsets:
    """Pairs lined up by expert; those of one expert in order of token, then slot.

    A pair whose id is no expert (-1, say) is dropped: it counts for nothing and its places are -1.

    ids_TK: int64. block_m: rows of a block.
    Returns: ExpertOffsets, all int64: rows times a width soon pass 2^31, and so do experts times a matrix.
    Raises: ValueError when ids are not [T, K] of int64, experts not 1 to 4096, or block_m is below 1.
    """
    if ids_TK.dtype != torch.int64 or ids_TK.dim() != 2:
        raise ValueError(
            f"expert_offsets takes ids of int64 and [tokens, slots], not {ids_TK.dtype} and {list(ids_TK.shape)}"
        )
    if not 1 <= experts <= MOST_EXPERTS:
        raise ValueError(f"expert_offsets takes 1 to {MOST_EXPERTS} experts, not {experts}")
    if block_m < 1:
        raise ValueError(f"a block has at least one row, not {block_m}")
    P, ids_TK = ids_TK.numel(), ids_TK.contiguous()
    span = min(max(triton.next_power_of_2(P), STEP), SPAN)
    spans, blocks = triton.cdiv(P, span), most_blocks(P, experts, block_m)
    table_SE, counts_E = ids_TK.new_empty(spans, experts), ids_TK.new_empty(experts)
    offsets_E1, aligned_E1 = ids_TK.new_empty(experts + 1), ids_TK.new_empty(experts + 1)
    places_TK, aligned_TK = torch.empty_like(ids_TK), torch.empty_like(ids_TK)
    experts_B, pairs_P = ids_TK.new_empty(blocks), ids_TK.new_empty(P)
    columns = triton.next_power_of_2(experts)
    tile = min(columns, 128)
    if P:
        grid = (spans, triton.cdiv(experts, tile))
        expert_counts_kernel[grid](ids_TK, table_SE, pairs_P, P, experts, SPAN=span, STEP=STEP, COLUMNS=tile)
    expert_prefix_kernel[(1,)](
        table_SE, counts_E, offsets_E1, aligned_E1, experts_B, spans, experts, blocks,
        BLOCK_M=block_m, ROWS=max(4096 // columns, 1), COLUMNS=columns, num_warps=8,
    )  # fmt: skip
    if P:
        expert_places_kernel[(spans,)](
            ids_TK, table_SE, offsets_E1, aligned_E1, places_TK, aligned_TK, pairs_P, P, experts,
            SPAN=span, STEP=STEP, num_warps=8,
        )  # fmt: skip
    return ExpertOffsets(counts_E, offsets_E1, places_TK, aligned_E1, aligned_TK, experts_B, pairs_P)
