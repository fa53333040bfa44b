"""Mistakes of the first day: each is answered by one sentence that says what would be right."""

from __future__ import annotations


def test_a_command_that_does_not_exist_lists_those_that_do(command):
    result = command("trian")
    assert result.returncode == 2
    assert "train" in result.stderr
