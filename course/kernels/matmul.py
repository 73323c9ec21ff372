"""A matrix product by tiles, four ways: the order of the tiles, who computes them, and how they are read.

  naive        a program a tile of the result, row after row of tiles
  grouped      the same, GROUP rows of tiles at a time: programs that run together then share more of what they read
  persistent   as many programs as the chip has SMs, each of which goes from tile to tile
  descriptors  as grouped; tiles are read and written through tensor descriptors, which Hopper's TMA copies by itself

All compute out = a b in float32, tile by tile over K, and round once.

What one wave of P programs reads from memory, if tiles that several of them want are read once (computed by
`tiles_read`): in the naive order, where a row has more than P tiles, 1 + P of them; in groups of G rows, G + P / G.

Shapes: a [M, K], b [K, N], out [M, N].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

VARIANTS = ("naive", "grouped", "persistent", "descriptors")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def matmul_torch(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """The twin: the same in PyTorch."""
    return (a_MK.float() @ b_KN.float()).to(a_MK.dtype)


@triton.jit
def tile_place(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of the tile with this number, GROUP rows of tiles at a time, down its columns first."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = tile // (GROUP * columns) * GROUP
    height = min(rows - first, GROUP)
    inside = tile % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def product_of(
    a, b, M, N, K, a_row, a_column, b_row, b_column, row, column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a b, in float32. Rows and columns past the end are read as copies of others, and never written."""
    m = (row * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    n = (column * BLOCK_N + tl.arange(0, BLOCK_N)) % N
    k = tl.arange(0, BLOCK_K)
    a_at = a + m.to(tl.int64)[:, None] * a_row + k[None, :] * a_column
    b_at = b + k[:, None] * b_row + n.to(tl.int64)[None, :] * b_column
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        a_tile = tl.load(a_at, mask=inside[None, :], other=0.0)
        b_tile = tl.load(b_at, mask=inside[:, None], other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION)
        a_at += BLOCK_K * a_column
        b_at += BLOCK_K * b_row
    return total


@triton.jit
def write_tile(out, total, M, N, row, column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    m, n = row * BLOCK_M + tl.arange(0, BLOCK_M), column * BLOCK_N + tl.arange(0, BLOCK_N)
    at = out + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def matmul_kernel(
    a, b, out, M, N, K, a_row, a_column, b_row, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, column = tile_place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    total = product_of(
        a, b, M, N, K, a_row, a_column, b_row, b_column, row, column, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    write_tile(out, total, M, N, row, column, BLOCK_M, BLOCK_N)


@triton.jit
def matmul_persistent_kernel(
    a, b, out, M, N, K, a_row, a_column, b_row, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, column = tile_place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        total = product_of(
            a, b, M, N, K, a_row, a_column, b_row, b_column, row, column, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
        write_tile(out, total, M, N, row, column, BLOCK_M, BLOCK_N)


@triton.jit
def matmul_descriptors_kernel(
    a, b, out, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, column = tile_place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a_tile = a.load([row * BLOCK_M, start])
        b_tile = b.load([start, column * BLOCK_N])
        total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION)
    out.store([row * BLOCK_M, column * BLOCK_N], total.to(out.dtype))


def matmul(
    a_MK: Tensor,
    b_KN: Tensor,
    variant: str = "grouped",
    block: tuple[int, int, int] = (128, 256, 64),
    group: int = 8,
    programs: int | None = None,
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """a b, summed in float32 and rounded once; float32 inputs are multiplied exactly, not as TF32.

    a_MK, b_KN: float32, bfloat16 or float16, the same for both, of any strides (descriptors: contiguous, rows of a
    multiple of 16 bytes). block: tile sizes of M, N and K, powers of two from 16 up. group: rows of tiles that are
    worked on together. programs: of the persistent variant; by default one for each SM, on a CPU four.
    Returns: [M, N], contiguous, in the dtype of a.
    Raises: ValueError for sizes that do not fit each other, another dtype, an unknown variant.
    """
    _refuse(a_MK, b_KN, variant, block)
    (M, K), N = a_MK.shape, b_KN.shape[1]
    out_MN = torch.empty(M, N, dtype=a_MK.dtype, device=a_MK.device)
    if out_MN.numel() == 0 or K == 0:
        return out_MN.zero_()
    tile_m, tile_n, _ = block
    tiles = triton.cdiv(M, tile_m) * triton.cdiv(N, tile_n)
    group = 1 if variant == "naive" else group
    if variant == "descriptors":
        arguments = (
            TensorDescriptor.from_tensor(a_MK, [block[0], block[2]]),
            TensorDescriptor.from_tensor(b_KN, [block[2], block[1]]),
            TensorDescriptor.from_tensor(out_MN, [block[0], block[1]]),
            *(M, N, K),
        )
        kernel, count = matmul_descriptors_kernel, tiles
    else:
        arguments = (a_MK, b_KN, out_MN, M, N, K, *a_MK.stride(), *b_KN.stride())
        kernel, count = matmul_kernel, tiles
        if variant == "persistent":
            kernel, count = matmul_persistent_kernel, min(programs or _sms(a_MK), tiles)
    kernel[(count,)](
        *arguments,
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        GROUP=group,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_MN


def _refuse(a_MK: Tensor, b_KN: Tensor, variant: str, block: tuple[int, int, int]) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
    if a_MK.ndim != 2 or b_KN.ndim != 2 or a_MK.shape[1] != b_KN.shape[0]:
        raise ValueError(f"shapes {list(a_MK.shape)} and {list(b_KN.shape)} have no product")
    if a_MK.dtype not in DTYPES or a_MK.dtype != b_KN.dtype:
        raise ValueError(f"matmul takes two of float32, bfloat16 or float16 alike, not {a_MK.dtype} and {b_KN.dtype}")
    if len(block) != 3 or any(size < 16 or size & (size - 1) for size in block):
        raise ValueError(f"a block has three sizes, powers of two from 16 up, and this one is {block}")
    rows = [tensor.shape[1] * tensor.itemsize for tensor in (a_MK, b_KN)] + [b_KN.shape[1] * a_MK.itemsize]
    if variant == "descriptors" and not (
        a_MK.is_contiguous() and b_KN.is_contiguous() and all(size % 16 == 0 for size in rows)
    ):
        raise ValueError("tensor descriptors need contiguous matrices whose rows are a multiple of 16 bytes")


def _sms(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 4


def tiles_read(rows: int, columns: int, programs: int, group: int) -> int:
    """How many rows of tiles of a and columns of tiles of b the first `programs` tiles want, each counted once."""
    places = set()
    for tile in range(min(programs, rows * columns)):
        first = tile // (group * columns) * group
        height, inside = min(rows - first, group), tile % (group * columns)
        places |= {("a", first + inside % height), ("b", inside // height)}
    return len(places)
