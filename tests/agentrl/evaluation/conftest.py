"""Evaluations wait a twentieth as long before they try again."""

import pytest

from agentrl.evaluation import run
from agentrl.inference.endpoint import client


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSES_S", tuple(pause / 20 for pause in run.PAUSES_S))
    monkeypatch.setattr(run, "FIRST_DELAY_S", run.FIRST_DELAY_S / 20)
    monkeypatch.setattr(client, "_MAX_WAIT_S", 0.05)
