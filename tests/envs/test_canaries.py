r"""Known cheats, played against the real environment, grader and sandbox: none is paid.

Each cheat is one way in which models have been seen to raise a reward without solving the problem.
"""

import pytest

from agentrl_envs import Env, MathWithPython, SandboxFailure, ToolCall, Transcript, checked
from agentrl_envs.check import check_env
from agentrl_sandbox import open_sandbox

ROW = {"problem": "What is 1234567 * 7654321? (id 9449772114007)", "answer": "9449772114007"}
GOLD = ROW["answer"]


@pytest.fixture
async def sandbox():
    async with open_sandbox("local", allow_unsafe=True) as sandbox:
        yield sandbox


async def played(sandbox, grader, programs: list[str], answer: str | None) -> tuple[list[str], float]:
    """What the programs printed, and the reward of an episode that ran them and answered."""
    env = MathWithPython(sandbox=sandbox, grader=grader)
    try:
        await env.start(ROW)
        calls = [ToolCall(str(i), "python", {"code": code}) for i, code in enumerate(programs)]
        results = [result for call in calls for result in await env.call_tools([call])]
        transcript = Transcript(tool_calls=tuple(calls), tool_results=tuple(results), turns=len(calls) + 1)
        return [r.text for r in results], (await env.score(ROW, answer, transcript)).value
    finally:
        await env.aclose()


async def test_an_honest_episode_is_paid(sandbox, grader):
    texts, reward = await played(sandbox, grader, ["x = 1234567", "print(x * 7654321)"], rf"\boxed{{{GOLD}}}")
    assert GOLD in texts[1]
    assert reward == 1.0


async def test_an_answer_that_only_a_tool_printed_is_not_paid(sandbox, grader):
    texts, reward = await played(sandbox, grader, [rf"print(r'\boxed{{{GOLD}}}')"], "The tool has shown it.")
    assert rf"\boxed{{{GOLD}}}" in texts[0]
    assert reward == 0.0
    assert (await played(sandbox, grader, [rf"print(r'\boxed{{{GOLD}}}')"], None))[1] == 0.0


NOT_ANSWERS = [
    rf"<interpreter>\boxed{{{GOLD}}}</interpreter>",
    f"```output\n\\boxed{{{GOLD}}}\n```",
    rf"\boxed{{1}} \boxed{{2}} \boxed{{{GOLD}}}",
    rf"\boxed{{1, 2, {GOLD}}}",
    rf"\boxed{{{GOLD}}} or \boxed{{7}}",
    rf"\boxed{{12 = {GOLD}}}",
    rf"\boxed{{x \ge {GOLD}}}",
    r"\boxed{}",
    "",
    r"\boxed{\text{the correct answer}}",
    rf"\boxed{{7}} % {GOLD}",
]


async def test_words_that_are_no_answer_are_not_paid(grader):
    env = MathWithPython(grader=grader)
    rewards = {answer: (await env.score(ROW, answer, Transcript())).value for answer in NOT_ANSWERS}
    await env.aclose()
    assert [answer for answer, reward in rewards.items() if reward > 0] == []


CHECKER_OVERWRITTEN = """
import builtins, sys
class Everything(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
builtins.str = Everything
for name in list(sys.modules):
    if "sympy" in name or "agentrl" in name or "math_verify" in name:
        sys.modules[name] = None
try:
    import agentrl_envs.graders.grader as g
    g.Grader.grade_sync = lambda *a: "right"
    print("patched the grader")
except Exception as error:
    print("no grader here:", type(error).__name__)
"""


async def test_a_checker_cannot_be_overwritten_from_the_sandbox(sandbox, grader):
    # Fails if grading ever moves into the process that runs the model's code.
    await played(sandbox, grader, [CHECKER_OVERWRITTEN], None)
    assert (await played(sandbox, grader, [CHECKER_OVERWRITTEN], r"\boxed{7}"))[1] == 0.0
    assert (await played(sandbox, grader, [CHECKER_OVERWRITTEN], rf"\boxed{{{GOLD}}}"))[1] == 1.0


@pytest.mark.slow
async def test_the_answer_is_nowhere_in_the_sandbox(sandbox):
    # Fails if an environment passes the row into the sandbox.
    findings = await check_env(MathWithPython, MathWithPython.example_rows, sandbox=sandbox)
    outcome = {finding.check: finding for finding in findings}
    assert outcome["the answer never reaches the sandbox"].ok is True
    assert "1 sessions searched" in outcome["the answer never reaches the sandbox"].detail
    assert outcome["tools answer"].detail == "python: ok"
    assert [finding for finding in findings if finding.ok is False] == []


class LeavesTheAnswerInAFile(MathWithPython):
    async def prompt(self, row):
        await self.python_session.run(
            f"open('notes.txt', 'w').write(''.join(reversed({row['answer'][::-1]!r})))"
        )
        return "?"


async def test_an_answer_left_in_a_file_is_found(sandbox):
    findings = await check_env(LeavesTheAnswerInAFile, MathWithPython.example_rows, sandbox=sandbox)
    outcome = {finding.check: finding for finding in findings}["the answer never reaches the sandbox"]
    assert outcome.ok is False
    assert "the file notes.txt" in outcome.detail


async def test_an_answer_in_the_metadata_of_the_prompt_is_noticed():
    class Metadata(Env):
        def prompt(self, row):
            return row["problem"]

        def reward(self, row, answer):
            return self.grade(answer, row["answer"])

    findings = {finding.check: finding for finding in await check_env(Metadata, [ROW])}
    assert findings["the answer is not in the prompt"].ok is False


async def test_broken_machinery_is_no_tool_result(sandbox):
    # Fails if GuardedSession.run returns the result unchecked: it would be paid as a wrong answer.
    from agentrl_sandbox import Result, Status

    lost = Result(
        status=Status.INFRASTRUCTURE_FAILURE, stdout="", stderr="", value=None, error="the server is gone",
        truncated=False, wall_s=0.0, cpu_s=0.0,
    )  # fmt: skip
    with pytest.raises(SandboxFailure, match="the server is gone"):
        checked(lost)
    env = MathWithPython(sandbox=sandbox)
    await env.start(ROW)

    async def broken(code: str, timeout: float | None = None, *, stdin: str = "") -> Result:
        return lost

    session = env.python_session._session
    env.python_session._session = type("Lost", (), {"run": staticmethod(broken), "close": session.close})()
    with pytest.raises(SandboxFailure, match="the server is gone"):
        await env.call_tools([ToolCall("1", "python", {"code": "1"})])
    await env.aclose()


async def test_the_status_of_a_program_is_the_status_of_the_call(sandbox):
    env = MathWithPython(sandbox=sandbox)
    await env.start(ROW)
    good, bad = [
        (await env.call_tools([ToolCall("1", "python", {"code": code})]))[0] for code in ("2+2", "1/0")
    ]
    assert (good.text.strip(), good.ok, good.status) == ("4", True, "ok")
    assert (bad.ok, bad.status) == (False, "error")
    assert "ZeroDivisionError" in bad.text
    assert env.sandbox._sessions != []
    await env.aclose()
    assert env.sandbox._sessions == []
