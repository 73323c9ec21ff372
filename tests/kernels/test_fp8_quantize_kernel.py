"""E4M3 with a scale a block, the kernel: each code the nearest, scales exact, zeros and edges, no spills on sm_90."""

import pytest
import torch
from torch import Tensor

from course.kernels import fp8_quantize as file
from course.kernels.checked import checked
from course.kernels.fp8_quantize import fp8_quantize, fp8_quantize_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.model.fp8_blocks import dequantise_blocks, scales_shape

from kernel_measures import DTYPES, bytes_each, drawn, relative_error  # isort: skip

BLOCKS = [(1, 128), (128, 128), (128, 1)]
SHAPES = [(1, 1), (1, 300), (300, 1), (130, 257), (128, 128), (33, 40)]
each_block = pytest.mark.parametrize("block", BLOCKS, ids=str)


def same_bits(got, wanted):
    return all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(got, wanted, strict=True)
    )


def spread(scales, block, shape):
    """Each element's scale, in float64: times a code it may be larger than the largest float32."""
    return dequantise_blocks(torch.ones(shape), scales, block).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_block
def test_it_equals_its_twin_bit_for_bit_at_every_size(block, dtype):
    for shape in SHAPES:
        x = drawn(shape, dtype, seed=shape[1])
        for power_of_two in (False, True):
            with checked():
                codes, scales = fp8_quantize(x, block, power_of_two)
            assert (codes.shape, codes.dtype) == (x.shape, torch.float8_e4m3fn)
            assert (scales.shape, scales.dtype) == (scales_shape(shape, block), torch.float32)
            assert same_bits((codes, scales), fp8_quantize_torch(x, block, power_of_two)), (shape, power_of_two)


@each_block
def test_each_code_is_the_nearest_and_the_largest_of_a_block_uses_the_whole_range(block):
    x = drawn((256, 256), seed=5)
    with checked():
        codes, scales = fp8_quantize(x, block)
    blocks = x.double().view(256 // block[0], block[0], 256 // block[1], block[1])
    torch.testing.assert_close(scales.double(), blocks.abs().amax((1, 3)) / 448, rtol=2**-24, atol=0)
    exact = (blocks / scales.double()[:, None, :, None]).view(256, 256)
    step = 2.0 ** (exact.abs().clamp(min=2.0**-6).log2().floor() - 3)  # between E4M3 numbers; below 2^-6 all alike
    assert ((codes.double() - exact).abs() <= step / 2 * (1 + 1e-5)).all()
    assert (codes.double().view_as(blocks).abs().amax((1, 3)) == 448).all()
    assert relative_error(dequantise_blocks(codes, scales, block), x.double()) < 0.03


@each_block
def test_rounding_goes_neither_up_nor_down_on_the_whole(block):
    x = drawn((256, 128), seed=1).abs() + 0.05
    for power_of_two in (False, True):
        with checked():
            codes, scales = fp8_quantize(x, block, power_of_two)
        exact = x.double() / spread(scales, block, x.shape)
        error = (codes.double() - exact) / 2.0 ** (exact.log2().floor() - 3)
        assert error.abs().max() <= 0.50001
        assert error.mean().abs() < 0.03  # of a step; cutting off would give half of one


@each_block
def test_powers_of_two_are_the_next_ones_up_and_leave_powers_of_two_alone(block):
    x = drawn((130, 140), seed=2)
    x[:, 3] = 448.0
    with checked():
        _, plain = fp8_quantize(x, block)
        _, scales = fp8_quantize(x, block, power_of_two=True)
    fractions, _ = torch.frexp(scales)
    assert (fractions == 0.5).all()
    assert ((plain <= scales) & (scales < 2 * plain)).all()
    assert (scales[plain == 1] == 1).all()
    assert (plain == 1).any()


@each_block
def test_a_block_of_zeros_has_the_scale_one_and_codes_of_zero(block):
    x = torch.zeros(140, 150)
    x[128:, :128] = 7.0
    for power_of_two in (False, True):
        with checked():
            codes, scales = fp8_quantize(x, block, power_of_two)
        assert scales.isfinite().all()
        assert torch.equal(codes.float() == 0, x == 0)
        assert (dequantise_blocks(codes, torch.ones_like(scales), block)[128:, :128] >= 224).all()
        assert scales[0, -1] == 1


@each_block
def test_the_smallest_and_the_largest_floats_give_finite_numbers(block):
    for size in (1e-45, 1e-40, 1.1754944e-38, 3e-36, 1e30, 3.4e38):
        x = drawn((8, 16), seed=3).clamp(-1, 1) * size
        for power_of_two in (False, True):
            with checked():
                codes, scales = fp8_quantize(x, block, power_of_two)
            assert same_bits((codes, scales), fp8_quantize_torch(x, block, power_of_two))
            back = codes.double() * spread(scales, block, x.shape)
            assert scales.isfinite().all()
            assert (scales >= 2.0**-126).all()
            assert ((back - x).abs() <= 0.07 * x.abs().double() + 2.0**-9 * scales.max()).all()


def test_what_is_infinite_or_nan_is_not_hidden():
    x = drawn((3, 128))
    x[1, 5], x[2, 7] = float("inf"), float("nan")
    for power_of_two in (False, True):
        with checked():
            codes, scales = fp8_quantize(x, power_of_two=power_of_two)
        assert codes[1, 5].float().isnan()
        assert codes[2, 7].float().isnan()
        assert codes[0].float().isfinite().all()
        assert scales.isfinite().tolist() == [[True], [False], [False]]


@each_block
def test_an_outlier_costs_its_own_block_digits_and_no_other(block):
    x = drawn((256, 256), seed=4)
    x[0, 0] = 1e5
    with checked():
        codes, scales = fp8_quantize(x, block)
    off = (dequantise_blocks(codes, scales, block) - x).abs() > 0.07 * x.abs() + 1e-4
    assert off[: block[0], : block[1]].any()
    assert off.sum() == off[: block[0], : block[1]].sum()


def test_blocks_down_a_column_are_blocks_along_a_row_of_the_transpose():
    x = drawn((200, 70), torch.bfloat16)
    with checked():
        codes, scales = fp8_quantize(x, (128, 1))
        turned = fp8_quantize(x.T, (1, 128))
    assert same_bits((codes.T.contiguous(), scales.T.contiguous()), turned)


@each_block
def test_the_transposed_copy_is_written_in_the_same_pass(block):
    for shape in SHAPES:
        x = drawn(shape, torch.bfloat16, seed=3)
        with checked() as log:
            turned = fp8_quantize(x, block, transposed=True)
        (launch,) = log.launches
        assert all(part.is_contiguous() for part in turned)
        assert (launch.load_bytes, launch.store_bytes) == (x.nbytes, turned[0].nbytes + turned[1].nbytes)
        wanted = [part.T.contiguous() for part in fp8_quantize_torch(x, block)]
        assert [part.shape for part in turned] == [part.shape for part in wanted]
        assert same_bits(map(Tensor.flatten, turned), map(Tensor.flatten, wanted)), shape
    assert [part.shape for part in fp8_quantize(torch.zeros(0, 256), block, transposed=True)] == [
        (256, 0),
        scales_shape((0, 256), block)[::-1],
    ]


@each_block
def test_it_is_read_where_it_lies(block):
    base = drawn((150, 300))
    for x in (base[:, :129], base[::2, 1:200], base[:1, :140].expand(5, 140), base[:, ::2]):
        with checked():
            got = fp8_quantize(x, block)
        assert got[0].is_contiguous()
        assert same_bits(got, fp8_quantize_torch(x.contiguous(), block))


@each_block
def test_an_empty_matrix_has_no_codes_and_needs_no_launch(block):
    for shape in ((0, 256), (256, 0)):
        with checked() as log:
            codes, scales = fp8_quantize(torch.zeros(shape), block)
        assert (codes.shape, scales.shape) == (shape, scales_shape(shape, block))
        assert log.launches == []


@each_block
def test_it_reads_once_and_writes_once(block):
    x = drawn((140, 300), torch.bfloat16)
    with checked() as log:
        codes, scales = fp8_quantize(x, block)
    (launch,) = log.launches
    assert (launch.load_bytes, launch.store_bytes) == (x.nbytes, codes.nbytes + scales.nbytes)


@each_block
def test_the_docstring_counts_the_bytes_of_eager_pytorch_right(block):
    x = drawn((512, 512), torch.bfloat16)
    assert bytes_each(fp8_quantize_torch, x, block, elements=x.numel()) == pytest.approx(31, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    x = torch.zeros(4, 128)
    for call, said in (
        (lambda: fp8_quantize(x.double()), r"takes float32, bfloat16 and float16, not torch\.float64"),
        (lambda: fp8_quantize(x[0]), r"takes a matrix, and one of shape \[128\] is none"),
        (lambda: fp8_quantize(x, (64, 64)), r"blocks are \(1, 128\), \(128, 128\), \(128, 1\), and not \(64, 64\)"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_it_compiles_for_sm_90_without_spills_and_rounds_as_the_chip_does(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    large, one = torch.empty(8192, 7168, dtype=torch.bfloat16, device="meta"), torch.empty(1, 1, device="meta")
    cases = [(large, block, False) for block in BLOCKS]
    cases += [
        (large, (128, 1), True),
        (large, (128, 1), True, True),
        (one, (1, 128), False),
    ]  # ones are constants to the compiler
    launches = [launches_of(lambda case=case: fp8_quantize(*case))[0] for case in cases]
    for compiled in compile_all(file.__file__, launches, code=True):
        assert (compiled.error, compiled.spills) == (None, 0)
        assert "cvt.rn.satfinite.e4m3x2.f32" in compiled.code["ptx"]
        assert "div.rn.f32" in compiled.code["ptx"]
        assert "div.full.f32" not in compiled.code["ptx"]
