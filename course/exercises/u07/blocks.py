"""07.4: weights stored as FP8 with a scale a block, turned back into numbers (V3 report, section 3.3; README_WEIGHTS of its checkpoint)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # experts (0: a plain matrix), rows, columns, rows and columns of a block, NaN codes, factor of the scales
    (0, 4, 6, 2, 3, False, 1),
    (0, 5, 7, 2, 3, False, 1),  # the last blocks are cut short
    (3, 6, 4, 4, 4, False, 1),  # a layer's experts at once
    (0, 3, 2, 128, 128, False, 1),  # smaller than a block
    (2, 130, 129, 128, 128, False, 1),
    (0, 9, 6, 3, 2, True, 1),
    (0, 1, 9, 1, 4, False, 1),  # blocks of one row, as activations have them
    (0, 6, 5, 2, 2, False, 2.0**-80),  # scales so small that whoever bounds them changes them
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        codes = torch.tensor([[56, 64, 184], [48, 1, 126]], dtype=torch.uint8)
        return {"codes": codes, "scale_inv": torch.tensor([[2.0, 0.5]]), "block": [2, 2]}
    if number <= len(EDGES):
        E, N, M, rows, columns, odd, factor = EDGES[number - 1]
    else:
        E, N, M = int(rng.integers(0, 4)), int(rng.integers(2, 30)), int(rng.integers(2, 30))
        rows, columns, odd, factor = int(rng.integers(1, 9)), int(rng.integers(1, 9)), False, 1
    batch = (E,) if E else ()
    codes = torch.tensor(rng.integers(0, 127, size=(*batch, N, M)) + 128 * rng.integers(0, 2, size=(*batch, N, M)))
    if odd:
        codes[..., 1, 2] = 127
        codes[..., -1, 0] = 255
    shape = (*batch, -(-N // rows), -(-M // columns))
    scales = torch.tensor(factor * 2.0 ** rng.uniform(-12, 4, size=shape), dtype=torch.float32)
    return {"codes": codes.to(torch.uint8), "scale_inv": scales, "block": [rows, columns]}


def reference(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.float8_e4m3fn).float()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers * wide.repeat_interleave(columns, dim=-1)[..., :M]


def by_table(codes, scale_inv, block):
    """Decode by hand, 256 values in a table; take each number's scale by its place."""
    table = []
    for code in range(256):
        sign, exponent, fraction = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
        value = fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10)
        table.append(float("nan") if code & 127 == 127 else sign * value)
    row_N = torch.arange(codes.shape[-2]) // block[0]
    column_M = torch.arange(codes.shape[-1]) // block[1]
    return torch.tensor(table)[codes.long()] * scale_inv[..., row_N, :][..., column_M]


def divided(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.float8_e4m3fn).float()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers / wide.repeat_interleave(columns, dim=-1)[..., :M]


def converted(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.float()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers * wide.repeat_interleave(columns, dim=-1)[..., :M]


def other_format(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.float8_e5m2).float()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers * wide.repeat_interleave(columns, dim=-1)[..., :M]


def signed(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.int8).float()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers * wide.repeat_interleave(columns, dim=-1)[..., :M]


def block_transposed(codes, scale_inv, block):
    columns, rows = block
    N, M = codes.shape[-2:]
    row_N = (torch.arange(N) // rows).clamp(max=scale_inv.shape[-2] - 1)
    column_M = (torch.arange(M) // columns).clamp(max=scale_inv.shape[-1] - 1)
    return codes.view(torch.float8_e4m3fn).float() * scale_inv[..., row_N, :][..., column_M]


def tiled(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    plain = [1] * (scale_inv.ndim - 2)
    wide = scale_inv.repeat(*plain, rows, columns)[..., :N, :M]
    return codes.view(torch.float8_e4m3fn).float() * wide


def blocks_of_equal_size(codes, scale_inv, block):
    N, M = codes.shape[-2:]
    rows, columns = -(-N // scale_inv.shape[-2]), -(-M // scale_inv.shape[-1])
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :].repeat_interleave(columns, dim=-1)[..., :M]
    return codes.view(torch.float8_e4m3fn).float() * wide


def rows_alone(codes, scale_inv, block):
    wide = scale_inv.repeat_interleave(block[0], dim=-2)[..., : codes.shape[-2], :1]
    return codes.view(torch.float8_e4m3fn).float() * wide


def one_for_all(codes, scale_inv, block):
    numbers = codes.view(torch.float8_e4m3fn).float()
    return numbers * scale_inv[..., :1, :1]


def never_scaled(codes, scale_inv, block):
    return codes.view(torch.float8_e4m3fn).float()


def nan_as_zero(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.float8_e4m3fn).float().nan_to_num(0.0)
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return numbers * wide.repeat_interleave(columns, dim=-1)[..., :M]


def in_bfloat16(codes, scale_inv, block):
    rows, columns = block
    N, M = codes.shape[-2:]
    numbers = codes.view(torch.float8_e4m3fn).bfloat16()
    wide = scale_inv.repeat_interleave(rows, dim=-2)[..., :N, :]
    return (numbers * wide.bfloat16().repeat_interleave(columns, dim=-1)[..., :M]).float()


EXERCISE = Exercise(
    id="07.4",
    unit="07",
    title="FP8 blocks",
    entry="dequantise",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("the weights"),
    misconceptions=(
        Misconception(
            "divided",
            divided,
            "It looks like a division by scale_inv. In spite of its name it is what to multiply with: the inverse "
            "of the scale that was applied when the weight was stored.",
            "the tensor's name in deepseek-ai/DeepSeek-V3's checkpoint, README_WEIGHTS.md",
        ),
        Misconception(
            "converted",
            converted,
            "It looks like codes converted to numbers. A code is a bit pattern: reinterpret it (view), do not "
            "convert it.",
        ),
        Misconception(
            "other-format",
            other_format,
            "It looks like codes read as E5M2. Weights are stored as E4M3: four bits of exponent, three of fraction.",
        ),
        Misconception(
            "signed-integers",
            signed,
            "It looks like codes read as signed whole numbers. They are E4M3: reinterpret them as float8_e4m3fn.",
        ),
        Misconception(
            "block-transposed",
            block_transposed,
            "It looks like the two sides of a block exchanged. block[0] counts rows, block[1] columns.",
        ),
        Misconception(
            "tiled",
            tiled,
            "It looks like the table of scales laid out again and again. Each scale belongs to one block: repeat "
            "it within the block.",
        ),
        Misconception(
            "blocks-of-equal-size",
            blocks_of_equal_size,
            "It looks like blocks as large as makes them equal. Blocks have the size `block`, and the last ones "
            "are cut short.",
        ),
        Misconception(
            "rows-alone",
            rows_alone,
            "It looks like one scale for each block of rows. Columns have blocks too.",
        ),
        Misconception(
            "one-for-all",
            one_for_all,
            "It looks like the first scale for the whole matrix. Every block has its own.",
        ),
        Misconception(
            "never-scaled",
            never_scaled,
            "It looks like the numbers without their scales.",
        ),
        Misconception(
            "nan-as-zero",
            nan_as_zero,
            "It looks like NaN turned into 0. A broken number should stay visible: the codes 127 and 255 are NaN.",
        ),
        Misconception(
            "in-bfloat16",
            in_bfloat16,
            "It looks like a product in bfloat16. The result is float32: widen before you multiply.",
        ),
    ),
    alternatives=(by_table,),
    hints=(
        "Two things: what number a code stands for, and which scale a place has.",
        "codes.view(torch.float8_e4m3fn) reads the bits anew. Row n has the block n // block[0].",
        "repeat_interleave each scale block[0] times downwards and block[1] times across, cut to N and M, multiply.",
    ),
)
