"""Everything this course takes from inside Triton: its interpreter, with our memory and our low precision in it.

Written against Triton 3.6 and 3.7. Public code uses `course.kernels.checked`.
"""

import ctypes
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import interpreter as native
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDAOptions, min_dot_size
from triton.runtime import interpreter as stock
from triton.runtime.interpreter import InterpretedFunction, TensorHandle
from triton.runtime.jit import KernelParam, TensorWrapper, mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from course.kernels import low_precision as low
from course.kernels.launch import OPTIONS, KernelFault, Launch
from course.kernels.memory import Memory

MAX_GRID = (2**31 - 1, 65535, 65535)
ACQUIRE = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
RELEASE = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)


def interpreting() -> bool:
    """Whether this process interprets kernels: TRITON_INTERPRET=1 stood when Triton was imported."""
    return isinstance(tl.sum, InterpretedFunction)


class Builder(stock.InterpreterBuilder):
    """Triton's operations on numpy arrays. Those that touch memory ask `memory` first."""

    def __init__(self, launched: Callable[[Launch], None]):
        super().__init__()
        self.launched = launched
        self.memory: Memory | None = None
        self.patches: dict[Any, Any] = {}  # function of the running launch -> what restores Triton's language
        self.options = stock.InterpreterOptions(sanitize_overflow=False)
        self.codegen_fns["min_dot_size"] = min_dot_size(GPUTarget("cuda", 90, 32))

    def __getattr__(self, name: str):
        if name.startswith("create_"):
            raise KernelFault(f"the interpreter has no {name.removeprefix('create_')}")
        raise AttributeError(name)

    # memory

    def create_masked_load(self, ptrs, mask, other, *_):
        kind = ptrs.get_element_ty()
        stored, active = stock._get_np_dtype(kind), np.asarray(mask.data)
        addresses = self.memory.touch("load", ptrs.data, active, stored.itemsize)
        rest = np.full(ptrs.data.shape, low.poison(kind.name, stored)) if other is None else other.data
        return TensorHandle(native.load(addresses, active, rest, stored), kind)

    def create_masked_store(self, ptrs, value, mask, *_):
        stored, active = stock._get_np_dtype(ptrs.get_element_ty()), np.asarray(mask.data)
        data = value.data if value.data.itemsize == stored.itemsize else value.data.astype(stored)
        return native.store(self.memory.touch("store", ptrs.data, active, stored.itemsize, data), data, active)

    def create_atomic_rmw(self, op, ptr, val, mask, sem, scope):
        kind = ptr.get_element_ty()
        real = self._atomic(ptr, mask.data, sem)
        if op == ir.ATOMIC_OP.FADD and kind.primitive_bitwidth == 16:
            return TensorHandle(_add_16(real.data, val.data, mask.data, kind.name), kind)
        return super().create_atomic_rmw(op, real, val, mask, sem, scope)

    def create_atomic_cas(self, ptr, cmp, val, sem, scope):
        return super().create_atomic_cas(self._atomic(ptr, np.ones(ptr.data.shape, bool), sem), cmp, val, sem, scope)

    def _atomic(self, ptr, active, sem):
        width = stock._get_np_dtype(ptr.get_element_ty()).itemsize
        acquire, release = sem in ACQUIRE, sem in RELEASE
        return TensorHandle(
            self.memory.touch("atomic", ptr.data, active, width, acquire=acquire, release=release), ptr.dtype
        )

    def create_descriptor_load(self, desc, indices, *_):
        ptrs, mask = desc.materialize_pointers(indices)
        kind = ptrs.get_element_ty()
        stored = stock._get_np_dtype(kind)
        outside = low.poison(kind.name, stored) if desc.padding == ir.PADDING_OPTION.PAD_NAN else np.zeros((), stored)
        return self.create_masked_load(ptrs, mask, TensorHandle(np.full(ptrs.data.shape, outside), kind))

    # numbers

    def get_bf16(self, value):
        return TensorHandle(low.encode(np.array([value], np.float32), "bf16"), tl.bfloat16)

    def cast_impl(self, src, dst_type):
        return self.create_fp_to_fp(src, dst_type, None)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        target = dst_type.scalar
        down = rounding_mode == ir.ROUNDING_MODE.RTZ
        data = low.cast(src.data, src.dtype.scalar.name, target.name, stock._get_np_dtype(target), down)
        return TensorHandle(data, target)

    def _compute(self, op, result, *handles):
        if result.is_fp8() and op not in (np.maximum, np.minimum):
            raise KernelFault(f"{result} has no arithmetic on a GPU: convert it to tl.float32 first")
        output = op(*map(_wide, handles))
        return TensorHandle(output, tl.int1) if output.dtype == bool else TensorHandle(_narrow(output, result), result)

    def unary_op(self, arg, op):
        return self._compute(op, arg.dtype.scalar, arg) if _is_raw(arg) else super().unary_op(arg, op)

    def binary_op(self, lhs, rhs, op):
        return self._compute(op, lhs.dtype.scalar, lhs, rhs) if _is_raw(lhs) else super().binary_op(lhs, rhs, op)

    def ternary_op(self, lhs, rhs, other, op):
        if op is np.where or not _is_raw(other):
            return super().ternary_op(lhs, rhs, other, op)
        return self._compute(op, other.dtype.scalar, lhs, rhs, other)

    def create_fma(self, x, y, z):
        if not _is_raw(z):
            return super().create_fma(x, y, z)
        return self._compute(lambda a, b, c: a * b + c, z.dtype.scalar, x, y, z)

    def create_dot(self, a, b, d, *_):
        if not a.dtype.is_floating() or a.dtype.is_fp64():
            return super().create_dot(a, b, d, *_)
        product = np.matmul(_wide(a).astype(np.float32), _wide(b).astype(np.float32))
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


class Reduce(stock.ReduceOps):
    """Reductions that add in float32 and let NaN through: a maximum must not hide what was never loaded."""

    def sum(self, input):
        kind = input.dtype
        if kind.primitive_bitwidth > 16 or not kind.is_floating():
            return super().sum(input)
        if kind.is_fp8():
            raise KernelFault(f"{kind} has no sum on a GPU: convert it to tl.float32 first")
        return self.to_tensor(low.total(input.handle.data, kind.name, self.axis, self.keep_dims), kind)

    def min_max(self, input, val_reduce_op, idx_reduce_op=None):
        kind = input.dtype
        cast = stock.interpreter_semantic.cast
        plain = {np.nanmax: np.max, np.nanmin: np.min}.get(val_reduce_op, val_reduce_op)
        result = super().min_max(cast(input, tl.float32) if kind.is_fp8() else input, plain, idx_reduce_op)
        if not kind.is_fp8():
            return result
        return (cast(result[0], kind), result[1]) if isinstance(result, tuple) else cast(result, kind)


class Scan(stock.ScanOps):
    def cumsum(self, input):
        if input.dtype != tl.float16:
            return super().cumsum(input)
        return [self.to_tensor(np.cumsum(input.handle.data, axis=self.axis, dtype=np.float32), input.dtype)]


def _is_raw(handle) -> bool:
    return low.is_raw(handle.dtype.scalar.name)


def _wide(handle) -> np.ndarray:
    return low.decode(handle.data, handle.dtype.scalar.name) if _is_raw(handle) else handle.data


def _narrow(data: np.ndarray, kind) -> np.ndarray:
    return low.encode(data, kind.name) if low.is_raw(kind.name) else data.astype(stock._get_np_dtype(kind))


def _add_16(addresses: np.ndarray, values: np.ndarray, active: np.ndarray, name: str) -> np.ndarray:
    """Atomic additions of 16-bit floats, a lane at a time; what each lane found there."""
    found = np.zeros(addresses.shape, values.dtype)
    for lane in zip(*np.nonzero(active), strict=True):
        cell = np.frombuffer((ctypes.c_char * 2).from_address(int(addresses[lane])), values.dtype)
        found[lane] = cell[0]
        both = np.array([cell[0], values[lane]])
        cell[0] = low.total(both, name, 0, False)
    return found


# launching


@contextmanager
def installed(builder: Builder) -> Iterator[None]:
    """Triton's interpreter with this builder in it; what stood before stands again afterwards."""
    places = [
        (stock, "interpreter_builder", builder),
        (stock.interpreter_semantic, "builder", builder),
        (stock, "ReduceOps", Reduce),
        (stock, "ScanOps", Scan),
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


def _call(builder: Builder, function: InterpretedFunction, args: tuple, kwargs: dict) -> Any:
    """One kernel calls another function of its language."""
    if function.fn not in builder.patches:
        builder.patches[function.fn] = _patch(function.fn)
    return function.rewrite()(*args, **kwargs)


def _patch(function: Callable) -> Any:
    """Put the interpreter's language where this function sees Triton's; what is returned restores it."""
    scope = stock._patch_lang(function)
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
    host_args, host_kwargs = executor._init_args_hst(args, kwargs)
    for hook in function.pre_run_hooks:
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
    memory = Memory(launch)
    given = {key: v if key in executor.constexprs else _convert(key, v, memory) for key, v in values.items()}
    _execute(builder, kernel, memory, sizes, given)
    executor._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _execute(
    builder: Builder, kernel: Callable, memory: Memory, sizes: tuple[int, ...], values: dict[str, Any]
) -> None:
    outer = builder.memory, builder.patches
    builder.memory, builder.patches = memory, {kernel: _patch(kernel)}
    padded = sizes + (1,) * (3 - len(sizes))
    builder.set_grid_dim(*padded)
    try:
        with np.errstate(all="ignore"):
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
