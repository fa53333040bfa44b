"""Finding environments by name, file and dotted path; every miss says what would be right."""

import importlib.util
from pathlib import Path

import pytest

from agentrl_envs import Env, EnvError, EnvNotFound, get_env, load_env, register, registered

ONE = """
from agentrl_envs import Env, tool
from neighbour import PROMPT

class Mine(Env):
    "Mine."
    def prompt(self, row): return PROMPT
    def reward(self, row, answer): return 1
"""


def test_shipped_environments():
    assert {"arithmetic", "countdown", "math_with_python"} <= set(registered())
    assert load_env("math_with_python").__name__ == "MathWithPython"
    assert load_env("agentrl_envs.countdown:Countdown") is get_env("countdown")
    assert load_env("agentrl_envs.countdown.Countdown") is get_env("countdown")
    assert load_env(get_env("countdown")) is get_env("countdown")
    with pytest.raises(EnvNotFound, match="did you mean 'arithmetic'"):
        load_env("arithmetics")
    with pytest.raises(EnvNotFound, match="no module 'nowhere'"):
        load_env("nowhere.env:Env")


def test_files(tmp_path: Path):
    file = tmp_path / "my_env.py"
    file.write_text(ONE)
    (tmp_path / "neighbour.py").write_text("PROMPT = 'hello'\n")
    mine = load_env(file)
    assert mine.__name__ == "Mine"
    assert mine().prompt({}) == "hello"
    assert load_env(f"{file}:Mine") is mine
    with pytest.raises(EnvNotFound, match="no Env class 'Yours'; it defines: Mine"):
        load_env(f"{file}:Yours")
    with pytest.raises(EnvNotFound, match="no file"):
        load_env(str(tmp_path / "none.py"))


def test_files_with_two_or_no_environments(tmp_path: Path):
    two = tmp_path / "two.py"
    two.write_text("from agentrl_envs import Env\nclass A(Env): 'a'\nclass B(Env): 'b'\n")
    with pytest.raises(EnvNotFound, match=r"several Env classes \(A, B\); say which: .*two\.py:A"):
        load_env(two)
    none = tmp_path / "none_here.py"
    none.write_text("x = 1\n")
    with pytest.raises(EnvNotFound, match="defines no Env class"):
        load_env(none)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_like_this\n")
    with pytest.raises(EnvError, match="raised while it was imported: ModuleNotFoundError"):
        load_env(broken)


def test_registering():
    @register("registry-test")
    class Registered(Env):
        "A name of its own."

    assert load_env("registry-test") is Registered
    register("registry-test", Registered)
    with pytest.raises(EnvError, match="is taken by"):
        register("registry-test", type("Other", (Env,), {}))
    with pytest.raises(EnvError, match="is not an Env class"):
        register("registry-test-2", int)


def test_a_scheme_makes_a_class_of_what_follows_its_colon():
    made = load_env("program:sh agent.sh {name}")
    assert made.command == "sh agent.sh {name}"
    with pytest.raises(EnvNotFound, match='nothing follows "program:"'):
        load_env("program:  ")
    with pytest.raises(EnvNotFound, match="no module 'programm'.*did you mean program:.*schemes are program"):
        load_env("programm:sh agent.sh")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("reasoning_gym:chain_sum", "reasoning_gym", "reasoning-gym"),
        ("gymnasium:CartPole-v1", "gymnasium", "gymnasium"),
        ("verifiers:some-env", "verifiers", "verifiers"),
    ],
)
def test_a_scheme_whose_package_is_missing_says_what_to_install(name, package, extra):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(EnvError, match=rf"needs the package {package}: pip install 'agentrl\[{extra}\]'"):
        load_env(name)
