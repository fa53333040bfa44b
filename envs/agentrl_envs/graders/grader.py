"""`Grader`: the text of an answer and the gold answer in, a typed verdict out.

The exact path decides numbers, words and lists of them here, in microseconds; what needs algebra goes to
processes that can be killed. Knows nothing of rewards, episodes or policies.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import cache, partial
from itertools import accumulate
from typing import Any, Literal

from .cleaning import cleaned, compact, join_thousands
from .comparison import CannotParse, Undecided, equal, exact_leaf
from .conventions import Conventions
from .exact import is_integer, number_of
from .extraction import last_answer
from .pool import Pool, PoolLimits
from .strict import strict_verdict
from .structure import Based, Form, Items, Ordered, Value, Word, form_of
from .units import split_unit
from .verdict import Verdict

__all__ = ["Grader", "default_grader"]

_LONGEST = 2000  # characters of an answer, beyond three times the gold's: no gold answer needs more
_DEEPEST = 60  # brackets within brackets


class Grader:
    r"""Compares the last answer a text states with a gold answer.

    mode: "equivalence" (the verdict a mathematician would give) or "strict" (the rule published with SPO,
    exactly).
    function: a grader of your own, `function(answer, gold) -> bool | Verdict`, sync or async, instead of
    both.
    tolerance: relative difference up to which a number still counts as the gold number (0.01 is a percent).
    conventions: of the data set, where writers differ.
    limits: of one symbolic comparison. processes: how many do them at once.
    """

    def __init__(
        self,
        mode: Literal["equivalence", "strict"] = "equivalence",
        *,
        function: Callable[[str | None, str], Any] | None = None,
        tolerance: float = 0.0,
        conventions: Conventions | None = None,
        limits: PoolLimits | None = None,
        processes: int | None = None,
    ) -> None:
        if mode not in ("equivalence", "strict"):
            raise ValueError(f'grader mode {mode!r}: want "equivalence" or "strict"')
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"tolerance {tolerance:g}: want a relative difference from 0 to less than 1")
        self.mode = mode
        self.function = function
        self.tolerance = tolerance
        self.conventions = conventions or Conventions()
        self._limits = limits or PoolLimits()
        self._processes = processes
        self._pool: Pool | None = None
        self._owner = 0
        self._lock = threading.Lock()

    # ---- verdicts ------------------------------------------------------------------------------------------

    def grade_sync(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """Verdict on the text of an answer; blocks while the symbolic path works. Not for an event loop.

        gold: the gold answer, or several of which any will do.
        """
        if not isinstance(gold, str):
            return _best(self.grade_sync(answer, one) for one in gold)
        if self.function is not None:
            outcome = self.function(answer, gold)
            return _as_verdict(asyncio.run(_awaited(outcome)) if inspect.isawaitable(outcome) else outcome)
        verdict = self.exact(answer, gold)
        return self._ask(answer, gold).result() if verdict is None else verdict

    async def grade(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """Verdict on the text of an answer.

        gold: the gold answer, or several of which any will do. Never blocks the event loop (a sync `function`
        runs in a thread).
        """
        if not isinstance(gold, str):
            return _best([await self.grade(answer, one) for one in gold])
        if self.function is not None:
            if inspect.iscoroutinefunction(self.function):
                return _as_verdict(await self.function(answer, gold))
            outcome = await asyncio.to_thread(self.function, answer, gold)
            return _as_verdict(await outcome if inspect.isawaitable(outcome) else outcome)
        verdict = self.exact(answer, gold)
        return await asyncio.wrap_future(self._ask(answer, gold)) if verdict is None else verdict

    def exact(self, answer: str | None, gold: str) -> Verdict | None:
        """The verdict when it needs no algebra, at once; None when only the symbolic path can tell."""
        if self.mode == "strict":
            return strict_verdict(answer, gold)
        stated = last_answer(answer)
        if stated is None:
            return Verdict.NO_ANSWER
        return _exact(self.conventions.read(stated), self.conventions.read(gold), self.tolerance)

    @staticmethod
    def strict(response: str | None, gold: str) -> Verdict:
        """The rule published with SPO on a whole response, tool output included."""
        return strict_verdict(response, gold)

    # ---- equivalence classes, for maj@k --------------------------------------------------------------------

    def canonical(self, answer: str | None) -> str | None:
        """A key that equal answers share when they are numbers, words or lists of them; None without an
        answer.

        Answers with different keys may still be equal (`equivalent` tells); answers with one key always are.
        `answer`: the text of an answer, or a bare one such as "1/2".
        """
        stated = _bare(answer)
        if not stated:
            return None
        stated = self.conventions.read(stated)
        if _too_long(stated):
            return "text:" + stated
        try:
            return _key(form_of(join_thousands(cleaned(stated))))
        except RecursionError:
            return "text:" + compact(cleaned(stated))

    async def equivalent(self, a: str | None, b: str | None) -> bool:
        """Whether two answers are equal, in either direction; False when that could not be decided."""
        one, other = _bare(a), _bare(b)
        if not one or not other:
            return False
        if self.canonical(one) == self.canonical(other):
            return True
        one, other = self.conventions.read(one), self.conventions.read(other)
        for left, right in ((one, other), (other, one)):
            verdict = _exact(left, right)
            if verdict is None:
                verdict = await asyncio.wrap_future(self._submit(left, right))
            if verdict.right:
                return True
        return False

    def equivalent_sync(self, a: str | None, b: str | None) -> bool:
        """As `equivalent`, blocking. Not for an event loop."""
        return asyncio.run(self.equivalent(a, b))

    async def check_gold(self, gold: str) -> Verdict:
        """RIGHT for a gold answer that answers can be compared with; else why they cannot.

        One that can be told from 1 without algebra is one. The rest is compared with once itself: what is no
        mathematics, is empty, or takes too long is undecided against whatever a model writes.
        """
        if not gold.strip() or gold.count("{") - gold.count("\\{") != gold.count("}") - gold.count("\\}"):
            return Verdict.CANNOT_PARSE
        verdict = Verdict.RIGHT if self.function is not None else self.exact("\\boxed{1}", gold)
        if verdict is None:
            verdict = await self.grade(f"\\boxed{{1 \\cdot ({gold})}}", gold)
        return verdict if verdict.undecided or verdict.failed else Verdict.RIGHT

    # ---- the pool ------------------------------------------------------------------------------------------

    def _ask(self, answer: str | None, gold: str) -> Future[Verdict]:
        read = self.conventions.read
        return self._submit(read(last_answer(answer) or ""), read(gold), self.tolerance)

    def _submit(self, stated: str, gold: str, tolerance: float = 0.0) -> Future[Verdict]:
        with self._lock:
            if self._pool is None or self._owner != os.getpid():  # threads do not survive a fork
                self._pool, self._owner = Pool(self._limits, self._processes), os.getpid()
            return self._pool.submit(stated, gold, tolerance)

    def start(self) -> None:
        """Start the processes now, not with the first symbolic comparison. Blocks a second."""
        self._submit("\\sqrt{4}", "2").result()

    def close(self) -> None:
        """End the grader's processes; the next symbolic comparison starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    async def aclose(self) -> None:
        """As `close`, from an event loop."""
        await asyncio.to_thread(self.close)


async def _awaited(outcome: Any) -> Any:
    return await outcome


def _as_verdict(outcome: Any) -> Verdict:
    if isinstance(outcome, Verdict):
        return outcome
    if isinstance(outcome, bool | int | float) and outcome in (0, 1):
        return Verdict.RIGHT if outcome else Verdict.WRONG
    raise TypeError(f"a grader function must return a bool or a Verdict, not {outcome!r}")


def _best(verdicts: Iterable[Verdict]) -> Verdict:
    """Right if any is; else a failure if any is, since that one might have been right; else the first."""
    return min(verdicts, key=lambda verdict: (not verdict.right, not verdict.failed), default=Verdict.WRONG)


def _bare(answer: str | None) -> str | None:
    """The stated answer of a text with a box, or the text itself."""
    if answer is None or "\\boxed" in answer or "\\fbox" in answer:
        return last_answer(answer)
    return answer.strip() or None


def _exact(stated: str, gold: str, tolerance: float = 0.0) -> Verdict | None:
    """The verdict of the exact path on a stated answer; None when it needs algebra."""
    if stated == gold:
        return Verdict.RIGHT
    if not tolerance and is_integer(stated) and is_integer(gold):
        return Verdict.RIGHT if int(stated) == int(gold) else Verdict.WRONG
    if _too_long(stated, gold):
        return Verdict.TOO_LONG
    try:
        right = equal(stated, gold, partial(exact_leaf, tolerance=tolerance))
        return Verdict.RIGHT if right else Verdict.WRONG
    except Undecided:
        return None
    except (CannotParse, RecursionError):
        return Verdict.CANNOT_PARSE


def _too_long(stated: str, gold: str = "") -> bool:
    if len(stated) > _LONGEST + 3 * len(gold):
        return True
    return len(stated) > _DEEPEST and _depth(stated) > max(_DEEPEST, _depth(gold))


def _depth(text: str) -> int:
    """Most brackets within brackets."""
    return max(accumulate((mark in "([{") - (mark in ")]}") for mark in text), default=0)


def _key(form: Form) -> str:
    if isinstance(form, Value):
        value, unit = split_unit(form.text)
        number = number_of(value)
        text = compact(value) if number is None else f"{number.numerator}/{number.denominator}"
        return text + (f" {unit}" if unit else "")
    if isinstance(form, Word):
        return f'"{form.text}"'
    if isinstance(form, Based):
        return f"{form.digits}_{form.base}"
    if isinstance(form, Items):
        return "{" + ", ".join(sorted(_key(item) for item in form.items)) + "}"
    if isinstance(form, Ordered):
        return form.opening + ", ".join(_key(item) for item in form.items) + form.closing
    return repr(form)


@cache
def default_grader() -> Grader:
    """The grader that environments share when they are given none."""
    return Grader()
