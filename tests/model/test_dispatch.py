import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from course.model import capacity_mask, combine, expert_capacity, sort_by_expert, sort_kept


@st.composite
def choices(draw):
    """A table of chosen experts: up to 12 tokens, distinct within a row."""
    experts = draw(st.integers(1, 6))
    k = draw(st.integers(1, experts))
    rows = draw(st.lists(st.permutations(range(experts)), max_size=12))
    return torch.tensor([row[:k] for row in rows], dtype=torch.int64).view(-1, k), experts


@given(choices())
def test_every_experts_rows_are_one_slice_in_order_of_token_and_slot(drawn):
    indices_TK, experts = drawn
    order_P, offsets_E1 = sort_by_expert(indices_TK, experts)
    flat = indices_TK.flatten().tolist()
    assert offsets_E1.tolist() == [sum(e < bound for e in flat) for bound in range(experts + 1)]
    assert order_P.tolist() == sorted(range(len(flat)), key=lambda pair: (flat[pair], pair))


def test_offsets_and_order_are_64_bit():
    order_P, offsets_E1 = sort_by_expert(torch.tensor([[0]]), 2)
    assert order_P.dtype == offsets_E1.dtype == torch.int64


def test_a_dropped_pair_sorts_behind_the_last_offset():
    order_P, offsets_E1 = sort_by_expert(torch.tensor([[2, 0], [1, 2]]), 2)
    assert offsets_E1.tolist() == [0, 1, 2]
    assert order_P.tolist() == [1, 2, 0, 3]


@given(choices(), st.integers(0, 5))
def test_an_expert_serves_first_come_up_to_its_capacity(drawn, capacity):
    indices_TK, experts = drawn
    taken, wanted = [0] * experts, []
    for row in indices_TK.tolist():
        wanted.append([])
        for expert in row:
            wanted[-1].append(taken[expert] < capacity)
            taken[expert] += 1
    assert capacity_mask(indices_TK, experts, capacity).tolist() == wanted


def test_capacity_is_the_mean_load_times_the_factor_rounded_up():
    assert expert_capacity(tokens=10, experts=8, k=2, factor=1.0) == 3
    assert expert_capacity(tokens=8, experts=8, k=2, factor=1.25) == 3
    assert expert_capacity(tokens=0, experts=8, k=2, factor=1.25) == 0


@given(choices())
def test_combining_untouched_rows_gives_each_token_back_times_the_sum_of_its_weights(drawn):
    indices_TK, experts = drawn
    T, K = indices_TK.shape
    x_TD, weights_TK = torch.randn(T, 3), torch.rand(T, K)
    order_R, _ = sort_by_expert(indices_TK, experts)
    y_TD = combine(x_TD[order_R // K], order_R, weights_TK)
    torch.testing.assert_close(y_TD, x_TD * weights_TK.sum(1, keepdim=True))


def test_a_token_whose_pairs_were_all_dropped_combines_to_zero():
    kept_TK = torch.tensor([[True, True], [False, False], [True, True]])
    order_R, offsets_E1 = sort_kept(torch.tensor([[0, 1], [0, 1], [1, 0]]), kept_TK, 2)
    assert offsets_E1.tolist() == [0, 2, 4]
    y_TD = combine(torch.ones(4, 5), order_R, torch.full((3, 2), 0.5))
    assert y_TD.tolist() == [[1.0] * 5, [0.0] * 5, [1.0] * 5]


def test_the_gradients_of_combine_are_right():
    torch.manual_seed(0)
    rows_RD, weights_TK = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 4), (3, 2)))
    order_R = torch.randperm(6)
    assert gradcheck(lambda rows, weights: combine(rows, order_R, weights), (rows_RD, weights_TK))
