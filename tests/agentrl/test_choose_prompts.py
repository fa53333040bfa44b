"""Prompts are chosen by their length, then by whether they were ever solved."""

from types import SimpleNamespace

from scripts import choose_prompts as script


def test_rows_of_gsm8k_itself_get_id_problem_and_answer():
    row = {"question": " How many? ", "answer": "1000 + 234 = 1234\n#### 1,234"}
    assert script.as_row(7, row) == {"id": "gsm8k-train-7", "problem": "How many?", "answer": "1234"}
    ready = {"id": "x", "problem": "p", "answer": "2"}
    assert script.as_row(7, ready) == ready


def test_the_shortest_of_the_first_in_the_order_of_the_file():
    rows = [{"problem": text} for text in ("long one", "b", "middle", "a", "c")]
    assert script.short(rows, first=4, shortest=2) == [{"problem": "b"}, {"problem": "a"}]


def test_rewards_in_the_order_of_the_draws_without_failures():
    records = [
        SimpleNamespace(problem=problem, draw=draw, reward=reward, failure=failure)
        for problem, draw, reward, failure in (
            ("p", 1, 1.0, None),
            ("p", 0, 0.0, None),
            ("q", 0, None, "sandbox: gone"),
            ("p", 2, 0.0, None),
        )
    ]
    assert script.rewards_of(records) == {"p": [0.0, 1.0, 0.0]}
