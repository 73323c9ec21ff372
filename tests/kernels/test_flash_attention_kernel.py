"""Attention by blocks, the kernel: equal to float64, no matrix of scores, tensor cores and no spills on sm_90."""

import math

import pytest
import torch

from course.kernels import flash_attention as file
from course.kernels.checked import checked
from course.kernels.flash_attention import flash_attention, flash_attention_torch, parts
from course.kernels.machine import compile_all, compile_for
from course.kernels.planned import launches_of

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error  # isort: skip

BLOCK = (16, 16)
# batch, query heads, key heads, queries, keys, features of a key, of a value
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 1, 17, 17, 24, 16),
    (1, 4, 2, 5, 37, 192, 128),  # a cached prefix; widths of MLA
    (1, 3, 3, 1, 50, 40, 20),
    (2, 2, 2, 33, 33, 16, 30),
    (1, 6, 2, 16, 32, 32, 64),
]


def inputs(shape, dtype=torch.float32, seed=0):
    B, H, G, S, N, C, V = shape
    return drawn((B, H, S, C), dtype, seed), drawn((B, G, N, C), dtype, seed + 1), drawn((B, G, N, V), dtype, seed + 2)


def twin(q, k, v, scale, causal=True):
    return flash_attention_torch(q.double(), k.double(), v.double(), scale, causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype, causal):
    for shape in SHAPES:
        q, k, v = inputs(shape, dtype)
        scale = shape[5] ** -0.5
        with checked():
            out, lse = flash_attention(q, k, v, scale, causal, BLOCK)
        exact, exact_lse = twin(q, k, v, scale, causal)
        assert (out.shape, out.dtype, lse.dtype) == (exact.shape, dtype, torch.float32)
        # twice: the weights are rounded as well
        assert relative_error(out, exact) <= 2 * STEP[dtype] + 1e-6, shape
        assert relative_error(lse, exact_lse) < 1e-6, shape


def test_the_twin_equals_what_pytorch_has():
    q, k, v = inputs((2, 4, 2, 9, 9, 16, 16))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(flash_attention_torch(q, k, v, 0.3)[0], theirs)


def test_without_queries_or_without_keys_nothing_is_mixed():
    with checked() as log:
        out, lse = flash_attention(*inputs((2, 2, 1, 0, 7, 16, 16)), 1.0)
        assert (out.shape, lse.shape) == ((2, 2, 0, 16), (2, 2, 0))
        assert flash_attention(*inputs((0, 2, 1, 3, 7, 16, 16)), 1.0)[0].shape == (0, 2, 3, 16)
        assert not log.launches
        out, lse = flash_attention(*inputs((1, 2, 1, 3, 0, 16, 16)), 1.0, causal=False)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_the_queries_are_the_last_positions_in_pieces_as_at_once():
    q, k, v = inputs((1, 2, 1, 40, 40, 16, 16))
    with checked():
        whole, lse = flash_attention(q, k, v, 0.25, block=BLOCK)
        for begin, end in ((0, 7), (7, 8), (8, 40)):
            piece, its = flash_attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], 0.25, block=BLOCK)
            torch.testing.assert_close(piece, whole[:, :, begin:end])
            torch.testing.assert_close(its, lse[:, :, begin:end])


def test_a_later_key_changes_nothing_whatever_it_holds():
    q, k, v = inputs((1, 1, 1, 20, 20, 16, 16))
    with checked():
        before, _ = flash_attention(q, k, v, 0.25, block=BLOCK)
        k[:, :, 11:], v[:, :, 11:] = 1e30, -1e30
        after, _ = flash_attention(q, k, v, 0.25, block=BLOCK)
    assert torch.equal(before[:, :, :11], after[:, :, :11])


def test_large_scores_neither_overflow_nor_vanish_and_the_largest_may_come_last():
    q, k, v = inputs((1, 1, 1, 8, 64, 16, 16))
    k = k * torch.linspace(0, 300, 64)[:, None]
    with checked():
        for scale in (3.0, -3.0, 0.0):
            out, lse = flash_attention(q, k, v, scale, block=BLOCK)
            exact, exact_lse = twin(q, k, v, scale)
            assert relative_error(lse, exact_lse) < 1e-6
            assert (
                relative_error(out, exact) < 1e-4
            )  # of scores of thousands, float32 keeps four digits behind the point


def test_bfloat16_drifts_neither_up_nor_down():
    q, k, v = inputs((1, 2, 2, 64, 64, 32, 128), torch.bfloat16)
    with checked():
        out, _ = flash_attention(q, k, v.abs(), 0.2, block=(64, 32))
    exact, _ = twin(q, k, v.abs(), 0.2)
    error = (out.double() - exact) / exact / STEP[torch.bfloat16]
    assert error.abs().max() < 2
    assert error.mean().abs() < 0.03


def test_tensors_are_read_where_they_lie():
    def lies(B, S, H, D, seed):
        return drawn((B, S, H, D + 5), seed=seed)[..., :D].transpose(1, 2)

    q, k, v = lies(2, 9, 4, 16, 0), lies(2, 9, 2, 16, 1), lies(2, 9, 2, 8, 2)
    shared = drawn((2, 1, 9, 16), seed=3).expand(2, 2, 9, 16)
    for q_its, k_its, v_its in ((q, k, v), (q, shared, v), (q, k, v.mT.contiguous().mT)):
        with checked():
            out, _ = flash_attention(q_its, k_its, v_its, 0.25, block=BLOCK)
        assert out.is_contiguous()
        assert relative_error(out, twin(q_its, k_its, v_its, 0.25)[0]) < 1e-6


def test_keys_are_read_once_for_each_block_of_queries_and_later_blocks_of_keys_not_at_all():
    q, k, v = inputs((1, 2, 1, 64, 64, 48, 32), torch.bfloat16)
    with checked() as log:
        flash_attention(q, k, v, 0.2, block=BLOCK)
        flash_attention(q, k, v, 0.2, causal=False, block=BLOCK)
    causal, full = log.launches
    block_of_keys = 16 * (48 + 32) * 2
    assert causal.load_bytes == q.nbytes + 2 * (1 + 2 + 3 + 4) * block_of_keys
    assert full.load_bytes == q.nbytes + 2 * 4 * 4 * block_of_keys
    assert causal.store_bytes == full.store_bytes == 2 * 64 * (32 * 2 + 4)
    assert causal.grid == (8,)


def test_a_width_is_read_in_two_parts_without_waste_for_mla():
    assert [parts(width) for width in (192, 128, 256, 64, 576 // 3, 96, 1, 16, 17, 100, 80)] == [
        (128, 64), (128, 0), (256, 0), (64, 0), (128, 64), (64, 32), (16, 0), (16, 0), (16, 16), (64, 64), (64, 16),
    ]  # fmt: skip


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype, each in ((torch.bfloat16, 44), (torch.float32, 36)):
        q, k, v = inputs((1, 16, 16, 512, 512, 4, 4), dtype)
        assert bytes_each(flash_attention_torch, q, k, v, 0.5, elements=16 * 512**2) == pytest.approx(each, rel=0.03)


def test_on_hopper_every_product_is_one_of_four_warps_and_nothing_spills():
    q, k, v = (torch.empty(1, 128, 4096, width, dtype=torch.bfloat16, device="meta") for width in (192, 192, 128))
    (launch,) = launches_of(lambda: flash_attention(q, k, v, 192**-0.5))
    made = compile_for(file.__file__, launch, code=True)
    assert (made.error, made.spills) == (None, 0)
    sass = made.code["sass"]
    # 192 features in steps of 16, and 64 keys in steps of 16: in the loop that asks who sees what, and in the one that does not
    assert sass.count("HGMMA.64x64x16.F32.BF16") == 2 * 192 // 16
    assert sass.count("HGMMA.64x128x16.F32.BF16") == 2 * 64 // 16
    assert " HMMA" not in sass
    assert "serialized" not in made.code["ptxas"]


def test_float32_and_one_query_and_odd_widths_compile_without_spills_too():
    large = [torch.empty(1, 128, 4096, width, device="meta") for width in (192, 192, 128)]
    launches = launches_of(lambda: flash_attention(*large, 192**-0.5))
    launches += launches_of(lambda: flash_attention(*inputs((1, 2, 1, 1, 33, 33, 7), torch.bfloat16), 0.1))
    launches += launches_of(lambda: flash_attention(*inputs((1, 1, 1, 1, 1, 1, 1), torch.float16), 0.1, causal=False))
    for made in compile_all(file.__file__, launches):
        assert (made.error, made.spills) == (None, 0)


def test_wrong_inputs_get_a_sentence():
    q, k, v = inputs((1, 4, 2, 5, 5, 16, 8))
    for call, said in (
        (lambda: flash_attention(q[:, :3], k, v, 1.0), "3 query heads do not share 2 key heads evenly"),
        (lambda: flash_attention(q, k[:, :0], v[:, :0], 1.0), "4 query heads do not share 0 key heads evenly"),
        (lambda: flash_attention(q, k[..., :8], v, 1.0), "do not fit each other"),
        (lambda: flash_attention(q, k, v[:, :, :4], 1.0), "do not fit each other"),
        (lambda: flash_attention(q[0], k, v, 1.0), "do not fit each other"),
        (lambda: flash_attention(q, k[:, :, :4], v[:, :, :4], 1.0), "5 queries cannot be the last of 4 positions"),
        (lambda: flash_attention(q.half(), k, v, 1.0), "queries, keys and values are of one dtype"),
        (lambda: flash_attention(q.double(), k, v, 1.0), "takes float32, bfloat16 and float16"),
        (lambda: flash_attention(q, k, v, 1.0, block=(8, 16)), "powers of two from 16 up"),
        (lambda: flash_attention(*inputs((1, 1, 1, 1, 1, 300, 8)), 1.0), "1 to 256 features of a key and of a value"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
