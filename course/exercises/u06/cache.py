"""06.1: one step of attention with a rolling key-value cache whose rows hold sequences of different lengths."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

NAN = float("nan")
EDGES = [  # lengths, heads, room, width of a key, of a value, what lies in rows that were never written
    ([0, 5, 3], 2, 8, 4, 4, NAN),
    ([6, 4, 9], 1, 4, 3, 5, 0.0),  # just full, full, and further round
    ([7], 3, 7, 8, 2, NAN),
    ([0], 2, 1, 4, 3, NAN),  # room for one
    ([2, 2, 11, 5], 2, 5, 6, 6, 100.0),  # stale numbers
    ([2, 7], 2, 5, 16, 3, NAN),  # all scores near -16,384, exact, and far enough apart that no rounding shows
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "keys_BHMC": torch.tensor([[1.0, NAN, NAN], [1.0, 2.0, 3.0]]).view(2, 1, 3, 1),
            "values_BHMV": torch.tensor([[6.0, NAN, NAN], [1.0, 2.0, 9.0]]).view(2, 1, 3, 1),
            "lengths_B": torch.tensor([1, 4]),
            "q_BHC": torch.tensor([[[1.0]], [[0.0]]]),
            "k_BHC": torch.tensor([[[1.0]], [[2.0]]]),
            "v_BHV": torch.tensor([[[2.0]], [[5.0]]]),
        }
    if number <= len(EDGES):
        lengths, H, M, C, V, rest = EDGES[number - 1]
    else:
        B, H, M, C, V = (int(rng.integers(low, high)) for low, high in ((1, 5), (1, 4), (2, 9), (2, 9), (1, 9)))
        lengths = rng.integers(0, 3 * M, size=B).tolist()
        rest = float(rng.choice([NAN, 0.0, 3.0]))
    B = len(lengths)
    numbers = (rng.normal(size=shape) for shape in ((B, H, M, C), (B, H, M, V), (B, H, C), (B, H, C), (B, H, V)))
    keys, values, q, k, v = (torch.tensor(part, dtype=torch.float32) for part in numbers)
    if number == len(EDGES):
        keys, q, k = (0 * part for part in (keys, q, k))
        q[..., 0], keys[..., 0], k[..., 0] = -4096.0, 8.0, 8.0
        q[..., 1], keys[..., 1], k[..., 1] = 4.0, 32.0 * torch.tensor([2.0, 0.0, 4.0, 1.0, 3.0]), -32.0
    lengths_B = torch.tensor(lengths)
    never_BM = torch.arange(M) >= lengths_B[:, None]
    keys, values = (part.masked_fill(never_BM[:, None, :, None], rest) for part in (keys, values))
    return {
        "keys_BHMC": keys, "values_BHMV": values, "lengths_B": lengths_B, "q_BHC": 2 * q, "k_BHC": k, "v_BHV": v
    }  # fmt: skip


def reference(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    rows_B, slots_B = torch.arange(B), lengths_B % M
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[rows_B, :, slots_B] = k_BHC
    values_BHMV[rows_B, :, slots_B] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def row_by_row(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    M, out, keys, values = keys_BHMC.shape[2], [], [], []
    for row, length in enumerate(lengths_B.tolist()):
        slot, seen = length % M, min(length + 1, M)
        k_HMC = torch.cat([keys_BHMC[row, :, :slot], k_BHC[row][:, None], keys_BHMC[row, :, slot + 1 :]], dim=1)
        v_HMV = torch.cat([values_BHMV[row, :, :slot], v_BHV[row][:, None], values_BHMV[row, :, slot + 1 :]], dim=1)
        scores_HM = (k_HMC[:, :seen].double() @ q_BHC[row].double()[..., None]).squeeze(-1) * q_BHC.shape[-1] ** -0.5
        out.append((scores_HM.softmax(-1)[:, None] @ v_HMV[:, :seen].double()).squeeze(1).float())
        keys.append(k_HMC)
        values.append(v_HMV)
    return torch.stack(out), torch.stack(keys), torch.stack(values), lengths_B + 1


def by_where(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    M = keys_BHMC.shape[2]
    here_BM = torch.nn.functional.one_hot(lengths_B % M, M).bool()
    keys_BHMC = torch.where(here_BM[:, None, :, None], k_BHC[:, :, None], keys_BHMC)
    values_BHMV = torch.where(here_BM[:, None, :, None], v_BHV[:, :, None], values_BHMV)
    seen_BM = torch.arange(M) < (lengths_B + 1).clamp(max=M)[:, None]
    y_BHSV = torch.nn.functional.scaled_dot_product_attention(
        q_BHC[:, :, None], keys_BHMC.nan_to_num(), values_BHMV.nan_to_num(), seen_BM[:, None, None]
    )
    return y_BHSV[:, :, 0], keys_BHMC, values_BHMV, lengths_B + 1


def one_length_for_all(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    M, length = keys_BHMC.shape[2], int(lengths_B.max())
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[:, :, length % M] = k_BHC
    values_BHMV[:, :, length % M] = v_BHV
    seen = min(length + 1, M)
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC[:, :, :seen]) / q_BHC.shape[-1] ** 0.5
    y_BHV = torch.einsum("bhm,bhmv->bhv", scores_BHM.softmax(dim=-1), values_BHMV[:, :, :seen])
    return y_BHV, keys_BHMC, values_BHMV, lengths_B + 1


def sees_all_the_room(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    y_BHV = torch.einsum("bhm,bhmv->bhv", scores_BHM.softmax(dim=-1), values_BHMV)
    return y_BHV, keys_BHMC, values_BHMV, lengths_B + 1


def zero_times_nan(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, values_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def blind_to_itself(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    hidden_BM = torch.arange(M) >= lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def over_the_last(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    slots_B = (lengths_B - 1).clamp(min=0) % M
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, slots_B] = k_BHC
    values_BHMV[torch.arange(B), :, slots_B] = v_BHV
    hidden_BM = torch.arange(M) >= lengths_B.clamp(min=1)[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def stuck_when_full(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    slots_B = lengths_B.clamp(max=M - 1)
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, slots_B] = k_BHC
    values_BHMV[torch.arange(B), :, slots_B] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def moves_everything_up(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    full_B = (lengths_B >= M)[:, None, None, None]
    keys_BHMC = torch.where(full_B, keys_BHMC.roll(-1, 2), keys_BHMC)
    values_BHMV = torch.where(full_B, values_BHMV.roll(-1, 2), values_BHMV)
    slots_B = lengths_B.clamp(max=M - 1)
    keys_BHMC[torch.arange(B), :, slots_B] = k_BHC
    values_BHMV[torch.arange(B), :, slots_B] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def forgets_after_a_round(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    slots_B = lengths_B % M
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, slots_B] = k_BHC
    values_BHMV[torch.arange(B), :, slots_B] = v_BHV
    hidden_BM = torch.arange(M) > slots_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def length_stops_at_the_room(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    y_BHV = torch.einsum("bhm,bhmv->bhv", weights_BHM, values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0))
    return y_BHV, keys_BHMC, values_BHMV, (lengths_B + 1).clamp(max=M)


def not_scaled(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC)
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B + 1


def same_lengths_returned(keys_BHMC, values_BHMV, lengths_B, q_BHC, k_BHC, v_BHV):
    B, M = len(lengths_B), keys_BHMC.shape[2]
    keys_BHMC, values_BHMV = keys_BHMC.clone(), values_BHMV.clone()
    keys_BHMC[torch.arange(B), :, lengths_B % M] = k_BHC
    values_BHMV[torch.arange(B), :, lengths_B % M] = v_BHV
    hidden_BM = torch.arange(M) > lengths_B[:, None]
    scores_BHM = torch.einsum("bhc,bhmc->bhm", q_BHC, keys_BHMC) / q_BHC.shape[-1] ** 0.5
    weights_BHM = scores_BHM.masked_fill(hidden_BM[:, None], float("-inf")).softmax(dim=-1)
    written_BHMV = values_BHMV.masked_fill(hidden_BM[:, None, :, None], 0.0)
    return torch.einsum("bhm,bhmv->bhv", weights_BHM, written_BHMV), keys_BHMC, values_BHMV, lengths_B.clone()


EXERCISE = Exercise(
    id="06.1",
    unit="06",
    title="a rolling cache",
    entry="cache_step",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("y", "keys", "values", "lengths"),
    misconceptions=(
        Misconception(
            "one-length-for-all",
            one_length_for_all,
            "It looks like one length for the whole batch. Each row has its own: its own slot to write, its own "
            "positions to see.",
            "unslothai/unsloth pull request 3795: one position for all rows of a padded batch",
        ),
        Misconception(
            "sees-all-the-room",
            sees_all_the_room,
            "It looks like a softmax over the whole room. Slots that were never written hold anything; a row sees "
            "min(length + 1, M) of them.",
            "rajveer43/VeloxQuant-MLX pull request 364: padding of zeros that took its share of the softmax",
        ),
        Misconception(
            "zero-times-nan",
            zero_times_nan,
            "It looks like NaN from slots that nobody wrote. A weight of zero does not silence it: 0 * NaN is NaN, so "
            "take such values out of the sum as well.",
        ),
        Misconception(
            "blind-to-itself",
            blind_to_itself,
            "It looks like a new position that does not see itself. It is appended first, then length + 1 slots are seen.",
        ),
        Misconception(
            "over-the-last",
            over_the_last,
            "It looks like the newest position written over the one before. Counted from 0, the free slot is "
            "length % M, not length - 1.",
        ),
        Misconception(
            "stuck-when-full",
            stuck_when_full,
            "It looks like a full cache that goes on writing its last slot. It rolls: slot length % M, where the oldest "
            "position lies.",
        ),
        Misconception(
            "moves-everything-up",
            moves_everything_up,
            "It looks like a full cache moved up by one, with the new position at the end. Nothing moves: the oldest "
            "slot, length % M, is written over.",
        ),
        Misconception(
            "forgets-after-a-round",
            forgets_after_a_round,
            "It looks like a cache that sees only the slots up to the one just written. After the first round all M "
            "slots hold positions.",
        ),
        Misconception(
            "length-stops-at-the-room",
            length_stops_at_the_room,
            "It looks like lengths that stop at M. A length counts all positions ever appended; from it the next slot "
            "is found.",
        ),
        Misconception(
            "not-scaled",
            not_scaled,
            "It looks like scores without a scale. Divide them by sqrt(C), the square root of a key's width.",
        ),
        Misconception(
            "same-lengths-returned",
            same_lengths_returned,
            "It looks like lengths returned as they came. Every row has one position more now.",
        ),
    ),
    alternatives=(row_by_row, by_where),
    hints=(
        "Three things depend on the row: where it writes, what it may see, and what of the cache is garbage.",
        "Copy the cache, write at slot lengths % M with two index tensors; slot m is seen when m <= length (when full: always).",
        "keys[torch.arange(B), :, lengths % M] = k on a clone; scores of hidden slots to -inf and their *values* to 0.",
    ),
)
