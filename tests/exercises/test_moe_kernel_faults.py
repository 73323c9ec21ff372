"""Unit 11: answers whose numbers are right in the interpreter's order of programs, or on the host, and that are refused all the same."""

import pytest

from course.checking.launch import forked
from course.exercises.u11 import expert_places, gather_gate_up, grouped_product, tile_table, weighted_combine
from course.kernels.interpreter import interpreting

from specifications import EVERY, judged, source  # isort: skip

assert interpreting()

RACING = """
@triton.jit
def count(ids, counts, P, first, held, SPAN: tl.constexpr):
    for p in range(tl.program_id(0) * SPAN, tl.minimum(tl.program_id(0) * SPAN + SPAN, P)):
        own = tl.load(ids + p) - first
        if own >= 0:
            if own < held:
                tl.store(counts + own, tl.load(counts + own) + 1)


@triton.jit
def place(ids, counts, offsets, places, P, first, held):
    begin = tl.program_id(0) * 0
    for e in range(0, held):
        tl.store(offsets + e, begin)
        begin += tl.load(counts + e).to(tl.int32)
    tl.store(offsets + held, begin)
    for p in range(0, P):
        rank = 0
        own = tl.load(ids + p) - first
        if own >= 0:
            if own < held:
                for q in range(0, p):
                    rank += (tl.load(ids + q) == own + first).to(tl.int32)
                tl.store(places + p, tl.load(offsets + own) + rank)


def expert_places(ids_TK, first, held):
    P, span = ids_TK.numel(), SPAN
    counts_E, offsets_E1 = torch.zeros(held, dtype=torch.int64), torch.zeros(held + 1, dtype=torch.int64)
    places_TK = torch.full_like(ids_TK, -1)
    if P:
        count[(triton.cdiv(P, span),)](ids_TK, counts_E, P, first, held, SPAN=span)
        place[(1,)](ids_TK, counts_E, offsets_E1, places_TK, P, first, held)
    return counts_E, offsets_E1, places_TK
"""


def verdict(name: str, text: str):
    return judged(EVERY[name], text, start=forked)


def changed(name: str, function, before: str, after: str) -> str:
    text = source(EVERY[name], function)
    assert before in text
    return text.replace(before, after)


def test_a_histogram_that_races_is_refused_though_its_numbers_are_right():
    alone = verdict("11.2", RACING.replace("SPAN\n", "1024\n"))  # a single program cannot race
    racing = verdict("11.2", RACING.replace("SPAN\n", "4\n"))
    assert not alone.failures
    assert "programs run in no fixed order" in racing.failures[0].what


def test_places_from_an_atomic_counter_are_refused():
    text = changed("11.2", expert_places.one_program_an_expert, "tl.store(counts +", "tl.atomic_add(counts +")
    assert "atomic_add" in verdict("11.2", text).reason


@pytest.mark.parametrize("mask", ["p < P", "p >= 0"])
def test_a_tile_that_spills_into_the_next_expert_is_a_race_or_leaves_the_tensor(mask):
    text = changed(
        "11.4", grouped_product.a_program_a_tile, "inside = p < tl.load(offsets + expert + 1)", f"inside = {mask}"
    ).replace("offsets, out, E, K, N,", "offsets, out, P, E, K, N,")
    text = text.replace("offsets_E1, out_PN, E, K, N,", "offsets_E1, out_PN, P, E, K, N,")
    what = [case.what for case in verdict("11.4", text).failures]
    assert any("in the same launch" in one or "out has" in one or "rows has" in one for one in what), what


def test_a_tile_of_the_table_that_ignores_its_height_is_refused():
    text = changed(
        "11.5",
        gather_gate_up.gate_and_up_side_by_side,
        "inside = m < tl.load(heights + tl.program_id(0))",
        "inside = m >= 0",
    )
    assert "a fault in the kernel" in verdict("11.5", text).failures[0].what


@pytest.mark.parametrize(
    "beside",
    [
        "offsets_E1[1:] = torch.ones(held, held, dtype=torch.int64).tril() @ counts_E",
        "for e in range(held): offsets_E1[e + 1] = offsets_E1[e] + counts_E[e]",
        "own_TK = ids_TK - first",
        "int(counts_E[0])",
    ],
)
def test_arithmetic_of_pytorchs_on_ids_and_counts_is_refused(beside):
    text = changed(
        "11.2", expert_places.one_program_an_expert, "        _place_own[", f"        {beside}\n        _place_own["
    )
    what = verdict("11.2", text).failures[0].what
    assert "PyTorch reads a tensor here" in what
    assert "it may allocate, fill and view" in what


@pytest.mark.parametrize(
    ("name", "function", "copied"),
    [
        ("11.4", grouped_product.a_program_a_tile, "weight_EKN"),
        ("11.5", gather_gate_up.gate_and_up_side_by_side, "gate_up_EFD"),
        ("11.6", weighted_combine.one_slot_after_another, "y_RD"),
    ],
)
def test_a_transposed_copy_of_all_weights_or_rows_is_refused(name, function, copied):
    text = changed(name, function, "    out_", f"    {copied}.mT.contiguous()\n    out_")
    assert "PyTorch reads a tensor here (clone)" in verdict(name, text).failures[0].what


@pytest.mark.parametrize(
    "wait",
    [
        "int(counts_E.max())",
        "counts_E.sum().item()",
        "range(counts_E[0])",
        "bool((counts_E > 0).all())",
        "counts_E[counts_E > 0]",
        "torch.where(counts_E > 0)",
        "torch.arange(counts_E.sum())",
    ],
)
def test_asking_the_device_how_many_rows_there_are_is_refused(wait):
    text = source(EVERY["11.3"], tile_table.reference).replace("    E = len", f"    {wait}\n    E = len")
    told = verdict("11.3", text)
    said = told.reason or told.failures[0].what
    assert "out of bounds" in said


def test_the_host_may_not_read_offsets_to_launch_a_product_for_each_expert():
    text = changed(
        "11.4", grouped_product.a_program_a_tile, "    P, (E, K, N)", "    int(offsets_E1[-1])\n    P, (E, K, N)"
    )
    assert "out of bounds" in verdict("11.4", text).failures[0].what


def test_a_weighted_sum_by_atomics_is_refused():
    text = changed("11.6", weighted_combine.one_slot_after_another, "tl.store(", "tl.atomic_add(")
    assert "atomic_add" in verdict("11.6", text).reason


@pytest.mark.parametrize(
    "summed",
    ["tl.load(weights + t * K + k) * row", "tl.where(place >= 0, tl.load(weights + t * K + k) * row, 0.0)"],
)
def test_a_dropped_pair_reads_no_row_not_even_one_that_is_thrown_away(summed):
    text = changed("11.6", weighted_combine.one_slot_after_another, "if place >= 0:", "if place >= -1:")
    text = text.replace("y + place * D", "y + tl.maximum(place, 0) * D")
    text = text.replace("tl.load(weights + t * K + k) * row", summed)
    assert any("loads y[0], but y has 0 elements" in case.what for case in verdict("11.6", text).failures)
