"""The page in Chromium: what it shows, that it is quiet and loads nothing, and that everybody can read it."""

import base64
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from equipoise.platform.report.page import write_report
from equipoise.platform.report.summary import summary_page

if TYPE_CHECKING:
    from tests.browser import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = (
    "<script>document.body.dataset.hacked=1</script><img src=x onerror='document.body.dataset.hacked=2'>"
)
#: Figures without a visible mark, by id.
EMPTY = """
[...document.querySelectorAll("figure[id]")].filter(f => {
  const seen = [...f.querySelectorAll(".chart")].filter(c => c.offsetParent !== null);
  return seen.length !== 1 || ![...seen[0].querySelectorAll("path, circle, rect")].some(m => {
    const box = m.getBoundingClientRect(); return box.width + box.height > 0; });
}).map(f => f.id)
"""


def test_figures_are_drawn_and_hostile_names_are_text(
    browser: "Browser", make_run: Callable, made: type
) -> None:
    path = write_report(make_run(made(hostile=HOSTILE)))
    with browser.page(1400, 900) as page:
        page.open(path)
        assert page.evaluate("document.querySelectorAll('figure[id]').length") >= 14
        assert page.evaluate(EMPTY) == []
        assert page.evaluate("document.body.dataset.hacked ?? null") is None
        assert page.errors == []
        assert page.external == []
        assert [Path(address).name for address in page.requests] == ["report.html"]


@pytest.fixture(scope="module")
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("report") / "crc-msi")))


def axe_findings(page: "Page") -> list[str]:
    """Serious and critical findings of axe-core, each with the first place."""
    script = files("axe_core_python") / "axe.min.js"
    page.evaluate(script.read_text(encoding="utf-8") + "; 1")
    # Data tables have one form: the first one stands for them. Inside drawings only their names are looked at.
    page.evaluate("document.querySelectorAll('.data').forEach((d, k) => { if (k) d.remove(); })")
    return page.evaluate(
        "(async () => { const most = await axe.run({exclude: ['.chart svg']});"
        "const drawings = await axe.run(document, {runOnly: ['svg-img-alt']});"
        "return [...most.violations, ...drawings.violations].filter(v => ['serious', 'critical'].includes(v.impact))"
        ".map(v => `${v.id}: ${v.nodes.length}x ${v.nodes[0].html.slice(0, 200)} ${v.nodes[0].failureSummary}`)})()"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: "Browser", report: Path, scheme: str) -> None:
    with browser.page(1280, 900) as page:
        page.call("Page.setBypassCSP", enabled=True)  # the page forbids scripts, those of this test too
        page.media(prefers_color_scheme=scheme)
        page.open(report)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
        assert axe_findings(page) == []


def test_a_phone_shows_everything_without_scrolling_sideways(browser: "Browser", report: Path) -> None:
    with browser.page(390, 844) as page:
        page.viewport(390, 844, scale=2, mobile=True)
        page.open(report)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate(EMPTY) == []
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('.chart')].filter(c => c.offsetParent !== null).map(c => {"
            "const s = c.querySelector('svg'); return s.getBoundingClientRect().width / s.viewBox.baseVal.width; }))"
        )
        assert smallest > 0.7, "text of figures is at least 8 px on a phone"


def test_every_section_is_present_and_reached_by_the_keyboard(browser: "Browser", report: Path) -> None:
    with browser.page(1280, 900) as page:
        page.open(report)
        shown = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
        linked = page.evaluate("[...document.querySelectorAll('.contents a')].map(a => a.hash.slice(1))")
        assert shown == linked
        assert {
            "verdict",
            "flow",
            "classification",
            "survival",
            "limits",
            "methods",
            "checklists",
            "glossary",
        } <= set(shown)
        page.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.press("Enter")
        assert page.evaluate("location.hash") == "#results"
        assert page.errors == []


def test_on_paper_folded_text_is_open_and_the_summary_has_two_pages(browser: "Browser", report: Path) -> None:
    summary = write_report(report.parent, name="report-summary.html", make=summary_page)
    with browser.page(1280, 900) as page:
        page.open(summary)
        pdf = base64.b64decode(
            page.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        )
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 2
        page.open(report)
        page.media("print", prefers_color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        folds = "[...document.querySelectorAll('details.fold')].map(d => d.lastElementChild.offsetHeight)"
        assert min(page.evaluate(folds)) > 0
        assert page.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
