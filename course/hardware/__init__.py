"""GPUs as data, what they allow, and their machine code read: from a kernel's bytes and FLOPs to a bound on its time.

Importing this package imports neither torch nor Triton.
"""

from importlib import import_module

_LAZY = {
    "GPU": "gpus",
    "GPUS": "gpus",
    "Figure": "gpus",
    "your_card": "gpus",
    "Bound": "roofline",
    "Work": "roofline",
    "bound": "roofline",
    "draw_roofline": "roofline",
    "Occupancy": "occupancy",
    "MachineCode": "machine_code",
    "read_code": "machine_code",
    "Report": "report",
    "Estimate": "estimate",
    "Part": "estimate",
    "Trace": "trace",
    "profile": "recorder",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"course.hardware.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'course.hardware' has no attribute {name!r}")
