"""Safetensors in a folder, one file or shards with an index: what is in them, told before anything is loaded.

A file is 8 bytes with the length of its header, the header in JSON (a name, dtype, shape and range of bytes for each
tensor), and the bytes. Reading the header by ourselves tells which tensor a file that was cut off has lost.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from course.model.errors import PretrainedError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32, BF16, ...
    whole: bool  # whether the file holds all of its bytes


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


def read_tensors(stored: dict[str, Stored]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, one at a time and file by file, so that no more than one of them is held beside the model."""
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        try:
            opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise PretrainedError(f"{file} is damaged: {error}") from None
        with opened:
            for name in (name for name, tensor in stored.items() if tensor.file == file):
                yield name, opened.get_tensor(name)


def _header(path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise PretrainedError(f"{path.parent} has no {path.name}, which {INDEX} names")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 8 + length <= size else None
        header.pop("__metadata__", None)
        return {
            name: Stored(path, tuple(t["shape"]), t["dtype"], 8 + length + t["data_offsets"][1] <= size)
            for name, t in header.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise PretrainedError(
            f"{path} is damaged before its first tensor, or no safetensors file: fetch it again"
        ) from None
