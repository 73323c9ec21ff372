"""A course of one small unit whose notebooks import nothing: sources as text, and answers as the learner would give them."""

from pathlib import Path

SETUP = """\
# %% tags=["setup"]
def check(name, answer):
    try:
        verdict = "passed" if answer(3) == 9 else "failed"
    except NotImplementedError:
        verdict = "not done yet"
    print(f"{name}: {verdict}")
"""
LESSON = f"""\
# %% [markdown]
# # 04 · Squares
#
# What is $x^2$?

{SETUP}

# %%
3 * 3
"""
SOLUTION = f'''\
# %% [markdown]
# # Lab 04: squares

{SETUP}

# %% [markdown]
# Write the square.
#
# **Exercise 04.1** · difficulty 1 of 5 · 5 minutes · 2 points


# %% tags=["exercise:04.1"]
# exercise 04.1
def square(x):
    """x times x."""
    ### BEGIN SOLUTION
    product_of_both = x * x
    return product_of_both
    ### END SOLUTION


# %% tags=["check:04.1", "nbval-check-output"]
check("04.1", square)

# %% [markdown]
# And once more.
#
# **Exercise 04.2** · difficulty 2 of 5 · 10 minutes · 4 points · spine


# %% tags=["exercise:04.2"]
# exercise 04.2
def power(x):
    """x to the power of two."""
    ### BEGIN SOLUTION
    return x ** 2  # the second power
    ### END SOLUTION


# %% tags=["check:04.2", "nbval-check-output"]
check("04.2", power)

# %% [markdown]
# That is all.
'''


def write_course(root: Path, lesson: str | None = LESSON, solution: str = SOLUTION, slug: str = "04_squares") -> Path:
    """The sources of a unit under `root`."""
    for folder, text in (("notebooks", lesson), ("solutions", solution)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if text is not None:
            (root / folder / f"{slug}.py").write_text(text)
    return root
