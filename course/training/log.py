"""The log of a run: one row a step, in log.csv."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from course.training import atomic


class Row(NamedTuple):
    """One step of a run, as it stands in log.csv."""

    step: int
    tokens: int  # seen so far
    seconds: float  # spent on training steps so far, evaluation and checkpoints left out
    loss: float  # cross entropy of this step's batch, nats a token
    learning_rate: float
    gradient_norm: float  # before clipping
    max_violation: float | None  # load of the busiest expert over the mean, minus one, mean over layers; None: dense
    validation: float | None  # nats a token, at the steps where it was measured


@contextmanager
def open_log(folder: Path | None, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """A fresh log.csv with the rows so far, and a function that adds one. Without a folder nothing is kept.

    A run that was killed logged steps after its last checkpoint; they are run again, so their rows go.
    """
    if folder is None:
        yield lambda row: None
        return
    lines = [Row._fields, *(["" if value is None else repr(value) for value in row] for row in rows)]
    atomic.write(folder / "log.csv", lambda file: file.write("".join(",".join(line) + "\n" for line in lines).encode()))
    with open(folder / "log.csv", "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")

        def add(row: Row) -> None:
            writer.writerow(row)
            file.flush()

        yield add


def read_log(path: Path) -> list[Row]:
    """The rows of a log.csv."""
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    whole = ("step", "tokens")
    return [Row(**{k: int(v) if k in whole else (float(v) if v else None) for k, v in row.items()}) for row in table]
