"""The router, the kernel: the model's choice and weights, ties to the lower index, and no spills on sm_90."""

import pytest
import torch

from course.kernels import router as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.kernels.router import router, router_torch
from course.model.config import ModelConfig
from course.model.router import choose_experts, gate_scores

from kernel_measures import bytes_each, drawn, relative_error  # isort: skip

V3 = {"top_k": 8, "gate": "sigmoid", "groups": 8, "top_groups": 4, "group_best": 2, "routed_scale": 2.5}
V2 = {"top_k": 6, "groups": 8, "top_groups": 3, "group_best": 1, "normalised": False, "routed_scale": 16.0}
CASES = [
    (5, 256, V3),
    (3, 160, V2),
    (9, 256, {"top_k": 8}),
    (1, 8, {"top_k": 2}),
    (1, 1, {"top_k": 1}),
    (0, 16, {"top_k": 4}),
    (2, 9, {"top_k": 9, "gate": "sigmoid"}),
    (2, 12, {"top_k": 12, "groups": 4, "top_groups": 4}),
    (7, 60, {"top_k": 5, "groups": 5, "top_groups": 2, "group_best": 3, "gate": "sigmoid", "normalised": False}),
    (7, 6, {"top_k": 2, "groups": 6, "top_groups": 3, "group_best": 2}),
    (130, 24, {"top_k": 3, "groups": 3, "top_groups": 1, "group_best": 20}),
]


def run(*args, **settings):
    with checked():
        return router(*args, **settings)


def inputs(T, E, seed=0):
    return 2 * drawn((T, E), seed=seed), 0.3 * drawn((E,), seed=seed + 1)


def by_hand(scores, bias, top_k, groups=1, top_groups=1, group_best=2):
    """The choice of one token, with lists that are sorted by (largest score, lowest index)."""
    ranked = [score + its for score, its in zip(scores, bias, strict=True)]
    width = len(ranked) // groups
    parts = [ranked[g * width : (g + 1) * width] for g in range(groups)]
    order = sorted(range(groups), key=lambda g: (-sum(sorted(parts[g])[::-1][:group_best]), g))
    experts = [e for g in order[:top_groups] for e in range(g * width, (g + 1) * width)]
    return sorted(experts, key=lambda e: (-ranked[e], e))[:top_k]


@pytest.mark.parametrize("biased", [False, True])
def test_it_equals_float64_for_every_shape(biased):
    for number, (T, E, its) in enumerate(CASES):
        logits, bias = inputs(T, E, number)
        bias = bias if biased else None
        ids, weights = run(logits, bias, **its)
        wanted_ids, wanted = router_torch(logits.double(), bias if bias is None else bias.double(), **its)
        assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
        assert torch.equal(ids, wanted_ids), (T, E, its)
        assert relative_error(weights, wanted) < 3e-7, (T, E, its)


def test_it_equals_the_models_router():
    for T, E, its in CASES:
        config = ModelConfig(experts=E, expert_width=8, selection_bias=True, **its)
        x, gate, (_, bias) = drawn((T, 16)), drawn((E, 16), seed=1), inputs(T, E)
        wanted_ids, wanted = choose_experts(gate_scores(x, gate, config.gate), bias, config)
        ids, weights = run(x @ gate.T, bias, **its)
        assert torch.equal(ids, wanted_ids)
        torch.testing.assert_close(weights, wanted)


def test_weights_sum_to_the_scale_where_they_are_normalised():
    logits, bias = inputs(6, 256)
    _, weights = run(logits, bias, **V3)
    torch.testing.assert_close(weights.sum(1), torch.full((6,), 2.5))


def test_ties_go_to_the_lower_expert_and_the_lower_group():
    for T, E, its in CASES:
        ids, _ = run(torch.zeros(T, E), torch.zeros(E), **its)
        assert ids.tolist() == [list(range(its["top_k"]))] * T
    ids, _ = run(torch.tensor([[1.0, 3, 3, 3, 2, 3]]), None, 2)
    assert ids.tolist() == [[1, 2]]


def test_ties_that_the_bias_makes_are_exact_and_follow_the_rule():
    rng = torch.Generator().manual_seed(0)
    rules = [
        {"top_k": 5},
        {"top_k": 5, "groups": 6, "top_groups": 2, "group_best": 2},
        {"top_k": 4, "groups": 4, "top_groups": 2, "group_best": 1},
        {"top_k": 6, "groups": 3, "top_groups": 2, "group_best": 3},
    ]
    for its in rules:
        bias = torch.randint(-3, 3, (24,), generator=rng) / 8
        logits = torch.where(torch.rand(6, 24, generator=rng) < 0.3, 100.0, 0.0)  # sigmoid: exactly 1 and a half
        ids, _ = run(logits, bias, gate="sigmoid", **its)
        scores = torch.where(logits > 0, 1.0, 0.5)
        assert ids.tolist() == [by_hand(row, bias.tolist(), **its) for row in scores.tolist()]


def test_scores_that_the_bias_makes_negative_still_beat_those_of_closed_groups():
    logits, bias = inputs(4, 64)
    its = {"gate": "sigmoid", "groups": 8, "top_groups": 2}
    for shift in (-2.0, -1000.0):
        ids, weights = run(logits, bias + shift, 16, **its)
        wanted_ids, wanted = router_torch(logits.double(), bias.double() + shift, 16, **its)
        opened = [set((row // 8).tolist()) for row in ids]
        assert all(len(groups) == 2 for groups in opened)
        assert torch.equal(ids.sort().values, wanted_ids.sort().values)
        assert relative_error(weights.sum(1), wanted.sum(1)) < 3e-7
        assert (weights > 0).all()


def test_the_bias_moves_the_choice_and_no_weight():
    logits = drawn((1, 6))
    bias = torch.tensor([0.0, 5, 0, 0, 7, 0])
    ids, weights = run(logits, bias, 2, gate="sigmoid", normalised=False, routed_scale=3.0)
    assert ids.tolist() == [[4, 1]]
    torch.testing.assert_close(weights, 3 * logits.sigmoid()[:, [4, 1]])


def test_groups_are_ranked_by_as_many_as_told():
    logits = torch.logit(torch.tensor([[0.9, 0.1, 0.1, 0.6, 0.6, 0.1, 0.5, 0.5, 0.5]]))
    for best, wanted in ((1, [0, 1]), (2, [3, 4]), (3, [6, 7]), (9, [6, 7])):
        ids, _ = run(logits, None, 2, gate="sigmoid", groups=3, group_best=best)
        assert ids.tolist() == [wanted]


def test_large_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[1e4, 1e4 - 1, -1e4, 0], [-3e38, -3e38, -3e38, -3e38], [88.8, -88.8, 100, -200]])
    for gate in ("softmax", "sigmoid"):
        ids, weights = run(logits, None, 2, gate=gate, normalised=False)
        wanted = (logits.softmax(1) if gate == "softmax" else logits.sigmoid()).gather(1, ids)
        torch.testing.assert_close(weights, wanted)
        assert ids[0].tolist() == [0, 1]


def test_without_numbers_to_rank_by_ids_are_still_experts_each_once():
    for hole in (float("nan"), float("-inf")):
        for its in (V3, V2, {"top_k": 30, "gate": "sigmoid"}):
            logits, bias = inputs(4, 40)
            logits[0], logits[1, ::3], bias[5:] = hole, hole, float("-inf")
            for its_bias in (bias, None):
                ids, _ = run(logits, its_bias, **its)
                assert ((ids >= 0) & (ids < 40)).all()
                assert all(len(row.unique()) == its["top_k"] for row in ids)


def test_a_score_of_nan_ranks_last_and_says_so_in_its_weight():
    logits = torch.tensor([[0.0, float("nan"), -1.0]])
    ids, weights = run(logits, None, 3, gate="sigmoid", normalised=False)
    assert ids.tolist() == [[0, 2, 1]]
    assert weights.isnan().tolist() == [[False, False, True]]


def test_logits_are_read_where_they_lie():
    base, bias = inputs(12, 48)
    for view in (base[:, 3:35], base[::2, :32], base[:1, :32].expand(5, 32), base.T[:, :8]):
        its = {"top_k": 3, "groups": 2}
        strided = bias.repeat(2)[::2][: view.shape[1]]
        ids, weights = run(view, strided, **its)
        wanted_ids, wanted = router_torch(view, strided, **its)
        assert torch.equal(ids, wanted_ids)
        torch.testing.assert_close(weights, wanted)


def test_it_reads_the_logits_once_in_one_launch():
    logits, bias = inputs(10, 256)
    with checked() as log:
        router(logits, bias, **V3)
    (launch,) = log.launches
    assert launch.grid == (3,)
    assert launch.load_bytes == logits.nbytes + 3 * bias.nbytes
    assert launch.store_bytes == 10 * 8 * 12
    assert {access.kind for access in launch.accesses} == {"load", "store"}


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    logits, bias = inputs(2048, 256)
    each = bytes_each(lambda: router_torch(logits, bias, **V3), elements=logits.numel())
    assert each == pytest.approx(47, rel=0.02)
    config = ModelConfig(experts=256, expert_width=8, selection_bias=True, **V3)
    each = bytes_each(lambda: choose_experts(logits.sigmoid(), bias, config), elements=logits.numel())
    assert each == pytest.approx(36, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    logits, bias = torch.zeros(2, 12), torch.zeros(12)
    for call, said in (
        (
            lambda: router(logits.double(), bias, 2),
            r"logits of float32 and \[tokens, experts\], not torch\.float64 and",
        ),
        (lambda: router(bias, bias, 2), r"not torch\.float32 and \[12\]"),
        (
            lambda: router(logits, bias[:3], 2),
            r"a bias of torch\.float32 and \[3\] is not one of float32 for 12 experts",
        ),
        (lambda: router(logits, bias.double(), 2), r"a bias of torch\.float64 and \[12\]"),
        (lambda: router(logits, bias, 2, "relu"), "gate 'relu' is none of softmax, sigmoid"),
        (lambda: router(logits, bias, 2, groups=5), "12 experts do not make 5 equal groups"),
        (lambda: router(logits, bias, 2, groups=3, top_groups=4), "top_groups 4 must lie between 1 and 3"),
        (lambda: router(logits, bias, 2, groups=3, group_best=0), "ranked by at least one score, not 0"),
        (lambda: router(logits, bias, 5, groups=3), "top_k 5 must lie between 1 and the 4 experts of 1 groups"),
        (lambda: router(logits, bias, 0), "top_k 0 must lie between 1 and the 12 experts"),
        (lambda: router(torch.zeros(1, 5000), None, 2), "router takes up to 4096 experts, and 1 groups of 5000 need"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_it_compiles_for_sm_90_without_spills():
    def empty(*shape):
        return torch.empty(shape, device="meta")

    def calls():
        router(empty(8192, 256), empty(256), **V3)
        router(empty(8192, 160), None, **V2)
        router(empty(64, 4096), empty(4096), 16, "sigmoid", 16, 4)
        router(empty(1, 1), None, 1)  # ones are constants to the compiler

    found = compile_all(file.__file__, launches_of(calls))
    assert all((compiled.error, compiled.spills) == (None, 0) for compiled in found)
    assert found[0].registers <= 64
