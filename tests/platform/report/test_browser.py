"""The page in Chromium: every figure is drawn, nothing of a hostile name runs."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from equipoise.platform.report.page import write_report

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--window-size=1400,900", "--virtual-time-budget=15000", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
    "--enable-logging=stderr",
]  # fmt: skip
HOSTILE = (
    "<script>document.body.dataset.hacked=1</script><img src=x onerror='document.body.dataset.hacked=2'>"
)


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("browser: no Chromium on this machine")


def test_figures_are_drawn_and_hostile_names_are_text(
    chromium: str, make_run: Callable, made: type, tmp_path: Path
) -> None:
    page = write_report(make_run(made(hostile=HOSTILE)))
    done = subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    dom = done.stdout
    places = re.findall(r'<div class="plot[^"]*" id="([^"]+)"', dom)
    assert len(places) >= 14
    assert f'data-figures="{len(places)}"' in dom
    drawn = [part for part in dom.split('<div class="plot')[1:] if 'class="main-svg"' in part]
    assert len(drawn) == len(places)
    assert "data-hacked" not in dom
    errors = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert errors == []
