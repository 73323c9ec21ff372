"""What a forward pass keeps for backward, counted and not timed; tensors may lie on the meta device, where they have no numbers."""

from collections.abc import Callable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object], there: list[Tensor]) -> int:
    """Bytes that a forward pass keeps for backward: each storage once, and none of those that are there anyhow."""
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    for tensor in there:
        seen.pop(_storage(tensor), None)
    del result  # until here, so that no storage is given out twice
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # a storage on the meta device has no address
