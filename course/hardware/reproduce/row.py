"""A published figure, and how it is computed here.

The kind of a row is fixed before it is computed:

definition  arithmetic on a published configuration or on other published figures, so that it must agree to every digit
model       a model with no free parameter: nothing in it was chosen by looking at the figure, or at any of its kind
fitted      a curve through other rows; `reason` says which, and the error is that of a row left out
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["definition", "model", "fitted"]


@dataclass(frozen=True)
class Row:
    """`digit` is what the last printed digit counts: 671 billion printed as "671B" has a digit of 1e9.

    compute: None where the figure cannot be reproduced; `reason` then says why.
    contradicts: other published figures say otherwise, and `reason` says which.
    """

    id: str
    what: str
    published: float
    unit: str
    source: str
    kind: Kind
    compute: Callable[[], float] | None
    digit: float = 0.0
    reason: str = ""
    contradicts: bool = False

    @cached_property
    def computed(self) -> float | None:
        return None if self.compute is None else float(self.compute())

    @property
    def relative_error(self) -> float | None:
        """Of what is computed, against what is published."""
        if self.computed is None:
            return None
        return (self.computed - self.published) / self.published

    @property
    def agrees(self) -> bool | None:
        """To every printed digit, rounded either way: 405.85 billion is printed as 405B, 36.63 as 36.7."""
        if self.computed is None:
            return None
        return abs(self.computed - self.published) <= self.digit + 1e-9 * abs(self.published)

    def to_json(self) -> dict:
        return {
            "id": self.id,
            "what": self.what,
            "published": self.published,
            "unit": self.unit,
            "source": self.source,
            "computed": self.computed,
            "relative_error": self.relative_error,
            "agrees": self.agrees,
            "contradicts": self.contradicts,
            "kind": self.kind,
            "reason": self.reason,
        }
