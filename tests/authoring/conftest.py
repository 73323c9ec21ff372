import shutil

import pytest
from tiny_course import write_course

from course.authoring.build import build


@pytest.fixture(scope="session")
def _built(tmp_path_factory):
    root = write_course(tmp_path_factory.mktemp("course"))
    assert build(None, root, tell=lambda line: None) == []
    return root


@pytest.fixture
def built(_built, tmp_path):
    """A course of one unit, built, to be changed at will."""
    return shutil.copytree(_built, tmp_path / "course")
