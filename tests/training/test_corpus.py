import os

import pytest

from course.training import corpus
from course.training.corpus import Document
from course.training.errors import TrainingError


def test_the_embedded_code_is_the_standard_library_without_its_tests():
    documents = corpus.embedded()
    names = [document.name for document in documents]
    assert len(documents) > 400
    assert sum(len(document.text) for document in documents) > 5e6
    assert "dataclasses.py" in names
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in names)
    assert names == sorted(names)


def test_the_embedded_corpus_is_the_same_every_time():
    assert corpus.fingerprint(corpus.embedded()) == corpus.fingerprint(corpus.embedded())


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_the_embedded_prose_is_the_manual_and_the_docstrings():
    documents = {document.name: document.text for document in corpus.embedded("prose")}
    assert "for" in documents["topics/for"]
    assert documents["docstrings/textwrap.py"].startswith("Text wrapping and filling.\n\n")
    assert "import re" not in documents["docstrings/textwrap.py"]


def test_another_kind_is_refused():
    with pytest.raises(TrainingError, match='no embedded corpus \'poems\'; it is "code" or "prose"'):
        corpus.embedded("poems")


def test_a_file_never_changes_sides():
    documents = [Document(f"{n}.txt", "text") for n in range(300)]
    train, validation = corpus.split(documents)
    assert sorted(train + validation) == sorted(documents)
    assert 5 < len(validation) < 40
    shorter_train, shorter_validation = corpus.split(documents[:200])
    assert set(shorter_train) <= set(train)
    assert set(shorter_validation) <= set(validation)


def test_of_few_documents_the_last_tenth_is_held_out():
    train, validation = corpus.split([Document("a", "0123456789" * 3), Document("b", "x")])
    assert train == [Document("a", "0123456789" * 2 + "0123456"), Document("b", "")]
    assert validation == [Document("a", "789"), Document("b", "x")]


def test_a_folder_is_read_in_order_and_what_is_not_text_is_left_out(tmp_path):
    for name, data in {
        "b.txt": b"two",
        "a/c.md": b"one",
        "x.bin": b"\0\1",
        "y.txt": b"\xff\xfe",
        "empty": b" \n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".hidden").write_text("three")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert corpus.read(tmp_path) == [Document("a/c.md", "one"), Document("b.txt", "two")]


def test_a_file_is_read_as_it_stands(tmp_path):
    (tmp_path / "windows.txt").write_bytes("\ufeffÄ\r\nB".encode())
    assert corpus.read(tmp_path / "windows.txt") == [Document("windows.txt", "Ä\r\nB")]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty: there is nothing to learn from"),
        (b" \n\t", "is empty"),
        (b"PNG\0\0", "is not text in UTF-8: it looks like a binary file"),
        (b"caf\xe9", "is not text in UTF-8"),
        (None, "does not exist: give a text file or a folder of them"),
    ],
)
def test_a_file_without_text_gets_a_sentence(tmp_path, data, sentence):
    if data is not None:
        (tmp_path / "file").write_bytes(data)
    with pytest.raises(TrainingError, match=f"file {sentence}") as caught:
        corpus.read(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_a_folder_without_text_gets_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match="holds no text file"):
        corpus.read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TrainingError, match="neither a file nor a folder"):
        corpus.read(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_gets_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("text")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(TrainingError, match="secret cannot be read: Permission denied"):
        corpus.read(tmp_path / "secret")


def test_the_fingerprint_sees_names_texts_and_order():
    a, b = Document("a", "x"), Document("b", "y")
    prints = [corpus.fingerprint(list(documents)) for documents in ([a, b], [b, a], [a], [Document("ax", ""), b])]
    assert len(set(prints)) == 4
