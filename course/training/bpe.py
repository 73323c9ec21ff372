"""Byte-pair encoding: start from bytes, and again and again merge the most frequent pair of neighbours (Sennrich et
al. 2016; on bytes, as in the GPT-2 report, section 2.2).

Text is first cut into pieces, and no merge crosses a cut. A *piece* is bytes; ids 0 to 255 are the bytes themselves and
every merge adds the next id.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Pair = tuple[int, int]

SPACE, WORD, DIGIT = " \\t\\n\\r\\f\\v", "A-Za-z_\u0080-\u00ff", "0-9"
PATTERN = (
    f" ?[{WORD}]+"  # a word or identifier, with the blank before it; bytes above 127 count as letters
    f"| ?[{DIGIT}]{{1,3}}"  # up to three digits
    f"| ?[^{SPACE}{WORD}{DIGIT}]+"  # punctuation
    f"|[{SPACE}]+(?![^{SPACE}])"  # blanks, but for the last one before a word
    f"|[{SPACE}]+"
)
_PIECE = re.compile(PATTERN)


def pieces(data: bytes) -> list[bytes]:
    """Cut before words, numbers, punctuation and runs of blanks. Joined, the pieces are the data again.

    Bytes are matched as the characters U+0000 to U+00FF, so that any engine that knows character classes cuts alike.
    """
    return [piece.encode("latin-1") for piece in _PIECE.findall(data.decode("latin-1"))]


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replace every occurrence of the pair by `new`, from left to right: of three equal ids the first two merge."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train(texts: Iterable[bytes], size: int) -> list[Pair]:
    """Learn merges until there are `size` different tokens, or nothing is left to merge.

    The most frequent pair goes first; of equally frequent ones, that with the smaller ids. Occurrences may overlap in
    the count (three equal ids hold two pairs). Two merges may spell the same token; they share its id.
    """
    counts = Counter(piece for text in texts for piece in pieces(text))
    weights, words = list(counts.values()), [list(piece) for piece in counts]
    frequency, places = Counter(), defaultdict(set)
    for w, ids in enumerate(words):
        for pair in pairwise(ids):
            frequency[pair] += weights[w]
            places[pair].add(w)
    queue = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(queue)

    merges: list[Pair] = []
    tokens = [bytes([byte]) for byte in range(256)]
    ids_of = {token: i for i, token in enumerate(tokens)}
    while len(tokens) < size and queue:
        count, pair = heapq.heappop(queue)
        if -count != frequency[pair] or not count:
            continue  # the count has changed since, and a newer entry is in the queue
        token = tokens[pair[0]] + tokens[pair[1]]
        if token not in ids_of:
            ids_of[token] = len(tokens)
            tokens.append(token)
        merges.append(pair)
        changed = set()
        for w in places.pop(pair):
            before, words[w] = words[w], merge(words[w], pair, ids_of[token])
            for old in pairwise(before):
                frequency[old] -= weights[w]
                changed.add(old)
            for new in pairwise(words[w]):
                frequency[new] += weights[w]
                places[new].add(w)
                changed.add(new)
        for other in changed:
            heapq.heappush(queue, (-frequency[other], other))
    return merges


def encode_piece(piece: bytes, ranks: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Apply the merges to one piece, the earliest learned first. `ranks`: pair -> (when it was learned, its id)."""
    ids = list(piece)
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: ranks.get(pair, (len(ranks), 0)))
        if pair not in ranks:
            break
        ids = merge(ids, pair, ranks[pair][1])
    return ids
