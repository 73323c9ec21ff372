"""Keeping the host ahead of the device: operations that cannot return before a number of the device's is known.

On a GPU each of them waits until all launches before it are done; on a CPU nothing tells, so they are refused by what they are.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {  # ATen's operations
    "_local_scalar_dense": "a number in a tensor is used as a plain number",
    "_unique2": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "masked_select": "masked_select",
    "nonzero": "nonzero, or torch.where without values",
    "unique_consecutive": "unique_consecutive",
    "unique_dim": "unique",
}
BY_MASK = "an index by a mask: how many it picks only the device knows"


class HostWait(Exception):
    """The answer needs a number of the device's before it can go on."""


class NoHostWait(TorchDispatchMode):
    """Refuse, inside the block, what makes the host wait, with HostWait. What a launch does by itself is left alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled by torch here; to skip its compiler costs a second to import it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        why = WAITS.get(name) or (BY_MASK if _picks_by_mask(name, args) else None)
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            why = "repeat_interleave by a tensor"
        if why:
            raise HostWait(
                f"the host waits for the device here ({why}), which is out of bounds in this exercise: sizes follow from shapes "
                "and plain numbers"
            )
        return func(*args, **(kwargs or {}))


def _picks_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether masks are turned into places. Where a single number is written by a mask, they are not."""
    if name not in ("index", "index_put", "index_put_") or (name != "index" and args[2].numel() == 1):
        return False
    return any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in args[1])
