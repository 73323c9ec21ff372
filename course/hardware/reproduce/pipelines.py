"""Bubbles and memory of pipeline schedules, carried out event by event."""

from functools import lru_cache, partial

from course.hardware.pipeline import Run, Times, run
from course.hardware.reproduce.row import Row
from course.hardware.schedules import SCHEDULES

REPORT = "DeepSeek-V3 Technical Report (arXiv 2412.19437), table 2"
README = "deepseek-ai/DualPipe, README.md"
STAGES, MICRO_BATCHES = 16, 120  # V3's: 16 stages, 15,360 sequences over 128 pipelines
EVEN = Times(forward=1.0, backward=2.0, weights=1.0)


@lru_cache
def _run(name: str) -> Run:
    return run(SCHEDULES[name](STAGES // 2 if name == "DualPipeV" else STAGES, MICRO_BATCHES), EVEN)


def bubble(name: str) -> float:
    return max(_run(name).bubble)


def held(name: str) -> float:
    return max(_run(name).most_held)


_F, _B, _W = EVEN.forward, EVEN.backward, EVEN.weights
PUBLISHED = {
    "1F1B": ("(PP-1)(F+B)", (STAGES - 1) * (_F + _B), STAGES, REPORT),
    "ZB1P": ("(PP-1)(F+B-2W)", (STAGES - 1) * (_F + _B - 2 * _W), STAGES, REPORT),
    "DualPipe": ("(PP/2-1)(F&B+B-3W)", (STAGES / 2 - 1) * (_F + _B + _B - 3 * _W), STAGES + 1, REPORT),
    "DualPipeV": ("(PP/2-1)(F&B+B-3W)", (STAGES / 2 - 1) * (_F + _B + _B - 3 * _W), STAGES + 1, README),
}
ROWS = tuple(
    row
    for name, (formula, value, activations, source) in PUBLISHED.items()
    for row in (
        Row(
            f"bubble.{name}",
            f"{name}: bubble, {formula}, 16 stages, F = 1, B = 2, W = 1",
            value,
            "F",
            source,
            "model",
            partial(bubble, name),
            0.0,
        ),
        Row(
            f"held.{name}",
            f"{name}: activations held at most, 16 stages",
            activations,
            "",
            source,
            "model",
            partial(held, name),
            0.0,
        ),
    )
)
