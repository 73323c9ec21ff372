"""The roofline (Williams, Waterman and Patterson 2009): a kernel's bytes and FLOPs to the least time it can take.

A kernel can go no faster than its memory traffic nor than its arithmetic, whichever takes longer if both go at once:

    time = max(FLOPs / FLOP/s, bytes / (bytes/s))

Where the two are equal lies the ridge, in FLOPs a byte. It is a bound and no forecast: latency, launches and tails of a
last wave of programs come on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from course.hardware.gpus import GPU


@dataclass(frozen=True)
class Work:
    """What a kernel does: FLOPs in one number format (a multiply and an add are two), and bytes to and from memory."""

    flops: float
    bytes: float
    dtype: str = "bf16"

    @property
    def intensity(self) -> float:
        """FLOPs a byte; infinite where nothing moves."""
        return self.flops / self.bytes if self.bytes else float("inf")

    def __add__(self, other: "Work") -> "Work":
        if self.dtype != other.dtype:
            raise ValueError(f"work in {self.dtype} and in {other.dtype} has two roofs, and does not add")
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.dtype)


@dataclass(frozen=True)
class Bound:
    """The least time of some work on some GPU, in seconds, and which roof it comes from."""

    work: Work
    gpu: GPU
    roof: str
    compute: float  # s
    memory: float  # s
    ridge: float  # FLOPs a byte

    @property
    def time(self) -> float:
        """Seconds."""
        return max(self.compute, self.memory)

    @property
    def by(self) -> str:
        return "compute" if self.compute > self.memory else "memory"

    @property
    def flops_per_second(self) -> float:
        return self.work.flops / self.time if self.time else 0.0

    def __str__(self) -> str:
        return (
            f"{self.gpu.name}, {self.roof} roofs: at least {_time(self.time)}, bound by {self.by} "
            f"({self.work.intensity:.3g} FLOPs a byte, ridge {self.ridge:.3g})"
        )


def bound(work: Work, gpu: GPU, roof: str = "peak") -> Bound:
    """The least time that `work` takes on `gpu`, by its peak or its achieved roofs.

    Raises: ValueError where the GPU has no such figure.
    """
    flops, traffic = gpu.roof(work.dtype, roof).value, gpu.memory_roof(roof).value
    return Bound(work, gpu, roof, work.flops / flops, work.bytes / traffic, flops / traffic)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def draw_roofline(gpu: GPU, works: Mapping[str, Work], dtype: str = "bf16", roof: str = "peak", axis=None):
    """Attainable FLOP/s against FLOPs a byte, and where each of `works` stands under it. Returns the matplotlib axis."""
    import matplotlib.pyplot as plt
    import numpy as np

    axis = axis or plt.subplots(figsize=(8, 4))[1]
    flops, traffic = gpu.roof(dtype, roof).value, gpu.memory_roof(roof).value
    ridge = flops / traffic
    intensities = [work.intensity for work in works.values()]
    span = np.logspace(np.log10(min([0.1, *intensities]) / 2), np.log10(max([10 * ridge, *intensities]) * 2), 200)
    axis.loglog(span, np.minimum(flops, span * traffic) / 1e12, color="black", linewidth=1.6)
    axis.axvline(ridge, color="black", linestyle=":", linewidth=1)
    axis.annotate(f"ridge {ridge:.0f}", (ridge, flops / 1e12), (4, -14), textcoords="offset points", fontsize=9)
    for name, work in works.items():
        height = min(flops, work.intensity * traffic) / 1e12
        axis.plot(work.intensity, height, "o", label=f"{name}: {work.intensity:.3g} FLOPs a byte")
    axis.set(xlabel="FLOPs a byte", ylabel="TFLOP/s at most", title=f"{gpu.name}, {dtype}, {roof} roofs")
    axis.legend(loc="lower right", fontsize=9)
    return axis
