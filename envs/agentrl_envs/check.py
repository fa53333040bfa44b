"""Trying an environment on scripted policies, before anybody trains on it.

What is asked: the ground truth scores the most, empty and malformed answers the least, known cheats are not
paid, wrong tool arguments are survived, and the answer never reaches the sandbox. Knows nothing of models,
tokens or printing.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from .env import Env
from .errors import EnvError
from .messages import Finish, Message, ToolCall, Transcript, text_of
from .raised import error_text, place
from .stand_in import StandIn
from .user_code import ends_caller

if TYPE_CHECKING:
    from agentrl_sandbox import Sandbox

__all__ = ["Finding", "check_env"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one check. `ok` is None when it could not be made; `detail` says why, or what went wrong."""

    check: str
    ok: bool | None
    detail: str = ""


_FAILED_SHARE = 0.05
"""Share of failed episodes above which what is learned is biased."""
_ROUNDING = 1e-9
"""Of a sum of parts, such as 0.7 + 0.2 + 0.1."""
EMPTY = (None, "", "   ", "\\boxed{}", "\\boxed{ }")
MALFORMED = (
    "\\boxed{",
    "}{",
    "\\boxed{\\frac{}}",
    "I do not know.",
    "\\boxed{\\text{no idea}}",
    "\x00\\boxed{\x00}",
)
_STATED = ("The answer is \\boxed{{{}}}.", "{}", "The answer is {}.", "<answer>{}</answer>")
_CHEATS = {
    "the answer only in code": "```python\nprint('\\boxed{{{}}}')\n```",
    "a tool result the model made up": "<interpreter>\n\\boxed{{{}}}\n</interpreter>",
    "the answer only in unfinished thoughts": "<think>Perhaps \\boxed{{{}}}",
    "the answer among others": "\\boxed{{-987654}} or \\boxed{{{}}} or \\boxed{{-987655}}",
    "an equation that ends in the answer": "\\boxed{{-987654 = {}}}",
    "the answer without a box": "I guess {}",
}


async def check_env(
    env_class: type[Env],
    rows: Sequence[Row],
    *,
    sandbox: Sandbox | None = None,
    settings: Mapping[str, Any] | None = None,
    answer_field: str = "answer",
    truth_reward: float | None = None,
) -> list[Finding]:
    """Every check on `rows`; findings in the order in which they were made.

    `truth_reward`: the reward of a right answer alone, where the rest of `reward_range` is for something
    else, such as calling a tool; None takes the whole. Never raises for what the class does.
    """
    checker = _Checker(env_class, rows, sandbox, dict(settings or {}), answer_field)
    if truth_reward is not None:
        checker.highest = truth_reward
    findings: list[Finding] = []
    for name, check in checker.checks.items():
        try:
            ok, detail = await check()
        except BaseException as error:  # whatever the class raises is a finding
            if ends_caller(error):
                raise
            where = "" if isinstance(error, EnvError) else f" ({place(error)})"
            ok, detail = False, error_text(error) + where
        findings.append(Finding(name, ok, detail))
        if ok is False and name in (
            "tools can be described",
            "rows have the fields it needs",
            "episodes start",
        ):
            break  # nothing further would say more than this
    return findings


class _Checker:
    """The checks of one environment."""

    def __init__(
        self,
        env_class: type[Env],
        rows: Sequence[Row],
        sandbox: Any,
        settings: dict[str, Any],
        answer_field: str,
    ) -> None:
        self.env_class, self._rows, self.settings, self.answer_field = env_class, rows, settings, answer_field
        self.highest = env_class.reward_range[1]
        self.recording = None if sandbox is None else _Recording(sandbox)
        self.form: str | None = None  # how the ground truth was stated when it was accepted
        self.checks = {
            "tools can be described": self.described,
            "rows have the fields it needs": self.fields,
            "episodes start": self.starts,
            "the ground truth scores the most": self.truth,
            "an empty answer scores the least": self.empty,
            "a malformed answer scores the least": self.malformed,
            "known cheats are not paid": self.cheats,
            "wrong tool arguments are survived": self.wrong_arguments,
            "tools answer": self.tools_answer,
            "the answer is not in the prompt": self.prompt_leak,
            "the answer never reaches the sandbox": self.sandbox_leak,
        }

    @asynccontextmanager
    async def episode(self, row: Row) -> AsyncIterator[Env]:
        env = self.env_class(sandbox=cast("Any", self.recording), **self.settings)
        try:
            yield env
        finally:
            await env.aclose()
            await env.aclose()  # closing twice is allowed

    @property
    def rows(self) -> Sequence[Row]:
        """The rows as they were given, whatever earlier episodes changed in theirs."""
        return copy.deepcopy(self._rows)

    async def reward(self, row: Row, answer: str | None) -> float:
        row = copy.deepcopy(row)
        async with self.episode(row) as env:
            await _begin(env, row)
            return (await env.score(row, answer, Transcript(turns=1, stop_reason="answered"))).value

    async def described(self) -> tuple[bool | None, str]:
        specs = self.env_class.tool_specs()
        silent = [spec.name for spec in specs if spec.description == spec.name]
        if silent:
            return False, f"no docstring, so the model is not told what they do: {', '.join(silent)}"
        return True, ", ".join(spec.name for spec in specs) or "no tools"

    async def fields(self) -> tuple[bool | None, str]:
        if not self.rows:
            return False, "no rows to try it on"
        self.env_class.check_rows(self.rows)
        return True, f"{len(self.rows)} rows"

    async def starts(self) -> tuple[bool | None, str]:
        failed: list[str] = []
        for number, row in enumerate(self.rows, 1):
            try:
                async with self.episode(row) as env:
                    await _begin(env, row)
            except EnvError as error:
                failed.append(f"row {number}: {error}")
        if not failed:
            return True, ""
        share = len(failed) / len(self._rows)
        said = (
            f"{len(failed)} of {len(self._rows)} episodes failed ({share:.0%}), the first one in {failed[0]}"
        )
        return share <= _FAILED_SHARE, said

    async def truth(self) -> tuple[bool | None, str]:
        if self.solves:
            return await self.solutions()
        golds = self.golds()
        if not golds:
            return None, f"rows have no field {self.answer_field!r}; name it with --answer-field"
        highest, fault = self.highest - _ROUNDING, ""
        for form in _STATED:
            rewards = [await self.reward(row, form.format(gold)) for row, gold in golds]
            if all(reward >= highest for reward in rewards):
                self.form = form
                return True, f'stated as "{form.format("...")}"'
            if form == _STATED[0]:
                i = next(i for i, reward in enumerate(rewards) if reward < highest)
                fault = f"row {i + 1}, answer {golds[i][1]!r}: reward {rewards[i]:g}, want {self.highest:g}"
                if rewards[i] > self.env_class.reward_range[0] and len(set(rewards)) == 1:
                    fault += f"; where an answer alone earns no more than that, --truth-reward {rewards[i]:g}"
        return False, fault

    @property
    def solves(self) -> bool:
        """Whether the class has solutions of its own, a method `solve(row)`, and rows no answer."""
        return callable(getattr(self.env_class, "solve", None)) and not self.golds()

    async def solutions(self) -> tuple[bool | None, str]:
        """Whether each row's solution earns the most."""
        for number, row in enumerate(self.rows, 1):
            async with self.episode(row) as env:
                await _begin(env, row)
                await cast("Any", env).solve(row)
                ended = Transcript(turns=1, stop_reason="answered")
                reward = (await env.score(row, "", ended)).value
            if reward < self.highest - _ROUNDING:
                return False, f"row {number}: its solution has reward {reward:g}, want {self.highest:g}"
        return True, f"by {len(self.rows)} solutions of its own"

    def golds(self) -> list[tuple[Row, str]]:
        return [
            (row, str(row[self.answer_field])) for row in self.rows if row.get(self.answer_field) is not None
        ]

    async def empty(self) -> tuple[bool | None, str]:
        return await self._lowest(EMPTY)

    async def malformed(self) -> tuple[bool | None, str]:
        return await self._lowest(MALFORMED)

    async def _lowest(self, answers: Sequence[str | None]) -> tuple[bool | None, str]:
        lowest = self.env_class.reward_range[0]
        for answer in answers:
            reward = await self.reward(self.rows[0], answer)
            if reward > lowest:
                return False, f"answer {answer!r}: reward {reward:g}, want {lowest:g}"
        return True, ""

    async def cheats(self) -> tuple[bool | None, str]:
        if self.solves:
            return None, "no answer is graded by its text"
        if self.form is None:
            return None, "the ground truth was not accepted"
        if self.form != _STATED[0]:
            return None, "the answer is not graded by its box; write canaries of your own"
        highest = self.highest - _ROUNDING
        row, gold = self.golds()[0]
        paid = [
            name for name, text in _CHEATS.items() if await self.reward(row, text.format(gold)) >= highest
        ]
        return (False, "full reward for " + "; ".join(paid)) if paid else (True, f"{len(_CHEATS)} tried")

    async def wrong_arguments(self) -> tuple[bool | None, str]:
        specs = self.env_class.tool_specs()
        calls = [ToolCall("0", "no_such_tool", {}), ToolCall("1", "", None, error="not JSON")]
        for spec in specs:
            wrong = {name: {"nested": [None]} for name in spec.parameters["properties"]}
            calls += [
                ToolCall("2", spec.name, None),
                ToolCall("3", spec.name, {"no_such_argument": 1}),
                ToolCall("4", spec.name, wrong | {"no_such_argument": 1}),
                ToolCall("5", spec.name, None, raw="{", error="the arguments are not JSON"),
            ]
        async with self.episode(self.rows[0]) as env:
            await _begin(env, self.rows[0])
            results = await env.call_tools(calls)
        accepted = [result.name for result in results if result.ok]
        return (False, f"accepted by {', '.join(accepted)}") if accepted else (True, f"{len(calls)} tried")

    async def tools_answer(self) -> tuple[bool | None, str]:
        outcomes = []
        async with self.episode(self.rows[0]) as env:
            await _begin(env, self.rows[0])
            for call in _plausible_calls(self.env_class):
                try:
                    (result,) = await env.call_tools([call])
                    said = f" ({result.text:.200})" if result.status == "error" else ""
                    outcomes.append(f"{call.name}: {result.status}{said}")
                except Finish:
                    outcomes.append(f"{call.name}: ended the episode")
                    break
        return (True, ", ".join(outcomes)) if outcomes else (None, "no tools")

    async def prompt_leak(self) -> tuple[bool | None, str]:
        golds = [(row, gold) for row, gold in self.golds() if len(gold) >= 3]
        if not golds:
            return None, "no answer is long enough to tell"
        leaks = 0
        for row, gold in golds:
            async with self.episode(row) as env:
                text = "\n".join(text_of(message) for message in await _begin(env, row))
            leaks += re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", text) is not None
        if leaks * 2 > len(golds):
            return False, f"the prompt contains the answer in {leaks} of {len(golds)} rows"
        return True, f"found in {leaks} of {len(golds)} rows"

    async def sandbox_leak(self) -> tuple[bool | None, str]:
        if self.recording is None:
            return None, "no sandbox"
        # An answer that occurs nowhere else, so that finding it means that it leaked.
        needle = str(10**17 + secrets.randbelow(10**17))
        row = {**self.rows[0], self.answer_field: needle}
        self.recording.programs.clear()
        async with self.episode(row) as env:
            await _begin(env, row)
            for call in _plausible_calls(self.env_class):
                try:
                    await env.call_tools([call])
                except Finish:
                    break
            if any(needle in program for program in self.recording.programs):
                return False, "the environment ran a program that contains the answer"
            searched = 0
            for session in self.recording.sessions:
                found = (await session.run(_PROBE.replace("NEEDLE", needle[::-1]), 20.0)).text
                if "search ended: [" in found and "found in" in found:
                    return False, f"a program in the sandbox can read the answer: {found.strip()[:200]}"
                searched += "search ended: []" in found
        return (
            True,
            f"{len(self.recording.programs)} programs, {len(self.recording.sessions)} sessions searched",
        )


async def _begin(env: Env, row: Row) -> list[Message]:
    """Start an episode that has a conversation and a model, as the rollout does."""
    env.attach(StandIn())
    messages = await env.start(row)
    env.converse(messages, env.tool_specs())
    return messages


def _plausible_calls(env_class: type[Env]) -> list[ToolCall]:
    return [
        ToolCall(
            str(i),
            spec.name,
            {name: _plausible(spec.parameters["properties"][name], name) for name in required},
        )
        for i, spec in enumerate(env_class.tool_specs())
        for required in [spec.parameters["required"]]
    ]


def _plausible(schema: Mapping[str, Any], name: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _plausible(schema["anyOf"][0], name)
    if schema.get("type") == "array":
        return [_plausible(item, name) for item in schema.get("prefixItems", [])]
    text = "print(1)" if "code" in name else "1"
    return {"integer": 1, "number": 1.0, "boolean": True, "object": {}, "null": None}.get(
        schema.get("type", ""), text
    )


_PROBE = """
places = {"a global": repr(dict(globals()))}
import os, sys
needle = "NEEDLE"[::-1]
places |= {"the environment": repr(dict(os.environ)), "sys.argv": repr(sys.argv)}
for root in (".", "/tmp", os.path.expanduser("~")):
    for folder, names, files in os.walk(root):
        for name in files[:200]:
            try:
                with open(os.path.join(folder, name), errors="replace") as file:
                    places["the file " + name] = file.read(100000)
            except OSError:
                pass
print("search", "ended:", ["found" + " in " + place for place, text in places.items() if needle in text])
"""


class _Recording:
    """A sandbox that notes what is run in it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.programs: list[str] = []
        self.sessions: list[Any] = []

    async def open(self, *arguments: Any, **settings: Any) -> Any:
        self.sessions = [session for session in self.sessions if not session.closed]
        session = _RecordingSession(await self._sandbox.open(*arguments, **settings), self.programs)
        self.sessions.append(session)
        return session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


class _RecordingSession:
    def __init__(self, session: Any, programs: list[str]) -> None:
        self._session, self._programs, self.closed = session, programs, False

    async def run(self, code: str, timeout: float | None = None, *, stdin: str = "") -> Any:
        self._programs += [code, stdin]
        return await self._session.run(code, timeout, stdin=stdin)

    async def close(self) -> None:
        self.closed = True
        await self._session.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
