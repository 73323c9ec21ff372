"""Rotary position embedding: turn pairs of features by an angle that grows with the position (Su et al. 2021, 3.4).

The dot product of a turned query and a turned key depends on their distance alone. Which features make a pair is a
convention of the checkpoint, and nothing in its config names it:

half         feature i turns with feature i + C/2: Llama, Mixtral and Qwen checkpoints
interleaved  feature 2i turns with feature 2i + 1: DeepSeek's, and the RoFormer paper

A *scaling* slows the turning down, so that a model reads further than it was trained to.

Shapes: B batch, S sequence, H heads, C features a head, P = C/2 pairs.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LAYOUTS = ("half", "interleaved")


@dataclass(frozen=True)
class LinearScaling:
    """Every pair turns `factor` times more slowly (Chen et al. 2023, "Extending Context Window", section 2.3)."""

    factor: float
    attention_factor = 1.0

    def slowed(self, speeds_P: Float[Tensor, " P"], theta: float) -> Float[Tensor, " P"]:
        return speeds_P / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs turn `factor` times more slowly, fast ones as before, those between are blended (Llama 3.1's code).

    A pair is slow when it turns fewer than `low` times over the original context, and fast when more than `high` times.
    """

    factor: float
    low: float
    high: float
    original_context: int  # tokens
    attention_factor = 1.0

    def slowed(self, speeds_P: Float[Tensor, " P"], theta: float) -> Float[Tensor, " P"]:
        turns_P = self.original_context / (2 * math.pi / speeds_P)
        keep_P = ((turns_P - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - keep_P) * speeds_P / self.factor + keep_P * speeds_P


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, sections 3.2 and 3.4): as Llama 3's, but the blend is linear in the pair's number, and
    cosine and sine are multiplied by `attention_factor`, which sharpens the softmax of a longer context.

    The blend goes from the pair that turns `beta_fast` times over the original context to the one that turns
    `beta_slow` times. DeepSeek's checkpoints divide two factors, of `mscale` and of `mscale_all_dim`; equal ones cancel.
    """

    factor: float
    original_context: int  # tokens
    beta_fast: float = 32.0  # turns
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention: float | None = None  # what cosine and sine are multiplied with; None: from the factor and the mscales
    truncate: bool = True  # whether the blend begins and ends at whole pairs

    @property
    def attention_factor(self) -> float:
        if self.attention is not None:
            return self.attention
        if not (self.mscale and self.mscale_all_dim):
            return yarn_mscale(self.factor)
        return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)

    def slowed(self, speeds_P: Float[Tensor, " P"], theta: float) -> Float[Tensor, " P"]:
        first, last = (self._pair_that_turns(times, len(speeds_P), theta) for times in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(speeds_P) - 1)
        pairs_P = torch.arange(len(speeds_P), device=speeds_P.device)
        slow_P = ((pairs_P - first) / (last - first or 0.001)).clamp(0, 1)
        return speeds_P / self.factor * slow_P + speeds_P * (1 - slow_P)

    def _pair_that_turns(self, times: float, pairs: int, theta: float) -> float:
        """Which pair, as a fraction, turns so many times over the original context."""
        return pairs * math.log(self.original_context / (times * 2 * math.pi)) / math.log(theta)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1; 1 where nothing is stretched (YaRN, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def rope_speeds(
    head_width: int, theta: float = 10_000.0, scaling: RopeScaling | None = None, device: torch.device | None = None
) -> Float[Tensor, " P"]:
    """How far each pair turns from one position to the next: theta^(-2i/C), in radians, float32."""
    speeds_P = 1.0 / theta ** (torch.arange(0, head_width, 2, device=device) / head_width)
    return scaling.slowed(speeds_P, theta) if scaling else speeds_P


def rope_table(
    positions_S: Int64[Tensor, " S"], head_width: int, theta: float = 10_000.0, scaling: RopeScaling | None = None
) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
    """Cosine and sine of every position's angle for every pair, times the scaling's attention factor; float32."""
    angles_SP = positions_S[:, None].float() * rope_speeds(head_width, theta, scaling, positions_S.device)
    size = scaling.attention_factor if scaling else 1.0
    return angles_SP.cos() * size, angles_SP.sin() * size


def apply_rope(
    x_BHSC: Float[Tensor, "B H S C"],
    cos_SP: Float[Tensor, "S P"],
    sin_SP: Float[Tensor, "S P"],
    layout: str = "half",
    kernels: str = "torch",
) -> Float[Tensor, "B H S C"]:
    """Turn each pair by its position's angle; a pair stays where it was.

    `layout`: "half" or "interleaved". `kernels`: "torch" or "triton".
    """
    if kernels == "triton":
        from course.kernels.autograd import rope_with_grad

        return rope_with_grad(x_BHSC, cos_SP, sin_SP, layout)
    if layout == "half":
        first, second = x_BHSC.chunk(2, dim=-1)
        return torch.cat([first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP], dim=-1)
    first, second = x_BHSC.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP], dim=-1).flatten(-2)
