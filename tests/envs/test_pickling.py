"""What comes from a user's files travels; what is installed, or ours, stays a name."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
import gymnasium
import pytest

from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import resolve
from rltrain.envs.pickling import modules_of, pickled_by_value, restore_names, self_contained

FILE = """
import gymnasium, numpy as np
from gymnasium import spaces
from goal import GOAL

class Maze(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def __init__(self, size=1): self.size = size
    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), GOAL * self.size, True, False, {}

gymnasium.register("CarriedMaze-v0", Maze, kwargs={"size": 2}, max_episode_steps=7)
gymnasium.register("NamedMaze-v0", "maze_of_test:Maze", kwargs={"size": 3})
"""

ELSEWHERE = """
import json, pickle, sys
from rltrain.envs.pickling import restore_names
source = pickle.load(sys.stdin.buffer)
restore_names(source)
env = source.make()
env.reset(seed=0)
print(json.dumps([env.step(0)[1], getattr(env.spec, "max_episode_steps", None)]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "maze_of_test.py").write_text(FILE)
    (tmp_path / "goal.py").write_text("GOAL = 5.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "goal", raising=False)
    monkeypatch.delitem(sys.modules, "maze_of_test", raising=False)
    for name in ("CarriedMaze-v0", "NamedMaze-v0"):
        monkeypatch.delitem(gymnasium.registry, name, raising=False)
    return tmp_path


def elsewhere(source: EnvSource, place: Path) -> Any:
    """The reward of one step and the time limit, in a Python that does not find the user's files."""
    with pickled_by_value(modules_of(source.target)):
        payload = cloudpickle.dumps(source)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{ELSEWHERE}"],
        input=payload,
        capture_output=True,
        cwd=place,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "kwargs", "found"),
    [
        ("maze_of_test.py:Maze", {"size": 4}, [20.0, None]),
        pytest.param("maze_of_test:Maze", {}, [5.0, None], marks=pytest.mark.sweep),
        pytest.param("maze_of_test:CarriedMaze-v0", {}, [10.0, 7], marks=pytest.mark.sweep),
        ("maze_of_test:NamedMaze-v0", {}, [15.0, None]),
    ],
)
def test_an_environment_from_a_file_needs_no_file_where_it_arrives(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str, kwargs: dict[str, Any], found: Any
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    assert elsewhere(self_contained(resolve(name, kwargs)), place) == found


OWN_OBJECTS = """
import pickle, gymnasium, numpy as np
from gymnasium import spaces
from things_of_test import Other

class Part: pass

def same(value): return value

class Maze(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def __init__(self): self.round = lambda: [type(pickle.loads(pickle.dumps(one()))) is one for one in self.kinds()]
    @staticmethod
    def kinds(): return Part, Other
    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action):
        assert pickle.loads(pickle.dumps(same)) is same
        return np.zeros(2, np.float32), float(sum(self.round())), True, False, {}
"""


@pytest.mark.parametrize("there", [False, True], ids=["without the file", "with the file"])
def test_objects_of_the_file_can_be_pickled_by_name_where_it_arrives(
    there: bool, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    for where in (folder, place) if there else (folder,):
        (where / "own_objects.py").write_text(OWN_OBJECTS)
        (where / "things_of_test.py").write_text("class Other: pass\n")
    for name in ("own_objects", "things_of_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert elsewhere(self_contained(resolve("own_objects.py:Maze")), place)[0] == 2.0


HOLDERS = """
class Part: pass

class Factory:
    def __init__(self, kind): self.kind = kind

def closure(kind):
    def make(): return kind
    return make

def default(kind=Part): return kind
"""
HELD = """
import pickle, sys
from rltrain.envs.pickling import restore_names
held = pickle.load(sys.stdin.buffer)
restore_names(held)
kind = held.kind if hasattr(held, "kind") else held()
assert type(pickle.loads(pickle.dumps(kind()))) is kind
"""


@pytest.mark.parametrize("how", ["Factory(Part)", "closure(Part)", "default"])
def test_a_class_that_an_object_a_closure_or_a_default_holds_is_found(
    how: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holders_of_test.py").write_text(HOLDERS)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("holders_of_test")
    with pickled_by_value(["holders_of_test"]):
        payload = cloudpickle.dumps(eval(how, vars(module)))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n{HELD}"
    done = subprocess.run(
        [sys.executable, "-c", code], input=payload, capture_output=True, cwd=tmp_path_factory.mktemp("elsewhere")
    )
    assert done.returncode == 0, done.stderr.decode()


def test_containers_among_the_globals_are_not_searched() -> None:
    """They may be large, and each actor would search them at its start."""

    class Watched(list[int]):
        def __iter__(self) -> Any:
            raise AssertionError("it was searched")

    def function() -> None:
        pass

    copy = FunctionType(function.__code__, {"numbers": Watched([1, 2])}, "copy")
    copy.__module__, copy.__qualname__ = "no_module_of_this_name", "copy"
    restore_names(copy)
    assert sys.modules.pop("no_module_of_this_name").copy is copy


def test_names_of_installed_modules_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the user's file had the name of an installed one."""

    def dumps() -> None:
        pass

    before = dict(vars(json))
    for name in ("json", "torch.nn"):
        monkeypatch.setattr(dumps, "__module__", name)
        monkeypatch.setattr(dumps, "__qualname__", "dumps")
        restore_names(dumps)
    assert vars(json) == before


def test_what_is_installed_or_ours_travels_by_name() -> None:
    for name in ("CartPole-v1", "probe:constant", "two-step"):
        source = resolve(name)
        assert self_contained(source) == source
        assert name.encode() in pickle.dumps(self_contained(source))
    assert modules_of(json.loads) == ()
    assert modules_of(self_contained) == ()


@pytest.mark.parametrize(("name", "has_init"), [("carried_pack", True), ("carried_namespace", False)])
def test_a_module_of_a_package_brings_the_whole_package_and_only_while_it_is_carried(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str, has_init: bool
) -> None:
    inner = tmp_path / name / "envs"
    inner.mkdir(parents=True)
    (tmp_path / name / "common.py").write_text("GOAL = 6.0\n")
    if has_init:
        (tmp_path / name / "__init__.py").write_text("")
        (inner / "__init__.py").write_text("")
    (inner / "maze.py").write_text(FILE.partition("gymnasium.register")[0].replace("from goal", f"from {name}.common"))
    monkeypatch.chdir(tmp_path)
    source = self_contained(resolve(f"{name}.envs.maze:Maze"))
    assert {f"{name}.common", f"{name}.envs.maze"} <= {*modules_of(source.target)}
    assert elsewhere(source, tmp_path_factory.mktemp("elsewhere")) == [6.0, None]
    assert not cloudpickle.list_registry_pickle_by_value()
