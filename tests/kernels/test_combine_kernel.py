"""The weighted sum of expert results: equal to float64, what was dropped is never read, the same bits every time."""

import pytest
import torch

from course.kernels import combine as file
from course.kernels.checked import checked
from course.kernels.combine import combine, combine_torch
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error, rounded_once  # isort: skip

SHAPES = [(1, 1, 1), (5, 3, 33), (4, 8, 100), (2, 1, 1030), (3, 6, 64), (2, 8, 7168)]


def inputs(T, K, D, dtype=torch.float32, dropped=0.0, mean=0.0):
    """Rows of results, each pair's place among them in a random order, -1 where it was dropped, and the weights."""
    rng = torch.Generator().manual_seed(T + K + D)
    places = torch.randperm(T * K, generator=rng).view(T, K)
    places[torch.rand(T, K, generator=rng) < dropped] = -1
    return drawn((T * K, D), dtype, 1, mean), places, torch.rand(T, K, generator=rng)


def exact(y, places, weights):
    there = (places >= 0).double()
    return torch.einsum("tkd,tk->td", y.double()[places.clamp(min=0)], weights.double() * there)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_rounded_once(dtype):
    for shape in SHAPES:
        for dropped in (0.0, 0.4):
            given = inputs(*shape, dtype, dropped)
            with checked():
                got = combine(*given)
            assert (got.shape, got.dtype) == ((shape[0], shape[2]), dtype)
            assert relative_error(got, exact(*given)) <= max(STEP[dtype], 2e-7), shape
            torch.testing.assert_close(got, combine_torch(*given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_rounds_once_and_so_drifts_neither_up_nor_down(dtype):
    given = inputs(3, 8, 4096, dtype, mean=5.0)
    with checked():
        got = combine(*given)
    rounded_once(got, exact(*given))


def test_what_was_dropped_adds_nothing_and_its_row_and_weight_are_not_read():
    y, places, weights = inputs(6, 4, 40, dropped=0.5)
    places[2] = -1
    wanted = exact(y, places, weights)
    kept = places[places >= 0]
    y[torch.isin(torch.arange(len(y)), kept, invert=True)] = float("nan")
    weights[places < 0] = float("nan")
    with checked() as log:
        got = combine(y, places, weights)
    assert relative_error(got, wanted) < 2e-7
    assert torch.equal(got[2], torch.zeros(40))
    touched = [a for a in log.launches[0].accesses if a.argument == "weights"]
    assert sum(a.elements.size for a in touched) == len(kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_weights_it_is_the_plain_sum(dtype):
    y, places, weights = inputs(6, 4, 40, dtype, dropped=0.3)
    with checked():
        got = combine(y, places, None)
    assert relative_error(got, exact(y, places, torch.ones_like(weights))) <= max(STEP[dtype], 2e-7)
    torch.testing.assert_close(got, combine_torch(y, places, None))


def test_several_tokens_may_read_one_row():
    y, _, weights = inputs(5, 3, 20)
    places = torch.zeros(5, 3, dtype=torch.int32)
    with checked():
        got = combine(y, places, weights)
    torch.testing.assert_close(got, weights.sum(1, keepdim=True) * y[0])


def test_no_tokens_no_columns_no_experts_or_no_rows():
    long = torch.int64
    for (T, K, D), R in (((0, 2, 4), 3), ((3, 2, 0), 6), ((3, 0, 4), 6), ((3, 2, 4), 0)):
        with checked():
            got = combine(torch.ones(R, D), torch.full((T, K), -1, dtype=long), torch.ones(T, K))
        assert torch.equal(got, torch.zeros(T, D))


def test_tensors_are_read_where_they_lie():
    y, places, weights = inputs(5, 3, 20, dropped=0.2)
    for rows in (y.repeat(1, 2)[:, 3:23], y.T.contiguous().T, y.repeat(1, 2)[:, ::2]):
        with checked():
            got = combine(rows, places.T.contiguous().T, weights.repeat(1, 2)[:, :3])
        assert relative_error(got, exact(rows, places, weights)) < 2e-7


def test_two_runs_give_the_same_bits_and_nothing_is_added_atomically():
    given = inputs(4, 8, 200, dropped=0.2)
    with checked() as log:
        first, second = combine(*given), combine(*given)
    assert torch.equal(first, second)
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_it_reads_each_kept_row_once_and_writes_the_result_once(dtype):
    y, places, weights = inputs(3, 4, 2100, dtype, dropped=0.3)
    with checked() as log:
        got = combine(y, places, weights)
    (launch,) = log.launches
    kept, blocks = int((places >= 0).sum()), 3
    assert launch.grid == (3 * blocks,)
    assert launch.load_bytes == kept * 2100 * y.itemsize + blocks * (places.nbytes + kept * 4)
    assert launch.store_bytes == got.nbytes


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each, fused, gain in (
        (torch.bfloat16, 22 * 8 + 10, 2 * 8 + 2, 10.3),
        (torch.float32, 20 * 8 + 4, 36, 4.6),
    ):
        given = inputs(64, 8, 1024, dtype)
        assert bytes_each(combine_torch, *given, elements=64 * 1024) == pytest.approx(each, rel=0.01)
        assert each / fused == pytest.approx(gain, abs=0.05)


def test_it_compiles_for_sm_90_without_spills_and_reads_16_bytes_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))

    def called(T, K, D, dtype):
        y = torch.empty(T * K, D, dtype=dtype, device="meta")
        return combine(y, y.new_empty(T, K, dtype=torch.int64), y.new_empty(T, K, dtype=torch.float32))

    sizes = [(8192, 8, 7168, torch.bfloat16), (8192, 8, 7168, torch.float32), (8192, 1, 33, torch.bfloat16)]
    compiled = compile_all(file.__file__, launches_of(lambda: [called(*size) for size in sizes]), code=True)
    for made in compiled:
        assert (made.error, made.spills) == (None, 0)
    for made in compiled[:2]:
        assert "LDG.E.128" in made.code["sass"]
        assert "STG.E.128" in made.code["sass"]


def test_wrong_inputs_get_a_sentence():
    y, places, weights = inputs(5, 3, 20)
    for call, said in (
        (lambda: combine(y.double(), places, weights), r"takes float32, bfloat16 and float16, not torch\.float64"),
        (lambda: combine(y, places.float(), weights), "places of int64 and int32, not torch.float32"),
        (lambda: combine(y[0], places, weights), r"rows and places in tables, not \[20\] and \[5, 3\]"),
        (lambda: combine(y, places, weights[:, :2]), r"weights of shape \[5, 2\] do not fit places of shape \[5, 3\]"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
