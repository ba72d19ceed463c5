"""The documents say what is so: examples run, flags and names exist, metrics are explained, numbers are measured."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rltrain
from rltrain import algorithms, cli
from rltrain.algorithms import for_several, names, settings_class

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
ALGORITHM_PAGES = sorted((ROOT / "docs" / "algorithms").glob("*.md"))
SETTINGS_OF = {"rainbow": "dqn", "droq": "sac", "redq": "sac"}  # algorithms that share the page of another
OTHERS = {"--env-id", "--logdir", "--num-envs", "--resources", "--save-model", "--scheduler-file"}  # of other programs
COMMANDS = {
    "rltrain": "main",
    "rleval": "main_eval",
    "rlcompare": "main_compare",
    "rlplot": "main_plot",
    "rldata": "main_data",
    "rlope": "main_ope",
    "rldoctor": "main_doctor",
    "rlsend": "main_send",
    "rljobs": "main_jobs",
    "rlexport": "main_export",
    "rlserve": "main_serve",
    "rltune": "main_tune",
}

page = pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Each line of the sh blocks, as words; scripts/train is rltrain."""
    lines = [shlex.split(line) for block in blocks(text, "sh") for line in block.splitlines()]
    return [["rltrain", *words[1:]] if words[0] == "scripts/train" else words for words in lines]


def help_of(command: str, *words: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            status = getattr(cli, COMMANDS[command])([*words, "--help"])
        except SystemExit as end:
            status = end.code
    assert not status, (command, words)
    return text.getvalue()


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """What each command takes."""
    trains = {algo: help_of("rltrain", "--algo", algo) for algo in names()}
    texts = {"rltrain": "".join(trains.values())} | {name: help_of(name) for name in COMMANDS if name != "rltrain"}
    texts["rltune"] += texts["rltrain"]  # it takes both
    own = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    texts["ours"] = "".join(file.read_text() for file in own)
    return {command: set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) for command, text in texts.items()}


def prose(file: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S)


@page
def test_every_flag_exists(file: Path, flags: dict[str, set[str]]) -> None:
    named = {
        flag for code in re.findall(r"`([^`\n]+)`", prose(file)) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)
    }

    assert named <= set.union(*flags.values()) | OTHERS

    for words in commands(file.read_text()):
        if words[0] in COMMANDS:
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= flags[words[0]], words


def test_the_site_has_a_page_with_every_flag_of_every_command(flags: dict[str, set[str]]) -> None:
    docs = script("docs")
    text = docs.commands_page()

    assert set(docs.commands()) == set(COMMANDS)
    for command in COMMANDS:
        _, _, section = text.partition(f"\n## {command}\n")
        section = section.partition("\n## ")[0]
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", section))
        assert flags[command] - (flags["rltrain"] if command == "rltune" else set()) <= named, command


@page
def test_every_command_is_there(file: Path) -> None:
    for words in commands(file.read_text()):
        assert words[0] in (*COMMANDS, "pip", "tensorboard", "torchrun", "curl", "python") or os.access(
            ROOT / words[0], os.X_OK
        ), words


@page
def test_every_training_command_is_accepted(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their values too, in a folder with the files of the page. What `--resume` takes is a run: there is none here."""
    monkeypatch.chdir(folder_of(file, tmp_path))
    for words in commands(file.read_text()):
        if words[0] == "rltrain" and not {"--resume", "--help"} & set(words):
            config, _ = cli.parse(words[1:])
            assert config.algo in names()


@page
def test_every_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", prose(file)):
        assert (file.parent / target).exists(), target


@page
def test_every_file_that_is_named_exists(file: Path) -> None:
    pattern = r"`((?:rl|rollout|algorithms|envs|docs|tests)/[\w/-]+\.\w+|scripts/\w+(?:\.py)?)[ `]"
    for name in re.findall(pattern, file.read_text()):
        assert (ROOT / name).exists(), name


def examples(page: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the name of its file: that of its first line, or a number."""
    heads = [(re.match(r"# ([\w.]+\.py)\n", block), block) for block in blocks(page.read_text(), "python")]
    return [(head[1] if head else f"example{number}.py", block) for number, (head, block) in enumerate(heads)]


def runnable(page: Path) -> list[str]:
    """What a reader of a page can run: its Python files that do something, and the commands on them."""
    scripts = [f"python {name}" for name, block in examples(page) if "rltrain.train(" in block]
    lines = [line for block in blocks(page.read_text(), "sh") for line in block.splitlines()]
    return scripts + [line for line in lines if line.startswith("rltrain ") and ".py:" in line and "/" not in line]


def folder_of(page: Path, tmp_path: Path) -> Path:
    """A folder with the Python files of a page, exactly as printed."""
    for name, block in examples(page):
        (tmp_path / name).write_text(block)
    return tmp_path


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


EXAMPLES = [(page, line) for page in PAGES if page not in TUTORIALS for line in runnable(page)]
QUICK = {"README.md: python example0.py"}
QUICK_TUTORIALS = {"first-run"}
QUICK |= {f"{page.name}: {line}" for page, line in EXAMPLES if "--callback watch.py:" in line}


def example(page: Path, line: str) -> Any:
    name = f"{page.name}: {line}"
    return pytest.param(page, line, id=name, marks=() if name in QUICK else pytest.mark.sweep)


@pytest.mark.parametrize(("page", "line"), [example(page, line) for page, line in EXAMPLES])
def test_every_example_runs_exactly_as_printed(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with the files of its page. A run of a command is then evaluated: what it names is found again."""
    command, *words = shlex.split(line)
    if command == "python":
        run(folder_of(page, tmp_path), sys.executable, *words)
    else:
        monkeypatch.chdir(folder_of(page, tmp_path))
        assert cli.main(words) == 0
        (made,) = (tmp_path / "runs").iterdir()
        assert cli.main_eval([str(made), "--episodes", "2"]) == 0


def expected(text: str) -> re.Pattern[str]:
    """What a block of output matches: its lines, with anything in place of `...`."""
    return re.compile(".*".join(map(re.escape, text.strip().split("..."))), re.S)


def tutorial(file: Path) -> Any:
    return pytest.param(file, id=file.stem, marks=() if file.stem in QUICK_TUTORIALS else pytest.mark.sweep)


@pytest.mark.parametrize("file", [tutorial(file) for file in TUTORIALS])
def test_every_tutorial_runs_from_top_to_bottom(file: Path, tmp_path: Path) -> None:
    """In a new folder, exactly as printed. A block of output stands after the commands that print it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for language, text in re.findall(r"^```(sh|python|text)\n(.*?)^```", file.read_text(), re.M | re.S):
        if language == "python":
            (tmp_path / text.split()[1]).write_text(text)
        elif language == "text":
            assert expected(text).fullmatch(printed.strip()), (text, printed)
        else:
            printed = ""
            for line in text.splitlines():
                if not line.startswith("pip "):
                    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True,
                                          env={**os.environ, "PATH": path, "NO_COLOR": "1"})  # fmt: skip
                    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-3000:])
                    printed += done.stdout


def test_examples_run_in_a_notebook_too(tmp_path: Path) -> None:
    """A cell of a notebook is run by `exec` in `__main__`: its classes are in no file that a worker could import."""
    folder = folder_of(ROOT / "docs" / "adding.md", tmp_path)
    run(folder, sys.executable, "-c", "exec(open('linear.py').read())")


@page
def test_examples_import_rltrain_and_nothing_below_it(file: Path) -> None:
    for name, block in examples(file):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("rltrain.")], name
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rltrain":
                assert node.module == "rltrain", name
                assert {alias.name for alias in node.names} <= set(rltrain.__all__), name
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rltrain":
                assert node.attr in rltrain.__all__, name


def test_classes_named_in_the_architecture_exist() -> None:
    """By their names in code: two capitals or more, as in `WeightsBoard`."""
    source = "".join(
        file.read_text() for layer in ("envs", "rollout", "algorithms", "rl") for file in (ROOT / layer).rglob("*.py")
    )
    named = set(re.findall(r"`([A-Z][a-z]+[A-Z][A-Za-z]*)`", (ROOT / "docs" / "architecture.md").read_text()))

    assert len(named) > 5
    assert {name for name in named if not re.search(rf"\b{name}\b", source)} == set()


@pytest.mark.parametrize("file", [file for file in PAGES if file.name != "architecture.md"], ids=lambda file: file.name)
def test_the_prose_names_public_names_only(file: Path) -> None:
    """`rltrain.NAME` in the text is part of the API, except in the page that describes the inside."""
    named = set(re.findall(r"`rltrain\.(\w+)", prose(file)))

    assert named <= {*rltrain.__all__, "__version__", "train"}


def test_the_api_page_lists_what_there_is() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^\| `rltrain\.(\w+)", text, re.M)

    assert sorted(listed) == sorted(rltrain.__all__)
    for module, items in re.findall(
        r"^\| `rltrain\.(networks|distributions|losses|returns|optim)` \| (.*) \|$", text, re.M
    ):
        for name in re.findall(r"`(\w+)`", items):
            assert name in ("discount", "trace") or hasattr(getattr(rltrain, module), name), name


def test_signatures_on_the_api_page_name_real_arguments() -> None:
    import inspect

    text = (ROOT / "docs" / "api.md").read_text()
    for name, arguments in re.findall(r"^\| `rltrain\.(\w+)\(([^`]*)\)`", text, re.M):
        found = inspect.signature(getattr(rltrain, name)).parameters
        named = [part.partition("=")[0].strip(" *") for part in arguments.split(",")]
        assert {word for word in named if word not in ("", "...")} <= {*found, "settings"}, name


ONLY = {"warmup": 580, "max_lag": 50, "widths_q": (16, 16)}  # for those algorithms that have them


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    """A function that returns the names that a run of an algorithm writes."""
    alone = {algo for algo in names() if getattr(settings_class(algo), "data_only", False)}
    worlds = dict.fromkeys(("crossq", "ddpg", "td3", "tqc", *alone), "probe:box") | {"mappo": "tic-tac-toe"}

    @functools.cache
    def data() -> str:
        path = str(tmp_path_factory.mktemp("data") / "sac")
        few = {
            "steps": 300,
            "warmup": 200,
            "batch": 8,
            "widths": (8,),
            "workers": 0,
            "eval_every": 0,
            "checkpoint_every": 0,
            "quiet": True,
        }
        rltrain.train(algo="sac", env="probe:box", **few, record=path, out=str(tmp_path_factory.mktemp("runs")))
        return path

    @functools.cache
    def written(algo: str) -> set[str]:
        result = rltrain.train(
            algo=algo,
            env=worlds.get(algo, "two-step" if for_several(algo) else "CartPole-v1"),
            opponents="pool" if algo == "mappo" else "newest",
            preset="none",
            steps=60 if algo in alone else 600,
            **{key: value for key, value in ONLY.items() if key in settings_class(algo).model_fields},
            streams=2,
            workers=int(algo in ("a2c", "impala")),
            backend="dask" if algo == "impala" else None,
            inference="central" if algo == "a2c" else "local",
            learners=2 if algo == "td3" else 1,
            **({"data": data(), "batch": 8, "widths": (8,)} if algo in alone else {"unroll": 64}),
            eval_episodes=2,
            quiet=True,
            out=str(tmp_path_factory.mktemp("runs")),
        )
        lines = (result.run / "metrics.jsonl").read_text().splitlines()
        keys = {name for line in lines for name in json.loads(line)} - {"step", "seconds"}
        return {name for name in keys if "_agents/" not in name}  # its second half is the name of an agent

    return written


def documented() -> list[str]:
    return re.findall(r"^\| `(\w+/\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.M)


ELSEWHERE = {  # metrics that these runs do not write
    "rollout/outside_bounds",  # with faults of the environment: tests/rl/test_train.py
    "selfplay/elo_other_N",  # against policies of other runs, for each N: tests/rl/test_league.py
    "eval/score",  # with data that has reference scores: tests/rl/data/test_record.py
}


OF_THE_PLATFORM = {"learner/policy_lag", "learner/exchange_seconds", "learner/skipped"}


QUICK_ALGORITHMS = ("bc", "dqn", "ppo", "sac", "vdn")  # one of each family


def algorithm_page(file: Path) -> Any:
    return pytest.param(file, id=file.name, marks=() if file.stem in QUICK_ALGORITHMS else pytest.mark.sweep)


@pytest.mark.parametrize("file", [algorithm_page(file) for file in ALGORITHM_PAGES])
def test_the_page_of_an_algorithm_lists_its_metrics(file: Path, logged: Callable[[str], set[str]]) -> None:
    listed = set(re.findall(r"`(learner/\w+)`", file.read_text()))
    written = {name for name in logged(file.stem) if name.startswith("learner/")}

    assert listed - OF_THE_PLATFORM == written - OF_THE_PLATFORM


def test_the_metrics_page_lists_what_some_runs_log(logged: Callable[[str], set[str]]) -> None:
    assert len(documented()) == len(set(documented()))
    assert set.union(*map(logged, QUICK_ALGORITHMS)) <= set(documented())


@pytest.mark.sweep
def test_the_metrics_page_lists_what_is_logged(logged: Callable[[str], set[str]]) -> None:
    assert set(documented()) - ELSEWHERE == set.union(*map(logged, names()))


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


@pytest.mark.parametrize("file", ALGORITHM_PAGES + [ROOT / "docs" / "results.md"], ids=lambda file: file.name)
def test_tables_are_made_from_results_and_settings(file: Path) -> None:
    assert script("plot").filled(file, file.read_text()) == file.read_text(), "run: python scripts/plot.py tables"


def test_every_algorithm_has_a_page_with_the_same_parts() -> None:
    parts = ["Equations", "Deviations from the paper", "Important settings", "Metrics", "Results"]

    own = {name: entry for name, entry in algorithms._registry.items() if isinstance(entry.algorithm, str)}
    for name, page in SETTINGS_OF.items():  # the same algorithm with other defaults
        assert own.pop(name).algorithm == own[page].algorithm
        assert f"rltrain --algo {name} " in (ROOT / "docs" / "algorithms" / f"{page}.md").read_text()
    assert [file.stem for file in ALGORITHM_PAGES] == sorted(own)
    for file in ALGORITHM_PAGES:
        text = file.read_text()
        assert re.findall("^## (.*)$", text, re.M) == parts
        assert (f"]({file.stem}.png)" in text) == (ROOT / "configs" / "results" / file.stem).is_dir()
        assert f"rltrain --algo {file.stem} " in text
        assert "<!-- settings: " in text


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {(page, link) for page in new for link in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text())}
        new = {(page.parent / link).resolve() for page, link in links} - reached
    assert set(PAGES) <= reached


def test_ratios_in_the_readme_are_measured() -> None:
    """Each is a median of docs/benchmarks.md, rounded."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    medians = [float(number) for number in re.findall(r"^\| [^|\n]* / [^|\n]* \| ([\d.]+) \|", text, re.M)]
    claimed = re.findall(r"^  \| [^|]+ \| [^|]+ \| ([\d.; ]+) \|$", (ROOT / "README.md").read_text(), re.M)

    assert claimed
    for number in ";".join(claimed).split(";"):
        digits = len(number.strip().partition(".")[2])
        assert float(number) in {round(median, digits) for median in medians}, number


def test_our_names_in_the_table_of_other_libraries_names_are_settings() -> None:
    text = (ROOT / "docs" / "coming-from.md").read_text().partition("## Settings")[2]
    cells = [cell.partition(":")[0] for cell in re.findall(r"\| ([^|\n]*) \|$", text, re.M)][2:]
    ours = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    fields = set(rltrain.RunConfig.model_fields).union(*(settings_class(algo).model_fields for algo in names()))

    assert len(ours) > 25
    assert ours <= fields


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
