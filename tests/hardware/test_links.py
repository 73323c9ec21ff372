"""Where tokens go, how many bytes that is, and how long DeepEP's kernels take for it."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from course.hardware import links
from course.hardware.gpus import Figure
from course.hardware.links import (
    DIRECTIONS,
    GB200_NVL72,
    H200_NODE,
    H800_NODE,
    LOW_LATENCY,
    NODES,
    NORMAL,
    beside_compute,
    compute_sms,
    deepep_routing,
    low_latency_rates,
    low_latency_time,
    low_latency_traffic,
    normal_rates,
    normal_time,
    normal_traffic,
    published_seconds,
    token_bytes,
)
from course.hardware.routing import Routing, distinct
from course.model import PRESETS

V3 = PRESETS["deepseek-v3"]


@pytest.mark.parametrize(("parts", "experts", "top_k"), [(2, 6, 2), (3, 6, 2), (3, 9, 4), (4, 8, 3), (6, 6, 5)])
def test_distinct_parts_are_the_mean_over_all_choices(parts, experts, top_k):
    met = [len({e * parts // experts for e in chosen}) for chosen in combinations(range(experts), top_k)]
    assert distinct(parts, experts, top_k) == pytest.approx(np.mean(met))
    for most in range(1, parts + 1):
        assert distinct(parts, experts, top_k, most) == pytest.approx(np.minimum(met, most).mean())


def test_v3_without_a_limit_would_reach_5_3_of_8_nodes_and_with_it_just_below_4():
    free = Routing(256, 8, 64)
    assert free.reach.nodes == pytest.approx(8 * (1 - np.prod([(224 - i) / (256 - i) for i in range(8)])))
    limited = Routing.of(V3, 64)
    assert (limited.groups, limited.top_groups, limited.group_best) == (8, 4, 2)
    assert 3.9 < limited.reach.nodes < 4
    assert 7.3 < limited.reach.gpus < free.reach.gpus + 0.5


@pytest.mark.parametrize(("groups", "top"), [(8, 4), (4, 2), (8, 2)])
def test_a_limit_by_best_expert_has_a_closed_form(groups, top):
    sampled = Routing(256, 8, 8 * groups, groups=groups, top_groups=top, group_best=1).reach.nodes
    assert sampled == pytest.approx(distinct(groups, 256, 8, top), abs=0.02)


def test_a_limit_changes_nodes_more_than_gpus():
    two = Routing(256, 8, 64, groups=8, top_groups=2)
    assert two.reach.nodes == pytest.approx(2, abs=0.01)
    assert two.reach.gpus == pytest.approx(distinct(16, 64, 8), abs=0.1)  # about as if two nodes were all


def test_copies_of_experts_make_more_places_and_drop_the_limit():
    more = Routing.of(V3, 144, slots=2)
    assert (more.experts, more.nodes, more.limited) == (288, 18, False)
    with pytest.raises(ValueError, match="256 experts do not go evenly over 144 GPUs"):
        Routing.of(V3, 144)
    with pytest.raises(ValueError, match="10 experts do not make 3 equal parts"):
        distinct(3, 10, 2)


def test_a_token_is_7392_bytes_there_and_14336_back():
    assert token_bytes("dispatch", 7168) == 7168 + 4 * 56
    assert token_bytes("combine", 7168) == 2 * 7168
    with pytest.raises(ValueError, match="no 'send'"):
        token_bytes("send", 7168)


def test_two_hops_by_hand():
    """2 nodes of 2 GPUs, one expert each, one chosen: half of the tokens cross, and half of all hop inside."""
    routing = Routing(4, 1, 4, gpus_a_node=2)
    traffic = normal_traffic("combine", routing, 100, 10)
    hops = [(home != e // 2, e % 2 != place) for home, place, e in product(range(2), range(2), range(4))]
    crossed, inside = np.mean(hops, axis=0)
    assert traffic.network == pytest.approx(100 * 20 * crossed)
    assert traffic.nvlink == pytest.approx(100 * 20 * inside)


def test_one_node_uses_no_network_and_one_gpu_nothing():
    assert normal_traffic("dispatch", Routing(256, 8, 8), 4096, 7168).network == 0
    assert vars(normal_traffic("dispatch", Routing(256, 8, 1), 4096, 7168)) == {"network": 0, "nvlink": 0}


def test_deepep_counts_a_tokens_own_node():
    """uccl-project/uccl, ep/README.md, same test on H200 with another network: 8, 16 and 32 GPUs, GB/s and us of a
    dispatch, whose product is the bytes that were counted."""
    for ranks, rate, us in ((8, 320, 500), (16, 50, 1196), (32, 54, 2022)):
        reach = deepep_routing(ranks).reach
        counted = 4096 * 7392 * (reach.gpus if ranks == 8 else reach.nodes)
        assert rate * us * 1e3 == pytest.approx(counted, rel=0.015)


def test_low_latency_bytes_are_those_that_deepep_counts():
    """The first release's table has GB/s beside us, of dispatch and combine: our bytes over its times, rounded down."""
    published = {8: (46, 46), 16: (43, 44), 32: (41, 41), 64: (40, 41), 128: (39, 39), 256: (39, 40)}
    for ranks, rates in published.items():
        for direction, us, rate in zip(DIRECTIONS, LOW_LATENCY["2025"][ranks], rates, strict=True):
            sent = low_latency_traffic(direction, ranks, 128, 8, 7168, version="2025").network * ranks / (ranks - 1)
            assert int(sent / us / 1e3) == rate


def test_low_latency_within_a_node_goes_over_nvlink_in_the_final_version_alone():
    first, final = (low_latency_traffic("combine", 32, 128, 8, 7168, version=version) for version in NORMAL)
    assert (first.nvlink, final.nvlink / final.network) == (0, pytest.approx(7 / 24))
    assert first.network == pytest.approx(final.network * 31 / 24)


@pytest.mark.parametrize("version", NORMAL)
def test_rates_are_near_what_the_links_reach_and_predict_what_was_left_out(version):
    normal, low = normal_rates(version), low_latency_rates(version)
    for rates in (normal, low):
        assert 35e9 < rates.fitted["network"] < 50e9
        assert 120e9 < rates.fitted.get("nvlink", 160e9) < 200e9
        assert np.mean(np.abs(rates.left_out) <= rates.error) >= 0.8
    assert normal.error < {"2025": 0.12, "final": 0.08}[version]
    assert low.error < 0.05


def test_a_time_left_out_is_predicted_by_a_fit_without_it():
    rates = low_latency_rates("2025")
    without = links.Rates("", rates.traffic[1:], rates.seconds[1:], rates.names)
    assert np.log(rates.seconds[0] / without.time(rates.traffic[0])) == pytest.approx(rates.left_out[0], abs=1e-6)


def test_two_versions_contradict_each_other_and_are_kept_apart():
    for direction in DIRECTIONS:
        old, new = (published_seconds(32, direction, version) for version in ("2025", "final"))
        assert old / new > 1.2
        first, final = (normal_time(direction, deepep_routing(32), 4096, 7168, version=v) for v in ("2025", "final"))
        assert first.value > 1.15 * final.value
        assert abs(first.value - old) <= 2 * first.error
        assert abs(final.value - new) <= final.error
    with pytest.raises(KeyError):
        normal_rates("2026")


def test_beyond_64_gpus_the_final_version_is_as_uncertain_as_the_rows_it_kept():
    within, beyond = (low_latency_time("combine", ranks, 128, 8, 7168) for ranks in (64, 256))
    assert within.error / within.value < 0.05
    off = abs(np.log(360e-6 / beyond.value))
    assert off < 1.05 * beyond.error / beyond.value < 0.15


def links_times(node, **times):
    """The node with some links so many times as fast."""
    made = {}
    for name, factor in times.items():
        link = getattr(node, name)
        made[name] = replace(link, bandwidth=Figure(factor * link.bandwidth.value, "test"))
    return replace(node, **made)


def test_the_faster_link_helps_where_it_bounds():
    one, eight = deepep_routing(8), deepep_routing(64)
    latency = normal_rates().latency
    nvlink, network = links_times(H800_NODE, nvlink=2), links_times(H800_NODE, network=2)

    def time(routing, node=H800_NODE):
        return normal_time("dispatch", routing, 4096, 7168, node).value - latency

    assert time(one) / time(one, nvlink) == pytest.approx(2)
    assert time(one, network) == time(one)
    assert time(eight, nvlink) == time(eight)
    traffic, rates = normal_traffic("dispatch", eight, 4096, 7168), normal_rates().fitted
    bound_by_nvlink = traffic.nvlink / rates["nvlink"]  # twice the network is more than NVLink keeps up with
    assert time(eight, network) == pytest.approx(max(time(eight) / 2, bound_by_nvlink))


def test_twice_the_tokens_take_twice_the_time_less_the_latency():
    latency = low_latency_rates().fitted["latency"]
    once, twice = (low_latency_time("dispatch", 32, tokens, 8, 7168).value - latency for tokens in (128, 256))
    assert twice == pytest.approx(2 * once)
    assert 20e-6 < latency < 50e-6


def test_h200_nodes_are_predicted_from_h800_rates():
    """uccl-project/uccl, ep/README.md: 8 H200, 500 and 973 us. Nothing is fitted on them."""
    for direction, us in zip(DIRECTIONS, (500, 973), strict=True):
        part = normal_time(direction, deepep_routing(8), 4096, 7168, H200_NODE)
        assert abs(part.value - us * 1e-6) < part.error < 0.15 * part.value


def test_72_gpus_on_one_switch_need_no_network():
    """More bytes over NVLink than in a node of 8, at 4.5 times the H800's rate."""
    routing = Routing(288, 8, 72, gpus_a_node=72)
    traffic = normal_traffic("dispatch", routing, 4096, 7168)
    assert traffic.network == 0
    part = normal_time("dispatch", routing, 4096, 7168, GB200_NVL72)
    rate = 4.5 * normal_rates().fitted["nvlink"]
    assert part.value == pytest.approx(normal_rates().latency + traffic.nvlink / rate)
    assert GB200_NVL72.nvlink.bandwidth.value == 900e9


def test_a_profile_shows_exchanges_slower_beside_arithmetic():
    for direction, (low, high) in zip(DIRECTIONS, ((1.2, 1.6), (1.0, 1.25)), strict=True):
        part = beside_compute(direction)
        assert low < part.value < high
        assert part.value < beside_compute(direction, "final").value


def test_20_sms_communicate_and_112_compute():
    assert compute_sms() == 112
    assert compute_sms(communicate=24) == 108
    with pytest.raises(ValueError, match="132 of H800 SXM's 132 SMs leave none"):
        compute_sms(communicate=132)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_every_figure_of_a_node_has_a_source(node):
    for link in (node.nvlink, node.network):
        assert 0 < link.achieved.value < link.bandwidth.value
        for figure in (link.latency, link.bandwidth, link.achieved):
            assert figure.source.strip()
            assert figure.kind in {"published", "second-hand", "computed"}
