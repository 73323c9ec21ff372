"""What is known of kernels and layers before anything runs: FLOPs, bytes, memory kept for backward, machine code, bounds.

    python benchmarks/plans.py --kernels rmsnorm --layers qwen3-30b/8192 [--gpu h800] [--tiny]

Prints JSON, and needs no GPU: launches are planned with tensors that have shapes and no numbers, and compiled as `course
compile` does it. `kernels.py` runs this in a process of its own, since a process that plans launches interprets kernels.
"""

import argparse
import json
import os
from collections.abc import Callable
from importlib import import_module
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import torch
from kept import kept_bytes
from moe_kernels import BOTH, CASES, FORWARD, TINY, TINY_CASES, Case, counts, sorted_grouped_mm, with_gradients, without
from torch import Tensor

from course.hardware.gpus import GPUS
from course.hardware.machine_code import read_code
from course.hardware.occupancy import occupancy
from course.hardware.roofline import Work, bound
from course.kernels.autograd_moe import routed_experts_with_grad
from course.kernels.catalogue import COUNTED, INPUTS, Sizes, moved
from course.kernels.launch import Launch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.kernels.routed_experts import routed_experts

AT_ONCE = 8  # launches of one file that one compiling process gets
STEPS = {  # of the layer: where its functions are looked up, and their names
    "routed_experts": ("expert_offsets", "grouped_gate_up", "grouped_gemm", "combine"),
    "routed_experts_backward": ("grouped_swiglu_backward", "grouped_weight_gradient", "grouped_gemm", "combine"),
}


def empty(*shape: int, of: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def kernel_plan(name: str, sizes: Sizes) -> dict:
    inputs, flops, size = INPUTS[name](empty, sizes)
    function = getattr(import_module(f"course.kernels.{name}"), name)
    made: list = []
    launches = launches_of(lambda: made.append(function(*inputs)))
    about = {"kernel": name, "size": size, "flops": flops, "bytes": moved(inputs, made[0])}
    return about | {"dtype": COUNTED.get(name, "bf16"), "launches": launches}


def layer_inputs(case: Case) -> tuple:
    """x, ids, routing weights, gate_up, down, dout on the meta device."""
    T, D, E, F, K = case.tokens, case.width, case.experts, 2 * case.hidden, case.top_k
    ids, weights = empty(T, K, of=torch.int64), empty(T, K, of=torch.float32)
    return empty(T, D), ids, weights, empty(E, F, D), empty(E, D, F // 2), empty(T, D)


def layer_plan(case: Case, backward: bool) -> dict:
    """Counts of a pass, what its forward keeps, and each step of ours with its own FLOPs, bytes and launches."""
    steps = layer_steps(case, backward)
    found = counts(case, backward) | {"flops_done": sum(step["flops"] for step in steps), "steps": steps}
    return found | {"dtype": "bf16", "kept_bytes": layer_keeps(case) if backward else None}


def layer_steps(case: Case, backward: bool) -> list[dict]:
    calls: list[tuple[str, tuple, dict]] = []

    def noted(name: str, function: Callable) -> Callable:
        def call(*inputs, **settings):
            calls.append((name, inputs, settings))
            return function(*inputs, **settings)

        return call

    layer = with_gradients(routed_experts_with_grad) if backward else without(routed_experts)
    patches = []
    for where, names in STEPS.items():
        module = import_module(f"course.kernels.{where}")
        patches += [patch.object(module, name, noted(name, getattr(module, name))) for name in names]
    for one in patches:
        one.start()
    try:
        launches_of(lambda: layer(*layer_inputs(case)))
    finally:
        for one in patches:
            one.stop()
    return [step(name, inputs, settings) for name, inputs, settings in calls]


def step(name: str, inputs: tuple, settings: dict) -> dict:
    """One function of the layer. Bytes: each of its tensors once, the weights of experts that nobody chose too."""
    function, made = getattr(import_module(f"course.kernels.{name}"), name), []
    launches = launches_of(lambda: made.append(function(*inputs, **settings)))
    about = {"kernel": name, "flops": step_flops(name, inputs), "bytes": moved(inputs, made[0])}
    return about | {"dtype": "bf16", "launches": launches}


def step_flops(name: str, inputs: tuple) -> int:
    first, second, *others = inputs
    if name in ("grouped_gate_up", "grouped_gemm"):
        return 2 * len(first if others[0] is None else others[0]) * second[0].numel()
    if name == "grouped_weight_gradient":
        return 2 * len(first if others[0] is None else others[0]) * first.shape[1] * second.shape[1]
    if name == "grouped_swiglu_backward":
        return 2 * len(inputs[5]) * (inputs[2][0].numel() + inputs[3][0].numel())
    return 2 * second.numel() * first.shape[1] if name == "combine" else 0


def layer_keeps(case: Case) -> dict[str, int]:
    """Bytes that the routed experts keep for backward beside their weights, x and the routing weights included."""
    x, ids, weights, gate_up, down, _ = layer_inputs(case)
    for leaf in (x, weights, gate_up, down):
        leaf.requires_grad_()
    order, offsets = empty(case.pairs, of=torch.int64), empty(case.experts + 1, of=torch.int64)
    ours: list[int] = []
    forward = lambda: routed_experts_with_grad(x, ids, weights, gate_up, down)  # noqa: E731
    launches_of(lambda: ours.append(kept_bytes(forward, [gate_up, down])))
    with patch.object(torch, "is_autocast_enabled", lambda device: False):  # which does not know the meta device
        eager = kept_bytes(lambda: sorted_grouped_mm(x, order, offsets, weights, gate_up, down), [gate_up, down])
    return {"ours": ours[0], "grouped_mm": eager}


def machine_code(plans: list[dict], gpu: str, compiled: bool) -> None:
    """Put beside each plan its bound and what the compiler makes of its launches; equal launches are compiled once."""
    chip, found = GPUS[gpu], {}
    wanted: dict[str, dict[str, Launch]] = {}
    for plan in plans:
        for launch in plan["launches"] if compiled else ():
            wanted.setdefault(import_module(f"course.kernels.{plan['kernel']}").__file__, {})[_key(launch)] = launch
    for path, launches in wanted.items():
        keys = list(launches)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            made = compile_all(path, [launches[key] for key in some], chip.arch, code=True)
            found |= {(path, key): figures(one, chip) for key, one in zip(some, made, strict=True)}
    for plan in plans:
        path = import_module(f"course.kernels.{plan['kernel']}").__file__
        plan["machine_code"] = [found[path, _key(launch)] for launch in plan.pop("launches") if compiled]
        plan["bound"] = least(plan, gpu)


def _key(launch: Launch) -> str:
    plain = launch.to_json()
    return json.dumps([plain[name] for name in ("kernel", "signature", "constexprs", "divisible", "options")])


def figures(compiled, chip) -> dict:
    if compiled.error:
        return {"kernel": compiled.kernel, "arch": chip.arch, "error": compiled.error}
    tensor_core: dict[str, int] = {}
    for name, count in read_code(compiled.code["sass"]).tensor_core.items():
        kind = name.split(".")[0]
        tensor_core[kind] = tensor_core.get(kind, 0) + count
    fits = occupancy(chip, compiled.warps, compiled.registers, compiled.shared_bytes)
    return {
        "kernel": compiled.kernel,
        "arch": chip.arch,
        "error": None,
        "tensor_core": tensor_core,
        "spill_bytes": compiled.spills,
        "registers": compiled.registers,
        "shared_bytes": compiled.shared_bytes,
        "occupancy": fits.share,
    }


def least(plan: dict, gpu: str) -> dict | None:
    """The least time by the data sheet's roofs; None for a number format that the card does not have."""
    if plan["dtype"] not in GPUS[gpu].peak:
        return None
    its = bound(Work(plan["flops"], plan["bytes"], plan["dtype"]), GPUS[gpu])
    return {"gpu": its.gpu.name, "roof": its.roof, "seconds": its.time, "by": its.by}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="*", default=[])
    parser.add_argument("--layers", nargs="*", default=[])
    parser.add_argument("--gpu", choices=list(GPUS), default="h800")
    parser.add_argument(
        "--tiny", action="store_true", help="the catalogue's kernels at a rehearsal's sizes, uncompiled"
    )
    args = parser.parse_args()
    kernels = {name: kernel_plan(name, TINY if args.tiny else Sizes()) for name in args.kernels}
    layers = {}
    for name in args.layers:
        case = (CASES | TINY_CASES)[name]
        layers[name] = {way: layer_plan(case, way == BOTH) for way in (FORWARD, BOTH)}
    passes = [plan for ways in layers.values() for plan in ways.values()]
    every = [*kernels.values(), *(step for plan in passes for step in plan["steps"])]
    machine_code(every, args.gpu, compiled=not args.tiny)
    for plan in passes:
        plan["bound"] = least(plan, args.gpu)
        plan["steps_bound_seconds"] = sum(step["bound"]["seconds"] for step in plan["steps"])
    print(json.dumps({"kernels": kernels, "layers": layers}))


if __name__ == "__main__":
    main()
