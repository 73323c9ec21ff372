"""An answer is a source text: the whole cell that defines the entry function, with nothing around it but the prelude."""

import ast
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable

from course.checking.exercise import Exercise

PRELUDE = """\
import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
"""
KERNEL_PRELUDE = """\
import triton
import triton.language as tl
"""
ALIASES = {"np": "numpy", "F": "torch.nn.functional", "tl": "triton.language"}


class AnswerError(Exception):
    """One sentence: why this is no answer."""


def prelude(exercise: Exercise) -> str:
    """The names every answer to this exercise may rely on: what the set-up cell of a lab imports."""
    return PRELUDE + (KERNEL_PRELUDE if exercise.kernel else "")


def source_of(function: Callable, entry: str) -> str:
    """The source of a plain function, under the name `entry`, with the kernels of its module that it launches before it."""
    lines = textwrap.dedent(inspect.getsource(function))
    renamed = re.sub(rf"\bdef {function.__name__}\b", f"def {entry}", lines, count=1)
    return "".join(f"{kernel}\n\n" for kernel in _kernels_of(function)) + renamed


def _kernels_of(function: Callable) -> list[str]:
    """Sources of the module-level Triton kernels whose names occur in the function."""
    used = [function.__globals__.get(name) for name in function.__code__.co_names]
    return [textwrap.dedent(inspect.getsource(kernel.fn)) for kernel in used if hasattr(kernel, "fn")]


def cell_of(function: object) -> str:
    """The text of the notebook cell in which a function was defined, as it was last run."""
    code = getattr(function, "__code__", None)
    if code is None:
        raise AnswerError(f"check needs the function itself, and got {_described(function)}.")
    text = "".join(linecache.getlines(code.co_filename))
    if not text:
        raise AnswerError(
            f"The source of `{function.__name__}` cannot be found: run its answer cell again, then this one."
        )
    if "site-packages" in code.co_filename or re.search(r"course[\\/](model|exercises|kernels)", code.co_filename):
        raise AnswerError(f"`{function.__name__}` comes from a library: write it in the answer cell.")
    return text


def _described(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def look_at(exercise: Exercise, source: str) -> None:
    """Refuse what can be refused by reading.

    Raises: AnswerError when the text does not parse, does not define the entry, imports a part of course that it is
    not given, or calls what the exercise forbids.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise AnswerError(f"The answer cell is not valid Python{line}: {getattr(error, 'msg', error)}.") from None
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if exercise.entry not in defined:
        raise AnswerError(f"The answer cell does not define `{exercise.entry}` as a function.")
    names = dict(ALIASES)
    for node in ast.walk(tree):
        for module, alias, target in _imports(node):
            given = target == "course.mine" or _given(module, exercise.gives) or _given(target, exercise.gives)
            if module.split(".")[0] == "course" and not given:
                raise AnswerError(f"The answer imports `{target}`: this exercise asks you to write the part yourself.")
            names[alias] = target
    for node in ast.walk(tree):
        for called in _dotted(node, names):
            for forbidden in exercise.forbids:
                if called == forbidden:
                    shown = forbidden.removeprefix("Tensor")
                    raise AnswerError(f"Line {node.lineno} uses `{shown}`, which is out of bounds in this exercise.")


def begun(exercise: Exercise, source: str) -> bool:
    """Whether the entry function holds more than a docstring and the line that says that nothing is done."""
    body = next(node.body for node in ast.parse(source).body if getattr(node, "name", None) == exercise.entry)
    blank = [node for node in body if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and node is body[0])]
    return len(blank) < len(body)


def _imports(node: ast.AST) -> list[tuple[str, str, str]]:
    """(module, name in the answer, what that name stands for) of an import statement."""
    if isinstance(node, ast.Import):
        return [
            (a.name, a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names
        ]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [(module, a.asname or a.name, f"{module}.{a.name}") for a in node.names]
    return []


def _given(target: str, gives: tuple[str, ...]) -> bool:
    return any(target == module or target.startswith(module + ".") for module in gives)


def _dotted(node: ast.AST, names: dict[str, str]) -> list[str]:
    """The dotted names an expression may stand for: `F.softmax` as torch.nn.functional.softmax, `x.topk` as Tensor.topk."""
    if isinstance(node, ast.Name):
        return [names.get(node.id, node.id)]
    if not isinstance(node, ast.Attribute):
        return []
    parts, inner = [node.attr], node.value
    while isinstance(inner, ast.Attribute):
        parts, inner = [inner.attr, *parts], inner.value
    method = f"Tensor.{node.attr}"
    if isinstance(inner, ast.Name):
        root = names.get(inner.id, inner.id)
        dotted = ".".join([root, *parts])
        known = root in {"torch", *names.values()} and not dotted.startswith("torch.Tensor.")
        return [dotted] if known else [method]
    return [method]
