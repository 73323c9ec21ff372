"""`course reproduce`: published figures, recomputed now."""

import json
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from course.hardware.reproduce import rows
from course.hardware.reproduce.row import Row

KINDS = {
    "definition": "arithmetic on published figures",
    "model": "a model with no free parameter",
    "fitted": "a curve through other rows",
}


def reproduce_command(as_json: bool = False) -> int:
    """Print every row. Returns: 1 where a definition does not agree to every printed digit, else 0."""
    found = rows()
    if as_json:
        print(json.dumps([row.to_json() for row in found], indent=1))
    else:
        console = Console(highlight=False)
        for kind, meaning in KINDS.items():
            if its := [row for row in found if row.kind == kind]:
                console.print(table(kind, meaning, its))
        for line in summary(found):
            console.print(Text(line), soft_wrap=True)
    return int(any(row.kind == "definition" and row.agrees is False and not row.contradicts for row in found))


def table(kind: str, meaning: str, its: list[Row]) -> Table:
    shown = Table(title=f"{kind}: {meaning}", box=None, pad_edge=False, title_justify="left", title_style="bold")
    shown.add_column("figure")
    for name in ("published", "computed", "error"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in its:
        computed = "" if row.computed is None else f"{number(row.computed)} {row.unit}"
        error = "" if row.relative_error is None else f"{row.relative_error:+.1%}"
        shown.add_row(Text(row.what), f"{number(row.published)} {row.unit}", computed, error)
        if row.reason:
            shown.add_row(Text(f"  {row.reason}", style="dim"))
    return shown


def summary(found: list[Row]) -> list[str]:
    """A sentence for each kind, and one for what cannot be reproduced."""
    told = []
    for kind in KINDS:
        errors = [abs(row.relative_error) for row in found if row.kind == kind and row.relative_error is not None]
        if kind == "definition":
            agree = sum(bool(row.agrees) for row in found if row.kind == kind)
            told.append(f"{agree} of {len(errors)} definitions agree to every printed digit.")
            if against := sum(row.contradicts for row in found):
                told.append(f"{against} published figures contradict others, and stay for that.")
        elif errors:
            told.append(
                f"{len(errors)} rows of kind {kind}: median error {median(errors):.1%}, largest {max(errors):.0%}."
            )
    missing = sum(row.computed is None for row in found)
    if missing:
        told.append(f"{missing} are not reproduced here; each says why.")
    told.append("`course reproduce --json` has the source of each.")
    return told


def number(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.5g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
