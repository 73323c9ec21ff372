"""Several processes that train one model: which of them this is, its part of a batch, and sums over all.

`torchrun --nproc-per-node 2 -m course train` starts ranks 0 and 1, each in a process of its own; they meet in
`joined`. Started plainly there is one rank and no process group, and everything here hands back what it was given.
What is a sum, a mean or an agreement is asked of all ranks at the same place, or those who asked wait for ever.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from course.training.errors import TrainingError

Made = TypeVar("Made")


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks, where torchrun started several, and part from them at the end.

    They talk through NCCL where there are GPUs, one a rank, and through gloo where there are none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", device_id=device())
    else:
        dist.init_process_group("gloo")
    try:
        yield
    except TrainingError:
        if not first():
            time.sleep(5)  # the first rank mostly has the same to say: then torchrun ends the others, who need not
        raise
    finally:
        dist.destroy_process_group()


def device() -> torch.device:
    """This rank's GPU (NVIDIA or AMD) where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def count() -> int:
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    return dist.get_rank() if _several() else 0


def first() -> bool:
    """Whether this is the rank that speaks and writes."""
    return rank() == 0


def require_even(batch: int) -> None:
    """Raises: TrainingError when the ranks cannot take equally many of the batch's sequences."""
    if batch % count():
        fitting = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise TrainingError(
            f"a batch of {batch} sequences does not divide among {count()} ranks: start as many as divide it ({fitting})"
        )


def part(batch: Tensor) -> Tensor:
    """This rank's sequences: neighbours in the batch, as many as the other ranks', or one fewer at the end."""
    return batch.tensor_split(count())[rank()]


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks."""
    if not _several():
        return tensor
    summed = tensor.detach().to(device(), copy=True)
    dist.all_reduce(summed)
    return summed


def mean(tensor: Tensor) -> Tensor:
    """The mean over the ranks."""
    return total(tensor) / count() if _several() else tensor


def any_says(flag: bool) -> bool:
    """Whether it is true on any rank. All ranks then know, after the same step."""
    return total(torch.tensor(int(flag))).item() > 0


def in_turn(make: Callable[[], Made]) -> Made:
    """Make something on the first rank, then on the others, who find what it left in the cache."""
    if _several() and not first():
        dist.barrier()
    made = make()
    if _several() and first():
        dist.barrier()
    return made


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
