"""Classes and functions written for TRL, played unchanged by a scripted engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.main import main
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, play, shown, tool_call
from tests.needed import needed

TASKS = Path(__file__).parent / "trl_tasks.py"


def env_of(names: str, **settings: Any) -> Any:
    made = load_env(f"trl:{TASKS}:{names}", settings)
    return lambda **given: made(**settings, **given)


async def test_a_class_is_reset_called_and_asked_for_its_reward() -> None:
    script = [tool_call("add", amount="3", times=2), tool_call("add", amount=1), f"Done.{END}"]
    episode = await play(env_of("Counter"), {"prompt": "Reach a round number.", "start": 3}, script)
    assert (episode.failure, episode.reward, episode.reward_parts) == (None, 1.0, {"Counter": 1.0})
    assert "Reach a round number. The counter is at 3." in shown(episode)
    assert '"description": "How much to add."' in shown(episode)
    other = await play(env_of("Counter"), {"prompt": "Again.", "start": 3}, [f"Done.{END}"])
    assert other.reward == 0.0, "an object of its own for each episode"


async def test_what_a_tool_refuses_is_told() -> None:
    script = [tool_call("add", amount=-1), tool_call("add", amount="x"), tool_call("subtract"), f"Done.{END}"]
    episode = await play(env_of("Counter"), {"prompt": "Go.", "start": 1}, script)
    assert (episode.failure, episode.reward) == (None, 0.0)
    assert "it only counts up" in shown(episode)
    assert "expected an integer, got 'x'" in shown(episode)


async def test_coroutines_connections_and_names_of_ours() -> None:
    script = [tool_call("step", amount=5), tool_call("close"), f"Done.{END}"]
    episode = await play(env_of("Ledger"), {"prompt": [{"role": "user", "content": "Book."}]}, script)
    assert (episode.failure, episode.reward) == (None, 0.25)
    assert "booked 5" in shown(episode)
    assert "closed\n" in shown(episode)


async def test_functions_are_tools_and_reward_functions_are_parts() -> None:
    env = env_of("multiply", reward_funcs=["accuracy", "used_a_tool"], highest=2)
    row = {"prompt": [{"role": "user", "content": "6 * 7?"}], "answer": "42"}
    episode = await play(env, row, [tool_call("multiply", first=6, second=7), f"It is 42.{END}"])
    assert (episode.failure, episode.reward_parts) == (None, {"accuracy": 1.0, "used_a_tool": 1.0})
    text = await play(env, {**row, "prompt": "6 * 7?"}, [f"It is 43.{END}"])
    assert (text.failure, text.reward_parts) == (None, {"accuracy": 0.0})


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (["nothing"], "every reward function returned None"),
        (["a_number"], "a_number returned 1.0 for one completion; want a list of one number"),
    ],
)
async def test_no_number_is_no_reward(functions: list[str], said: str) -> None:
    episode = await play(env_of("multiply", reward_funcs=functions), {"prompt": "Hm?"}, [f"Hm.{END}"])
    assert episode.failure is not None
    assert said in str(episode.failure)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        (f"{TASKS}:Countre", {}, EnvNotFound, "did you mean Counter"),
        (f"{TASKS}:NoReset", {}, EnvError, "want one class with a method reset"),
        (f"{TASKS}:Unpaid", {}, EnvError, "the class needs get_reward"),
        (f"{TASKS}:multiply", {}, EnvError, "has no reward"),
        (f"{TASKS}:multiply", {"reward_funcs": ["acuracy"]}, EnvNotFound, "did you mean accuracy"),
        (f"{TASKS}:Counter", {"reward_func": []}, SettingsError, "did you mean 'reward_funcs'"),
        ("no_such.py:Counter", {}, EnvNotFound, "no file no_such.py"),
        ("no_such_module:Counter", {}, EnvNotFound, "no module 'no_such_module'"),
        (str(TASKS), {}, EnvNotFound, "want trl:file.py:Class"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, settings: Any, kind: type[EnvError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"trl:{name}", settings)


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Go.", "start": 3}\n')
    assert main(["check", f"trl:{TASKS}:Counter", "--data", str(tmp_path / "rows.jsonl")]) == 0, (
        capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_trl_itself_offers_the_same_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "datasets", "trl"):
        needed(package, "make test-families installs it")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import pyarrow
    import trl
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import get_json_schema

    import agentrl

    env = load_env(f"trl:{TASKS}:Counter")
    model = Path(agentrl.__file__).parent / "demo" / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    rows = pyarrow.Table.from_pylist([{"prompt": [{"role": "user", "content": "Go."}], "start": 3}] * 2)
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=tokenizer,
        args=trl.GRPOConfig(str(tmp_path), use_cpu=True, num_generations=2, max_steps=1, report_to=[]),
        train_dataset=Dataset(InMemoryTable(rows), fingerprint="rows"),
        environment_factory=env.factory,
    )
    (theirs,) = (get_json_schema(tool)["function"] for tool in trainer.tools)
    (ours,) = (spec.as_openai()["function"] for spec in env.tool_specs())
    assert (ours["name"], ours["description"]) == (theirs["name"], theirs["description"])
    assert ours["parameters"]["required"] == theirs["parameters"]["required"]
    for name, described in theirs["parameters"]["properties"].items():
        assert described.items() <= ours["parameters"]["properties"][name].items()
