"""The oracle: random small models of every published type against an independent implementation, `transformers`.

Logits to 1e-5 and gradients to 1e-4, relative in float32, and tokens one by one through a cache as in one go; and the
three forms of latent attention against each other in float64 to 1e-10.
"""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from course.model import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Transformer,
    YarnScaling,
    from_pretrained,
    save_pretrained,
)
from course.model.hf_config import TYPES
from course.model.hf_export import model_type
from course.model.hf_names import places

SCALINGS = (
    None,
    None,
    LinearScaling(3.0),
    Llama3Scaling(8.0, 1.0, 4.0, 32),
    YarnScaling(4.0, 32),
    YarnScaling(2.0, 48, beta_fast=16.0, beta_slow=2.0, mscale=0.8, mscale_all_dim=1.4),
)
PER_TYPE = 8  # seeds of each type in `make test`
SEEDS = range(PER_TYPE * len(TYPES))
DEEP = range(len(SEEDS), 40 * len(TYPES))


def drawn(seed):
    """A random configuration of the type seed % 6, with a batch and a length, odd ones among them."""
    rng = random.Random(seed)
    kind = TYPES[seed % len(TYPES)]
    common = {
        "vocab": rng.randint(30, 200),
        "context": rng.choice([64, 96]),
        "layers": rng.randint(1, 3),
        "rope_theta": rng.choice([100.0, 10_000.0, 500_000.0]),
        "rope_scaling": rng.choice(SCALINGS),
        "norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "tied": rng.random() < 0.4,
    }
    attention = _latent(rng, kind) if kind.startswith("deepseek") else _grouped_query(rng, kind)
    feed_forward = {"mlp_width": rng.randint(5, 90)} if kind == "llama" else _mixture(rng, kind, common["layers"])
    return ModelConfig(**common, **attention, **feed_forward), rng.randint(1, 3), rng.choice([1, 2, 7, 33, 64])


def _grouped_query(rng, kind):
    kv_heads, group, head_width = rng.choice([1, 2, 3]), rng.choice([1, 1, 2, 3, 4]), rng.choice([4, 6, 16, 32])
    heads = kv_heads * group
    width = heads * rng.choice([4, 7, head_width])
    biased = kind != "mixtral" and rng.random() < 0.3
    return {
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": None if heads * head_width == width else head_width,
        "qkv_bias": biased,
        "output_bias": biased,
        "qk_norm": kind == "qwen3_moe",
    }


def _latent(rng, kind):
    heads, sparse = rng.choice([1, 2, 4, 5]), kind == "deepseek_v32"
    biased = rng.random() < 0.3
    rope = rng.choice([4, 8, 16])
    return {
        "width": heads * rng.choice([8, 12]),
        "heads": heads,
        "q_lora_rank": rng.choice([0, 0, 9, 20] if not sparse else [9, 20]),
        "kv_lora_rank": rng.choice([8, 15, 32] if kind != "deepseek_v2" else [8, 32]),  # its code wants even offsets
        "qk_nope_head_dim": rng.choice([5, 8, 16] if kind != "deepseek_v2" else [6, 8, 16]),
        "qk_rope_head_dim": rope,
        "v_head_dim": rng.choice([4, 8, 13]),
        "qkv_bias": biased,
        "output_bias": biased,
        "rope_layout": "half" if kind == "deepseek_v3" and rng.random() < 0.3 else "interleaved",
        **({"index_topk": rng.choice([1, 3, 8, 40]), "index_heads": 16} if sparse else {}),
        **({"index_head_dim": rope + rng.choice([0, 4])} if sparse else {}),
    }


def _mixture(rng, kind, layers):
    deepseek, v2 = kind.startswith("deepseek"), kind == "deepseek_v2"
    groups = rng.choice([1, 2, 4]) if deepseek else 1
    experts = groups * rng.choice([2, 3, 4])
    top_groups = rng.randint(1, groups)
    dense = rng.randint(0, layers - 1) if deepseek else 0
    return {
        "experts": experts,
        "top_k": rng.randint(1, min(5, experts // groups * top_groups)),
        "expert_width": rng.choice([4, 7, 16]),
        "dense_layers": dense,
        "mlp_width": rng.randint(5, 60) if dense else 0,
        "shared_experts": rng.randint(1, 3) if deepseek else 0,
        "gate": "sigmoid" if deepseek and not v2 else "softmax",
        "normalised": not v2 and (kind == "mixtral" or rng.random() < 0.6),
        "routed_scale": rng.choice([1.0, 2.5, 16.0]) if deepseek else 1.0,
        "selection_bias": deepseek and not v2,
        "groups": groups,
        "top_groups": top_groups,
        "group_best": 1 if v2 else 2,
        "balance_weight": 0.0,
    }


def randomised(config, seed):
    """Our model, with every number away from where it starts; selection biases on both sides of zero, and below it."""
    torch.manual_seed(seed)
    ours = Transformer(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else torch.nn.init.uniform_(
            parameter, 0.5, 1.5
        )
    for module in ours.mixtures():
        torch.nn.init.normal_(module.gate_ED, std=0.5)
        if config.selection_bias:
            torch.nn.init.normal_(module.bias_E, mean=-0.5, std=0.5)
    return ours


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


def in_steps(model, tokens_BS, seed, form="absorbed"):
    """Logits of a sequence that comes in steps of one, and now and then five, through a cache."""
    batch, length = tokens_BS.shape
    caches, start, steps = model.new_caches(batch, length, form), 0, []
    while start < length:
        stop = min(length, start + random.Random(seed + start).choice([1, 1, 1, 5]))
        steps.append(model(tokens_BS[:, start:stop], caches))
        start = stop
    return torch.cat(steps, 1)


def agrees(seed, folder):
    config, batch, length = drawn(seed)
    ours = randomised(config, seed)
    save_pretrained(ours, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    tokens_BS = torch.randint(0, config.vocab, (batch, length))
    direction_BSV = torch.randn(batch, length, config.vocab)
    logits = ours(tokens_BS), theirs(tokens_BS).logits
    assert relative(*logits) < 1e-5, f"seed {seed}: {config}"
    for model_logits in logits:
        model_logits.backward(direction_BSV)
    _gradients_agree(ours, theirs, f"seed {seed}: {config}")
    with torch.no_grad():
        assert relative(in_steps(ours, tokens_BS, seed), logits[0].detach()) < 1e-5, f"seed {seed}, in steps: {config}"
    theirs.save_pretrained(folder / "theirs")
    loaded = from_pretrained(folder / "theirs")
    assert loaded.config == config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in ours.state_dict().items())


def _gradients_agree(ours, theirs, what):
    # Where terms cancel, to nothing for a single token's queries and keys, what is left is float32's rounding.
    grads = [p.grad.norm() for p in theirs.parameters() if p.grad is not None]
    rounding = 2 * torch.finfo(torch.float32).eps * torch.stack(grads).norm()
    mine, wants = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, place in places(ours.config, fused=True).items():
        if place.tensor not in mine:  # a selection bias
            continue
        got, want = mine[place.tensor].grad, wants[name].grad
        if want is None:
            assert got is None or not got.any(), f"{name}, {what}"
            assert ".indexer." in name or ".experts." in name, f"{name}, {what}"
        else:
            assert (got[place.part] - want).norm() <= 1e-4 * want.norm() + rounding, f"{name}, {what}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_equals_transformers(seed, tmp_path):
    agrees(seed, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("seed", DEEP)
def test_many_random_models_equal_transformers(seed, tmp_path):
    agrees(seed, tmp_path)


def test_the_drawn_models_cover_what_they_should():
    models = [drawn(seed)[0] for seed in SEEDS]
    assert {model_type(m) for m in models} == set(TYPES)
    assert {type(m.rope_scaling) for m in models} == {type(scaling) for scaling in SCALINGS}
    for what in (
        lambda m: m.tied,
        lambda m: m.qkv_bias,
        lambda m: m.heads > m.kv_heads > 1 and not m.latent,
        lambda m: m.kv_heads == 1 and not m.latent,
        lambda m: m.latent and m.q_lora_rank == 0,
        lambda m: m.dense_layers > 0,
        lambda m: m.shared_experts > 1,
        lambda m: m.top_k == 1,
        lambda m: m.top_k > 2,
        lambda m: m.groups > m.top_groups > 1,
        lambda m: m.experts and not m.normalised,
        lambda m: m.latent and isinstance(m.rope_scaling, YarnScaling) and m.rope_scaling.mscale,
        lambda m: m.latent and m.rope_layout == "half",
        lambda m: 0 < m.index_topk < 30,
    ):
        assert 0 < sum(bool(what(m)) for m in models) < len(models)
    assert {drawn(seed)[2] for seed in SEEDS} == {1, 2, 7, 33, 64}


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if TYPES[seed % len(TYPES)].startswith("deepseek")])
def test_the_forms_of_latent_attention_are_equal(seed):
    config, batch, length = drawn(seed)
    model = randomised(config, seed).double()
    tokens_BS = torch.randint(0, config.vocab, (batch, length))
    forms = ["reexpanded", "absorbed"] if config.index_topk else ["expanded", "reexpanded", "absorbed"]
    with torch.no_grad():
        whole = model(tokens_BS)
        for form in forms:
            assert relative(in_steps(model, tokens_BS, seed, form), whole) < 1e-10, form


def test_interleaved_pairs_are_half_split_ones_with_the_features_in_another_order():
    torch.manual_seed(0)
    half = ModelConfig(vocab=50, width=32, layers=2, heads=4, kv_heads=2, mlp_width=40, rope_theta=100.0)
    ours, other = Transformer(half), Transformer(replace(half, rope_layout="interleaved"))
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other.load_state_dict(ours.state_dict())
    tokens_BS = torch.randint(0, 50, (2, 9))
    assert relative(other(tokens_BS), ours(tokens_BS)) > 0.1
    with torch.no_grad():
        for block in other.blocks:
            for layer in (block.attention.query, block.attention.key):
                heads_HCD = layer.weight.unflatten(0, (-1, half.head_width))
                first, second = heads_HCD.chunk(2, dim=1)
                layer.weight.copy_(torch.stack([first, second], dim=2).flatten(0, 2))
    assert relative(other(tokens_BS), ours(tokens_BS)) < 1e-5
