"""The bound: the longer of two times, with the ridge where they are equal."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from course.hardware.gpus import GPUS
from course.hardware.roofline import Work, bound, draw_roofline

H800 = GPUS["h800"]


def test_a_copy_is_bound_by_memory_and_a_large_product_by_arithmetic():
    copy = bound(Work(0, 2e9), H800)
    assert (copy.by, copy.time) == ("memory", pytest.approx(2e9 / 3.35e12))
    n = 8192
    product = bound(Work(2 * n**3, 3 * 2 * n * n), H800)
    assert (product.by, product.time) == ("compute", pytest.approx(2 * n**3 / 990e12))
    assert product.flops_per_second == pytest.approx(990e12)


def test_at_the_ridge_both_take_the_same_time():
    ridge = bound(Work(1, 1), H800).ridge
    assert ridge == pytest.approx(990 / 3.35)
    at = bound(Work(ridge * 1e9, 1e9), H800)
    assert at.compute == pytest.approx(at.memory)
    assert bound(Work(1.01 * ridge * 1e9, 1e9), H800).by == "compute"
    assert bound(Work(0.99 * ridge * 1e9, 1e9), H800).by == "memory"


def test_achieved_roofs_take_longer():
    work = Work(1e12, 1e9)
    assert bound(work, H800, "achieved").time > bound(work, H800).time


def test_number_formats_have_roofs_of_their_own():
    assert bound(Work(1e15, 1, "fp8"), H800).time == pytest.approx(
        bound(Work(1e15, 1, "bf16"), H800).time / 2, rel=2e-3
    )
    with pytest.raises(ValueError, match="does not add"):
        Work(1, 1, "fp8") + Work(1, 1, "bf16")
    assert Work(1, 2) + Work(3, 4) == Work(4, 6)


def test_a_bound_says_itself_in_a_line():
    assert str(bound(Work(0, 3.35e9), H800)) == (
        "H800 SXM, peak roofs: at least 1 ms, bound by memory (0 FLOPs a byte, ridge 296)"
    )


def test_the_picture_has_a_point_for_each_work_under_the_roof():
    matplotlib.use("Agg")
    axis = draw_roofline(H800, {"copy and add": Work(1e9, 1.2e10), "product": Work(1e15, 1e11)})
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in points] == [pytest.approx(3.35 / 12), pytest.approx(990)]
    plt.close(axis.figure)
