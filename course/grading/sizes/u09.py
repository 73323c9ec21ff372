"""Unit 09. What need not be loaded: rows that no id names (09.10), gaps between rows (09.3)."""

import numpy as np
import torch

from course.checking.exercise import Inputs
from course.grading.sizes import BF16, Rng, Standard, dropped, normal


def _exact(rng: Rng, scale: int) -> Inputs:
    """Of 09.4: numbers whose products and sums are exact in float32."""
    N = 40_001 * scale
    rows = rng.integers(-127, 128, N) / 16, rng.integers(128, 256, N) / 128, rng.integers(-255, 256, N) / 16
    return dict(zip(("x_N", "scale_N", "shift_N"), (torch.tensor(row).to(BF16) for row in rows), strict=True))


def _strides(rng: Rng, scale: int) -> Inputs:
    rows, columns = 250 * scale, 200
    storage = normal(rng, 3 + columns * (rows + 6))
    return {
        "storage_S": storage,
        "start": 3,
        "rows": rows,
        "columns": columns,
        "row_stride": 1,
        "column_stride": rows + 6,
    }


def _gather(rng: Rng, scale: int) -> Inputs:
    rows, width = 100 * scale, 500
    named = rng.permutation(rows)[: 80 * scale]  # each of them twice, and a fifth of all ids names no row
    ids_P = rng.permutation(np.concatenate([named, named, np.full(40 * scale, -1)]))
    return {"x_ND": normal(rng, rows, width), "ids_P": torch.tensor(ids_P)}


def _gathered(inputs: Inputs) -> int:
    x_ND, ids_P = inputs.values()
    return ids_P.nbytes + x_ND[0].nbytes * len(ids_P[ids_P >= 0].unique())


SIZES = {
    "09.1": Standard(lambda rng, k: {"x_N": normal(rng, 60_001 * k)}),
    "09.2": Standard(lambda rng, k: {"column_M": normal(rng, 250 * k), "row_N": normal(rng, 250)}),
    "09.3": Standard(_strides, lambda inputs: 4 * inputs["rows"] * inputs["columns"]),
    "09.4": Standard(_exact),
    "09.5": Standard(lambda rng, k: {"x_ND": normal(rng, 100 * k, 1000, middle=0.5)}),
    "09.6": Standard(lambda rng, k: {"x_ND": normal(rng, 8 * k, 20_001, middle=1.0)}, gpu=64),
    "09.7": Standard(lambda rng, k: {"x_ND": normal(rng, 100 * k, 700)}, gpu=64),
    "09.8": Standard(lambda rng, k: {"x_ND": normal(rng, 100 * k, 1000, spread=2)}),
    "09.9": Standard(lambda rng, k: {"ids_P": dropped(rng, rng.integers(0, 60, 30_000 * k), 0.3), "experts": 60}),
    "09.10": Standard(_gather, _gathered, gpu=64),
    "09.11": Standard(lambda rng, k: {"x_MN": normal(rng, 300 * k, 260)}),
    "09.12": Standard(
        lambda rng, k: {"a_MK": normal(rng, 100 * k, 200, dtype=BF16), "b_KN": normal(rng, 200, 120, dtype=BF16)},
        gpu=8,  # the reference holds all products of two numbers at once
    ),
}
