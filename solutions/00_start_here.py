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
# # Lab 00 · Start here
#
# Two small functions, about 25 minutes: one counts parameters, the other writes a bill. You will meet both functions again
# in later units. Just as much, this lab shows you the *check*, so take your time with it.
#
# How a lab works:
#
# - Every exercise has a text, an **answer cell** and a **check cell**. In the answer cell, replace the two lines
#   `# YOUR CODE HERE` and `raise NotImplementedError`. Run it (Shift+Enter), then run the check below it.
# - Check as often as you like: a wrong answer costs nothing. An answer that has passed is kept, and later labs go on with it,
#   even if you change the cell afterwards and the check fails again.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell, and what you defined elsewhere is not seen.
# - Stuck? `course hint 00.1` in a terminal gives a nudge, then a bigger one, then nearly the answer. Hints cost nothing.
# - The line above an answer cell tells its difficulty, minutes and **points**. Points matter only in a class, where a grade adds them up.
#   **Spine** marks the exercises of the short path: do just those, and you have been through the whole course once.
#
# First run the set-up cell.

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
# ## 00.1 · What a stack of layers learns
#
# A dense layer from 3 numbers to 2 multiplies with a matrix of 2 rows and 3 columns, and then, if it has a *bias*, adds a vector:
#
# $$y = W x + b$$
#
# What it learns are the entries of $W$ and $b$. Stack such layers, so that what one gives is what the next one takes, and a list of
# widths describes the whole: `[784, 128, 10]` is a layer from 784 to 128 and one from 128 to 10.
#
# How many numbers does the stack learn?
#
# | | |
# |---|---|
# | `widths` | a list of ints, at least one: the size of the input, then of the output of each layer |
# | `bias` | bool: whether the layers have biases (all of them or none) |
# | returns | an int: a count is a whole number, 8 and not 8.0 |
#
# For example, `count_dense([3, 2], bias=True)` is 8. And a list with a single width? That is data and no layer: 0.
#
# Get to know the check while you are here, in three steps:
#
# 1. Run the answer cell and the check cell **as they are**. The check says *not done yet*.
# 2. Replace the two lines by `return 0` and run both again. Now it shows the first case that fails: what went in, what was
#    wanted, what you returned. Some wrong answers are common; if yours behaves like one of them, the check says which.
# 3. Now write your own.
#
# **Exercise 00.1** · difficulty 1 of 5 · 10 minutes · 5 points · spine


# %% tags=["exercise:00.1"]
# exercise 00.1
def count_dense(widths: list[int], bias: bool) -> int:
    """How many parameters a stack of dense layers has."""
    ### BEGIN SOLUTION
    weights = sum(widths[i] * widths[i + 1] for i in range(len(widths) - 1))
    biases = sum(widths[1:]) if bias else 0
    return weights + biases
    ### END SOLUTION


# %% tags=["check:00.1", "nbval-check-output"]
check("00.1", count_dense)

# %% [markdown]
# When it has passed, the answer is kept. Later labs run on it: `mine("00.1")` is your function, and until you have one, the
# course's.
#
# ## 00.2 · The bill
#
# DeepSeek's report states the cost of training in two steps: so many GPU hours, so many dollars for each. Write both steps, from the
# numbers that one knows before a run.
#
# A run has `tokens` to read. `gpus` GPUs share the work, and each of them reads `tokens_per_second`. GPUs come in **nodes** of
# `node` pieces, and one can only rent whole nodes: nine GPUs in nodes of eight means two nodes, sixteen GPUs on the
# bill, seven of them idle. For each rented GPU, each hour costs `price` dollars, busy or not.
#
# | | |
# |---|---|
# | `tokens` | float, all tokens of the run |
# | `gpus` | int, at least 1: the GPUs that work |
# | `tokens_per_second` | float, of **one** GPU |
# | `price` | float, dollars for one GPU hour |
# | `node` | int, GPUs in a node |
# | returns `days` | float: how long the run takes |
# | `gpu_hours` | float: how many GPU hours are paid |
# | `dollars` | float: what they cost |
#
# Return the three as a tuple, in this order. For example, 9 GPUs in nodes of 8, each reading 1,000 tokens a second, finish 32.4 million
# tokens in one hour; at 2 dollars that is 1/24 of a day, 16 GPU hours and 32 dollars. Do not round anything but the number of nodes.
#
# **Exercise 00.2** · difficulty 2 of 5 · 10 minutes · 5 points · spine


# %% tags=["exercise:00.2"]
# exercise 00.2
def training_bill(
    tokens: float, gpus: int, tokens_per_second: float, price: float, node: int
) -> tuple[float, float, float]:
    """Days, GPU hours paid, and dollars of a training run on whole rented nodes."""
    ### BEGIN SOLUTION
    seconds = tokens / tokens_per_second / gpus
    nodes = -(-gpus // node)
    gpu_hours = nodes * node * seconds / 3600
    return seconds / 86_400, gpu_hours, price * gpu_hours
    ### END SOLUTION


# %% tags=["check:00.2", "nbval-check-output"]
check("00.2", training_bill)

# %% [markdown]
# ## Your functions at work
#
# No exercise here: run the cells. `mine` fetches your own functions, if they have passed.
#
# First the count, held against PyTorch's own layers:

# %%
count = mine("00.1")
stack = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
by_torch = sum(weight.numel() for weight in stack.parameters())
assert count([784, 128, 10], bias=True) == by_torch
print(f"{by_torch:,} parameters, by both counts")

# %% [markdown]
# Then the bill. DeepSeek-V3 read 14.8 trillion tokens in 2.664 million GPU hours of pre-training (quoted: V3 report, Table 1), which makes
# the speed of one H800. The report's cluster had 2,048 of them (quoted: section 3.1), and an H800 rents for 2 dollars an hour by its own
# assumption. **Predict:** if the speed of one stays the same, what do 256 GPUs cost, what 16,384, and what 2,049?

# %%
bill = mine("00.2")
speed = 14.8e12 / (2.664e6 * 3600)
print(f"one H800: {speed:,.0f} tokens a second (computed)")
for gpus in [256, 2048, 2049, 16_384]:
    days, gpu_hours, dollars = bill(14.8e12, gpus, speed, price=2.0, node=8)
    print(f"{gpus:6,} GPUs: {days:6.1f} days, {gpu_hours:,.0f} GPU hours, {dollars:,.0f} dollars")

# %% [markdown]
# (All computed.) While the nodes are full, the days change and the dollars do not: a GPU hour is a GPU hour, which is why reports count
# in them. One GPU more than 2,048 opens a node with seven idle ones, and the bill rises a little.
#
# It is also where this simple bill goes wrong: with more GPUs more time goes into talking to each other, and the speed of each falls. How
# far it falls on an H800 is the subject of units 15 to 17.
#
# **Next:** lesson 01, where a text becomes numbers.
