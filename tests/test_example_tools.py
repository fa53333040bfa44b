"""The examples of tools, each played by a scripted engine in a real sandbox, and what they refuse."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.main import main
from agentrl.episode import Episode
from agentrl_envs import load_env
from agentrl_sandbox import Sandbox, open_sandbox
from tests.adapters.playing import END, play, tool_call

TOOLS = Path(__file__).parents[1] / "examples" / "tools"
PNG = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with open_sandbox() as opened:
        yield opened


async def played(
    name: str, sandbox: Any, script: list[str], row: Any = None, **settings: Any
) -> tuple[Episode, list[str]]:
    """The episode of an example, and what its tools said."""
    env = load_env(TOOLS / f"{name}.py")
    episode = await play(lambda: env(sandbox=sandbox, **settings), row or env.example_rows[0], script)
    assert episode.failure is None
    return episode, [call.result for turn in episode.turns for call in turn.tool_calls]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_passes_its_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


async def test_web_search() -> None:
    script = [
        tool_call("search", words="lighthouse Veld"),
        tool_call("read", title="Ada Holm"),
        tool_call("search", words='rivers "(*', count=1),
        tool_call("search", words="zzz"),
        tool_call("read", title="ada"),
        f"\\boxed{{214}}{END}",
    ]
    episode, said = await played("web_search", None, script)
    assert episode.reward == 1.0
    assert "Lighthouse of Veld" in said[0]
    assert "born in Tarn" in said[1]
    assert "River Sile" in said[2], "words are stemmed, and signs of the query language are words"
    assert said[3] == "[]"
    assert "search gives titles" in said[4]


async def test_web_search_in_pages_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_text('{"title": "Moss", "text": "Moss grows on stones."}\n')
    episode, said = await played(
        "web_search",
        None,
        [tool_call("search", words="stone"), f"\\boxed{{1}}{END}"],
        {"question": "?", "answer": "1"},
        pages=str(tmp_path / "pages.jsonl"),
    )
    assert (episode.reward, "Moss" in said[0]) == (1.0, True)


async def test_sql(tmp_path: Path) -> None:
    count = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {}) select {} from n"
    script = [
        tool_call(
            "query",
            sql="select sum(cents) from orders join customers c on c.id = customer where town = 'Lund'",
        ),
        tool_call("query", sql=count.format(40, "i")),
        tool_call("query", sql=count.format(10**9, "count(*)")),
        tool_call("query", sql="delete from orders"),
        tool_call("query", sql=f"attach '{tmp_path}/new.sqlite' as other"),
        tool_call("query", sql="select 1; select 2"),
        tool_call("query", sql="select no_such_column from orders"),
        f"\\boxed{{4499}}{END}",
    ]
    episode, said = await played("sql", None, script)
    assert episode.reward == 1.0
    assert said[0].endswith("\n4499")
    assert said[1].splitlines()[-2:] == ["30", "... (more rows)"]
    assert "takes too long" in said[2]
    assert "not authorized" in said[3]
    assert "not authorized" in said[4]
    assert "one statement" in said[5]
    assert "no such column" in said[6]
    assert not (tmp_path / "new.sqlite").exists()


async def test_sql_on_a_file_that_stays_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as made:
        made.execute("create table things (name text)")
        made.execute("insert into things values ('lamp')")
    made.close()
    before = (tmp_path / "shop.sqlite").read_bytes()
    row = {"question": "Which thing?", "answer": "lamp", "database": str(tmp_path / "shop.sqlite")}
    script = [tool_call("query", sql="select * from things"), f"\\boxed{{lamp}}{END}"]
    episode, said = await played("sql", None, script, row)
    assert (episode.reward, said) == (1.0, ["name\nlamp"])
    assert (tmp_path / "shop.sqlite").read_bytes() == before


@pytest.mark.slow
async def test_data_analysis_keeps_pictures(sandbox: Sandbox, tmp_path: Path) -> None:
    mean = (
        "rows = [line.split(',') for line in open('rain.csv')][1:]\nsum(int(r[1]) for r in rows) / len(rows)"
    )
    draw = f"open('plot.png', 'wb').write({PNG!r} + bytes(70_000)); open('big.svg', 'w').write('x' * 600_000); None"
    script = [tool_call("python", code=mean), tool_call("python", code=draw), f"\\boxed{{62}}{END}"]
    episode, said = await played("data_analysis", sandbox, script, pictures=str(tmp_path / "kept"))
    assert (episode.reward, said[0]) == (1.0, "62.0")
    assert "[plot.png: kept]" in said[1]
    assert "[big.svg: larger than 512 kB, not kept]" in said[1]
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_bytes() == PNG + bytes(70_000)


@pytest.mark.slow
async def test_shell(sandbox: Sandbox) -> None:
    script = [
        tool_call("shell", command="cat a.txt; exit 3"),
        tool_call("shell", command="sort -u *.txt > all.txt"),
    ]
    done, said = await played("shell", sandbox, [*script, f"Done.{END}"])
    assert (done.reward, said[0]) == (1.0, "pear\napple\n[status 3]")
    idle, _ = await played("shell", sandbox, [f"Done.{END}"])
    assert idle.reward == 0.0


@pytest.mark.slow
async def test_interpreters(sandbox: Sandbox) -> None:
    script = [
        tool_call("run", language="sh", code="for i in $(seq 20); do echo $((i * i)); done > squares"),
        tool_call("run", language="python", code="total = sum(map(int, open('squares')))"),
        tool_call("run", language="python", code="total"),
        tool_call("run", language="sh", code="cat nothing"),
        tool_call("run", language="cobol", code="STOP RUN."),
        f"\\boxed{{2870}}{END}",
    ]
    episode, said = await played("interpreters", sandbox, script)
    assert (episode.reward, said[2]) == (1.0, "2870")
    assert "[status 1]" in said[3]
    assert "'python', 'sh'" in said[4]
