"""The frontier of mixtures and dense models: resumed, recorded, and judged by its rule."""

import json
import subprocess
import sys

import moe_vs_dense
import pytest

from course.model import train_flops_per_token

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(1500))
ARMS = ("dense", "8 experts, top 2, faster experts", "8 experts, top 1, and a shared one")


def runs(*ends, gflop=(10.0, 20.0)):
    """Curves of an arm, one a seed: a loss of 5 first, then where it ended."""
    return [{"seed": i, "step": [1, 2], "gflop": list(gflop), "validation": [5.0, end]} for i, end in enumerate(ends)]


def test_every_arm_trains_for_the_same_seconds_and_goes_on_where_it_stopped(tmp_path):
    text = tmp_path / "sums.txt"
    text.write_text(TEXT)

    def record(name):
        fixed = ("--seconds", "1", "--rounds", "1", "--seeds", "0", "--arms", *ARMS, "--source", text)
        where = ("--work", tmp_path / "work", "--out", tmp_path / name)
        command = [sys.executable, moe_vs_dense.__file__, *map(str, (*fixed, *where))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name).read_text()), done.stdout

    first, shown = record("first.json")
    assert "by the clock" in shown
    assert set(first["runs"]) == set(ARMS)
    for arm, (curve,) in first["runs"].items():
        cost = first["models"][arm]["seconds_a_step"]
        assert curve["step"][-1] == max(2, round(1 / cost))
        assert curve["seconds"][-1] == pytest.approx(curve["step"][-1] * cost, abs=1e-3)
        per_token = train_flops_per_token(moe_vs_dense.ARMS[arm][0], 256)
        assert curve["gflop"][-1] == pytest.approx(curve["tokens"][-1] * per_token / 1e9, rel=0.1)  # another vocabulary
    assert first["models"][ARMS[1]]["settings"]["expert_rate"] == 2.0
    assert all(one["verdict"] == "not resolved" for one in first["verdicts"]["by the clock"].values())  # one seed
    again, _ = record("again.json")
    assert again["runs"] == first["runs"]


@pytest.mark.parametrize(
    ("mixture", "dense", "wide", "verdict"),
    [
        ((3.0, 3.1), (3.4, 3.5), (3.3, 3.4), "wins"),
        ((3.0, 3.1), (3.4, 3.5), (3.05, 3.15), "not resolved"),
        ((3.0, 3.1), (3.4, 3.5), (2.8, 2.9), "loses"),
        ((3.0, 3.1), (3.2, 3.6), (3.4, 3.5), "not resolved"),
        ((3.0,), (3.5,), (3.5,), "not resolved"),
    ],
)
def test_a_mixture_must_beat_every_dense_arm_by_more_than_the_seeds_lie_apart(mixture, dense, wide, verdict):
    found = moe_vs_dense.verdicts({"dense": runs(*dense), "dense, wide": runs(*wide), "moe": runs(*mixture)})
    assert found["by the clock"]["moe"]["verdict"] == found["by FLOPs"]["moe"]["verdict"] == verdict
    assert found["by the clock"].keys() == {"moe"}


def test_losses_are_compared_at_flops_that_both_have_spent():
    cheap, dear = runs(3.0, 3.0, gflop=(1.0, 100.0)), runs(3.0, 3.0, gflop=(1.0, 10_000.0))
    assert moe_vs_dense.at_flops(dear, 100.0) == pytest.approx([4.0, 4.0])
    found = moe_vs_dense.verdicts({"dense": dear, "moe": cheap})
    assert found["by FLOPs"]["moe"]["against"]["dense"]["gain"] == pytest.approx(1.0)
    assert found["by the clock"]["moe"]["against"]["dense"]["gain"] == pytest.approx(0.0)
