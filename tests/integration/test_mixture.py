"""Several environments in one run, and episodes that are cut off: the demo's model in the real sandbox."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")
pytest.importorskip("transformers")

import agentrl
from agentrl.config.loading import load_settings
from agentrl.errors import AgentRLError, ConfigError
from agentrl.report import read_run
from agentrl.report.terminal import evaluation_line
from agentrl.storage.ledger import Ledger, State
from agentrl.storage.metrics import Row, read_metrics
from agentrl.storage.recorder import read_episodes
from agentrl.training.plan import plan_run
from agentrl.training.train import train

pytestmark = pytest.mark.slow  # whole runs with the demo's model
DEMO = Path(agentrl.__file__).parent / "demo"
SECOND = '''
from agentrl_envs.arithmetic import Arithmetic


class Short(Arithmetic):
    """Sums of two small numbers."""

    terms: int = 2

    @classmethod
    def generate_rows(cls, count, *, split, seed=0):
        return [{"id": f"short-{i}", "problem": f"{i + 10}*2+1", "answer": str(2 * i + 21)} for i in range(count)]

    def reward(self, row, answer):
        assert self.terms == 3, "the settings of this environment have not arrived"
        return super().reward(row, answer)
'''


def write_settings(folder: Path, text: str) -> Path:
    (folder / "short.py").write_text(SECOND)
    path = folder / "run.toml"
    path.write_text(
        f"""
[run]
name = "run"
directory = {str(folder)!r}
[model]
path = {str(DEMO / "model")!r}
threads = 1
[rollout]
max_tokens = 64
tool_output_chars = 200
[engine]
kind = "transformers"
slots = 32
context_tokens = 512
[sandbox]
memory_mb = 256
[tracker]
initial_rollouts = 0
[learner]
mini_batch = 32
micro_batch_tokens = 4096
[stream]
batch = 32
{text}
"""
    )
    return path


def run(path: Path, *flags: str) -> tuple[dict[str, Any], list[Row]]:
    summary = train(load_settings(path, flags))
    rows = read_metrics(path.parent / "run" / "metrics.jsonl")
    return summary, [row for row in rows if row["kind"] == "step"]


MIXED = """
[[env]]
name = "arithmetic"
weight = 3
[env.data]
train = "generated:train:120"
[[env]]
name = "short.py:Short"
weight = 1
[env.data]
train = "generated:train:40"
[env.settings]
terms = 3
"""


@pytest.mark.timeout(300)
def test_environments_are_mixed_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Fails when `PromptPool.draw` asks the environments in turn.
    monkeypatch.chdir(tmp_path)
    summary, steps = run(write_settings(tmp_path, MIXED), "--run.steps=6")
    names = ["arithmetic", "short.py:Short"]
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    dispatched = Counter(entry.prompt_id.partition("/")[0] for entry in ledger.entries.values())
    ledger.close()
    total = dispatched.total()
    assert total >= 6 * 32
    # Drawn by who is furthest behind its share: off by one draw at most at any time.
    assert abs(dispatched["arithmetic"] - 0.75 * total) <= 1
    assert sorted(dispatched) == names
    # What is learned from has the same shares: nothing is dropped, only the last ones are still under way.
    learned = summary["environments"]
    assert sum(learned.values()) == 6 * 32
    assert learned["arithmetic"] == pytest.approx(0.75 * 6 * 32, abs=24)
    # Metrics of each environment, which add up to those of the batch.
    assert len(steps) == 6
    for row in steps:
        parts = row["environments"]
        assert sum(part["episodes"] for part in parts.values()) == 32
        mean = sum(part["episodes"] * part["score_mean"] for part in parts.values()) / 32
        assert mean == pytest.approx(row["score_mean"])
    page = read_run(tmp_path / "run")["environments"]
    assert list(page) == names
    assert page["short.py:Short"]["share"][-1] == steps[-1]["environments"]["short.py:Short"]["episodes"] / 32
    # Both kinds of prompts were really played, each by its own class.
    kinds = {episode.prompt_id.partition("/")[0] for episode in read_episodes(tmp_path / "run" / "episodes")}
    assert kinds == set(names)


@pytest.mark.timeout(300)
def test_every_environment_of_a_mixture_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Fails when only the first environment is played, or all of them with the rows of one.
    monkeypatch.chdir(tmp_path)
    text = MIXED.replace('name = "short.py:Short"', 'name = "short.py:Short"\neval_data = "generated:test:9"')
    path = write_settings(tmp_path, text)
    train(load_settings(path, ["--run.steps=1", "--eval.data=generated:test:30"]))
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["version"] for row in rows] == [0, 1]
    for row in rows:
        first, second = row["environments"]["arithmetic"], row["environments"]["short.py:Short"]
        assert (first["problems"], second["problems"], row["problems"]) == (30, 9, 39)
        assert row["episodes"] == 39
        mean = (30 * first["reward_mean"] + 9 * second["reward_mean"]) / 39
        assert row["reward_mean"] == pytest.approx(mean)
        low, high = row["interval"]
        assert low <= mean <= high
        assert evaluation_line(row).endswith(
            f"; arithmetic {first['reward_mean']:.3f}; short.py:Short {second['reward_mean']:.3f}"
        )
    # The demo's model was taught the first environment's form; that is how one sees that each had its own rows.
    assert rows[0]["environments"]["arithmetic"]["reward_mean"] > 0.0


def test_mistakes_in_a_mixture_name_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"line \d+: env.1.weight = -1.0 must be above 0"):
        load_settings(write_settings(tmp_path, MIXED.replace("weight = 1", "weight = -1")))
    with pytest.raises(ConfigError, match=r"env 2 \('short.py:Short'\).*unknown setting 'words'"):
        plan_run(load_settings(write_settings(tmp_path, MIXED.replace("terms", "words"))), fetch=False)
    wrong = MIXED.replace("terms = 3", "terms = 3\n").replace(
        "weight = 1", 'weight = 1\neval_data = "none.jsonl"'
    )
    with pytest.raises(ConfigError, match=r"env 2 \('short.py:Short'\): env.eval_data.*none.jsonl"):
        plan_run(load_settings(write_settings(tmp_path, wrong)), fetch=False)
    twice = MIXED.replace("short.py:Short", "arithmetic").replace("[env.settings]\nterms = 3\n", "")
    with pytest.raises(ConfigError, match="give every environment of a mixture its own name"):
        plan_run(load_settings(write_settings(tmp_path, twice)), fetch=False)


ONE = """
[[env]]
name = "arithmetic"
[data]
train = "generated:train:80"
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", ["zero", "mask"])
def test_episodes_that_are_cut_off(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    # Too few tokens for a program and its answer, enough for a guess.
    summary, steps = run(
        write_settings(tmp_path, ONE),
        "--run.steps=2",
        f"--rollout.truncated={rule}",
        "--rollout.max_tokens=16",
    )
    episodes = list(read_episodes(tmp_path / "run" / "episodes"))
    cut = {episode.episode_id for episode in episodes if episode.stop_reason.truncated}
    assert 0 < len(cut) < len(episodes)
    assert all(episode.reward == 0.0 for episode in episodes if episode.episode_id in cut)
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    masked = {entry.key for entry in ledger.in_state(State.DISCARDED)}
    learned = {entry.key for entry in ledger.in_state(State.LEARNED)}
    ledger.close()
    assert len(masked | learned) == 64
    if rule == "zero":
        assert not masked
        assert learned & cut
    else:
        assert masked == cut & (masked | learned)
        assert summary["discarded"] == {"discarded: truncated": len(masked)}
        tokens = sum(episode.num_trainable for episode in episodes if episode.episode_id in learned)
        assert sum(row["tokens_learned"] for row in steps) == tokens


@pytest.mark.timeout(300)
def test_a_batch_that_is_cut_off_as_a_whole_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write_settings(tmp_path, ONE)
    with pytest.raises(
        AgentRLError, match=r"all 32 episodes of a batch were cut off.*raise rollout.max_tokens"
    ):
        run(path, "--run.steps=1", "--rollout.truncated=mask", "--rollout.max_tokens=2")
