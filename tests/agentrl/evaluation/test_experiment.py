import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrl.cli.main import main
from agentrl.errors import ConfigError
from agentrl.evaluation.subjects import load_script, weights_of
from agentrl.weights.fingerprint import fingerprint

ENVIRONMENT = '''
from agentrl import Env


class Boxed(Env):
    """Right when the box holds the answer."""

    def prompt(self, row):
        return row["problem"]

    def reward(self, row, answer):
        return answer is not None and "\\\\boxed{7}" in answer
'''
SCRIPT = """
import time


def answers(request):
    time.sleep(0.01)
    return {"\\\\boxed{7}<|end|>": 0.5, "\\\\boxed{8}<|end|>": 0.3, "hm<|end|>": 0.2}


def always(request):
    return "\\\\boxed{7}<|end|>"
"""
AGENT = """
import json, os, sys, urllib.request

body = json.dumps({"model": "m", "messages": [{"role": "user", "content": sys.stdin.read()}]}).encode()
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, head)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "boxed.py").write_text(ENVIRONMENT)
    (tmp_path / "script.py").write_text(SCRIPT)
    rows = [{"id": f"r{i}", "question": f"problem {i}", "final": "7"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(function: str = "answers", out: str = "out", samples: int = 5) -> list[str]:
    return [
        "eval", f"scripted:script.py:{function}", "--data", "rows.jsonl",
        "--map", "problem=question,answer=final", "--env", "boxed.py", "--samples", str(samples),
        "--out", out, "--sandbox", "broken", "--quiet", "--concurrency", "2", "--votes", "canonical",
    ]  # fmt: skip


def table(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())["table"]


@pytest.mark.slow
def test_eval_and_compare_from_the_command_line(place, capsys):
    assert main(command()) == 0
    assert main(command("always", "right")) == 0
    printed = capsys.readouterr().out
    assert "avg@5" in printed
    assert "95% new problems" in printed
    summary = json.loads((place / "out/summary.json").read_text())
    assert summary["table"]["episodes"] == 60
    assert summary["data_set"]["rows"] == 12
    assert summary["data_set"]["map"] == {"problem": "question", "answer": "final"}
    assert summary["versions"]["python"]
    assert summary["complete"]
    assert table(place / "right")["avg@k"]["value"] == 1.0
    assert main(["compare", "out", "right"]) == 0
    printed = capsys.readouterr().out
    assert "12 problems in both" in printed
    assert "sign-flip test (exact)" in printed
    assert main(["compare", "out", "right", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 12


@pytest.mark.slow
def test_a_program_is_checked_and_evaluated_through_the_gateway(place, capsys):
    (place / "agent.py").write_text(AGENT)
    (place / "plain.jsonl").write_text('{"problem": "problem 1", "answer": "7"}\n')
    name = f"program:{sys.executable} agent.py"
    assert main(["check", name, "--data", "plain.jsonl", "--sandbox", "none"]) == 0, capsys.readouterr().out
    given = command("always", samples=1)
    given[given.index("boxed.py")] = name
    assert main(given) == 0
    assert (table(place / "out")["avg@k"]["value"], table(place / "out")["episodes"]) == (1.0, 12)


@pytest.mark.slow
def test_the_bundled_model_goes_by_its_name_and_not_by_where_it_is_installed(place):
    given = [
        "eval",
        "demo",
        "--env",
        "boxed.py",
        "--data",
        "rows.jsonl",
        "--map",
        "problem=question,answer=final",
    ]
    assert main([*given, "--out", "out", "--eval.limit", "1", "--sandbox", "broken", "--quiet"]) == 0
    assert json.loads((place / "out/eval.json").read_text())["policy"]["weights"] == "demo"


@pytest.mark.slow
def test_a_comparison_says_what_each_training_cost(place, capsys):
    main(command())
    main(command("always", "right"))
    file = place / "right" / "summary.json"
    cost = {
        "version": 4, "episodes": 32, "tokens": 200, "seconds": 9.0,
        "episodes_initial": 24, "tokens_initial": 300, "seconds_initial": 5.0,
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"training": cost}))
    capsys.readouterr()
    assert main(["compare", "out", "right"]) == 0
    assert (
        "B: right\n"
        "B: trained for 4 versions on 56 episodes and 500 tokens, of them 24 and 300 for initial values (5 s); 9 s"
    ) in capsys.readouterr().out
    assert main(["compare", "out", "right", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"] == {"a": {}, "b": cost}


@pytest.mark.slow
def test_the_same_command_again_plays_nothing_and_more_samples_play_the_rest(place):
    main(command())
    before = (place / "out/results.jsonl").read_bytes()
    main(command())
    assert (place / "out/results.jsonl").read_bytes() == before
    main(command(samples=7))
    after = (place / "out/results.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 12 * 7


def test_another_evaluation_in_the_same_folder_is_an_error(place, capsys):
    main(command())
    assert main([*command(), "--temperature", "0.3"]) == 1
    assert "holds another evaluation: its decoding" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_table(place):
    """Fails when records are written at the end, or when a seed depends on what ran before."""
    main(command(out="whole", samples=20))
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'envs'}:{root / 'sandbox'}"}
    arguments = [sys.executable, "-m", "agentrl.cli.main", *command(out="killed", samples=20)]
    killed = 0
    for lines in (20, 90):
        process = subprocess.Popen(arguments, env=environment, cwd=place, stdout=subprocess.DEVNULL)
        results = place / "killed/results.jsonl"
        deadline = time.monotonic() + 40
        while process.poll() is None and time.monotonic() < deadline:
            if results.exists() and results.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        killed += process.wait(20) == -signal.SIGKILL
    assert killed == 2
    assert not (place / "killed/summary.json").exists()
    assert main(command(out="killed", samples=20)) == 0
    assert table(place / "killed") == table(place / "whole")


def test_without_tools_there_is_one_turn_and_no_tool(place):
    main([*command("always"), "--no-tools"])
    summary = json.loads((place / "out/summary.json").read_text())
    assert summary["rollout"]["max_turns"] == 1
    assert not summary["tools"]


def test_the_paper_s_preset(place):
    main([*command("always", samples=2), "--preset", "spo-paper"])
    summary = json.loads((place / "out/summary.json").read_text())
    assert summary["decoding"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert summary["rollout"]["max_tokens"] == 32768
    assert summary["samples"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--data", "rows.jsonl"], "name what is evaluated"),
        (
            ["eval", "nowhere/at/all", "--data", "rows.jsonl", "--map", "problem=question,answer=final"],
            "no such folder",
        ),
        (["eval", "scripted:script.py:answers"], "name the data"),
        (
            ["eval", "scripted:script.py:nothing", "--data", "generated:test:3", "--env", "arithmetic"],
            "no function",
        ),
        (["eval", "owner/x", "--data", "gsm9k"], "no data set 'gsm9k'"),
        (
            ["eval", "owner/x", "--data", "rows.jsonl", "--env", "math_with_pyton"],
            "did you mean 'math_with_python'",
        ),
        (["eval", "x", "--data", "rows.jsonl", "--preset", "spo"], "there are spo-paper"),
        (["compare", "a", "b"], "holds no evaluation"),
    ],
)
def test_errors_say_what_would_be_right(place, capsys, arguments, message):
    assert main([*arguments, *(["--sandbox", "broken"] if arguments[0] == "eval" else [])]) == 1
    assert message in capsys.readouterr().err


def test_weights_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a run .run.json. nor Hugging Face weights"):
        weights_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert weights_of(str(tmp_path)) == str(tmp_path)
    assert fingerprint(str(tmp_path)) != first
    assert fingerprint("Qwen/Qwen3-8B") == ""


def test_a_script_that_is_not_there():
    with pytest.raises(ConfigError, match="want scripted:file.py:function"):
        load_script("nothing.py:answers")
