"""Open weights: a folder with config.json and safetensors in Hugging Face's form, read as a Transformer and written.

model = from_pretrained("Llama-3.2-1B")
logits_BSV = model(tokens_BS)
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from course.model.errors import PretrainedError
from course.model.huggingface import IGNORED, Place, config_from_hf, config_to_hf, places
from course.model.tensor_files import INDEX, SINGLE, Stored, read_json, read_tensors, tensors_in
from course.model.transformer import Transformer

DTYPES = ("F64", "F32", "F16", "BF16")
SHOWN = 8  # names in one complaint


def from_pretrained(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model in a folder, in eval mode: int64 tokens [B, S] to float32 logits [B, S, V].

    folder: config.json (model type `llama`), and model.safetensors or shards with model.safetensors.index.json.
    dtype: of the weights in memory, whatever it is on disk.
    Raises: PretrainedError naming every tensor that is missing, not expected, of another shape, or cut off.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is not a folder: give one with config.json and safetensors")
    config = config_from_hf(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = Transformer(config)
    stored, wanted = tensors_in(folder), places(config)
    _require(folder, stored, {name: _part(model, place).shape for name, place in wanted.items()}, tied=config.tied)
    model = model.to(dtype).to_empty(device="cpu").tie()
    with torch.no_grad():
        for name, tensor in read_tensors({name: stored[name] for name in wanted}):
            _part(model, wanted[name]).copy_(tensor)
    return model.eval()


def save_pretrained(model: Transformer, folder: str | os.PathLike) -> None:
    """Write a model so that `transformers` and `from_pretrained` load it: config.json and model.safetensors.

    A model that is there already is replaced. Raises: PretrainedError when the published form cannot express the
    model, or the folder holds one in shards.
    """
    folder = Path(folder)
    raw = config_to_hf(model.config) | {"dtype": str(model.head.weight.dtype).removeprefix("torch.")}
    if (folder / INDEX).exists():
        raise PretrainedError(f"{folder} holds a model in shards: save into another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PretrainedError(f"{folder} cannot be made a folder: {error.strerror}") from None
    tensors = {name: _part(model, place).detach().cpu().contiguous() for name, place in places(model.config).items()}
    temporary = folder / f".{SINGLE}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _part(model: Transformer, place: Place) -> torch.Tensor:
    return model.get_parameter(place.parameter)[place.rows]


def _require(folder: Path, stored: dict[str, Stored], shapes: dict[str, torch.Size], tied: bool) -> None:
    """Raises: PretrainedError with a line for each kind of fault."""
    ignored = (*IGNORED, "lm_head.weight") if tied else IGNORED
    both = [name for name in shapes if name in stored]
    shape_of = {name: list(stored[name].shape) for name in both}
    faults = {
        "missing": [name for name in shapes if name not in stored],
        "not expected": [name for name in stored if name not in shapes and not name.endswith(ignored)],
        "of another shape": [
            f"{name} {shape_of[name]} for {list(shapes[name])}" for name in both if shape_of[name] != list(shapes[name])
        ],
        "of a type that is not supported": [
            f"{name} {stored[name].dtype}" for name in both if stored[name].dtype not in DTYPES
        ],
        "cut off, the file is too short": [name for name in both if not stored[name].whole],
    }
    told = [f"{what}: {_some(names)}" for what, names in faults.items() if names]
    if told:
        raise PretrainedError(f"the tensors of {folder} do not fit its config.json. " + "; ".join(told))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
