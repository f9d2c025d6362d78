"""A page in headless Chromium that a test can wait for, ask and photograph, also behind shadow roots.

Talks Chrome's DevTools protocol over two pipes, so that nothing but the browser is needed.
"""

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import chromium

# `deep(selector)` finds elements in the page and in all shadow roots, however nested.
_DEEP = """
window.deep = (selector, root = document) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? window.deep(selector, e.shadowRoot) : []),
];
window.seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
"""


class Page:
    """One tab: `ask` evaluates JavaScript, `wait_for` asks until it is true, `photograph` keeps a PNG."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer, self._number, self._session = b"", 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", source=_DEEP)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 120
        while True:
            while b"\0" not in self._buffer:
                ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"the browser did not answer {method}"
                part = os.read(self._read, 1 << 20)
                assert part, f"the browser ended during {method}"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str, *, width: int = 1400, height: int = 1000) -> None:
        """Go to an address, with the window of this size."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=url)

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression, which may use `deep(selector)` and `seen(element)`."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 120) -> Any:
        """Ask until the answer is true; the answer."""
        deadline = time.monotonic() + seconds
        while not (answer := self.ask(f"window.deep ? ({script}) : null")):
            assert time.monotonic() < deadline, f"not within {seconds} s: {script}"
            time.sleep(0.2)
        return answer

    def photograph(self, to: Path) -> Path:
        """Keep what the window shows."""
        to.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
        return to


@contextmanager
def open_page() -> Iterator[Page]:
    """A headless Chromium with one empty tab, until the block ends; skips where there is no browser."""
    browser = chromium()
    to_browser, from_test = os.pipe()
    to_test, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip

        def as_three_and_four() -> None:
            # Chromium reads commands from 3 and answers on 4.
            os.dup2(to_browser, 100)
            os.dup2(from_browser, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=as_three_and_four
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(from_test, to_test)
        finally:
            process.terminate()
            process.wait(30)
            os.close(from_test)
            os.close(to_test)
