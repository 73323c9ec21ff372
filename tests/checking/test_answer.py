"""What reading alone refuses, and how a function becomes the source of an answer."""

import linecache
import types

import pytest
import safetensors.torch
import triton
import triton.language as tl

from course.checking.answer import AnswerError, cell_of, look_at, prelude, source_of

from small import RIGHT, SCALE, answer, scaled, variant  # isort: skip

NO_TOPK = variant(forbids=("torch.topk", "Tensor.topk", "torch.nn.functional.softmax", "numpy.sort"))


def complaint(source, exercise=SCALE) -> str | None:
    try:
        look_at(exercise, source)
    except AnswerError as error:
        return str(error)


def test_a_right_answer_has_nothing_to_complain_about():
    assert complaint(RIGHT) is None
    assert complaint("import math\n" + RIGHT + "\nprint(scale)") is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def scale(:", "not valid Python in line 1: "),
        ("\n\nreturn x +", "not valid Python in line 3: "),
        (answer("%timeit 3"), "not valid Python in line 2: "),
        ("def scale(x):\n\t pass\n    pass", "not valid Python in line"),
        ("x = '\0'", "not valid Python"),
        ("(" * 5000 + ")" * 5000, "not valid Python"),
        ("-" * 200_000 + "1", "not valid Python"),
        ("", "does not define `scale`"),
        ("def other(): pass", "does not define `scale` as a function"),
        ("scale = lambda x_N, factor: x_N", "does not define `scale` as a function"),
        ("class scale: pass", "does not define `scale` as a function"),
        ("async def scale(x_N, factor): pass", "does not define `scale` as a function"),
        ("def outer():\n    def scale(): pass", "does not define `scale` as a function"),
    ],
)
def test_a_text_that_is_no_answer_is_refused_in_a_sentence(source, says):
    message = complaint(source)
    assert says in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    "line",
    [
        "import course",
        "import course as c",
        "import course.model",
        "import course.model.norm as n",
        "import math, course.exercises",
        "from course import model",
        "from course import check, mine",
        "from course.model import *",
        "from course.model.norm import rmsnorm as mine",
        "from course.checking.worker import serve",
    ],
)
def test_the_course_cannot_be_imported(line):
    for source in (f"{line}\n{RIGHT}", answer(line, "return x_N")):
        assert "this exercise asks you to write the part yourself" in complaint(source)


def test_what_an_exercise_gives_can_be_imported_in_every_spelling_and_nothing_beside_it():
    given = variant(gives=("course.model.norm",))
    for line in (
        "from course.model.norm import rmsnorm",
        "from course.model import norm",
        "import course.model.norm",
        "import course.model.norm as n",
        "from course.model.norm import *",
    ):
        assert complaint(f"{line}\n{RIGHT}", given) is None, line
    for line in ("from course.model import moe", "import course.model", "import course.model.normal", "import course"):
        assert complaint(f"{line}\n{RIGHT}", given), line


def test_mine_can_be_imported_anywhere():
    assert complaint("from course import mine\n" + RIGHT) is None


@pytest.mark.parametrize(
    "source",
    [
        answer("return torch.topk(x_N, 2)"),
        answer("return x_N.topk(2)"),
        answer("return (x_N + 1).topk(2)"),
        answer("return x_N[0].topk(2).values"),
        answer("return torch.Tensor.topk(x_N, 2)"),
        answer("return Tensor.topk(x_N, 2)"),
        answer("pick = torch.topk", "return pick(x_N, 2)"),
        answer("pick = x_N.topk", "return pick(2)"),
        answer("return t.topk(x_N, 2)", before="import torch as t\n"),
        answer("return topk(x_N, 2)", before="from torch import topk\n"),
        answer("return k(x_N, 2)", before="from torch import topk as k\n"),
        answer("return T.topk(x_N, 2)", before="from torch import Tensor as T\n"),
        answer("from torch import topk", "return topk(x_N, 2)"),
        answer("return F.softmax(x_N, 0)"),
        answer("return torch.nn.functional.softmax(x_N, 0)"),
        answer("return nn.functional.softmax(x_N, 0)", before="from torch import nn\n"),
        answer("return f.softmax(x_N, 0)", before="import torch.nn.functional as f\n"),
        answer("return f.softmax(x_N, 0)", before="from torch.nn import functional as f\n"),
        answer("return softmax(x_N, 0)", before="from torch.nn.functional import softmax\n"),
        answer("return torch.from_numpy(np.sort(x_N))"),
        answer("return sort(x_N)", before="from numpy import sort\n"),
    ],
)
def test_a_forbidden_call_is_found_in_every_spelling(source):
    message = complaint(source, NO_TOPK)
    assert "which is out of bounds in this exercise" in message
    assert message.startswith("Line ")


@pytest.mark.parametrize(
    "source",
    [
        answer("return x_N.sort().values", "# torch.topk would do"),
        answer("return torch.sort(x_N)"),
        answer("return F.log_softmax(x_N, 0)"),
        answer("topk = 3", "return x_N[:topk]"),
        answer("'x_N.topk(3)'", "return x_N"),
    ],
)
def test_what_only_resembles_a_forbidden_call_is_left_alone(source):
    assert complaint(source, NO_TOPK) is None


def test_the_prelude_of_a_kernel_exercise_has_triton_as_well():
    names = {}
    exec(prelude(SCALE), names)
    assert {"math", "np", "torch", "F", "Tensor"} <= set(names)
    assert "triton" not in prelude(SCALE)
    exec(prelude(variant(kernel=True)), names)
    assert names["tl"] is tl


def test_the_source_of_a_function_takes_the_name_of_the_entry():
    source = source_of(scaled, "scale")
    assert source == "def scale(x_N, factor):\n    return x_N * factor\n"
    assert complaint(source) is None


@triton.jit
def _double(x, out, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    tl.store(out + d, 2 * tl.load(x + d))


def doubled(x_N, out_N):
    _double[(1,)](x_N, out_N, BLOCK=16)
    return out_N


def test_the_kernels_that_a_function_launches_come_with_its_source():
    source = source_of(doubled, "double")
    assert source.startswith("@triton.jit\ndef _double(")
    assert source.count("def ") == 2
    assert "def double(x_N, out_N):" in source


def in_a_cell(text: str, name: str):
    """A function defined by a cell as a kernel runs it: its text is in linecache under a name of its own."""
    file = f"/tmp/ipykernel_1/{abs(hash(text))}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {}
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]


def test_the_cell_of_a_function_is_its_whole_text_with_helpers_and_comments():
    text = "# exercise 90.1\ndef helper(): pass\n\ndef scale(x_N, factor):\n    return x_N * factor\n\nscale\n"
    assert cell_of(in_a_cell(text, "scale")) == text


@pytest.mark.parametrize("value", [None, 3, "scale", RIGHT, SCALE, print], ids=lambda v: type(v).__name__)
def test_what_is_no_function_is_refused_in_a_sentence(value):
    with pytest.raises(AnswerError, match=r"check needs the function itself, and got .*\.$"):
        cell_of(value)


def test_a_function_without_a_source_says_to_run_its_cell_again():
    namespace = {}
    exec("def scale(x_N, factor): return x_N", namespace)
    with pytest.raises(AnswerError, match=r"`scale` cannot be found: run its answer cell again"):
        cell_of(namespace["scale"])


def test_a_function_of_a_library_or_of_the_course_is_no_answer():
    from course.model import swiglu

    for function in (safetensors.torch.save, *[f for f in vars(swiglu).values() if isinstance(f, types.FunctionType)]):
        with pytest.raises(AnswerError, match="comes from a library: write it in the answer cell"):
            cell_of(function)
