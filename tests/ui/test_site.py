"""The site of the documentation in a real browser, where `make site` has built it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-ui` brings it")
SITE = Path(__file__).parents[2] / "build/site"
BROWSER = os.environ.get("AGENTRL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not SITE.exists(), reason="no site: `make site` builds it"),
]


@pytest.mark.parametrize(
    ("page", "heading", "charts"),
    [
        ("index", "agentrl", 0),
        ("tutorial", "From nothing to a trained agent", 0),
        ("spo", "Single-stream Policy Optimization", 2),
        ("files/examples/sums.py", "examples/sums.py", 0),
        ("results/scale/index", "docs/results/scale", 0),
    ],
)
def test_a_page_of_the_site_has_its_pictures_and_charts(page: str, heading: str, charts: int) -> None:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab: Any = browser.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto((SITE / f"{page}.html").as_uri())
        sync_api.expect(tab.locator("h1").first).to_contain_text(heading)
        assert tab.locator(".curves canvas").count() == charts
        assert (
            tab.evaluate("[...document.images].filter((one) => !one.naturalWidth).map((one) => one.src)")
            == []
        )
        browser.close()
    assert errors == []
