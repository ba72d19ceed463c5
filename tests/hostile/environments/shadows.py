"""Environments beside files whose names are those of modules that Python, we or others use."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

from harmless import Harmless


class BesideStandard(Harmless):
    """Beside random.py, types.py, queue.py, json.py, select.py and logging.py."""

    EXPECT = {"beside": ["random.py", "types.py", "queue.py", "json.py", "select.py", "logging.py"]}


class BesideInstalled(Harmless):
    """Beside torch.py, numpy.py, gymnasium.py, loky.py and cloudpickle.py."""

    EXPECT = {"beside": ["torch.py", "numpy.py", "gymnasium.py", "loky.py", "cloudpickle.py"]}


class BesideOurs(Harmless):
    """Beside envs.py, rollout.py, algorithms.py, rl.py and rltrain.py."""

    EXPECT = {"beside": ["envs.py", "rollout.py", "algorithms.py", "rl.py", "rltrain.py"]}


class BesideStartUp(Harmless):
    """Beside sitecustomize.py, usercustomize.py and site.py that raise."""

    EXPECT = {"beside": ["sitecustomize.py", "usercustomize.py", "site.py"]}


class NamedQueue(Harmless):
    """In a file named queue.py."""

    EXPECT = {"file": "queue.py"}


class NamedEnvs(Harmless):
    """In a file named envs.py."""

    EXPECT = {"file": "envs.py"}


class NamedTorch(Harmless):
    """In a file named torch.py."""

    EXPECT = {"file": "torch.py"}


class NamedOddly(Harmless):
    """In a file whose name is no name of Python: my env-2.0.py"""

    EXPECT = {"file": "my env-2.0.py"}


class InFolder(Harmless):
    """In a file of a folder named random."""

    EXPECT = {"file": "random/mine.py"}


class AsModule(Harmless):
    """Given as module:Class, from the current folder."""

    EXPECT = {"as": "shadows:AsModule"}


def same(value: Any) -> Any:
    return value


class SendsItself(Harmless):
    """Sends objects of its own file to a process that multiprocessing spawns, and back."""

    tried = False  # in this process

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if not SendsItself.tried:
            SendsItself.tried = True
            assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert type(pool.apply(same, [Thing()])) is Thing
        return super().reset(seed=seed)


class Thing:
    """Is pickled by name."""
