"""07.9: keep a drafted token or replace it, so that what comes out follows the target (Leviathan et al. 2023, 2.3)."""

import torch
import torch.nn.functional as F

from course.checking.compare import kind
from course.checking.exercise import Exercise, Misconception

TRIES = 20_000
DEVIATIONS = 6.0  # how far a right answer's statistic may stray: less than one in a hundred million


def inputs(rng, number):
    size = [2, 5, 5][number] if number < 3 else int(rng.integers(3, 9))
    target, draft = rng.dirichlet([0.7] * size), rng.dirichlet([0.7] * size)
    if number == 0:
        target, draft = torch.tensor([0.3, 0.7]).numpy(), torch.tensor([0.8, 0.2]).numpy()
    if number == 1:
        draft = target
    if number == 2:
        target = torch.tensor([0.0, 0.1, 0.5, 0.15, 0.25]).numpy()
        draft = torch.tensor([0.4, 0.35, 0.0, 0.2, 0.05]).numpy()
    drafted = rng.choice(size, p=draft / draft.sum(), size=TRIES)
    return {
        "target_V": torch.tensor(target, dtype=torch.float64),
        "draft_V": torch.tensor(draft, dtype=torch.float64),
        "drafted_N": torch.tensor(drafted),
        "uniforms_N2": torch.tensor(rng.uniform(size=(TRIES, 2))),
    }


def compare(inputs, wanted, got):
    """Drafted and emitted tokens, counted in pairs, must look like two samples of one distribution."""
    V = len(inputs["target_V"])
    if not isinstance(got, torch.Tensor) or got.shape != wanted.shape or got.dtype != torch.int64:
        return f"tokens: wanted {kind(wanted)}, got {kind(got)}"
    if got.min() < 0 or got.max() >= V:
        return f"tokens: {int(got.min())} to {int(got.max())}, wanted 0 to {V - 1}"
    pair = inputs["drafted_N"] * V
    a, b = (torch.bincount(pair + tokens, minlength=V * V).double() for tokens in (wanted, got))
    seen = (a + b) > 0
    statistic = ((a - b)[seen] ** 2 / (a + b)[seen]).sum().item()
    freedom = max(int(seen.sum()) - 1, 1)
    if statistic <= freedom + DEVIATIONS * (2 * freedom) ** 0.5 + DEVIATIONS**2:
        return None
    emitted = torch.bincount(got, minlength=V).double() / len(got)
    gap = (emitted - inputs["target_V"]).abs()
    if gap.max() > 0.02:
        token = int(gap.argmax())
        aim = inputs["target_V"][token]
        return f"token {token} comes out with frequency {emitted[token]:.3f}, and the target gives it {aim:.3f}"
    kept, possible = ((tokens == inputs["drafted_N"]).double().mean() for tokens in (got, wanted))
    return f"the tokens follow the target, but {kept:.3f} of the drafts are kept, and {possible:.3f} can be"


def reference(target_V, draft_V, drafted_N, uniforms_N2):
    accept_N = uniforms_N2[:, 0] * draft_V[drafted_N] < target_V[drafted_N]
    rest_V = (target_V - draft_V).clamp(min=0)
    edges_V = rest_V.cumsum(0) / rest_V.sum().clamp(min=1e-30)
    replaced_N = torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(rest_V) - 1)
    return torch.where(accept_N, drafted_N, replaced_N)


def by_rows(target_V, draft_V, drafted_N, uniforms_N2):
    rest_V = F.relu(target_V - draft_V)
    probabilities = (rest_V / rest_V.sum()).tolist() if rest_V.sum() > 0 else target_V.tolist()
    ratio = [min(1.0, t / d) if d > 0 else 1.0 for t, d in zip(target_V.tolist(), draft_V.tolist(), strict=True)]
    out = []
    for token, (first, second) in zip(drafted_N.tolist(), uniforms_N2.tolist(), strict=True):
        if first >= ratio[token]:
            token = max(v for v, p in enumerate(probabilities) if p > 0)
            for v, p in enumerate(probabilities):
                second -= p
                if second < 0:
                    token = v
                    break
        out.append(token)
    return torch.tensor(out)


def inverted_ratio(target_V, draft_V, drafted_N, uniforms_N2):
    accept_N = uniforms_N2[:, 0] * target_V[drafted_N] < draft_V[drafted_N]
    rest_V = (target_V - draft_V).clamp(min=0)
    edges_V = rest_V.cumsum(0) / rest_V.sum().clamp(min=1e-30)
    replaced_N = torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(rest_V) - 1)
    return torch.where(accept_N, drafted_N, replaced_N)


def resampled_from_target(target_V, draft_V, drafted_N, uniforms_N2):
    accept_N = uniforms_N2[:, 0] * draft_V[drafted_N] < target_V[drafted_N]
    edges_V = target_V.cumsum(0)
    replaced_N = torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(edges_V) - 1)
    return torch.where(accept_N, drafted_N, replaced_N)


def not_renormalised(target_V, draft_V, drafted_N, uniforms_N2):
    accept_N = uniforms_N2[:, 0] * draft_V[drafted_N] < target_V[drafted_N]
    edges_V = (target_V - draft_V).clamp(min=0).cumsum(0)
    replaced_N = torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(edges_V) - 1)
    return torch.where(accept_N, drafted_N, replaced_N)


def without_chance(target_V, draft_V, drafted_N, uniforms_N2):
    accept_N = target_V[drafted_N] >= draft_V[drafted_N]
    rest_V = (target_V - draft_V).clamp(min=0)
    edges_V = rest_V.cumsum(0) / rest_V.sum().clamp(min=1e-30)
    replaced_N = torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(rest_V) - 1)
    return torch.where(accept_N, drafted_N, replaced_N)


def ignores_the_draft(target_V, draft_V, drafted_N, uniforms_N2):
    edges_V = target_V.cumsum(0)
    return torch.searchsorted(edges_V, uniforms_N2[:, 1].contiguous(), right=True).clamp(max=len(edges_V) - 1)


EXERCISE = Exercise(
    id="07.9",
    unit="07",
    title="speculative acceptance",
    entry="accept_or_resample",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=5,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "inverted-ratio",
            inverted_ratio,
            "It looks like acceptance with draft over target. Keep a token with probability min(1, target / draft).",
        ),
        Misconception(
            "resampled-from-target",
            resampled_from_target,
            "It looks like a rejected token drawn again from the target. Draw from what the draft left over: "
            "max(target - draft, 0), scaled to sum to one.",
        ),
        Misconception(
            "not-renormalised",
            not_renormalised,
            "It looks like a draw from max(target - draft, 0) that does not sum to one: the last token gets the missing part.",
        ),
        Misconception(
            "without-chance",
            without_chance,
            "It looks like acceptance decided without chance. A token that the draft overrates is kept now and then.",
        ),
        Misconception(
            "ignores-the-draft",
            ignores_the_draft,
            "It looks like a draw from the target alone: the distribution is right, and nothing was gained from the draft.",
        ),
    ),
    alternatives=(by_rows,),
    hints=(
        "Two questions: with what probability is the drafted token kept, and what is drawn when it is not?",
        "Kept and replaced tokens together must give each token its target probability; write that sum down.",
        "Keep with min(1, target/draft) of the drafted token; otherwise draw from max(target - draft, 0) scaled to sum to one.",
    ),
)
