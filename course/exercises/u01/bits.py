"""01.5: bits for each byte of text, over several documents: the loss that does not depend on the tokenizer."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # nats of each token, its document, the texts; the last token of a document is its end
    ([2.0, 1.0, 0.5, 3.0, 0.25], [0, 0, 0, 1, 1], ["abcd", "é"]),  # the lab's example
    ([1.5, 0.75], [0, 0], ["x = 1\n"]),
    ([2.0, 1.0, 4.0, 0.5, 0.5, 1.0], [1, 0, 1, 2, 0, 1], ["日本", "ab", ""]),  # mixed up, and one is empty
    ([0.0, 0.0, 1.0, 0.0], [0, 0, 1, 2], ["sure", "🙂", ""]),  # an end may cost nothing
]
TEXTS = ["def f(x):\n    return x\n", "größer", "日本語", "a", "", "naïve café", "🙂🙂", "import math\n" * 3, "Ελλάδα"]


def inputs(rng, number):
    if number < len(EDGES):
        nats, documents, texts = EDGES[number]
        return {
            "nats_N": torch.tensor(nats),
            "document_N": torch.tensor(documents),
            "texts": list(texts),
        }
    texts = [str(text) for text in rng.choice(TEXTS, size=int(rng.integers(2, 8)))]
    texts[0] = TEXTS[int(rng.integers(2))]  # at least one has bytes
    sizes = [1 + int(rng.integers(len(text.encode()) + 1)) for text in texts]
    document_N = torch.tensor([document for document, size in enumerate(sizes) for _ in range(size)])
    if number % 2:
        document_N = document_N[torch.tensor(rng.permutation(len(document_N)))]
    return {
        "nats_N": torch.tensor(rng.exponential(2.0, size=len(document_N)), dtype=torch.float32),
        "document_N": document_N,
        "texts": texts,
    }


def reference(nats_N, document_N, texts):
    sizes = torch.tensor([len(text.encode()) for text in texts])
    bits = torch.zeros(len(texts)).index_add(0, document_N, nats_N) / math.log(2)
    each = torch.where(sizes > 0, bits / sizes, math.inf)
    return (bits.sum() / sizes.sum()).item(), each.tolist()


def token_by_token(nats_N, document_N, texts):
    cost = {document: 0.0 for document in range(len(texts))}
    for nats, document in zip(nats_N.tolist(), document_N.tolist(), strict=True):
        cost[document] -= math.log2(math.exp(-nats))
    size = {document: sum(1 for _ in bytearray(text, "utf-8")) for document, text in enumerate(texts)}
    each = [cost[d] / size[d] if size[d] > 0 else float("inf") for d in cost]
    return sum(cost.values()) / sum(size.values()), each


def mean_of_the_documents(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(each) / len(each), each


def characters(nats_N, document_N, texts):
    sizes = [len(text) for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def in_nats(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [nats_N[document_N == d].sum().item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def multiplied(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].sum() * math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def per_token(nats_N, document_N, texts):
    sizes = [int((document_N == d).sum()) for d in range(len(texts))]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def ends_for_free(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d][:-1].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def a_byte_for_the_end(nats_N, document_N, texts):
    sizes = [len(text.encode()) + 1 for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def empty_ones_left_out(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(cost for cost, size in zip(bits, sizes, strict=True) if size) / sum(sizes), each


def empty_ones_are_free(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else 0.0 for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


def share_of_the_text(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].sum() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size / 8 if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes) / 8, each


def mean_nats(nats_N, document_N, texts):
    sizes = [len(text.encode()) for text in texts]
    bits = [(nats_N[document_N == d].mean() / math.log(2)).item() for d in range(len(texts))]
    each = [cost / size if size else math.inf for cost, size in zip(bits, sizes, strict=True)]
    return sum(bits) / sum(sizes), each


EXERCISE = Exercise(
    id="01.5",
    unit="01",
    title="bits per byte",
    entry="bits_per_byte",
    points=10,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("overall", "each"),
    misconceptions=(
        Misconception(
            "mean-of-the-documents",
            mean_of_the_documents,
            "It looks like the mean of the documents' figures. Then a line weighs as much as a book: divide all bits by all bytes.",
            "allenai/olmo-eval, pull request 280 discusses both",
        ),
        Misconception(
            "characters",
            characters,
            "It looks like bits for each character. Count the bytes of the text in UTF-8: é has two, 日 has three.",
            "facebookresearch/adaptive-span, issue 17: figures for bytes reported as figures for characters",
        ),
        Misconception(
            "in-nats",
            in_nats,
            "It looks like nats where bits are wanted. A bit is ln 2 nats: divide by it.",
            "EleutherAI/lm-evaluation-harness, pull request 242",
        ),
        Misconception(
            "multiplied",
            multiplied,
            "It looks like a multiplication with ln 2. A nat is more than a bit, 1.44 of them: divide by ln 2.",
        ),
        Misconception(
            "per-token",
            per_token,
            "It looks like bits for each token. That number depends on the tokenizer; divide by the bytes of the text.",
        ),
        Misconception(
            "ends-for-free",
            ends_for_free,
            "It looks like the end tokens left out of the cost. A model has to say where a text ends as well: their nats count.",
            "thinking-machines-lab/tinker-cookbook, pull request 824 leaves special tokens out on both sides, by choice",
        ),
        Misconception(
            "a-byte-for-the-end",
            a_byte_for_the_end,
            "It looks like a byte counted for each end token. Only the text has bytes.",
        ),
        Misconception(
            "empty-ones-left-out",
            empty_ones_left_out,
            "It looks like the cost of empty documents left out of `overall`. They have no bytes, but their end tokens cost bits.",
        ),
        Misconception(
            "empty-ones-are-free",
            empty_ones_are_free,
            "It looks like 0 for an empty document. Its end costs bits and it has no byte: math.inf.",
        ),
        Misconception(
            "share-of-the-text",
            share_of_the_text,
            "It looks like bits over bits, the share of its size that a text shrinks to. Wanted are bits a byte: do not divide by 8.",
        ),
        Misconception(
            "mean-nats",
            mean_nats,
            "It looks like a mean of nats divided by bytes. Sum the nats: a document costs all its tokens together.",
        ),
    ),
    alternatives=(token_by_token,),
    hints=(
        "Two sums for each document: what its tokens cost, and how many bytes its text has. Then two sums over all documents.",
        "One nat is 1 / ln 2 bits. index_add, or a loop with document_N == d, sums a document's tokens; text.encode() gives its bytes.",
        "overall is the sum of all bits over the sum of all bytes, never a mean of `each`; `each` has math.inf where there are no bytes.",
    ),
)
