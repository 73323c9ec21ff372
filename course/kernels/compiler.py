"""A kernel compiled in this process, which must not interpret: its registers and memory, or the compiler's reason in a sentence."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from course.kernels.launch import Launch

# bytes of shared memory that one block may have (CUDA C++ programming guide, technical specifications; AMD CDNA 3 ISA, LDS)
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of one launch. Where `error` stands, the numbers it did not come to are None."""

    kernel: str
    arch: str
    registers: int | None = None  # a thread
    spills: int | None = None  # bytes of stack a thread
    shared_bytes: int | None = None  # a block
    warps: int | None = None  # a block
    code: dict[str, str] | None = None  # where asked for: "ttir", "ttgir", "ptx", "sass", "ptxas" (of AMD: "amdgcn")
    error: str | None = None  # one sentence


def compile_here(
    path: str | Path, launch: Launch | dict[str, Any], arch: str = "sm_90", code: bool = False
) -> dict[str, Any]:
    """Compile in this process, which must not interpret kernels, without cache or protection; Compiled as a dict.

    code: keep the text of every stage as well.
    """
    try:
        launch = launch if isinstance(launch, Launch) else Launch.from_json(launch)
    except ValueError as error:
        return asdict(Compiled("", arch, error=str(error)))
    try:
        if arch not in SHARED:
            raise ValueError(f"{arch} is not one of {', '.join(SHARED)}")
        numbers, limit = _compile(Path(path), launch, arch, code), SHARED[arch]
        if numbers["shared_bytes"] > limit:
            numbers["error"] = (
                f"{launch.kernel} needs {numbers['shared_bytes']} bytes of shared memory, and a block of {arch} has at most "
                f"{limit}; take smaller tiles or fewer stages"
            )
        return asdict(Compiled(launch.kernel, arch, **numbers))
    except Exception as error:
        return asdict(Compiled(launch.kernel, arch, error=f"{launch.kernel}: {_sentence(error)}"))


def _compile(path: Path, launch: Launch, arch: str, code: bool) -> dict[str, Any]:
    import triton
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
            made = triton.compile(source, target=_target(arch), options=launch.options)
        except RuntimeError as error:
            raise RuntimeError(_essential(said(), path) or str(error)) from None
        numbers = _of_amd(made) if "amdgcn" in made.asm else _of_nvidia(made, Path(folder) / "kernel.cubin", code)
    if code:
        numbers["code"] |= {stage: made.asm[stage] for stage in ("ttir", "ttgir", "ptx", "amdgcn") if stage in made.asm}
    else:
        numbers.pop("code")
    return numbers | {"shared_bytes": made.metadata.shared, "warps": made.metadata.num_warps}


def _target(arch: str):
    from triton.backends.compiler import GPUTarget

    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


def _of_nvidia(made, cubin: Path, code: bool) -> dict[str, Any]:
    """Registers and spills, and where asked for the machine code, by the tools that come with Triton."""
    import triton

    def tool(name: str, option: str) -> str:
        path = getattr(triton.knobs.nvidia, name).path
        return subprocess.run([path, option, cubin], capture_output=True, text=True, check=True).stdout

    cubin.write_bytes(made.asm["cubin"])
    found = {key: int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "-res-usage"))}
    texts = {"sass": tool("nvdisasm", "-c"), "ptxas": _remarks(made, cubin.with_suffix(".ptx"))} if code else {}
    return {"registers": found["REG"], "spills": found["STACK"], "code": texts}


def _remarks(made, ptx: Path) -> str:
    """What ptxas says of the kernel when it is asked: spills, and products that it had to serialise."""
    import triton

    ptx.write_text(made.asm["ptx"])
    capability = made.metadata.target.arch
    assembler = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
    chip = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
    done = subprocess.run(
        [assembler.path, "-lineinfo", "-v", "--regAllocOptLevel=2", chip, ptx, "-o", os.devnull],
        capture_output=True,
        text=True,
    )
    return done.stderr


def _of_amd(made) -> dict[str, Any]:
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", made.asm["amdgcn"]))
    return {"registers": int(found["vgpr_count"]), "spills": 4 * int(found["vgpr_spill_count"]), "code": {}}


def _module(path: Path, launch: Launch) -> ModuleType:
    """A module with the kernel and those statements of its file that it rests on, and nothing else of it."""
    module = ModuleType(f"compiled_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    tree = ast.parse(path.read_text(), str(path))
    tree.body = needed(tree, roots(launch.kernel, launch.constexprs))
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def roots(kernel: str, constexprs: dict[str, Any]) -> list[str]:
    """The names in the kernel's file that a launch speaks of."""
    return [
        kernel,
        *(value["function"] for value in constexprs.values() if isinstance(value, dict) and "function" in value),
    ]


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
            where = _quoted(source, node.lineno)
        if error.__cause__ is None:
            break
        error = error.__cause__
    said = getattr(error, "error_message", None) or str(error) or type(error).__name__
    said = re.sub(r"^(\w+Error|\w+Exception)\((['\"])(.*)\2\)$", r"\3", said.strip(), flags=re.DOTALL)
    if isinstance(error, NameError | AttributeError | TypeError | SyntaxError | ImportError):
        said = f"{type(error).__name__}: {said}"
    if "'int' object has no attribute 'to'" in said:
        said += " (an argument that is 1 becomes a plain int: cast a tensor instead)"
    return where + " ".join(said.split())[:400]


def _essential(printed: str, path: Path) -> str:
    """The first error in what MLIR or ptxas printed, with the line of the kernel's file that it came from."""
    found = re.search(r"\b(?:error|fatal)\s*:\s*(.+)$", printed, flags=re.MULTILINE)
    line = re.search(rf"{re.escape(str(path))}:(\d+)", printed)
    where = _quoted(path.read_text(), int(line[1])) if line else ""
    return where + found[1].strip() if found else ""


def _quoted(source: str, line: int) -> str:
    return "".join(f"`{text.strip()}`: " for text in source.splitlines()[line - 1 : line])
