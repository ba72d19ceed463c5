"""Fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import watches

# A shell that starts the tests in the background ignores SIGINT, and commands that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Rewriting the assertions of all tests takes most of the collection, so the result is kept even where
# PYTHONDONTWRITEBYTECODE is set: for our own modules and tests, not for what tests import from folders of theirs.
writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, False


def pytest_collection_finish() -> None:
    """All modules and tests are there. Each run collects garbage at its end, and need not look through them all."""
    sys.dont_write_bytecode = writes_none
    gc.collect()
    gc.freeze()


def start_server() -> None:
    from rltrain.rollout.workers.fork_server import start_fork_server

    start_fork_server(["torch", "gymnasium", "rltrain.algorithms.on_policy.actor_critic"])


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Actors in processes start quickly from here on, as under our own commands."""
    start_server()


@pytest.fixture(scope="session", autouse=True)
def quick_workers() -> None:
    """Workers that a test starts in processes are forked too: the first one starts the fork server.

    A program of a user starts a Python for each of them, which takes seconds; tests of that are in processes of their
    own, as test_a_script_without_a_guard_starts_processes.
    """
    from rltrain.rollout.workers import process

    has = process.has_fork_server

    def started() -> bool:
        start_server()
        return has()

    process.has_fork_server = started


@pytest.fixture(scope="session", autouse=True)
def quick_watches() -> None:
    """Runs in this process are watched by forks of one process."""
    watches.use_forks()


@pytest.fixture(scope="session", autouse=True)
def quick_files() -> None:
    """Files are not written through to the disk: no test takes the power away."""
    os.fsync = lambda _: None


@pytest.fixture(scope="session", autouse=True)
def quick_look() -> None:
    """Environments are examined in forks of this process, since a new Python takes a third of a second."""
    from rltrain.setup import task_process

    task_process.start_method = lambda: "fork"


@pytest.fixture(scope="session", autouse=True)
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs of the tests are signed with a key of their own, which is created at the first use."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(autouse=True)
def forgotten_modules() -> Iterator[None]:
    """What a test imports from its own folder is forgotten: the next test may have a file with the same name."""
    before, folders = set(sys.modules), set(sys.path)
    yield
    sys.path[:] = [path for path in sys.path if path in folders or f"{os.sep}pytest-" not in path]
    for name in set(sys.modules) - before:
        if f"{os.sep}pytest-" in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def same_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next test finds Python's own functions again where a package puts its own ones, as wandb does."""
    for name in ("exit", "excepthook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.fixture(autouse=True)
def closed_rollouts() -> Iterator[None]:
    """A test that fails leaves its actors open, and the interpreter would wait for them at its end."""
    yield
    faulty = sys.modules.get("oracles.faulty")
    while faulty is not None and faulty.opened:
        faulty.opened.pop().close()
