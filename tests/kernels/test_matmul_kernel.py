"""The product by tiles, four ways: equal to float64, each input tile read as often as told, tensor cores on sm_90."""

import pytest
import torch

from course.kernels import matmul as file
from course.kernels.checked import checked
from course.kernels.machine import compile_for
from course.kernels.matmul import VARIANTS, matmul, matmul_torch, tiles_read
from course.kernels.planned import launches_of

BLOCK = (32, 32, 32)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SHAPES = [(64, 64, 64), (1, 1, 1), (33, 17, 50), (40, 70, 16), (5, 3, 100)]


def drawn(M, N, K, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(M, K, generator=rng).to(dtype), torch.randn(K, N, generator=rng).to(dtype)


def error(got, a, b):
    exact = a.double() @ b.double()
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_float64_rounded_once(variant, dtype):
    for M, N, K in SHAPES if variant != "descriptors" else [(64, 64, 64), (40, 72, 16), (16, 8, 104)]:
        a, b = drawn(M, N, K, dtype)
        with checked():
            got = matmul(a, b, variant, BLOCK, group=2)
        assert (got.shape, got.dtype) == ((M, N), dtype)
        assert error(got, a, b) <= TOLERANCE[dtype], (M, N, K)
        torch.testing.assert_close(got, matmul_torch(a, b))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_to_sum_or_nothing_to_write_gives_zeros(variant):
    for M, N, K in ((4, 8, 0), (0, 8, 16), (4, 0, 16)):
        with checked():
            got = matmul(torch.zeros(M, K), torch.zeros(K, N), variant, BLOCK)
        assert torch.equal(got, torch.zeros(M, N))


def test_matrices_are_read_where_they_lie():
    base = torch.randn(50, 80, generator=torch.Generator().manual_seed(0))
    for a, b in ((base.T[:40], base[:, :30]), (base[::2, ::3], base[1:28, 3:40]), (base[:1].expand(20, 80), base.T)):
        with checked():
            got = matmul(a, b, "grouped", BLOCK)
        assert error(got, a, b) < 1e-6


def test_rounding_goes_neither_up_nor_down_on_the_whole():
    a, b = drawn(96, 96, 64, torch.bfloat16)
    with checked():
        got = matmul(a.abs(), b.abs(), "grouped", (32, 32, 64))
    exact = a.abs().double() @ b.abs().double()
    bias = ((got.double() - exact) / exact).mean().item()
    assert abs(bias) < 4 * 2**-9 / (3 * 96**2) ** 0.5


@pytest.mark.parametrize("variant", ["naive", "grouped", "persistent"])
def test_each_tile_of_the_result_reads_a_row_of_tiles_and_a_column(variant):
    a, b = drawn(64, 96, 64)
    with checked() as log:
        matmul(a, b, variant, BLOCK, programs=4)
    (launch,) = log.launches
    assert launch.load_bytes == (96 // 32) * a.nbytes + (64 // 32) * b.nbytes
    assert launch.store_bytes == 64 * 96 * 4
    assert launch.grid == ((4,) if variant == "persistent" else (6,))


def test_every_tile_is_worked_on_once_in_every_order():
    for M, N, group, programs in ((160, 96, 2, 3), (32, 200, 8, 7), (200, 32, 3, 2)):
        a, b = drawn(M, N, 16)
        for variant in ("grouped", "persistent"):
            with checked() as log:
                matmul(a, b, variant, BLOCK, group, programs)
            assert log.launches[0].stores == M * N


def test_a_wave_in_groups_wants_fewer_tiles():
    assert tiles_read(64, 64, 64, 1) == 1 + 64
    assert tiles_read(64, 64, 64, 8) == 8 + 8
    assert tiles_read(3, 5, 15, 2) == 3 + 5
    assert tiles_read(2, 2, 1, 8) == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_hopper_it_uses_tensor_cores_of_four_warps_and_spills_nothing(variant):
    a = torch.empty(8192, 8192, dtype=torch.bfloat16, device="meta")
    (launch,) = launches_of(lambda: matmul(a, a, variant, programs=132))
    made = compile_for(file.__file__, launch, code=True)
    assert made.error is None
    assert made.spills == 0
    assert "wgmma.mma_async" in made.code["ptx"]
    assert "HGMMA.64x256x16.F32.BF16" in made.code["sass"]


def test_wrong_inputs_get_a_sentence():
    a = torch.zeros(32, 32)
    for call, said in (
        (lambda: matmul(a, torch.zeros(31, 8)), "have no product"),
        (lambda: matmul(a, a.double()), "two of float32, bfloat16 or float16 alike"),
        (lambda: matmul(a, a, "fast"), "there is no variant 'fast'"),
        (lambda: matmul(a, a, block=(8, 32, 32)), "powers of two from 16 up"),
        (lambda: matmul(a, a.T, "descriptors"), "contiguous matrices"),
        (lambda: matmul(a, torch.zeros(32, 3), "descriptors"), "a multiple of 16 bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
