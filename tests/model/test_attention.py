import pytest
import torch

from course.model import Attention, KVCache, ModelConfig, causal_attention, rope_table


def naive(q_BHSC, k_BGNC, v_BGNC):
    """Position by position, head by head, in plain loops."""
    B, H, S, C = q_BHSC.shape
    G, N = k_BGNC.shape[1:3]
    y_BHSC = torch.zeros_like(q_BHSC)
    for b in range(B):
        for h in range(H):
            for s in range(S):
                seen = N - S + s + 1
                scores = k_BGNC[b, h // (H // G), :seen] @ q_BHSC[b, h, s] / C**0.5
                y_BHSC[b, h, s] = scores.softmax(0) @ v_BGNC[b, h // (H // G), :seen]
    return y_BHSC


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (1, 1)])
def test_attention_is_a_softmax_over_what_came_before(kv_heads, queries, keys):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, queries, 6), torch.randn(2, kv_heads, keys, 6), torch.randn(2, kv_heads, keys, 6)
    torch.testing.assert_close(causal_attention(q, k, v), naive(q, k, v))


def attention(kv_heads=2):
    torch.manual_seed(0)
    config = ModelConfig(width=32, heads=4, kv_heads=kv_heads, context=16, mlp_width=8)
    return config, Attention(config)


@pytest.mark.parametrize("steps", [[10], [1] * 10, [4, 1, 1, 4], [3, 7]])
def test_in_steps_with_a_cache_is_the_same_as_in_one_go(steps):
    config, layer = attention()
    x_BSD = torch.randn(2, 10, 32)
    cos, sin = rope_table(torch.arange(10), config.head_width)
    cache, parts, start = KVCache(config, batch=2, length=16, like=x_BSD), [], 0
    for step in steps:
        now = slice(start, start := start + step)
        parts.append(layer(x_BSD[:, now], cos[now], sin[now], cache))
    torch.testing.assert_close(torch.cat(parts, 1), layer(x_BSD, cos, sin))


def test_a_full_cache_says_so():
    config, layer = attention()
    cache = KVCache(config, batch=1, length=16, like=torch.zeros(1))
    cos, sin = rope_table(torch.arange(17), config.head_width)
    with pytest.raises(ValueError, match="17 positions do not fit into a cache of 16"):
        layer(torch.randn(1, 17, 32), cos, sin, cache)


def test_the_future_does_not_change_the_past():
    config, layer = attention()
    x_BSD = torch.randn(1, 8, 32)
    other_BSD = x_BSD.clone()
    other_BSD[:, 5:] += 1
    cos, sin = rope_table(torch.arange(8), config.head_width)
    torch.testing.assert_close(layer(x_BSD, cos, sin)[:, :5], layer(other_BSD, cos, sin)[:, :5])
