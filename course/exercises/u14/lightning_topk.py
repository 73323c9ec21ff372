"""14.5: the lightning indexer's scores, and the positions of the largest (DeepSeek-V3.2-Exp report, section 2.1)."""

import numpy as np
import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # lengths, S, N, H, C, top, dtype; many positions come with numbers that bfloat16 would round
    ([40, 9], 3, 45, 4, 20, 6, FP32),  # odd, lengths of their own
    ([5], 5, 5, 2, 8, 8, BF16),  # fewer positions than wanted, each query sees one more
    ([2, 0], 4, 10, 3, 5, 3, FP32),  # queries that stand before the first position
    ([64], 2, 64, 17, 16, 5, BF16),
    ([30, 90], 1, 90, 1, 1, 1, FP32),
    ([300, 280], 1, 300, 2, 2, 6, FP32),
]
MANY, WIDE = 256, 600  # sums stay below 2**24 quarters


def inputs(rng, number):
    if number == 0:  # the example of the text
        q = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
        k = torch.tensor([[2.0, 1.0], [-1.0, 3.0], [1.0, 0.0], [3.0, 3.0], [9.0, 0.0]]).view(1, 5, 2)
        return {
            "q_BSHC": q,
            "k_BNC": k,
            "weight_BSH": torch.tensor([[[1.0, -1.0]]]),
            "lengths_B": torch.tensor([4]),
        } | {"top": 3}
    if number <= len(EDGES):
        lengths, S, N, H, C, top, dtype = EDGES[number - 1]
    else:
        N, S, H, C, top = (int(rng.integers(low, high)) for low, high in ((5, 60), (1, 4), (1, 9), (1, 20), (1, 8)))
        lengths, dtype = (
            rng.integers(0, N + 1, size=int(rng.integers(1, 3))).tolist(),
            (BF16, FP32)[int(rng.integers(2))],
        )
    B, most = (
        len(lengths),
        WIDE if N > MANY else 2,
    )  # whole numbers: every sum is exact, and ties of small ones are many
    sizes = (B, S, H, C), (B, N, C)
    q_BSHC, k_BNC = (torch.tensor(rng.integers(-most, most + 1, size=size)).to(dtype) for size in sizes)
    weight_BSH = torch.tensor(rng.integers(-2, 5, size=(B, S, H)) / 4).float()
    if N > MANY:
        weight_BSH = torch.tensor(rng.integers(1, 5, size=(B, S, H)) / 4).float()
        weight_BSH[-1] *= -1  # what it sees scores far below zero
    return {
        "q_BSHC": q_BSHC,
        "k_BNC": k_BNC,
        "weight_BSH": weight_BSH,
        "lengths_B": torch.tensor(lengths, dtype=torch.int64),
        "top": top,
    }


def reference(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    B, S = q_BSHC.shape[:2]
    agreement_BSHN = torch.einsum("bshc,bnc->bshn", q_BSHC.double(), k_BNC.double()).relu()
    scores_BSN = torch.einsum("bsh,bshn->bsn", weight_BSH.double(), agreement_BSHN)
    seen_BS = lengths_B[:, None] - S + torch.arange(S) + 1
    chosen_BSK = torch.full((B, S, top), -1)
    for b, s in np.ndindex(B, S):
        seen = max(int(seen_BS[b, s]), 0)
        order = np.argsort(-scores_BSN[b, s, :seen].numpy(), kind="stable")[:top]
        chosen_BSK[b, s, : len(order)] = torch.from_numpy(order)
    return chosen_BSK


@triton.jit
def _index(
    q, k, weights, lengths, scores, S, N, H, C, HEADS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    s, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    h, c = tl.arange(0, HEADS), tl.arange(0, WIDE)[None, :]
    row = b * S + s
    seen = tl.load(lengths + b) - S + s + 1
    query = tl.load(q + (row * H + h)[:, None] * C + c, mask=(h < H)[:, None] & (c < C), other=0.0)
    weight = tl.load(weights + row * H + h, mask=h < H, other=0.0)
    for start in range(0, seen, KEYS):
        n = start + tl.arange(0, KEYS)
        keys = tl.load(k + (b * N + n)[:, None] * C + c, mask=(n < seen)[:, None] & (c < C), other=0.0)
        agreement = tl.maximum(tl.dot(query, keys.T, input_precision="ieee"), 0.0)
        tl.store(scores + row * N + n, tl.sum(agreement * weight[:, None], axis=0), mask=n < seen)


@triton.jit
def _choose(scores, lengths, chosen, S, N, top, BLOCK: tl.constexpr):
    s, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = b * S + s
    n = tl.arange(0, BLOCK)
    seen = tl.load(lengths + b) - S + s + 1
    score = tl.load(scores + row * N + n, mask=n < seen, other=float("-inf"))
    for place in range(top):
        best = tl.argmax(score, axis=0)
        tl.store(chosen + row * top + place, tl.where(place < seen, best, -1))
        score = tl.where(n == best, float("-inf"), score)


def scores_then_choice(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    scores_BSN, chosen_BSK = torch.empty(B, S, N), torch.empty(B, S, top, dtype=torch.int64)
    heads, wide = (max(triton.next_power_of_2(size), 16) for size in (H, C))
    tensors = q_BSHC, k_BNC, weight_BSH, lengths_B, scores_BSN
    _index[(S, B)](*tensors, S, N, H, C, HEADS=heads, KEYS=32, WIDE=wide)
    _choose[(S, B)](scores_BSN, lengths_B, chosen_BSK, S, N, top, BLOCK=triton.next_power_of_2(N))
    return chosen_BSK


@triton.jit
def _ranks(q, k, weights, lengths, chosen, S, N, H, C, top, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """A whole row in one program; each position counts the better ones, and so knows its place."""
    b, s = tl.program_id(0) // S, tl.program_id(0) % S
    n, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)[None, :]
    seen = tl.load(lengths + b) - (S - 1 - s)
    inside = (n < seen)[:, None] & (c < C)
    keys = tl.load(k + (b * N + n[:, None]) * C + c, mask=inside, other=0.0).to(tl.float32)
    score = tl.zeros([BLOCK], tl.float32)
    for h in range(H):
        at = tl.program_id(0) * H + h
        query = tl.load(q + at * C + c, mask=c < C, other=0.0).to(tl.float32)
        agreement = tl.sum(keys * query, axis=1)
        score += tl.load(weights + at) * tl.where(agreement > 0, agreement, 0.0)
    score = tl.where(n < seen, score, float("-inf"))
    better = score[None, :] > score[:, None]
    earlier = (score[None, :] == score[:, None]) & (n[None, :] < n[:, None])
    rank = tl.sum((better | earlier).to(tl.int32), axis=1)
    tl.store(chosen + tl.program_id(0) * top + rank, n.to(tl.int64), mask=(n < seen) & (rank < top))


def each_counts_the_better(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK = torch.full((B, S, top), -1)
    tensors, blocks = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(N)
    _ranks[(B * S,)](*tensors, S, N, H, C, top, BLOCK=blocks, WIDE=triton.next_power_of_2(C))
    return chosen_BSK


@triton.jit
def _faulty(
    q, k, weights, lengths, chosen, S, N, H, C, top, FAULT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    s, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)[None, :]
    seen = tl.load(lengths + b) - S + s + 1
    if FAULT == 5:  # as if all sequences filled the room
        seen = (N - S + s + 1).to(tl.int64)
    inside = (n < N)[:, None] & (c < C)
    keys = tl.load(k + (b * N + n[:, None]) * C + c, mask=inside, other=0.0).to(tl.float32)
    score = tl.zeros([BLOCK], tl.float32)
    for h in range(H):
        at = (b * S + s) * H + h
        query = tl.load(q + at * C + c, mask=c < C, other=0.0).to(tl.float32)
        agreement = tl.sum(keys * query, axis=1)
        weight = tl.load(weights + at)
        if FAULT == 1:  # no relu
            score += weight * agreement
        elif FAULT == 2:  # relu of the weighted agreement
            score += tl.maximum(weight * agreement, 0.0)
        else:
            score += weight * tl.maximum(agreement, 0.0)
    unseen = float("-inf")
    if FAULT == 3:  # what is not seen has score 0
        unseen = 0.0
    score = tl.where(n < seen, score, unseen)
    score = tl.where(n < N, score, float("-inf"))
    for place in range(top):
        best = tl.argmax(score, axis=0)
        if FAULT == 4:  # the later of two
            best = tl.max(tl.where(score == tl.max(score), n, -1))
        found = best
        if FAULT != 6:  # 6: positions that are not seen fill up
            found = tl.where(place < seen, best, -1)
        tl.store(chosen + (b * S + s) * top + place, found)
        score = tl.where(n == best, float("-inf"), score)


def without_relu(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=1, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


def relu_of_the_weighted(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=2, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


def unseen_has_score_zero(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=3, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


def the_later_of_two(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=4, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


def all_of_the_room(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=5, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


def filled_with_unseen(q_BSHC, k_BNC, weight_BSH, lengths_B, top):
    (B, S, H, C), N = q_BSHC.shape, k_BNC.shape[1]
    chosen_BSK, blocks = torch.empty(B, S, top, dtype=torch.int64), triton.next_power_of_2(N)
    tensors, wide = (q_BSHC, k_BNC, weight_BSH, lengths_B, chosen_BSK), triton.next_power_of_2(C)
    _faulty[(S, B)](*tensors, S, N, H, C, top, FAULT=6, BLOCK=blocks, WIDE=wide)
    return chosen_BSK


EXERCISE = Exercise(
    id="14.5",
    unit="14",
    title="the lightning indexer's choice",
    entry="lightning_topk",
    points=15,
    minutes=35,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("positions"),
    misconceptions=(
        Misconception(
            "without-relu",
            without_relu,
            "It looks like scores without the ReLU. Each head's product is cut off at 0 before it is weighed.",
        ),
        Misconception(
            "relu-of-the-weighted",
            relu_of_the_weighted,
            "It looks like a ReLU of weight times product. Weights may be negative: a head can speak against a position. Cut the "
            "product off at 0 first, then weigh it.",
        ),
        Misconception(
            "unseen-score-zero",
            unseen_has_score_zero,
            "It looks like score 0 for positions that the query does not see. Scores may be negative, and 0 beats them: what is "
            "not seen has minus infinity.",
        ),
        Misconception(
            "later-of-two",
            the_later_of_two,
            "It looks like ties that go to the later position. The earlier one comes first.",
        ),
        Misconception(
            "all-of-the-room",
            all_of_the_room,
            "It looks like sequences that all end at N. Sequence b has lengths_B[b] positions, and its S queries are the last "
            "of those.",
        ),
        Misconception(
            "filled-with-unseen",
            filled_with_unseen,
            "It looks like places that are filled up with positions the query does not see, or saw already. Where there are "
            "fewer than `top`, the rest is -1.",
        ),
    ),
    alternatives=(scores_then_choice, each_counts_the_better),
    hints=(
        "For one query, its heads are the rows of a tile, as in 14.4. What happens to a tile of products before the heads are "
        "added up?",
        "Two kernels, scores into scratch memory and then a choice, are simplest. The choice is a loop over `top`: the "
        "largest, store, put out, again. The number of keys that query s sees is lengths[b] - S + s + 1.",
        "tl.argmax gives the earlier of two equals. Load scores with other=float('-inf') where n >= seen; at place >= seen "
        "store -1.",
    ),
    forbids=(
        "torch.topk",
        "Tensor.topk",
        "torch.sort",
        "Tensor.sort",
        "torch.argsort",
        "Tensor.argsort",
        "torch.argmax",
        "Tensor.argmax",
        "torch.max",
        "Tensor.max",
        "torch.kthvalue",
        "Tensor.kthvalue",
    ),
    kernel=True,
)
