"""An estimate: a number, the parts that add up to it, and how far off it may be.

Parts that rest on one source are wrong together, so their errors add up; sources are wrong independently, so theirs add
in squares. An error is the half-width of a bar that is meant to hold the truth in about four cases of five.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import hypot


@dataclass(frozen=True)
class Part:
    """A term of an estimate. `error` is in the unit of `value`; `source` says what both rest on."""

    name: str
    value: float
    error: float = 0.0
    source: str = "computed"

    def __mul__(self, factor: float) -> "Part":
        return replace(self, value=self.value * factor, error=self.error * abs(factor))


@dataclass(frozen=True)
class Estimate:
    name: str
    unit: str
    parts: tuple[Part, ...]

    @property
    def value(self) -> float:
        return sum(part.value for part in self.parts)

    @property
    def error(self) -> float:
        by_source: dict[str, float] = {}
        for part in self.parts:
            by_source[part.source] = by_source.get(part.source, 0.0) + part.error
        return hypot(*by_source.values())

    @property
    def low(self) -> float:
        return self.value - self.error

    @property
    def high(self) -> float:
        return self.value + self.error

    def covers(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __add__(self, other: "Estimate") -> "Estimate":
        """Both, one after the other. Raises: ValueError for two units."""
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} and {other.unit} do not add up")
        return replace(self, parts=self.parts + other.parts)

    def __mul__(self, factor: float) -> "Estimate":
        return replace(self, parts=tuple(part * factor for part in self.parts))

    def per(self, amount: float, name: str, unit: str) -> "Estimate":
        """`amount` divided by this estimate, as tokens by seconds: one part, with the same relative error."""
        return Estimate(name, unit, (Part(name, amount / self.value, amount * self.error / self.value**2, self.name),))

    def to_json(self) -> dict:
        parts = [vars(part) for part in self.parts]
        return {"name": self.name, "unit": self.unit, "value": self.value, "error": self.error, "parts": parts}

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g} ± {self.error:.2g} {self.unit}"

    def draw(self, axis) -> None:
        """One horizontal bar of its parts on a Matplotlib axis, with the error at its end."""
        left = 0.0
        for part in self.parts:
            axis.barh(self.name, part.value, left=left, label=part.name)
            left += part.value
        axis.errorbar(left, self.name, xerr=self.error, color="black", capsize=4)
        axis.set_xlabel(self.unit)


def slower(*estimates: Estimate) -> Estimate:
    """What lasts longest of things that go on at the same time."""
    return max(estimates, key=lambda estimate: estimate.value)


def total(name: str, estimates: Iterable[Estimate]) -> Estimate:
    """One after the other, each as one part of the sum. Raises: ValueError for none, or for two units."""
    estimates = list(estimates)
    units = {estimate.unit for estimate in estimates}
    if len(units) != 1:
        raise ValueError(f"{name}: {' and '.join(sorted(units)) or 'nothing'} does not add up")
    return Estimate(name, units.pop(), tuple(part for estimate in estimates for part in estimate.parts))
