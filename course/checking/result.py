"""A verdict as a learner reads it: plain text, and the same in HTML for a notebook."""

from dataclasses import dataclass
from html import escape
from textwrap import indent

from course.checking.judge import Verdict

COLOURS = {"passed": "#1a7f37", "failed": "#b35900", "not done": "#6e7781"}
PRINTED = 10  # lines of the answer's own output


def text(verdict: Verdict) -> str:
    """The verdict in words: the first failing case, what differs, the misconception, where to read on."""
    head, *body = _lines(verdict)
    return "\n".join([head, "", *body]) if body else head


def _lines(verdict: Verdict) -> list[str]:
    name = f"{verdict.id} {verdict.title}"
    if verdict.passed:
        return [f"{name}: passed, {_points(verdict.points)}"]
    if verdict.status == "not done":
        return [f"{name}: not done yet", *filter(None, [verdict.reason])]
    right = len(verdict.cases) - len(verdict.failures)
    lines = [f"{name}: {right} of {verdict.total} cases pass" if verdict.cases else f"{name}: failed"]
    if verdict.reason:
        lines += verdict.reason.splitlines()
    for case in verdict.failures[:1]:
        name_of_case = f"case {case.number + 1}  "
        lines += [name_of_case + case.sizes, *indent(case.what, " " * len(name_of_case)).splitlines()]
    if verdict.says:
        lines.append(verdict.says)
    if verdict.printed:
        said = verdict.printed.splitlines()
        lines += ["It printed:", *(f"  {line[:120]}" for line in said[:PRINTED])]
        if len(said) > PRINTED:
            lines.append("  ...")
    lines.append(f"More: course hint {verdict.id}")
    return lines


def _points(points: int) -> str:
    return f"{points} point{'s' if points != 1 else ''}"


@dataclass(frozen=True)
class Result:
    """What `check` shows in a notebook."""

    verdict: Verdict

    def __repr__(self) -> str:
        return text(self.verdict)

    def _repr_html_(self) -> str:
        head, *body = _lines(self.verdict)
        colour = COLOURS[self.verdict.status]
        mark = {"passed": "&#10003;", "failed": "&#10007;", "not done": "&#9675;"}[self.verdict.status]
        rest = "".join(f'<div style="white-space: pre-wrap; margin-top: 2px">{escape(line)}</div>' for line in body)
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 4px 12px; line-height: 1.5">'
            f'<div><span style="color: {colour}" aria-hidden="true">{mark}</span> <b>{escape(head)}</b></div>{rest}</div>'
        )
