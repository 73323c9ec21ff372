"""bfloat16 and FP8 as the interpreter holds them (raw codes in unsigned integers), made to count as torch counts.

Casts are torch's own, so they round to nearest even and overflow as torch's do: E4M3 saturates at 448 (before torch 2.12
it became NaN), E5M2 becomes infinite from 61440 on. Arithmetic is done in float32 and rounded once: what torch does, and
an H100 for one sum or product.

Two places where a chip differs, both out of reach of scaled and upcast values: its casts to FP8 saturate for E5M2 too
(cvt.rn.satfinite in the PTX), and its tl.sum of bfloat16 rounds every partial sum (add.bf16), while torch's and this one
add in float32 and round once. So upcast right after the load.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import DTypeLike

TORCH = {
    "bf16": (torch.bfloat16, torch.uint16),
    "fp8e4nv": (torch.float8_e4m3fn, torch.uint8),
    "fp8e5": (torch.float8_e5m2, torch.uint8),
    "fp8e4b8": (torch.float8_e4m3fnuz, torch.uint8),
    "fp8e5b16": (torch.float8_e5m2fnuz, torch.uint8),
}
NAN = {"bf16": 0x7FC0, "fp8e4nv": 0x7F, "fp8e5": 0x7F, "fp8e4b8": 0x80, "fp8e5b16": 0x80}
POISON = 0x7BADBAD07BADBAD0  # what integers hold where nothing was loaded; narrower ones hold its low bits


def is_raw(name: str) -> bool:
    """Whether a type (by its Triton name) is held as raw codes."""
    return name in TORCH


def decode(codes: np.ndarray, name: str) -> np.ndarray:
    """Raw codes as float32, exactly."""
    return _values(name)[codes]


def encode(values: np.ndarray, name: str) -> np.ndarray:
    """Floats as the nearest codes, ties to even."""
    kind, raw = TORCH[name]
    with torch._C.DisableTorchFunction():  # a cast of the interpreter's is no call of the kernel's author
        return torch.from_numpy(np.array(values, order="C")).to(kind).view(raw).numpy()


def cast(data: np.ndarray, source: str, target: str, stored: DTypeLike, toward_zero: bool = False) -> np.ndarray:
    """Convert between any two types, as torch does; `stored` is the numpy type that holds the target."""
    if is_raw(source):
        data = decode(data, source)
    if data.dtype.kind in "iub" and target.startswith(("bf", "fp")) and target != "fp64":
        data = data.astype(np.float32)
    if is_raw(target):
        result = encode(data, target)
    elif target == "fp16":
        result = data.astype(np.float32).astype(np.float16)
    else:
        return data.astype(stored)
    return _truncated(result, data, target) if toward_zero else result


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it for TF32: sign, 8 bits of exponent, the first 10 of the fraction, the rest cut off."""
    return (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def total(data: np.ndarray, name: str, axis: int | None, keepdims: bool) -> np.ndarray:
    """A sum of bfloat16, float16 or FP8 as torch.sum takes it: added up in float32, rounded once."""
    with torch._C.DisableTorchFunction():
        wide = torch.from_numpy(np.array(data, order="C"))
        if name == "bf16":
            wide = wide.view(torch.bfloat16)
        elif is_raw(name):
            wide = torch.from_numpy(decode(data, name))
        summed = wide.sum(dim=axis, keepdim=keepdims) if axis is not None else wide.sum()
        if axis is None and keepdims:
            summed = summed.reshape((1,) * data.ndim)
        return (summed.to(TORCH[name][0]).view(TORCH[name][1]) if is_raw(name) else summed).numpy()


def poison(name: str, stored: np.dtype) -> np.ndarray:
    """What a masked-off lane holds: NaN, or for integers a value that makes a mistake visible."""
    if is_raw(name):
        return np.array(NAN[name], stored)
    return np.array(np.nan if stored.kind == "f" else POISON, np.float64 if stored.kind == "f" else np.uint64).astype(
        stored
    )


@cache
def _values(name: str) -> np.ndarray:
    kind, raw = TORCH[name]
    with torch._C.DisableTorchFunction():
        codes = torch.arange(1 << 8 * kind.itemsize, dtype=torch.int32).to(raw)
        return codes.view(kind).float().numpy()


def _truncated(codes: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    """Codes that were rounded away from zero, one step back."""
    raw = codes.view(np.uint16) if name == "fp16" else codes
    held = codes.astype(np.float64) if name == "fp16" else decode(codes, name)
    return (raw - (np.abs(held) > np.abs(values)).astype(raw.dtype)).view(codes.dtype)
