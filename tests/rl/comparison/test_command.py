"""rlcompare and rlplot as commands: formats, pictures, one line for each mistake."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rltrain.cli import main_compare, main_plot

Make = Callable[..., Path]


@pytest.fixture
def runs(make_run: Make) -> list[str]:
    for seed in range(3):
        make_run(f"a-{seed}", [1.0, 10.0 + seed], seed=seed)
        make_run(f"b-{seed}", [1.0, 20.0 + seed], seed=seed, algo="dqn")
    return ["A_1=a-*", "B=b-*"]


def test_markdown_is_printed(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_compare(runs) == 0
    out = capsys.readouterr().out

    assert "| A\\_1 | t | 3 | 11.00 [8.52, 13.48] |" in out
    assert "| CartPole-v1 | A\\_1 | B | 0.000 |" in out


def test_csv_has_full_numbers_and_every_run(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_compare([*runs, "--format", "csv", "--paired"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))

    assert [row["value"] for row in rows if row["kind"] == "run"] == ["10.0", "11.0", "12.0", "20.0", "21.0", "22.0"]
    (gap,) = [row for row in rows if row["kind"] == "difference"]
    assert (gap["group"], gap["other"], gap["value"], gap["runs"]) == ("A_1", "B", "-10.0", "3")
    assert any(row["kind"] == "note" for row in rows)


def test_latex_has_no_bare_special_characters(runs: list[str], tmp_path: Path) -> None:
    assert main_compare([*runs, "--out", "table.tex"]) == 0
    text = (tmp_path / "table.tex").read_text()

    assert r"A\_1 & t & 3 & 11.00 {[}8.52, 13.48{]}" in text
    assert "intervals of fewer than 10 runs" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_html_is_one_file_with_pictures(runs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main_compare([*runs, "--out", "page.html"]) == 0
    text = (tmp_path / "page.html").read_text()

    assert text.count("<svg") == 3
    for outside in ('src="', "<link", "<script", "@import", 'href="http'):
        assert outside not in text
    assert main_compare([*runs, "--out", "again.html"]) == 0
    assert (tmp_path / "again.html").read_text() == text


@pytest.mark.parametrize("kind", ["curves", "scores", "profile"])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(runs: list[str], tmp_path: Path, kind: str, ending: str) -> None:
    pytest.importorskip("matplotlib")
    assert main_plot([*runs, "--kind", kind, "--out", f"x.{ending}"]) == 0

    assert (tmp_path / f"x.{ending}").read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_axes_have_units(runs: list[str]) -> None:
    pytest.importorskip("matplotlib")
    from rltrain.comparison import pictures
    from rltrain.comparison.runs import find_groups

    for axis, label in (("steps", "environment steps"), ("time", "training time (s)")):
        (panel,) = pictures.curves(find_groups(runs), "eval/return_mean", axis).axes
        assert panel.get_xlabel() == label
        assert panel.get_ylabel() == "return of an evaluation\n(environment's reward)"
        lines = [line for line in panel.get_lines() if not line.get_label().startswith("_")]
        assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 2  # without colour too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUNS is needed"),
        (["nothing-*"], "nothing-* does not exist"),
        (["a-0", "--score", "best"], "--score: invalid choice: 'best'"),
        (["a-0", "--range", "x"], "--range: must be TASK=LOW:HIGH"),
        (["a-0", "--out", "x.docx"], "--out x.docx: its ending names no format"),
        (["a-0", "--sed", "1"], "unknown flag --sed; did you mean --seed?"),
        (["a-0", "--seed", "-1"], "--seed: must be a whole number from 0 on"),
    ],
)
def test_a_mistake_is_one_line(
    runs: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_compare(arguments) == 2
    err = capsys.readouterr().err
    assert f"rlcompare: {message}" in err
    assert len(err.splitlines()) == 1


def test_without_matplotlib_there_is_one_line(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert main_plot(runs) == 2
    assert capsys.readouterr().err == "rlplot: pictures need matplotlib: pip install 'rltrain[plot]'\n"
    assert main_compare([*runs, "--format", "html"]) == 2
    assert main_compare(runs) == 0


def test_an_unknown_metric_is_one_line(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main_plot([runs[0], "--metric", "eval/nothing"]) == 2
    assert "has no eval/nothing" in capsys.readouterr().err
