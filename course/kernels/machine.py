"""Machine code for a chip that need not be there: what the compiler makes of a kernel, or why it refuses it.

A process either interprets kernels or compiles them, so the work is done in a process of its own, which imports of the
kernel's file only what the kernel rests on. Results are cached by content.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs

from course.kernels import need_triton
from course.kernels.launch import Launch

SHARED = {
    "sm_80": 166_912,
    "sm_90": 232_448,
    "sm_100": 232_448,
}  # bytes that one block may have (CUDA C++ guide, table of capabilities)
SECONDS = 60.0
SELF_CONTAINED = sys.stdlib_module_names | {"triton", "torch", "numpy"}


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of one launch. Where `error` stands, the numbers it did not come to are None."""

    kernel: str
    arch: str
    registers: int | None = None  # a thread
    spills: int | None = None  # bytes of stack a thread
    shared_bytes: int | None = None  # a block
    error: str | None = None  # one sentence


def compile_for(path: str | Path, launch: Launch | dict[str, Any], arch: str = "sm_90") -> Compiled:
    """Compile the kernel of a launch, which the file at `path` defines, in a process of its own.

    Nothing is raised for what the file holds: a kernel that the chip would refuse has its reason in `error`.
    Raises: OSError when the file cannot be read; ImportError without Triton.
    """
    return compile_all(path, [launch], arch)[0]


def compile_all(path: str | Path, launches: Sequence[Launch | dict[str, Any]], arch: str = "sm_90") -> list[Compiled]:
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
        if kept := _kept(_place(text, plain, arch)):
            found[number] = kept
        else:
            asked[number] = plain
    try:
        made = _ask(path, list(asked.values()), arch) if asked else []
        for (number, plain), compiled in zip(asked.items(), made, strict=True):
            found[number] = compiled
            _keep(_place(text, plain, arch), compiled)
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


def compile_here(path: str | Path, launch: Launch | dict[str, Any], arch: str = "sm_90") -> dict[str, Any]:
    """Compile in this process, which must not interpret kernels, without cache or protection; Compiled as a dict."""
    try:
        launch = launch if isinstance(launch, Launch) else Launch.from_json(launch)
    except ValueError as error:
        return asdict(Compiled("", arch, error=str(error)))
    try:
        if arch not in SHARED:
            raise ValueError(f"{arch} is not one of {', '.join(SHARED)}")
        numbers, limit = _compile(Path(path), launch, int(arch.removeprefix("sm_"))), SHARED[arch]
        if numbers["shared_bytes"] > limit:
            numbers["error"] = (
                f"{launch.kernel} needs {numbers['shared_bytes']} bytes of shared memory, and a block of {arch} has at most "
                f"{limit}; take smaller tiles or fewer stages"
            )
        return asdict(Compiled(launch.kernel, arch, **numbers))
    except Exception as error:
        return asdict(Compiled(launch.kernel, arch, error=f"{launch.kernel}: {_sentence(error)}"))


def _compile(path: Path, launch: Launch, capability: int) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    module = _module(path, launch)
    kernel = getattr(module, launch.kernel, None)
    while kernel is not None and not isinstance(kernel, JITFunction):
        kernel = getattr(kernel, "fn", None)
    if kernel is None:
        if triton.knobs.runtime.interpret:
            raise RuntimeError("this process interprets kernels; compile in one with TRITON_INTERPRET=0")
        raise ValueError("no @triton.jit function of this name stands at the top level of the file")
    place = {name: number for number, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        {name: tuple(kind) if isinstance(kind, list) else kind for name, kind in launch.signature.items()},
        {(place[name],): _value(constant, module) for name, constant in launch.constexprs.items()},
        {(place[name],): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    with tempfile.TemporaryDirectory(prefix="triton-") as folder, triton.knobs.cache.scope(), _said() as said:
        triton.knobs.cache.dir = folder
        try:
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
        except RuntimeError as error:
            raise RuntimeError(_essential(said(), path) or str(error)) from None
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", usage)}
    return {"registers": found["REG"], "spills": found["STACK"], "shared_bytes": made.metadata.shared}


def _module(path: Path, launch: Launch) -> ModuleType:
    """A module with the kernel and those statements of its file that it rests on, and nothing else of it."""
    module = ModuleType(f"compiled_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    tree = ast.parse(path.read_text(), str(path))
    constants = [
        value["function"] for value in launch.constexprs.values() if isinstance(value, dict) and "function" in value
    ]
    tree.body = needed(tree, [launch.kernel, *constants])
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def needed(tree: ast.Module, names: list[str]) -> list[ast.stmt]:
    """The top-level statements that these names rest on, in the order of the file."""
    makers: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _makes(statement):
            makers.setdefault(name, []).append(statement)
    wanted, open_names = set(makers.get("*", ())), list(names)
    while open_names:
        for statement in makers.pop(open_names.pop(), ()):
            if statement not in wanted:
                wanted.add(statement)
                open_names += _uses(statement)
    return [statement for statement in tree.body if statement in wanted]


def _uses(statement: ast.stmt) -> set[str]:
    """The global names that a statement reads: of a function, those that are not its own."""
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    if not isinstance(statement, ast.FunctionDef):
        return {node.id for node in names}
    outside = [*statement.decorator_list, *statement.args.defaults, *filter(None, statement.args.kw_defaults)]
    own = {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
    own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    around = {node.id for part in outside for node in ast.walk(part) if isinstance(node, ast.Name)}
    return {node.id for node in names} - own | around


def _makes(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
            names.add("*" if future or node.name == "*" else node.asname or node.name.split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(statement, ast.Expr):
            names |= {node.id} if isinstance(node.ctx, ast.Store) else set()
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return names


def _value(constant: Any, module: ModuleType) -> Any:
    """A constant of a launch as the compiler wants it; the reverse of how `Launch` writes it."""
    import triton.language as tl

    if not isinstance(constant, dict):
        return constant
    ((kind, value),) = constant.items()
    if kind == "dtype":
        return tl.dtype(value)
    if kind == "function":
        return getattr(module, value)
    if kind == "tuple":
        return tuple(_value(item, module) for item in value)
    if kind == "float":
        return float(value)
    raise ValueError(f"a constant of this kind cannot be compiled: {value}")


@contextmanager
def _said():
    """Catch what the compiler's native parts print on the standard streams; yields a function that returns it."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            sys.stdout.flush()
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            sys.stdout.flush()
            for number, descriptor in enumerate(before, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _sentence(error: BaseException) -> str:
    """The essential line of what the compiler said: the line of source it points at, and the innermost reason."""
    where = ""
    while True:
        node, source = getattr(error, "node", None), getattr(error, "src", None)
        if source and hasattr(node, "lineno"):
            where = f"`{source.splitlines()[node.lineno - 1].strip()}`: "
        if error.__cause__ is None:
            break
        error = error.__cause__
    said = getattr(error, "error_message", None) or str(error) or type(error).__name__
    said = re.sub(r"^(\w+Error|\w+Exception)\((['\"])(.*)\2\)$", r"\3", said.strip(), flags=re.DOTALL)
    if isinstance(error, NameError | AttributeError | TypeError | SyntaxError | ImportError):
        said = f"{type(error).__name__}: {said}"
    return where + " ".join(said.split())[:400]


def _essential(printed: str, path: Path) -> str:
    """The first error in what MLIR or ptxas printed, with the line of the kernel's file that it came from."""
    found = re.search(r"\b(?:error|fatal)\s*:\s*(.+)$", printed, flags=re.MULTILINE)
    line = re.search(rf"{re.escape(str(path))}:(\d+)", printed)
    source = f"`{path.read_text().splitlines()[int(line[1]) - 1].strip()}`: " if line else ""
    return source + found[1].strip() if found else ""


class _NoAnswer(Exception):
    """The compiler's process ended before it said anything."""


def _ask(path: str | Path, launches: list[dict[str, Any]], arch: str) -> list[Compiled]:
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    request = json.dumps({"path": str(Path(path).absolute()), "launches": launches, "arch": arch})
    command = [sys.executable, "-m", "course.kernels.machine"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, env=environment, timeout=SECONDS)
        return [Compiled(**answer) for answer in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"the compiler did not finish within {SECONDS:g} seconds") from None
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise _NoAnswer(f"the compiler's process ended (code {done.returncode}): {last[:300]}") from None


def _place(text: str, launch: dict[str, Any], arch: str) -> Path | None:
    """Where the result of this request is kept; None for a kernel that rests on modules of its own."""
    try:
        statements = needed(ast.parse(text), [launch["kernel"]])
    except (SyntaxError, ValueError):
        return None
    for node in (node for statement in statements for node in ast.walk(statement)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        if any(module.split(".")[0] not in SELF_CONTAINED for module in modules):
            return None
    told = {key: launch[key] for key in ("kernel", "signature", "constexprs", "divisible", "options")}
    key = json.dumps([text, told, arch, version("triton"), Path(__file__).read_text()], sort_keys=True)
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
    answers = [compile_here(request["path"], launch, request["arch"]) for launch in request["launches"]]
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
