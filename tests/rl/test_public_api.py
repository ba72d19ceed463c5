"""`import rltrain` is all a user needs, and it costs nothing until something is used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import FunctionType, ModuleType

import pytest

import rltrain

API = """
A2CConfig CheckpointError ConfigError EnvSpec PPOConfig RunConfig RunFailed Trajectory evaluate load losses make_env
networks register_algorithm register_env register_policy returns train
""".split()


def test_the_list_is_what_was_agreed() -> None:
    assert sorted(rltrain.__all__) == API
    assert set(API) <= set(dir(rltrain))


@pytest.mark.parametrize("name", API)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(rltrain, name)

    assert (found.__doc__ or "").strip()
    assert isinstance(found, ModuleType) == (name in ("losses", "networks", "returns"))


def test_functions_stay_functions_when_their_modules_are_imported() -> None:
    for name in ("train", "evaluate"):
        module = importlib.import_module(f"rltrain.{name}")
        assert isinstance(getattr(rltrain, name), FunctionType)
        assert getattr(rltrain, name) is getattr(module, name)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'; it has: A2CConfig"):
        rltrain.trian  # noqa: B018


def test_importing_rl_imports_nothing_heavy() -> None:
    text = "import sys, rl; print(sorted({'torch', 'gymnasium', 'pydantic', 'rich', 'numpy'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "[]\n"
