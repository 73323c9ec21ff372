"""The leaderboard: the rule by which entries are ranked, the table, and the file in which a class's board accumulates."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from course.authoring.files import write
from course.grading import GradingError
from course.grading.bench import Entry
from course.grading.gradebook import plain
from course.hardware.gpus import GPU
from course.hardware.roofline import Work, bound

COMPUTED = "computed, no GPU"
RULE = (
    "A rejected entry has no rank. Of the others, first comes who moves the fewest bytes at the standard size (over the "
    "least that anybody must move, to two digits); then the fewest launches, the fewest spilled bytes, the higher occupancy, "
    "the fewest registers. Equal in all, equal in rank."
)
MEASURED_RULE = f"The shortest median time goes first, to three digits; among equal times: {RULE[0].lower()}{RULE[1:]}"
PARTS = [field.name for field in fields(Entry)]


@dataclass(frozen=True)
class Board:
    """Entries to one exercise that were held against each other in the same way, one a student."""

    exercise: str
    how: str  # COMPUTED, or "measured on" a card
    size: str  # the standard one, in words
    entries: tuple[Entry, ...] = ()

    @property
    def rule(self) -> str:
        return RULE if self.how == COMPUTED else MEASURED_RULE

    def key(self, entry: Entry) -> tuple:
        """What entries are ranked by, the least first."""
        figures = entry.excess, entry.launches, entry.spills, -round(entry.occupancy, 3), entry.registers
        return figures if self.how == COMPUTED else (float(f"{entry.seconds:.3g}"), *figures)

    def ranked(self) -> list[tuple[int | None, Entry]]:
        """Entries with their ranks, the first first; equals share a rank, and rejected ones come last, with none."""
        kept = sorted(
            (each for each in self.entries if not each.refused), key=lambda each: (self.key(each), each.student)
        )
        ranks: list[tuple[int | None, Entry]] = []
        for place, each in enumerate(kept, 1):
            same = ranks and self.key(ranks[-1][1]) == self.key(each)
            ranks.append((ranks[-1][0] if same else place, each))
        return ranks + [(None, each) for each in sorted(self.entries, key=lambda e: e.student) if each.refused]

    def joined(self, entry: Entry) -> "Board":
        """The board with an entry on it. A student keeps the better of two; a rejected one gives way to whatever comes."""
        before = next((each for each in self.entries if each.student == entry.student), None)
        if before and not before.refused and (entry.refused or self.key(before) <= self.key(entry)):
            return self
        return replace(self, entries=(*(each for each in self.entries if each is not before), entry))

    def to_json(self, gpu: GPU) -> dict[str, Any]:
        """Everything that is shown; gpu: whose bandwidth gives the least time of the bytes."""
        entries = [
            {"rank": rank, **asdict(each), "excess": each.excess, "bound_seconds": least_time(each, gpu)}
            for rank, each in self.ranked()
        ]
        about = {"exercise": self.exercise, "how": self.how, "size": self.size, "rule": self.rule, "gpu": gpu.name}
        return about | {"entries": entries}


def least_time(entry: Entry, gpu: GPU) -> float:
    """Seconds that the bytes it moves take at the data sheet's bandwidth of a GPU, as if no cache served any of them."""
    return bound(Work(0.0, entry.moved), gpu).time


def table(board: Board, gpu: GPU, title: str) -> Group:
    """What is shown: the ranked entries, the rejected ones with their reasons, and the rule. To be printed by rich."""
    measured, ranked = board.how != COMPUTED, board.ranked()
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    found.add_column("")
    found.add_column("student", overflow="fold")
    times = ("us", "of the roof") if measured else ()
    bytes_ = ("bytes", "over least", f"us, {gpu.name}")
    for column in (*times, *bytes_, "launches", "spills", "registers", "shared", "occupancy", "tensor cores"):
        found.add_column(column, justify="right")
    for rank, its in ranked:
        if rank is not None:
            taken = [f"{1e6 * its.seconds:.1f}", f"{its.share_of_roof:.0%}"] if measured else []
            figures = [f"{its.moved:,}", f"{its.excess:.2f}x", f"{1e6 * least_time(its, gpu):.3f}", str(its.launches)]
            figures += [str(its.spills), str(its.registers), f"{its.shared_bytes:,}", f"{its.occupancy:.0%}"]
            products = ", ".join(f"{count} {name}" for name, count in its.tensor_core.items()) or "none"
            found.add_row(str(rank), Text(its.student), *taken, *figures, products)
    rejected = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for rank, its in ranked:
        if rank is None:
            rejected.add_row("[red]✗[/]", Text(its.student), Text(plain(its.refused or "")))
    parts = [found] * bool(found.row_count) + [rejected] * bool(rejected.row_count)
    return Group(Text(title, "bold"), *parts, Text(f"{board.rule}\nStandard size: {board.size}", "dim"))


def read(path: Path) -> list[Board]:
    """The boards in a file; none where there is no file. Raises: GradingError for a file that holds something else."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise GradingError(f"{str(path)!r} cannot be read as a board.") from None
    try:
        return [_board(each) for each in json.loads(text)["boards"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise GradingError(f"{str(path)!r} is no board of `course bench-kernel`: name another file.") from None


def join(path: Path, board: Board, gpu: GPU) -> Board:
    """Put a board's entries into the file's board of the same kind, in one step, and return that one."""
    boards = read(path)
    old = next((each for each in boards if (each.exercise, each.how, each.size) == _kind(board)), None)
    new = old or replace(board, entries=())
    for entry in board.entries:
        new = new.joined(entry)
    kept = [each for each in boards if each is not old] + [new]
    kept.sort(key=_kind)
    save(path, {"boards": [each.to_json(gpu) for each in kept]})
    return new


def save(path: Path, value: Any) -> None:
    try:
        write(path, json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise GradingError(f"{str(path)!r} cannot be written: {error.strerror}.") from None


def _kind(board: Board) -> tuple[str, str, str]:
    return board.exercise, board.how, board.size


def _board(told: dict[str, Any]) -> Board:
    entries = tuple(Entry(**{name: each[name] for name in PARTS}) for each in told["entries"])
    if not all(type(each.student) is str and type(each.launches) is int for each in entries):
        raise ValueError
    return Board(str(told["exercise"]), str(told["how"]), str(told["size"]), entries)
