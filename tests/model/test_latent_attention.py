"""Latent attention: its cache, its scale, and where implementations differ. The oracle compares it with transformers."""

from dataclasses import replace

import pytest
import torch

from course.model import LatentAttention, LatentCache, ModelConfig, Transformer, YarnScaling, rope_table
from course.model.rope import yarn_mscale

TINY = replace(ModelConfig.preset("tiny-deepseek-v3"), vocab=60, context=40, width=32, layers=2, heads=2)


def attention(seed=0, **settings):
    torch.manual_seed(seed)
    layer = LatentAttention(replace(TINY, **settings)).double()
    for parameter in layer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return layer


def tables(config, start, end):
    cos, sin = rope_table(torch.arange(start, end), config.rope_width, config.rope_theta, config.rope_scaling)
    return cos.double(), sin.double()


def test_a_cache_holds_one_latent_and_one_turned_key_a_token_however_many_heads():
    for heads in (1, 8):
        cache = LatentCache(replace(TINY, heads=heads), batch=3, length=10, like=torch.zeros(1))
        assert cache.rows.shape == (3, 10, 32 + 16)


def test_a_full_cache_takes_no_more():
    cache = LatentCache(TINY, batch=1, length=4, like=torch.zeros(1))
    cache.append(torch.zeros(1, 3, 48))
    with pytest.raises(ValueError, match="5 positions do not fit into a cache of 4"):
        cache.append(torch.zeros(1, 2, 48))


@pytest.mark.parametrize("steps", [[9], [4, 5], [1] * 9, [8, 1], [3, 1, 5]])
def test_a_cache_without_absorption_gives_the_same_as_one_with_it(steps):
    layer, x_BSD = attention(), torch.randn(2, 9, 32, dtype=torch.float64)
    whole = layer(x_BSD, *tables(TINY, 0, 9))
    for absorb in (False, True):
        cache, parts, start = LatentCache(TINY, 2, 9, x_BSD, absorb), [], 0
        for step in steps:
            parts.append(layer(x_BSD[:, start : start + step], *tables(TINY, start, start + step), cache))
            start += step
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)


def test_absorbing_pays_in_decoding_and_not_for_a_prompt():
    with torch.device("meta"):
        layer = LatentAttention(ModelConfig.preset("deepseek-v3"))
    assert layer.absorbing_pays(1)
    assert layer.absorbing_pays(170)
    assert not layer.absorbing_pays(171)  # 512 * 256 / 768 = 170.7


def test_a_value_may_be_wider_than_a_key():
    layer, x_BSD = attention(v_head_dim=70), torch.randn(1, 6, 32, dtype=torch.float64)
    config = layer.config
    cache, whole = LatentCache(config, 1, 6, x_BSD), layer(x_BSD, *tables(config, 0, 6))
    parts = [layer(x_BSD[:, i : i + 1], *tables(config, i, i + 1), cache) for i in range(6)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)


def test_the_scale_is_that_of_a_key_also_where_none_is_made():
    with torch.device("meta"):
        plain = LatentAttention(replace(ModelConfig.preset("deepseek-v3"), rope_scaling=None))
        stretched = LatentAttention(ModelConfig.preset("deepseek-v3"))
    assert plain.scale == pytest.approx(192**-0.5)  # not 576, the width of the latents
    assert stretched.scale == pytest.approx(192**-0.5 * yarn_mscale(40.0) ** 2)


def test_yarn_sharpens_in_the_softmax_for_equal_mscales_and_in_the_table_for_none():
    """Where implementations differ: YaRN multiplies cosine and sine, which the nope part of a latent key never meets."""
    positions_S = torch.arange(5)
    equal = YarnScaling(40.0, 4096, mscale=0.707, mscale_all_dim=0.707)
    unequal = YarnScaling(40.0, 4096, mscale=0.8, mscale_all_dim=0.4)
    size = {
        s: (rope_table(positions_S, 16, 1e4, s)[0][0]).mean().item() for s in (equal, unequal, YarnScaling(40.0, 4096))
    }
    assert list(size.values()) == pytest.approx(
        [1.0, yarn_mscale(40.0, 0.8) / yarn_mscale(40.0, 0.4), yarn_mscale(40.0)]
    )
    scales = [attention(rope_scaling=s).scale * 48**0.5 for s in size]
    assert scales == pytest.approx([yarn_mscale(40.0, 0.707) ** 2, yarn_mscale(40.0, 0.4) ** 2, 1.0])


def test_the_norms_of_latents_have_an_eps_of_their_own():
    """Where implementations differ: DeepSeek's code leaves them at 1e-6 whatever rms_norm_eps says."""
    net = Transformer(replace(TINY, norm_eps=1e-2))
    layer = net.blocks[0].attention
    assert {layer.query_norm.eps, layer.kv_norm.eps} == {1e-6}
    assert net.norm.eps == 1e-2


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no cache of form 'flat': choose one of expanded, reexpanded, absorbed"):
        Transformer(TINY).new_caches(1, form="flat")
