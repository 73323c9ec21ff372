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
# # Lesson 99 · TITLE
#
# Start from a question, and say how long the lesson takes.

# %% tags=["setup"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("course") is None:  # on Colab: install the course once
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "moe-to-metal"])

import course  # first: it decides how Triton runs before anything imports it

import matplotlib.pyplot as plt
import torch

plt.style.use("course.lesson")
torch.manual_seed(0)
print("course", course.__version__, "· torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## One question
#
# Ask for a prediction before each experiment: how large is the mean square of a row of random numbers?

# %%
x_TD = torch.randn(6, 64)
plt.bar(range(6), x_TD.pow(2).mean(dim=-1))
plt.title("Mean square of six random rows")
plt.xlabel("row")
plt.ylabel("mean square")

# %% [markdown]
# *Six bars, all near 1.* Then one sentence on what it means.
#
# ## What we measured, what surprised, what to read
#
# A paper and its section. Then the lab: `labs/99_slug.ipynb`.
