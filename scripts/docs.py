"""Builds the documentation site: build/docs from README.md, CHANGELOG.md, docs/ and the help of the commands, then
build/site.

Run it as scripts/docs. The build is strict: a link or an anchor that leads nowhere, or a page outside the navigation of
zensical.toml, is an error. The site needs no server and loads nothing from another machine: open build/site/index.html.
"""

from __future__ import annotations

import contextlib
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"


def commands() -> dict[str, str]:
    """The commands of the package, and the function that each calls, as "module:function"."""
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts


def help_of(command: str, *words: str) -> str:
    """What `command words --help` prints, for a terminal of 100 columns."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        pkgutil.resolve_name(commands()[command])([*words, "--help"])
    return text.getvalue().strip()


def commands_page() -> str:
    """A page with the help of every command, and of `rltrain` with every algorithm's own settings."""
    from rltrain.algorithms import names

    text = ["# All commands and flags", "", "Each section is what the command prints with `--help`."]
    for command in commands():
        text += ["", f"## {command}", "", "```text", help_of(command), "```"]
        if command == "rltrain":
            general = set(help_of(command).splitlines())
            for algo in names():
                own = help_of(command, "--algo", algo).splitlines()
                own = [line for line in own if line not in general]
                text += ["", f"### rltrain --algo {algo}", "", "```text", *own, "```"]
    return "\n".join(text) + "\n"


def beside_docs(text: str) -> str:
    """README.md or CHANGELOG.md as a page of the site, in which the files of docs/ lie beside it."""
    return re.sub(r"(\]\(|\bsrc=\")docs/", r"\1", re.sub(r"\[docs/([\w.-]+)\.md\]", r"[\1]", text))


def write_source() -> None:
    """Write the pages of the site to build/docs."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE)
    (SOURCE / "index.md").write_text(beside_docs((ROOT / "README.md").read_text()))
    (SOURCE / "CHANGELOG.md").write_text(beside_docs((ROOT / "CHANGELOG.md").read_text()))
    (SOURCE / "commands.md").write_text(commands_page())


def pages_of(nav: Any) -> set[str]:
    """The pages of a navigation, as named in zensical.toml."""
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(pages_of, nav.values() if isinstance(nav, dict) else nav))


def main() -> int:
    write_source()
    nav = pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    written = {str(page.relative_to(SOURCE)) for page in SOURCE.rglob("*.md")}
    if nav != written:
        print(f"docs: the navigation of zensical.toml and the pages differ: {', '.join(sorted(nav ^ written))}")
        return 1
    shutil.rmtree(SITE, ignore_errors=True)
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
