"""The lightning indexer: what it chooses, where implementations differ, and how it is trained."""

from dataclasses import replace

import pytest
import torch

from course.model import Indexer, ModelConfig, Transformer, apply_rope, indexer_loss, rope_table

SPARSE = replace(
    ModelConfig.preset("tiny-deepseek-v3"),
    **{"vocab": 60, "context": 40, "width": 32, "layers": 1, "heads": 2, "dense_layers": 0, "mlp_width": 0},
    **{"index_topk": 3, "index_heads": 4, "index_head_dim": 24},
)


def drawn(seed=0, config=SPARSE, length=12):
    torch.manual_seed(seed)
    indexer = Indexer(config).double()
    x_BSD, latent_BSQ = torch.randn(2, length, 32).double(), torch.randn(2, length, config.q_lora_rank).double()
    cos, sin = rope_table(torch.arange(length), config.rope_width)
    return indexer, (x_BSD, latent_BSQ, cos.double(), sin.double())


def by_hand(indexer, x_BSD, latent_BSQ, cos, sin, layout="half"):
    """The report's equation 1, score by score."""
    (B, S, _), H, C, R = x_BSD.shape, 4, 24, 16
    scores = torch.full((B, S, S), float("-inf"), dtype=torch.float64)
    turn = lambda v_SC: torch.cat([apply_rope(v_SC[None, None, :, :R], cos, sin, layout)[0, 0], v_SC[:, R:]], -1)  # noqa: E731
    for b in range(B):
        keys_SC = turn(indexer.key_norm(indexer.key(x_BSD[b])))
        queries = [turn(q_SC) for q_SC in indexer.query(latent_BSQ[b]).view(S, H, C).unbind(1)]
        weights_SH = indexer.weight(x_BSD[b])
        for t in range(S):
            for s in range(t + 1):
                terms = [weights_SH[t, h] * torch.relu(queries[h][t] @ keys_SC[s]) for h in range(H)]
                scores[b, t, s] = sum(terms) / (H * C) ** 0.5
    return scores


def test_the_scores_are_the_reports():
    indexer, inputs = drawn()
    torch.testing.assert_close(indexer.scores(*inputs), by_hand(indexer, *inputs))


def test_pairs_by_halves_are_not_neighbours():
    """Where implementations differ: the first published demo turned the indexer's neighbours, as attention's are."""
    indexer, inputs = drawn()
    other = by_hand(indexer, *inputs, layout="interleaved")
    here = indexer.scores(*inputs).isfinite()
    assert (indexer.scores(*inputs) - other)[here].norm() > 0.05 * other[here].norm()
    assert not torch.equal(indexer.choose(other), indexer(*inputs))


def test_a_query_sees_its_best_earlier_keys_and_all_where_there_are_fewer():
    indexer, inputs = drawn()
    scores_BSN, seen_BSN = indexer.scores(*inputs), indexer(*inputs)
    assert seen_BSN.sum(-1).tolist() == 2 * [[1, 2] + 10 * [3]]
    for b, t in ((0, 1), (1, 7), (0, 11)):
        best = sorted(range(t + 1), key=lambda s, b=b, t=t: -scores_BSN[b, t, s])[:3]
        assert seen_BSN[b, t].nonzero().flatten().tolist() == sorted(best)


def test_ties_go_to_the_earlier_key():
    """Where implementations differ: transformers leaves ties to torch.topk, and keys that all heads reject tie at 0."""
    indexer, _ = drawn()
    scores_BSN = torch.zeros(1, 6, 6).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), float("-inf"))
    assert indexer.choose(scores_BSN)[0, 5].tolist() == [True, True, True, False, False, False]


def test_a_rotation_of_queries_and_keys_leaves_the_scores():
    """Where implementations differ: DeepSeek's runs FP8 behind a Hadamard transform, which is a rotation."""
    q_C, k_C = torch.randn(2, 8, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    torch.testing.assert_close((rotation @ q_C) @ (rotation @ k_C), q_C @ k_C)


def test_an_indexer_that_may_choose_all_leaves_attention_as_it_was():
    torch.manual_seed(0)
    sparse = Transformer(replace(SPARSE, index_topk=40)).double()
    dense = Transformer(replace(SPARSE, index_topk=0)).double()
    dense.load_state_dict({name: t for name, t in sparse.state_dict().items() if ".indexer." not in name})
    tokens_BS = torch.randint(0, 60, (2, 20))
    torch.testing.assert_close(sparse(tokens_BS), dense(tokens_BS), rtol=1e-10, atol=1e-12)
    few = Transformer(SPARSE).double()
    few.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(few(tokens_BS)[:, :3], dense(tokens_BS)[:, :3], rtol=1e-10, atol=1e-12)
    assert (few(tokens_BS) - dense(tokens_BS))[:, 3:].abs().max() > 1e-6


def test_the_indexers_loss_is_a_divergence_and_training_by_it_finds_what_attention_looks_at():
    indexer, inputs = drawn(length=10)
    later = torch.ones(10, 10, dtype=torch.bool).triu(1)
    attention_BHSN = torch.randn(2, 5, 10, 10).double().mul(3).masked_fill(later, float("-inf")).softmax(-1)
    target_BSN = attention_BHSN.mean(1)
    assert indexer_loss(target_BSN.log(), attention_BHSN) == pytest.approx(0.0, abs=1e-12)
    optimizer = torch.optim.Adam(indexer.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = indexer_loss(indexer.scores(*inputs), attention_BHSN)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 < losses[-1] < 0.3 * losses[0]


def test_no_gradient_of_the_language_model_reaches_the_indexer():
    net = Transformer(SPARSE)
    row_BS = torch.randint(0, 60, (2, 13))
    net.loss(row_BS[:, :-1], row_BS[:, 1:]).total.backward()
    assert all(p.grad is None for name, p in net.named_parameters() if ".indexer." in name)
    assert all(p.grad is not None for name, p in net.named_parameters() if ".indexer." not in name)


def test_expanded_keys_cannot_be_cached_beside_an_indexer():
    with pytest.raises(ValueError, match="an indexer needs latents"):
        Transformer(SPARSE).new_caches(1, form="expanded")
