"""The viewer in Chromium, opened from disk: zoom, alignment, switching, keys, no errors, nothing from elsewhere."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser import Browser, Page
from tests.platform.explain.conftest import FAILED, made_map

from equipoise.platform.explain.render import render

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BLACK = (20, 20, 20)


@pytest.fixture
def page_of(browser: Browser, write_slide: Callable, tmp_path: Path) -> Callable[..., Any]:
    """A slide of 2000 x 1300 px, white with a black square that fills the hottest tile of its map."""

    def write() -> tuple[Path, Any]:
        scores = made_map(30, 20, 64.0, corner=(37, 11), checks=())
        at = int(scores.score.argmax())
        x, y = int(scores.x[at]), int(scores.y[at])
        pixels = np.full((1300, 2000, 3), 255, np.uint8)
        pixels[y : y + 64, x : x + 64] = BLACK
        other = made_map(30, 20, 64.0, corner=(37, 11), score=-scores.score, task="OS", kind="survival", class_name="",
                         checks=(FAILED,))  # fmt: skip
        slide = write_slide([pixels, pixels[::4, ::4]], mpp=0.5, tile=256)
        viewer = render([scores, other], slide, tmp_path / "out").viewer
        assert viewer is not None
        return viewer, scores

    return write


def settled(page: Page) -> None:
    page.wait_for("document.documentElement.dataset.ready === 'yes'")
    page.wait_for("document.getElementById('overlay').complete")
    page.wait_for(
        "(() => { const v = document.getElementById('stage').viewer, i = v.world.getItemAt(0);"
        " return i && i.getFullyLoaded() && v.viewport.zoomSpring.isAtTargetValue(); })()"
    )
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hide(page: Page, selector: str) -> None:
    page.evaluate(
        f"document.querySelectorAll('{selector}').forEach(e => {{ e.style.visibility = 'hidden' }})"
    )


def pixels_of(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def square(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_opens_from_disk_zooms_and_lies_where_it_should(browser: Browser, page_of: Callable) -> None:
    viewer, scores = page_of()
    with browser.page(1200, 800) as page:
        page.open(viewer)
        settled(page)
        hide(page, ".mark, .navigator, .ruler, .tools, .frame")
        boxes = []
        for zoomed in (False, True):
            if zoomed:
                # From the list: by keyboard, as somebody without a mouse does it.
                page.evaluate("document.querySelector('#top button').focus()")
                page.press("Enter")
                settled(page)
                hide(page, ".frame")
            page.evaluate("document.getElementById('overlay').style.visibility = 'hidden'")
            slide = pixels_of(page)[:, :850]
            dark = square((slide < 90).all(axis=2))
            page.evaluate(
                "document.getElementById('overlay').style.visibility = '';"
                "document.getElementById('overlay').style.opacity = 1"
            )
            tinted = pixels_of(page)[:, :850]
            excess = tinted[..., 0] - tinted[..., 2]
            hot = square(excess >= excess.max() - 2)
            assert hot == pytest.approx(dark, abs=2), zoomed
            boxes.append(dark)
        assert boxes[1][2] - boxes[1][0] > 4 * (boxes[0][2] - boxes[0][0])  # the tile has been zoomed to
        assert page.errors == []
        assert page.external == []
        assert str(scores.score.max())[:3] in page.evaluate("document.getElementById('said').textContent")


def test_maps_opacity_and_checks(browser: Browser, page_of: Callable) -> None:
    viewer, _ = page_of()
    with browser.page(1200, 800) as page:
        page.open(viewer)
        settled(page)
        assert "has not been checked" in page.evaluate("document.getElementById('verdict').textContent")
        before = page.evaluate("document.getElementById('overlay').src")
        page.evaluate(
            "const m = document.getElementById('map'); m.value = '1'; m.dispatchEvent(new Event('change'))"
        )
        settled(page)
        assert page.evaluate("document.getElementById('overlay').src") != before
        assert "failed 1 of 1 checks" in page.evaluate("document.getElementById('verdict').textContent")
        assert page.evaluate("document.getElementById('checks').classList.contains('failed')")
        assert page.evaluate("document.getElementById('towards').textContent") == "higher risk"
        page.evaluate("document.getElementById('opacity').focus()")
        for _ in range(3):
            page.press("ArrowLeft")
        assert page.evaluate("document.getElementById('overlay').style.opacity") == "0.57"
        assert page.evaluate("document.getElementById('percent').textContent") == "57 %"
        zoom = page.evaluate("document.getElementById('stage').viewer.viewport.getZoom()")
        page.evaluate("document.getElementById('in').focus()")
        page.press("Enter")
        page.wait_for(f"document.getElementById('stage').viewer.viewport.getZoom() > {1.2 * zoom}")
        assert page.errors == []
        assert page.external == []


def test_a_phone_has_no_horizontal_scroll(browser: Browser, page_of: Callable) -> None:
    viewer, _ = page_of()
    with browser.page() as page:
        page.viewport(390, 844, scale=2, mobile=True)
        page.open(viewer)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.getElementById('view').getBoundingClientRect().height") > 300
        assert page.errors == []


def test_no_serious_finding_of_axe(browser: Browser, page_of: Callable) -> None:
    viewer, _ = page_of()
    package = importlib.util.find_spec("axe_core_python")
    assert package is not None
    assert package.origin is not None
    axe = next(Path(package.origin).parent.rglob("axe.min.js")).read_text()
    with browser.page(1200, 800) as page:
        for scheme in ("light", "dark"):
            page.media(prefers_color_scheme=scheme)
            page.open(viewer)
            settled(page)
            page.evaluate("document.getElementById('map').value = '1'")
            page.evaluate(
                "document.getElementById('map').dispatchEvent(new Event('change'))"
            )  # a failed check
            page.evaluate(f"{axe}; 0")
            found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.impact]))")
            assert [finding for finding in found if finding[1] in ("serious", "critical")] == [], scheme
