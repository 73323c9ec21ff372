"""Cross entropy of logits, forward and backward, as one kernel each: a program a row, in blocks of classes.

The largest logit and the sum of exp(logit - largest) come from one pass (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax", algorithm 3): where a block brings a larger logit, the sum so far is multiplied by
exp(old largest - new largest). The gradient, softmax - one-hot, needs both and then a second pass. Nothing of the size of
the logits is kept between forward and backward but the logits.

Bytes moved an element of the logits, where rows are long, in bfloat16 and in float32:
  eager   forward: to float32 (6, 0), log_softmax (8, 8): 14 and 8
          backward: to float32 (6, 0), softmax (8, 8), times the scale (8, 8), back (6, 0): 28 and 16
  fused   forward reads the logits once: 2 and 4; backward reads them twice and writes the gradient once: 6 and 12
All are bound by memory, so the kernels can gain at most a factor of 7 and 4.7 in bfloat16, and of 2 and 1.3 in float32.

A target of -1 counts as nothing: its loss is 0, its gradient 0, the mean is taken over the others, and its row is not read.

Shapes: N rows, V classes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from course.kernels.rows import as_rows, check_floats, empty_rows

IGNORED = -1
BLOCK = 4096  # classes at once at most


def cross_entropy_torch(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of the forward pass: the same in PyTorch."""
    counts_N = targets_N != IGNORED
    logs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    losses_N = torch.where(counts_N, -logs_NV.gather(1, targets_N.clamp(min=0)[:, None].long())[:, 0], 0.0)
    return losses_N.sum() / counts_N.sum(), losses_N


def cross_entropy_backward_torch(logits_NV: Tensor, targets_N: Tensor, scale: float | Tensor) -> Tensor:
    """The twin of the backward pass: the same in PyTorch."""
    scale_N = torch.where(targets_N != IGNORED, scale, 0.0)
    shares_NV = torch.softmax(logits_NV.float(), dim=-1)
    shares_NV.scatter_add_(1, targets_N.clamp(min=0)[:, None].long(), torch.full_like(shares_NV[:, :1], -1.0))
    return (shares_NV * scale_N[:, None]).to(logits_NV.dtype)


@triton.jit
def largest_and_sum(row, classes, BLOCK: tl.constexpr):
    """The largest of a row's logits, and the sum of exp(logit - largest); minus infinity and 0 for no class."""
    largest, total = float("-inf"), 0.0
    for start in range(0, classes, BLOCK):
        v = start + tl.arange(0, BLOCK)
        values = tl.load(row + v, mask=v < classes, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(values))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # minus infinity less itself would be NaN
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(values - base))
        largest = larger
    return largest, total


@triton.jit
def cross_entropy_kernel(logits, targets, losses, stride, V, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row, target = logits + n * stride, tl.load(targets + n)
    counts = target != IGNORED
    largest, total = largest_and_sum(row, tl.where(counts, V, 0), BLOCK)
    own = tl.load(row + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
    tl.store(losses + n, tl.where(counts, tl.log(total) + (largest - own), 0.0))


@triton.jit
def cross_entropy_backward_kernel(
    logits, targets, scales, dlogits, stride, scale_stride, V, IGNORED: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    row, target = logits + n * stride, tl.load(targets + n)
    counts = target != IGNORED
    classes = tl.where(counts, V, 0)
    largest, total = largest_and_sum(row, classes, BLOCK)
    scale = tl.where((target >= 0) & (target < V), tl.load(scales + n * scale_stride), float("nan"))
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        values = tl.load(row + v, mask=v < classes, other=0.0).to(tl.float32)
        share = tl.exp(values - largest) / total
        gradient = tl.where(counts, tl.where(v == target, share - 1, share) * scale, 0.0)
        tl.store(dlogits + n * V + v, gradient.to(dlogits.dtype.element_ty), mask=v < V)


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log(sum(exp(logits))) - logits[target] of every row, and the mean over rows whose target is not -1.

    A target that is neither -1 nor a class gives NaN: to raise, the host would have to wait for the device. So does a
    mean over nothing, and a row as torch's log_softmax has it: of minus infinity alone, or with infinity or NaN in it.

    logits_NV: float32, bfloat16 or float16; computed in float32. targets_N: int64 or int32.
    Returns: mean_loss, without a dimension, and losses_N, both float32.
    Raises: ValueError when shapes do not fit, there is no class, or a dtype is another.
    """
    _check("cross_entropy", logits_NV, targets_N)
    N, V = logits_NV.shape
    losses_N = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
    if N:
        rows_NV = as_rows(logits_NV)
        block, warps = _block(V)
        cross_entropy_kernel[(N,)](
            rows_NV,
            targets_N.contiguous(),
            losses_N,
            rows_NV.stride(0),
            V,
            IGNORED=IGNORED,
            BLOCK=block,
            num_warps=warps,
        )
    return losses_N.sum() / (targets_N != IGNORED).sum(), losses_N


def cross_entropy_backward(logits_NV: Tensor, targets_N: Tensor, scale: float | Tensor) -> Tensor:
    """scale * (softmax(logits) - one_hot(target)), and 0 in rows whose target is -1.

    scale: one number, or a float32 tensor of one number or of one a row. The gradient of the mean loss has
    1 / (rows whose target is not -1). A target that is neither -1 nor a class gives a row of NaN.
    logits_NV: float32, bfloat16 or float16; computed in float32 and rounded once. targets_N: int64 or int32.
    Returns: dlogits_NV, a contiguous tensor of logits' dtype.
    Raises: ValueError when shapes do not fit, there is no class, or a dtype is another.
    """
    _check("cross_entropy_backward", logits_NV, targets_N)
    N, V = logits_NV.shape
    scale = torch.as_tensor(scale, dtype=torch.float32, device=logits_NV.device)
    if scale.shape not in ((), (1,), (N,)):
        raise ValueError(f"a scale of shape {list(scale.shape)} is neither one number nor one for each of {N} rows")
    dlogits_NV = empty_rows(logits_NV)
    if N:
        rows_NV, scale_N = as_rows(logits_NV), scale.expand(N)
        block, warps = _block(V)
        cross_entropy_backward_kernel[(N,)](
            rows_NV,
            targets_N.contiguous(),
            scale_N,
            dlogits_NV,
            rows_NV.stride(0),
            scale_N.stride(0),
            V,
            IGNORED=IGNORED,
            BLOCK=block,
            num_warps=warps,
        )
    return dlogits_NV


def _check(name: str, logits_NV: Tensor, targets_N: Tensor) -> None:
    check_floats(name, logits_NV)
    if targets_N.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} takes targets of int64 and int32, not {targets_N.dtype}")
    if logits_NV.dim() != 2 or logits_NV.shape[1] == 0:
        raise ValueError(f"{name} takes logits of [rows, classes], of at least one class, not {list(logits_NV.shape)}")
    if targets_N.shape != logits_NV.shape[:1]:
        raise ValueError(f"targets of shape {list(targets_N.shape)} do not fit logits of shape {list(logits_NV.shape)}")


def _block(classes: int) -> tuple[int, int]:
    """Classes that a program looks at in one step, and its warps."""
    block = min(triton.next_power_of_2(classes), BLOCK)
    return block, min(max(block // 512, 1), 8)
