"""A wheel in an environment of its own, which nobody may write to: it has the notebooks, and opens a lab."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from course.authoring import places
from course.lab import free_port

ROOT = Path(__file__).parents[1]
PARTS = [
    "course",
    "notebooks",
    "labs",
    "solutions",
    "benchmarks",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
]

pytestmark = pytest.mark.slow


def run(*command, **more) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **more).stdout


@pytest.fixture(scope="module")
def unit():
    standing = places.units(ROOT)
    built = [unit for unit in standing if unit.notebook("lab", ROOT).is_file()]
    if not built:
        pytest.skip("no unit stands yet")
    return next((unit for unit in built if unit.number == "04"), built[0])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for part in [*PARTS, *(path.name for path in ROOT.glob("LICENSE*"))]:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / "source" / part)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel alone; what the wheel needs is found where this test finds it."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run("chmod", "-R", "a-w", site)
    yield venv, site / "course"
    run("chmod", "-R", "u+w", site)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_wheel_carries_the_notebooks_and_no_source_of_theirs(installed, unit):
    _, package = installed
    carried = {path.relative_to(package / "_data").as_posix() for path in (package / "_data").rglob("*.*")}
    for kind in ("lab", "solution"):
        assert unit.notebook(kind, Path()).as_posix() in carried
    assert "labs/AGENTS.md" in carried
    assert not [name for name in carried if name.endswith(".py")]


def test_an_install_that_cannot_be_written_opens_a_lab(installed, unit, tmp_path):
    venv, package = installed
    before, home, port = files(package), tmp_path / "workspace", free_port(8950)
    environment = os.environ | {"COURSE_HOME": str(home), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    listed = json.loads(run(venv / "bin" / "course", "exercises", "--json", env=environment, cwd=tmp_path))
    assert unit.number in {each["unit"] for each in listed}
    command = [venv / "bin" / "course", "lab", unit.number, "--no-browser", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=out, stderr=out)
    try:
        book = _served(log, port, unit.notebook("lab", Path()).as_posix())
    finally:
        server.terminate()
        server.wait(20)
    assert book["content"]["metadata"]["course"]["unit"] == unit.number
    assert unit.notebook("lab", home).is_file()
    assert (home / "labs" / "AGENTS.md").is_file()
    assert files(package) == before


def _served(log: Path, port: int, path: str) -> dict:
    """A notebook as the server gives it."""
    for _ in range(300):
        if found := re.search(r"token=(\w+)", log.read_text()):
            address = f"http://127.0.0.1:{port}/api/contents/{path}?token={found[1]}"
            with (
                suppress(urllib.error.URLError),
                urllib.request.urlopen(address) as answer,
            ):  # it tells before it listens
                return json.load(answer)
        time.sleep(0.1)
    raise AssertionError(log.read_text())
