"""The launches that a function would make, without running a kernel: what a compiler has to be told of them.

launches_of(lambda: matmul(a, b))       a and b may be as large as on a GPU, and lie on torch's meta device
"""

from collections.abc import Callable
from typing import Any

from course.kernels import need_triton
from course.kernels.launch import Launch


def launches_of(call: Callable[[], Any]) -> list[Launch]:
    """Every launch of a @triton.jit kernel that `call()` makes, in their order; none of them computes anything.

    Raises: RuntimeError where kernels are not interpreted, ImportError without Triton; what `call` raises.
    """
    need_triton()
    from course.kernels.interpreter import Builder, installed, interpreting

    if not interpreting():
        raise RuntimeError("launches_of() needs the interpreter: set TRITON_INTERPRET=1 before Triton is imported.")
    found: list[Launch] = []
    with installed(Builder(found.append, dry=True)):
        call()
    return found
