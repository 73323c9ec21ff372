"""A PyTorch profiler trace read from its file, an event at a time: JSON or gzip, however large."""

import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ijson
from tqdm import tqdm

from course.hardware.kernel_classes import TRANSFER, kernel_class

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
ON_HOST = ("cpu_op", "user_annotation")
LARGE = 50_000_000  # bytes, from which a file takes seconds
HOST_TRANSPORT = ("gloo:", "nccl:")  # annotations by which torch.distributed records a transfer in its own thread


class TraceError(Exception):
    """A file that is no trace, or a broken one: one sentence."""


@dataclass(frozen=True, slots=True)
class Event:
    """A kernel on a GPU, or an operator on a CPU. Times in microseconds."""

    name: str
    start: float
    duration: float
    stream: str
    kind: str
    flops: float | None = None

    @property
    def end(self) -> float:
        return self.start + self.duration


@dataclass
class Raw:
    """What is kept of a file."""

    device: str = ""
    sms: int | None = None
    gpu: list[Event] = field(default_factory=list)
    host: list[Event] = field(default_factory=list)
    annotations: list[Event] = field(default_factory=list)
    flops: dict[int, float] = field(default_factory=dict)  # of an operator, by its external id
    external: list[int | None] = field(default_factory=list)  # of each event on a GPU: the operator that launched it


def read(path: Path) -> Raw:
    """Raises: TraceError with one sentence for a file that is missing, broken or of another kind."""
    if not path.is_file():
        raise TraceError(f"There is no file {path}.")
    raw = Raw()
    try:
        _read_head(path, raw)
        events = 0
        for entry in _entries(path):
            events += 1
            _keep(entry, raw)
    except (ijson.JSONError, EOFError, OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} is no trace, or one that was cut short ({_first_line(error)}).") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceError(
            f"{path} has an event that is not as torch.profiler writes it ({_first_line(error)})."
        ) from None
    if not events:
        raise TraceError(f"{path} has no traceEvents: it is not a trace of torch.profiler (export_chrome_trace).")
    if not raw.gpu and not raw.host:
        raise TraceError(f"{path} has {events} events, but neither kernels nor operators among them.")
    return raw


def _zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path):
    return gzip.open(path, "rb") if _zipped(path) else path.open("rb")


def _read_head(path: Path, raw: Raw) -> None:
    """The device's name and SMs, which the profiler writes before the events."""
    with _open(path) as file:
        for prefix, kind, value in ijson.parse(file):
            if prefix == "deviceProperties.item.name" and not raw.device:
                raw.device = value
            elif prefix == "deviceProperties.item.numSms" and raw.sms is None:
                raw.sms = int(value)
            elif prefix == "traceEvents" or (prefix == "" and kind == "start_array"):
                return


def _entries(path: Path) -> Iterator[dict]:
    with _open(path) as file:
        first = file.read(64).lstrip()[:1]
    where = "item" if first == b"[" else "traceEvents.item"
    large = path.stat().st_size > LARGE
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=path.name,
            unit="B",
            unit_scale=True,
            disable=not (large and sys.stderr.isatty()),
        ) as bar,
    ):
        whole = gzip.GzipFile(fileobj=file) if _zipped(path) else file
        for entry in ijson.items(whole, where, use_float=True):
            yield entry
            bar.update(file.tell() - bar.n)


def _keep(entry: dict, raw: Raw) -> None:
    kind = entry.get("cat")
    if entry.get("ph") != "X" or kind not in ON_GPU + ON_HOST:
        return
    name, arguments = entry["name"], entry.get("args", {})
    place = arguments.get("stream", entry.get("tid")) if kind in ON_GPU else entry.get("tid")
    flops = _flops(name, arguments.get("Input Dims")) if kind == "cpu_op" else None
    of = kernel_class(name) if kind in ("kernel", *ON_HOST) else TRANSFER
    event = Event(name, float(entry["ts"]), float(entry["dur"]), str(place), of, flops)
    if event.duration < 0:
        raise ValueError(f"{name} lasts {event.duration} us")
    if kind in ON_GPU:
        raw.gpu.append(event)
        raw.external.append(arguments.get("External id"))
    elif kind == "user_annotation" and not name.startswith(HOST_TRANSPORT):
        raw.annotations.append(event)
    else:
        raw.host.append(event)
        if flops and "External id" in arguments:
            raw.flops[arguments["External id"]] = flops


def _flops(name: str, dims: list | None) -> float | None:
    """Of a product whose shapes were recorded; None for any other operator."""
    matrices = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
    if not dims or name not in matrices:
        return None
    a, b = dims[matrices[name] : matrices[name] + 2]
    batch = a[0] if len(a) == 3 else 1
    return 2.0 * batch * a[-2] * a[-1] * b[-1]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
