r"""The grader's modes, its typed verdicts, equivalence classes, and fuzzing."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl_envs import Env, Grader, GraderFailure, Transcript, Verdict
from agentrl_envs.graders import Conventions
from agentrl_envs.graders.cleaning import cleaned, compact
from agentrl_envs.graders.exact import number_of
from agentrl_envs.graders.strict import strict_verdict
from agentrl_envs.graders.structure import form_of

DEAD = "the exact path must decide this without starting a process"


class NoProcesses(Grader):
    """A grader whose symbolic path must not be reached."""

    def _submit(self, stated: str, gold: str, tolerance: float = 0.0):
        raise AssertionError(DEAD)


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"<think>long</think>So \boxed{34}", Verdict.RIGHT),
        (r"So \boxed{34}", Verdict.NO_ANSWER),  # exactly one </think> is required
        (r"a</think>b</think>\boxed{34}", Verdict.NO_ANSWER),
        (r"</think><code>1</code>\boxed{34}", Verdict.NO_ANSWER),
        (r"</think><interpreter>1</interpreter>\boxed{34}", Verdict.NO_ANSWER),
        (r"<code>1</code></think>\boxed{34}", Verdict.RIGHT),
        (
            r"</think>\boxed{34}" + "x" * 89,
            Verdict.RIGHT,
        ),  # \boxed{34} has 10 characters and is the last 100 less 90
        (r"</think>\boxed{34}" + "x" * 91, Verdict.NO_ANSWER),
        (r"</think>\boxed{ 34}", Verdict.WRONG),  # equality of characters, nothing else
        (r"</think>\boxed{034}", Verdict.WRONG),
        (r"</think>\boxed{34.0}", Verdict.WRONG),
        (r"</think>\boxed{3} \boxed{34}", Verdict.RIGHT),
        (r"</think>\boxed{34} \boxed{3}", Verdict.WRONG),
        (r"</think>\boxed{34", Verdict.NO_ANSWER),
        (r"</think>34", Verdict.NO_ANSWER),
        (
            r"\boxed{34}</think>",
            Verdict.RIGHT,
        ),  # as published: the window is over the response, not what follows
        ("", Verdict.NO_ANSWER),
        (None, Verdict.NO_ANSWER),
    ],
)
def test_the_published_rule(response: str | None, verdict: Verdict):
    assert strict_verdict(response, "34") is verdict
    assert Grader(mode="strict").grade_sync(response, "34") is verdict
    assert NoProcesses().strict(response, "34") is verdict


def test_nested_braces_in_the_published_rule():
    assert strict_verdict(r"</think>\boxed{\frac{1}{2}}", r"\frac{1}{2}") is Verdict.RIGHT


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("7", "7"), ("1,234", "1234"), (r"\frac{1}{2}", "0.5"), (r"\text{Evelyn}", "Evelyn"), ("x=5", "5"),
        ("5", "6"), ("(1,2)", "(1, 2)"), ("1, 2", "2,1"), (r"50\%", "50"), ("7=12", "12"),
        ("x" * 5000, "7"), ("(" * 200, "7"),
    ],
)  # fmt: skip
def test_simple_forms_start_no_process(answer: str, gold: str):
    assert NoProcesses().grade_sync(f"\\boxed{{{answer}}}", gold) in set(Verdict)


def test_every_verdict_is_typed(grader: Grader):
    assert grader.grade_sync(r"\boxed{4}", "4") is Verdict.RIGHT
    assert grader.grade_sync(r"\boxed{5}", "4") is Verdict.WRONG
    assert grader.grade_sync("four", "4") is Verdict.NO_ANSWER
    assert grader.grade_sync(r"\boxed{\frac{1}{}+}", "x+1") is Verdict.CANNOT_PARSE
    assert Verdict.RIGHT.right
    assert not Verdict.WRONG.right
    assert grader.grade_sync(f"\\boxed{{{'x+' * 2000}x}}", "x+1") is Verdict.TOO_LONG
    assert grader.grade_sync(f"\\boxed{{{'(' * 100}x{')' * 100}}}", "x+1") is Verdict.TOO_LONG
    undecided = {Verdict.CANNOT_PARSE, Verdict.TOO_LONG, Verdict.TIMED_OUT}
    assert {v for v in Verdict if v.undecided} == undecided
    assert [v for v in Verdict if v.failed] == [Verdict.GRADER_FAILED]
    assert str(Verdict.RIGHT) == "right"


async def test_a_custom_grader_is_a_function():
    def by_length(answer, gold):
        return len(answer or "") == int(gold)

    async def by_verdict(answer, gold):
        await asyncio.sleep(0)
        return Verdict.CANNOT_PARSE

    assert await Grader(function=by_length).grade("abc", "3") is Verdict.RIGHT
    assert Grader(function=by_length).grade_sync("abcd", "3") is Verdict.WRONG
    assert await Grader(function=by_verdict).grade("abc", "3") is Verdict.CANNOT_PARSE
    with pytest.raises(TypeError, match="must return a bool or a Verdict, not 'yes'"):
        await Grader(function=lambda answer, gold: "yes").grade("a", "b")
    with pytest.raises(ValueError, match="grader mode"):
        Grader(mode="exact")


class Graded(Env):
    def reward(self, row, answer):
        return self.grade(answer, "1")


@pytest.mark.parametrize("verdict", [v for v in Verdict if v.undecided])
async def test_an_answer_that_cannot_be_compared_is_wrong(verdict: Verdict):
    # Fails if `_decide` raises for them: a model that writes towers when it is wrong would lose no point.
    env = Graded(grader=Grader(function=lambda answer, gold: verdict))
    reward = await env.score({}, r"\boxed{1}", Transcript())
    assert (reward.value, reward.verdict) == (0.0, verdict.value)
    await env.aclose()


async def test_a_broken_grader_gives_no_reward():
    env = Graded(grader=Grader(function=lambda answer, gold: Verdict.GRADER_FAILED))
    with pytest.raises(GraderFailure) as failure:
        await env.score({}, r"\boxed{1}", Transcript())
    assert failure.value.infrastructure
    await env.aclose()


SETTINGS = [
    (Conventions(decimal_comma=True), "3,14", "3.14", True),
    (Conventions(decimal_comma=True), "1.234,5", "1234{,}5", True),
    (Conventions(decimal_comma=True), "1,5; 2", "2; 3/2", True),
    (Conventions(decimal_comma=True), "1,234", "1234", False),
    (Conventions(), "3,14", "3.14", False),
    (Conventions(log_base="e"), r"\log 2", r"\ln 2", True),
    (Conventions(log_base="2"), r"\log 8", "3", True),
    (Conventions(log_base="e"), r"\log_{10} 100", "2", True),
    (Conventions(), r"\log 1000", "3", True),
    (Conventions(), r"\log 2", r"\ln 2", False),
    (Conventions(), r"50\%", "50", True),
    (Conventions(), r"5\text{ cm}", "5", True),
]


@pytest.fixture(scope="module")
def graders() -> Iterator[Callable[[Conventions], Grader]]:
    """A grader for each set of conventions: starting its processes takes a second."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def grader(conventions: Conventions) -> Grader:
            made = Grader(conventions=conventions, processes=1)
            stack.callback(made.close)
            return made

        yield grader


@pytest.mark.parametrize(("conventions", "answer", "gold", "right"), SETTINGS)
def test_conventions_of_a_data_set(
    graders: Callable[[Conventions], Grader], conventions: Conventions, answer: str, gold: str, right: bool
):
    grader = graders(conventions)
    assert grader.grade_sync(f"\\boxed{{{answer}}}", gold).right is right
    assert grader.equivalent_sync(answer, gold) is right  # votes follow the same equivalence


def test_conventions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match='log_base .* want "10"'):
        Conventions(log_base="3")


@pytest.mark.slow
def test_tolerance_holds_for_every_number():
    grader = Grader(tolerance=0.01, processes=1)
    try:
        pairs = [
            ("3.14", r"\pi"),
            ("99.5", "100"),
            ("(1.001,2)", "(1,2)"),
            (r"\sqrt{101}", "10"),
            ("7.05", "7"),
        ]
        assert [grader.grade_sync(f"\\boxed{{{a}}}", g).right for a, g in pairs] == [True] * 5
        assert grader.grade_sync(r"\boxed{98}", "100") is Verdict.WRONG
        assert grader.grade_sync(r"\boxed{3.1}", r"\pi") is Verdict.WRONG
    finally:
        grader.close()


@pytest.mark.parametrize("answer", ["8\x00", "\x008", "8\x0b", "\u200e8", "−8\x00"])
def test_control_characters_say_nothing(answer: str):
    assert (
        NoProcesses().grade_sync(f"\\boxed{{{answer}}}", "8" if "−" not in answer else "-8") is Verdict.RIGHT
    )


CLASSES = [
    ["1/2", r"\frac{1}{2}", "0.5", r"\boxed{\dfrac12}", r"\tfrac{2}{4}"],
    ["1234", "1,234", r"1\,234", "1234.0", r"x and \boxed{1{,}234}"],
    [r"\text{Evelyn}", "evelyn", "Evelyn"],
    ["1, 2", "2,1", r"\{1,2\}"],
    ["(1,2)", "(1, 2)", r"\left(1,2\right)"],
]


def test_canonical_keys():
    grader = NoProcesses()
    keys = [{grader.canonical(answer) for answer in answers} for answers in CLASSES]
    assert [len(key) for key in keys] == [1] * len(CLASSES)
    assert len(set.union(*keys)) == len(CLASSES)
    assert keys[0] == {"1/2"}
    assert grader.canonical(None) is None
    assert grader.canonical("") is None
    assert grader.canonical("no box \\boxed{}") is None


async def test_equivalence(grader: Grader):
    assert await grader.equivalent(r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}")
    assert not await grader.equivalent(r"\sqrt{2}", r"\sqrt{3}")
    assert not await grader.equivalent(None, None)
    assert not await grader.equivalent("1", None)
    assert await grader.equivalent(r"2 \le x < 5", "[2,5)")
    assert await grader.equivalent("x+1", "1+x")


def test_equivalence_outside_of_an_event_loop(grader: Grader):
    assert grader.equivalent_sync("[2,5)", r"2 \le x < 5")
    assert grader.equivalent_sync("x+1", "1+x")


NUMBERS = st.builds(Fraction, st.integers(-(10**6), 10**6), st.integers(1, 500))


def written(number: Fraction, style: int) -> str:
    """A number as a model might write it."""
    top, bottom = abs(number.numerator), number.denominator
    sign = "-" if number < 0 else ""
    if bottom == 1:
        grouped = f"{top:,}"
        options = [
            str(top),
            f"{top}.0",
            f"0{top}",
            grouped,
            grouped.replace(",", "{,}"),
            grouped.replace(",", r"\,"),
        ]
        options += [rf"{top}\text{{ cm}}", f"{{{top}}}", rf"\frac{{{2 * top}}}{{2}}", f"{top}.", rf"\$ {top}"]
        return sign + options[style % len(options)]
    fraction = rf"{{{top}}}{{{bottom}}}"
    options = [f"{top}/{bottom}", rf"\frac{fraction}", rf"\dfrac{fraction}", rf"\left(\frac{fraction}\right)"]
    return sign + options[style % len(options)]


@given(NUMBERS, st.integers(0, 20), st.integers(0, 20))
def test_a_number_is_right_in_every_style_and_its_neighbours_are_wrong(number: Fraction, a: int, b: int):
    grader = NoProcesses()
    gold = written(number, a)
    assert grader.grade_sync(f"so \\boxed{{{written(number, b)}}}", gold) is Verdict.RIGHT
    for other in (number + 1, -number if number else number + 2, number / 2 if number else number + 3):
        verdict = grader.grade_sync(f"\\boxed{{{written(other, b)}}}", gold)
        assert verdict is Verdict.WRONG, (written(other, b), gold)


@given(NUMBERS.filter(lambda number: number.denominator > 1))
def test_twelve_decimals_are_enough_and_four_are_not(number: Fraction):
    exact = f"{number.numerator}/{number.denominator}"
    twelve = f"{number.numerator * 10**12 // number.denominator}"
    decimal = f"{float(number):.12f}"
    grader = NoProcesses()
    if len(twelve) <= 15:  # float has no more digits
        assert grader.grade_sync(f"\\boxed{{{decimal}}}", exact) is Verdict.RIGHT
    four = f"{float(number):.4f}"
    if Fraction(four) != number:
        assert grader.grade_sync(f"\\boxed{{{four}}}", exact) is Verdict.WRONG


LATEX = st.lists(
    st.sampled_from(
        [
            r"\frac",
            r"\sqrt",
            r"\left(",
            r"\right)",
            r"{",
            r"}",
            r"(",
            r")",
            r"[",
            r"]",
            r",",
            r";",
            r"=",
            r"<",
            r">",
            r"+",
            r"-",
            r"*",
            r"/",
            r"^",
            r"_",
            r"1",
            r"23",
            r"x",
            r"y",
            r".",
            r"%",
            r"$",
            r"\pi",
            r"\text{ab}",
            r"\cup",
            r"\in",
            r"\pm",
            r"\begin{pmatrix}",
            r"\end{pmatrix}",
            r"&",
            r"\\",
            r"\{",
            r"\}",
            r"\infty",
            r"\le",
            r"\circ",
            r"\boxed{",
            r"or",
            r"and",
            r"!",
            r"|",
            r"'",
            r"½",
            r"−",
            r"∞",
            r"０",
            r"\0",
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=400)
@given(LATEX, LATEX)
def test_any_latex_gets_a_verdict_or_goes_to_the_symbolic_path(answer: str, gold: str):
    verdict = Grader().exact(f"\\boxed{{{answer}}}", gold)
    assert verdict is None or verdict in (
        Verdict.RIGHT,
        Verdict.WRONG,
        Verdict.NO_ANSWER,
        Verdict.CANNOT_PARSE,
        Verdict.TOO_LONG,
    )


@settings(max_examples=400)
@given(LATEX)
def test_reading_is_stable(text: str):
    once = cleaned(text)
    assert len(once) <= 12 * len(text)
    form_of(once)
    compact(once)
    number_of(once)
    grader = Grader()
    key = grader.canonical(text)
    assert key == grader.canonical(text)
    if key is not None and "\\boxed" not in text:
        assert grader.equivalent_sync(text, text)


@given(st.text(max_size=80))
def test_any_text_is_survived(text: str):
    Grader().exact(f"\\boxed{{{text}}}", "7")
    Grader().exact(text, text)
    strict_verdict(text, text)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    answer=LATEX,
    gold=st.sampled_from(
        ["x+1", r"\sqrt{2}", "(1,2)", "y=2x", "[1,2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"]
    ),
)
def test_any_latex_is_survived_by_the_symbolic_path(grader: Grader, answer: str, gold: str):
    assert grader.grade_sync(f"\\boxed{{{answer}}}", gold) is not Verdict.GRADER_FAILED


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_data_set_grades_gold_against_itself(data_dir, grader: Grader):
    from agentrl_envs import load_rows
    from benchmarks.grading import RENDERINGS, accepted

    for path in sorted(data_dir.glob("*.jsonl")):
        if path.stem.startswith("countdown"):
            continue
        golds = [row["answer"] for row in load_rows(path)]
        assert len(golds) >= 30
        golds = list(dict.fromkeys(golds))[:300]  # all of them: benchmarks.grading
        for name, rendering in RENDERINGS.items():
            assert accepted(grader, golds, rendering) == [], f"{path.name}, {name}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wrong_on_purpose_is_never_accepted(data_dir, grader: Grader):
    from agentrl_envs import load_rows
    from benchmarks.grading import WRONG_ON_PURPOSE, wrongly_accepted

    for name in ("math500", "aime24", "aime25", "amc23"):
        golds = list(dict.fromkeys(row["answer"] for row in load_rows(data_dir / f"{name}.jsonl")))
        for kind, spoil in WRONG_ON_PURPOSE.items():
            assert wrongly_accepted(grader, golds, spoil) == [], f"{name}, {kind}"
