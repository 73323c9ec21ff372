"""What differs between two lists of whole numbers, in a sentence that shows where."""

from collections.abc import Callable
from typing import Any

from course.checking.compare import kind

LONG = 16  # entries that a message shows whole


def no_numbers(name: str, got: Any) -> str | None:
    """What keeps a value from being a list of ints."""
    if not isinstance(got, list):
        return f"{name}: wanted a list of ints, got {kind(got)}"
    odd = next((i for i, entry in enumerate(got) if type(entry) is not int), None)
    return None if odd is None else f"{name}[{odd}]: wanted an int, got {kind(got[odd])}"


def no_rows(name: str, got: Any, width: int) -> str | None:
    """What keeps a value from being a list of lists of `width` ints."""
    if not isinstance(got, list):
        return f"{name}: wanted a list, got {kind(got)}"
    for place, row in enumerate(got):
        if fault := no_numbers(f"{name}[{place}]", row):
            return fault
        if len(row) != width:
            return f"{name}[{place}]: wanted {width} ints, got {len(row)}"
    return None


def differ(name: str, wanted: list, got: list, spelled: Callable[[Any], str] = str) -> str | None:
    """Where two lists differ first; `spelled` says what an entry stands for."""
    if wanted == got:
        return None
    if max(len(wanted), len(got)) <= LONG and spelled is str:
        return f"{name}: wanted {wanted}, got {got}"
    pairs = zip(wanted, got, strict=False)
    place = next((i for i, (w, g) in enumerate(pairs) if w != g), min(len(wanted), len(got)))
    said = [spelled(entries[place]) if place < len(entries) else "nothing more" for entries in (wanted, got)]
    sizes = f"{len(wanted)} wanted, {len(got)} returned; " if len(wanted) != len(got) else ""
    return f"{name}: {sizes}first differs at [{place}]: wanted {said[0]}, got {said[1]}"
