"""Chromium for tests, spoken to through the DevTools protocol over a pair of pipes: no port, no WebSocket.

``browser.page()`` opens a page that notes console errors and requests; see the fixture ``browser`` in conftest.py.
Protocol: https://chromedevtools.github.io/devtools-protocol/. With ``--remote-debugging-pipe`` a message ends in a
zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-quic", "--disable-extensions", "--mute-audio", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)  # fmt: skip
#: Seconds after which an answer or a condition is given up.
PATIENCE = 60.0


class Browser:
    """One headless Chromium; pages share it.

    Parameters
    ----------
    program
        Path of Chromium.
    profile
        Folder for its profile.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._pages: dict[str, Page] = {}
        low_read, self._to = os.pipe()
        self._from, low_write = os.pipe()
        # Above 9, so that neither is one of the two descriptors that they become.
        read_end, write_end = (fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10) for low in (low_read, low_write))
        # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
        shell = f'exec "$@" 3<&{read_end} 4>&{write_end} {read_end}<&- {write_end}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read_end, write_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (low_read, low_write, read_end, write_end):
            os.close(end)

    @contextmanager
    def page(self, width: int = 1200, height: int = 900) -> Iterator[Page]:
        """A fresh page of that size in CSS pixels, closed at the end."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.viewport(width, height)
            yield page
        finally:
            del self._pages[session]
            with suppress(AssertionError, OSError):
                self.call("Target.closeTarget", targetId=target)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that arrive meanwhile go to their pages."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self.receive(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def receive(self, deadline: float, what: str) -> dict[str, Any]:
        """The next message, noted by the page that it belongs to."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer {what} within {PATIENCE:g} s"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, f"Chromium ended during {what}"
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        if (page := self._pages.get(message.get("sessionId", ""))) is not None and "method" in message:
            page.note(message["method"], message["params"])
        return message

    def close(self) -> None:
        """End this Chromium."""
        with suppress(OSError, AssertionError):
            self.call("Browser.close")
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Page:
    """A page of a :class:`Browser`.

    Attributes
    ----------
    errors
        Errors and warnings of the console, uncaught exceptions, and what the browser itself logs as an error.
    requests
        Addresses that were asked for, the page itself included; ``data:`` and ``blob:`` are left out.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    @property
    def external(self) -> list[str]:
        """Requests to anything but files."""
        return [address for address in self.requests if not address.startswith("file://")]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol for this page."""
        return self._browser.call(method, self._session, **params)

    def note(self, method: str, params: dict[str, Any]) -> None:
        """Keep what an event says."""
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            texts = [str(a.get("value", a.get("description", ""))) for a in params["args"]]
            self.errors.append(" ".join(texts))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            if not params["request"]["url"].startswith(("data:", "blob:")):
                self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, target: Path | str) -> None:
        """Open a file or an address and wait until it has loaded."""
        self._loaded = False
        address = target.resolve().as_uri() if isinstance(target, Path) else target
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._browser.receive(deadline, f"loading {address}")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as JSON knows it; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        limit = int(PATIENCE * 1000) - 5000
        done = self.evaluate(
            "new Promise(done => { const end = performance.now() + " + str(limit) + "; const look = () => ("
            + condition + ") ? done(true) : performance.now() > end ? done(false) : setTimeout(look, 30); look(); })"
        )  # fmt: skip
        assert done, f"never true: {condition}"

    def viewport(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """Size in CSS pixels, device pixels per CSS pixel, and whether it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def media(self, medium: str = "", **features: str) -> None:
        """Emulate a medium (``print``) and features, such as ``prefers_color_scheme="dark"``."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=medium, features=listed)

    def press(self, key: str, code: str = "", text: str = "") -> None:
        """Press and release a key by its DOM name (``Tab``, ``Enter``, ``ArrowDown``, ``a``)."""
        text = text or {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        number = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38,
                  "ArrowRight": 39, "ArrowDown": 40}.get(key, ord(key.upper()) if len(key) == 1 else 0)  # fmt: skip
        common = {"key": key, "code": code or key, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, x: float, y: float) -> None:
        """Click at a point in CSS pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, x: float, y: float, delta: float) -> None:
        """Turn the wheel at a point; negative is towards the screen: zoom in."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def screenshot(self, path: Path | None = None, full: bool = False) -> bytes:
        """The page as PNG, as seen or in its full length; written to ``path`` if given."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        data = base64.b64decode(answer["data"])
        if path is not None:
            path.write_bytes(data)
        return data
