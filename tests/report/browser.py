"""A real headless Chromium, driven over a pipe by its DevTools protocol: no further package, no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECONDS = 60.0


@dataclass
class Seen:
    """What a page did while it was open: lines of its console, errors, and addresses that it asked for."""

    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class Browser:
    """One Chromium with one page. ``seen`` starts anew with each page that is opened."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        low = os.pipe(), os.pipe()
        # Above 9: the shell below puts them at 3 and 4, which they must not be already.
        (to_browser, self._out), (self._in, from_browser) = (tuple(map(_high, pair)) for pair in low)
        words = [
            *(PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
            *("--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
            *("--hide-scrollbars", f"--user-data-dir={folder}", "about:blank"),
        ]
        # DevTools speaks on descriptors 3 and 4; a shell puts the pipes there.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        with (folder.parent / "chromium.log").open("wb") as log:
            command = ["bash", "-c", shell, "browser", *words]
            pipes = (to_browser, from_browser)
            self._process = subprocess.Popen(command, pass_fds=pipes, stdout=subprocess.DEVNULL, stderr=log)
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.seen = Seen()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "CSS"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, page: Path, width: int, height: int, scheme: str = "light", until: str = "true") -> None:
        """Show a page on a screen of a size; returns when it is loaded and ``until`` is true in it."""
        self.seen = Seen()
        is_phone = width < 600
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1, "mobile": is_phone}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + SECONDS
        while not self.evaluate(f"document.readyState === 'complete' && location.protocol === 'file:' && !!({until})"):
            assert time.monotonic() < end, f"{page} is not ready: {self.seen}"
            time.sleep(0.1)

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def fonts(self, selector: str) -> list[str]:
        """Names of the fonts that the text of an element is really drawn with."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        return [font["familyName"] for font in self.call("CSS.getPlatformFontsForNode", nodeId=node)["fonts"]]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as a picture; ``whole``: also what is below the screen."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)
        raise AssertionError("Chromium has gone")

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + SECONDS
        while True:
            whole, found, rest = self._buffer.partition(b"\0")
            if found:
                self._buffer = rest
                yield json.loads(whole)
                continue
            assert select.select([self._in], [], [], end - time.monotonic())[0], "Chromium does not answer"
            data = os.read(self._in, 1 << 20)
            if not data:
                return
            self._buffer += data

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            said = " ".join(str(one.get("value", one.get("description"))) for one in told["args"])
            self.seen.console.append(said)
            if told["type"] in ("error", "warning", "assert"):
                self.seen.errors.append(said)
        elif method == "Runtime.exceptionThrown":
            self.seen.errors.append(json.dumps(told["exceptionDetails"])[:2_000])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.seen.errors.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.seen.asked.append(told["request"]["url"])


def _high(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own below ``folder``."""
    profile = folder / "profile"
    profile.mkdir()
    with Browser(profile) as browser:
        yield browser
