"""A comparison as text: Markdown, HTML, LaTeX for people, CSV for programs."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rltrain.comparison.compare import ALL, Comparison
from rltrain.comparison.runs import SCORES
from rltrain.comparison.statistics import STATISTICS, Estimate

FORMATS = ("md", "html", "csv", "latex")


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1  # the first columns, which are text; the others are numbers


@dataclass(frozen=True)
class Page:
    """What a person reads, before it has a format."""

    title: str
    lines: Sequence[str]
    tables: Sequence[Table]
    notes: Sequence[str]
    pictures: Sequence[str] = field(default_factory=list)  # SVG


def write(comparison: Comparison, form: str, pictures: Sequence[str] = ()) -> str:
    """The comparison in one of FORMATS. Pictures, in SVG, are for HTML only."""
    if form == "csv":
        return _csv(comparison)
    page = _page(comparison, pictures)
    return {"md": _markdown, "html": _html, "latex": _latex}[form](page)


def _page(comparison: Comparison, pictures: Sequence[str]) -> Page:
    episodes = ", ".join(map(str, comparison.episodes))
    of = f" ({episodes} episodes)" if comparison.score != "final-training" and episodes else ""
    tables = [_task_table(comparison, task) for task in comparison.tasks]
    if comparison.pairs:
        tables.append(_pair_table(comparison))
    if any(pair.difference for pair in comparison.pairs):
        tables.append(_seed_table(comparison))
    lines = [f"Score: {comparison.score}, the {SCORES[comparison.score]}{of}. Intervals are of 95%, over runs."]
    return Page("Comparison of runs", lines, tables, comparison.notes, pictures)


def _task_table(comparison: Comparison, task: str) -> Table:
    rows = []
    for row in comparison.of(task):
        scores = [score for scores in row.scores for score in scores.tolist()]
        cells = [interval(row.estimates[name]) for name in STATISTICS]
        method = next(iter(row.estimates.values())).method
        seconds = "" if task == ALL else number(row.seconds)
        rows.append([row.group, method, row.runs, *cells, number(min(scores)), number(max(scores)), seconds])
    if task == ALL:
        title = f"{ALL}: scores from 0 to 1 by the given ranges"
        rows = [row[:-1] for row in rows]
    else:
        title = f"{task}: returns after {' or '.join(f'{steps:,}' for steps in comparison.lengths[task])} steps"
    columns = ["group", "interval", "runs", *STATISTICS, "lowest", "highest", "seconds (median)"]
    return Table(title, columns[: len(rows[0])], rows, words=2)


def _pair_table(comparison: Comparison) -> Table:
    rows = [[pair.task, pair.group, pair.other, interval(pair.wins)] for pair in comparison.pairs]
    title = "Probability that a run of the first group has a higher score than one of the second (ties 1/2)"
    return Table(title, ["task", "first", "second", "probability"], rows, words=3)


def _seed_table(comparison: Comparison) -> Table:
    rows = [
        [pair.task, pair.group, pair.other, str(pair.seeds), interval(pair.difference), pair.difference.method]
        for pair in comparison.pairs
        if pair.difference is not None
    ]
    columns = ["task", "first", "second", "pairs", "mean of first - second", "interval"]
    return Table("Differences between runs with the same seed", columns, rows, words=3)


def interval(estimate: Estimate) -> str:
    """A value with its interval, as a cell of a table."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def number(value: float) -> str:
    """A number with as many digits as a reader needs."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    digits = 1 if size >= 100 else 2 if size >= 1 else 3
    if 0 < size < 0.01:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"


def _markdown(page: Page) -> str:
    parts = [f"# {page.title}", *page.lines]
    for table in page.tables:
        marks = [" --- " if place < table.words else " ---: " for place in range(len(table.columns))]
        rows = [f"| {' | '.join(map(_in_markdown, row))} |" for row in table.rows]
        head = f"| {' | '.join(table.columns)} |"
        parts += [f"## {_in_markdown(table.title)}", "\n".join([head, f"|{'|'.join(marks)}|", *rows])]
    if page.notes:
        parts += ["## Notes", "\n".join(f"- {_in_markdown(note)}" for note in page.notes)]
    return "\n\n".join(parts) + "\n"


def _in_markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "|*_<`" else char for char in text)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #111; }
.word { text-align: left; }
.wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""


def _html(page: Page) -> str:
    """One file without anything from elsewhere."""
    body = [f"<h1>{html.escape(page.title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in page.lines)]
    for table in page.tables:
        kinds = ['class="word"' if place < table.words else "" for place in range(len(table.columns))]

        def line(tag: str, cells: Sequence[str], kinds: Sequence[str] = kinds) -> str:
            inner = "".join(
                f"<{tag} {kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
            )
            return f"<tr>{inner}</tr>".replace(" >", ">")

        rows = "\n".join(line("td", row) for row in table.rows)
        body.append(f"<h2>{html.escape(table.title)}</h2>")
        body.append(f'<div class="wide"><table>\n{line("th", table.columns)}\n{rows}\n</table></div>')
    body += [f"<figure>{picture}</figure>" for picture in page.pictures]
    if page.notes:
        body.append(
            "<h2>Notes</h2>\n<ul>" + "\n".join(f"<li>{html.escape(note)}</li>" for note in page.notes) + "</ul>"
        )
    head = f'<meta charset="utf-8">\n<title>{html.escape(page.title)}</title>\n<style>{STYLE}</style>'
    content = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


def _latex(page: Page) -> str:
    """Tables for the package booktabs, with notes as text below them."""
    parts = ["% needs \\usepackage{booktabs}", *(f"% {_one_line(line)}" for line in page.lines)]
    for table in page.tables:
        kinds = "l" * table.words + "r" * (len(table.columns) - table.words)
        rows = [" & ".join(map(_in_latex, row)) + r" \\" for row in table.rows]
        head = " & ".join(map(_in_latex, table.columns)) + r" \\"
        inner = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{_in_latex(table.title)}}}\n"
            f"\\begin{{tabular}}{{{kinds}}}\n{inner}\n\\end{{tabular}}\n\\end{{table}}"
        )
    if page.notes:
        items = "\n".join(f"\\item {_in_latex(note)}" for note in page.notes)
        parts.append(f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
    return "\n\n".join(parts) + "\n"


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
LATEX |= {"-": "-", "[": "{[}", "]": "{]}"} | {char: f"\\{char}" for char in "&%$#_{}"}


def _in_latex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


CSV = ("kind", "task", "group", "other", "name", "value", "low", "high", "interval", "runs")


def _csv(comparison: Comparison) -> str:
    """One table of statistics, probabilities, differences, scores of single runs and notes, told apart by `kind`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV)

    def add(kind: str, task: str, group: str, other: str, name: str, estimate: Estimate, runs: str) -> None:
        bounds = ["" if bound is None else repr(bound) for bound in (estimate.low, estimate.high)]
        writer.writerow([kind, task, group, other, name, repr(estimate.value), *bounds, estimate.method, runs])

    for row in comparison.rows:
        for name, estimate in row.estimates.items():
            add("statistic", row.task, row.group, "", name, estimate, row.runs)
    for pair in comparison.pairs:
        add("probability", pair.task, pair.group, pair.other, "probability of improvement", pair.wins, "")
        if pair.difference is not None:
            add("difference", pair.task, pair.group, pair.other, "mean", pair.difference, str(pair.seeds))
    for group in comparison.groups:
        for run in group.runs:
            score = run.score(comparison.score)
            assert score is not None  # runs without a score were left out
            add("run", run.task, group.name, "", run.name, Estimate(score), "1")
    for note in comparison.notes:
        writer.writerow(["note", "", "", "", note, *[""] * 5])
    return file.getvalue()
