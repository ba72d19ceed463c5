"""What a person sees: a live line on a terminal, few plain lines elsewhere, nothing on stdout that JSON needs."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.console

from rltrain.config.load import load
from rltrain.reporting import console as console_module
from rltrain.reporting.console import Console, ProgressBar, duration, progress_line, resume_command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def now(steps: int, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "total": 1000, **more}


def test_a_line_tells_what_is_known() -> None:
    everything = now(250, steps_per_second=12345.6, seconds_left=65, train_return=1.25, eval_return=-3.0, restarts=2)

    line = progress_line(everything)

    assert line == " 25%  250 / 1,000 steps  return 1.2  eval -3.0  12,346 steps/s  1:05 left  restarts 2"
    assert progress_line(now(0)) == "  0%  0 / 1,000 steps"


@pytest.mark.parametrize("width", [12, 40, 80, 200])
def test_the_bar_fits_and_hides_no_value(width: int) -> None:
    """In a narrow window it takes several lines."""
    values = now(
        45_056, total=100_000, steps_per_second=12_345.6, seconds_left=4.4, train_return=123.4, eval_return=200
    )
    out = io.StringIO()
    terminal = rich.console.Console(file=out, width=width, height=24, force_terminal=True, color_system=None)

    terminal.print(ProgressBar(values))

    lines = out.getvalue().splitlines()
    assert all(len(line) < width for line in lines) or width == 12
    assert ("━" in lines[0]) is (width > 12)
    words = " ".join(" ".join(lines).replace("━", "").replace("╸", "").split())
    whole = "45% 45,056 / 100,000 steps return 123.4 eval 200.0 12,346 steps/s 4 s left"
    assert words == whole or (width == 12 and words.startswith("45%"))
    assert len(lines) == {12: 6, 40: 3, 80: 2, 200: 1}[width]


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("TERM", "unknown"), ("NO_COLOR", "1")])
def test_a_terminal_that_is_to_stay_plain_gets_plain_lines(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    out = Terminal()
    console = Console(stream=out)
    console.update(now(100))
    console.update(now(200))
    console.finish("done")

    assert out.getvalue() == " 10%  100 / 1,000 steps\n 20%  200 / 1,000 steps\ndone\n"


def test_the_command_that_continues_a_run_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert resume_command(tmp_path / "runs" / "my run") == "rltrain --resume 'runs/my run'"
    assert resume_command(Path("/elsewhere/x")) == "rltrain --resume /elsewhere/x"


def test_durations_are_for_people() -> None:
    assert [duration(x) for x in (0.4, 42, 125, 7384)] == ["0 s", "42 s", "2:05", "2:03:04"]


def test_plain_lines_come_every_tenth_of_the_run_or_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    console = Console(stream=out)
    for steps in range(0, 1001, 10):
        console.update(now(steps))
    assert len(out.getvalue().splitlines()) == 11

    for second in range(1, 11):
        clock[0] = float(second)
        console.update(now(1000))
    assert len(out.getvalue().splitlines()) == 13


def test_a_terminal_shows_one_live_line_and_keeps_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "REFRESH", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    console = Console(stream=out)
    console.update(now(100))
    console.note("actor 3 [died]")
    console.update(now(200))
    console.finish("done")

    text = out.getvalue()
    assert "actor 3 [died]\n" in text
    assert text.endswith("done\n")
    assert "\x1b[" in text
    assert "200 / 1,000 steps" in text


def test_quiet_prints_nothing() -> None:
    out = Terminal()
    console = Console(quiet=True, stream=out)
    console.start(load({"algo": "ppo", "env": "X-v0"}))
    console.update(now(500))
    console.note("something")
    console.finish("done")

    assert out.getvalue() == ""


def test_with_json_stdout_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.start(load({"algo": "ppo", "env": "X-v0"}))
    console.update(now(500))
    console.finish("done")

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "500 / 1,000 steps" in printed.err


def test_the_start_names_run_and_preset() -> None:
    out = io.StringIO()
    config = load({"algo": "ppo", "env": "X-v0", "steps": 5000, "workers": 2, "seed": 7})
    Console(stream=out).start(config, "configs/ppo/X-v0.toml", ["resumes exactly"], Path("runs/x"))

    assert out.getvalue().splitlines() == [
        "folder runs/x",
        "ppo on X-v0: 5,000 steps, 8 streams, 2 actors, processes, seed 7, device cpu",
        "settings from configs/ppo/X-v0.toml; --preset none ignores it",
        "resumes exactly",
    ]


def test_a_reader_who_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    """As under `rltrain ... | head -1`: training goes on, the command ends with status 0 and without noise."""
    flags = "--algo ppo --env probe:counter --workers 0 --streams 4 --unroll 16 --widths 8 --eval-every 0".split()
    text = "import sys; from rltrain.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", text, *flags, "--steps", "2000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        said = command.stderr.read()

    assert (command.returncode, said) == (0, "")
    (run,) = tmp_path.iterdir()
    assert (run / "checkpoints" / "latest").read_text() >= "step-000000002000"
