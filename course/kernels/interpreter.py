"""Launching a kernel in Triton's interpreter, with our operations in it and the launch written down.

This file and `operations` hold all that the course takes from inside Triton, versions 3.6 and 3.7; everybody else uses
`course.kernels.checked`.
"""

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes
from triton.backends.nvidia.compiler import CUDAOptions
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as stock
from triton.runtime.interpreter import InterpretedFunction, TensorHandle
from triton.runtime.jit import KernelParam, TensorWrapper, mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from course.kernels.launch import OPTIONS, KernelFault, Launch
from course.kernels.memory import Memory
from course.kernels.operations import Builder, Reduce, Scan

LOAD = TritonSemantic._load_legacy
MAX_GRID = (2**31 - 1, 65535, 65535)


def interpreting() -> bool:
    """Whether this process interprets kernels: TRITON_INTERPRET=1 stood when Triton was imported."""
    return isinstance(tl.sum, InterpretedFunction)


@contextmanager
def installed(builder: Builder) -> Iterator[None]:
    """Triton's interpreter with this builder in it; what stood before stands again afterwards."""
    places = [
        (stock, "interpreter_builder", builder),
        (stock.interpreter_semantic, "builder", builder),
        (stock, "ReduceOps", Reduce),
        (stock, "ScanOps", Scan),
        (TritonSemantic, "_load_legacy", lambda *args: _load(builder, *args)),
        (InterpretedFunction, "run", lambda self, *args, **kwargs: _run(builder, self, args, **kwargs)),
        (InterpretedFunction, "__call__", lambda self, *args, **kwargs: _call(builder, self, args, kwargs)),
    ]
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _load(builder: Builder, *args) -> Any:
    """Triton's load asks whether there is an `other`; while it does, a tensor is true even if all it holds is one zero."""
    before, builder.loading = builder.loading, True
    try:
        return LOAD(*args)
    finally:
        builder.loading = before


def _call(builder: Builder, function: InterpretedFunction, args: tuple, kwargs: dict) -> Any:
    """One kernel calls another function of its language."""
    if function.fn not in builder.patches:
        builder.patches[function.fn] = _patch(builder, function.fn)
    return function.rewrite()(*args, **kwargs)


def _patch(builder: Builder, function: Callable) -> Any:
    """Put the interpreter's language where this function sees Triton's; what is returned restores it."""
    scope = stock._patch_lang(function)
    scope.set_attr(
        tl.tensor, "__bool__", lambda self: builder.loading or self.handle.data.size > 1 or bool(self.handle.data)
    )
    scope.set_attr(tl.tensor, "__index__", lambda self: self.handle.data.item())  # Triton 3.6's fails on numpy 2.4
    return scope


def _run(builder: Builder, function: InterpretedFunction, args: tuple, *, grid, warmup: bool, **kwargs) -> None:
    if warmup:
        return
    name, kernel = function.__name__, function.rewrite()
    executor = stock.GridExecutor(kernel, function.arg_names, grid, function.pre_run_hooks)
    options = {key: kwargs.pop(key) for key in list(kwargs) if key not in function.arg_names}
    if unknown := [key for key in options if key not in CUDAOptions.__dataclass_fields__]:
        raise KernelFault(f"{name}: it has no parameter {unknown[0]}")
    with _disable_current_modes():  # what a launch copies by itself is nobody's
        host_args, host_kwargs = (args, kwargs) if builder.dry else executor._init_args_hst(args, kwargs)
    for hook in () if builder.dry else function.pre_run_hooks:
        hook(*host_args, **host_kwargs)
    try:
        bound = inspect.signature(function.fn).bind(*host_args, **host_kwargs)
    except TypeError as error:
        raise KernelFault(f"{name}: {error}") from None
    bound.apply_defaults()
    values = {key: value.value if isinstance(value, tl.constexpr) else value for key, value in bound.arguments.items()}
    sizes = _grid(name, grid(values) if callable(grid) else grid)
    launch = _launch(function, sizes, values, executor.constexprs, options)
    builder.launched(launch)
    if builder.dry:
        return
    memory = Memory(launch)
    given = {key: v if key in executor.constexprs else _convert(key, v, memory) for key, v in values.items()}
    _execute(builder, kernel, memory, sizes, given)
    with _disable_current_modes():
        executor._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _execute(
    builder: Builder, kernel: Callable, memory: Memory, sizes: tuple[int, ...], values: dict[str, Any]
) -> None:
    outer = builder.memory, builder.patches
    builder.memory, builder.patches = memory, {kernel: _patch(builder, kernel)}
    padded = sizes + (1,) * (3 - len(sizes))
    builder.set_grid_dim(*padded)
    try:
        with np.errstate(all="ignore"), torch._C.DisableTorchFunction(), _disable_current_modes():
            for program in np.ndindex(padded):
                memory.begin(program[: len(sizes)])
                builder.set_grid_idx(*program)
                kernel(**values)
    except Exception as error:
        if isinstance(error, NotImplementedError) and not str(error):
            raise
        fault = _fault(memory, error)
        raise fault.with_traceback(error.__traceback__) from error.__cause__
    finally:
        for scope in reversed(builder.patches.values()):
            scope.restore()
        builder.memory, builder.patches = outer


def _fault(memory: Memory, error: Exception) -> KernelFault:
    if isinstance(error, KernelFault) and str(error).startswith(memory.launch.kernel):
        return error
    said = " ".join(str(error).split())
    known = isinstance(error, KernelFault | ValueError | AssertionError) and said
    return memory.fault(said if known else f"{type(error).__name__}: {said}".rstrip(": "))


def _grid(name: str, grid: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in grid)
    except TypeError:
        raise KernelFault(
            f"{name}: a grid is a tuple of one to three whole numbers, and this one is {grid!r}"
        ) from None
    if not 1 <= len(sizes) <= 3 or any(not 0 <= size <= most for size, most in zip(sizes, MAX_GRID, strict=False)):
        raise KernelFault(f"{name}: a grid has one to three sizes, up to {MAX_GRID}, and this one is {sizes}")
    return sizes


def _launch(function: InterpretedFunction, sizes, values: dict[str, Any], constant: list[str], options) -> Launch:
    """What a compiler would be told of this launch, by the rules of Triton's own launcher."""
    plain = function.kwargs.get("do_not_specialize") or ()
    signature, constexprs, divisible = {}, {}, []
    for number, (name, param) in enumerate(inspect.signature(function.fn).parameters.items()):
        value, fixed = values[name], name in plain or number in plain
        annotated = KernelParam(number, param, False, False).annotation_type
        if name in constant or value is None or (type(value) is int and value == 1 and not fixed and not annotated):
            signature[name], constexprs[name] = "constexpr", _plain(value)
            continue
        try:
            signature[name] = annotated or _type(value)
        except TypeError:
            kind = type(value).__name__
            raise KernelFault(f"{function.__name__}: {name} is a {kind}, which no kernel takes") from None
        size = value.data_ptr() if hasattr(value, "data_ptr") else value
        if isinstance(size, int) and not isinstance(size, bool) and size % 16 == 0 and not fixed:
            divisible.append(name)
    kept = {key: value for key, value in options.items() if key in OPTIONS and value is not None}
    return Launch(function.__name__, sizes, signature, constexprs, tuple(divisible), kept)


def _type(value: Any) -> str | list:
    return [_type(part) for part in value] if isinstance(value, tuple) else mangle_type(value)


def _plain(value: Any) -> Any:
    """A constant of a kernel as JSON."""
    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    if isinstance(value, InterpretedFunction):
        return {"function": value.__name__}
    if isinstance(value, tuple | list):
        return {"tuple": [_plain(item) for item in value]}
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, bool | int | float | str | None) else {"constexpr": repr(value)}


def _convert(name: str, value: Any, memory: Memory) -> Any:
    """An argument as the kernel sees it: tensors as tagged pointers, numbers in the types a launch gives them."""
    if isinstance(value, tuple):
        parts = [_convert(f"{name}[{i}]", part, memory) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, TensorDescriptor):
        strides = [*(stock._implicit_cvt(stride) for stride in value.strides[:-1]), tl.constexpr(1)]
        return stock.interpreter_semantic.make_tensor_descriptor(
            base=_convert(name, value.base, memory),
            shape=[stock._implicit_cvt(size) for size in value.shape],
            strides=strides,
            block_shape=[tl.constexpr(size) for size in value.block_shape],
            padding_option=value.padding,
        )
    if hasattr(value, "data_ptr"):
        pointer = memory.add(name, value.base if isinstance(value, TensorWrapper) else value)
        kind = tl.str_to_ty(mangle_type(value), None)
        return tl.tensor(TensorHandle(np.array([pointer], np.uint64), kind), kind)
    if isinstance(value, bool):
        return tl.tensor(TensorHandle(np.array([value]), tl.int1), tl.int1)
    if isinstance(value, float):
        return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    return stock._implicit_cvt(value)
