"""All-to-all: each rank sends some rows to every rank of a group, as many as it likes to each; with its gradient.

Rows go out sorted by who gets them, `sent` of them to each, and arrive sorted by who sent them, `received` from each. No rank
can know what will arrive, so the counts are exchanged first. What was forward a way out is backward the way home: the
gradient of an exchange is the same exchange with the two counts swapped.

All ranks of a group call at the same place, those without rows too, forward and backward; one that does not call leaves the
others waiting for ever. So either all ranks ask for a gradient or none does.

What travels are bytes, viewed as uint8: gloo does not know FP8, and the ledger counts bytes anyway. A row has one of three wire
formats:

  same   the row as it is
  bf16   rounded to bfloat16: 2 D bytes
  fp8    E4M3 codes with one float32 scale for every 128 neighbours, a power of two: D + 4 ceil(D / 128) bytes
         (DeepSeek-V3 report, section 3.3.3: dispatch in FP8, combine in BF16)

Shapes: G ranks of the group, R rows sent, A rows that arrive, D width.
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from course.parallel.ledger import written

WIRES = ("same", "bf16", "fp8")
BLOCK = 128  # elements that share a scale


def exchange_counts(sent_G: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """How many rows each rank of the group will send to this one. sent_G, int64: how many this one sends to each."""
    received_G = torch.empty_like(sent_G)
    dist.all_to_all_single(received_G, sent_G, group=group)
    written("counts", group, [sent_G.element_size()] * len(sent_G))
    return received_G


def exchange(
    rows: Tensor,
    sent: Sequence[int],
    received: Sequence[int],
    group: dist.ProcessGroup | None = None,
    wire: str = "same",
    wire_back: str = "same",
    what: str = "rows",
) -> Tensor:
    """Send rows[:sent[0]] to rank 0 of the group, the next sent[1] to rank 1, and so on.

    rows: [R, D] or [R]. wire, wire_back: the format forward, and that of the gradient on its way back. what: the ledger's
    word for these bytes. Returns: [A, D] or [A] in the dtype of `rows`.
    Raises: ValueError when the counts are not one a rank, `sent` does not sum to R, or the wire is unknown. Whether they
    are what the other ranks sent, no rank can see.
    """
    ranks = dist.get_world_size(group)
    if len(sent) != ranks or len(received) != ranks:
        raise ValueError(f"{ranks} ranks take as many counts, and not {len(sent)} and {len(received)}")
    if sum(sent) != len(rows):
        raise ValueError(f"{len(rows)} rows are not the {sum(sent)} that the counts say")
    for name in (wire, wire_back):
        if name not in WIRES:
            raise ValueError(f"there is no wire {name!r}; there are: {', '.join(WIRES)}")
    if "fp8" in (wire, wire_back) and rows.dim() != 2:
        raise ValueError("only a matrix travels as FP8: a scale belongs to neighbours in a row")
    return _Exchange.apply(rows, tuple(sent), tuple(received), group, wire, wire_back, what)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, sent, received, group, wire, wire_back, what):
        ctx.back = received, sent, group, wire_back, f"{what}, gradient"
        return _moved(rows, sent, received, group, wire, what)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return _moved(gradient, *ctx.back), None, None, None, None, None, None


def _moved(rows: Tensor, sent, received, group, wire: str, what: str) -> Tensor:
    if wire == "fp8":
        return _moved_fp8(rows, sent, received, group, what)
    on_wire = rows.to(torch.bfloat16) if wire == "bf16" else rows
    return _bytes_moved(on_wire, sent, received, group, what).to(rows.dtype)


def _moved_fp8(rows: Tensor, sent, received, group, what: str) -> Tensor:
    """Codes and scales side by side. To code again what was decoded changes nothing, since scales are powers of two: a row
    that travels several legs is rounded on the first one alone."""
    from course.kernels.fp8_quantize import fp8_quantize, fp8_quantize_torch
    from course.model.fp8_blocks import dequantise_blocks

    narrow = rows.float() if rows.dtype == torch.float64 else rows
    if rows.is_cuda:
        codes, scales = fp8_quantize(narrow, (1, BLOCK), power_of_two=True)
    elif len(rows):
        codes, scales = fp8_quantize_torch(narrow, (1, BLOCK), power_of_two=True)
    else:
        codes = rows.new_empty(rows.shape, dtype=torch.float8_e4m3fn)
        scales = rows.new_empty(0, -(-rows.shape[1] // BLOCK), dtype=torch.float32)
    codes = _bytes_moved(codes, sent, received, group, what)
    scales = _bytes_moved(scales, sent, received, group, f"{what}, scales")
    return dequantise_blocks(codes, scales, (1, BLOCK)).to(rows.dtype)


def _bytes_moved(rows: Tensor, sent, received, group, what: str) -> Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    row_bytes = rows.element_size() * prod(rows.shape[1:])
    sent_bytes, received_bytes = ([count * row_bytes for count in counts] for counts in (sent, received))
    flat_in, flat_out = (t.contiguous().flatten().view(torch.uint8) for t in (rows, arrived))
    dist.all_to_all_single(flat_out, flat_in, received_bytes, sent_bytes, group=group)
    written(what, group, sent_bytes)
    return arrived
