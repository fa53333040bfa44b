"""What the options of `agentrl eval` come to, without anything being evaluated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.cli.eval import experiment_of
from agentrl.cli.main import command_parser, main, split_settings
from agentrl.config.loading import to_toml
from agentrl.errors import ConfigError
from agentrl.evaluation.settings import Experiment, load_experiment
from agentrl.evaluation.subjects import SubjectOptions, subject_of
from agentrl.storage.run_folder import FORMAT


def told(*arguments: str) -> Experiment:
    ours, settings = split_settings(["eval", *arguments])
    options = command_parser(ours)[0].parse_args(ours)
    return experiment_of(options.subject, [*options.settings, *settings])


def subject_told(*arguments: str) -> SubjectOptions:
    return subject_of(told("--data", "rows.jsonl", *arguments))


@pytest.mark.parametrize(
    ("run_slots", "concurrency", "slots"),
    [(8, None, 8), (8, 4, 4), (8, 500, 8), (None, None, 64), (None, 200, 200)],
)
def test_an_engine_has_no_more_rows_than_the_run_gave_it(
    tmp_path: Path, run_slots: int | None, concurrency: int | None, slots: int
):
    arguments = [str(tmp_path)]
    if run_slots is not None:
        (tmp_path / "run.json").write_text('{"format": 2, "run_id": "1"}')
        (tmp_path / "config.toml").write_text(f"[engine]\nslots = {run_slots}\n")
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    subject = subject_told(*arguments)
    assert (subject.engine.slots, subject.concurrency) == (slots, concurrency or 64)


def test_what_is_usual_is_no_part_of_an_endpoint_s_identity():
    endpoint = subject_told("--endpoint", "http://x/v1", "--model", "m", "--timeout-s", "9").endpoint
    # An evaluation of a version without these options must go on.
    assert endpoint.identity() == {
        "kind": "endpoint",
        "model": "m",
        "tool_format": "native",
    }


FILE = """[model]
path = "models/m"
[eval]
data = ["a.jsonl", "b.jsonl"]
samples = 4
temperature = 0.5
[env]
name = "my_env.py"
[env.settings]
turns = 3
"""


def test_a_file_flags_and_short_options_say_the_same(tmp_path: Path):
    (tmp_path / "eval.toml").write_text(FILE)
    short = ["my_env.py", "--model", "models/m", "--data", "a.jsonl", "--data", "b.jsonl", "--samples", "4"]
    short += ["--temperature", "0.5", "--env.settings.turns=3"]
    file, flags = told(str(tmp_path / "eval.toml")), told(*short)
    assert flags.env.settings == {"turns": "3"}  # its environment knows the type
    assert replace(flags, env=file.env) == file
    again = tmp_path / "again.toml"
    again.write_text(to_toml(file))
    assert load_experiment(again) == file


def test_flags_override_the_file_and_lists_that_are_given_again_grow(tmp_path: Path):
    (tmp_path / "eval.toml").write_text(FILE)
    found = told(str(tmp_path / "eval.toml"), "--eval.samples=8", "--data", "c.jsonl", "--data", "d.jsonl,e")
    assert found.eval.samples == 8
    assert found.eval.data == ("c.jsonl", "d.jsonl", "e")
    assert found.eval.temperature == 0.5


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "eval.toml").write_text(FILE.replace("samples", "sampels") + "[judge]\nurl = 'http://j'\n")
    with pytest.raises(ConfigError) as caught:
        told(str(tmp_path / "eval.toml"), "--limit", "-3", "--sandbox", "lokal")
    for text in (
        "4 mistakes",
        "eval.toml, line 5: unknown setting 'eval.sampels'; did you mean 'eval.samples'?",
        "eval.limit = -3 must be at least 0",
        "did you mean 'local'?",
        "eval.toml, line 12: a judge needs the name of a model",
    ):
        assert text in str(caught.value)


def test_settings_of_a_run_stand_below_the_preset_and_both_below_what_is_said(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "1", "format": FORMAT}))
    (tmp_path / "config.toml").write_text(
        "[rollout]\nmax_tokens = 7\nmax_turn_tokens = 5\n[eval]\nsamples = 3\ndata = 'held.jsonl'\n"
        "[data]\nmap = {problem = 'question'}\n[[env]]\nname = 'a'\nsettings = {n = 1}\n[[env]]\nname = 'b'\n"
    )
    with pytest.raises(ConfigError, match=r"several environments \(a, b\)"):
        told(str(tmp_path))
    found = told(str(tmp_path), "--env", "a", "--preset", "spo-paper", "--samples", "2")
    assert (found.eval.samples, found.rollout.max_tokens, found.rollout.max_turn_tokens) == (2, 32768, 5)
    assert (found.eval.data, found.eval.map) == (("held.jsonl",), {"problem": "question"})
    assert (found.env.name, found.env.settings) == ("a", {"n": 1})
    assert told(str(tmp_path), "--env", "c").env.settings == {}


def test_an_option_of_a_table_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "m", "--data", "rows.jsonl", "--env-set", "turns"]) == 1
    assert "'turns': want NAME=VALUE" in capsys.readouterr().err
