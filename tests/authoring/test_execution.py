import base64
import io
import re

import numpy as np
import pytest
from nbformat import v4
from PIL import Image

from course.authoring.run import CellError, execute

PICTURE = """\
import sys, warnings
import matplotlib.pyplot as plt
print("half a progress bar", file=sys.stderr)
print("one")
print("noise", file=sys.stderr)
print("two")
plt.plot([1, 2])
plt.show()"""


def executed(*sources, seconds=30):
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    execute(notebook, seconds)
    return notebook


def test_standard_error_timings_and_versions_are_left_out():
    cell = executed(PICTURE).cells[0]
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0].text == "one\ntwo\n"
    assert cell.metadata == {}
    assert cell.execution_count == 1
    import base64

    picture = base64.b64decode(cell.outputs[1].data["image/png"])
    assert b"Software" not in picture


def test_the_kernel_is_this_python():
    import sys

    notebook = executed(f"import sys\nsys.executable == {sys.executable!r}")
    assert notebook.cells[0].outputs[0].data["text/plain"] == "True"


def test_a_picture_keeps_its_looks_in_a_palette_and_its_letters_are_no_address(monkeypatch):
    monkeypatch.setattr("course.authoring.run.ADDRESS", re.compile("iVBOR"))  # what every PNG begins with
    code = "import matplotlib.pyplot as plt\nplt.plot([0, 1, 4], color='red')\nplt.show()"
    picture = executed(code).cells[0].outputs[0].data["image/png"]
    drawn = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert drawn.mode == "P"
    away_from_red = np.abs(np.asarray(drawn.convert("RGB"), dtype=int) - [255, 0, 0]).sum(-1)
    assert (away_from_red < 20).sum() > 100


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "it raised ZeroDivisionError: division by zero"),
        (
            "import warnings\nwarnings.warn('old API', FutureWarning)",
            "it writes on standard error: .*FutureWarning: old API",
        ),
        ("print(object())", "it shows an address in memory"),
        ("import os\nprint(os.getcwd())", "it shows a path of this machine"),
        ("import time\ntime.sleep(20)", "it did not finish within 1 seconds"),
        ("import os\nos._exit(3)", "it ended the kernel"),
    ],
)
def test_a_cell_that_cannot_be_published_is_named(source, says):
    with pytest.raises(CellError, match=says) as error:
        executed("x = 1", source, seconds=1 if "sleep" in source else 30)
    assert error.value.place == 1
