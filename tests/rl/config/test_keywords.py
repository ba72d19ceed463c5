"""The typed keywords of `rltrain.train`: the settings that there are, and what a type checker says about calls."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

from rltrain import algorithms
from rltrain.algorithms.settings import HELP_ORDER
from rltrain.config.keywords import Keywords
from rltrain.config.run_config import INNER, SYNONYMS, RunConfig

ROOT = Path(__file__).resolve().parents[3]
WIDER = (  # than the fields
    "algo", "env_args", "eval_env_args", "share", "seed", "policy", "torso", "widths", "widths_q", "memory",
    "init_parts", "log_info", "callback", "freeze",
)  # fmt: skip


def members(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return set(typing.get_args(annotation)) if union else {annotation}


def test_the_keywords_are_the_settings_with_their_types() -> None:
    ours = {name: entry for name, entry in algorithms._registry.items() if isinstance(entry.algorithm, str)}
    expected: dict[str, set[Any]] = {}
    for model in (RunConfig, *(algorithms.settings_class(name) for name in ours)):
        for key, field in model.model_fields.items():
            if key not in INNER:
                expected.setdefault(field.alias or key, set()).update(members(field.annotation))
    typed = typing.get_type_hints(Keywords)

    assert set(typed) == {*expected, *SYNONYMS, "settings"}
    assert set(expected) >= set(HELP_ORDER)
    for key, found in expected.items():
        assert key in WIDER or found <= members(typed[key]), key


CALLS = """
import rltrain
from torch import nn

class Net(nn.Module): ...

rltrain.train(algo="ppo", env="CartPole-v1", steps=1000, lr=3, widths=[64, 64], workers=0, seed=None)
rltrain.train(algo="sac", env=lambda: rltrain.make_env("Pendulum-v1"), env_args={"g": 9}, torso=Net, max_seconds=3)
rltrain.train(resume="runs/x", steps=2000)
rltrain.PPOConfig()
rltrain.PPOConfig(lr=1e-3, epochs=4, widths=(8, 8), value_clip=None)
rltrain.SACConfig(lr_q=1e-3)
rltrain.train(algo="ppo", env="CartPole-v1", settings=rltrain.PPOConfig(clip=0.1))
rltrain.RunConfig(algo="ppo", env="CartPole-v1", settings=rltrain.PPOConfig())
rltrain.train(algo="ppo", env="CartPole-v1", stepz=1000)  # wrong
rltrain.train(algo="ppo", env="CartPole-v1", lr="fast")  # wrong
rltrain.train(algo="ppo", env="CartPole-v1", memory="rnn")  # wrong
rltrain.PPOConfig(learning_rate=3)  # wrong
rltrain.PPOConfig(lr="fast")  # wrong
"""


def test_a_type_checker_accepts_right_calls_and_names_wrong_ones(tmp_path: Path) -> None:
    """Without pydantic's plugin, as most users have it."""
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\npython_version = 3.11\ncheck_untyped_defs = True\n"
        "[mypy-torch.*]\nfollow_imports = skip\n[mypy-numpy.*]\nfollow_imports = skip\n"
        "[mypy-rltrain.*]\nignore_errors = True\n[mypy-gymnasium.*]\nfollow_imports = skip\n"
    )
    links = ROOT / "build" / "links"
    environ = {**os.environ, "MYPYPATH": str(links)} if links.is_dir() else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "calls.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    lines = CALLS.splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = {
        int(line.split(":")[1]) for line in done.stdout.splitlines() if line.startswith("calls.py") and "error" in line
    }
    assert found == wrong, done.stdout + done.stderr
