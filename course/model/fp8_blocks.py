"""Weights stored as FP8 with one scale a block of 128 x 128 (DeepSeek-V3 report, section 3.3), turned back into numbers."""

from jaxtyping import Float
from torch import Tensor


def dequantise_blocks(
    codes: Tensor, scales: Float[Tensor, "*batch rows columns"], block: tuple[int, int]
) -> Float[Tensor, "*batch N M"]:
    """Each number times its block's scale, in float32.

    codes: FP8 [*batch, N, M]. scales: one a block, the last row and column of blocks maybe cut short; what checkpoints call
    weight_scale_inv is what to multiply with.
    """
    N, M = codes.shape[-2:]
    wide = scales.float().repeat_interleave(block[0], dim=-2)[..., :N, :]
    return codes.float() * wide.repeat_interleave(block[1], dim=-1)[..., :M]


def scales_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales of a weight of this shape."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
