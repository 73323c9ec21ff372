"""Open weights: what transformers writes is read, what is written transformers reads, and faults are named."""

import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from course.model import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    PretrainedError,
    Transformer,
    YarnScaling,
    from_pretrained,
    save_pretrained,
)

TINY_V3 = ModelConfig.preset("tiny-deepseek-v3")
SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def peer(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    peer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def close(got, want):
    return (got - want).norm() <= 1e-5 * want.norm()


def test_a_folder_becomes_a_module_from_tokens_to_float32_logits(saved):
    model, tokens_BS = from_pretrained(saved), torch.randint(0, 67, (3, 11))
    logits_BSV = model(tokens_BS)
    assert not model.training
    assert logits_BSV.dtype == torch.float32
    assert close(logits_BSV, peer()(tokens_BS).logits)


def test_a_path_may_be_text(saved):
    assert from_pretrained(str(saved)).config == from_pretrained(saved).config


def test_shards_with_an_index_are_one_checkpoint(saved, tmp_path):
    peer().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    whole, sharded = from_pretrained(saved).state_dict(), from_pretrained(tmp_path).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_a_checkpoint_in_bfloat16_is_read_as_float32_or_as_it_is(tmp_path):
    theirs = peer().bfloat16()
    theirs.save_pretrained(tmp_path)
    tokens_BS = torch.randint(0, 67, (1, 9))
    assert close(from_pretrained(tmp_path)(tokens_BS), theirs.float()(tokens_BS).logits)
    narrow = from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert narrow(tokens_BS).dtype == torch.float32


def test_an_older_config_with_rope_theta_and_rope_scaling_reads_the_same(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    del raw["rope_parameters"]
    path.write_text(json.dumps(raw | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}))
    config = from_pretrained(folder).config
    assert config.rope_theta == 500.0
    assert config.rope_scaling == LinearScaling(2.0)


def test_frequencies_kept_by_old_checkpoints_are_passed_over(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    from_pretrained(folder)


CONFIGS = {
    "grouped": ModelConfig(vocab=67, context=32, width=24, layers=2, heads=4, kv_heads=2, mlp_width=20),
    "tied": ModelConfig(vocab=67, width=16, layers=1, heads=2, kv_heads=2, mlp_width=20, tied=True),
    "biased": ModelConfig(
        vocab=67, width=16, layers=1, heads=2, kv_heads=1, mlp_width=20, head_dim=6, qkv_bias=True, output_bias=True
    ),
    "linear": ModelConfig(vocab=67, width=16, layers=1, mlp_width=20, rope_scaling=LinearScaling(2.5)),
    "llama3": ModelConfig(vocab=67, width=32, layers=1, mlp_width=20, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),
    "yarn": ModelConfig(vocab=67, width=64, layers=1, mlp_width=20, rope_scaling=YarnScaling(4.0, 64, mscale=1.2)),
    "yarn with two mscales": ModelConfig(
        vocab=67, width=64, layers=1, mlp_width=20, rope_scaling=YarnScaling(4.0, 64, mscale=0.7, mscale_all_dim=1.3)
    ),
    "yarn with its own factor": ModelConfig(
        vocab=67, width=64, layers=1, mlp_width=20, rope_scaling=YarnScaling(4.0, 64, attention=1.3, truncate=False)
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_is_written_transformers_reads_and_so_do_we(config, tmp_path):
    torch.manual_seed(0)
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_pretrained(model, tmp_path / "new" / "folder")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "folder", dtype=torch.float32)
    tokens_BS = torch.randint(0, 67, (2, 30))
    assert close(model(tokens_BS), theirs(tokens_BS).logits)
    again = from_pretrained(tmp_path / "new" / "folder")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert (again.head.weight is again.embedding.weight) == config.tied


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            replace(TINY_V3, dense_layers=0, mlp_width=0, shared_experts=0),
            "deepseek_v3 cannot express a mixture without shared",
        ),
        (replace(TINY_V3, selection_bias=False), "deepseek_v3 cannot express a choice without a selection bias"),
        (replace(TINY_V3, group_best=1), "deepseek_v3 cannot express groups ranked in another way"),
        (replace(ModelConfig.preset("tiny-moe"), shared_experts=1), "mixtral cannot express shared experts"),
        (replace(ModelConfig.preset("tiny-moe"), gate="sigmoid"), "mixtral cannot express a sigmoid gate"),
        (ModelConfig(mlp_width=8, qk_norm=True), "llama cannot express norms of queries and keys"),
        (ModelConfig(mlp_width=8, qkv_bias=True), "cannot express biases of queries, keys and values alone"),
        (ModelConfig(mlp_width=8, rope_layout="interleaved"), "cannot express interleaved RoPE"),
    ],
)
def test_what_the_format_cannot_express_is_not_written(config, sentence, tmp_path):
    with pytest.raises(PretrainedError, match=sentence):
        save_pretrained(Transformer(config), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_in_shards_is_not_half_overwritten(tmp_path):
    peer().save_pretrained(tmp_path, max_shard_size="20KB")
    with pytest.raises(PretrainedError, match="holds a model in shards"):
        save_pretrained(Transformer(CONFIGS["grouped"]), tmp_path)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_extra_and_misshapen_tensors_are_all_named_at_once(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.extra"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(31)

    rewrite(folder, change)
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(folder)
    assert "missing: model.layers.1.mlp.up_proj.weight;" in str(caught.value)
    assert "not expected: model.layers.0.extra;" in str(caught.value)
    assert "of another shape: model.norm.weight [31] for [32]" in str(caught.value)


def test_many_names_are_cut_short(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers" in name])
    with pytest.raises(PretrainedError, match=r"mlp.up_proj.weight, .* and 10 more"):
        from_pretrained(folder)


@pytest.mark.parametrize("lost", [1, 3000])
def test_a_file_that_was_cut_off_names_the_tensors_it_lost(folder, lost):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(PretrainedError, match=r"cut off, the file is too short: .*model.norm.weight"):
        from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 5, 40])
def test_a_file_cut_off_in_its_header_is_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PretrainedError, match=r"model.safetensors is damaged before its first tensor"):
        from_pretrained(folder)


def test_no_damage_to_a_file_is_anything_but_a_sentence(folder):
    path = folder / "model.safetensors"
    sound, rng, read = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(3):
            damaged[rng.randrange(2400)] = rng.randrange(256)
        path.write_bytes(damaged)
        with suppress(PretrainedError):  # a digit of a weight's name, or of its dtype, may change to another good one
            from_pretrained(folder)
            read += 1
    assert read < 75


def test_a_missing_shard_is_named(tmp_path):
    peer().save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(PretrainedError, match=f"has no {gone.name}"):
        from_pretrained(tmp_path)


def test_a_tensor_that_the_index_places_in_the_wrong_shard_is_missing(tmp_path):
    peer().save_pretrained(tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted({*index["weight_map"].values()})
    other = next(shard for shard in shards if shard != index["weight_map"]["model.norm.weight"])
    index["weight_map"]["model.norm.weight"] = other
    path.write_text(json.dumps(index))
    with pytest.raises(PretrainedError, match=r"missing: model.norm.weight"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "gpt2"},
            "model type 'gpt2' is not supported; it must be llama, mixtral, qwen3_moe, deepseek_v2",
        ),
        ({"model_type": None}, "model type None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported in model type llama; it must be 'silu'"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE type 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "the config lacks 'factor'"),
        ({"hidden_size": None}, "the config describes no model"),
        ({"num_key_value_heads": 3}, "4 query heads do not share 3 kv heads evenly"),
    ],
)
def test_a_config_of_another_kind_is_refused_with_a_sentence(folder, change, sentence):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PretrainedError, match=sentence):
        from_pretrained(folder)


def test_a_key_that_is_not_there_is_named(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "vocab_size"}))
    with pytest.raises(PretrainedError, match="the config lacks 'vocab_size'"):
        from_pretrained(folder)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path):
    with pytest.raises(PretrainedError, match="nowhere is not a folder"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(PretrainedError, match=r"has no config.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PretrainedError, match=r"config.json cannot be read as JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama"}))
    with pytest.raises(PretrainedError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        from_pretrained(tmp_path)
