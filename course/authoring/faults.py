"""What can be wrong in a source, each with its line: cells, tags, solution blocks, the parts of an exercise."""

import ast
import re
import textwrap
from collections.abc import Iterator

from course.authoring import marks
from course.authoring.percent import Cell, Source

Fault = tuple[int, str]  # line, sentence


def faults_in(source: Source, kind: str) -> list[str]:
    """Every fault of a lesson's or a solution's source, one sentence each, in the order of lines."""
    found = [*_everywhere(source), *(_lesson(source) if kind == "lesson" else _solution(source))]
    return [f"{source.at(line)}: {says}" for line, says in sorted(found)]


def _everywhere(source: Source) -> Iterator[Fault]:
    first = next((cell for cell in source.cells if cell.kind == "code"), None)
    if first is None or "setup" not in first.tags:
        yield (first.line if first else 1), 'the first code cell must be the set-up cell, with tags=["setup"].'
    for cell in source.cells:
        if not cell.text.strip():
            yield cell.line, "the cell is empty."
        if cell.kind not in ("code", "markdown"):
            yield cell.line, f"a {cell.kind} cell: use markdown or code."
        if "setup" in cell.tags and cell is not first:
            yield cell.line, "only the first code cell may be tagged setup."
        for tag in cell.tags:
            if tag.startswith(("exercise", "check")) and not marks.ROLE.fullmatch(tag):
                yield cell.line, f"the tag `{tag}` is not like exercise:04.1 or check:04.1."


def _lesson(source: Source) -> Iterator[Fault]:
    for cell in source.cells:
        if cell.roles:
            yield cell.line, "a lesson has no exercises: they belong to the lab."
        if marks.BEGIN in cell.text or marks.END in cell.text:
            yield cell.line, "a lesson has no solution blocks."


def _solution(source: Source) -> Iterator[Fault]:
    answered: dict[str, int] = {}
    checked: dict[str, int] = {}
    before = None
    for cell in source.cells:
        yield from _markers(cell)
        roles = cell.roles
        if len(roles) > 1:
            yield cell.line, "a cell belongs to one exercise, and this one has several tags."
        if not roles and (marks.BEGIN in cell.text or marks.END in cell.text):
            yield cell.line, "a solution block stands outside an answer cell."
        for role, name in roles:
            seen = answered if role == "exercise" else checked
            if name.split(".")[0] != source.unit:
                yield cell.line, f"exercise {name} does not belong to unit {source.unit}."
            if name in seen:
                what = "answer" if role == "exercise" else "check"
                yield cell.line, f"a second {what} cell for exercise {name}; the first is in line {seen[name]}."
            seen.setdefault(name, cell.line)
            yield from _answer(cell, name, before) if role == "exercise" else _check(cell, name, answered)
        before = cell
    for name in answered.keys() - checked.keys():
        yield answered[name], f"exercise {name} has no check cell."


def _markers(cell: Cell) -> Iterator[Fault]:
    """Solution blocks that do not open and close in turn, or hold nothing."""
    opened, held = None, False  # line and indentation of the open block; whether it holds anything
    for number, line in enumerate(cell.text.splitlines(), cell.line + 1):
        word, indentation = line.strip(), len(line) - len(line.lstrip())
        if word == marks.BEGIN:
            if opened:
                yield number, f"`{marks.BEGIN}` inside the block of line {opened[0]}."
            opened, held = (number, indentation), False
        elif word == marks.END:
            if not opened:
                yield number, f"`{marks.END}` without `{marks.BEGIN}`."
            elif opened[1] != indentation:
                yield number, f"the block of line {opened[0]} ends at another indentation."
            elif not held:
                yield number, f"the block of line {opened[0]} is empty."
            opened = None
        elif marks.BEGIN in line or marks.END in line:
            yield number, "a marker of a solution block stands alone on its line."
        elif opened:
            held = held or bool(word)
            if word and indentation < opened[1]:
                yield number, f"the block of line {opened[0]} holds a line that is indented less than its marker."
    if opened:
        yield opened[0], f"`{marks.BEGIN}` without `{marks.END}`."


def _answer(cell: Cell, name: str, before: Cell | None) -> Iterator[Fault]:
    if cell.kind != "code":
        yield cell.line, f"the answer cell of exercise {name} is not a code cell."
        return
    first = cell.text.splitlines()[0] if cell.text else ""
    if first.strip() != f"# exercise {name}":
        yield cell.line, f"the first line of the answer cell must be `# exercise {name}`."
    if marks.BEGIN not in cell.text:
        yield cell.line, f"the answer cell of exercise {name} has no `{marks.BEGIN}`."
    elif re.search(rf"^{marks.BEGIN}", cell.text, re.MULTILINE):
        yield cell.line, "a solution block must stand inside a function, or the lab's cell raises when it is run."
    for what, text in (
        ("the answer cell", cell.text),
        ("the answer cell without its solution", marks.blank(cell.text)),
    ):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError) as error:
            yield (
                cell.line + (getattr(error, "lineno", None) or 0),
                f"{what} is not valid Python: {getattr(error, 'msg', error)}.",
            )
            break
    card = marks.CARD.search(before.text) if before and before.kind == "markdown" else None
    if not card or card["id"] != name:
        yield (
            cell.line,
            f"the text cell before must hold the line `**Exercise {name}** · difficulty 2 of 5 · 15 minutes · 10 points`.",
        )


def _check(cell: Cell, name: str, answered: dict[str, int]) -> Iterator[Fault]:
    if name not in answered:
        yield cell.line, f"the check of exercise {name} comes before its answer cell."
    if marks.COMPARED not in cell.tags:
        yield cell.line, f"the check cell of exercise {name} lacks the tag {marks.COMPARED}."
    call = marks.CHECK.fullmatch(textwrap.dedent(cell.text))
    if cell.kind != "code" or not call or call[1] != name:
        yield (
            cell.line,
            f'the check cell of exercise {name} must hold `check("{name}", the_function)` and nothing else.',
        )
