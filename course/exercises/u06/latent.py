"""06.3: what latent attention caches, and the keys and values made from it (DeepSeek-V2 report, section 2.1.2 and 2.1.3)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.exercises.u02.rope import reference as rope

EDGES = [  # batch, new, cached, width, latent, turned, heads, nope, value, eps
    (2, 5, 0, 8, 6, 4, 2, 4, 4, 1e-6),
    (1, 1, 4, 10, 4, 4, 3, 4, 2, 1e-6),
    (2, 2, 3, 6, 5, 2, 1, 3, 5, 0.5),
    (1, 3, 1, 12, 7, 6, 4, 5, 3, 1e-6),
    (1, 2, 1, 5, 4, 2, 2, 3, 2, 0.0),  # latents so small that an epsilon of one's own shows
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {
            "x_BSD": torch.tensor([[[3.0, 4.0]]]),
            "cached_BNL": torch.tensor([[[1.0, 1.0, 2.0, 0.0]]]),
            "kv_down_LD": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
            "norm_R": torch.tensor([1.0, 2.0]),
            "kv_up_FR": torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 0.0], [0.0, 10.0]]),
            "heads": 2,
            "nope": 1,
            "theta": 10_000.0,
            "eps": 0.0,
        }
    if number <= len(EDGES):
        B, S, M, D, R, P2, H, O, V, eps = EDGES[number - 1]  # noqa: E741
    else:
        B, S, M, D, R = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5), (0, 5), (3, 12), (2, 9)))
        P2, H, O, V = 2 * int(rng.integers(1, 5)), *(int(n) for n in rng.integers(2, 6, size=3))  # noqa: E741
        eps = float(rng.choice([1e-6, 0.1]))
    cached = rng.normal(size=(B, M, R + P2))
    shapes = ((B, S, D), (R + P2, D), (R,), (H * (O + V), R))
    x, down, norm, up = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes)
    cached = torch.tensor(cached, dtype=torch.float32)
    if number == len(EDGES):
        down = down / 1024
    return {
        "x_BSD": x, "cached_BNL": cached, "kv_down_LD": down, "norm_R": 1 + norm / 4, "kv_up_FR": up, "heads": H,
        "nope": O, "theta": float(rng.choice([100.0, 10_000.0])), "eps": eps,
    }  # fmt: skip


def reference(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    positions_S = torch.arange(M, M + S)
    turn_BSr = rope(turn_BSr[:, None], positions_S, theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    latent_BNR, turn_BNr = rows_BNL.tensor_split([R], dim=-1)
    kv_BHNF = (latent_BNR @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = turn_BNr[:, None].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def head_after_head(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    M, S, R = cached_BNL.shape[1], x_BSD.shape[1], len(norm_R)
    down_RD, turn_rD = kv_down_LD[:R].double(), kv_down_LD[R:].double()
    latent_BSR = torch.einsum("bsd,rd->bsr", x_BSD.double(), down_RD)
    latent_BSR = latent_BSR / (latent_BSR.square().sum(-1, keepdim=True) / R + eps).sqrt() * norm_R
    pairs_BSPc = torch.view_as_complex(torch.einsum("bsd,rd->bsr", x_BSD.double(), turn_rD).unflatten(-1, (-1, 2)))
    P = pairs_BSPc.shape[-1]
    angles_SP = torch.outer(torch.arange(M, M + S).double(), theta ** -(torch.arange(P).double() / P))
    turned_BSr = torch.view_as_real(pairs_BSPc * torch.polar(torch.ones_like(angles_SP), angles_SP)).flatten(-2)
    rows_BNL = torch.cat([cached_BNL.double(), torch.cat([latent_BSR, turned_BSr], -1)], dim=1)
    keys, values = [], []
    for part_FR in kv_up_FR.double().chunk(heads):
        keys.append(torch.cat([rows_BNL[..., :R] @ part_FR[:nope].T, rows_BNL[..., R:]], dim=-1))
        values.append(rows_BNL[..., :R] @ part_FR[nope:].T)
    return rows_BNL.float(), torch.stack(keys, 1).float(), torch.stack(values, 1).float()


def norm_over_the_row(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    row_BSL = x_BSD @ kv_down_LD.T
    row_BSL = row_BSL * torch.rsqrt(row_BSL.pow(2).mean(dim=-1, keepdim=True) + eps)
    latent_BSR, turn_BSr = row_BSL[..., :R] * norm_R, row_BSL[..., R:]
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def no_norm(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def cached_before_the_norm(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    latent_BNR, turn_BNr = rows_BNL.tensor_split([R], dim=-1)
    latent_BNR = latent_BNR * torch.rsqrt(latent_BNR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    kv_BHNF = (latent_BNR @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = turn_BNr[:, None].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def cached_normed_again(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    row_BSL = x_BSD @ kv_down_LD.T
    turn_BSr = row_BSL[..., R:]
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    latent_BNR = torch.cat([cached_BNL[..., :R], row_BSL[..., :R]], dim=1)
    latent_BNR = latent_BNR * torch.rsqrt(latent_BNR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    rows_BNL = torch.cat([latent_BNR, torch.cat([cached_BNL[..., R:], turn_BSr], dim=1)], dim=-1)
    kv_BHNF = (latent_BNR @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def cached_turned_again(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    latent_BNR, turn_BNr = rows_BNL.tensor_split([R], dim=-1)
    turn_BNr = rope(turn_BNr[:, None], torch.arange(M + S), theta, turn_BNr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([latent_BNR, turn_BNr], dim=-1)
    kv_BHNF = (latent_BNR @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = turn_BNr[:, None].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def positions_from_zero(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def by_halves(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "half")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def never_turned(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


def all_keys_then_all_values(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    k_BNF, v_BNF = (rows_BNL[..., :R] @ kv_up_FR.T).tensor_split([heads * nope], dim=-1)
    k_BHNO, v_BHNV = (part.reshape(B, M + S, heads, -1).transpose(1, 2) for part in (k_BNF, v_BNF))
    return rows_BNL, torch.cat([k_BHNO, rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)], dim=-1), v_BHNV


def value_before_key(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., -nope:], turn_BHNr], dim=-1), kv_BHNF[..., :-nope]


def turned_part_first(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    latent_BSR, turn_BSr = (x_BSD @ kv_down_LD.T).tensor_split([R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([turn_BHNr, kv_BHNF[..., :nope]], dim=-1), kv_BHNF[..., nope:]


def latent_after_the_turned(x_BSD, cached_BNL, kv_down_LD, norm_R, kv_up_FR, heads, nope, theta, eps):
    B, S, _ = x_BSD.shape
    M, R = cached_BNL.shape[1], len(norm_R)
    turn_BSr, latent_BSR = (x_BSD @ kv_down_LD.T).tensor_split([kv_down_LD.shape[0] - R], dim=-1)
    latent_BSR = latent_BSR * torch.rsqrt(latent_BSR.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_R
    turn_BSr = rope(turn_BSr[:, None], torch.arange(M, M + S), theta, turn_BSr.shape[-1], "interleaved")[:, 0]
    rows_BNL = torch.cat([cached_BNL, torch.cat([latent_BSR, turn_BSr], dim=-1)], dim=1)
    kv_BHNF = (rows_BNL[..., :R] @ kv_up_FR.T).view(B, M + S, heads, -1).transpose(1, 2)
    turn_BHNr = rows_BNL[:, None, :, R:].expand(-1, heads, -1, -1)
    return rows_BNL, torch.cat([kv_BHNF[..., :nope], turn_BHNr], dim=-1), kv_BHNF[..., nope:]


EXERCISE = Exercise(
    id="06.3",
    unit="06",
    title="compress and expand",
    entry="compress_and_expand",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("rows", "keys", "values"),
    misconceptions=(
        Misconception(
            "norm-over-the-row",
            norm_over_the_row,
            "It looks like the mean square taken over the whole row. RMSNorm sees the R numbers of the latent, and the "
            "turned part goes by it.",
        ),
        Misconception(
            "no-norm",
            no_norm,
            "It looks like a latent that was not normed. RMSNorm with norm_R stands between the two matrices.",
        ),
        Misconception(
            "cached-before-the-norm",
            cached_before_the_norm,
            "It looks like latents cached as they are, and normed when read. Here they are normed once, before they "
            "are cached.",
        ),
        Misconception(
            "cached-normed-again",
            cached_normed_again,
            "It looks like cached latents that are normed a second time. Only the new ones need it.",
        ),
        Misconception(
            "cached-turned-again",
            cached_turned_again,
            "It looks like cached keys that are turned a second time. They were turned when they were appended.",
        ),
        Misconception(
            "positions-from-zero",
            positions_from_zero,
            "It looks like new positions counted from 0. They follow the cached ones: the first stands at position M.",
        ),
        Misconception(
            "by-halves",
            by_halves,
            "It looks like pairs by halves. DeepSeek turns neighbours: features 2i and 2i + 1.",
        ),
        Misconception(
            "never-turned",
            never_turned,
            "It looks like a shared key that was not turned. It is turned at its own position, then cached.",
        ),
        Misconception(
            "all-keys-then-all-values",
            all_keys_then_all_values,
            "It looks like kv_up read as all heads' keys, then all heads' values. It goes head by head: a head's nope "
            "key rows, then its value rows.",
        ),
        Misconception(
            "value-before-key",
            value_before_key,
            "It looks like a head's value rows before its key rows. The first `nope` rows of a head make its key.",
        ),
        Misconception(
            "turned-part-first",
            turned_part_first,
            "It looks like keys with the turned part in front. A key is nope, then rope.",
        ),
        Misconception(
            "latent-last",
            latent_after_the_turned,
            "It looks like kv_down read as turned key, then latent. Its first R rows make the latent.",
        ),
    ),
    alternatives=(head_after_head,),
    hints=(
        "Make the new rows completely, norm and turn included; only then join them to the cached ones, and expand all.",
        "rope(part[:, None], positions, theta, width, 'interleaved')[:, 0]; positions begin at the number of cached rows.",
        "kv_up's output: view as [B, N, heads, nope + V]; split at nope; the turned key is expanded over the heads.",
    ),
    uses=("02.2",),
)
