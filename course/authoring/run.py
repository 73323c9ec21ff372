"""Executing a notebook away from everything: a fresh kernel of this Python, an empty home, an empty folder.

What would differ between two runs is left out of the outputs: timings, standard error, versions in pictures, widgets
(they need a running kernel). A warning or a traceback on standard error is a fault: the learner would see it too.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from course.authoring.places import PACKAGE

SECONDS = 120  # for one cell, as nbval has it
WIDGET = "application/vnd.jupyter.widget-view+json"
WARNING = re.compile(r"^.*\b[A-Z]\w*Warning\b.*$|^Traceback \(most recent call last\)", re.MULTILINE)
ADDRESS = re.compile(r"0x[0-9a-f]{8,}")
FIGURES = "backend: module://matplotlib_inline.backend_inline\nfigure.dpi: 96\nsvg.hashsalt: moe-to-metal\n"
KERNEL = "c.InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight', 'metadata': {'Software': None}}\n"


class CellError(Exception):
    """Why a cell cannot be published: one sentence. `place` counts the notebook's cells from 0."""

    def __init__(self, place: int, sentence: str):
        super().__init__(sentence)
        self.place = place


def execute(notebook: Any, seconds: int = SECONDS) -> None:
    """Run every cell in order and store its outputs in the notebook.

    Raises: CellError when a cell raises, takes longer than `seconds`, ends the kernel, warns, or shows an address in
    memory or a path of this machine.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    with tempfile.TemporaryDirectory(prefix="course-build-") as folder:
        client = NotebookClient(
            notebook,
            km=_this_python(folder),
            timeout=seconds,
            record_timing=False,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": folder}},
        )
        with client.setup_kernel(env=_environment(Path(folder)), cleanup_kc=True):
            for place, cell in enumerate(notebook.cells):
                try:
                    client.execute_cell(cell, place)
                except CellExecutionError as error:
                    raise CellError(place, _line(f"it raised {error.ename}: {error.evalue}".rstrip(": \n"))) from None
                except CellTimeoutError:
                    raise CellError(place, f"it did not finish within {seconds} seconds.") from None
                except DeadKernelError:
                    raise CellError(place, "it ended the kernel.") from None
                if cell.cell_type == "code":
                    cell.metadata.pop("execution", None)
                    cell.outputs = _tidy(cell.outputs, place)
                    _local(cell.outputs, place, [folder, str(PACKAGE.parent), str(Path.home()) + os.sep])


def _this_python(folder: str) -> Any:
    """A kernel manager that starts this interpreter, whatever the machine calls python3, with its sockets in `folder`."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=ThisPython(),
        transport="ipc" if len(folder) < 80 else "tcp",  # the path of a socket has at most 103 characters
        connection_file=os.path.join(folder, ".kernel.json"),
    )


def _environment(folder: Path) -> dict[str, str]:
    """The variables of a build's kernel: a throw-away home, no settings of the user's, figures that do not vary."""
    profile = folder / ".ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(KERNEL)
    (folder / ".matplotlibrc").write_text(FIGURES)
    return os.environ | {
        "COURSE_HOME": str(folder / ".home"),
        "IPYTHONDIR": str(folder / ".ipython"),
        "MATPLOTLIBRC": str(folder / ".matplotlibrc"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "SOURCE_DATE_EPOCH": "0",
    }


def _tidy(outputs: list[Any], place: int) -> list[Any]:
    """The outputs without standard error and widgets, neighbouring pieces of standard output as one."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            if warned := WARNING.search(output.text):
                raise CellError(place, f"it writes on standard error: {_line(warned[0])}")
        elif WIDGET in output.get("data", {}):
            continue
        elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _in_256_colours(picture)
            kept.append(output)
    return kept


def _in_256_colours(picture: str) -> str:
    """A figure's PNG in base64 with a palette: a third of the size, and no difference to the eye."""
    from PIL import Image

    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    small = io.BytesIO()
    drawn.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _local(outputs: list[Any], place: int, paths: list[str]) -> None:
    for output in outputs:
        data = {mime: text for mime, text in output.get("data", {}).items() if isinstance(text, str)}
        data.pop("image/png", None)  # base64, in which any letters may stand
        for text in (output.get("text", ""), *data.values()):
            if found := ADDRESS.search(text):
                raise CellError(place, f"it shows an address in memory ({found[0]}), which differs in every run.")
            for path in paths:
                if path in text:
                    raise CellError(place, f"it shows a path of this machine ({path}).")


def _line(text: str) -> str:
    """The first line, cut short, for a sentence."""
    first = (text.strip().splitlines() or [""])[0]
    return first if len(first) <= 200 else first[:200] + "..."
