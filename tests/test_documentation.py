"""Every command and block of code of README.md and docs/ runs, or says in the page why it does not.

A block that needs a GPU, a network or hours has `<!-- not run in tests: WHY -->` above it, which readers do not
see. Of such a block the settings are still read (`--dry-run`) and the flags still parsed.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="commands of the pages train (pip install agentrl[train])")

import agentrl
from agentrl.cli.main import COMMANDS, command_parser, main, split_settings
from agentrl.config.loading import load, load_settings

pytestmark = pytest.mark.timeout(300)  # commands import torch and train, on machines that others load

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    # The examples of api.md are those of docstrings, which run where they stand.
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "api.md"),
]
MODEL = Path(agentrl.__file__).parent / "demo" / "model"
SMALL = {
    "gsm8k": "rows.jsonl",
    "BASE": "models/smollm2",
    "200": "3",
    "60": "2",
    "ROWS.jsonl": "train.jsonl",
    "MODEL": "models/smollm2",
}
"""What words of the pages are in the workplace: small files in place of what is far away or takes hours."""
ADDED = {
    "train": ["--quiet"],
    "eval": ["--quiet", "--max-tokens", "16", "--max-turns", "1", "--limit", "2", "--context-tokens", "400"],
    "sft": ["--quiet", "--limit", "4"],
}
DRY = ["--dry-run", "--data.train=train.jsonl", "--eval.data=rows.jsonl", "--tracker.initial_file="]


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    excuse: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        lines = page.read_text().splitlines()
        fences = [number for number, line in enumerate(lines) if line.startswith("```")]
        for start, end in zip(fences[::2], fences[1::2], strict=True):
            above = next((line for line in reversed(lines[:start]) if line.strip()), "")
            mark = re.fullmatch(r"<!-- not run in tests: (.+) -->", above)
            text = "\n".join(lines[start + 1 : end]) + "\n"
            yield Block(page, start + 1, lines[start][3:].strip(), text, mark[1] if mark else "")


BLOCKS = list(blocks())
PROGRAMS = ("agentrl", "make", "pip", "python", "export")


def commands(block: Block) -> list[list[str]]:
    """Commands of a block of a shell, without comments."""
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def is_shell(block: Block) -> bool:
    return (
        not block.language and block.text.split(None, 1)[0] in PROGRAMS and "agentrl_envs  " not in block.text
    )


SHELL = [block for block in BLOCKS if is_shell(block)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
TOML = [block for block in BLOCKS if block.language == "toml"]
TASKS = "# tasks.toml"
"""First words of a file of tasks of `agentrl eval`, which holds no settings."""
INLINE = sorted(
    {
        " ".join(found.split())
        for page in PAGES
        for found in re.findall(r"(?<!`)`(agentrl [^`]+)`(?!`)", page.read_text())
    }
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the names that the pages use mean something small: models, rows, runs, evaluations."""
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HF_HUB_OFFLINE", "1")
        shutil.copytree(ROOT / "examples", "examples")
        shutil.copytree(MODEL, "models/smollm2")
        rows = [{"problem": f"{n}+{n}", "answer": str(2 * n), "level": str(n % 2)} for n in range(300)]
        Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in ("rows", "held_out", "questions", "my", "candidates"):
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
        trace = {
            "messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "\\boxed{2}"}]
        }
        Path("traces.jsonl").write_text((json.dumps(trace) + "\n") * 4)
        small = "[stream]\nbatch = 4\n[rollout]\nmax_tokens = 16\n[engine]\ncontext_tokens = 400\nslots = 8\n"
        run = f"{small}[env]\nname = 'math_with_python'\n[data]\ntrain = 'train.jsonl'\n[model]\npath = '{MODEL}'\n"
        for name in ("run.toml", "my.toml"):
            Path(name).write_text(run)
        assert main(["init", "my_env.py"]) == 0
        assert main(["train", "run.toml", "--steps", "1", "--name", "001", "--quiet"]) == 0
        shutil.copytree("runs/001", "runs/002")
        for name in "AB":
            told = ["--data", "rows.jsonl", "--out", f"evals/{name}", *ADDED["eval"]]
            assert main(["eval", "models/smollm2", *told]) == 0
        yield place


def run_agentrl(words: list[str], *, dry: bool) -> int:
    """Run one documented command with small things in place of large ones."""
    words = [SMALL.get(word, word) for word in words]
    if words[0] == "init":
        Path(words[1]).unlink(missing_ok=True) if words[1].endswith(".py") else shutil.rmtree(words[1], True)
    if words[0] == "export":
        shutil.rmtree(words[2], ignore_errors=True)
    if words[0] == "sft":
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    added = DRY if dry and words[0] == "train" else ADDED.get(words[0], [])
    if words[0] == "train" and words[-1].endswith(".py"):
        added = [*added, "--steps", "1"]  # an environment alone goes on for as many steps as by default
    if {"--report", "--rescore"} & set(words):
        added = []  # nothing is played
    return main([*words, *(["--data.train=train.jsonl"] if dry and "--data" in words else []), *added])


def parse_agentrl(words: list[str]) -> None:
    """Parse a command, and read its settings, as `main` does."""
    ours, settings = split_settings(words)
    parser, _ = command_parser(ours)
    options, unknown = parser.parse_known_args(ours)
    assert not unknown, f"{words}: unknown {unknown}"
    if settings:
        load(options.takes_settings, None, [word.replace("=VALUE", "=1") for word in settings])


def check_other(words: list[str]) -> None:
    """A command that is not agentrl's: what it names exists."""
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        case ["pip", "install", *_]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for extra in re.findall(r"\[(.+?)\]", " ".join(words)):
                assert set(extra.split(",")) <= set(extras), words
        case ["python", "-m", module, *arguments]:
            source = (ROOT / "sandbox" / module.replace(".", "/")).with_suffix(".py").read_text()
            for flag in (word for word in arguments if word.startswith("--")):
                assert f'"{flag}"' in source, words
        case ["export", setting]:
            assert "=" in setting
        case _:
            pytest.fail(f"a command of no known kind: {words}")


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_of_a_page(block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(block):
        if words[0] != "agentrl":
            check_other(words)
        elif not block.excuse:
            assert run_agentrl(words[1:], dry=False) == 0, (words, capsys.readouterr().err)
        elif words[1] == "train" and "--resume" not in words:
            assert run_agentrl(words[1:], dry=True) == 0, (words, capsys.readouterr().err)
        else:
            parse_agentrl(words[1:])


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_the_python_of_a_page(block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    text = block.text.replace('"gsm8k"', '"rows.jsonl"')
    code = compile(text, str(block), "exec", flags=flags)
    if block.excuse:
        return
    file = f"{block.page.stem.replace('-', '_').lower()}_{block.line}.py"
    Path(file).write_text(text)
    names = {"__name__": "page", "__file__": str(workplace / file)}
    if code.co_flags & 0x80:  # it awaits

        async def run() -> None:
            await eval(code, names)

        asyncio.run(run())
    else:
        exec(code, names)
    if "Env" in text or "function_env" in text:
        rows = [] if "example_rows" in text else ["--data", "rows.jsonl"]
        assert main(["check", file, *rows]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("block", TOML, ids=str)
def test_the_settings_of_a_page(block: Block, tmp_path: Path) -> None:
    (tmp_path / "page.toml").write_text(block.text)
    if block.text.startswith(TASKS):
        assert all("data" in task for task in tomllib.loads(block.text).values())
        return
    load_settings(tmp_path / "page.toml")


@pytest.mark.parametrize("text", INLINE)
def test_a_command_in_the_text_of_a_page_has_such_flags(text: str) -> None:
    words = shlex.split(text)[1:]
    if words[0] in COMMANDS and not {"...", "X"} & set(words):
        wanted = [word for word in words if word.startswith("-") and word not in ("--help", "-h")]
        _, command = command_parser(words)
        shown = command.format_help()
        flags = [word.partition("=")[0] for word in wanted]
        settings = [word for word, flag in zip(wanted, flags, strict=True) if "." in flag]
        if settings:
            load(command.get_default("takes_settings"), None, settings)
        for flag in flags:
            assert "." in flag or flag in shown, text


def test_every_block_is_of_a_kind_that_runs() -> None:
    for block in BLOCKS:
        if block.language == "text":  # what a command above it printed
            continue
        drawing = not block.language and not is_shell(block)
        assert block in SHELL + PYTHON + TOML or (
            drawing and re.search(r"[─►│]|-->|  agentrl", block.text)
        ), str(block)


def test_a_page_shows_the_example_that_it_names() -> None:
    for page in PAGES:
        for name in re.findall(r"(?:is|It is) `(examples/\w+\.py)`", " ".join(page.read_text().split())):
            source = (ROOT / name).read_text()
            code = source.split('"""\n', 1)[1].strip() if source.startswith('"""') else source.strip()
            assert any(block.text.strip() == code for block in PYTHON if block.page == page), (page, name)


def test_reasons_are_of_a_kind() -> None:
    for block in BLOCKS:
        assert not block.excuse or re.search(
            r"GPU|network|hours|Docker|serves|fragment|servers|package", block.excuse
        ), str(block)


def test_the_examples_that_a_command_s_help_shows() -> None:
    import importlib

    for name in COMMANDS:
        epilog = getattr(importlib.import_module(f"agentrl.cli.{name}"), "EPILOG", "")
        for line in textwrap.dedent(epilog.replace("\\\n", " ")).splitlines():
            command = re.match(r"(?:echo .*\| )?agentrl ([a-z].*?)(?:   .*)?$", line.strip())
            if command:
                parse_agentrl(shlex.split(command[1]))
