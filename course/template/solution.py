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
# # Lab 99 · TITLE
#
# Stuck? `course hint 99.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

# %% tags=["setup"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("course") is None:  # on Colab: install the course once
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "moe-to-metal"])

from course import check, mine

import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# %% [markdown]
# ## 99.1 · An example
#
# What is asked, why, and the shapes.
#
# | | shape | |
# |---|---|---|
# | `x_TD` | `[T, D]` | float32 |
# | returns | `[T]` | the mean square of each row |
#
# **Exercise 99.1** · difficulty 1 of 5 · 5 minutes · 5 points


# %% tags=["exercise:99.1"]
# exercise 99.1
def mean_square(x_TD: Tensor) -> Tensor:
    """The mean of the squares of each row."""
    ### BEGIN SOLUTION
    return x_TD.pow(2).mean(dim=-1)
    ### END SOLUTION


# %% tags=["check:99.1", "nbval-check-output"]
check("99.1", mean_square)
