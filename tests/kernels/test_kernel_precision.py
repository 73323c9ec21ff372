"""Low precision under the checked interpreter equals torch, bit for bit.

The rule for tl.dot: the products of the upcast inputs, added in float32. In which order is the matrix library's affair, so
where every partial sum is exact the result is torch's to the bit, and elsewhere to float32's rounding.
"""

import pytest
import torch
import triton
import triton.language as tl

from course.kernels.checked import checked

LOW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
CODES = {1: torch.int8, 2: torch.int16, 4: torch.int32}


@triton.jit
def convert(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@triton.jit
def truncate(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty, fp_downcast_rounding="rtz"))


@triton.jit
def arithmetic(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "add":
        c = a + b
    elif OP == "sub":
        c = a - b
    elif OP == "mul":
        c = a * b
    elif OP == "div":
        c = a / b
    elif OP == "scale":
        c = a * 3.14
    elif OP == "less":
        c = tl.where((a < b) & (b > 0), a, b)
    elif OP == "max":
        c = tl.maximum(a, b)
    else:
        c = tl.abs(a)
    tl.store(out + i, c)


@triton.jit
def reduce(x, out, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, OP: tl.constexpr):
    values = tl.load(x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    if OP == "sum":
        tl.store(out + tl.arange(0, N if AXIS == 0 else M), tl.sum(values, AXIS))
    elif OP == "max":
        tl.store(out + tl.arange(0, N if AXIS == 0 else M), tl.max(values, AXIS))
    else:
        tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], tl.cumsum(values, AXIS))


@triton.jit
def dot(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    c = tl.dot(tl.load(a + m[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :]))
    tl.store(out + m[:, None] * N + n[None, :], c)


@triton.jit
def add_atomically(x, out, N: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, N) // 2, tl.load(x + tl.arange(0, N)))


@triton.jit
def scale_by_argument(x, out, factor, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) * factor)


def identical(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same codes; any NaN is as good as another."""
    assert got.dtype == wanted.dtype
    codes = CODES[got.itemsize]
    same = got.view(codes) == wanted.view(codes)
    return bool((same | (got.float().isnan() & wanted.float().isnan())).all())


def all_codes(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(1 << 8 * dtype.itemsize).to(CODES[dtype.itemsize]).view(dtype)


def floats(count: int, seed: int = 0) -> torch.Tensor:
    """Float32 with every exponent, subnormals, infinities, NaN, and the ties of each narrow type."""
    rng = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=rng).to(torch.int32)
    middling = torch.randn(count, generator=rng) * 2.0 ** torch.randint(-12, 12, (count,), generator=rng)
    ties = torch.where(torch.arange(count) % 3 == 0, middling.view(torch.int32) & -(2**15), middling.view(torch.int32))
    return torch.where(torch.arange(count) % 2 == 0, bits, ties).view(torch.float32)


def run(kernel, *tensors, **constants) -> torch.Tensor:
    with checked():
        kernel[(1,)](*tensors, **constants)
    return tensors[-1]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_every_code_is_read_as_torch_reads_it(dtype):
    x = all_codes(dtype)
    for target in (torch.float32, torch.bfloat16, torch.float16):
        got = run(convert, x, torch.empty(len(x), dtype=target), BLOCK=len(x))
        assert identical(got, x.float().to(target)), target


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_all_256_codes_of_fp8_come_back_through_every_wider_type(dtype):
    x = all_codes(dtype)
    for through in (torch.float32, torch.bfloat16, torch.float16):
        wide = run(convert, x, torch.empty(256, dtype=through), BLOCK=256)
        assert identical(run(convert, wide, torch.empty(256, dtype=dtype), BLOCK=256), x), through


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_cast_rounds_to_nearest_even_and_overflows_as_torch_does(dtype):
    x = floats(1 << 16)
    x[:12] = torch.tensor([448, 464, 465, 480, 500, 1e9, torch.inf, -torch.inf, 57344, 61440, 65519, 65520])
    for source in (torch.float32, torch.float16, torch.bfloat16):
        got = run(convert, x.to(source), torch.empty(len(x), dtype=dtype), BLOCK=len(x))
        assert identical(got, x.to(source).to(dtype)), source


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_integers_become_floats_as_in_torch(dtype):
    for kind in (torch.int8, torch.uint8, torch.int32, torch.int64):
        info = torch.iinfo(kind)
        x = torch.randint(info.min, info.max, (4096,), generator=torch.Generator().manual_seed(1), dtype=kind)
        assert identical(run(convert, x, torch.empty(4096, dtype=dtype), BLOCK=4096), x.to(dtype)), kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_cast_toward_zero_never_grows_and_stops_at_the_next_code(dtype):
    x = floats(1 << 12, seed=3)
    x = x[x.isfinite()][:2048]
    got = run(truncate, x, torch.empty(2048, dtype=dtype), BLOCK=2048)
    outward = torch.nextafter(got, torch.full((), torch.inf).to(dtype).copysign(x.to(dtype)))
    assert (got.double().abs() <= x.double().abs()).all()
    assert (outward.double().abs() > x.double().abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_rounds_once_as_torch_does(dtype):
    x, y = floats(1 << 14, 4).to(dtype), floats(1 << 14, 5).to(dtype)
    wanted = {
        "add": x + y,
        "sub": x - y,
        "mul": x * y,
        "div": x / y,
        "scale": x * torch.tensor(3.14).to(dtype),
        "less": torch.where((x < y) & (y > 0), x, y),
        "max": torch.maximum(x, y) + 0,  # of two zeros either is the larger
        "abs": x.abs(),
    }
    for op, value in wanted.items():
        got = run(arithmetic, x, y, torch.empty_like(x), OP=op, BLOCK=len(x))
        assert identical(got + 0 if op == "max" else got, value), op


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_arithmetic_on_fp8_is_refused_as_a_gpu_refuses_it(in_child, dtype):
    x = torch.ones(16).to(dtype)
    for op in ("add", "mul", "less"):
        assert "no arithmetic on a GPU" in in_child(lambda op=op: arithmetic[(1,)](x, x, x.clone(), OP=op, BLOCK=16))
    said = in_child(lambda: reduce[(1,)](x, torch.zeros(4), AXIS=0, M=4, N=4, OP="sum"))
    assert "no sum on a GPU: convert it to tl.float32 first" in said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sum_is_added_in_float32_and_rounded_once_as_torch_does(dtype):
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(6)).to(dtype)
    for axis in (0, 1):
        got = run(reduce, x, torch.empty_like(x.sum(axis)), AXIS=axis, M=32, N=128, OP="sum")
        assert identical(got, x.sum(axis)), axis
    ones = torch.ones(1, 4096, dtype=dtype)
    assert run(reduce, ones, torch.empty(1, dtype=dtype), AXIS=1, M=1, N=4096, OP="sum").item() == 4096


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_maximum_compares_values_and_not_codes(dtype):
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(7)).to(dtype)
    got = run(reduce, x, torch.empty(16, dtype=dtype), AXIS=1, M=16, N=32, OP="max")
    assert got.float().tolist() == x.float().amax(1).tolist()


def test_a_running_sum_of_halves_equals_torch():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(8)).half()
    assert identical(run(reduce, x, torch.empty_like(x), AXIS=1, M=4, N=64, OP="cumsum"), x.cumsum(1))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_product_of_matrices_is_added_in_float32(dtype):
    rng = torch.Generator().manual_seed(9)
    a, b = (torch.randint(-4, 5, s, generator=rng).to(dtype) for s in ((32, 64), (64, 16)))
    got = run(dot, a, b, torch.empty(32, 16), M=32, N=16, K=64)
    assert torch.equal(got, a.float() @ b.float())
    a, b = torch.randn(32, 64, generator=rng).to(dtype), torch.randn(64, 16, generator=rng).to(dtype)
    got = run(dot, a, b, torch.empty(32, 16), M=32, N=16, K=64)
    torch.testing.assert_close(got, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_atomic_additions_of_floats_round_each_time(dtype):
    x = torch.tensor([1.0, 2.0**-9, 3.0, 4.0]).to(dtype)
    got = run(add_atomically, x, torch.zeros(2, dtype=dtype), N=4)
    assert got.tolist() == [(x[0] + x[1]).item(), 7]


def test_a_float_argument_is_float32_and_widens_a_narrow_tensor():
    x = torch.randn(64, generator=torch.Generator().manual_seed(10)).bfloat16()
    out = torch.empty(64)
    with checked():
        scale_by_argument[(1,)](x, out, 1 / 3, BLOCK=64)
    assert torch.equal(out, x.float() * torch.tensor(1 / 3))


@triton.jit
def product(a, b, c, N: tl.constexpr, PRECISION: tl.constexpr):
    n = tl.arange(0, N)
    place = n[:, None] * N + n[None, :]
    tl.store(c + place, tl.dot(tl.load(a + place), tl.load(b + place), input_precision=PRECISION))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_cuts_float32_to_tf32_unless_told_otherwise(dtype):
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    cut = [(factor.float().view(torch.int32) & ~0x1FFF).view(torch.float32) for factor in (a, b)]
    found = {}
    for precision in ("tf32", "ieee"):
        found[precision] = torch.empty(16, 16)
        with checked():
            product[(1,)](a, b, found[precision], N=16, PRECISION=precision)
    torch.testing.assert_close(found["tf32"], cut[0] @ cut[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["ieee"], a.float() @ b.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(*found.values()) == (dtype == torch.bfloat16)
