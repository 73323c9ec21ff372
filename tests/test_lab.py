"""What `course lab` prepares; tests/browser looks at the page itself."""

import json
import socket
import sys

import pytest

from course import lab
from course.authoring.places import Unit

UNIT = Unit("04", "04_squares", "Squares")


@pytest.fixture
def workspace(tmp_path):
    for kind in ("lesson", "lab"):
        path = UNIT.notebook(kind, tmp_path)
        path.parent.mkdir()
        path.write_text("{}")
    return tmp_path


def layout(workspace):
    return next((workspace / ".jupyter" / "workspaces").glob("*.jupyterlab-workspace"))


def settings(workspace, name):
    return workspace / ".jupyter" / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"


def test_lesson_and_lab_are_tabs_and_the_contents_are_open_on_the_right(workspace):
    lab.prepare(workspace, UNIT)
    shell = json.loads(layout(workspace).read_text())["data"]["layout-restorer:data"]
    assert shell["main"]["dock"]["widgets"] == ["notebook:notebooks/04_squares.ipynb", "notebook:labs/04_squares.ipynb"]
    assert shell["right"] == {"collapsed": False, "visible": True, "current": lab.TOC, "widgets": [lab.TOC]}


def test_there_is_no_news_and_the_learners_own_changes_stay(workspace):
    lab.prepare(workspace, UNIT)
    assert json.loads(settings(workspace, "apputils-extension/notification").read_text())["fetchNews"] == "false"
    tracker = settings(workspace, "notebook-extension/tracker")
    tracker.write_text("{}")
    lab.prepare(workspace, UNIT)
    assert tracker.read_text() == "{}"


def test_a_layout_stays_as_the_learner_left_it_until_every_notebook_was_closed(workspace):
    lab.prepare(workspace, UNIT)
    saved = json.loads(layout(workspace).read_text())
    saved["data"]["layout-restorer:data"]["main"]["dock"]["widgets"] = ["notebook:labs/04_squares.ipynb", "terminal:1"]
    layout(workspace).write_text(json.dumps(saved))
    lab.prepare(workspace, UNIT)
    assert "terminal:1" in layout(workspace).read_text()
    saved["data"]["layout-restorer:data"]["main"] = {"dock": None}
    layout(workspace).write_text(json.dumps(saved))
    lab.prepare(workspace, UNIT)
    assert "notebook:labs/04_squares.ipynb" in layout(workspace).read_text()


def test_the_kernel_is_this_python_even_where_the_user_has_another_of_that_name(workspace, tmp_path, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    other = tmp_path / "mine" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/usr/bin/other-python", "-f", "{connection_file}"], "display_name": "Mine", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "mine"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/usr/bin/other-python"
    for name, value in lab.prepare(workspace, UNIT).items():
        monkeypatch.setenv(name, value)
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == sys.executable


def test_a_taken_port_gives_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert lab.free_port(port) > port
    with pytest.raises(lab.LabError, match="--port"):
        lab.free_port(65536)


def test_unit_00_opens_first_and_else_the_first_that_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    with pytest.raises(lab.LabError, match="no unit"):
        lab._first()
    (tmp_path / "solutions").mkdir()
    for slug in ("04_squares", "07_cubes"):
        (tmp_path / "solutions" / f"{slug}.py").touch()
    assert lab._first().number == "04"
    (tmp_path / "solutions" / "00_start.py").touch()
    assert lab._first().number == "00"
