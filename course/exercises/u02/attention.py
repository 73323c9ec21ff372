"""02.3: causal attention where the queries are the last of the positions, with a window (Vaswani et al. 2017, 3.2.1)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

LOW = -1000  # where every score lies in the last edge: far below what some take for minus infinity
EDGES = [  # batch, heads, queries, keys, width of a key, width of a value, window, size of the queries
    (1, 1, 3, 3, 4, 4, 3, 1.0),
    (1, 2, 1, 6, 8, 5, 6, 1.0),  # one new token and a cache
    (2, 2, 4, 7, 6, 3, 7, 1.0),
    (1, 2, 5, 8, 4, 6, 3, 1.0),
    (2, 3, 6, 6, 16, 8, 9, 100.0),  # scores of hundreds: exp overflows
    (1, 2, 4, 5, 16, 3, 2, 1.0),
]


def inputs(rng, number):
    if number < len(EDGES):
        B, H, S, N, C, V, window, size = EDGES[number]
    else:
        B, H, S, C, V = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5), (2, 9), (3, 20), (3, 20)))
        N = S + int(rng.integers(0, 9))
        window, size = int(rng.integers(1, N + 2)), float(rng.choice([1.0, 4.0, 100.0]))

    def normal(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    q_BHSC, k_BHNC = size * normal(B, H, S, C), normal(B, H, N, C)
    if number == len(EDGES) - 1:  # in quarters, so that scores are exact in float32
        q_BHSC, k_BHNC = (4 * q_BHSC).round() / 4, (4 * k_BHNC).round() / 4
        q_BHSC[..., 0], k_BHNC[..., 0] = 100.0, LOW * C**0.5 / 100
    return {
        "q_BHSC": q_BHSC,
        "k_BHNC": k_BHNC,
        "v_BHNV": normal(B, H, N, V),
        "window": window,
    }


def reference(q_BHSC, k_BHNC, v_BHNV, window):
    (_, _, S, C), (_, _, N, _) = q_BHSC.shape, k_BHNC.shape
    scores_BHSN = q_BHSC @ k_BHNC.mT / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def query_by_query(q_BHSC, k_BHNC, v_BHNV, window):
    S, N = q_BHSC.shape[2], k_BHNC.shape[2]
    rows = []
    for s in range(S):
        last = N - S + s
        seen = slice(max(0, last - window + 1), last + 1)
        scores_BHn = torch.einsum("bhc,bhnc->bhn", q_BHSC[:, :, s].double(), k_BHNC[:, :, seen].double())
        scores_BHn = scores_BHn / q_BHSC.shape[-1] ** 0.5
        weights_BHn = (scores_BHn - scores_BHn.amax(-1, keepdim=True)).exp()
        summed_BHV = torch.einsum("bhn,bhnv->bhv", weights_BHn, v_BHNV[:, :, seen].double())
        rows.append((summed_BHV / weights_BHn.sum(-1, keepdim=True)).float())
    return torch.stack(rows, dim=2)


def band_of_ones(q_BHSC, k_BHNC, v_BHNV, window):
    S, N = q_BHSC.shape[2], k_BHNC.shape[2]
    shown_SN = torch.ones(N, N).tril().triu(1 - window)[N - S :]
    scores_BHSN = torch.einsum("bhsc,bhnc->bhsn", q_BHSC * q_BHSC.shape[-1] ** -0.5, k_BHNC)
    return torch.softmax(scores_BHSN + shown_SN.log(), dim=-1) @ v_BHNV


def sees_the_future(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    hidden_SN = torch.arange(N - S, N)[:, None] - torch.arange(N) >= window
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def hidden_by_minus_a_hundred(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    return scores_BHSN.masked_fill((age_SN < 0) | (age_SN >= window), -100.0).softmax(dim=-1) @ v_BHNV


def without_a_mask(q_BHSC, k_BHNC, v_BHNV, window):
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(q_BHSC.shape[3])
    return scores_BHSN.softmax(dim=-1) @ v_BHNV


def aligned_to_the_top(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(S)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def window_one_too_long(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN > window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def no_window(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    hidden_SN = torch.arange(N - S, N)[:, None] < torch.arange(N)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def not_itself(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN <= 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def hidden_scores_are_zero(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, 0.0).softmax(dim=-1) @ v_BHNV


def hidden_after_the_softmax(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.softmax(dim=-1).masked_fill(hidden_SN, 0.0) @ v_BHNV


def not_scaled(q_BHSC, k_BHNC, v_BHNV, window):
    S, N = q_BHSC.shape[2], k_BHNC.shape[2]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def divided_by_the_width(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / C
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def scale_of_the_model_width(q_BHSC, k_BHNC, v_BHNV, window):
    H, S, N, C = q_BHSC.shape[1], q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(H * C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def scale_of_the_values(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, V = q_BHSC.shape[2], k_BHNC.shape[2], v_BHNV.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(V)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -torch.inf).softmax(dim=-1) @ v_BHNV


def softmax_over_queries(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    hidden_SN = (age_SN < 0) | (age_SN >= window)
    return scores_BHSN.masked_fill(hidden_SN, -1e9).softmax(dim=-2) @ v_BHNV


def exp_overflows(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    shown_SN = (age_SN >= 0) & (age_SN < window)
    e_BHSN = (q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)).exp()
    e_BHSN = torch.where(shown_SN, e_BHSN, 0.0)
    return e_BHSN / e_BHSN.sum(dim=-1, keepdim=True) @ v_BHNV


def largest_of_the_hidden(q_BHSC, k_BHNC, v_BHNV, window):
    S, N, C = q_BHSC.shape[2], k_BHNC.shape[2], q_BHSC.shape[3]
    age_SN = torch.arange(N - S, N)[:, None] - torch.arange(N)
    shown_SN = (age_SN >= 0) & (age_SN < window)
    scores_BHSN = q_BHSC @ k_BHNC.transpose(-1, -2) / math.sqrt(C)
    e_BHSN = torch.where(shown_SN, (scores_BHSN - scores_BHSN.amax(dim=-1, keepdim=True)).exp(), 0.0)
    return e_BHSN / e_BHSN.sum(dim=-1, keepdim=True) @ v_BHNV


EXERCISE = Exercise(
    id="02.3",
    unit="02",
    title="causal attention",
    entry="causal_attention",
    points=15,
    minutes=25,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("the result", rtol=1e-4),  # scores of hundreds, in float32
    misconceptions=(
        Misconception(
            "finite-fill",
            hidden_by_minus_a_hundred,
            "It looks like hidden scores set to a number such as -100. Where the scores that are seen lie lower still, the hidden "
            "ones win: fill with minus infinity.",
        ),
        Misconception(
            "sees-the-future",
            sees_the_future,
            "It looks like a window without a triangle: later positions are seen. A query sees no key after its own position.",
        ),
        Misconception(
            "no-mask",
            without_a_mask,
            "It looks like attention without a mask. Hide the keys after the query's own position and those before its window.",
        ),
        Misconception(
            "aligned-to-the-top",
            aligned_to_the_top,
            "It looks like the S queries taken for the first S positions. They are the last: query s stands at position N - S + s.",
            "pytorch/pytorch, issues 103082 and 108108: is_causal=True aligns to the top left, which is wrong beside a cache",
        ),
        Misconception(
            "window-one-too-long",
            window_one_too_long,
            "It looks like a window of one key too many. The window counts the query's own position: itself and the window - 1 before it.",
            "huggingface/transformers, pull request 26792, and ml-explore/mlx-lm, pull request 390",
        ),
        Misconception(
            "no-window",
            no_window,
            "It looks like a window that is ignored. Keys that are `window` or more positions back are hidden too.",
            "unslothai/unsloth, pull request 8253: the window never reached one of the back ends",
        ),
        Misconception(
            "not-itself",
            not_itself,
            "It looks like queries that do not see their own position. The diagonal is seen; the first position sees nothing else.",
        ),
        Misconception(
            "hidden-scores-zero",
            hidden_scores_are_zero,
            "It looks like hidden scores set to zero. The exponential of 0 is 1, a full share: set them to minus infinity.",
            "georg-wolflein/good-features, pull request 1: scores multiplied by the mask",
        ),
        Misconception(
            "hidden-after-softmax",
            hidden_after_the_softmax,
            "It looks like weights hidden after the softmax. What is left no longer adds to one: hide the scores before.",
            "huggingface/pytorch-image-models, pull request 2236: the mask was applied after the softmax",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like scores that are not divided by sqrt(C). Without that they grow with the width, and the softmax takes one key.",
        ),
        Misconception(
            "divided-by-the-width",
            divided_by_the_width,
            "It looks like scores divided by C. A sum of C products grows like the root of C: divide by sqrt(C).",
        ),
        Misconception(
            "scale-of-the-model",
            scale_of_the_model_width,
            "It looks like the scale of the whole model's width, sqrt(H * C). Each head is an attention of its own: sqrt(C).",
        ),
        Misconception(
            "scale-of-the-values",
            scale_of_the_values,
            "It looks like the scale taken from the values. Scores are products of queries and keys: C is their width, not the values'.",
        ),
        Misconception(
            "softmax-over-queries",
            softmax_over_queries,
            "It looks like a softmax over the queries. Each query spreads one unit over its keys: dim=-1.",
        ),
        Misconception(
            "exp-overflows",
            exp_overflows,
            "It looks like an exponential that overflows: exp(89) is infinite in float32. Subtract the largest score first.",
        ),
        Misconception(
            "largest-of-the-hidden",
            largest_of_the_hidden,
            "It looks like the largest score taken over hidden keys too. Where a hidden one is far larger, all that is seen underflows "
            "to 0 / 0: hide first, then subtract.",
        ),
    ),
    alternatives=(query_by_query, band_of_ones),
    hints=(
        "At which position does query s stand, when the S queries are the last of N? Write down S = 2, N = 5 by hand.",
        "age = position of the query - position of the key, a matrix [S, N]. Which ages are seen?",
        "scores / sqrt(C); hidden where age < 0 or age >= window; masked_fill with -inf; softmax(dim=-1); times the values.",
    ),
    forbids=(
        "torch.nn.functional.scaled_dot_product_attention",
        "torch.nn.functional.multi_head_attention_forward",
        "torch.nn.MultiheadAttention",
    ),
)
