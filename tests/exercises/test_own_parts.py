"""Lab 07's closing cells: another library's checkpoint on the answers that a learner gave in labs 01 to 07."""

import os
import subprocess
import sys
import textwrap

from course.authoring import marks, places, progress
from course.authoring.source import notebook, read_source

ROOT = places.PACKAGE.parent
RUNS = """
import pathlib, sys
import matplotlib
matplotlib.use("Agg")
exec(compile(pathlib.Path(sys.argv[1]).read_text(), "closing cells", "exec"), {"__name__": "__main__"})
"""


def code_cells(unit):
    cells = notebook(read_source(unit.source("solution", ROOT), "solution"), "solution").cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_a_foreign_checkpoint_runs_on_the_learners_own_answers(tmp_path):
    for unit in places.units(ROOT):
        for cell in code_cells(unit):
            role, name = marks.role_of(cell) or (None, None)
            if role == "exercise":
                progress.record(tmp_path, name, True, cell.source)
    (seven,) = (unit for unit in places.units(ROOT) if unit.number == "07")
    closing = [cell.source for cell in code_cells(seven) if not marks.role_of(cell)]
    (tmp_path / "closing.py").write_text("\n".join(closing))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUNS), str(tmp_path / "closing.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COURSE_HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whose = [line for line in done.stdout.splitlines() if line.endswith(("your own", "the course's"))]
    assert {line.split()[0] for line in whose} >= {"02.1", "02.4", "04.2", "05.2", "06.4", "06.5", "06.7", "07.2"}
    assert not [line for line in whose if not line.endswith("your own")]
    assert "yours against those of transformers" in done.stdout
