"""04.2: the experts one after the other, with dropped pairs left out (Mixtral report, 2.1)."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(1, 4, 3, 2, 1, 0.0), (6, 4, 4, 4, 2, 0.0), (8, 6, 5, 3, 3, 0.3)]  # T, D, I, E, K, share dropped


def inputs(rng, number):
    if number < len(EDGES):
        T, D, hidden, E, K, dropped = EDGES[number]
    else:
        T, D, hidden, E = (int(rng.integers(low, high)) for low, high in ((2, 20), (3, 12), (2, 9), (2, 9)))
        K, dropped = int(rng.integers(1, min(E, 4) + 1)), float(rng.choice([0.0, 0.25]))
    busy = E - 1 if K < E else E  # where it can be so, the last expert is idle
    indices_TK = torch.tensor(rng.permuted([list(range(busy))] * T, axis=1)[:, :K])
    out = torch.tensor(rng.uniform(size=(T, K)) < dropped)
    weights_TK = torch.tensor(rng.dirichlet([1.0] * K, size=T))

    def normal(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    return {
        "x_TD": normal(T, D),
        "indices_TK": indices_TK.masked_fill(out, -1),
        "weights_TK": weights_TK.float(),
        "gate_EID": normal(E, hidden, D),
        "up_EID": normal(E, hidden, D),
        "down_EDI": normal(E, D, hidden),
    }


def reference(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R]
        hidden_RI = F.silu(rows_RD @ gate_EID[e].T) * (rows_RD @ up_EID[e].T)
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * (hidden_RI @ down_EDI[e].T)
    return y_TD


def token_by_token(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    rows = []
    for x_D, experts, weights in zip(x_TD, indices_TK.tolist(), weights_TK, strict=True):
        y_D = torch.zeros_like(x_D)
        for e, weight in zip(experts, weights, strict=True):
            if e >= 0:
                y_D = y_D + weight * (down_EDI[e] @ (F.silu(gate_EID[e] @ x_D) * (up_EID[e] @ x_D)))
        rows.append(y_D)
    return torch.stack(rows)


def every_expert_then_mask(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    share_TE = (F.one_hot(indices_TK + 1, len(gate_EID) + 1)[..., 1:] * weights_TK[..., None]).sum(1)
    hidden_TEI = F.silu(torch.einsum("td,eid->tei", x_TD, gate_EID)) * torch.einsum("td,eid->tei", x_TD, up_EID)
    return torch.einsum("te,tei,edi->td", share_TE, hidden_TEI, down_EDI)


def drops_wrap_around(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for t in range(len(x_TD)):
        for s, e in enumerate(indices_TK[t].tolist()):
            hidden_I = F.silu(gate_EID[e] @ x_TD[t]) * (up_EID[e] @ x_TD[t])
            y_TD[t] += weights_TK[t, s] * (down_EDI[e] @ hidden_I)
    return y_TD


def weight_on_the_input(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R] * weights_TK[token_R, slot_R, None]
        hidden_RI = F.silu(rows_RD @ gate_EID[e].T) * (rows_RD @ up_EID[e].T)
        y_TD[token_R] += hidden_RI @ down_EDI[e].T
    return y_TD


def last_one_wins(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R]
        hidden_RI = F.silu(rows_RD @ gate_EID[e].T) * (rows_RD @ up_EID[e].T)
        y_TD[token_R] = weights_TK[token_R, slot_R, None] * (hidden_RI @ down_EDI[e].T)
    return y_TD


def silu_on_up(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R, slot_R = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R]
        hidden_RI = (rows_RD @ gate_EID[e].T) * F.silu(rows_RD @ up_EID[e].T)
        y_TD[token_R] += weights_TK[token_R, slot_R, None] * (hidden_RI @ down_EDI[e].T)
    return y_TD


def weight_by_expert(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R = torch.where(indices_TK == e)[0]
        rows_RD = x_TD[token_R]
        hidden_RI = F.silu(rows_RD @ gate_EID[e].T) * (rows_RD @ up_EID[e].T)
        y_TD[token_R] += weights_TK[token_R, e % weights_TK.shape[1], None] * (hidden_RI @ down_EDI[e].T)
    return y_TD


def unweighted(x_TD, indices_TK, weights_TK, gate_EID, up_EID, down_EDI):
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(gate_EID)):
        token_R, _ = torch.where(indices_TK == e)
        rows_RD = x_TD[token_R]
        hidden_RI = F.silu(rows_RD @ gate_EID[e].T) * (rows_RD @ up_EID[e].T)
        y_TD[token_R] += hidden_RI @ down_EDI[e].T
    return y_TD


EXERCISE = Exercise(
    id="04.2",
    unit="04",
    title="expert loop",
    entry="expert_loop",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=5,
    reference=reference,
    compare=same("y", rtol=1e-5),
    misconceptions=(
        Misconception(
            "drops-wrap",
            drops_wrap_around,
            "It looks like -1 used as an index: Python then takes the last expert. A dropped pair adds nothing.",
        ),
        Misconception(
            "weight-on-input",
            weight_on_the_input,
            "It looks like the weight multiplied into the input. SwiGLU is not linear: weigh what the expert returns.",
            "a vLLM option for models that really do this (apply_router_weight_on_input, Llama 4)",
        ),
        Misconception(
            "last-one-wins",
            last_one_wins,
            "It looks like each expert overwriting what the one before wrote. Add: y[tokens] += ...",
        ),
        Misconception(
            "silu-on-up",
            silu_on_up,
            "It looks like silu on the up projection. In SwiGLU the gate projection goes through silu.",
        ),
        Misconception(
            "slot-by-expert",
            weight_by_expert,
            "It looks like a weight looked up by expert number. A weight belongs to a token's slot: weights[token, slot].",
        ),
        Misconception(
            "unweighted",
            unweighted,
            "It looks like a plain sum of the experts. Each result is multiplied by its weight.",
        ),
    ),
    alternatives=(token_by_token, every_expert_then_mask),
    hints=(
        "For one expert: which tokens chose it, and in which slot? torch.where gives both at once.",
        "Gather those tokens, run the three matrices, multiply by weights[token, slot].",
        "Loop over e; token, slot = torch.where(indices == e); y[token] += weight * down(silu(gate(x)) * up(x)).",
    ),
)
