import dataclasses
import json
import subprocess
import sys

import pytest

from course.model import PRESETS, ModelConfig, PretrainedError
from course.model.hf_export import config_to_hf


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


TRAINING = {"balance_weight": 0.0, "sequence_balance_weight": 0.0, "bias_rate": 0.0}  # no published config says these
NOT_PUBLISHED_SO = {"deepseek-moe-16b", "qwen2.5-72b", "tiny-deepseek-v3"}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - NOT_PUBLISHED_SO))
def test_a_preset_is_what_its_published_config_describes(name, tmp_path):
    raw = config_to_hf(PRESETS[name])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    want = dataclasses.replace(PRESETS[name], **TRAINING)
    for given in (raw, tmp_path, str(tmp_path / "config.json")):
        assert dataclasses.replace(ModelConfig.from_hf(given), **TRAINING) == want


def test_kimi_k2_is_a_deepseek_v3_under_another_name():
    raw = config_to_hf(PRESETS["kimi-k2"]) | {"model_type": "kimi_k2"}
    assert dataclasses.replace(ModelConfig.from_hf(raw), **TRAINING) == dataclasses.replace(
        PRESETS["kimi-k2"], **TRAINING
    )


def test_a_config_that_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(PretrainedError, match=r"has no config.json"):
        ModelConfig.from_hf(tmp_path)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny-moe"].width = 3


def test_importing_the_model_imports_neither_transformers_nor_matplotlib():
    code = "import sys, course.model; sys.exit(any(m in sys.modules for m in ('transformers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
