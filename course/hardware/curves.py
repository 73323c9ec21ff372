"""A curve through measured times of a kernel: a model of what bounds it, corrected by what was measured nearby.

1. The model has three to five numbers, fitted to the logarithms of all measured times:

       time = latency + (compute^4 + memory^4)^(1/4)

   memory is bytes over a share of the bandwidth, compute is FLOPs over a share of the peak. A product goes in tiles of one
   SM each, so its compute is whole waves of tiles, and a tile takes as long as its multiplications or, where that is
   longer, as bringing its operands (`operands` FLOPs' worth of time a number: a byte takes as long in any format), and
   then as writing itself (`store` a number of FP8's time; results are BF16 in any format).
2. What remains, log(measured / model), is interpolated (Gaussian process of mean zero; Rasmussen and Williams 2006,
   section 2.2) over the logarithms of the sizes. A measured size gets nearly what was measured; far from all of them the
   model alone remains, and the error grows to what the model is off by, a tenth at least.

`error` of a curve is relative: four of five measured times lie within it when each is predicted from the others. That of
one predicted time is its own deviation, scaled so that the same holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from course.hardware.gpus import GPU, H800
from course.hardware.layer_parts import ACTIVATION, Operation

PARAMETERS = ("latency", "memory", "compute", "operands", "store")  # s, shares of peaks, FLOPs a number
START = {"latency": 5e-6, "memory": 0.85, "compute": 0.6, "operands": 200.0, "store": 400.0}
MOST = {"memory": 1.0, "compute": 1.0}  # no share of a peak is larger
TILES = [(m, n) for m in (64, 128, 256) for n in (16, 32, 64, 96, 128, 160, 192, 256) if m * n <= 128 * 256]
TENSOR_ROWS = 64  # of one tensor-core instruction (wgmma); fewer rows are padded
REACH = {
    "m": 2.0,
    "groups": 2.0,
    "k": 1.0,
    "n": 1.0,
}  # how far a measurement tells of others, in doublings of a size; else 2
NOISE, UNKNOWN = 0.04, 0.1  # relative: between two measurements of one size; of the model where nothing was measured
FOUR_OF_FIVE = 1.2816  # deviations of a normal distribution


@dataclass(frozen=True)
class Curve:
    """name; the measured operations and their seconds; sizes, the names over which residuals are interpolated; held,
    parameters that are not fitted."""

    name: str
    source: str
    operations: Sequence[Operation]
    seconds: Sequence[float]
    sizes: tuple[str, ...]
    held: dict[str, float]

    @property
    def _model(self) -> Callable:
        return _product if "m" in self.operations[0].shape else _attention

    @cached_property
    def parameters(self) -> dict[str, float]:
        """The fitted numbers of the model, and those that were held."""
        names = PARAMETERS if self._model is _product else PARAMETERS[:3]
        free = [name for name in names if name not in self.held]
        if not free:
            return self.held
        columns, wanted = _columns(self.operations, H800, None), np.log(self.seconds)

        def off(logs: np.ndarray) -> np.ndarray:
            return np.log(self._model(columns, self.held | numbers(logs))) - wanted

        def numbers(logs: np.ndarray) -> dict[str, float]:
            found = zip(free, map(float, np.exp(logs)), strict=True)
            return {name: min(value, MOST.get(name, value)) for name, value in found}

        fitted = least_squares(off, np.log([START[name] for name in free]))
        return self.held | numbers(fitted)

    def model(self, operations: Sequence[Operation], gpu: GPU = H800, sms: int | None = None) -> np.ndarray:
        """Seconds by the model alone, with the roofs of any GPU and, where given, so many of its SMs."""
        return self._model(_columns(operations, gpu, sms), self.parameters)

    @cached_property
    def residuals(self) -> np.ndarray:
        """log(measured / model) of each measured time."""
        return np.log(self.seconds) - np.log(self.model(self.operations))

    @cached_property
    def model_error(self) -> float:
        """Relative, of the model alone: the root of the mean square of its residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self._alike(self.operations) + NOISE**2 * np.eye(len(self.seconds)))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Relative error of each measured time, predicted from the others: log(measured / predicted)."""
        return self._inverse @ self.residuals / np.diag(self._inverse)

    @cached_property
    def _deviations(self) -> float:
        """How many deviations hold four of five, by leaving each out: no fewer than of a normal distribution."""
        expected = 1 / np.sqrt(np.diag(self._inverse))
        return max(FOUR_OF_FIVE, float(np.quantile(np.abs(self.left_out) / expected, 0.8, method="higher")))

    @property
    def error(self) -> float:
        """Relative: four of five measured times, predicted from the others, are no further off."""
        return float(np.quantile(np.abs(self.left_out), 0.8, method="higher"))

    def correction(self, operation: Operation) -> tuple[float, float]:
        """Factor on the model's time for the sizes of an operation, and the relative error of the product."""
        near = self._alike([operation])[0]
        variance = self._unknown**2 - near @ self._inverse @ near
        factor = float(np.exp(near @ self._inverse @ self.residuals))
        return factor, self._deviations * float(np.sqrt(max(variance, 0.0) + NOISE**2))

    @property
    def _unknown(self) -> float:
        return max(self.model_error, UNKNOWN)

    def _alike(self, operations: Sequence[Operation]) -> np.ndarray:
        a, b = self._places(operations), self._places(self.operations)
        return self._unknown**2 * np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(axis=-1))

    def _places(self, operations: Sequence[Operation]) -> np.ndarray:
        places = [[np.log2(one.shape[name]) / REACH.get(name, 2.0) for name in self.sizes] for one in operations]
        return np.array(places)

    def draw(self, axis) -> None:
        """Measured time over the model's and over the curve's (each point left out of it), on a Matplotlib axis."""
        model = self.model(self.operations)
        axis.semilogx(model * 1e6, np.exp(self.residuals), "o", label="measured / model")
        axis.semilogx(model * 1e6, np.exp(self.left_out), "x", label="measured / predicted from the others")
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set(xlabel="time by the model, us", ylabel="ratio", title=self.name)
        axis.legend()


def _columns(operations: Sequence[Operation], gpu: GPU, sms: int | None) -> dict[str, np.ndarray]:
    """Sizes and roofs, an array of one number an operation each."""
    every = int(gpu.sms.value)
    if sms is not None and not 0 < sms <= every:
        raise ValueError(f"{gpu.name} has {every} SMs, and not {sms}")
    sms = sms or every
    peak = np.array([gpu.roof(one.work.dtype).value * sms / every for one in operations])
    names = set().union(*(one.shape for one in operations))
    sizes = {name: np.array([one.shape.get(name, 1.0) for one in operations], float) for name in names}
    return sizes | {
        "flops": np.array([one.work.flops for one in operations]),
        "bytes": np.array([one.work.bytes for one in operations]),
        "each": np.array([ACTIVATION[one.work.dtype] for one in operations]),
        "decode": np.array([one.curve.endswith("decode") for one in operations]),
        "peak": peak,
        "bandwidth": np.full(len(operations), gpu.bandwidth.value),
        "sms": np.full(len(operations), sms),
    }


def _product(s: dict[str, np.ndarray], p: dict[str, float]) -> np.ndarray:
    groups = s.get("groups", 1.0)
    compute = np.inf
    for rows, columns in TILES:
        waves = np.ceil(groups * np.ceil(s["m"] / rows) * np.ceil(s["n"] / columns) / s["sms"])
        multiply, bring = 2 * rows * columns / p["compute"], (rows + columns) * p["operands"]
        tile = s["k"] * np.maximum(multiply, bring) + rows * columns * p["store"] / s["each"]
        compute = np.minimum(compute, waves * tile)
    return _together(compute * s["sms"] / s["peak"], s["bytes"] / s["bandwidth"], p | {"compute": 1.0})


def _attention(s: dict[str, np.ndarray], p: dict[str, float]) -> np.ndarray:
    rows = s["heads"] / s.get("kv_heads", 1.0) * s["queries"]  # queries that share a key
    padded = np.where(s["decode"], np.ceil(rows / TENSOR_ROWS) * TENSOR_ROWS / rows, 1.0)
    return _together(padded * s["flops"] / s["peak"], s["bytes"] / s["bandwidth"], p)


def _together(compute, memory, p: dict[str, float]) -> np.ndarray:
    return p["latency"] + ((compute / p["compute"]) ** 4 + (memory / p["memory"]) ** 4) ** 0.25


def least_squares(off: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int = 80) -> np.ndarray:
    """Levenberg and Marquardt's method (Marquardt 1963), the slopes taken by differences."""
    at, damping, width = np.array(start, float), 1e-2, 1e-4
    now = off(at)
    for _ in range(steps):
        slopes = np.stack([(off(at + width * unit) - now) / width for unit in np.eye(len(at))], axis=1)
        move = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(at)), slopes.T @ now)
        then = off(at - move)
        if (then**2).sum() < (now**2).sum():
            at, now, damping = at - move, then, damping / 3
        else:
            damping *= 4
    return at
