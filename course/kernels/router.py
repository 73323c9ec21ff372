"""The router after its product: scores, groups, the choice of K experts and their weights (DeepSeek-V3 report, 2.1.2).

A program holds the logits of a few tokens, as groups times the experts of a group, and does the rest in registers. The best
of a row is found K times, each time without those found before: K is small, and a sort would order what nobody asks for.
Ties go to the lower index. A group is ranked by the sum of its `group_best` best scores, those of closed groups are minus
infinity, and the bias moves the choice alone.

Bytes moved an element of the logits, for DeepSeek-V3's router (256 experts, 8 groups of which 4, 8 experts a token):
  eager   sigmoid (8), bias added (8), groups ranked and chosen (5.9), the others masked (8), a stable sort (16), weights
          (1): 47, in more than ten launches. The model's own router takes the best K and looks for ties instead of sorting,
          which moves 36 and makes the host wait
  fused   reads the logits once (4), writes ids and weights (12 K / E = 0.4): 4.4
Both are bound by memory and launches, so the kernel can gain at most a factor of 10.7 over the one and 8.2 over the other.

Shapes: T tokens, E experts, K experts a token, G groups of N experts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GATES = ("softmax", "sigmoid")
ELEMENTS = 1024  # logits that a program holds, if a row is not longer
LONGEST = 4096  # experts, where groups and experts of a group are each rounded up to a power of two
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of all finite float32


def router_torch(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    top_k: int,
    gate: str = "softmax",
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
    normalised: bool = True,
    routed_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The twin: the same in PyTorch, without the model's look for ties, for which the host waits."""
    scores_TE = logits_TE.softmax(dim=-1) if gate == "softmax" else logits_TE.sigmoid()
    ranked_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if groups > 1:
        parts_TGN = ranked_TE.unflatten(1, (groups, -1))
        ranks_TG = parts_TGN.topk(min(group_best, parts_TGN.shape[2]), dim=2).values.sum(dim=2)
        best_TG = ranks_TG.sort(dim=1, descending=True, stable=True).indices[:, :top_groups]
        closed_TG = torch.ones_like(ranks_TG, dtype=torch.bool).scatter_(1, best_TG, False)
        ranked_TE = parts_TGN.masked_fill(closed_TG[:, :, None], float("-inf")).flatten(1)
    ids_TK = ranked_TE.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    weights_TK = scores_TE.gather(1, ids_TK)
    if normalised:
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True)
    return ids_TK, weights_TK * routed_scale


@triton.jit
def open_groups(ranked, G, BEST: tl.constexpr, TOP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Which of a row's groups are open: the TOP best by the sum of their BEST best."""
    g, n = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
    rank = tl.zeros(ranked.shape[:2], tl.float32)
    for _ in range(BEST):
        best, at = tl.max(ranked, axis=2, return_indices=True)
        rank += best
        ranked = tl.where(n[None, None, :] == at[:, :, None], float("-inf"), ranked)
    rank = tl.where((g < G)[None, :], tl.where(rank > LOWEST, rank, LOWEST), float("-inf"))
    opened = rank != rank
    for _ in range(TOP):
        found = g[None, :] == tl.argmax(rank, axis=1)[:, None]
        opened = opened | found
        rank = tl.where(found, float("-inf"), rank)
    return opened


@triton.jit
def router_kernel(
    logits, bias, ids, weights, stride, T, G, N, K, scale,
    SIGMOID: tl.constexpr, NORMALISED: tl.constexpr, BEST: tl.constexpr, TOP: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g, n = tl.arange(0, GROUPS)[None, :, None], tl.arange(0, WIDTH)[None, None, :]
    real = (g < G) & (n < N)
    inside = (row < T)[:, None, None] & real
    values = tl.load(logits + row[:, None, None] * stride + (g * N + n), mask=inside, other=float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(values)
    else:
        largest = tl.max(tl.max(values, axis=2), axis=1)
        scores = tl.exp(values - largest[:, None, None])
        scores = scores / tl.sum(tl.sum(scores, axis=2), axis=1)[:, None, None]
    ranked = scores
    if bias is not None:
        ranked += tl.load(bias + (g * N + n), mask=real, other=0.0)
    ranked = tl.where(ranked > LOWEST, ranked, LOWEST)  # an expert, of NaN too, stays above what is none
    ranked = tl.where(real, ranked, float("-inf"))
    if TOP:
        opened = open_groups(ranked, G, BEST, TOP, GROUPS, WIDTH)
        ranked = tl.where(opened[:, :, None], ranked, float("-inf"))
    ranked = tl.reshape(ranked, (ROWS, GROUPS * WIDTH))
    scores = tl.reshape(scores, (ROWS, GROUPS * WIDTH))
    place, slot = tl.arange(0, GROUPS * WIDTH), tl.arange(0, SLOTS)
    chosen = tl.zeros((ROWS, SLOTS), tl.int32)
    weight = tl.zeros((ROWS, SLOTS), tl.float32)
    for k in range(K):
        at = tl.argmax(ranked, axis=1)
        found = place[None, :] == at[:, None]
        own = tl.sum(tl.where(found, scores, 0.0), axis=1)
        ranked = tl.where(found, float("-inf"), ranked)
        chosen = tl.where((slot == k)[None, :], at[:, None], chosen)
        weight = tl.where((slot == k)[None, :], own[:, None], weight)
    if NORMALISED:
        weight = weight / tl.sum(weight, axis=1)[:, None]
    expert = chosen // WIDTH * N + chosen % WIDTH
    at = row[:, None] * K + slot[None, :]
    kept = (row < T)[:, None] & (slot < K)[None, :]
    tl.store(ids + at, expert.to(tl.int64), mask=kept)
    tl.store(weights + at, weight * scale, mask=kept)


def router(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    top_k: int,
    gate: str = "softmax",
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
    normalised: bool = True,
    routed_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Which experts a token goes to, best first, and the weights of what they say, as `course.model.router` has it.

    A score of NaN ranks below all numbers, and its weight is NaN; ids are experts, each once in a row, in any case.

    logits_TE: float32. bias_E: float32, added to the scores for the choice alone, or None. The rest as in ModelConfig.
    Returns: ids_TK (int64) and weights_TK (float32): of the scores without bias, over their sum if `normalised`, times
    `routed_scale`.
    Raises: ValueError when shapes do not fit, a dtype or the gate is another, groups do not divide the experts or leave
    fewer than top_k, or there are more than 4096 experts.
    """
    _refuse(logits_TE, bias_E, top_k, gate, groups, top_groups, group_best)
    T, E = logits_TE.shape
    ids_TK = torch.empty(T, top_k, dtype=torch.int64, device=logits_TE.device)
    weights_TK = torch.empty(T, top_k, dtype=torch.float32, device=logits_TE.device)
    if T == 0:
        return ids_TK, weights_TK
    logits_TE = logits_TE if logits_TE.stride(1) == 1 else logits_TE.contiguous()
    high, wide = triton.next_power_of_2(groups), triton.next_power_of_2(E // groups)
    rows = max(ELEMENTS // (high * wide), 1)
    router_kernel[(triton.cdiv(T, rows),)](
        logits_TE,
        None if bias_E is None else bias_E.contiguous(),
        ids_TK,
        weights_TK,
        logits_TE.stride(0),
        T,
        groups,
        E // groups,
        top_k,
        float(routed_scale),
        SIGMOID=gate == "sigmoid",
        NORMALISED=normalised,
        BEST=min(group_best, E // groups),
        TOP=top_groups if top_groups < groups else 0,  # 0: all are open
        ROWS=rows,
        GROUPS=high,
        WIDTH=wide,
        SLOTS=triton.next_power_of_2(top_k),
    )
    return ids_TK, weights_TK


def has_room(experts: int, groups: int = 1) -> bool:
    """Whether one program holds so many experts, in so many equal groups, in its registers."""
    return triton.next_power_of_2(groups) * triton.next_power_of_2(experts // groups) <= LONGEST


def _refuse(logits_TE, bias_E, top_k: int, gate: str, groups: int, top_groups: int, group_best: int) -> None:
    if logits_TE.dtype != torch.float32 or logits_TE.dim() != 2:
        raise ValueError(
            f"router takes logits of float32 and [tokens, experts], not {logits_TE.dtype} and {list(logits_TE.shape)}"
        )
    E = logits_TE.shape[1]
    if bias_E is not None and (bias_E.dtype != torch.float32 or bias_E.shape != (E,)):
        raise ValueError(f"a bias of {bias_E.dtype} and {list(bias_E.shape)} is not one of float32 for {E} experts")
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is none of {', '.join(GATES)}")
    if groups < 1 or E % groups:
        raise ValueError(f"{E} experts do not make {groups} equal groups")
    if not 1 <= top_groups <= groups:
        raise ValueError(f"top_groups {top_groups} must lie between 1 and {groups}")
    if group_best < 1:
        raise ValueError(f"a group is ranked by at least one score, not {group_best}")
    most = top_groups * (E // groups)
    if not 1 <= top_k <= most:
        raise ValueError(f"top_k {top_k} must lie between 1 and the {most} experts of {top_groups} groups")
    if not has_room(E, groups):
        raise ValueError(f"router takes up to {LONGEST} experts, and {groups} groups of {E // groups} need more room")
