"""Run folders written as a run writes them: real episodes, ledger, credit and steps, without a model."""

import json
from pathlib import Path

import numpy as np

from agentrl.cli.main import main
from agentrl.episode import Episode, Failure, SegmentBuilder, StopReason, ToolCallRecord, Turn
from agentrl.storage.durable import LineFile
from agentrl.storage.ledger import Ledger
from agentrl.storage.steps import StepFiles, StepRecord, TokenValues

WORDS = ["<|end|>", "solve", "Ġ2", "+", "3", "print", "(", ")", "Ċ", "5", "âĪ", "ĳ"]
BEGAN = 1_764_400_000.0
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> \x1b[31mred \u202etfel"
)


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: number for number, word in enumerate(WORDS)}
    added = [{"id": 0, "content": "<|end|>", "special": True}]
    data = {"model": {"vocab": vocab}, "decoder": {"type": "ByteLevel"}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")


def make_episode(
    index: int, *, prompt: str = "", version: int = 0, text: str = "", failed: bool = False
) -> Episode:
    builder = SegmentBuilder()
    builder.append_given([1, 2, 3, 4])
    spans = [builder.append_sampled([5, 6, 2, 3, 4, 7], [-0.5, -0.1, -1.0, -0.2, -0.3, -0.05], [version] * 6)]
    builder.append_given([8, 9, 8])
    spans.append(builder.append_sampled([9, 10, 11, 0], [-0.01, -2.0, -0.4, -0.001], [version] * 4))
    call = ToolCallRecord("python", {"code": "print(2+3)"}, "5", "ok" if index % 3 else "error", 0.25)
    right = index % 2 == 0
    turns = (
        Turn(0, *spans[0], "<code>\n```python\nprint(2+3)\n```\n</code>", (call,)),
        Turn(0, *spans[1], text or f"The sum is $2 + 3 = {5 if right else 6}$, so \\boxed{{5}}"),
    )
    return Episode(
        episode_id=f"t{index}",
        dispatch_index=index,
        prompt_id=prompt or f"p{index % 5}",
        segments=(builder.build(),),
        turns=turns,
        reward=None if failed else float(right),
        stop_reason=StopReason.FAILED if failed else StopReason.ANSWERED,
        failure=Failure("env", "KeyError", "'nested' in my_env.py, line 7") if failed else None,
        start_version=version,
        temperature=1.0,
        environment="sums" if index % 4 else "hard",
        answer=None if failed else "\\boxed{5}",
        seconds=2.0,
        tool_seconds=0.25,
        grade_seconds=0.5,
    )


def step_row(version: int, **more) -> dict:
    return {
        "kind": "step", "at": BEGAN + 3 * version, "step": version, "version": version, "attempt": 1,
        "time_s": 3.0 * version, "learn_s": 1.0, "publish_s": 0.2, "learner_idle_s": 1.5 * version,
        "episodes": 4 * version, "tokens_generated": 40 * version, "score_mean": 0.2 + 0.05 * version,
        "baseline_mean": 0.4, "advantage_std": 1.0, "entropy": 0.5, "loss": 0.1, "behaviour_gap": 0.01,
        "staleness": {"0": 4}, "brier": 0.2, "reliability": {"4": [4, 0.45, 0.5]}, "my_metric": 0.1 * version,
    } | more  # fmt: skip


def token_values(batch: list[Episode]) -> TokenValues:
    """Of every sampled token: log-probability -0.6 and entropy 0.7."""
    segments = [[place, len(episode.segments[0])] for place, episode in enumerate(batch)]
    runs = [[place, turn.start, turn.end - turn.start] for place, e in enumerate(batch) for turn in e.turns]
    count = sum(size for _, _, size in runs)
    return TokenValues(
        segments=np.array(segments, np.int32), runs=np.array(runs, np.int32),
        logprobs=np.full(count, -0.6, np.float32), entropies=np.full(count, 0.7, np.float16),
    )  # fmt: skip


def evaluation_row(version: int, reward: float) -> dict:
    return {
        "kind": "eval", "at": BEGAN + 3 * version, "step": version, "version": version, "attempt": 1,
        "reward_mean": reward, "interval": [reward - 0.05, reward + 0.05], "episodes": 256, "failed": 0,
        "truncated_share": 0.0, "tool_calls_mean": 1.0, "sampled_tokens_mean": 10.0,
    }  # fmt: skip


def write_run(folder: Path, *, steps: int = 6, failed: int = 2, texts: dict[int, str] | None = None) -> Path:
    """A run of `steps` steps of four episodes, and some that failed."""
    folder.mkdir(parents=True)
    write_tokenizer(folder / "weights" / "step_1")
    identity = {
        "format": 2,
        "run_id": "abc",
        "command": ["agentrl", "train", "my.toml"],
        "versions": {"torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(identity))
    resumed = {
        "time": "2026-01-02T03:04:05+0000", "kind": "resume", "changed": {"run.steps": [4, 6]},
        "command": ["agentrl", "train", "--resume", "one"], "versions": {"torch": "2.14.0"},
    }  # fmt: skip
    (folder / "settings.jsonl").write_text(json.dumps({"kind": "start"}) + "\n" + json.dumps(resumed) + "\n")
    (folder / "config.toml").write_text('[run]\nsteps = 6\n\n[model]\npath = "demo"\n')
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.begin_attempt(0)
    (folder / "episodes").mkdir()
    recorded = LineFile(folder / "episodes" / "000001.jsonl", "episode")
    metrics = LineFile(folder / "metrics.jsonl", "metrics")
    metrics.append(evaluation_row(0, 0.2))
    files = StepFiles(folder, keep=10_000)
    for version in range(1, steps + 1):
        batch = [
            make_episode(
                4 * version - 4 + place,
                version=version - 1,
                text=(texts or {}).get(4 * version - 4 + place, ""),
            )
            for place in range(4)
        ]
        for place, episode in enumerate(batch):
            ledger.dispatched(episode.episode_id, episode.prompt_id, version - 1)
            recorded.append(episode.to_json() | {"ended": BEGAN + 3 * version - 1 - 0.1 * place})
            ledger.finished(episode.episode_id, episode.num_sampled)
        scores = np.array([episode.score for episode in batch])
        record = StepRecord(
            version=version, attempt=1, episode_ids=[e.episode_id for e in batch], scores=scores,
            baselines=np.full(4, 0.4), counts=np.full(4, 3.0), advantages=scores - 0.4, values={}, light={},
            progress={}, tokens=token_values(batch),
        )  # fmt: skip
        files.write(record)
        ledger.learned(record.episode_ids, version - 1)
        metrics.append(step_row(version))
    for index in range(4 * steps, 4 * steps + failed):
        ledger.dispatched(f"t{index}", "p1", steps)
        recorded.append(make_episode(index, prompt="p1", version=steps, failed=True).to_json())
        ledger.failed(f"t{index}", "env")
    metrics.append(evaluation_row(steps, 0.5))
    for file in (ledger, recorded, metrics):
        file.close()
    return folder


EVALUATED = '''
from agentrl_envs import Env


class Sevens(Env):
    """Right when it says seven."""

    def prompt(self, row):
        return row["problem"]

    def reward(self, row, answer):
        return answer == "7"
'''
ANSWERS = """
def mixed(request):
    return {"7<|end|>": 0.5, "8<|end|>": 0.5}


def always(request):
    return "7<|end|>"
"""


def write_evaluations(place: Path) -> None:
    """Two evaluations of the same problems and one of others in `place/evals`, really played by scripts."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "sevens.py").write_text(EVALUATED)
    (place / "answers.py").write_text(ANSWERS)
    for name, count in (("rows", 8), ("others", 5)):
        rows = [{"id": f"{name}{number}", "problem": f"say it {number}"} for number in range(count)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for function, rows, out in (
        ("mixed", "rows", "before"),
        ("always", "rows", "after"),
        ("mixed", "others", "apart"),
    ):
        told = [
            "--data",
            str(place / f"{rows}.jsonl"),
            "--env",
            str(place / "sevens.py"),
            "--out",
            str(place / "evals" / out),
        ]
        played = ["--samples", "2", "--sandbox", "broken", "--quiet", "--votes", "none"]
        assert main(["eval", f"scripted:{place / 'answers.py'}:{function}", *told, *played]) == 0
