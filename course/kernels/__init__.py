"""Triton kernels, an interpreter that checks what they do, and their machine code for a chip that need not be there.

`checked` and `machine` are the two doors; the other files with a kernel in them are named after it. Importing this
package imports neither torch nor Triton.
"""

from importlib import import_module
from importlib.util import find_spec

_LAZY = {
    "Access": "launch",
    "KernelFault": "launch",
    "Launch": "launch",
    "Compiled": "machine",
    "compile_all": "machine",
    "compile_for": "machine",
    "compile_here": "machine",
    "compile_text": "machine",
    "compile_texts": "machine",
    "launches_of": "planned",
}


def need_triton() -> None:
    """Raises: ImportError, in one sentence, where Triton is not installed."""
    if find_spec("triton") is None:
        raise ImportError("Triton is not installed, and kernels need it: `pip install triton`, on Linux (x86-64).")


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"course.kernels.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'course.kernels' has no attribute {name!r}")
