"""A Chromium of our own, driven over its DevTools protocol: a page to load, point at, type into and photograph."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowRight": 39}


class PageError(AssertionError):
    """Something on the page did not go as the test wanted; says what the page's console had to say."""


class Page:
    """One tab. `errors` are the uncaught errors and console errors since it was opened."""

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            self._listen(message)
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return message["result"]

    def _listen(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and given["type"] == "error":
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in given["args"]))
        elif message.get("method") == "Page.javascriptDialogOpening":
            # "Leave the page?"
            answer = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(answer))

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)

    def reload(self) -> None:
        """Loads the page anew; the old one is gone when this returns."""
        self.run("window.isOld = true")
        self.ask("Page.reload")
        self.wait("!window.isOld")

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(f"{code}: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = 120.0) -> Any:
        """The first true value of the expression; an element counts as true."""
        end = time.monotonic() + seconds
        asked = f"Promise.resolve({code}).then((value) => (value instanceof Node ? true : value))"
        while time.monotonic() < end:
            with contextlib.suppress(PageError):
                if value := self.run(asked):
                    return value
            time.sleep(0.2)
        raise PageError(f"never true: {code}\n" + "\n".join(self.errors[-10:]))

    def centre(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        if found is None:
            raise PageError(f"there is no {selector}")
        return found[0], found[1]

    def point(self, selector: str) -> None:
        """Moves the pointer to the middle of an element."""
        self.point_at(*self.centre(selector))

    def point_at(self, x: float, y: float) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        self.click_at(*self.centre(selector))

    def click_at(self, x: float, y: float) -> None:
        self.point_at(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Presses a key: a name of KEYS or a single character."""
        code = KEYS.get(name, ord(name[0].upper()))
        text = {"Enter": {"text": "\r"}}.get(name, {"text": name} if len(name) == 1 else {})
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        sides = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.ask("Emulation.setDeviceMetricsOverride", mobile=False, **sides)

    def photograph(self, path: Path, selector: str | None = None, margin: float = 0) -> Path:
        """A PNG of the window, or of an element and what is around it."""
        options: dict[str, Any] = {}
        if selector is not None:
            x, y, width, height = self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [b.x, b.y, b.width, b.height]; })()"
            )
            sides = {"width": width + 2 * margin, "height": height + 2 * margin}
            options["clip"] = {"x": max(0, x - margin), "y": max(0, y - margin), **sides, "scale": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png", **options)["data"]))
        return path

    def close(self) -> None:
        self._socket.close()


def find_chromium() -> str:
    """The command of an installed Chromium; skips the test where there is none."""
    pytest.importorskip("websocket", reason="comfy-cli brings the websocket client that talks to the browser")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


@contextlib.contextmanager
def running_chromium(command: str, profile: Path) -> Iterator[Callable[[], Page]]:
    """A browser process; call what it gives for a new tab."""
    profile.mkdir(parents=True, exist_ok=True)
    with (profile / "log.txt").open("wb") as log:
        started = [command, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(started, stdout=log, stderr=log)
        pages: list[Page] = []
        try:
            port = _port(profile, process)

            def new_page() -> Page:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
                with urllib.request.urlopen(request, timeout=60) as answer:
                    pages.append(Page(json.loads(answer.read())["webSocketDebuggerUrl"]))
                return pages[-1]

            yield new_page
        finally:
            for page in pages:
                page.close()
            process.terminate()
            process.wait(30)


def _port(profile: Path, process: subprocess.Popen) -> int:
    path = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and (lines := path.read_text().split()):
            return int(lines[0])
        time.sleep(0.1)
    raise PageError((profile / "log.txt").read_text(errors="replace")[-2000:])
