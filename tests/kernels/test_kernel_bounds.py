"""Accesses outside what a kernel was given are caught, wherever they land."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.tools.tensor_descriptor import TensorDescriptor

from course.kernels.checked import KernelFault, checked


@triton.jit
def read_at(x, out, offset):
    tl.store(out, tl.load(x + offset))


@triton.jit
def write_at(x, offset):
    tl.store(x + offset, 1.0)


@triton.jit
def add_at(x, offset):
    tl.atomic_add(x + offset, 1.0)


@triton.jit
def unmasked_copy(x, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def masked_copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def copy_where_both(x, wanted, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    both = (i < n) & (tl.load(wanted) > 0)
    tl.store(out + i, tl.load(x + i, mask=both, other=0.0), mask=both)


@triton.jit
def fetch(x, i):
    return tl.load(x + i)


@triton.jit
def read_in_a_function(x, out, i):
    tl.store(out, fetch(x, i))


@triton.jit
def read_by_rows(x, out, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(out + r * COLUMNS + c, tl.load(x + r * stride + c))


@triton.jit
def pick(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    source = tl.where(i % 2 == 0, x + i, y + i)
    tl.store(out + i, tl.load(source))


@triton.jit
def through_integers(x, out, offset):
    address = x.to(tl.int64) + 4 * offset
    tl.store(out, tl.load(address.to(tl.pointer_type(tl.float32))))


@triton.jit
def from_a_number(out):
    address = tl.full((), 4096, tl.int64)
    tl.store(out, tl.load(address.to(tl.pointer_type(tl.float32))))


@triton.jit
def copy_tile(source, target, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = [tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS]
    target.store(at, source.load(at))


@triton.jit
def read_a_made_descriptor(x, out, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tile = tl.make_tensor_descriptor(x, [M, N], [N, 1], [ROWS, COLUMNS])
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(out + r * COLUMNS + c, tile.load([0, 0]))


FAR = {"one": 1000, "64": 1063, "4096": 5095, "a million": 1_000_999, "two billion": 2**31 - 1}


@pytest.mark.parametrize("offset", FAR.values(), ids=FAR.keys())
def test_a_load_past_the_end_is_caught_however_far_it_goes(in_child, offset):
    said = in_child(lambda: read_at[(1,)](torch.zeros(1000), torch.zeros(1), offset))
    assert (
        said == f"read_at, program 0: loads x[{offset}], but x has 1000 elements; is a mask missing, or a stride wrong?"
    )


@pytest.mark.parametrize("offset", FAR.values(), ids=FAR.keys())
def test_a_store_past_the_end_is_caught_however_far_it_goes(in_child, offset):
    said = in_child(lambda: write_at[(1,)](torch.zeros(1000), offset))
    assert (
        said
        == f"write_at, program 0: stores x[{offset}], but x has 1000 elements; is a mask missing, or a stride wrong?"
    )


@pytest.mark.parametrize("kernel", [write_at, add_at], ids=["store", "atomic"])
@pytest.mark.parametrize("offset", [-1, -64, -4096, -1_000_000])
def test_a_write_before_the_first_element_is_caught(in_child, kernel, offset):
    said = in_child(lambda: kernel[(1,)](torch.zeros(1000), offset))
    assert f"x[{offset}], but x has 1000 elements; is an offset wrong?" in said


def test_the_sentence_names_the_program_of_a_grid_of_two_dimensions_and_the_shape(in_child):
    x = torch.zeros(10, 100)
    said = in_child(lambda: unmasked_copy[(4, 1)](x, torch.zeros(1024), BLOCK=256))
    assert said == (
        "unmasked_copy, program (3, 0): loads x[1000], but x has 1000 elements (shape [10, 100]); is a mask missing, or a stride wrong?"
    )


def test_masked_off_lanes_may_point_anywhere(in_child):
    assert in_child(lambda: masked_copy[(1,)](torch.zeros(3), torch.zeros(3), 3, BLOCK=1 << 16)) == "passed"


def test_an_empty_tensor_has_no_element_to_load(in_child):
    said = in_child(lambda: read_at[(1,)](torch.zeros(0), torch.zeros(1), 0))
    assert "loads x[0], but x has 0 elements" in said


def test_a_fault_inside_a_called_function_is_the_kernel_s(in_child):
    said = in_child(lambda: read_in_a_function[(1,)](torch.zeros(8), torch.zeros(1), 8))
    assert said.startswith("read_in_a_function, program 0: loads x[8], but x has 8 elements")


def test_a_neighbouring_argument_s_memory_is_out_of_bounds(in_child):
    both = torch.arange(16.0)
    said = in_child(lambda: read_at[(1,)](both[:8], both[8:], 8))
    assert "loads x[8], but x has 8 elements" in said


def test_padding_between_the_rows_of_a_view_is_out_of_bounds(in_child):
    view = torch.zeros(4, 16)[:, :8]
    said = in_child(lambda: read_by_rows[(1,)](view, torch.zeros(4, 16), 16, ROWS=4, COLUMNS=16))
    assert "loads the element 8 places from x's first, which is not one of x" in said
    assert "shape is [4, 8], its strides are [16, 1]" in said


def test_the_elements_of_a_view_are_in_bounds():
    base = torch.arange(64.0).reshape(4, 16)
    out = torch.zeros(4, 8)
    with checked() as log:
        read_by_rows[(1,)](base[:, :8], out, 16, ROWS=4, COLUMNS=8)
    assert torch.equal(out, base[:, :8])
    assert log.launches[0].accesses[0].elements.tolist() == list(range(32))


def test_a_transposed_view_is_indexed_by_its_own_rows():
    with checked() as log:
        read_at[(1,)](torch.arange(6.0).reshape(2, 3).T, torch.zeros(1), 1)
    assert log.launches[0].accesses[0].elements.tolist() == [2]


def test_one_element_past_the_last_row_of_a_view_is_out_of_bounds(in_child):
    view = torch.zeros(4, 16)[:, 8:]
    assert in_child(lambda: read_at[(1,)](view, torch.zeros(1), 55)) == "passed"
    assert "the element 56 places" in in_child(lambda: read_at[(1,)](view, torch.zeros(1), 56))
    assert "the element -1 places" in in_child(lambda: read_at[(1,)](view, torch.zeros(1), -1))


def test_pointers_of_two_tensors_may_stand_in_one_block(in_child):
    x, y, out = torch.arange(8.0), -torch.arange(8.0), torch.zeros(8)
    with checked():
        pick[(1,)](x, y, out, BLOCK=8)
    assert out.tolist() == [0, -1, 2, -3, 4, -5, 6, -7]
    assert "loads y[7], but y has 7 elements" in in_child(lambda: pick[(1,)](x, y[:7], out, BLOCK=8))


def test_a_pointer_that_went_through_integers_is_still_bound_to_its_tensor(in_child):
    x, out = torch.arange(8.0), torch.zeros(1)
    with checked():
        through_integers[(1,)](x, out, 5)
    assert out.item() == 5
    assert "loads x[8], but x has 8 elements" in in_child(lambda: through_integers[(1,)](x, out, 8))


def test_an_address_from_nowhere_is_caught(in_child):
    said = in_child(lambda: from_a_number[(1,)](torch.zeros(1)))
    assert said == "from_a_number, program 0: loads an address that comes from no tensor of the launch"


def test_a_descriptor_pads_and_clips_at_its_shape():
    x, out = torch.arange(60.0).reshape(5, 12), torch.full((5, 12), -1.0)
    with checked() as log:
        source, target = (TensorDescriptor.from_tensor(t, [4, 8]) for t in (x, out))
        copy_tile[(2, 2)](source, target, ROWS=4, COLUMNS=8)
    assert torch.equal(out, x)
    assert (log.launches[0].loads, log.launches[0].stores) == (60, 60)


def test_a_descriptor_made_larger_than_its_tensor_is_caught(in_child):
    x, out = torch.zeros(4, 8), torch.zeros(8, 8)
    assert in_child(lambda: read_a_made_descriptor[(1,)](x, out, 4, 8, ROWS=8, COLUMNS=8)) == "passed"
    said = in_child(lambda: read_a_made_descriptor[(1,)](x, out, 5, 8, ROWS=8, COLUMNS=8))
    assert "loads x[32], but x has 32 elements (shape [4, 8])" in said


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=3), st.integers(-3, 60), st.data()
)
def test_in_bounds_are_the_elements_of_the_view_and_no_others(sizes_and_strides, offset, data):
    sizes, strides = zip(*sizes_and_strides, strict=True)
    view = torch.arange(200.0).as_strided(sizes, strides, data.draw(st.integers(3, 9)))
    places = {0} if view.numel() else set()
    for size, stride in sizes_and_strides:
        places = {place + i * stride for place in places for i in range(size)}
    out = torch.zeros(1)
    with checked():
        if offset in places:
            read_at[(1,)](view, out, offset)
            assert out.item() == view.storage_offset() + offset
        else:
            with pytest.raises(KernelFault):
                read_at[(1,)](view, out, offset)


def test_a_mask_may_be_a_block_and_a_scalar():
    x, yes, no = torch.arange(1.0, 9.0), torch.tensor(1), torch.tensor(0)
    for n, wanted, copied in ((8, yes, 8), (5, yes, 5), (1, yes, 1), (5, no, 0)):
        out = torch.zeros(8)
        with checked() as log:
            copy_where_both[(1,)](x, wanted, out, n, BLOCK=8)
        assert out.tolist() == x[:copied].tolist() + [0.0] * (8 - copied)
        assert log.launches[0].store_bytes == 4 * copied
    with pytest.raises(KernelFault, match="8"), checked():
        copy_where_both[(1,)](x, yes, torch.zeros(16), 9, BLOCK=16)
