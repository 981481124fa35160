"""Takes ``docs/report.png``: the head of a report in headless Chromium, as ``make demo`` writes it.

::

    make demo
    python docs/report_screenshot.py demo/run/report.html
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).parent / "report.png"
WIDTH, HEIGHT = 1280, 1150

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--virtual-time-budget=15000", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-quic",
)  # fmt: skip


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of a run folder")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next((path for path in found if path), None)
    if program is None:
        sys.exit("no Chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        picture = Path(folder) / "report.png"
        subprocess.run(
            [
                program,
                *_FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={picture}",
                arguments.report.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        with Image.open(picture) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(arguments.target, optimize=True)
    print(f"wrote {arguments.target}")


if __name__ == "__main__":
    main()
