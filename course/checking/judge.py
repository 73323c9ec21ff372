"""Judging one answer: draw inputs, ask the worker, compare, and say which misconception a wrong answer behaves like."""

import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from course.checking.answer import AnswerError, begun, look_at, prelude, source_of
from course.checking.compare import kind
from course.checking.exercise import Exercise, Inputs, Tree
from course.checking.launch import Worker, WorkerEnded, start
from course.checking.wire import Foreign, tree

PUBLIC_SEED = 0
SECONDS = 10.0  # for one case, and for running the cell itself
SAID = 600  # characters of an error message that are passed on, whatever the worker sent
LEFTOVER = "Its line `raise NotImplementedError` is still there, and was reached."
FEW = 4  # numbers of an input that the line of a case shows
MORE = 3  # times as many secret cases as public ones


@dataclass(frozen=True)
class Case:
    number: int
    sizes: str
    what: str | None = None  # None: right


@dataclass(frozen=True)
class Verdict:
    """What a runner learns about one answer. `status`: "passed", "failed" or "not done"."""

    id: str
    title: str
    points: int
    status: str
    cases: tuple[Case, ...] = ()
    total: int = 0
    reason: str | None = None  # why no case could be compared, or what was wrong besides the values
    misconception: str | None = None  # its name
    says: str | None = None  # its sentence
    printed: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def earned(self) -> int:
        return self.points if self.passed else 0

    @property
    def failures(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.what)


Start = Callable[[], Worker]
Compile = Callable[[str, list], list[dict[str, Any]]]


def judge(
    exercise: Exercise,
    source: str | None,
    earlier: Mapping[str, Exercise],
    *,
    secret: bool = False,
    start: Start = start,
    compile: Compile | None = None,
    seconds: float = SECONDS,
) -> Verdict:
    """The verdict on one answer.

    source: the text of the answer cell; None when there is none.
    earlier: exercises by id; those that `exercise.uses` names lend the answer their reference.
    secret: fresh seeds, more cases, in a random order; otherwise the public ones, the same every time.
    compile: what compiles a kernel's launches for sm_90; None takes a process of this machine.
    """

    def verdict(status: str, **more: Any) -> Verdict:
        return Verdict(exercise.id, exercise.title, exercise.points, status, **more)

    if source is None:
        return verdict("not done")
    try:
        look_at(exercise, source)
    except AnswerError as error:
        return verdict("failed", reason=str(error))
    seed = secrets.randbits(64) if secret else PUBLIC_SEED
    numbers = list(range(exercise.cases * (MORE if secret else 1)))
    if secret:
        secrets.SystemRandom().shuffle(numbers)
    with start() as worker:
        try:
            drawn = ((number, draw(exercise, seed, number)) for number in numbers)
            tries = list(run(exercise, source, earlier, worker, drawn, seconds))
        except AnswerError as error:
            return verdict("failed", reason=str(error), printed=worker.printed())
        printed = worker.printed()
    if any(t.not_done for t in tries):
        return verdict("not done", reason=LEFTOVER if begun(exercise, source) else None)
    cases = tuple(sorted((t.case for t in tries), key=lambda case: case.number))
    named = _misconception(exercise, tries, len(numbers), earlier) if any(case.what for case in cases) else None
    reason = None
    if exercise.kernel and not any(case.what for case in cases):
        reason = _machine(exercise, source, [launch for t in tries for launch in t.launches], compile or _compile)
    failed = reason or any(case.what for case in cases)
    return verdict(
        "failed" if failed else "passed",
        cases=cases,
        total=len(numbers),
        reason=reason,
        misconception=named.name if named else None,
        says=named.says if named else None,
        printed=printed,
    )


def draw(exercise: Exercise, seed: int, number: int) -> Inputs:
    """The inputs of one case: the same for the same seed and number, in every process."""
    inputs = exercise.inputs(np.random.default_rng([seed, zlib.crc32(exercise.id.encode()), number]), number)
    return tree(inputs)


def run_reference(function: Callable[..., Tree], inputs: Inputs) -> Tree:
    """What a trusted function returns, in the form in which an answer's values arrive; the inputs stay as they were."""
    return tree(function(**tree(inputs)))


@dataclass(frozen=True)
class Try:
    """One call of an answer, compared with what was wanted."""

    inputs: Inputs
    case: Case
    value: Tree = None
    returned: bool = False
    not_done: bool = False
    lost: bool = False  # the worker is gone: no further case can be run
    launches: tuple = ()  # of kernels, as the worker tells
    beside: dict[str, Any] = field(default_factory=dict)  # what PyTorch moved beside them, as the worker tells
    times: dict[str, Any] = field(default_factory=dict)  # of a call that was timed, as the worker tells
    outside: float = 0.0  # seconds from the request to the reply, by the clock here


def run(
    exercise: Exercise,
    source: str,
    earlier: Mapping[str, Exercise],
    worker: Worker,
    drawn: Iterable[tuple[int, Inputs]],
    seconds: float,
    ask: Callable[[int], dict[str, Any]] = lambda number: {"op": "call"},
) -> Iterator[Try]:
    """Load an answer into a worker and call it on numbered inputs, one after another, until all are done or the worker is gone.

    ask: what a call is asked for, by its number.
    Raises: AnswerError when the answer cannot be loaded.
    """
    try:
        reply = worker.request(loading(exercise, source, earlier), 2 * seconds)
    except WorkerEnded as error:
        raise AnswerError(f"The answer cell could not be run. {error}") from None
    if reply["status"] == "not done":
        yield Try({}, Case(0, ""), not_done=True)
        return
    if reply["status"] != "ready":
        raise AnswerError(f"The answer cell could not be run: {_complaint(reply)}.")
    for number, inputs in drawn:
        tried = _try(exercise, worker, inputs, number, seconds, ask(number))
        yield tried
        if tried.not_done or tried.lost:
            return


def loading(exercise: Exercise, source: str, earlier: Mapping[str, Exercise]) -> dict[str, Any]:
    """The request that loads an answer into a worker."""
    return {
        "op": "load",
        "source": source,
        "prelude": prelude(exercise),
        "entry": exercise.entry,
        "earlier": {
            name: {"entry": earlier[name].entry, "source": source_of(earlier[name].reference, earlier[name].entry)}
            for name in exercise.uses
        },
        "gives": list(exercise.gives),
        "forbids": list(exercise.forbids),
        "kernel": exercise.kernel,
        "tags": list(exercise.tags),
    }


def _try(exercise: Exercise, worker: Worker, inputs: Inputs, number: int, seconds: float, ask: dict[str, Any]) -> Try:
    sizes, begun = describe(inputs), time.perf_counter()
    try:
        reply = worker.request({"arguments": inputs} | ask, seconds)
    except WorkerEnded as error:
        return Try(inputs, Case(number, sizes, str(error)), lost=True)
    if reply["status"] == "not done":
        return Try(inputs, Case(number, sizes), not_done=True)
    if reply["status"] != "value":
        return Try(inputs, Case(number, sizes, f"it raised {_complaint(reply)}"))
    outside = time.perf_counter() - begun
    value, launches = reply["value"], tuple(reply["launches"])
    if reply["changed"]:
        what = f"it changed its input `{reply['changed'][0][:40]}` in place; leave the inputs as they are"
    elif isinstance(value, Foreign):
        what = f"returned {kind(value)}, which is neither a tensor nor a number"
    elif exercise.kernel and not launches and _has_work(inputs) and ask["op"] == "call":
        what = "no Triton kernel was launched"
    else:
        what = _compared(exercise, inputs, value)
    told = {"launches": launches, "beside": reply["beside"], "times": reply["times"], "outside": outside}
    return Try(inputs, Case(number, sizes, what), value, True, **told)


def _compared(exercise: Exercise, inputs: Inputs, value: Tree) -> str | None:
    wanted = run_reference(exercise.reference, inputs)
    try:
        return exercise.compare(inputs, wanted, value)
    except Exception:  # a value so odd that the exercise's own comparison did not foresee it
        return f"returned {kind(value)}, which cannot be compared with what was wanted"


def _has_work(inputs: Inputs) -> bool:
    return all(value.numel() for value in inputs.values() if isinstance(value, torch.Tensor))


def _complaint(reply: dict[str, Any]) -> str:
    error = reply.get("error") or {}
    name, message = str(error.get("type"))[:80], str(error.get("message") or "")[:SAID]
    line = error.get("line") if type(error.get("line")) is int else None
    where = f" in line {line} of the answer cell" if line else ""
    if name == "KernelFault":
        return f"a fault in the kernel: {message}"
    if name == "NameError" and "is not defined" in message:
        message += " (an answer runs alone: only the set-up cell's imports and this cell count; move helpers into it, or is it a typo?)"
    return f"{name}{where}: {message}" if message else f"{name}{where}"


def _misconception(exercise: Exercise, tries: list[Try], asked: int, earlier: Mapping[str, Exercise]):
    """The misconception whose values the answer gave in every case, if it gave values in every case."""
    if len(tries) < asked or not all(t.returned for t in tries):
        return None
    drawn = [t.inputs for t in tries]
    for misconception in exercise.misconceptions:
        values = values_of(exercise, misconception.answer, drawn, earlier)
        try:
            if all(exercise.compare(t.inputs, value, t.value) is None for t, value in zip(tries, values, strict=True)):
                return misconception
        except Exception:  # the wrong answer itself, or the comparison with it, fails on these inputs: not this one
            continue
    return None


def values_of(
    exercise: Exercise, function: Callable[..., Tree], drawn: Iterable[Inputs], earlier: Mapping[str, Exercise]
) -> Iterator[Tree]:
    """What one of our own functions returns, case by case; kernels run in a worker, which interprets on every machine."""
    if not exercise.kernel:
        yield from (run_reference(function, inputs) for inputs in drawn)
        return
    with start() as worker:
        worker.request(loading(exercise, source_of(function, exercise.entry), earlier), SECONDS)
        for inputs in drawn:
            reply = worker.request({"op": "call", "arguments": inputs}, SECONDS)
            if reply["status"] != "value":
                raise RuntimeError(f"{function.__name__} of exercise {exercise.id} failed: {_complaint(reply)}")
            yield reply["value"]


def _machine(exercise: Exercise, source: str, launches: list, compile: Compile) -> str | None:
    """What an H100's compiler says against the kernels that were launched; None when it takes them."""
    different = {repr((x["kernel"], x["signature"], x["constexprs"])): x for x in launches}
    for compiled in compile(prelude(exercise) + source, list(different.values())[:4]):
        if compiled.get("error"):
            return f"It runs in the interpreter, and not on an H100: {compiled['error']}"
    return None


def _compile(text: str, launches: list) -> list[dict[str, Any]]:
    from course.kernels.machine import compile_texts

    return compile_texts(text, launches)


def describe(inputs: Inputs) -> str:
    """A case in a line: `T=7 E=16 groups=4`. A name that ends in one capital a dimension (scores_TE) names its sizes; of a
    short list of numbers the line shows them all, and which of several tensors is None."""
    sizes: dict[str, str] = {}
    narrow: dict[str, None] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            letters = name.rpartition("_")[2] if "_" in name else ""
            if value.ndim == 1 and 0 < len(value) <= FEW:
                sizes[name] = f"[{', '.join(f'{number:g}' for number in value.tolist())}]"
            elif len(letters) == value.ndim and letters.isalpha() and letters.isupper():
                sizes |= {letter: str(size) for letter, size in zip(letters, value.shape, strict=True)}
            elif value.ndim == 1:
                sizes[name] = f"({len(value)} numbers)"
            elif value.ndim:
                sizes[name] = str(list(value.shape))
            if _is_narrow(value):
                narrow[_dtype(value)] = None
        elif isinstance(value, bool | int | float):
            sizes[name] = f"{value:g}" if isinstance(value, float) else str(value)
        elif isinstance(value, str):
            sizes[name] = repr(value[:20])
        elif isinstance(value, list) and len(value) < 8 and all(isinstance(item, int) for item in value):
            sizes[name] = str(value)
        elif isinstance(value, list | dict):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            sizes |= {f"{name}[{key!r}]": "None" for key, item in items if item is None}
            narrow |= {_dtype(item): None for _, item in items if isinstance(item, torch.Tensor) and _is_narrow(item)}
    return " ".join([*(f"{name}={size}" for name, size in sizes.items()), *narrow])


def _is_narrow(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.dtype not in (torch.float32, torch.float64)


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
