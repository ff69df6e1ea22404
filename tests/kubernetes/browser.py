"""Chromium without a window, driven over its DevTools protocol: pages are opened, typed into, read and photographed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from websocket import create_connection

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,900", "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]  # fmt: skip


class Browser:
    """A browser of one page.

    Args:
        profile: A new folder for its profile.
    """

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if not program:
            pytest.skip("there is no chromium here: apt-get install chromium")
        words = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        try:
            # The line that says where it listens; others come before it.
            port = next(
                line.rpartition("ws://127.0.0.1:")[2].partition("/")[0]
                for line in self._process.stderr
                if "DevTools listening on ws://127.0.0.1:" in line
            )
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(each for each in json.load(answer) if each["type"] == "page")
            self._socket = create_connection(page["webSocketDebuggerUrl"], timeout=120)
        except BaseException:
            self._end()
            raise
        self._number = 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _send(self, method: str, **parameters: object) -> dict:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self._send("Page.navigate", url=url)

    def evaluate(self, script: str) -> object:
        """What a JavaScript expression of the page is; a promise is awaited."""
        result = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str, seconds: int = 90) -> None:
        """Wait until a JavaScript expression holds, in whichever page comes to be there."""
        watch = f"""new Promise((done) => {{
            const until = Date.now() + {seconds * 1000};
            const look = () => {{
                if ({condition}) done(true);
                else if (Date.now() > until) done(false);
                else setTimeout(look, 100);
            }};
            look();
        }})"""
        while True:
            try:
                held = self.evaluate(watch)
            except AssertionError as error:
                # The page went away to the next one while it was watched.
                if "context was destroyed" in str(error) or "navigated" in str(error):
                    continue
                raise
            assert held, (
                f"{condition} did not come to hold at {self.evaluate('location.href')}: {self.text()[:500]}"
            )
            return

    def text(self) -> str:
        """The text that the page shows."""
        return str(self.evaluate("document.body.innerText"))

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._send("Input.insertText", text=text)

    def screenshot(self, file: Path) -> Path:
        """Photograph the page."""
        file.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))
        return file
