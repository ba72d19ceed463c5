"""Keeps MuJoCo's warnings about deprecated attributes of model files off the console."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

DEPRECATION = "is deprecated and will be removed in a future release"


def filter_mujoco_log() -> None:
    """Write deprecation warnings of model files only to MuJoCo's log file, each once; print other warnings as before.

    Nothing changes if MuJoCo is not imported or already has a handler for warnings.
    """
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mju_user_warning() is not None:
        return
    logged: set[str] = set()

    def warning(text: str) -> None:
        if DEPRECATION in text:
            if text in logged:
                return
            logged.add(text)
        else:
            with contextlib.suppress(OSError, ValueError):  # no exception may reach MuJoCo's C code
                print(f"WARNING: {text}\n", file=sys.stderr, flush=True)
        mujoco.mju_writeLog("WARNING", text)

    mujoco.set_mju_user_warning(warning)
