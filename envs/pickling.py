"""Makes environments picklable for machines that do not have the user's files.

Installed code is pickled by name, and must be installed on the other machine too. Code from a file of the user is
pickled by value, together with the modules of the same folder or package that are imported at that time. Data files and
modules that functions import later are not included.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import gymnasium

from rltrain.envs.lookup import EnvSource, load_entry_point
from rltrain.envs.names import install_folders

THIS_PACKAGE = "rltrain"


def self_contained(source: EnvSource) -> EnvSource:
    """The same environment in a form that needs no file of the user if it is pickled within `pickled_by_value`."""
    if not isinstance(source.target, str):
        return source
    entry = source.lookup()
    if callable(entry):
        return replace(source, target=entry) if modules_of(entry) else source
    spec = gymnasium.registry[entry]
    creator = None if spec.entry_point is None else load_entry_point(spec.entry_point)
    if creator is None or not modules_of(creator):
        return source
    fields = {**_fields(spec), "entry_point": creator, "vector_entry_point": None}
    own_spec = gymnasium.envs.registration.EnvSpec(**fields)
    return replace(source, target=functools.partial(gymnasium.make, own_spec, disable_env_checker=True))


def modules_of(thing: Any) -> tuple[str, ...]:
    """The imported modules from files of the user that a class or function may need.

    These are its own module and all others of the same package, or of the same folder if it is in no package.
    """
    if isinstance(thing, functools.partial):
        return tuple(dict.fromkeys(name for part in (thing.func, *thing.args) for name in modules_of(part)))
    if isinstance(thing, gymnasium.envs.registration.EnvSpec):
        thing = thing.entry_point
    name = getattr(thing, "__module__", None)
    return _modules_with(name) if isinstance(name, str) else ()


def _modules_with(name: str) -> tuple[str, ...]:
    """The same for the name of a module."""
    top = sys.modules.get(name.partition(".")[0])
    if name == "__main__":
        main = getattr(top, "__file__", None)  # cloudpickle pickles `__main__` itself by value, but not its imports
        home: Path | None = Path.cwd() if main is None else Path(main).resolve().parent
    else:
        home = _home(top)
    if home is None:
        return ()
    folders = {other: _home(module) for other, module in list(sys.modules.items()) if other != "__main__"}
    names = [other for other, folder in folders.items() if folder is not None and folder.is_relative_to(home)]
    return tuple(names) or ("__main__",) * (name == "__main__")


@contextlib.contextmanager
def pickled_by_value(modules: Iterable[str]) -> Iterator[None]:
    """Within this context cloudpickle pickles the contents of these modules by value."""
    skipped = {*cloudpickle.list_registry_pickle_by_value(), "__main__"}
    registered = [sys.modules[name] for name in modules if name in sys.modules and name not in skipped]
    try:
        for module in registered:
            cloudpickle.register_pickle_by_value(module)
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


class SelfContainedPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler of cloudpickle that pickles by value all code that comes from files of the user, wherever it finds it.

    `close` must be called at the end. Not for several threads at once: cloudpickle's list belongs to the process.
    """

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._seen: set[str] = set()  # names of top-level modules
        self._contexts = contextlib.ExitStack()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | FunctionType | ModuleType):
            name = obj.__name__ if isinstance(obj, ModuleType) else getattr(obj, "__module__", None)
            top = str(name).partition(".")[0]
            if top not in self._seen:
                self._seen.add(top)
                self._contexts.enter_context(pickled_by_value(_modules_with(str(name))))
        return super().reducer_override(obj)

    def close(self) -> None:
        """Forget the modules that were pickled by value."""
        self._contexts.close()


def restore_names(*things: Any) -> None:
    """Where things that were pickled by value have arrived: let their classes and functions be found by their names.

    So the environment can pickle objects of its own file, as multiprocessing does. If this machine has a file of the
    user with a module's name, the module is imported, and gets these classes and functions; else it is made. Installed
    modules stay as they are.
    """
    waiting, seen = list(things), dict[int, Any]()  # the objects, too: the number of one that is gone may come again
    arrived: list[type | FunctionType] = []
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, functools.partial):
            waiting += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, MethodType):
            waiting += [one.__func__, one.__self__]
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):  # as EnvSource and Gymnasium's EnvSpec
            waiting += [getattr(one, field.name, None) for field in dataclasses.fields(one)]
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, staticmethod | classmethod):
            waiting.append(one.__func__)
        elif isinstance(one, property):
            waiting += [one.fget, one.fset]
        elif isinstance(one, type | FunctionType):
            if not _is_found(one):
                arrived.append(one)
                waiting += [*vars(one).values(), *one.__bases__] if isinstance(one, type) else _used_by(one)
        elif not _is_installed(type(one).__module__):  # an object of a class of the user's
            waiting += [type(one), *getattr(one, "__dict__", {}).values()]
    for one in arrived:
        if one.__qualname__.isidentifier() and (module := _own_module(one.__module__)) is not None:
            setattr(module, one.__name__, one)


def _used_by(function: FunctionType) -> list[Any]:
    """What a function uses that may be a class or a function: no containers, which may be large."""
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            cells.append(cell.cell_contents)
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    used = [*function.__globals__.values(), *cells, *defaults]
    return [one for one in used if not isinstance(one, dict | list | tuple)]


def _is_found(thing: type | FunctionType) -> bool:
    """True if the name of a class or function leads to it in this process."""
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def _is_installed(name: str) -> bool:
    """True if the module with this name is in use, and comes from no file of the user."""
    module = sys.modules.get(name)
    return module is not None and name != "__main__" and module not in _made and _home(module) is None


def _own_module(name: str) -> ModuleType | None:
    """A module with this name that may be given classes and functions; None if it is an installed one."""
    try:
        module = importlib.import_module(name)
        return module if name == "__main__" or _home(module) is not None or module in _made else None
    except ImportError:
        pass
    except (Exception, SystemExit):  # of the file's own code
        return None
    parent, _, last = name.rpartition(".")
    if parent and _own_module(parent) is None:
        return None
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = []  # so that it can have modules in it
    _made.append(module)
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


_made: list[ModuleType] = []  # by `_own_module`


def _home(module: Any) -> Path | None:
    """The folder of a module that comes from a file of the user; None for installed modules."""
    if module is None or module.__name__.partition(".")[0] in (THIS_PACKAGE, "__main__"):
        return None
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        folder = Path(file).resolve().parent
    elif folders := list(getattr(module, "__path__", ())):  # a package without __init__.py
        folder = Path(folders[0]).resolve()
    else:
        return None
    return None if any(folder.is_relative_to(other) for other in install_folders()) else folder


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name, field in spec.__dataclass_fields__.items() if field.init}
