"""The verdict on one answer, given by a real worker: what passes, what is said when it does not, and nothing escapes."""

import time

import numpy as np
import pytest
import torch

from course.checking.compare import same
from course.checking.judge import Verdict, describe, draw
from course.checking.launch import forked, fresh
from course.checking.result import text

from small import RIGHT, SCALE, answer, by_division, negated, unscaled, variant, verdict_on  # isort: skip

from course.checking.answer import source_of


def first_failure(verdict: Verdict) -> str:
    assert verdict.status == "failed"
    assert not verdict.passed
    assert verdict.earned == 0
    return verdict.failures[0].what


@pytest.mark.parametrize("start", [forked, fresh])
@pytest.mark.parametrize("secret", [False, True])
def test_a_right_answer_passes(start, secret):
    verdict = verdict_on(RIGHT, start=start, secret=secret)
    assert verdict.status == "passed"
    assert verdict.earned == SCALE.points == 3
    assert len(verdict.cases) == verdict.total == (9 if secret else 3)
    assert verdict.misconception is None
    assert not verdict.failures


def test_another_right_answer_passes():
    assert verdict_on(source_of(by_division, "scale")).passed


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize(("function", "name"), [(unscaled, "unscaled"), (negated, "negated")])
def test_a_misconception_is_named(function, name, secret):
    verdict = verdict_on(source_of(function, "scale"), secret=secret)
    assert first_failure(verdict).startswith("scaled: ")
    assert verdict.misconception == name
    assert verdict.says == next(m.says for m in SCALE.misconceptions if m.name == name)


def test_a_misconception_is_not_named_when_one_case_differs_from_it():
    verdict = verdict_on(answer("return x_N * factor if len(x_N) == 2 else x_N.clone()"))
    assert len(verdict.failures) == 2
    assert verdict.misconception is None


def test_a_misconception_that_cannot_take_an_input_is_passed_over():
    def picky(x_N, factor):
        raise ValueError("no")

    first = variant(misconceptions=(type(SCALE.misconceptions[0])("picky", picky, "No."), *SCALE.misconceptions))
    assert verdict_on(source_of(negated, "scale"), first).misconception == "negated"


def test_a_wrong_answer_of_no_known_kind_is_failed_without_a_name():
    verdict = verdict_on(answer("return x_N + factor"))
    assert [case.number for case in verdict.failures] == [0, 1, 2]
    assert verdict.misconception is None
    assert verdict.says is None


def test_no_answer_and_a_blank_answer_are_not_done():
    for source in (None, answer("raise NotImplementedError"), answer("raise NotImplementedError()")):
        verdict = verdict_on(source)
        assert verdict.status == "not done"
        assert not verdict.passed
        assert verdict.earned == 0


def test_work_that_still_reaches_the_blank_is_not_done_and_told_why():
    left_over = verdict_on(answer("y_N = x_N * factor", "raise NotImplementedError", "return y_N"))
    assert left_over.status == "not done"
    assert text(left_over).endswith("Its line `raise NotImplementedError` is still there, and was reached.")
    assert text(verdict_on(answer('"""Doc."""', "raise NotImplementedError"))).endswith("not done yet")


def test_a_cell_that_ends_in_a_blank_is_not_done():
    assert verdict_on(RIGHT + "\nraise NotImplementedError\n").status == "not done"


def test_not_implemented_with_a_message_is_an_error_and_no_blank():
    verdict = verdict_on(answer('raise NotImplementedError("odd sizes")'))
    assert first_failure(verdict) == "it raised NotImplementedError in line 2 of the answer cell: odd sizes"


def test_a_subclass_of_not_implemented_is_an_error_and_no_blank():
    verdict = verdict_on(answer("raise Later", before="class Later(NotImplementedError): pass\n"))
    assert first_failure(verdict) == "it raised Later in line 3 of the answer cell"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["return 1 / 0"], "it raised ZeroDivisionError in line 2 of the answer cell: division by zero"),
        (["pass", "raise KeyError"], "it raised KeyError in line 3 of the answer cell"),
        (["raise SystemExit(3)"], "it raised SystemExit in line 2 of the answer cell: 3"),
        (["raise KeyboardInterrupt"], "it raised KeyboardInterrupt in line 2 of the answer cell"),
        (["return scale(x_N, factor)"], "it raised RecursionError in line 2 of the answer cell: maximum recursion"),
        (["return torch.ones(2) @ torch.ones(3)"], "it raised RuntimeError in line 2 of the answer cell: "),
        (["raise ExceptionGroup('two', [ValueError(), ValueError()])"], "it raised ExceptionGroup in line 2"),
        (["return helper(x_N)"], "move helpers into it"),
        (["return undefined"], "an answer runs alone: only the set-up cell's imports and this cell count"),
        (["return"], "returned nothing (None); is a return missing?"),
        (["return x_N.numpy()"], "returned a numpy.ndarray, which is neither a tensor nor a number"),
        (["return x_N.numpy()[0]"], "scaled: wanted a tensor of shape [1], float64, got float "),
        (["return scale"], "returned a function, which is neither a tensor nor a number"),
        (["return (n for n in x_N)"], "returned a generator, which is neither a tensor nor a number"),
        (["return [x_N.numpy()]"], "scaled: wanted a tensor of shape [1], float64, got 1 values"),
        (["return torch.ones(3)"], "scaled: shape [3], wanted [1]"),
        (["return (x_N * factor).float()"], "scaled: dtype float32, wanted float64"),
        (["return x_N * float('nan')"], "scaled: 1 of 1 numbers are NaN and should not be"),
        (["x_N *= factor", "return x_N"], "it changed its input `x_N` in place; leave the inputs as they are"),
        (["x_N.resize_(0)", "return x_N"], "it changed its input `x_N` in place"),
        (["loop = []", "loop.append(loop)", "return loop"], "it raised ValueError: The value is nested more than"),
        (["return torch.zeros(1).expand(10**12)"], "it raised ValueError: The value is larger than"),
        (["return bytearray(1 << 44)"], "it raised MemoryError in line 2"),
        (["torch.zeros(1 << 40)"], "it raised RuntimeError in line 2 of the answer cell: "),
        (["return torch.empty(2, dtype=torch.quint8)"], "it raised"),
        (["open('big', 'wb').write(bytes(100 << 20))"], "it"),
        (["return '\\ud800'"], "scaled: wanted a tensor of shape [1], float64, got str ?"),
    ],
)
def test_whatever_an_answer_does_the_verdict_says_it_in_one_line(lines, says):
    verdict = verdict_on(answer(*lines))
    what = first_failure(verdict)
    assert what.startswith(says) or says in what
    assert "\n" not in what.replace(what[120:], "")
    assert verdict.misconception is None
    text(verdict).encode()


ENDS = {
    "leaves": (["import os", "os._exit(3)"], "It ended the Python process (exit code 3)."),
    "leaves-in-peace": (["import os", "os._exit(0)"], "It ended the Python process (exit code 0)."),
    "segfault": (["import ctypes", "ctypes.string_at(0)"], "It ended the Python process (SIGSEGV)."),
    "abort": (["import os", "os.abort()"], "It ended the Python process (SIGABRT)."),
    "closes-its-pipes": (["import os", "os.closerange(3, 64)", "return x_N"], "It ended the Python process"),
}
HANGS = {
    "loop": ["while True: pass"],
    "chatty-loop": ["while True: print('x' * 100_000)"],
    "deaf-to-signals": ["import signal, time", "signal.pthread_sigmask(0, range(1, 32))", "time.sleep(60)"],
    "stops-itself": ["import os", "os.kill(os.getpid(), 19)"],
}


@pytest.mark.parametrize(
    ("start", "end"),
    [*((forked, end) for end in ENDS), (fresh, "leaves"), (fresh, "segfault"), (fresh, "closes-its-pipes")],
)
def test_an_answer_that_ends_its_process_costs_the_judge_nothing(start, end):
    lines, says = ENDS[end]
    verdict = verdict_on(answer(*lines), start=start)
    assert first_failure(verdict).startswith(says)
    assert len(verdict.cases) == 1
    assert verdict.total == 3


@pytest.mark.parametrize("lines", HANGS.values(), ids=HANGS.keys())
def test_an_answer_that_never_returns_is_ended(lines):
    begun = time.monotonic()
    verdict = verdict_on(answer(*lines), start=forked, seconds=0.6)
    assert first_failure(verdict) == "It did not finish within 1 seconds. Is there a loop that never ends?"
    assert len(verdict.cases) == 1
    assert time.monotonic() - begun < 3


def test_an_answer_that_never_returns_is_ended_in_a_fresh_process_too():
    verdict = verdict_on(answer("while True: print('x')"), start=fresh, seconds=1.5)
    assert first_failure(verdict).startswith("It did not finish within 2 seconds")


def test_deep_recursion_past_the_limit_ends_the_worker_and_nothing_else():
    body = ["import sys", "sys.setrecursionlimit(10**9)", "def f(x): return f([x].__len__() + x)", "return f(1)"]
    assert "It " in first_failure(verdict_on(answer(*body), seconds=1.0))


def test_memory_is_bounded():
    verdict = verdict_on(answer("held = [torch.empty(10**9) for _ in range(5)]", "return x_N"))
    assert first_failure(verdict).startswith("it raised RuntimeError in line 2 of the answer cell: ")
    assert "memory" in first_failure(verdict)


def test_what_an_answer_prints_is_kept_up_to_a_cap_and_shown():
    verdict = verdict_on(answer("for n in range(10**5): print('line', n)", "return x_N"))
    assert 100 < len(verdict.printed) <= 4000
    shown = text(verdict)
    assert "It printed:\n  line 0\n  line 1\n" in shown
    assert shown.count("line") < 15


@pytest.mark.parametrize("start", [forked, fresh])
def test_print_without_a_line_end_and_writing_to_standard_error_are_both_kept(start, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    body = ["import sys", "print('half', end='')", "sys.stderr.write('a line\\n')", "return x_N"]
    printed = verdict_on(answer(*body), start=start).printed
    assert printed.count("half") == printed.count("a line") == 3


@pytest.mark.parametrize("start", [forked, fresh])
def test_what_was_printed_before_a_crash_is_kept(start, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert verdict_on(answer("print('here')", "import os", "os._exit(1)"), start=start).printed == "here\n"


@pytest.mark.parametrize("start", [forked, fresh])
def test_an_answer_reads_nothing_from_standard_input(start):
    verdict = verdict_on(answer("return x_N * factor if input() == '' else 0"), start=start)
    assert first_failure(verdict) == "it raised EOFError in line 2 of the answer cell: EOF when reading a line"


def test_a_cell_that_fails_when_it_is_run_says_so():
    verdict = verdict_on(RIGHT + "\n1 / 0\n")
    assert verdict.reason == (
        "The answer cell could not be run: ZeroDivisionError in line 4 of the answer cell: division by zero."
    )
    assert not verdict.cases
    assert verdict.status == "failed"


@pytest.mark.parametrize(
    ("line", "says"), [("while True: pass", "did not finish"), ("import os; os._exit(1)", "(exit code 1)")]
)
def test_a_cell_that_never_gets_to_its_function_says_so(line, says):
    verdict = verdict_on(RIGHT + f"\n{line}\n", seconds=0.5)
    assert verdict.reason.startswith("The answer cell could not be run. It ")
    assert says in verdict.reason


def test_a_cell_may_use_the_names_of_the_prelude_and_its_own_helpers():
    source = answer(
        "return helper(x_N * math.sqrt(float(np.float64(factor) ** 2)))",
        before="def helper(x: Tensor): return F.relu(x) - F.relu(-x)\n",
    )
    assert verdict_on(source).passed


def test_wrong_names_of_arguments_are_said():
    verdict = verdict_on("def scale(x, factor):\n    return x * factor\n")
    assert "unexpected keyword argument 'x_N'" in first_failure(verdict)


def test_answers_that_change_global_state_do_not_change_the_next_verdict():
    wreck = [
        "torch.set_default_dtype(torch.float16)",
        "torch.use_deterministic_algorithms(True)",
        "torch.manual_seed(0)",
        "torch.set_grad_enabled(False)",
        "torch.mul = torch.add",
        "torch.Tensor.__mul__ = torch.Tensor.__add__",
        "torch.equal = torch.allclose = lambda *a, **k: True",
        "import builtins, sys, os",
        "builtins.len = lambda x: 0",
        "np.random.default_rng = None",
        "os.environ['TRITON_INTERPRET'] = '0'",
        "sys.modules.clear()",
        "return x_N * factor",
    ]
    before = draw(SCALE, 3, 2)["x_N"]
    verdict = verdict_on(answer(*wreck))
    assert verdict.status == "failed"
    assert verdict_on(RIGHT).passed
    assert verdict_on(source_of(negated, "scale")).misconception == "negated"
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(draw(SCALE, 3, 2)["x_N"], before)


def test_an_answer_that_rigs_comparison_is_still_compared():
    body = [
        "torch.equal = torch.allclose = torch.Tensor.__ne__ = lambda *a, **k: False",
        "torch.Tensor.norm = lambda *a, **k: torch.zeros(())",
        "return x_N",
    ]
    assert verdict_on(answer(*body)).misconception == "unscaled"


def test_inputs_are_the_same_for_a_seed_and_case_and_other_ones_otherwise():
    for seed in (0, 1, 2**64 - 1):
        for number in (0, 2):
            a, b = draw(SCALE, seed, number), draw(SCALE, seed, number)
            assert torch.equal(a["x_N"], b["x_N"])
    seen = {tuple(draw(SCALE, seed, 0)["x_N"].tolist()) for seed in range(20)}
    assert len(seen) == 20


def test_two_exercises_draw_different_numbers_from_one_seed():
    other = variant(id="90.2")
    assert not torch.equal(draw(SCALE, 0, 2)["x_N"], draw(other, 0, 2)["x_N"])


def test_secret_cases_come_in_another_order_each_time():
    log = answer("print(len(x_N))", "return x_N")
    orders = {verdict_on(log, secret=True).printed for _ in range(4)}
    assert len(orders) > 1


def test_an_answer_cannot_tell_its_calls_apart_by_counting_them():
    source = answer("calls.append(1)", "return x_N * factor if len(calls) < 3 else x_N", before="calls = []\n")
    assert verdict_on(source).failures
    assert verdict_on(source, secret=True).failures


def test_the_inputs_of_one_case_do_not_reach_the_next():
    source = answer("kept.append(x_N)", "return kept[0] * factor", before="kept = []\n")
    assert len(verdict_on(source).failures) == 2


def test_an_earlier_function_is_the_references_whatever_the_learner_wrote_then():
    later = variant(id="90.2", entry="twice", uses=("90.1",), reference=lambda x_N, factor: x_N * factor * factor)
    for call in ("scale(scale(x_N, factor), factor)", 'mine("90.1")(mine("90.1")(x_N, factor), factor)'):
        source = f"def twice(x_N, factor):\n    return {call}\n"
        assert verdict_on(source, later, earlier=[SCALE]).passed
    imported = 'from course import mine\ndef twice(x_N, factor):\n    return mine("90.1")(x_N, factor) * factor\n'
    for start in (forked, fresh):
        assert verdict_on(imported, later, earlier=[SCALE], start=start).passed
    assert "KeyError" in first_failure(verdict_on(imported.replace('"90.1"', '"90.7"'), later, earlier=[SCALE]))


@pytest.mark.parametrize("start", [forked, fresh])
def test_no_part_of_the_course_is_there_for_an_answer(start):
    parts = ["course.exercises", "course.model", "course.checking.judge", "course.grading"]
    body = [
        "import importlib",
        f"for part in {parts}:",
        "    try: importlib.import_module(part)",
        "    except ImportError as error: print(error)",
        "return x_N",
    ]
    printed = verdict_on(answer(*body), start=start).printed.splitlines()
    assert printed[: len(parts)] == [f"{part} is not there for this answer" for part in parts]


@pytest.mark.parametrize("start", [forked, fresh])
def test_what_an_exercise_gives_is_there(start):
    given = variant(gives=("course.model.config",))
    source = answer("return x_N * factor", before="from course.model.config import ModelConfig\n")
    assert verdict_on(source, given, start=start).passed
    assert "this exercise asks you" in verdict_on(source, start=start).reason


HIDDEN = {
    "getattr": 'getattr(torch, "to" + "pk")(x_N, 1)',
    "method": 'getattr(x_N, "to" + "pk")(1)',
    "vars": 'vars(torch)["to" + "pk"](x_N, 1)',
    "operator": '__import__("operator").methodcaller("to" + "pk", 1)(x_N)',
    "eval": 'eval("x_N.to" + "pk(1)")',
    "map": 'list(map(getattr(torch, "to" + "pk"), [x_N], [1]))',
    "star": "pick(x_N, 1)",
}


@pytest.mark.parametrize("expression", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_forbidden_call_that_reading_misses_is_caught_when_it_runs(expression):
    exercise = variant(forbids=("torch.topk", "Tensor.topk", "numpy.median"))
    source = answer(f"{expression}", "return x_N * factor", before="exec('from torch import to' + 'pk as pick')\n")
    what = first_failure(verdict_on(source, exercise))
    assert "topk, which is out of bounds in this exercise" in what
    assert verdict_on(source).passed


def test_what_is_not_forbidden_may_run_even_where_its_name_resembles():
    exercise = variant(forbids=("numpy.sort", "torch.topk"))
    assert verdict_on(answer("torch.sort(x_N), x_N.sort()", "return x_N * factor"), exercise).passed


def test_a_comparison_that_stumbles_over_a_value_is_a_failed_case():
    def stumbles(inputs, wanted, got):
        raise TypeError("no")

    verdict = verdict_on(RIGHT, variant(compare=stumbles))
    assert (
        first_failure(verdict)
        == "returned a tensor of shape [1], float64, which cannot be compared with what was wanted"
    )


def test_the_sizes_of_a_case_are_named_by_the_letters_of_its_tensors():
    inputs = {
        "scores_TE": torch.ones(7, 16),
        "bias_E": torch.ones(16),
        "plain": torch.ones(2, 3),
        "scalar": torch.tensor(1.0),
        "k": 4,
        "eps": 0.5,
        "on": True,
        "text": "a" * 40,
        "tree": {"a": torch.ones(3)},
    }
    assert describe(inputs) == f"T=7 E=16 plain=[2, 3] k=4 eps=0.5 on=True text={'a' * 20!r}"
    assert (
        describe({"widths": [3, 2], "x_TD": torch.zeros(4, 8, dtype=torch.bfloat16)})
        == "widths=[3, 2] T=4 D=8 bfloat16"
    )
    assert describe({"losses_N": torch.tensor([3.5, float("nan")]), "b_M": torch.ones(0)}) == "losses_N=[3.5, nan] M=0"
    grads = {"up": None, "down": torch.ones(2, 3, dtype=torch.bfloat16)}
    assert describe({"grads": grads}) == "grads['up']=None bfloat16"
    assert describe({"grads": list(grads.values())}) == "grads[0]=None bfloat16"
    assert describe({"offsets_E1": torch.zeros(20), "pairs_P": torch.zeros(20)}) == "offsets_E1=(20 numbers) P=20"
    assert describe({}) == ""


def test_a_check_costs_less_than_half_a_second():
    costs = []
    for _ in range(3):
        begun = time.monotonic()
        assert verdict_on(RIGHT).passed
        costs.append(time.monotonic() - begun)
    assert min(costs) < 0.5


def test_a_property_is_compared_by_the_exercise_itself():
    def any_order(inputs, wanted, got):
        return same("sorted")(inputs, wanted.sort().values, got.sort().values)

    exercise = variant(compare=any_order)
    assert verdict_on(answer("return (x_N * factor).flip(0)"), exercise).passed
    assert verdict_on(answer("return (x_N * factor).flip(0)")).status == "failed"


def test_inputs_may_be_trees():
    def nested(rng, number):
        return {"layer": {"weights": [torch.tensor(rng.normal(size=2)), None], "on": bool(number)}}

    def total(layer):
        return layer["weights"][0].sum() if layer["on"] else torch.tensor(np.float64(0.0))

    exercise = variant(inputs=nested, reference=total, entry="total", misconceptions=())
    assert verdict_on(source_of(total, "total"), exercise).passed
    changed = source_of(total, "total").replace("    return", "    layer['weights'].pop()\n    return")
    assert "changed its input `layer`" in first_failure(verdict_on(changed, exercise))
