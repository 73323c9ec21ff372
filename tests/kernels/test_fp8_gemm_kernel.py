"""The block-scaled FP8 product: equal to float64, each scale where it belongs, and promoted every 128 of K on sm_90."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from course.hardware.machine_code import read_code
from course.kernels import fp8_gemm as file
from course.kernels.checked import checked
from course.kernels.fp8_accumulator import fp8_accumulate
from course.kernels.fp8_gemm import fp8_gemm, fp8_gemm_torch
from course.kernels.fp8_quantize import fp8_quantize_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of

from kernel_measures import bytes_each, drawn, relative_error, rounded_once  # isort: skip

BLOCK = (32, 64)
SHAPES = [(64, 64, 128), (1, 1, 1), (33, 150, 300), (5, 260, 129), (40, 17, 16), (1, 130, 256), (70, 128, 127)]
TOLERANCE = {torch.float32: 2e-7, torch.float16: 2**-11, torch.bfloat16: 2**-8}
E4M3 = torch.float8_e4m3fn


def quantized(M, N, K, positive=False):
    """Codes of random matrices whose blocks have scales a factor of up to 2^16 apart."""
    x, w = drawn((M, K), seed=M), drawn((N, K), seed=N + 1)
    x *= 2.0 ** (torch.arange(K) // 128 * 5 - torch.arange(M)[:, None] % 7)
    w *= 2.0 ** (3 * (torch.arange(N) // 128)[:, None] - torch.arange(K) // 128 * 4)
    (x, x_scales), (w, w_scales) = fp8_quantize_torch(x.abs() if positive else x), fp8_quantize_torch(w, (128, 128))
    return x, w.abs() if positive else w, x_scales, w_scales


def exact(x, w, x_scales, w_scales):
    """In float64, a number's scale found by its place."""
    k = torch.arange(x.shape[1]) // 128
    n = torch.arange(len(w))[:, None] // 128
    return (x.double() * x_scales.double()[:, k]) @ (w.double() * w_scales.double()[n, k]).T


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_equals_float64_at_every_size(dtype):
    for shape in SHAPES:
        inputs = quantized(*shape)
        with checked():
            got = fp8_gemm(*inputs, dtype, BLOCK, group=2)
        assert (got.shape, got.dtype) == (shape[:2], dtype)
        assert relative_error(got, exact(*inputs)) <= TOLERANCE[dtype], shape
        rows = (got.double() - exact(*inputs)).norm(dim=1) / exact(*inputs).norm(dim=1)
        assert (rows <= 4 * TOLERANCE[dtype]).all(), shape
        assert relative_error(got, fp8_gemm_torch(*inputs, dtype).double()) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("block", [(16, 16), (16, 128), (128, 32), (128, 128)], ids=str)
def test_every_block_finds_the_scales_of_its_rows_and_columns(block):
    inputs = quantized(50, 300, 260)
    with checked():
        got = fp8_gemm(*inputs, torch.float32, block)
    assert relative_error(got, exact(*inputs)) < 2e-7


def test_it_rounds_once_and_so_drifts_neither_up_nor_down():
    x, w = ((drawn(shape).abs() + 0.1).to(E4M3) for shape in ((104, 128), (104, 128)))
    inputs = (x, w, drawn((104, 1)).abs() + 0.1, drawn((1, 1)).abs())
    for dtype in (torch.bfloat16, torch.float16):
        with checked():
            rounded_once(fp8_gemm(*inputs, dtype, (64, 128)), exact(*inputs))


def test_quantising_and_multiplying_costs_a_few_percent_of_a_product_of_normal_numbers():
    x, w = drawn((32, 512), seed=1), drawn((48, 512), seed=2)
    with checked():
        got = fp8_gemm(
            *sum(zip(fp8_quantize_torch(x), fp8_quantize_torch(w, (128, 128)), strict=True), ()), block=BLOCK
        )
    assert 0.02 < relative_error(got, x.double() @ w.double().T) < 0.05


def test_a_chip_s_sums_of_128_come_near_and_those_of_all_k_do_not():
    x, w = (torch.rand(16, 4096, generator=torch.Generator().manual_seed(seed)).to(E4M3) for seed in range(2))
    ones = torch.ones(16, 32), torch.ones(1, 32)
    with checked():
        got = fp8_gemm(x, w, *ones, torch.float32, (16, 16))
    assert relative_error(fp8_accumulate(x, w, 128), got.double()) < 0.0006
    assert relative_error(fp8_accumulate(x, w), got.double()) > 0.06


def test_rows_may_lie_apart_and_scales_anyhow():
    x, w, x_scales, w_scales = quantized(20, 140, 400)
    turned = x_scales.T.contiguous().T, w_scales.T.contiguous().T
    with checked():
        got = fp8_gemm(x[::2, :300], w[:, :300], turned[0][::2, :3], turned[1][:, :3], torch.float32, BLOCK)
    assert relative_error(got, exact(x[::2, :300], w[:, :300], x_scales[::2, :3], w_scales[:, :3])) < 2e-7


def test_a_block_of_zeros_adds_nothing_and_nan_stays_in_its_row():
    x, w, x_scales, w_scales = quantized(6, 20, 256)
    x.view(torch.uint8)[:, :128] = 0
    with checked():
        got = fp8_gemm(x, w, x_scales, w_scales, torch.float32, BLOCK)
    assert relative_error(got, exact(x[:, 128:], w[:, 128:], x_scales[:, 1:], w_scales[:, 1:])) < 2e-7
    x.view(torch.uint8)[2, 3] = 0x7F
    with checked():
        got = fp8_gemm(x, w, x_scales, w_scales, torch.float32, BLOCK)
    assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [False, False, True, False, False, False]


def test_nothing_to_sum_or_nothing_to_write_gives_zeros():
    for M, N, K in ((4, 8, 0), (0, 8, 16), (4, 0, 16)):
        scales = torch.zeros(M, -(-K // 128)), torch.zeros(-(-N // 128), -(-K // 128))
        with checked() as log:
            got = fp8_gemm(torch.zeros(M, K).to(E4M3), torch.zeros(N, K).to(E4M3), *scales)
        assert torch.equal(got, torch.zeros(M, N, dtype=torch.bfloat16))
        assert log.launches == []


def test_it_gives_the_same_bits_every_time():
    inputs = quantized(40, 70, 300)
    with checked():
        results = [fp8_gemm(*inputs, torch.float32, BLOCK, group) for group in (1, 2, 8)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_each_tile_reads_its_rows_and_their_scales_once_and_one_scale_of_w_a_span():
    x, w, x_scales, _ = inputs = quantized(70, 200, 300)
    with checked() as log:
        fp8_gemm(*inputs, block=BLOCK)
    (launch,) = log.launches
    down, across, spans = 3, 4, 3
    assert launch.grid == (down * across,)
    assert launch.load_bytes == across * (x.nbytes + x_scales.nbytes) + down * w.nbytes + 4 * down * across * spans
    assert launch.store_bytes == 2 * 70 * 200


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    inputs = quantized(512, 512, 1024)
    moved = bytes_each(fp8_gemm_torch, *inputs, elements=1)
    assert moved == pytest.approx(29 * 2 * 512 * 1024 + 10 * 512**2, rel=0.02)


def planned(M, N, K, **settings):
    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    spans = -(-K // 128)
    inputs = (empty(M, K, dtype=E4M3), empty(N, K, dtype=E4M3), empty(M, spans), empty(-(-N // 128), spans))
    (launch,) = launches_of(lambda: fp8_gemm(*inputs, **settings))
    return launch


def counted(sass):
    """Instructions of the hot loop: which tensor-core ones, and how many FFMA."""
    loop = read_code(sass).hot_loop()
    tensor = Counter(its.name for its in loop if "GMMA" in its.name)
    return dict(tensor), sum(its.name.startswith("FFMA") for its in loop)


def test_on_hopper_it_is_four_products_and_one_ffma_an_element_for_128_of_k_and_spills_nothing():
    cases = [{}, {"block": (64, 128), "num_warps": 4}, {"dtype": torch.float32}, {"num_warps": 4}]
    sizes = (8192, 4096, 7168)
    made = compile_all(file.__file__, [planned(*sizes, **case) for case in cases], code=True)
    assert [compiled.error for compiled in made] == [None] * 4
    for compiled in made[:3]:  # 64 FFMA a thread: 128 x 128 elements over 256 threads, or 64 x 128 over 128
        assert compiled.spills == 0
        assert counted(compiled.code["sass"]) == ({"QGMMA.64x128x32.F32.E4M3.E4M3": 4}, 64)
        assert compiled.code["sass"].count("RZ, !UPT") == 1  # the first of four starts from zero
    assert made[3].spills > 0  # half the warps have twice the accumulators each


def test_given_the_running_total_tensor_cores_add_to_it_through_all_of_k(tmp_path):
    text = Path(file.__file__).read_text()
    line = "total += tl.dot(x_tile, w_tile) * scale[:, None]"
    assert line in text
    path = tmp_path / "unpromoted.py"
    path.write_text(text.replace(line, "total = tl.dot(x_tile, w_tile, total)"))
    (compiled,) = compile_all(path, [planned(8192, 4096, 7168)], code=True)
    assert compiled.error is None
    tensor, added = counted(compiled.code["sass"])
    assert added == 0
    assert set(tensor) == {"QGMMA.64x128x32.F32.E4M3.E4M3"}
    assert "RZ, !UPT" not in compiled.code["sass"]


def test_rows_that_are_no_multiple_of_16_bytes_compile_and_spill():
    (compiled,) = compile_all(file.__file__, [planned(7, 130, 129)])
    assert compiled.error is None
    assert compiled.spills > 0


def test_wrong_inputs_get_a_sentence():
    x, w, x_scales, w_scales = good = quantized(4, 200, 256)
    for wrong, said in (
        ((x, w[:, :255], x_scales, w_scales), r"shapes \[4, 256\] and \[200, 255\] have no product x w\^T"),
        ((x.float(), w, x_scales, w_scales), r"two of float8_e4m3fn with scales in float32, not torch\.float32"),
        ((x, w, x_scales.double(), w_scales), "with scales in float32"),
        ((x, w, x_scales, w_scales[:1]), r"have shapes \[4, 2\] and \[2, 2\], not \[4, 2\] and \[1, 2\]"),
        ((x, w, x_scales.T, w_scales), r"have shapes \[4, 2\] and \[2, 2\], not \[2, 4\] and \[2, 2\]"),
        ((x.T.contiguous().T, w, x_scales, w_scales), "whose elements lie side by side"),
        ((*good, torch.float64), r"and not as torch\.float64"),
        ((*good, torch.float32, (32, 256)), r"at most 128 columns, and this one is \(32, 256\)"),
        ((*good, torch.float32, (8, 64)), "powers of two from 16 up"),
    ):
        with pytest.raises(ValueError, match=said):
            fp8_gemm(*wrong)
