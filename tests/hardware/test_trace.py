import gzip
import json
import os
import tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from course.cli import main
from course.hardware.trace import Trace
from course.hardware.trace_file import TraceError
from course.hardware.trace_report import draw, short_name

DISPATCH = "void deep_ep::internode::dispatch<8>(int4*)"
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32"


def kernel(name, start, duration, stream=7, cat="kernel", **more):
    arguments = {"stream": stream, "External id": more.pop("launcher", 0)}
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 0,
        "tid": stream,
        "ts": start,
        "dur": duration,
        "args": arguments,
    }


def operator(name, start, duration, thread=1, **arguments):
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 9, "tid": thread, "ts": start, "dur": duration} | {
        "args": arguments
    }


SMALL = [
    {"ph": "M", "name": "process_name", "pid": 0},
    kernel(GEMM, 1000, 40),
    kernel(DISPATCH, 1030, 30, stream=27),
    kernel(GEMM, 1050, 20),
    kernel("Memset (Device)", 1090, 10, cat="gpu_memset"),
]


@pytest.fixture
def write(tmp_path):
    def write(events, name="t.json", **head):
        path = tmp_path / name
        text = json.dumps(events if head.pop("bare", False) else head | {"traceEvents": events}).encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        return path

    return write


def test_times_are_those_of_a_small_trace_done_by_hand(write):
    trace = Trace.read(write(SMALL, deviceProperties=[{"name": "NVIDIA H800", "numSms": 132}]))
    told = trace.to_json()
    assert (trace.device, trace.sms, trace.on) == ("NVIDIA H800", 132, "GPU")
    assert told["span_ms"] == pytest.approx(0.100)
    assert told["busy_ms"] == pytest.approx(0.080)
    assert told["compute_busy_ms"] == pytest.approx(0.060)
    assert told["communication_busy_ms"] == pytest.approx(0.030)
    assert told["hidden_ms"] == pytest.approx(0.020)
    assert told["exposed_ms"] == pytest.approx(0.010)
    assert told["hidden_fraction"] == pytest.approx(2 / 3)
    assert told["kernels"] == 3
    assert told["classes"] == pytest.approx({"gemm": 0.06, "dispatch": 0.03, "transfer": 0.01})
    assert told["streams"] == pytest.approx({"7": 0.07, "27": 0.03})
    assert trace.gaps(1)[0] == (pytest.approx(0.07), pytest.approx(0.02))


@pytest.mark.parametrize("name", ["t.json", "t.json.gz", "named_anyhow"])
def test_a_file_may_be_zipped_whatever_its_name(write, name):
    assert Trace.read(write(SMALL, name)).span_ms == pytest.approx(0.1)


def test_a_file_may_be_a_bare_list(write):
    assert Trace.read(write(SMALL, bare=True)).kernels == 3


def test_kernels_that_run_at_once_count_once(write):
    trace = Trace.read(write([kernel(GEMM, 0, 10), kernel(GEMM, 5, 10, stream=8)]))
    (group,) = trace.groups()
    assert (group.count, group.total_ms, group.busy_ms) == (2, pytest.approx(0.020), pytest.approx(0.015))


def test_without_communication_there_is_no_share_of_it(write):
    assert Trace.read(write([kernel(GEMM, 0, 10)])).hidden_fraction is None


def test_flops_of_a_kernel_are_those_of_the_operator_that_launched_it(write):
    launch = operator("aten::mm", 0, 5, **{"External id": 77, "Input Dims": [[100, 200], [200, 300]]})
    trace = Trace.read(write([launch, kernel(GEMM, 10, 2, launcher=77), kernel("reduce_kernel", 12, 1, launcher=77)]))
    assert trace.groups(1)[0].tflops == pytest.approx(2 * 100 * 200 * 300 / 2e-6 / 1e12)
    assert trace.groups()[1].tflops is None


def test_of_nested_operators_the_one_that_does_the_work_counts(write):
    events = [
        operator("aten::linear", 0, 100),
        operator("aten::t", 1, 2),
        operator("aten::addmm", 5, 90, **{"Input Dims": [[3], [2, 4], [4, 3]]}),
        operator("aten::resolve_conj", 6, 1),
        operator("aten::relu", 120, 10),
        operator("gloo:all_to_all", 110, 15, thread=2),
    ]
    trace = Trace.read(write(events))
    assert trace.on == "CPU"
    assert [event.name for event in trace.events] == ["aten::t", "aten::addmm", "gloo:all_to_all", "aten::relu"]
    assert trace.hidden_ms == pytest.approx(0.005)
    assert trace.groups(1)[0].tflops == pytest.approx(2 * 2 * 4 * 3 / 90e-6 / 1e12)


BROKEN = {
    "": "no trace",
    "no json": "no trace",
    '{"traceEvents": [{"ph": "X", "cat": "kernel"': "cut short",
    '{"rows": [1]}': "no traceEvents",
    '{"traceEvents": []}': "no traceEvents",
    '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k"}]}': "not as torch.profiler writes",
    '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": -1}]}': "lasts -1",
    '{"traceEvents": [{"ph": "X", "cat": "cuda_runtime", "name": "k", "ts": 1, "dur": 1}]}': "neither kernels nor operators",
    '{"traceEvents": [1, 2]}': "not as torch.profiler writes",
}


@pytest.mark.parametrize(("text", "says"), BROKEN.items())
def test_a_broken_or_foreign_file_is_told_in_a_sentence(tmp_path, text, says):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=says) as told:
        Trace.read(path)
    assert str(path) in str(told.value)


def test_a_zipped_file_that_was_cut_short_is_told(write):
    path = write(SMALL * 50, "t.json.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TraceError, match="cut short"):
        Trace.read(path)


def test_a_file_is_read_an_event_at_a_time(write):
    noise = [{"ph": "f", "cat": "ac2g", "name": "x" * 200, "id": number} for number in range(40_000)]
    path = write(noise + SMALL)
    tracemalloc.start()
    Trace.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 9e6
    assert peak < 1e6


def test_a_drawing_has_a_row_for_each_stream(write):
    _, axis = plt.subplots()
    draw(Trace.read(write(SMALL)), axis)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["stream 7", "stream 27"]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"communication", "gemm"}
    plt.close()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (DISPATCH, "deep_ep::internode::dispatch"),
        ("void cutlass::device_kernel<flash::FlashAttnBwd<flash::X<2>>>(P)", "flash::FlashAttnBwd"),
        ("void (anonymous namespace)::fill<int>(int)", "fill"),
        ("x" * 80, "..." + "x" * 57),
    ],
)
def test_a_short_name_tells_the_function(name, short):
    assert short_name(name) == short


def test_the_command_prints_tables_json_and_a_picture(write, tmp_path, capsys):
    path, picture = str(write(SMALL)), tmp_path / "line.svg"
    with pytest.raises(SystemExit):
        main(["trace", path, "--picture", str(picture)])
    assert "66.7% of the communication is hidden" in capsys.readouterr().out
    assert "<svg" in picture.read_text()
    with pytest.raises(SystemExit):
        main(["trace", path, "--json"])
    assert json.loads(capsys.readouterr().out)["span_ms"] == pytest.approx(0.1)


def test_the_command_puts_two_beside_each_other(write, capsys):
    slower = [event | {"dur": 2 * event["dur"]} if "dur" in event else event for event in SMALL]
    one, other = write(SMALL, "one.json"), write(slower, "other.json")
    with pytest.raises(SystemExit):
        main(["trace", str(one), "--against", str(other)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dispatch", "0.030", "0.060", "2.00"] in rows
    with pytest.raises(SystemExit):
        main(["trace", str(one), "--against", str(other), "--json"])
    assert [its["file"] for its in json.loads(capsys.readouterr().out)] == ["one.json", "other.json"]


@pytest.mark.parametrize(
    "arguments", [["nowhere.json"], ["PATH", "--picture", "x.gif"], ["PATH", "--picture", "/no/x.png"]]
)
def test_the_command_tells_a_mistake_in_a_line(write, arguments, capsys):
    path = str(write(SMALL))
    with pytest.raises(SystemExit) as end:
        main(["trace", *(path if argument == "PATH" else argument for argument in arguments)])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_profile_of_your_own_knows_what_ran(tmp_path):
    import torch

    from course.hardware import profile

    a = torch.randn(64, 64)
    trace = profile(lambda: (a @ a).relu(), to=tmp_path / "own.json.gz")
    assert (tmp_path / "own.json.gz").is_file()
    products = next(group for group in trace.groups() if group.kind == "gemm")
    assert products.count == 1
    assert products.tflops > 0


H800 = Path(os.environ.get("COURSE_H800_TRACE", ""))


@pytest.mark.skipif(
    not H800.is_file(), reason="COURSE_H800_TRACE names no file: DeepSeek's trace is not part of the course"
)
def test_the_trace_of_an_h800_gives_its_figures():
    """Computed apart from this code, from the intervals of the file's 963 kernels."""
    told = Trace.read(H800).to_json()
    assert told["kernels"] == 963
    assert told["span_ms"] == pytest.approx(129.012)
    assert told["compute_busy_ms"] == pytest.approx(124.338)
    assert told["communication_busy_ms"] == pytest.approx(113.03)
    assert told["hidden_ms"] == pytest.approx(108.868)
    assert told["hidden_fraction"] == pytest.approx(0.963, abs=5e-4)
