"""12.5: what a mixture layer keeps for its backward pass, in bytes, tensor by tensor, under four policies."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

POLICIES = ("eager", "gate_up", "inputs", "fp8")
EXAMPLE = {"counts_E": [3, 0, 130], "tokens": 80, "top_k": 2, "width": 200, "hidden": 130}
EDGES = [  # policy, counts, tokens, slots, width, hidden, itemsize, granule, columns
    ("eager", [3, 0, 130], 80, 2, 200, 130, 2, 512, False),
    ("gate_up", [128, 256, 0, 1], 200, 2, 256, 128, 2, 512, True),
    ("inputs", [0, 0, 0], 5, 3, 7, 9, 4, 64, False),  # all dropped
    ("fp8", [129, 0, 4], 70, 2, 129, 127, 2, 1, True),
    ("eager", [0, 0], 0, 2, 16, 16, 4, 512, False),  # no tokens
    ("fp8", [256] * 256, 8192, 8, 7168, 2048, 2, 512, True),  # one layer of DeepSeek-V3
    ("eager", [256] * 256, 8192, 8, 7168, 2048, 2, 512, False),
    ("fp8", [256] * 256, 8192, 8, 7168, 2048, 2, 512, False),
    ("gate_up", [1, 1, 1, 1], 4, 1, 3, 5, 4, 96, False),  # no power of two
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {"policy": "fp8", **EXAMPLE, "itemsize": 2, "granule": 512, "columns": True}
    if number <= len(EDGES):
        policy, counts, T, K, D, I, itemsize, granule, columns = EDGES[number - 1]  # noqa: E741
    else:
        policy, E, K = str(rng.choice(POLICIES)), int(rng.integers(2, 9)), int(rng.integers(1, 4))
        counts = rng.integers(0, 300, size=E).tolist()
        T = -(-sum(counts) // K) + int(rng.integers(0, 9))  # some pairs may be dropped
        D, I = int(rng.integers(1, 900)), int(rng.integers(1, 900))  # noqa: E741
        itemsize, granule = int(rng.choice([2, 4])), int(rng.choice([1, 96, 512]))
        columns = bool(rng.integers(2))
    return {
        "policy": policy, "counts_E": counts, "tokens": T, "top_k": K, "width": D, "hidden": I,
        "itemsize": itemsize, "granule": granule, "columns": columns,
    }  # fmt: skip


def reference(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    rows, fp8 = sum(counts_E), policy == "fp8"
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * rows}
    kept["offsets"] = 8 * (len(counts_E) + 1)
    kept["x"] = tokens * width * (1 if fp8 else itemsize)
    if policy != "inputs":
        kept["gate_up"] = 2 * rows * hidden * (1 if fp8 else itemsize)
    if policy == "eager":
        kept |= {"rows": rows * width * itemsize, "silu": rows * hidden * itemsize}
        kept |= {"activation": rows * hidden * itemsize, "y": rows * width * itemsize}
        kept["weighted"] = 4 * rows * width
    if fp8:
        kept["x_scales"] = 4 * tokens * -(-width // 128)
        kept["gate_up_scales"] = 4 * rows * 2 * -(-hidden // 128)
    if fp8 and columns:
        kept["columns"] = rows * width
        kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def with_a_table(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    T, R, D, I = tokens, sum(counts_E), width, hidden  # noqa: E741
    tiles = lambda n: (n + 127) // 128  # noqa: E731
    narrow = 1 if policy == "fp8" else itemsize
    along = sum(map(tiles, counts_E))
    table = [  # name, policies, elements, bytes of each
        ("weights", "eager gate_up inputs fp8", T * top_k, 4),
        ("places", "eager gate_up inputs fp8", T * top_k, 8),
        ("pairs", "eager gate_up inputs fp8", R, 8),
        ("offsets", "eager gate_up inputs fp8", len(counts_E) + 1, 8),
        ("x", "eager gate_up inputs fp8", T * D, narrow),
        ("gate_up", "eager gate_up fp8", 2 * R * I, narrow),
        ("rows", "eager", R * D, itemsize),
        ("silu", "eager", R * I, itemsize),
        ("activation", "eager", R * I, itemsize),
        ("y", "eager", R * D, itemsize),
        ("weighted", "eager", R * D, 4),
        ("x_scales", "fp8", T * tiles(D), 4),
        ("gate_up_scales", "fp8", 2 * R * tiles(I), 4),
        ("columns", "fp8" if columns else "", R * D, 1),
        ("columns_scales", "fp8" if columns else "", along * D, 4),
    ]
    sizes = {name: count * each for name, policies, count, each in table if policy in policies.split()}
    sizes = {name: (size + granule - 1) // granule * granule for name, size in sizes.items()}
    sizes["total"] = sum(sizes.values())
    return sizes


def a_row_a_token(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = tokens, 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def dropped_pairs_kept(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = tokens * top_k, 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def tables_of_int32(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 4 * tokens * top_k, "pairs": 4 * R}
    kept |= {"offsets": 4 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def gate_alone(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def weighted_as_narrow_as_x(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": R * width * itemsize}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def scales_rounded_down(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * (width // 128), "gate_up_scales": 8 * R * (hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(count // 128 for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def tiles_across_gate_and_up(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 4 * R * -(-2 * hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def tiles_across_experts(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * -(-R // 128)
    kept = {name: -(-size // granule) * granule for name, size in kept.items()}
    return kept | {"total": sum(kept.values())}


def only_the_total_rounded(policy, counts_E, tokens, top_k, width, hidden, itemsize, granule, columns):
    R, narrow = sum(counts_E), 1 if policy == "fp8" else itemsize
    kept = {"weights": 4 * tokens * top_k, "places": 8 * tokens * top_k, "pairs": 8 * R}
    kept |= {"offsets": 8 * (len(counts_E) + 1), "x": tokens * width * narrow}
    if policy != "inputs":
        kept["gate_up"] = 2 * R * hidden * narrow
    if policy == "eager":
        kept |= {"rows": R * width * itemsize, "silu": R * hidden * itemsize, "activation": R * hidden * itemsize}
        kept |= {"y": R * width * itemsize, "weighted": 4 * R * width}
    if policy == "fp8":
        kept |= {"x_scales": 4 * tokens * -(-width // 128), "gate_up_scales": 8 * R * -(-hidden // 128)}
        if columns:
            kept["columns"] = R * width
            kept["columns_scales"] = 4 * width * sum(-(-count // 128) for count in counts_E)
    return kept | {"total": -(-sum(kept.values()) // granule) * granule}


EXERCISE = Exercise(
    id="12.5",
    unit="12",
    title="what is kept for the way back",
    entry="kept_bytes",
    points=10,
    minutes=30,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=14,
    reference=reference,
    compare=same(),
    misconceptions=(
        Misconception(
            "a-row-a-token",
            a_row_a_token,
            "It looks like one row a token. A token has a row at each of its experts: the rows are the sum of the counts.",
        ),
        Misconception(
            "dropped-pairs-kept",
            dropped_pairs_kept,
            "It looks like tokens * top_k rows. Dropped pairs have no row; only weights and places have an entry for each pair.",
        ),
        Misconception(
            "tables-of-int32",
            tables_of_int32,
            "It looks like whole numbers of 4 bytes. Places, pairs and offsets are int64: 8 bytes each.",
        ),
        Misconception(
            "gate-alone",
            gate_alone,
            "It looks like rows of length I for gate_up. Gate and up lie in one row of 2 I.",
        ),
        Misconception(
            "weighted-as-narrow-as-x",
            weighted_as_narrow_as_x,
            "It looks like weighted results in x's dtype. The weights are float32, and so is what is multiplied by them: 4 bytes.",
        ),
        Misconception(
            "scales-rounded-down",
            scales_rounded_down,
            "It looks like scales of whole tiles alone. A tile that begins has a scale: round up.",
        ),
        Misconception(
            "tiles-across-gate-and-up",
            tiles_across_gate_and_up,
            "It looks like tiles that run over the border between gate and up. Each of the two is cut by itself.",
        ),
        Misconception(
            "tiles-across-experts",
            tiles_across_experts,
            "It looks like column tiles that hold rows of two experts. Their sums are apart, so each expert begins a tile of its own.",
        ),
        Misconception(
            "only-the-total-rounded",
            only_the_total_rounded,
            "It looks like the total rounded up. Every tensor is an allocation, and each is rounded up by itself.",
        ),
    ),
    alternatives=(with_a_table,),
    hints=(
        "Make a list of tensors first: for each its name, its number of elements, the bytes of one, and under which policies it is kept.",
        "Rows are sum(counts_E); weights and places have tokens * top_k entries. Rounding up n to tiles of m is -(-n // m), in tiles.",
        "x_scales: tokens times the tiles of width; gate_up_scales: rows times twice the tiles of hidden; columns_scales: width times "
        "the tiles of each expert's count, added up; 4 bytes each. Then round every tensor up, then add.",
    ),
)
