"""09.3: copy a matrix with any strides to a contiguous one: a pointer is a start plus steps."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # rows, columns, row stride, column stride, start
    (0, 3, 3, 1, 0),
    (1, 1, 7, 5, 3),
    (20, 33, 40, 1, 0),  # rows with padding behind them
    (33, 20, 1, 33, 2),  # a transposed matrix
    (10, 40, 80, 2, 1),  # every second column
    (40, 7, 0, 1, 4),  # one row, shown again and again
    (7, 40, 3, 0, 5),  # one column, shown again and again
    (65, 5, 11, 2, 0),
    (1, 50, 9, 3, 1),
]


def inputs(rng, number):
    if number == 0:
        rows, columns, row_stride, column_stride, start, storage_S = 2, 3, 1, 4, 1, torch.arange(16.0)
    else:
        if number <= len(EDGES):
            rows, columns, row_stride, column_stride, start = EDGES[number - 1]
        else:
            rows, columns = rng.integers(2, 65, size=2).tolist()
            row_stride, column_stride = rng.permuted([int(rng.integers(1, 4)), int(rng.integers(20, 140))]).tolist()
            start = int(rng.integers(0, 9))
        storage_S = _storage(rng, rows, columns, row_stride, column_stride, start)
    return {
        "storage_S": storage_S,
        "start": start,
        "rows": rows,
        "columns": columns,
        "row_stride": row_stride,
        "column_stride": column_stride,
    }


def _storage(rng, rows, columns, row_stride, column_stride, start):
    """Numbers enough for every reading of the strides, so that a wrong one finds a wrong number; none for no rows."""
    pairs = [
        (row_stride, column_stride),
        (column_stride, row_stride),
        (columns, 1),
        (row_stride, 1),
        (columns, column_stride),
    ]
    last = max((rows - 1) * down + (columns - 1) * right for down, right in pairs)
    size = start + last + int(rng.integers(1, 9)) if rows else 0
    return torch.tensor(rng.normal(size=size), dtype=torch.float32)


def reference(storage_S, start, rows, columns, row_stride, column_stride):
    places_RC = start + torch.arange(rows)[:, None] * row_stride + torch.arange(columns) * column_stride
    return storage_S[places_RC]


@triton.jit
def _strided(x, out, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    c = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    inside = (r < rows) & (c < columns)
    values = tl.load(x + r * row_stride + c * column_stride, mask=inside)
    tl.store(out + r * columns + c, values, mask=inside)


def in_tiles(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S[start:], out_RC, rows, columns, row_stride, column_stride, TILE=TILE)
    return out_RC


@triton.jit
def _walking(x, out, start, columns, row_stride, column_stride, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    x += start + r * row_stride
    for begin in range(0, columns, BLOCK):
        inside = c < columns - begin
        tl.store(out + r * columns + begin + c, tl.load(x + c * column_stride, mask=inside), mask=inside)
        x += BLOCK * column_stride


def a_pointer_that_walks(storage_S, start, rows, columns, row_stride, column_stride):
    out_RC = torch.empty((rows, columns), dtype=storage_S.dtype)
    if rows:
        _walking[(rows,)](storage_S, out_RC, start, columns, row_stride, column_stride, BLOCK=16)
    return out_RC


def assumes_contiguous(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S[start:], out_RC, rows, columns, columns, 1, TILE=TILE)
    return out_RC


def column_stride_forgotten(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S[start:], out_RC, rows, columns, row_stride, 1, TILE=TILE)
    return out_RC


def row_stride_forgotten(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S[start:], out_RC, rows, columns, columns, column_stride, TILE=TILE)
    return out_RC


def start_forgotten(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S, out_RC, rows, columns, row_stride, column_stride, TILE=TILE)
    return out_RC


def strides_swapped(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _strided[grid](storage_S[start:], out_RC, rows, columns, column_stride, row_stride, TILE=TILE)
    return out_RC


@triton.jit
def _column_major(x, out, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    c = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    inside = (r < rows) & (c < columns)
    values = tl.load(x + r * row_stride + c * column_stride, mask=inside)
    tl.store(out + c * rows + r, values, mask=inside)


def result_column_by_column(storage_S, start, rows, columns, row_stride, column_stride):
    TILE = 32
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    out_RC = torch.empty(rows, columns)
    _column_major[grid](storage_S[start:], out_RC, rows, columns, row_stride, column_stride, TILE=TILE)
    return out_RC


EXERCISE = Exercise(
    id="09.3",
    unit="09",
    title="a matrix with strides",
    entry="to_contiguous",
    points=5,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=same("out"),
    misconceptions=(
        Misconception(
            "assumes-contiguous",
            assumes_contiguous,
            "It looks like a matrix read as if it were contiguous. Element (r, c) lies at start + r * row_stride + "
            "c * column_stride; only the result is contiguous.",
            seen="NVIDIA/TransformerEngine #2746",
        ),
        Misconception(
            "column-stride-forgotten",
            column_stride_forgotten,
            "It looks like columns taken one after the other. In a transposed or sliced matrix neighbours in a row lie "
            "column_stride elements apart.",
        ),
        Misconception(
            "row-stride-forgotten",
            row_stride_forgotten,
            "It looks like row * columns where row * row_stride is meant: the next row of the input begins row_stride "
            "elements further on, however long a row is.",
        ),
        Misconception(
            "start-forgotten",
            start_forgotten,
            "It looks like a matrix that begins at the first element of the storage. It begins at `start`.",
        ),
        Misconception(
            "strides-swapped",
            strides_swapped,
            "It looks like the two strides in each other's places. row_stride is one step down, column_stride one step right.",
        ),
        Misconception(
            "result-column-by-column",
            result_column_by_column,
            "It looks like a result written column by column. In a contiguous [rows, columns] tensor element (r, c) lies at "
            "r * columns + c.",
        ),
    ),
    alternatives=(in_tiles, a_pointer_that_walks),
    hints=(
        "How many elements further on is the next one to the right? The next one below?",
        "Input and result each have their own two steps. Those of the result are columns and 1.",
        "Make r a column of indices in int64 and c a row of them; their sum, each times its stride, is the offset of a tile.",
    ),
    forbids=("torch.as_strided", "Tensor.as_strided"),
    kernel=True,
)
