"""Reading a notebook file that may hold anything."""

import json
import os
import re
from pathlib import Path
from typing import Any

LIMIT = 50_000_000  # bytes
DEPTH = 100  # lists and dicts inside each other

Notebook = dict[str, Any]


class NotebookError(Exception):
    """Why a file is not a notebook that can be read: one sentence."""


def read_notebook(path: Path | str) -> Notebook:
    """A notebook of format 4 in a shape that can be relied on.

    Each cell has a cell_type, a text `source` with plain newlines, a dict `metadata` whose `tags` are a list of texts, and
    where it is code, `outputs` and an `execution_count`. Whatever else the file holds is kept as it is.

    Raises: NotebookError, and nothing else, for every other file.
    """
    path = Path(path)
    name = path.name.encode("utf-8", "replace").decode()
    try:
        if not path.exists():
            raise NotebookError(f"{name} is not there.")
        if not path.is_file():
            raise NotebookError(f"{name} is not a file.")
        if (size := os.path.getsize(path)) > LIMIT:
            raise NotebookError(
                f"{name} has {size / 1e6:.0f} MB, and a notebook may have {LIMIT / 1e6:.0f}: clear its outputs and save it."
            )
        return _checked(_parsed(path.read_bytes(), name), name)
    except (OSError, ValueError) as error:
        raise NotebookError(f"{name} cannot be read: {error}.") from None


def _parsed(data: bytes, name: str) -> Any:
    if not data.strip():
        raise NotebookError(f"{name} is empty.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NotebookError(f"{name} is not a notebook: it is not UTF-8 text.") from None
    try:
        value = json.loads(text)
    except RecursionError:
        raise NotebookError(f"{name} is not a notebook: it is nested too deep.") from None
    except MemoryError:
        raise NotebookError(f"{name} does not fit in memory.") from None
    except ValueError as error:
        if text.lstrip().startswith("<"):
            raise NotebookError(f"{name} is a web page, not a notebook: download the notebook's raw file.") from None
        if re.search(r"^<<<<<<< ", text, re.MULTILINE):
            raise NotebookError(f"{name} holds the marks of a git merge conflict: resolve it first.") from None
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise NotebookError(f"{name} is not a notebook: it is not valid JSON{where}.") from None
    if _deeper_than(value, DEPTH):
        raise NotebookError(f"{name} is not a notebook: it is nested too deep.")
    if "\\ud" in text.lower():  # perhaps half of a character, which could not be written to a file again
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]
        if not level:
            return False
    return True


def _checked(notebook: Any, name: str) -> Notebook:
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise NotebookError(f"{name} is not a notebook: it is other JSON.")
    version = notebook["nbformat"]
    if version != 4:
        raise NotebookError(
            f"{name} has notebook format {version!r:.20}, and the course reads format 4: "
            "open it in JupyterLab and save it again."
        )
    if not isinstance(notebook.get("cells"), list):
        raise NotebookError(f"{name} is not a notebook: it has no list of cells.")
    if not isinstance(notebook.get("metadata"), dict):
        notebook["metadata"] = {}
    for number, cell in enumerate(notebook["cells"], 1):
        if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
            raise NotebookError(f"{name} is not a notebook: its cell {number} is no cell.")
        source = cell.get("source")
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines):
            raise NotebookError(f"{name} is not a notebook: its cell {number} has no text.")
        cell["source"] = "".join(lines).replace("\r\n", "\n").replace("\r", "\n")
        _mended(cell)
    return notebook


def _mended(cell: dict[str, Any]) -> None:
    """Give a cell the parts that the format asks for."""
    if not isinstance(cell.get("metadata"), dict):
        cell["metadata"] = {}
    if "tags" in cell["metadata"]:
        tags = cell["metadata"]["tags"]
        cell["metadata"]["tags"] = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    if not (isinstance(cell.get("id"), str) and re.fullmatch(r"[\w-]{1,64}", cell["id"], re.ASCII)):
        cell.pop("id", None)
    if cell["cell_type"] == "code":
        outputs = cell.get("outputs")
        cell["outputs"] = [each for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []
        count = cell.get("execution_count")
        cell["execution_count"] = count if type(count) is int else None
