"""A model's shapes without its numbers: what counting and loading begin with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_}
SCALES = {torch.Tensor.mul, torch.Tensor.__rmul__}


@contextmanager
def without_numbers() -> Iterator[None]:
    """Inside, modules are built on the meta device, and nothing is drawn.

    PyTorch can draw on the meta device as well, and loads 150 MB of code for it.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in DRAWS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if function in SCALES:
            return next(value for value in args if isinstance(value, torch.Tensor))
        return (torch.empty if function is torch.randn else function)(*args, **kwargs)
