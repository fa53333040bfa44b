"""What the options of `agentrl eval` come to, without anything being evaluated."""

import argparse
from pathlib import Path

import pytest

from agentrl.cli.eval import add_parser, make_experiments
from agentrl.evaluation.subjects import SubjectOptions


def subject_of(*arguments: str) -> SubjectOptions:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["eval", "--data", "rows.jsonl", *arguments])
    return make_experiments(options)[0].subject


@pytest.mark.parametrize(
    ("run_slots", "concurrency", "slots"),
    [(8, None, 8), (8, 4, 4), (8, 500, 8), (None, None, 64), (None, 200, 200)],
)
def test_an_engine_has_no_more_rows_than_the_run_gave_it(
    tmp_path: Path, run_slots: int | None, concurrency: int | None, slots: int
):
    arguments = [str(tmp_path)]
    if run_slots is not None:
        (tmp_path / "run.json").write_text('{"run_id": "1"}')
        (tmp_path / "config.toml").write_text(f"[engine]\nslots = {run_slots}\n")
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    subject = subject_of(*arguments)
    assert (subject.engine.slots, subject.concurrency) == (slots, concurrency or 64)


def test_what_is_usual_is_no_part_of_an_endpoint_s_identity():
    endpoint = subject_of("--endpoint", "http://x/v1", "--model", "m", "--timeout-s", "9").endpoint
    assert endpoint is not None
    # An evaluation of a version without these options must go on.
    assert endpoint.identity() == {
        "kind": "endpoint",
        "model": "m",
        "tool_format": "native",
    }
