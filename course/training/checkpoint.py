"""A run on disk: weights, optimizer and all that is needed to go on or to generate, in one file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from course.model import ModelConfig, Transformer
from course.model.rope import RopeScaling
from course.training import atomic
from course.training.data import Data
from course.training.errors import TrainingError
from course.training.optimizers import Optimizer
from course.training.settings import TrainSettings
from course.training.sharding import whole
from course.training.tokenizer import Tokenizer

NAME = "checkpoint.pt"


@dataclass
class Checkpoint:
    config: dict[str, Any]
    settings: dict[str, Any]
    data: str  # Data.key
    vocab: int  # Data.vocab
    merges: list[tuple[int, int]]  # of the tokenizer
    rows: list[list]  # Row by Row; the last one's step is the checkpoint's
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    rng: torch.Tensor  # state of torch's global generator

    @classmethod
    def of(cls, model: Transformer, optimizer: Optimizer, settings: TrainSettings, data: Data, rows: list):
        """Of a sharded model all ranks must ask."""
        return cls(
            config={**vars(model.config)},
            settings=asdict(settings),
            data=data.key,
            vocab=data.vocab,
            merges=data.tokenizer.merges,
            rows=[list(row) for row in rows],
            model=whole(model.state_dict()),
            optimizer=whole(optimizer.state_dict()),
            rng=torch.get_rng_state(),
        )

    def write(self, folder: Path) -> None:
        atomic.write(folder / NAME, lambda file: torch.save(vars(self), file))

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """From a run's folder or from the file itself. Raises: TrainingError when there is none, or it is damaged."""
        file = path / NAME if path.is_dir() else path
        if not file.exists():
            raise TrainingError(f"there is no checkpoint at {file}: train a model first, with course train")
        try:
            with torch.serialization.safe_globals([*get_args(RopeScaling)]):
                checkpoint = cls(**torch.load(file, map_location="cpu", weights_only=True))
            # what did not exist when it was written has its default
            checkpoint.config = {**vars(ModelConfig(**checkpoint.config))}
            checkpoint.settings = asdict(TrainSettings(**checkpoint.settings))
            return checkpoint
        except Exception as error:
            raise TrainingError(f"{file} is not a checkpoint of this course, or it is damaged") from error

    def require(self, **wanted: Any) -> None:
        """Raises: TrainingError naming the first thing in which the checkpoint differs from what is asked for."""
        for name, value in wanted.items():
            stored = getattr(self, name)
            if stored == value:
                continue
            if name == "data":
                raise TrainingError(
                    "this is not the text that the checkpoint was trained on: give the same data, or train from the start"
                )
            field = next(key for key in value if stored.get(key) != value[key])
            raise TrainingError(
                f"the checkpoint was trained with {field}={stored.get(field)}, not {value[field]}: "
                "resume with the same settings or train into another folder"
            )

    def load(self) -> tuple[Transformer, Tokenizer]:
        """The model in eval mode, and its tokenizer."""
        model = Transformer(ModelConfig(**self.config))
        model.load_state_dict(self.model)
        return model.eval(), Tokenizer(self.merges)
