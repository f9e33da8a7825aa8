"""The report page as text: order, words, escaping, size, and that it stands by itself."""

import base64
import copy
import hashlib
import html.parser
import math
import re
from pathlib import Path

import pytest

from icl_lab import report
from icl_lab.core.errors import InvalidValueError
from icl_lab.report import margins, page
from icl_lab.report.results import validated
from tests.report.crafted_results import HOSTILE, check, claim, results


class Document(html.parser.HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def having(self, name):
        return [attributes for _, attributes in self.tags if name in attributes]


def render(entries, roots=()):
    return page.render([page.Results("verify.json", "2026-01-02 03:04 UTC", entries)], roots)


def claims_of(text):
    return [one["id"] for one in Document(text).having("data-status")]


def test_failures_come_first_by_how_far_they_are_off_then_what_passed_by_paper_in_the_order_given():
    entries = [*results(), claim("beta.late", [check("x")], paper="Beta"), claim("alpha.late", [check("x")])]
    shown = [name.removeprefix("claim-") for name in claims_of(render(entries))]
    # Infinitely far off: an exception and a number that is not finite; then 31 times, then within but too noisy.
    assert shown[:4] == ["alpha.raised", "lab.nan", "alpha.off", "lab.noisy"]
    assert shown[4:] == ["alpha.exact", "alpha.vector", "alpha.late", "beta.hostile", "beta.late"]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (results()[1], "Check “rate”: error 0.031, 31 times its tolerance of 0.001. 1 more check failed."),
        (results()[3], "No verdict: LinAlgError: singular <matrix> (zheng.py:12)"),
        (results()[5], "Check “loss”: its error is not a finite number."),
        (results()[6], "Check “risk”: error 0.55 is within 0.6, but that is too wide to tell, or a number is not finite."),
        (claim("a", [check("holds_abs", 1.0, 0.0, False)]), "Check “holds_abs”: error 1, where none is allowed."),
    ],
)
def test_a_failure_says_by_how_much(entry, sentence):
    assert margins.failure(entry) == sentence
    assert sentence in "".join(Document(render([entry])).text)


@pytest.mark.parametrize(
    ("error", "tolerance", "words", "place"),
    [
        (0.12, 1.0, "12% of the tolerance", 80 + 10 * math.log10(0.12)),
        (1e-3, 1e-3, "100% of the tolerance", 80.0),
        (3.1e-2, 1e-3, "31 times the tolerance", 80 + 10 * math.log10(31)),
        (0.5, 1e-9, "5.0e+08 times the tolerance", 100.0),
        (1e-9, 1e-3, "less than 0.01% of the tolerance", 20.0),
        (1e-20, 1e-3, "less than 0.01% of the tolerance", 0.0),
        (0.0, 0.0, "no error", 0.0),
        (1.0, 0.0, "no error is allowed", 100.0),
        (None, 1.0, "not a finite number", 100.0),
    ],
)
def test_margins_in_words_and_on_the_scale(error, tolerance, words, place):
    one = check("x", error, tolerance)
    assert margins.share_in_words(one) == words
    assert margins.position(report.tables.share_of_tolerance(one)) == pytest.approx(place, abs=0.006)


def test_the_overview_has_a_dot_for_every_check_with_an_error_and_counts_the_others():
    entries = results()
    document = Document(render(entries))
    dots = [attributes for tag, attributes in document.tags if tag == "circle"]
    checks = [one for entry in entries for one in entry["checks"]]
    assert len(dots) == len(checks) - 1  # holds_abs has no error
    assert sum(dot["class"] == "bad" for dot in dots) == sum(not one["passed"] for one in checks)
    anchors = {one["id"] for one in document.having("data-status")}
    assert {dot["data-claim"] for dot in dots} <= anchors
    assert "1 without error" in "".join(document.text)


def test_stacked_dots_of_one_place_do_not_cover_one_another():
    strip = margins.strip("paper", [("a", claim("a", [check(str(i)) for i in range(5)]))])
    heights = sorted(dot.y for dot in strip.dots)
    assert heights == [-10.0, -5.0, 0.0, 5.0, 10.0]
    assert strip.height == 25.0


def test_what_comes_from_files_is_escaped():
    entries = results()
    entries[0]["id"] = "x'\"><script>1</script>"
    entries[0]["parameters"] = {"<i>": "<script>2</script>"}
    entries[0]["source"] = "<script>3</script>"
    document = Document(render(entries))
    assert sum(tag == "script" for tag, _ in document.tags) == 1
    assert not [tag for tag, _ in document.tags if tag in ("img", "i", "b", "iframe", "object")]
    assert not [name for _, attributes in document.tags for name in attributes if name.startswith("on")]
    assert "".join(document.text).count(HOSTILE) >= 2


def test_the_page_asks_for_nothing_else_and_allows_only_its_own_script():
    text = render(results(), [_root(pictures=1)])
    document = Document(text)
    addresses = [attributes[name] for name in ("src", "href", "data", "action") for attributes in document.having(name)]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (one["content"] for one in document.having("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_labels_and_contents_point_at_them():
    twice = [page.Results(name, "today", results()) for name in ("a.json", "b.json")]
    document = Document(page.render(twice, [_root(), _root()]))
    ids = [attributes["id"] for attributes in document.having("id")]
    assert len(ids) == len(set(ids))
    pointed = {attributes["href"][1:] for attributes in document.having("href") if attributes["href"].startswith("#")}
    pointed |= {attributes["for"] for attributes in document.having("for")}
    pointed |= {attributes["aria-labelledby"] for attributes in document.having("aria-labelledby")}
    assert pointed <= set(ids)
    assert "b.json" in "".join(document.text)


def test_long_vectors_can_be_unfolded_up_to_a_limit():
    text = "".join(Document(render([results()[2]])).text)
    assert f"First {page.LISTED} of 60 entries" in text
    assert repr(1 / 7) in text
    assert repr((page.LISTED - 1) / 7) in text
    assert repr(page.LISTED / 7) not in text


def test_long_parameters_are_cut():
    text = "".join(Document(render([claim("a", [check("x")], parameters={"Lam": [0.123] * 1000})])).text)
    assert text.count("0.123") < 40
    assert "(7000 characters)" in text


def test_results_without_a_source_are_shown_without_one():
    entry = results()[0]
    del entry["source"]
    assert "Source" not in Document(render(validated([entry], "old.json"))).text


def test_a_full_verification_fits_into_the_largest_page():
    long = check("a check with a name of ordinary length", 1e-7, measured=[1 / 3] * 400, expected=[1 / 3] * 400)
    # A tenth of what all claims might become: 170, with 12 checks each, every one of a long vector.
    assert len(render([claim(f"a.{i}", [long] * 12) for i in range(17)]).encode()) < 500_000


def test_figures_that_do_not_fit_are_left_out_by_name():
    root = _root(pictures=3, size=40_000)
    bare = len(page.render([], [_root()]).encode())
    (kept,) = page.within(bare + 90_000, [], [root])
    (run,) = kept.runs
    assert [picture.name for picture in run.pictures] == ["figure0", "figure1"]
    text = page.render([], [kept])
    assert len(text.encode()) <= bare + 90_000
    assert "figure2" in "".join(Document(text).text)


def _root(pictures=0, size=100):
    run = page.Run(
        title="0123: task.dim = 2",
        status="converged",
        sentence="the gradient vanished",
        failed=False,
        converged=True,
        remarks=[],
        comparison=[["model", "1"]],
        pictures=[
            page.Picture(f"figure{i}", f"Caption {i}", "data:image/png;base64," + "A" * size, 9, 6) for i in range(pictures)
        ],
        left_out=[],
    )
    return page.RunRoot("runs", "today", "cpu", ["hash"], [["0123"]], 1, 0, ["predictor", "risk"], [run])


def _without(entry, key, where=()):
    entry = copy.deepcopy(entry)
    target = entry
    for step in where:
        target = target[step]
    del target[key]
    return entry


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"id": "x"}, "r.json must hold a list, as `icl-lab verify --json` writes it; got an object"),
        ([], "at least one claim; got an empty list"),
        ([1], "entry 0 of r.json must be an object; got 1"),
        ([results()[0], _without(results()[0], "checks")], "entry 1 of r.json must have the keys .* it lacks checks"),
        ([_without(results()[0], "error", ("checks", 1))], "check 1 of entry 0 of r.json must have .* it lacks error"),
        ([{**results()[0], "seconds": "soon"}], "`seconds` of entry 0 of r.json must be a number; got 'soon'"),
        ([{**results()[0], "passed": 1}], "`passed` of entry 0 of r.json must be true or false; got 1"),
        ([{**results()[0], "source": 7}], "`source`, `status` and `reason` of entry 0 of r.json must be texts"),
        (
            [claim("a", [check("x", measured="1")])],
            "`measured` of check 0 of entry 0 of r.json must be a number, null or a list",
        ),
    ],
)
def test_other_content_than_results_is_refused(content, message):
    with pytest.raises(InvalidValueError, match=message):
        validated(content, "r.json")


def _schemes():
    """The colours of the style sheet: light, and dark where it differs."""
    style = (Path(report.__file__).parent / "templates" / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in style.split("}\n* {")[0].split("@media")[:2]
    )
    return {"light": light, "dark": light | dark}


def _contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    colours = _schemes()[scheme]
    assert _contrast("#ffffff", "#000000") == pytest.approx(21)
    for ground in ("page", "card", "sunken"):
        for ink in ("text", "muted", "accent", "good", "bad"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ground in ("page", "card"):  # the edges of inputs
        assert _contrast(colours["strong"], colours[ground]) >= 3, ground
    assert _contrast(colours["bad"], colours["bad-tint"]) >= 4.5
    assert _schemes()["light"]["page"] != _schemes()["dark"]["page"]
