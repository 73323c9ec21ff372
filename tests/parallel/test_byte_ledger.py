"""Bytes counted where they are sent, against bytes calculated from the routing alone."""

from math import comb

import numpy as np
import pytest
from ranked_layers import CASES, NODES, RANKS, WIRED, WIRES

from course.parallel.grid import Grid
from course.parallel.ledger import DISPATCHES, by_hop, copies, expected, row_bytes

GRID = Grid(RANKS, NODES)


def same(got, wanted) -> bool:
    """The same words, and to the byte the same matrices."""
    return got.keys() == wanted.keys() and all(np.array_equal(got[what].numpy(), wanted[what]) for what in wanted)


def check(ran, where, name, dispatch, case, wires):
    results = [each[where][name][dispatch] for each in ran]
    experts_of = [each["experts"].numpy() for each in results]
    settings, _, dtype, _ = case
    for key in ("forward", "both"):
        arguments = (settings["width"], dispatch, *wires, dtype, key == "both")
        wanted = expected(experts_of, settings["experts"], GRID, *arguments)
        assert all(same(each[key], wanted) for each in results)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("name", CASES)
def test_what_was_sent_is_what_the_routing_says(ran, name, dispatch):
    check(ran, "layers", name, dispatch, CASES[name], ("same", "same"))


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("wires", WIRES)
def test_so_it_is_in_fp8_with_its_scales_and_in_bf16(ran, wires, dispatch):
    check(ran, "wired", wires, dispatch, WIRED, WIRES[wires])


def test_two_hops_send_fewest_bytes_across_nodes(ran):
    def across(dispatch):
        sent = ran[0]["layers"]["uneven"][dispatch]["forward"]
        return by_hop(sent["dispatch"].numpy() + sent["combine"].numpy(), GRID).across

    assert across("node") < across("rank") < across("pair")


def test_rows_have_the_bytes_of_their_format():
    assert row_bytes(7168, "bf16") == (14336, 0)
    assert row_bytes(7168, "fp8") == (7168, 224)
    assert row_bytes(136, "fp8") == (136, 8)  # the last scale has 8 elements
    assert [row_bytes(5, "same", dtype) for dtype in ("float64", "float32", "bfloat16")] == [(40, 0), (20, 0), (10, 0)]


def test_bytes_by_hop_leave_the_diagonal_out():
    assert by_hop(np.arange(16).reshape(4, 4), GRID) == (
        2 + 3 + 6 + 7 + 8 + 9 + 12 + 13,
        1 + 4 + 11 + 14,
        0 + 5 + 10 + 15,
    )


@pytest.fixture(scope="module")
def drawn():
    """Six ranks on three nodes, and the choices of their tokens among 12 experts, some of them dropped."""
    rng = np.random.default_rng(3)
    choices = [np.stack([rng.permutation(12)[:4] for _ in range(tokens)]) for tokens in (9, 4, 1, 7, 12, 5)]
    return Grid(6, 3), [np.where(rng.random(choice.shape) < 0.2, -1, choice) for choice in choices]


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_copies_are_counted_as_one_counts_them_token_by_token(drawn, dispatch):
    grid, experts_of = drawn
    wanted = np.zeros((6, 6), dtype=int)
    for rank, experts_TK in enumerate(experts_of):
        for experts_K in experts_TK:
            goals = [int(expert) // 2 for expert in experts_K if expert >= 0]
            if dispatch == "node":
                for node in {goal // 2 for goal in goals}:
                    relay = 2 * node + rank % 2
                    wanted[rank, relay] += 1
                    for goal in {goal for goal in goals if goal // 2 == node}:
                        wanted[relay, goal] += 1
            else:
                for goal in goals if dispatch == "pair" else set(goals):
                    wanted[rank, goal] += 1
    assert np.array_equal(sum(copies(experts_of, 12, grid, dispatch)), wanted)


def test_the_first_hop_keeps_the_index_and_the_second_the_node(drawn):
    grid, experts_of = drawn
    first, second = copies(experts_of, 12, grid, "node")
    sender, receiver = np.nonzero(first)
    assert (grid.index(sender) == grid.index(receiver)).all()
    sender, receiver = np.nonzero(second)
    assert (grid.node(sender) == grid.node(receiver)).all()


def test_node_limited_routing_bounds_what_crosses_nodes():
    """V3: 256 experts on 64 ranks of 8 nodes, 8 a token (report, section 2.1.2: from at most 4 nodes)."""
    rng, grid, tokens = np.random.default_rng(0), Grid(64, 8), 512
    free = [rng.random((tokens, 256)).argsort(axis=1)[:, :8] for _ in range(64)]
    limited = []
    for _ in range(64):
        scores = rng.random((tokens, 8, 32))
        closed = np.sort(scores, axis=2)[:, :, -2:].sum(axis=2).argsort(axis=1)[:, :4]
        np.put_along_axis(scores, closed[:, :, None], -1.0, axis=1)
        limited.append(scores.reshape(tokens, 256).argsort(axis=1)[:, -8:])

    def crossing(experts_of, dispatch):
        return by_hop(sum(copies(experts_of, 256, grid, dispatch)), grid).across / (64 * tokens)

    away = 7 / 8  # of nodes that are not the token's own
    nodes = 8 * (1 - comb(224, 8) / comb(256, 8))  # that 8 of 256 experts are on, 32 a node
    ranks = 64 * (1 - comb(252, 8) / comb(256, 8))
    assert crossing(free, "pair") == pytest.approx(8 * away, rel=0.01)
    assert crossing(free, "rank") == pytest.approx(ranks * away, rel=0.01)
    assert crossing(free, "node") == pytest.approx(nodes * away, rel=0.01)
    assert crossing(limited, "pair") == pytest.approx(8 * away, rel=0.01)  # the limit alone saves nothing
    assert 3 * away < crossing(limited, "node") < 4 * away


@pytest.mark.parametrize("dispatch", ["some", ""])
def test_an_unknown_dispatch_gets_a_sentence(dispatch):
    with pytest.raises(ValueError, match=f"there is no dispatch '{dispatch}'; there are: pair, rank, node"):
        copies([], 8, GRID, dispatch)
