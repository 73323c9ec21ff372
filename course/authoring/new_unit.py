"""The files of a new unit: lesson, solution and one exercise that builds and passes, to be written over."""

import re
from contextlib import suppress
from pathlib import Path

from course.authoring import files
from course.authoring.percent import SourceError
from course.authoring.places import is_clone, root, units
from course.authoring.source import read_source

TEMPLATES = Path(__file__).parent / "templates"
INSTALL = """\
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("course") is None:  # on Colab: install the course once
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "moe-to-metal"])
"""
LAB_SETUP = (
    INSTALL
    + """
from course import check, mine

import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
"""
)


class NewUnitError(Exception):
    """Why a unit cannot be begun: one sentence."""


def new_unit(number: str, slug: str, title: str, at: Path | None = None) -> list[Path]:
    """Write the sources of a unit, such as "05", "deepseek_moe", "DeepSeekMoE". Nothing that exists is written over.

    Returns: the files written.
    Raises: NewUnitError for a number or slug that is none or is taken, and outside of a clone.
    """
    at = at or root()
    if not is_clone(at):
        raise NewUnitError("A unit is begun in a clone of the course, and this is an installed copy.")
    if not re.fullmatch(r"\d\d", number):
        raise NewUnitError(f"A unit's number has two digits, and {number!r} has not.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise NewUnitError(
            f"A unit's slug has small letters, digits and underscores, like deepseek_moe; {slug!r} has not."
        )
    if not title.strip() or "\n" in title:
        raise NewUnitError("A unit's title is one line of text.")
    if taken := [unit.slug for unit in units(at) if unit.number == number]:
        raise NewUnitError(f"There is a unit {number} already: {taken[0]}.")
    name, exercises = f"{number}_{slug}", at / "course" / "exercises" / f"u{number}"
    texts = {
        at / "notebooks" / f"{name}.py": _template("lesson"),
        at / "solutions" / f"{name}.py": _template("solution"),
        exercises / "__init__.py": '"""Unit @NN@, @TITLE@."""\n',
        exercises / "centre.py": _template("exercise"),
    }
    if there := [path for path in texts if path.exists()]:
        raise NewUnitError(f"{there[0].relative_to(at)} exists already.")
    values = {"@INSTALL@": INSTALL, "@SETUP@": _setup(at), "@NN@": number, "@SLUG@": name, "@TITLE@": title.strip()}
    for path, text in texts.items():
        for mark, value in values.items():
            text = text.replace(mark, value)
        files.write(path, text)
    return list(texts)


def _setup(at: Path) -> str:
    """The set-up cell that the labs have in common: the shortest one, or the first when there is no lab."""
    texts = []
    for unit in units(at):
        with suppress(SourceError):
            source = read_source(unit.source("solution", at), "solution")
            texts.append(next(cell.text for cell in source.cells if "setup" in cell.tags) + "\n")
    return min(texts, key=len, default=LAB_SETUP)


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.py.txt").read_text("utf-8")
