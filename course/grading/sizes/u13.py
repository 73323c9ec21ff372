"""Unit 13. All inputs are needed: no code is known to be 0, nor any number to be below the largest, before it was read."""

import torch

from course.checking.exercise import Inputs
from course.grading.sizes import Rng, Standard, normal

SPAN = 128  # DeepSeek-V3 report, section 3.3.2


def _codes(rng: Rng, *shape: int) -> torch.Tensor:
    """E4M3 codes of either sign, no NaN among them."""
    return torch.tensor(rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)).to(torch.uint8)


def _powers(rng: Rng, *shape: int) -> torch.Tensor:
    return torch.tensor(2.0 ** rng.integers(-12, 1, shape), dtype=torch.float32)


def _quantise(rng: Rng, scale: int) -> Inputs:
    x_NK = normal(rng, 200 * scale, 1000) * torch.tensor(2.0 ** rng.integers(-6, 7, (200 * scale, 1))).float()
    return {"x_NK": x_NK, "span": SPAN, "square": True, "power_of_two": False}


def _input_gradient(rng: Rng, scale: int) -> Inputs:
    T, N, K = 100 * scale, 300, 260
    return {
        "dy_TN": _codes(rng, T, N),
        "w_NK": _codes(rng, N, K),
        "dy_scales_TA": _powers(rng, T, -(-N // SPAN)),
        "w_scales_AB": torch.tensor(2.0 ** rng.uniform(-6, 6, (-(-N // SPAN), -(-K // SPAN)))).float(),
        "span": SPAN,
    }


def _requantise(rng: Rng, scale: int) -> Inputs:
    T, K = 200 * scale, 300
    return {"codes_TK": _codes(rng, T, K), "scales_TB": _powers(rng, T, -(-K // SPAN)), "span": SPAN}


SIZES = {
    "13.1": Standard(_quantise, gpu=64),
    "13.2": Standard(_input_gradient),
    "13.4": Standard(_requantise),
}
