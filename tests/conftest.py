"""Settings of the whole suite that must be made before torch is imported."""

import contextlib
import os

import pytest

# Several processes and threads share few cores: threads that spin while they wait slow all down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

with contextlib.suppress(ImportError):  # tests of GPUs run where it is not installed
    from hypothesis import settings

    # An example that takes long says more of the machine than of the code; what must be fast is measured.
    settings.register_profile("agentrl", deadline=None)
    # For every commit (`make check`); the whole suite takes a hundred examples of each.
    settings.register_profile("check", deadline=None, max_examples=25)
    settings.load_profile("agentrl")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember no failures of a run that did not come to its end: `--last-failed` would leave out the rest."""
    if exitstatus not in (0, 1) and session.config.cache is not None:
        session.config.cache.set("cache/lastfailed", {})
