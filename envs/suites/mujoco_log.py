"""Keeps off the console what MuJoCo has to say to the authors of model files, once for each environment made."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

ADVICE = "is deprecated and will be removed in a future release"


def filter_mujoco_log() -> None:
    """Warnings that an attribute of a model file is deprecated go to MuJoCo's log file only, and there once.

    All others are told as ever. Nothing is done where MuJoCo was not imported, or somebody handles its warnings.
    """
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mju_user_warning() is not None:
        return
    told: set[str] = set()

    def warning(text: str) -> None:
        if ADVICE in text:
            if text in told:
                return
            told.add(text)
        else:
            with contextlib.suppress(OSError, ValueError):  # nothing must be raised into C
                print(f"WARNING: {text}\n", file=sys.stderr, flush=True)
        mujoco.mju_writeLog("WARNING", text)

    mujoco.set_mju_user_warning(warning)
