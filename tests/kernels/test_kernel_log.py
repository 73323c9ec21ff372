"""What checked() records, refuses and leaves behind."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import course.kernels
from course.kernels import need_triton
from course.kernels.checked import KernelFault, checked
from course.kernels.launch import Launch


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def matmul(a, b, c, M, N, K, TILE: tl.constexpr):
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    n = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, TILE):
        k = start + tl.arange(0, TILE)
        total = tl.dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n), total, input_precision="ieee")
    tl.store(c + m * N + n, total)


@triton.jit
def count(counts):
    tl.atomic_add(counts, 1)


@triton.jit
def many_kinds(x, y, i, big, one, scale, flag, nothing, SIZE: tl.constexpr, KIND: tl.constexpr):
    if flag:
        tl.store(y, (tl.load(x) * scale).to(KIND) + i + one)


@triton.jit
def small_dot(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + i, tl.dot(tl.load(x + i), tl.load(x + i)))


@triton.jit
def not_written(x):
    raise NotImplementedError


@triton.jit
def mismatched(x):
    tl.store(x, tl.sum(tl.arange(0, 4) + tl.arange(0, 8)))


@triton.jit
def misnamed(x):
    tl.store(x, tl.no_such_function(x))


def test_a_copy_loads_and_stores_each_element_once():
    x, out = torch.randn(1000), torch.empty(1000)
    with checked() as log:
        copy[(4,)](x, out, 1000, BLOCK=256)
    assert torch.equal(out, x)
    (launch,) = log.launches
    assert (launch.loads, launch.stores, launch.load_bytes, launch.store_bytes) == (1000, 1000, 4000, 4000)


def test_the_log_says_which_program_touched_which_element():
    with checked() as log:
        copy[(2,)](torch.zeros(6), torch.zeros(6), 6, BLOCK=4)
    seen = [(a.program, a.argument, a.kind, a.elements.tolist()) for a in log.launches[0].accesses]
    assert seen == [
        ((0,), "x", "load", [0, 1, 2, 3]),
        ((0,), "out", "store", [0, 1, 2, 3]),
        ((1,), "x", "load", [4, 5]),
        ((1,), "out", "store", [4, 5]),
    ]


def test_an_atomic_counts_as_a_load_and_a_store():
    with checked() as log:
        count[(3,)](torch.zeros(1, dtype=torch.int64))
    launch = log.launches[0]
    assert (launch.loads, launch.stores, launch.load_bytes, launch.store_bytes) == (3, 3, 24, 24)
    assert {access.kind for access in launch.accesses} == {"atomic"}


def test_a_tiled_product_loads_each_input_once_a_tile_row():
    a, b, c = torch.randn(256, 256), torch.randn(256, 256), torch.empty(256, 256)
    with checked() as log:
        matmul[(4, 4)](a, b, c, 256, 256, 256, TILE=64)
    torch.testing.assert_close(c, a @ b, rtol=1e-4, atol=1e-4)
    assert (log.launches[0].loads, log.launches[0].stores) == (2 * 4 * 256 * 256, 256 * 256)


def test_a_launch_is_described_as_a_compiler_wants_it_and_survives_json():
    x, y = torch.zeros(4, dtype=torch.bfloat16), torch.zeros(8)[1:]
    with checked() as log:
        many_kinds[(1, 2)](x, y, 48, 2**40, 1, 0.5, False, None, SIZE=float("inf"), KIND=tl.float16, num_warps=8)
    (launch,) = log.launches
    assert launch.grid == (1, 2)
    assert launch.signature == {
        "x": "*bf16",
        "y": "*fp32",
        "i": "i32",
        "big": "i64",
        "one": "constexpr",
        "scale": "fp32",
        "flag": "u1",
        "nothing": "constexpr",
        "SIZE": "constexpr",
        "KIND": "constexpr",
    }
    assert launch.constexprs == {"one": 1, "nothing": None, "SIZE": {"float": "inf"}, "KIND": {"dtype": "fp16"}}
    assert launch.divisible == ("x", "i", "big")
    assert launch.options == {"num_warps": 8}
    assert Launch.from_json(json.loads(json.dumps(launch.to_json()))) == launch


def test_what_is_not_a_launch_is_not_taken_for_one():
    right = Launch("k", (1,), {"x": "*fp32"}, {}).to_json()
    wrong = [None, [], {}, right | {"extra": 1}, {k: v for k, v in right.items() if k != "grid"}]
    for key in right:
        wrong += [right | {key: value} for value in (None, 3.5, [None], {"y": 0}, "not a name")]
    for value in wrong:
        with pytest.raises(ValueError, match="this is not the description of a launch"):
            Launch.from_json(value)
    assert Launch.from_json(right).to_json() == right


BAD_LAUNCHES = {
    "a fraction": (lambda x: copy[(2.5,)](x, x, 4, BLOCK=4), "copy: a grid is a tuple of one to three whole numbers"),
    "no tuple": (lambda x: copy[4](x, x, 4, BLOCK=4), "copy: a grid is a tuple of one to three whole numbers"),
    "four sizes": (lambda x: copy[(1, 1, 1, 1)](x, x, 4, BLOCK=4), "copy: a grid has one to three sizes"),
    "negative": (lambda x: copy[(-1,)](x, x, 4, BLOCK=4), "copy: a grid has one to three sizes"),
    "too high": (lambda x: copy[(1, 65536)](x, x, 4, BLOCK=4), "copy: a grid has one to three sizes"),
    "missing": (lambda x: copy[(1,)](x, x, BLOCK=4), "copy: missing a required argument: 'n'"),
    "misspelt": (lambda x: copy[(1,)](x, x, 4, BLOK=4), "copy: it has no parameter BLOK"),
    "a list": (lambda x: copy[(1,)](x, [1], 4, BLOCK=4), "copy: out is a list, which no kernel takes"),
    "arange": (lambda x: copy[(1,)](x, x, 4, BLOCK=3), "copy, program 0: arange's range must be a power of 2"),
    "shapes": (lambda x: mismatched[(1,)](x), "mismatched, program 0: Cannot make_shape_compatible"),
    "names": (lambda x: misnamed[(1,)](x), "misnamed, program 0: AttributeError"),
}


@pytest.mark.parametrize("case", BAD_LAUNCHES.values(), ids=BAD_LAUNCHES.keys())
def test_what_cannot_be_launched_gets_a_sentence(case):
    launch, sentence = case
    with checked(), pytest.raises(KernelFault) as caught:
        launch(torch.zeros(4))
    assert str(caught.value).startswith(sentence)


def test_a_product_with_a_short_inner_side_is_refused_as_on_sm_90():
    for dtype, short, enough in ((torch.float32, 4, 16), (torch.float16, 8, 16), (torch.float8_e5m2, 16, 32)):
        with checked(), pytest.raises(KernelFault, match=r"small_dot, program 0: Input shapes should have .* K >="):
            small_dot[(1,)](torch.ones(short, short).to(dtype), torch.zeros(short, short), SIZE=short)
        with checked():
            small_dot[(1,)](torch.ones(enough, enough).to(dtype), torch.zeros(enough, enough), SIZE=enough)


def test_a_kernel_that_is_not_written_yet_says_so_as_a_function_does():
    with checked(), pytest.raises(NotImplementedError):
        not_written[(1,)](torch.zeros(1))


def test_a_grid_without_programs_does_nothing():
    with checked() as log:
        copy[(0,)](torch.zeros(4), torch.zeros(4), 4, BLOCK=4)
    assert log.launches[0].loads == 0


def test_a_grid_may_be_computed_from_the_arguments():
    x, out = torch.arange(10.0), torch.empty(10)
    with checked() as log:
        copy[lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)](x, out, 10, BLOCK=4)
    assert log.launches[0].grid == (3,)
    assert torch.equal(out, x)


def state() -> list:
    names = ("run", "__call__")
    held = [vars(interpreter)[n] for n in ("interpreter_builder", "ReduceOps", "ScanOps")]
    held += [vars(interpreter.InterpretedFunction)[n] for n in names]
    held += [interpreter.interpreter_semantic.builder, torch._C._len_torch_function_stack()]
    return held + [value for module in (tl, tl.core, tl.math) for value in vars(module).values() if callable(value)]


def test_triton_is_as_it_was_after_the_block_whatever_happened_in_it():
    before = state()
    with checked():
        small_dot[(1,)](torch.ones(16, 16), torch.zeros(16, 16), SIZE=16)
    with pytest.raises(KernelFault), checked():
        mismatched[(1,)](torch.zeros(1))
    with pytest.raises(ZeroDivisionError), checked():
        1 / 0  # noqa: B018
    assert all(a is b or a == b for a, b in zip(before, state(), strict=True))
    x = torch.zeros(4)
    copy[(1,)](torch.ones(4), x, 4, BLOCK=4)
    assert x.tolist() == [1] * 4


def test_blocks_nest_and_the_innermost_watches():
    x = torch.zeros(4)
    with checked() as outer:
        copy[(1,)](x, x.clone(), 4, BLOCK=4)
        with checked() as inner:
            copy[(1,)](x, x.clone(), 4, BLOCK=4)
        copy[(1,)](x, x.clone(), 4, BLOCK=4)
    assert (len(outer.launches), len(inner.launches)) == (2, 1)


def test_a_forked_child_of_a_watching_process_watches_too(in_child):
    with checked():
        said = in_child(lambda: copy[(2,)](torch.zeros(6), torch.zeros(6), 8, BLOCK=4))
    assert "loads x[6], but x has 6 elements" in said


def test_without_the_interpreter_checked_says_what_to_do():
    code = "from course.kernels.checked import checked\nwith checked(): pass"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
    )
    assert "RuntimeError: checked() needs the interpreter: set TRITON_INTERPRET=1" in done.stderr


def test_importing_the_package_imports_neither_torch_nor_triton():
    code = (
        "import course.kernels, sys; from course.kernels import Launch; print({'torch', 'triton'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_machine_without_triton_is_told_so_when_a_kernel_is_wanted(monkeypatch):
    monkeypatch.setattr(course.kernels, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="Triton is not installed"):
        need_triton()
    with pytest.raises(ImportError, match="Triton is not installed"), checked():
        pass


def test_elements_are_whole_numbers_in_row_major_order():
    with checked() as log:
        copy[(1,)](torch.zeros(2, 3), torch.zeros(6), 6, BLOCK=8)
    assert np.array_equal(log.launches[0].accesses[0].elements, np.arange(6))
