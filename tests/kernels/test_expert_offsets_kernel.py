"""Where each pair goes: equal to a stable sort, blocks of one expert each, the same every time, and no spills on sm_90."""

import pytest
import torch

from course.kernels import expert_offsets as file
from course.kernels.checked import checked
from course.kernels.expert_offsets import expert_offsets, expert_offsets_torch, most_blocks
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.model.dispatch import sort_by_expert

from kernel_measures import bytes_each  # isort: skip

SHAPES = [
    (1, 1, 1, 4),
    (0, 8, 5, 16),
    (3, 0, 5, 16),
    (5, 1, 300, 64),
    (100, 8, 37, 16),
    (70, 2, 1, 32),
    (33, 4, 256, 128),
]


def drawn(T, K, experts, lowest=0, seed=0):
    return torch.randint(lowest, experts, (T, K), generator=torch.Generator().manual_seed(seed))


def run(ids, experts, block_m=16):
    with checked() as log:
        got = expert_offsets(ids, experts, block_m)
    assert all(part.dtype == torch.int64 for part in got)
    return got, log.launches


def by_hand(ids, experts, block_m):
    """Lists and loops: each expert's pairs in their order, and blocks that are filled one after another."""
    queues = [[p for p, its in enumerate(ids.flatten().tolist()) if its == e] for e in range(experts)]
    places, aligned, starts, blocks = [-1] * ids.numel(), [-1] * ids.numel(), [0], []
    for e, queue in enumerate(queues):
        for rank, p in enumerate(queue):
            places[p] = sum(map(len, queues[:e])) + rank
            aligned[p] = len(blocks) * block_m + rank
        blocks += [e] * -(-len(queue) // block_m)
        starts.append(len(blocks) * block_m)
    return list(map(len, queues)), places, starts, aligned, blocks


def agrees(ids, experts, block_m):
    got, _ = run(ids, experts, block_m)
    counts, places, starts, aligned, blocks = by_hand(ids, experts, block_m)
    assert got.counts_E.tolist() == counts
    assert got.offsets_E1.tolist() == [sum(counts[:e]) for e in range(experts + 1)]
    assert got.places_TK.shape == got.aligned_TK.shape == ids.shape
    assert got.places_TK.flatten().tolist() == places
    assert got.aligned_E1.tolist() == starts
    assert got.aligned_TK.flatten().tolist() == aligned
    placed = {row: p for p, row in enumerate(places) if row >= 0}
    assert got.pairs_P.tolist() == [placed.get(row, -1) for row in range(ids.numel())]
    assert got.experts_B.tolist() == blocks + [-1] * (most_blocks(ids.numel(), experts, block_m) - len(blocks))
    for mine, its in zip(got, expert_offsets_torch(ids, experts, block_m), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("lowest", [0, -1], ids=["all kept", "some dropped"])
def test_it_equals_loops_and_the_twin_for_every_shape(lowest):
    for T, K, experts, block_m in SHAPES:
        agrees(drawn(T, K, experts, lowest), experts, block_m)


def test_it_equals_the_models_sort():
    ids = drawn(60, 3, 11)
    got, _ = run(ids, 11)
    order_P, offsets_E1 = sort_by_expert(ids, 11)
    assert torch.equal(got.offsets_E1, offsets_E1)
    assert torch.equal(got.places_TK.flatten()[order_P], torch.arange(180))
    assert torch.equal(got.pairs_P, order_P)


def test_experts_without_a_pair_have_no_row_and_no_block():
    ids = torch.tensor([[2, 5], [5, 2], [5, 9]])
    agrees(ids, 12, 2)
    got, _ = run(ids, 12, 2)
    assert got.experts_B.tolist() == [2, 5, 5, 9, -1, -1]
    assert got.aligned_E1.diff().tolist() == [0, 0, 2, 0, 0, 4, 0, 0, 0, 2, 0, 0]


def test_all_pairs_may_go_to_one_expert():
    for expert in (0, 6, 12):
        agrees(torch.full((50, 3), expert), 13, 16)


def test_a_pair_whose_id_is_no_expert_is_dropped_whatever_it_is():
    ids = torch.tensor([[0, -1, 7], [7, 2**32, 2**32 + 7], [-(2**32), -(2**63), 8]])
    got, _ = run(ids, 8, 4)
    assert got.counts_E.tolist() == [1, 0, 0, 0, 0, 0, 0, 2]
    assert got.places_TK.tolist() == [[0, -1, 1], [2, -1, -1], [-1, -1, -1]]
    assert got.aligned_TK.tolist() == [[0, -1, 4], [5, -1, -1], [-1, -1, -1]]
    assert got.experts_B.tolist() == [0, 7, -1, -1, -1, -1, -1, -1]
    everything, _ = run(torch.full((5, 2), -1), 8, 4)
    assert everything.offsets_E1.tolist() == everything.aligned_E1.tolist() == [0] * 9
    assert (everything.experts_B == -1).all()


def test_pairs_keep_their_order_across_spans(monkeypatch):
    monkeypatch.setattr(file, "SPAN", 32)
    for T, K, experts in ((100, 3, 5), (64, 2, 3), (32, 1, 2), (33, 1, 1), (70, 8, 200)):
        agrees(drawn(T, K, experts, -1, seed=T), experts, 8)


def test_many_spans_are_added_up_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(file, "SPAN", 16)
    ids = drawn(45, 2, 4000)  # one row of counts at a time, and six of them
    for mine, its in zip(run(ids, 4000, 8)[0], expert_offsets_torch(ids, 4000, 8), strict=True):
        assert torch.equal(mine, its)


def test_no_block_holds_rows_of_two_experts_and_the_table_is_never_too_short():
    for T, K, experts, block_m in ((16, 1, 16, 8), (1, 16, 16, 8), (40, 2, 7, 8), (40, 2, 7, 7), (9, 1, 3, 1)):
        for ids in (drawn(T, K, experts), torch.arange(T * K).view(T, K) % experts):
            got, _ = run(ids, experts, block_m)
            assert got.aligned_E1[-1] <= block_m * len(got.experts_B)
            assert torch.equal(got.experts_B[got.aligned_TK // block_m], ids)
            assert len(got.aligned_TK.unique()) == T * K
    one_each, _ = run(torch.arange(16).view(4, 4), 16, 8)
    assert one_each.experts_B.tolist() == list(range(16))  # as long as needed, in the worst case
    assert most_blocks(8192 * 8, 256, 128) == 766


def test_ids_may_lie_anywhere():
    base = drawn(40, 12, 9)
    for ids in (base[:, 2:7], base[::3], base.T, base[:1].expand(6, 12)):
        agrees(ids, 9, 8)


def test_two_runs_give_the_same_places_and_nothing_is_added_atomically():
    ids = drawn(200, 4, 10, -1)
    (first, launches), (second, _) = run(ids, 10), run(ids, 10)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert {access.kind for launch in launches for access in launch.accesses} == {"load", "store"}
    assert [launch.kernel for launch in launches] == [
        "expert_counts_kernel",
        "expert_prefix_kernel",
        "expert_places_kernel",
    ]


def test_the_docstring_counts_the_bytes_right():
    ids = drawn(256, 8, 8)
    P, spans = ids.numel(), 256 * 8 // file.SPAN
    _, (counts, prefix, places) = run(ids, 8)
    assert (counts.load_bytes, counts.store_bytes) == (8 * P, 8 * P + 8 * spans * 8)
    assert prefix.load_bytes == 8 * spans * 8
    assert prefix.store_bytes == 8 * spans * 8 + 8 * (8 + 9 + 9 + most_blocks(P, 8, 16))
    assert places.store_bytes == 24 * P
    assert 16 * P < places.load_bytes <= 40 * P
    many = drawn(8192, 8, 8)
    assert bytes_each(expert_offsets_torch, many, 8, elements=many.numel()) == pytest.approx(276, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    ids = torch.zeros(4, 2, dtype=torch.int64)
    for call, said in (
        (lambda: expert_offsets(ids.int(), 4), r"ids of int64 and \[tokens, slots\], not torch\.int32 and \[4, 2\]"),
        (lambda: expert_offsets(ids[0], 4), r"ids of int64 and \[tokens, slots\], not torch\.int64 and \[2\]"),
        (lambda: expert_offsets(ids, 0), "1 to 4096 experts, not 0"),
        (lambda: expert_offsets(ids, 5000), "1 to 4096 experts, not 5000"),
        (lambda: expert_offsets(ids, 4, 0), "a block has at least one row, not 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_it_compiles_for_sm_90_without_spills():
    def large(experts, T=8192):
        return launches_of(lambda: expert_offsets(torch.empty(T, 8, dtype=torch.int64, device="meta"), experts))

    launches = [*large(256), *large(file.MOST_EXPERTS), *large(1, T=1), *large(37)]
    found = compile_all(file.__file__, launches)
    assert all((compiled.error, compiled.spills) == (None, 0) for compiled in found)
    assert max(compiled.registers for compiled in found[:3]) <= 128  # at DeepSeek-V3's 256 experts
