"""Finds tuned settings: configs/<algo>/<env>.toml, in the repository or in the installed package."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent  # rl/ in a checkout, rltrain/ in a wheel


def folders() -> list[Path]:
    """Folders of tuned settings: configs/ of a checkout, or rltrain/configs of an installed wheel."""
    return [folder for folder in (PACKAGE.parent / "configs", PACKAGE / "configs") if folder.is_dir()]


def file_name(env: str) -> str:
    """The name of an environment's file: `ALE/Pong-v5` has `ALE-Pong-v5.toml`."""
    return env.replace("/", "-").replace(":", "-") + ".toml"


def find(algo: str, env: str) -> Path | None:
    """The file for this algorithm and environment, or None.

    `ALE.toml` is for all `ALE/...` and `atari:...` without their own file.
    """
    names = [file_name(env)] + (["ALE.toml"] if env.startswith(("ALE/", "atari:")) else [])
    for name in names:
        for folder in folders():
            file = folder / algo / name
            if os.path.isfile(file):  # false for a name that is too long
                return file
    return None


def shown(file: Path) -> str:
    """The name of the file in messages: configs/<algo>/<env>.toml."""
    return "/".join(("configs", file.parent.name, file.name))
