"""Machine code for a chip that need not be there: what the compiler makes of a kernel, or why it refuses it.

A process either interprets kernels or compiles them, so `compile_for` and its kin start one that compiles, which imports of
the kernel's file only what the kernel rests on. Results are cached by content. `compile_here` is for a process that is
such a one already, as in a sandbox.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from course.kernels import compiler, need_triton
from course.kernels.compiler import Compiled, compile_here, needed, roots
from course.kernels.launch import Launch

__all__ = ["Compiled", "compile_all", "compile_for", "compile_here", "compile_text", "compile_texts"]

SECONDS = 60.0
SELF_CONTAINED = sys.stdlib_module_names | {"triton", "torch", "numpy"}


def compile_for(path: str | Path, launch: Launch | dict[str, Any], arch: str = "sm_90", code: bool = False) -> Compiled:
    """Compile the kernel of a launch, which the file at `path` defines, in a process of its own.

    arch: sm_80, sm_90, sm_100 or gfx942. code: keep the text of every stage as well.

    Nothing is raised for what the file holds: a kernel that the chip would refuse has its reason in `error`.
    Raises: OSError when the file cannot be read; ImportError without Triton.
    """
    return compile_all(path, [launch], arch, code)[0]


def compile_all(
    path: str | Path, launches: Sequence[Launch | dict[str, Any]], arch: str = "sm_90", code: bool = False
) -> list[Compiled]:
    """`compile_for` for several launches, in one process for all that are not in the cache."""
    need_triton()
    text = Path(path).read_text()
    found: dict[int, Compiled] = {}
    asked: dict[int, dict[str, Any]] = {}
    for number, launch in enumerate(launches):
        try:
            plain = (launch if isinstance(launch, Launch) else Launch.from_json(launch)).to_json()
        except ValueError as error:
            found[number] = Compiled("", arch, error=str(error))
            continue
        if kept := _kept(_place(text, plain, arch, code)):
            found[number] = kept
        else:
            asked[number] = plain
    try:
        made = _ask(path, list(asked.values()), arch, code) if asked else []
        for (number, plain), compiled in zip(asked.items(), made, strict=True):
            found[number] = compiled
            _keep(_place(text, plain, arch, code), compiled)
    except _NoAnswer as failure:
        for number, plain in asked.items():
            found[number] = Compiled(plain["kernel"], arch, error=f"{plain['kernel']}: {failure}")
    return [found[number] for number in range(len(launches))]


def compile_text(text: str, launch: Launch | dict[str, Any], arch: str = "sm_90") -> dict[str, Any]:
    """`compile_for` for a source that is not in a file, as a dict."""
    return compile_texts(text, [launch], arch)[0]


def compile_texts(text: str, launches: Sequence[Launch | dict[str, Any]], arch: str = "sm_90") -> list[dict[str, Any]]:
    """`compile_all` for a source that is not in a file, as dicts."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text)
        return [asdict(compiled) for compiled in compile_all(path, launches, arch)]


class _NoAnswer(Exception):
    """The compiler's process ended before it said anything."""


def _ask(path: str | Path, launches: list[dict[str, Any]], arch: str, code: bool) -> list[Compiled]:
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    request = json.dumps({"path": str(Path(path).absolute()), "launches": launches, "arch": arch, "code": code})
    command = [sys.executable, "-m", "course.kernels.machine"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, env=environment, timeout=SECONDS)
        return [Compiled(**answer) for answer in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"the compiler did not finish within {SECONDS:g} seconds") from None
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise _NoAnswer(f"the compiler's process ended (code {done.returncode}): {last[:300]}") from None


def _place(text: str, launch: dict[str, Any], arch: str, code: bool) -> Path | None:
    """Where the result of this request is kept; None for a kernel that rests on modules of its own."""
    try:
        statements = needed(ast.parse(text), roots(launch["kernel"], launch["constexprs"]))
    except (SyntaxError, ValueError):
        return None
    for node in (node for statement in statements for node in ast.walk(statement)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        if any(module.split(".")[0] not in SELF_CONTAINED for module in modules):
            return None
    told = {key: launch[key] for key in ("kernel", "signature", "constexprs", "divisible", "options")}
    key = json.dumps([text, told, arch, code, version("triton"), Path(compiler.__file__).read_text()], sort_keys=True)
    folder = os.environ.get("COURSE_CACHE") or platformdirs.user_cache_dir("moe-to-metal")
    return Path(folder) / "machine" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _kept(place: Path | None) -> Compiled | None:
    try:
        return Compiled(**json.loads(place.read_text())) if place else None
    except (OSError, ValueError, TypeError):
        return None  # not there, or damaged: made again


def _keep(place: Path | None, compiled: Compiled) -> None:
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".part", delete=False) as file:
            json.dump(asdict(compiled), file)
        os.replace(file.name, place)
    except OSError:
        pass  # a cache that cannot be written only costs time


def main() -> None:
    request = json.load(sys.stdin)
    asked = request["arch"], request["code"]
    answers = [compile_here(request["path"], launch, *asked) for launch in request["launches"]]
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
