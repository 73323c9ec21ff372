import pytest
import torch

from course.model import LinearScaling, Llama3Scaling, YarnScaling, apply_rope, rope_speeds, rope_table
from course.model.rope import yarn_mscale


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_pair_is_turned_as_a_complex_number_and_stays_where_it_was(layout):
    torch.manual_seed(0)
    x_BHSC, positions_S = torch.randn(2, 3, 5, 8), torch.tensor([0, 1, 7, 3, 100])
    pairs = {"half": [(i, i + 4) for i in range(4)], "interleaved": [(2 * i, 2 * i + 1) for i in range(4)]}[layout]
    turned_BHSC = apply_rope(x_BHSC, *rope_table(positions_S, 8, theta=100.0), layout)
    for pair, (a, b) in enumerate(pairs):
        angle_S = positions_S * 100.0 ** (-2 * pair / 8)
        z = torch.complex(x_BHSC[..., a], x_BHSC[..., b]) * torch.polar(torch.ones(5), angle_S)
        torch.testing.assert_close(turned_BHSC[..., a], z.real)
        torch.testing.assert_close(turned_BHSC[..., b], z.imag)


def test_linear_scaling_squeezes_positions():
    table = rope_table(torch.tensor([0, 4, 8]), 16, scaling=LinearScaling(4.0))
    torch.testing.assert_close(table, rope_table(torch.tensor([0, 1, 2]), 16))


@pytest.mark.parametrize("scaling", [Llama3Scaling(8.0, 1.0, 4.0, 8192), YarnScaling(8.0, 8192)])
def test_fast_pairs_keep_their_speed_slow_ones_lose_the_factor_and_those_between_are_between(scaling):
    before_P, after_P = rope_speeds(128, 500_000.0), rope_speeds(128, 500_000.0, scaling)
    slowed_P = before_P / after_P
    assert slowed_P[0] == 1
    assert slowed_P[-1] == 8
    assert (slowed_P.diff() >= 0).all()
    assert 3 < ((slowed_P > 1) & (slowed_P < 8)).sum() < 40


def test_yarn_enlarges_cosine_and_sine_by_the_factors_logarithm():
    assert YarnScaling(40.0, 4096).attention_factor == pytest.approx(0.1 * 3.6888794541 + 1)
    assert YarnScaling(1.0, 4096).attention_factor == 1.0
    cos, sin = rope_table(torch.tensor([5]), 8, scaling=YarnScaling(40.0, 4096))
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((1, 4), yarn_mscale(40.0) ** 2))


def test_equal_mscales_cancel_and_unequal_ones_do_not():
    assert YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0).attention_factor == 1.0
    unequal = YarnScaling(40.0, 4096, mscale=0.707, mscale_all_dim=1.2).attention_factor
    assert unequal == pytest.approx(yarn_mscale(40.0, 0.707) / yarn_mscale(40.0, 1.2))
    assert YarnScaling(40.0, 4096, mscale=0.707, attention=1.5).attention_factor == 1.5
