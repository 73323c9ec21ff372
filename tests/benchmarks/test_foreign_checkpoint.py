"""The checkpoint that another library made: whole, reproducible, and the same function in both programs."""

import subprocess
import sys

import foreign_checkpoint
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM

import course
from course.model import from_pretrained
from course.training import data

FOLDER = course.recorded_folder("foreign_deepseek_v3")
EXPECTED = load_file(FOLDER / "logits.safetensors")


def apart(logits, wanted):
    return ((logits - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def test_its_logits_are_those_of_the_library_that_is_installed_here():
    model = DeepseekV3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    assert apart(model(EXPECTED["tokens"]).logits, EXPECTED["logits"]) < 1e-5


@torch.no_grad()
def test_the_course_reads_it_and_computes_the_same():
    assert apart(from_pretrained(FOLDER)(EXPECTED["tokens"]), EXPECTED["logits"]) < 1e-5


@torch.no_grad()
def test_in_bfloat16_it_runs_and_comes_near():
    logits_BSV = from_pretrained(FOLDER, torch.bfloat16)(EXPECTED["tokens"])
    assert ((logits_BSV - EXPECTED["logits"]).norm() / EXPECTED["logits"].norm()).item() < 0.05


def test_every_setting_that_implementations_differ_on_is_in_use():
    model = from_pretrained(FOLDER)
    config = model.config
    assert config.rope_scaling.mscale != config.rope_scaling.mscale_all_dim
    assert 1 < config.top_groups < config.groups
    assert config.shared_experts
    assert config.dense_layers
    biases = torch.stack([layer.bias_E for layer in model.mixtures()])
    assert biases.abs().max() > 0.05
    assert biases.unique().numel() > 10


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "text.py"
    path.write_text("".join(f"def f{i}(x):\n    return x + {i}  # \u00e4\n\n\n" for i in range(900)))
    return path


@torch.no_grad()
def test_the_script_writes_a_folder_like_the_recorded_one(text):
    made = text.parent / "made"
    options = ["--steps", "2", "--source", str(text), "--work", str(text.parent), "--out", str(made)]
    done = subprocess.run(
        [sys.executable, foreign_checkpoint.__file__, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in made.iterdir()) == sorted(path.name for path in FOLDER.iterdir())
    expected = load_file(made / "logits.safetensors")
    assert apart(from_pretrained(made)(expected["tokens"]), expected["logits"]) < 1e-5


def test_the_tokenizer_that_it_writes_cuts_as_the_course_does(text):
    own = data.load(text, foreign_checkpoint.VOCAB, text.parent).tokenizer
    library = tokenizers.Tokenizer.from_str(foreign_checkpoint.as_library(own).to_str())
    for said in (
        text.read_text()[:500],
        "h\u00e9llo w\u00f6rld \u2014 12345  x\x0b\t y\u65e5\u672c",
        "\n\n\n   \n",
        "",
    ):
        assert library.encode(said).ids == own.encode(said)
        assert library.decode(library.encode(said).ids) == said
    assert library.token_to_id("<|end|>") == own.end
