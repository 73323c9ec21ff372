"""The kernels with their gradients: what is saved between forward and backward, and which functions are called.

Each saves inputs and nothing else; what backward needs beside them it computes again. They are differentiable once: no
gradient is a function of the inputs to autograd, which raises where it notices that one is asked for.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from course.kernels.cross_entropy import IGNORED, cross_entropy, cross_entropy_backward
from course.kernels.rmsnorm import rmsnorm
from course.kernels.rmsnorm_backward import rmsnorm_backward
from course.kernels.rope import rope
from course.kernels.swiglu import swiglu
from course.kernels.swiglu_backward import swiglu_backward


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, weight_D, eps):
        ctx.save_for_backward(x_ND, weight_D)
        ctx.eps = eps
        return rmsnorm(x_ND, weight_D, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_ND):
        return *rmsnorm_backward(dy_ND, *ctx.saved_tensors, ctx.eps), None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up_NF):
        ctx.save_for_backward(gate_up_NF)
        return swiglu(gate_up_NF)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_NI):
        return swiglu_backward(dy_NI, *ctx.saved_tensors)


class Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BHSD, cos_SP, sin_SP, layout):
        ctx.save_for_backward(cos_SP, sin_SP)
        ctx.layout = layout
        return rope(x_BHSD, cos_SP, sin_SP, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BHSD):
        cos_SP, sin_SP = ctx.saved_tensors
        return rope(dy_BHSD, cos_SP, -sin_SP, ctx.layout), None, None, None


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_NV, targets_N):
        ctx.save_for_backward(logits_NV, targets_N)
        return cross_entropy(logits_NV, targets_N)

    @staticmethod
    @once_differentiable
    def backward(ctx, dmean, dlosses_N):
        logits_NV, targets_N = ctx.saved_tensors
        scale_N = dmean / (targets_N != IGNORED).sum() + dlosses_N
        return cross_entropy_backward(logits_NV, targets_N, scale_N), None


def rmsnorm_with_grad(x_ND: Tensor, weight_D: Tensor, eps: float = 1e-6) -> Tensor:
    """`rmsnorm`, with gradients of x and weight. Raises: what rmsnorm and rmsnorm_backward do."""
    return RMSNorm.apply(x_ND, weight_D, eps)


def swiglu_with_grad(gate_up_NF: Tensor) -> Tensor:
    """`swiglu`, with its gradient. Raises: what swiglu does."""
    return SwiGLU.apply(gate_up_NF)


def rope_with_grad(x_BHSD: Tensor, cos_SP: Tensor, sin_SP: Tensor, layout: str = "half") -> Tensor:
    """`rope`, with the gradient of x; cosine and sine, which nobody learns, get none. Raises: what rope does."""
    return Rope.apply(x_BHSD, cos_SP, sin_SP, layout)


def cross_entropy_with_grad(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """`cross_entropy`, with the gradient of the mean loss and of each row's. Raises: what cross_entropy does."""
    return CrossEntropy.apply(logits_NV, targets_N)
