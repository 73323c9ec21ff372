from dataclasses import replace

import block_parts
import look_inside
import pytest
import torch

from course.model import ModelConfig, Transformer, total_parameters
from course.training import data
from course.training.trainer import TrainSettings

CONFIG = ModelConfig(vocab=50, context=32, width=32, layers=2, mlp_width=64)


def logits(arm, tokens):
    """Logits of a fresh model of this arm, its matrices large enough that tokens mix."""
    model = block_parts.build(arm, CONFIG, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
        return model(tokens)


def moved(arm, position):
    """At which of twelve positions the output changes when the token at `position` does."""
    tokens = torch.arange(12)[None] + 10
    other = tokens.clone()
    other[0, position] = 40
    return (logits(arm, tokens) - logits(arm, other)).abs().amax(-1)[0] > 1e-6


def test_each_arm_but_the_whole_is_another_function():
    tokens = torch.arange(12)[None]
    whole = logits("whole", tokens)
    torch.testing.assert_close(whole, logits("deep", tokens))
    for arm in block_parts.ARMS.keys() - {"whole", "deep"}:
        assert not torch.allclose(whole, logits(arm, tokens), atol=1e-4), arm


def test_without_a_mask_the_past_hears_of_the_future():
    assert not moved("whole", 6)[:6].any()
    assert moved("no mask", 6)[:6].all()


def test_without_attention_a_token_is_alone():
    assert moved("no attention", 6).nonzero().flatten().tolist() == [6]


def test_without_rope_the_order_of_the_past_does_not_matter():
    tokens = torch.randperm(50)[None, :12]
    shuffled = torch.cat([tokens[:, :11].flip(1), tokens[:, 11:]], dim=1)
    one_block = replace(CONFIG, layers=1)
    for arm, same in (("no RoPE", True), ("whole", False)):
        model = block_parts.build(arm, one_block, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5 if parameter.ndim > 1 else 1)
            assert torch.allclose(model(tokens)[0, -1], model(shuffled)[0, -1], atol=1e-4) == same, arm


@pytest.mark.parametrize("arm", ["no norm", "LayerNorm", "post-norm", "no residual", "no RoPE", "no mask", "plain MLP"])
def test_an_arm_has_the_parameters_of_the_whole_but_for_norms(arm):
    count = sum(parameter.numel() for parameter in block_parts.build(arm, CONFIG, seed=0).parameters())
    missing = {"no norm": 5 * CONFIG.width, "post-norm": CONFIG.width}.get(arm, 0)
    assert count == total_parameters(CONFIG) - missing


@pytest.mark.parametrize(
    ("base", "other", "says"),
    [
        ((3.0, 3.1), (3.3, 3.4), "worse"),
        ((3.0, 3.1), (2.7, 2.8), "better"),
        ((3.0, 3.1), (3.05, 3.2), "not resolved"),
        ((3.0, 3.1), (3.2, 7.5), "diverged"),
        ((3.0, 3.1), (3.2, float("nan")), "diverged"),
        ((3.0,), (5.0,), "not resolved"),
    ],
)
def test_an_arm_differs_when_the_gap_exceeds_the_spread(base, other, says):
    assert block_parts.verdict(base, other, even_guess=6.9)["verdict"] == says


@pytest.mark.parametrize(
    ("differences", "resolved"), [((0.5, 0.6), True), ((-0.5, -0.6), True), ((0.1, 0.9), False), ((0.5,), False)]
)
def test_a_difference_is_resolved_beyond_its_spread(differences, resolved):
    assert look_inside.verdict(differences)["resolved"] == resolved


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(3000)))
    return data.load(path, 300)


def test_a_run_is_kept_and_the_maskless_one_measured_twice(text, tmp_path):
    settings = TrainSettings(steps=2, batch=1, evaluate_every=2, evaluation_sequences=2)
    result = block_parts.run("no mask", settings, text, tmp_path)
    assert result["validation"] != result["as_trained"][-1]
    assert block_parts.run("no mask", settings, text, tmp_path) == result


def test_attention_weights_are_those_that_the_model_uses():
    torch.manual_seed(0)
    model, tokens = Transformer(CONFIG), torch.randint(50, (2, 9))
    weights = look_inside.attention_weights(model, tokens)
    assert weights.shape == (2, 2, 4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, 9))
    block = model.blocks[0]
    with torch.no_grad():
        h = block.attention_norm(model.embedding(tokens))
        v = block.attention.value(h).unflatten(-1, (4, -1)).transpose(1, 2)
        ours = block.attention.output((weights[0] @ v).transpose(1, 2).flatten(2))
        cos, sin = look_inside.rope_table(torch.arange(9), CONFIG.head_width)
        torch.testing.assert_close(ours, block.attention(h, cos, sin), atol=1e-5, rtol=1e-4)


def test_induction_is_attention_to_what_followed_an_earlier_copy():
    tokens = torch.tensor([[5, 6, 7, 5, 8, 9, 1, 2, 3, 4]])
    weights = torch.zeros(1, 1, 1, 10, 10)
    weights[..., 3, 1] = 1.0  # the second 5 looks at the 6, which followed the first
    assert look_inside.habits(weights, tokens)["induction"] == [[1.0]]


def test_maps_are_written_row_by_row(text):
    model = Transformer(replace(look_inside.CONFIG, vocab=text.tokenizer.vocab))
    kept = look_inside.maps(model, text)
    rows = kept["hundredths"][0][0].split("/")
    assert len(rows) == len(kept["tokens"])
    assert [len(row.split()) for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0] == "100"
    assert "".join(kept["tokens"]) == kept["source"]
