"""05.6: a whole DeepSeekMoE layer: groups, biased choice, routed experts, shared experts (V3 report, 2.1.2)."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u02.swiglu import reference as swiglu
from course.exercises.u05.gate import clear
from course.exercises.u05.groups import reference as group_limited_topk

EDGES = [  # tokens, width, hidden, experts, shared, groups, top groups, best, k, scale, dtype
    (6, 8, 4, 8, 2, 4, 2, 2, 3, 2.5, torch.float32),
    (5, 6, 3, 6, 0, 3, 2, 1, 2, 1.0, torch.float32),  # no shared experts
    (9, 16, 4, 12, 1, 4, 2, 3, 4, 2.5, torch.bfloat16),
    (1, 4, 2, 8, 3, 1, 1, 2, 2, 16.0, torch.float32),
    (0, 4, 2, 4, 1, 2, 1, 2, 1, 2.5, torch.float32),
    (256, 8, 1, 64, 1, 8, 4, 2, 6, 2.5, torch.bfloat16),  # enough choices for rounding to change some
    (64, 8, 2, 24, 1, 4, 2, 2, 4, 2.5, torch.bfloat16),  # biases around 4, where bfloat16 has steps of 1/32
    (5, 16, 3, 8, 1, 4, 2, 2, 3, 2.5, torch.float32),  # all logits near -16: the sum of the chosen scores is tiny
]
LARGE_BIASES, FAR = 7, 8


def inputs(rng, number):
    """Logits are exact in float32, not in bfloat16, and no two biased scores so near that rounding decides."""
    if number == 0:
        one = torch.ones(1, 1, 1)
        return {
            "x_TD": torch.tensor([[1.0]]),
            "gate_ED": torch.zeros(2, 1),
            "bias_E": torch.zeros(2),
            "gate_up_EFD": torch.tensor([[[1.0], [1.0]], [[1.0], [3.0]]]),
            "down_EDI": one.repeat(2, 1, 1),
            "shared_gate_up_NFD": one.repeat(1, 2, 1),
            "shared_down_NDI": one.clone(),
            "groups": 1,
            "top_groups": 1,
            "best": 2,
            "k": 2,
            "scale": 2.5,
        }
    if number <= len(EDGES):
        T, D, hidden, E, N, groups, top_groups, best, k, scale, dtype = EDGES[number - 1]
    else:
        groups = int(rng.choice([1, 2, 4]))
        each, top_groups, best = int(rng.integers(2, 5)), int(rng.integers(1, groups + 1)), int(rng.integers(1, 4))
        T, D, hidden = int(rng.integers(1, 20)), int(rng.integers(4, 20)), int(rng.integers(2, 8))
        E, N, k = groups * each, int(rng.integers(0, 3)), int(rng.integers(1, min(top_groups * each, 4) + 1))
        scale, dtype = float(rng.choice([1.0, 2.5])), [torch.float32, torch.bfloat16][int(rng.integers(2))]

    def normal(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=dtype)

    while True:
        x_TD = torch.tensor(rng.integers(-20, 21, size=(T, D)) / 16)
        gate_ED = torch.tensor(rng.integers(-14, 15, size=(E, D)) / 16)
        bias_E = torch.tensor(rng.integers(-100, 101, size=E) / 512, dtype=torch.float32)
        if number == LARGE_BIASES:
            bias_E += 4
        if number == FAR:
            x_TD, gate_ED = 1 - x_TD.abs() / 64, gate_ED.abs() / 64 - 1
            bias_E = 2.0 ** -torch.tensor(rng.permutation(E), dtype=torch.float32)  # no two groups have equal sums
        if clear((x_TD @ gate_ED.T).sigmoid() + bias_E):
            break
    return {
        "x_TD": x_TD.to(dtype),
        "gate_ED": gate_ED.to(dtype),
        "bias_E": bias_E,
        "gate_up_EFD": normal(E, 2 * hidden, D),
        "down_EDI": normal(E, D, hidden),
        "shared_gate_up_NFD": normal(N, 2 * hidden, D),
        "shared_down_NDI": normal(N, D, hidden),
        "groups": groups,
        "top_groups": top_groups,
        "best": best,
        "k": k,
        "scale": scale,
    }


def compare(inputs, wanted, got):
    """Where x is bfloat16, sums in either precision are right, so the outputs may differ by a few of its roundings."""
    narrow = inputs["x_TD"].dtype == torch.bfloat16
    return same("y", "counts", rtol=0.02 if narrow else 1e-5)(inputs, wanted, got)


def reference(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def every_expert_then_mask(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    wide_TD, (T, E) = x_TD.float(), (len(x_TD), len(gate_ED))
    scores_TE = torch.sigmoid(wide_TD @ gate_ED.float().T)
    indices_TK = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)[0]
    hot_TE = torch.zeros(T, E).scatter(1, indices_TK, 1.0)
    share_TE = hot_TE * scores_TE / (hot_TE * scores_TE).sum(dim=1, keepdim=True) * scale
    share_TE = torch.cat([share_TE, torch.ones(T, len(shared_down_NDI))], dim=1)
    gate_up = torch.cat([gate_up_EFD, shared_gate_up_NFD]).float()
    gate, up = torch.einsum("td,efd->tef", wide_TD, gate_up).chunk(2, dim=-1)
    y_TD = torch.einsum("te,tei,edi->td", share_TE, F.silu(gate) * up, torch.cat([down_EDI, shared_down_NDI]).float())
    return y_TD.to(x_TD.dtype), hot_TE.sum(dim=0).long()


def shared_scaled(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += scale * swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def shared_averaged(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up") / len(shared_down_NDI)
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def shared_left_out(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def shared_counted_in_k(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, max(1, k - len(shared_down_NDI)))
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def shared_in_the_sum(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + len(shared_down_NDI))
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def first_shared_only(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(min(1, len(shared_down_NDI))):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def scaled_twice(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += scale * weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def biased_weights(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = (scores_TE + bias_E).gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def bias_left_out(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def without_groups(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, 1, 1, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def never_normalised(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def in_low_precision(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD @ gate_ED.T).sigmoid().float()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def up_first(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "up_gate")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "up_gate")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def weight_on_input(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(
            (weights_TK[token_R, slot_R, None] * x_TD[token_R]).to(x_TD.dtype), gate_up_EFD[e], down_EDI[e], "gate_up"
        )
        y_TD[token_R] += rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def residual_added(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = x_TD.float().clone()
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED))


def shared_in_the_counts(
    x_TD,
    gate_ED,
    bias_E,
    gate_up_EFD,
    down_EDI,
    shared_gate_up_NFD,
    shared_down_NDI,
    groups,
    top_groups,
    best,
    k,
    scale,
):
    scores_TE = (x_TD.float() @ gate_ED.float().T).sigmoid()
    indices_TK, _ = group_limited_topk(scores_TE + bias_E, groups, top_groups, best, k)
    weights_TK = scores_TE.gather(1, indices_TK)
    weights_TK = scale * weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    y_TD = torch.zeros(x_TD.shape)
    for e in range(len(gate_ED)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = swiglu(x_TD[token_R], gate_up_EFD[e], down_EDI[e], "gate_up")
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * rows_RD
    for n in range(len(shared_down_NDI)):
        y_TD += swiglu(x_TD, shared_gate_up_NFD[n], shared_down_NDI[n], "gate_up")
    return y_TD.to(x_TD.dtype), indices_TK.flatten().bincount(minlength=len(gate_ED)) + len(shared_down_NDI) * len(x_TD)


EXERCISE = Exercise(
    id="05.6",
    unit="05",
    title="shared experts, and the whole layer",
    entry="deepseek_moe",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "shared-scaled",
            shared_scaled,
            "It looks like shared experts multiplied by scale. The factor belongs to the weights of the routed ones; a shared "
            "expert counts once, as it is.",
            "sgl-project/sglang, pull request 28237: the other way round, divided by it",
        ),
        Misconception(
            "shared-averaged",
            shared_averaged,
            "It looks like a mean over the shared experts. Add them: together they are one expert of N times the width.",
        ),
        Misconception(
            "shared-left-out",
            shared_left_out,
            "It looks like the routed experts alone. Every token meets every shared expert as well.",
            "divyamakkar0/JAXformer, issue 21",
        ),
        Misconception(
            "shared-counted-in-k",
            shared_counted_in_k,
            "It looks like shared experts counted among the k. A token meets k routed experts, and the shared ones beside them.",
        ),
        Misconception(
            "shared-in-the-sum",
            shared_in_the_sum,
            "It looks like shared experts counted in the sum that the weights are divided by. Divide by the sum of the k chosen "
            "scores.",
        ),
        Misconception(
            "first-shared-only",
            first_shared_only,
            "It looks like one shared expert. There are N of them, and N may be 0.",
        ),
        Misconception(
            "scaled-twice",
            scaled_twice,
            "It looks like the scale multiplied in twice. The routed weights of a token sum to scale, once.",
            "vllm-project/vllm, pull request 24119: DeepSeek-R1 fell from 0.95 to 0.66 on GSM8K",
        ),
        Misconception(
            "biased-weights",
            biased_weights,
            "It looks like weights taken from the biased scores. The bias takes part in the choice alone.",
            "huggingface/transformers, pull request 41647",
        ),
        Misconception(
            "bias-left-out",
            bias_left_out,
            "It looks like a choice without the bias. Give the biased scores to the choice, and weigh with those that have none.",
        ),
        Misconception(
            "without-groups",
            without_groups,
            "It looks like a choice among all experts. Only the best groups are open.",
        ),
        Misconception(
            "never-normalised",
            never_normalised,
            "It looks like weights that are not divided by their sum. The chosen scores are divided by their sum, then multiplied "
            "by scale.",
            "pytorch/torchtitan, pull request 1419",
        ),
        Misconception(
            "low-precision",
            in_low_precision,
            "It looks like routing in the inputs' own precision. Widen x and gate to float32 before their product; the experts run "
            "as they are.",
        ),
        Misconception(
            "up-first",
            up_first,
            "It looks like the second half of gate_up sent through silu. The first half of the rows is the gate: the layout is "
            "gate_up.",
        ),
        Misconception(
            "weight-on-input",
            weight_on_input,
            "It looks like the weight multiplied into the input. SwiGLU is not linear: weigh what the expert returns.",
            "a vLLM option for models that really do this (apply_router_weight_on_input, Llama 4)",
        ),
        Misconception(
            "residual-added",
            residual_added,
            "It looks like the residual connection in here. The block adds what the layer returns: return the sum of the experts "
            "alone.",
        ),
        Misconception(
            "shared-in-the-counts",
            shared_in_the_counts,
            "It looks like shared experts' tokens among the counts. Counts are of routed experts: their sum is T * k.",
        ),
    ),
    alternatives=(every_expert_then_mask,),
    hints=(
        "Three parts: who is chosen, with what weight, and what is added up. The shared experts belong to the last part alone.",
        "Sigmoids in float32; your 05.2 on the biased ones; weights gathered from those without. Then a loop over the experts, "
        "as in 04.2.",
        "For expert e the tokens and slots come from torch.where(indices == e); swiglu(rows, gate_up_EFD[e], down_EDI[e], "
        "'gate_up'), weighed, is "
        "added; then swiglu of all of x for each shared expert, not weighed; bincount(minlength=E) of the indices.",
    ),
    uses=("02.4", "05.2"),
)
