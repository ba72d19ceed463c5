"""Finds an environment by the name that `--env` accepts and creates it, in the same way in every process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import operator
import os
import pkgutil
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium
from gymnasium.spaces import Tuple

from rltrain.envs.errors import EnvError, EnvFault, did_you_mean, user_traceback
from rltrain.envs.names import code_in, registered_names
from rltrain.envs.suites import atari, envpool, pettingzoo

if TYPE_CHECKING:
    from rltrain.envs.multi_agent.joint_spaces import Share


Env = gymnasium.Env[Any, Any]
Result = TypeVar("Result")
FORMS = (
    "an id (CartPole-v1, ALE/Pong-v5), module:Id-v0, package.module:ClassOrFactory, path/to/file.py:ClassOrFactory, "
    "atari:game, envpool:Id, probe:name, pettingzoo:module or a built-in game of several agents (two-step)"
)
EXTRAS = ("box2d", "minatar", "mujoco")  # extras of this package, as they appear in entry points and namespaces
MUJOCO_DEPRECATION = "is deprecated and will be removed in a future release"  # in warnings about model files
MAKE_ARGUMENTS = {"max_episode_steps", "disable_env_checker"}  # of gymnasium.make itself


@dataclass(frozen=True)
class EnvSource:
    """Makes environments. It is sent to other processes with cloudpickle; each process looks the name up again.

    Attributes:
        name:   for files and console messages.
        target: a name (see FORMS), or a class or function.
        kwargs: for the constructor.
        folder: from which modules and files that `target` names are imported, in every process.
        share:  which agents share a policy: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
        action_bound: of actions without bounds: see `rltrain.envs.spaces.action_spec`.
    """

    name: str
    target: str | Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    share: Share = "all"
    action_bound: float | None = None

    def make(self) -> Env:
        """Make one environment.

        Raises:
            EnvError: it cannot be made as asked; one line.
            EnvFault: its own code raised; the whole traceback, stream -1.
        """
        entry = self.lookup()
        if isinstance(entry, str):
            env_id, spec = entry, gymnasium.registry[entry]
            creator = self._call(lambda: load_entry_point(spec.entry_point), env_id)
            own = {key: value for key, value in self.kwargs.items() if key not in MAKE_ARGUMENTS}
            self._check_arguments(creator, {**spec.kwargs, **own})
            self._check_render_mode(creator)
            _filter_mujoco_log()
            env = self._call(lambda: gymnasium.make(env_id, **{"disable_env_checker": True, **self.kwargs}), env_id)
        else:
            factory = entry
            self._check_arguments(factory, self.kwargs)
            self._check_render_mode(factory)
            _filter_mujoco_log()
            env = self._call(lambda: factory(**self.kwargs))
        if not isinstance(env, gymnasium.Env) or isinstance(getattr(env, "action_space", None), Tuple):
            from rltrain.envs.multi_agent.joint_env import as_joint_env

            return self._call(lambda: as_joint_env(env, self.name, self.share, self.action_bound))
        if not isinstance(self.share, str):
            raise EnvError(f"{self.name} has one agent, so that share cannot name the policies of several")
        return env

    def make_block(self, width: int) -> Any:
        """Make a native vector environment of `width` streams: the one that the id registers, or EnvPool's."""
        if self._is_envpool:
            return self._call(lambda: envpool.block(str(self.target))(width, **self.kwargs))
        env_id = self.lookup()
        assert isinstance(env_id, str)
        mode = gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
        return self._call(lambda: gymnasium.make_vec(env_id, width, vectorization_mode=mode, **self.kwargs), env_id)

    def native_id(self) -> str | None:
        """The id, if it is EnvPool's or registers a native vector environment that accepts these kwargs; else None."""
        if self._is_envpool:  # blocks do not distinguish a lost life from the end of a game
            return None if self.kwargs.get("episodic_life") else str(self.target)
        env_id = self.lookup()
        if not isinstance(env_id, str):
            return None
        spec = gymnasium.registry[env_id]
        if spec.vector_entry_point is None or spec.additional_wrappers:
            return None
        try:
            creator = load_entry_point(spec.vector_entry_point)
            inspect.signature(creator).bind(num_envs=1, **{**spec.kwargs, **self.kwargs})
        except Exception:  # its imports may raise anything
            return None
        return env_id

    @property
    def _is_envpool(self) -> bool:
        return isinstance(self.target, str) and self.target.startswith(envpool.PREFIX)

    def unknown_arguments(self) -> list[str]:
        """The keys of `kwargs` that the constructor does not take."""
        entry = self.lookup()
        spec = gymnasium.registry[entry] if isinstance(entry, str) else None
        creator = entry if spec is None else self._call(lambda: load_entry_point(spec.entry_point), spec.id)
        try:
            parameters = inspect.signature(creator).parameters.values()  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return []
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return []
        known = {parameter.name for parameter in parameters} | (MAKE_ARGUMENTS if spec is not None else set())
        return [key for key in self.kwargs if key not in known]

    def lookup(self) -> str | Callable[..., Any]:
        """The registered id, or the class or function to call; EnvError if `target` names nothing."""
        if not isinstance(self.target, str):
            return self.target
        if code_in(self.target) is not None:
            make_importable(self.folder)
        factory = (
            atari.find(self.target) or envpool.find(self.target) or pettingzoo.find(self.target, self._load_module)
        )
        if factory is not None:
            return factory
        left, colon, right = self.target.rpartition(":")
        if not colon:
            return self._registered_id(self.target)
        if left == "probe":
            from rltrain.envs.problems.probes import probe

            return probe(right)
        if left.endswith(".py"):
            return self._attribute(self._load_file(left), right)
        module = self._load_module(left, right)
        if right in gymnasium.registry:
            return right
        if re.search(r"-v\d+$", right):
            hint = did_you_mean(right, _known_names())
            raise EnvError(f"{left} was imported but registers no environment {right!r}.{hint}")
        return self._attribute(module, right)

    def _registered_id(self, name: str) -> str:
        if name in gymnasium.registry:
            return name
        namespace, slash, _ = name.partition("/")
        plugins = entry_points(group="gymnasium.envs", name=namespace)  # Gymnasium 1.0 no longer loads these itself
        self._call(lambda: [plugin.load()() for plugin in plugins])
        if name in gymnasium.registry:
            return name
        if slash and namespace.lower() in EXTRAS and not plugins:
            raise EnvError(f"{name} needs an extra: pip install 'rltrain[{namespace.lower()}]'")
        hint = did_you_mean(name, _known_names())
        if name.endswith(".py") or ("/" in name and os.path.exists(os.path.join(self.folder, name))):
            hint = f" To use an environment from a file, add the name of its class: {name}:ClassOrFactory."
        raise EnvError(f"unknown environment {name!r}.{hint} It may be {FORMS}.")

    def _load_file(self, path: str) -> ModuleType:
        file = Path(self.folder, path)
        if not os.path.isfile(file):
            raise EnvError(f"{self.target}: there is no file {file}")
        parent = str(file.resolve().parent)
        if parent not in sys.path:
            sys.path.append(parent)  # so that the file can import modules of its folder
        return self._call(lambda: load_file(file.resolve()))

    def _load_module(self, name: str, attribute: str) -> ModuleType:
        def load() -> ModuleType:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                    raise  # the module exists, but one that it imports does not
            file = Path(self.folder, *name.split(".")).with_suffix(".py")
            if os.path.isfile(file):
                short = os.path.relpath(file, self.folder)
                raise EnvError(
                    f"{self.target}: {name.partition('.')[0]!r} is also the name of an installed package, which hides "
                    f"your folder. Use --env {short}:{attribute}, or rename the folder."
                )
            package, _, last = name.rpartition(".")
            siblings = pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", ()))
            raise EnvError(
                f"{self.target}: there is no module {name!r}; looked in {self.folder} and in the installed packages."
                + did_you_mean(last, [module.name for module in siblings])
            )

        return self._call(load)

    def _attribute(self, module: ModuleType, path: str) -> Callable[..., Any]:
        try:
            factory: Callable[..., Any] = operator.attrgetter(path)(module)
        except AttributeError:
            names = [name for name, value in vars(module).items() if callable(value)]
            raise EnvError(f"{self.target}: the module has no {path!r}.{did_you_mean(path, names)}") from None
        if not callable(factory):
            raise EnvError(f"{self.target} is {factory!r}, not a class or a function that makes an environment")
        return factory

    def _check_render_mode(self, creator: Any) -> None:
        """EnvError if `kwargs` ask for a way of rendering that a class does not have; Gymnasium only warns."""
        mode, metadata = self.kwargs.get("render_mode"), getattr(creator, "metadata", None)
        modes = metadata.get("render_modes") if isinstance(metadata, dict) else None
        if mode is None or not modes or mode in modes or (mode == "human" and "rgb_array" in modes):
            return
        raise EnvError(f"{self.name}: it has no render_mode {mode!r}; it has {', '.join(map(repr, modes))}")

    def _check_arguments(self, creator: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        try:
            signature = inspect.signature(creator)
        except (TypeError, ValueError):
            return  # no signature, for example of code in C: the call itself will raise
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

    def _call(self, function: Callable[[], Result], env_id: str = "") -> Result:
        """Call code of the environment.

        Raises:
            EnvError: something is not installed or an argument is wrong; one line.
            EnvFault: any other exception, with its traceback.
        """
        try:
            return function()
        except (EnvError, EnvFault):
            raise
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            entry = str(gymnasium.registry[env_id].entry_point) if env_id else ""
            text = f"{entry} {error}".lower()
            extra = next((extra for extra in EXTRAS if extra in text), None)
            if env_id and extra:
                raise EnvError(f"{self.name} needs an extra: pip install 'rltrain[{extra}]' ({_line(error)})") from None
            if isinstance(error, gymnasium.error.DependencyNotInstalled) or entry.startswith("gymnasium."):
                raise EnvError(f"{self.name} needs something that is not installed: {_line(error)}") from None
            raise EnvFault(-1, -1, 0, user_traceback(error)) from None
        except Exception as error:
            key = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            usage = isinstance(error, TypeError | gymnasium.error.Error)
            if usage and key and key.group(1) in self.kwargs:
                raise EnvError(f"{self.name}: its constructor takes no {key.group(1)!r} ({_line(error)})") from None
            if isinstance(error, gymnasium.error.Error):
                raise EnvError(f"{self.name}: {_line(error)}") from None
            raise EnvFault(-1, -1, 0, user_traceback(error)) from None


def make_importable(folder: str) -> None:
    """Let modules of a folder be imported: after all others, so that they do not hide installed packages."""
    if folder and folder not in sys.path:
        sys.path.append(folder)


def load_file(file: Path) -> ModuleType:
    """Import a file under a name that other processes can import too, which get this process's sys.path.

    The name is that of the file, with the names of its folders before it if it is also the name of another module.
    """
    for depth in range(1, len(file.parts)):
        parts, root = (*file.parts[-depth:-1], file.stem), str(file.parents[depth - 1])
        name, added = ".".join(parts), root not in sys.path
        if any("." in part for part in parts):
            break
        if added:
            sys.path.append(root)
        if _is_module(name, file):
            return importlib.import_module(name)
        if added:
            sys.path.remove(root)
    name = f"_env_file_{file.stem}_{zlib.crc32(str(file).encode()):08x}"  # no process but this one can import it
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _is_module(name: str, file: Path) -> bool:
    """True if the import of `name` gives this file."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
    else:
        importlib.invalidate_caches()  # the file may be new
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return False
        found = None if spec is None else spec.origin
    return found is not None and Path(found).resolve() == file


def load_entry_point(entry_point: str | Callable[..., Any] | None) -> Callable[..., Any]:
    """The class or function of an entry point of Gymnasium, which may be a text "module:name"."""
    if callable(entry_point):
        return entry_point
    module, _, name = str(entry_point).partition(":")
    creator: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return creator


def _known_names() -> list[str]:
    """All names of environments, for did_you_means."""
    from rltrain.envs.problems.probes import PROBES

    return [*gymnasium.registry, *registered_names(), *pettingzoo.GAMES, *(f"probe:{name}" for name in PROBES)]


def _filter_mujoco_log() -> None:
    """Write deprecation warnings of model files only to MuJoCo's log file, each once; print other warnings as before.

    Nothing changes if MuJoCo is not imported or already has a handler for warnings.
    """
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mju_user_warning() is not None:
        return
    logged: set[str] = set()

    def warning(text: str) -> None:
        if MUJOCO_DEPRECATION in text:
            if text in logged:
                return
            logged.add(text)
        else:
            with contextlib.suppress(OSError, ValueError):  # no exception may reach MuJoCo's C code
                print(f"WARNING: {text}\n", file=sys.stderr, flush=True)
        mujoco.mju_writeLog("WARNING", text)

    mujoco.set_mju_user_warning(warning)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
