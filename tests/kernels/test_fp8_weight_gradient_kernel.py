"""The FP8 gradient of a weight: equal to float64, each scale where it belongs, and promoted every 128 tokens on sm_90."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from course.hardware.machine_code import read_code
from course.kernels import fp8_weight_gradient as file
from course.kernels.checked import checked
from course.kernels.fp8_accumulator import fp8_accumulate
from course.kernels.fp8_quantize import fp8_quantize, fp8_quantize_torch
from course.kernels.fp8_weight_gradient import fp8_weight_gradient, fp8_weight_gradient_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of

from kernel_measures import bytes_each, drawn, relative_error, rounded_once  # isort: skip

BLOCK = (32, 64)
SHAPES = [(64, 64, 128), (1, 1, 1), (33, 150, 300), (5, 260, 129), (40, 17, 16), (1, 130, 256), (70, 128, 127)]
TOLERANCE = {torch.float32: 3e-7, torch.float16: 2**-11, torch.bfloat16: 2**-8}
E4M3 = torch.float8_e4m3fn


def quantized(N, K, T):
    """Codes of random matrices, transposed, whose rows and spans have scales a factor of up to 2^16 apart."""
    dy, x = drawn((T, N), seed=N), drawn((T, K), seed=K + 1)
    t = torch.arange(T)[:, None] // 128
    dy *= 2.0 ** (t * 5 - torch.arange(N) % 7 - 12)
    x *= 2.0 ** (torch.arange(K) % 5 - t * 4)
    return operands(dy, x)


def operands(dy, x):
    (dy, dy_scales), (x, x_scales) = (fp8_quantize_torch(part.T, (1, 128)) for part in (dy, x))
    return dy, x, dy_scales, x_scales


def exact(dy, x, dy_scales, x_scales):
    """In float64, a number's scale found by its place."""
    t = torch.arange(x.shape[1]) // 128
    return (dy.double() * dy_scales.double()[:, t]) @ (x.double() * x_scales.double()[:, t]).T


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_equals_float64_at_every_size(dtype):
    for shape in SHAPES:
        inputs = quantized(*shape)
        with checked():
            got = fp8_weight_gradient(*inputs, dtype, BLOCK, group=2)
        assert (got.shape, got.dtype) == (shape[:2], dtype)
        assert got.isfinite().all()
        assert relative_error(got, exact(*inputs)) <= TOLERANCE[dtype], shape
        rows = (got.double() - exact(*inputs)).norm(dim=1) / exact(*inputs).norm(dim=1)
        assert (rows <= 4 * TOLERANCE[dtype]).all(), shape
        assert relative_error(got, fp8_weight_gradient_torch(*inputs, dtype).double()) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("block", [(16, 16), (16, 256), (128, 32), (128, 128)], ids=str)
def test_every_block_finds_the_scales_of_its_rows_and_columns(block):
    inputs = quantized(50, 300, 260)
    with checked():
        got = fp8_weight_gradient(*inputs, torch.float32, block)
    assert relative_error(got, exact(*inputs)) < 3e-7


def test_it_rounds_once_and_so_drifts_neither_up_nor_down():
    dy, x = ((drawn(shape).abs() + 0.1).to(E4M3) for shape in ((104, 128), (104, 128)))
    inputs = (dy, x, drawn((104, 1)).abs() + 0.1, drawn((104, 1), seed=1).abs() + 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        with checked():
            rounded_once(fp8_weight_gradient(*inputs, dtype, (64, 128)), exact(*inputs))


def test_from_activations_and_gradients_to_the_weight_s_gradient_in_three_launches():
    x, dy = drawn((300, 70), torch.bfloat16, seed=1), 1e-5 * drawn((300, 40), torch.bfloat16, seed=2)
    with checked() as log:
        dy_codes, dy_scales = fp8_quantize(dy, (128, 1), transposed=True)
        x_codes, x_scales = fp8_quantize(x, (128, 1), transposed=True)
        got = fp8_weight_gradient(dy_codes, x_codes, dy_scales, x_scales, block=BLOCK)
    assert len(log.launches) == 3
    assert 0.02 < relative_error(got, dy.double().T @ x.double()) < 0.05
    assert relative_error(got, exact(*operands(dy, x))) < 3e-7


def test_a_chip_s_sums_of_128_come_near_and_those_of_all_tokens_do_not():
    dy, x = (torch.rand(16, 4096, generator=torch.Generator().manual_seed(seed)).to(E4M3) for seed in range(2))
    ones = torch.ones(16, 32), torch.ones(16, 32)
    with checked():
        got = fp8_weight_gradient(dy, x, *ones, torch.float32, (16, 16))
    assert relative_error(fp8_accumulate(dy, x, 128), got.double()) < 0.0006
    assert relative_error(fp8_accumulate(dy, x), got.double()) > 0.06


def test_rows_may_lie_apart_and_scales_anyhow():
    dy, x, dy_scales, x_scales = quantized(20, 140, 400)
    with checked():
        got = fp8_weight_gradient(
            dy[::2, :300], x[:, :300], dy_scales.T.contiguous().T[::2, :3], x_scales[:, :3], torch.float32, BLOCK
        )
    assert relative_error(got, exact(dy[::2, :300], x[:, :300], dy_scales[::2, :3], x_scales[:, :3])) < 3e-7


def test_zero_gradients_add_nothing_and_nan_stays_in_its_row():
    dy, x, dy_scales, x_scales = quantized(6, 20, 256)
    dy.view(torch.uint8)[:, :128] = 0
    with checked():
        got = fp8_weight_gradient(dy, x, dy_scales, x_scales, torch.float32, BLOCK)
    assert relative_error(got, exact(dy[:, 128:], x[:, 128:], dy_scales[:, 1:], x_scales[:, 1:])) < 3e-7
    dy.view(torch.uint8)[2, 3] = 0x7F
    with checked():
        got = fp8_weight_gradient(dy, x, dy_scales, x_scales, torch.float32, BLOCK)
    assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [False, False, True, False, False, False]


def test_no_tokens_or_nothing_to_write_gives_zeros():
    for N, K, T in ((4, 8, 0), (0, 8, 16), (4, 0, 16)):
        scales = torch.zeros(N, -(-T // 128)), torch.zeros(K, -(-T // 128))
        with checked() as log:
            got = fp8_weight_gradient(torch.zeros(N, T).to(E4M3), torch.zeros(K, T).to(E4M3), *scales)
        assert torch.equal(got, torch.zeros(N, K))
        assert log.launches == []


def test_it_gives_the_same_bits_every_time():
    inputs = quantized(40, 70, 300)
    with checked():
        results = [fp8_weight_gradient(*inputs, torch.float32, BLOCK, group) for group in (1, 2, 8)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_each_tile_reads_its_rows_and_columns_and_their_scales_once():
    dy, x, dy_scales, x_scales = inputs = quantized(70, 200, 300)
    with checked() as log:
        fp8_weight_gradient(*inputs, block=BLOCK)
    (launch,) = log.launches
    down, across = 3, 4
    assert launch.grid == (down * across,)
    assert launch.load_bytes == across * (dy.nbytes + dy_scales.nbytes) + down * (x.nbytes + x_scales.nbytes)
    assert launch.store_bytes == 4 * 70 * 200


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    moved = bytes_each(fp8_weight_gradient_torch, *quantized(512, 512, 1024), elements=1)
    assert moved == pytest.approx(29 * 2 * 512 * 1024 + 4 * 512**2, rel=0.02)


def planned(N, K, T, **settings):
    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    spans = -(-T // 128)
    inputs = (empty(N, T, dtype=E4M3), empty(K, T, dtype=E4M3), empty(N, spans), empty(K, spans))
    (launch,) = launches_of(lambda: fp8_weight_gradient(*inputs, **settings))
    return launch


def counted(sass):
    """Instructions of the hot loop: which tensor-core ones, and how many FFMA and FMUL."""
    loop = read_code(sass).hot_loop()
    tensor = Counter(its.name for its in loop if "GMMA" in its.name)
    return dict(tensor), *(sum(its.name.startswith(name) for its in loop) for name in ("FFMA", "FMUL"))


def test_on_hopper_it_is_four_products_and_one_ffma_an_element_for_128_tokens_and_spills_nothing():
    cases = [{}, {"dtype": torch.bfloat16}, {"block": (128, 128), "num_warps": 8}]
    made = compile_all(file.__file__, [planned(4096, 7168, 8192, **case) for case in cases], code=True)
    assert [compiled.error for compiled in made] == [None] * 3
    for compiled in made:  # 64 elements a thread: 64 x 128 over 128 threads, or 128 x 128 over 256
        tensor, added, multiplied = counted(compiled.code["sass"])
        assert (tensor, added, multiplied) == ({"QGMMA.64x128x32.F32.E4M3.E4M3": 4}, 64, 64)
        assert compiled.code["sass"].count("RZ, !UPT") == 1  # the first of four starts from zero
    for compiled in made[:2]:
        assert compiled.spills == 0
        assert 2 * 128 * compiled.registers <= 65536  # two programs on a multiprocessor
        assert 2 * compiled.shared_bytes <= 232448
    assert made[2].spills > 0  # 255 registers a thread are not enough


def test_given_the_running_total_tensor_cores_add_to_it_through_all_tokens(tmp_path):
    text = Path(file.__file__).read_text()
    line = "total += tl.dot(dy_tile, x_tile) * dy_scale[:, None] * x_scale[None, :]"
    assert line in text
    path = tmp_path / "unpromoted.py"
    path.write_text(text.replace(line, "total = tl.dot(dy_tile, x_tile, total)"))
    (compiled,) = compile_all(path, [planned(4096, 7168, 8192)], code=True)
    assert compiled.error is None
    assert counted(compiled.code["sass"])[1:] == (0, 0)
    assert "RZ, !UPT" not in compiled.code["sass"]


def test_a_number_of_tokens_that_is_no_multiple_of_16_compiles():
    (compiled,) = compile_all(file.__file__, [planned(130, 7, 129)])
    assert compiled.error is None


def test_wrong_inputs_get_a_sentence():
    dy, x, dy_scales, x_scales = good = quantized(4, 200, 256)
    for wrong, said in (
        (
            (dy, x[:, :255], dy_scales, x_scales),
            r"shapes \[4, 256\] and \[200, 255\] have no product dy x\^T over tokens",
        ),
        ((dy.float(), x, dy_scales, x_scales), r"two of float8_e4m3fn with scales in float32, not torch\.float32"),
        ((dy, x, dy_scales.double(), x_scales), "with scales in float32"),
        ((dy, x, dy_scales, x_scales[:2]), r"have shapes \[4, 2\] and \[200, 2\], not \[4, 2\] and \[2, 2\]"),
        ((dy, x, dy_scales.T, x_scales), r"have shapes \[4, 2\] and \[200, 2\], not \[2, 4\] and \[200, 2\]"),
        ((dy.T.contiguous().T, x, dy_scales, x_scales), "quantise with transposed=True"),
        ((*good, torch.float64), r"and not as torch\.float64"),
        ((*good, torch.float32, (8, 64)), "powers of two from 16 up"),
    ):
        with pytest.raises(ValueError, match=said):
            fp8_weight_gradient(*wrong)
