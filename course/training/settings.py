"""What decides a run, beside the model's shape and the text."""

from dataclasses import dataclass

from course.training.errors import TrainingError

CHOICES = {"optimizer": ("adamw", "muon"), "precision": ("float32", "bf16")}


@dataclass(frozen=True)
class TrainSettings:
    """Raises: TrainingError when an optimizer or a precision is none of the `CHOICES`."""

    steps: int = 500
    batch: int = 8  # sequences a step, each as long as the config's context; of all ranks together
    learning_rate: float = 3e-3  # at the end of the warm-up
    warmup: int = 50  # steps
    expert_rate: float = 1.0  # the routed experts' learning rate, in multiples of the others'
    final: float = 0.1  # the last step's learning rate, as a fraction of the peak
    weight_decay: float = 0.1  # of matrices; norms have none
    clip: float = 1.0  # the largest norm of the gradient of all parameters together
    seed: int = 0  # decides the initial weights and the order of the data
    evaluate_every: int = 50  # steps
    evaluation_sequences: int = 64
    checkpoint_every: int = 50  # steps
    optimizer: str = "adamw"  # or "muon", for the hidden matrices
    precision: str = "float32"  # or "bf16": the products of a step; weights, optimizer and losses stay in float32

    def __post_init__(self):
        for name in CHOICES:
            require_choice(name, getattr(self, name), CHOICES[name])


def require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: TrainingError when the value is none of the choices."""
    if value not in choices:
        raise TrainingError(f"there is no {what} {value!r}; choose one of: {', '.join(choices)}")
