"""Unit 10. What need not be loaded: gaps between rows (10.1), rows of tables (10.4), targets that do not count (10.5)."""

import torch

from course.checking.exercise import Inputs
from course.grading.sizes import BF16, Rng, Standard, dropped, normal


def _add_and_norm(rng: Rng, scale: int) -> Inputs:
    x_NX, residual_NR = normal(rng, 48 * scale, 1040, dtype=BF16), normal(rng, 48 * scale, 1000, dtype=BF16, spread=3)
    return {"x_NX": x_NX, "residual_NR": residual_NR, "weight_D": normal(rng, 1000, dtype=BF16), "eps": 1e-6}


def _backward(rng: Rng, scale: int) -> Inputs:
    dy_ND, dsum_ND, s_ND = (normal(rng, 48 * scale, 1000, dtype=BF16) for _ in range(3))
    scale_N = torch.rsqrt(s_ND.double().pow(2).mean(dim=-1) + 1e-6).float()
    weight_D = normal(rng, 1000, middle=0.5)
    return {"dy_ND": dy_ND, "dsum_ND": dsum_ND, "s_ND": s_ND, "weight_D": weight_D, "scale_N": scale_N, "eps": 1e-6}


def _rope(rng: Rng, scale: int) -> Inputs:
    S, P, T = 32 * scale, 32, 64 * scale
    positions_BS = torch.tensor(rng.permutation(T)[None, :S])
    angles_TP = torch.arange(T).double()[:, None] * 0.5 ** torch.arange(P)
    tables = {"cos_TP": angles_TP.cos().float(), "sin_TP": angles_TP.sin().float()}
    return {"x_BSHD": normal(rng, 1, S, 4, 96, dtype=BF16), "positions_BS": positions_BS, **tables, "backward": False}


def _turned(inputs: Inputs) -> int:
    rows = len(inputs["positions_BS"].unique())
    return inputs["x_BSHD"].nbytes + inputs["positions_BS"].nbytes + 2 * rows * inputs["cos_TP"][0].nbytes


def _cross_entropy(rng: Rng, scale: int) -> Inputs:
    targets_N = dropped(rng, rng.integers(0, 4001, 24 * scale), 0.15)
    return {
        "logits_NV": normal(rng, 24 * scale, 4001, dtype=BF16, spread=2),
        "targets_N": targets_N,
        "smoothing": 0.1,
        "upstream": 1.0,
    }


def _counted(inputs: Inputs) -> int:
    logits_NV, targets_N = inputs["logits_NV"], inputs["targets_N"]
    return targets_N.nbytes + int((targets_N >= 0).sum()) * logits_NV[0].nbytes


SIZES = {
    "10.1": Standard(_add_and_norm, lambda inputs: 2 * (2 * len(inputs["x_NX"]) + 1) * 1000, gpu=256),
    "10.2": Standard(_backward, gpu=256),
    "10.3": Standard(
        lambda rng, k: {"gate_up_NF": normal(rng, 48 * k, 2000, dtype=BF16, spread=3), "limit": 2.0, "offset": 1.0},
        gpu=256,
    ),
    "10.4": Standard(_rope, _turned, gpu=1024),
    "10.5": Standard(_cross_entropy, _counted, gpu=256),
}
