import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from course.model import (
    PRESETS,
    ModelConfig,
    Transformer,
    active_parameters,
    kv_bytes_per_token,
    total_parameters,
    train_flops_per_token,
)
from course.model.size import UnknownModel, size_command

SMALL = {
    "tiny-moe": PRESETS["tiny-moe"],
    "tiny-dense": PRESETS["tiny-dense"],
    "grouped": ModelConfig(vocab=50, width=24, layers=2, heads=6, kv_heads=2, mlp_width=30),
    "biased": ModelConfig(vocab=50, width=24, layers=2, heads=2, kv_heads=1, head_dim=8, qkv_bias=True, mlp_width=30),
    "tied": ModelConfig(vocab=50, width=16, layers=1, experts=3, top_k=3, expert_width=5, tied=True),
}
each_small = pytest.mark.parametrize("name", SMALL)


@each_small
def test_the_counted_parameters_are_the_models(name):
    assert total_parameters(SMALL[name]) == sum(p.numel() for p in Transformer(SMALL[name]).parameters())


def test_active_parameters_leave_out_the_experts_not_chosen():
    config = SMALL["tiny-moe"]
    one_expert = 3 * config.width * config.expert_width
    idle = config.layers * (config.experts - config.top_k) * one_expert
    assert active_parameters(config) == total_parameters(config) - idle


def test_a_dense_model_is_all_active():
    assert active_parameters(SMALL["grouped"]) == total_parameters(SMALL["grouped"])


def test_the_dense_twin_meets_all_but_the_router():
    moe, dense = PRESETS["tiny-moe"], PRESETS["tiny-dense"]
    assert active_parameters(moe) - active_parameters(dense) == moe.layers * moe.experts * moe.width


def test_tiny_moe_has_about_two_million_parameters():
    assert 1.9e6 < total_parameters(PRESETS["tiny-moe"]) < 2.2e6


@pytest.mark.parametrize(
    ("name", "total", "kv_bytes"),
    [("llama-3.1-405b", 405_853_388_800, 516_096), ("qwen2.5-72b", 72_706_203_648, 327_680)],
)
def test_published_models_are_counted_to_the_last_parameter(name, total, kv_bytes):
    assert total_parameters(PRESETS[name]) == active_parameters(PRESETS[name]) == total
    assert kv_bytes_per_token(PRESETS[name]) == kv_bytes


@each_small
def test_the_cache_holds_what_is_counted(name):
    config = SMALL[name]
    caches = Transformer(config).bfloat16().new_caches(batch=1, length=3)
    held = sum(tensor.nbytes for cache in caches for tensor in (cache.keys, cache.values))
    assert held == 3 * kv_bytes_per_token(config)


@each_small
@pytest.mark.parametrize("length", [1, 12])
def test_training_flops_are_those_that_torch_counts_with_attention_over_the_keys_seen(name, length):
    config = SMALL[name]
    model = Transformer(config).double()  # torch counts no grouped product; in float64 it is one product an expert
    tokens_BS = torch.randint(0, 50, (2, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # a fused attention is not counted
        model(tokens_BS).sum().backward()
    whole_square = 3 * 4 * config.heads * config.head_width * config.layers * length
    seen = (length + 1) / (2 * length)
    by_torch = counter.get_total_flops() / tokens_BS.numel()
    assert train_flops_per_token(config, length) == by_torch - (1 - seen) * whole_square


def test_the_command_prints_every_preset(capsys):
    size_command(None, as_json=False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
    assert "405,853,388,800" in shown


def test_the_command_prints_json(capsys):
    size_command("Qwen2.5-72B", as_json=True)
    row = json.loads(capsys.readouterr().out)
    assert list(row) == ["name", "total", "active", "kv_bytes_per_token", "train_gflop_per_token"]
    assert row["total"] == 72_706_203_648
    assert row["train_gflop_per_token"] == pytest.approx(444.9, abs=0.05)
    size_command(None, as_json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(PRESETS)


def test_an_unknown_model_is_told_in_a_sentence():
    with pytest.raises(UnknownModel, match="no preset 'huge'"):
        size_command("huge", as_json=True)
