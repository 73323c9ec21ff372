"""What a standard size is, a file for each unit that has some, and the draws that units share.

A draw has masks to get wrong (odd widths, dropped ids, gaps between rows), as many in every draw, and is small enough for the
checked interpreter. Of what must be loaded a file says why no right answer can do without it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from course.checking.exercise import Inputs

BF16, FP32 = torch.bfloat16, torch.float32
Rng = np.random.Generator


def everything(inputs: Inputs) -> int:
    """Bytes of all tensors among the inputs, each read once."""
    return sum(value.nbytes for value in inputs.values() if isinstance(value, torch.Tensor))


@dataclass(frozen=True)
class Standard:
    draw: Callable[[Rng, int], Inputs]  # with a scale of 1 where kernels are interpreted
    loads: Callable[[Inputs], int] = everything  # bytes that must be loaded
    gpu: int = 128  # scale on a GPU; 0: none is set


def rows(tensor: torch.Tensor, named: torch.Tensor) -> int:
    """Bytes of the rows that are named, each read once, however often it is named."""
    return len(named.unique()) * tensor[0].nbytes


def normal(rng: Rng, *shape: int, dtype: torch.dtype = FP32, spread: float = 1.0, middle: float = 0.0) -> torch.Tensor:
    return torch.tensor(rng.standard_normal(shape, dtype=np.float32) * spread + middle).to(dtype)


def dropped(rng: Rng, ids: np.ndarray, share: float) -> torch.Tensor:
    """Ids, that share of them dropped: always as many, so that bytes do not depend on chance."""
    ids[rng.permutation(len(ids))[: int(share * len(ids))]] = -1
    return torch.tensor(ids)
