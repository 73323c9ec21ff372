import json
from dataclasses import replace

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
    "latent": PRESETS["tiny-deepseek-v3"],
    "sparse": replace(PRESETS["tiny-deepseek-v3"], index_topk=5, index_heads=2, index_head_dim=24, mtp_layers=1),
    "tied": ModelConfig(vocab=50, width=16, layers=1, experts=3, top_k=3, expert_width=5, tied=True),
}
each_small = pytest.mark.parametrize("name", SMALL)


@each_small
def test_the_counted_parameters_are_the_models(name):
    model = Transformer(SMALL[name])
    further = sum(p.numel() for p in (*model.mtp.parameters(), *model.mtp.buffers()))
    numbers = [*model.parameters(), *model.buffers()]
    assert total_parameters(SMALL[name]) == sum(p.numel() for p in numbers) - further


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
    [
        ("llama-3.1-405b", 405_853_388_800, 516_096),
        ("qwen2.5-72b", 72_706_203_648, 327_680),
        ("deepseek-v3", 671_026_419_200, 70_272),
        ("deepseek-v2", 235_741_434_880, 69_120),
        ("deepseek-v2-lite", 15_706_484_224, 31_104),
        ("qwen3-30b-a3b", 30_532_122_624, 98_304),
        ("qwen3-235b-a22b", 235_093_634_560, 192_512),
        ("kimi-k2", 1_026_408_232_448, 70_272),
    ],
)
def test_published_models_are_counted_to_the_last_parameter(name, total, kv_bytes):
    config = PRESETS[name]
    assert total_parameters(config) == total
    assert (active_parameters(config) == total) == (config.experts == 0)
    assert kv_bytes_per_token(config) == kv_bytes


@pytest.mark.parametrize(
    ("name", "total", "active"),  # billions, as their makers round them (reports and model cards)
    [
        ("deepseek-v3", 671, 37),
        ("deepseek-v2", 236, 21),
        ("deepseek-moe-16b", 16.4, 2.8),
        ("mixtral-8x7b", 46.7, 12.9),
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("qwen3-235b-a22b", 235, 22),
    ],
)
def test_the_counts_round_to_what_is_published(name, total, active):
    assert total_parameters(PRESETS[name]) / 1e9 == pytest.approx(total, rel=0.002)
    assert active_parameters(PRESETS[name]) / 1e9 == pytest.approx(active, rel=0.02)


def test_deepseek_v3_trains_for_250_gflop_a_token():
    assert active_parameters(PRESETS["deepseek-v3"]) == pytest.approx(37.55e9, abs=5e6)
    assert train_flops_per_token(PRESETS["deepseek-v3"], 4096) / 1e9 == pytest.approx(250, abs=0.5)  # Insights, table 2


@each_small
def test_the_cache_holds_what_is_counted(name):
    config = SMALL[name]
    caches = Transformer(config).bfloat16().new_caches(batch=1, length=3)
    held = sum(tensor.nbytes for cache in caches for tensor in vars(cache).values() if isinstance(tensor, torch.Tensor))
    assert held == 3 * kv_bytes_per_token(config)


@each_small
@pytest.mark.parametrize("length", [1, 12])
def test_training_flops_are_those_that_torch_counts_with_attention_over_the_keys_seen(name, length):
    config = SMALL[name]
    model = Transformer(config).double()  # torch counts no grouped product; in float64 it is one product an expert
    tokens_BS = torch.randint(0, 50, (2, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # a fused attention is not counted
        model(tokens_BS).sum().backward()
    per_pair = 2 * config.heads * (config.head_width + max(config.value_width, config.head_width))
    whole_square = 3 * per_pair * config.layers * length
    pairs = [min(position, config.index_topk or position) for position in range(1, length + 1)]
    ours = 3 * 2 * config.heads * (config.head_width + config.value_width) * config.layers * sum(pairs) / length
    by_torch = counter.get_total_flops() / tokens_BS.numel() - whole_square + ours
    assert train_flops_per_token(config, length) == pytest.approx(
        by_torch + _indexer_untrained(config, length), rel=1e-12
    )


def _indexer_untrained(config, length):
    """What an indexer's own training would cost: the model runs it without gradients, and over the whole square."""
    if not config.index_topk:
        return 0.0
    dims = config.index_heads * config.index_head_dim
    matrices = config.q_lora_rank * dims + config.width * (config.index_head_dim + config.index_heads)
    scores = 2 * dims
    counted = 2 * matrices + (scores + 2 * config.index_heads) * length
    return config.layers * (6 * matrices + 3 * scores * (length + 1) / 2 - counted)


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
