r"""Which box counts: the last one the model itself stated."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_envs import Grader, Verdict, last_answer
from agentrl_envs.graders import boxed_answers, model_text

TEXTS = [
    (r"so \boxed{4}", "4"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{ 4 }", "4"),
    (r"\boxed 4", "4"),
    (r"\fbox{4}", "4"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    ("I guess 7", None),
    ("", None),
    (None, None),
    (r"\boxed{}", None),
    (r"\boxed{4", None),
    ("boxed{4}", None),
    # self-correction: words between the boxes, the last one counts
    (r"First \boxed{3}, but no, that is wrong: \boxed{4}", "4"),
    (r"\boxed{3}. Wait, I made a mistake. \boxed{4}", "4"),
    # nothing but a connective between them: one answer, the list
    (r"\boxed{3} or \boxed{4}", "3, 4"),
    (r"$\boxed{3}$ and $\boxed{4}$", "3, 4"),
    (r"\boxed{3}, \boxed{4}, \text{ and } \boxed{5}", "3, 4, 5"),
    (r"\boxed{4} \boxed{4}", "4"),
    # thinking, code and tool output are not answers
    (r"<think>\boxed{3}</think> The answer is \boxed{4}.", "4"),
    (r"<think>\boxed{3}</think> I do not know.", None),
    (r"<think> maybe \boxed{3}", None),
    ("```python\nprint('\\boxed{3}')\n```", None),
    ("\\boxed{4}\n```python\nprint('\\boxed{3}')\n```", "4"),
    ("```python\nprint('\\boxed{3}')", None),
    (r"<code>\boxed{3}</code>", None),
    (r"<interpreter>\boxed{3}</interpreter>", None),
    (r"<tool_response>\boxed{3}</tool_response> so \boxed{4}", "4"),
    (r"the code prints `\boxed{3}`", None),
    # a tag in backticks opens nothing, unless something closes it
    (r"Using `<code>` I got \boxed{5}", "5"),
    (r"Between `<code>` and `</code>` I got \boxed{5}", "5"),
    (r"`</code>` ends what `<CODE>` begins: \boxed{5}", "5"),
    (r"`<code>` <code>\boxed{3}", None),
    (r"<code>print('`<code>`') \boxed{3}", None),
    (r"`<code>` \boxed{3} </code>", None),
    (r"it's `<code>\boxed{3}`", None),
    (r"```<code>``` so \boxed{5}", "5"),
    ("```\n`<code>`\n\\boxed{3}", None),
    # a box in a box
    (r"\boxed{\boxed{4}}", r"\boxed{4}"),
]


@pytest.mark.parametrize(("text", "stated"), TEXTS)
def test_last_answer(text: str | None, stated: str | None):
    assert last_answer(text) == stated


def test_a_hedge_is_not_right_and_a_list_of_all_solutions_is(grader: Grader):
    hedge = r"It is \boxed{3} or \boxed{4}"
    assert grader.grade_sync(hedge, "4") is Verdict.WRONG
    assert grader.grade_sync(hedge, "3, 4") is Verdict.RIGHT
    assert grader.grade_sync(r"First \boxed{3}; no: \boxed{4}", "4") is Verdict.RIGHT
    assert grader.grade_sync("it is 4", "4") is Verdict.NO_ANSWER


@given(st.text(alphabet="ab\\{}$ 1`<>/\n", max_size=60), st.integers(-999, 999))
def test_the_last_box_wins_whatever_stands_before(noise: str, number: int):
    # Fails if `last_answer` takes the first box: boxes[0] for boxes[-1].
    text = (
        noise.replace("`", "").replace("<", "").replace("{", "").replace("}", "")
        + f" words \\boxed{{{number}}}"
    )
    assert last_answer(text) == str(number)


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str):
    for start, end, content in boxed_answers(text):
        assert 0 <= start < end <= len(text)
        assert content in text[start:end]
    assert len(model_text(text)) <= len(text) + 20
    last_answer(text)


@given(st.recursive(st.text(alphabet="ab1 +", max_size=4), lambda inner: st.builds("{{{}}}".format, inner)))
def test_balanced_content_comes_back_whole(content: str):
    assert boxed_answers(f"x \\boxed{{{content}}} y") == [(2, 2 + 7 + len(content) + 1, content)]


MEGABYTES = {
    "unclosed boxes": r"\boxed{" * 150_000,
    "unclosed boxes and a brace": r"\boxed{" * 150_000 + "}",
    "boxes in boxes": r"\boxed{" * 125_000 + "}" * 125_000,
    "boxes": r"\boxed{1} " * 100_000,
    "boxes without braces": r"\boxed 3 " * 110_000,
    "boxes of nothing": r"\boxed " * 140_000,
    "fboxes": r"\fbox" * 200_000 + "{}",
    "spaces in a box": r"\boxed" + " " * 1_000_000,
    "backslashes": r"\boxed{" + "\\" * 1_000_000,
    "code fences": "```" * 330_000 + r" \boxed{4}",
    "tags": "<code>" * 160_000 + r" \boxed{4}",
    "tags that are spoken of": "`<code>` " * 110_000 + r" \boxed{4}",
    "backticks and spaces": "`" + " " * 1_000_000 + r"<code>\boxed{4}",
    "thoughts": "<think>" * 150_000 + r" \boxed{4}",
}


@pytest.mark.parametrize("text", MEGABYTES.values(), ids=MEGABYTES)
def test_a_megabyte_takes_linear_time(text: str):
    # Tens of milliseconds each; a search that starts again at every box takes minutes.
    began = time.process_time()
    last_answer(text)
    Grader().exact(text, "4")
    Grader().canonical(text)
    assert time.process_time() - began < 5.0


def test_long_texts_are_read_to_their_end():
    assert last_answer("\\boxed{" * 5000) is None
    assert last_answer("words " * 170_000 + r"\boxed{4}") == "4"
    assert last_answer(r"\boxed{1} and " * 2000 + r"\boxed{4}") == "1, 4"
    assert last_answer(r"\boxed{1} and " * 30_000 + r"so \boxed{4}") == "4"
    assert last_answer("```" * 20_000 + r" \boxed{4}") == "4"
    assert last_answer("<code>" * 20_000) is None
    assert last_answer("`<code>` " * 20_000 + r" \boxed{4}") == "4"
    assert last_answer(r"\boxed{ \boxed{3} \boxed 4") == "3, 4"
