"""Absorbed latent attention in decoding, the kernels: equal to float64 and to the model, however the cache is split; on sm_90
tensor cores of four warps for 64 heads, of one for 16, and no spills."""

import math

import pytest
import torch

from course.kernels import mla_decode as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.mla_decode import mla_decode, mla_decode_torch
from course.kernels.planned import launches_of
from course.model.config import ModelConfig
from course.model.latent_attention import LatentAttention

from kernel_measures import DTYPES, STEP, bytes_each, drawn, relative_error  # isort: skip

# sequences, heads, room in the cache, latent, rope
SHAPES = [(1, 1, 1, 16, 16), (2, 5, 70, 32, 16), (1, 16, 64, 16, 16), (3, 3, 150, 64, 32), (1, 70, 65, 16, 16)]


def inputs(shape, dtype=torch.float32, seed=0):
    B, H, N, R, P = shape
    return drawn((B, H, R), dtype, seed), drawn((B, H, P), dtype, seed + 1), drawn((B, N, R + P), dtype, seed + 2)


def twin(q_latent, q_rope, cache, scale, lengths=None):
    return mla_decode_torch(q_latent.double(), q_rope.double(), cache.double(), scale, lengths)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype):
    for shape in SHAPES:
        given = inputs(shape, dtype)
        scale = (shape[3] + shape[4]) ** -0.5
        with checked():
            mix, lse = mla_decode(*given, scale, splits=2)
        exact, exact_lse = twin(*given, scale)
        assert (mix.shape, mix.dtype, lse.dtype) == (exact.shape, dtype, torch.float32)
        assert relative_error(mix, exact) <= 2 * STEP[dtype] + 1e-6, shape  # twice: the weights are rounded as well
        assert relative_error(lse, exact_lse) < 1e-6, shape


def test_it_equals_the_models_absorbed_form_at_the_scale_of_keys_that_were_never_made():
    torch.manual_seed(0)
    config = ModelConfig.preset("tiny-deepseek-v3")
    layer, H = LatentAttention(config), config.heads
    nope, rope, latent = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
    q_nope, q_rope = drawn((2, H, 1, nope)), drawn((2, H, 1, rope), seed=1)
    rows = drawn((2, 37, latent + rope), seed=2)
    key_HOR, value_HVR = layer.kv_up.weight.unflatten(0, (H, -1)).split([nope, config.v_head_dim], dim=1)
    with torch.no_grad(), checked():
        mix, _ = mla_decode((q_nope @ key_HOR)[:, :, 0], q_rope[:, :, 0], rows, (nope + rope) ** -0.5, splits=3)
        ours = (mix[:, :, None] @ value_HVR.mT)[:, :, 0]
        theirs = layer._absorbed(q_nope, q_rope, rows, None)[:, :, 0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("splits", [1, 3, 8])
def test_each_sequence_has_its_own_length_and_what_lies_past_it_counts_for_nothing(splits):
    q_latent, q_rope, cache = inputs((6, 3, 200, 16, 16))
    lengths = torch.tensor([200, 1, 63, 64, 65, 130])
    for one, length in zip(cache, lengths.tolist(), strict=True):
        one[length:] = math.nan
    with checked():
        mix, lse = mla_decode(q_latent, q_rope, cache, 0.2, lengths, splits)
    exact, exact_lse = twin(q_latent, q_rope, cache.nan_to_num(), 0.2, lengths)
    assert relative_error(mix, exact) < 1e-6
    assert relative_error(lse, exact_lse) < 1e-6


def test_a_sequence_of_no_positions_gives_0_and_a_length_that_cannot_be_gives_nan():
    given = inputs((5, 2, 20, 16, 16))
    with checked():
        mix, lse = mla_decode(*given, 0.2, torch.tensor([0, 20, 21, -1, 2**40]), 2)
    assert (mix[0] == 0).all()
    assert (lse[0] == -math.inf).all()
    assert mix[1].isfinite().all()
    assert mix[2:].isnan().all()
    assert lse[2:].isnan().all()


def test_nothing_cached_and_nobody_who_asks():
    with checked() as log:
        assert mla_decode(*inputs((0, 2, 20, 16, 16)), 0.2)[0].shape == (0, 2, 16)
        assert not log.launches
        mix, lse = mla_decode(*inputs((2, 2, 0, 16, 16)), 0.2)
    assert (mix == 0).all()
    assert (lse == -math.inf).all()


def test_one_span_or_many_give_the_same_and_the_same_bits_each_time():
    given = inputs((2, 4, 300, 32, 16))
    lengths = torch.tensor([290, 3])
    with checked() as log:
        results = [mla_decode(*given, 0.2, lengths, splits) for splits in (1, 2, 5, 5, 40)]
    for mix, lse in results[1:]:
        torch.testing.assert_close(mix, results[0][0])
        torch.testing.assert_close(lse, results[0][1])
    assert torch.equal(results[2][0], results[3][0])
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}


def test_blocks_of_heads_do_not_change_the_result():
    given = inputs((1, 33, 40, 16, 16))
    with checked():
        first, *others = (mla_decode(*given, 0.2, heads=heads)[0] for heads in (16, 32, 64))
    for other in others:
        torch.testing.assert_close(first, other)


def test_spans_of_very_different_weight_are_combined_without_overflow():
    q_latent, q_rope, cache = inputs((1, 2, 256, 16, 16))
    cache[:, 64:128] *= 1e3
    with checked():
        mix, lse = mla_decode(q_latent, q_rope, cache, 1.0, splits=4)
    exact, exact_lse = twin(q_latent, q_rope, cache, 1.0)
    assert relative_error(mix, exact) < 1e-4
    assert relative_error(lse, exact_lse) < 1e-6


def test_bfloat16_drifts_neither_up_nor_down():
    q_latent, q_rope, cache = inputs((4, 16, 130, 128, 16), torch.bfloat16)
    with checked():
        mix, _ = mla_decode(q_latent, q_rope, cache.abs(), 0.02, splits=2)
    exact, _ = twin(q_latent, q_rope, cache.abs(), 0.02)
    error = (mix.double() - exact) / exact / STEP[torch.bfloat16]
    assert error.abs().max() < 2
    assert error.mean().abs() < 0.03


def test_queries_and_cache_are_read_where_they_lie():
    q = drawn((3, 2, 48)).transpose(0, 1)
    cache = drawn((4, 50, 60), seed=1)[::2, 3:, :48]
    with checked():
        mix, _ = mla_decode(q[..., :32], q[..., 32:], cache, 0.2)
    assert relative_error(mix, twin(q[..., :32], q[..., 32:], cache, 0.2)[0]) < 1e-6


def test_a_row_of_the_cache_is_read_once_for_each_block_of_heads_and_none_past_the_length():
    given = inputs((2, 32, 200, 32, 16), torch.bfloat16)
    lengths = torch.tensor([130, 0])
    with checked() as log:
        mla_decode(*given, 0.2, lengths, splits=3, heads=16)
    decode, combine = log.launches
    q_bytes, row = given[0].nbytes + given[1].nbytes, 48 * 2
    assert decode.grid == (2, 3, 2)
    assert decode.load_bytes == 3 * q_bytes + 2 * 130 * row + 12 * 8
    assert decode.store_bytes == 32 * 3 * 32 * 4 + 2 * 32 * 3 * 4  # an empty span writes its log alone
    assert combine.load_bytes == 32 * 3 * 32 * 4 + 2 * (2 * 32 * 3 * 4) + 64 * 8
    assert combine.store_bytes == 2 * 32 * (32 * 2 + 4)


def test_there_are_as_many_splits_as_fill_a_chip_and_no_more_than_blocks_of_keys():
    for B, H, N, splits in (
        (1, 128, 4096, 64),
        (1, 128, 65536, 132),
        (128, 128, 4096, 1),
        (8, 16, 4096, 33),
        (1, 1, 1, 1),
    ):
        shapes = (B, H, 512), (B, H, 64), (B, N, 576)
        given = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
        assert launches_of(lambda given=given: mla_decode(*given, 0.1))[0].grid[1] == splits


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    given, lengths = inputs((2, 128, 1024, 512, 64), torch.bfloat16), torch.tensor([1024, 1000])
    both = bytes_each(mla_decode_torch, *given, 0.1, lengths, elements=2 * 1024 * 576)
    queries = 5 * 2 * 128 * 576 * 2 / (2 * 1024 * 576)  # put together, read, and the mix: small where the cache is long
    assert both - queries == pytest.approx(13.6, rel=0.03)


def test_64_heads_use_products_of_four_warps_and_16_fall_back_to_those_of_one():
    def launches(heads, batch, dtype=torch.bfloat16):
        shapes = (batch, heads, 512), (batch, heads, 64), (batch, 4096, 576)
        lengths = torch.empty(batch, dtype=torch.int64, device="meta")
        given = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        return launches_of(lambda: mla_decode(*given, 192**-0.5, lengths))

    many, few = launches(128, 128), launches(16, 128)
    wide, _, narrow, _ = made = compile_all(file.__file__, many + few, code=True)
    for compiled in (*made, *compile_all(file.__file__, launches(128, 4, torch.float32))):
        assert (compiled.error, compiled.spills) == (None, 0)
    assert "HGMMA.64x256x16.F32.BF16" in wide.code["sass"]
    assert " HMMA" not in wide.code["sass"]
    assert "serialized" not in wide.code["ptxas"]
    assert "HMMA.16816.F32.BF16" in narrow.code["sass"]
    assert "HGMMA" not in narrow.code["sass"]


def test_one_query_of_one_head_compiles_too():
    for made in compile_all(file.__file__, launches_of(lambda: mla_decode(*inputs(SHAPES[0], torch.bfloat16), 0.1))):
        assert (made.error, made.spills) == (None, 0)


def test_wrong_inputs_get_a_sentence():
    q, rope, cache = inputs((2, 4, 10, 32, 16))
    for call, said in (
        (lambda: mla_decode(q, rope[:, :3], cache, 1.0), "do not fit a cache of shape"),
        (lambda: mla_decode(q, rope, cache[..., 1:], 1.0), "do not fit a cache of shape"),
        (lambda: mla_decode(q, rope, cache[0], 1.0), "do not fit a cache of shape"),
        (lambda: mla_decode(q.half(), rope, cache, 1.0), "queries and cache are of one dtype"),
        (lambda: mla_decode(q.double(), rope, cache, 1.0), "takes float32, bfloat16 and float16"),
        (lambda: mla_decode(q[..., :24], rope, cache[..., :40], 1.0), "powers of two from 16 up, not 24 and 16"),
        (lambda: mla_decode(q, rope, cache, 1.0, torch.tensor([1, 2, 3])), r"lengths are 2 int64, not of shape \[3\]"),
        (lambda: mla_decode(q, rope, cache, 1.0, torch.tensor([1, 2]).int()), r"and torch\.int32"),
        (lambda: mla_decode(q, rope, cache, 1.0, heads=8), "a program takes 16, 32 or 64 heads, not 8"),
        (lambda: mla_decode(q, rope, cache, 1.0, splits=0), "one span or more, not 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
