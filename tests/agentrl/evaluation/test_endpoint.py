"""An evaluation over HTTP against a small OpenAI-compatible server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from agentrl.cli.main import main


class Server(BaseHTTPRequestHandler):
    """Calls the tool once, then answers; right on even problems only."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self):
        self.reply(
            {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]}
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        if body["model"] == "broken":
            return self.reply({"error": {"message": "no"}}, 500)
        if body["model"] != "m":
            return self.reply({"error": {"message": "no such model"}}, 404)
        number = int(body["messages"][0]["content"].split()[1])
        calls = None
        content = f"\\boxed{{{number if number % 2 == 0 else -1}}}"
        if body.get("tools") and body["messages"][-1]["role"] != "tool":
            call = {"name": "double", "arguments": json.dumps({"n": number})}
            calls, content = [{"id": "c1", "type": "function", "function": call}], ""
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        self.reply(
            {
                "id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        )  # fmt: skip

    def reply(self, data, status=200):
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *args):
        pass


ENVIRONMENT = '''
from agentrl import Env, tool


class Number(Env):
    """Say the number."""

    def prompt(self, row):
        return f"number {row['problem']} please"

    @tool
    def double(self, n: int) -> str:
        "Twice n."
        return str(2 * n)

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
'''


@pytest.fixture
def url(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "number.py").write_text(ENVIRONMENT)
    rows = [{"id": f"n{i}", "problem": str(i), "answer": str(i)} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    Server.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join(10)
    server.server_close()


def command(url: str, *more: str) -> list[str]:
    return [
        "eval", "--endpoint", url, "--model", "m", "--data", "rows.jsonl", "--env", "number.py",
        "--samples", "2", "--out", "out", "--sandbox", "broken", "--quiet",
        "--price-prompt", "1", "--price-completion", "2", *more,
    ]  # fmt: skip


def test_an_endpoint_with_native_tools(url, tmp_path):
    assert main(command(url)) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    table = summary["table"]
    assert table["avg@k"]["value"] == 0.5
    assert table["maj@k"]["2"]["value"] == 0.5
    assert table["tools"]["calls_per_episode"] == 1.0
    assert table["calibration"] is None
    assert summary["policy"]["model"] == "m"
    # 12 episodes of two requests: 20 tokens read and 10 written each, at 1 and 2 per million
    assert summary["effort"]["prompt_tokens"] == 240
    assert summary["effort"]["sampled_tokens"] == 120
    assert summary["effort"]["cost"] == pytest.approx((240 + 240) / 1e6)


def test_a_budget_stops_the_evaluation_and_a_larger_one_goes_on(url, tmp_path, capsys):
    # a request uses 15 tokens, and before it is sent reserves its limit of 50 and an estimate of the prompt
    assert main(command(url, "--budget-tokens", "250", "--max-tokens", "50", "--concurrency", "1")) == 1
    assert "over the budget of 250" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert not summary["complete"]
    assert 0 < summary["table"]["episodes"] < 12
    assert main(command(url, "--max-tokens", "50", "--concurrency", "1")) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["table"]["episodes"] == 12


def test_a_model_that_is_not_there(url, capsys):
    arguments = command(url)
    arguments[arguments.index("m")] = "n"
    assert main(arguments) == 1
    assert "check the URL and the model's name 'n' (it lists m)" in capsys.readouterr().err


def test_a_reasoning_model(url, tmp_path):
    reasoning = ["--limit-name", "max_completion_tokens", "--no-temperature", "--max-tokens", "50"]
    assert main(command(url, *reasoning, "--limit", "1", "--samples", "1")) == 0
    first = Server.seen[0]
    assert first["max_completion_tokens"] == 50
    assert not {"max_tokens", "temperature"} & set(first)
    policy = json.loads((tmp_path / "out/summary.json").read_text())["policy"]
    assert (policy["limit_name"], policy["temperature"]) == ("max_completion_tokens", "not sent")


def test_attempts(url):
    arguments = command(url, "--attempts", "2", "--limit", "1", "--samples", "1")
    arguments[arguments.index("m")] = "broken"
    assert main(arguments) == 0
    # An episode that fails is played three times.
    assert len(Server.seen) == 3 * 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--timeout-s", "0"], "endpoint.timeout_s = 0.0 must be above 0"),
        (["--attempts", "0"], "endpoint.attempts = 0 must be at least 1"),
    ],
)
def test_options_out_of_range(url, capsys, more, words):
    assert main(command(url, *more)) == 1
    assert words in capsys.readouterr().err
    assert not Server.seen


def test_options_that_contradict_each_other(url, capsys):
    assert main(command(url, "--no-temperature", "--temperature", "0.5")) == 1
    assert "not both" in capsys.readouterr().err
    assert not Server.seen
