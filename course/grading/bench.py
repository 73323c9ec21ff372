"""One entry of the leaderboard: read, judged, held to the standard size, compiled. What it came to, or why it was refused.

Each step can refuse, and the first that does gives the reason.
  Read      the text keeps to what an entry may be written in (`entry_rules`)
  Judged    as in `course grade`: fresh secret inputs, a sandboxed process that never knows what is wanted
  Counted   in a second process, three calls at the standard size on fresh secret inputs, the third on those of the first:
            right each time, the same bits and the same launches both times, and no fewer bytes than anybody needs
  Compiled  for sm_90, in a third process: registers, spills, shared memory, tensor-core instructions
  Measured  where there is a GPU (`measured`)

What counts is told by processes that held the entry. What they tell is checked for its form, and against what is known here:
the values, and the least that must move. Beyond that the text is trusted to be what it was read to be.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from course.checking.answer import AnswerError, prelude
from course.checking.exercise import Exercise
from course.checking.judge import Try, Verdict, judge, run, run_reference
from course.checking.wire import pack
from course.exercises import every
from course.grading.entry_rules import read_entry
from course.grading.standard import Standard, drawn, least_stored, standard
from course.grading.workers import Workers
from course.hardware.gpus import GPUS
from course.hardware.machine_code import read_code
from course.hardware.occupancy import occupancy
from course.kernels.launch import Launch

KERNELS = 8  # different ones that a call may launch
PATIENCE = 3  # times as long as a case of the exercise may take
TELLS = "load_bytes", "store_bytes"


class Refused(Exception):
    """Why an entry has no place: one sentence."""


@dataclass(frozen=True)
class Entry:
    """A student's entry. Where `refused` stands, the figures are those that were found before."""

    student: str
    refused: str | None = None
    source: str = ""  # the first digits of its SHA-256
    loaded: int = 0  # bytes of one call at the standard size, by kernels and by PyTorch beside them
    stored: int = 0
    least: int = 0  # bytes that any entry has to load and store
    launches: int = 0  # of kernels, and operations of PyTorch that move something
    spills: int = 0  # bytes a thread, of all its kernels
    registers: int = 0  # a thread, the most of any of its kernels; so too the shared memory
    shared_bytes: int = 0  # a block
    occupancy: float = 0.0  # the least of any
    tensor_core: dict[str, int] = field(default_factory=dict)  # instruction -> how often it stands in the code
    seconds: float | None = None  # the median, where it was measured
    share_of_roof: float | None = None  # of the bytes a second that a copy reached on the same card

    @property
    def moved(self) -> int:
        return self.loaded + self.stored

    @property
    def excess(self) -> float:
        """Bytes over the least, to two digits after the point."""
        return round(self.moved / self.least, 2) if self.least else 0.0


def bench(student: str, exercise: Exercise, source: str, workers: Workers, card: Any = None) -> Entry:
    """The entry of one student. card: what measures it on a GPU (`measured.Card`); None where there is none."""
    its: dict[str, Any] = {"source": hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]}
    judged: list[dict] = []  # launches that are to be compiled with those at the standard size, all in one process
    try:
        try:
            read_entry(exercise, source)
        except AnswerError as error:
            raise Refused(str(error)) from None
        verdict = judge(
            replace(exercise, misconceptions=()),  # to name them is for those who learn, and takes longer than the rest
            source,
            every(),
            secret=True,
            start=lambda: workers.start(exercise),
            compile=lambda text, launches: judged.extend(launches) or [],
            seconds=workers.limits.case,
        )
        if not verdict.passed:
            raise Refused(_why(verdict))
        counted, launches = _count(exercise, source, workers)
        its |= counted
        its |= _figures(exercise, source, launches, judged, workers)
        if card:
            its |= card.measure(exercise, source, workers)
    except Refused as refusal:
        return Entry(student, str(refusal), **its)
    return Entry(student, **its)


def _why(verdict: Verdict) -> str:
    if verdict.status == "not done":
        return verdict.reason or "There is nothing in it yet."
    if verdict.failures:
        return f"Wrong for {verdict.failures[0].sizes}: {verdict.failures[0].what}."
    return verdict.reason or "It failed."


def _count(exercise: Exercise, source: str, workers: Workers) -> tuple[dict[str, int], list[dict]]:
    """Bytes and launches of one call at the standard size, and the launches themselves."""
    its = standard(exercise)
    first, second = (drawn(its, secrets.randbits(64)) for _ in range(2))
    with workers.start(exercise) as worker:
        try:
            cases = enumerate([first, second, first])
            tries = list(run(exercise, source, every(), worker, cases, PATIENCE * workers.limits.case))
        except AnswerError as error:
            raise Refused(str(error)) from None
    counts = []
    for each in tries:
        if each.case.what or not each.returned:
            raise Refused(f"Wrong at the standard size, {each.case.sizes}: {each.case.what or 'it is not done'}.")
        counts.append(counted(each))
        refuse_impossible(its, exercise, each, counts[-1])
    if pack({"value": tries[0].value}) != pack({"value": tries[2].value}):
        raise Refused("The same inputs gave other bits the second time.")
    if (tries[0].launches, tries[0].beside) != (tries[2].launches, tries[2].beside):
        raise Refused("The same inputs took other launches the second time: it keeps something from call to call.")
    least = its.loads(first) + least_stored(run_reference(exercise.reference, first))
    return counts[0] | {"least": least}, list(tries[0].launches)


def counted(one: Try) -> dict[str, int]:
    """What a call moved, as its process told. Raises: Refused where that is not in the form in which it is told."""
    try:
        launches = [Launch.from_json(launch) for launch in one.launches]
    except ValueError:
        raise Refused("Its process told of launches in a form that no launch has.") from None
    beside = [one.beside.get(name) for name in ("operations", *TELLS)]
    told = [number for launch in launches for number in (launch.load_bytes, launch.store_bytes)] + beside
    if not all(type(number) is int and 0 <= number < 1 << 50 for number in told):
        raise Refused("Its process told of bytes that are no number of bytes.")
    return {
        "loaded": sum(launch.load_bytes for launch in launches) + beside[1],
        "stored": sum(launch.store_bytes for launch in launches) + beside[2],
        "launches": len(launches) + beside[0],
    }


def refuse_impossible(its: Standard, exercise: Exercise, one: Try, counts: dict[str, int]) -> None:
    """Raises: Refused for a call that moved less than its inputs and results need."""
    reads, writes = its.loads(one.inputs), least_stored(run_reference(exercise.reference, one.inputs))
    if counts["loaded"] < reads:
        raise Refused(
            f"Faster than the roof: it loaded {counts['loaded']:,} bytes, and {reads:,} of its inputs have to be read."
        )
    if counts["stored"] < writes:
        raise Refused(f"Faster than the roof: it stored {counts['stored']:,} bytes, and its results have {writes:,}.")


def _figures(
    exercise: Exercise, source: str, launches: Sequence[dict], judged: Sequence[dict], workers: Workers
) -> dict[str, Any]:
    """What the compiler made of the kernels at the standard size, for sm_90, which has to take the judged ones as well."""
    parts = ("kernel", "signature", "constexprs", "divisible", "options")
    different = list({repr([launch[part] for part in parts]): launch for launch in launches}.values())
    if len(different) > KERNELS:
        raise Refused(f"One call launches {len(different)} different kernels, and {KERNELS} may be.")
    found = workers.compile(exercise, code=len(different))(prelude(exercise) + source, [*different, *judged])
    if error := next((str(each["error"])[:300] for each in found if each.get("error")), None):
        raise Refused(f"It runs in the interpreter, and not on an H100: {error}")
    figures: dict[str, Any] = {"spills": 0, "registers": 0, "shared_bytes": 0, "occupancy": 1.0, "tensor_core": {}}
    for each in found[: len(different)]:
        numbers = [each.get(name) for name in ("warps", "registers", "shared_bytes", "spills")]
        if not all(type(number) is int and 0 <= number < 1 << 30 for number in numbers):
            raise Refused("Its compiler told of figures that no kernel has.")
        try:
            share = occupancy(GPUS["h800"], *numbers[:3]).share
        except ValueError as error:
            raise Refused(f"It does not fit on an SM: {error}.") from None
        code = each.get("code") if type(each.get("code")) is dict else {}
        for name, count in read_code(str(code.get("sass", ""))).tensor_core.items():
            kind = name.split(".")[0]
            figures["tensor_core"][kind] = figures["tensor_core"].get(kind, 0) + count
        figures["spills"] += numbers[3]
        figures["registers"] = max(figures["registers"], numbers[1])
        figures["shared_bytes"] = max(figures["shared_bytes"], numbers[2])
        figures["occupancy"] = min(figures["occupancy"], share)
    return figures
