"""How many blocks of a kernel fit on an SM at once, and what stands in the way of more.

Each resource gives a number of blocks; the least of them counts. Registers are given to whole warps, in portions;
shared memory in portions as well, and a little of it goes to the system for each block (`Limits`). That an SM has four
parts, each with a quarter of the registers, is left out: it only lowers what blocks of one or two warps are allowed.
"""

from dataclasses import dataclass

from course.hardware.gpus import GPU


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # on an SM at once
    warps: int  # on an SM at once
    share: float  # of the warps that an SM can hold
    limits: dict[str, int]  # resource -> blocks that it would allow

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The resources that allow the fewest blocks."""
        return tuple(name for name, blocks in self.limits.items() if blocks == self.blocks)


def occupancy(gpu: GPU, warps: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of a kernel with so many warps a block, registers a thread and bytes of shared memory a block.

    Raises: ValueError for a block that does not fit at all, with the reason.
    """
    its = gpu.limits
    if its is None:
        raise ValueError(f"the limits of {gpu.arch} ({gpu.name}) are not known here")
    if not 1 <= warps <= 32:
        raise ValueError(f"a block has 1 to 32 warps, not {warps}")
    if registers > its.registers_a_thread:
        raise ValueError(f"a thread has at most {its.registers_a_thread} registers on {gpu.name}, not {registers}")
    if shared_bytes > its.shared_a_block:
        raise ValueError(
            f"a block has at most {its.shared_a_block:,} bytes of shared memory on {gpu.name}, not {shared_bytes:,}"
        )
    a_warp = _up(32 * max(registers, 1), its.register_unit)
    a_block = _up(shared_bytes + its.shared_reserved, its.shared_unit)
    limits = {
        "warps": its.warps // warps,
        "blocks": its.blocks,
        "registers": its.registers // a_warp // warps,
        "shared memory": its.shared // a_block,
    }
    blocks = min(limits.values())
    if not blocks:
        raise ValueError(f"{gpu.name} can hold no block of {warps} warps with {registers} registers a thread")
    return Occupancy(blocks, blocks * warps, blocks * warps / its.warps, limits)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
