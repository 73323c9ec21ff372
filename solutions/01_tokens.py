# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 01 · Tokens
#
# Five functions: a merge, the training that chooses merges, the encoder that replays them, the loss, and the unit in which losses can be
# compared. Each is a little more than the lesson showed. When they are done, the last cells make a tokenizer of them for the Python on your
# machine, hold it against the `tokenizers` library, and see what your text costs in bits.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check below it. You may check
#   as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a process of its own.
#   Helper functions and further imports (`re`, `collections`, ...) belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Stuck? `course hint 01.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

# %% tags=["setup"]
try:
    from course import check, mine
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    from course import check, mine

import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# %% [markdown]
# ## 01.1 · One merge, and what it changes
#
# A merge replaces **every** occurrence of a pair of neighbours by one new id, from left to right. After a merge the walk goes on *behind* the two
# ids that it used up: of three equal ids the first two merge, `[5, 5, 5]` becomes `[new, 5]`.
#
# A trainer that counted all pairs of all its text again after each merge would spend its life counting. So a good merge also says **by how much
# the count of every pair changed**: count after minus count before (counting both lists is fine here). The count of a pair is the number of
# places where its two ids stand side by side, overlapping or not, so `[5, 5, 5]` holds the pair `(5, 5)` twice. Mind the neighbours: when `(1,
# 2)` merges in `[1, 2, 3]`, the pair `(2, 3)` is gone as well, and a new pair `(new, 3)` has appeared.
#
# | | |
# |---|---|
# | `ids` | a list of ints, possibly empty |
# | `pair` | a list of two ints, `[left, right]` |
# | `new` | an int that occurs neither in `ids` nor in `pair` |
# | returns `merged` | a list of ints |
# | returns `changes` | a list of `[left, right, change]`, one for each pair whose count changed, sorted by `left`, then by `right`; pairs whose count stays the same are left out |
#
# For example, `merge_pair([1, 2, 3, 1, 2], [1, 2], 9)` returns `[9, 3, 9]` and `[[1, 2, -2], [2, 3, -1], [3, 1, -1], [3, 9, 1], [9, 3, 1]]`.
#
# **Exercise 01.1** · difficulty 2 of 5 · 10 minutes · 10 points


# %% tags=["exercise:01.1"]
# exercise 01.1
def merge_pair(ids: list[int], pair: list[int], new: int) -> tuple[list[int], list[list[int]]]:
    """The ids with every occurrence of the pair merged, and by how much the count of each pair changed."""
    ### BEGIN SOLUTION
    from itertools import pairwise

    merged, i = [], 0
    while i < len(ids):
        if list(ids[i : i + 2]) == list(pair):
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    change = {}
    for row, sign in [(ids, -1), (merged, +1)]:
        for two in pairwise(row):
            change[two] = change.get(two, 0) + sign
    return merged, [[left, right, change[left, right]] for left, right in sorted(change) if change[left, right]]
    ### END SOLUTION


# %% tags=["check:01.1", "nbval-check-output"]
check("01.1", merge_pair)

# %% [markdown]
# ## 01.2 · Training
#
# Text has been cut into pieces, and the pieces have been counted: `{" return": 310, " self": 275, ...}`. A piece that occurs 310 times counts its
# pairs 310 times, and no pair reaches from one piece into another. Start from the **bytes** of each piece, `piece.encode()`; ids 0 to 255 are
# bytes, and the first merge makes id 256, the second 257, and so on.
#
# Again and again: count the pairs, merge the most frequent one in all pieces. Four rules:
#
# - **Ties.** Of equally frequent pairs, the one with the smaller left id is merged; if those are equal too, the one with the smaller right id.
# - **Room.** Stop when there are `size` ids, the 256 bytes included.
# - **Rare pairs.** Stop when no pair that may merge occurs at least `at_least` times. A pair is not worth an id for a handful of occurrences.
# - **Digits.** With `single_digits` set, a pair that contains a digit (byte `0` to `9`) never merges, not even with a blank or a letter. It is
#   passed over, and the best of the other pairs is taken. Some models treat digits so, LLaMA for one; the lesson said why.
#
# Overlapping occurrences count, as in 01.1. When this cell is checked, `merge_pair` of 01.1 is there for you to call, in the course's own
# version, so that one mistake costs one exercise: there is no need to copy yours into this cell, nor to use the changes that it returns.
#
# | | |
# |---|---|
# | `pieces` | a dict from piece (str) to how often it occurs (int) |
# | `size` | int, at least 256: how many ids there may be |
# | `at_least` | int, at least 1 |
# | `single_digits` | bool |
# | returns `merges` | a list of `[left, right]`, in the order in which they were learned |
#
# For example, `train_bpe({"ab": 3, "abc": 2, "bc": 4}, 258, 1, False)`: the pair `b c` occurs 2 + 4 times and `a b` 3 + 2 times, so `[98, 99]`
# comes first and makes 256. Now `abc` is `a` and 256, and `a b` is left with 3. The result is `[[98, 99], [97, 98]]`.
#
# **Exercise 01.2** · difficulty 3 of 5 · 25 minutes · 15 points


# %% tags=["exercise:01.2"]
# exercise 01.2
def train_bpe(pieces: dict[str, int], size: int, at_least: int, single_digits: bool) -> list[list[int]]:
    """The merges that byte-pair encoding learns from counted pieces."""
    ### BEGIN SOLUTION
    from itertools import pairwise

    words = [(list(piece.encode()), times) for piece, times in pieces.items()]
    merges = []
    while 256 + len(merges) < size:
        seen = {}
        for word, times in words:
            for two in pairwise(word):
                seen[two] = seen.get(two, 0) + times
        if single_digits:
            seen = {two: n for two, n in seen.items() if not any(chr(i).isdecimal() for i in two if i < 128)}
        if max(seen.values(), default=0) < at_least:
            break
        _, left, right = min((-n, left, right) for (left, right), n in seen.items())
        words = [(merge_pair(word, [left, right], 256 + len(merges))[0], times) for word, times in words]
        merges.append([left, right])
    return merges
    ### END SOLUTION


# %% tags=["check:01.2", "nbval-check-output"]
check("01.2", train_bpe)

# %% [markdown]
# ## 01.3 · Encoding
#
# Now the merges are used. From a text to ids, in this order:
#
# 1. **Specials.** `specials` holds names such as `<end>`, each with an id of its own. Wherever a name stands in the text it becomes that one id,
#    and the text between is encoded by itself. (Names do not overlap, and `specials` may be empty.)
# 2. **Pieces.** Each text between specials is cut by the regular expression `pattern`: its matches, one after the other, are the pieces, and
#    joined they are the text again. No merge crosses a cut.
# 3. **Bytes.** A piece begins as its bytes in UTF-8.
# 4. **Merges.** As long as some neighbours in the piece are a pair in `merges`, merge the pair that stands **earliest in `merges`**, wherever it
#    occurs in the piece. The merge at place `k` of the list (from 0) makes the id 256 + k. Every pair and every token occurs once in the list.
#
# Along with the ids return how many **bytes of text** each stands for. A byte is 1; a merge is as long as its two parts together; a special
# stands for no text: 0. (A token may be a part of a character, so turning it into a `str` first gives wrong answers. More than one project
# measured its bits per byte wrong that way.)
#
# When this cell is checked, `merge_pair` of 01.1 is there for you to call.
#
# | | |
# |---|---|
# | `text` | str, possibly empty |
# | `merges` | a list of `[left, right]` |
# | `pattern` | str, a regular expression for Python's `re`, without groups |
# | `specials` | a dict from name (str) to id (int) |
# | returns `ids` | a list of ints |
# | returns `sizes` | a list of ints, as long as `ids` |
#
# For example, with `merges = [[98, 99], [97, 98]]`, that is `bc` = 256 and `ab` = 257, and `specials = {"<end>": 300}`, the text `abc<end>ab`
# becomes `[97, 256, 300, 257]` with the sizes `[1, 2, 0, 2]`. In `abc` both pairs are known, and `bc` was learned first.
#
# **Exercise 01.3** · difficulty 3 of 5 · 20 minutes · 15 points

# %% tags=["exercise:01.3"]
# exercise 01.3
import re


def encode(text: str, merges: list[list[int]], pattern: str, specials: dict[str, int]) -> tuple[list[int], list[int]]:
    """The ids of a text, and how many of its bytes each id stands for."""
    ### BEGIN SOLUTION
    from itertools import pairwise

    made, long = {}, [1] * 256
    for left, right in merges:
        made[left, right] = len(long)
        long.append(long[left] + long[right])
    names = "|".join(re.escape(name) for name in specials)
    ids, sizes = [], []
    for part in re.split(f"({names})", text) if names else [text]:
        if part in specials:
            ids, sizes = [*ids, specials[part]], [*sizes, 0]
            continue
        for piece in re.findall(pattern, part):
            word = list(piece.encode())
            while True:
                new = min((made[two] for two in pairwise(word) if two in made), default=None)
                if new is None:
                    break
                word = merge_pair(word, merges[new - 256], new)[0]
            ids.extend(word)
            sizes.extend(long[i] for i in word)
    return ids, sizes
    ### END SOLUTION


# %% tags=["check:01.3", "nbval-check-output"]
check("01.3", encode)

# %% [markdown]
# ## 01.4 · The loss, without accidents
#
# A model gives a row of `V` numbers for each position, the *logits* $z$; their softmax is its probability for each next token. When the token $t$
# comes, the position costs
#
# $$-\ln \frac{e^{z_t}}{\sum_v e^{z_v}} \text{ nats.}$$
#
# Typed in as it stands, this breaks: $e^{89}$ is more than a float32 can hold, and $e^{-104}$ is less. Write it so that it does not.
#
# - Compute in **float32**, and widen the logits *before* any arithmetic, whatever their dtype.
# - Logits may be as large as a million and as far apart; every cost must still be right to five digits, or to two millionths of a nat where that
#   is more.
# - A logit may be minus infinity: a token that is ruled out. It is never the target, and each row has at least one finite logit.
# - A row whose target equals `ignore` is left out: it costs 0, and it does not count in the mean. `ignore` may be any int, -100 or -1 or 255,
#   which may be no class, but also the number of a class.
# - If no row counts, the loss is 0. (PyTorch's own returns NaN then, and its users keep being surprised; with data spread over machines, one
#   empty share would poison all.)
#
# PyTorch's cross entropy, log-softmax and log-sum-exp are out of bounds, and the check notices them. Softmax is allowed, if you want to see where
# it leads.
#
# | | shape | |
# |---|---|---|
# | `logits_NV` | `[N, V]` | float32, bfloat16 or float16 |
# | `targets_N` | `[N]` int64 | from 0 to V - 1, or `ignore` |
# | `ignore` | int | |
# | returns `loss` | `[]` float32 | the mean cost of the rows that count; 0 if there are none |
# | returns `nats_N` | `[N]` float32 | what each row costs; 0 where the target is `ignore` |
#
# For example, a row of four equal logits costs $\ln 4 = 1.3863$ whatever its target, and the row `[2, 0, 0, 0]` with target 0 costs
# $\ln(e^2+3)-2=0.3408$.
#
# **Exercise 01.4** · difficulty 3 of 5 · 20 minutes · 15 points · spine


# %% tags=["exercise:01.4"]
# exercise 01.4
def cross_entropy(logits_NV: Tensor, targets_N: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """The mean cost of the rows that count, in nats, and the cost of each row."""
    ### BEGIN SOLUTION
    wide_NV = logits_NV.to(torch.float32)
    below_NV = wide_NV - wide_NV.max(dim=1, keepdim=True).values
    log_sum_N = below_NV.exp().sum(dim=1).log()
    counts_N = targets_N.ne(ignore)
    safe_N = targets_N.masked_fill(~counts_N, 0)
    nats_N = (log_sum_N - below_NV[torch.arange(len(safe_N)), safe_N]).masked_fill(~counts_N, 0.0)
    return nats_N.sum() / max(1, int(counts_N.sum())), nats_N
    ### END SOLUTION


# %% tags=["check:01.4", "nbval-check-output"]
check("01.4", cross_entropy)

# %% [markdown]
# ## 01.5 · Bits per byte
#
# Nats per token say nothing as long as one may choose what a token is. Divide by something that nobody chose: the bytes of the text. One nat is
# $1/\ln 2 = 1.44$ bits.
#
# You get what every token cost, which document it belongs to, and the documents. Each document has been encoded with an end token behind it, so
# an empty document has one token as well. End tokens spell nothing, **no bytes, and yet their cost counts**: whoever wants to restore the
# documents must know where each ends. (Some evaluations leave special tokens out on both sides. Both are fair, as long as one says which; the
# course counts them.)
#
# - `each`: for each document, the bits of all its tokens divided by the bytes of its text in UTF-8. A document without bytes gets `math.inf`.
# - `overall`: the bits of **all** tokens, those of empty documents included, divided by the bytes of **all** texts. That is not the mean of
#   `each`.
#
# | | |
# |---|---|
# | `nats_N` | float32 tensor `[N]`: what each token cost |
# | `document_N` | int64 tensor `[N]`: the index of its text in `texts`; tokens of different documents may be mixed, those of one stand in order |
# | `texts` | a list of str; at least one has bytes, and each has at least one token |
# | returns `overall` | float |
# | returns `each` | a list of floats |
#
# For example, `nats_N = [2, 1, 0.5, 3, 0.25]` and `document_N = [0, 0, 0, 1, 1]` with `texts = ["abcd", "é"]`: 3.5 nats for four bytes and 3.25
# nats for two. So `each` is `[1.2624, 2.3444]`, and `overall` is 6.75 nats for six bytes, 1.6230.
#
# **Exercise 01.5** · difficulty 2 of 5 · 10 minutes · 10 points


# %% tags=["exercise:01.5"]
# exercise 01.5
def bits_per_byte(nats_N: Tensor, document_N: Tensor, texts: list[str]) -> tuple[float, list[float]]:
    """Bits for each byte, of all documents together and of each."""
    ### BEGIN SOLUTION
    nats, size = [0.0] * len(texts), [len(text.encode("utf-8")) for text in texts]
    for cost, document in zip(nats_N.tolist(), document_N.tolist(), strict=True):
        nats[document] += cost
    each = [n / math.log(2) / s if s > 0 else math.inf for n, s in zip(nats, size, strict=True)]
    return sum(nats) / math.log(2) / sum(size), each
    ### END SOLUTION


# %% tags=["check:01.5", "nbval-check-output"]
check("01.5", bits_per_byte)

# %% [markdown]
# ## Your tokenizer
#
# No exercise here: run the cells. `mine("01.2")` is your own function once it has passed, and the course's until then.
#
# First the training, on five modules of this Python (some ten seconds, if you count anew for every merge; the others will be the exam). The
# pieces are cut by the course's pattern, and the vocabulary has 456 ids. Does the `tokenizers` library, written in Rust, learn the same from the
# same files?

# %%
from collections import Counter

from course.training import bpe, corpus, tokenizer

train_mine, encode_mine = mine("01.2"), mine("01.3")
LEARN = ["argparse.py", "contextlib.py", "json/decoder.py", "shutil.py", "textwrap.py"]
EXAM = ["calendar.py", "csv.py", "glob.py", "json/encoder.py"]
files = {d.name: d.text for d in corpus.embedded("code") if d.text.isascii()}
learn, exam = ({name: files[name] for name in names if name in files} for names in (LEARN, EXAM))

counted = Counter(piece.decode() for text in learn.values() for piece in bpe.pieces(text.encode()))
merges = [list(pair) for pair in train_mine(dict(counted), 456, 1, False)]
library = tokenizer.train([text.encode() for text in learn.values()], 457)  # it counts the end token, too
assert merges == [list(pair) for pair in library.merges]
print(f"{len(counted):,} different pieces, {len(merges)} merges: yours and the library's are the same")

# %% [markdown]
# Then the encoder, on files that it has not learned from. One special token, `<end>`, goes between documents; the library's side knows it as its
# last id.

# %%
END = "<end>"
specials = {END: library.end}
ids_mine, sizes = encode_mine("".join(text + END for text in exam.values()), merges, bpe.PATTERN, specials)
ids_theirs = [i for text in exam.values() for i in [*library.encode_with_library(text), library.end]]
assert ids_mine == ids_theirs
assert sum(sizes) == sum(len(text.encode()) for text in exam.values())
print(f"{sum(sizes):,} bytes are {len(ids_mine):,} tokens, the same ids as the library's")

ids, _ = encode_mine("    def __init__(self, name):", merges, bpe.PATTERN, specials)
print("|".join(library.tokens[i].decode() for i in ids))
print("last learned:", "  ".join(repr(token.decode()) for token in library.tokens[-8:]))

# %% [markdown]
# Last, a model, and the smallest there is: it counts which token followed which (with a tenth of a count for every possible pair on top, so that
# nothing is impossible). The logarithms of its counts are logits; your cross entropy turns them into nats, your bits per byte into a number that
# can be compared. Once on bytes, once on your tokens. **Predict:** which has the lower loss for each token, and which for each byte?

# %%
loss_mine, bits_mine = mine("01.4"), mine("01.5")


def count_and_measure(merges, end):
    """Count which token followed which in `learn`; then nats a token, and bits a byte, on `exam`."""

    def ids_of(text):
        return encode_mine(text + END, merges, bpe.PATTERN, {END: end})[0]

    row = torch.tensor([end, *(i for text in learn.values() for i in ids_of(text))])
    counts_VV = torch.full((end + 1, end + 1), 0.1)
    counts_VV.index_put_((row[:-1], row[1:]), torch.tensor(1.0), accumulate=True)
    rows = [ids_of(text) for text in exam.values()]
    target_N = torch.tensor([i for row in rows for i in row])
    before_N = torch.tensor([i for row in rows for i in [end, *row[:-1]]])
    document_N = torch.tensor([document for document, row in enumerate(rows) for _ in row])
    logits_NV = counts_VV.log()[before_N]
    loss, nats_N = loss_mine(logits_NV, target_N, -100)
    torch.testing.assert_close(loss, F.cross_entropy(logits_NV, target_N))
    return loss.item(), *bits_mine(nats_N, document_N, list(exam.values()))


results = {"bytes": count_and_measure([], 256), "your tokens": count_and_measure(merges, library.end)}
for name, (loss, overall, _) in results.items():
    print(f"{name:12} {loss:.3f} nats a token, {overall:.3f} bits a byte")

# %% [markdown]
# The model on bytes has the lower loss for each token and the higher for each byte: it guesses more often, and each guess is easier. Had you
# compared the losses alone, you would have chosen the wrong model.
#
# An old acquaintance, for scale: `zlib`, the compressor inside zip files and PNG pictures. It has learned from none of our files, and it looks
# back over 32 kilobytes. **Predict:** more bits than your model, or fewer?

# %%
import zlib

for (name, text), bits in zip(exam.items(), results["your tokens"][2], strict=True):
    packed = 8 * len(zlib.compress(text.encode(), 9)) / len(text.encode())
    print(f"{name:16} your model {bits:.2f}, zlib {packed:.2f} bits a byte")

# %% [markdown]
# The table of pairs has read five files, and loses to a compressor that has read none: it looks back over one token, and the compressor over all
# of the file so far. What helps is to look back, and attention is the part that does. It comes next.
#
# **Next:** lesson 02, a transformer, part by part.
