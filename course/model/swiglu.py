"""SwiGLU: a feed-forward layer in which one projection gates another (Shazeer 2020, "GLU Variants").

Shapes: T tokens, D width, I hidden width, F = 2I: gate and up projection in one matrix, gate first.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def swiglu(gate_up_TF: Float[Tensor, "*batch F"], kernels: str = "torch") -> Float[Tensor, "*batch I"]:
    """silu(first half) * second half. `kernels`: "torch" or "triton". Raises: RuntimeError or ValueError when F is odd."""
    if kernels == "triton":
        from course.kernels.autograd import swiglu_with_grad

        return swiglu_with_grad(gate_up_TF)
    gate_TI, up_TI = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TI) * up_TI


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, hidden: int, kernels: str = "torch"):
        super().__init__()
        self.kernels = kernels
        self.gate_up_FD = nn.Parameter(0.02 * torch.randn(2 * hidden, width))
        self.down_DI = nn.Parameter(0.02 * torch.randn(width, hidden))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return F.linear(swiglu(F.linear(x, self.gate_up_FD), self.kernels), self.down_DI)
