"""`course generate --model`: text from open weights."""

import json
import re
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from course.model import ModelConfig, PretrainedError, Transformer, save_pretrained
from course.training.errors import TrainingError
from course.training.generation import generate_open_command

WORDS = ["<end>", "the", "cat", "sat", "on", "mat"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab=6, context=12, width=16, layers=1, heads=2, kv_heads=1, mlp_width=20))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_pretrained(model, tmp_path)
    return tmp_path


def give_words(folder):
    words = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))


def mark(folder, name="config.json", **marks):
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | marks))


def test_a_tokenizer_in_the_folder_turns_text_into_text(folder):
    give_words(folder)
    text = generate_open_command(folder, "the cat", tokens=5)
    assert text.startswith("the cat ")
    assert len(text.split()) == 7
    assert set(text.split()) <= set(WORDS)


def test_without_a_tokenizer_prompt_and_text_are_token_ids(folder):
    text = generate_open_command(folder, "1 2", tokens=30)
    assert text.split()[:2] == ["1", "2"]
    assert len(text.split()) == 32  # beyond the context of 12, too
    with pytest.raises(TrainingError, match=r"no tokenizer.json, so that the prompt must be token ids"):
        generate_open_command(folder, "the cat")
    with pytest.raises(TrainingError, match="token id 6 of the prompt is outside the model's vocabulary of 6"):
        generate_open_command(folder, "1 6")


def test_the_same_seed_gives_the_same_text_and_temperature_zero_needs_none(folder):
    def draw(seed, temperature=1.0):
        return generate_open_command(folder, "1", tokens=20, seed=seed, temperature=temperature, top_p=1.0)

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, 0.0) == draw(2, 0.0)


def test_the_text_ends_with_the_end_token_of_the_generation_config_before_the_configs(folder):
    free = [int(i) for i in generate_open_command(folder, "1", tokens=20, temperature=0.0).split()]
    mark(folder, eos_token_id=free[3])
    assert [int(i) for i in generate_open_command(folder, "1", tokens=20, temperature=0.0).split()] == _up_to(
        free, [free[3]]
    )
    mark(folder, "generation_config.json", eos_token_id=[99, free[2]])
    assert [int(i) for i in generate_open_command(folder, "1", tokens=20, temperature=0.0).split()] == _up_to(
        free, [free[2]]
    )


def _up_to(ids, ends):
    last = next(place for place, i in enumerate(ids[1:], 1) if i in ends)
    return ids[: last + 1]


def test_without_a_prompt_it_starts_from_the_configs_first_token(folder):
    with pytest.raises(TrainingError, match="names no token to begin with: give a prompt"):
        generate_open_command(folder)
    mark(folder, bos_token_id=4)
    assert generate_open_command(folder, tokens=3).split()[0] == "4"


def test_faults_are_sentences(folder, tmp_path):
    with pytest.raises(PretrainedError, match="nowhere is not a folder"):
        generate_open_command(tmp_path / "nowhere", "1")
    with pytest.raises(TrainingError, match="0 tokens are no text"):
        generate_open_command(folder, "1", tokens=0)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"tokenizer.json is not a tokenizer"):
        generate_open_command(folder, "1")


@pytest.fixture
def guessing(tmp_path):
    torch.manual_seed(0)
    model = Transformer(replace(ModelConfig.preset("tiny-deepseek-v3"), vocab=20, context=40, layers=2, mtp_layers=1))
    save_pretrained(model, tmp_path / "guessing")
    return tmp_path / "guessing"


def test_speculation_writes_the_likeliest_text_and_tells_how_it_went(guessing):
    told = []
    text = generate_open_command(guessing, "1 2", tokens=15, tell=told.append)
    assert text == generate_open_command(guessing, "1 2", tokens=15, temperature=0.0)
    assert re.fullmatch(r"15 tokens in \d+ rounds: \d+ of \d+ guesses were right", told[0])


def test_a_model_without_modules_cannot_speculate(folder):
    with pytest.raises(TrainingError, match="no multi-token modules"):
        generate_open_command(folder, "1", tokens=3, tell=print)
