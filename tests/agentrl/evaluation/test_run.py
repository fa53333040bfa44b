import re

import numpy as np
import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, Failure, SegmentBuilder, StopReason
from agentrl.errors import AgentRLError
from agentrl.evaluation.results import Record, ResultFolder, by_problem, make_record, read_records
from agentrl.evaluation.run import Plan, Played, draw_seed, equivalence_of, evaluate, evaluate_policy
from agentrl.evaluation.summary import Equivalence, summarise
from agentrl.inference.scripted import ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch
from agentrl_envs import Env, Grader, SandboxFailure, tool

RATES = {"p0": 0.0, "p1": 0.25, "p2": 0.5, "p3": 0.75, "p4": 1.0}
ROWS = [{"id": name, "problem": f"[{name}]", "answer": "7"} for name in RATES]


class Boxed(Env):
    """Right when the box holds the answer."""

    max_turns = 3

    def prompt(self, row):
        return row["problem"]

    @tool
    def python(self, code: str) -> str:
        "Run Python."
        if code == "broken":
            raise SandboxFailure("the sandbox is gone")
        return "7"

    def reward(self, row, answer):
        return answer is not None and f"\\boxed{{{row['answer']}}}" in answer


def by_rate(request):
    rate = RATES[re.findall(r"\[(p\d)\]", request.prompt)[-1]]
    replies = {
        "\\boxed{7}<|end|>": rate,
        "\\boxed{8}<|end|>": (1 - rate) / 2,
        "no idea<|end|>": (1 - rate) / 2,
    }
    return {text: chance for text, chance in replies.items() if chance > 0}


async def result_of(script, rows=ROWS, samples=1, seed=0, **more):
    policy = ScriptedPolicy(script)
    renderer = make_renderer(policy.tokenizer, "code")
    return await evaluate_policy(
        policy, renderer, lambda _: Boxed(), rows, samples=samples, seed=seed, concurrency=4, **more
    )


@pytest.mark.slow
async def test_known_success_rates_are_recovered():
    result = await result_of(by_rate, samples=150, seed=3)
    table = result.table
    rates = {p: float(np.mean([r.right for r in rows])) for p, rows in by_problem(result.records).items()}
    for problem, rate in RATES.items():
        assert rates[problem] == pytest.approx(rate, abs=0.14)
    assert rates["p0"] == 0.0
    assert rates["p4"] == 1.0
    assert table["avg@k"]["value"] == pytest.approx(0.5, abs=0.05)
    same = table["avg@k"]["same_problems"]
    assert same["low"] <= 0.5 <= same["high"]
    assert table["pass@k"]["150"]["value"] == 0.8
    assert len(table["pass@k"]) == 150


async def test_the_same_seed_gives_the_same_answers_in_any_order_and_another_seed_others():
    one = await result_of(by_rate, samples=8, seed=1)
    again = await result_of(by_rate, rows=ROWS, samples=8, seed=1, name="other")
    other = await result_of(by_rate, samples=8, seed=2)
    assert [r.stated for r in one.records] == [r.stated for r in again.records]
    assert [r.stated for r in one.records] != [r.stated for r in other.records]
    assert draw_seed(1, "p1", 0) != draw_seed(1, "p1", 1)


async def test_fewer_rows_and_samples_play_the_same_episodes():
    # fails when the seed depends on the number of rows
    whole = {r.key: r.stated for r in (await result_of(by_rate, samples=6)).records}
    part = (await result_of(by_rate, rows=ROWS[2:4], samples=3)).records
    assert {r.key: r.stated for r in part} == {r.key: whole[r.key] for r in part}


async def test_row_of_metrics():
    row = (await result_of(by_rate, samples=4)).as_row()
    assert row["episodes"] == 20
    assert row["problems"] == 5
    low, high = row["interval"]
    assert low <= row["reward_mean"] <= high
    assert list(row["pass@k"]) == ["1", "2", "3", "4"]
    assert row["pass@k"]["1"] == row["reward_mean"] <= row["pass@k"]["4"]


def code(body: str) -> str:
    return f"<code>\n```python\n{body}\n```\n</code>"


async def test_tools_confidence_and_tokens_are_counted():
    def uses_python(request):
        return code("1") if request.turn == 0 else {"\\boxed{7}<|end|>": 0.5, "\\boxed{8}<|end|>": 0.5}

    result = await result_of(uses_python, rows=ROWS[:2], samples=4)
    table = result.table
    assert table["tools"]["calls_per_episode"] == 1.0
    assert table["tools"]["error_share"] == 0.0
    assert table["tools"]["turns_per_episode"] == 2.0
    record = result.records[0]
    assert record.confidence is not None
    assert record.confidence < 0.0
    assert record.prompt_tokens > record.sampled_tokens // 2


async def test_infrastructure_failures_are_played_again_then_counted_and_never_graded():
    result = await result_of(lambda request: code("broken"), rows=ROWS[:3])
    counts = result.table["counts"]
    assert counts["failed"] == 3
    assert counts["failures"] == {"sandbox: SandboxFailure": 3}
    assert counts["answered"] == 0
    assert "avg@k" not in result.table
    assert all(r.attempts == 3 and r.score is None and r.stated is None for r in result.records)
    assert result.as_row()["reward_mean"] is None


async def test_a_failure_that_goes_away_leaves_an_answer():
    def recovers(request):
        return "\\boxed{7}<|end|>" if "again" in request.session else code("broken")

    result = await result_of(recovers, rows=ROWS[:2])
    assert result.table["counts"]["right"] == 2
    assert result.table["counts"]["played_again"] == 2


async def test_an_evaluation_in_which_everything_breaks_stops():
    rows = [{"id": f"q{i}", "problem": "x", "answer": "7"} for i in range(40)]
    with pytest.raises(AgentRLError, match="20 episodes in a row failed, the last one at the sandbox"):
        await result_of(lambda request: code("broken"), rows=rows)


async def test_failures_at_the_end_of_an_evaluation_with_answers_do_not_end_it():
    """Fails when the slow ones, which fail last and together, are taken for an outage."""
    rows = [{"id": f"q{i}", "problem": f"say {i}", "answer": "7"} for i in range(30)]

    def breaks_late(request):
        number = int(request.prompt.split("say ")[1].split()[0].split("<")[0])
        return "\\boxed{7}<|end|>" if number < 5 else code("broken")

    policy = ScriptedPolicy(breaks_late)
    renderer = make_renderer(policy.tokenizer, "code")
    result = await evaluate_policy(policy, renderer, lambda _: Boxed(), rows, concurrency=30)
    assert (result.table["counts"]["right"], result.table["counts"]["failed"]) == (5, 25)


async def test_truncated_answers_are_wrong_and_counted():
    result = await result_of(
        lambda request: "\\boxed{7}<|end|>", rows=ROWS[:2], rollout=RolloutSettings(max_tokens=3)
    )
    assert result.table["counts"]["truncated"] == 2
    assert result.table["avg@k"]["value"] == 0.0
    assert result.table["counts"]["no_vote"] == 2


def episode(problem: str, right: bool, stated: str | None, draw: int = 0) -> Record:
    made = Episode(
        episode_id="e", dispatch_index=0, prompt_id=problem, segments=(SegmentBuilder().build(),), turns=(),
        reward=float(right), stop_reason=StopReason.ANSWERED, start_version=0, temperature=1.0,
    )  # fmt: skip
    return make_record(made, draw=draw, seed=0, attempts=1, stated=stated, gold="1/2", strict=False)


async def test_votes_are_counted_by_value():
    answers = [("0.5", True), ("\\frac{1}{2}", True), ("3", False), ("3", False), (None, False)]
    records = [episode("p", right, stated, draw) for draw, (stated, right) in enumerate(answers)]
    grader = Grader()
    by_value = await summarise(records, equivalence_of(grader, "canonical"))
    by_text = await summarise(records, Equivalence())
    # by value it is two against two, one half; by text the two threes win
    assert by_value["maj@k"]["5"]["value"] == 0.5
    assert by_text["maj@k"]["5"]["value"] == 0.0
    assert set(by_value["maj@k"]) == {"1", "2", "4", "5"}
    assert by_value["maj@k"]["1"]["value"] == pytest.approx(2 / 5)


def test_failures_never_vote():
    failed = Episode(
        episode_id="e", dispatch_index=0, prompt_id="p", segments=(SegmentBuilder().build(),), turns=(),
        reward=None, stop_reason=StopReason.FAILED, start_version=0, temperature=1.0,
        failure=Failure("policy", "PolicyUnavailable", "gone"),
    )  # fmt: skip
    record = make_record(failed, draw=0, seed=0, attempts=1, stated=None, gold=None, strict=False)
    assert record.failed
    assert not record.right
    assert record.strict is None


def test_records_survive_the_disk(tmp_path):
    folder = ResultFolder(tmp_path)
    assert folder.open({"seed": 1}) == []
    record = episode("p", True, "1")
    folder.append(record)
    folder.close()
    # a line that was being written when the process died
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"problem": "q", "dr')
    assert read_records(tmp_path) == [record]
    again = ResultFolder(tmp_path)
    assert again.open({"seed": 1}) == [record]
    again.append(episode("q", False, None))
    again.close()
    assert [r.problem for r in read_records(tmp_path)] == ["p", "q"]


def test_a_folder_of_another_evaluation_is_refused(tmp_path):
    folder = ResultFolder(tmp_path)
    folder.open({"seed": 1})
    folder.close()
    again = ResultFolder(tmp_path)
    with pytest.raises(AgentRLError, match="its seed is 1, now it is 2"):
        again.open({"seed": 2})
    again.close()


async def test_only_missing_episodes_are_played():
    played: list[str] = []

    async def play(row, dispatch: Dispatch) -> Played:
        played.append(dispatch.prompt_id)
        made = Episode(
            episode_id=dispatch.episode_id, dispatch_index=0, prompt_id=dispatch.prompt_id,
            segments=(SegmentBuilder().build(),), turns=(), reward=1.0, stop_reason=StopReason.ANSWERED,
            start_version=0, temperature=1.0,
        )  # fmt: skip
        return Played(made, "")

    done = [episode("p1", False, None)]
    records = await evaluate(Plan(ROWS[:3], 1, 0), play, concurrency=2, done=done)
    assert sorted(played) == ["p0", "p2"]
    assert [r.problem for r in records] == ["p0", "p1", "p2"]
    assert [r.right for r in records] == [True, False, True]
