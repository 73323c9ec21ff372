"""01.3: text to ids: special tokens, cuts, bytes, and merges in the order in which they were learned; and how many bytes
of text each id stands for."""

from course.checking.compare import kind
from course.checking.exercise import Exercise, Misconception
from course.exercises.u01 import _lists
from course.exercises.u01.merge import reference as merge_pair
from course.exercises.u01.train import reference as train_bpe

PATTERN = r" ?\w+| ?[^\w\s]+|\s+"
ABC = [[97, 98], [98, 99], [256, 99], [99, 100], [257, 259]]  # ab, bc, abc, cd, bccd
END = {"<end>": 300}
EDGES = [
    ("abc<end>ab", [[98, 99], [97, 98]], END),  # the lab's example
    ("bccd abc", [[98, 99], [99, 99], [256, 99], [99, 100], [257, 100]], {}),  # no specials; rank and length disagree
    ("<end><pad>ab<end>", ABC, {"<end>": 300, "<pad>": 301}),
    ("é<end>日本 é", [[195, 169], [230, 151], [32, 256], [257, 165]], END),  # a token may be part of a character
    ("", ABC, END),
    ("abab ab ababab", [[97, 98], [256, 256], [257, 256], [32, 257]], {}),
    ("ab <end", [[97, 98], [256, 32], [60, 101]], END),  # a merge that no piece allows; a special that is not one
]
LETTERS, RARE = ["a", "b", "c", "ab", "é"], ["ü", "日", ".", ",,", "7"]


def inputs(rng, number):
    if number < len(EDGES):
        text, merges, specials = EDGES[number]
        return {"text": text, "merges": [list(m) for m in merges], "pattern": PATTERN, "specials": dict(specials)}

    def words(count, letters):
        return [
            " " * int(rng.integers(2)) + "".join(rng.choice(letters, size=int(rng.integers(3, 9))))
            for _ in range(count)
        ]

    learned = {word: int(rng.integers(1, 9)) for word in words(25, LETTERS)}
    merges = train_bpe(learned, 256 + int(rng.integers(12, 35)), 1, False)
    specials = [{"<end>": 400}, {}, {"<end>": 400, "<|user|>": 401}][number % 3]
    parts = [
        *words(6, LETTERS),
        *words(2, [*LETTERS, *RARE]),
        *("  " + word.strip() for word in words(2, LETTERS)),
        "\n ",
        *specials,
    ]
    chosen = rng.choice(len(parts), size=int(rng.integers(8, 16)))
    return {"text": "".join(parts[i] for i in chosen), "merges": merges, "pattern": PATTERN, "specials": specials}


def reference(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    lengths = [1] * 256
    for left, right in merges:
        lengths.append(lengths[left] + lengths[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := rank.keys() & pairwise(word):
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [lengths[i] for i in word]
    return ids, sizes


def replaying_the_training(text, merges, pattern, specials):
    """Each merge once, in the order in which it was learned; specials found by hand."""
    import re

    spelled = {i: bytes([i]) for i in range(256)}
    ids, sizes, plain, at = [], [], "", 0

    def flush():
        for piece in re.finditer(pattern, plain):
            word = list(piece[0].encode())
            for new, pair in enumerate(merges, 256):
                word = merge_pair(word, pair, new)[0]
            ids.extend(word)
            sizes.extend(len(spelled[i]) for i in word)

    for new, (a, b) in enumerate(merges, 256):
        spelled[new] = spelled[a] + spelled[b]
    while at < len(text):
        special = next((name for name in specials if text.startswith(name, at)), None)
        if special is None:
            plain += text[at]
            at += 1
        else:
            flush()
            plain = ""
            ids.append(specials[special])
            sizes.append(0)
            at += len(special)
    flush()
    return ids, sizes


def first_from_the_left(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = known[0]
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def last_learned_first(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = max(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def most_frequent_first(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=lambda pair: (-known.count(pair), pair))
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def without_cuts(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in [part]:
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def specials_as_text(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def specials_have_bytes(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(len(part.encode()))
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def characters_counted(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i].decode(errors="ignore")) for i in word]
    return ids, sizes


def decoded_and_encoded(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while known := [pair for pair in pairwise(word) if pair in rank]:
                pair = min(known, key=rank.get)
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i].decode(errors="replace").encode()) for i in word]
    return ids, sizes


def longest_match(text, merges, pattern, specials):
    import re

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    number = {token: i for i, token in enumerate(spelled)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            rest = piece.encode()
            while rest:
                size = next(n for n in range(len(rest), 0, -1) if rest[:n] in number)
                ids.append(number[rest[:size]])
                sizes.append(size)
                rest = rest[size:]
    return ids, sizes


def one_pass(text, merges, pattern, specials):
    import re
    from itertools import pairwise

    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    rank = {tuple(pair): new for new, pair in enumerate(merges, 256)}
    ids, sizes = [], []
    for part in re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]:
        if part in specials:
            ids.append(specials[part])
            sizes.append(0)
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            for pair in sorted({pair for pair in pairwise(word) if pair in rank}, key=rank.get):
                word, _ = merge_pair(word, list(pair), rank[pair])
            ids += word
            sizes += [len(spelled[i]) for i in word]
    return ids, sizes


def compare(inputs, wanted, got):
    if not isinstance(got, list) or len(got) != 2:
        return f"returned {kind(got)}, wanted two lists: ids, sizes"
    if fault := _lists.no_numbers("ids", got[0]) or _lists.no_numbers("sizes", got[1]):
        return fault
    spelled = {byte: bytes([byte]) for byte in range(256)}
    for new, (left, right) in enumerate(inputs["merges"], 256):
        spelled[new] = spelled[left] + spelled[right]
    spelled |= {i: name.encode() for name, i in inputs["specials"].items()}

    def shown(i):
        return f"{i} ({repr(spelled[i])[1:] if i in spelled else 'no such id'})"

    difference = _lists.differ("ids", wanted[0], got[0], shown) or _lists.differ("sizes", wanted[1], got[1])
    return difference and f"{difference}\nfor text = {inputs['text']!r}"


EXERCISE = Exercise(
    id="01.3",
    unit="01",
    title="encode",
    entry="encode",
    points=15,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "longest-match",
            longest_match,
            "It looks like the longest token that fits, from left to right. BPE replays its merges, the earliest first.",
            "karpathy/llama2.c, pull request 171; openai/tiktoken, issue 99 expects it",
        ),
        Misconception(
            "first-from-the-left",
            first_from_the_left,
            "It looks like the first pair from the left that can merge. The one learned first goes first, wherever it stands.",
            "ztxz16/fastllm, pull request 715: merges applied left to right split more than half of the words differently",
        ),
        Misconception(
            "last-learned-first",
            last_learned_first,
            "It looks like the pair that was learned last going first. The earliest in `merges` goes first.",
        ),
        Misconception(
            "most-frequent-first",
            most_frequent_first,
            "It looks like counting pairs again, as in training. Encoding counts nothing: the order of `merges` is fixed.",
        ),
        Misconception(
            "one-pass",
            one_pass,
            "It looks like merging only the pairs of the bytes. A merge makes new neighbours: look again until no pair is in `merges`.",
        ),
        Misconception(
            "without-cuts",
            without_cuts,
            "It looks like merges that cross a cut. Cut with `pattern` first, and merge within each piece alone.",
            "rasbt/LLMs-from-scratch, issue 558: 'Hello,' encoded without a cut before the comma",
        ),
        Misconception(
            "specials-as-text",
            specials_as_text,
            "It looks like a special token cut and merged like text. Find the specials first: each is one id.",
            "gh-markt/cpp-tiktoken, issue 5: <|endoftext|> encoded as six tokens of text",
        ),
        Misconception(
            "specials-have-bytes",
            specials_have_bytes,
            "It looks like the bytes of a special token's name in `sizes`. A special stands for no text: 0.",
        ),
        Misconception(
            "characters-counted",
            characters_counted,
            "It looks like sizes in characters. Count bytes: é is one character and two bytes, and half of it is one byte.",
        ),
        Misconception(
            "decoded-and-encoded",
            decoded_and_encoded,
            "It looks like each token decoded and encoded again: part of a character becomes U+FFFD, three bytes. Count the token's own.",
            "karpathy/nanochat, pull request 693, and karpathy/autoresearch, pull request 385: bits per byte came out too low",
        ),
    ),
    alternatives=(replaying_the_training,),
    hints=(
        "Four layers, from outside in: specials, pieces, bytes, merges. Which of them needs to know about the others?",
        "re.split keeps what it splits at when its pattern is a group; without specials there is nothing to split at. "
        "Within a piece, look up each pair of neighbours in a dict from pair to new id.",
        "While some neighbours are in the dict, take the pair with the smallest id there and call merge_pair. For sizes keep a list of "
        "lengths: 256 ones, then for each merge the sum of its parts.",
    ),
    uses=("01.1",),
)
