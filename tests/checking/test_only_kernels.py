"""What PyTorch may do beside the kernels of an answer, and what a result may be."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from course.checking.only_kernels import NotTheKernel, only_kernels, refuse_views
from course.kernels.checked import checked


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, (tl.load(x + i, mask=i < n).to(tl.float32) * 2).to(out.dtype.element_ty), mask=i < n)


def test_moving_casting_counting_and_adding_up_are_left_to_pytorch():
    x_ND = torch.randn(4, 6)
    with only_kernels():
        out_ND = torch.zeros_like(x_ND)
        out_ND[1:].copy_(x_ND[:3])
        x_ND.bfloat16().view(2, -1).transpose(0, 1).contiguous()
        torch.empty(3).fill_(float("nan"))
        x_ND.sum(dim=0)
        count = int((x_ND > 0).sum())
        torch.arange(5).cumsum(0) % 3
        x_ND.sum() / max(count, 1)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x * 2,
        lambda x: x.mul_(2),
        lambda x: torch.exp(x),
        lambda x: x.mean(dim=0),
        lambda x: x[torch.tensor([1, 0])],
        lambda x: torch.nn.functional.silu(x),
        lambda x: torch.ops.aten.mul(x, x),
        lambda x: x @ x.T,
        lambda x: x.sort(dim=1),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: np.from_dlpack(x),
    ],
)
def test_arithmetic_beside_the_kernels_is_refused(compute):
    with pytest.raises(NotTheKernel), only_kernels():
        compute(torch.randn(4, 6))


@pytest.mark.parametrize(
    "read",
    [
        lambda n: torch.ones(3, 3, dtype=torch.int64).tril() @ n,
        lambda n: n + 1,
        lambda n: n[0] + n[1],
        lambda n: torch.empty(1, dtype=torch.int64).__setitem__(0, n[2]),
        lambda n: n == 1,
        lambda n: n.sum(),
        lambda n: n[0].item(),
        lambda n: n.view(3, 1).expand(3, 2).contiguous(),
        lambda n: n.to(torch.int32),
        lambda n: torch.empty_like(n).copy_(n),
        lambda n: n[n > 0],
    ],
)
def test_where_only_kernels_read_pytorch_may_not(read):
    n = torch.tensor([3, 0, 4])
    with only_kernels():
        read(n)
    with pytest.raises(NotTheKernel, match="PyTorch reads a tensor here"), only_kernels(reads=False):
        read(n)


def test_where_only_kernels_read_pytorch_allocates_fills_and_views():
    n = torch.tensor([3, 0, 4])
    with only_kernels(reads=False) as tally:
        out = torch.full_like(n, -1)
        out[0], out[1:] = 0, 7
        torch.zeros(4, 6).view(2, -1).mT[0].fill_(2.5)
        n.new_zeros(3), torch.ones_like(n), torch.arange(5), torch.empty(0).long(), n.view(3, 1).expand(3, 2)
    assert out.tolist() == [0, 7, 7]
    assert tally.load_bytes == 2 * 8  # the two numbers of the host's


def test_what_a_launch_does_by_itself_is_not_the_answers():
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        x_N = torch.arange(5.0).to(dtype)
        with checked(), only_kernels():
            out_N = torch.empty_like(x_N)
            double[(2,)](x_N, out_N, 5, BLOCK=4)
        assert out_N.tolist() == [0, 2, 4, 6, 8]


def test_views_of_inputs_and_results_with_gaps_are_refused():
    x_ND = torch.randn(4, 6)
    for result in (x_ND, x_ND[0], [torch.zeros(2), x_ND.view(-1)]):
        with pytest.raises(NotTheKernel, match="memory of the input `x_ND`"):
            refuse_views(result, {"x_ND": x_ND})
    with pytest.raises(NotTheKernel, match=r"strides are \[1, 4\]"):
        refuse_views({"out": torch.zeros(6, 4).T}, {"x_ND": x_ND})
    refuse_views([torch.zeros(4, 6), x_ND[:0], 1.5, None], {"x_ND": x_ND})


def test_a_result_in_the_memory_of_the_one_before_is_refused():
    before = torch.zeros(4)
    with pytest.raises(NotTheKernel, match="memory of the result before it"):
        refuse_views([torch.zeros(2), before[1:]], {}, (before, None))
    refuse_views(torch.zeros(4), {}, before)


def test_what_pytorch_moves_beside_the_kernels_is_counted():
    x_ND = torch.randn(4, 6)
    for move, told in (
        (lambda: torch.empty(50).view(5, 10).t(), (0, 0, 0)),
        (lambda: torch.zeros(4), (1, 0, 16)),
        (lambda: x_ND.bfloat16(), (1, 96, 48)),
        (lambda: x_ND.sum(dim=0), (1, 96, 24)),
        (lambda: torch.empty(6).copy_(x_ND[0]), (1, 24, 24)),
        (lambda: x_ND.float().contiguous(), (0, 0, 0)),
    ):
        with only_kernels() as tally:
            move()
        assert (tally.operations, tally.load_bytes, tally.store_bytes) == told
    out_N = torch.empty(5)
    with checked(), only_kernels() as tally:
        double[(2,)](torch.ones(5), out_N, 5, BLOCK=4)
    assert (tally.load_bytes, tally.store_bytes) == (0, 20)  # those of torch.ones: a launch counts for itself
