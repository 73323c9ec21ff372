"""The routed experts on kernels: equal to the model's own, to float64, and to nothing where pairs were dropped."""

import pytest
import torch
import torch.nn.functional as F

from course.kernels.checked import checked
from course.kernels.planned import launches_of
from course.kernels.routed_experts import order_by_expert, routed_experts
from course.model.dispatch import combine, sort_by_expert
from course.model.experts import expert_loop, grouped_experts

from kernel_measures import DTYPES, STEP, Traffic, drawn, relative_error  # isort: skip

BLOCK = (16, 32, 32)


def inputs(T, K, D=24, width=20, E=5, dtype=torch.float32, experts=None):
    rng = torch.Generator().manual_seed(T + K)
    ids = torch.rand(T, experts or E, generator=rng).argsort(1)[:, :K]
    weights = torch.rand(T, K, generator=rng)
    return (
        drawn((T, D), dtype, 1),
        ids,
        weights,
        drawn((E, 2 * width, D), dtype, 2) / 5,
        drawn((E, D, width), dtype, 3) / 5,
    )


def exact(x, ids, weights, gate_up, down):
    return expert_loop(x.double(), ids, weights.double(), gate_up.double(), down.double())


@pytest.mark.parametrize(("T", "K"), [(23, 2), (1, 1), (3, 1), (40, 5), (0, 2)])
def test_it_equals_the_model_s_experts_in_float32(T, K):
    x, ids, weights, gate_up, down = given = inputs(T, K)
    with checked():
        got = routed_experts(*given, block=BLOCK)
    order, offsets = sort_by_expert(ids, 5)
    model = combine(grouped_experts(x[order // K], gate_up, down, offsets), order, weights)
    torch.testing.assert_close(got, model, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, expert_loop(*given), rtol=1e-5, atol=1e-5)
    assert relative_error(got, exact(*given)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_but_for_its_three_roundings(dtype):
    given = inputs(23, 3, D=33, width=17, dtype=dtype)
    with checked():
        got = routed_experts(*given, block=BLOCK)
    assert (got.shape, got.dtype) == ((23, 33), dtype)
    assert relative_error(got, exact(*given)) <= max(2 * STEP[dtype], 1e-6)


def test_one_expert_may_have_all_tokens_and_others_none():
    x, ids, weights, gate_up, down = inputs(40, 1)
    given = x, torch.full_like(ids, 3), weights, gate_up, down
    with checked():
        got = routed_experts(*given, block=BLOCK)
    assert relative_error(got, exact(*given)) < 1e-6


def test_pairs_whose_expert_is_not_here_add_nothing():
    x, ids, weights, gate_up, down = inputs(23, 4, experts=12)
    ids[5] = torch.tensor([-1, 7, 6, 5])
    ids[6, 0] = -1
    given = x, ids, weights, gate_up, down
    with checked():
        got = routed_experts(*given, block=BLOCK)
    assert relative_error(got, exact(*given)) < 1e-6
    assert torch.equal(got[5], torch.zeros(24))
    with checked():
        none = routed_experts(x, torch.full_like(ids, -1), weights, gate_up, down, block=BLOCK)
    assert torch.equal(none, torch.zeros_like(x))


def test_the_parts_of_two_ranks_add_up_to_the_whole():
    x, ids, weights, gate_up, down = inputs(23, 3, E=6)
    with checked():
        whole = routed_experts(x, ids, weights, gate_up, down, block=BLOCK)
        first = routed_experts(x, ids, weights, gate_up[:2], down[:2], block=BLOCK)
        second = routed_experts(x, ids - 2, weights, gate_up[2:], down[2:], block=BLOCK)
    torch.testing.assert_close(first + second, whole)


def test_the_order_is_the_model_s():
    _, ids, *_ = inputs(30, 3, experts=8)
    with checked():
        pairs, rows, offsets, places = order_by_expert(ids, 5)
    order, wanted = sort_by_expert(ids.clamp(max=5), 5)
    here = order[: wanted[-1]]
    assert torch.equal(offsets, wanted)
    assert torch.equal(pairs[: len(here)], here)
    assert torch.equal(rows[: len(here)], here // 3)
    kept = places.flatten() >= 0
    assert torch.equal(kept, ids.flatten() < 5)
    assert torch.equal(order[places.flatten()[kept]], torch.arange(90)[kept])


def test_it_is_six_launches_and_the_host_reads_nothing_of_the_device():
    launches = launches_of(lambda: routed_experts(*(tensor.to("meta") for tensor in inputs(23, 3))))
    order, products = (
        ("expert_counts", "expert_prefix", "expert_places"),
        ("grouped_gate_up", "grouped_gemm", "combine"),
    )
    assert [launch.kernel for launch in launches] == [f"{name}_kernel" for name in (*order, *products)]


def test_the_docstring_counts_the_elements_of_eager_pytorch_and_of_the_kernels_right():
    T, K, D, width = 64, 4, 128, 64
    x, ids, weights, gate_up, down = inputs(T, K, D, width)
    order, offsets = sort_by_expert(ids, 5)
    ends, gated = offsets[1:].int(), drawn((T * K, width))
    with torch.no_grad(), Traffic() as traffic:
        F.grouped_mm(x.index_select(0, order // K), gate_up.transpose(1, 2), offs=ends)
        combine(F.grouped_mm(gated, down.transpose(1, 2), offs=ends), order, weights)
    counted = traffic.bytes / 4 - gate_up.numel() - down.numel()
    counted += (T * K - T) * D  # the gather reads a row a pair, and not x once
    counted -= T * K * D  # new_zeros reads nothing of the tensor that it takes its dtype from
    assert counted / (T * K) + 3 * width == pytest.approx(7 * D + 6 * width + 3 * D / K, rel=0.03)  # 3 I: SwiGLU

    with checked() as log:
        routed_experts(x, ids, weights, gate_up, down, block=(256, 128, 64))  # one column of tiles, one tile an expert
    moved = sum(launch.load_bytes + launch.store_bytes for launch in log.launches[3:]) / 4
    moved -= gate_up.numel() + down.numel()
    assert moved / (T * K) == pytest.approx(3 * D + 2 * width + D / K, rel=0.05)
    assert 2.45 < (7 * 7168 + 6 * 2048 + 3 * 896) / (3 * 7168 + 2 * 2048 + 896) < 2.55


def test_wrong_inputs_get_a_sentence():
    x, ids, weights, gate_up, down = inputs(5, 2)
    for call, said in (
        (lambda: routed_experts(x, ids.int(), weights, gate_up, down), r"ids are int64, a row for each of 5 tokens"),
        (lambda: routed_experts(x, ids[:4], weights, gate_up, down), r"each of 5 tokens, not \[4, 2\]"),
        (lambda: routed_experts(x, ids, weights, gate_up, down[:4]), "4 experts have 5 offsets, not 6"),
        (lambda: routed_experts(x, ids, weights[:, :1], gate_up, down), "do not fit places of shape"),
        (lambda: routed_experts(x, ids, weights, gate_up, down[:, :, 1:]), "do not fit experts' weights"),
    ):
        with checked(), pytest.raises(ValueError, match=said):
            call()
