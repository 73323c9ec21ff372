"""04.7: how a gradient reaches the router: through the weights of the chosen, and nowhere else."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(1, 3, 2), (4, 5, 1), (6, 6, 6)]  # tokens, experts, k


def inputs(rng, number):
    T, E, K = EDGES[number] if number < len(EDGES) else (int(rng.integers(2, 20)), int(rng.integers(4, 12)), 0)
    K = K or int(rng.integers(2, min(E - 1, 5) + 1))
    logits_TE = torch.tensor(rng.normal(size=(T, E)), dtype=torch.float32)
    return {
        "logits_TE": logits_TE,
        "indices_TK": logits_TE.topk(K, dim=-1).indices,
        "grad_weights_TK": torch.tensor(rng.normal(size=(T, K)), dtype=torch.float32),
    }


def reference(logits_TE, indices_TK, grad_weights_TK):
    weights_TK = logits_TE.gather(1, indices_TK).softmax(dim=-1)
    mean_T1 = (weights_TK * grad_weights_TK).sum(dim=-1, keepdim=True)
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, weights_TK * (grad_weights_TK - mean_T1))


def through_the_full_softmax(logits_TE, indices_TK, grad_weights_TK):
    p_TE = logits_TE.double().softmax(dim=-1)
    chosen_TK = p_TE.gather(1, indices_TK)
    sum_T1 = chosen_TK.sum(dim=-1, keepdim=True)
    g_TK = grad_weights_TK.double()
    grad_chosen_TK = g_TK / sum_T1 - (g_TK * chosen_TK).sum(-1, keepdim=True) / sum_T1**2
    grad_p_TE = torch.zeros_like(p_TE).scatter(1, indices_TK, grad_chosen_TK)
    grad_TE = p_TE * (grad_p_TE - (p_TE * grad_p_TE).sum(-1, keepdim=True))
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, grad_TE.gather(1, indices_TK).float())


def straight_through(logits_TE, indices_TK, grad_weights_TK):
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, grad_weights_TK)


def without_the_mean(logits_TE, indices_TK, grad_weights_TK):
    weights_TK = logits_TE.gather(1, indices_TK).softmax(dim=-1)
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, weights_TK * grad_weights_TK)


def not_renormalised(logits_TE, indices_TK, grad_weights_TK):
    p_TE = logits_TE.softmax(dim=-1)
    grad_p_TE = torch.zeros_like(logits_TE).scatter(1, indices_TK, grad_weights_TK)
    return p_TE * (grad_p_TE - (p_TE * grad_p_TE).sum(dim=-1, keepdim=True))


def plain_mean(logits_TE, indices_TK, grad_weights_TK):
    weights_TK = logits_TE.gather(1, indices_TK).softmax(dim=-1)
    centred_TK = grad_weights_TK - grad_weights_TK.mean(dim=-1, keepdim=True)
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, weights_TK * centred_TK)


def sigmoid_derivative(logits_TE, indices_TK, grad_weights_TK):
    weights_TK = logits_TE.gather(1, indices_TK).softmax(dim=-1)
    return torch.zeros_like(logits_TE).scatter(1, indices_TK, weights_TK * (1 - weights_TK) * grad_weights_TK)


def left_in_slot_order(logits_TE, indices_TK, grad_weights_TK):
    K = indices_TK.shape[1]
    weights_TK = logits_TE.gather(1, indices_TK).softmax(dim=-1)
    grad_TK = weights_TK * (grad_weights_TK - (weights_TK * grad_weights_TK).sum(dim=-1, keepdim=True))
    grad_TE = torch.zeros_like(logits_TE)
    grad_TE[:, :K] = grad_TK
    return grad_TE


EXERCISE = Exercise(
    id="04.7",
    unit="04",
    title="gradient through top-k",
    entry="gate_backward",
    points=15,
    minutes=30,
    difficulty=4,
    spine=False,
    inputs=inputs,
    cases=6,
    reference=reference,
    compare=same("grad_logits", rtol=1e-5),
    misconceptions=(
        Misconception(
            "straight-through",
            straight_through,
            "It looks like the weights' gradient copied to the logits. Between them lies a softmax, with a derivative.",
        ),
        Misconception(
            "without-the-mean",
            without_the_mean,
            "It looks like w * g. The weights sum to one: raising one lowers the others, so subtract the weighted mean of g.",
        ),
        Misconception(
            "not-renormalised",
            not_renormalised,
            "It looks like a gradient that reaches experts that were not chosen. After renormalising, the weights depend "
            "on the chosen logits alone.",
            "right for gates that do not renormalise, norm_topk_prob=False",
        ),
        Misconception(
            "plain-mean",
            plain_mean,
            "It looks like the plain mean of g subtracted. The mean is weighted by w.",
        ),
        Misconception(
            "sigmoid-derivative",
            sigmoid_derivative,
            "It looks like w * (1 - w) * g, a sigmoid's derivative. A softmax couples the chosen experts.",
        ),
        Misconception(
            "slot-order",
            left_in_slot_order,
            "It looks like gradients left in slot order. Slot s belongs to expert indices[t, s]: scatter them there.",
        ),
    ),
    alternatives=(through_the_full_softmax,),
    hints=(
        "Which logits do the renormalised weights depend on? Try changing one that was not chosen.",
        "For w = softmax(z) over the chosen: dw_i/dz_j = w_i * (1 if i == j else 0) - w_i * w_j.",
        "On the chosen: w * (g - sum(w * g)); scatter into zeros at indices_TK.",
    ),
    forbids=("torch.autograd.grad", "torch.autograd.backward", "Tensor.backward", "torch.func.grad", "torch.func.vjp"),
)
