"""What a recorded run says about itself: command, machine, versions, date. Written as JSON in one piece."""

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch

import course


def circumstances() -> dict:
    """Enough to run the same thing again and to judge the numbers."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()},
        "versions": {"course": course.__version__, "python": platform.python_version(), "torch": torch.__version__},
    }


def write(path: Path, record: dict) -> None:
    """Write the record so that an interruption leaves the old file or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    if not fields:
        return platform.processor() or platform.machine()
    widest = [name for name in ("amx_tile", "avx512f", "avx2") if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())}, {widest[0] if widest else 'no avx2'}"
