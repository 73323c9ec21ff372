"""`course lab`: JupyterLab on a unit of the learner's workspace, with settings of its own.

What JupyterLab keeps for the course lies in the workspace's `.jupyter`: settings, layouts and a kernel named python3
that is this Python, whatever kernels the machine has beside it. The user's own Jupyter settings are read where the
course sets nothing, and never written.
"""

import json
import os
import socket
import sys
from pathlib import Path

from course.authoring import files, places
from course.authoring.workspace import open_unit

FIRST = "00"  # the unit that opens when none is named
PORTS = 50  # tried, from the wanted one on
TOC = "@jupyterlab/toc:plugin"
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "application-extension/shell": {"layout": {"single": {}, "multiple": {"Table of Contents": {"area": "right"}}}},
    "docmanager-extension/plugin": {"autosaveInterval": 15},  # seconds; `course check` reads what is saved
    "notebook-extension/tracker": {"codeCellConfig": {"lineNumbers": True}},  # checks name lines
}


class LabError(Exception):
    """Why JupyterLab cannot be started: one sentence."""


def lab_command(name: str | None, browser: bool, wanted: int) -> None:
    """Bring a unit's copies up to date and serve them until Ctrl-C.

    wanted: the port; the next free one where it is taken.
    """
    unit = _first() if name is None else places.unit(name)
    lab = open_unit(unit)
    home = places.workspace().resolve()
    port = free_port(wanted)
    if port != wanted:
        print(f"Port {wanted} is taken: using {port}.")
    os.environ.update(prepare(home, unit))
    print(f"Unit {unit.number}, {unit.title}. Your lab is {lab}. Ctrl-C ends JupyterLab.", flush=True)
    _serve(home, unit, port, browser)


def prepare(home: Path, unit: places.Unit) -> dict[str, str]:
    """Write settings, kernel and layout where the learner has none yet; the environment that makes Jupyter use them."""
    own = home / ".jupyter"
    for name, values in SETTINGS.items():
        path = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        if not path.exists():
            files.write(path, json.dumps(values, indent=1))
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"],
        "display_name": "Python 3 (course)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    files.write(own / "data" / "kernels" / "python3" / "kernel.json", json.dumps(kernel, indent=1))
    _lay_out(own / "workspaces", home, unit)
    inherited = os.environ.get("JUPYTER_PATH")
    return {
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "JUPYTER_PATH": os.pathsep.join(filter(None, [str(own / "data"), inherited])),
    }


def _lay_out(folder: Path, home: Path, unit: places.Unit) -> None:
    """Lesson and lab as tabs, contents on the right; a layout that still shows one of them stays as the learner left it."""
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    paths = [unit.notebook(kind, home) for kind in ("lesson", "lab")]
    books = [path.relative_to(home).as_posix() for path in paths if path.is_file()]
    layouts = WorkspacesManager(str(folder))
    kept = layouts.load(_name(unit))["data"].get("layout-restorer:data", {})
    if any(f"notebook:{book}" in json.dumps(kept.get("main", {})) for book in books):
        return
    tabs = [f"notebook:{book}" for book in books]
    shell = {
        "main": {"dock": {"type": "tab-area", "currentIndex": 0, "widgets": tabs}, "current": tabs[0]},
        "left": {"collapsed": True, "visible": True, "widgets": ["filebrowser", "running-sessions"]},
        "right": {"collapsed": False, "visible": True, "current": TOC, "widgets": [TOC]},
        "relativeSizes": [0, 0.78, 0.22],
    }
    data = {f"notebook:{book}": {"data": {"path": book, "factory": "Notebook"}} for book in books}
    data["layout-restorer:data"] = shell
    layouts.save(_name(unit), json.dumps({"data": data, "metadata": {"id": _name(unit)}}))


def _name(unit: places.Unit) -> str:
    return f"unit-{unit.number}"


def _serve(home: Path, unit: places.Unit, port: int, browser: bool) -> None:
    from jupyterlab.labapp import LabApp

    arguments = [
        f"--ServerApp.root_dir={home}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.open_browser={browser}",
        f"--LabApp.default_url=/lab/workspaces/{_name(unit)}",
        "--ServerApp.answer_yes=True",
        "--Application.log_level=ERROR",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    LabApp.launch_instance(arguments)


def free_port(wanted: int) -> int:
    """The first port from `wanted` on that nothing on this machine listens at. Raises: LabError when there is none."""
    for port in range(wanted, min(wanted + PORTS, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LabError(f"No port from {wanted} on is free: name another with --port.")


def _first() -> places.Unit:
    standing = places.units()
    if not standing:
        raise LabError("There is no unit yet.")
    return next((unit for unit in standing if unit.number == FIRST), standing[0])
