"""Takes the pictures of docs/images from real runs, in a headless Chromium (the environment of `make test-ui`).

    .venv-ui/bin/python scripts/pictures.py FOLDER/runs sums demo other docs/images

FOLDER/runs holds the run of the tutorial, a run of the demo and another one that is laid over; FOLDER/evals what
`agentrl eval` found before (sums-before) and after (sums-after). Each picture is made smaller by Pillow where that is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentrl.cli.compare import comparison_values
from agentrl.report.run_view import RunView
from agentrl.report.server import make_server
from agentrl.report.terminal import LiveProgress
from agentrl.storage.metrics import read_metrics

BROWSER = os.environ.get("AGENTRL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Camera:
    """A browser at a page of runs.

    Args:
        browser: of playwright.
        base: address of the page.
        out: folder of the pictures.
    """

    def __init__(self, browser: Any, base: str, out: Path) -> None:
        self._browser, self._base, self._out = browser, base, out

    def take(
        self, name: str, view: str, *, height: int = 760, act: Callable[[Any], object] | None = None
    ) -> None:
        """A picture of a view, after something was done there."""
        page = self._browser.new_page(viewport={"width": 1280, "height": height}, device_scale_factor=1.125)
        page.goto(f"{self._base}#/{view}")
        page.wait_for_selector("main:not([aria-busy]) h1", timeout=60_000)
        page.wait_for_timeout(700)
        if act is not None:
            act(page)
            page.wait_for_timeout(500)
        self._keep(page, name)

    def terminal(self, run: Path) -> None:
        """What a terminal shows at the end of a run."""
        from rich.console import Console

        console = Console(record=True, width=98, file=open(os.devnull, "w"))  # noqa: SIM115
        rows = read_metrics(run / "metrics.jsonl")
        live = LiveProgress(console)
        for row in rows:
            live.row(row)
        live._started = time.monotonic() - rows[-1]["at"] + rows[0]["at"]
        console.print(live)
        page = self._browser.new_page(viewport={"width": 900, "height": 300}, device_scale_factor=1.6)
        page.set_content(f"<body style='margin:0'>{console.export_svg(title=f'agentrl train, {run.name}')}")
        box = page.locator("svg").bounding_box()
        page.set_viewport_size({"width": 900, "height": int(box["height"]) + 1})
        self._keep(page, "terminal")

    def _keep(self, page: Any, name: str) -> None:
        path = self._out / f"{name}.png"
        page.screenshot(path=str(path))
        page.close()
        with contextlib.suppress(ImportError):
            from PIL import Image

            picture = Image.open(path).convert("RGB")
            picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                path, optimize=True
            )
        print(path)


@contextlib.contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address at which the page of a folder of runs is served meanwhile."""
    with make_server(runs, 0, comparison_values) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def first_call(run: Path) -> str:
    """An early episode that was rewarded for its one call, with the greatest advantage."""
    view = RunView(run)
    view.index.update()
    asked = {"sort": "advantage", "reward_min": "1", "calls_min": "1", "calls_max": "1", "version_max": "20"}
    rows = view.episodes(asked | {"version_min": "4"})["rows"]
    view.close()
    return rows[0]["id"]


def hover(page: Any) -> None:
    """Point at a token."""
    page.locator(".tk.on").nth(6).hover()


def main() -> None:
    """Take all of them."""
    from playwright.sync_api import sync_playwright

    runs, tutorial, demo, other, out = Path(sys.argv[1]), *sys.argv[2:5], Path(sys.argv[5])
    with served(runs) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        camera = Camera(browser, base, out)
        for prefix, run in (("tutorial", tutorial), ("page", demo)):
            laid = f"&with={other}" if prefix == "page" else ""
            episode = f"episode?run={run}&id={first_call(runs / run)}"
            camera.take(f"{prefix}-overview", f"overview?run={run}{laid}", height=860)
            camera.take(f"{prefix}-conversation", episode, height=720)
            camera.take(f"{prefix}-tokens", f"{episode}&tab=tokens&colour=entropy", height=640, act=hover)
        view = RunView(runs / demo)
        prompt = view.prompts({"sort": "spread", "limit": "1"})["rows"][0]["prompt"]
        view.close()
        camera.take("page-prompt", f"prompt?run={demo}&prompt={prompt}")
        camera.take(
            "page-timeline",
            f"timeline?run={demo}",
            height=620,
            act=lambda page: page.get_by_role("button", name="Zoom in").click(),
        )
        camera.take(
            "page-evaluations",
            f"evaluations?run={tutorial}&a=sums-before&b=sums-after",
            act=lambda page: page.locator("#comparison").evaluate(
                "one => one.scrollIntoView({block: 'end'})"
            ),
        )
        camera.terminal(runs / tutorial)
        browser.close()


if __name__ == "__main__":
    main()
