import pytest

from course.training.schedule import learning_rate


def rates(steps=100, warmup=10):
    return [learning_rate(step, steps, peak=2.0, warmup=warmup, final=0.1) for step in range(1, steps + 1)]


def test_the_rate_climbs_straight_to_the_peak_at_the_end_of_the_warm_up():
    assert rates()[:10] == pytest.approx([0.2 * step for step in range(1, 11)])


def test_then_it_falls_to_a_tenth_at_the_last_step():
    after = rates()[9:]
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(0.2)
    assert after[len(after) // 2] == pytest.approx((2.0 + 0.2) / 2)


def test_a_run_may_have_no_warm_up_or_nothing_but_warm_up():
    assert rates(warmup=0)[0] == pytest.approx(2.0, rel=1e-2)
    assert rates(steps=10, warmup=10)[-1] == 2.0
    assert learning_rate(3, 2, peak=2.0, warmup=0) == pytest.approx(0.2)
