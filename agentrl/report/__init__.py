"""What a person sees of a run: a page with its curves, and lines in the terminal.

Both are made from the files and rows of a run alone; neither knows engines, learners or environments.
"""

from __future__ import annotations

from agentrl.report.page import write_report
from agentrl.report.run_data import read_run

__all__ = ["read_run", "write_report"]
