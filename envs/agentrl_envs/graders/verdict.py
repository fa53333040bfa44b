"""The verdicts a grader can reach. Knows nothing of how they are reached or what reward they give."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Verdict"]


class Verdict(StrEnum):
    """What a grader says of an answer."""

    RIGHT = "right"
    """The answer equals the gold answer."""
    WRONG = "wrong"
    """It does not."""
    NO_ANSWER = "no_answer"
    """The model stated no answer: no text, no box, an empty box."""
    CANNOT_PARSE = "cannot_parse"
    """There is an answer, but it is no mathematics that can be read: undecided, counts as wrong."""
    TOO_LONG = "too_long"
    """The answer is far longer, or nested far deeper, than an answer can be: undecided, counts as wrong."""
    TIMED_OUT = "timed_out"
    """Comparing it took more time or memory of the grader's own than any answer needs: undecided, counts as
    wrong."""
    GRADER_FAILED = "grader_failed"
    """The grader broke, or the machine starved it, also on a second try: neither right nor wrong."""

    @property
    def right(self) -> bool:
        """True for RIGHT only."""
        return self is Verdict.RIGHT

    @property
    def undecided(self) -> bool:
        """True when the answer itself kept the grader from comparing it. It is graded as wrong."""
        return self in (Verdict.CANNOT_PARSE, Verdict.TOO_LONG, Verdict.TIMED_OUT)

    @property
    def failed(self) -> bool:
        """True when grader or machine broke: an infrastructure failure, never a reward."""
        return self is Verdict.GRADER_FAILED


UNDECIDED = frozenset(verdict.value for verdict in Verdict if verdict.undecided)
"""Names of the verdicts on answers that kept the grader from comparing them."""
