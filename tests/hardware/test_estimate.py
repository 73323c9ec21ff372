import matplotlib.pyplot as plt
import pytest

from course.hardware.estimate import Estimate, Part, slower, total

PRODUCTS = Estimate("products", "ms", (Part("up", 3.0, 0.3, "curve"), Part("down", 2.0, 0.1, "curve")))
LINK = Estimate("link", "ms", (Part("dispatch", 1.0, 0.3, "network"),))


def test_parts_add_up():
    assert (PRODUCTS + LINK).value == 6.0
    assert [part.name for part in (PRODUCTS + LINK).parts] == ["up", "down", "dispatch"]


def test_errors_of_one_source_add_and_those_of_two_add_in_squares():
    assert PRODUCTS.error == pytest.approx(0.4)
    assert (PRODUCTS + LINK).error == pytest.approx(0.5)


def test_a_factor_scales_value_and_error():
    assert (PRODUCTS * 10).value == 50
    assert (PRODUCTS * 10).error == pytest.approx(4)


def test_a_rate_keeps_the_relative_error():
    rate = PRODUCTS.per(1000, "throughput", "tokens/ms")
    assert rate.value == 200
    assert rate.error / rate.value == pytest.approx(PRODUCTS.error / PRODUCTS.value)


def test_an_estimate_covers_what_lies_between_its_ends():
    assert PRODUCTS.covers(4.7)
    assert PRODUCTS.covers(5.3)
    assert not PRODUCTS.covers(4.5)
    assert not PRODUCTS.covers(5.5)


def test_the_slower_of_two_lasts():
    assert slower(LINK, PRODUCTS) is PRODUCTS


def test_a_total_has_one_unit():
    assert total("step", [PRODUCTS, LINK]).value == 6
    with pytest.raises(ValueError, match="GB and ms"):
        total("step", [PRODUCTS, Estimate("size", "GB", ())])
    with pytest.raises(ValueError, match="nothing"):
        total("step", [])
    with pytest.raises(ValueError, match="ms and GB"):
        PRODUCTS + Estimate("size", "GB", ())


def test_a_drawing_has_a_bar_a_part():
    _, axis = plt.subplots()
    (PRODUCTS + LINK).draw(axis)
    assert [bar.get_width() for bar in axis.patches] == [3, 2, 1]
    assert axis.get_xlabel() == "ms"
    plt.close()


def test_json_holds_value_error_and_parts():
    told = PRODUCTS.to_json()
    assert told["value"] == 5
    assert told["error"] == pytest.approx(0.4)
    assert told["parts"][0] == {"name": "up", "value": 3.0, "error": 0.3, "source": "curve"}
