"""The page at / in a headless Chromium, driven by its debugging protocol. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rl_server import summing_policy

import rltrain

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "a-token-of-sixteen-characters"


class Page:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._count = socket, 0

    def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._count:
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str) -> Any:
        """The same, when it is true."""
        deadline = time.monotonic() + 60
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.05)
        return value


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    connect = pytest.importorskip("websockets.sync.client").connect
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    profile = tmp_path / "profile"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not port.exists() or len(port.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            assert browser.poll() is None
            time.sleep(0.05)
        number = port.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list", timeout=30) as reply:
            target = next(one for one in json.load(reply) if one["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        browser.kill()
        browser.wait()


def test_the_page_shows_the_policy_asks_and_measures(page: Page, tmp_path: Path) -> None:
    """The specification, an example of a request, its answer, a fault, and the latency of 100 requests."""
    with rltrain.serve(summing_policy(tmp_path / "sums.onnx"), token=TOKEN) as served:
        page.call("Page.navigate", url=served.url)
        page.wait("document.querySelector('#about')?.textContent.includes('a token is needed')")
        page.run(f"document.querySelector('#token').value = {TOKEN!r}")
        page.run("document.querySelector('#token').onchange()")
        request = json.loads(page.wait("document.querySelector('#request').value"))
        assert request == {"obs": [0, 0, 0], "session": "page", "first": True}
        assert page.run("document.querySelector('#about').textContent") == "policy: sums on sums, step 0"
        assert json.loads(page.run("document.querySelector('#spec').textContent"))["policies"]["policy"]["memory"] == 1
        request["obs"] = [2.5, 0, 0]
        page.run(f"document.querySelector('#request').value = {json.dumps(json.dumps(request))}")
        page.run("document.querySelector('#send').click()")
        answer = json.loads(page.wait("document.querySelector('#answer').textContent"))
        assert answer == {"action": [2.5], "policy": "policy", "step": 0}
        page.wait("document.querySelector('#latency').textContent.startsWith('p50 ')")
        page.run("document.querySelector('#latency').textContent = ''")
        page.run("document.querySelector('#repeat').click()")
        page.wait("document.querySelector('#latency').textContent.startsWith('p50 ')")
        assert served.app.metrics.requests["/v1/act", 200] == 101
        page.run("document.querySelector('#request').value = '{\"obs\": [1]}'")
        page.run("document.querySelector('#send').click()")
        page.wait("document.querySelector('#answer').className == 'bad'")
        assert "3 numbers" in page.run("document.querySelector('#answer').textContent")
