import pytest

from course.model import ModelConfig
from course.training import data
from course.training.trainer import TrainSettings

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file that a small model can learn something from."""
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def sums(text):
    return data.load(text, vocab=280)


@pytest.fixture(scope="session")
def small():
    return ModelConfig(
        vocab=280, context=16, width=16, layers=2, heads=2, kv_heads=2, experts=4, top_k=2, expert_width=8
    )


@pytest.fixture(scope="session")
def brief():
    return TrainSettings(
        steps=24, batch=4, warmup=4, learning_rate=1e-2, evaluate_every=8, evaluation_sequences=8, checkpoint_every=5
    )
