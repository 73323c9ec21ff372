"""Index scores, the kernel: equal to float64 and to the model, no score of a single head in memory, tensor cores on sm_90."""

import math
from dataclasses import replace

import pytest
import torch

from course.kernels import indexer as file
from course.kernels.checked import checked
from course.kernels.indexer import indexer, indexer_torch
from course.kernels.machine import compile_all, compile_for
from course.kernels.planned import launches_of
from course.model import Indexer, ModelConfig, rope_table

from kernel_measures import DTYPES, bytes_each, drawn, relative_error  # isort: skip

BLOCK = (16, 16)
# batch, heads, queries, keys, features
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 17, 17, 24),
    (1, 4, 5, 37, 128),
    (2, 2, 1, 50, 16),
    (1, 5, 33, 34, 20),
    (1, 64, 2, 40, 32),
]


def inputs(shape, dtype=torch.float32, seed=0):
    B, H, S, N, C = shape
    return drawn((B, H, S, C), dtype, seed), drawn((B, N, C), dtype, seed + 1), drawn((B, S, H), dtype, seed + 2)


def by_hand(q, k, weight, causal=True):
    """The report's equation 1, score by score."""
    (B, H, S, _), N = q.shape, k.shape[1]
    scores = torch.full((B, S, N), -math.inf, dtype=torch.float64)
    for b in range(B):
        for s in range(S):
            for n in range(s + N - S + 1 if causal else N):
                scores[b, s, n] = sum(weight[b, s, h] * torch.relu(q[b, h, s] @ k[b, n]) for h in range(H))
    return scores


def near(got, exact) -> bool:
    """Equal where it is minus infinity, and elsewhere by the norm."""
    seen = exact > -math.inf
    return bool((got[~seen] == -math.inf).all()) and relative_error(got[seen], exact[seen]) < 1e-6


def test_the_twin_is_the_reports_equation():
    for causal in (True, False):
        given = [tensor.double() for tensor in inputs((2, 3, 4, 6, 8))]
        torch.testing.assert_close(indexer_torch(*given, causal), by_hand(*given, causal))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_float64_for_every_shape(dtype, causal):
    for shape in SHAPES:
        q, k, weight = inputs(shape, dtype)
        with checked():
            got = indexer(q, k, weight, causal, BLOCK)
        assert (got.shape, got.dtype) == ((shape[0], *shape[2:4]), torch.float32)
        assert near(got, indexer_torch(q.double(), k.double(), weight.double(), causal)), shape


def test_it_equals_the_models_scores_and_chooses_the_same_keys():
    config = replace(
        ModelConfig.preset("tiny-deepseek-v3"), width=32, heads=2, index_topk=3, index_heads=4, index_head_dim=24
    )
    torch.manual_seed(0)
    layer, S = Indexer(config), 20
    x_BSD, latent_BSQ = drawn((2, S, 32)), drawn((2, S, config.q_lora_rank), seed=1)
    cos, sin = rope_table(torch.arange(S), config.rope_width)
    with torch.no_grad(), checked():
        theirs = layer.scores(x_BSD, latent_BSQ, cos, sin)
        q_BHSC = layer._turned(layer.query(latent_BSQ).unflatten(-1, (4, 24)).transpose(1, 2), cos, sin)
        k_BSC = layer._turned(layer.key_norm(layer.key(x_BSD))[:, None], cos, sin)[:, 0]
        ours = indexer(q_BHSC, k_BSC, layer.weight(x_BSD) * (4 * 24) ** -0.5, block=BLOCK)
    assert near(ours, theirs.double())
    assert torch.equal(layer.choose(ours), layer.choose(theirs))


def test_the_queries_are_the_last_positions_in_pieces_as_at_once():
    q, k, weight = inputs((1, 3, 40, 40, 16))
    with checked():
        whole = indexer(q, k, weight, block=BLOCK)
        for begin, end in ((0, 7), (7, 8), (8, 40)):
            piece = indexer(q[:, :, begin:end], k[:, :end], weight[:, begin:end], block=BLOCK)
            torch.testing.assert_close(piece, whole[:, begin:end, :end])


def test_a_key_with_which_every_head_disagrees_has_the_score_0_and_a_negative_weight_counts():
    q, k, weight = torch.ones(1, 2, 1, 16), torch.ones(1, 2, 16), torch.tensor([[[1.0, -3.0]]])
    k[:, 1] = -1
    with checked():
        assert indexer(q, k, weight).tolist() == [[[-32.0, 0.0]]]


def test_nan_stays_nan_and_is_not_taken_for_disagreement():
    q, k, weight = inputs((1, 2, 4, 20, 16))
    k[0, 3] = math.nan
    with checked():
        got = indexer(q, k, weight)
    assert got.isnan().any(1)[0].nonzero().tolist() == [[3]]
    assert got[0, :, 3].isnan().all()


def test_no_queries_no_keys_or_no_heads():
    with checked() as log:
        assert indexer(*inputs((2, 3, 0, 5, 16))).shape == (2, 0, 5)
        assert indexer(*inputs((2, 3, 4, 0, 16)), causal=False).shape == (2, 4, 0)
        assert indexer(*inputs((0, 3, 4, 5, 16))).shape == (0, 4, 5)
        assert not log.launches
        assert (indexer(*inputs((1, 0, 4, 5, 16)), causal=False) == 0).all()


def test_tensors_are_read_where_they_lie():
    q = drawn((2, 9, 4, 21))[..., :16].transpose(1, 2)
    k, weight = drawn((2, 9, 30), seed=1)[..., 3:19], drawn((2, 4, 9), seed=2).mT
    with checked():
        got = indexer(q, k, weight, block=BLOCK)
    assert got.is_contiguous()
    assert near(got, indexer_torch(q.double(), k.double(), weight.double()))


def test_a_tile_reads_its_queries_of_every_head_and_its_keys_once_and_of_later_keys_no_queries_at_all():
    q, k, weight = inputs((1, 3, 64, 64, 32), torch.bfloat16)
    with checked() as log:
        indexer(q, k, weight, block=BLOCK)
        indexer(q, k, weight, causal=False, block=BLOCK)
    causal, full = log.launches
    assert full.load_bytes == 4 * (q.nbytes + weight.nbytes + k.nbytes)
    assert causal.load_bytes == (4 + 3 + 2 + 1) * (q.nbytes + weight.nbytes) // 4 + 4 * k.nbytes
    assert causal.store_bytes == full.store_bytes == 64 * 64 * 4


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    for dtype in (torch.bfloat16, torch.float32):
        given = inputs((1, 64, 256, 256, 1), dtype)
        assert bytes_each(indexer_torch, *given, elements=256**2) == pytest.approx(16 * 64 + 12, rel=0.02)


def test_on_hopper_every_product_is_one_of_four_warps_and_nothing_spills():
    def launch(S, dtype=torch.bfloat16):
        shapes = (1, 64, S, 128), (1, 8192, 128), (1, S, 64)
        given = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        return launches_of(lambda: indexer(*given))[0]

    many = compile_for(file.__file__, launch(4096), code=True)
    assert (many.error, many.spills) == (None, 0)
    assert many.code["sass"].count("HGMMA.64x128x16.F32.BF16") == 128 // 16
    assert " HMMA" not in many.code["sass"]
    assert "max.NaN.f32" in many.code["ptx"]
    tiny = launches_of(lambda: indexer(*inputs(SHAPES[0], torch.bfloat16)))
    for made in compile_all(file.__file__, [launch(1), launch(4096, torch.float32), *tiny]):
        assert (made.error, made.spills) == (None, 0)


def test_wrong_inputs_get_a_sentence():
    q, k, weight = inputs((2, 4, 5, 9, 16))
    for call, said in (
        (lambda: indexer(q[:, :3], k, weight), "do not fit each other"),
        (lambda: indexer(q, k[..., :8], weight), "do not fit each other"),
        (lambda: indexer(q, k, weight.mT), "do not fit each other"),
        (lambda: indexer(q[0], k, weight), "do not fit each other"),
        (lambda: indexer(q, k[:, :4], weight), "5 queries cannot be the last of 4 positions"),
        (lambda: indexer(q, k.half(), weight), "queries and keys are of one dtype"),
        (lambda: indexer(q, k, weight.double()), "takes float32, bfloat16 and float16"),
        (lambda: indexer(q, k, weight, block=(8, 16)), "powers of two from 16 up"),
        (lambda: indexer(*inputs((1, 1, 1, 1, 300))), "takes 1 to 256 features a head, not 300"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
