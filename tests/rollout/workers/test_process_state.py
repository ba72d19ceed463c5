"""What an environment sets for its whole process does not reach the learner, nor an actor's policy."""

from __future__ import annotations

import atexit
import builtins
import cProfile
import ctypes
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rltrain
from rltrain.envs.errors import ProcessExit
from rltrain.envs.problems.probes import Counter
from rltrain.rollout.workers import process_state
from rltrain.rollout.workers.process_state import LocalSettings

QUICK: dict[str, Any] = {
    "algo": "ppo", "streams": 4, "unroll": 16, "epochs": 1, "minibatches": 1, "widths": (8,), "steps": 130,
    "eval_every": 64, "eval_episodes": 2, "preset": "none", "quiet": True,
}  # fmt: skip


def disturb() -> None:
    """Change all that a process has only once."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("medium")
    np.random.seed(7)
    random.seed(7)
    np.seterr(all="raise")
    np.set_printoptions(precision=1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.environ.update(OMP_NUM_THREADS="7", TMPDIR="/nowhere")
    sys.argv.clear()
    sys.path.clear()
    sys.setswitchinterval(0.9)
    warnings.simplefilter("error")
    locale.setlocale(locale.LC_ALL, "C")
    logging.disable(logging.CRITICAL)
    gc.disable()
    os.umask(0o777)
    tempfile.tempdir = "/nowhere"
    socket.setdefaulttimeout(0.001)
    multiprocessing.set_start_method("spawn", force=True)
    builtins.print = builtins.open = lambda *_, **__: None  # type: ignore[assignment]
    builtins._ = str  # type: ignore[attr-defined]  # as gettext does
    time.time = lambda: 0.0
    sys.meta_path.insert(0, Hook())
    sys.path_hooks.append(no_hook)
    np.seterrcall(lambda *_: None)
    np.setbufsize(16)
    ctypes.CDLL(None).fesetround(UP)
    for limit, soft in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 2**22)):
        resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    multiprocessing.set_executable("/nowhere")
    sys.displayhook = sys.breakpointhook = no_hook
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, lambda *_: None)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.01, 0.01)
    if not MODES:
        MODES[:] = torch.inference_mode(), Dispatch(), torch.autograd.graph.saved_tensors_hooks(twice, twice)
        for mode in MODES:
            mode.__enter__()


MODES: list[Any] = []  # that are never left
LEFT: list[Any] = []  # those of earlier tests: one that is deleted would restore the mode before it


@pytest.fixture(autouse=True)
def no_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that an earlier test in this process has not ended would keep its handlers."""
    monkeypatch.setattr(process_state, "_in_use", weakref.WeakSet())
    monkeypatch.setattr(process_state, "_before", [])
    LEFT.extend(MODES)
    MODES.clear()


class Dispatch(TorchDispatchMode):
    """Changes the results of all functions."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("no torch here")


def twice(tensor: Any) -> Any:
    raise RuntimeError("nothing is saved")


UP = 0x800  # a processor's mode of rounding


def no_hook(path: str) -> Any:
    raise ImportError(path)


class Hook:
    """An import hook."""

    def find_spec(self, name: str, *_: Any) -> Any:
        return None


ONE = 1.0


def state() -> dict[str, Any]:
    numpys: Any = np.random.get_state()
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "torch": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
                  torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), 5e-324 * 1.0,
                  torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled(),
                  torch._C._len_torch_dispatch_stack(), torch.get_rng_state().tolist(),
                  torch._C._autograd._top_saved_tensors_default_hooks(True)),  # type: ignore[attr-defined]
        "random": (random.getstate(), numpys[1].tolist(), numpys[2:]),
        "numpy": (np.geterr(), np.get_printoptions(), np.geterrcall(), np.getbufsize()),
        "sums": (ONE + 1e-17, ONE - 1e-17),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "timers": (signal.getitimer(signal.ITIMER_VIRTUAL), signal.getitimer(signal.ITIMER_PROF)),
        "python": (sys.argv[:], sys.path[:], warnings.filters[:], gc.isenabled(), tempfile.tempdir, time.time,
                   vars(builtins).copy(), sys.meta_path[:], sys.path_hooks[:],
                   sys.displayhook, sys.breakpointhook, spawn.get_executable(),
                   sys.getswitchinterval(), logging.root.manager.disable, locale.setlocale(locale.LC_ALL)),
        "system": (os.getcwd(), dict(os.environ), mask, socket.getdefaulttimeout(),
                   multiprocessing.get_start_method(allow_none=True), os.sched_getaffinity(0),
                   *(resource.getrlimit(limit) for limit in (resource.RLIMIT_CORE, resource.RLIMIT_STACK))),
    }  # fmt: skip


class Disturbs(Counter):
    """`disturb` in its constructor, at each reset and at each step."""

    def __init__(self) -> None:
        super().__init__()
        disturb()

    def reset(self, **kwargs: Any) -> Any:
        assert torch.get_default_dtype() == torch.float64, "it has lost its own settings"
        disturb()
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        assert torch.get_default_dtype() == torch.float64
        disturb()
        return super().step(action)


@pytest.mark.usefixtures("fork_server")
def test_the_weights_are_those_of_an_environment_that_changes_nothing(tmp_path: Path) -> None:
    quiet = rltrain.train(**QUICK, env=Counter, workers=0, out=str(tmp_path)).fingerprint
    before = state()

    here = rltrain.train(**QUICK, env=Disturbs, workers=0, out=str(tmp_path))
    assert state() == before
    there = rltrain.train(**QUICK, env=Disturbs, workers=2, out=str(tmp_path))

    assert (here.fingerprint, there.fingerprint) == (quiet, quiet)
    returns = [rltrain.evaluate(here.run, episodes=2, env=env).returns for env in (Counter, Disturbs)]
    assert returns[0] == returns[1]
    assert state() == before


@pytest.mark.usefixtures("fork_server")
def test_an_evaluation_is_that_of_an_environment_that_changes_nothing(tmp_path: Path) -> None:
    """The first look at an environment changes nothing for the policy that acts in it afterwards."""
    run, before = rltrain.train(**QUICK, env=Counter, workers=0, out=str(tmp_path)).run, state()
    there, here = (rltrain.evaluate(run, episodes=2, env=env).returns for env in (Disturbs, Counter))
    assert there == here
    assert state() == before


class Learns(Counter):
    """Trains a network of its own in `step`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1)

    def step(self, action: Any) -> Any:
        self.network(torch.ones(1)).sum().backward()
        return super().step(action)


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.sweep), 1])
def test_an_environment_may_train_a_network(workers: int, tmp_path: Path) -> None:
    result = rltrain.train(**QUICK, env=Learns, workers=workers, out=str(tmp_path))

    assert result.restarts == 0
    assert rltrain.evaluate(result.run, episodes=1, env=Learns).episodes == 1


@pytest.fixture
def settings() -> Iterator[LocalSettings]:
    found = LocalSettings()
    yield found
    found.end()


def test_the_runs_handlers_hold_while_the_environment_ignores_signals(settings: LocalSettings) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with settings():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGTERM)
        with settings():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_signals_have_the_handlers_that_the_environment_sets(settings: LocalSettings) -> None:
    with settings():
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.signal(signal.SIGUSR1, before) is signal.SIG_IGN

        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os._exit(7 if signal.signal(signal.SIGTERM, signal.SIG_DFL) is signal.SIG_IGN else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_compiled_modules_share_belongs_to_no_side(settings: LocalSettings) -> None:
    """MuJoCo and others keep it in `builtins`, under names with two underscores."""
    shared: Any = builtins
    original, removed = builtins.__build_class__, (shared.copyright, shared.credits)
    try:
        with settings():
            shared.__registry = 1
            shared._ = str
            del shared.copyright, shared.credits
            builtins.__build_class__ = lambda *_: None  # type: ignore[assignment]
        assert shared.__registry == 1
        assert not hasattr(builtins, "_")
        assert (shared.copyright, shared.credits) == removed
        assert builtins.__build_class__ is original
        shared.__registry = 2
        with settings():
            assert (shared.__registry, shared._) == (2, str)
            assert builtins.__build_class__ is not original
            assert not hasattr(builtins, "copyright")
            shared.copyright, shared.credits = removed
            del shared.__registry, shared._
            builtins.__build_class__ = original
        assert settings.unchanged
        assert not hasattr(builtins, "__registry")
    finally:
        vars(builtins).pop("__registry", None)
        builtins.__build_class__ = original
        shared.copyright, shared.credits = removed


def test_generators_of_the_environment_go_on_apart_from_those_around_it(settings: LocalSettings) -> None:
    """They begin where the program seeded them, and go on from call to call."""

    def draw(count: int) -> list[tuple[float, float, float]]:
        return [(random.random(), float(np.random.rand()), float(torch.rand(1))) for _ in range(count)]

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw(4)
    seed()
    with settings():
        drawn = draw(2)
    with settings():
        drawn += draw(2)

    assert drawn == expected
    assert draw(4) == expected


@pytest.mark.parametrize("around", [True, False], ids=["code around it draws too", "the environment alone"])
def test_normal_numbers_of_the_old_functions_come_in_pairs(settings: LocalSettings, around: bool) -> None:
    """The second one of a pair is kept outside of NumPy's generator."""

    def restart(seed: int) -> None:
        np.random.seed(seed)
        random.seed(seed)

    def draw() -> tuple[float, float]:
        return np.random.randn(), random.gauss(0, 1)

    restart(1)
    theirs = [draw() for _ in range(7)]
    restart(2)
    ours = [draw() for _ in range(7)]
    restart(2)
    for number in range(7):
        with settings():
            if number == 0:
                restart(1)
            if number != 3:  # a call that draws nothing
                assert draw() == theirs[number - (number > 3)]
        if around:
            assert draw() == ours[number]


def test_other_signals_have_their_handlers_again_at_the_end(settings: LocalSettings) -> None:
    """Until then a process of the environment may send them, and the default would end the learner."""
    before, asked, other = signal.getsignal(signal.SIGUSR1), list[int](), LocalSettings()
    with settings():
        signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    settings.end()
    os.kill(os.getpid(), signal.SIGUSR1)  # of a process of the other environment
    other.end()

    assert asked == [signal.SIGUSR1, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_end_of_the_process_is_an_exception(settings: LocalSettings) -> None:
    with pytest.raises(ProcessExit), settings():
        os._exit(0)
    with settings():
        assert os.waitstatus_to_exitcode(os.waitpid(_forked(), 0)[1]) == 3  # a fork of it may end


def _forked() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    return pid


def test_its_exit_functions_and_processes_end_with_it() -> None:
    settings, called = LocalSettings(), list[str]()
    with settings():
        atexit.register(called.append, "mine")
        atexit.register(sys.exit, 7)
        child = psutil.Popen(["sleep", "3600"])

    settings.end()

    assert called == ["mine"]
    assert child.wait(5) is not None


def test_its_exit_functions_have_one_time_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltrain.rollout.workers.process_state.CLOSE_SECONDS", 0.2)
    settings, called = LocalSettings(), list[int]()
    with settings():
        for number in range(50):
            atexit.register(lambda number=number: (called.append(number), time.sleep(60)))  # type: ignore[misc]

    settings.end()

    assert 1 <= len(called) < 50


def test_an_alarm_of_the_environment_rings_only_while_its_code_runs(settings: LocalSettings) -> None:
    """A one-shot alarm that it never cancels. The alarm of the code around it, as pytest has one, goes on."""
    rung: list[str] = []
    before, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 100.0)
        with settings():
            signal.signal(signal.SIGALRM, lambda *_: rung.append("ring"))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert signal.getitimer(signal.ITIMER_REAL) == pytest.approx((100.0, 0.0), abs=5.0)
        time.sleep(0.4)
        assert not rung
        with settings():
            time.sleep(0.1)
        assert rung == ["ring"]
        assert signal.getitimer(signal.ITIMER_REAL) == pytest.approx((100.0, 0.0), abs=5.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_it_may_close_its_output() -> None:
    code = (
        "import os, sys\n"
        "from rltrain.rollout.workers.process_state import LocalSettings\n"
        "settings = LocalSettings()\n"
        "with settings():\n"
        "    sys.stdout.close()\n"
        "    sys.stderr = None\n"
        "    sys.__stdout__.close()\n"
        "    os.environ = {}\n"
        "    for number in (0, 1, 2): os.close(number)\n"
        "settings.end()\n"
        "print('still here')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"still here\n"


def test_a_profiler_may_start_while_an_environment_has_settings_of_its_own(settings: LocalSettings) -> None:
    """cProfile's object is no function, which sys.setprofile could put back."""
    profile = cProfile.Profile()
    try:
        with settings():
            os.environ["DIFFERS"] = "1"
        profile.enable()
        with settings():
            json.dumps(os.environ["DIFFERS"])
        json.dumps([])
    finally:
        profile.disable()

    profile.create_stats()
    (calls,) = [stats[0] for (_, _, name), stats in profile.stats.items() if name == "dumps"]  # type: ignore[attr-defined]
    assert calls == 2
