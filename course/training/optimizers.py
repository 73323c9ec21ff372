"""AdamW for every parameter, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from course.model import Transformer
from course.training.settings import TrainSettings


def adamw(model: Transformer, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only."""
    return _adamw(model.parameters(), settings)


class MuonAndAdamW:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks; AdamW for embedding, head, routers and vectors.
    They step as one optimizer, at one learning rate.

    Muon evens out the singular values of a step, and that is a thing to do to one linear map. Parameters that hold
    several are cut into them: stacked experts one by one, and gate from up, which share a matrix only so that one
    product computes both. The cuts are views, and Muon moves the parameters through them.

    `match_rms_adamw` scales a step to the length that AdamW's usually have (Liu et al. 2025, "Muon is scalable for LLM
    training"), so that learning rate and weight decay of the one serve the other.
    """

    def __init__(self, model: Transformer, settings: TrainSettings):
        self.hidden = {name: parameter for name, parameter in model.named_parameters() if _hidden(name, parameter)}
        self.matrices = [matrix for name, each in self.hidden.items() for matrix in _cut(name, each.detach())]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.muon = torch.optim.Muon(self.matrices, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = _adamw([each for name, each in model.named_parameters() if name not in self.hidden], settings)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adamw.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        return {**self.muon.state, **self.adamw.state}

    def step(self) -> None:
        gradients = [part for name, each in self.hidden.items() for part in _cut(name, _on_every_rank(each.grad))]
        for matrix, gradient in zip(self.matrices, gradients, strict=True):
            matrix.grad = gradient
        self.muon.step()
        self.muon.zero_grad()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


Optimizer = torch.optim.Optimizer | MuonAndAdamW


def _adamw(parameters: Iterable[Tensor], settings: TrainSettings) -> torch.optim.AdamW:
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if settings.expert_rate != 1.0:  # of stacked matrices, which only experts are
        groups[0]["params"] = [parameter for parameter in matrices if parameter.ndim == 2]
        experts = [parameter for parameter in matrices if parameter.ndim == 3]
        groups.append({"params": experts, "weight_decay": settings.weight_decay, "scale": settings.expert_rate})
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def _hidden(name: str, parameter: Tensor) -> bool:
    return name.startswith("blocks.") and parameter.ndim > 1 and not name.endswith("gate_ED")


def _cut(name: str, tensor: Tensor) -> list[Tensor]:
    """The linear maps that a parameter of this name holds, as views; or their gradients."""
    maps = tensor.unbind() if tensor.ndim == 3 else [tensor]
    return [part for each in maps for part in (each.chunk(2) if "gate_up" in name else [each])]


def _on_every_rank(gradient: Tensor) -> Tensor:
    """Where each rank holds a share of a gradient (FSDP2), the whole of it: Muon needs a matrix in one piece."""
    if not hasattr(gradient, "redistribute"):
        return gradient
    from torch.distributed.tensor import Replicate

    return gradient.redistribute(placements=[Replicate()])
