"""GPUs as data: every figure has a source, and the limits are those that a real H800 told of itself."""

import dataclasses

import pytest

from course.hardware.gpus import GPUS, LIMITS, Figure, your_card

KINDS = {"published", "second-hand", "computed", "unverified", "read"}


def figures(gpu):
    for field in dataclasses.fields(gpu):
        value = getattr(gpu, field.name)
        for figure in value.values() if isinstance(value, dict) else [value]:
            if isinstance(figure, Figure):
                yield field.name, figure


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_figure_has_a_source_and_a_kind_and_is_positive(gpu):
    found = list(figures(gpu))
    assert len(found) >= 6
    for name, figure in found:
        assert figure.source.strip(), name
        assert figure.kind in KINDS, name
        assert float(figure) > 0, name


def test_the_h800_is_what_its_trace_says():
    h800 = GPUS["h800"]
    assert (h800.limits.registers, h800.limits.shared, h800.limits.shared_a_block) == (65_536, 233_472, 232_448)
    assert (h800.sms.value, h800.memory.value) == (132, 84_943_110_144)


def test_a_peak_is_its_tensor_cores_times_its_clock():
    """4,096 FLOPs a clock and SM at 1,830 MHz (FlashMLA's deep dive): the data sheet's 989 TFLOP/s."""
    assert GPUS["h800"].peak["bf16"].value == pytest.approx(4096 * 132 * 1.83e9, rel=2e-3)


def test_achieved_roofs_stand_below_peaks_and_apart_from_them():
    h800 = GPUS["h800"]
    for dtype, figure in h800.achieved.items():
        assert figure.value < h800.peak[dtype].value
    assert h800.memory_roof("achieved").value < h800.memory_roof().value


def test_what_has_no_figure_gets_a_sentence():
    with pytest.raises(ValueError, match="A100 SXM 80 GB has no peak figure for 'fp8'; there are: bf16, fp16"):
        GPUS["a100"].roof("fp8")
    with pytest.raises(ValueError, match="H200 SXM has no achieved figure for its bandwidth"):
        GPUS["h200"].memory_roof("achieved")
    with pytest.raises(ValueError, match="two kinds of roofs, peak and achieved, and not 'real'"):
        GPUS["h200"].roof("bf16", "real")


def test_each_level_of_memory_is_larger_than_the_one_before():
    for gpu in GPUS.values():
        sizes = [size for _, size in gpu.memory_levels()]
        assert sizes[-1] == max(sizes)
        assert gpu.arch in LIMITS


def test_there_is_no_card_here_or_it_tells_of_itself():
    import torch

    card = your_card()
    assert (card is None) == (not torch.cuda.is_available())
    if card:
        assert card.sms.kind == "read"
