import os

import pytest

from course.training import atomic


def test_a_new_folder_is_made_and_the_file_is_whole(tmp_path):
    atomic.write(tmp_path / "new" / "file", lambda file: file.write(b"whole"))
    assert (tmp_path / "new" / "file").read_bytes() == b"whole"


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def fill(file):
        file.write(b"half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "file", fill)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_process_that_dies_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def die(file):
        file.write(b"half of")
        file.flush()
        os._exit(9)

    child = os.fork()
    if not child:
        atomic.write(tmp_path / "file", die)
    os.waitpid(child, 0)
    assert (tmp_path / "file").read_bytes() == b"old"
