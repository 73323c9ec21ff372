"""Rotary position embedding: turn pairs of features by an angle that grows with the position (Su et al. 2021, 3.4).

The dot product of a turned query and a turned key depends on their distance alone.

Pairs are half-split, as in the Llama, Mixtral and Qwen checkpoints: feature i turns with feature i + C/2.

Shapes: B batch, S sequence, H heads, C features a head, P = C/2 pairs.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def rope_table(
    positions_S: Int64[Tensor, " S"], head_width: int, theta: float = 10_000.0
) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
    """Cosine and sine of every position's angle for every pair: position * theta^(-2i/C), in radians, float32."""
    exponents_P = torch.arange(0, head_width, 2, device=positions_S.device) / head_width
    angles_SP = positions_S[:, None] * theta**-exponents_P
    return angles_SP.cos(), angles_SP.sin()


def apply_rope(
    x_BHSC: Float[Tensor, "B H S C"], cos_SP: Float[Tensor, "S P"], sin_SP: Float[Tensor, "S P"]
) -> Float[Tensor, "B H S C"]:
    """Turn each pair (first half, second half) by its position's angle. Lengths do not change."""
    first, second = x_BHSC.chunk(2, dim=-1)
    return torch.cat([first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP], dim=-1)
