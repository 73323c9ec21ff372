"""One model on several ranks: a copy on each (DDP), or on each a share of every parameter (FSDP2)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from course.model import Loss, Transformer
from course.training import ranks
from course.training.errors import TrainingError
from course.training.optimizers import Optimizer

SHARDINGS = ("none", "full")


class _Loss(nn.Module):
    """A model whose forward pass is its loss, for DDP watches nothing but the forward pass."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, inputs_BS: Tensor, targets_BS: Tensor) -> Loss:
        return self.model.loss(inputs_BS, targets_BS)


def spread(model: Transformer, sharding: str) -> Callable[[Tensor, Tensor], Loss]:
    """Prepare a model that is the same on every rank, and return its loss for training: backward through it leaves the
    mean of the ranks' gradients. One rank keeps the model as it is.

    sharding: with "full" the parameters become shares of themselves; the optimizer is made after that.
    Raises: TrainingError when a parameter does not divide.
    """
    assert sharding in SHARDINGS, f"sharding {sharding!r} is none of {', '.join(SHARDINGS)}"
    if ranks.count() == 1:
        return model.loss
    if sharding == "none":
        return nn.parallel.DistributedDataParallel(_Loss(model))
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    for name, parameter in model.named_parameters():
        if parameter.shape[-1] % ranks.count():
            raise TrainingError(
                f"full sharding divides the last dimension of every parameter, and {parameter.shape[-1]}, that of "
                f"{name}, does not divide among {ranks.count()} ranks: start fewer, or shard nothing"
            )
    # the last dimension, because the cuts of Muon along the others then stay views
    for module in (*model.blocks, model):
        fully_shard(module, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    register_fsdp_forward_method(model, "loss")
    return model.loss


def whole(state: Any) -> Any:
    """The same state with shares put together, on the CPU: a checkpoint does not show how many ranks wrote it."""
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole` gave; where parameters are shares, each rank keeps its share of it."""
    optimizer.load_state_dict(state)
    if ranks.count() == 1:
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                # Muon's momentum is whole on every rank, as are the gradients that it gathers
                placements = None if name == "momentum_buffer" else parameter.placements
                kept[name] = distribute_tensor(value, parameter.device_mesh, placements, src_data_rank=None)
