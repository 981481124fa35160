"""The page in Chromium: what it shows, that it is quiet and loads nothing, and that everybody can read it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from equipoise.platform.report.page import write_report

if TYPE_CHECKING:
    from tests.browser import Browser

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
