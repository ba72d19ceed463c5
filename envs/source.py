"""Looks up an environment by name and creates it, in the same way in every process: what `--env` accepts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import operator
import os
import pkgutil
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.spaces import Tuple

from rltrain.envs.errors import EnvError, EnvFault, did_you_mean
from rltrain.envs.suites import atari
from rltrain.envs.suites import envpool as pool
from rltrain.envs.suites import pettingzoo as zoo
from rltrain.envs.suites.mujoco_log import filter_mujoco_log

if TYPE_CHECKING:
    from rltrain.envs.multi_agent.joint_spaces import Share


Env = gymnasium.Env[Any, Any]
FORMS = (
    "an id (CartPole-v1, ALE/Pong-v5), module:Id-v0, package.module:ClassOrFactory, path/to/file.py:ClassOrFactory, "
    "atari:game, envpool:Id, probe:name, pettingzoo:module or a built-in game of several agents (two-step)"
)


EXTRAS = ("box2d", "minatar", "mujoco")  # words of entry points and namespaces that are extras of ours, too
OF_GYM = {"max_episode_steps", "disable_env_checker"}  # what gymnasium.make takes for itself
_registered: dict[str, Callable[..., Any]] = {}


def register_env(name: str, factory: Callable[..., Any]) -> None:
    """Let `--env name` mean `factory(**kwargs)`, a class or a function that makes a Gymnasium environment."""
    if not callable(factory):
        raise EnvError(f"cannot register {name!r}: {factory!r} is not a class or a function that makes an environment")
    _registered[name] = factory


def registered(name: str) -> str | Callable[..., Any]:
    """The factory that `register_env` got for a name, or the name itself."""
    return _registered.get(name, name)


@dataclass(frozen=True)
class EnvSource:
    """What makes environments. Travels to other processes by cloudpickle; a name is looked up again in each.

    Attributes:
        name:   what to call it in files and on the console.
        target: a name (see FORMS), or a class or function.
        kwargs: for the constructor.
        folder: the folder of the run, importable wherever environments are made.
        share:  which of several agents share a policy: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
    """

    name: str
    target: str | Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    share: Share = "all"

    def make(self) -> Env:
        """Make one environment.

        Raises:
            EnvError: it cannot be made as asked; one line.
            EnvFault: its own code raised; the whole traceback, stream -1.
        """
        found = self.found()
        if isinstance(found, str):
            spec = gymnasium.registry[found]
            entry = spec.entry_point
            taken = {**spec.kwargs, **{key: value for key, value in self.kwargs.items() if key not in OF_GYM}}
            creator = self._guard(lambda: entry if callable(entry) else load_entry(str(entry)), found)
            self._check_arguments(creator, taken)
            filter_mujoco_log()
            env = self._guard(lambda: gymnasium.make(found, **{"disable_env_checker": True, **self.kwargs}), found)
        else:
            self._check_arguments(found, self.kwargs)
            filter_mujoco_log()
            env = self._guard(lambda: found(**self.kwargs), "")
        if not isinstance(env, gymnasium.Env) or isinstance(getattr(env, "action_space", None), Tuple):
            from rltrain.envs.multi_agent.joint_env import as_joint_env

            env = self._guard(lambda: as_joint_env(env, self.name, self.share), "")
        elif not isinstance(self.share, str):
            raise EnvError(f"{self.name} has one agent, so that share cannot name the policies of several")
        made: Env = env
        return made

    def make_block(self, width: int) -> Any:
        """Make the native vector environment of `width` streams that the id registers, or EnvPool's."""
        if self._pooled:
            return self._guard(lambda: pool.block(str(self.target))(width, **self.kwargs), "")
        found = self.found()
        assert isinstance(found, str)
        mode = gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
        return self._guard(lambda: gymnasium.make_vec(found, width, vectorization_mode=mode, **self.kwargs), found)

    def native_id(self) -> str | None:
        """The id, if it registers a native vector environment that takes these kwargs, or is EnvPool's."""
        if self._pooled:  # in blocks a lost life cannot be told from the end of a game
            return None if self.kwargs.get("episodic_life") else str(self.target)
        found = self.found()
        if not isinstance(found, str):
            return None
        spec = gymnasium.registry[found]
        if spec.vector_entry_point is None or spec.additional_wrappers:
            return None
        entry = spec.vector_entry_point
        try:
            creator = entry if callable(entry) else load_entry(str(entry))
            inspect.signature(creator).bind(num_envs=1, **{**spec.kwargs, **self.kwargs})
        except Exception:  # its imports may fail in any way
            return None
        return found

    @property
    def _pooled(self) -> bool:
        return isinstance(self.target, str) and self.target.startswith(pool.PREFIX)

    def found(self) -> str | Callable[..., Any]:
        """The registered id, or what is to be called."""
        if not isinstance(self.target, str):
            return self.target
        if self.folder and self.folder not in sys.path:
            sys.path.append(self.folder)  # at the end: a folder of the user's may be called like one of our packages
        other = atari.find(self.target) or pool.find(self.target) or zoo.find(self.target, self._module)
        if other is not None:
            return other
        left, colon, right = self.target.rpartition(":")
        if not colon:
            return self._registered_id(self.target)
        if left == "probe":
            from rltrain.envs.problems.names import probe

            return probe(right)
        if left.endswith(".py"):
            return self._attribute(self._file(left), right)
        module = self._module(left, right)
        if right in gymnasium.registry:
            return right
        if re.search(r"-v\d+$", right):
            raise EnvError(f"{left} was imported but registers no environment {right!r}.{did_you_mean(right, _ids())}")
        return self._attribute(module, right)

    def _registered_id(self, name: str) -> str | Callable[..., Any]:
        if name in gymnasium.registry:
            return name
        namespace, slash, _ = name.partition("/")
        announced = entry_points(group="gymnasium.envs", name=namespace)  # gymnasium 1.0 read these by itself
        self._guard(lambda: [plugin.load()() for plugin in announced], "")
        if name in gymnasium.registry:
            return name
        if slash and namespace.lower() in EXTRAS and not announced:
            raise EnvError(f"{name} needs an extra: pip install 'rltrain[{namespace.lower()}]'")
        hint = did_you_mean(name, _ids())
        if name.endswith(".py") or ("/" in name and Path(self.folder, name).exists()):
            hint = f" To take an environment from a file, name its class too: {name}:ClassOrFactory."
        raise EnvError(f"unknown environment {name!r}.{hint} It may be {FORMS}.")

    def _file(self, path: str) -> ModuleType:
        file = Path(self.folder, path)
        if not file.is_file():
            raise EnvError(f"{self.target}: there is no file {file}")
        name = f"_env_file_{file.stem}_{zlib.crc32(str(file.resolve()).encode()):08x}"
        if name in sys.modules:
            return sys.modules[name]
        home = str(file.resolve().parent)
        if home not in sys.path:
            sys.path.append(home)  # so that it can import its neighbours

        def load() -> ModuleType:
            plan = importlib.util.spec_from_file_location(name, file)
            assert plan is not None
            assert plan.loader is not None
            module = importlib.util.module_from_spec(plan)
            sys.modules[name] = module
            try:
                plan.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            return module

        loaded: ModuleType = self._guard(load, "")
        return loaded

    def _module(self, name: str, attribute: str) -> ModuleType:
        def load() -> ModuleType:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                    raise  # the module is there; something that it imports is not
            file = Path(self.folder, *name.split(".")).with_suffix(".py")
            if file.is_file():
                short = os.path.relpath(file, self.folder)
                raise EnvError(
                    f"{self.target}: {name.partition('.')[0]!r} is also the name of an installed package, which hides "
                    f"your folder. Use --env {short}:{attribute}, or rename the folder."
                )
            raise EnvError(
                f"{self.target}: there is no module {name!r}; looked in {self.folder} and what is installed."
                + did_you_mean(name.rpartition(".")[2], _beside(name))
            )

        loaded: ModuleType = self._guard(load, "")
        return loaded

    def _attribute(self, module: ModuleType, path: str) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = operator.attrgetter(path)(module)
        except AttributeError:
            names = [name for name, value in vars(module).items() if callable(value)]
            raise EnvError(f"{self.target}: the module has no {path!r}.{did_you_mean(path, names)}") from None
        if not callable(found):
            raise EnvError(f"{self.target} is {found!r}, not a class or a function that makes an environment")
        return found

    def _check_arguments(self, creator: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        try:
            signature = inspect.signature(creator)
        except (TypeError, ValueError):
            return  # written in C, or the like: the call will tell
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            accepted = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
            wrong = next((key for key in kwargs if key not in accepted), "")
            hint = did_you_mean(wrong, accepted) if wrong else ""
            raise EnvError(
                f"{self.name}: {str(error).replace('got an', 'its constructor got an')}.{hint} "
                f"It takes: {', '.join(accepted) or 'nothing'}. Give arguments with --env-arg key=value."
            ) from None

    def _guard(self, call: Callable[[], Any], found: str) -> Any:
        """Call something of the environment's; what it raises is one line for the person, or its own fault."""
        try:
            return call()
        except (EnvError, EnvFault):
            raise
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            entry = str(gymnasium.registry[found].entry_point) if found else ""
            words = f"{entry} {error}".lower()
            extra = next((extra for extra in EXTRAS if extra in words), None)
            if found and extra:
                raise EnvError(f"{self.name} needs an extra: pip install 'rltrain[{extra}]' ({_line(error)})") from None
            if isinstance(error, gymnasium.error.DependencyNotInstalled) or entry.startswith("gymnasium."):
                raise EnvError(f"{self.name} needs something that is not installed: {_line(error)}") from None
            raise EnvFault(-1, -1, 0, traceback.format_exc()) from error
        except (TypeError, gymnasium.error.Error) as error:
            key = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if key and key.group(1) in self.kwargs:
                raise EnvError(f"{self.name}: its constructor takes no {key.group(1)!r} ({_line(error)})") from None
            if isinstance(error, gymnasium.error.Error):
                raise EnvError(f"{self.name}: {_line(error)}") from None
            raise EnvFault(-1, -1, 0, traceback.format_exc()) from error
        except Exception as error:
            raise EnvFault(-1, -1, 0, traceback.format_exc()) from error


def load_entry(entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _ids() -> list[str]:
    from rltrain.envs.problems.names import PROBES

    return [*gymnasium.registry, *_registered, *zoo.GAMES, *(f"probe:{name}" for name in PROBES)]


def _beside(name: str) -> list[str]:
    """The modules of the package that a module would lie in."""
    paths = getattr(sys.modules.get(name.rpartition(".")[0]), "__path__", ())
    return [module.name for module in pkgutil.iter_modules(paths)]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
