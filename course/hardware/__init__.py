"""GPUs as data, what they allow, and their machine code read: from a kernel's bytes and FLOPs to a bound on its time.

layers and layer_parts list what a layer does, measured and curves time it by published measurements on an H800, routing
and links time the exchange of tokens between GPUs.

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
    "Batch": "layers",
    "Operation": "layer_parts",
    "layer_operations": "layers",
    "model_operations": "layers",
    "kernel_time": "measured",
    "kernel_times": "measured",
    "curve": "measured",
    "Routing": "routing",
    "NODES": "links",
    "normal_time": "links",
    "low_latency_time": "links",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"course.hardware.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'course.hardware' has no attribute {name!r}")
