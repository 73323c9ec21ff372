"""`course compile`: a kernel of the course as machine code, on a machine that needs no GPU."""

import json
import os
from typing import Any

from rich.console import Console

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


class Refused(Exception):
    """What was asked for cannot be compiled or shown: one sentence."""


def compile_command(
    kernel: str,
    arch: str = "sm_90",
    dtype: str = "bf16",
    settings: dict[str, str] | None = None,
    compare: list[str] | None = None,
    gpu: str | None = None,
    hot: bool = False,
    as_json: bool = False,
) -> None:
    """Print a report of a kernel for one chip, for all of them (`arch` "all"), or of several variants side by side.

    settings: of the kernel, as text, such as {"block": "128x256x64", "num_warps": "8"}.
    compare: variants to put beside it, each the name of a kernel or settings such as "block=64x64x32,num_warps=4".
    Raises: Refused.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # launches are planned here, and compiled in a process of its own
    from course.hardware.gpus import GPUS
    from course.hardware.report import side_by_side
    from course.kernels.catalogue import NAMES

    if arch != "all" and arch not in ARCHS:
        raise Refused(f"there is no chip {arch!r} here; there are {', '.join(ARCHS)}, or all")
    if gpu is not None and gpu not in GPUS:
        raise Refused(f"there is no GPU {gpu!r} here; there are {', '.join(GPUS)}")
    wanted = {_title(kernel, settings or {}): (kernel, settings or {})}
    for variant in compare or []:
        other, its = (variant, {}) if variant in NAMES else (kernel, _settings(variant))
        wanted[_title(other, its)] = (other, its)
    reports = {}
    for title, (name, its) in wanted.items():
        for chip in ARCHS if arch == "all" else (arch,):
            reports[title if arch != "all" else f"{title}, {chip}"] = _report(name, its, chip, dtype, gpu)
    failed = [its.compiled.error for its in reports.values() if its.compiled.error]
    if len(failed) == len(reports):
        raise Refused(failed[0])
    if as_json:
        found = [{"name": title} | its.to_json() for title, its in reports.items()]
        print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
        return
    console = Console(highlight=False)
    console.print(side_by_side(reports))
    if hot:
        for title, its in reports.items():
            console.print(f"\n{title}: the hot loop, {len(its.code.hot_loop())} instructions\n")
            console.print(its.annotated())


def _report(name: str, settings: dict[str, str], arch: str, dtype: str, gpu: str | None):
    from course.hardware.report import report
    from course.hardware.roofline import Work
    from course.kernels.catalogue import UnknownKernel, example

    try:
        one = example(name, dtype, **{key: _value(key, text) for key, text in settings.items()})
    except (UnknownKernel, ImportError) as error:
        raise Refused(str(error)) from None
    return report(one.path, one.launch, Work(one.flops, one.bytes, one.dtype), arch, gpu)


def _settings(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and sign and value for key, sign, value in pairs):
        raise Refused(f"{text!r} is neither a kernel nor settings such as block=64x64x32,num_warps=4")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _value(key: str, text: str) -> Any:
    """A setting as the kernel's function takes it: 8, (128, 256, 64) or a name."""
    parts = text.split("x")
    if all(part.isdigit() for part in parts):
        return tuple(map(int, parts)) if len(parts) > 1 or key == "block" else int(text)
    return text


def _title(name: str, settings: dict[str, str]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
