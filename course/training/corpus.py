"""Text to learn from: the Python that everybody who runs this already has, or any file or folder.

The embedded corpus is the standard library without its tests, as code, and its manual and docstrings, as prose. No
download; but it differs from one Python version to the next, so losses on it do too.
"""

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from course.training.errors import TrainingError

TESTS = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
HELD_OUT = 16  # one document in so many is kept for validation
FEW = 4 * HELD_OUT  # documents


class Document(NamedTuple):
    name: str  # a path with forward slashes, relative to the corpus
    text: str


def embedded(kind: str = "code") -> list[Document]:
    """The standard library in order of path: "code" is its source files, "prose" its manual and docstrings."""
    if kind not in ("code", "prose"):
        raise TrainingError(f'there is no embedded corpus {kind!r}; it is "code" or "prose"')
    files = _text_files(Path(sysconfig.get_path("stdlib")), without=TESTS)
    code = [document for document in files if document.name.endswith(".py")]
    return code if kind == "code" else [*_manual(), *_docstrings(code)]


def read(path: Path) -> list[Document]:
    """One text file, or every text file in a folder, in order of path.

    In a folder, files that are not UTF-8 text, hidden files and empty ones are left out.
    Raises: TrainingError when there is nothing to read.
    """
    if path.is_dir():
        documents = list(_text_files(path))
        if not documents:
            raise TrainingError(f"{path} holds no text file: give a folder with UTF-8 text in it")
        return documents
    if not path.exists():
        raise TrainingError(f"{path} does not exist: give a text file or a folder of them")
    if not path.is_file():
        raise TrainingError(f"{path} is neither a file nor a folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    if not data.strip():
        raise TrainingError(f"{path} is empty: there is nothing to learn from")
    text = _decoded(data)
    if text is None:
        raise TrainingError(f"{path} is not text in UTF-8: it looks like a binary file or another encoding")
    return [Document(path.name, text)]


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Training and validation documents. A document's side depends on its name alone, so that it never changes sides.

    Of fewer than 64 documents the last tenth of each is held out instead.
    """
    train = [document for document in documents if not _held_out(document.name)]
    validation = [document for document in documents if _held_out(document.name)]
    if len(documents) >= FEW and train and validation:
        return train, validation
    cuts = [(document, len(document.text) - max(1, len(document.text) // 10)) for document in documents]
    return (
        [Document(document.name, document.text[:cut]) for document, cut in cuts],
        [Document(document.name, document.text[cut:]) for document, cut in cuts],
    )


def fingerprint(documents: Sequence[Document]) -> str:
    """A hash of all names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in document:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0


def _text_files(root: Path, without: Set[str] = frozenset()) -> Iterator[Document]:
    for path in sorted(_files(root, without), key=lambda path: path.relative_to(root).as_posix()):
        try:
            text = _decoded(path.read_bytes()) if path.is_file() else None
        except OSError:
            continue
        if text and text.strip():
            yield Document(path.relative_to(root).as_posix(), text)


def _files(root: Path, without: Set[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _decoded(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _manual() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name])


def _docstrings(code: Sequence[Document]) -> Iterator[Document]:
    """Each file's docstrings, in order, as one document."""
    for name, source in code:
        try:
            nodes = ast.walk(ast.parse(source))
        except SyntaxError:  # lib2to3 keeps some Python 2 on purpose
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
        if any(texts):
            yield Document(f"docstrings/{name}", "\n\n".join(text for text in texts if text) + "\n")
