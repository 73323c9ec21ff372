"""Programs of a launch run in no order: what depends on one is caught."""

import torch
import triton
import triton.language as tl

from course.kernels.checked import checked


@triton.jit
def count_by_store(bins, counts):
    bin = tl.load(bins + tl.program_id(0))
    tl.store(counts + bin, tl.load(counts + bin) + 1)


@triton.jit
def count_by_atomic(bins, counts, SEM: tl.constexpr):
    bin = tl.load(bins + tl.program_id(0))
    tl.atomic_add(counts + bin, 1, sem=SEM)


@triton.jit
def all_store_one(out):
    tl.store(out, 1.0)


@triton.jit
def read_the_neighbour(x, step):
    i = tl.program_id(0)
    tl.store(x + i, tl.load(x + (i + step) % tl.num_programs(0)))


@triton.jit
def double_in_place(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def count_then_read(counts, out):
    tl.atomic_add(counts, 1, sem="relaxed")
    tl.store(out + tl.program_id(0), tl.load(counts))


@triton.jit
def zero_then_count(counts):
    tl.store(counts, 0)
    tl.atomic_add(counts, 1, sem="relaxed")


@triton.jit
def add_under_a_lock(lock, total, RELEASES: tl.constexpr):
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(total, tl.load(total) + 1)
    if RELEASES:
        tl.atomic_xchg(lock, 0)
    else:
        tl.atomic_xchg(lock, 0, sem="relaxed")


@triton.jit
def the_last_one_adds_up(parts, arrived, out, N: tl.constexpr):
    tl.store(parts + tl.program_id(0), 1.0)
    if tl.atomic_add(arrived, 1) == tl.num_programs(0) - 1:
        tl.store(out, tl.sum(tl.load(parts + tl.arange(0, N))))


@triton.jit
def everyone_adds_up(parts, arrived, out, N: tl.constexpr):
    tl.atomic_add(arrived, 1)
    tl.store(parts + tl.program_id(0), 1.0)
    if tl.program_id(0) == N - 1:
        tl.store(out, tl.sum(tl.load(parts + tl.arange(0, N))))


@triton.jit
def halve_the_index(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i // 2, tl.load(x + i))


@triton.jit
def bytes_of_words(words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(words.to(tl.pointer_type(tl.int8)) + i, 1)


def histogram() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0, 2, 2, 1]), torch.zeros(3, dtype=torch.int32)


def test_a_histogram_without_atomics_is_caught(in_child):
    said = in_child(lambda: count_by_store[(4,)](*histogram()))
    assert said == (
        "count_by_store, program 2: loads counts[2], which program 1 stores in the same launch; "
        "programs run in no fixed order, so what they share needs atomics"
    )


def test_a_histogram_with_atomics_passes_and_counts_right():
    for sem in ("relaxed", "acq_rel"):
        bins, counts = histogram()
        with checked():
            count_by_atomic[(4,)](bins, counts, SEM=sem)
        assert counts.tolist() == [1, 1, 2]


def test_two_programs_that_store_one_element_are_caught_even_with_one_value(in_child):
    said = in_child(lambda: all_store_one[(2,)](torch.zeros(1)))
    assert said == (
        "all_store_one, program 1: stores out[0], which program 0 stores in the same launch; "
        "give each program elements of its own, or use an atomic"
    )
    assert in_child(lambda: all_store_one[(1,)](torch.zeros(1))) == "passed"


def test_a_read_races_with_a_store_before_it_and_after_it(in_child):
    forward = in_child(lambda: read_the_neighbour[(4,)](torch.zeros(4), 1))
    assert "program 1: stores x[1], which program 0 loads" in forward
    backward = in_child(lambda: read_the_neighbour[(4,)](torch.zeros(4), 3))
    assert "program 1: loads x[0], which program 0 stores" in backward
    assert in_child(lambda: read_the_neighbour[(4,)](torch.zeros(4), 0)) == "passed"


def test_work_in_place_passes_where_programs_keep_apart(in_child):
    x = torch.arange(10.0)
    with checked():
        double_in_place[(3,)](x, x, 10, BLOCK=4)
    assert x.tolist() == [2.0 * i for i in range(10)]
    assert "which program 0 loads" in in_child(lambda: double_in_place[(3,)](x[1:], x[:9], 9, BLOCK=4))


def test_a_plain_read_of_what_others_add_to_is_caught(in_child):
    said = in_child(lambda: count_then_read[(3,)](torch.zeros(1, dtype=torch.int32), torch.zeros(3)))
    assert "program 1: updates by an atomic counts[0], which program 0 loads" in said


def test_a_plain_store_beside_atomics_is_caught(in_child):
    said = in_child(lambda: zero_then_count[(2,)](torch.zeros(1, dtype=torch.int32)))
    assert "program 1: stores counts[0], which program 0 stores" in said


def test_a_lock_puts_programs_in_order(in_child):
    lock, total = torch.zeros(2, dtype=torch.int32).split(1)
    with checked():
        add_under_a_lock[(5,)](lock, total, RELEASES=True)
    assert total.item() == 5


def test_a_lock_that_is_given_back_without_release_orders_nothing(in_child):
    lock, total = torch.zeros(2, dtype=torch.int32).split(1)
    assert "which program 0 stores" in in_child(lambda: add_under_a_lock[(5,)](lock, total, RELEASES=False))


def test_the_last_program_to_arrive_may_read_what_the_others_wrote(in_child):
    out = torch.zeros(1)
    with checked():
        the_last_one_adds_up[(8,)](torch.zeros(8), torch.zeros(1, dtype=torch.int32), out, N=8)
    assert out.item() == 8


def test_arriving_before_the_work_orders_nothing(in_child):
    said = in_child(
        lambda: everyone_adds_up[(8,)](torch.zeros(8), torch.zeros(1, dtype=torch.int32), torch.zeros(1), N=8)
    )
    assert "program 7: loads parts[0], which program 0 stores" in said


def test_two_lanes_that_store_different_values_to_one_element_are_caught(in_child):
    said = in_child(lambda: halve_the_index[(1,)](torch.arange(8.0), torch.zeros(4), BLOCK=8))
    assert "stores out[0] twice in one tl.store, with different values" in said
    assert in_child(lambda: halve_the_index[(1,)](torch.ones(8), torch.zeros(4), BLOCK=8)) == "passed"


def test_programs_may_share_a_word_whose_bytes_they_keep_apart(in_child):
    words = torch.zeros(4, dtype=torch.int32)
    with checked():
        bytes_of_words[(8,)](words, BLOCK=2)
    assert words.tolist() == [0x01010101] * 4


def test_the_next_launch_may_read_what_this_one_wrote():
    x = torch.zeros(4)
    with checked():
        all_store_one[(1,)](x)
        all_store_one[(1,)](x)
        read_the_neighbour[(1,)](x, 0)
    assert x.tolist() == [1, 0, 0, 0]
