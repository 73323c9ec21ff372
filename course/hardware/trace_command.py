"""`course trace`: what a profiler's file shows, as tables, as JSON or as a picture."""

import json
from pathlib import Path

from rich.console import Console

from course.hardware.trace import Trace
from course.hardware.trace_file import TraceError


def trace_command(
    file: Path, other: Path | None = None, as_json: bool = False, picture: Path | None = None, top: int = 10
) -> None:
    """Print what `file` shows, beside `other` where it is given.

    picture: gets the timeline, as PNG, SVG or PDF by its ending.
    Raises: TraceError, one sentence.
    """
    from course.hardware.trace_report import against, tables

    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise TraceError(f"A picture is .png, .svg or .pdf, and not {picture.name}.")
    traces = [Trace.read(path) for path in (file, other) if path is not None]
    if as_json:
        found = [trace.to_json(top) for trace in traces]
        print(json.dumps(found[0] if other is None else found, indent=1))
    else:
        console = Console(highlight=False)
        console.print(tables(traces[0], top) if other is None else against(*traces), soft_wrap=True)
    if picture is not None:
        _draw(traces, picture)


def _draw(traces: list[Trace], picture: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from course.hardware.trace_report import draw

    plt.style.use("course.lesson")
    figure, axes = plt.subplots(len(traces), 1, figsize=(10, 3.2 * len(traces)), squeeze=False)
    for trace, axis in zip(traces, axes[:, 0], strict=True):
        draw(trace, axis)
    try:
        figure.savefig(picture, dpi=150)
    except OSError as error:
        raise TraceError(f"The picture cannot be written to {picture}: {error.strerror}.") from None
    finally:
        plt.close(figure)
