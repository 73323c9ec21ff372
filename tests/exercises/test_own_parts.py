"""Lab 07's closing cells: another library's checkpoint on the answers that a learner gave in labs 01 to 07."""

import os
import subprocess
import sys

from course.authoring import marks, places, progress

from specifications import cells_of  # isort: skip


def test_a_foreign_checkpoint_runs_on_the_learners_own_answers(tmp_path):
    closing = []
    for unit in places.units(places.PACKAGE.parent):
        for cell in cells_of(unit, "solution"):
            role, name = marks.role_of(cell) or (None, None)
            if role == "exercise":
                progress.record(tmp_path, name, True, cell.source)
            if role is None and cell.cell_type == "code" and unit.number == "07":
                closing.append(cell.source)
    script = tmp_path / "closing.py"
    script.write_text("\n".join(closing))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COURSE_HOME": str(tmp_path), "MPLBACKEND": "Agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whose = [line for line in done.stdout.splitlines() if line.endswith(("your own", "the course's"))]
    assert {line.split()[0] for line in whose} >= {"02.1", "02.4", "04.2", "05.2", "06.4", "06.5", "06.7", "07.2"}
    assert not [line for line in whose if not line.endswith("your own")]
    assert "yours against those of transformers" in done.stdout
