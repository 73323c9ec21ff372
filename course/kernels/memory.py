"""The memory that a launch may touch, and the rules for touching it.

The pointer of argument i carries the number i + 1 in its upper 16 bits; a real address needs no more than 47. Whatever a
kernel makes of it (sums, selections, casts to int64 and back) goes on saying which tensor it came from, so that a step
out of one tensor is seen even where it lands in another. In bounds are the elements of the view that was passed, no others.

Two accesses of one element race when different programs make them, one of them writes, not both are atomics, and no
chain of atomics with release and acquire puts one after the other.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
import torch

from course.kernels.launch import Access, KernelFault, Launch, place, plural

TAG = 48
REAL = np.uint64((1 << TAG) - 1)
NOWHERE = 1 << 46  # stands for the address of an empty tensor
SAYS = {"load": "loads", "store": "stores", "atomic": "updates by an atomic"}
RACES = {
    "load": (("store", 0), ("atomic", 0), ("atomic", 1)),
    "store": (("store", 0), ("load", 0), ("load", 1), ("atomic", 0), ("atomic", 1)),
    "atomic": (("store", 0), ("load", 0), ("load", 1)),
}


class Argument:
    """A tensor as it was passed: where its elements lie."""

    def __init__(self, number: int, name: str, tensor: torch.Tensor):
        self.name, self.shape, self.strides = name, tuple(tensor.shape), tensor.stride()
        self.itemsize, self.count = tensor.element_size(), tensor.numel()
        steps = zip(self.shape, self.strides, strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in steps) if self.count else 0
        self.extent = span * self.itemsize
        self.address = tensor.data_ptr() or NOWHERE
        self.pointer = np.uint64(number << TAG | self.address)
        self.flat = None if tensor.is_contiguous() else self._flat(span)

    def _flat(self, span: int) -> np.ndarray:
        """The row-major index of what lies at each place between the first and the last element; -1 for no element."""
        flat = np.full(span, -1)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, [8 * stride for stride in self.strides])
        view[...] = np.arange(self.count).reshape(self.shape)
        return flat

    def outside(self, offsets: np.ndarray, width: int) -> np.ndarray | None:
        """Which of the accesses of `width` bytes at these byte offsets leave the view; None when none does."""
        if self.flat is None and offsets.min() >= 0 and offsets.max() + width <= self.extent:
            return None
        out = (offsets < 0) | (offsets + width > self.extent)
        if self.flat is not None:
            for end in (0, width - 1):
                out |= self.flat[np.where(out, 0, offsets + end) // self.itemsize] < 0
        return out if out.any() else None

    def elements(self, offsets: np.ndarray) -> np.ndarray:
        places = offsets // self.itemsize
        return places if self.flat is None else self.flat[places]

    def complaint(self, offset: int) -> str:
        at = offset // self.itemsize
        if self.flat is not None:
            return (
                f"the element {at} places from {self.name}'s first, which is not one of {self.name}: "
                f"its shape is {list(self.shape)}, its strides are {list(self.strides)}"
            )
        shape = f" (shape {list(self.shape)})" if len(self.shape) > 1 else ""
        hint = "is an offset wrong?" if at < 0 else "is a mask missing, or a stride wrong?"
        return f"{self.name}[{at}], but {self.name} has {plural(self.count, 'element')}{shape}; {hint}"


class Shadow:
    """Who touched each granule of one storage last. Steps number the accesses of a launch; 0 is nobody's."""

    def __init__(self):
        self.start, self.end, self.granule = 1 << 62, 0, 8
        self.steps: dict[
            tuple[str, int], np.ndarray
        ] = {}  # (kind, 0): the last; (kind, 1): the last of a program before

    def cover(self, argument: Argument) -> None:
        self.start = min(self.start, argument.address)
        self.end = max(self.end, argument.address + argument.extent)
        self.granule = min(self.granule, argument.itemsize)

    def granules(self, places: np.ndarray, width: int) -> np.ndarray:
        """The granules of accesses of `width` bytes at real addresses, one row an access."""
        if width < self.granule:
            self.steps = {key: np.repeat(steps, self.granule // width) for key, steps in self.steps.items()}
            self.granule = width
        first = (places - self.start) // self.granule
        return first[:, None] + np.arange(width // self.granule)

    def conflicts(self, kind: str, at: np.ndarray, began: int) -> Iterator[tuple[str, np.ndarray]]:
        """Kinds of earlier programs' accesses that clash, each with the step of the clash by granule (0: none)."""
        for key in RACES[kind]:
            if key in self.steps:
                steps = self.steps[key][at]
                clash = np.where(steps < began, steps, 0)
                if clash.any():
                    yield key[0], clash

    def mark(self, kind: str, at: np.ndarray, step: int, began: int) -> None:
        last = self._array(kind, 0)
        if kind != "store":
            seen = last[at]
            other = (seen > 0) & (seen < began)
            if other.any():
                self._array(kind, 1)[at[other]] = seen[other]
        last[at] = step

    def twice(self, at: np.ndarray, values: np.ndarray) -> int | None:
        """A lane of one store whose element another lane writes with another value, or None."""
        lanes, winner = np.arange(len(at)), self._array("lane", 0)
        winner[at] = lanes
        lost = np.flatnonzero(winner[at] != lanes)
        codes = values.view(f"u{values.itemsize}")
        lost = lost[codes[lost] != codes[winner[at[lost]]]]
        return int(lost[0]) if lost.size else None

    def _array(self, kind: str, age: int) -> np.ndarray:
        if (kind, age) not in self.steps:
            self.steps[kind, age] = np.zeros(-(-(self.end - self.start) // self.granule), np.int32)
        return self.steps[kind, age]


class Memory:
    """The memory of one launch. Programs run one after another; `begin` says which one runs."""

    def __init__(self, launch: Launch):
        self.launch = launch
        self.arguments: dict[int, Argument] = {}
        self.shadows: dict[int, Shadow] = {}  # by the storage's address
        self.shadow_of: dict[int, Shadow] = {}
        self.programs: list[tuple[int, ...]] = []
        self.began: list[int] = []
        self.step = 0
        self.atomics: list[tuple[int, int, frozenset, bool, bool]] = []  # step, program, addresses, acquire, release

    def add(self, name: str, tensor: torch.Tensor) -> np.uint64:
        """Take a tensor in; the pointer that the kernel is to be given for it."""
        number = len(self.arguments) + 1
        argument = self.arguments[number] = Argument(number, name, tensor)
        shadow = self.shadows.setdefault(tensor.untyped_storage().data_ptr(), Shadow())
        shadow.cover(argument)
        self.shadow_of[number] = shadow
        return argument.pointer

    def begin(self, program: tuple[int, ...]) -> None:
        self.programs.append(program)
        self.began.append(self.step + 1)

    def fault(self, what: str) -> KernelFault:
        where = f", {place(self.programs[-1])}" if self.programs else ""
        return KernelFault(f"{self.launch.kernel}{where}: {what}")

    def touch(
        self,
        kind: str,
        pointers: np.ndarray,
        active: np.ndarray,
        width: int,
        values: np.ndarray | None = None,
        acquire: bool = False,
        release: bool = False,
    ) -> np.ndarray:
        """Check and record one access of `width` bytes a lane; the real addresses to make it at.

        Raises: KernelFault when a lane that is not masked off leaves its tensor, or races with another program.
        """
        self.step += 1
        active = np.asarray(active, bool)
        lanes = pointers[active]
        if lanes.size:
            if kind == "atomic":
                places = frozenset((lanes & REAL).tolist())
                self.atomics.append((self.step, len(self.programs) - 1, places, acquire, release))
            first, last = int(lanes.min()) >> TAG, int(lanes.max()) >> TAG
            written = values[active] if values is not None else None
            for number in [first] if first == last else np.unique(lanes >> np.uint64(TAG)).tolist():
                mine = slice(None) if first == last else lanes >> np.uint64(TAG) == number
                self._touch(kind, number, lanes[mine], width, None if written is None else written[mine])
        return pointers & REAL

    def _touch(self, kind: str, number: int, lanes: np.ndarray, width: int, values: np.ndarray | None) -> None:
        argument = self.arguments.get(number)
        if argument is None:
            raise self.fault(f"{SAYS[kind]} an address that comes from no tensor of the launch")
        offsets = (lanes - argument.pointer).view(np.int64)
        outside = argument.outside(offsets, width)
        if outside is not None:
            raise self.fault(f"{SAYS[kind]} {argument.complaint(int(offsets[outside.argmax()]))}")
        if width > argument.itemsize and ((offsets + argument.address) % width).any():
            raise self.fault(
                f"{SAYS[kind]} {width} bytes of {argument.name} at an address that {width} does not divide"
            )
        elements = argument.elements(offsets)
        self._count(kind, lanes.size, width)
        self.launch.accesses.append(Access(self.programs[-1], argument.name, kind, elements))
        shadow = self.shadow_of[number]
        at = shadow.granules(offsets + argument.address, width)
        for other, clash in shadow.conflicts(kind, at, self.began[-1]):
            self._race(kind, argument, elements, other, clash)
        shadow.mark(kind, at, self.step, self.began[-1])
        if values is not None and (lane := shadow.twice(at[:, 0], values)) is not None:
            raise self.fault(
                f"stores {argument.name}[{elements[lane]}] twice in one tl.store, with different values; only one of them stays"
            )

    def _count(self, kind: str, count: int, width: int) -> None:
        if kind != "store":
            self.launch.loads += count
            self.launch.load_bytes += count * width
        if kind != "load":
            self.launch.stores += count
            self.launch.store_bytes += count * width

    def _race(self, kind: str, argument: Argument, elements: np.ndarray, other: str, clash: np.ndarray) -> None:
        for step in np.unique(clash[clash > 0]).tolist():
            index = bisect_right(self.began, step) - 1
            if self._ordered(step, index):
                continue
            lane = (clash == step).any(1).argmax()
            advice = (
                "give each program elements of its own, or use an atomic"
                if kind == other == "store"
                else "programs run in no fixed order, so what they share needs atomics"
            )
            raise self.fault(
                f"{SAYS[kind]} {argument.name}[{elements[lane]}], which {place(self.programs[index])} "
                f"{SAYS[other]} in the same launch; {advice}"
            )

    def _ordered(self, step: int, program: int) -> bool:
        """Whether atomics put an earlier program's access, made at `step`, before what this program does now."""
        informed, marked = {program}, set()
        for when, who, places, acquire, release in self.atomics:
            if when < step:
                continue
            if acquire and marked & places:
                informed.add(who)
            if release and who in informed:
                marked |= places
        return len(self.programs) - 1 in informed
