"""The documents say what is so: examples run, flags and names exist, metrics are explained, numbers are measured."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rltrain
from rltrain import cli
from rltrain.algorithms import for_several, names, settings_class

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"--logdir", "--resources", "--scheduler-file"}  # flags of other people's commands
COMMANDS = {"rltrain": "main", "rleval": "main_eval"}
SMALL = ["--steps=300", "--streams=2", "--unroll=16", "--eval-episodes=2", "--workers=0", "--quiet", "--json"]

page = pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Each line of the sh blocks, as words; scripts/train is rltrain."""
    lines = [shlex.split(line) for block in blocks(text, "sh") for line in block.splitlines()]
    return [["rltrain", *words[1:]] if words[0] == "scripts/train" else words for words in lines]


def help_of(command: str, *words: str) -> str:
    code = f"import sys, rltrain.cli; rltrain.cli.{COMMANDS[command]}(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """What each command takes."""
    trains = {algo: help_of("rltrain", "--algo", algo) for algo in names()}
    texts = {"rltrain": "".join(trains.values()), "rleval": help_of("rleval")}
    own = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    texts["ours"] = "".join(file.read_text() for file in own)
    return {command: set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) for command, text in texts.items()}


@page
def test_every_flag_exists(file: Path, flags: dict[str, set[str]]) -> None:
    prose = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S)
    named = {flag for code in re.findall(r"`([^`\n]+)`", prose) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}

    assert named <= set.union(*flags.values()) | OTHERS

    for words in commands(file.read_text()):
        if words[0] in COMMANDS:
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= flags[words[0]], words


@page
def test_every_command_is_there(file: Path) -> None:
    for words in commands(file.read_text()):
        assert words[0] in (*COMMANDS, "pip", "tensorboard", "torchrun") or os.access(ROOT / words[0], os.X_OK), words


@page
def test_every_training_command_is_accepted(file: Path) -> None:
    """Their values too. What `--resume` takes is a run, and there is none here."""
    for words in commands(file.read_text()):
        if words[0] == "rltrain" and not {"--resume", "--help"} & set(words):
            config, _ = cli.parse(words[1:])
            assert config.algo in names()


@page
def test_every_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target


@page
def test_every_file_that_is_named_exists(file: Path) -> None:
    pattern = r"`((?:rl|rollout|algorithms|envs|docs|tests)/[\w/-]+\.\w+|scripts/\w+(?:\.py)?)[ `]"
    for name in re.findall(pattern, file.read_text()):
        assert (ROOT / name).exists(), name


@page
def test_every_example_runs(file: Path, tmp_path: Path) -> None:
    """In the order of the page, in one folder and process: Python with few steps, then the commands on its files."""
    text = file.read_text()
    found = blocks(text, "python")
    if not found:
        pytest.skip("no Python on this page")
    names = []
    for number, block in enumerate(found):
        head = re.match(r"# ([\w.]+\.py)\n", block)
        names.append(head[1] if head else f"example{number}.py")
        assert "steps=" in block or "rltrain.train" not in block
        small = re.sub(r"steps=[\d_]+", "steps=300, streams=2, unroll=16, eval_episodes=2, quiet=True", block)
        (tmp_path / names[-1]).write_text(re.sub(r"workers=\d+", "workers=0", small))
    runs = [[*words[1:], *SMALL] for words in commands(text) if words[0] == "rltrain" and ".py:" in " ".join(words)]
    driver = (
        "import json, runpy, sys, rltrain, rltrain.cli\n"
        "names, runs = json.loads(sys.argv[1])\n"
        "sys.path.insert(0, '')\n"
        "for name in names: runpy.run_path(name, run_name='__main__')\n"
        "sys.path.remove('')\n"
        "for run in runs: assert rltrain.cli.main(run) == 0, run\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", driver, json.dumps([names, runs])], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for run in sorted((tmp_path / "runs").glob("*corridor.py*")):  # a torso of the user's is found again
        code = "import sys, rltrain.cli; sys.path.remove(''); "
        code += f"sys.exit(rltrain.cli.main_eval(['{run}', '--episodes', '2']))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


def test_the_api_page_lists_what_there_is() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^\| `rltrain\.(\w+)", text, re.M)

    assert sorted(listed) == sorted(rltrain.__all__)
    for module, items in re.findall(r"^\| `rltrain\.(networks|losses|returns)` \| (.*) \|$", text, re.M):
        for name in re.findall(r"`(\w+)`", items):
            assert name in ("discount", "trace") or hasattr(getattr(rltrain, module), name), name


def test_signatures_on_the_api_page_name_real_arguments() -> None:
    import inspect

    text = (ROOT / "docs" / "api.md").read_text()
    for name, arguments in re.findall(r"^\| `rltrain\.(\w+)\(([^`]*)\)`", text, re.M):
        found = inspect.signature(getattr(rltrain, name)).parameters
        named = [part.partition("=")[0].strip(" *") for part in arguments.split(",")]
        assert {word for word in named if word not in ("", "...")} <= {*found, "settings"}, name


ONLY = {"warmup": 580, "max_lag": 50}  # for those algorithms that have them


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that runs of on-policy and off-policy algorithms write."""
    found: set[str] = set()
    worlds = {"td3": "probe:box", "ddpg": "probe:box", "mappo": "tic-tac-toe"}
    for algo in names():
        result = rltrain.train(
            algo=algo,
            env=worlds.get(algo, "two-step" if for_several(algo) else "CartPole-v1"),
            opponents="pool" if algo == "mappo" else "newest",
            preset="none",
            steps=600,
            **{key: value for key, value in ONLY.items() if key in settings_class(algo).model_fields},
            streams=2,
            workers=int(algo in ("a2c", "impala")),
            backend="dask" if algo == "impala" else None,
            inference="central" if algo == "a2c" else "local",
            learners=2 if algo == "td3" else 1,
            unroll=64,
            eval_episodes=2,
            quiet=True,
            out=str(tmp_path_factory.mktemp("runs")),
        )
        lines = (result.run / "metrics.jsonl").read_text().splitlines()
        named = {name for line in lines for name in json.loads(line)} - {"step", "seconds"}
        found |= {name for name in named if "_agents/" not in name}  # whose second half is an agent's
    return found


def documented() -> list[str]:
    return re.findall(r"^\| `(\w+/\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.M)


def test_the_metrics_page_lists_what_is_logged(logged: set[str]) -> None:
    assert len(documented()) == len(set(documented()))
    assert set(documented()) == logged


def test_names_of_metrics_in_the_source_are_on_their_page() -> None:
    """Also of those that only some runs write."""
    text = "".join(file.read_text() for folder in ("rl", "algorithms") for file in (ROOT / folder).rglob("*.py"))
    named = set(re.findall(r"[\"']((?:rollout|eval|time|learner)/[a-z]\w*)[\"']", text))

    assert named <= set(documented())


def script(name: str) -> ModuleType:
    plan: Any = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(plan)
    plan.loader.exec_module(module)
    return module


def test_the_table_of_results_is_made_from_their_files() -> None:
    plot, readme = script("plot"), (ROOT / "README.md").read_text()

    assert plot.put(readme, plot.table(plot.results())) == readme, "run: python scripts/plot.py table"


def test_a_result_says_what_it_was_made_with() -> None:
    for result in script("plot").results():
        assert {"command", "made_by", "commit", "machine", "bar", "seeds", "preset"} <= set(result)
        assert script("reproduce").judge(result["seeds"], result["bar"])["passed"] == result["passed"]


BAR = {"return": 100, "steps": 1_000, "metric": "eval", "random": 0}


def seeds(*returns: float, **more: Any) -> list[dict[str, Any]]:
    return [{"measured": value, "steps": 1_000, "batch": 64, "curve": [], **more} for value in returns]


@pytest.mark.parametrize(
    ("measured", "passed"),
    [
        (seeds(100, 120, 90), True),
        (seeds(100, 120, 10), False),  # one at random level
        (seeds(100, 99, 99), False),  # only one of three
        (seeds(100, 100), False),  # two seeds say too little
        (seeds(100, 100, 100, steps=1_064), True),  # the unroll that crosses the bar's steps
        (seeds(100, 100, 100, steps=1_065), False),  # too many steps
        (seeds(100, 100, 100, steps=1_128, overlap=True), True),  # and the one that was under way beside it
        (seeds(100, 100, 100, steps=1_129, overlap=True), False),
    ],
)
def test_the_rule_of_two_seeds_of_three(measured: list[dict[str, Any]], passed: bool) -> None:
    assert script("reproduce").judge(measured, BAR)["passed"] is passed


@pytest.mark.parametrize(("curve", "passed"), [([50, 90, 80, 85], True), ([90, 90, 79, 90], False), ([90], False)])
def test_the_last_three_evaluations_count_where_the_bar_says_so(curve: list[float], passed: bool) -> None:
    measured = seeds(100, 100, 100, curve=list(enumerate(curve)))

    assert script("reproduce").judge(measured, {**BAR, "last_three": 80})["passed"] is passed


def test_no_bar_no_judgement() -> None:
    assert script("reproduce").judge(seeds(1), None)["passed"] is None


def test_a_second_result_has_a_bar_of_its_own() -> None:
    reproduce = script("reproduce")
    first, second = reproduce.bar_of("dqn", "LunarLander-v3"), reproduce.bar_of("dqn", "LunarLander-v3", "plain")

    assert (first["return"], second["return"]) == (200, 130)
    assert reproduce.bar_of("dqn", "LunarLander-v3", "unheard-of") is None


def test_a_second_result_is_told_apart_in_the_table() -> None:
    plot = script("plot")
    found = plot.results()[0]

    assert f"| {found['algo']}, plain | " in plot.table([{**found, "as": "plain"}])
    assert f"| {found['algo']} | " in plot.table([found])
