"""01.1: merge one pair, and say what that does to the counts of pairs (Sennrich et al. 2016, section 3.2)."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u01 import _lists

EDGES = [
    ([1, 2, 3, 1, 2], [1, 2], 9),  # the lab's example
    ([5, 5, 5, 5, 5, 7], [5, 5], 256),  # an odd run
    ([11, 2, 1, 2, 21, 12, 2, 1], [1, 2], 300),  # numbers that hold other numbers' digits, and the pair turned round
    ([3, 4, 3, 4], [4, 4], 256),  # nothing to merge
    ([], [1, 2], 256),
    ([8, 8], [8, 8], 256),
    ([8], [8, 8], 256),
]


def inputs(rng, number):
    if number < len(EDGES):
        ids, pair, new = EDGES[number]
        return {"ids": list(ids), "pair": list(pair), "new": new}
    alphabet = [int(byte) for byte in rng.integers(97, 123, size=int(rng.integers(2, 5)))] + [256, 257]
    ids = [int(i) for i in rng.choice(alphabet, size=int(rng.integers(6, 40)))]
    place = int(rng.integers(len(ids) - 1))
    pair = [ids[place]] * 2 if rng.random() < 0.4 else ids[place : place + 2]
    if rng.random() < 0.5:
        ids[place : place + 2] = pair * int(rng.integers(1, 4))
    return {"ids": ids, "pair": pair, "new": int(rng.integers(258, 1000))}


def reference(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def with_a_stack(ids, pair, new):
    merged = []
    for i in ids:
        merged.append(i)
        if merged[-2:] == list(pair):
            merged[-2:] = [new]
    change = {}
    for row, sign in ((ids, -1), (merged, 1)):
        for k in range(1, len(row)):
            change[row[k - 1], row[k]] = change.get((row[k - 1], row[k]), 0) + sign
    return merged, [(*key, change[key]) for key in sorted(change) if change[key] != 0]


def around_each_merge(ids, pair, new):
    """Only the neighbourhood of a merge is looked at, as a trainer in a hurry does."""
    begun, i = set(), 0
    while i + 1 < len(ids):
        if (ids[i], ids[i + 1]) == tuple(pair):
            begun.add(i)
            i += 1
        i += 1
    gone = {i + 1 for i in begun}
    stays = [i for i in range(len(ids)) if i not in gone]
    merged = [new if i in begun else ids[i] for i in stays]
    change = {}
    for i in range(1, len(ids)):
        if {i - 1, i} & (begun | gone):
            change[ids[i - 1], ids[i]] = change.get((ids[i - 1], ids[i]), 0) - 1
    for k in range(1, len(stays)):
        if {stays[k - 1], stays[k]} & begun:
            change[merged[k - 1], merged[k]] = change.get((merged[k - 1], merged[k]), 0) + 1
    return merged, [[*key, by] for key, by in sorted(change.items()) if by]


def second_id_stays(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        merged.append(new if ids[i : i + 2] == pair else ids[i])
        i += 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def a_run_is_one(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    here = [list(two) == pair for two in pairwise(ids)] + [False]
    merged = [new if here[i] else ids[i] for i in range(len(ids)) if i == 0 or not here[i - 1]]
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def from_the_right(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], len(ids) - 1
    while i >= 0:
        here = i > 0 and ids[i - 1 : i + 1] == pair
        merged.insert(0, new if here else ids[i])
        i -= 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def first_one_only(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    at = next((i for i, two in enumerate(pairwise(ids)) if list(two) == pair), None)
    merged = list(ids) if at is None else [*ids[:at], new, *ids[at + 2 :]]
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def either_order(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = sorted(ids[i : i + 2]) == sorted(pair)
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def digits_glued(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    text = " ".join(map(str, ids)).replace(f"{pair[0]} {pair[1]}", str(new))
    merged = [int(number) for number in text.split()]
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def neighbours_forgotten(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter({two: n for two, n in Counter(pairwise(merged)).items() if new in two})
    change[tuple(pair)] -= Counter(pairwise(ids))[tuple(pair)]
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def only_what_goes(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count < 0]


def one_for_each_merge(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    change[tuple(pair)] = -merged.count(new)
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def before_minus_after(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(ids))
    change.subtract(Counter(pairwise(merged)))
    return merged, [[*pair, count] for pair, count in sorted(change.items()) if count]


def zeros_kept(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    change = Counter(pairwise(merged))
    change.subtract(Counter(pairwise(ids)))
    return merged, [[*pair, count] for pair, count in sorted(change.items())]


def counts_afterwards(ids, pair, new):
    from collections import Counter
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        here = list(ids[i : i + 2]) == list(pair)  # later exercises may call it with tuples
        merged.append(new if here else ids[i])
        i += 2 if here else 1
    return merged, [[*pair, count] for pair, count in sorted(Counter(pairwise(merged)).items())]


def compare(inputs, wanted, got):
    if not isinstance(got, list) or len(got) != 2:
        return same("merged", "changes")(inputs, wanted, got)
    if fault := _lists.no_numbers("merged", got[0]) or _lists.no_rows("changes", got[1], 3):
        return fault
    difference = _lists.differ("merged", wanted[0], got[0]) or _changes(wanted[1], got[1])
    return difference and f"{difference}\nfor ids = {inputs['ids']}"


def _changes(wanted, got):
    if wanted == got:
        return None
    right, returned = ({(left, right): by for left, right, by in rows} for rows in (wanted, got))
    for pair in sorted({*right, *returned}):
        said = [f"{found[pair]:+d}" if pair in found else "no entry" for found in (right, returned)]
        if said[0] != said[1]:
            return f"changes: for the pair {list(pair)} wanted {said[0]}, got {said[1]}"
    if len(got) > len(wanted):
        return "changes: some pair is listed twice"
    return "changes: the right ones, in another order; sort them by pair, the left id first"


EXERCISE = Exercise(
    id="01.1",
    unit="01",
    title="one merge",
    entry="merge_pair",
    points=10,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "second-id-stays",
            second_id_stays,
            "It looks like a merge that replaces the left id and keeps the right one. Both are used up: go on two places further.",
        ),
        Misconception(
            "a-run-is-one",
            a_run_is_one,
            "It looks like a run of equal ids swallowed whole. Each merge takes two ids: [5, 5, 5] becomes [new, 5].",
            "karpathy/minbpe, pull request 38: a vectorised merge makes X of aaa, where X = aa",
        ),
        Misconception(
            "from-the-right",
            from_the_right,
            "It looks like merging from the right. The leftmost pair comes first: [5, 5, 5] becomes [new, 5], not [5, new].",
        ),
        Misconception(
            "first-one-only",
            first_one_only,
            "It looks like only the first occurrence merged. Every occurrence of the pair is replaced, from left to right.",
        ),
        Misconception(
            "either-order",
            either_order,
            "It looks like a pair taken in either order. (1, 2) and (2, 1) are two pairs: only left-then-right is merged.",
        ),
        Misconception(
            "digits-glued",
            digits_glued,
            "It looks like ids joined to a text and replaced there: '1 2' is also found in '11 2'. Compare ids, not digits.",
        ),
        Misconception(
            "neighbours-forgotten",
            neighbours_forgotten,
            "It looks like pairs that lost a neighbour but kept their count. In [1, 2, 3], merging (1, 2) also ends the pair (2, 3).",
        ),
        Misconception(
            "only-what-goes",
            only_what_goes,
            "It looks like only the counts that fall. The new id has neighbours too, and their pairs rise.",
        ),
        Misconception(
            "one-for-each-merge",
            one_for_each_merge,
            "It looks like one occurrence counted for each merge made. Occurrences may overlap: [5, 5, 5] holds the pair (5, 5) twice.",
            "karpathy/minbpe, issue 51 and pull request 72 argue for this count; SentencePiece uses it, the course's trainer does not",
        ),
        Misconception(
            "before-minus-after",
            before_minus_after,
            "It looks like the signs turned round. A change is the count after the merge minus the count before.",
        ),
        Misconception(
            "zeros-kept",
            zeros_kept,
            "It looks like pairs listed whose count stays the same. Leave out changes of zero.",
        ),
        Misconception(
            "counts-afterwards",
            counts_afterwards,
            "It looks like the counts after the merge. Wanted is by how much each count changed.",
        ),
    ),
    alternatives=(with_a_stack, around_each_merge),
    hints=(
        "Walk through the ids with an index of your own. By how much does it grow after a merge, and by how much otherwise?",
        "For the changes: count the pairs of neighbours before and after, each with zip(row, row[1:]), and subtract.",
        "A collections.Counter takes the pairs after; its method subtract takes those before and may go below zero. Sort, and drop zeros.",
    ),
)
