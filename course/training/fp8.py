"""Training with the products of linear layers in FP8, emulated (DeepSeek-V3 report, section 3.3).

    with FP8Products(model):
        model.loss(tokens_BS, targets_BS).total.backward()

Each of a layer's three products reads rounded numbers and is summed in float32:

  Y = X W^T     X in blocks of 1 x 128, W in blocks of 128 x 128
  dX = dY W     dY in blocks of 1 x 128, the same codes of W: a square block is one of the transpose as well
  dW = dY^T X   both sum over tokens: dY and X in blocks of 128 x 1. X is made of the 1 x 128 codes, which are what V3 keeps
                for the backward pass; scales of activations and their gradients are powers of two, so that this second
                rounding changes next to nothing

Head and embedding, norms and attention keep their precision; weights, their gradients and the optimizer are float32. Left out:
the 14 bits of tensor cores, which promotion every 128 makes harmless (`course.kernels.fp8_accumulator`), the E5M6 of what
attention puts out, experts, BF16 moments. What is fast on a chip is slow here: each number is rounded and turned back.

Shapes: T tokens, K inputs, N outputs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from course.kernels.fp8_quantize import fp8_quantize_torch
from course.model.fp8_blocks import dequantise_blocks

ROW, SQUARE, COLUMN = (1, 128), (128, 128), (128, 1)
RECIPES = ("fp8", "square", "tensor", "unscaled", "bf16")


def rounded(x_NK: Float[Tensor, "N K"], block: tuple[int, int], power_of_two: bool = False) -> Float[Tensor, "N K"]:
    """x as its E4M3 codes give it back, with a scale a block."""
    return dequantise_blocks(*fp8_quantize_torch(x_NK, block, power_of_two), block)


def operand(x_NK: Float[Tensor, "N K"], block: tuple[int, int], recipe: str) -> Float[Tensor, "N K"]:
    """What a product reads in place of x.

    recipe: "fp8", as above; "square", the same with 128 x 128 blocks for activations and gradients too (report, appendix B.2);
    "tensor", one scale for all of x; "unscaled", E4M3 as it is, which ends at 448; "bf16", bfloat16.
    Raises: ValueError for another recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    if recipe == "bf16":
        return x_NK.bfloat16().float()
    if recipe == "unscaled":
        return x_NK.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    if recipe == "tensor":
        return rounded(x_NK, tuple(x_NK.shape))
    if recipe == "square":
        return rounded(x_NK, SQUARE)
    return rounded(x_NK, block, power_of_two=block != SQUARE)


class FP8Linear(torch.autograd.Function):
    """Y = X W^T and its two gradients: `FP8Linear.apply(x_TK, w_NK, recipe)`."""

    @staticmethod
    def forward(ctx, x_TK: Tensor, w_NK: Tensor, recipe: str) -> Tensor:
        x_TK, w_NK = operand(x_TK, ROW, recipe), operand(w_NK, SQUARE, recipe)
        ctx.save_for_backward(x_TK, w_NK)
        ctx.recipe = recipe
        return x_TK @ w_NK.T

    @staticmethod
    def backward(ctx, dy_TN: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TK, w_NK = ctx.saved_tensors
        dx_TK = operand(dy_TN, ROW, ctx.recipe) @ w_NK
        dw_NK = operand(dy_TN, COLUMN, ctx.recipe).T @ operand(x_TK, COLUMN, ctx.recipe)
        return dx_TK, dw_NK, None


class FP8Products(TorchFunctionMode):
    """Inside the block every `F.linear`, but the model's head, is an `FP8Linear` of this recipe."""

    def __init__(self, model: nn.Module, recipe: str = "fp8"):
        super().__init__()
        self.head, self.recipe = model.head.weight, recipe

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.linear or args[1] is self.head:
            return func(*args, **(kwargs or {}))
        x, w_NK, *bias = args
        y = FP8Linear.apply(x.flatten(0, -2), w_NK, self.recipe).unflatten(0, x.shape[:-1])
        return y if not bias or bias[0] is None else y + bias[0]
