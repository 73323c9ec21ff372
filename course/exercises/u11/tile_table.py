"""11.3: the tiles of a ragged product: whose rows each holds, as many as can come to be, and no wait for the device."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # rows of each expert, pairs that are nobody's, block
    ([0, 0, 0], 0, 4),
    ([0, 0, 0], 7, 4),  # all were dropped
    ([5], 0, 64),  # a block larger than the data
    ([0, 40, 0, 0], 0, 8),  # all rows are one's
    ([1, 1, 1, 1, 1], 0, 16),  # as many pairs as experts
    ([0, 1, 0, 0, 1, 0], 0, 16),  # fewer pairs than experts
    ([16, 32, 16], 0, 16),  # whole blocks
    ([17, 1, 0, 33], 5, 16),  # a row too many
    ([3, 0, 2, 9], 0, 1),  # a block of one row
]


def inputs(rng, number):
    if number == 0:
        counts, lost, block = [5, 0, 4, 1], 2, 4
    elif number <= len(EDGES):
        counts, lost, block = EDGES[number - 1]
    else:
        E, block = int(rng.integers(2, 20)), int(rng.choice([4, 8, 16, 64]))
        counts = rng.integers(0, 60, size=E) * rng.integers(0, 2, size=E)
        lost = int(rng.integers(0, 2) * rng.integers(0, 40))
    counts_E = torch.tensor(counts, dtype=torch.int64)
    return {"counts_E": counts_E, "pairs": int(counts_E.sum()) + lost, "block": block}


def reference(counts_E, pairs, block):
    E = len(counts_E)
    B = pairs if pairs < E else E + (pairs - E) // block
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = torch.cat([ends_E.new_zeros(1), ends_E]) * block
    b_B = torch.arange(B)
    experts_B = (ends_E <= b_B[:, None]).sum(dim=1)
    real_B = experts_B < E
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = torch.clamp(counts_E[own_B] - inside_B, max=block)
    empty = [(experts_B, -1), (firsts_B, 0), (heights_B, 0)]
    return aligned_E1, *(torch.where(real_B, values, other) for values, other in empty)


def looked_up(counts_E, pairs, block):
    E = counts_E.numel()
    most = min(pairs, E) + max(pairs - E, 0) // block
    padded_E = (counts_E + (block - 1)).div(block, rounding_mode="floor") * block
    aligned_E1 = F.pad(padded_E.cumsum(0), (1, 0))
    offsets_E1 = F.pad(counts_E.cumsum(0), (1, 0))
    begin_B = torch.arange(most) * block
    experts_B = torch.searchsorted(aligned_E1[1:].contiguous(), begin_B, right=True)
    surplus_B = begin_B >= aligned_E1[-1]
    firsts_B = begin_B - (aligned_E1 - offsets_E1)[experts_B]
    ends_B = F.pad(offsets_E1[1:], (0, 1))[experts_B]
    heights_B = torch.minimum(ends_B - firsts_B, torch.tensor(block))
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def empty_experts_get_a_tile(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = ((counts_E + block - 1) // block).clamp(min=1)
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def a_tile_too_many(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = counts_E // block + (counts_E > 0)
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def rounded_down(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = counts_E // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def no_room_for_padding(counts_E, pairs, block):
    E = len(counts_E)
    B = -(-pairs // block)
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def a_tile_more_for_each(counts_E, pairs, block):
    E = len(counts_E)
    B = -(-pairs // block) + E
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def firsts_with_gaps(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = b_B * block
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def full_heights(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = torch.full_like(b_B, block)
    surplus_B = experts_B == E
    return (
        aligned_E1, experts_B.masked_fill(surplus_B, -1), firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


def surplus_to_the_last(counts_E, pairs, block):
    E = len(counts_E)
    B = min(pairs, E) + max(pairs - E, 0) // block
    tiles_E = (counts_E + block - 1) // block
    ends_E = tiles_E.cumsum(dim=0)
    aligned_E1 = F.pad(ends_E, (1, 0)) * block
    b_B = torch.arange(B)
    experts_B = torch.searchsorted(ends_E, b_B, right=True)
    own_B = experts_B.clamp(max=E - 1)
    inside_B = b_B * block - aligned_E1[own_B]
    firsts_B = (counts_E.cumsum(dim=0) - counts_E)[own_B] + inside_B
    heights_B = (counts_E[own_B] - inside_B).clamp(min=0, max=block)
    surplus_B = experts_B == E
    return (
        aligned_E1, own_B, firsts_B.masked_fill(surplus_B, 0),
        heights_B.masked_fill(surplus_B, 0),
    )  # fmt: skip


EXERCISE = Exercise(
    id="11.3",
    unit="11",
    title="tiles of one expert each",
    entry="tile_table",
    points=10,
    minutes=30,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=13,
    reference=reference,
    compare=same("aligned", "experts", "firsts", "heights"),
    misconceptions=(
        Misconception(
            "empty-expert-a-tile",
            empty_experts_get_a_tile,
            "It looks like a tile for each expert, with rows or without. An expert that nobody was sent to gets none.",
        ),
        Misconception(
            "a-tile-too-many",
            a_tile_too_many,
            "It looks like count // block + 1 tiles: an expert with a whole multiple of block rows gets an empty tile. Round up.",
        ),
        Misconception(
            "rounded-down",
            rounded_down,
            "It looks like count // block tiles: the last rows of an expert, less than a block, are in none. Round up.",
        ),
        Misconception(
            "no-room-for-padding",
            no_room_for_padding,
            "It looks like as many tiles as pairs fill without gaps. Every expert may begin a tile with one row: leave room for the "
            "worst way to share the pairs out.",
        ),
        Misconception(
            "a-tile-more-for-each",
            a_tile_more_for_each,
            "It looks like pairs / block tiles, rounded up, and one more for each expert. That always suffices, and so does less: an "
            "expert with rows uses up a pair before it begins a tile.",
        ),
        Misconception(
            "firsts-with-gaps",
            firsts_with_gaps,
            "It looks like first rows counted with the padding. They are places among the sorted rows, which lie without gaps.",
        ),
        Misconception(
            "full-heights",
            full_heights,
            "It looks like block rows in every tile. The last tile of an expert has what is left of its rows.",
        ),
        Misconception(
            "surplus-to-the-last",
            surplus_to_the_last,
            "It looks like surplus tiles that belong to the last expert. They belong to nobody: -1.",
        ),
    ),
    alternatives=(looked_up,),
    hints=(
        "Share 2 pairs among 4 experts so that they need as many tiles as possible. Then 9 pairs, with tiles of 4.",
        "The worst sharing gives every expert one row, and all others to one of them. For the map: tile b belongs to the expert before "
        "which at most b tiles end.",
        "Compare the running sum of tiles with arange(B): how many experts have ended at or before tile b is its expert. A tile's place "
        "inside its expert is b * block less where the expert begins when padded.",
    ),
    forbids=(
        *("Tensor.item", "Tensor.tolist", "Tensor.numpy", "Tensor.nonzero", "torch.nonzero", "torch.argwhere"),
        *("Tensor.__int__", "Tensor.__index__", "Tensor.__bool__", "Tensor.__float__"),
        *("Tensor.repeat_interleave", "torch.repeat_interleave", "torch.masked_select", "Tensor.masked_select"),
    ),
    tags=("no host wait",),
)
