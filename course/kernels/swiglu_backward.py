"""SwiGLU, backward (of Shazeer 2020, "GLU Variants", section 2), as one kernel over tiles.

With s = sigmoid(gate) and y = gate s up:
  dup     dy gate s
  dgate   dy up s (1 + gate (1 - s))
Nothing but the input of the forward pass is kept: s is computed again, which costs no bytes.

Bytes moved an element of dy, in bfloat16 and in float32:
  eager   gate, up and dy to float32 (18, 0), s (8, 8), gate s (12, 12), dup (12, 12), 1 - s (8, 8), its product with
          gate s (12, 12), the sum with s (12, 12), dy up (12, 12), dgate (12, 12), both into one tensor (16, 16),
          back (12, 0): 134 and 104
  fused   reads dy, gate and up once and writes dgate and dup once: 10 and 20
Both are bound by memory, so the kernel can gain at most a factor of 13.4 in bfloat16 and 5.2 in float32.

Shapes: N rows, I elements a row of the result, F = 2I, gate first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import as_rows, check_floats, empty_rows
from course.kernels.swiglu import tile


def swiglu_backward_torch(dy_NI: Tensor, gate_up_NF: Tensor) -> Tensor:
    """The twin: the same in PyTorch."""
    (gate_NI, up_NI), wide_dy_NI = gate_up_NF.float().chunk(2, dim=-1), dy_NI.float()
    share_NI = gate_NI.sigmoid()
    silu_NI = gate_NI * share_NI
    slope_NI = share_NI + silu_NI * (1 - share_NI)
    return torch.cat([wide_dy_NI * up_NI * slope_NI, wide_dy_NI * silu_NI], dim=-1).to(gate_up_NF.dtype)


@triton.jit
def swiglu_slopes(gate, up):
    """silu(gate) * up, and how it grows with gate and with up."""
    share = tl.sigmoid(gate)
    silu = gate * share
    return silu * up, up * (share + silu * (1 - share)), silu


@triton.jit
def swiglu_backward_kernel(
    dy, gate_up, dgate_up, dy_stride, stride, N, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    across = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < N) & (i < width)
    grad = tl.load(dy + row * dy_stride + i, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + row * stride + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + i, mask=inside, other=0.0).to(tl.float32)
    _, along_gate, along_up = swiglu_slopes(gate, up)
    tl.store(dgate_up + row * 2 * width + i, (grad * along_gate).to(dgate_up.dtype.element_ty), mask=inside)
    tl.store(dgate_up + row * 2 * width + width + i, (grad * along_up).to(dgate_up.dtype.element_ty), mask=inside)


def swiglu_backward(dy_NI: Tensor, gate_up_NF: Tensor) -> Tensor:
    """The gradient of `swiglu(gate_up)`, given the gradient dy of its result; in float32, rounded once.

    dy_NI, gate_up_NF: float32, bfloat16 or float16 each, of the same leading dimensions, however many.
    Returns: a contiguous tensor of gate_up's shape and dtype.
    Raises: ValueError when shapes do not fit, or a dtype is another.
    """
    check_floats("swiglu_backward", dy_NI, gate_up_NF)
    if gate_up_NF.dim() == 0 or gate_up_NF.shape != (*dy_NI.shape[:-1], 2 * dy_NI.shape[-1]):
        raise ValueError(
            f"a gradient of shape {list(dy_NI.shape)} does not fit gate and up of shape {list(gate_up_NF.shape)}"
        )
    dgate_up_NF = empty_rows(gate_up_NF)
    if dgate_up_NF.numel() == 0:
        return dgate_up_NF
    dy_rows_NI, rows_NF = as_rows(dy_NI), as_rows(gate_up_NF)
    N, width = dy_rows_NI.shape
    rows, columns = tile(width)
    swiglu_backward_kernel[(triton.cdiv(N, rows) * triton.cdiv(width, columns),)](
        dy_rows_NI,
        rows_NF,
        dgate_up_NF,
        dy_rows_NI.stride(0),
        rows_NF.stride(0),
        N,
        width,
        ROWS=rows,
        COLUMNS=columns,
    )
    return dgate_up_NF
