"""The size at which entries of the leaderboard are held against each other, and the bytes that nobody can do without.

Sizes have masks to get wrong (odd widths, dropped ids, gaps between rows), as many in every draw, and are small enough for
the checked interpreter; `scale` multiplies the rows for a GPU. The least that must be loaded is every element of every input
once, but for what the data shows not to be needed: rows that no id names, targets that do not count, gaps. The least that
must be stored is every element of the results once. An exercise without a size of its own takes the largest of its numbered
cases whose numbers depend on chance and whose shapes do not, with nothing said of what must be loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from course.checking.exercise import Exercise, Inputs, Tree
from course.checking.wire import tree
from course.grading import GradingError

BF16, FP32 = torch.bfloat16, torch.float32
Rng = np.random.Generator


def _everything(inputs: Inputs) -> int:
    return sum(value.nbytes for value in inputs.values() if isinstance(value, torch.Tensor))


@dataclass(frozen=True)
class Standard:
    draw: Callable[[Rng, int], Inputs]  # with a scale of 1 where kernels are interpreted
    loads: Callable[[Inputs], int] = _everything  # bytes that must be loaded
    gpu: int = 128  # scale on a GPU; 0: none is set


def standard(exercise: Exercise) -> Standard:
    """The standard inputs of an exercise. Raises: GradingError where there are none to be had."""
    if exercise.id in STANDARD:
        return STANDARD[exercise.id]
    fixed = [
        number for number in range(exercise.cases) if _is_fixed(*(_case(exercise, seed, number) for seed in (1, 2)))
    ]
    if not fixed:
        raise GradingError(f"Exercise {exercise.id} has no size at which entries could be compared.")
    largest = max(fixed, key=lambda number: _everything(_case(exercise, 1, number)))
    return Standard(lambda rng, scale: exercise.inputs(rng, largest), loads=lambda inputs: 0, gpu=0)


def drawn(its: Standard, seed: int, scale: int = 1) -> Inputs:
    return tree(its.draw(np.random.default_rng(seed), scale))


def least_stored(wanted: Tree) -> int:
    """Bytes of all tensors in a result."""
    if isinstance(wanted, torch.Tensor):
        return wanted.nbytes
    parts = wanted.values() if isinstance(wanted, dict) else wanted if isinstance(wanted, list) else ()
    return sum(map(least_stored, parts))


def _is_fixed(one: Inputs, other: Inputs) -> bool:
    """Whether two draws differ in numbers and in no shape."""
    tensors = [(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor)]
    return _shapes(one) == _shapes(other) and not all(torch.equal(a, b) for a, b in tensors)


def _shapes(inputs: Inputs) -> list[tuple]:
    return [(name, value.shape, value.dtype) for name, value in inputs.items() if isinstance(value, torch.Tensor)]


def _case(exercise: Exercise, seed: int, number: int) -> Inputs:
    return tree(exercise.inputs(np.random.default_rng(seed), number))


def _normal(rng: Rng, *shape: int, dtype: torch.dtype = FP32, spread: float = 1.0, middle: float = 0.0) -> torch.Tensor:
    return torch.tensor(rng.standard_normal(shape, dtype=np.float32) * spread + middle).to(dtype)


def _dropped(rng: Rng, ids: np.ndarray, share: float) -> torch.Tensor:
    """Ids, that share of them dropped: always as many, so that bytes do not depend on chance."""
    ids[rng.permutation(len(ids))[: int(share * len(ids))]] = -1
    return torch.tensor(ids)


def _exact(rng: Rng, scale: int) -> Inputs:
    """Of 09.4: numbers whose products and sums are exact in float32."""
    N = 40_001 * scale
    rows = rng.integers(-127, 128, N) / 16, rng.integers(128, 256, N) / 128, rng.integers(-255, 256, N) / 16
    return dict(zip(("x_N", "scale_N", "shift_N"), (torch.tensor(row).to(BF16) for row in rows), strict=True))


def _strides(rng: Rng, scale: int) -> Inputs:
    rows, columns = 250 * scale, 200
    storage = _normal(rng, 3 + columns * (rows + 6))
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
    return {"x_ND": _normal(rng, rows, width), "ids_P": torch.tensor(ids_P)}


def _gathered(inputs: Inputs) -> int:
    x_ND, ids_P = inputs.values()
    return ids_P.nbytes + x_ND[0].nbytes * len(ids_P[ids_P >= 0].unique())


def _add_and_norm(rng: Rng, scale: int) -> Inputs:
    x_NX, residual_NR = _normal(rng, 48 * scale, 1040, dtype=BF16), _normal(rng, 48 * scale, 1000, dtype=BF16, spread=3)
    return {"x_NX": x_NX, "residual_NR": residual_NR, "weight_D": _normal(rng, 1000, dtype=BF16), "eps": 1e-6}


def _backward(rng: Rng, scale: int) -> Inputs:
    dy_ND, dsum_ND, s_ND = (_normal(rng, 48 * scale, 1000, dtype=BF16) for _ in range(3))
    scale_N = torch.rsqrt(s_ND.double().pow(2).mean(dim=-1) + 1e-6).float()
    weight_D = _normal(rng, 1000, middle=0.5)
    return {"dy_ND": dy_ND, "dsum_ND": dsum_ND, "s_ND": s_ND, "weight_D": weight_D, "scale_N": scale_N, "eps": 1e-6}


def _rope(rng: Rng, scale: int) -> Inputs:
    S, P, T = 32 * scale, 32, 64 * scale
    positions_BS = torch.tensor(rng.permutation(T)[None, :S])
    angles_TP = torch.arange(T).double()[:, None] * 0.5 ** torch.arange(P)
    tables = {"cos_TP": angles_TP.cos().float(), "sin_TP": angles_TP.sin().float()}
    return {"x_BSHD": _normal(rng, 1, S, 4, 96, dtype=BF16), "positions_BS": positions_BS, **tables, "backward": False}


def _turned(inputs: Inputs) -> int:
    rows = len(inputs["positions_BS"].unique())
    return inputs["x_BSHD"].nbytes + inputs["positions_BS"].nbytes + 2 * rows * inputs["cos_TP"][0].nbytes


def _cross_entropy(rng: Rng, scale: int) -> Inputs:
    targets_N = _dropped(rng, rng.integers(0, 4001, 24 * scale), 0.15)
    return {
        "logits_NV": _normal(rng, 24 * scale, 4001, dtype=BF16, spread=2),
        "targets_N": targets_N,
        "smoothing": 0.1,
        "upstream": 1.0,
    }


def _counted(inputs: Inputs) -> int:
    logits_NV, targets_N = inputs["logits_NV"], inputs["targets_N"]
    return targets_N.nbytes + int((targets_N >= 0).sum()) * logits_NV[0].nbytes


STANDARD = {
    "09.1": Standard(lambda rng, k: {"x_N": _normal(rng, 60_001 * k)}),
    "09.2": Standard(lambda rng, k: {"column_M": _normal(rng, 250 * k), "row_N": _normal(rng, 250)}),
    "09.3": Standard(_strides, lambda inputs: 4 * inputs["rows"] * inputs["columns"]),
    "09.4": Standard(_exact),
    "09.5": Standard(lambda rng, k: {"x_ND": _normal(rng, 100 * k, 1000, middle=0.5)}),
    "09.6": Standard(lambda rng, k: {"x_ND": _normal(rng, 8 * k, 20_001, middle=1.0)}, gpu=64),
    "09.7": Standard(lambda rng, k: {"x_ND": _normal(rng, 100 * k, 700)}, gpu=64),
    "09.8": Standard(lambda rng, k: {"x_ND": _normal(rng, 100 * k, 1000, spread=2)}),
    "09.9": Standard(lambda rng, k: {"ids_P": _dropped(rng, rng.integers(0, 60, 30_000 * k), 0.3), "experts": 60}),
    "09.10": Standard(_gather, _gathered, gpu=64),
    "09.11": Standard(lambda rng, k: {"x_MN": _normal(rng, 300 * k, 260)}),
    "09.12": Standard(
        lambda rng, k: {"a_MK": _normal(rng, 100 * k, 200, dtype=BF16), "b_KN": _normal(rng, 200, 120, dtype=BF16)},
        gpu=8,  # the reference holds all products of two numbers at once
    ),
    "10.1": Standard(_add_and_norm, lambda inputs: 2 * (2 * len(inputs["x_NX"]) + 1) * 1000, gpu=256),
    "10.2": Standard(_backward, gpu=256),
    "10.3": Standard(
        lambda rng, k: {"gate_up_NF": _normal(rng, 48 * k, 2000, dtype=BF16, spread=3), "limit": 2.0, "offset": 1.0},
        gpu=256,
    ),
    "10.4": Standard(_rope, _turned, gpu=1024),
    "10.5": Standard(_cross_entropy, _counted, gpu=256),
}
