from dataclasses import replace

import pytest
import torch

from course.model import Transformer
from course.training.checkpoint import Checkpoint
from course.training.errors import TrainingError
from course.training.optimizers import MuonAndAdamW, adamw
from course.training.settings import TrainSettings
from course.training.trainer import train


@pytest.fixture
def model(small):
    torch.manual_seed(0)
    return Transformer(small)


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest(model, small):
    optimizer = MuonAndAdamW(model, TrainSettings())
    assert len(optimizer.hidden) == small.layers * (4 + 2)
    others = [parameter for group in optimizer.adamw.param_groups for parameter in group["params"]]
    held = {id(parameter) for parameter in [*others, *optimizer.hidden.values()]}
    assert len(others) + len(optimizer.hidden) == len(held) == len(list(model.parameters()))
    names = {name for name, parameter in model.named_parameters() if any(parameter is each for each in others)}
    assert {"embedding.weight", "head.weight", "blocks.0.feed_forward.gate_ED", "norm.weight"} <= names


def test_experts_and_gate_and_up_are_maps_of_their_own(model, small):
    shapes = [tuple(matrix.shape) for matrix in MuonAndAdamW(model, TrainSettings()).matrices]
    per_block = 4 * [(16, 16)] + small.experts * 2 * [(8, 16)] + small.experts * [(16, 8)]
    assert sorted(shapes) == sorted(small.layers * per_block)


def test_a_step_is_torchs_own_on_each_map_alone(model):
    settings = TrainSettings(optimizer="muon")
    with_gradients(model)
    weight = model.blocks[1].feed_forward.gate_up_EFD
    alone = weight.detach()[2, 8:].clone()
    alone.grad = weight.grad[2, 8:].clone()
    torch.optim.Muon([alone], settings.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    optimizer = MuonAndAdamW(model, settings)
    optimizer.step()
    assert torch.equal(weight[2, 8:], alone)
    assert not optimizer.muon.param_groups[0]["params"][0].grad


def test_embedding_and_router_step_as_under_adamw(model, small):
    other = Transformer(small)
    other.load_state_dict(model.state_dict())
    with_gradients(model)
    for parameter, like in zip(other.parameters(), model.parameters(), strict=True):
        parameter.grad = like.grad.clone()
    for optimizer in (MuonAndAdamW(model, TrainSettings()), adamw(other, TrainSettings())):
        optimizer.step()
    for name in ("embedding", "head", "norm"):
        assert torch.equal(getattr(model, name).weight, getattr(other, name).weight)
    assert torch.equal(model.blocks[0].feed_forward.gate_ED, other.blocks[0].feed_forward.gate_ED)
    assert not torch.equal(model.blocks[0].attention.key.weight, other.blocks[0].attention.key.weight)


def test_one_rate_serves_both(model):
    """Steps of the hidden matrices are as long as AdamW's, within a factor of two."""
    settings = TrainSettings(weight_decay=0.0)
    weight = model.blocks[0].feed_forward.down_EDI
    lengths = []
    for optimizer in (MuonAndAdamW(model, settings), adamw(model, settings)):
        before = weight.detach().clone()
        for _ in range(20):
            with_gradients(model)
            optimizer.step()
        lengths.append((weight - before).square().mean().sqrt().item())
    assert lengths[0] == pytest.approx(lengths[1], rel=1)


def test_muon_lowers_the_loss_and_resumes_bit_for_bit(small, sums, brief, tmp_path):
    settings = replace(brief, optimizer="muon")
    unbroken = train(small, sums, settings)
    assert unbroken.rows[-1].validation < unbroken.rows[0].validation - 0.5

    def stop(row, routings):
        if row.step == 12:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(small, sums, settings, tmp_path, on_step=stop)
    assert len(Checkpoint.read(tmp_path).rows) == 10
    resumed = train(small, sums, settings, tmp_path, resume=True)
    assert [row.loss for row in resumed.rows] == [row.loss for row in unbroken.rows]
    for got, want in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_a_run_keeps_its_optimizer(small, sums, brief, tmp_path):
    train(small, sums, replace(brief, steps=1), tmp_path)
    with pytest.raises(TrainingError, match="trained with optimizer=adamw, not muon"):
        train(small, sums, replace(brief, steps=1, optimizer="muon"), tmp_path, resume=True)


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_as_it_was(small, sums, brief, tmp_path):
    unbroken = train(small, sums, brief)
    train(small, sums, brief, tmp_path, seconds=1e-9)
    kept = Checkpoint.read(tmp_path)
    for new in ("optimizer", "precision"):
        del kept.settings[new]
    kept.write(tmp_path)
    resumed = train(small, sums, brief, tmp_path, resume=True)
    assert [row.loss for row in resumed.rows] == [row.loss for row in unbroken.rows]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"optimizer": "sgd"}, "there is no optimizer 'sgd'; choose one of: adamw, muon"),
        ({"precision": "fp8"}, "there is no precision 'fp8'; choose one of: float32, bf16"),
    ],
)
def test_another_choice_gets_a_sentence(wrong, sentence):
    with pytest.raises(TrainingError, match=sentence):
        TrainSettings(**wrong)
