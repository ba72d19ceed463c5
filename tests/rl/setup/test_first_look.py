"""The examination of an environment: what a run gets to know, in a fork and in a new Python."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from rltrain.config.load import load
from rltrain.envs import closing
from rltrain.envs.errors import EnvError
from rltrain.envs.make import resolve
from rltrain.envs.problems.probes import Counter
from rltrain.setup import task_process
from rltrain.setup.environment import open_environment
from rltrain.setup.first_look import Examination, look_at
from rltrain.setup.task_process import TaskProcess


def config(env: Any, **settings: Any) -> Any:
    return load({"algo": "ppo", "env": env, "workers": 0, "preset": "none", **settings})


def test_a_close_that_hangs_or_exits_is_ignored(monkeypatch: Any) -> None:
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(closing, "SECOND_CLOSE", 0.05)

    class Closes(Counter):
        def close(self) -> None:
            try:
                time.sleep(3600)
            finally:
                sys.exit(3)

    assert open_environment(config(Closes, actor_timeout=1.0))[0].kind == "serial"


def test_a_new_python_finds_the_same(monkeypatch: Any) -> None:
    here = open_environment(config("CartPole-v1", streams=200))[0]
    monkeypatch.setattr(task_process, "start_method", lambda: "spawn")
    there = open_environment(config("CartPole-v1", streams=200))[0]

    assert (here.spec, here.kind, here.units, here.restore_method) == (
        there.spec, there.kind, there.units, there.restore_method,
    )  # fmt: skip


def test_a_resumed_run_decides_nothing_that_its_checkpoint_knows() -> None:
    with look_at(config("CartPole-v1"), new=False) as look:
        assert look.result().spec.id == "CartPole-v1"
        look.start("read_spec", 0)
        assert look.result().id == "CartPole-v1"  # the restore method was not asked for


def test_a_misspelled_name_finds_a_registered_one_from_the_child(monkeypatch: Any) -> None:
    from rltrain.envs import names

    monkeypatch.setattr(names, "_registered", {"my-line": Counter})
    monkeypatch.setattr(task_process, "start_method", lambda: "spawn")
    with TaskProcess(Examination, resolve("my-lin"), 60.0) as look:
        look.start("read_spec", 0)
        with pytest.raises(EnvError, match="'my-line'"):
            look.result()
