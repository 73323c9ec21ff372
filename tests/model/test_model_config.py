import dataclasses
import subprocess
import sys

import pytest

from course.model import PRESETS, ModelConfig, Transformer, active_parameters, total_parameters

CONFIGS = {
    **PRESETS,
    "grouped": ModelConfig(vocab=50, width=24, layers=2, heads=6, kv_heads=2, mlp_width=30),
    "tied": ModelConfig(vocab=50, width=16, layers=1, experts=3, top_k=3, expert_width=5, tied=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_counted_parameters_are_the_models(name):
    config = CONFIGS[name]
    assert total_parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_active_parameters_leave_out_the_experts_not_chosen():
    config = CONFIGS["tiny-moe"]
    model = Transformer(config)
    one_expert = model.blocks[0].feed_forward.gate_up_EFD[0].numel() + model.blocks[0].feed_forward.down_EDI[0].numel()
    idle = config.layers * (config.experts - config.top_k) * one_expert
    assert active_parameters(config) == total_parameters(config) - idle


def test_a_dense_model_is_all_active():
    assert active_parameters(CONFIGS["grouped"]) == total_parameters(CONFIGS["grouped"])


def test_the_dense_twin_lacks_only_the_router():
    moe, dense = PRESETS["tiny-moe"], PRESETS["tiny-dense"]
    assert dense == moe.dense_twin()
    assert active_parameters(moe) - active_parameters(dense) == moe.layers * moe.experts * moe.width


def test_tiny_moe_has_about_two_million_parameters():
    assert 1.9e6 < total_parameters(PRESETS["tiny-moe"]) < 2.2e6


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="no preset 'huge'; choose one of: tiny-moe, tiny-dense"):
        ModelConfig.preset("huge")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 5}, "width 128 does not divide into 5 heads"),
        ({"kv_heads": 3}, "4 query heads do not share 3 kv heads evenly"),
        ({"width": 12}, "the head width 3 must be even"),
        ({"top_k": 9}, "top_k 9 must lie between 1 and 8 experts"),
        ({"expert_width": 0}, "needs expert_width"),
        ({"mlp_width": 10}, "either mlp_width"),
        ({"experts": 0}, "either mlp_width"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive"),
    ],
)
def test_an_impossible_shape_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(AssertionError, match=sentence):
        dataclasses.replace(PRESETS["tiny-moe"], **change)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny-moe"].width = 3


def test_importing_the_model_imports_neither_transformers_nor_matplotlib():
    code = "import sys, course.model; sys.exit(any(m in sys.modules for m in ('transformers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
