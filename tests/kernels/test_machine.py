"""A kernel's machine code for sm_90, on a machine that has no such chip."""

import json
import subprocess
import sys

import pytest

from course.kernels import machine
from course.kernels.launch import Launch
from course.kernels.machine import Compiled, compile_all, compile_for, compile_here, compile_text

SOURCE = """
import torch
import triton
import triton.language as tl

raise_at_import = torch.zeros
print("this must not be run")
UNUSED = 1 / 0
i = block = print("nor this")
FACTOR = tl.constexpr(2.0)


@triton.jit
def doubled(v):
    return v * FACTOR


@triton.jit
def scale(x, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, doubled(tl.load(x + i, mask=i < n)).to(KIND), mask=i < n)


@triton.jit
def product(a, b, c, K, TILE: tl.constexpr):
    m, k = tl.arange(0, TILE), tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, TILE):
        left = tl.load(a + m[:, None] * K + start + k[None, :])
        total = tl.dot(left, tl.load(b + (start + k[:, None]) * TILE + m[None, :]), total)
    tl.store(c + m[:, None] * TILE + m[None, :], total)
"""


def scale(block: int = 1024, kind: str = "fp16") -> Launch:
    signature = {"x": "*fp16", "out": "*fp16", "n": "i32", "KIND": "constexpr", "BLOCK": "constexpr"}
    return Launch("scale", (1,), signature, {"KIND": {"dtype": kind}, "BLOCK": block}, ("x", "out"))


def product(tile: int, stages: int = 3) -> Launch:
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "K": "i32", "TILE": "constexpr"}
    return Launch(
        "product", (1,), signature, {"TILE": tile}, ("a", "b", "c", "K"), {"num_stages": stages, "num_warps": 8}
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(SOURCE)
    return path


def no_process(*_, **__):
    raise AssertionError("a process was started")


def test_a_small_kernel_compiles_and_is_kept(path, cache, monkeypatch):
    compiled = compile_for(path, scale())
    assert compiled.error is None
    assert compiled.arch == "sm_90"
    assert 0 < compiled.registers <= 64
    assert (compiled.spills, compiled.shared_bytes) == (0, 0)
    monkeypatch.setattr(machine.subprocess, "run", no_process)
    assert compile_for(path, scale().to_json()) == compiled
    with pytest.raises(AssertionError, match="a process was started"):
        compile_for(path, scale(block=512))
    (kept,) = (cache / "machine").iterdir()
    kept.write_text("{")
    with pytest.raises(AssertionError, match="a process was started"):
        compile_for(path, scale())


def test_more_shared_memory_than_a_block_has_is_refused(path):
    compiled = compile_for(path, product(128, stages=5))
    assert compiled.shared_bytes > 232_448
    assert compiled.error == (
        f"product needs {compiled.shared_bytes} bytes of shared memory, and a block of sm_90 has at most 232448; "
        "take smaller tiles or fewer stages"
    )


def test_a_product_with_a_short_inner_side_is_refused_with_its_line(path):
    error = compile_for(path, product(8)).error
    assert error.startswith("product: `total = tl.dot(left, tl.load(b +")
    assert error.endswith("Input shapes should have M >= 1, N >= 1 and K >= 16")
    assert "\n" not in error


def test_a_cast_of_an_argument_that_is_1_is_refused_with_what_to_do():
    text = """
import triton
import triton.language as tl


@triton.jit
def wide(x, out, n):
    i = tl.program_id(0) * n.to(tl.int64)
    tl.store(out + i, tl.load(x + i))
"""
    signature = {"x": "*fp16", "out": "*fp16", "n": "i32"}
    assert compile_text(text, Launch("wide", (1,), signature, {}, ("x", "out")).to_json())["error"] is None
    launch = Launch("wide", (1,), signature | {"n": "constexpr"}, {"n": 1}, ("x", "out"))
    error = compile_text(text, launch)["error"]
    assert "`i = tl.program_id(0) * n.to(tl.int64)`: " in error
    assert error.endswith("(an argument that is 1 becomes a plain int: cast a tensor instead)")


def test_a_text_and_a_file_give_the_same(path):
    assert Compiled(**compile_text(SOURCE, scale())) == compile_for(path, scale())


def test_several_launches_share_one_process_and_only_what_is_new_is_compiled(path, monkeypatch):
    asked = []
    run = subprocess.run

    def counted(command, **options):
        asked.append(len(json.loads(options["input"])["launches"]))
        return run(command, **options)

    monkeypatch.setattr(machine.subprocess, "run", counted)
    first = compile_all(path, [scale(256), {"kernel": "scale"}, scale(3)])
    assert [c.error for c in first][:2] == [None, "this is not the description of a launch"]
    assert "power of 2" in first[2].error
    assert compile_all(path, [scale(3), scale(512), scale(256)])[::2] == [first[2], first[0]]
    assert asked == [2, 1]


IN_PROCESS = """
import json, sys
from course.kernels.machine import compile_here
answers = [compile_here(sys.argv[1], launch) for launch in json.load(sys.stdin)]
print(json.dumps([answers, "torch" in sys.modules]))
"""


def test_a_process_that_does_not_interpret_compiles_by_itself_and_without_torch(path):
    other = tuple(
        Launch(name, (1,), {"x": kind}, {}, ()) for name, kind in (("absent", "*fp32"), ("doubled", "tensordesc<fp32"))
    )
    launches = [scale(), scale(block=3), *other]
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESS, path],
        input=json.dumps([launch.to_json() for launch in launches]),
        capture_output=True,
        text=True,
        env={"TRITON_INTERPRET": "0"},
    )
    (right, odd, absent, wrong), torch_there = json.loads(done.stdout.splitlines()[-1])
    assert right["error"] is None
    assert (
        odd["error"]
        == "scale: `i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)`: arange's range must be a power of 2"
    )
    assert absent["error"] == "absent: no @triton.jit function of this name stands at the top level of the file"
    assert wrong["error"]
    assert not torch_there
    assert "this must not be run" not in done.stdout
    assert "nor this" not in done.stdout


def test_a_process_that_interprets_does_not_compile(path):
    assert "no @triton.jit function" not in compile_here(path, scale())["error"]
    assert "TRITON_INTERPRET=0" in compile_here(path, scale())["error"]


def test_an_architecture_that_is_not_known_is_named(path):
    assert (
        compile_here(path, scale(), arch="sm_12")["error"] == "scale: sm_12 is not one of sm_80, sm_90, sm_100, gfx942"
    )


def test_a_compiler_that_does_not_finish_or_dies_gives_a_sentence(path, monkeypatch):
    path.write_text(
        "import triton\nimport triton.language as tl\n\n@triton.jit\ndef k(x):\n    tl.store(x, 1.0)\nk = __import__('os')._exit(3)\n"
    )
    launch = Launch("k", (1,), {"x": "*fp32"}, {})
    assert compile_for(path, launch).error == "k: the compiler's process ended (code 3): it said nothing"
    monkeypatch.setattr(machine, "SECONDS", 0.01)
    assert compile_for(path, launch).error == "k: the compiler did not finish within 0.01 seconds"
