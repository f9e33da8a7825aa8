"""The report page in a browser: it loads without an error, its filters and keys work, and it fits a phone."""

import json
import shutil

import matplotlib.figure
import pytest

from icl_lab import cli, report
from icl_lab.runs import records
from tests.report.crafted_results import results

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the `test` extra)")


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, or the one that `playwright install chromium` brings."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"needs Chromium, which does not start here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    source = folder / "verify.json"
    source.write_text(json.dumps(results()))
    run = folder / "runs" / "default" / "0123"
    (run / "figures").mkdir(parents=True)
    records.write_json(run / "status.json", {"status": "done", "verdict": "converged", "reason": "small"})
    records.write_json(run / "metrics.json", {"comparison": {}, "theory": None, "warnings": []})
    report.save(matplotlib.figure.Figure(figsize=(2, 1)), run / "figures" / "loss.png", "The loss.", {"loss": [1.0]})
    assert cli.main(["report", str(source), str(folder / "runs"), "-o", str(folder)]) == 0
    return (folder / "index.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Open the page in a context of its own; at the end nothing but the page was asked for, and nothing complained."""
    contexts, problems, requests = [], [], []

    def open_page(**settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert {url for url in requests if not url.startswith("data:")} == {address}


def shown(page):
    visible = page.locator(".claim:visible")
    return [name.removeprefix("claim-") for name in visible.evaluate_all("found => found.map(one => one.id)")]


EVERY = ["alpha.raised", "lab.nan", "alpha.off", "lab.noisy", "alpha.exact", "alpha.vector", "beta.hostile"]


def test_filters_by_status_paper_and_text_and_their_count(visit):
    page = visit()
    count = page.locator("#count")
    assert shown(page) == EVERY
    assert count.get_attribute("aria-live") == "polite"
    assert page.title() == "4 of 7 claims failed · icl_lab report"  # and not what a statement's script would make of it

    page.locator(".segments").get_by_text("Failed").click()
    assert shown(page) == EVERY[:4]
    assert count.inner_text() == "4 of 7 claims"
    page.get_by_label("Paper", exact=True).select_option("Alpha 2023")
    assert shown(page) == ["alpha.raised", "alpha.off"]
    page.get_by_label("Search").fill("RATE slope")
    assert shown(page) == ["alpha.off"]
    assert count.inner_text() == "1 of 7 claims"
    page.get_by_label("Search").fill("rate nothing")
    assert shown(page) == []
    page.get_by_role("button", name="Show all claims").click()
    assert shown(page) == EVERY
    assert count.inner_text() == "7 of 7 claims"

    page.get_by_label("Paper", exact=True).select_option('Beta "2024" & <b>others</b>')
    assert shown(page) == ["beta.hostile"]
    assert page.locator(".group:visible").count() == 1


def test_keyboard_reaches_filters_opens_claims_and_walks_the_overview(visit):
    page = visit()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "strips":
            break
    page.keyboard.press("ArrowRight")
    first = page.locator("#readout").inner_text()
    assert first == "alpha.off, fine: 0.1% of the tolerance"
    page.keyboard.press("End")
    assert page.locator("#readout").inner_text() == "alpha.off, rate: 31 times the tolerance"
    page.keyboard.press("ArrowDown")
    assert page.locator("#readout").inner_text().startswith("beta.hostile")
    page.keyboard.press("Enter")
    assert page.locator('[id="claim-beta.hostile"]').get_attribute("open") is not None
    assert page.evaluate("document.activeElement.parentElement.id") == "claim-beta.hostile"

    page.locator("#strips").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.type("vector")
    assert shown(page) == ["alpha.vector"]

    summary = page.locator('[id="claim-alpha.vector"] > summary')
    summary.focus()
    assert not page.locator(".claims").get_by_role("table").is_visible()
    page.keyboard.press("Enter")
    table = page.locator(".claims").get_by_role("table")
    assert table.is_visible()
    assert table.get_by_role("img", name="12% of the tolerance").is_visible()
    page.keyboard.press("Enter")
    assert not table.is_visible()


def test_opens_all_and_closes_all(visit):
    page = visit()
    button = page.locator("#unfold")
    button.click()
    assert page.locator(".claim[open]").count() == len(EVERY)
    assert button.inner_text() == "Close all"
    button.click()
    assert page.locator(".claim[open]").count() == 0


def test_an_address_with_a_claim_opens_it(visit, address):
    page = visit()
    page.locator(".segments").get_by_text("Failed").click()
    page.evaluate("location.hash = 'claim-alpha.exact'")
    page.locator('[id="claim-alpha.exact"][open]').wait_for()
    assert shown(page) == EVERY


def test_figures_are_drawn(visit):
    image = visit().get_by_role("img", name="The loss.")
    assert image.is_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_works_without_its_script_but_for_the_filters(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".filters").is_hidden()
    page.locator('[id="claim-alpha.exact"] > summary').click()
    assert page.locator('[id="claim-alpha.exact"] table').is_visible()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_needs_sideways_scrolling(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    page.locator("#unfold").click()
    for pairs in page.locator(".pairs > summary").all():
        pairs.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Every element that has text of its own, with its colour and that of the first ground behind it.
PAINTED = """
() => [...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest("svg, .skip, .hidden"))
  .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((one) => {
    let ground = one;
    while (ground && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
    const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    return [one.className + ": " + one.textContent.slice(0, 30), numbers(getComputedStyle(one).color),
            numbers(getComputedStyle(ground).backgroundColor)];
  })
"""


GROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"


def _luminance(colour):
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_schemes_apply_and_all_text_stands_out(visit):
    grounds = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        page.locator("#unfold").click()
        grounds[scheme] = _luminance(page.evaluate(GROUND))
        painted = page.evaluate(PAINTED)
        assert len(painted) > 100
        for what, ink, ground in painted:
            low, high = sorted([_luminance(ink), _luminance(ground)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, what, ink, ground)
    assert grounds["light"] > 0.8
    assert grounds["dark"] < 0.05
