"""07.6: a row of guessed tokens, kept as far as the target allows (Leviathan et al. 2023, section 2.3, algorithm 1)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception


def inputs(rng, number):
    """No sum lies so near to `last`, and no u * q to p, that rounding decides."""
    if number == 0:  # the example of the text
        draft_NV = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.0, 0.8]], dtype=torch.float64)
        target_MV = torch.tensor([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4], [1.0, 0.0, 0.0]], dtype=torch.float64)
        uniforms_N = torch.tensor([0.3, 0.6], dtype=torch.float64)
        drafted_N = torch.tensor([0, 2])
        return case(draft_NV, target_MV, drafted_N, uniforms_N, 0.7)
    if (
        number == 1
    ):  # nothing but zeros: u is 0 where the target gives nothing, and last where its first token has nothing
        draft_NV = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
        target_MV = torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.25, 0.25]], dtype=torch.float64)
        return case(draft_NV, target_MV, torch.tensor([0]), torch.zeros(1, dtype=torch.float64), 0.0)
    V, N = int(rng.integers(3, 9)), int(rng.integers(1, 6))
    near = float(rng.uniform(0.3, 0.9))  # how much of the draft is the target's
    if number == 2:
        N = 0  # nothing was guessed
    if number == 3:
        N, near = 3, 1.0  # the draft is the target: all are kept
    if number in (7, 8):
        N = 1
    target = rng.dirichlet([1.5] * V, size=N + 1)
    draft = near * target[:N] + (1 - near) * rng.dirichlet([0.7] * V, size=N)
    if number in (4, 5):  # two models that always take their first choice
        N = 4
        target = torch.eye(V)[torch.tensor(rng.integers(0, V, size=N + 1))].double().numpy()
        draft = target[:N].copy()
        if number == 5:
            draft[2] = draft[2][[*range(1, V), 0]]
    drafted_N = torch.tensor([int(rng.choice(V, p=row / row.sum())) for row in draft], dtype=torch.int64)
    uniforms_N = torch.tensor(rng.uniform(size=N), dtype=torch.float64)
    refused = {6: 0, 7: 0, 9: N - 1}.get(number)  # the first, the only one, the last
    if refused is not None:
        uniforms_N[:refused] = 0.0
        drafted_N[refused] = int((torch.tensor(draft[refused]) / torch.tensor(target[refused])).argmax())
        uniforms_N[refused] = 0.999
    if number == 8:  # a single guess that is kept
        uniforms_N[0] = 0.0
    draft_NV, target_MV = torch.tensor(draft, dtype=torch.float64).reshape(N, V), torch.tensor(target)
    while True:
        values = case(draft_NV, target_MV, drafted_N, uniforms_N, float(rng.uniform(0, 0.999)))
        if refused is None or refused == 0 or reference(**values)[0][-1] != target_again(**values)[0][-1]:
            return values


def case(draft_NV, target_MV, drafted_N, uniforms_N, last):
    return {
        "draft_NV": draft_NV,
        "target_MV": target_MV,
        "drafted_N": drafted_N,
        "uniforms_N": uniforms_N,
        "last": last,
    }


def reference(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def step_by_step(draft_NV, target_MV, drafted_N, uniforms_N, last):
    tokens = []
    left = target_MV[-1].tolist()
    for place, (token, u) in enumerate(zip(drafted_N.tolist(), uniforms_N.tolist(), strict=True)):
        p, q = target_MV[place].tolist(), draft_NV[place].tolist()
        if u >= min(1.0, p[token] / q[token]):
            left = [max(0.0, theirs - ours) for theirs, ours in zip(p, q, strict=True)]
            break
        tokens.append(token)
    right, pointer = len(tokens), last * sum(left)
    for token, weight in enumerate(left):
        pointer -= weight
        if weight > 0:
            drawn = token
            if pointer < 0:
                break
    return torch.tensor([*tokens, drawn]), right


def inverted(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * p_N < q_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def target_again(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = target_MV[right]
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def not_scaled(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0)
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def goes_on(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    kept_N = uniforms_N * draft_NV[place_N, drafted_N] < target_MV[place_N, drafted_N]
    first = int(kept_N.long().cumprod(dim=0).sum())
    left_V = target_MV[first]
    if first < N:
        left_V = (left_V - draft_NV[first]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[kept_N], torch.tensor([drawn])]), int(kept_N.sum())


def without_chance(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (q_N <= p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def by_target_alone(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N = target_MV[place_N, drafted_N]
    kept_N = (uniforms_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def largest_alone(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    kept_N = (target_MV[:N].argmax(dim=1) == drafted_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def no_bonus(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    if right == N:
        return drafted_N, right
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def bonus_from_the_row_before(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[min(right, max(N - 1, 0))]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def counts_the_replacement(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right + 1


def rest_turned_round(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (draft_NV[right] - left_V).clamp(min=0)
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


def absolute_difference(draft_NV, target_MV, drafted_N, uniforms_N, last):
    N = len(drafted_N)
    place_N = torch.arange(N)
    p_N, q_N = target_MV[place_N, drafted_N], draft_NV[place_N, drafted_N]
    kept_N = (uniforms_N * q_N < p_N).long().cumprod(dim=0)
    right = int(kept_N.sum())
    left_V = target_MV[right]
    if right < N:
        left_V = (left_V - draft_NV[right]).abs()
    edges_V = left_V.cumsum(dim=0) / left_V.sum()
    drawn = min(int((edges_V <= last).sum()), len(left_V) - 1)
    return torch.cat([drafted_N[:right], torch.tensor([drawn])]), right


EXERCISE = Exercise(
    id="07.6",
    unit="07",
    title="speculative acceptance",
    entry="accept_guesses",
    points=10,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=16,
    reference=reference,
    compare=same("tokens", "right"),
    misconceptions=(
        Misconception(
            "inverted-ratio",
            inverted,
            "It looks like a guess kept with probability draft over target. It is kept with min(1, target / draft).",
        ),
        Misconception(
            "target-again",
            target_again,
            "It looks like a refused token replaced by a draw from the whole target. Draw from what the draft "
            "left over, max(target - draft, 0): else tokens that the draft likes come too often.",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like a draw from max(target - draft, 0) as it is. It does not add up to one: divide by its sum.",
        ),
        Misconception(
            "goes-on",
            goes_on,
            "It looks like guesses kept after one that was refused. They were made for a text that does not exist "
            "any more: stop at the first refusal.",
        ),
        Misconception(
            "without-chance",
            without_chance,
            "It looks like a guess kept only where the target likes it at least as much. One that the draft "
            "overrates is kept with probability target / draft.",
        ),
        Misconception(
            "by-target-alone",
            by_target_alone,
            "It looks like a guess kept with the target's probability alone. The draft has already chosen it with "
            "probability q: divide by that.",
        ),
        Misconception(
            "largest-alone",
            largest_alone,
            "It looks like a guess kept only if it is the target's first choice. That is the greedy rule; here "
            "whatever the target finds likely may stay.",
        ),
        Misconception(
            "no-bonus",
            no_bonus,
            "It looks like a row that was kept whole and brought nothing more. The target has computed one "
            "position further: draw one token from its last row.",
        ),
        Misconception(
            "bonus-from-the-row-before",
            bonus_from_the_row_before,
            "It looks like the additional token drawn from the row before the last. target_MV has a row more than "
            "there are guesses: it is the last one's.",
        ),
        Misconception(
            "counts-the-new-one",
            counts_the_replacement,
            "It looks like the drawn token counted as guessed right. Count the guesses that were kept.",
        ),
        Misconception(
            "rest-turned-round",
            rest_turned_round,
            "It looks like a draw from max(draft - target, 0). What is missing is where the target wants more "
            "than the draft gave.",
        ),
        Misconception(
            "absolute-difference",
            absolute_difference,
            "It looks like a draw from the absolute difference. Where the draft has more than the target, nothing "
            "is left over: 0.",
        ),
    ),
    alternatives=(step_by_step,),
    hints=(
        "Go along the guesses from the first. With what probability is one kept, and what happens behind one that "
        "is not?",
        "Keep while u * q < p, with p and q of the guessed token. The first refusal ends the row, and one token "
        "is drawn in its place.",
        "Draw from max(p - q, 0) of the refused row, or from the last row of the target if all were kept: scaled, "
        "summed up, compared with `last`.",
    ),
)
