"""The learning rate over a run: a straight warm-up, then half a cosine down to a fraction of the peak."""

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.1) -> float:
    """The rate for step 1 to `steps`: peak * step / warmup while warming up, the peak at its end, peak * final at
    the last step (SGDR, Loshchilov and Hutter 2017, equation 5, one cycle)."""
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
