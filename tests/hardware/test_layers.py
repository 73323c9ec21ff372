"""Operations of a layer: their sums are what `course.model.count` says, and their sizes follow closed forms."""

from dataclasses import replace

import pytest

from course.hardware.layer_parts import ACTIVATION, WEIGHT, mean_seen
from course.hardware.layers import AGAIN, Batch, head_operations, layer_operations, model_operations
from course.model import PRESETS, ModelConfig, Transformer, active_parameters, train_flops_per_token
from course.model.shapes import without_numbers

V3, V32 = PRESETS["deepseek-v3"], PRESETS["deepseek-v3.2"]
TRAINING = ("forward", "backward_input", "backward_weight")


def named(operations):
    return {one.name: one for one in operations}


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize(("name", "config"), PRESETS.items(), ids=PRESETS)
def test_training_costs_what_the_model_is_counted_by(name, config, precision):
    for context in (100, 4096):
        batch = Batch(2 * context, context, precision=precision, expert_ranks=4)
        flops = sum(
            times * one.model_flops
            for phase in TRAINING
            for times, operations in model_operations(config, phase, batch)
            for one in operations
        )
        assert flops / batch.tokens == pytest.approx(train_flops_per_token(config, context), rel=1e-9)


@pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v2-lite", "kimi-k2", "mixtral-8x7b", "qwen2.5-72b"])
def test_products_hold_the_active_parameters(name):
    """All but the embedding, which is looked up, and what has one dimension: norms and biases."""
    config = PRESETS[name]
    with without_numbers():
        model = Transformer(replace(config, mtp_layers=0))
    vectors = sum(each.numel() for each in (*model.parameters(), *model.buffers()) if each.ndim == 1)
    embedding = config.vocab * config.width
    operations = [(n, one) for n, found in model_operations(config, "forward", Batch(64, 64)) for one in found]
    matrices = sum(n * one.work.flops / 128 for n, one in operations if "k" in one.shape)
    assert matrices == pytest.approx(active_parameters(config) - vectors - embedding, rel=1e-9)


def test_absorbed_attention_costs_3_4_times_the_flops_and_reads_the_latents_alone():
    batch = Batch(tokens=16, context=4096)
    absorbed = named(layer_operations(V3, 10, "decode", batch))["attention"].work
    assert absorbed.flops == 16 * 2 * 128 * (576 + 512) * 4096
    assert absorbed.bytes == 16 * (4096 * 576 * 2 + 128 * (576 + 512) * 2)
    expanded = named(layer_operations(V3, 10, "forward", Batch(4096, 4096)))["attention"].work
    a_pair = 4096 * 4097 / 2  # queries with keys
    assert (absorbed.flops / (16 * 4096)) / (expanded.flops / a_pair) == pytest.approx(3.4)


def test_two_queries_a_sequence_read_the_cache_once():
    one = named(layer_operations(V3, 10, "decode", Batch(16, 4096)))["attention"].work
    two = named(layer_operations(V3, 10, "decode", Batch(32, 4096, queries=2)))["attention"].work
    assert two.flops == 2 * one.flops
    assert two.bytes - one.bytes == 16 * 128 * (576 + 512) * 2


def test_grouped_query_decode_reads_keys_and_values_of_its_kv_heads():
    config = PRESETS["qwen3-235b-a22b"]
    work = named(layer_operations(config, 0, "decode", Batch(8, 1000)))["attention"].work
    assert work.flops == 8 * 4 * 64 * 128 * 1000
    assert work.bytes == 8 * (1000 * 2 * 4 * 128 * 2 + 2 * 64 * 128 * 2)


def test_a_prompt_in_two_pieces_costs_the_attention_of_the_whole():
    whole = named(layer_operations(V3, 10, "prefill", Batch(4096, 4096)))
    first = named(layer_operations(V3, 10, "prefill", Batch(1024, 1024)))
    second = named(layer_operations(V3, 10, "prefill", Batch(3072, 4096, cached=1024)))
    pieces = first["attention"].work.flops + second["attention"].work.flops
    assert pieces == pytest.approx(whole["attention"].work.flops)
    assert second["kv_up"].shape["m"] == 4096  # cached latents are expanded once more


@pytest.mark.parametrize(("first", "last", "most"), [(1, 9, 4), (3, 9, 4), (5, 9, 4), (1, 4, 4), (1, 9, float("inf"))])
def test_mean_seen_is_the_mean_over_positions(first, last, most):
    positions = range(first, last + 1)
    assert mean_seen(first, last, most) == pytest.approx(sum(min(p, most) for p in positions) / len(positions))


def test_sparse_attention_stops_growing_and_its_indexer_does_not():
    short, long = (named(layer_operations(V32, 10, "decode", Batch(4, n))) for n in (8192, 65_536))
    assert short["attention"].work == long["attention"].work
    assert long["attention"].work.flops == 4 * 2 * 128 * (576 + 512) * 2048
    assert long["attention"].work.bytes == 4 * (2048 * 656 + 128 * (576 + 512) * 2)
    assert long["index_scores"].work.flops == 8 * short["index_scores"].work.flops == 4 * 2 * 64 * 128 * 65_536
    few = named(layer_operations(V32, 10, "decode", Batch(4, 1024)))["attention"]
    assert few.work.flops == long["attention"].work.flops  # a kernel for 2,048 keys does not stop at 1,024
    assert few.model_flops == few.work.flops / 2


def test_sparse_prefill_is_absorbed_once_the_context_exceeds_the_choice():
    assert "kv_up" in named(layer_operations(V32, 10, "prefill", Batch(2048, 2048)))
    long = named(layer_operations(V32, 10, "prefill", Batch(4096, 4096)))
    assert "kv_up" not in long
    assert {"query_absorb", "value_absorb", "index_scores"} <= set(long)


def test_experts_that_get_no_token_are_not_read():
    def read(tokens, ranks, **more):
        return named(layer_operations(V3, 10, "decode", Batch(tokens, 4096, expert_ranks=ranks, **more)))[
            "experts_gate_up"
        ]

    one = read(1, 1)
    assert one.shape["groups"] == pytest.approx(8)
    assert one.shape["m"] == pytest.approx(1)
    for tokens, ranks in ((16, 4), (128, 32)):
        got = read(tokens, ranks)
        local = 256 / ranks
        hit = local * (1 - (1 - 8 / 256) ** (tokens * ranks))
        assert got.shape["groups"] == pytest.approx(hit)
        assert got.shape["groups"] * got.shape["m"] == pytest.approx(8 * tokens)  # as many rows come as go
        weights = hit * 7168 * 4096 * WEIGHT["fp8"]
        rows = 8 * tokens * (7168 * ACTIVATION["fp8"] + 4096 * 2)
        assert got.work.bytes == pytest.approx(weights + rows)
    assert read(128, 144, slots=2).shape["groups"] == pytest.approx(2)
    assert read(128, 144, slots=2).shape["m"] == pytest.approx(128 * 144 * 8 / 288)


def test_products_are_fp8_and_attention_gate_head_and_absorption_are_not():
    batch = Batch(64, 4096, expert_ranks=8)
    operations = [*layer_operations(V3, 10, "decode", batch), *head_operations(V3, "decode", batch)]
    formats = {one.name: one.work.dtype for one in operations if one.work.flops}
    wide = {"attention", "gate", "head", "query_absorb", "value_absorb"}
    assert {name for name, dtype in formats.items() if dtype == "bf16"} == wide
    plain = layer_operations(V3, 10, "decode", replace(batch, precision="bf16"))
    assert {one.work.dtype for one in plain} == {"bf16"}
    assert "quantise" not in named(plain)


def test_half_the_bytes_of_weights_in_fp8():
    few = [named(layer_operations(V3, 0, "decode", Batch(1, 2, precision=p)))["output"].work for p in ("fp8", "bf16")]
    assert few[0].flops == few[1].flops
    assert few[0].bytes / few[1].bytes == pytest.approx(0.5, rel=2e-3)


def test_the_way_back_of_a_product_is_two_products_of_its_flops():
    batch = Batch(512, 512, expert_ranks=8)
    forward, dx, dw = (named(layer_operations(V3, 10, phase, batch)) for phase in TRAINING)
    products = [name for name, one in forward.items() if "k" in one.shape]
    assert len(products) == 10
    for name in products:
        its, back, weight = forward[name], dx[name], dw[name]
        assert its.work.flops == back.work.flops == pytest.approx(weight.work.flops)
        assert (back.shape["k"], back.shape["n"]) == (its.shape["n"], its.shape["k"])
        assert (weight.shape["m"], weight.shape["k"]) == (its.shape["k"], its.shape["m"])
    one = dw["output"]
    assert one.work.bytes == pytest.approx(512 * (16_384 + 7168) * ACTIVATION["fp8"] + 8 * 16_384 * 7168)


def test_attention_on_the_way_back_does_its_scores_again():
    forward, back = (
        named(layer_operations(V3, 10, phase, Batch(512, 512)))["attention"] for phase in ("forward", "backward_input")
    )
    queries_keys = forward.work.flops / (2 * (192 + 128))
    assert back.work.flops == pytest.approx(2 * queries_keys * (3 * 192 + 2 * 128))
    assert back.extra == pytest.approx(2 * queries_keys * 192)
    assert back.model_flops == pytest.approx(2 * forward.work.flops)


def test_what_is_recomputed_counts_in_no_model():
    again = layer_operations(V3, 10, "recompute", Batch(512, 512, expert_ranks=8))
    assert {one.name for one in again} == set(AGAIN) - {"swiglu"}
    assert sum(one.model_flops for one in again) == 0
    ups = 2 * 512 * (1536 * 128 * 192 + 512 * 128 * 256)
    assert sum(one.work.flops for one in again) == ups


def test_work_grows_with_width_tokens_and_experts_a_token():
    base = named(layer_operations(V3, 10, "forward", Batch(4096, 4096, expert_ranks=64)))
    more = named(layer_operations(V3, 10, "forward", Batch(8192, 4096, expert_ranks=64)))
    for name, one in base.items():
        assert more[name].work.flops == pytest.approx(2 * one.work.flops)
    ninth = replace(V3, top_k=9)
    other = named(layer_operations(ninth, 10, "forward", Batch(4096, 4096, expert_ranks=64)))
    assert other["experts_down"].work.flops == pytest.approx(9 / 8 * base["experts_down"].work.flops)
    assert other["shared_down"] == base["shared_down"]


def test_a_gate_and_a_norm_are_told_apart_from_products():
    kinds = {one.name: one.kind for one in layer_operations(V3, 10, "forward", Batch(64, 64))}
    assert (kinds["gate"], kinds["mlp_norm"], kinds["experts_down"]) == ("gate", "elementwise", "grouped_gemm")
    assert "gate" not in {one.name for one in layer_operations(V3, 0, "forward", Batch(64, 64))}


def test_bad_batches_and_phases_get_a_sentence():
    with pytest.raises(ValueError, match="in fp8 or bf16, not 'fp4'"):
        Batch(1, 1, precision="fp4")
    with pytest.raises(ValueError, match="10 cached tokens leave nothing new of a context of 10"):
        Batch(1, 10, cached=10)
    with pytest.raises(ValueError, match="there is no phase 'sideways'; there are forward"):
        layer_operations(ModelConfig.preset("tiny-moe"), 0, "sideways", Batch(1, 1))
