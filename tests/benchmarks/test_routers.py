import json
import sys

import pytest
import routers
import torch

from course.model import limit_groups
from course.training import corpus, data

SOURCE = '''"""What it is for."""
x = "a string"  # why


def f():
    """Two
    lines."""
    return "no docstring"
'''


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300)))
    return path


@pytest.fixture
def learned(text, monkeypatch):
    """A short text to train on; and to look at, one document instead of the standard library."""
    read = data.load(text, 300)
    document = corpus.Document("unseen.py", SOURCE + "# nothing follows\n" * 500)
    monkeypatch.setattr(corpus, "embedded", lambda kind: [document])
    monkeypatch.setattr(corpus, "split", lambda documents: ([], documents))
    return read


def test_a_character_is_code_docstring_or_comment():
    kinds = routers.kinds_of(SOURCE)
    assert len(kinds) == len(SOURCE)

    def kind(words):
        start = SOURCE.index(words)
        return set(kinds[start : start + len(words)])

    assert kind('"""What it is for."""') == kind("lines.") == kind("Two") == {"docstring"}
    assert kind("# why") == {"comment"}
    assert kind('x = "a string"') == kind('return "no docstring"') == kind("def f():") == {"code"}


def test_tokens_are_labelled_by_their_first_inked_character(learned):
    ((ids, kinds),) = routers.labelled(learned)
    assert learned.tokenizer.decode(ids).startswith(SOURCE)
    pieces = [learned.tokenizer.decode([i]) for i in ids]
    assert all((kind is None) == (not piece.strip()) for piece, kind in zip(pieces, kinds, strict=True))
    written = {kind: "".join(p for p, k in zip(pieces, kinds, strict=True) if k == kind) for kind in routers.KINDS}
    assert written["docstring"].replace(" ", "").replace("\n", "") == '"""Whatitisfor.""""""Twolines."""'
    assert "return" in written["code"]
    assert "#" not in written["code"]


def test_information_is_none_when_experts_do_not_tell_and_all_when_they_do():
    assert routers.information(torch.tensor([[2, 4], [3, 6]])) == pytest.approx(0, abs=1e-12)
    assert routers.information(torch.tensor([[5, 0], [0, 5]])) == pytest.approx(1)


def test_groups_met_counts_a_group_once():
    chosen_LTK = torch.tensor([[[0, 7, 8, 9], [0, 8, 16, 24]]])
    assert routers.groups_met(chosen_LTK, 32) == pytest.approx((2 + 4) / 2)
    limited_TK = limit_groups(torch.rand(50, 32), 4, 1, 2).topk(4).indices
    assert routers.groups_met(limited_TK[None], 32) == 1


def test_a_violation_is_taken_within_a_layer():
    one_each = torch.arange(32).view(1, 8, 4)
    assert routers.violation(one_each, 32) == 0
    all_the_same = torch.arange(4).expand(1, 8, 4)
    assert routers.violation(torch.cat([one_each, all_the_same]), 32) == pytest.approx((0 + 7) / 2)


def test_batch_and_sequence_pull_equally_hard_on_one_sequence():
    assert routers.ARMS["batch"]["balance_weight"] * routers.K == routers.ARMS["sequence"]["sequence_balance_weight"]


def test_a_run_measures_what_the_rule_names(learned):
    result = routers.run("mix 2 of 4", 2, 0, learned)
    assert all(result[measure] >= 0 for measure in routers.MEASURES)
    assert 1 <= result["groups_met"] <= 2
    assert [[len(layer) for layer in step] for step in result["loads"]] == [[32, 32]]
    assert [[len(kind) for kind in layer] for layer in result["kinds"]] == [[32] * 3] * 2


@pytest.mark.parametrize(
    ("one", "other", "resolved"),
    [
        ((3.0, 3.1), (3.3, 3.4), True),
        ((3.3, 3.4), (3.0, 3.1), True),
        ((3.0, 3.1), (3.05, 3.12), False),
        ((3.0, 3.5), (3.6, 3.6), False),
        ((3.0,), (9.0,), False),
    ],
)
def test_arms_differ_by_more_than_the_larger_spread_or_not_at_all(one, other, resolved):
    assert routers.compared(one, other)["resolved"] == resolved


def test_the_script_stops_when_its_time_is_up_and_goes_on_later(tmp_path, text, monkeypatch, capsys):
    done = []

    def run(arm, steps, seed, _):
        done.append((arm, seed))
        return {"arm": arm, "seed": seed, "seconds": 1.0} | dict.fromkeys(routers.MEASURES, float(seed))

    monkeypatch.setattr(routers, "run", run)
    out, work = tmp_path / "r.json", tmp_path / "work"
    arguments = ["routers.py", "--seeds", "0", "1", "--source", str(text), "--work", str(work), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "0"])
    routers.main()
    assert "16 of 16 runs are left" in capsys.readouterr().out
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", arguments)
    routers.main()
    assert sorted(done) == sorted((arm, seed) for arm in routers.ARMS for seed in (0, 1))
    record = json.loads(out.read_text())
    assert record["rule"] == routers.RULE
    assert record["runs"].keys() == routers.ARMS.keys()
    assert all([run["seed"] for run in runs] == [0, 1] for runs in record["runs"].values())
    routers.main()
    assert len(done) == 16
