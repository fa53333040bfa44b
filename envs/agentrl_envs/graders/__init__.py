"""Graders: the last boxed answer a model wrote, compared with the gold answer, a typed verdict out."""

from .extraction import boxed_answers, last_answer, model_text
from .grader import Grader, default_grader
from .verdict import UNDECIDED, Verdict

__all__ = ["UNDECIDED", "Grader", "Verdict", "boxed_answers", "default_grader", "last_answer", "model_text"]
