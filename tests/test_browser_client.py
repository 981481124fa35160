"""The DevTools client of tests/browser.py finds what other browser tests rely on it to find."""

from pathlib import Path

import pytest
from tests.browser import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = """<!doctype html><title>t</title><button id=b onclick="this.textContent='pressed'">press</button>
<input id=i><img src="https://example.invalid/x.png">
<script>console.error('planted'); setTimeout(() => { document.title = 'later'; undefinedName(); }, 50)</script>"""


def test_errors_requests_keys_and_pictures(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGE)
    with browser.page(width=390, height=300) as page:
        page.open(file)
        page.wait_for("document.title === 'later'")
        assert page.evaluate("[innerWidth, innerHeight]") == [390, 300]
        assert page.external == ["https://example.invalid/x.png"]
        assert any("planted" in error for error in page.errors)
        assert any("undefinedName" in error for error in page.errors)
        page.press("Tab")
        page.press("Enter")
        assert page.evaluate("document.getElementById('b').textContent") == "pressed"
        page.press("Tab")
        page.press("a")
        assert page.evaluate("document.getElementById('i').value") == "a"
        page.media("print")
        assert page.evaluate("matchMedia('print').matches")
        page.media(prefers_color_scheme="dark")
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert page.screenshot(tmp_path / "shot.png").startswith(b"\x89PNG")
    with browser.page() as fresh:
        fresh.open("data:text/html,<p>quiet")
        assert fresh.errors == []
        assert fresh.external == []
