"""What holds for every test: kernels are interpreted, nothing is fetched, and no progress is recorded in a real workspace."""

import os
import signal
import tempfile

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.pop("COURSE_ROOT", None)

import course  # noqa: F401  (sets TRITON_INTERPRET before anything imports triton)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job: the tests' commands must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HOME = tempfile.TemporaryDirectory(prefix="course-test-")
os.environ["COURSE_HOME"] = _HOME.name


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A learner's workspace of this test alone, still empty."""
    folder = tmp_path / "workspace"
    monkeypatch.setenv("COURSE_HOME", str(folder))
    return folder
