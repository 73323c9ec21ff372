"""What the compiler made of a kernel, what it lets fit on an SM, and the least time its work can take: one report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from course.hardware.gpus import GPU, GPUS
from course.hardware.machine_code import MachineCode, read_code
from course.hardware.occupancy import Occupancy, occupancy
from course.hardware.roofline import Bound, Work, bound
from course.kernels.compiler import SHARED, Compiled
from course.kernels.launch import Launch, plural

OF_ARCH = {"sm_80": "a100", "sm_90": "h800", "sm_100": "b200"}  # the GPU whose roofs are taken where none is named


@dataclass(frozen=True)
class Report:
    """A kernel compiled for one chip. Where `compiled.error` stands, the rest is empty."""

    compiled: Compiled
    code: MachineCode
    gpu: GPU | None
    occupancy: Occupancy | None
    work: Work | None
    bound: Bound | None

    def to_json(self) -> dict[str, Any]:
        c, code = self.compiled, self.code
        kinds: dict[str, int] = {}
        for name, count in code.tensor_core.items():
            kinds[_kind(name)] = kinds.get(_kind(name), 0) + count
        return {
            "kernel": c.kernel,
            "arch": c.arch,
            "error": c.error,
            "registers": c.registers,
            "spill_bytes": c.spills,
            "shared_bytes": c.shared_bytes,
            "shared_limit": SHARED[c.arch],
            "warps": c.warps,
            "instructions": len(code.instructions),
            "tensor_core": kinds,
            "tensor_core_shapes": code.tensor_core,
            "asynchronous_copies": code.asynchronous_copies,
            "remarks": self.remarks,
            "occupancy": self.occupancy.share if self.occupancy else None,
            "blocks_an_sm": self.occupancy.blocks if self.occupancy else None,
            "limited_by": list(self.occupancy.limited_by) if self.occupancy else None,
            "gpu": self.gpu.name if self.gpu else None,
            "flops": self.work.flops if self.work else None,
            "bytes": self.work.bytes if self.work else None,
            "bound_seconds": self.bound.time if self.bound else None,
            "bound_by": self.bound.by if self.bound else None,
        }

    @property
    def remarks(self) -> list[str]:
        """What ptxas warns of, a sentence each."""
        lines = (self.compiled.code or {}).get("ptxas", "").splitlines()
        said = (line.split(":", 1)[-1].strip() for line in lines if "warning" in line or "Potential" in line)
        return list(dict.fromkeys(said))

    def rows(self) -> dict[str, str]:
        """Name and value of what a reader wants to see first."""
        c, its = self.compiled, self.occupancy
        if c.error:
            return {"refused": c.error}
        found = {
            "registers a thread": f"{c.registers}",
            "spilled, bytes a thread": f"{c.spills:,}",
            "shared memory a block": f"{c.shared_bytes:,} of {SHARED[c.arch]:,} bytes",
            "warps a block": f"{c.warps}",
            "tensor-core instructions": _counts(self.code.tensor_core),
            "asynchronous copies": _counts(self.code.asynchronous_copies),
        }
        if its:
            found["on an SM at once"] = (
                f"{plural(its.blocks, 'block')}, {its.warps} warps: {its.share:.0%} of what it can hold"
            )
            found["limited by"] = ", ".join(its.limited_by)
        if self.work:
            found["FLOPs, bytes"] = f"{self.work.flops:.3g}, {self.work.bytes:.3g}"
        if self.bound:
            found["time, at least"] = str(self.bound).split(": at least ")[1]
            found["roofs of"] = f"{self.gpu.name} ({self.bound.roof})"
        for number, remark in enumerate(self.remarks):
            found["ptxas remarks" if not number else " " * (number + 1)] = remark
        return found

    def __rich__(self):
        return side_by_side({f"{self.compiled.kernel} for {self.compiled.arch}": self})

    def annotated(self, width: int = 60) -> Group:
        """The hot loop, line by line, with what each instruction does. To be printed by rich."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, max_width=width)
        table.add_column(style="dim")
        for one in self.code.hot_loop():
            style = "bold" if one.name in self.code.tensor_core else ""
            table.add_row(Text(str(one), style=style), Text(one.means))
        return Group(table)


def report(
    path: str | Path,
    launch: Launch,
    work: Work | None = None,
    arch: str = "sm_90",
    gpu: str | None = None,
    roof: str = "peak",
) -> Report:
    """Compile the kernel of a launch, which the file at `path` defines, and read what came out.

    work: its FLOPs and bytes, for the bound. gpu: a name in GPUS whose roofs are taken; by default one of that arch.
    """
    from course.kernels.machine import compile_for

    compiled = compile_for(path, launch, arch, code=True)
    chip = GPUS.get(gpu or OF_ARCH.get(arch, ""))
    texts = compiled.code or {}
    code = read_code(texts.get("sass") or texts.get("amdgcn") or "")
    fits = None
    if chip and chip.arch == arch and not compiled.error:
        fits = occupancy(chip, compiled.warps, compiled.registers, compiled.shared_bytes)
    least = bound(work, chip, roof) if work and chip and work.dtype in chip.peak else None
    return Report(compiled, code, chip, fits, work, least)


def side_by_side(reports: dict[str, Report]) -> Table:
    """A table with a column for each report."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    every = {title: its.rows() for title, its in reports.items()}
    for title in every:
        table.add_column(title, overflow="fold")
    for name in dict.fromkeys(name for rows in every.values() for name in rows):
        table.add_row(name, *(rows.get(name, "") for rows in every.values()))
    return table


def _kind(name: str) -> str:
    return name.split(".")[0]


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
