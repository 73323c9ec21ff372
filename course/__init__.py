"""MoE to Metal: from a blank cell to a mixture-of-experts transformer, its kernels and the machine under it.

Importing the package decides how Triton runs, and does nothing else: kernels are interpreted on the CPU unless this
machine has an NVIDIA GPU. The choice must stand before anything imports triton (constructing a torch optimizer does),
so every notebook imports `course` first.
"""

import os
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_LAZY = {
    "check": "course.exercises.notebook",
    "mine": "course.exercises.notebook",
    "recorded": "course.records",
    "recorded_folder": "course.records",
}


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers on this machine, found out without importing torch."""
    return Path("/proc/driver/nvidia/version").exists()


os.environ.setdefault("TRITON_INTERPRET", "0" if has_gpu() else "1")


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'course' has no attribute {name!r}")
