"""`import rltrain` gives users everything they need, and imports nothing heavy until a name is used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import rltrain

API = """
A2CConfig A3CConfig APPOConfig Act ActionSpec AgentGroup Algorithm CheckpointError ConfigError DDPGConfig
DQNConfig CrossQConfig DroQConfig RainbowConfig REDQConfig TQCConfig
EnvError EnvFault EnvSpec Evaluation GradientPlan Gradients IMPALAConfig IQLConfig Interrupted Leaf
MADDPGConfig MAPPOConfig Noise PPOConfig Policy PolicyHooks QMIXConfig QNetwork ReplayPlan Result Rng RunConfig
Job JobLost RunFailed SACConfig SINGLE StreamPlan TD3Config Trained Trajectory Transition Tuned Update VDNConfig
build_policy map submit tune
Limits Served export serve
discounts distributions evaluate greedy load losses make_env networks optim policy_factory register_algorithm
register_env register_policy returns traces train
CHANGEABLE Callback Histograms RunView StopOnPlateau Video
AWACConfig BCConfig CQLConfig Estimates ImplicitQConfig MARWILConfig TD3BCConfig algorithm_class estimate
""".split()
MODULES = ("distributions", "losses", "networks", "optim", "returns")


def test_the_exported_names_are_those_agreed() -> None:
    assert sorted(rltrain.__all__) == sorted(API)
    assert set(API) <= set(dir(rltrain))


@pytest.mark.parametrize("name", API)
def test_every_name_exists_and_is_documented(name: str) -> None:
    value = getattr(rltrain, name)

    assert (value.__doc__ or "").strip()
    assert isinstance(value, ModuleType) == (name in MODULES)


def test_editors_and_the_running_program_agree_on_every_name() -> None:
    """The imports under TYPE_CHECKING, which editors and mypy read, give the objects that `__getattr__` gives."""
    tree = ast.parse(Path(inspect.getfile(rltrain)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert sorted(typed) == sorted(API)
    for public, (module, name) in typed.items():
        assert module is not None
        value = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        assert getattr(rltrain, public) is value


def test_train_stays_a_function_when_the_module_of_that_name_is_imported() -> None:
    train = rltrain.train
    importlib.import_module("rltrain.train")

    assert isinstance(train, FunctionType)
    assert rltrain.train is train


def test_the_version_is_that_of_the_installed_package() -> None:
    assert rltrain.__version__ == metadata.version("rltrain")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'trian'; it has: .*A2CConfig"):
        rltrain.trian  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "gymnasium", "pydantic", "rich", "numpy", "importlib.metadata"}
    text = f"import sys, rltrain; print(sorted({heavy} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_type_checkers_find_the_defaults_of_settings() -> None:
    """Without pydantic's plugin they accept `PPOConfig(lr=1e-3)` only if no default of a `Field` is positional."""
    files = list((Path(__file__).parents[2] / "algorithms").rglob("settings.py"))
    calls = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    fields = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Field"]

    assert len(files) == 5
    assert len(fields) > 50
    assert not [ast.unparse(call) for call in fields if call.args]


def test_the_class_of_an_algorithm_or_one_line() -> None:
    from rltrain.algorithms.off_policy.sac import SAC

    assert rltrain.algorithm_class("sac") is SAC
    with pytest.raises(ValueError, match="unknown algorithm 'ppp'; there are a2c, "):
        rltrain.algorithm_class("ppp")
    with pytest.raises(ValueError, match="mappo is made of the classes of other algorithms"):
        rltrain.algorithm_class("mappo")
