"""`course bench-kernel`: what it prints, what it writes, and its exit code."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from course.authoring import places
from course.authoring.answers import NotebookError
from course.checking.exercise import Exercise
from course.checking.judge import describe
from course.exercises import UnknownExercise, every, find
from course.grading import GradingError
from course.grading.bench import Entry, bench
from course.grading.grade import isolation_level
from course.grading.gradebook import plain
from course.grading.leaderboard import COMPUTED, Board, join, save, table
from course.grading.measured import Card, your_card
from course.grading.sandbox import level
from course.grading.standard import drawn, standard
from course.grading.submission import ENTRIES, Submission, answer_to, submissions
from course.grading.workers import Workers
from course.hardware.gpus import GPUS


def bench_command(
    exercise: str,
    files: list[Path],
    as_json: Path | None = None,
    board: Path | None = None,
    gpu: str = "h800",
    isolation: bool = True,
    measure: bool = True,
) -> int:
    """Rank entries to a kernel exercise.

    as_json, board: files for the entries of this run, and for the best of every student so far.
    gpu: whose bandwidth gives a time to the bytes. isolation: False runs entries with the rights of whoever calls this.
    measure: False leaves a GPU of this machine alone.
    Returns: 0 when every entry was read and either ranked or rejected, 1 when one could not be, 2 for wrong use.
    """
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 150)
    try:
        if gpu not in GPUS:
            raise GradingError(f"There is no GPU {gpu!r} here; there are {', '.join(GPUS)}.")
        chosen = _kernel_exercise(exercise)
        found = submissions(files, _lab(chosen), ENTRIES)
        letter, card = isolation_level(isolation), your_card() if measure else None
        its = standard(chosen)
        if card and not its.gpu:
            raise GradingError(f"Exercise {chosen.id} has no size for a GPU yet: add --computed.")
        size = describe(drawn(its, 0, its.gpu if card else 1))
        empty = Board(chosen.id, f"measured on {card.name}" if card else COMPUTED, size)
        shown = join(board, empty, GPUS[gpu]) if board else empty
        console.print(f"Sandbox level {letter}. {_means(letter)}", soft_wrap=True)
    except (GradingError, UnknownExercise) as error:
        print(plain(str(error)), file=sys.stderr)
        return 2
    run, failed = empty, []
    try:
        with Workers(isolation, ahead=1) as workers:
            for entry, complete in _entries(found, chosen, workers, card):
                run = replace(run, entries=(*run.entries, entry))
                failed += [] if complete else [entry.student]
                if board and complete:
                    shown = join(board, replace(empty, entries=(entry,)), GPUS[gpu])
                elif not board:
                    shown = run
                _report(as_json, run, letter, gpu)
    finally:  # after Ctrl-C too: what is done is shown, and was written already
        if run.entries:
            console.print(table(_with(shown, run), GPUS[gpu], f"{chosen.id} {chosen.title}: {empty.how}"))
    return 1 if failed else 0


def _entries(
    found: Iterable[Submission], exercise: Exercise, workers: Workers, card: Card | None
) -> Iterable[tuple[Entry, bool]]:
    """Each submission's entry, and whether it could be read and run, whatever it holds."""
    for submission in tqdm(found, desc="Benchmarking", unit="entry", disable=None):
        try:
            source = answer_to(submission, exercise.id)
        except NotebookError as error:
            yield Entry(submission.student, str(error)), False
            continue
        try:
            yield bench(submission.student, exercise, source, workers, card), True
        except Exception as error:
            said = str(error) if isinstance(error, GradingError) else f"the benchmark failed ({type(error).__name__})."
            yield Entry(submission.student, f"Not run: {said}"), False


def _with(board: Board, run: Board) -> Board:
    """The board, and below it what of this run has no place on it."""
    return replace(board, entries=(*board.entries, *(e for e in run.entries if e.refused and e not in board.entries)))


def _kernel_exercise(name: str) -> Exercise:
    exercise = find(name)
    if not exercise.kernel:
        known = [each for each in every().values() if each.kernel]
        near = [each for each in known if each.unit == exercise.unit] or known
        raise GradingError(f"Exercise {name} is no kernel exercise; there is {', '.join(each.id for each in near)}.")
    return exercise


def _lab(exercise: Exercise) -> str:
    try:
        return places.unit(exercise.unit).slug
    except places.UnknownUnit:
        return exercise.unit


def _means(letter: str) -> str:
    return level()[1] if letter == "A" else "Entries run as plain processes with your rights."


def _report(path: Path | None, run: Board, letter: str, gpu: str) -> None:
    if path:
        about: dict[str, Any] = {"isolation": letter}
        save(path, about | run.to_json(GPUS[gpu]))
