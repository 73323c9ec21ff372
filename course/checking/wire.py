"""What crosses the boundary between judge and answer: frames of JSON and safetensors, never pickle.

A message is a dict of trees: dict, list, None, bool, int, float, str and tensors, nested. Every JSON object in a frame
has one key, its kind, so that no value an answer returns can be mistaken for another.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

HEADER = struct.Struct(">II")
LARGEST = 1 << 28  # bytes of the safetensors half of a frame
LARGEST_TEXT = 1 << 23  # bytes of its JSON half, which takes many times as much once read
DEEPEST = 64
INTEGER = 1 << 256  # integers stay below it on both sides of zero
NUMPY_SCALARS = {np.bool_, *(np.dtype(code).type for code in "bhilqBHILQefd")}


class WireError(Exception):
    """A frame that cannot be read, or a value that cannot be sent: one sentence."""


@dataclass(frozen=True)
class Foreign:
    """Stands for a returned value that cannot cross: what kind of thing it was."""

    what: str


def pack(message: dict[str, Any]) -> bytes:
    """One frame: the lengths of two halves, the JSON half, the safetensors half."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_flat(message, tensors, 0)).encode()
    blob = save(tensors) if tensors else b""
    _fits("value", len(text), len(blob))
    return HEADER.pack(len(text), len(blob)) + text + blob


def lengths(header: bytes) -> tuple[int, int]:
    text, blob = HEADER.unpack(header)
    _fits("reply", text, blob)
    return text, blob


def _fits(what: str, text: int, blob: int) -> None:
    if text > LARGEST_TEXT or blob > LARGEST:
        raise WireError(
            f"The {what} is larger than {LARGEST >> 20} MiB ({LARGEST_TEXT >> 20} MiB without its tensors)."
        )


def unpack(text: bytes, blob: bytes) -> dict[str, Any]:
    try:
        _fits("reply", int.from_bytes(blob[:8], "little"), len(blob))  # the blob's own header is JSON as well
        tensors = load(blob) if blob else {}
        message = _deep(json.loads(text, parse_constant=_refuse), tensors, 0)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"The reply cannot be read ({type(error).__name__}).") from None
    if not isinstance(message, dict):
        raise WireError("The reply is not a message.")
    return message


def _refuse(constant: str) -> None:
    raise WireError(f"The reply has a bare {constant}.")


def tree(value: Any) -> Any:
    """A value as the other side will see it: tuples are lists, NumPy's scalars plain numbers, tensors plain copies, the
    rest `Foreign`."""
    tensors: dict[str, torch.Tensor] = {}
    return _deep(_flat(value, tensors, 0), tensors, 0)


def _flat(value: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if depth > DEEPEST:
        raise WireError(f"The value is nested more than {DEEPEST} deep.")
    if type(value) in NUMPY_SCALARS:
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < INTEGER else {"foreign": "an int of more than 256 bits"}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        return [_flat(item, tensors, depth + 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _flat(item, tensors, depth + 1) for key, item in value.items()}}
    if kind in (torch.Tensor, torch.nn.Parameter):
        return _tensor(value, tensors)
    if kind is Foreign:
        return {"foreign": value.what}
    return {"foreign": f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")}


def _tensor(value: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
        return {"foreign": f"a tensor of an unusual kind ({value.layout}, {value.dtype}, {value.device})"}
    _fits("value", 0, value.numel() * value.element_size())
    name = str(len(tensors))
    tensors[name] = value.detach().cpu().resolve_neg().clone(memory_format=torch.contiguous_format)
    return {"tensor": name}


def _deep(value: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if depth > 4 * DEEPEST:
        raise WireError(f"The reply is nested more than {DEEPEST} deep.")
    if isinstance(value, list):
        return [_deep(item, tensors, depth + 1) for item in value]
    if isinstance(value, str):
        return _writable(value)
    if type(value) is int and abs(value) >= INTEGER:
        raise WireError("The reply has an int of more than 256 bits.")
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise WireError("The reply has an object of more than one kind.")
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {_writable(key): _deep(item, tensors, depth + 1) for key, item in inner.items()}
    if kind == "tensor":
        return tensors[inner]
    if kind == "float" and inner in ("nan", "inf", "-inf"):
        return float(inner)
    if kind == "foreign":
        return Foreign(_writable(str(inner)[:200]))
    raise WireError(f"The reply has an object of unknown kind {str(kind)[:40]!r}.")


def _writable(text: str) -> str:
    """Text without lone surrogates, which no file takes."""
    return text.encode(errors="replace").decode()
