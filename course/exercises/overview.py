"""What the exercises are and how far the learner is: `course exercises`, `course status`, `course hint`."""

import json

from rich.console import Console
from rich.table import Table

from course.authoring import places, progress
from course.checking.exercise import Exercise
from course.exercises import every, find


def standing() -> list[Exercise]:
    """The exercises of the units that stand."""
    numbers = {unit.number for unit in places.units()}
    return [exercise for exercise in every().values() if exercise.unit in numbers]


def exercises_command(as_json: bool) -> None:
    if as_json:
        print(json.dumps([_row(exercise) for exercise in standing()], indent=1))
        return
    table = Table("id", "exercise", box=None, pad_edge=False)
    for column in ("points", "minutes", "difficulty"):
        table.add_column(column, justify="right")
    for e in standing():
        table.add_row(e.id, e.title + " *" * e.spine, str(e.points), str(e.minutes), f"{e.difficulty} of 5")
    console = Console(highlight=False)
    console.print(table)
    console.print("* on the short path")


def _row(exercise: Exercise) -> dict[str, str | int]:
    plain = {name: getattr(exercise, name) for name in ("id", "unit", "title", "points", "minutes", "difficulty")}
    return plain | {name: len(getattr(exercise, name)) for name in ("hints", "misconceptions", "alternatives")}


def status_command() -> None:
    """Print every exercise of the units that stand: whether it passed, its points and the hints taken."""
    known = progress.load(places.workspace())
    exercises, fresh = standing(), progress.Progress()
    table = Table("exercise", "", box=None, pad_edge=False)
    for column in ("points", "hints", "passed on"):
        table.add_column(column, justify="right")
    for unit in places.units():
        mine = [exercise for exercise in exercises if exercise.unit == unit.number]
        table.add_row(f"{unit.number} {unit.title}", "", _points(mine, known), style="bold")
        for e in mine:
            entry = known.get(e.id, fresh)
            mark = "✓" if entry.passed else "○"
            table.add_row(f"  {e.id} {e.title}", mark, _points([e], known), str(entry.hints), entry.first_passed or "")
    console = Console(highlight=False)
    console.print(table)
    passed = sum(known.get(e.id, fresh).passed for e in exercises)
    console.print(f"{passed} of {len(exercises)} exercises passed, {_points(exercises, known)} points.")
    console.print(f"Workspace: {places.workspace()}", soft_wrap=True)


def _points(exercises: list[Exercise], known: dict[str, progress.Progress]) -> str:
    earned = sum(e.points for e in exercises if e.id in known and known[e.id].passed)
    return f"{earned} of {sum(e.points for e in exercises)}"


def hint_command(name: str) -> None:
    """Print the next hint for an exercise; after the last one, the last one again."""
    exercise, home = find(name), places.workspace()
    of = len(exercise.hints)
    before = progress.load(home).get(exercise.id, progress.Progress()).hints
    number = progress.take_hint(home, exercise.id, of)
    last = " There is no further one." if before >= of else ""
    print(f"{exercise.id} {exercise.title}, hint {number} of {of}.{last}\n\n{exercise.hints[number - 1]}")
