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
# # Lesson 01 · Tokens
#
# R1 was sold by the million tokens: 0.55 dollars to read them, 2.19 to write them (quoted in lesson 00). DeepSeek-V3 was trained on 14.8 trillion
# of them. Every loss in this course is so many nats *for each token*. So what is a token? Who decided it, and what if they had decided otherwise?
#
# In this lesson you build a tokenizer from nothing: byte-pair encoding, from the first merge to the encoder, equal to the `tokenizers` library's
# on the whole corpus. Then you look at what it learned, what it costs, and whom it treats badly. At the end losses get a unit in which models
# with *different* tokenizers can be compared, bits for each byte, and a table of counts meets zip.
#
# About 45 minutes. The text is the Python that came with your Python: the standard library, 700 files and more.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import math
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

plt.style.use("course.lesson")
torch.manual_seed(1)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %%
from course.training.corpus import embedded, split

train, validation = split(embedded("code"))  # by file: a sixteenth of the files is only ever read, never learned from
train_bytes, validation_bytes = ([d.text.encode() for d in part] for part in (train, validation))
for name, part in {"train": train_bytes, "validation": validation_bytes}.items():
    print(f"{name:10} {len(part):4} files, {sum(map(len, part)) / 1e6:5.2f} million bytes")

# %% [markdown]
# ## Why not words?
#
# A model has a table with one row of numbers for each thing that it can read, and one score for each thing that it can say. So the things must be
# a fixed list. The obvious list is words: collect all words of the training text, number them.
#
# **Predict:** read more and more text, and count the different words seen so far. Does the curve flatten out? And of the words in the validation
# files, how many are not on the list?

# %%
import re

seen, words_read, different = set(), [], []
total = 0
for document in train:
    words = re.findall(r"\w+", document.text)
    seen.update(words)
    total += len(words)
    words_read.append(total / 1e6)
    different.append(len(seen) / 1e3)

unseen = [word for d in validation for word in re.findall(r"\w+", d.text) if word not in seen]
everything = sum(len(re.findall(r"\w+", d.text)) for d in validation)
print(f"{len(seen):,} different words; {len(unseen) / everything:.1%} of the words in the validation files are new")
names = {word for word in unseen if not re.search(r"\d", word)}
print("for example:", ", ".join(sorted(names, key=lambda name: (len(name), name))[-4:]))

# %%
_, axis = plt.subplots()
axis.plot(words_read, different, label="different words")
axis.axhline(0.256, color="#D55E00", linestyle="--", label="different bytes: 256, for ever")
axis.set(xlabel="words read (millions)", ylabel="different ones seen (thousands)", title="There is always another word")
axis.set_ylim(0, None)
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# *Figure: the number of different words climbs past 50,000 without flattening; a dashed line for bytes lies at the bottom, at 256.*
#
# The list never ends, because people make words: every programmer who names a variable adds one. A model of words would have to read `<unknown>`
# for some seven in a hundred of them, and could never write a name that it had not been given.
#
# The other end is characters. How many would be needed?

# %%
import sys
import unicodedata

kind_of = [unicodedata.category(chr(point)) for point in range(sys.maxunicode + 1)]
assigned = sum(kind not in ("Cn", "Co", "Cs") for kind in kind_of)  # not unassigned, private or half of a pair
print(
    f"{assigned:,} characters in Unicode {unicodedata.unidata_version}, {len(set().union(*(d.text for d in train)))} in our files"
)

# %% [markdown]
# Our files would do with few, but the next text may hold any of them, and each version of Unicode adds some. Below characters lies a list that is
# closed for good: **bytes**. In UTF-8 every text is a row of numbers from 0 to 255.
#
# **Predict:** how many bytes is `é`? A Chinese character? The emoji of a scientist?

# %%
for text in ["a", "é", "e\u0301", "π", "日", "🙂", "👩‍🔬"]:
    points = " ".join(f"U+{ord(c):04X}" for c in text)
    print(f"{text}\t{len(text.encode())} bytes: {text.encode().hex(' '):34} from {len(text)} code points: {points}")

# %% [markdown]
# Two things that look the same, `é` and `é`, are different bytes: one is a single code point, the other an e with an accent that combines. The
# scientist is a woman, a joiner and a microscope. A tokenizer works on what is stored, not on what is shown.
#
# A model on bytes needs only 256 rows, knows every language, and never meets an unknown. What is wrong with it? It is slow. Each step of a model
# reads and writes one token, whatever its size. The work of a layer grows with the number of tokens, and that of attention with its square. We
# want fewer, longer tokens, without giving up the closed list. The answer is to *add* tokens to the 256: for whatever the text says most often.

# %% [markdown]
# ## Cut first
#
# Before anything is merged, text is cut into **pieces**, and no token will ever cross a cut. The course cuts with one regular expression: before
# words (with the blank in front of them), numbers, punctuation, and runs of blanks.

# %%
from course.training.bpe import pieces


def visible(data):
    """Bytes as text, with blanks and line ends that can be seen; bytes above 127 one by one."""
    return data.decode("latin-1").replace(" ", "·").replace("\n", "↵").replace("\t", "→")


line = b"    if self.name_2 == 'x':\n        return 12345 + self.size\n"
print(" | ".join(visible(piece) for piece in pieces(line)))

# %% [markdown]
# Why cut at all? Try without: let the merges run over whole lines. (Below, the `tokenizers` library learns 1,024 tokens from an eighth of the
# files, once with our cuts, once within lines only.)
#
# **Predict:** which of the two says the same text in fewer tokens?

# %%
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from course.training import tokenizer
from course.training.bpe import PATTERN


def learn_with_library(cut, size=1024):
    """A tokenizer of the library that has read an eighth of the files, cut by a regular expression."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(cut), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=[chr(b) for b in range(256)], show_progress=False)
    library.train_from_iterator((text.decode("latin-1") for text in train_bytes[::8]), trainer)
    return library


for name, cut in {"our cuts": PATTERN, "lines only": r"[^\n]*\n|[^\n]+"}.items():
    library = learn_with_library(cut)
    count = sum(len(library.encode(text.decode("latin-1")).ids) for text in validation_bytes)
    longest = sorted(library.get_vocab(), key=lambda token: (len(token), token))
    some = [[t for t in longest if "self" in t], [t for t in longest if not t.isspace()][-5:]]
    print(f"{name:10}: {sum(map(len, validation_bytes)) / count:.2f} bytes a token")
    for what, chosen in zip(["with self", "longest"], some, strict=True):
        print(f"{what:>13}: {'  '.join(visible(t.encode('latin-1')) for t in chosen)}")

# %% [markdown]
# Without our cuts the tokens are *better* at saying much with little, and still nearly everybody cuts. The examples show why. `self` behind
# another indentation is another token, and what a model learns about one of them it does not know of the others. (The GPT-2 report, section 2.2,
# gives the same reason: `dog.`, `dog!` and `dog?` would each take a place.) The longest tokens are whole phrases from the tables of a few files.
# And cutting makes the training cheap, as the next cell shows. The loss in compression is a price that one can pay or not, and newer work pays
# less of it (SuperBPE, below).

# %%
counted = Counter(piece for text in train_bytes for piece in pieces(text))
print(f"{sum(counted.values()):,} pieces, but only {len(counted):,} different ones")
print("most frequent:", "  ".join(f"{visible(piece)} {n:,}" for piece, n in counted.most_common(8)))

# %% [markdown]
# Whatever we count in pieces, we count once for each *different* piece and multiply.
#
# ## One merge
#
# Look at all pairs of neighbours within pieces, and count. To see every step we take few files for a moment:

# %%
sample = train_bytes[::60]
counted = Counter(piece for text in sample for piece in pieces(text))
words = {piece: list(piece) for piece in counted}  # every piece as a row of ids; at first the ids are its bytes


def count_pairs(words):
    counts = Counter()
    for piece, ids in words.items():
        for pair in pairwise(ids):
            counts[pair] += counted[piece]
    return counts


counts = count_pairs(words)
for pair, n in counts.most_common(6):
    print(f"{visible(bytes(pair))!r:6} {pair!s:12} {n:,} times")

# %% [markdown]
# The most frequent pair gets an id of its own, 256, the first that is no byte. Everywhere it occurs, it is replaced.


# %%
def merge(ids, pair, new):
    """Replace the pair from left to right."""
    merged, i, pair = [], 0, list(pair)
    while i < len(ids):
        if ids[i : i + 2] == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


best = counts.most_common(1)[0][0]
print(list(b"        x"), "->", merge(list(b"        x"), best, 256))
print("three in a row:", merge([32, 32, 32], (32, 32), 256))

# %% [markdown]
# Then count again, because the merge changed the counts, and the new id has neighbours of its own. And again. That is the whole of byte-pair
# encoding (Sennrich et al. 2016; on bytes since GPT-2).


# %%
def learn(counted, merges, settle):
    """The first merges; `settle` picks the pair from its count."""
    words = {piece: list(piece) for piece in counted}
    learned = []
    for new in range(256, 256 + merges):
        counts = Counter()
        for piece, ids in words.items():
            for pair in pairwise(ids):
                counts[pair] += counted[piece]
        learned.append(settle(counts))
        words = {piece: merge(ids, learned[-1], new) for piece, ids in words.items()}
    return learned


def smaller_ids(counts):
    return min(counts, key=lambda pair: (-counts[pair], pair))


learned = learn(counted, 120, smaller_ids)
spelled = [bytes([byte]) for byte in range(256)]
for left, right in learned:
    spelled.append(spelled[left] + spelled[right])
print("  ".join(visible(token) for token in spelled[256:]))

# %% [markdown]
# Read it from left to right and you watch Python appear: blanks for indentation first, then pairs of letters, then `self`, `return` and `def`.
#
# ## When two pairs are equally frequent
#
# `smaller_ids` hides a decision. What one writes first is shorter: `max(counts, key=counts.get)`, and of equal pairs that takes the one which was
# met first.
#
# **Predict:** read the same files in another order. How many of the 120 merges change?


# %%
def first_met(counts):
    return max(counts, key=counts.get)


backwards = Counter(piece for text in reversed(sample) for piece in pieces(text))
one, other = learn(counted, 120, first_met), learn(backwards, 120, first_met)
apart = [i for i in range(120) if one[i] != other[i]]
print(f"{len(apart)} of 120 merges differ, at places {apart}")

# %% [markdown]
# The vocabulary depends on the order in which files were read. It is a bug that was reported against well-known teaching code (minbpe, pull
# request 90), and every id after the first difference means something else. A tokenizer must be a function of the text. So a rule is needed, any
# rule: the course's, and the library's, is that **the smaller ids win**.
#
# Another decision hides in the counting. Do three blanks in a row hold the pair (blank, blank) once or twice? We count twice, although only one
# of the two can be merged. SentencePiece counts once. Again both work, and again one must say which.
#
# Now hold ours against the course's own, and the course's against the library, on the whole of the training files:

# %%
from course.training import bpe

assert learned == bpe.train(sample, 256 + 120)
by_hand = tokenizer.train_by_hand(train_bytes, 1024)
merges = tokenizer.train(train_bytes, 4096).merges  # by the library; the larger vocabulary begins with the smaller
assert by_hand.merges == merges[: 1024 - 257]
print(f"{len(by_hand.merges)} merges from {sum(map(len, train_bytes)):,} bytes: equal to the library's")

count = 0
for text in validation_bytes:
    ids = by_hand.encode(text)
    assert ids == by_hand.encode_with_library(text)
    count += len(ids)
print(f"{count:,} ids of {len(validation)} unseen files: equal, too")

# %% [markdown]
# `course.training.bpe` is our loop with one idea more: it keeps the counts and changes only what a merge touches. In the lab you write that step.
#
# ## A line shrinks
#
# Let us watch one line from a validation file while the vocabulary grows.

# %%
from functools import cache

from course.training.tokenizer import Tokenizer


@cache
def vocabulary(size):
    """The tokenizer of so many ids: bytes, the first merges, and one that ends a document."""
    return Tokenizer(merges[: size - 257])


# %%
import zlib

PALETTE = [colour for i, colour in enumerate(plt.get_cmap("Set3").colors) if i != 8]  # without its grey


def draw(rows, title):
    """A row for each label: its tokens as boxes, coloured by what they spell, single bytes grey."""
    _, axis = plt.subplots(figsize=(9.5, 0.4 * len(rows) + 0.5))
    for y, (label, tokens) in enumerate(rows.items()):
        x = 0
        for token in tokens:
            colour = "#e4e7ea" if len(token) == 1 else PALETTE[zlib.crc32(token) % 11]
            axis.add_patch(plt.Rectangle((x + 0.06, y), len(token) - 0.12, 0.84, color=colour, linewidth=0))
            for i, c in enumerate(visible(token)):
                axis.text(x + i + 0.5, y + 0.6, c, family="monospace", fontsize=9, ha="center")
            x += len(token)
        axis.text(-0.7, y + 0.6, label, ha="right", fontsize=9)
    widest = max(sum(map(len, tokens)) for tokens in rows.values())
    axis.set(xlim=(0, widest), ylim=(len(rows), 0), title=title)
    axis.axis("off")
    plt.show()


# %%
lines = [line for d in validation for line in d.text.splitlines() if d.text.isascii()]
shown = next(line for line in lines if re.fullmatch(r" {8}return .*self.*\w\)", line) and 54 < len(line) < 66).encode()
rows = {}
for size in [257, 260, 280, 320, 512, 1024, 4096]:
    learned = vocabulary(size)
    ids = learned.encode(shown)
    rows[f"{size:,} ids: {len(ids)} tokens"] = [learned.tokens[i] for i in ids]
draw(rows, "One line, as the vocabulary grows")

# %% [markdown]
# *Figure: the same line of Python seven times. At the top every character is a grey box of its own; going down, boxes join, first the
# indentation, then pieces of names, until most words are one coloured box.*
#
# ## The vocabulary is a mirror
#
# What does a tokenizer know? Exactly what its text repeated. Here is every merged token: when it was learned, and how long it is.

# %%
tokens = vocabulary(4096).tokens[256:]
blank = [not token.strip() for token in tokens]
word = [not b and token.strip().replace(b"_", b"a").isalpha() for token, b in zip(tokens, blank, strict=True)]
kinds = {"blanks": blank, "words": word, "the rest": [not (b or w) for b, w in zip(blank, word, strict=True)]}
_, axis = plt.subplots(figsize=(9, 4.2))
for name, colour in [("words", "#56B4E9"), ("the rest", "#E69F00"), ("blanks", "#000000")]:
    ranks = [rank for rank, yes in enumerate(kinds[name], 1) if yes]
    axis.plot(ranks, [len(tokens[rank - 1]) for rank in ranks], "o", ms=3.5, color=colour, label=name)
for first, last in pairwise([4, 12, 36, 100, 300, 1000, 3840]):
    rank = max((r for r in range(first, last) if word[r - 1]), key=lambda r: len(tokens[r - 1]))
    at = (rank, len(tokens[rank - 1]))
    behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}
    name = visible(tokens[rank - 1])
    axis.annotate(name, at, xytext=(-3, 6), textcoords="offset points", ha="right", fontsize=9, bbox=behind)
axis.set(xscale="log", xlabel="when it was learned (merge)", ylabel="bytes", xlim=(0.8, 5000), ylim=(0, None))
axis.set_title(f"{len(tokens):,} merged tokens; the longest word so far has its name")
axis.legend(loc="upper left")
plt.show()


# %%
def sorted_by_length(yes):
    return [visible(token) for token, y in sorted(zip(tokens, yes, strict=True), key=lambda pair: len(pair[0])) if y]


early = [t for t in vocabulary(512).tokens[256:] if t.count(b"\n") == 1 and not t.strip(b"\n ")]
print("first line ends, in this order: with", ", ".join(str(len(t) - 1) for t in early), "blanks")
print("longest words:      ", "  ".join(sorted_by_length(kinds["words"])[-6:]))
print("longest of the rest:", "  ".join(sorted_by_length(kinds["the rest"])[-4:]))

# %% [markdown]
# *Figure: a dot for each merged token, its length in bytes against the merge that made it, on a logarithmic axis. Blanks come first and grow
# longest; words follow, piece by piece, up to twenty bytes.*
#
# Line ends with 3, 7, 11, 15, 19 blanks: nobody told it that Python indents by four. (Why one less? The last blank belongs to the word behind it;
# look at the cuts again. And 8, 12 and 16 are halfway houses on the way to longer ones.) And the longest words are the names that the library's
# authors could not avoid. Had the text been novels, none of this would be here. When someone asks why a model is clumsy at something, look at its
# vocabulary first.

# %% [markdown]
# ## Encoding: by rank, not by length
#
# Now read a new text. The vocabulary contains `root`, `·r`, `ot` and more (a dot stands for a blank). How is `·root` cut?
#
# The plain idea is *greedy*: from the left, take the longest token that fits. **Predict:** does that give the same tokens that training would
# have given?


# %%
def greedy(piece, learned):
    """The longest token that fits, again and again."""
    known, cut = set(learned.tokens), []
    while piece:
        size = next(n for n in range(len(piece), 0, -1) if piece[:n] in known)
        cut.append(piece[:size])
        piece = piece[size:]
    return cut


def by_rank(piece, learned):
    """Replay the training: of all pairs, merge the one that was learned first."""
    ids = list(piece)
    while known := [pair for pair in pairwise(ids) if pair in learned.ranks]:
        pair = min(known, key=lambda pair: learned.ranks[pair][0])
        ids = merge(ids, pair, learned.ranks[pair][1])
        print(f"   merge {learned.ranks[pair][0]:4}: {' | '.join(visible(learned.tokens[i]) for i in ids)}")
    return ids


thousand = vocabulary(1024)
for piece in [b" root", b" keys"]:
    print(f"{visible(piece)}  greedy: {' | '.join(visible(t) for t in greedy(piece, thousand))}")
    assert by_rank(piece, thousand) == bpe.encode_piece(piece, thousand.ranks)

# %% [markdown]
# The two disagree. By rank the encoder replays history: the merges that were made first in training are made first here, so a text is cut as the
# training text was cut when the counts were taken. How often do they differ, and which needs fewer tokens?

# %%
unseen_pieces = Counter(piece for text in validation_bytes for piece in pieces(text))
differ, by = 0, Counter()
for piece, n in unseen_pieces.items():
    ranked, greedily = thousand.encode(piece), greedy(piece, thousand)
    differ += n * ([thousand.tokens[i] for i in ranked] != greedily)
    by["by rank"] += n * len(ranked)
    by["greedy"] += n * len(greedily)
print(f"{differ / unseen_pieces.total():.1%} of the pieces are cut differently")
print(", ".join(f"{name}: {count:,} tokens" for name, count in by.items()))

# %% [markdown]
# In number they hardly differ. But a model that was trained on one cut and is served with the other reads, one piece in a dozen, a spelling it
# has rarely seen. An inference engine that merged from the left instead of by rank split more than half of ordinary words differently for as long
# as nobody compared (fastllm, pull request 715). It does not crash, it just gets a bit worse.

# %% [markdown]
# ## What a larger vocabulary buys
#
# More ids, longer tokens, fewer steps. **Predict:** from 1,024 to 4,096 ids, four times as many: how much longer does the average token get?

# %%
from pydoc_data.topics import topics  # Python's manual, as the help() of the interpreter shows it

sizes = [257, 320, 512, 1024, 2048, 4096]
prose = [text.encode() for text in list(topics.values())[::3]]


def bytes_a_token(texts, learned):
    return sum(map(len, texts)) / sum(len(learned.encode(text)) for text in texts)


lengths = {
    name: [bytes_a_token(texts, vocabulary(size)) for size in sizes]
    for name, texts in {"Python": validation_bytes, "its manual": prose}.items()
}
for size, code_length, prose_length in zip(sizes, *lengths.values(), strict=True):
    print(
        f"{size:5,} ids: {code_length:.2f} bytes a token in Python, {prose_length:.2f} in its manual  (measured here)"
    )

# %%
from dataclasses import replace

from course.model import ModelConfig, total_parameters

tiny = ModelConfig.preset("tiny-dense")
_, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for name, values in lengths.items():
    axes[0].plot(sizes, values, "o-", label=name)
axes[0].set(xscale="log", xlabel="ids", ylabel="bytes a token", title="What it buys", ylim=(0, None))
axes[0].legend(loc="lower right")
more = [*sizes, 16_384, 65_536, 129_280]
shares = [100 * 2 * size * tiny.width / total_parameters(replace(tiny, vocab=size)) for size in more]
axes[1].plot(more, shares, "o-", label="tiny-dense, width 128")
v3 = 100 * 2 * 129_280 * 7168 / 671e9
axes[1].plot(129_280, v3, "D", color="#D55E00", label=f"DeepSeek-V3, width 7,168: {v3:.2f} %")
axes[1].set(xscale="log", xlabel="ids", ylabel="share of all parameters (%)", title="What it costs", ylim=(0, 125))
axes[1].legend(loc="upper left", fontsize=8.5)
for axis in axes:
    axis.set_xticks([257, 1024, 4096] if axis is axes[0] else [257, 4096, 129_280])
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.minorticks_off()
plt.show()

# %% [markdown]
# *Figure: on the left, bytes a token climb from 1 to about 3.5 for Python, ever more slowly; the manual, which is English and not what the
# tokenizer was made for, stays below. On the right, the share of all parameters that sit in the embedding and the output head: nearly all of them
# for a tiny model with a large vocabulary, 0.28 percent for DeepSeek-V3 with its 129,280 ids.*
#
# *Quoted: V3's vocabulary (129,280 rows, configuration file; the report, section 4.1, says 128K, byte-level BPE), width 7,168 and 671 billion
# parameters (V3 report, section 4.2). Computed: the shares, two tables of vocabulary times width.*
#
# The returns diminish, as they must: the most frequent things were merged first. The cost is a row in two tables for each id, and a longer
# softmax at every step. A large model hardly notices 130,000 rows; a small one would be nothing but tables. So the right size grows with the
# model (Tao et al. 2024).
#
# ## Most tokens are rare
#
# The rows must also be *trained*, and a row is trained only when its token occurs. **Predict:** of 4,096 tokens, how many occur less than a
# hundred times in 11 million bytes?


# %%
@cache
def ids_of(size):
    """The training and the validation files as two rows of ids, an end behind each file."""
    learned = vocabulary(size)
    files = [
        [np.array([*learned.encode(t), learned.end], dtype=np.int32) for t in part]
        for part in (train_bytes, validation_bytes)
    ]
    return [np.concatenate(part) for part in files]


largest = vocabulary(4096)
occurs = np.bincount(ids_of(4096)[0], minlength=4096)[:-1]
often = np.sort(occurs)[::-1]
scaffold = sorted(range(256, 1024), key=lambda i: occurs[i])[:8]
print(f"{(often < 100).sum()} of {len(often):,} occur less than 100 times; ", end="")
print(f"never: {(occurs[:256] == 0).sum()} bytes and {(occurs[256:] == 0).sum()} merged tokens")
print(f"the 100 most frequent are {often[:100].sum() / often.sum():.0%} of all tokens")
print("learned early, and rare now:", "  ".join(f"{visible(largest.tokens[i])} {occurs[i]}" for i in scaffold))

# %%
_, axis = plt.subplots()
axis.loglog(np.arange(1, len(often) + 1), np.maximum(often, 0.5), ".", ms=4)
axis.axhline(100, color="#D55E00", linestyle="--", label="100 times")
axis.set(xlabel="token, by frequency", ylabel="times in the training files", title="Frequency against rank")
axis.legend(loc="upper right")
plt.show()

# %% [markdown]
# *Figure: occurrences against rank, both axes logarithmic: a slowly bending line from some hundred thousand at the left down to about a hundred,
# and then a cliff to nothing at the right end.*
#
# The cliff has two parts. Some bytes never occur in Python files at all. And some tokens are **scaffolding**: they were frequent until they
# became part of a longer token, and now stand almost alone. Their rows keep nearly the random numbers they began with. In large models such
# tokens are known for odd behaviour when somebody types them (Land and Bartolo 2024, *Fishing for Magikarp*).
#
# ## Whose text?
#
# **Predict:** one sentence, eight languages. Our tokenizer of 4,096 ids has read only Python. How many tokens does the sentence take in English,
# and how many in Hindi?

# %%
sentence = {
    "English": "The model reads one token after another.",
    "German": "Das Modell liest ein Token nach dem anderen.",
    "French": "Le modèle lit un token après l'autre.",
    "Russian": "Модель читает один токен за другим.",
    "Greek": "Το μοντέλο διαβάζει το ένα σύμβολο μετά το άλλο.",
    "Chinese": "模型一个接一个地读取词元。",
    "Japanese": "モデルはトークンを一つずつ読みます。",
    "Hindi": "मॉडल एक के बाद एक टोकन पढ़ता है।",
}
_, axis = plt.subplots(figsize=(9, 3.6))
places = np.arange(len(sentence))
for shift, (name, count) in enumerate(
    {"characters": len, "bytes": lambda s: len(s.encode()), "tokens": lambda s: len(largest.encode(s))}.items()
):
    bars = axis.bar(places + 0.28 * shift - 0.28, [count(s) for s in sentence.values()], 0.26, label=name)
    axis.bar_label(bars, fontsize=7.5, padding=1)
axis.set(
    xticks=places,
    xticklabels=list(sentence),
    ylabel="count",
    title="The same sentence, for a tokenizer that has read Python",
)
axis.grid(axis="x", visible=False)
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# *Figure: for each language three bars, characters, bytes and tokens. English needs a quarter as many tokens as it has bytes; for Russian, Greek,
# Chinese, Japanese and Hindi the token bar is as high as the byte bar.*
#
# Outside the Latin alphabet every byte is a token, three for each Chinese or Hindi character. Whoever writes Hindi to this model pays several
# times what an English writer pays for the same sentence, waits longer, and fills the context sooner. It is not only ours: with tokenizers in use
# in 2023 the same text took up to 15 times as many tokens in one language as in another (quoted: Petrov et al. 2023, abstract). V3's was made for
# more languages than English (V3 report, section 4.1).
#
# ## Numbers
#
# Numbers are a case of their own, because their digits *mean* their places. Look at four ways to cut them.

# %%
number = " 1234567 + 89 = 1234656"
DIGITS = {
    "three at most, from the left": r" ?[0-9]{1,3}| ?[^0-9 ]+",
    "three at most, from the right": r" ?[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9]))| ?[^0-9 ]+",
    "digit by digit": r" ?[0-9]| ?[^0-9 ]+",
}
rows = {"no rule, 4,096 ids": learn_with_library(PATTERN.replace("{1,3}", "+"), 4096).encode(number).tokens}
rows |= {name: re.findall(pattern, number) for name, pattern in DIGITS.items()}
draw({name: [cut.encode() for cut in row] for name, row in rows.items()}, "A sum, cut in four ways")

# %% [markdown]
# *Figure: the sum 1234567 + 89 = 1234656 as boxes in four rows: as a tokenizer of 4,096 ids cuts it when digits may merge freely, 1|23|45|67 and
# 1|23|4|65|6; in threes from the left, 123|456|7; in threes from the right, 1|234|567; digit by digit.*
#
# Without any rule a number falls apart wherever its digits happened to be frequent together, and a neighbouring number elsewhere. With threes
# from the left, as ours and as DeepSeek-V3's (quoted: its pre-tokenizer's expressions, as they stand in llama.cpp), the 7 of a seven-digit number
# stands where the 567 of a nine-digit one does, and digits of equal weight do not line up; from the right they do, and adding gets easier for a
# model (Singh and Strouse 2024). Digit by digit they always do, for up to three times the tokens: LLaMA and DeepSeek-Coder cut so. No cut is
# right; each makes something easy. In the lab your trainer gets a switch for it.

# %% [markdown]
# ## The price of one guess
#
# Now the loss. A model sees some tokens and gives every possible next one a number, its *logit*; softmax makes probabilities of them. If the
# token that really comes had probability $p$, the guess costs $-\ln(p)$ **nats**: nothing for a certain guess, and the more, the more surprised
# the model is. The mean of that over a text is the *cross entropy*, the loss of every language model.
#
# **Predict:** a model that has learned nothing yet finds all of 1,024 tokens about equally likely. What is its loss?

# %%
from course.model import Transformer

untrained = Transformer(replace(tiny, vocab=1024))
some = torch.tensor(thousand.encode(train[0].text)[:257])[None]
with torch.no_grad():
    first = untrained.loss(some[:, :-1], some[:, 1:]).cross_entropy.item()
print(f"ln 1024 = {math.log(1024):.3f} (computed); an untrained transformer: {first:.3f} (measured here)")

# %% [markdown]
# Every training curve with this vocabulary begins near 6.93, and one that begins far from it needs an explanation. With bytes it would begin at
# ln 257 = 5.55: our first sign that losses of different tokenizers do not compare.
#
# ## Big numbers
#
# The formula is short: $\ln \sum_v e^{z_v} - z_t$, where $t$ is the token that came. Softmax does not care if you add the same number to all
# logits, so neither does the loss.
#
# **Predict:** add 10 to all logits, then 100, then 1,000. What does the formula give, typed in as it stands, in float32?

# %%
z = torch.tensor([2.0, 1.0, -1.0, 0.5])
target = 0


def plain(z):
    return z.exp().sum().log() - z[target]


def shifted(z):
    z = z - z.max()  # changes nothing in the softmax, and no exp is above 1 now
    return z.exp().sum().log() - z[target]


for shift in [0, 10, 80, 90, 1000, -100, -110]:
    print(f"all logits {shift:+5}: plain {plain(z + shift).item():7.4f}   shifted {shifted(z + shift).item():.4f}")
torch.testing.assert_close(shifted(z), F.cross_entropy(z[None], torch.tensor([target])))

# %%
shifts = torch.linspace(-130, 130, 521)
_, axis = plt.subplots(figsize=(7.5, 3.2))
axis.plot(shifts, [shifted(z + s).item() for s in shifts], "k--", lw=1, label="maximum subtracted, float32")
for name, dtype, colour, width in [
    ("float32", torch.float32, "#0072B2", 1.8),
    ("float16", torch.float16, "#D55E00", 3),
]:
    losses = torch.tensor([plain((z + s).to(dtype)).float().item() for s in shifts])
    lives = losses.isfinite().nonzero().flatten()
    axis.plot(shifts[lives], losses[lives], color=colour, lw=width, label=f"as it stands, {name}")
    axis.plot(shifts[lives[[0, -1]]], [shifted(z).item()] * 2, "X", color=colour, ms=9)
axis.set(xlabel="added to all logits", ylabel="loss (nats)", title="What should be a flat line", ylim=(0, 1.2))
axis.legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# *Figure: the loss against a number added to all logits. The dashed line is flat. Crosses mark where the plain formula stops giving a finite
# number: in float32 near +86, where exp overflows, and near -105, where it underflows, after some wild steps; in float16 already at +9 and -19.*
#
# In float32 $e^{89}$ is infinite and $e^{-104}$ is zero. Subtract the largest logit first, and the largest exp is 1: no overflow, and the sum can
# never vanish. This is the *log-sum-exp trick*. Unit 10 puts it into a kernel, unit 14 into attention, where it is done piece by piece.
#
# One more fact, because half of deep learning rests on it. The gradient of this loss with respect to the logits is simply what the model said
# minus what came:

# %%
z = torch.randn(5, requires_grad=True)
shifted(z).backward()
came = F.one_hot(torch.tensor(target), 5)
torch.testing.assert_close(z.grad, z.softmax(0) - came)
print("probabilities", [f"{p:+.2f}" for p in z.softmax(0).tolist()])
print("gradient     ", [f"{g:+.2f}" for g in z.grad.tolist()], "sums to zero")

# %% [markdown]
# ## Two models, two tokenizers
#
# Now the question that the lesson has been steering to. We take the simplest models there are and give them different tokens. One counts how
# often each token occurs. The other counts *pairs*: how often token b came after token a. For pairs that it never saw it falls back on the first:
#
# $$p(b \mid a) = \frac{c(a b) + T(a)\, p(b)}{c(a) + T(a)}$$
#
# where $T(a)$ is the number of different tokens that were seen after a: where new ones often came, more are expected (Witten and Bell 1991).
# There is nothing to tune. Both are counted on the training files in seconds.
#
# **Predict:** from 257 ids to 4,096, does the loss for each token rise or fall? And then, which model is better?


# %%
def models_that_count(size):
    """Total nats for the validation files, of single tokens and of pairs; how many tokens they are; and the size of the table."""
    V, end = vocabulary(size).vocab, vocabulary(size).end
    read, unseen = ids_of(size)
    p_V = (np.bincount(read, minlength=V) + 1) / (len(read) + V)
    before_read, before = (np.append(end, ids[:-1]) for ids in (read, unseen))
    pairs, count = np.unique(before_read * V + read, return_counts=True)
    c_V = np.bincount(before_read, minlength=V)
    kinds_V = np.maximum(np.bincount(pairs // V, minlength=V), 1)  # T(a)
    wanted = before * V + unseen
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    c_ab = np.where(pairs[place] == wanted, count[place], 0)
    p_ab = (c_ab + kinds_V[before] * p_V[unseen]) / (c_V[before] + kinds_V[before])
    return -np.log(p_V[unseen]).sum(), -np.log(p_ab).sum(), len(unseen), len(pairs)


vocabularies = [257, 1024, 4096]
found = {size: models_that_count(size) for size in vocabularies}
size_of_text = sum(map(len, validation_bytes))
for size, (single, pair, n, entries) in found.items():
    print(
        f"{size:5,} ids: single tokens {single / n:.3f} nats a token, pairs {pair / n:.3f} ({entries:,} of them seen)"
    )

# %% [markdown]
# The loss rises and rises. By the number that everybody plots, bytes are best by far, and our tokenizer makes everything worse.
#
# But a token of the larger vocabulary says more. It is like comparing the speed of two runners by their minutes *for each lap*, on tracks of
# different length. Take the length of the track out: the cost of the **whole** text, which both models must pay, divided by something that no
# tokenizer can change, its bytes. And in bits rather than nats, because a byte is eight of them:
#
# $$\text{bits per byte} = \frac{\text{nats of all tokens}}{\ln 2 \cdot \text{bytes of the text}}$$

# %%
_, axes = plt.subplots(1, 2, figsize=(9, 3.4))
bits = {}
for which, name in enumerate(["single tokens", "pairs"]):
    nats = [found[size][which] for size in vocabularies]
    bits[name] = [total / math.log(2) / size_of_text for total in nats]
    axes[0].plot(
        vocabularies, [t / found[size][2] for t, size in zip(nats, vocabularies, strict=True)], "o-", label=name
    )
    axes[1].plot(vocabularies, bits[name], "o-", label=name)
axes[0].set(xlabel="ids", ylabel="nats a token", title="The loss: bytes look best")
axes[1].set(xlabel="ids", ylabel="bits a byte", title="The same models, by what the text costs")
for axis in axes:
    axis.set(xscale="log", ylim=(0, None), xticks=vocabularies)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.minorticks_off()
axes[0].legend(loc="lower right")
plt.show()
for name, values in bits.items():
    print(
        f"{name:14}",
        ", ".join(f"{size:,} ids {value:.2f}" for size, value in zip(vocabularies, values, strict=True)),
        "bits a byte",
    )

# %% [markdown]
# *Figure: two panels over the size of the vocabulary. On the left, nats a token rise for both models; on the right, bits a byte of the same
# models fall.*
#
# The order has turned round completely. Same models, same texts, same nats, and the other winner. **Losses for each token may be compared only
# between models with the same tokenizer.** With different ones, convert. The course's data know how:

# %%
from course.training.data import Data

data = Data(thousand, *ids_of(1024), 1024, "")
loss = found[1024][1] / found[1024][2]
assert math.isclose(data.bits_per_byte(loss), bits["pairs"][vocabularies.index(1024)], rel_tol=1e-9)
print(f"{loss:.3f} nats a token are {data.bits_per_byte(loss):.3f} bits a byte here")

# %% [markdown]
# Three ways to get it wrong that were found in published code: nats called bits (lm-evaluation-harness, pull request 242), characters called
# bytes (adaptive-span, issue 17), and tokens that are half a character counted as the three bytes of the replacement sign (nanochat, pull request
# 693). Lab 01.5 is that division, with everything that can go wrong.
#
# ## Does it hold for a real model?
#
# A table of pairs sees one token back, so longer tokens also let it see further. A transformer looks back over 256 tokens anyway. Does a larger
# vocabulary help it as well? That takes a quarter of an hour of training, so it is a recorded experiment: the same two million bytes of Python in
# tokens of three sizes, three seeds each, and a rule for the verdict that was fixed before it ran.
#
# **Predict:** by nats a token the order is clear beforehand. By bits a byte, which vocabulary wins, and by more than the seeds lie apart?

# %%
record = course.recorded("vocabulary")
for size, runs in record["runs"].items():
    arm, mean = record["arms"][size], {key: np.mean([run[key] for run in runs]) for key in runs[0]}
    took = arm["settings"]["steps"] * arm["seconds_of_a_step"]
    print(
        f"{int(size):6,} ids: {mean['nats_per_token']:.3f} nats a token, {mean['bits_per_byte']:.3f} bits a byte, ",
        end="",
    )
    print(f"{arm['settings']['steps']} steps of {1e3 * arm['seconds_of_a_step']:.0f} ms: {took:.0f} s")

# %%
_, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, key, label in [(axes[0], "nats_per_token", "nats a token"), (axes[1], "bits_per_byte", "bits a byte")]:
    for place, runs in enumerate(record["runs"].values()):
        values = [run[key] for run in runs]
        axis.plot([place] * len(values), values, "o", ms=5, color="#0072B2", alpha=0.7)
        axis.plot([place - 0.2, place + 0.2], [np.mean(values)] * 2, color="#0072B2")
    axis.set(xlabel="ids", ylabel=label, xlim=(-0.5, 2.5), xticks=range(3))
    axis.set_xticklabels([f"{int(size):,}" for size in record["runs"]])
axes[0].set_title("The loss of a transformer")
axes[1].set_title("What the text costs it, zoomed in")
plt.show()
for pair, verdict in record["verdicts"].items():
    print(
        f"{pair}: gap {verdict['gap']:+.3f} bits a byte, seeds {verdict['largest_spread']:.3f} apart: {verdict['better']}"
    )

# %% [markdown]
# *Figure: nine dots in each panel, three seeds for each size, with their means. On the left, nats a token climb from 1.5 to 4.9; on the right,
# bits a byte lie between 2.13 and 1.99, falling slightly, and the dots of neighbouring sizes overlap.*
#
# By the loss, the model on bytes is three times as good. By what the text costs it is the worst of the three, if only just: 4,096 ids beat bytes
# by 0.087 bits with seeds 0.068 apart, and each of the two neighbouring steps is **not resolved**. For the table of pairs the same change nearly
# halved the bits. So most of what longer tokens do for a table, a transformer does by itself, by looking back. What they save it is *time*: with
# 1,024 ids it read the same text in less than half the time, and with 4,096, whose steps are longer for the wide softmax, still in half. That is
# why models have tokenizers.
#
# (One size of model, one learning rate, two megabytes: a claim about this corner only. The text that fits into a context of 256 tokens grows with
# the token, too; that is part of what one buys.)
#
# ## A loss is a file size
#
# Why bits? Because the number is more than a score. A model that gives the next token probability $p$ lets you *store* that token in $-\log_2(p)$
# bits, and the whole text in the sum of them. Not in theory: here is the program. It narrows an interval, starting from 0 to 1. Each token takes
# the part of the interval that belongs to it, as wide as its probability; at the end any number inside the interval names the whole text.
# (*Arithmetic coding*, from the 1970s. Exact fractions, so it is slow and short.)

# %%
from fractions import Fraction

read = ids_of(257)[0]
table_VV = np.bincount(np.append(256, read[:-1]) * 257 + read, minlength=257 * 257).reshape(257, 257) + 1
ends_VV = table_VV.cumsum(axis=1)  # token b after a owns the places from ends[a, b] - table[a, b] to ends[a, b]


def squeeze(ids):
    """The shortest number, in bits, inside the interval that the ids lead to."""
    low, width, before = Fraction(0), Fraction(1), 256
    for i in ids:
        whole = int(ends_VV[before, -1])
        low += width * Fraction(int(ends_VV[before, i] - table_VV[before, i]), whole)
        width *= Fraction(int(table_VV[before, i]), whole)
        before = i
    bits = 0
    while Fraction(math.ceil(low * 2**bits), 2**bits) >= low + width:
        bits += 1
    return format(math.ceil(low * 2**bits), f"0{bits}b")


# %%
def unsqueeze(text):
    """Back from the number to the ids: at each step, in whose part of the interval does it lie?"""
    number, low, width, before, ids = Fraction(int(text, 2), 2 ** len(text)), Fraction(0), Fraction(1), 256, []
    while before != 256 or not ids:
        whole = int(ends_VV[before, -1])
        i = int(np.searchsorted(ends_VV[before], int((number - low) / width * whole), side="right"))
        low += width * Fraction(int(ends_VV[before, i] - table_VV[before, i]), whole)
        width *= Fraction(int(table_VV[before, i]), whole)
        before = i
        ids.append(i)
    return ids


ids = [*shown, 256]
stored = squeeze(ids)
assert unsqueeze(stored) == ids
chances = [table_VV[a, b] / ends_VV[a, -1] for a, b in pairwise([256, *ids])]
print(visible(shown))
print(stored)
print(f"{8 * len(shown)} bits as it was, {len(stored)} stored, {-np.log2(chances).sum():.1f} by the loss")

# %% [markdown]
# The line went into that many zeros and ones and came back, letter for letter, and the length is the loss, give or take a bit or two. So **a
# language model is a compressor**, and its loss is the size of the file, if both sides have the model. That is why the cost of the end token
# counts: without it you would not know where to stop.
#
# Then the models can be compared with compressors. **Predict:** where do zip, bzip2 and xz fall among our tables of pairs and the recorded
# transformer?

# %%
import bz2
import lzma

joined = b"".join(validation_bytes)
before_it = b"".join(train_bytes)[-4_000_000:]
one_by_one = {
    "zlib (zip), file by file": sum(len(zlib.compress(text, 9)) for text in validation_bytes),
    "bz2, file by file": sum(len(bz2.compress(text, 9)) for text in validation_bytes),
    "lzma (xz), file by file": sum(len(lzma.compress(text)) for text in validation_bytes),
    "lzma, all in one": len(lzma.compress(joined)),
    "lzma, after 4 MB of training text": len(lzma.compress(before_it + joined)) - len(lzma.compress(before_it)),
}
sizes_in_bits = {name: 8 * size / len(joined) for name, size in one_by_one.items()}
models_in_bits = {f"pairs, {size:,} ids": b for size, b in zip(vocabularies, bits["pairs"], strict=True)}
models_in_bits["single bytes"] = bits["single tokens"][0]
for size, runs in record["runs"].items():
    models_in_bits[f"transformer, {int(size):,} ids (recorded)"] = np.mean([run["bits_per_byte"] for run in runs])

# %%
everyone = sorted((sizes_in_bits | models_in_bits).items(), key=lambda item: -item[1])
_, axis = plt.subplots(figsize=(9, 4.6))
colours = [
    "#E69F00" if name in sizes_in_bits else "#009E73" if "transformer" in name else "#0072B2" for name, _ in everyone
]
bars = axis.barh([name for name, _ in everyone], [value for _, value in everyone], color=colours, height=0.7)
axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
for name, colour in {"compressor": "#E69F00", "counts": "#0072B2", "transformer": "#009E73"}.items():
    axis.plot([], [], "s", color=colour, label=name)
axis.set(xlabel="bits a byte (stored as it is: 8)", title="What the validation files cost", xlim=(0, 5.2))
axis.grid(axis="y", visible=False)
axis.legend(loc="lower right", bbox_to_anchor=(1, 0.6))
axis.invert_yaxis()
plt.show()

# %% [markdown]
# *Figure: bars of bits a byte, the longest on top: single bytes near 4.6, pairs of bytes 3.5, then compressors, tables of pairs and transformers
# crowd between 2.2 and 1.8; at the bottom lzma, when it has read four megabytes of the training files before.*
#
# Is this fair? Not very, and it is worth saying how. The compressors start from nothing, except for the last bar; the tables were counted on 11
# MB; the transformers have read 2 MB. And a table would have to be sent along with the file: the largest has more entries than the validation
# files have tokens. Still, look at the bottom. A compressor that remembers *exactly* what it read in the last megabytes beats everything that we
# have. To be better, a model must do more than remember. Keep its number in mind; units 03 and 04 train models that you may hold against it.

# %% [markdown]
# ## Turn the knobs
#
# Any text, any vocabulary up to 4,096.


# %%
def knobs(text="for i in range(10): print(i)", size=1024):
    learned = vocabulary(size)
    ids = learned.encode(text)
    cut = [learned.tokens[i] for i in ids]
    draw({f"{len(text.encode())} bytes": [bytes([b]) for b in text.encode()], f"{len(ids)} tokens": cut}, "")
    print(ids)


knobs("class Mixture(nn.Module):  # one hundred experts", size=1024)

# %% [markdown]
# *Figure: the line once as bytes, all grey, and once as tokens of the vocabulary with 1,024 ids, the words of Python in one or two boxes, the
# others in many.*
#
# Run the next cell to type your own (it needs a running notebook).

# %%
from ipywidgets import IntSlider, Text, interact

controls = interact(
    knobs,
    text=Text("def hello(name):", continuous_update=False),
    size=IntSlider(1024, 257, 4096, continuous_update=False),
)

# %% [markdown]
# Three things to try: your own name, with and without a blank in front; a word in capitals; and a number with five digits.
#
# ## What we measured
#
# - A tokenizer from nothing: merge, count, settle ties, replay; the same merges as the `tokenizers` library on 11 MB of Python, and the same ids
#   on every file that it had not seen.
# - Cuts cost compression, some six percent here, and buy tokens that mean the same everywhere, and a training that takes seconds.
# - Encoding greedily instead of by rank changes one piece in a dozen, and the number of tokens hardly at all.
# - A sentence in Hindi costs some eight times the tokens of the same sentence in English, for a tokenizer that has read Python.
# - From 257 to 4,096 ids the loss of a table of pairs nearly doubles, and the cost of the text nearly halves. Only the second number is about the
#   model.
# - A transformer gains 0.09 bits a byte from 4,096 ids over bytes (recorded, three seeds, resolved), and half of the time.
#
# **What surprised:** that the transformer gains so little from longer tokens, and a table so much; and that `xz`, which knows nothing of Python,
# beats all of them once it has seen four megabytes of it. Whoever reads "loss 1.45 against 4.86" without asking *for what* has learned the
# opposite of what happened.
#
# **To read**
#
# - Sennrich, Haddow, Birch 2016, *Neural Machine Translation of Rare Words with Subword Units*, section 3.2: byte-pair encoding, and its code in
#   twenty lines.
# - Radford et al. 2019, the GPT-2 report, section 2.2: bytes for characters, and why to cut.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, section 4.1: one paragraph on its tokenizer, with a trick for tokens that join punctuation
#   and line ends.
# - Shannon 1951, *Prediction and Entropy of Printed English*: people as language models, in bits a letter.
# - Delétang et al. 2024, *Language Modeling Is Compression*, sections 2 and 3: large models against gzip, on text, pictures and sound.
# - Liu et al. 2025, *SuperBPE*: what is gained when merges may cross the cut after all.
#
# **Now the lab:** `labs/01_tokens.ipynb`. You write a merge that says what it changed, a trainer with rules, an encoder with special tokens, a
# loss that survives anything, and the division that makes losses comparable. Then your tokenizer meets the library's.
