"""GSM8K's annotations become programs whose output the sandbox and the grader have checked."""

import json
from pathlib import Path

import pytest

from scripts import make_gsm8k_traces as script

SOLUTION = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)


def test_annotations_become_lines_and_results_become_names():
    assert script.make_program(SOLUTION) == (
        "# Natalia sold 48/2 clips in May.\nx1 = 48/2\n"
        "# Natalia sold 48+x1 clips altogether in April and May.\nx2 = 48+x1\nprint(x2)"
    )


@pytest.mark.parametrize(
    ("solution", "program"),
    [
        ("He pays 20% of $50, <<20%*50=10>>10 dollars.\n#### 10", "x1 = (20/100)*50"),
        ("It is <<1,200/.5=2400>>2,400.\n#### 2,400", "x1 = 1200/0.5"),
        ("She has <<05+3=8>>8 apples.\n#### 8", "x1 = 5+3"),
    ],
)
def test_ways_of_writing_numbers(solution, program):
    assert program in script.make_program(solution).splitlines()


@pytest.mark.parametrize(
    "solution", ["No calculation.\n#### 3", "<<a+b=c>>c\n#### 1", "<<__import__('os')=1>>1"]
)
def test_what_is_not_plain_arithmetic_is_left_out(solution):
    assert script.make_program(solution) is None


def test_gold_answers_lose_their_separators():
    assert script.gold_answer("... #### 1,234 ") == "1234"


@pytest.mark.slow
async def test_only_programs_that_print_the_gold_answer_are_kept(tmp_path: Path):
    rows = [
        {"question": "How many clips?", "answer": SOLUTION},
        {"question": "How many clips?", "answer": SOLUTION.replace("#### 72", "#### 73")},
        {"question": "By nothing?", "answer": "<<1/0=0>>0\n#### 0"},
        {"question": "?", "answer": "Nothing.\n#### 1"},
    ]
    counts = await script.make_all(rows, tmp_path / "traces.jsonl", 2)
    assert counts == {"kept": 1, "another result": 1, "program: error": 1, "no plain calculation": 1}
    (line,) = (tmp_path / "traces.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[0]["content"] == "How many clips?\nPut the final answer in \\boxed{}."
    assert messages[2]["content"] == "72.0"
    assert messages[3]["content"] == "The answer is \\boxed{72}."
