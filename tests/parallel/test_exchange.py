"""The exchange between four real processes, over gloo."""

import pytest
import torch
from ranked_layers import DTYPES, RANKS, marked, sent_by

from course.kernels.fp8_quantize import fp8_quantize_torch
from course.model.fp8_blocks import dequantise_blocks


@pytest.fixture(scope="module")
def told(ran):
    return [each["trade"] for each in ran]


def test_the_counts_are_what_the_others_send(told):
    for rank, each in enumerate(told):
        assert each["received"] == [sent_by(q)[rank] for q in range(RANKS)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_arrive_by_sender_in_their_order_and_come_back_to_where_they_were(told, dtype):
    for rank, each in enumerate(told):
        wanted = torch.cat([marked(q, rank, dtype) for q in range(RANKS)])
        sent = torch.cat([marked(rank, q, dtype) for q in range(RANKS)])
        got, back, flat = each[dtype]
        for a, b in ((got, wanted), (back, sent), (flat, wanted[:, 0])):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("wire", ["same", "bf16", "fp8"])
def test_a_wire_rounds_and_the_gradient_comes_back_over_its_own(told, wire):
    for each in told:
        rows, there_and_back, gradient = each[wire]
        if wire == "fp8":
            wanted = dequantise_blocks(*fp8_quantize_torch(rows, (1, 128), True), (1, 128))
        else:
            wanted = rows.bfloat16().float() if wire == "bf16" else rows
        assert torch.equal(there_and_back, wanted)
        assert torch.equal(gradient, wanted)  # the gradient of what came was what came
        assert torch.equal(wanted, rows) == (wire == "same")


def test_a_second_leg_in_fp8_rounds_nothing_more(told):
    for each in told:
        assert torch.equal(each["fp8 again"], each["fp8"][1])


def test_counts_that_do_not_fit_and_unknown_wires_get_a_sentence(told):
    rows = sum(sent_by(0))
    assert told[0]["faults"] == [
        "4 ranks take as many counts, and not 3 and 4",
        f"{rows} rows are not the {rows + 4} that the counts say",
        "there is no wire 'fp4'; there are: same, bf16, fp8",
    ]
