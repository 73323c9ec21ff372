"""The mixture layer in the GPU harness, without a GPU: counts equal closed forms, and the contestants do the same."""

import goals
import kernels as script
import moe_kernels as layer
import plans
import pytest
import torch
from kept import kept_bytes

from course.kernels.checked import checked

CASE = layer.Case(experts=4, width=32, hidden=16, top_k=2, tokens=24, source="a test")
E, D, HIDDEN, K, T, P = 4, 32, 16, 2, 24, 48


def test_the_published_shapes_are_those_of_the_models():
    from transformers import Qwen3MoeConfig, Qwen3NextConfig

    from course.model import PRESETS

    for name, config in (("qwen3-30b/8192", Qwen3MoeConfig()), ("qwen3-next/8192", Qwen3NextConfig())):
        case, chosen = layer.CASES[name], config.num_experts_per_tok
        assert (case.experts, case.width, case.hidden, case.top_k) == (
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            chosen,
        )
    v3 = PRESETS["deepseek-v3"]
    ranks = [case for name, case in layer.CASES.items() if name.startswith("v3")]
    assert [(case.experts, case.width, case.hidden) for case in ranks] == [
        (held, v3.width, v3.expert_width) for held in (8, 16, 32)
    ]
    assert [
        int(name.split("/")[1].split("-")[0]) * layer.CASES[name].experts for name in layer.CASES if "v3" in name
    ] == [case.pairs for case in ranks]


def test_flops_and_bytes_of_a_pass_are_the_closed_forms():
    weights, tokens, chosen = 2 * E * 3 * D * HIDDEN, 2 * T * D, 12 * P
    forward, both = layer.counts(CASE, False), layer.counts(CASE, True)
    assert forward["flops"] == 6 * P * D * HIDDEN
    assert forward["bytes"] == weights + 2 * tokens + chosen
    assert both["flops"] == 3 * forward["flops"]
    assert both["bytes"] == forward["bytes"] + 2 * weights + 3 * tokens + chosen + 4 * P
    assert forward["tokens_an_expert"]["mean"] == 12


def test_experts_that_nobody_chose_are_not_read_but_their_gradients_are_written():
    few = layer.Case(experts=64, width=D, hidden=HIDDEN, top_k=2, tokens=3, source="a test")
    used, expert = len(layer.routing(few).unique()), 2 * 3 * D * HIDDEN
    assert used <= 6
    assert layer.counts(few, False)["bytes"] == used * expert + 2 * 2 * 3 * D + 12 * 6
    backward = layer.counts(few, True)["bytes"] - layer.counts(few, False)["bytes"]
    assert backward == (used + 64) * expert + 3 * 2 * 3 * D + 12 * 6 + 4 * 6


def test_routing_is_the_same_every_time_and_sends_no_token_twice_to_an_expert():
    ids = layer.routing.__wrapped__(CASE)
    assert torch.equal(ids, layer.routing.__wrapped__(CASE))
    assert all(len(set(row)) == K for row in ids.tolist())
    rank = layer.Case(4, D, HIDDEN, 1, 20, "a test")
    assert layer.routing(rank).flatten().bincount().tolist() == [5] * 4


def test_the_steps_of_ours_add_up_to_the_flops_that_it_really_does():
    forward, both = (plans.layer_plan(CASE, backward) for backward in (False, True))
    products, sums = 2 * P * D * HIDDEN, 2 * P * D  # one of the three products of a pair; a combine
    assert forward["flops_done"] == 3 * products + sums
    assert both["flops_done"] == 11 * products + 2 * sums  # 9 of the model's, and gate and up again
    names = ["expert_offsets", "grouped_gate_up", "grouped_gemm", "combine"]
    assert [step["kernel"] for step in forward["steps"]] == names
    products_back = ["grouped_swiglu_backward", "grouped_weight_gradient", "grouped_weight_gradient", "grouped_gemm"]
    assert [step["kernel"] for step in both["steps"]] == [*names, *products_back, "combine"]
    assert all(step["launches"] for step in both["steps"])
    gate_up = forward["steps"][1]
    assert gate_up["bytes"] == 2 * (T * D + E * 2 * HIDDEN * D + P * HIDDEN) + 8 * (P + E + 1)


def test_what_is_kept_is_the_closed_form_and_what_real_tensors_keep():
    planned = plans.layer_keeps(CASE)
    around = 2 * T * D + 4 * P  # x, routing weights
    assert planned["ours"] == around + 8 * (2 * P + E + 1)  # the order both ways, offsets
    inputs = layer.drawing(CASE, "cpu")(0)
    forwards, _ = layer.contestants(True)
    assert script.keeps(forwards["ours"], inputs) == planned["ours"]
    eager = script.keeps(forwards["grouped_mm"], inputs)
    assert abs(eager - planned["grouped_mm"]) <= 4 * (E + 1)  # offsets of 32 bits: kept by one device, not by another
    assert planned["grouped_mm"] > 2 * P * (D + 2 * HIDDEN + HIDDEN + D)  # rows, gate and up, their product, outputs


def test_meta_storages_are_told_apart():
    x, weight = (torch.empty(6, 4, device="meta", requires_grad=True) for _ in range(2))
    assert kept_bytes(lambda: x * weight, []) == 2 * 96
    assert kept_bytes(lambda: x * weight, [weight]) == 96


@pytest.mark.parametrize("backward", [False, True])
def test_every_contestant_that_is_here_gives_the_same(backward):
    forwards, missing = layer.contestants(backward)
    wrap = layer.with_gradients if backward else layer.without
    calls, died = script.able({who: wrap(call) for who, call in forwards.items()}, layer.drawing(CASE, "cpu")(0))
    assert died == {}
    assert set(calls) | set(missing) == {"ours", "grouped_mm", "loop", "transformers", "liger_kernel"}
    inputs = layer.drawing(CASE, "cpu")(1)
    with checked():
        assert len(calls["ours"](*inputs)) == (5 if backward else T)
        for who in set(calls) - {"ours"}:
            assert 0 < script.require_right(calls, inputs, who) < 1e-2


def test_a_peer_that_does_not_start_is_told_and_stops_nothing(monkeypatch):
    def broken():
        raise ImportError("no such symbol")

    monkeypatch.setattr(layer, "PEERS", {"torch": broken, "no_such_library": broken})
    forwards, missing = layer.contestants(False)
    assert list(forwards) == ["grouped_mm", "ours", "loop"]
    assert missing == {"torch": "ImportError: no such symbol", "no_such_library": "not installed"}


def test_who_runs_out_of_memory_is_left_out_and_the_others_go_on():
    def greedy(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls, died = script.able({"ours": lambda x: x, "loop": greedy}, (1,))
    assert list(calls) == ["ours"]
    assert died == {"loop": "OutOfMemoryError: CUDA out of memory"}


def test_shares_are_of_the_roof_that_binds_and_fp8_has_twice_the_products():
    measured = {"product_flops_per_second": 100.0, "copy_bytes_per_second": 10.0}
    found = script.shares({"flops": 100, "bytes": 5, "dtype": "bf16"}, {"ours": 2.0}, measured)
    assert found == {"share_of_product": {"ours": 0.5}, "share_of_copy": {"ours": 0.25}, "share_of_roof": {"ours": 0.5}}
    found = script.shares({"flops": 100, "bytes": 20, "dtype": "fp8"}, {"ours": 4.0}, measured)
    assert found == {
        "share_of_product": {"ours": 0.125},
        "share_of_copy": {"ours": 0.5},
        "share_of_roof": {"ours": 0.5},
    }


def test_a_goal_is_judged_by_its_own_share_and_only_where_a_gpu_measured():
    goal = goals.Goal(0.5, "share_of_copy", "a test")
    row = {"seconds": {"ours": 1.0}, "share_of_copy": {"ours": 0.6}, "share_of_product": {"ours": 0.1}, "met": None}
    assert goals.judged(row, goal, on_gpu=True)["met"] is True
    assert goals.judged(row, goals.Goal(0.5, "share_of_product", "a test"), on_gpu=True)["met"] is False
    assert goals.judged(row, goal, on_gpu=False)["met"] is None
    assert goals.judged(row | {"seconds": None}, goal, on_gpu=True)["met"] is None
    assert goals.judged(row, None, on_gpu=True) == row | {"goal": None}
    named = [name for name, _ in goals.LAYER_GOALS]
    assert set(named) <= set(layer.CASES)
    assert all(goal.source for goal in [*goals.GOALS.values(), *goals.LAYER_GOALS.values()])
