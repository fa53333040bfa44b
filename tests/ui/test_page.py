"""The page in a real browser (make test-ui): from disk and served, by mouse and keyboard, light, dark and narrow."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.compare import comparison_values
from agentrl.report import write_report
from agentrl.report.references import band, collect
from agentrl.report.server import make_server
from tests.agentrl.report.run_files import HOSTILE, step_row, write_evaluations, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-ui` brings it")
pytestmark = [pytest.mark.ui, pytest.mark.timeout(180)]

BROWSER = os.environ.get("AGENTRL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(os.environ.get("AGENTRL_AXE", "")) / "axe.min.js"
VIEWS = ["overview", "episodes", "prompts", "tracker", "timeline", "failures", "evaluations", "settings"]
DETAILS = [
    "evaluations?a=before&b=after",
    "episode?id=t6",
    "episode?id=t6&tab=tokens",
    "episode?id=t6&tab=segments",
    "episode?id=t6&tab=record",
    "prompt?prompt=p1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("file")
    bidi = "right to left \u202eabc \u05e9\u05dc\u05d5\u05dd"
    run = write_run(folder / "runs" / "one", texts={3: HOSTILE, 5: "x" * 10_000_000, 7: bidi})
    write_evaluations(folder)
    return write_report(run, [write_run(folder / "runs" / "two", steps=4)], comparison_values).as_uri()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which every error and every question to a foreign host fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert errors == []


VIOLATIONS = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map(
    (one) => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary.slice(0, 300)]))"""


def show(page: Any, view: str) -> None:
    """Go to a view of a page that is open, and wait until it stands."""
    page.evaluate(
        "view => { document.getElementById('main').replaceChildren(); location.hash = '#/' + view; render(); }",
        view,
    )
    page.wait_for_selector("main:not([aria-busy]) h1")


def open_at(page: Any, base: str, view: str) -> None:
    page.goto(f"{base}#/{view}")
    page.wait_for_selector("main:not([aria-busy]) h1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_opens_and_can_be_read_by_all(page: Any, report: str, scheme: str):
    if not AXE.exists():
        pytest.skip("no axe-core: AGENTRL_AXE names its folder (`make test-ui` does)")
    page.emulate_media(color_scheme=scheme)
    page.goto(report)
    page.evaluate(AXE.read_text() + "; undefined")
    for view in (*VIEWS, *DETAILS):
        show(page, view)
        found = page.evaluate(VIOLATIONS)
        assert found == [], view


def test_episodes_are_filtered_and_sorted(page: Any, report: str):
    open_at(page, report, "episodes")
    assert page.locator(".count b").inner_text() == "26"
    page.get_by_label("State").select_option("failed")
    sync_api.expect(page.locator(".count b")).to_have_text("2")
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("Reward from").fill("1")
    sync_api.expect(page.locator(".count b")).to_have_text("12")
    page.get_by_role("button", name="Advantage").click()
    sync_api.expect(page.locator("th[aria-sort=descending]")).to_contain_text("Advantage")
    page.get_by_label("Search", exact=True).fill("no such thing")
    sync_api.expect(page.locator(".count b")).to_have_text("0")


def test_a_token_tells_what_engine_and_learner_said_of_it(page: Any, report: str):
    open_at(page, report, "episode?id=t6&tab=tokens&colour=gap")
    token = page.locator(".tk.on").nth(1)
    token.hover()
    detail = page.locator(".detail")
    # exp(-0.1) and exp(-0.6), as the fixture wrote them.
    for text in (
        "\u22120.1 (90.5%)",
        "\u22120.6 (54.9%)",
        "\u22120.5",
        "version 1",
        "The loss makes this token likelier.",
    ):
        sync_api.expect(detail).to_contain_text(text)
    assert "color-mix" in token.get_attribute("style")
    page.get_by_role("radio", name="Entropy").check(force=True)
    assert "colour=entropy" in page.url
    assert page.locator(".tk:not(.on)").first.get_attribute("style") in (None, "")


def test_a_conversation_has_cells_and_mathematics(page: Any, report: str):
    open_at(page, report, "episode?id=t6")
    assert page.locator(".cell .in pre").inner_text() == "print(2+3)"
    assert page.locator(".cell .out pre").inner_text() == "5"
    assert page.locator("math").count() >= 2
    assert page.locator(".message.given").first.inner_text().endswith("solve 2+3")


def test_a_prompt_has_its_value_and_attempts(page: Any, report: str):
    open_at(page, report, "prompts")
    page.get_by_role("link", name="p1").click()
    page.wait_for_selector("h1:has-text('Prompt p1')")
    assert page.locator("tbody tr").count() == 7
    assert page.locator("figure canvas").count() == 1


def test_a_second_run_is_laid_over(page: Any, report: str):
    open_at(page, report, "overview")
    page.get_by_label("Compare with").select_option("two")
    page.wait_for_selector(".legend:has-text('score, two')")
    page.keyboard.press("7")
    page.wait_for_selector("h2:has-text('Against two')")


def test_evaluations_beside_the_run_are_compared(page: Any, report: str):
    open_at(page, report, "evaluations")
    assert page.get_by_role("region", name="Evaluations in evals/").locator("tbody tr").count() == 3
    page.get_by_label("Evaluation A").select_option("before")
    page.get_by_label("Evaluation B").select_option("after")
    table = page.get_by_role("region", name="Comparison of two evaluations")
    sync_api.expect(table).to_contain_text("avg@k")
    sync_api.expect(page.locator("#comparison")).to_contain_text("Paired by problem")
    assert "a=before" in page.url
    assert "b=after" in page.url


def test_settings_tell_the_commands_and_versions(page: Any, report: str):
    open_at(page, report, "settings")
    text = page.locator("main").inner_text()
    for part in (
        "agentrl train my.toml",
        "2.13.0",
        "agentrl train --resume one",
        "run.steps = 6 (was 4)",
        "torch 2.14.0",
    ):
        assert part in text, part


def test_grading_has_a_lane(page: Any, report: str):
    open_at(page, report, "timeline")
    assert page.locator(".lanes .lane", has_text="grading").count() == 1
    assert "grading 500 ms" in page.locator(".lanes title", has_text="t20: grading").first.text_content()


def test_the_keyboard_reaches_everything(page: Any, report: str):
    open_at(page, report, "overview")
    page.keyboard.press("2")
    page.wait_for_selector("h1:has-text('Episodes')")
    page.keyboard.press("/")
    page.keyboard.type("t6")
    sync_api.expect(page.locator(".count b")).to_have_text("1")
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Episode t6')")
    page.keyboard.press("t")
    page.wait_for_selector(".flow")
    page.locator(".flow").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator(".detail")).to_contain_text("version 1")
    page.keyboard.press("?")
    sync_api.expect(page.locator("dialog")).to_be_visible()


def test_a_narrow_window_never_scrolls_sideways(page: Any, report: str):
    page.set_viewport_size({"width": 380, "height": 800})
    page.goto(report)
    for view in (*VIEWS, *DETAILS):
        show(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, view


def test_dark_and_light_are_the_readers_choice(page: Any, report: str):
    open_at(page, report, "overview")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Theme: Auto").click()
    page.get_by_role("button", name="Theme: Light").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.parametrize("tab", ["conversation", "tokens", "record"])
def test_what_a_model_writes_is_text(page: Any, report: str, tab: str):
    open_at(page, report, f"episode?id=t3&tab={tab}")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    if tab == "conversation":
        text = page.locator(".message.model").last.inner_text()
        assert "<script>window.hacked = 1</script>" in text
        assert "\u241b[31m" in text  # the escape is seen, and does nothing
        assert "\u27e8U+202E\u27e9" in text


def test_ten_megabytes_are_shown_in_pieces(page: Any, report: str):
    # The file left this episode out, for it has 30 MB in all; the server has it.
    open_at(page, report, "episodes?q=t5")
    assert page.locator(".count b").inner_text() == "1"


def test_a_reference_is_drawn_behind_the_curves(page: Any, tmp_path: Path):
    """The band goes on where the run has not come yet."""
    reference = collect(
        [write_run(tmp_path / name, steps=steps) for name, steps in (("a", 9), ("b", 8))], "mine"
    )
    run = write_run(tmp_path / "runs" / "one")
    address = write_report(run, reference=band(reference)).as_uri()
    open_at(page, address, "overview?smooth=0.001")
    sync_api.expect(page.locator(".reference")).to_contain_text(
        "Reference mine (2 runs): held-out reward 0.20"
    )
    score = page.locator("[data-names~=score_mean]")
    sync_api.expect(score.locator(".legend")).to_contain_text("score, reference mine 0.65")  # 0.2 + 9 * 0.05
    drawn = page.evaluate("liveCharts.map(({plot}) => [plot.data[0].at(-1), plot.bands.length])")
    assert drawn[0] == [9, 3]  # of score, of the baseline, of evaluations
    open_at(page, address, "overview?x=time_s")
    assert page.evaluate("liveCharts[0].plot.bands.length") == 1  # wall time is of the machine


def test_three_runs_are_laid_over_another(page: Any, tmp_path: Path):
    run, *others = (write_run(tmp_path / "runs" / name, steps=6) for name in ("one", "two", "three", "four"))
    open_at(page, write_report(run, others).as_uri(), "overview")
    page.get_by_label("Compare with").select_option("two")
    page.get_by_label("and with").select_option("four")
    sync_api.expect(page.locator("[data-names~=score_mean] .legend")).to_contain_text("score, four")
    assert page.url.endswith("with=two%2Ffour")
    sync_api.expect(page.get_by_label("and with")).to_have_count(2)
    page.get_by_label("Compare with").select_option("")
    sync_api.expect(page.locator("[data-names~=score_mean] .legend")).not_to_contain_text("score, two")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    folder = write_run(tmp_path / "runs" / "one", texts={5: "x" * 10_000_000})
    with make_server(folder.parent, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield lambda: (f"http://127.0.0.1:{server.server_address[1]}/", folder)
        server.shutdown()
        thread.join()


def test_a_run_under_way_is_followed(page: Any, served: Callable[..., Any]):
    base, folder = served()
    open_at(page, base, "overview")
    sync_api.expect(page.locator(".tile", has_text="policy versions")).to_contain_text("6")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_row(7, new_metric=3.0)) + "\n")
    sync_api.expect(page.locator(".tile", has_text="policy versions")).to_contain_text("7")


def test_a_long_text_opens_in_pieces(page: Any, served: Callable[..., Any]):
    base, _ = served()
    open_at(page, base, "episode?id=t5")
    last = page.locator(".message.model").last
    assert len(last.inner_text()) < 10_000
    last.get_by_role("button", name="Show more").click()
    assert 60_000 < len(last.inner_text()) < 100_000
