"""The oracle: random small models against an independent implementation, `transformers`, with the same weights.

Logits to 1e-5 and gradients to 1e-4, relative in float32, and tokens one by one through a cache as in one go.
"""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from course.model import LinearScaling, Llama3Scaling, ModelConfig, Transformer, YarnScaling, save_pretrained
from course.model.huggingface import places

SCALINGS = (
    None,
    None,
    LinearScaling(3.0),
    Llama3Scaling(8.0, 1.0, 4.0, 32),
    YarnScaling(4.0, 32),
    YarnScaling(2.0, 48, beta_fast=16.0, beta_slow=2.0, mscale=0.8, mscale_all_dim=1.4),
)


def drawn(seed):
    """A random configuration: heads and groups, head width free of the width, tied or not, biases, odd lengths."""
    rng = random.Random(seed)
    kv_heads, group, head_width = rng.choice([1, 2, 3]), rng.choice([1, 1, 2, 3, 4]), rng.choice([4, 6, 16, 32])
    heads = kv_heads * group
    biased = rng.random() < 0.3
    config = ModelConfig(
        vocab=rng.randint(30, 200),
        context=rng.choice([64, 96]),
        width=heads * rng.choice([4, 7, head_width]),
        layers=rng.randint(1, 4),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_width,
        qkv_bias=biased,
        output_bias=biased,
        mlp_width=rng.randint(5, 90),
        rope_theta=rng.choice([100.0, 10_000.0, 500_000.0]),
        rope_scaling=rng.choice(SCALINGS),
        norm_eps=rng.choice([1e-6, 1e-5, 1e-3]),
        tied=rng.random() < 0.4,
    )
    return config, rng.randint(1, 3), rng.choice([1, 2, 7, 33, 64])


def pair(config, folder, seed=0):
    """Our model with random weights, biases and norms, and transformers' with the same."""
    torch.manual_seed(seed)
    ours = Transformer(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else torch.nn.init.uniform_(
            parameter, 0.5, 1.5
        )
    save_pretrained(ours, folder)
    return ours, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


def agrees(seed, folder):
    config, batch, length = drawn(seed)
    ours, theirs = pair(config, folder, seed)
    tokens_BS = torch.randint(0, config.vocab, (batch, length))
    direction_BSV = torch.randn(batch, length, config.vocab)
    logits = ours(tokens_BS), theirs(tokens_BS).logits
    assert relative(*logits) < 1e-5, f"seed {seed}: {config}"
    for model_logits in logits:
        model_logits.backward(direction_BSV)
    # Where terms cancel, to nothing for a single token's queries and keys, what is left is float32's rounding.
    rounding = 2 * torch.finfo(torch.float32).eps * torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()
    for name, place in places(config).items():
        got, want = ours.get_parameter(place.parameter).grad[place.rows], theirs.get_parameter(name).grad
        assert (got - want).norm() <= 1e-4 * want.norm() + rounding, f"seed {seed}: {name} of {config}"
    with torch.no_grad():
        caches, start, steps = ours.new_caches(batch, length), 0, []
        while start < length:
            stop = min(length, start + random.Random(seed + start).choice([1, 1, 1, 5]))
            steps.append(ours(tokens_BS[:, start:stop], caches))
            start = stop
    assert relative(torch.cat(steps, 1), logits[0].detach()) < 1e-5, f"seed {seed}, in steps: {config}"


@pytest.mark.parametrize("seed", range(20))
def test_a_random_model_equals_transformers(seed, tmp_path):
    agrees(seed, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(20, 200))
def test_many_random_models_equal_transformers(seed, tmp_path):
    agrees(seed, tmp_path)


def test_the_drawn_models_cover_what_they_should():
    models = [drawn(seed)[0] for seed in range(20)]
    assert {type(m.rope_scaling) for m in models} == {type(scaling) for scaling in SCALINGS}
    for what in (
        lambda m: m.tied,
        lambda m: m.qkv_bias,
        lambda m: m.heads > m.kv_heads > 1,
        lambda m: m.kv_heads == 1,
        lambda m: m.head_width * m.heads != m.width,
    ):
        assert 0 < sum(map(what, models)) < 20
    assert {drawn(seed)[2] for seed in range(20)} == {1, 2, 7, 33, 64}


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
