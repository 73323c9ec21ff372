"""A trace as tables and as a picture of its timeline."""

import re

from rich.console import Group
from rich.table import Table
from rich.text import Text

from course.hardware.kernel_classes import COMMUNICATION, TRANSFER
from course.hardware.trace import MS, Trace

COLOURS = {"attention": 0, "gemm": 4, "quantize": 5, "routing": 3}  # of the cycle; communication has the second
TIMES = (
    ("span", "span_ms"),
    ("busy", "busy_ms"),
    ("computing", "compute_busy_ms"),
    ("communicating", "communication_busy_ms"),
    ("both at once", "hidden_ms"),
    ("communicating only", "exposed_ms"),
    ("idle", "idle_ms"),
)


def tables(trace: Trace, top: int = 10) -> Group:
    """Times, classes, streams, the longest gaps and the kernels that take longest."""
    head = Text(f"{trace.name}: {trace.device}, {trace.kernels} {_events(trace)}")
    times = _table("", "ms", "of the span")
    for name, attribute in TIMES:
        ms = getattr(trace, attribute)
        times.add_row(name, f"{ms:.3f}", f"{_share(ms, trace.span_ms):.1%}")
    hidden = trace.hidden_fraction
    told = "nothing is communicated" if hidden is None else f"{hidden:.1%} of the communication is hidden"
    told += f"; the longest gap is {trace.gaps(1)[0][1]:.3f} ms" if trace.gaps(1) else "; without a gap"
    parts = [head, times, Text(told), _by("class", trace, trace.to_json()["classes"])]
    parts.append(_by("stream" if trace.on == "GPU" else "thread", trace, trace.to_json()["streams"]))
    kernels = _table("longest in all", "class", "times", "ms", "TFLOP/s")
    for group in trace.groups(top):
        speed = f"{group.tflops:.3g}" if group.tflops else ""
        kernels.add_row(short_name(group.name), group.kind, str(group.count), f"{group.total_ms:.3f}", speed)
    return Group(*parts, kernels)


def against(one: Trace, other: Trace) -> Group:
    """Two traces beside each other, and the second over the first."""
    table = _table("ms", one.name, other.name, "ratio")
    for name, attribute in TIMES:
        _beside(table, name, getattr(one, attribute), getattr(other, attribute))
    table.add_section()
    ours, theirs = one.to_json()["classes"], other.to_json()["classes"]
    for kind in dict.fromkeys([*ours, *theirs]):
        _beside(table, kind, ours.get(kind), theirs.get(kind))
    shares = [its.hidden_fraction for its in (one, other)]
    told = " and ".join("nothing to hide" if share is None else f"{share:.1%}" for share in shares)
    return Group(table, Text(f"Of the communication is hidden: {told}."))


def draw(trace: Trace, axis, between: tuple[float, float] | None = None) -> None:
    """The timeline on a Matplotlib axis: a row for each stream, a colour for each class.

    between: start and end in ms; all of it by default. Communication has one colour, and small classes are "other".
    """
    import matplotlib.pyplot as plt

    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    start, end = between or (0.0, trace.span_ms)
    named = [kind for kind in COLOURS if kind in trace.kinds]
    rest = [kind for kind in trace.kinds if kind not in (*COLOURS, *COMMUNICATION, TRANSFER)]
    rows = [("communication", COMMUNICATION, cycle[1]), ("other", tuple(rest), "#8c959f")]
    rows[1:1] = [(kind, (kind,), cycle[COLOURS[kind] % len(cycle)]) for kind in named]
    for label, kinds, colour in rows:
        drawn = False
        for place, stream in enumerate(trace.streams):
            spans = trace.busy(kinds, stream) * MS
            spans = spans[(spans[:, 1] > start) & (spans[:, 0] < end)]
            bars = [(begin, until - begin) for begin, until in spans]
            axis.broken_barh(
                bars, (place - 0.4, 0.8), color=colour, linewidth=0, label=label if bars and not drawn else None
            )
            drawn = drawn or bool(bars)
    axis.set(xlim=(start, end), xlabel="ms", title=f"{trace.name}, {trace.device}")
    axis.set_yticks(range(len(trace.streams)), [f"stream {stream}" for stream in trace.streams])
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=6, fontsize=8)


def short_name(name: str, width: int = 60) -> str:
    """A kernel's name without return type, arguments and the templates that make it hundreds of letters long."""
    name = re.sub(r"^(void|static) ", "", name).replace("(anonymous namespace)::", "")
    inner = re.match(r"[\w:]*device_kernel<([\w:]+)", name)  # CUTLASS wraps what it runs
    name = inner[1] if inner else re.split(r"[<(]", name, maxsplit=1)[0]
    name = name or "kernel"
    return name if len(name) <= width else "..." + name[3 - width :]


def _events(trace: Trace) -> str:
    return "kernels" if trace.on == "GPU" else "operators"


def _share(ms: float, of: float) -> float:
    return ms / of if of else 0.0


def _by(what: str, trace: Trace, busy: dict[str, float]) -> Table:
    table = _table(what, "busy ms", "of the span")
    for name, ms in busy.items():
        table.add_row(name, f"{ms:.3f}", f"{_share(ms, trace.span_ms):.1%}")
    return table


def _beside(table: Table, name: str, one: float | None, other: float | None) -> None:
    ratio = f"{other / one:.2f}" if one and other is not None else ""
    table.add_row(name, *("" if ms is None else f"{ms:.3f}" for ms in (one, other)), ratio)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right")
    return table
