"""Hostile kernels run in a child of their own: what is not caught may take the process with it."""

import os
import warnings
from collections.abc import Callable

import pytest

import course  # noqa: F401  (decides that kernels are interpreted, before anything imports Triton)


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], str]:
    """Runs a function in a forked child under checked(): the fault's sentence, or `passed`, or how the child died."""
    return _in_child


def _in_child(function: Callable[[], object]) -> str:
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, _outcome(function).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said if code == 0 else f"the child ended with code {code}"


def _outcome(function: Callable[[], object]) -> str:
    import torch

    from course.kernels.checked import KernelFault, checked

    torch.set_num_threads(1)
    try:
        with checked():
            function()
    except KernelFault as fault:
        return str(fault)
    except Exception as error:
        return f"not a fault but {error!r}"
    return "passed"
