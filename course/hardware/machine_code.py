"""Reading machine code: the instructions of a kernel, its loops, and what the hot one is made of.

`read_code` takes what `nvdisasm -c` prints of an NVIDIA kernel (SASS), or what LLVM prints for AMD. Instructions are
counted as they stand in the text, each once, not as often as they run.
"""

import re
from collections import Counter
from dataclasses import dataclass

TENSOR = r"HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA|UTC\w*MMA|v_mfma\w*|v_smfmac\w*"  # SASS and AMD
ASYNC = "LDGSTS|UTMALDG|UTMASTG|UBLKCP|UTMAREDG"
SPILLS = "LDL|STL|scratch_load|scratch_store"
MEANS = (  # of an instruction's name, the first that fits
    ("HGMMA", "tensor cores, four warps together: a product of tiles from shared memory, summed in registers"),
    ("QGMMA", "tensor cores, four warps together: the same with FP8 inputs"),
    ("UTCHMMA", "tensor cores of Blackwell, one thread for a block: a product of tiles, summed in tensor memory"),
    ("UTCQMMA", "tensor cores of Blackwell: the same with FP8 inputs"),
    ("HMMA", "tensor cores, one warp: a small product of 16-bit or TF32 inputs from registers"),
    ("QMMA", "tensor cores, one warp: a small product of FP8 inputs from registers"),
    ("v_mfma", "matrix cores of AMD, one wave: a small product"),
    ("WARPGROUP.ARRIVE", "the four warps meet before a product of theirs"),
    ("WARPGROUP.DEPBAR", "wait until at most so many products are on their way"),
    ("UTMALDG", "TMA: a whole tile from memory to shared memory, started by one thread"),
    ("UTMASTG", "TMA: a whole tile from shared memory to memory"),
    ("UBLKCP", "TMA: a row of bytes from memory to shared memory"),
    ("LDGSTS", "asynchronous copy from memory to shared memory, past the registers"),
    ("LDGDEPBAR", "closes a group of asynchronous copies"),
    ("DEPBAR", "wait until at most so many groups of copies are on their way"),
    ("SYNCS", "a barrier in shared memory: arrive, or wait for a phase"),
    ("BAR", "the warps of the block wait for each other"),
    ("LDG", "load from memory"),
    ("STG", "store to memory"),
    ("LDSM", "load of a small matrix from shared memory, as tensor cores want it"),
    ("STSM", "store of a small matrix to shared memory"),
    ("LDS", "load from shared memory"),
    ("STS", "store to shared memory"),
    ("LDL", "load of a spilled register"),
    ("STL", "store of a spilled register"),
    ("LDTM", "load from tensor memory"),
    ("LDC", "load of a constant or an argument"),
    ("RED", "addition in memory, nothing comes back"),
    ("ATOM", "atomic in memory"),
    ("MUFU", "a function by table: exponential, logarithm, reciprocal, root"),
    ("FFMA", "multiply and add in float32"),
    ("FMUL", "multiply in float32"),
    ("FADD", "add in float32"),
    ("FMNMX", "the larger or smaller of two"),
    ("HFMA2", "multiply and add, two 16-bit numbers at once (or a constant put into a register)"),
    ("F2F", "conversion of a number's format"),
    ("PRMT", "bytes put together anew"),
    ("SHFL", "values exchanged within a warp"),
    ("REDUX", "reduction within a warp"),
    ("R2UR", "from a register of each thread to one of the warp"),
    ("ISETP", "comparison of whole numbers"),
    ("FSETP", "comparison in float32"),
    ("SEL", "one of two, by a predicate"),
    ("BRA", "jump"),
    ("EXIT", "end of the thread"),
    ("NOP", "nothing"),
    ("IMAD", "multiply and add of whole numbers (or a move)"),
    ("LEA", "address: shift and add"),
    ("IADD", "addition of whole numbers"),
    ("LOP3", "bits combined"),
    ("SHF", "shift"),
    ("MOV", "move"),
    ("VIADD", "addition of whole numbers"),
    ("IABS", "a whole number without its sign"),
    ("SGXT", "bits widened"),
    ("ELECT", "one thread of the warp is chosen"),
    ("VOTE", "what all threads of the warp say"),
    ("MEMBAR", "memory operations before are seen before those behind"),
    ("FENCE", "the same for asynchronous copies and products"),
    ("TCBAR", "a barrier for Blackwell's products"),
    ("S2R", "a special register, such as the thread's number"),
    ("CS2R", "a special register, or zeros"),
    ("I2F", "a whole number as float32"),
    ("F2I", "float32 as a whole number"),
    ("I2I", "a whole number of another width"),
    ("PLOP3", "predicates combined"),
    ("R2P", "bits of a register as predicates"),
    ("P2R", "predicates as bits of a register"),
    ("IMNMX", "the larger or smaller of two whole numbers"),
    ("BSSY", "threads that part will meet here"),
    ("BSYNC", "threads that parted meet"),
    ("WARPSYNC", "the threads of the warp meet"),
    ("CCTL", "the cache is told something"),
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # such as HGMMA.64x256x16.F32.BF16
    operands: str
    predicate: str = ""
    label: str = ""  # of the place itself, where a jump may lead

    @property
    def means(self) -> str:
        """What it does, in a few words; nothing where this file does not know it."""
        known = next((words for start, words in MEANS if self.name.startswith(start)), "")
        if known or not self.name.startswith("U"):
            return known
        plain = next((words for start, words in MEANS if self.name[1:].startswith(start)), "")
        return f"{plain}, once for the whole warp" if plain else ""

    def __str__(self) -> str:
        return f"{self.predicate} {self.name} {self.operands}".strip()


@dataclass(frozen=True)
class MachineCode:
    instructions: tuple[Instruction, ...]

    def count(self, pattern: str) -> dict[str, int]:
        """Names that begin with `pattern`, a regular expression, and how often each stands in the text."""
        names = (instruction.name for instruction in self.instructions)
        return dict(Counter(name for name in names if re.match(rf"(?:{pattern})(?![A-Z])", name)))

    @property
    def tensor_core(self) -> dict[str, int]:
        """Tensor-core instructions, with their shapes."""
        return self.count(TENSOR)

    @property
    def asynchronous_copies(self) -> dict[str, int]:
        return self.count(ASYNC)

    @property
    def spills(self) -> dict[str, int]:
        """Loads and stores of registers that had no room."""
        return self.count(SPILLS)

    def loops(self) -> list[tuple[int, int]]:
        """First and last place of each stretch that ends in a jump back to its beginning, in the order of their ends."""
        place = {one.label: number for number, one in enumerate(self.instructions) if one.label}
        found = []
        for number, one in enumerate(self.instructions):
            target = re.search(r"\.\w*L\w+", one.operands) if re.match(r"BRA|s_c?branch", one.name) else None
            if target and place.get(target[0], number) < number:
                found.append((place[target[0]], number))
        return found

    def hot_loop(self) -> tuple[Instruction, ...]:
        """The loop that does the work: of those with no loop in them, the one with the most tensor-core instructions, or
        else with the most loads from memory. Empty where there is none."""

        def worth(span: tuple[int, int]) -> tuple[int, int]:
            inside = MachineCode(self.instructions[span[0] : span[1] + 1])
            loads = inside.count(r"LDG|LDGSTS|UTMALDG|global_load\w*|buffer_load\w*")
            return sum(inside.tensor_core.values()), sum(loads.values())

        loops = self.loops()
        innermost = [
            span for span in loops if not any(span[0] <= o[0] and o[1] <= span[1] and o != span for o in loops)
        ]
        if not innermost:
            return ()
        first, last = max(innermost, key=worth)
        return self.instructions[first : last + 1]


LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
AMD = re.compile(r"^\s+([a-z]\w+)\s*(.*?)\s*(?:;.*)?$")


def read_code(text: str) -> MachineCode:
    """The instructions in what `nvdisasm -c` (SASS) or LLVM (AMD) prints of a kernel."""
    instructions, label = [], ""
    for line in text.splitlines():
        if found := re.match(r"^(\.\w*L\w+):", line):
            label = found[1]
            continue
        if found := LINE.search(line):
            address, predicate, name, operands = found.groups()
            instructions.append(Instruction(int(address, 16), name, operands, (predicate or "").strip(), label))
        elif "/*" not in line and (found := AMD.match(line)):
            instructions.append(Instruction(len(instructions), found[1], found[2], "", label))
        else:
            continue
        label = ""
    return MachineCode(tuple(instructions))
