"""What one launch of a kernel was and did: plain data that a picture, a test or another process can read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")  # of a launch, those that change the machine code
PLAIN = {"kernel": str, "grid": list, "signature": dict, "constexprs": dict, "divisible": list, "options": dict} | (
    dict.fromkeys(("loads", "stores", "load_bytes", "store_bytes"), int)
)  # a launch as JSON


class KernelFault(Exception):
    """A kernel did what a GPU would punish, or refuse. The message is one sentence for whoever wrote the kernel."""


@dataclass(frozen=True, eq=False)
class Access:
    """One tl.load, tl.store or atomic of one program: the elements of one argument that its unmasked lanes touched."""

    program: tuple[int, ...]
    argument: str
    kind: str  # "load", "store" or "atomic"
    elements: np.ndarray  # flat (row-major) indices into the argument, in lane order


@dataclass
class Launch:
    """A launch: enough to compile its kernel for a real chip, what it moved, and who touched what.

    Elements and bytes are counted a lane: a lane that is not masked off counts once, and an atomic as one load and one store.
    """

    kernel: str
    grid: tuple[int, ...]
    signature: dict[str, Any]  # argument -> "*fp32", "i32", "constexpr", ...; a tuple argument has a list
    constexprs: dict[str, Any]  # as JSON; a Triton dtype is {"dtype": "fp32"}, a kernel {"function": its name}
    divisible: tuple[str, ...] = ()  # arguments that are multiples of 16 (for pointers: of 16 bytes)
    options: dict[str, int] = field(default_factory=dict)  # those of OPTIONS that were given
    loads: int = 0
    stores: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    accesses: list[Access] = field(default_factory=list, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The launch as plain JSON values, without its accesses."""
        plain = {name: value for name, value in vars(self).items() if name != "accesses"}
        return plain | {"grid": list(self.grid), "divisible": list(self.divisible)}

    @classmethod
    def from_json(cls, value: Any) -> "Launch":
        """The reverse of `to_json`. Raises: ValueError for anything else, which may come from an answer's process."""
        if not (
            isinstance(value, dict)
            and value.keys() == PLAIN.keys()
            and all(isinstance(value[name], kind) for name, kind in PLAIN.items())
            and value["kernel"].isidentifier()
            and all(isinstance(kind, str | list) for kind in value["signature"].values())
            and all(isinstance(n, str) and n in value["signature"] for n in [*value["constexprs"], *value["divisible"]])
            and value["options"].keys() <= set(OPTIONS)
            and all(isinstance(number, int) for number in [*value["grid"], *value["options"].values()])
        ):
            raise ValueError("this is not the description of a launch")
        return cls(**value | {"grid": tuple(value["grid"]), "divisible": tuple(value["divisible"])})


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")


def place(program: tuple[int, ...]) -> str:
    """`program 3` in a grid of one dimension, `program (3, 0)` in a larger one."""
    return f"program {program[0]}" if len(program) == 1 else f"program {program}"
