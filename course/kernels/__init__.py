"""Triton kernels, an interpreter that checks what they do, and their machine code for a chip that need not be there.

The names below are imported when they are first used, so that `import course.kernels` costs nothing.
"""

from importlib import import_module

_LAZY = {
    "Access": "launch",
    "KernelFault": "launch",
    "Launch": "launch",
    "checked": "checked",
    "Compiled": "machine",
    "compile_for": "machine",
    "compile_here": "machine",
    "compile_text": "machine",
    "rmsnorm": "rmsnorm",
    "rmsnorm_torch": "rmsnorm",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'course.kernels' has no attribute {name!r}")
    try:
        return getattr(import_module(f"course.kernels.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise ImportError(
            "Triton is not installed, and units 09 to 14 need it: it comes with `pip install triton` on Linux (x86-64)."
        ) from None
