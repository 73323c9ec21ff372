import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from course.model import ModelConfig, Transformer, expert_counts
from course.model.rope import LinearScaling, Llama3Scaling, YarnScaling
from course.training.checkpoint import NAME, Checkpoint
from course.training.errors import TrainingError
from course.training.log import read_log
from course.training.trainer import TrainSettings, adamw, evaluate, train


def losses(rows):
    return [(row.step, row.loss, row.gradient_norm, row.validation) for row in rows]


def stop_after(last, error=RuntimeError):
    def on_step(row, routings):
        if row.step == last:
            raise error

    return on_step


def test_training_lowers_the_validation_loss(small, sums, brief):
    _, rows = train(small, sums, replace(brief, steps=150))
    measured = [row.validation for row in rows if row.validation]
    assert measured[-1] < measured[0] - 1.5


def test_the_rows_tell_step_tokens_time_and_measurements(small, sums, brief):
    seen = []
    _, rows = train(small, sums, brief, on_step=lambda row, routings: seen.append((row, len(routings))))
    assert seen == [(row, small.layers) for row in rows]
    assert [row.step for row in rows] == list(range(1, 25))
    assert [row.step for row in rows if row.validation is not None] == [1, 8, 16, 24]
    assert rows[-1].tokens == 24 * 4 * 16
    assert all(before.seconds < after.seconds for before, after in pairwise(rows))
    assert all(row.max_violation >= 0 for row in rows)


def test_a_dense_model_reports_no_load(small, sums, brief):
    _, rows = train(small.dense_twin(), sums, replace(brief, steps=2))
    assert rows[-1].max_violation is None


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small, sums, brief):
    runs = [losses(train(small, sums, replace(brief, steps=5, seed=seed)).rows) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("last", [1, 5, 12, 23])
def test_a_run_that_broke_off_goes_on_as_if_it_had_not(small, sums, brief, tmp_path, last):
    unbroken = train(small, sums, brief)
    with pytest.raises(RuntimeError):
        train(small, sums, brief, tmp_path, on_step=stop_after(last))
    resume = (tmp_path / NAME).exists()
    assert resume == (last > 5)
    resumed = train(small, sums, brief, tmp_path, resume=resume)
    assert losses(resumed.rows) == losses(unbroken.rows)
    for got, want in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(got, want)
    assert losses(read_log(tmp_path / "log.csv")) == losses(unbroken.rows)


KILLED = """
import sys
from pathlib import Path
from course.model import ModelConfig
from course.training import data
from course.training.trainer import TrainSettings, train

text, out, config, settings = sys.argv[1:]
sums, out = data.load(Path(text), vocab=280), Path(out)
train(ModelConfig(**eval(config)), sums, TrainSettings(**eval(settings)), out, resume=(out / "checkpoint.pt").exists())
"""


def test_killed_at_any_moment_it_loses_at_most_the_steps_since_the_last_checkpoint(small, sums, brief, text, tmp_path):
    settings = replace(brief, steps=400, evaluate_every=100)
    command = [sys.executable, "-c", KILLED, str(text), str(tmp_path), str(asdict(small)), str(asdict(settings))]
    log = tmp_path / "log.csv"
    for goal in (40, 130):
        process = subprocess.Popen(command)
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < goal):
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        logged = log.read_text().count("\n") - 1
        kept = len(Checkpoint.read(tmp_path).rows)
        assert logged - settings.checkpoint_every <= kept <= logged
    resumed = train(small, sums, settings, tmp_path, resume=True)
    assert losses(resumed.rows) == losses(train(small, sums, settings).rows)
    assert losses(read_log(log)) == losses(resumed.rows)


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(small, sums, brief, tmp_path):
    def press(row, routings):
        if row.step == 7:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
        train(small, sums, brief, tmp_path, on_step=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(Checkpoint.read(tmp_path).rows) == 7
    resumed = train(small, sums, brief, tmp_path, resume=True)
    assert losses(resumed.rows) == losses(train(small, sums, brief).rows)


def test_training_runs_outside_the_main_thread(small, sums, brief):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(small, sums, replace(brief, steps=2))))
    thread.start()
    thread.join()
    assert len(results[0].rows) == 2


def test_time_is_a_limit_too(small, sums, brief, tmp_path):
    _, rows = train(small, sums, brief, tmp_path, seconds=1e-9)
    assert len(rows) == len(Checkpoint.read(tmp_path).rows) == 1


def test_a_finished_run_resumed_does_nothing(small, sums, brief, tmp_path):
    first = train(small, sums, brief, tmp_path)
    again = train(small, sums, brief, tmp_path, resume=True, on_step=lambda *_: pytest.fail("it took a step"))
    assert again.rows == first.rows


def test_other_settings_data_or_shape_are_not_resumed(small, sums, brief, tmp_path):
    train(small, sums, replace(brief, steps=1), tmp_path)
    with pytest.raises(TrainingError, match=r"trained with learning_rate=0.01, not 0.5: resume with the same"):
        train(small, sums, replace(brief, steps=1, learning_rate=0.5), tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"trained with layers=2, not 1"):
        train(replace(small, layers=1), sums, replace(brief, steps=1), tmp_path, resume=True)
    with pytest.raises(TrainingError, match="not the text that the checkpoint was trained on"):
        train(small, replace(sums, key="other"), replace(brief, steps=1), tmp_path, resume=True)


def test_a_vocabulary_that_is_not_the_texts_gets_a_sentence(small, sums, brief):
    with pytest.raises(TrainingError, match="a vocabulary of 300, the text one of 280"):
        train(replace(small, vocab=300), sums, brief)


def test_a_missing_or_damaged_checkpoint_gets_a_sentence(small, sums, brief, tmp_path):
    with pytest.raises(TrainingError, match="there is no checkpoint at"):
        Checkpoint.read(tmp_path)
    (tmp_path / NAME).write_bytes(b"PK\3\4 half a file")
    with pytest.raises(TrainingError, match="not a checkpoint of this course, or it is damaged"):
        Checkpoint.read(tmp_path)


def test_a_checkpoint_gives_the_model_and_its_tokenizer_back(small, sums, brief, tmp_path):
    trained, _ = train(small, sums, replace(brief, steps=2), tmp_path)
    model, tokenizer = Checkpoint.read(tmp_path).load()
    assert evaluate(model, sums) == evaluate(trained, sums)
    assert tokenizer.merges == sums.tokenizer.merges


def test_a_scaled_rope_survives_a_checkpoint(small, sums, brief, tmp_path):
    for scaling in (LinearScaling(2.0), Llama3Scaling(8.0, 1.0, 4.0, 8), YarnScaling(4.0, 8)):
        config, out = replace(small, rope_scaling=scaling), tmp_path / type(scaling).__name__
        trained, _ = train(config, sums, replace(brief, steps=1), out)
        model, _ = Checkpoint.read(out).load()
        assert model.config == config
        assert evaluate(model, sums) == evaluate(trained, sums)
        train(config, sums, replace(brief, steps=1), out, resume=True)


def test_norms_are_not_decayed(small):
    groups = adamw(Transformer(small), TrainSettings()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    assert len(groups[1]["params"]) == 2 * small.layers + 1


def test_evaluation_is_the_mean_over_all_its_windows(small, sums):
    model = Transformer(small)
    one_by_one = [evaluate(model, replace(sums, validation=sums.validation[i : i + 17]), 1) for i in (0, 100)]
    joined = torch.tensor(one_by_one).mean().item()
    windows = replace(sums, validation=sums.validation[:117])
    assert evaluate(model, windows, sequences=2) == pytest.approx(joined, rel=1e-5)


def test_selection_biases_move_after_each_step_by_the_loads_of_the_batch(sums, brief):
    config = replace(
        ModelConfig.preset("tiny-deepseek-v3"),
        vocab=280,
        context=16,
        width=16,
        heads=2,
        layers=3,
        mtp_layers=1,
        bias_rate=0.5,
    )
    loads = []
    result = train(config, sums, replace(brief, steps=3), on_step=lambda row, routings: loads.append(routings))
    assert len(loads[0]) == 3  # two mixture layers, and the module's
    wanted = [torch.zeros(16) for _ in range(3)]
    for routings in loads:
        for layer, routing in enumerate(routings):
            counts_E = expert_counts(routing.indices_TK, 16).double()
            wanted[layer] += 0.5 * (counts_E.mean() - counts_E).sign().float()
    biases = [mixture.bias_E for mixture in result.model.mixtures()]
    assert all(map(torch.equal, biases, wanted))
    assert any(bias_E.any() for bias_E in biases)


def test_a_bias_balances_what_runs_unbalanced_without_it(sums, brief):
    config = replace(
        ModelConfig.preset("tiny-deepseek-v3"),
        vocab=280,
        context=16,
        width=16,
        heads=2,
        layers=2,
        sequence_balance_weight=0.0,
    )
    settings = replace(brief, steps=60, batch=8, evaluate_every=60)

    def violation(rate):
        rows = train(replace(config, bias_rate=rate), sums, settings).rows
        return sum(row.max_violation for row in rows[-10:]) / 10

    assert violation(0.01) < 0.7 * violation(0.0)


def test_experts_may_have_a_learning_rate_of_their_own(small, brief):
    torch.manual_seed(0)
    usual, scaled = Transformer(small), Transformer(small)
    scaled.load_state_dict(usual.state_dict())
    before = {name: p.detach().clone() for name, p in usual.named_parameters()}
    for model, settings in ((usual, brief), (scaled, replace(brief, expert_rate=3.0))):
        optimizer = adamw(model, replace(settings, weight_decay=0.0))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group.get("scale", 1.0)
        torch.manual_seed(1)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    moves = {
        name: ((other - before[name]).abs().mean() / (p - before[name]).abs().mean()).item()
        for (name, p), other in zip(usual.named_parameters(), scaled.parameters(), strict=True)
    }
    for name, ratio in moves.items():
        assert ratio == pytest.approx(3.0 if "_E" in name and "gate_ED" not in name else 1.0, rel=1e-3), name
