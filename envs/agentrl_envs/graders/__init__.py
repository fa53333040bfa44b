"""Graders: the last boxed answer a model wrote, compared with the gold answer, a typed verdict out."""

from .conventions import Conventions
from .extraction import answer_in, boxed_answers, last_answer, model_text
from .grader import Grader, default_grader
from .verdict import UNDECIDED, Verdict

__all__ = [
    "UNDECIDED", "Conventions", "Grader", "Verdict", "answer_in", "boxed_answers", "default_grader",
    "last_answer", "model_text",
]  # fmt: skip
