"""What an entry of the leaderboard may be written in: kernels, and functions that launch them. Read, never run.

An entry's figures are written down in the entry's own process, so the text must hold nothing that could reach what writes
them. What is allowed is listed, and whatever is not listed is refused: statements, built-in functions, attributes, and of
torch, triton and math the names below. There is no module-level state, no class, no thread, no file, no stream.
"""

import ast
import builtins
import math
from types import ModuleType

from course.checking.answer import AnswerError, look_at
from course.checking.exercise import Exercise

MODULES = ("torch", "triton", "triton.language", "math", "torch.nn.functional", "numpy")  # may be imported


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TORCH = _words(
    "arange argsort bfloat16 bincount bool cat cumsum device dtype empty empty_like float float16 float32 float64 "
    "float8_e4m3fn float8_e5m2 full full_like half inf int int16 int32 int64 int8 long nan ones ones_like sort stack "
    "sum Tensor tensor uint8 zeros zeros_like"
)
TRITON = _words("jit cdiv next_power_of_2 language")
LANGUAGE_NOT = _words("device_print static_print inline_asm_elementwise")
ATTRIBUTES = _words(
    "T abs append argmax argmin argsort atomic_add atomic_max atomic_min atomic_cas bfloat16 bincount bool broadcast_to "
    "cast chunk clone contiguous copy_ cos cumsum device dim div dtype element_size element_ty exp exp2 expand "
    "expand_dims expand_as fill_ flatten float half index_select int is_contiguous is_floating_point item itemsize load "
    "log log2 long mT max maximum min minimum movedim narrow nbytes ndim new_empty new_full new_ones new_zeros numel "
    "permute primitive_bitwidth ravel reshape rsqrt select shape sigmoid sin size sort split sqrt squeeze store stride "
    "sum to trans transpose t type unbind unflatten unsqueeze value view view_as zero_"
)  # of tensors, on either side of a launch
BUILTINS = _words(
    "abs all any bool divmod enumerate float int isinstance len list max min pow range reversed round slice sorted sum "
    "tuple zip Tensor AssertionError NotImplementedError TypeError ValueError"
)  # and the prelude's Tensor
STATEMENTS = (
    *(ast.FunctionDef, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Assert),
    *(ast.Expr, ast.Raise, ast.Pass, ast.Break, ast.Continue, ast.Import, ast.ImportFrom, ast.Delete),
)
AT_TOP = (ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
NOT_EXPRESSIONS = (ast.Yield, ast.YieldFrom, ast.Await, ast.NamedExpr)
FIXED = (ast.Constant, ast.Name, ast.Attribute, ast.UnaryOp, ast.BinOp, ast.Tuple)  # values that nobody can change
ROOTS = {"torch": TORCH, "triton": TRITON, "math": frozenset(n for n in vars(math) if n[0] != "_")}


def read_entry(exercise: Exercise, source: str) -> None:
    """Raises: AnswerError, one sentence with the line, for what the leaderboard does not take."""
    look_at(exercise, source)
    tree = ast.parse(source)
    Reading(exercise, tree).read(tree)


class Reading:
    """One text, and the names that stand in it for modules."""

    def __init__(self, exercise: Exercise, tree: ast.Module):
        self.exercise = exercise
        self.modules = {"math": "math", "torch": "torch", "triton": "triton", "tl": "triton.language"}
        nodes = list(ast.walk(tree))
        self.own = {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        self.own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

    def read(self, tree: ast.Module) -> None:
        for statement in tree.body:
            self._at_top(statement)
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and not isinstance(node, STATEMENTS):
                raise _refused(node, f"has a statement ({type(node).__name__.lower()}) that no kernel or launch needs")
            if isinstance(node, NOT_EXPRESSIONS):
                raise _refused(node, "computes later than it is asked, or names a value within an expression")
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        roots = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._function(node)
            elif isinstance(node, ast.Attribute):
                self._attribute(node)
            elif isinstance(node, ast.Name):
                self._name(node, node in roots)

    def _at_top(self, node: ast.stmt) -> None:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, AT_TOP) or (isinstance(node, ast.Expr) and not text):
            raise _refused(node, "runs outside the functions; an entry is imports, constants and functions")
        if isinstance(node, ast.Assign | ast.AnnAssign) and not _fixed(node.value, self._is_constexpr):
            raise _refused(
                node, "keeps something that can change from one call to the next; only constants may stand there"
            )

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        gives = self.exercise.gives
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            target = f"{module}.{alias.name}" if module else alias.name
            from_course = any(target == given or target.startswith(f"{given}.") for given in gives)
            if target in ("course.mine", "torch.Tensor") or from_course:
                self.own.add(alias.asname or alias.name.split(".")[0])
                continue
            if target not in MODULES or (isinstance(node, ast.Import) and "." in target and not alias.asname):
                raise _refused(node, f"imports `{target}`, which no kernel or launch needs")
            self.modules[alias.asname or alias.name] = target

    def _function(self, node: ast.FunctionDef) -> None:
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        if not all(_fixed(default, self._is_constexpr) for default in defaults):
            raise _refused(node, "has a default value that can change from one call to the next")
        for decorator in node.decorator_list:
            called = isinstance(decorator, ast.Call) and not decorator.args
            named = decorator.func if called else decorator
            fixed = not called or all(_fixed(each.value, self._is_constexpr) for each in decorator.keywords)
            if not (fixed and isinstance(named, ast.Attribute) and self._stands_for(named.value) == "triton"):
                raise _refused(decorator, "has a decorator other than triton.jit")

    def _attribute(self, node: ast.Attribute) -> None:
        root, name = self._stands_for(node.value), node.attr
        if name.startswith("_"):
            raise _refused(node, f"uses `{name}`, a name of Python's or a library's own")
        if root is None:
            if isinstance(node.ctx, ast.Store | ast.Del):
                raise _refused(node, f"sets the attribute `{name}` of something, where it could outlast the call")
            allowed = name in ATTRIBUTES
        elif isinstance(node.ctx, ast.Store | ast.Del):
            raise _refused(node, f"changes `{root}.{name}`; an entry leaves the libraries as they are")
        elif root == "triton.language":
            allowed = name in _language()
        else:
            allowed = name in ROOTS.get(root, ())
        if not allowed:
            what = f"{root}.{name}" if root else f".{name}"
            raise _refused(node, f"uses `{what}`, which is not among what a kernel or its launch may use here")

    def _name(self, node: ast.Name, is_root: bool) -> None:
        if node.id in self.modules:
            if isinstance(node.ctx, ast.Store | ast.Del) or not is_root:
                raise _refused(node, f"uses `{node.id}` other than for a name in it")
        elif node.id in self.own:
            if node.id.startswith("__") or (hasattr(builtins, node.id) and node.id not in BUILTINS):
                raise _refused(node, f"gives something the name `{node.id}`, which is one of Python's own")
        elif node.id not in BUILTINS and not (node.id == "mine" or self._lent(node.id)):
            raise _refused(node, f"uses `{node.id}`, which is not among what a kernel or its launch may use here")

    def _lent(self, name: str) -> bool:
        from course.exercises import every

        return any(every()[used].entry == name for used in self.exercise.uses)

    def _stands_for(self, node: ast.AST) -> str | None:
        """The module that an expression stands for; tl.math has nothing that tl has not."""
        if isinstance(node, ast.Attribute) and node.attr == "math":
            return self._stands_for(node.value)
        return self.modules.get(node.id) if isinstance(node, ast.Name) else None

    def _is_constexpr(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and (self._stands_for(node.value), node.attr) == (
            "triton.language",
            "constexpr",
        )


def _fixed(value: ast.AST | None, is_constexpr) -> bool:
    if value is None:
        return True
    if isinstance(value, ast.Call):
        return (
            is_constexpr(value.func) and all(_fixed(each, is_constexpr) for each in value.args) and not value.keywords
        )
    if not isinstance(value, FIXED):
        return False
    inner = [each for each in ast.iter_child_nodes(value) if isinstance(each, ast.expr)]
    return all(_fixed(each, is_constexpr) for each in inner)


def _language() -> frozenset[str]:
    import triton.language as tl

    modules = {name for name in tl.__all__ if isinstance(getattr(tl, name, None), ModuleType)}
    return (frozenset(tl.__all__) - modules - LANGUAGE_NOT) | {"math"}


def _refused(node: ast.AST, why: str) -> AnswerError:
    return AnswerError(f"The leaderboard does not take it: line {node.lineno} {why}.")
