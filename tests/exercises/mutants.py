"""Small faults put into a right answer, one at a time: a check is worth what it says about them.

The operators are those of mutation testing, with the ones that tensor code invites: a keyword such as `dim`, `stable` or
`other` dropped, arguments exchanged, a slice one longer, min for max.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Change = Callable[[ast.AST], ast.AST]  # a node of a copy of the tree -> what stands in its place

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = [
    ("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("ceil", "floor"), ("sum", "mean"),
    ("zeros", "ones"), ("all", "any"), ("zeros_like", "ones_like"), ("sqrt", "rsqrt"), ("add_", "sub_"), ("sin", "cos"),
]  # fmt: skip
SWAPPED = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    name: str  # the line before and after
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a text, each with one fault, in the order of the text; none equal to it or to another."""
    tree = ast.parse(source)
    plain, untouched = ast.unparse(tree), _untouched(tree)
    found: dict[str, Mutant] = {}
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in untouched:
            continue
        for change in _changes(node, tree):
            text = ast.unparse(_with(tree, place, change))
            if text != plain and text not in found:
                found[text] = Mutant(_name(plain, text), text)
    return _distinct(list(found.values()))


def _untouched(tree: ast.AST) -> set[int]:
    """Nodes whose change is none of the behaviour: decorators, annotations, docstrings, messages."""
    out: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            out += [*node.decorator_list, node.returns, *(argument.annotation for argument in arguments)]
            first = node.body[0]
            out += [first] if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else []
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            out.append(node)
    return {id(inner) for node in out if node for inner in ast.walk(node)}


def _changes(node: ast.AST, tree: ast.AST) -> Iterator[Change]:
    """What can be changed at a node."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            yield from (_operator("ops", other, place) for other in COMPARISONS.get(type(operator), ()))
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield _operator("op", ARITHMETIC[type(node.op)])
    if isinstance(node, ast.BoolOp):
        yield _operator("op", ast.Or if isinstance(node.op, ast.And) else ast.And)
    if isinstance(node, ast.UnaryOp) and not (_is_argument(node, tree) and isinstance(node.operand, ast.Constant)):
        yield lambda n: n.operand
    if isinstance(node, ast.Constant):
        yield from map(_constant, _other_constants(node, tree))
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield lambda n: _set(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.comprehension) and node.ifs:
        yield lambda n: _set(n, "ifs", [ast.UnaryOp(ast.Not(), n.ifs[0]), *n.ifs[1:]])
    if isinstance(node, ast.Call):
        yield from (_exchange(place) for place in range(len(node.args) - 1))
        yield from (_without("keywords", place) for place, kept in enumerate(node.keywords) if kept.arg)
    if isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            value = getattr(node, bound)
            if value is not None and not isinstance(value, ast.Constant | ast.UnaryOp):
                yield from (_step(bound, operator) for operator in (ast.Add, ast.Sub))
    if isinstance(node, ast.Name) and node.id in SWAPPED:
        yield lambda n: _set(n, "id", SWAPPED[n.id])
    if isinstance(node, ast.Attribute) and node.attr in SWAPPED:
        yield lambda n: _set(n, "attr", SWAPPED[n.attr])
    if isinstance(node, ast.keyword) and node.arg in SWAPPED:
        yield lambda n: _set(n, "arg", SWAPPED[n.arg])
    if isinstance(node, ast.stmt) and _can_be_missed(node, tree):
        yield lambda n: ast.Pass()


def _set(node: ast.AST, field: str, value) -> ast.AST:
    setattr(node, field, value)
    return node


def _operator(field: str, other: type, place: int | None = None) -> Change:
    def change(node):
        if place is None:
            return _set(node, field, other())
        getattr(node, field)[place] = other()
        return node

    return change


def _other_constants(node: ast.Constant, tree: ast.AST) -> list:
    """What a constant may be instead.

    After a minus it loses its sign there. An integer that is an argument is most often a dimension, and the same one
    counted from the other end: it keeps its sign.
    """
    value = node.value
    if value is True or value is False:
        return [not value]
    if type(value) is float:
        return [value + 1, *([-value] if value else [])]
    if type(value) is not int:
        return []
    if _is_argument(node, tree):
        return [value + 1, *([value - 1] if value else [])]
    minus = any(isinstance(n, ast.UnaryOp) and n.operand is node for n in ast.walk(tree))
    return [value + 1, value - 1, *([-value] if value and not minus else [])]


def _is_argument(node: ast.AST, tree: ast.AST) -> bool:
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return any(node is given for n in calls for given in (*n.args, *(keyword.value for keyword in n.keywords)))


def _constant(value) -> Change:
    def change(node):
        if isinstance(value, int | float) and value < 0:
            return ast.UnaryOp(ast.USub(), ast.Constant(-value))
        return ast.Constant(value)

    return change


def _exchange(place: int) -> Change:
    def change(node):
        if isinstance(node.args[place], ast.Starred) or isinstance(node.args[place + 1], ast.Starred):
            return node
        node.args[place], node.args[place + 1] = node.args[place + 1], node.args[place]
        return node

    return change


def _without(field: str, place: int) -> Change:
    def change(node):
        getattr(node, field).pop(place)
        return node

    return change


def _step(bound: str, operator: type) -> Change:
    return lambda node: _set(node, bound, ast.BinOp(getattr(node, bound), operator(), ast.Constant(1)))


def _can_be_missed(node: ast.stmt, tree: ast.AST) -> bool:
    """Whether a statement can go without a name going with it: the first assignment to a name cannot."""
    if isinstance(node, ast.Expr | ast.AugAssign | ast.If | ast.For | ast.While | ast.With | ast.Break | ast.Continue):
        return True
    if not isinstance(node, ast.Assign):
        return False
    targets = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    stored = [
        (n.lineno, n.id if isinstance(n, ast.Name) else n.arg)
        for n in ast.walk(tree)
        if isinstance(n, ast.arg) or (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    ]
    return targets <= {name for line, name in stored if line < node.lineno}


def _with(tree: ast.AST, place: int, change: Change) -> ast.AST:
    """A copy of the tree with one node changed."""
    tree = copy.deepcopy(tree)
    nodes = list(ast.walk(tree))
    node = nodes[place]
    new = change(node)
    for parent in nodes if new is not node else ():
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, new)
            elif isinstance(value, list):
                value[:] = [new if item is node else item for item in value]
    return ast.fix_missing_locations(tree)


def _name(before: str, after: str) -> str:
    """The first line that differs, before and after."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next(f"{old.strip()}  =>  {new.strip()}" for old, new in pairs if old != new)


def _distinct(found: list[Mutant]) -> list[Mutant]:
    """The mutants with a number after a name that another has."""
    seen: dict[str, int] = {}
    out = []
    for mutant in found:
        seen[mutant.name] = seen.get(mutant.name, 0) + 1
        name = mutant.name if seen[mutant.name] == 1 else f"{mutant.name}  #{seen[mutant.name]}"
        out.append(Mutant(name, mutant.source))
    return out
