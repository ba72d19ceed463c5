"""Makes the pictures of the terminal and of TensorBoard that the documentation shows.

    scripts/pictures                       docs/terminal.png and docs/tensorboard.png
    scripts/pictures --columns 40 --out F  the terminal at another width, as F/terminal-40.png and as text
    scripts/pictures --plain --out F       what a run prints without colour, in a pipe and on a dumb terminal, as text

A run is started in a pseudo-terminal, a terminal emulator reads what it prints, and a headless Chromium draws it. So
the pictures show what a person sees. Chromium is a package of the system.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import html
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyte
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RUN = ["--algo", "ppo", "--env", "CartPole-v1", "--workers", "2", "--steps", "20_000", "--name", "first"]
SHOWN = 0.6  # the share of the run at which its progress is drawn
STYLE = """body { margin: 0; background: #1e1e2e; color: #cdd6f4; font: 15px/20px 'DejaVu Sans Mono', monospace }
pre { margin: 0; padding: 16px; font: inherit }"""


class Terminal:
    """A program in a pseudo-terminal.

    Args:
        variables: of the environment, in addition to those of this process.
    """

    def __init__(self, command: list[str], columns: int, folder: Path, variables: dict[str, str]) -> None:
        self.columns, self.screen = columns, pyte.Screen(columns, 200)
        self._stream = pyte.ByteStream(self.screen)
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, {**os.environ, **variables})
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))

    def read(self) -> bool:
        """Shows what the program has printed since; False after its end."""
        try:
            data = os.read(self._master, 65536)
        except OSError:
            data = b""
        if not data:
            os.waitpid(self._pid, 0)
            return False
        self._stream.feed(data)
        return True

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).strip("\n")

    def page(self) -> str:
        """The screen as HTML, with its colours."""
        lines = []
        for row in range(len(self.text().splitlines())):
            parts = []
            for column in range(self.columns):
                char = self.screen.buffer[row][column]
                colour = "" if char.fg == "default" else f"color: {_colour(char.fg)};"
                weight = "font-weight: bold;" if char.bold else ""
                parts.append(f'<span style="{colour}{weight}">{html.escape(char.data)}</span>')
            lines.append("".join(parts).rstrip())
        return f"<meta charset=utf-8><style>{STYLE}</style><pre>" + "\n".join(lines) + "</pre>"


def _colour(name: str) -> str:
    return f"#{name}" if len(name) == 6 and not name.isalpha() else {"brown": "#f9e2af"}.get(name, name)


def draw(url: str, file: Path, width: int, height: int, script: str = "", wait: float = 0.0) -> None:
    """A picture of a page, after a script on it and some seconds in which it may draw."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        raise SystemExit("pictures: there is no Chromium; install the system's package chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-port=0", url]
        process = subprocess.Popen([browser, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address_of_page(Path(profile), url), max_size=None) as page:
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                _call(page, "Emulation.setDeviceMetricsOverride", **size)
                time.sleep(wait / 2)
                _call(page, "Runtime.evaluate", expression=script)
                time.sleep(wait / 2)
                file.write_bytes(base64.b64decode(_call(page, "Page.captureScreenshot")["data"]))
        finally:
            process.terminate()
            process.wait()


def _address_of_page(profile: Path, url: str) -> str:
    """The debugging address of the page that a browser shows, once it has loaded it."""
    for _ in range(600):
        with contextlib.suppress(OSError, IndexError):
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                for page in json.load(answer):
                    if page["url"] == url:
                        return str(page["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise SystemExit(f"pictures: the browser did not show {url} within a minute")


def _call(page: ClientConnection, method: str, **params: object) -> dict[str, Any]:
    page.send(json.dumps({"id": 1, "method": method, "params": params}))
    while True:
        message = json.loads(page.recv(timeout=60))
        if message.get("id") == 1:
            result: dict[str, Any] = message["result"]
            return result


def terminal(folder: Path, columns: int, variables: dict[str, str] | None = None) -> tuple[Terminal, str, str]:
    """A run in a terminal: the terminal after its end, and its text and page in the middle of the run."""
    variables = {"TERM": "xterm-256color", **(variables or {})}
    shown = Terminal([str(BIN / "rltrain"), *RUN], columns, folder, variables)
    text = page = ""
    while shown.read():
        if not page and (share := _share(shown.text())) is not None and share >= SHOWN:
            text, page = shown.text(), shown.page()
    return shown, text, page


def _share(text: str) -> float | None:
    """The share of its steps that a run has made, as it says."""
    for word in reversed(text.split()):
        if word.endswith("%"):
            with contextlib.suppress(ValueError):
                return float(word[:-1]) / 100
    return None


def picture_of(page: str, file: Path, columns: int, folder: Path) -> None:
    (folder / "page.html").write_text(page)
    draw((folder / "page.html").as_uri(), file, 32 + round(9.05 * columns), 32 + 20 * (page.count("\n") + 1))


def tensorboard(folder: Path, file: Path) -> None:
    """TensorBoard with the run in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "tensorboard"), "--logdir", str(folder / "runs"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs") as answer:
                if b"first" in answer.read():
                    break
            time.sleep(0.1)
        tags = "(eval%7Crollout)%2F(return%7Clength)_mean"
        where = f"http://127.0.0.1:{port}/?darkMode=false&tagFilter={tags}&smoothing=0#timeseries"
        close = "[...document.querySelectorAll('button')].find(one => one.innerText.includes('Settings')).click()"
        draw(where, file, 1280, 1030, close, wait=30.0)
    finally:
        server.terminate()
        server.wait()


def plain(folder: Path) -> str:
    """What a run prints without colour, in a pipe, and on a dumb terminal."""
    found = []
    for name, variables in (("NO_COLOR=1", {"NO_COLOR": "1"}), ("TERM=dumb", {"TERM": "dumb"})):
        shown, _, _ = terminal(folder / name, 80, variables)
        found.append(f"{name}, 80 columns\n\n{shown.text()}")
    done = subprocess.run([str(BIN / "rltrain"), *RUN], cwd=folder / "pipe", capture_output=True, text=True, check=True)
    found.append(f"in a pipe\n\n{done.stdout}{done.stderr}")
    return "\n\n".join(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, help="of the terminal, in place of the pictures of the documentation")
    parser.add_argument("--plain", action="store_true", help="text without colour, in a pipe, on a dumb terminal")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.plain:
            for part in ("NO_COLOR=1", "TERM=dumb", "pipe"):
                (folder / part).mkdir()
            (given.out / "plain.txt").write_text(plain(folder))
            return 0
        columns = given.columns or 100
        shown, text, page = terminal(folder, columns)
        stem = f"terminal-{columns}" if given.columns else "terminal"
        picture_of(page if given.columns else shown.page(), given.out / f"{stem}.png", columns, folder)
        if given.columns:
            (given.out / f"{stem}.txt").write_text(f"{text}\n\nat the end\n\n{shown.text()}\n")
        else:
            tensorboard(folder, given.out / "tensorboard.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
