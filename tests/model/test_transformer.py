import math

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from course.model import ModelConfig, Transformer, generate, sample

SMALL = ModelConfig(vocab=61, context=24, width=32, layers=2, heads=4, kv_heads=2, experts=5, top_k=2, expert_width=12)


def model(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return Transformer(config)


def mixtral(ours):
    """transformers' Mixtral with the weights of `ours`."""
    c = ours.config
    peer = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=c.vocab,
            hidden_size=c.width,
            intermediate_size=c.expert_width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.context,
            num_local_experts=c.experts,
            num_experts_per_tok=c.top_k,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            sliding_window=None,
        )
    )
    peer.model.embed_tokens.weight, peer.lm_head.weight = ours.embedding.weight, ours.head.weight
    peer.model.norm.weight = ours.norm.weight
    for theirs, block in zip(peer.model.layers, ours.blocks, strict=True):
        theirs.input_layernorm.weight = block.attention_norm.weight
        theirs.post_attention_layernorm.weight = block.feed_forward_norm.weight
        theirs.self_attn.q_proj.weight = block.attention.query.weight
        theirs.self_attn.k_proj.weight = block.attention.key.weight
        theirs.self_attn.v_proj.weight = block.attention.value.weight
        theirs.self_attn.o_proj.weight = block.attention.output.weight
        theirs.mlp.gate.weight = block.feed_forward.gate_ED
        theirs.mlp.experts.gate_up_proj = block.feed_forward.gate_up_EFD
        theirs.mlp.experts.down_proj = block.feed_forward.down_EDI
    return peer


def test_logits_and_gradients_equal_transformers_mixtral():
    ours = model()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    tokens_BS, direction = torch.randint(0, 61, (2, 17)), torch.randn(2, 17, 61)
    results = []
    for logits in (ours(tokens_BS), mixtral(ours)(tokens_BS).logits):
        results.append([logits, *torch.autograd.grad(logits, list(ours.parameters()), direction)])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_a_fresh_model_knows_nothing():
    tokens_BS = torch.randint(0, 61, (4, 20))
    assert model().loss(tokens_BS, tokens_BS).cross_entropy.item() == pytest.approx(math.log(61), abs=0.05)


def test_the_loss_is_cross_entropy_and_the_weighted_balance_loss():
    tokens_BS = torch.randint(0, 61, (4, 20))
    loss = model().loss(tokens_BS, tokens_BS)
    assert (loss.total - loss.cross_entropy).item() == pytest.approx(0.01 * 2, rel=0.2)
    dense = model(SMALL.dense_twin()).loss(tokens_BS, tokens_BS)
    assert torch.equal(dense.total, dense.cross_entropy)


def test_a_mixture_reports_one_routing_a_layer():
    routings = model().outputs(torch.zeros(2, 3, dtype=torch.int64)).routings
    assert [r.indices_TK.shape for r in routings] == [(6, 2)] * 2
    assert model(SMALL.dense_twin()).outputs(torch.zeros(2, 3, dtype=torch.int64)).routings == []


def test_generating_with_a_cache_is_the_same_as_without():
    net, prompt = model(), [3, 14, 15, 9]
    tokens = list(prompt)
    for _ in range(15):
        tokens.append(int(net(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(generate(net, torch.tensor(prompt), 15, temperature=0.0)) == tokens[4:]


@pytest.mark.parametrize("length", [1, 24, 40])
def test_generation_goes_on_beyond_the_context(length):
    tokens = list(generate(model(), torch.arange(length), 60))
    assert len(tokens) == 60
    assert all(0 <= token < 61 for token in tokens)


def test_the_same_seed_draws_the_same_tokens():
    def draw(seed):
        return list(generate(model(), torch.tensor([1]), 20, generator=torch.Generator().manual_seed(seed)))

    assert draw(5) == draw(5) != draw(6)


def test_an_empty_prompt_and_a_sequence_too_long_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        next(generate(model(), torch.zeros(0, dtype=torch.int64), 3))
    with pytest.raises(ValueError, match="a sequence of 25 tokens is longer than the context of 24"):
        model()(torch.zeros(1, 25, dtype=torch.int64))


def test_temperature_zero_takes_the_largest_logit():
    assert sample(torch.tensor([0.0, 2.0, 1.0]), temperature=0.0) == 1


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.0, {2}), (0.5, {2}), (0.51, {2, 0}), (0.8, {2, 0}), (1.0, {0, 1, 2})]
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p, allowed):
    logits_V = torch.tensor([0.3, 0.2, 0.5]).log()
    generator = torch.Generator().manual_seed(0)
    assert {sample(logits_V, top_p=top_p, generator=generator) for _ in range(200)} == allowed


def test_samples_follow_the_probabilities():
    logits_V = torch.tensor([0.3, 0.2, 0.5]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(logits_V, generator=generator) for _ in range(2000)]).bincount(minlength=3) / 2000
    torch.testing.assert_close(drawn, torch.tensor([0.3, 0.2, 0.5]), atol=0.04, rtol=0)
