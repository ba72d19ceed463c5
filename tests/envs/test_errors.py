"""What is shown of an exception of a user's code, and when two of them are the same fault."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import pytest

from rltrain.envs.errors import (
    EnvFault,
    describe,
    in_user_code,
    made_already,
    place_of,
    user_traceback,
    whole_traceback,
)
from rltrain.envs.make import read_spec, resolve


def raises(text: str) -> None:
    try:
        int("x")
    except ValueError as error:
        raise RuntimeError(text) from error


def raised(function: Any) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def test_a_traceback_begins_at_the_users_code_and_keeps_its_causes() -> None:
    """Frames of Python and ours before it are left out."""
    text = user_traceback(raised(functools.partial(functools.reduce, lambda a, b: raises("mine"), [1, 2])))

    files = [line for line in text.splitlines() if line.startswith("  File")]
    assert all("test_errors.py" in line for line in files)
    assert "invalid literal for int()" in text
    assert text.endswith("RuntimeError: mine\n")


def test_an_exception_of_ours_keeps_all_frames() -> None:
    ours = raised(lambda: gymnasium.make("NoSuch-v0"))
    ours.__traceback__ = ours.__traceback__.tb_next.tb_next  # type: ignore[union-attr]  # without those of this file

    assert not in_user_code(ours)
    assert "registration.py" in whole_traceback(ours)


class Breaks(gymnasium.Env[Any, Any]):
    """Cannot be made."""

    def __init__(self) -> None:
        raises("no licence")


def test_a_fault_shows_the_traceback_once() -> None:
    with pytest.raises(EnvFault) as caught:
        read_spec(resolve(Breaks), 0)

    assert str(caught.value) == describe(caught.value).rstrip()
    assert str(caught.value).count("RuntimeError: no licence") == 1
    assert "lookup.py" not in str(caught.value)
    assert caught.value.__cause__ is None


FAULT = (
    'the environment of stream 3 (seed 7) failed at step 40:\nTraceback (most recent call last):\n  File "{}", line 3'
)
FAULT += ", in step\n    raise ValueError(x)\nValueError: {}\n"


def test_a_fault_is_the_same_if_place_step_and_kind_are() -> None:
    first = place_of(FAULT.format("/home/me/mine.py", "x = 0.1"))

    assert first is not None
    assert first == place_of(FAULT.format("/home/me/mine.py", "x = 0.2").replace("seed 7", "seed -1"))
    for change in (
        ("step 40", "step 41"),
        ("stream 3", "stream 2"),
        ("line 3", "line 4"),
        ("\nValueError", "\nKeyError"),
    ):
        assert first != place_of(FAULT.format("/home/me/mine.py", "x").replace(*change))
    assert place_of("its process was ended by SIGKILL") is None
    assert place_of(FAULT.format(gymnasium.__file__, "x")) is None  # no code of a user's


def test_an_instance_is_told_apart_from_a_class() -> None:
    env = gymnasium.make("CartPole-v1")

    assert made_already(gymnasium.Env) is None
    assert made_already("CartPole-v1") is None
    assert str(made_already(env)).startswith("env is an instance of CartPoleEnv, ")
    assert "its id 'CartPole-v1'" in str(made_already(env))
