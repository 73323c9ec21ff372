"""How large the whole numbers of a kernel can come to be: interval arithmetic over its Triton IR.

An offset that is a product of 32 bits wraps around at 2^31 without a word, and only with tensors that no test can hold. So
take a launch that was only planned, with such tensors on the meta device, and follow every 32-bit sum and product.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from course.kernels import interpreter
from course.kernels.launch import Launch
from course.kernels.planned import launches_of

LINE = re.compile(r"^\s*(%[\w#:]+) = \"?([\w.]+)\"?\(?(.*)$")
SAME = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.extsi", "arith.extui")
LIMIT = 2**31


COMPILE = """
import json, sys
from course.kernels.compiler import compile_here
print(json.dumps([compile_here(path, launch, code=True) for path, launch in json.load(sys.stdin)]))
"""


def overflows(jobs: dict[str, tuple[Path, Callable[[], object]]], largest: int) -> dict[str, list[str]]:
    """Of each job, a file and a call of what stands in it, the lines of IR in which a number of 32 bits can leave its range.

    A call's launches of other files' kernels do not count. largest: of all whole numbers that kernels load (rows, pairs, offsets).
    """
    asked = [
        (name, path, launch, values)
        for name, (path, call) in jobs.items()
        for launch, values in _planned(call)
        if f"def {launch.kernel}(" in path.read_text()
    ]
    text = json.dumps([(str(path), launch.to_json()) for _, path, launch, _ in asked])
    command = [sys.executable, "-c", COMPILE]  # in one process, which starts slowly
    done = subprocess.run(
        command, input=text, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=True
    )
    found = {name: [] for name in jobs}
    for (name, _, launch, values), made in zip(asked, json.loads(done.stdout), strict=True):
        assert made["error"] is None, made["error"]
        found[name] += _follow(made["code"]["ttir"], values, launch.grid, largest)
    assert {name for name, *_ in asked} == set(jobs)
    return found


def _planned(call: Callable[[], object]) -> list[tuple[Launch, dict[str, int]]]:
    """The launches of a call, each with its whole numbers, which a launch by itself does not tell."""
    values, plain = [], interpreter._launch

    def noted(function, sizes, given, *rest):
        values.append({f"%{name}": its for name, its in given.items() if isinstance(its, int)})
        return plain(function, sizes, given, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_launch", noted)
        return list(zip(launches_of(call), values, strict=True))


def _follow(ttir: str, arguments: dict[str, int], grid: tuple[int, ...], largest: int) -> list[str]:
    ranges = {name: (value, value) for name, value in arguments.items()}
    wrong = []
    for line in ttir.splitlines():
        line = line.split(" loc(")[0]
        if loop := re.search(r"scf\.for (%\w+) = (%\w+) to (%\w+) step", line):
            low, high = ranges[loop[2]], ranges[loop[3]]
            ranges[loop[1]] = (low[0], max(low[1], high[1]))
        found = LINE.match(line)
        if not found:
            continue
        name, operation, rest = found.groups()
        its = _range(operation, rest, ranges, grid, largest)
        if its is None:
            continue
        ranges[name] = its
        narrow = re.search(r"(?:: |-> |to )(?:tensor<(?:\d+x)+)?i32>?$", rest.strip())
        if narrow and not -LIMIT <= its[0] <= its[1] < LIMIT:
            wrong.append(line.strip())
    assert len(ranges) > 2 * len(arguments), "this is no Triton IR that can be read here"
    return wrong


def _range(operation: str, rest: str, ranges: dict, grid: tuple[int, ...], largest: int) -> tuple[int, int] | None:
    names = re.findall(r"%[\w#:]+", rest)
    a, b = ([ranges.get(name) for name in names[:2]] + [None, None])[:2]
    if operation == "arith.constant":
        value = re.match(r"(?:dense<)?(-?\d+)>? : .*i(?:32|64)>?$", rest.strip())
        return (int(value[1]),) * 2 if value else None
    if operation == "tt.get_program_id":
        return 0, grid["xyz".index(rest.split()[0])] - 1
    if operation == "tt.make_range":
        return int(re.search(r"start = (\d+)", rest)[1]), int(re.search(r"end = (\d+)", rest)[1]) - 1
    if operation == "tt.load":
        return (-1, largest) if re.search(r"ptr<i64>", rest) else None
    if operation == "arith.cmpi":
        return 0, 1
    if a is None:
        return None
    if operation in SAME or operation == "arith.trunci":
        return a
    if operation == "tt.reduce":
        return 0, 2**12 * max(a[1], 1)  # of at most so many
    if b is None or not operation.startswith("arith."):
        return None
    if operation in ("arith.divsi", "arith.remsi"):
        return _divided(a, b) if operation == "arith.divsi" else (min(a[0], 0), min(a[1], max(b[1], 1)))
    ends = {
        "arith.addi": (a[0] + b[0], a[1] + b[1]),
        "arith.subi": (a[0] - b[1], a[1] - b[0]),
        "arith.muli": (min(x * y for x in a for y in b), max(x * y for x in a for y in b)),
        "arith.minsi": (min(a[0], b[0]), min(a[1], b[1])),
        "arith.maxsi": (max(a[0], b[0]), max(a[1], b[1])),
        "arith.andi": (0, max(a[1], b[1])),
    }
    return ends.get(operation)


def _divided(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """What a over b can be, cut off towards 0, b being no zero."""
    if b[0] <= 0:
        most = max(map(abs, a))
        return -most, most
    low = a[0] // b[1] if a[0] >= 0 else -(-a[0] // b[0])
    return low, a[1] // b[0] if a[1] >= 0 else -(-a[1] // b[1])


def beyond(*shape: int) -> bool:
    """Whether a tensor of this shape has elements that 32 bits do not count."""
    return prod(shape) > LIMIT
