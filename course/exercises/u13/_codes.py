"""What unit 13 compares by: E4M3 codes with their scales, and rows whose sizes lie far apart."""

import torch
from torch import Tensor

from course.checking.compare import kind, same
from course.checking.exercise import Compare, Inputs, Tree

SCALES = 1e-6  # how far a scale may be from the one wanted, as a fraction of it
TIE = 2.0**-18  # how near to the middle of two codes a number must lie to go either way, as a fraction of it


def numbers(codes: Tensor) -> Tensor:
    """What codes in uint8 stand for, in float64."""
    return codes.view(torch.float8_e4m3fn).double()


def spread(scales: Tensor, rows: int, columns: int, shape: tuple[int, int]) -> Tensor:
    """Each element's scale, for blocks of so many rows and columns."""
    wide = scales.double().repeat_interleave(rows, 0)[: shape[0]]
    return wide.repeat_interleave(columns, 1)[:, : shape[1]]


def compare_scales(name: str, wanted: Tensor, got: Tree, exact: bool) -> str | None:
    """Each within SCALES of what is wanted, or exactly that."""
    if (what := _form(name, wanted, got)) is not None:
        return what
    off = ~((got.double() - wanted.double()).abs() <= (0.0 if exact else SCALES) * wanted.double())
    if not off.any():
        return None
    place = off.nonzero()[0].tolist()
    return (
        f"{int(off.sum())} of {off.numel()} {name} differ; first at {place}: "
        f"wanted {wanted[tuple(place)].item():.8g}, got {got[tuple(place)].item():.8g}"
    )


def compare_codes(name: str, wanted: Tensor, got: Tree, exact: Tensor) -> str | None:
    """Each stands for the number wanted, or for its neighbour where `exact`, over the scale, lies on a tie of the two."""
    if (what := _form(name, wanted, got)) is not None:
        return what
    ours, theirs = numbers(wanted), numbers(got)
    middle = (ours + theirs) / 2
    neighbours = ((wanted & 127).int() - (got & 127).int()).abs() == 1
    tie = neighbours & ((exact - middle).abs() <= TIE * middle.abs())
    off = ~((ours == theirs) | (ours.isnan() & theirs.isnan()) | tie)
    if not off.any():
        return None
    place = tuple(off.nonzero()[0].tolist())
    values = (
        f"wanted {wanted[place].item()} ({ours[place].item():g}), got {got[place].item()} ({theirs[place].item():g})"
    )
    return f"{int(off.sum())} of {off.numel()} {name} differ; first at {list(place)}: {values}"


def _form(name: str, wanted: Tensor, got: Tree) -> str | None:
    if isinstance(got, Tensor) and (got.shape, got.dtype) == (wanted.shape, wanted.dtype):
        return None
    return same(name)({}, wanted, got)


def pair(wanted: Tree, got: Tree, names: str) -> str | None:
    """Whether two values came."""
    if got is None:
        return "returned nothing (None); is a return missing?"
    if not isinstance(got, list) or len(got) != 2:
        return f"returned {kind(got)}, wanted 2 values: {names}"
    return None


def rows_close(name: str, rtol: float) -> Compare:
    """As `same`, but each row by its own norm, so that a small row counts as much as a large one."""
    plain = same(name, rtol=rtol)

    def compare(inputs: Inputs, wanted: Tree, got: Tree) -> str | None:
        what = plain(inputs, wanted, got)
        if what is not None or not isinstance(got, Tensor) or wanted.ndim == 0 or not wanted.numel():
            return what
        flat_w, flat_g = (value.double().reshape(len(wanted), -1) for value in (wanted, got))
        error, size = (flat_g - flat_w).norm(dim=1), flat_w.norm(dim=1)
        off = ~(error <= rtol * size)
        if not off.any():
            return None
        row = int(off.nonzero()[0])
        far = f"relative error {(error[row] / size[row]).item():.1e}" if size[row] else "should be 0 and is not"
        return f"{name}: {int(off.sum())} of {len(off)} rows differ; first row {row}: {far}, allowed {rtol:.0e}"

    return compare
