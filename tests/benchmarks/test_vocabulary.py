import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import vocabulary

from course.model import ModelConfig, Transformer
from course.training import data


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}, né?\n" for n in range(300)))
    return path


def script(*arguments, out):
    command = [sys.executable, vocabulary.__file__, "--out", str(out), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_every_arm_reads_the_same_text_and_a_run_is_resumed(tmp_path, text):
    arguments = (
        "--vocabs",
        257,
        300,
        "--seeds",
        0,
        1,
        "--megabytes",
        0.01,
        "--source",
        text,
        "--work",
        tmp_path / "w",
        "--rounds",
        2,
    )
    record, shown = script(*arguments, out=tmp_path / "r.json")
    assert record["rule"] == vocabulary.RULE
    assert {arm: [run["seed"] for run in runs] for arm, runs in record["runs"].items()} == {
        "257": [0, 1],
        "300": [0, 1],
    }
    steps = {arm: record["arms"][arm]["settings"]["steps"] for arm in record["arms"]}
    assert steps["257"] > steps["300"] > 0
    assert all(record["arms"][arm]["seconds_of_a_step"] > 0 for arm in steps)
    assert "257 against 300" in shown
    again, shown = script(*arguments, out=tmp_path / "again.json")
    assert again["runs"] == record["runs"]
    assert "steps, {" not in shown  # nothing was trained anew


def test_a_step_count_follows_from_the_bytes_of_a_token(text):
    plain, merged = (data.load(text, vocab) for vocab in (257, 300))
    for loaded in (plain, merged):
        steps = vocabulary.settings_for(loaded, 1.0, seed=0).steps
        a_token = vocabulary.bytes_of(loaded, loaded.train) / len(loaded.train)
        assert steps == round(1e6 / (8 * 256 * a_token))


def test_the_end_of_a_document_has_no_bytes(text):
    loaded = data.load(text, 300)
    assert vocabulary.bytes_of(loaded, loaded.validation) == len(
        loaded.tokenizer.decode_bytes(loaded.validation.tolist())
    )
    assert vocabulary.bytes_of(loaded, np.array([loaded.tokenizer.end])) == 0


@pytest.mark.parametrize("tokens", [7, 64, 65, 200])
def test_each_token_but_the_first_is_predicted_once(text, tokens):
    """A model that finds all ids equally likely pays ln(vocabulary) for each."""
    config = replace(ModelConfig.preset("tiny-dense"), context=64, vocab=257)
    model = Transformer(config)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    total, predicted = vocabulary.nats(model, np.arange(tokens, dtype=np.uint16) % 257, batch=2)
    assert predicted == tokens - 1
    assert total == pytest.approx(predicted * math.log(257), rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [
        ((2.0, 2.1), (1.8, 1.9), "b"),
        ((1.8, 1.9), (2.0, 2.1), "a"),
        ((2.0, 2.1), (1.95, 2.05), "not resolved"),
        ((2.0, 2.3), (1.9, 1.9), "not resolved"),
        ((2.0,), (1.0,), "not resolved"),
    ],
)
def test_arms_differ_when_their_means_differ_by_more_than_the_seeds(one, other, better):
    runs = {name: [{"bits_per_byte": bits} for bits in values] for name, values in {"a": one, "b": other}.items()}
    assert vocabulary.verdicts(runs)["a against b"]["better"] == better
