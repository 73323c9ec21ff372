"""08.5: how many blocks of a kernel an SM holds at once (as course.hardware.occupancy counts them)."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

HOPPER = {  # GPUS["h800"].limits has them with their source
    "warps": 64, "blocks": 32, "registers": 65_536, "register_unit": 256,
    "shared": 233_472, "shared_unit": 128, "shared_reserved": 1024,
}  # fmt: skip
AMPERE = HOPPER | {"shared": 167_936}
SMALL = {  # a chip that nobody sells: every portion is odd
    "warps": 48, "blocks": 12, "registers": 20_000, "register_unit": 192,
    "shared": 50_000, "shared_unit": 512, "shared_reserved": 4700,
}  # fmt: skip
EDGES = [  # limits, warps a block, registers a thread, bytes of shared memory a block
    (HOPPER, 8, 213, 147_456),  # the course's matmul: registers and shared memory alike
    (HOPPER, 1, 32, 0),  # 32 blocks and no more, though 64 warps would fit
    (HOPPER, 4, 40, 0),  # a portion of registers exactly
    (HOPPER, 4, 41, 0),  # one register more
    (HOPPER, 5, 90, 2000),  # portions go to warps and not to blocks
    (HOPPER, 2, 32, 6272),  # warps, blocks, registers and shared memory all allow 32
    (HOPPER, 4, 32, 57_344),  # the reserve takes a block away
    (HOPPER, 16, 32, 64),  # full
    (HOPPER, 32, 255, 1000),  # not even one fits
    (AMPERE, 8, 128, 98_304),
    (SMALL, 1, 20, 0),  # the reserve alone
    (SMALL, 1, 20, 40),  # portions of shared memory
    (SMALL, 2, 31, 1456),  # rounded up after the reserve is added
    (SMALL, 2, 18, 8000),  # a reserve for each block
    (SMALL, 2, 61, 100),  # portions of registers
    (SMALL, 3, 33, 1300),
    (SMALL, 7, 24, 60_000),  # too much shared memory
    (HOPPER, 3, 200, 45_000),
    (HOPPER | {"register_unit": 512}, 8, 33, 0),  # wider portions of registers: 5 blocks, not 6
    (HOPPER | {"register_unit": 128}, 4, 41, 0),  # narrower ones: 11 blocks, not 10
    (HOPPER | {"blocks": 16}, 1, 16, 0),
    (HOPPER | {"warps": 48}, 8, 16, 0),  # 6 blocks, and full
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        limits, warps, registers, shared_bytes = HOPPER, 6, 50, 30_000
    elif number <= len(EDGES):
        limits, warps, registers, shared_bytes = EDGES[number - 1]
    else:
        limits = HOPPER if number % 2 else SMALL
        warps, registers = int(rng.integers(1, 10)), int(rng.integers(16, 200))
        shared_bytes = int(rng.integers(0, limits["shared"] // int(rng.integers(1, 20))))
        if limits is SMALL:
            warps, registers = int(rng.integers(1, 4)), int(rng.integers(8, 60))
            shared_bytes = int(rng.integers(8000)) * int(rng.integers(4) > 0)
    return {"limits": dict(limits), "warps": warps, "registers": registers, "shared_bytes": shared_bytes}


def compare(inputs, wanted, got):
    """As `same`, and of a wrong answer what its SM has that the H800's has not."""
    what = same("blocks", "share", "limited_by", rtol=1e-9)(inputs, wanted, got)
    others = {name: value for name, value in inputs["limits"].items() if value != HOPPER[name]}
    return f"{what}; limits differ from the H800's in {others}" if what and others else what


def reference(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def one_block_more(limits, warps, registers, shared_bytes):
    """Add blocks until something is full."""
    unit, a_warp = limits["register_unit"], 0
    while a_warp < registers * 32:
        a_warp += unit
    a_block = math.ceil((shared_bytes + limits["shared_reserved"]) / limits["shared_unit"]) * limits["shared_unit"]
    cost = {"registers": a_warp * warps, "shared memory": a_block, "warps": warps, "blocks": 1}
    have = {name: limits[name.split()[0]] for name in cost}
    blocks, full = 0, []
    while not full:
        full = [name for name in cost if cost[name] * (blocks + 1) > have[name]]
        blocks += not full
    full.sort()
    return blocks, blocks / limits["warps"] * warps, full


def registers_not_rounded(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = 32 * registers
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def registers_rounded_for_a_block(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = 32 * registers
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // portions(warps * a_warp, limits["register_unit"]),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def rounded_a_thread(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = 32 * portions(registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def one_thread_a_warp(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def reserve_forgotten(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + 1, limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def reserve_only_with_use(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"]) if shared_bytes else 1
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def reserve_once(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + 1, limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": (limits["shared"] - limits["shared_reserved"]) // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def shared_not_rounded(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = shared_bytes + limits["shared_reserved"]
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def rounded_before_the_reserve(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes, limits["shared_unit"]) + limits["shared_reserved"]
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def blocks_unlimited(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def share_of_blocks(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks / limits["blocks"], sorted(name for name in allowed if allowed[name] == blocks)


def one_limit(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], [min(allowed, key=allowed.get)]


def what_is_full(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return (
        blocks,
        blocks * warps / limits["warps"],
        sorted(
            name
            for name, used, have in (
                ("warps", blocks * warps, limits["warps"]),
                ("blocks", blocks, limits["blocks"]),
                ("registers", blocks * warps * a_warp, limits["registers"]),
                ("shared memory", blocks * a_block, limits["shared"]),
            )
            if used == have
        ),
    )


def not_sorted(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], [name for name in allowed if allowed[name] == blocks]


def at_least_one(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // (warps * a_warp),
        "shared memory": limits["shared"] // a_block,
    }
    blocks = max(min(allowed.values()), 1)
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def unrounded_result(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // a_warp // 1 / warps,
        "shared memory": limits["shared"] // a_block,
    }
    blocks = int(min(allowed.values()))
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


def four_parts(limits, warps, registers, shared_bytes):
    def portions(value, unit):
        return -(-value // unit) * unit

    a_warp = portions(32 * registers, limits["register_unit"])
    a_block = portions(shared_bytes + limits["shared_reserved"], limits["shared_unit"])
    allowed = {
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
        "registers": limits["registers"] // a_warp // 4 * 4 // warps,
        "shared memory": limits["shared"] // a_block,
    }
    blocks = min(allowed.values())
    return blocks, blocks * warps / limits["warps"], sorted(name for name in allowed if allowed[name] == blocks)


EXERCISE = Exercise(
    id="08.5",
    unit="08",
    title="occupancy",
    entry="occupancy",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    cases=26,
    inputs=inputs,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "registers-not-rounded",
            registers_not_rounded,
            "It looks like registers that are given out one by one. A warp gets them in whole portions of "
            "register_unit.",
            "kokkos/kokkos pull request 5624: portions of 256 registers a warp were left out",
        ),
        Misconception(
            "registers-rounded-for-a-block",
            registers_rounded_for_a_block,
            "It looks like registers rounded up once for the block. Each warp gets whole portions of its own.",
        ),
        Misconception(
            "rounded-a-thread",
            rounded_a_thread,
            "It looks like portions for each thread. register_unit is a portion for a warp, 32 threads together.",
        ),
        Misconception(
            "one-thread-a-warp",
            one_thread_a_warp,
            "It looks like the registers of one thread taken for those of a warp. A warp has 32 threads.",
        ),
        Misconception(
            "reserve-forgotten",
            reserve_forgotten,
            "It looks like shared memory without what the system keeps. Each block costs shared_reserved more, "
            "also one that uses none.",
        ),
        Misconception(
            "reserve-only-with-use",
            reserve_only_with_use,
            "It looks like a reserve only for blocks that use shared memory. The system keeps its part of every block.",
        ),
        Misconception(
            "reserve-once",
            reserve_once,
            "It looks like a reserve for the whole SM. The system keeps shared_reserved of each block.",
        ),
        Misconception(
            "shared-not-rounded",
            shared_not_rounded,
            "It looks like shared memory that is given out byte by byte. It comes in whole portions of shared_unit.",
        ),
        Misconception(
            "rounded-before-the-reserve",
            rounded_before_the_reserve,
            "It looks like the reserve added after rounding. Add it first, then round the sum up.",
        ),
        Misconception(
            "blocks-unlimited",
            blocks_unlimited,
            "It looks like an SM with any number of blocks. It has a limit of its own, limits['blocks'].",
        ),
        Misconception(
            "share-of-blocks",
            share_of_blocks,
            "It looks like a share of the blocks. Occupancy is a share of the warps that an SM can hold.",
        ),
        Misconception(
            "one-limit",
            one_limit,
            "It looks like one resource where several are equally tight. Name all that allow just so many blocks.",
        ),
        Misconception(
            "what-is-full",
            what_is_full,
            "It looks like resources that are used up to the last bit. A resource limits when one block more "
            "does not fit, also when something is left over.",
        ),
        Misconception(
            "not-sorted",
            not_sorted,
            "It looks like names in another order. Sort them by the alphabet.",
        ),
        Misconception(
            "at-least-one",
            at_least_one,
            "It looks like at least one block in any case. A block that asks for more than there is does not run: 0.",
        ),
        Misconception(
            "unrounded-result",
            unrounded_result,
            "It looks like a fraction of a block kept on the way. A resource allows a whole number of blocks: "
            "round down before you compare.",
        ),
        Misconception(
            "four-parts",
            four_parts,
            "It looks like NVIDIA's finer rule, by which warps go to the four parts of an SM. This exercise "
            "leaves that out: a whole pool of registers.",
            "kokkos/kokkos pull request 5739 put this rule in",
        ),
    ),
    alternatives=(one_block_more,),
    hints=(
        "Ask each resource by itself how many blocks it would allow. Then look at all four answers.",
        "Two resources come in portions: registers for each warp, shared memory for each block with its "
        "reserve. Round up what one warp, or one block, gets; then round down how often that fits.",
        "Put the four numbers of blocks in a dict under their names. The smallest value is `blocks`; the names "
        "that have this value, sorted, are `limited_by`; the share counts warps.",
    ),
)
