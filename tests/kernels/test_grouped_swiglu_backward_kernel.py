"""Back through down and SwiGLU in one kernel: autograd of float64, dropped pairs untouched, tensor cores on sm_90."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels import grouped_swiglu_backward as file
from course.kernels.checked import checked
from course.kernels.expert_offsets import expert_offsets_torch
from course.kernels.grouped_swiglu_backward import grouped_swiglu_backward, grouped_swiglu_backward_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.kernels.swiglu_backward import swiglu_backward

from kernel_measures import DTYPES, STEP, Traffic, drawn, relative_error  # isort: skip

BLOCK = (16, 16, 32)
CASES = {  # tokens, slots, D, I, and ids: drawn, all to one expert, or some nobody's
    "drawn": (23, 2, 50, 20, "drawn"),
    "one expert has all": (20, 1, 33, 17, "one"),
    "one token": (1, 3, 24, 20, "drawn"),
    "some dropped": (23, 3, 24, 40, "dropped"),
    "one column": (7, 2, 1, 1, "drawn"),
}


def inputs(T, K, D, width, ids="drawn", E=5, dtype=torch.float32):
    """dout, x, gate and up, down, weights, and the order of the pairs. Products are of a size about 1."""
    rng = torch.Generator().manual_seed(T + K)
    ids_TK = torch.rand(T, E, generator=rng).argsort(1)[:, :K]
    if ids == "one":
        ids_TK = torch.full_like(ids_TK, 3)
    if ids == "dropped":
        ids_TK[torch.rand(T, K, generator=rng) < 0.4] = -1
    found = expert_offsets_torch(ids_TK, E)
    experts = drawn((E, 2 * width, D), dtype, 2) / max(D, 1) ** 0.5, drawn((E, D, width), dtype, 3) / max(D, 1) ** 0.5
    weights = torch.rand(T, K, generator=rng) + 0.1
    order = found.pairs_P, found.offsets_E1, found.places_TK
    return drawn((T, D), dtype, 4), drawn((T, D), dtype, 5), *experts, weights, *order


def exact(dout, x, gate_up, down, weights, pairs, offsets, places):
    """By autograd in float64, of the rows that are somebody's: dgate_up, w a, dweights."""
    pairs = pairs[: offsets[-1]]
    counts = offsets.diff()
    wide = [t.double() for t in (dout, x, gate_up.repeat_interleave(counts, 0), down.repeat_interleave(counts, 0))]
    rows = pairs // weights.shape[1]
    both = torch.einsum("pfd,pd->pf", wide[2], wide[1][rows]).requires_grad_()
    w = weights.double().requires_grad_()
    gate, up = both.chunk(2, dim=-1)
    a = F.silu(gate) * up
    y = torch.einsum("pdi,pi->pd", wide[3], a)
    out = torch.zeros_like(wide[0]).index_add(0, rows, y * w.flatten()[pairs][:, None])
    dboth, dw = torch.autograd.grad(out, (both, w), wide[0], allow_unused=True)
    return dboth, (a * w.flatten()[pairs][:, None]).detach(), dw


def close(got, wanted, offsets, bound):
    for one, right in zip(got[:2], wanted[:2], strict=True):
        assert relative_error(one[: offsets[-1]], right) <= bound
    assert relative_error(got[2], wanted[2]) <= max(bound, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_equals_autograd_in_float64(name):
    *_, offsets, places = given = inputs(*CASES[name])
    with checked() as log:
        got = grouped_swiglu_backward(*given, block=BLOCK)
    close(got, exact(*given), offsets, 2e-6)
    assert (got[2][places < 0] == 0).all()
    assert got[0][offsets[-1] :].isnan().all()  # not written, as fresh memory is here
    assert got[1][offsets[-1] :].isnan().all()
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}
    if name != "some dropped":
        for one, twin in zip(got, grouped_swiglu_backward_torch(*given), strict=True):
            torch.testing.assert_close(one, twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_sizes_in_every_dtype_are_rounded_once(dtype):
    for T, K, D, width in ((9, 2, 31, 17), (5, 3, 100, 7), (8, 1, 16, 32)):
        given = inputs(T, K, D, width, dtype=dtype)
        with checked():
            got = grouped_swiglu_backward(*given, block=BLOCK)
        assert [t.dtype for t in got] == [dtype, dtype, torch.float32]
        close(got, exact(*given), given[6], max(STEP[dtype], 2e-6))


def test_the_routing_weights_gradient_is_not_rounded_on_the_way():
    given = inputs(23, 2, 50, 20, dtype=torch.bfloat16)
    with checked():
        *_, dweights = grouped_swiglu_backward(*given, block=BLOCK)
    assert relative_error(dweights, exact(*given)[2]) < 2e-6


def test_rounding_goes_neither_up_nor_down_on_the_whole():
    dout, x, gate_up, down, *rest = inputs(64, 2, 64, 40, dtype=torch.bfloat16)
    given = dout.abs(), x.abs(), gate_up.abs(), down.abs(), *rest  # nothing cancels
    with checked():
        got = grouped_swiglu_backward(*given, block=(32, 64, 64))
    for one, wanted in zip(got[:2], exact(*given)[:2], strict=True):
        error = ((one.double() - wanted) / wanted).mean()
        assert error.abs() < 5 * 2**-9 / (3 * one.numel()) ** 0.5


def test_large_gates_neither_overflow_nor_turn_into_nan():
    dout = x = torch.ones(2, 16)
    gate_up, down = torch.zeros(1, 2, 16), torch.ones(1, 16, 1) / 16
    gate_up[0, 1] = 1.0
    order = torch.arange(2), torch.tensor([0, 2]), torch.arange(2)[:, None]
    for size, slope in ((1000.0, 1.0), (-1000.0, 0.0)):
        gate_up[0, 0] = size
        with checked():
            both, a, dweights = grouped_swiglu_backward(dout, x, gate_up, down, torch.ones(2, 1), *order, block=BLOCK)
        silu = slope * size * 16
        assert both.tolist() == [[16 * slope, silu]] * 2
        assert a.tolist() == dweights.tolist() == [[16 * silu]] * 2


def test_no_tokens_no_columns_or_nothing_to_sum():
    for T, D, width in ((0, 6, 5), (3, 6, 0), (3, 0, 5)):
        with checked():
            got = grouped_swiglu_backward(*inputs(T, 2, D, width))
        wanted = torch.zeros(2 * T, 2 * width), torch.zeros(2 * T, width), torch.zeros(T, 2)
        assert all(torch.equal(*both) for both in zip(got, wanted, strict=True))


def test_tensors_are_read_where_they_lie():
    dout, x, gate_up, down, weights, *order = inputs(23, 2, 24, 20)
    x, gate_up, down = x.repeat(1, 2)[:, ::2], gate_up.mT.contiguous().mT, down.mT.contiguous().mT
    for one in (dout.T.contiguous().T, torch.ones(()).expand(23, 24)):
        given = one, x, gate_up, down, weights.T.contiguous().T, *order
        with checked():
            got = grouped_swiglu_backward(*given, block=BLOCK)
        close(got, exact(*given), order[1], 2e-6)


def test_x_and_dout_are_read_once_a_column_and_results_are_written_once():
    *_, weights, pairs, offsets, places = given = inputs(12, 2, 50, 35, E=3, dtype=torch.bfloat16)
    columns, tiles, programs = 3, 3, 3 * (24 // 16 + 3)
    with checked() as log:
        got = grouped_swiglu_backward(*given, block=BLOCK)
    launch, adding = log.launches
    assert launch.grid == (programs,)
    parts = 4 * 24 * columns
    assert launch.store_bytes == got[0].nbytes + got[1].nbytes + parts
    order = columns * (pairs.nbytes + weights.nbytes) + programs * (3 + 2) * 8
    assert sum(-(-count // 16) for count in offsets.diff().tolist()) == tiles
    assert launch.load_bytes == columns * 24 * 2 * 50 * 2 + tiles * 3 * 35 * 50 * 2 + order
    assert (adding.load_bytes, adding.store_bytes) == (parts + places.nbytes, weights.nbytes)


def test_the_docstring_counts_the_elements_and_the_gain_of_eager_pytorch_right():
    T, K, D, width = 64, 4, 128, 32
    dout, _, _, down, weights, pairs, offsets, _ = given = inputs(T, K, D, width)
    rows, P, y = pairs // K, T * K, drawn((T * K, D))
    with torch.no_grad(), Traffic() as traffic:
        gathered = dout.index_select(0, rows)
        F.grouped_mm(gathered * weights.flatten()[pairs][:, None], down, offs=offsets[1:].int())
        (gathered * y).sum(1)
    with checked() as log:
        swiglu_backward(y[:, :width].contiguous(), y[:, : 2 * width].contiguous())
        grouped_swiglu_backward(*given, block=(64, 32, 64))
    backward, *fused = ((launch.load_bytes + launch.store_bytes) / 4 for launch in log.launches)
    counted = traffic.bytes / 4 + backward + (P - T) * D - down.numel()
    assert counted / P == pytest.approx(9 * D + 6 * width, rel=0.02)
    moved = sum(fused) - sum(-(-n // 64) for n in offsets.diff().tolist()) * 3 * D * width
    assert moved / P == pytest.approx(2 * D + 3 * width, rel=0.06)
    D, width = 7168, 2048
    assert (9 * D + 6 * width) / (2 * D + 3 * width) == pytest.approx(3.7, abs=0.05)
    product, eager = 2 * D * width / 990e12, (9 * D + 6 * width) * 2 / 3.35e12
    assert 3 * product / (product + eager) == pytest.approx(1.2, abs=0.05)


def test_on_hopper_it_uses_tensor_cores_and_spills_nothing_at_deepseek_v3_s_sizes():
    def called(T, K, E, width, D, dtype, **settings):
        x = torch.empty(T, D, dtype=dtype, device="meta")
        pairs, offsets, places = (x.new_empty(size, dtype=torch.int64) for size in ((T * K,), (E + 1,), (T, K)))
        experts = x.new_empty(E, 2 * width, D), x.new_empty(E, D, width)
        weights = x.new_empty(T, K, dtype=torch.float32)
        return grouped_swiglu_backward(x, x, *experts, weights, pairs, offsets, places, **settings)

    launches = launches_of(
        lambda: (
            called(1024, 8, 8, 2048, 7168, torch.bfloat16),
            called(1024, 8, 8, 2048, 7168, torch.float32),
            called(5, 1, 1, 1, 33, torch.bfloat16, block=(64, 64, 32)),
        )
    )
    made, adding, float32, *rest = compile_all(file.__file__, launches, code=True)
    for each in (made, adding, float32, *rest):
        assert (each.error, each.spills) == (None, 0)
    assert made.code["sass"].count("HGMMA.64x64x16.F32.BF16") == 12  # three products of 64 along D
    assert "LDGSTS.E.BYPASS.128" in made.code["sass"]  # the gathers copy 16 bytes at a time, in the background
    assert "HGMMA" not in float32.code["sass"]


def test_wrong_inputs_get_a_sentence():
    given = dict(
        zip(
            ("dout", "x", "gate_up", "down", "weights", "pairs", "offsets", "places"), inputs(5, 2, 24, 20), strict=True
        )
    )
    wrong = {
        "does not fit x of": {"dout": given["dout"][:4]},
        "takes rows and weights of one dtype": {"x": given["x"].half()},
        "do not split into gate and up": {"gate_up": given["gate_up"][:, 1:]},
        "of the down product of .* do not fit gate and up": {"down": given["down"].mT},
        "do not fit 5 tokens and 10 pairs": {"weights": given["weights"][:, :1]},
        "are one contiguous line of int64": {"pairs": given["pairs"].int()},
        "5 experts have 6 offsets, not 5": {"offsets": given["offsets"][1:]},
        "are not int64 as many as weights": {"places": given["places"].int()},
        "powers of two from 16 up": {"block": (16, 24, 16)},
    }
    for said, change in wrong.items():
        with pytest.raises(ValueError, match=said):
            grouped_swiglu_backward(*(given | change).values())
