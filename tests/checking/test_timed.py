"""A timed call, rehearsed on the CPU: no GPU was there to run the other device."""

import pytest
import torch
import triton
import triton.language as tl

from course.checking.only_kernels import NotTheKernel
from course.checking.timed import Clock, timed


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


def doubled(x_N):
    out_N = torch.empty_like(x_N)
    double[(2,)](x_N, out_N, len(x_N), BLOCK=4)
    return out_N


def test_a_call_gives_its_value_its_times_and_inputs_that_stayed():
    reply = timed(doubled, {"x_N": torch.arange(5.0)}, "cpu", repeat=2)
    assert reply["value"].tolist() == [0, 2, 4, 6, 8]
    assert reply["changed"] == []
    assert 0 < reply["times"]["seconds"] <= reply["times"]["idle"]
    assert reply["times"]["settled"]


def test_a_result_that_a_later_call_overwrites_is_not_settled():
    kept = torch.zeros(5)

    def counting(x_N):
        calls.append(1)
        return kept.fill_(len(calls))

    calls = []
    assert not timed(counting, {"x_N": torch.zeros(5)}, "cpu", repeat=2)["times"]["settled"]
    assert timed(counting, {"x_N": torch.zeros(5)}, "cpu", repeat=1)["times"]["settled"]


def test_pytorch_computes_no_more_when_timed_than_when_judged():
    with pytest.raises(NotTheKernel, match="PyTorch computes"):
        timed(lambda x_N: x_N * 2, {"x_N": torch.zeros(5)}, "cpu", repeat=1)


def test_each_call_finds_a_flushed_cache():
    clock = Clock("cpu")
    clock.flushed.fill_(1)
    assert clock.seconds(lambda: int(clock.flushed.sum()))[2] == 0


class Event:
    """Of a device that has none of CUDA's."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1.0


def test_what_an_answer_allocates_without_a_device_lies_on_the_one_it_runs_on(monkeypatch):
    monkeypatch.setattr("course.checking.timed.EVENT", Event)
    monkeypatch.setattr("course.checking.timed.SYNCHRONIZE", lambda: None)
    found = []

    def allocating():
        found.append(torch.empty(3).device.type)
        return torch.zeros(1, device="cpu")

    timed(allocating, {}, "meta", repeat=1)
    assert found == ["meta"]
