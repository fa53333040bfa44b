"""`agentrl check`: good environments pass; each known way to be cheated, to leak or to break is found."""

from pathlib import Path

import pytest

from agentrl_envs import Env, Finish, MathWithPython, load_env, tool
from agentrl_envs.check import check_env
from agentrl_sandbox import open_sandbox

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = ({"problem": "1+1?", "answer": "2048"}, {"problem": "2+1?", "answer": "4096"})


async def failures(env_class: type[Env], rows=ROWS, **settings) -> dict[str, str]:
    return {f.check: f.detail for f in await check_env(env_class, rows, **settings) if f.ok is False}


class Good(Env):
    "Sums."

    required_fields = ("problem", "answer")

    def prompt(self, row):
        return row["problem"]

    @tool
    def add(self, a: int, b: int) -> int:
        "Add."
        return a + b

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])


async def test_a_good_environment_passes():
    assert await failures(Good) == {}


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "math_with_python"])
async def test_the_shipped_environments_pass(name: str, grader):
    env_class = load_env(name)
    async with open_sandbox("broken") as sandbox:
        assert await failures(env_class, env_class.example_rows, sandbox=sandbox) == {}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
async def test_the_examples_pass_and_are_short(path: Path):
    assert "class " in path.read_text()
    env_class = load_env(path)
    async with open_sandbox("broken") as sandbox:
        assert await failures(env_class, env_class.example_rows, sandbox=sandbox) == {}
    if path.stem == "word_count":
        assert len(path.read_text().splitlines()) <= 20


class AnswerAnywhere(Good):
    def reward(self, row, answer):
        return answer is not None and row["answer"] in answer


class PaysEverybody(Good):
    def reward(self, row, answer):
        return 1


class PaysNobody(Good):
    def reward(self, row, answer):
        return 0


class Raises(Good):
    def reward(self, row, answer):
        return answer.strip() == row["answer"]


class TellsTheAnswer(Good):
    def prompt(self, row):
        return f"{row['problem']} (metadata: {row})"


class Silent(Good):
    @tool
    def mystery(self) -> str:
        return ""


class NeedsMore(Good):
    required_fields = ("level",)


class StartsBadly(Good):
    def setup(self):
        raise RuntimeError("no such service")


@pytest.mark.parametrize(
    ("env_class", "check", "words"),
    [
        (PaysEverybody, "an empty answer scores the least", "reward 1, want 0"),
        (PaysEverybody, "a malformed answer scores the least", "reward 1, want 0"),
        (PaysNobody, "the ground truth scores the most", "row 1, answer '2048': reward 0, want 1"),
        (AnswerAnywhere, "known cheats are not paid", "a tool result the model made up"),
        (Raises, "an empty answer scores the least", "Raises.reward raised AttributeError"),
        (TellsTheAnswer, "the answer is not in the prompt", "2 of 2 rows"),
        (Silent, "tools can be described", "mystery"),
        (NeedsMore, "rows have the fields it needs", "'level'"),
        (StartsBadly, "episodes start", "no such service"),
    ],
)
async def test_faults_are_found(env_class: type[Env], check: str, words: str):
    assert words in (await failures(env_class))[check]


class LeaksIntoTheSandbox(MathWithPython):
    async def setup(self):
        await super().setup()

    async def prompt(self, row):
        await self.python_session.run(f"expected = {row['answer']}")
        return "?"


async def test_an_answer_in_the_sandbox_is_found():
    async with open_sandbox("broken") as sandbox:
        found = await failures(LeaksIntoTheSandbox, ROWS, sandbox=sandbox)
    assert "ran a program that contains the answer" in found["the answer never reaches the sandbox"]


class Ends(Good):
    @tool
    def done(self) -> str:
        "End."
        raise Finish(reward=0.0)


async def test_tools_that_end_the_episode_are_fine():
    assert await failures(Ends) == {}


def test_the_command(tmp_path: Path, capsys):
    from agentrl.cli.main import main

    assert main(["check", str(EXAMPLES / "word_count.py"), "--sandbox", "none"]) == 0
    assert "ready to train on" in capsys.readouterr().out
    data = tmp_path / "d.jsonl"
    data.write_text('{"question": "1+1?", "final": "2"}\n')
    arguments = ["check", "countdown", "--sandbox", "none", "--data", str(data)]
    assert main(arguments) == 1
    assert "needs the fields 'nums', 'target'" in capsys.readouterr().out
    assert main(["check", "countdown", "--sandbox", "none", "--set", "use_al=1"]) == 1
    assert "did you mean 'use_all'" in capsys.readouterr().out
    (tmp_path / "check.toml").write_text(
        f"[env]\nname = '{EXAMPLES / 'word_count.py'}'\n[sandbox]\nbackend = 'none'\n[check]\nlimt = 1\n"
    )
    assert main(["check", str(tmp_path / "check.toml"), "--check.limit=0"]) == 1
    told = capsys.readouterr().err
    assert "check.toml, line 6: unknown setting 'check.limt'; did you mean 'check.limit'?" in told
    assert "check.limit = 0 must be at least 1" in told
    bad = tmp_path / "no_rows.py"
    bad.write_text("from agentrl_envs import Env\nclass A(Env): 'a'\n")
    assert main(["check", str(bad)]) == 1
    assert "give --data FILE" in capsys.readouterr().err
