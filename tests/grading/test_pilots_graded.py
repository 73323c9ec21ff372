"""The pilot exercises through the real sandbox, on secret inputs: what is right passes, what is wrong is named."""

import pytest
from conftest import answer

PILOTS = ["05.9", "07.9", "10.9"]


@pytest.mark.parametrize("name", PILOTS)
def test_right_answers_pass(pilots, graded, name):
    exercise = pilots[name]
    right = [*exercise.alternatives] if exercise.kernel else [exercise.reference, *exercise.alternatives]
    for function in right:
        verdict, grade = graded(answer(exercise, function), name)
        assert verdict.passed, verdict
        assert grade.total == 10
        assert verdict.total == 3 * exercise.cases


@pytest.mark.parametrize("name", PILOTS)
def test_every_misconception_fails_and_is_named(pilots, graded, name):
    for misconception in pilots[name].misconceptions:
        verdict, grade = graded(answer(pilots[name], misconception.answer), name)
        assert (verdict.status, verdict.misconception, grade.total) == ("failed", misconception.name, 0)


@pytest.mark.parametrize("name", PILOTS)
def test_a_blank_answer_is_not_done(pilots, graded, name):
    blank = f"def {pilots[name].entry}(**inputs):\n    # YOUR CODE HERE\n    raise NotImplementedError\n"
    assert graded(blank, name)[0].status == "not done"


def test_a_kernel_exercise_answered_in_pytorch_earns_nothing(pilots, graded):
    verdict, grade = graded(answer(pilots["10.9"]), "10.9")
    assert grade.total == 0
    assert verdict.failures[0].what == "no Triton kernel was launched"


KERNEL = """
@triton.jit
def scale_rows(x, weight, out, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0)
    values *= tl.load(weight + d, mask=d < D, other=0.0) / tl.sqrt(tl.sum(values * values) / D + eps)
    tl.store(out + row * D + d, values, mask=d < D)

def rmsnorm(x_ND, weight_D, eps):
    out_ND = torch.empty_like(x_ND)
    N, D = x_ND.shape
    scale_rows[(N,)](x_ND, weight_D, out_ND, D, eps, BLOCK=triton.next_power_of_2(D))
    return out_ND
"""


def test_a_kernel_that_reads_past_its_tensor_is_told_so(graded):
    verdict, grade = graded(
        KERNEL.replace("tl.load(x + row * D + d, mask=d < D, other=0.0)", "tl.load(x + row * D + d)"), "10.9"
    )
    assert grade.total == 0
    assert "a fault in the kernel" in verdict.failures[0].what


def test_a_kernel_that_only_the_interpreter_takes_earns_nothing(graded):
    assert graded(KERNEL, "10.9")[0].passed
    verdict, grade = graded(KERNEL.replace("    tl.store", "    [0 for _ in range(2)]\n    tl.store"), "10.9")
    assert grade.total == 0
    assert "not on an H100" in verdict.reason
