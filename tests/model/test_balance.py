"""The sequence-wise loss and the bias that balances; the batch-wise loss is tested with the router."""

import pytest
import torch

from course.model import bias_step, largest_k, sequence_balance_loss


def by_the_equations(scores_SE, k):
    """V3 report, equations 17 to 20, for one sequence, symbol by symbol."""
    T, E = scores_SE.shape
    total = 0.0
    for i in range(E):
        chosen = sum(i in scores_SE[t].topk(k).indices.tolist() for t in range(T))
        f_i = E / (k * T) * chosen
        P_i = sum(scores_SE[t, i] / scores_SE[t].sum() for t in range(T)) / T
        total += f_i * P_i
    return total


@pytest.mark.parametrize(("batch", "length", "experts", "k"), [(1, 7, 6, 2), (3, 5, 4, 1), (2, 9, 5, 5)])
def test_the_sequence_loss_is_the_reports(batch, length, experts, k):
    torch.manual_seed(length)
    scores_BSE = torch.rand(batch, length, experts, dtype=torch.float64)
    want = sum(by_the_equations(scores_SE, k) for scores_SE in scores_BSE) / batch
    probabilities_BSE = scores_BSE / scores_BSE.sum(-1, keepdim=True)
    indices_BSK = largest_k(scores_BSE.flatten(0, 1), k).view(batch, length, k)
    torch.testing.assert_close(sequence_balance_loss(probabilities_BSE, indices_BSK), want)


def test_it_is_one_at_balance_and_the_number_of_experts_at_collapse():
    even = torch.full((1, 8, 4), 0.25)
    assert sequence_balance_loss(even, torch.arange(8).view(1, 8, 1) % 4) == 1
    one = torch.nn.functional.one_hot(torch.zeros(1, 8, dtype=torch.int64), 4).float()
    assert sequence_balance_loss(one, torch.zeros(1, 8, 1, dtype=torch.int64)) == 4


def test_a_batch_may_be_balanced_and_its_sequences_not():
    """Where the two differ by design: each sequence sends all to one expert, another one each."""
    owner_B = torch.arange(4)
    probabilities_BSE = torch.nn.functional.one_hot(owner_B, 4).float()[:, None].expand(4, 6, 4)
    indices_BSK = owner_B[:, None, None].expand(4, 6, 1)
    assert sequence_balance_loss(probabilities_BSE, indices_BSK) == 4
    assert sequence_balance_loss(probabilities_BSE.reshape(1, 24, 4), indices_BSK.reshape(1, 24, 1)) == 1


def test_what_is_counted_matters_when_bias_or_groups_moved_the_choice():
    """Where implementations differ by design: the report counts the largest scores, Megatron what was dispatched."""
    torch.manual_seed(0)
    probabilities_BSE = (3 * torch.randn(2, 50, 8)).softmax(-1)
    by_scores = largest_k(probabilities_BSE.flatten(0, 1), 2).view(2, 50, 2)
    dispatched = largest_k(probabilities_BSE.flatten(0, 1) + torch.linspace(0, 1, 8).flip(0), 2).view(2, 50, 2)
    losses = [sequence_balance_loss(probabilities_BSE, chosen) for chosen in (by_scores, dispatched)]
    assert abs(losses[0] - losses[1]) > 0.01


def test_a_bias_goes_up_below_the_mean_and_down_above_it_by_the_same_step():
    bias_E, counts_E = torch.tensor([0.0, 1.0, -1.0, 0.5]), torch.tensor([10, 0, 6, 4])
    torch.testing.assert_close(bias_step(bias_E, counts_E, 0.1), torch.tensor([-0.1, 1.1, -1.1, 0.6]))
    even = torch.tensor([5, 5, 5, 5])
    assert torch.equal(bias_step(bias_E, even, 0.1), bias_E)


def test_large_counts_are_compared_exactly():
    counts_E = torch.tensor([2**25 + 1, 2**25, 2**25 - 1])
    assert bias_step(torch.zeros(3), counts_E, 1.0).tolist() == [-1.0, 0.0, 1.0]
