"""Occupancy: four resources, the scarcest one counts; equal to what a profiler wrote down for DeepSeek's kernels."""

import json
import os
from pathlib import Path

import pytest

from course.hardware.gpus import GPUS
from course.hardware.occupancy import occupancy

H800 = GPUS["h800"]
TRACE = Path(os.environ.get("COURSE_H800_TRACE", "/nowhere"))


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "blocks", "by"),
    [
        (4, 32, 0, 16, ("warps", "registers")),
        (1, 32, 0, 32, ("blocks",)),
        (8, 255, 0, 1, ("registers",)),
        (4, 128, 0, 4, ("registers",)),
        (4, 129, 0, 3, ("registers",)),  # a warp's registers are given in portions of 256
        (4, 32, 100_000, 2, ("shared memory",)),
        (8, 213, 147_456, 1, ("registers", "shared memory")),
        (4, 64, 232_448, 1, ("shared memory",)),
        (16, 33, 0, 3, ("registers",)),
    ],
)
def test_the_scarcest_resource_counts(warps, registers, shared, blocks, by):
    found = occupancy(H800, warps, registers, shared)
    assert (found.blocks, found.limited_by) == (blocks, by)
    assert found.warps == blocks * warps
    assert found.share == blocks * warps / 64


def test_shared_memory_of_a_block_costs_a_kilobyte_more_than_it_asks_for():
    assert occupancy(H800, 1, 16, 233_472 // 4 - 1024).blocks == 4
    assert occupancy(H800, 1, 16, 233_472 // 4 - 1023).blocks == 3


def test_a_block_that_does_not_fit_gets_a_sentence():
    for asked, said in (
        ((0, 1, 1), "1 to 32 warps, not 0"),
        ((4, 256, 0), "at most 255 registers on H800 SXM, not 256"),
        ((4, 32, 232_449), "at most 232,448 bytes of shared memory on H800 SXM, not 232,449"),
        ((32, 255, 0), "can hold no block of 32 warps with 255 registers"),
    ):
        with pytest.raises(ValueError, match=said):
            occupancy(H800, *asked)


@pytest.mark.skipif(not TRACE.exists(), reason="COURSE_H800_TRACE does not name DeepSeek's trace")
def test_blocks_of_the_recorded_kernels_fit_as_the_profiler_computed():
    """The profiler counts the warps of the grid over all SMs, up to what fits. It reports 0 for kernels that ask for more
    than 48 KB of shared memory, which ran all the same: those are left out."""
    compared = 0
    for event in json.loads(TRACE.read_text())["traceEvents"]:
        told = event.get("args", {})
        if "est. achieved occupancy %" not in told or told["shared memory"] > 49_152:
            continue
        warps = -(-told["block"][0] * told["block"][1] * told["block"][2] // 32)
        grid = told["grid"][0] * told["grid"][1] * told["grid"][2]
        fits = occupancy(H800, warps, told["registers per thread"], told["shared memory"])
        wanted = min(grid * warps / 132, fits.warps) / 64 * 100
        assert told["est. achieved occupancy %"] == pytest.approx(wanted, abs=1), told
        compared += 1
    assert compared > 100
