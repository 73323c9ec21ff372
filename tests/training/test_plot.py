import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot

from course.training.log import Row
from course.training.plot import LivePlot, plot_runs


@pytest.fixture
def rows():
    return [Row(n, 10 * n, 0.5 * n, 5.0 / n, 1e-3, 1.0, None, 4.0 if n % 2 else None) for n in range(1, 6)]


def test_a_plot_shows_each_runs_losses_against_what_was_asked(rows):
    figure = plot_runs({"one": rows, "two": rows[:3]}, against="seconds")
    lines = figure.axes[0].lines
    assert list(lines[0].get_xdata()) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert list(lines[1].get_xdata()) == [0.5, 1.5, 2.5]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "one, validation",
        "two, validation",
    ]
    pyplot.close(figure)


def test_a_live_plot_is_redrawn_when_validation_was_measured(rows):
    live, drawn = LivePlot("run"), []
    live.handle.display = lambda figure, update: drawn.append(update)
    for row in rows:
        live(row, [])
    assert drawn == [False, True, True]
    assert pyplot.get_fignums() == []
