"""Takes ``docs/tensorboard-hparams.png``: the table of a search in TensorBoard, in headless Chromium.

Starts TensorBoard on a free port over ``tb/search`` of a run folder, waits until the table is there, prints its text
and takes the picture. The table lives in shadow roots, which a dump of the page leaves out: the text is asked for
through Chromium's debugging pipe.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TARGET = Path(__file__).parent / "tensorboard-hparams.png"
#: Room for 16 rows; the picture is smaller than the page.
VIEW = {"width": 1960, "height": 790, "deviceScaleFactor": 0.7}
#: Seconds until TensorBoard answers or the table is complete.
TIMEOUT_S = 120

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-quic", "--remote-debugging-pipe",
)  # fmt: skip

#: All text of the page, through shadow roots.
_TEXT = """
(() => {
  const words = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) { if (node.data.trim()) words.push(node.data.trim()); return; }
    if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return words.join("\\n");
})()
"""


class Chromium:
    """A headless browser with one page, spoken to over its debugging pipe; use as a context manager."""

    def __init__(self) -> None:
        program = next(
            (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
        )
        if program is None:
            raise FileNotFoundError("no Chromium on this machine")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = f'exec 3<&{to_read} 4>&{to_write}; exec "$@"'
        command = [
            program,
            *_FLAGS,
            f"--user-data-dir={self._profile.name}",
        ]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "bash", *command, "about:blank"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._unread = b""
        self._number = 0
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", **VIEW, mobile=False)

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> bytes:
        while b"\0" not in self._unread:
            got = os.read(self._in, 1 << 16)
            if not got:
                raise RuntimeError("Chromium has ended")
            self._unread += got
        message, _, self._unread = self._unread.partition(b"\0")
        return message

    def text(self) -> str:
        """All text of the page, one text node per line."""
        return str(self.call("Runtime.evaluate", expression=_TEXT)["result"].get("value", ""))

    def picture(self, path: Path) -> None:
        """Save a screenshot of the window as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """TensorBoard over a folder; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--load_fast=false"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(lambda: len(_runs(address)) > 0, "TensorBoard has read no run")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def table_text(address: str, expected: list[str], picture: Path | None = None, tab: str = "hparams") -> str:
    """The text of the HParams table, or of another tab, once it contains everything that is expected.

    Parameters
    ----------
    address
        Of TensorBoard.
    expected
        Lines to wait for.
    picture
        File for a picture of the table.
    tab
        ``hparams``, ``pr_curves``, …

    Raises
    ------
    TimeoutError
        If something has not appeared; the message names it.
    """
    with Chromium() as browser:
        browser.call("Page.navigate", url=f"{address}/#{tab}")
        latest: list[str] = [""]

        def there() -> bool:
            latest[0] = browser.text()
            return all(word in latest[0].split("\n") for word in expected)

        try:
            _wait_for(there, "the page is not complete")
        except TimeoutError as late:
            missing = [word for word in expected if word not in latest[0].split("\n")]
            raise TimeoutError(f"{late}: no {', '.join(missing)}") from None
        if picture is not None:
            time.sleep(1)  # the table is laid out after its text is there
            browser.picture(picture)
        return latest[0]


def _runs(address: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=10) as answer:  # noqa: S310, an address of ours
            runs: list[str] = json.loads(answer.read())
            return runs
    except OSError:
        return []


def _wait_for(condition: Any, what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.3)


def main() -> None:
    """Take the picture of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of a search")
    parser.add_argument("-o", "--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    folder = arguments.run / "tb" / "search"
    trials = sorted(path.parent.name for path in folder.glob("*/events.*"))
    with tensorboard(folder) as address:
        text = table_text(address, ["val/mean", *trials[:16]], arguments.out)
    print(text)
    print(f"{arguments.out}  {arguments.out.stat().st_size / 1000:.0f} kB, {len(trials)} trials")


if __name__ == "__main__":
    main()
