"""07.1: the loss of the multi-token modules: which position answers for which token (V3 report, section 2.2, equations 24 and 25)."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # modules, sequences, length, vocabulary, lengths of the documents of each sequence, dtype
    (1, 1, 5, 3, [[5]], torch.float32),
    (2, 2, 7, 6, [[7], [7]], torch.float32),
    (3, 2, 6, 5, [[2, 4], [1, 3, 2]], torch.float32),  # documents that are shorter than a module looks ahead
    (2, 1, 4, 4, [[2, 2]], torch.float32),  # nothing to predict
    (2, 3, 9, 40, [[4, 5], [9], [3, 3, 3]], torch.bfloat16),
    (4, 1, 3, 5, [[3]], torch.float32),  # modules that look further than the sequence is long
    (2, 2, 8, 6, [[5, 3], [2, 6]], torch.float32),  # NaN wherever nothing counts, and a document number 0
]
NAN = 7


def inputs(rng, number):
    if number == 0:  # the example of the text
        logits_MBSV = torch.zeros(2, 1, 5, 2)
        tokens_BS, document_BS = torch.tensor([[0, 1, 1, 0, 1]]), torch.tensor([[3, 3, 3, 3, 8]])
        for module, position in ((0, 0), (0, 1), (1, 0)):
            logits_MBSV[module, 0, position, 0] = [[1.0986123, 0.0], [1.3862944, 0.0]][module][position]
        return {"logits_MBSV": logits_MBSV, "tokens_BS": tokens_BS, "document_BS": document_BS, "weight": 0.3}
    if number <= len(EDGES):
        M, B, S, V, documents, dtype = EDGES[number - 1]
    else:
        M, B, S, V = (
            int(rng.integers(1, 4)),
            int(rng.integers(1, 4)),
            int(rng.integers(6, 14)),
            int(rng.integers(3, 12)),
        )
        dtype, documents = torch.float32, []
        for _ in range(B):
            cut = int(rng.integers(1, S))
            documents.append([cut, S - cut] if rng.integers(2) else [S])
    logits_MBSV = torch.tensor(2 * rng.standard_normal((M, B, S, V)), dtype=torch.float32).to(dtype)
    tokens_BS = torch.tensor(rng.integers(0, V, size=(B, S)))
    names = rng.permutation(2 if number == NAN else 100)
    rows = [torch.repeat_interleave(torch.tensor(names[: len(row)]), torch.tensor(row)) for row in documents]
    document_BS, weight = torch.stack(rows), float(rng.choice([0.1, 0.3, 0.5]))
    if number == NAN:
        for ahead, logits_BSV in enumerate(logits_MBSV, start=2):
            logits_BSV[:, S - ahead :] = torch.nan
            logits_BSV[:, : S - ahead][document_BS[:, ahead:] != document_BS[:, : S - ahead]] = torch.nan
    return {"logits_MBSV": logits_MBSV, "tokens_BS": tokens_BS, "document_BS": document_BS, "weight": weight}


def reference(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def one_by_one(logits_MBSV, tokens_BS, document_BS, weight):
    means = []
    for k, logits_BSV in enumerate(logits_MBSV.double(), start=1):
        found = []
        for row, tokens, documents in zip(logits_BSV, tokens_BS.tolist(), document_BS.tolist(), strict=True):
            for i in range(len(tokens) - k - 1):
                if documents[i + k + 1] == documents[i]:
                    found.append((row[i].logsumexp(0) - row[i, tokens[i + k + 1]]).item())
        means.append(sum(found) / len(found) if found else 0.0)
    return torch.tensor(means), torch.tensor(weight * sum(means) / len(means))


def one_too_near(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def one_too_far(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 2
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def all_alike(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = 2
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def across_documents(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = torch.ones_like(targets_BN, dtype=torch.bool)
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def border_checked_late(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, ahead - 1 : S - 1] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def next_token_checked(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, 1 : last + 1]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def over_all_positions(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / (B * S))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def over_possible_positions(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / max(B * last, 1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def mean_of_sequences(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append((nats_BN.where(counted_BN, 0).sum(1) / counted_BN.sum(1).clamp(min=1)).mean())
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def not_over_modules(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight * losses_M.sum()


def weight_forgotten(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, losses_M.sum() / M


def all_positions_pooled(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses, every, number = [], 0.0, 0
    for k in range(1, M + 1):
        last = max(S - k - 1, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, k + 1 :]
        counted_BN = document_BS[:, :last] == document_BS[:, k + 1 :]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
        every, number = every + nats_BN[counted_BN].sum(), number + counted_BN.sum()
    return torch.stack(losses), weight * every / number.clamp(min=1)


def empty_modules_left_out(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / max(int((losses_M > 0).sum()), 1) * losses_M.sum()


def masked_by_product(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last].float(), tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last)
        losses.append((nats_BN * counted_BN).sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def in_low_precision(logits_MBSV, tokens_BS, document_BS, weight):
    M, B, S = logits_MBSV.shape[:3]
    losses = []
    for k in range(1, M + 1):
        ahead = k + 1
        last = max(S - ahead, 0)
        logits_BNV, targets_BN = logits_MBSV[k - 1, :, :last], tokens_BS[:, ahead:]
        counted_BN = document_BS[:, :last] == document_BS[:, ahead:]
        nats_BN = (
            F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view(B, last).float()
        )
        losses.append(nats_BN[counted_BN].sum() / counted_BN.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / M * losses_M.sum()


def wraps_around(logits_MBSV, tokens_BS, document_BS, weight):
    losses = []
    for k, logits_BSV in enumerate(logits_MBSV.float(), start=1):
        targets_BS, theirs_BS = tokens_BS.roll(-k - 1, 1), document_BS.roll(-k - 1, 1)
        counted_BS = theirs_BS == document_BS
        nats_BS = F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten(), reduction="none").view_as(targets_BS)
        losses.append(nats_BS[counted_BS].sum() / counted_BS.sum().clamp(min=1))
    losses_M = torch.stack(losses)
    return losses_M, weight / len(losses_M) * losses_M.sum()


EXERCISE = Exercise(
    id="07.1",
    unit="07",
    title="loss of several tokens ahead",
    entry="mtp_loss",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("losses", "total"),
    misconceptions=(
        Misconception(
            "one-too-near",
            one_too_near,
            "It looks like module k held against the token k places ahead. The main head predicts the next token; "
            "module 1 the one after that: k + 1 places.",
        ),
        Misconception(
            "one-too-far",
            one_too_far,
            "It looks like module k held against the token k + 2 places ahead. Position i and module k stand for "
            "token i + k + 1.",
        ),
        Misconception(
            "all-alike",
            all_alike,
            "It looks like every module held against the same token, two places ahead. Each module looks one "
            "place further than the one before.",
        ),
        Misconception(
            "across-documents",
            across_documents,
            "It looks like predictions across the border of two documents. A position counts only where its "
            "target is in the same document.",
        ),
        Misconception(
            "border-checked-late",
            border_checked_late,
            "It looks like a border looked for between the last token read and the target alone. It may lie "
            "anywhere between the position and its target.",
        ),
        Misconception(
            "next-token-checked",
            next_token_checked,
            "It looks like a border looked for between the position and the token after it alone. It may lie "
            "anywhere between the position and its target.",
        ),
        Misconception(
            "over-all-positions",
            over_all_positions,
            "It looks like a sum divided by all positions. The last positions of a document predict nothing, and "
            "do not count.",
        ),
        Misconception(
            "over-possible-positions",
            over_possible_positions,
            "It looks like a mean in which predictions across borders count as zero. They do not count at all: "
            "divide by those that are left.",
        ),
        Misconception(
            "mean-of-sequences",
            mean_of_sequences,
            "It looks like a mean of the sequences' means. All counted positions of the batch weigh the same.",
        ),
        Misconception(
            "not-over-modules",
            not_over_modules,
            "It looks like weight times the sum over the modules. Divide by the number of modules (equation 25).",
        ),
        Misconception(
            "weight-forgotten",
            weight_forgotten,
            "It looks like the mean over the modules without its weight.",
        ),
        Misconception(
            "all-positions-pooled",
            all_positions_pooled,
            "It looks like one mean over the positions of all modules. Each module has a mean of its own, and the "
            "means weigh the same.",
        ),
        Misconception(
            "empty-modules-left-out",
            empty_modules_left_out,
            "It looks like a mean over those modules that have something to predict. A module with nothing to "
            "predict has loss 0 and counts.",
        ),
        Misconception(
            "masked-by-product",
            masked_by_product,
            "It looks like a mask that multiplies. Zero times NaN is NaN: where nothing counts the logits may be anything, so "
            "select what counts.",
        ),
        Misconception(
            "low-precision",
            in_low_precision,
            "It looks like a cross entropy in bfloat16. Widen the logits to float32 first.",
        ),
        Misconception(
            "wraps-around",
            wraps_around,
            "It looks like a roll: the last positions are held against the first tokens. They have no target and "
            "do not count.",
        ),
    ),
    alternatives=(one_by_one,),
    hints=(
        "Write down for module 1 and a sequence of five tokens which position is held against which token; then "
        "for module 2.",
        "Module k: logits without the last k + 1 positions, tokens without the first k + 1, documents of both "
        "compared.",
        "Cross entropy of each position, those selected where the documents are the same, summed, over their number "
        "(at least 1).",
    ),
)
