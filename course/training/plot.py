"""Losses as pictures: several runs side by side, or one run while it happens."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course.model import Routing
from course.training.log import Row

AXES = {"tokens": "tokens seen", "seconds": "time in training steps [s]", "step": "step"}


def plot_runs(runs: Mapping[str, Sequence[Row]], against: str = "tokens", axes: Axes | None = None) -> Figure:
    """Training loss (thin) and validation loss (dots) of named runs against tokens, seconds or step."""
    if axes is None:
        _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, rows) in enumerate(runs.items()):
        measured = [row for row in rows if row.validation is not None]
        axes.plot([getattr(row, against) for row in rows], [row.loss for row in rows], f"C{number}", lw=0.6, alpha=0.5)
        places = [getattr(row, against) for row in measured]
        axes.plot(places, [row.validation for row in measured], f"C{number}o-", ms=4, label=f"{name}, validation")
    axes.set(xlabel=AXES[against], ylabel="cross entropy [nats a token]", title="Loss in training")
    if runs:
        axes.legend()
    return axes.figure


class LivePlot:
    """For `train(..., on_step=LivePlot("tiny-moe"))` in a notebook: one picture, redrawn whenever validation was
    measured."""

    def __init__(self, name: str):
        self.name, self.rows = name, []
        self.handle = DisplayHandle()

    def __call__(self, row: Row, routings: list[Routing]) -> None:
        self.rows.append(row)
        if row.validation is not None:
            figure = plot_runs({self.name: self.rows})
            self.handle.display(figure, update=len(self.rows) > 1)
            plt.close(figure)
