import signal

import pytest

from course.training import log, trainer
from course.training.checkpoint import Checkpoint
from course.training.command import train_command
from course.training.errors import TrainingError
from course.training.generation import generate_command


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A run of three steps, and what was said."""
    said, out = [], tmp_path_factory.mktemp("run")
    loss = train_command(out, data=str(text), steps=3, vocab=270, say=said.append)
    return out, loss, said


def test_training_ends_with_its_validation_loss_and_some_text(run):
    out, loss, said = run
    assert "2 of them" not in said[0]
    assert "8 experts, top-2" in said[0]
    assert said[-3].startswith(f"Validation loss {loss:.3f} nats a token")
    assert len(said[-1]) > 50
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "log.csv"]


def test_a_checkpoint_writes_on_from_a_prompt(run):
    written = generate_command(run[0], prompt="12 and", tokens=20)
    assert written.startswith("12 and")
    assert len(written) > len("12 and")


def test_the_seed_decides_the_text_unless_the_temperature_is_zero(run):
    def write(seed, temperature=0.8):
        return generate_command(run[0], tokens=30, seed=seed, temperature=temperature)

    assert write(1) == write(1) != write(2)
    assert write(1, 0.0) == write(2, 0.0)


def test_a_folder_with_a_run_is_not_trained_over(run, text):
    with pytest.raises(TrainingError, match="already holds a run: go on with --resume"):
        train_command(run[0], data=str(text))


def test_resuming_needs_the_same_text(run, tmp_path):
    (tmp_path / "other.txt").write_text("something else " * 500)
    with pytest.raises(TrainingError, match="not the text that the checkpoint was trained on"):
        train_command(run[0], data=str(tmp_path / "other.txt"), resume=True)


def test_ctrl_c_says_how_to_go_on_and_resuming_finishes(text, tmp_path, monkeypatch):
    step, said = trainer.take_step, []

    def press(*args):
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(trainer, "take_step", press)
    with pytest.raises(KeyboardInterrupt):
        train_command(tmp_path, data=str(text), steps=2, vocab=270, say=said.append)
    assert said[-1] == f"Stopped. The checkpoint is in {tmp_path}; the same command with --resume goes on from it."
    monkeypatch.undo()
    train_command(tmp_path, data=str(text), resume=True, say=said.append)
    assert len(log.read_log(tmp_path / "log.csv")) == 2


def test_a_text_that_does_not_fill_the_vocabulary_is_trained_on_and_resumed(tmp_path):
    (tmp_path / "text").write_text("ab " * 5000)
    for resume in (False, True):
        train_command(tmp_path / "run", data=str(tmp_path / "text"), steps=1, resume=resume, vocab=257 + 60)
    assert Checkpoint.read(tmp_path / "run").config["vocab"] < 257 + 60


def test_a_time_limit_ends_with_text_and_can_be_resumed(text, tmp_path):
    said = []
    train_command(tmp_path, data=str(text), steps=5, seconds=1e-9, vocab=270, say=said.append)
    assert "Time is up after step 1 of 5; the same command with --resume goes on." in said


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"preset": "huge"}, "no preset 'huge'; choose one of: tiny-dense, tiny-moe"),
        ({"preset": "llama-3.1-405b"}, "llama-3.1-405b takes 6,494 GB to train, and this machine has"),
        ({"steps": 0}, "0 steps train nothing"),
        ({"seconds": 0.0}, "0.0 seconds train nothing"),
        ({"optimizer": "sgd"}, "no optimizer 'sgd'; choose one of: adamw, muon"),
        ({"precision": "half"}, "no precision 'half'; choose one of: float32, bf16"),
        ({"sharding": "some"}, "no sharding 'some'; choose one of: none, full"),
        ({"data": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"resume": True}, "there is no checkpoint at"),
    ],
)
def test_wrong_use_of_train_gets_a_sentence(text, tmp_path, wrong, sentence):
    with pytest.raises(TrainingError, match=sentence):
        train_command(tmp_path, **{"data": str(text), "vocab": 270} | wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tokens": 0}, "0 tokens are no text"),
        ({"temperature": -1.0}, "a temperature of -1.0 does not work"),
        ({"temperature": float("nan")}, "a temperature of nan does not work"),
        ({"top_p": 0.0}, "top_p 0.0 does not work"),
        ({"top_p": 1.5}, "top_p 1.5 does not work"),
    ],
)
def test_wrong_use_of_generate_gets_a_sentence(run, wrong, sentence):
    with pytest.raises(TrainingError, match=sentence):
        generate_command(run[0], **wrong)
