import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import apply_rotary_pos_emb

from course.model import SwiGLU, apply_rope, rms_norm, rope_table, swiglu


def test_rms_norm_equals_torch():
    torch.manual_seed(0)
    x, weight_D = torch.randn(2, 3, 10), torch.randn(10)
    torch.testing.assert_close(rms_norm(x, weight_D, 1e-5), F.rms_norm(x, (10,), weight_D, 1e-5))


def test_rms_norm_leaves_a_zero_vector_at_zero():
    assert rms_norm(torch.zeros(4), torch.ones(4), 1e-6).tolist() == [0.0] * 4


def test_rms_norm_of_bfloat16_is_taken_in_float32():
    x = torch.full((1024,), 100.0, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(1024, dtype=torch.bfloat16), 1e-6).unique().tolist() == [1.0]


def test_position_zero_is_not_turned():
    x_BHSC = torch.randn(1, 2, 1, 8)
    torch.testing.assert_close(apply_rope(x_BHSC, *rope_table(torch.tensor([0]), 8)), x_BHSC)


def test_turning_keeps_lengths():
    x_BHSC = torch.randn(2, 3, 50, 8)
    turned_BHSC = apply_rope(x_BHSC, *rope_table(torch.arange(50), 8))
    torch.testing.assert_close(turned_BHSC.norm(dim=-1), x_BHSC.norm(dim=-1))


def test_a_product_of_turned_vectors_depends_on_their_distance_alone():
    q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)

    def product(at_q, at_k):
        turned = [apply_rope(x, *rope_table(torch.tensor([at]), 8)) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(12, 7), product(105, 100), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(product(12, 7), product(12, 8), rtol=1e-3)


def test_rope_pairs_are_half_split_as_in_transformers():
    q_BHSC, k_BHSC = torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)
    cos_SP, sin_SP = rope_table(torch.arange(9), 16)
    wanted, _ = apply_rotary_pos_emb(q_BHSC, k_BHSC, cos_SP.repeat(1, 2)[None], sin_SP.repeat(1, 2)[None])
    torch.testing.assert_close(apply_rope(q_BHSC, cos_SP, sin_SP), wanted)


def test_the_first_half_gates_the_second():
    torch.testing.assert_close(swiglu(torch.tensor([100.0, -100.0, 3.0, 5.0])), torch.tensor([300.0, 0.0]))


def test_the_swiglu_layer_is_its_formula():
    layer = SwiGLU(6, 4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 6)
    gate, up = layer.gate_up_FD[:4], layer.gate_up_FD[4:]
    torch.testing.assert_close(layer(x), (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down_DI.T)
