import pytest
import torch
from torch.autograd import gradcheck
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from course.model import (
    ModelConfig,
    balance_loss,
    choose_experts,
    expert_load,
    gate_probabilities,
    gate_scores,
    largest_k,
    limit_groups,
    softmax_topk_gate,
)


def test_ties_go_to_the_lower_index():
    scores_TE = torch.tensor([[1.0, 3, 3, 3, 2, 3], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    assert largest_k(scores_TE, 2).tolist() == [[1, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("k", [1, 2, 7, 8])
def test_choosing_among_many_ties_is_a_stable_sort(k):
    scores_TE = torch.randint(0, 4, (200, 8), generator=torch.Generator().manual_seed(k)).float()
    assert largest_k(scores_TE, k).tolist() == [
        sorted(range(8), key=lambda e: (-row[e], e))[:k] for row in scores_TE.tolist()
    ]


def test_the_weights_are_a_softmax_over_the_chosen_logits():
    torch.manual_seed(0)
    x_TD, gate_ED = torch.randn(9, 5), torch.randn(6, 5)
    indices_TK, weights_TK = softmax_topk_gate(x_TD, gate_ED, 3)
    logits_TE = x_TD @ gate_ED.T
    torch.testing.assert_close(weights_TK, logits_TE.gather(1, indices_TK).softmax(-1))
    torch.testing.assert_close(weights_TK.sum(-1), torch.ones(9))


def test_routing_is_done_in_float32_whatever_comes_in():
    x_TD, gate_ED = torch.randn(4, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    indices_TK, weights_TK = softmax_topk_gate(x_TD, gate_ED, 2)
    wanted_TK, wanted_weights_TK = softmax_topk_gate(x_TD.float(), gate_ED.float(), 2)
    assert torch.equal(indices_TK, wanted_TK)
    assert torch.equal(weights_TK, wanted_weights_TK)


def test_the_gate_takes_no_tokens():
    indices_TK, weights_TK = softmax_topk_gate(torch.zeros(0, 5), torch.randn(6, 5), 3)
    assert indices_TK.shape == weights_TK.shape == (0, 3)


def test_the_gradient_of_the_weights_is_right():
    torch.manual_seed(1)
    x_TD, gate_ED = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (5, 3)))
    assert gradcheck(lambda x, gate: softmax_topk_gate(x, gate, 2)[1], (x_TD, gate_ED))


def test_a_router_that_picks_one_expert_gets_no_gradient():
    """One weight, renormalised, is always one: with k = 1 this gate cannot learn from its output."""
    gate_ED = torch.randn(5, 3, requires_grad=True)
    softmax_topk_gate(torch.randn(4, 3), gate_ED, 1)[1].sum().backward()
    assert gate_ED.grad.abs().max() < 1e-6


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_balance_loss_is_k_at_balance(k):
    experts = 8
    indices_TK = (torch.arange(experts)[:, None] + torch.arange(k)) % experts
    even_TE = torch.full((experts, experts), 1 / experts)
    torch.testing.assert_close(balance_loss(even_TE, indices_TK), torch.tensor(float(k)))


def test_the_balance_loss_is_the_number_of_experts_when_one_has_everything():
    probabilities_TE = torch.zeros(10, 8)
    probabilities_TE[:, 3] = 1
    assert balance_loss(probabilities_TE, torch.full((10, 1), 3)) == 8


def test_the_balance_loss_equals_transformers():
    torch.manual_seed(2)
    logits_TE = torch.randn(50, 8)
    probabilities_TE = logits_TE.softmax(-1)
    ours = balance_loss(probabilities_TE, largest_k(probabilities_TE, 2))
    torch.testing.assert_close(ours, load_balancing_loss_func((logits_TE,), num_experts=8, top_k=2))


def test_the_balance_loss_makes_a_crowded_expert_less_probable():
    gate_ED = torch.zeros(4, 3, requires_grad=True)
    x_TD = torch.rand(20, 3)
    balance_loss(gate_probabilities(x_TD, gate_ED), torch.zeros(20, 1, dtype=torch.int64)).backward()
    logits_change_E = -(x_TD @ gate_ED.grad.T).mean(0)
    assert logits_change_E[0] < 0
    assert (logits_change_E[1:] > 0).all()


def test_the_balance_loss_of_no_tokens_is_zero():
    assert balance_loss(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64)) == 0


def test_load_counts_pairs_and_names_the_worst_expert():
    load = expert_load(torch.tensor([[0, 1], [0, 2], [0, 1]]), 4)
    assert load.counts_E.tolist() == [3, 2, 1, 0]
    assert load.idle == 1
    assert load.max_violation == pytest.approx(3 / 1.5 - 1)


def test_the_load_of_no_tokens_is_balanced():
    load = expert_load(torch.zeros(0, 2, dtype=torch.int64), 4)
    assert (load.counts_E.tolist(), load.idle, load.max_violation) == ([0] * 4, 4, 0.0)


def v3(**settings):
    return ModelConfig(
        **{"experts": 8, "top_k": 2, "expert_width": 4, "gate": "sigmoid", "selection_bias": True, **settings}
    )


def test_a_sigmoid_gate_scores_each_expert_by_itself():
    x_TD, gate_ED = torch.randn(5, 6), torch.randn(4, 6)
    torch.testing.assert_close(gate_scores(x_TD, gate_ED, "sigmoid"), (x_TD @ gate_ED.T).sigmoid())
    assert gate_scores(x_TD.bfloat16(), gate_ED.bfloat16(), "sigmoid").dtype == torch.float32


def test_the_bias_moves_the_choice_and_not_the_weights():
    scores_TE = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1]])
    bias_E = torch.tensor([0.0, -1.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0])
    indices_TK, weights_TK = choose_experts(scores_TE, bias_E, v3(routed_scale=2.5))
    assert indices_TK.tolist() == [[0, 3]]
    torch.testing.assert_close(weights_TK, 2.5 * torch.tensor([[0.9, 0.2]]) / 1.1)
    _, bare_TK = choose_experts(scores_TE, bias_E, v3(routed_scale=2.5, normalised=False))
    torch.testing.assert_close(bare_TK, 2.5 * torch.tensor([[0.9, 0.2]]))


def test_groups_are_ranked_by_the_sum_of_their_best_or_by_the_best_alone():
    scores_TE = torch.tensor([[0.9, 0.1, 0.6, 0.5]])
    closed = float("-inf")
    assert limit_groups(scores_TE, 2, 1, best=1).tolist() == [[pytest.approx(0.9), pytest.approx(0.1), closed, closed]]
    assert limit_groups(scores_TE, 2, 1, best=2).tolist() == [[closed, closed, pytest.approx(0.6), pytest.approx(0.5)]]
    assert limit_groups(torch.zeros(1, 4), 2, 1, best=2).tolist() == [[0.0, 0.0, closed, closed]]


def test_an_expert_of_a_closed_group_is_not_chosen_even_when_all_biased_scores_are_negative():
    """Where implementations differ: DeepSeek-V2's code fills closed groups with zeros, which here would win."""
    scores_TE = torch.tensor([[0.5, 0.4, 0.3, 0.2]])
    config = v3(experts=4, groups=2, top_groups=1)
    assert choose_experts(scores_TE, torch.full((4,), -2.0), config)[0].tolist() == [[0, 1]]
    zeros_TE = limit_groups(scores_TE - 2, 2, 1, best=2).nan_to_num(neginf=0.0)
    assert zeros_TE.topk(2).indices.min() >= 2


def test_the_report_and_the_code_of_v3_rank_groups_alike_at_v3s_sizes_and_not_at_others():
    """Where they differ: the report sums K / M scores of a group, M open groups; the code always two."""
    torch.manual_seed(0)
    scores_TE = torch.rand(500, 64)

    def open_groups(top_groups, best):
        return limit_groups(scores_TE, 8, top_groups, best) > float("-inf")

    k = 8
    assert torch.equal(open_groups(4, best=k // 4), open_groups(4, best=2))
    differ = (open_groups(2, best=k // 2) != open_groups(2, best=2)).any(1).double().mean()
    assert 0.3 < differ < 0.8


def test_the_gradient_of_a_choice_reaches_the_scores_of_the_chosen_alone():
    scores_TE = torch.rand(3, 8, requires_grad=True)
    indices_TK, weights_TK = choose_experts(scores_TE, torch.randn(8), v3(groups=4, top_groups=2, normalised=False))
    weights_TK.sum().backward()
    reached_TE = torch.zeros(3, 8, dtype=torch.bool).scatter(1, indices_TK, True)
    assert torch.equal(scores_TE.grad != 0, reached_TE)
