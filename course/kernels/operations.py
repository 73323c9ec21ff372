"""Triton's operations on numpy arrays, with every access of memory checked and low precision computed as torch does.

A kernel's values are `TensorHandle`s: a numpy array and a Triton type. bfloat16 and FP8 lie in it as raw codes.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import interpreter as native
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import min_dot_size
from triton.runtime import interpreter as stock
from triton.runtime.interpreter import TensorHandle

from course.kernels import low_precision as low
from course.kernels.launch import KernelFault, Launch
from course.kernels.memory import Memory

ACQUIRE = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
RELEASE = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)


class Builder(stock.InterpreterBuilder):
    """Triton's operations on numpy arrays. Those that touch memory ask `memory` first."""

    def __init__(self, launched: Callable[[Launch], None], dry: bool = False):
        super().__init__()
        self.launched = launched
        self.dry = dry  # launches are told, and nothing runs
        self.loading = False  # inside Triton's own load
        self.memory: Memory | None = None
        self.patches: dict[Any, Any] = {}  # function of the running launch -> what restores Triton's language
        self.options = stock.InterpreterOptions(sanitize_overflow=False)
        self.codegen_fns["min_dot_size"] = min_dot_size(GPUTarget("cuda", 90, 32))

    def __getattr__(self, name: str):
        if name.startswith("create_"):
            raise KernelFault(f"the interpreter has no {name.removeprefix('create_')}")
        raise AttributeError(name)

    def create_splat(self, ret_ty, arg):
        """A comparison of scalars stays one of truth values: Triton's own makes integers of it, which pick lanes as a mask."""
        spread = super().create_splat(ret_ty, arg)
        return TensorHandle(spread.data.astype(bool), spread.dtype) if arg.data.dtype == bool else spread

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

    def create_dot(self, a, b, d, input_precision, *_):
        if not a.dtype.is_floating() or a.dtype.is_fp64():
            return super().create_dot(a, b, d, input_precision, *_)
        factors = [_wide(factor).astype(np.float32) for factor in (a, b)]
        if a.dtype.is_fp32() and input_precision == ir.INPUT_PRECISION.TF32:
            factors = [low.to_tf32(factor) for factor in factors]
        product = np.matmul(*factors)
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
