"""11.1: which tile a program computes, in groups of rows of tiles that go to and fro; and what a wave of programs reads."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # M, N, block_m, block_n, group, wave
    (0, 50, 16, 16, 2, 4),
    (50, 0, 16, 16, 2, 4),
    (1, 1, 64, 128, 8, 132),  # one tile, blocks larger than the matrix
    (70, 90, 16, 32, 9, 4),  # a group taller than the matrix
    (100, 200, 32, 32, 1, 7),  # a group of one row
    (128, 128, 32, 16, 2, 8),  # all even: whole groups, whole waves
    (300, 170, 32, 32, 4, 12),
]


def inputs(rng, number):
    if number == 0:
        sizes = 33, 40, 16, 16, 2, 4
    elif number <= len(EDGES):
        sizes = EDGES[number - 1]
    else:
        block_m, block_n = (int(rng.choice([16, 32, 64])) for _ in range(2))
        M, N = int(rng.integers(2, 12) * block_m + rng.integers(1, block_m)), int(rng.integers(1, 9 * block_n))
        sizes = M, N, block_m, block_n, int(rng.integers(2, 6)), int(rng.integers(3, 20))
    return dict(zip(("M", "N", "block_m", "block_n", "group", "wave"), sizes, strict=True))


def reference(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    tile_P = torch.arange(rows * columns)
    band_P = tile_P // (group * columns)
    first_P = band_P * group
    height_P = (rows - first_P).clamp(max=group)
    inside_P = tile_P - first_P * columns
    row_P = first_P + inside_P % height_P
    column_P = inside_P // height_P
    column_P = torch.where(band_P % 2 == 1, columns - 1 - column_P, column_P)
    places_P2 = torch.stack([row_P, column_P], dim=1)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def walked_tile_by_tile(M, N, block_m, block_n, group, wave):
    rows, columns = math.ceil(M / block_m), math.ceil(N / block_n)
    order, forth = [], True
    for top in range(0, rows, group):
        for column in range(columns) if forth else reversed(range(columns)):
            order += [(row, column) for row in range(top, min(top + group, rows))]
        forth = not forth
    counts = []
    for begin in range(0, len(order), wave):
        some = order[begin : begin + wave]
        counts.append([len({row for row, _ in some}), len({column for _, column in some})])
    as_pairs = [torch.tensor(each, dtype=torch.int64).reshape(-1, 2) for each in (order, counts)]
    return tuple(as_pairs)


def last_group_as_high(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        row, column = band * group + inside % group, inside // group
        places.append((row, columns - 1 - column if band % 2 else column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def never_back(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        height = min(rows - band * group, group)
        row, column = band * group + inside % height, inside // height
        places.append((row, column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def along_rows(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        row, column = band * group + inside // columns, inside % columns
        places.append((row, columns - 1 - column if band % 2 else column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def groups_of_columns(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * rows), p % (group * rows)
        width = min(columns - band * group, group)
        row, column = inside // width, band * group + inside % width
        places.append((rows - 1 - row if band % 2 else row, column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def edges_left_out(M, N, block_m, block_n, group, wave):
    rows, columns = M // block_m, N // block_n
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        height = min(rows - band * group, group)
        row, column = band * group + inside % height, inside // height
        places.append((row, columns - 1 - column if band % 2 else column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def rows_turn_too(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        height = min(rows - band * group, group)
        row, column = band * group + inside % height, inside // height
        places.append((2 * band * group + height - 1 - row, columns - 1 - column) if band % 2 else (row, column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(part.unique()) for part in its.unbind(1)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


def tiles_counted_for_blocks(M, N, block_m, block_n, group, wave):
    rows, columns = -(-M // block_m), -(-N // block_n)
    places = []
    for p in range(rows * columns):
        band, inside = p // (group * columns), p % (group * columns)
        height = min(rows - band * group, group)
        row, column = band * group + inside % height, inside // height
        places.append((row, columns - 1 - column if band % 2 else column))
    places_P2 = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    waves = [[len(its), len(its)] for its in places_P2.split(wave) if len(its)]
    return places_P2, torch.tensor(waves, dtype=torch.int64).view(-1, 2)


EXERCISE = Exercise(
    id="11.1",
    unit="11",
    title="the order of tiles",
    entry="tile_order",
    points=10,
    minutes=25,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=same("places", "wanted"),
    misconceptions=(
        Misconception(
            "last-group-as-high",
            last_group_as_high,
            "It looks like a last group as high as the others: where the rows of tiles are no multiple of group, programs then land "
            "below the matrix. Inside a group divide by its own height.",
        ),
        Misconception(
            "never-back",
            never_back,
            "It looks like groups that all go from left to right. Every second one (1, 3, ...) goes back from right to left, so that "
            "it begins with the column of tiles that the group before has just read.",
        ),
        Misconception(
            "along-rows",
            along_rows,
            "It looks like tiles numbered along a row first. Within a group the number runs down a column: all its rows of "
            "tiles, then the next column.",
        ),
        Misconception(
            "groups-of-columns",
            groups_of_columns,
            "It looks like groups of columns of tiles. A group is made of rows of tiles.",
        ),
        Misconception(
            "edges-left-out",
            edges_left_out,
            "It looks like sizes divided and rounded down: the tiles at the right and lower edge, which are not full, are missing.",
        ),
        Misconception(
            "rows-turn-too",
            rows_turn_too,
            "It looks like a way back that is turned round as a whole. Only the columns go back; within a column the number still "
            "runs downwards.",
        ),
        Misconception(
            "tiles-for-blocks",
            tiles_counted_for_blocks,
            "It looks like one block of each matrix counted for every program. Programs of one wave share blocks, and that is the "
            "point of the order: count the different ones.",
        ),
    ),
    alternatives=(walked_tile_by_tile,),
    hints=(
        "Draw the example, three by three tiles, with a pencil line through the programs 0 to 8.",
        "Which group is a program in, how high is that group, and how many programs came before in it? The last group may be lower.",
        "With the number inside the group: its row is the remainder by the group's height, its column the quotient, counted from the "
        "right in odd groups. For a wave, count the different rows and the different columns.",
    ),
)
