"""01.2: learn merges from weighted pieces, with a tie rule, a lowest frequency, and digits that stay alone (BPE on bytes:
GPT-2 report, section 2.2; single digits: LLaMA, section 2.1; `min_frequency` in the tokenizers library)."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u01 import _lists
from course.exercises.u01.merge import reference as merge_pair

EDGES = [
    ({"ab": 3, "abc": 2, "bc": 4}, 258, 1, False),  # the lab's example
    ({"xy": 2, "ba": 2, "ab": 2, "yz": 1}, 260, 2, False),  # ties, and a pair too rare
    ({"x10": 5, " 10": 4, "100": 3, "ab": 2, "x": 9}, 262, 2, True),  # the most frequent pairs hold digits
    ({"aaa": 3, "bab": 5}, 261, 3, False),  # overlaps
    ({"größe": 3, " größe": 2, "日本": 2, "é": 6}, 264, 1, False),  # more bytes than characters
    ({}, 300, 1, False),
    ({"ab": 3, "a": 2}, 256, 1, True),  # no room
    ({"7a7a": 3, "7": 5}, 300, 1, True),  # nothing is left to merge
]
SYLLABLES = ["ab", "ba", "aab", "b", "c", "ca", "10", "1", "2", "é", " "]


def inputs(rng, number):
    if number < len(EDGES):
        pieces, size, at_least, single_digits = EDGES[number]
        return {"pieces": dict(pieces), "size": size, "at_least": at_least, "single_digits": single_digits}
    pieces = {}
    for _ in range(int(rng.integers(5, 30))):
        piece = "".join(rng.choice(SYLLABLES, size=int(rng.integers(1, 5))))
        pieces[piece] = int(rng.integers(1, 6))
    return {
        "pieces": pieces,
        "size": int(rng.integers(262, 285)),
        "at_least": int(rng.choice([1, 2, 5])),
        "single_digits": bool(rng.integers(2)),
    }


def reference(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, weights = [list(piece.encode()) for piece in pieces], list(pieces.values())
    alone = set(b"0123456789") if single_digits else set()
    counts, merges = Counter(), []
    for w, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += weights[w]
    while 256 + len(merges) < size:
        allowed = [pair for pair, count in counts.items() if count >= at_least and not alone.intersection(pair)]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-counts[pair], pair))
        for w, word in enumerate(words):
            if best in pairwise(word):
                words[w], changes = merge_pair(word, list(best), 256 + len(merges))
                for left, right, change in changes:
                    counts[left, right] += change * weights[w]
        merges.append(list(best))
    return merges


def counting_anew(pieces, size, at_least, single_digits):
    spelled = {i: bytes([i]) for i in range(256)}
    words = {tuple(piece.encode()): weight for piece, weight in pieces.items()}
    merges = []
    for new in range(256, size):
        counts = {}
        for word, weight in words.items():
            for i in range(len(word) - 1):
                counts[word[i : i + 2]] = counts.get(word[i : i + 2], 0) + weight
        ranked = sorted(counts, key=lambda two: (-counts[two], two))
        digits = [any(48 <= byte <= 57 for byte in spelled[a] + spelled[b]) for a, b in ranked]
        ranked = [two for two, digit in zip(ranked, digits, strict=True) if not (digit and single_digits)]
        if not ranked or counts[ranked[0]] < at_least:
            return merges
        a, b = ranked[0]
        merges.append((a, b))
        spelled[new] = spelled[a] + spelled[b]
        words = {tuple(merge_pair(list(word), [a, b], new)[0]): weight for word, weight in words.items()}
    return merges


def weights_left_out(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for word in words.values():
            for pair in pairwise(word):
                counts[pair] += 1
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def characters(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(map(ord, piece)) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def size_in_merges(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def above_at_least(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] <= at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def rare_pairs_too(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def ties_to_the_first_seen(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted((pair for pair in counts if not digits.intersection(pair)), key=lambda pair: -counts[pair])
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def ties_to_the_larger(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)),
            key=lambda pair: (-counts[pair], -pair[0], -pair[1]),
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def digits_merged(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def only_two_digits(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(
            (pair for pair in counts if not digits.issuperset(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def stops_at_a_digit(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        ranked = sorted(counts, key=lambda pair: (-counts[pair], pair))
        if not ranked or counts[ranked[0]] < at_least or digits.intersection(ranked[0]):
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def ties_by_spelling(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    spelled = [bytes([byte]) for byte in range(256)]
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += pieces[piece]
        allowed = [pair for pair in counts if not digits.intersection(pair) and counts[pair] >= at_least]
        if not allowed:
            break
        a, b = max(allowed, key=lambda pair: (counts[pair], spelled[pair[0]], spelled[pair[1]]))
        merges.append([a, b])
        spelled.append(spelled[a] + spelled[b])
        words = {piece: merge_pair(word, [a, b], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def one_for_each_merge(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    words, merges = {piece: list(piece.encode()) for piece in pieces}, []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter()
        for piece, word in words.items():
            for pair in set(pairwise(word)):
                counts[pair] += pieces[piece] * merge_pair(word, list(pair), -1)[0].count(-1)
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        words = {piece: merge_pair(word, merges[-1], 255 + len(merges))[0] for piece, word in words.items()}
    return merges


def across_the_cuts(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    ids, merges = list("".join(piece * count for piece, count in pieces.items()).encode()), []
    digits = set(b"0123456789") if single_digits else set()
    while 256 + len(merges) < size:
        counts = Counter(pairwise(ids))
        ranked = sorted(
            (pair for pair in counts if not digits.intersection(pair)), key=lambda pair: (-counts[pair], pair)
        )
        if not ranked or counts[ranked[0]] < at_least:
            break
        merges.append(list(ranked[0]))
        ids, _ = merge_pair(ids, merges[-1], 255 + len(merges))
    return merges


def counted_once(pieces, size, at_least, single_digits):
    from collections import Counter
    from itertools import pairwise

    digits = set(b"0123456789") if single_digits else set()
    counts = Counter()
    for piece, count in pieces.items():
        for pair in pairwise(piece.encode()):
            counts[pair] += count
    allowed = [pair for pair in counts if counts[pair] >= at_least and not digits.intersection(pair)]
    return [list(pair) for pair in sorted(allowed, key=lambda pair: (-counts[pair], pair))[: size - 256]]


def compare(inputs, wanted, got):
    if fault := _lists.no_rows("merges", got, 2):
        return same()(inputs, wanted, None) if got is None else fault

    spelled = {byte: bytes([byte]) for byte in range(256)}
    for new, pair in enumerate(wanted, 256):
        spelled[new] = b"".join(spelled.get(i, b"?") for i in pair)

    def shown(pair):
        return f"{pair} ({' + '.join(repr(spelled[i])[1:] if i in spelled else 'no token yet' for i in pair)})"

    difference = _lists.differ("merges", wanted, got, shown)
    few = f"\nfor pieces = {inputs['pieces']}" if len(inputs["pieces"]) <= 6 else ""
    return difference and difference + few


EXERCISE = Exercise(
    id="01.2",
    unit="01",
    title="train BPE",
    entry="train_bpe",
    points=15,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "weights-left-out",
            weights_left_out,
            "It looks like every piece counted once. A pair is seen as often as the pieces that hold it: add the piece's count.",
        ),
        Misconception(
            "characters",
            characters,
            "It looks like BPE on characters. Start from bytes, piece.encode(): é is two of them, and ids below 256 are bytes.",
        ),
        Misconception(
            "size-in-merges",
            size_in_merges,
            "It looks like `size` merges. `size` counts all ids, and 256 of them are there before the first merge.",
            "rasbt/LLMs-from-scratch, issue 619: how many merges a vocabulary of 1,000 has",
        ),
        Misconception(
            "above-at-least",
            above_at_least,
            "It looks like a pair seen exactly `at_least` times being left. At least means that it may still merge.",
        ),
        Misconception(
            "rare-pairs-too",
            rare_pairs_too,
            "It looks like merging on when pairs have become rare. Stop when the best pair is seen fewer than `at_least` times.",
        ),
        Misconception(
            "ties-to-the-first-seen",
            ties_to_the_first_seen,
            "It looks like ties going to the pair met first in the text. Then the order of the files decides; here the smaller ids win.",
            "karpathy/minbpe, pull request 90: max over a dict of counts makes the vocabulary depend on the order of the text",
        ),
        Misconception(
            "ties-to-the-larger",
            ties_to_the_larger,
            "It looks like ties going to the larger ids. The smaller left id wins, then the smaller right id.",
        ),
        Misconception(
            "ties-by-spelling",
            ties_by_spelling,
            "It looks like ties settled by what the tokens spell. Here ids decide, the smaller ones, whatever they stand for.",
        ),
        Misconception(
            "digits-merged",
            digits_merged,
            "It looks like digits merging although `single_digits` is set. Then no pair that holds a digit is merged.",
        ),
        Misconception(
            "only-two-digits",
            only_two_digits,
            "It looks like digits kept from each other alone. With `single_digits` a digit merges with nothing, no blank or letter either.",
        ),
        Misconception(
            "stops-at-a-digit",
            stops_at_a_digit,
            "It looks like the training ending at the first pair with a digit. Pass it over, and take the best of the others.",
        ),
        Misconception(
            "one-for-each-merge",
            one_for_each_merge,
            "It looks like overlapping occurrences counted once. As in 01.1, 'aaa' holds the pair (a, a) twice.",
            "karpathy/minbpe, pull request 72 proposes this count, and SentencePiece uses it",
        ),
        Misconception(
            "across-the-cuts",
            across_the_cuts,
            "It looks like the pieces joined to one text. No pair reaches from one piece into the next.",
        ),
        Misconception(
            "counted-once",
            counted_once,
            "It looks like one count for all merges. A merge changes the counts, and new pairs begin with the new id: count again.",
            "karpathy/minbpe, issue 95: several of the most frequent pairs merged in one round, to save time",
        ),
    ),
    alternatives=(counting_anew,),
    hints=(
        "Three steps again and again: count the pairs, choose one, merge it in every piece. What ends the loop?",
        "First leave out what may not merge. Then choose with min and a key of two parts: the count, more being smaller, and the pair.",
        "merge_pair(word, pair, new) gives the piece anew, with new = 256 + the merges so far. Counting from nothing each round is fine.",
    ),
    uses=("01.1",),
)
