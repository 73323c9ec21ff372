"""What a learner reads: the same in words and in HTML, with nothing in it that differs from run to run."""

import html
import re

import pytest

from course.checking.judge import Case, Verdict
from course.checking.result import PRINTED, Result, text

from small import RIGHT, answer, negated, verdict_on  # isort: skip

from course.checking.answer import source_of

PASSED = Verdict("90.1", "scale", 3, "passed", (Case(0, "N=1"),), 1)
BLANK = Verdict("90.1", "scale", 3, "not done")
FAILED = Verdict(
    "90.1",
    "scale",
    3,
    "failed",
    (Case(0, "N=1"), Case(1, "N=2 factor=3", "scaled: wanted 1, got 2"), Case(2, "N=3", "another")),
    3,
    misconception="unscaled",
    says="It looks like the factor was left out.",
    printed="first\nsecond\n",
)
REFUSED = Verdict("90.1", "scale", 3, "failed", reason="The answer cell does not define `scale` as a function.")
SCRIPT = "<script>alert('&')</script>"
HOSTILE = Verdict(
    "90.1", f"title {SCRIPT}", 1, "failed", (Case(0, SCRIPT, SCRIPT),), 1, reason=SCRIPT, says=SCRIPT, printed=SCRIPT
)
LINES = Verdict(
    "90.1", "scale", 1, "failed", (Case(0, "N=1", "it raised an error:\n  ^ here"),), 1, reason="So\nit is."
)
ALL = {"lines": LINES, "passed": PASSED, "blank": BLANK, "failed": FAILED, "refused": REFUSED, "hostile": HOSTILE}


def words(markup: str) -> list[str]:
    """The text of the HTML, block by block, without the mark before the title."""
    blocks = [html.unescape(re.sub(r"<[^>]+>", "", block)) for block in re.split(r"</?div[^>]*>", markup)]
    blocks = [block for block in blocks if block]
    return [re.sub(r"^\S ", "", blocks[0]), *blocks[1:]]


def test_a_failing_check_reads_as_the_style_says():
    assert text(FAILED) == (
        "90.1 scale: 1 of 3 cases pass\n"
        "\n"
        "case 2  N=2 factor=3\n"
        "        scaled: wanted 1, got 2\n"
        "It looks like the factor was left out.\n"
        "It printed:\n"
        "  first\n"
        "  second\n"
        "More: course hint 90.1"
    )


def test_the_other_verdicts_are_one_line_or_a_reason():
    assert text(PASSED) == "90.1 scale: passed, 3 points"
    assert text(Verdict("90.1", "scale", 1, "passed")) == "90.1 scale: passed, 1 point"
    assert text(BLANK) == "90.1 scale: not done yet"
    assert text(REFUSED).splitlines() == ["90.1 scale: failed", "", REFUSED.reason, "More: course hint 90.1"]


def test_a_message_of_several_lines_stays_under_its_case():
    assert text(LINES).splitlines()[2:6] == ["So", "it is.", "case 1  N=1", "        it raised an error:"]
    assert text(LINES).splitlines()[6] == "          ^ here"


@pytest.mark.parametrize("verdict", ALL.values(), ids=ALL.keys())
def test_the_text_twin_says_what_the_html_says(verdict):
    result = Result(verdict)
    assert repr(result) == text(verdict)
    assert words(result._repr_html_()) == [line for line in text(verdict).splitlines() if line]


def test_script_in_a_message_is_shown_and_not_run():
    markup = Result(HOSTILE)._repr_html_()
    assert "<script" not in markup
    assert markup.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 6
    assert set(re.findall(r"<(\w+)", markup)) == {"div", "span", "b"}


def test_script_that_an_answer_raises_prints_or_returns_is_shown_and_not_run():
    for line in (
        f"raise ValueError({SCRIPT!r})",
        f"return {SCRIPT!r}",
        f"print({SCRIPT!r})",
        f"return {{{SCRIPT!r}: 1}}",
    ):
        verdict = verdict_on(answer(line))
        assert "<script>" in text(verdict)
        assert "<script" not in Result(verdict)._repr_html_()


def test_the_mark_before_the_title_is_hidden_from_screen_readers():
    for verdict in ALL.values():
        assert Result(verdict)._repr_html_().count('aria-hidden="true"') == 1


def test_long_output_is_cut_by_lines_and_by_width():
    verdict = verdict_on(answer("print('x' * 3000)", "for n in range(50): print(n)", "return x_N"))
    printed = text(verdict).split("It printed:\n")[1].splitlines()
    assert len(printed) == PRINTED + 2
    assert max(map(len, printed)) <= 122
    assert printed[-2] == "  ..."


def test_nothing_in_a_result_depends_on_how_long_it_took():
    slow = "import time; time.sleep(0.05); "
    for source in (RIGHT, source_of(negated, "scale"), answer("print(1)", "raise ValueError('no')")):
        late = source.replace("\n    ", f"\n    {slow}", 1)
        assert repr(Result(verdict_on(source))) == repr(Result(verdict_on(late)))
        assert Result(verdict_on(source))._repr_html_() == Result(verdict_on(late))._repr_html_()
