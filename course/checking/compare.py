"""Comparing what an answer returned with what was wanted: shape, dtype, and numbers to a stated tolerance."""

import math
from typing import Any

import torch
from torch import Tensor

from course.checking.exercise import Compare, Inputs
from course.checking.wire import Foreign


def same(*names: str, rtol: float = 1e-5) -> Compare:
    """Compare trees: integers, flags and text exactly; floating tensors by the norm of the difference over the norm wanted.

    names: what to call the parts of a returned tuple, in order; none for a single value.
    """

    def compare(inputs: Inputs, wanted: Any, got: Any) -> str | None:
        if got is None and wanted is not None:
            return "returned nothing (None); is a return missing?"
        if len(names) < 2:
            return _difference(names[0] if names else "the result", wanted, got, rtol)
        if not isinstance(got, list) or len(got) != len(names):
            return f"returned {kind(got)}, wanted {len(names)} values: {', '.join(names)}"
        return _first(_difference(name, w, g, rtol) for name, w, g in zip(names, wanted, got, strict=True))

    return compare


def kind(value: Any) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, {_dtype(value)}"
    if isinstance(value, Foreign):
        return value.what
    if isinstance(value, list):
        return f"{len(value)} values"
    if isinstance(value, dict):
        return "a dict with the keys " + ", ".join(sorted(value))
    return f"{type(value).__name__} {str(value)[:40]}"


def _first(differences) -> str | None:
    return next((difference for difference in differences if difference), None)


def _difference(name: str, wanted: Any, got: Any, rtol: float) -> str | None:
    if isinstance(wanted, Tensor):
        return _tensors(name, wanted, got, rtol)
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return f"{name}: wanted {len(wanted)} values, got {kind(got)}"
        parts = zip(wanted, got, strict=True)
        return _first(_difference(f"{name}[{i}]", w, g, rtol) for i, (w, g) in enumerate(parts))
    if isinstance(wanted, dict):
        if not isinstance(got, dict):
            return f"{name}: wanted a dict, got {kind(got)}"
        if set(got) != set(wanted):
            return f"{name}: {_keys(set(wanted) - set(got), set(got) - set(wanted))}"
        return _first(_difference(f"{name}[{key!r}]", wanted[key], got[key], rtol) for key in wanted)
    if isinstance(wanted, float) and type(got) in (int, float):
        near = math.isclose(wanted, got, rel_tol=rtol) or (math.isnan(wanted) and math.isnan(got))
        return None if near else f"{name}: wanted {wanted:.8g}, got {got:.8g}"
    if type(wanted) is type(got) and wanted == got:
        return None
    return f"{name}: wanted {wanted!r}, got {repr(got)[:40] if type(wanted) is type(got) else kind(got)}"


def _keys(missing: set[str], extra: set[str]) -> str:
    """Which keys of a dict are missing and which are not wanted, a few of each."""

    def few(keys: set[str]) -> str:
        return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    parts = [f"{what} {few(keys)}" for what, keys in (("the keys lack", missing), ("not wanted", extra)) if keys]
    return "; ".join(parts)


def _tensors(name: str, wanted: Tensor, got: Any, rtol: float) -> str | None:
    if not isinstance(got, Tensor):
        return f"{name}: wanted {kind(wanted)}, got {kind(got)}"
    if got.shape != wanted.shape:
        return f"{name}: shape {list(got.shape)}, wanted {list(wanted.shape)}"
    if got.dtype != wanted.dtype:
        return f"{name}: dtype {_dtype(got)}, wanted {_dtype(wanted)}"
    return _close(name, wanted, got, rtol) if wanted.is_floating_point() else _exact(name, wanted, got)


def _exact(name: str, wanted: Tensor, got: Tensor) -> str | None:
    differs = wanted != got
    if not differs.any():
        return None
    if wanted.ndim < 2:
        place = differs.flatten().nonzero()[0].item()
        where = f" at [{place}]" if wanted.ndim else ""
        if wanted.numel() <= 12:
            return f"{name}: wanted {wanted.tolist()}, got {got.tolist()}"
        return (
            f"{name}: first differs{where}: wanted {wanted.flatten()[place].item()}, got {got.flatten()[place].item()}"
        )
    rows = differs.flatten(1).any(1)
    row = rows.nonzero()[0].item()
    return (
        f"{name} differ in {int(rows.sum())} of {len(rows)} rows; first in row {row}: "
        f"wanted {_short(wanted[row])}, got {_short(got[row])}"
    )


def _close(name: str, wanted: Tensor, got: Tensor, rtol: float) -> str | None:
    wanted, got = wanted.double(), got.double()
    if not torch.equal(wanted.isnan(), got.isnan()):
        spoilt, missing = int((got.isnan() & ~wanted.isnan()).sum()), int((wanted.isnan() & ~got.isnan()).sum())
        if spoilt:
            return f"{name}: {spoilt} of {wanted.numel()} numbers are NaN and should not be"
        return f"{name}: {missing} of {wanted.numel()} numbers should be NaN and are not"
    infinite = wanted.isinf() | got.isinf()
    strange = infinite & (wanted != got)
    if strange.any():
        place = strange.nonzero()[0].tolist()
        where = f"{int(strange.sum())} of them; first at {place}: {_both(wanted, got, place)}"
        return f"{name}: infinite in other places than wanted, {where}"
    usable = ~(wanted.isnan() | infinite)
    error = torch.where(usable, (got - wanted).abs(), 0.0)
    size = wanted[usable].norm()
    relative = (error.norm() / size).item() if size > 0 else error.norm().item()
    if relative <= rtol:
        return None
    place = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)] if error.ndim else []
    return (
        f"{name}: relative error {relative:.1e}, allowed {rtol:.0e}; worst at {place}: "
        f"{_both(wanted, got, place, digits=6 if rtol > 1e-7 else 12)}"
    )


def _both(wanted: Tensor, got: Tensor, place: list[int], digits: int = 6) -> str:
    return f"wanted {wanted[tuple(place)].item():.{digits}g}, got {got[tuple(place)].item():.{digits}g}"


def _short(row: Tensor) -> str:
    values = row.flatten().tolist()
    return str(values) if len(values) <= 12 else str(values[:12])[:-1] + ", ...]"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
