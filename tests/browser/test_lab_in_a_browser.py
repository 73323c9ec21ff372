"""Lab 04 as a learner meets it: JupyterLab in a real browser, a right and a wrong answer typed, run and checked."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from course.authoring import places, progress
from course.authoring.answers import find_answers, read_notebook
from course.checking.answer import source_of
from course.exercises import find
from course.lab import free_port

BROWSERS = "chromium", "chromium-browser", "google-chrome"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SLOW = 60_000  # milliseconds: a kernel that imports torch on a busy machine

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no chromium here: apt install chromium")
    return found


@pytest.fixture
def served(tmp_path):
    """`course lab 04` in an empty workspace: the workspace, and the address that it printed."""
    if "04" not in [unit.number for unit in places.units()]:
        pytest.skip("unit 04 does not stand yet")
    home = tmp_path / "workspace"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")} | {"COURSE_HOME": str(home)}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "course", "lab", "04", "--no-browser", "--port", str(free_port(8890))]
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield home, _address(log, server)
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()


def _address(log: Path, server: subprocess.Popen) -> str:
    for _ in range(300):
        if found := re.search(r"http://127\.0\.0\.1\S+token=\w+", log.read_text()):
            return found[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab printed no address:\n{log.read_text()}")


@pytest.fixture
def page(chromium, served, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            headless=True,
            args=FLAGS,
            viewport={"width": 1400, "height": 1000},
        )
        page = context.pages[0]
        page.set_default_timeout(SLOW)
        page.outside = []
        page.on("request", lambda request: _note(request.url, page.outside))
        page.goto(served[1])
        yield page
        context.close()


def _note(url: str, outside: list[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.hostname not in ("127.0.0.1", "localhost"):
        outside.append(url)


def answer_and_check(page, name: str, source: str) -> str:
    """Replace the text of an answer cell, run it and the check below it, and return what the check shows."""
    panel = page.locator(".jp-NotebookPanel:visible")
    answer = panel.locator(".jp-CodeCell", has_text=f"# exercise {name}")
    answer.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(source)
    answer.get_by_text(source.splitlines()[-1].strip()).first.wait_for()
    page.keyboard.press("Shift+Enter")
    idle(page)
    check = panel.locator(".jp-CodeCell", has_text=f'check("{name}"')
    page.keyboard.press("Shift+Enter")
    idle(page)
    output = check.locator(".jp-OutputArea-output")
    output.wait_for()
    return output.inner_text()


def idle(page) -> None:
    """Wait until the kernel of the notebook in front has nothing left to do."""
    page.wait_for_timeout(300)
    page.locator("#jp-bottom-panel, #jp-main-statusbar").get_by_text("| Idle").wait_for()
    page.wait_for_function(
        "() => ![...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-InputPrompt')]"
        ".some(prompt => prompt.innerText.includes('*'))"
    )


def test_a_learner_answers_04_1_right_and_then_wrong(page, served, tmp_path):
    home, _ = served
    exercise = find("04.1")
    wrong = exercise.misconceptions[0]
    contents = page.locator("#table-of-contents")
    contents.get_by_text("Lesson 04" if _has_lesson() else "Lab 04").first.wait_for()
    page.screenshot(path=tmp_path / "lesson.png")
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").last.click()
    contents.get_by_text("04.1").first.wait_for()
    idle(page)
    assert page.locator("#jp-main-statusbar").get_by_text("Python 3 (course)").count() == 1
    assert page.get_by_text("Would you like to receive official Jupyter news?").count() == 0

    page.locator(".jp-NotebookPanel:visible .jp-CodeCell").first.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    idle(page)
    contents.get_by_text("04.1").first.click()
    page.screenshot(path=tmp_path / "lab.png")

    text = answer_and_check(page, "04.1", f"# exercise 04.1\n{source_of(exercise.reference, exercise.entry)}")
    page.screenshot(path=tmp_path / "right.png")
    assert "04.1 softmax top-k gate: passed, 10 points" in text
    assert progress.load(home)["04.1"].passed

    text = answer_and_check(page, "04.1", f"# exercise 04.1\n{source_of(wrong.answer, exercise.entry)}")
    page.screenshot(path=tmp_path / "wrong.png")
    assert "cases pass" in text
    assert wrong.says in text
    assert "course hint 04.1" in text

    page.keyboard.press("Control+S")
    page.wait_for_timeout(1000)
    saved, *_ = find_answers(read_notebook(places.unit("04").notebook("lab", home)), ["04.1"])
    assert saved["04.1"].strip().endswith(source_of(wrong.answer, exercise.entry).strip())
    assert page.outside == []


def _has_lesson() -> bool:
    return places.unit("04").notebook("lesson", places.root()).is_file()
