"""08.1: FLOPs and bytes of a product for each of several experts, and their ratio (Williams, Waterman and Patterson 2009)."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # tokens of each expert, K, N, bytes of x, w, y, block, accumulate
    ([5], 7, 3, 2, 2, 2, None, False),  # one plain product
    ([0, 0], 8, 8, 1, 1, 2, [4, 4], False),  # nobody has work
    ([1, 0, 2, 0], 130, 257, 1, 1, 2, [128, 128], True),  # blocks cut short on both sides
    ([2, 9], 5, 11, 2, 1, 4, None, True),  # read, added to, written
    ([3, 1], 64, 200, 1, 1, 2, [16, 100], False),  # a block that is not square
    ([0, 130, 4], 7168, 4096, 1, 1, 2, [128, 128], False),  # DeepSeek-V3's gate and up
    ([4096] * 4, 2048, 7168, 1, 4, 4, [128, 128], True),
    ([6, 0, 2], 5, 200, 1, 1, 2, [128, 128], False),  # a block longer than K
    ([6, 0, 2], 200, 5, 1, 1, 2, [128, 128], False),  # a block wider than N
    ([2, 7], 9, 300, 1, 1, 2, [1, 128], True),  # a scale for each part of a row
    ([], 16, 16, 1, 1, 2, [4, 4], True),  # no experts
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate = [3, 0, 1], 4, 6, 1, 1, 2, [4, 4], False
    elif number <= len(EDGES):
        tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate = EDGES[number - 1]
    else:
        tokens = [int(M) * int(rng.integers(2)) for M in rng.integers(1, 300, size=int(rng.integers(2, 9)))]
        tokens[int(rng.integers(len(tokens)))] = int(rng.integers(1, 9))
        K, N = int(rng.integers(1, 900)), int(rng.integers(1, 900))
        bytes_x, bytes_w, bytes_y = (int(size) for size in rng.choice([1, 2, 4], size=3))
        block = [int(side) for side in rng.choice([16, 32, 96, 128], size=2)] if rng.integers(3) else None
        accumulate = bool(rng.integers(2))
    sizes = {"bytes_x": bytes_x, "bytes_w": bytes_w, "bytes_y": bytes_y}
    return {"tokens": list(tokens), "K": K, "N": N, **sizes, "block": block, "accumulate": accumulate}


def reference(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def expert_by_expert(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    flops = read = written = 0
    for M in tokens:
        if not M:
            continue
        flops += M * N * (K + K)
        read += M * K * bytes_x + K * N * bytes_w
        written += M * N * bytes_y
        if accumulate:
            read += M * N * bytes_y
        if block:
            rows, columns = range(0, K, block[0]), range(0, N, block[1])
            read += 4 * len(rows) * len(columns)
    if read + written == 0:
        return 0, 0, 0.0
    return flops, read + written, flops / (read + written)


def one_flop(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def idle_experts_read(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M >= 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def weights_read_once(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = min(len(working), 1) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def weights_for_each_token(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = sum(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def no_scales(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def scales_cut_off(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * (K // rows) * (N // columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def scales_by_area(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K * N / (rows * columns))
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def block_turned(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        columns, rows = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def scales_of_one_byte(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += bytes_w * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def scales_once(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    scales = 4 * math.ceil(K / block[0]) * math.ceil(N / block[1]) if block else 0
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = len(working) * weights + min(len(working), 1) * scales + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def result_not_read(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def result_always_read(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_y
    moved = len(working) * weights + sum(working) * (K * bytes_x + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def one_width_for_all(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        rows, columns = block
        weights += 4 * math.ceil(K / rows) * math.ceil(N / columns)
    result = 2 * N * bytes_w if accumulate else N * bytes_w
    moved = len(working) * weights + sum(working) * (K * bytes_w + result)
    flops = 2 * sum(working) * K * N
    return flops, moved, flops / moved if moved else 0.0


def mean_of_ratios(tokens, K, N, bytes_x, bytes_w, bytes_y, block, accumulate):
    working = [M for M in tokens if M > 0]
    weights = K * N * bytes_w
    if block is not None:
        weights += 4 * math.ceil(K / block[0]) * math.ceil(N / block[1])
    result = 2 * N * bytes_y if accumulate else N * bytes_y
    moved = [weights + M * (K * bytes_x + result) for M in working]
    ratios = [2 * M * K * N / its for M, its in zip(working, moved, strict=True)]
    return 2 * sum(working) * K * N, sum(moved), sum(ratios) / len(ratios) if ratios else 0.0


EXERCISE = Exercise(
    id="08.1",
    unit="08",
    title="FLOPs a byte",
    entry="intensity",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    cases=14,
    inputs=inputs,
    reference=reference,
    compare=same("flops", "moved", "ratio", rtol=1e-12),
    misconceptions=(
        Misconception(
            "one-flop",
            one_flop,
            "It looks like a multiply and an add counted as one. They are two FLOPs: 2 M K N for a product.",
            "pulp-platform/ara issue 215: operations counted with and without the two of a multiply-add",
        ),
        Misconception(
            "idle-experts-read",
            idle_experts_read,
            "It looks like an expert without tokens that reads its weights. No kernel runs for it, and nothing moves.",
        ),
        Misconception(
            "weights-read-once",
            weights_read_once,
            "It looks like weights read once for all experts. Each expert that works has weights of its own.",
        ),
        Misconception(
            "weights-for-each-token",
            weights_for_each_token,
            "It looks like weights read anew for each token. An expert's tokens share one reading: that is why "
            "a batch helps.",
        ),
        Misconception(
            "no-scales",
            no_scales,
            "It looks like weights without their scales. Each block of w has a float32 beside it, 4 bytes.",
        ),
        Misconception(
            "scales-cut-off",
            scales_cut_off,
            "It looks like whole blocks only. A block that is cut short has a scale too: round up, in each dimension.",
        ),
        Misconception(
            "scales-by-area",
            scales_by_area,
            "It looks like the number of entries divided by the size of a block. Blocks are cut off at both "
            "edges: round up in each dimension, then multiply.",
        ),
        Misconception(
            "block-turned",
            block_turned,
            "It looks like a block turned by 90 degrees. w is [K, N], and block is [along K, along N].",
        ),
        Misconception(
            "scales-of-one-byte",
            scales_of_one_byte,
            "It looks like scales as narrow as the weights. A scale is a float32: 4 bytes, whatever the weights have.",
        ),
        Misconception(
            "scales-once",
            scales_once,
            "It looks like scales read once for all experts. Each expert's weights have scales of their own.",
        ),
        Misconception(
            "result-not-read",
            result_not_read,
            "It looks like a result that is only written. To add to what is there, a kernel reads it first: "
            "twice the bytes.",
        ),
        Misconception(
            "result-always-read",
            result_always_read,
            "It looks like a result that is always read. Without accumulate it is written, and no more.",
        ),
        Misconception(
            "one-width-for-all",
            one_width_for_all,
            "It looks like one width for all. x, w and y each have their own bytes an element.",
        ),
        Misconception(
            "mean-of-ratios",
            mean_of_ratios,
            "It looks like a mean of the experts' ratios. The ratio of the whole is all FLOPs over all bytes.",
        ),
    ),
    alternatives=(expert_by_expert,),
    hints=(
        "Go through one expert first: what does it read, what does it write, and how often?",
        "Count three parts apart: what grows with the tokens of an expert, what an expert costs once it has a "
        "token, and what is left when it has none.",
        "Weights and scales go times the number of experts that work; x and y go times the number of tokens; y "
        "twice where it is added to. Scales: rounded up along K, rounded up along N, times each other, times 4.",
    ),
)
