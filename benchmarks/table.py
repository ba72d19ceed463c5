"""Renders benchmarks/results/*.json as Markdown; with --write, into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from paired import RESULTS, ROOT, table

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: scripts/bench table --write -->", "<!-- end of results -->"
ORDER = """throughput throughput_overlap native acting start solve solve_native replay dqn_updates dqn_solve updates
    teams cycle asynchronous overlap slow solve_async pixels defaults versions""".split()


def section(data: dict[str, Any]) -> str:
    """One benchmark: machine, versions, numbers and commands."""
    machine = data["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(data["versions"].items()))
    commands = "\n".join(f"{name}:\n    {command}" for name, command in data["commands"].items())
    return "\n".join(
        [
            f"### {data['name']}",
            "",
            f"{data['date']}, commit {data['commit']}; {machine['cpu']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB. Medians, with the lowest and the highest run.",
            "",
            table(data),
            "",
            f"<details><summary>Commands and versions</summary>\n\n```\n{commands}\n```\n\n{versions}\n\n</details>",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the results in docs/benchmarks.md")
    options = parser.parse_args()
    found = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    # The results of hostile_environments have no machine: their table is in docs/environments.md.
    found = {name: data for name, data in found.items() if "machine" in data}
    names = sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    text = "\n".join(section(found[name]) for name in names) or "No results yet.\n"
    if not options.write:
        print(text)
        return
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"table: {PAGE.name} lacks the lines {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
