"""Curves through published times: they pass near their points, know how far off they are, and scale with the roofs."""

import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from course.hardware.curves import Curve, least_squares
from course.hardware.gpus import GPUS, H800, Figure
from course.hardware.layer_parts import elementwise, grouped, product
from course.hardware.layers import Batch, layer_operations
from course.hardware.measured import (
    BACKWARD,
    PRODUCTS,
    SIZES,
    between_sources,
    curve,
    deepgemm,
    kernel_time,
    kernel_times,
    measurements,
    table,
)
from course.model import PRESETS

ROWS = {  # published rows, less the one left out; two products a row of the mixtures
    "gemm": 110,
    "masked": 94,
    "contiguous": 48,
    "mla_decode": 41,
    "gqa_decode": 286,
    "prefill": 5,
    "sparse_decode": 8,
    "sparse_prefill": 6,
    "index_decode": 16,
    "index_prefill": 12,
}


def faster(**times):
    """An H800 with some roofs so many times as high."""
    peak = {name: Figure(f.value * times.get("peak", 1), "test") for name, f in H800.peak.items()}
    return replace(H800, peak=peak, bandwidth=Figure(H800.bandwidth.value * times.get("bandwidth", 1), "test"))


@pytest.mark.parametrize("name", SIZES)
def test_a_table_has_a_source_and_its_rows(name):
    its = table(name)
    assert "InferSim" in its["source"]
    assert its["kind"] == "published"
    assert len(measurements(name)) == ROWS[name]
    assert all(seconds > 0 for _, seconds in measurements(name))


def test_the_flops_of_a_row_give_the_share_of_the_peak_that_was_published():
    """InferSim's own column, for some rows: of 1979 TFLOP/s in FP8, 989 in BF16."""
    published = {
        ("gemm", 4): 0.218074,
        ("mla_decode", 10): 0.505,
        ("gqa_decode", 40): 0.198,
        ("prefill", 3): 0.625,
        ("sparse_decode", 0): 0.405,
        ("sparse_prefill", 0): 0.641,
        ("index_decode", 8): 0.112,
        ("index_prefill", 6): 0.502,
    }
    for (name, row), share in published.items():
        operation, seconds = measurements(name)[row]
        peak = 1979e12 if operation.work.dtype == "fp8" else 989e12
        assert operation.work.flops / seconds / peak == pytest.approx(share, abs=1e-3), name


def test_an_expert_with_one_row_in_the_mean_often_has_none():
    (up, _), (two, _) = measurements("masked")[0], measurements("masked")[2]
    assert up.shape["groups"] == pytest.approx(127, abs=1)  # of 256: its weights cost half the time
    assert two.shape["groups"] == 256


@pytest.mark.parametrize("name", SIZES)
def test_four_of_five_left_out_times_lie_within_the_error(name):
    its = curve(name)
    assert np.mean(np.abs(its.left_out) <= its.error) >= 0.8
    deviations = 1 / np.sqrt(np.diag(its._inverse))
    assert np.mean(np.abs(its.left_out) <= its._deviations * deviations) >= 0.8
    assert its.error < {"masked": 0.13, "gemm": 0.09, "gqa_decode": 0.07, "prefill": 0.07}.get(name, 0.06)


@pytest.mark.parametrize("name", ["gemm", "contiguous", "mla_decode", "gqa_decode", "index_decode"])
def test_what_was_measured_nearby_makes_a_curve_better_than_its_model(name):
    its = curve(name)
    assert np.sqrt(np.mean(its.left_out**2)) < its.model_error


def test_leaving_one_out_by_formula_is_leaving_it_out():
    its = curve("index_decode")
    for one in (0, 7, 15):
        others = [i for i in range(16) if i != one]
        operations, seconds = ([what[i] for i in others] for what in (its.operations, its.seconds))
        without = Curve("", "", operations, seconds, its.sizes, its.parameters)
        said = without.model([its.operations[one]])[0] * without.correction(its.operations[one])[0]
        assert np.log(its.seconds[one] / said) == pytest.approx(its.left_out[one], abs=1e-9)


def test_a_measured_size_gets_about_what_was_measured():
    for name, closest in (("mla_decode", 0.05), ("gemm", 0.06), ("gqa_decode", 0.05)):
        off = [abs(np.log(kernel_time(one).value / seconds)) for one, seconds in measurements(name)]
        assert np.quantile(off, 0.8) < closest, name


def test_the_fit_finds_the_numbers_that_made_the_times():
    truth = {"latency": 7e-6, "memory": 0.8, "compute": 0.7, "operands": 170.0, "store": 400.0}
    operations = curve("gemm").operations
    made = Curve("made", "", operations, curve("gemm").seconds, SIZES["gemm"], truth).model(operations)
    found = Curve("found", "", operations, list(made), SIZES["gemm"], {}).parameters
    for name in ("latency", "memory", "compute", "operands"):
        assert found[name] == pytest.approx(truth[name], rel=0.03), name


def test_least_squares_of_a_line_is_the_line():
    x = np.arange(5.0)
    fitted = least_squares(lambda p: p[0] + p[1] * x - (3 - 2 * x), np.array([0.0, 0.0]))
    assert fitted == pytest.approx([3, -2])


def test_rows_for_an_expert_cost_nothing_until_its_weights_are_paid_for():
    """256 experts, 2 to 16 rows each: 2.67 ms measured, the weights at 2.8 TB/s."""
    times = [kernel_time(grouped("up", 256, m, 7168, 4096, "fp8", "masked")).value for m in (2, 4, 8, 16)]
    assert max(times) / min(times) < 1.03
    assert times[0] == pytest.approx(2.67e-3, rel=0.03)
    assert 256 * 7168 * 4096 / times[0] == pytest.approx(2.8e12, rel=0.03)
    many = kernel_time(grouped("up", 256, 512, 7168, 4096, "fp8", "masked")).value
    assert many > 2.5 * times[0]


def test_half_the_experts_take_half_the_time_while_memory_bounds_it():
    times = [kernel_time(grouped("up", groups, 8, 7168, 4096, "fp8", "masked")).value for groups in (256, 128, 64)]
    assert times[0] / times[1] == pytest.approx(2, rel=0.05)
    assert times[1] / times[2] == pytest.approx(2, rel=0.08)


MEMORY = product("memory", 16, 7168, 36_864, "fp8")
COMPUTE = product("compute", 32_768, 7168, 4096, "fp8")


def test_twice_the_bandwidth_halves_what_memory_bounds_and_nothing_else():
    """Less the latency, which stays. Arithmetic still counts a little, so that only both together halve it exactly."""
    latency = curve("gemm").parameters["latency"] * curve("gemm").correction(MEMORY)[0]
    before, after, both = (
        kernel_time(MEMORY, gpu).value - latency for gpu in (H800, faster(bandwidth=2), faster(bandwidth=2, peak=2))
    )
    assert before / both == pytest.approx(2)
    assert 1.8 < before / after < 2
    assert kernel_time(COMPUTE, faster(bandwidth=2)).value == pytest.approx(kernel_time(COMPUTE).value, rel=0.01)


def test_twice_the_peak_halves_what_arithmetic_bounds_and_nothing_else():
    fast = faster(peak=2)
    assert kernel_time(COMPUTE).value / kernel_time(COMPUTE, fast).value == pytest.approx(2, rel=0.02)
    assert kernel_time(MEMORY, fast).value == pytest.approx(kernel_time(MEMORY).value, rel=0.02)


def test_20_sms_less_cost_arithmetic_132_112ths():
    taken = kernel_time(COMPUTE, sms=112).value / kernel_time(COMPUTE).value
    assert taken == pytest.approx(132 / 112, rel=0.02)
    assert kernel_time(MEMORY, sms=112).value == pytest.approx(kernel_time(MEMORY).value, rel=0.02)
    with pytest.raises(ValueError, match="H800 SXM has 132 SMs, and not 133"):
        kernel_time(COMPUTE, sms=133)


def test_bf16_takes_twice_as_long_where_arithmetic_bounds_it_and_is_less_certain():
    eight, sixteen = kernel_time(COMPUTE), kernel_time(product("", 32_768, 7168, 4096, "bf16"))
    assert sixteen.value / eight.value == pytest.approx(2, rel=0.05)
    assert sixteen.error / sixteen.value > eight.error / eight.value


def test_a_size_far_from_all_that_was_measured_is_less_certain():
    at, far = product("", 4096, 7168, 4096, "fp8"), product("", 4096, 200, 300, "fp8")
    its = curve("gemm")
    assert its.correction(far)[1] > 2 * its.correction(at)[1]
    assert its.correction(far)[0] == pytest.approx(1, abs=0.05)  # the model alone
    assert its.correction(far)[1] == pytest.approx(its._deviations * np.hypot(its.model_error, 0.04), rel=0.1)


def test_another_gpu_is_less_certain_the_more_it_differs():
    shares = [kernel_time(COMPUTE, GPUS[name]) for name in ("h800", "h100", "b200")]
    errors = [part.error / part.value for part in shares]
    assert errors == sorted(errors)
    assert len(set(errors)) == 3
    assert shares[0].value == pytest.approx(shares[1].value, rel=1e-3)  # the same chip
    assert shares[0].value / shares[2].value == pytest.approx(4500 / 1979, rel=0.12)  # waves of 148 SMs
    with pytest.raises(ValueError, match="no peak figure for 'fp8'"):
        kernel_time(COMPUTE, GPUS["a100"])


@pytest.mark.parametrize("name", PRODUCTS)
def test_two_sources_differ_and_the_error_says_so(name):
    for by in ("memory", "compute"):
        assert 0.05 < between_sources(name, by) < 0.45
    covered = [abs(kernel_time(one).value - seconds) <= kernel_time(one).error for one, seconds in deepgemm(name)]
    assert np.mean(covered) >= 0.7


def test_latent_attention_is_held_against_what_its_authors_claim():
    """660 TFLOP/s claimed, 0.569 of 989 the most that InferSim measured."""
    assert between_sources("mla_decode", "compute") == pytest.approx(np.log(660 / (0.569 * 989)), abs=0.01)
    assert between_sources("sparse_prefill", "compute") < 0.03


def test_the_way_back_of_attention_runs_at_seven_eighths_of_the_speed():
    batch = Batch(4096, 4096)
    forward, back = (
        {one.name: one for one in layer_operations(PRESETS["deepseek-v3"], 10, phase, batch)}["attention"]
        for phase in ("forward", "backward_input")
    )
    rates = [one.work.flops / kernel_time(one).value for one in (forward, back)]
    assert rates[1] / rates[0] == pytest.approx(BACKWARD.value, rel=0.05)
    assert kernel_time(back).error / kernel_time(back).value > kernel_time(forward).error / kernel_time(forward).value


def test_fewer_heads_than_an_instruction_takes_cost_as_much():
    """A tensor-core instruction has 64 rows: 16 heads with one query take the arithmetic of 64."""
    its = curve("mla_decode")
    made = []
    for heads in (16, 64, 128):
        config = replace(PRESETS["deepseek-v3"], heads=heads)
        operation = {o.name: o for o in layer_operations(config, 10, "decode", Batch(128, 65_536))}["attention"]
        made.append(its.model([operation], faster(bandwidth=100))[0] - its.parameters["latency"])
    assert made[0] == pytest.approx(made[1], rel=1e-6)
    assert made[2] == pytest.approx(2 * made[1], rel=1e-6)


def test_an_elementwise_operation_is_its_bytes_and_a_start():
    part = kernel_time(elementwise("copy", 1e9, 1e9))
    assert part.value == pytest.approx(2e-6 + 2e9 / 3e12)
    assert kernel_time(elementwise("nothing", 0, 0)).error == pytest.approx(2e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_every_operation_of_every_model_has_a_time_in_every_phase(name):
    config = PRESETS[name]
    for phase in ("forward", "backward_input", "backward_weight", "recompute", "prefill", "decode"):
        for layer in (0, config.layers - 1):
            found = kernel_times(phase, layer_operations(config, layer, phase, Batch(512, 4096)))
            assert found.unit == "s"
            assert all(0 < part.error < part.value or part.source == "elementwise, assumed" for part in found.parts)
            assert 0 < found.error < found.value


def test_times_of_a_layer_add_up_and_repeat():
    operations = layer_operations(PRESETS["deepseek-v3"], 10, "decode", Batch(64, 4096, expert_ranks=32))
    once, thrice = kernel_times("layer", operations), kernel_times("layer", operations, times=3)
    assert thrice.value == pytest.approx(3 * once.value)
    assert thrice.error == pytest.approx(3 * once.error)
    assert once.value == pytest.approx(sum(kernel_time(one).value for one in operations))


def test_a_curve_draws_its_points():
    _, axis = plt.subplots()
    curve("mla_decode").draw(axis)
    assert [len(line.get_xdata()) for line in axis.lines[:2]] == [41, 41]
    plt.close()


def test_no_torch_is_needed():
    code = "import sys, course.hardware.measured, course.hardware.links; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
