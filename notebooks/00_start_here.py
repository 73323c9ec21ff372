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
# # Lesson 00 · Start here
#
# In January and February 2025 a story went round the world. A little known company, DeepSeek, had shaken the industry: its model was said
# to beat OpenAI's best, at a tenth of the cost, on chips that export rules had made weaker, thanks to a design called *mixture of experts*,
# and anybody could download it. In the same January others had announced data centres for 500 billion dollars. (This is our own summary of
# the press of those weeks, no quotation.)
#
# How much of that can *you* test, with a laptop and the tables that were published?
#
# More than you might think. You build the model, its kernels and a model of the machine that it ran on, and in
# unit 20 you come back to the story with evidence of your own. Some of it cannot be tested: whether the rules were wise, whether
# weights should be free, who ought to spend what. No code answers such questions, so we leave them to you.
#
# Two models hide behind the one name. **DeepSeek-V3** (December 2024) is the large language model whose training cost made the news.
# **DeepSeek-R1** (January 2025) is V3 trained further, to think before it answers; it is the one that was compared with OpenAI's **o1**.
#
# About 40 minutes with your predictions. Nothing more to install, no GPU.

# %% tags=["setup"]
try:
    import course  # first: it decides how Triton runs before anything imports it
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    import course

import math
import matplotlib.pyplot as plt
import torch

plt.style.use("course.lesson")
torch.manual_seed(0)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## A few words first
#
# - A **token** is the piece of text that a model reads or writes at a time: a word, or part of one.
# - A **parameter**, or **weight**, is a number that training may change. A *model* is its parameters and the sums that use them.
# - **Pre-training** has a model guess the next token of very much text; **post-training** makes an assistant of the result.
# - A **GPU** is the processor that does the sums, and a **kernel** is a program for it: one step, such as a product of matrices.
# - A **seed** is where random numbers start. Training again with another seed gives another, slightly different model.
#
# ## Now, your own predictions
#
# A result teaches most when you expected another. So before you see any number, write down what you think: for each claim a
# number (a wild guess is fine), and whether the claim will stand. It is not graded, and it stays on your machine.
#
# Seven claims, each with a question. The number that answers it is *related* to the claim; it is no proof, for or against.

# %%
claims = {
    "experts": ("It is thanks to the experts.", "What share of V3's parameters does one token use, in percent?"),
    "open": ("Anybody can have it.", "How many H800 (a GPU sold as 80 GB) hold V3, at one byte a parameter?"),
    "training": ("Its training was cheap.", "What did the GPU time for V3 cost, in millions of dollars?"),
    "price": ("It costs a tenth.", "How many times R1's price did o1 cost, for each token it writes?"),
    "better": ("It beats OpenAI's model.", "Of ten tests, in how many did R1 score higher than o1?"),
    "chip": ("Its chips are weaker.", "How fast does an H800 multiply matrices, in percent of an H100?"),
    "stargate": ("Then why 500 billion?", "How many trainings like V3's would 500 billion dollars pay for?"),
}
for key, (claim, question) in claims.items():
    print(f"{key:9} {claim}\n{'':9} {question}")

# %% [markdown]
# Your answers go into one small file, `predictions.json` in your workspace, and unit 20 reads them from there. Where this notebook has no
# workspace (on the web, in Colab), they last until it closes.
#
# Run the next two cells, folded away: the first keeps what you write, the second shows the form. What you type is kept as soon as you
# leave a field. Come back whenever you like. (If results from our own run already stand further down, do not scroll yet.)

# %% jupyter={"source_hidden": true}
import json
import re

from course.authoring import files, places

home = places.home()  # your workspace, or None
path = home / "predictions.json" if home else None
written = {}
if path and path.is_file():
    try:
        written = {key: dict(said) for key, said in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError):  # no longer JSON: put aside, not overwritten
        path.rename(files.free_name(path, "unreadable-"))


def keep(key, guess="", belief=""):
    """Write one prediction down, whole or not at all, and say in a sentence where it went."""
    text = str(guess).strip()
    if key not in claims:
        return f"there is no claim {key!r}, there is {', '.join(claims)}"
    if not re.fullmatch(r"(\d{1,15}(\.\d{1,6})?)?", text):
        return "a number in digits, please, like 1234 or 1234.5"
    written[key] = {"guess": (float(text) if "." in text else int(text)) if text else None, "belief": belief}
    try:
        if path:
            files.write(path, json.dumps(written, indent=2) + "\n")
    except OSError as error:
        return f"noted, but not kept in the workspace: {error.strerror}"
    return f"kept in {path.name}" if path else "noted, until this notebook closes"


# %% jupyter={"source_hidden": true}
from IPython.display import display

try:
    import ipywidgets as widgets
except ImportError:
    widgets = None

BELIEFS = ["", "it holds", "it holds in part", "it does not hold", "code cannot tell"]


def row(key):
    """One claim: its question, a field for a number, a choice, and where the answer went."""
    claim, question = claims[key]
    before = {"guess": None, "belief": ""} | written.get(key, {})
    shown = "" if before["guess"] is None else str(before["guess"])
    guess = widgets.Text(shown, description="number", continuous_update=False)
    belief = widgets.Dropdown(options=BELIEFS, description="the claim", layout={"width": "260px"})
    belief.value = before["belief"] if before["belief"] in BELIEFS else ""
    note = widgets.Label()
    for field in (guess, belief):
        field.observe(lambda _: setattr(note, "value", keep(key, guess.value, belief.value)), names="value")
    return widgets.VBox([widgets.HTML(f"<b>{claim}</b> {question}"), widgets.HBox([guess, belief, note])])


if widgets:
    display(widgets.VBox([row(key) for key in claims]))
print('No form? In a cell of your own, a line for each claim: keep("its key above", 1234, "code cannot tell")')

# %% [markdown]
# From here on each claim gets its first number, and `result` puts your prediction beside it.

# %%
found = {}


def result(key, answer):
    """Show a result beside the prediction for it."""
    found[key] = answer
    guess = written.get(key, {}).get("guess")
    print(f"{claims[key][1]}\n  here: {answer} (computed)\n  you:  {'nothing written' if guess is None else guess}")


# %% [markdown]
# ## What kind of number is this?
#
# In this course every result is one of four kinds, and the text says which.
#
# | kind | what it means | can you doubt it? |
# |---|---|---|
# | *measured here* | a cell measured it, on the machine in front of you | run it again; yours will differ from ours |
# | *quoted* | somebody published it; the source is named, and *second-hand* says that we saw it quoted and not in the original | read the source |
# | *computed* | follows from other numbers, in a cell that you can read | check the arithmetic and what went in |
# | *H100 as a proxy* | measured on an H100, which has the chip of the H800 and faster links | fair for kernels, not for communication |
#
# ## What is a parameter?
#
# The plainest layer of a network, a *dense* layer, takes a vector, multiplies it with a matrix of parameters, and adds to each number that
# comes out one more parameter, its *bias*.
#
# **Predict:** a small image of 28 x 28 pixels goes in, 128 numbers come out. How many parameters is that, biases included?

# %%
layer = torch.nn.Linear(28 * 28, 128)
for name, weight in layer.named_parameters():
    print(f"{name:7} shape {list(weight.shape)!s:11} {weight.numel():8,} numbers")
print(f"together {sum(weight.numel() for weight in layer.parameters()):,} (computed)")

# %% [markdown]
# One number for each pair of an input and an output, and a bias for each output. So a layer that is twice as wide on both sides has
# about four times as many. **Predict:** the matrix of a square layer as wide as DeepSeek-V3, 7,168 numbers in and out (quoted: V3 report,
# section 4.2)?

# %%
for width in [128, 1024, 7168]:
    print(f"width {width:5,}: {width * width:12,} weights (computed)")

# %% [markdown]
# Fifty million, in one matrix. In a *dense model*, built of such layers alone, every matrix takes part in every token that is read. In
# DeepSeek-V3, few do.
#
# ## Owning and using
#
# In a mixture of experts, each layer holds many small networks, the *experts*, and each token is sent to a few of them. So two counts describe
# such a model: **total**, what must be stored, and **active**, what one token is multiplied with. V3 has 671 billion parameters, 37 billion
# of them active (quoted: V3 report, section 4.2).

# %%
total, active = 671e9, 37e9
result("experts", f"{active / total:.1%}")

# %%
from matplotlib.colors import ListedColormap

squares = torch.zeros(61 * 11)  # 671 squares, one for each billion
squares[:37] = 1
figure, axis = plt.subplots(figsize=(7.5, 2.1))
colours = ListedColormap(["#c6dbef", "#0072B2"])
axis.pcolormesh(squares.view(61, 11).T, cmap=colours, edgecolors="white", linewidth=0.8)
axis.set(title="DeepSeek-V3: a square is a billion parameters, dark is what one token uses", aspect="equal")
axis.invert_yaxis()
axis.axis("off")
plt.show()

# %% [markdown]
# *Figure: 671 squares in 61 columns; the first 37, a little more than three columns at the left edge, are dark.*
#
# Another token uses other squares. Where do the pale ones sit? The report gives the shapes: 58 layers with 256 experts, each of three
# matrices between 7,168 and 2,048. A token is sent to 8 of the 256, and to one *shared* expert, the same for all tokens (quoted: V3 report,
# section 4.2).

# %%
one_expert = 3 * 7168 * 2048
experts, sent_to = 58 * 256 * one_expert, 58 * 8 * one_expert
rest = total - experts  # shared experts, attention, the first and last layers: used by every token
print(f"one expert: {one_expert:,} parameters (computed)")
print(f"all of them: {experts / 1e9:.0f} billion, {experts / total:.0%} of the model (computed)")
print(f"one token: {sent_to / 1e9:.1f} billion of those + {rest / 1e9:.1f} billion of the rest (computed)")

# %% [markdown]
# Together 37.5 billion, near the report's 37 (the rest holds a table of nearly a billion, of which a token needs one row).
#
# So "thanks to the experts" at least describes the model: nearly all of it is experts. Whether a token that uses 37 billion of 671 is served
# better than by a dense model of 37 billion, for the same work, is the real claim. It needs an experiment, with several seeds, and you run
# one in units 03 to 05.
#
# ## Having the weights
#
# R1's weights, as many as V3's, are there to download under the MIT licence (quoted: its README). What does it take to hold them? DeepSeek's own
# profile of an H800 reports 84,943,110,144 bytes of memory (quoted: `profile-data`, the training trace).

# %%
h800_bytes = 84_943_110_144
need = total / h800_bytes  # one byte a parameter: eight-bit numbers, unit 13
result("open", f"{math.ceil(need)} GPUs, which are then {need / math.ceil(need):.1%} full")

# %% [markdown]
# Eight GPUs are one whole server, full to the brim before the first token is read. (By its label you get nine, a fair answer: the card
# holds more than the 80 billion bytes that it is sold as.) Open weights are something else than a model
# on your desk; in unit 07 a small model of the same design runs on your laptop, on parts that you wrote.
#
# ## From hours to dollars
#
# Now the number that made the news. The report counts GPU hours, one GPU for one hour, in three stages: pre-training on 14.8 trillion
# tokens, an extension to longer texts (*context*), and post-training. It then *assumes* that an H800 rents for 2 dollars an hour (quoted:
# V3 report, Table 1).

# %%
hours = {"pre-training": 2_664_000, "context extension": 119_000, "post-training": 5_000}
for stage, spent in hours.items():
    print(f"{stage:18} {spent:9,} hours {spent * 2:11,} dollars {spent / sum(hours.values()):6.1%}")
all_hours = sum(hours.values())
dollars = all_hours * 2.0
print(f"{'together':18} {all_hours:9,} hours {dollars:11,.0f} dollars (computed)")
result("training", f"{dollars / 1e6:.3f} million dollars")

# %% [markdown]
# The hours are quoted, the price is assumed. **What that leaves out.** The report says it itself, in section 1: the sum is for the final
# training alone. The research before it, and the experiments with other designs and other data, are not in it. Nor are people, or the price
# of owning a cluster. And it is V3's bill: turning V3 into R1 came on top (294,000 dollars of GPU time, again at 2 dollars an hour; quoted
# second-hand: techspot.com on the article in *Nature*).
#
# The price is a choice, too. **Predict:** how many times the bill would you pay at prices that were asked for an H100: from 1.99 to 5.00
# dollars in May 2026, above 8 in the first half of 2023?

# %%
for asked in [1.99, 5.00, 8.00]:
    print(f"{asked:.2f} dollars: {asked * all_hours / 1e6:4.1f} million, {asked / 2.0:.1f} times the bill (computed)")

# %%
rent = torch.linspace(1, 9, 50)
figure, axis = plt.subplots()
axis.axvspan(1.99, 5.00, color="#E69F00", alpha=0.2, label="H100 on demand, May 2026")
axis.axvline(8, color="#D55E00", linestyle="--", label="H100, first half of 2023: above this")
axis.plot(rent, rent * all_hours / 1e6)
axis.plot(2, dollars / 1e6, "o", color="#0072B2", label="DeepSeek's assumption")
axis.set(xlabel="rent (dollars for one GPU hour)", ylabel="bill (millions of dollars)", ylim=(0, None))
axis.set_title("The same 2.788 million GPU hours at other prices")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# *Figure: a straight line from 2.8 million dollars at 1 dollar an hour to 25 million at 9. DeepSeek's assumption is a point low on it, at
# 2 dollars and 5.6 million; a band marks 1.99 to 5.00 dollars, and a dashed line 8 dollars.*
#
# *Quoted second-hand: asking prices, mercatus-ai.com (2026) and aitechconnect (2023). They are for H100s and stand in for H800s, and none
# is from late 2024, when V3 was published.*
#
# From 2 to 8 dollars, the bill grows by a factor of four. The **hours** do not depend on a price. Can they be true?
#
# ## Are the hours possible?
#
# Here is a first test of consistency: do the published numbers fit together? Training costs about 6 operations for each active parameter
# and token: 2 on the way forward, 4 on the way back (unit 03 counts them properly). That many operations in that many hours is a speed. If
# it were more than an H800 can do, one of the numbers would be false. The cluster had 2,048 (quoted: V3 report, section 3.1). The peak of
# one is 990 TFLOP/s, 990 trillion operations a second, for matrix products in 16 bits (quoted second-hand: *Insights into DeepSeek-V3*,
# ISCA 2025).
#
# **Predict:** what percentage of that peak?

# %%
work = 6 * active * 14.8e12  # operations for 14.8 trillion tokens
speed = work / (hours["pre-training"] * 3600)
print(f"{work:.2e} operations, {speed / 1e12:.0f} TFLOP/s on each GPU, {speed / 990e12:.0%} of the peak (computed)")
print(f"{hours['pre-training'] / 2048 / 24:.0f} days of pre-training on 2,048 GPUs (computed)")

# %% [markdown]
# About a third of the peak: possible, and near what others reach (Llama 3.1 405B in 16 bits on H100s: 38 to 43 percent, quoted second-hand:
# aiportalx.com on Meta's paper). But V3 ran most of its products in 8 bits (quoted: V3 report, section 3.3), where the peak of this chip is
# twice as high (quoted second-hand: NVIDIA's data sheet of the H100). Which peak is fair? Units 13 and 15. And now a number that is
# *measured here*: how fast does your machine multiply matrices, and how long would *it* take? **Predict:** a year? A thousand?

# %%
import time

a = torch.randn(1024, 1024)
a @ a  # the first product sets things up
start = time.perf_counter()
for _ in range(10):
    a @ a
mine_per_second = 10 * 2 * 1024**3 / (time.perf_counter() - start)
years = work / mine_per_second / (365 * 24 * 3600)
print(f"measured here, on this CPU: {mine_per_second / 1e12:.2f} TFLOP/s")
print(f"DeepSeek-V3 on this machine alone: about {float(f'{years:.1g}'):,.0f} years (computed)")

# %% [markdown]
# This is why the course trains models of a few million parameters.
#
# ## A tenth of what?
#
# "A tenth of the cost" can mean the price of using a model, or the cost of making it. First the use. Both companies published a
# list of prices for a million tokens.

# %%
r1 = {"read": 0.55, "write": 2.19}  # dollars for a million tokens
o1 = {"read": 15.00, "write": 60.00}
for way in r1:
    print(f"{way:6} R1 {r1[way]:6.2f}   o1 {o1[way]:6.2f}   ratio {o1[way] / r1[way]:.1f} (computed)")
result("price", f"{o1['write'] / r1['write']:.1f} times")

# %% [markdown]
# *Quoted: R1, DeepSeek's list in early 2025 for new text (what its servers had lately read cost less). Quoted
# second-hand: o1, OpenAI's list as repeated in its developers' forum.*
#
# So by list price a tenth was too modest. But a price is not a cost, and a price for a token is not a price for an answer: a model that thinks
# longer writes more tokens. Unit 18 builds the cost from the machine up.
#
# And the making? We know of no published bill for o1, so nobody outside can compute that ratio. What can be compared is a model whose
# makers also counted hours: Meta spent 30.84 million H100 hours on Llama 3.1 405B (quoted: its model card), a dense model.

# %%
ratios = {
    "price of a token read, o1 / R1": o1["read"] / r1["read"],
    "price of a token written, o1 / R1": o1["write"] / r1["write"],
    "training hours, Llama 3.1 405B / V3": 30_840_000 / all_hours,
}
figure, axis = plt.subplots(figsize=(7.5, 2.4))
axis.barh(list(ratios), list(ratios.values()), color=["#0072B2", "#0072B2", "#009E73"], height=0.6)
for place, ratio in enumerate(ratios.values()):
    axis.text(ratio + 0.4, place, f"{ratio:.1f}", va="center")
axis.axvline(10, color="#57606a", linestyle="--", label="a tenth")
axis.set(xlabel="ratio (times)", title="Three readings of “a tenth of the cost”", xlim=(0, 31))
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# *Figure: three bars and a dashed line at 10. The two price ratios reach 27; the ratio of training hours reaches 11, just past the line.*
#
# The words "a tenth of the cost" do not say which is meant, and the one near ten does not speak of OpenAI's model at all. Hold on to that:
# a claim can be right about a number and vague about what it is a number of.
#
# ## Better?
#
# DeepSeek's own README lists ten tests with a score in percent for both R1 and o1 (version 1217). We leave an eleventh row out, the rating in
# Codeforces (2,029 against 2,061), whose percentile is among the ten. **Predict** once more: how large is the typical gap?

# %%
scores = {  # R1, o1 (quoted: README of DeepSeek-R1, evaluation table)
    "AIME 2024": (79.8, 79.2),
    "MATH-500": (97.3, 96.4),
    "GPQA Diamond": (71.5, 75.7),
    "MMLU": (90.8, 91.8),
    "DROP": (92.2, 90.2),
    "SimpleQA": (30.1, 47.0),
    "LiveCodeBench": (65.9, 63.4),
    "Codeforces, percentile": (96.3, 96.6),
    "SWE-bench Verified": (49.2, 48.9),
    "Aider-Polyglot": (53.3, 61.7),
}
gaps = {test: ours - theirs for test, (ours, theirs) in sorted(scores.items(), key=lambda s: s[1][0] - s[1][1])}
result("better", f"{sum(gap > 0 for gap in gaps.values())} of {len(gaps)}")

# %%
figure, axis = plt.subplots()
bars = axis.barh(list(gaps), list(gaps.values()), color=["#0072B2" if gap > 0 else "#D55E00" for gap in gaps.values()])
axis.bar_label(bars, fmt="%+.1f", padding=3)
axis.axvline(0, color="#57606a", linewidth=1)
axis.set(xlabel="R1 minus o1 (percentage points)", xlim=(-20, 6), title="Ten tests: who scored higher, and by how much")
axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# *Figure: ten bars, five to each side. R1's leads are small, 2.5 points at most; o1's largest is 16.9 points, on SimpleQA, a test of facts.
# Codeforces is drawn as points of percentile beside points of percent.*
#
# Five of ten, by the numbers of the side that built one of the two, and many gaps are about a point. AIME 2024 has 30 questions (quoted:
# data set HuggingFaceH4/aime_2024), and 79.8 percent of 30 is 23.94; no whole number, since R1's score averages 64 tries (quoted: the
# README). The gap of 0.6 points is a fifth of *one* question. Is such a gap real? You cannot say before you know how far two runs of the
# *same* model lie apart. In unit 03 you measure that, and from then on we call a smaller effect *not resolved*.
#
# ## A weaker chip?
#
# The H800 is the H100, altered so that export rules allowed its sale to China (quoted second-hand: Tom's Hardware, 2023). What was
# taken away?

# %%
h100 = {"matrix products, 16 bits": 989.4, "memory bandwidth": 3.35, "links between GPUs": 900}
h800 = {"matrix products, 16 bits": 990.0, "memory bandwidth": 3.35, "links between GPUs": 400}
share = {part: h800[part] / h100[part] for part in h100}  # TFLOP/s, TB/s, GB/s
result("chip", f"{share['matrix products, 16 bits']:.0%}")

figure, axis = plt.subplots(figsize=(7.5, 2.2))
bars = axis.barh(list(share), [100 * s for s in share.values()], color=["#0072B2", "#0072B2", "#D55E00"], height=0.6)
axis.bar_label(bars, fmt="%.0f %%", padding=3)
axis.set(xlabel="H800 (percent of the H100)", xlim=(0, 115), title="What the H800 has of an H100")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# *Figure: three bars. Matrix products and memory bandwidth stand at 100 percent, the links between GPUs at 44.*
#
# *Quoted second-hand: H800, *Insights into DeepSeek-V3* (ISCA 2025) and DeepSeek's published profile; H100, NVIDIA's data sheets.*
#
# In the sums of training it calculates as fast, and it talks less than half as fast. (Sums in 64 bits were cut as well, quoted second-hand:
# philisun.com; V3 does not need those.) A mixture of experts is just what makes GPUs talk: tokens travel to wherever their experts
# live. So here the story becomes technical. How do you hide the talking behind the calculating? Units 13, 15 and 16.
#
# ## And the 500 billion?
#
# On 21 January 2025, a day after R1 came out, the Stargate project named that sum, over four years (quoted second-hand:
# centerconsulting.com on SoftBank's press release). **Look at your prediction** for the number of V3s.

# %%
plan = 500e9
result("stargate", f"{plan / dollars:,.0f} trainings")
for_four_years = 2.0 * 24 * 365 * 4
print(f"one GPU at 2 dollars an hour, for four years: {for_four_years:,.0f} dollars (computed)")
print(f"for 500 billion: {plan / for_four_years / 1e6:.1f} million GPUs, day and night (computed)")
print(f"for V3: 2,048 GPUs, for {all_hours / 2048 / 24:.0f} days (computed)")

# %% [markdown]
# The number of trainings is right arithmetic, and misleads. It divides a plan for buildings, power and machines, which would serve users
# and train many models for years, by an assumed rent for one successful run. Who rents does not build. It is like dividing the cost of a
# railway by the price of a ticket: both may be true, and their quotient means little.
#
# ## The map
#
# Each claim has a first number, and none is settled. Here they are tested:

# %%
tested = {
    "thanks to the experts": [3, 4, 5, 11, 12],
    "anybody can have it": [7],
    "training was cheap": [8, 15, 17],
    "costs a tenth": [6, 14, 18],
    "beats OpenAI's model": [3, 19],
    "weaker chips": [8, 13, 15, 16],
    "why 500 billion": [17, 18],
    "what all of them stand on": [1, 2, 9, 10],
}
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for place, units in enumerate(tested.values()):
    colour = "#0072B2" if place < len(claims) else "#57606a"
    axis.plot([*units, 20], [place] * (len(units) + 1), "o-", color=colour, markersize=8, linewidth=0.6)
axis.set_yticks(range(len(tested)), list(tested))
axis.set(xticks=range(1, 21), xlabel="unit", title="Which unit tests which claim; unit 20 weighs them all")
axis.invert_yaxis()
plt.show()

# %% [markdown]
# *Figure: a grid of dots. The experts: units 3, 4, 5, 11, 12. The weights: 7. Training cost: 8, 15, 17. Price: 6, 14, 18. Scores: 3, 19.
# Chips: 8, 13, 15, 16. The 500 billion: 17, 18. The rest: 1, 2, 9, 10. Every line ends in unit 20.*
#
# Each unit has a lesson like this one and a lab, where you write the functions yourself. A **check** runs your answer on cases, in a process of
# its own, and says what differs; `course hint 00.1` in a terminal gives up to three hints. What has passed is kept, and later labs run on it.
#
# ## So far
#
# What can be said today, beside your own number and belief. Unit 20 opens this list again.

# %%
so_far = {
    "experts": "nearly all of V3 is experts; that they make it better is untested",
    "open": "to download, yes; to run, it takes a server",
    "training": "the final run took an eleventh of Llama's hours; the research is not counted",
    "price": "by list price less than a tenth; of the cost we know nothing yet",
    "better": "in half of ten tests, by DeepSeek's own table, and not by much",
    "chip": "not at arithmetic; at talking to each other they are",
    "stargate": "the quotient compares a plan for years with one rent",
}
for key, (claim, _) in claims.items():
    said = {"guess": None, "belief": ""} | written.get(key, {})
    guess = "no number" if said["guess"] is None else said["guess"]
    print(f"{claim:28} you: {guess}, {said['belief'] or 'no opinion yet'} · here: {found[key]}")
    print(f"{'':28} so far: {so_far[key]}")

# %% [markdown]
# **What surprised.** The weaker chip is not slower at arithmetic. The famous tenth is one twenty-seventh by list price, and one eleventh by
# hours, against another model than o1. And the number that carries the story, 5.576 million dollars, survives a first test, and its
# authors say themselves what it leaves out.
#
# **What to read.** DeepSeek-V3 report (arXiv 2412.19437), section 1 and Table 1, two pages. The README of DeepSeek-R1. The model card of Llama 3.1.
#
# **The lab.** `course lab 00` opens it: two functions, and your first check.
