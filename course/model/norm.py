"""RMSNorm: divide each token's vector by its root mean square (Zhang and Sennrich 2019, equation 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def rms_norm(
    x: Float[Tensor, "*batch D"], weight_D: Float[Tensor, " D"], eps: float, kernels: str = "torch"
) -> Float[Tensor, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. `eps` keeps a zero vector at zero.

    The mean is taken in float32 or better, whatever the input's dtype. `kernels`: "torch" or "triton".
    """
    if kernels == "triton":
        from course.kernels.autograd import rmsnorm_with_grad

        return rmsnorm_with_grad(x, weight_D, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight_D


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float, kernels: str = "torch"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.kernels = eps, kernels

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return rms_norm(x, self.weight, self.eps, self.kernels)
