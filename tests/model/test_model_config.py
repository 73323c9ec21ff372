import dataclasses
import subprocess
import sys

import pytest

from course.model import PRESETS, ModelConfig


def test_the_dense_twin_lacks_the_experts_alone():
    moe, dense = PRESETS["tiny-moe"], PRESETS["tiny-dense"]
    assert dense == moe.dense_twin()
    assert dense == dataclasses.replace(moe, mlp_width=256, experts=0, top_k=0, expert_width=0)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="no preset 'huge'; choose one of: tiny-dense, tiny-moe"):
        ModelConfig.preset("huge")


def test_capitals_and_punctuation_of_a_presets_name_do_not_matter():
    assert ModelConfig.preset("LLaMA 3.1 405B") is PRESETS["llama-3.1-405b"]


def test_a_head_is_as_wide_as_the_config_says_or_the_width_over_the_heads():
    assert ModelConfig(width=24, heads=4, mlp_width=1).head_width == 6
    assert ModelConfig(width=25, heads=4, head_dim=10, mlp_width=1).head_width == 10


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
        ({"head_dim": 5}, "the head width 5 must be even"),
        ({"rope_layout": "thirds"}, "rope_layout 'thirds' is none of half, interleaved"),
        ({"dense_layers": 1}, "both with dense_layers"),
        ({"gate": "tanh"}, "gate 'tanh' is none of softmax, sigmoid"),
        ({"groups": 3}, "8 experts do not make 3 equal groups"),
        ({"groups": 4, "top_groups": 5}, "top_groups 5 must lie between 1 and 4"),
        ({"groups": 8, "top_groups": 1}, "1 groups have 1 experts, fewer than top_k 2"),
        ({"kv_lora_rank": 8}, "needs qk_nope_head_dim"),
        (
            {"kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 3, "v_head_dim": 4},
            "head width 3 must be even",
        ),
        ({"index_topk": 8}, "only latent attention has an indexer"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive"),
    ],
)
def test_an_impossible_shape_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(AssertionError, match=sentence):
        dataclasses.replace(PRESETS["tiny-moe"], **change)


def test_the_twin_of_shared_experts_is_as_wide_as_all_that_a_token_meets():
    moe = dataclasses.replace(PRESETS["tiny-moe"], shared_experts=2, gate="sigmoid", selection_bias=True, bias_rate=0.1)
    assert moe.dense_twin() == dataclasses.replace(PRESETS["tiny-dense"], mlp_width=4 * 128)


def test_the_twin_of_a_mixture_with_dense_layers_is_refused():
    with pytest.raises(AssertionError, match="two widths"):
        PRESETS["deepseek-v3"].dense_twin()


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny-moe"].width = 3


def test_importing_the_model_imports_neither_transformers_nor_matplotlib():
    code = "import sys, course.model; sys.exit(any(m in sys.modules for m in ('transformers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
