import json
import sys
from pathlib import Path

import fp8_training
import pytest
import torch

from course.training import data

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def made(**losses):
    """Runs of every arm, two seeds each, their losses flat; those not named as float32's."""
    return {
        arm: [
            {"arm": arm, "seed": seed, "validation": 4 * value + 0.01 * seed, "loss": [4 * value] * 20}
            for seed, value in enumerate(losses.get(arm.replace(" ", "_"), (1.0, 1.0)))
        ]
        for arm in fp8_training.ARMS
    }


def test_losses_are_smoothed_before_they_are_compared():
    assert fp8_training.smoothed([1.0, 2.0, 2.0]) == pytest.approx([1.0, 1.1, 1.19])
    assert fp8_training.relative_errors([1.0, 2.0], [1.0, 1.0]) == pytest.approx([0.0, 0.1])


def test_an_arm_keeps_the_bound_when_all_its_runs_do():
    found = fp8_training.verdicts(made(fp8=(1.002, 0.998), tensor=(1.002, 1.003)), 5)
    assert found["fp8"]["below_bound"]
    assert found["fp8"]["relative_errors"] == pytest.approx([0.002, 0.002])
    assert not found["tensor"]["below_bound"]


def test_an_arm_is_told_from_the_last_bit_and_from_fp8_when_all_its_runs_are():
    found = fp8_training.verdicts(
        made(last_bit=(1.0001, 1.0002), bf16=(1.0001, 1.1), fp8=(1.001, 1.002), tensor=(1.003, 1.01)), 5
    )
    assert [found[arm]["told_from_last_bit"] for arm in ("bf16", "fp8", "tensor")] == [False, True, True]
    assert [found[arm]["worse_than_fp8"] for arm in ("bf16", "tensor")] == [False, True]


def test_a_result_differs_by_more_than_the_spread_or_not_at_all():
    found = fp8_training.verdicts(made(fp8=(1.002, 1.002), unscaled=(1.1, 1.1)), 5)
    assert not found["fp8"]["resolved"]
    assert found["unscaled"]["resolved"]
    assert found["unscaled"]["difference"] == pytest.approx(0.4)


def test_arms_begin_with_the_same_weights_and_the_last_bit_with_one_number_moved():
    config = fp8_training.BASE
    plain, moved = (fp8_training.initial_model(arm, config, 3) for arm in ("fp8", "last bit"))
    differ = [(one != other).sum().item() for one, other in zip(plain.parameters(), moved.parameters(), strict=True)]
    assert sum(differ) == 1


def test_the_record_was_judged_by_the_rule_that_stands_in_the_file():
    record = json.loads((Path(fp8_training.__file__).parent / "results" / "fp8_training.json").read_text())
    assert record["rule"] == fp8_training.RULE
    assert record["seeds"] == [0, 1, 2]
    found = fp8_training.verdicts(record["runs"], record["settings"]["warmup"])
    for arm, verdict in record["verdicts"].items():
        for name, value in verdict.items():
            assert found[arm][name] == (value if isinstance(value, bool) else pytest.approx(value, abs=2e-5)), (
                arm,
                name,
            )


def test_the_script_trains_stops_when_its_time_is_up_and_goes_on_later(tmp_path, text, monkeypatch, capsys):
    out, work = tmp_path / "r.json", tmp_path / "work"
    arguments = [
        "fp8_training.py",
        "--steps",
        "2",
        "--seeds",
        "0",
        "--source",
        str(text),
        "--work",
        str(work),
        "--out",
        str(out),
    ]
    config = fp8_training.BASE
    monkeypatch.setattr(
        fp8_training, "BASE", config.__class__(**vars(config) | {"width": 32, "mlp_width": 32, "context": 16})
    )
    monkeypatch.setattr(fp8_training, "VOCAB", 300)
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "0"])
    fp8_training.main()
    assert "7 of 7 runs are left" in capsys.readouterr().out
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", arguments)
    fp8_training.main()
    record = json.loads(out.read_text())
    assert record["rule"] == fp8_training.RULE
    assert record["runs"].keys() == set(fp8_training.ARMS)
    assert [len(run["loss"]) for runs in record["runs"].values() for run in runs] == [2] * 7
    assert len({run["validation"] for runs in record["runs"].values() for run in runs}) >= 6
    fp8_training.main()
    assert json.loads(out.read_text())["runs"] == record["runs"]
    assert torch.is_grad_enabled()
    assert data.load(text, 300).key[:8] in next(work.glob("2-*fp8-0.json")).name
