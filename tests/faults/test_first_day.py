"""Mistakes of the first day: each is answered by one sentence that says what would be right."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="most of a first day trains (pip install agentrl[train])")

import agentrl as package

pytestmark = pytest.mark.timeout(300)  # they import torch and train, on machines that others load

MODEL = Path(package.__file__).parent / "demo" / "model"
TAKE_SETTINGS = ("eval", "sft", "check")
"""Commands whose options are settings: a wrong one is an error of settings, not of usage."""
SMALL = (
    "--stream.batch=4",
    "--rollout.max_tokens=16",
    "--engine.slots=4",
    "--engine.context_tokens=256",
    "--quiet",
)
GAME = """
from agentrl import Env

class Game(Env):
    top: int = 20

    def prompt(self, row):
        return str(row["n"] + self.top)

    def reward(self, row, answer):
        return 0.5

    @classmethod
    def generate_rows(cls, count, split="train", seed=0):
        return [{"n": number} for number in range(count)]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a small environment, rows and a model."""
    (tmp_path / "game.py").write_text(GAME)
    rows = [{"problem": f"{number} + 1", "answer": str(number + 1)} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").symlink_to(MODEL)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, made once; tests take copies of it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "game.py").write_text(GAME)
    main = next(iter(entry_points(group="console_scripts", name="agentrl"))).load()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        told = ["--model", str(MODEL), "--data=generated:train:8", "--steps=2", "--name=done", *SMALL]
        assert main(["train", "game.py", *told, "--checkpoint.every=1"]) == 0
    return folder


@pytest.fixture
def done(run: Path, place: Path) -> Path:
    """A copy of that run, below the working folder."""
    shutil.copytree(run / "runs", place / "runs")
    return place / "runs" / "done"


def test_a_command_that_does_not_exist_lists_those_that_do(agentrl):
    code, _, errors = agentrl("trian")
    assert code == 2
    assert "train" in errors


# ---- settings ----------------------------------------------------------------------------------------------


TEXTS = ["1e-5", "0x10", "1_000", "2026-11-21", "true", "null", "007", "[x]", "0b1"]


def test_a_name_is_the_name_of_the_folder_as_it_stands(agentrl, place: Path):
    told = ["--model", "model", "--data", "generated:train:8", "--steps", "0", *SMALL]
    code, _, errors = agentrl("train", "game.py", *told, "--name", "1e-5")
    assert code == 0, errors
    assert [path.name for path in (place / "runs").iterdir()] == ["1e-5"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "game.py", "--name", "a\udcffb"),
        ("eval", "model", "--out", "\udcff"),
        ("sft", "\udce9.jsonl", "--model", "model", "--out", "o"),
        ("view", "runs/\udc80"),
    ],
)
def test_an_argument_that_is_not_utf8_is_one_sentence(agentrl, place: Path, arguments: tuple[str, ...]):
    code, _, errors = agentrl(*arguments)
    assert code == 1
    assert "\\x" in errors
    assert "is not UTF-8" in errors


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("setting", ["run.name", "run.directory", "env.settings.label", "sandbox.image"])
def test_texts_are_taken_as_they_stand(agentrl, place: Path, setting: str, text: str):
    (place / "game.py").write_text(GAME.replace("top: int = 20", "top: int = 20\n    label: str = ''"))
    told = [
        "--model",
        "model",
        "--data",
        "generated:train:8",
        "--sandbox.backend=docker",
        "--dry-run",
        *SMALL,
    ]
    code, out, errors = agentrl("train", "game.py", *told, f"--{setting}={text}")
    assert code == 0 or "label" in setting, errors
    assert code == 1 or f"{setting.rpartition('.')[2]} = {json.dumps(text)}" in out


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--learner.learning_rate=nan", "finite and at least 0"),
        ("--learner.betas=[0.9, 2]", "learner.betas.1 = 2.0 must be at least 0 and below 1"),
        ("--rollout.temperature=inf", "finite and above 0"),
        ("--eval.top_p=1.5", "above 0 and at most 1"),
        ("--run.seed=-1", "at least 0"),
        ("--run.wait_limit_s=inf", "finite"),
        ("--sandbox.memory_mb=1", "at least 32"),
        ("--tracker.rho_min=1", "below 1"),
        ("--engine.memory_share=0", "above 0"),
        ("--env.weight=-1", "above 0"),
        ("--loss.entropy_coefficient=nan", "finite"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(agentrl, place: Path, flag: str, wanted: str):
    told = ["--model", "model", "--data", "generated:train:8", "--dry-run", *SMALL]
    code, out, errors = agentrl("train", "game.py", *told, flag)
    assert (code, out) == (1, "")
    assert flag.partition("=")[0].lstrip("-") in errors
    assert wanted in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "model", "--limit", "-3"],
        ["eval", "model", "--temperature", "nan"],
        ["eval", "model", "--top-p", "0"],
        ["eval", "model", "--samples", "0"],
        ["sft", "t.jsonl", "--model", "model", "--out", "o", "--learning-rate", "inf"],
        ["sft", "t.jsonl", "--model", "model", "--out", "o", "--limit", "-1"],
        ["check", "game.py", "--limit", "0"],
        ["view", "--port", "70000"],
        ["compare", "a", "b", "--shown", "-1"],
        ["export", "runs/1", "o", "--version", "-1"],
        ["sandbox", "run", "-", "--timeout", "nan"],
    ],
)
def test_a_flag_out_of_range_is_refused_with_the_range(agentrl, place: Path, arguments: list[str]):
    code, _, errors = agentrl(*arguments)
    assert code == (1 if arguments[0] in TAKE_SETTINGS else 2)
    assert arguments[-2].lstrip("-").replace("-", "_") in errors.replace("-", "_")
    assert "must be" in errors


def test_all_mistakes_of_a_file_are_told_with_their_lines(agentrl, place: Path):
    (place / "run.toml").write_text(
        "[learner]\nlearnign_rate = 1e-3\nepochs = 0\n\n[stream]\nbatch = 2.5\n[run]\nname = 1e-5\n"
    )
    code, _, errors = agentrl("train", "run.toml", "--strem.batch=3", "--run.seed=x")
    assert code == 1
    for text in (
        "6 mistakes",
        "run.toml, line 2: unknown setting 'learner.learnign_rate'; did you mean 'learner.learning_rate'?",
        "run.toml, line 3: learner.epochs = 0 must be at least 1",
        "run.toml, line 6: stream.batch = 2.5 must be a whole number",
        'run.toml, line 8: run.name = 1e-05 must be text: write "1e-05" with quotes',
        "--strem.batch: unknown setting 'strem'",
        "--run.seed: run.seed = 'x' must be a whole number",
    ):
        assert text in errors


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--dryrun", "--dry-run"), ("--learning_rate=3", "--learner.learning_rate"), ("--nmae=x", "--name")],
)
def test_a_misspelt_option_is_told_its_neighbour(agentrl, flag: str, meant: str):
    code, _, errors = agentrl("train", "game.py", flag)
    assert code == 2
    assert f"did you mean {meant}?" in errors


def test_a_file_that_is_not_text_is_no_traceback(agentrl, place: Path):
    (place / "run.toml").write_bytes("name = 'é'".encode("latin-1"))
    code, _, errors = agentrl("train", "run.toml")
    assert code == 1
    assert "not UTF-8" in errors


# ---- before a run starts -----------------------------------------------------------------------------------


def test_the_defaults_train_an_environment_of_one_s_own(agentrl, place: Path):
    told = ["--model", "model", "--data", "rows.jsonl", "--steps", "1", "--stream.batch=4"]
    code, _, errors = agentrl("train", "game.py", *told, "--data.train=generated:train:8")
    assert code == 0, errors
    settings = (place / "runs" / "001" / "config.toml").read_text()
    assert 'format = "code"' in settings
    assert "mini_batch = 0" in settings
    assert "initial_rollouts = 0" in settings


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_every_reason_why_a_run_cannot_start_is_told_and_no_folder_is_left(
    agentrl, place: Path, more: list[str]
):
    told = ["--data", "generated:train:2", "--model", "./nowhere", "--eval.data=nope.jsonl", *SMALL, *more]
    told.append("--sampler.copies_per_prompt=1")
    code, _, errors = agentrl("train", "game.py", *told)
    assert code == 1
    for text in ("3 reasons", "it could never fill", "./nowhere", "nope.jsonl"):
        assert text in errors
    assert not (place / "runs").exists()


def test_a_tool_that_no_format_can_call_is_one_refusal(agentrl, place: Path):
    tool = "    @tool\n    def search(self, q: str) -> str:\n        'Search.'\n        return q\n"
    (place / "game.py").write_text(GAME.replace("import Env", "import Env, tool") + "\n" + tool)
    told = ["--data", "generated:train:8", "--model", "model", *SMALL]
    for form in ([], ["--rollout.format=code"], ["--rollout.format=hermes"]):
        code, _, errors = agentrl("train", "game.py", *told, *form)
        assert code == 1
        assert "chat template" in errors
        assert 'set `rollout.format = "hermes"`' not in errors
    assert not (place / "runs").exists()


def test_a_file_that_is_missing_is_named_before_the_model(agentrl, place: Path):
    code, _, errors = agentrl("train", "nope.py", "--data", "rows.jsonl", "--model", "model")
    assert code == 1
    assert "no file nope.py" in errors


def test_costs_are_told_before_they_are_paid(agentrl, place: Path):
    told = ["--data", "generated:train:8", "--model", "model", "--tracker.initial_rollouts=3", *SMALL]
    code, _, errors = agentrl("train", "game.py", *told, "--eval.data=generated:test:5", "--dry-run")
    assert code == 0
    assert "24 episodes are played for initial values" in errors
    assert "5 held-out episodes of generated:test:5" in errors


def test_a_file_of_initial_values_is_read_before_anything_starts(agentrl, place: Path):
    told = ["--data", "generated:train:8", "--model", "model", "--tracker.initial_file=v.jsonl", *SMALL]
    for text in ('{"prompt_id": "x", "rewards": [2]}\n', "[1]\n", "{\n", '{"prompt_id": "x"}\n'):
        (place / "v.jsonl").write_text(text)
        code, _, errors = agentrl("train", "game.py", *told)
        assert code == 1
        assert "v.jsonl, line 1" in errors
    assert not (place / "runs").exists()


def test_a_prompt_that_does_not_mention_its_tool_is_warned_of(agentrl, place: Path):
    shutil.copytree(MODEL, place / "base")
    (place / "base" / "sft.json").unlink()
    told = ["--data", "rows.jsonl", *SMALL, "--dry-run"]
    code, _, errors = agentrl("train", "math_with_python", "--model", "base", *told)
    assert code == 0
    assert "the prompt does not mention the tool python" in errors
    code, _, errors = agentrl("train", "math_with_python", "--model", "model", *told)
    assert "does not mention" not in errors


def test_rows_that_are_equal_are_counted(agentrl, place: Path, caplog: pytest.LogCaptureFixture):
    (place / "twice.jsonl").write_text((place / "rows.jsonl").read_text() * 2)
    told = ["--data", "twice.jsonl", "--model", "model", *SMALL, "--dry-run"]
    code, _, errors = agentrl("train", "math_with_python", *told)
    assert code == 0
    assert "8 rows are equal to earlier ones" in errors + caplog.text


# ---- models ------------------------------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _gguf(folder: Path) -> None:
    _empty(folder)
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def _other_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 49152}))


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _adapter(folder: Path) -> None:
    _empty(folder)
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "model.safetensors is cut short"),
        (_empty, "the folder is empty"),
        (_gguf, "GGUF cannot be trained"),
        (_other_tokenizer, "the tokenizer of another model"),
        (_no_tokenizer, "holds no tokenizer"),
        (_pointer, "git lfs pull"),
        (_adapter, "adapter"),  # `train` says what it is, `eval` that it names no base model
    ],
)
def test_a_model_folder_that_is_not_whole(agentrl, place: Path, damage: Callable[[Path], None], words: str):
    shutil.copytree(MODEL, place / "broken")
    damage(place / "broken")
    told = ["--data", "generated:train:8", "--model", "broken", *SMALL]
    code, _, errors = agentrl("train", "game.py", *told)
    assert code == 1
    assert words in errors
    assert not (place / "runs").exists()
    code, _, errors = agentrl("eval", "broken", "--env", "game.py", "--data", "generated:test:2", "--quiet")
    assert code == 1
    assert words in errors


def test_a_hub_that_cannot_be_reached_is_told_at_once(command, place: Path):
    told = ["--data", "generated:train:8", "--model", "nobody/nothing", *SMALL]
    result = command("train", "game.py", *told, timeout_s=240, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "neither a folder here" in result.stderr
    assert "127.0.0.1:9 cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Retrying" not in result.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(agentrl, place: Path):
    (place / "taken").write_text("a file")
    told = ["--data", "generated:train:8", "--model", "model", "--run.directory=taken", *SMALL]
    code, _, errors = agentrl("train", "game.py", *told)
    assert code == 1
    assert "taken" in errors
    for arguments in (
        ["eval", "model", "--env", "game.py", "--data", "generated:test:2", "--out", "taken/x"],
    ):
        code, _, errors = agentrl(*arguments)
        assert code == 1
        assert "taken" in errors


def test_a_missing_extra_is_named(command, place: Path):
    (place / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = None\nsys.modules['transformers'] = None\n"
    )
    told = ["--data", "generated:train:8", "--model", "model", *SMALL]
    result = command("train", "game.py", *told, timeout_s=240, PYTHONPATH=str(place))
    assert result.returncode == 1
    assert "pip install 'agentrl[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_takes_an_environment(agentrl, place: Path):
    told = ["--model", "model", "--data.train=generated:train:8", *SMALL[:-1]]
    code, out, errors = agentrl("doctor", "game.py", *told)
    assert code == 0, errors
    assert "environment game.py: no tools" in out
    code, out, _ = agentrl("doctor", "nope.py")
    assert code == 1
    assert "problem: no file nope.py" in out


# ---- a run's weights and settings --------------------------------------------------------------------------


EVAL = ("--data", "generated:test:2", "--max-tokens", "8", "--quiet")


def test_a_run_with_a_checkpoint_only_is_measured_in_its_newest_version(command, done: Path):
    shutil.rmtree(done / "weights")
    result = command("eval", "runs/done", *EVAL, timeout_s=240)
    assert result.returncode == 0, result.stderr
    assert "version 2 of runs/done is in a checkpoint only" in result.stderr
    assert "runs/done/weights/step_2" in result.stdout


def test_export_reads_checkpoints_to_the_same_bytes(agentrl, done: Path):
    whole = (done / "weights" / "step_2" / "model.safetensors").read_bytes()
    shutil.rmtree(done / "weights")
    code, _, errors = agentrl("export", "runs/done", "out")
    assert code == 0, errors
    assert (done.parents[1] / "out" / "model.safetensors").read_bytes() == whole
    code, _, errors = agentrl("export", "runs/done", "other", "--version", "7")
    assert code == 1
    assert "it has the versions" in errors


def test_a_newer_checkpoint_wins_over_older_weights(agentrl, done: Path):
    (done / "weights" / "step_2").rename(done / "weights" / "step_1")
    _, out, _ = agentrl("eval", "runs/done", *EVAL)
    assert "runs/done/weights/step_2" in out


def test_a_run_without_anything_is_refused(agentrl, done: Path):
    shutil.rmtree(done / "weights")
    shutil.rmtree(done / "checkpoints")
    for arguments in (["eval", "runs/done", *EVAL], ["export", "runs/done", "out"]):
        code, _, errors = agentrl(*arguments)
        assert code == 1
        assert "has neither weights nor a checkpoint" in errors


def test_weights_are_written_on_ctrl_c(place: Path):
    program = "import sys; from importlib.metadata import entry_points as e; "
    program += "sys.exit(next(iter(e(group='console_scripts', name='agentrl'))).load()())"
    told = [
        "game.py",
        "--model",
        "model",
        "--data=generated:train:8",
        "--steps=100000",
        "--name=long",
        *SMALL,
    ]
    with subprocess.Popen([sys.executable, "-c", program, "train", *told], cwd=place) as process:
        metrics = place / "runs" / "long" / "metrics.jsonl"
        until = time.monotonic() + 200
        while time.monotonic() < until and not (metrics.exists() and '"kind":"step"' in metrics.read_text()):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
    (weights,) = (place / "runs" / "long" / "weights").iterdir()
    (checkpoint, *_) = sorted((place / "runs" / "long" / "checkpoints").iterdir(), reverse=True)
    assert int(weights.name.removeprefix("step_")) == int(checkpoint.name.removeprefix("step_")) > 0


def test_resume_takes_a_setting_and_its_value_apart(agentrl, done: Path):
    code, out, errors = agentrl("train", "--resume", "runs/done", "--run.steps", "3", "--quiet")
    assert code == 0, errors
    assert "3 policy versions" in out
    lines = [json.loads(line) for line in (done / "settings.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["start", "resume"]
    assert lines[1]["changed"]["run.steps"] == [2, 3]
    assert "torch" in lines[1]["versions"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--env.settings.top=30", "env.settings.top = 30 of game.py (it had 20)"),
        ("--tracker.initial_rollouts=2", "tracker.initial_rollouts = 2 (it had 0)"),
        ("--tracker.drift=replay", "tracker.drift = 'replay' (it had 'clock')"),
        ("--estimator.kind=no_baseline", "estimator.kind = 'no_baseline' (it had 'spo')"),
        ("--data.train=generated:train:9", "the rows of game.py"),
    ],
)
def test_resume_refuses_what_would_change_the_meaning_of_its_values(
    agentrl, done: Path, flag: str, words: str
):
    before = (done / "config.toml").read_text()
    code, _, errors = agentrl("train", "--resume", "runs/done", "--run.steps", "3", flag)
    assert code == 1
    assert words in errors
    assert (done / "config.toml").read_text() == before


# ---- environments ------------------------------------------------------------------------------------------


FUNCTION = """
from agentrl import function_env
Doubling = function_env(reward=lambda row, answer: answer == row['answer'],
    example_rows=({'problem': 'Double 21.', 'answer': '42'},))
"""
REGISTERED = """
from agentrl import Env, ToolError, register
@register('first-day-chess')
class Chess(Env):
    example_rows = ({'problem': '2 + 2', 'answer': '4'},)
    def prompt(self, row): return row['problem']
    def reward(self, row, answer): return self.grade(answer, row['answer'])
"""


@pytest.mark.parametrize(
    ("named", "file", "text"),
    [("doubling.py", "doubling.py", FUNCTION), ("first-day-chess", "chess.py", REGISTERED)],
)
def test_environments_of_functions_and_registered_names_are_found(agentrl, place: Path, named, file, text):
    (place / file).write_text(text)
    code, out, errors = agentrl("check", named)
    assert code == 0, out + errors


def test_partial_credit_says_what_a_right_answer_alone_earns(agentrl, place: Path):
    (place / "part.py").write_text(
        "from agentrl import Env\n"
        "class Part(Env):\n"
        "    example_rows = ({'problem': '2 + 2', 'answer': '4'}, {'problem': '2 + 3', 'answer': '5'})\n"
        "    def prompt(self, row): return row['problem']\n"
        "    def reward(self, row, answer, episode):\n"
        "        called = 0.2 * bool(episode.tool_calls)\n"
        "        return {'right': 0.8 * bool(self.grade(answer, row['answer'])), 'called': called}\n"
    )
    code, out, _ = agentrl("check", "part.py")
    assert code == 1
    assert "--truth-reward 0.8" in out
    code, out, _ = agentrl("check", "part.py", "--truth-reward", "0.8")
    assert code == 0, out
