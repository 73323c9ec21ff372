"""What makes the host wait for the device, and what does not."""

import pytest
import torch
import torch.nn.functional as F

from course.checking.host_waits import HostWait, NoHostWait


@pytest.mark.parametrize(
    "wait",
    [
        lambda n: n[n > 2],
        lambda n: n.view(2, 3)[:, torch.tensor([True, False, True])],
        lambda n: n.__setitem__(n > 2, n[:3] + 1),
        lambda n: n.nonzero(),
        lambda n: torch.where(n > 2),
        lambda n: torch.arange(n[2]),
        lambda n: torch.full([3], n[1]),
        lambda n: n[: n[2]],
        lambda n: n[n[2]],
        lambda n: n.repeat_interleave(n),
        lambda n: n.unique(),
        lambda n: n.bincount(),
        lambda n: torch.equal(n, n + 1),
        lambda n: 1 if n[0] else 2,
        lambda n: torch.ops.aten.nonzero(n),
    ],
)
def test_what_waits_is_refused(wait):
    with pytest.raises(HostWait, match="the host waits for the device here"), NoHostWait():
        wait(torch.arange(6))


def test_what_goes_on_by_itself_is_let_through():
    n = torch.arange(6)
    with NoHostWait():
        n[n.flip(0)] + n.cumsum(0).where(n > 2, -1) - n.clamp(max=n[2])
        torch.searchsorted(n, n.masked_fill(n > 2, 0), right=True)
        n.clone()[n > 2] = 0
        n.clone()[2] = n[3]
        n.repeat_interleave(n, output_size=15)
        torch.minimum(n[:, None] <= n, torch.tensor(True)).sum(dim=1)
        F.pad(n, (1, 0)) // 2
        print(n)
