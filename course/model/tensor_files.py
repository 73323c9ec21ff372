"""Safetensors in a folder, one file or shards with an index: what is in them, told before anything is loaded.

A file is 8 bytes with the length of its header, the header in JSON (a name, dtype, shape and range of bytes for each
tensor), and the bytes. Reading both by ourselves tells which tensor a file that was cut off has lost, and keeps no more
than one tensor in memory at a time: a file mapped into memory would count as a second copy of the model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course.model.errors import PretrainedError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32, BF16, ...
    begin: int  # bytes from the start of the file
    whole: bool  # whether the file holds all of its bytes

    @property
    def known(self) -> bool:
        return self.dtype in DTYPES

    def read(self) -> Tensor:
        """Raises: PretrainedError when the file has changed since its header was read."""
        count, dtype = math.prod(self.shape), DTYPES[self.dtype]
        numbers = torch.empty(count, dtype=dtype)
        if count:
            with self.file.open("rb") as file:
                file.seek(self.begin)
                filled = file.readinto(numbers.view(torch.uint8).numpy())
            if filled != numbers.nbytes:
                raise PretrainedError(f"{self.file} was cut off while it was read")
        return numbers.view(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """Raises: PretrainedError when the file is not there or holds no JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise PretrainedError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise PretrainedError(f"{path} cannot be read as JSON: fetch it again")
    return value


def tensors_in(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint, by name. Raises: PretrainedError when a file is missing or has no readable header."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise PretrainedError(f"{folder} has neither {SINGLE} nor {INDEX}: only safetensors can be read")
        return _header(folder / SINGLE)
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise PretrainedError(f"{folder / INDEX} names no shards: fetch it again")
    headers = {shard: _header(folder / Path(shard).name) for shard in sorted({*shard_of.values()})}
    return {name: headers[shard][name] for name, shard in shard_of.items() if name in headers[shard]}


def _header(path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise PretrainedError(f"{path.parent} has no {path.name}, which {INDEX} names")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 8 + length <= size else None
        header.pop("__metadata__", None)
        return {name: _stored(path, entry, 8 + length, size) for name, entry in header.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise PretrainedError(
            f"{path} is damaged before its first tensor, or no safetensors file: fetch it again"
        ) from None


def _stored(path: Path, entry: dict[str, Any], start: int, size: int) -> Stored:
    """Raises: ValueError when shape, dtype and range of bytes do not fit each other."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("no sizes")
    dtype = DTYPES.get(entry["dtype"])
    if dtype and end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor of another size than its range of bytes")
    return Stored(path, shape, str(entry["dtype"]), start + begin, start + end <= size)
