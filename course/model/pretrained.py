"""Open weights: a folder with config.json and safetensors in Hugging Face's form, read as a Transformer and written.

model = from_pretrained("DeepSeek-V2-Lite")
logits_BSV = model(tokens_BS)
"""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from course.model.config import ModelConfig
from course.model.errors import PretrainedError
from course.model.fp8_blocks import dequantise_blocks, scales_shape
from course.model.hf_config import config_from_hf, fp8_block, read_config
from course.model.hf_export import config_to_hf
from course.model.hf_names import IGNORED, Place, places, stored_again
from course.model.shapes import without_numbers
from course.model.tensor_files import INDEX, SINGLE, Stored, tensors_in
from course.model.transformer import Transformer

FP8 = "F8_E4M3"
SCALE = "_scale_inv"  # ending of the name of a quantised tensor's scales
SHOWN = 8  # names in one complaint


def from_pretrained(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model in a folder, in eval mode: int64 tokens [B, S] to float32 logits [B, S, V].

    folder: config.json (its model types are those of `course.model.hf_config`), and model.safetensors or shards with
        model.safetensors.index.json; experts one by one or fused, weights plain or FP8 with a scale a block.
    dtype: of the weights in memory, whatever it is on disk. Selection biases stay in float32.
    Multi-token modules that the config names and the files lack are left out: `transformers` never writes them.
    Tensors are read one at a time: beside the model, memory holds one of them, and one in float32 where it is FP8.
    Raises: PretrainedError naming every tensor that is missing, not expected, of another shape, or cut off.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is not a folder: give one with config.json and safetensors")
    raw = read_config(folder)
    stored = tensors_in(folder)
    config = _with_stored_modules(config_from_hf(raw), stored)
    block = fp8_block(raw)
    with without_numbers():
        model = Transformer(config)
    wanted = places(config, fused=any(name.endswith(".experts.gate_up_proj") for name in stored))
    _require(folder, config, stored, {name: _part(model, place).shape for name, place in wanted.items()}, block)
    biases = [module.bias_E for module in model.mixtures() if config.selection_bias]
    model = model.to(dtype).to_empty(device="cpu").tie()
    for module, bias_E in zip(model.mixtures(), biases, strict=False):
        module.bias_E = torch.empty_like(bias_E, device="cpu")
    with torch.no_grad():
        for name in sorted(wanted, key=lambda name: (stored[name].file, stored[name].begin)):
            tensor = stored[name].read()
            if stored[name].dtype == FP8:
                tensor = dequantise_blocks(tensor, stored[name + SCALE].read(), block)
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


def _part(model: Transformer, place: Place) -> Tensor:
    module, _, name = place.tensor.rpartition(".")
    return getattr(model.get_submodule(module), name)[place.part]


def _with_stored_modules(config: ModelConfig, stored: dict[str, Stored]) -> ModelConfig:
    """The config without its multi-token modules where none of their tensors is stored."""
    bare = replace(config, mtp_layers=0)
    further = [name for name in stored if name.startswith(f"model.layers.{config.layers}.")]
    return config if further else bare


def _require(
    folder: Path,
    config: ModelConfig,
    stored: dict[str, Stored],
    shapes: dict[str, torch.Size],
    block: tuple[int, int] | None,
) -> None:
    """Raises: PretrainedError with a line for each kind of fault."""
    quantised = [name for name in shapes if name in stored and stored[name].dtype == FP8 and len(shapes[name]) > 1]
    if quantised and block is None:
        raise PretrainedError(
            f"{folder} has tensors in {FP8}, and its config.json no quantization_config: {_some(quantised)}"
        )
    shapes = shapes | {name + SCALE: torch.Size(scales_shape(shapes[name], block)) for name in quantised}
    ignored = (*IGNORED, *stored_again(config), *(["lm_head.weight"] if config.tied else []))
    both = [name for name in shapes if name in stored]
    shape_of = {name: list(stored[name].shape) for name in both}
    faults = {
        "missing": [name for name in shapes if name not in stored],
        "not expected": [name for name in stored if name not in shapes and not name.endswith(ignored)],
        "of another shape": [
            f"{name} {shape_of[name]} for {list(shapes[name])}" for name in both if shape_of[name] != list(shapes[name])
        ],
        "of a type that is not supported": [
            f"{name} {stored[name].dtype}" for name in both if not _readable(stored[name])
        ],
        "cut off, the file is too short": [name for name in both if not stored[name].whole],
    }
    told = [f"{what}: {_some(names)}" for what, names in faults.items() if names]
    if told:
        raise PretrainedError(f"the tensors of {folder} do not fit its config.json. " + "; ".join(told))


def _readable(tensor: Stored) -> bool:
    return tensor.known and (tensor.dtype != FP8 or len(tensor.shape) > 1)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
