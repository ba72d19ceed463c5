"""Tuned settings: configs/<algo>/<env>.toml, in the repository or inside the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent  # rl/ in a checkout, rltrain/ in a wheel


def folders() -> list[Path]:
    """Folders of tuned settings: configs/ of a checkout, or rltrain/configs of an installed wheel."""
    return [folder for folder in (PACKAGE.parent / "configs", PACKAGE / "configs") if folder.is_dir()]


def file_name(env: str) -> str:
    """`ALE/Pong-v5` is tuned in `ALE-Pong-v5.toml`: a name without / and :."""
    return env.replace("/", "-").replace(":", "-") + ".toml"


def find(algo: str, env: str) -> Path | None:
    """The file tuned for this algorithm and environment, or for all environments of its family, or None.

    `ALE.toml` is for every `ALE/...` and `atari:...` that has no file of its own.
    """
    names = [file_name(env)] + (["ALE.toml"] if env.startswith(("ALE/", "atari:")) else [])
    for name in names:
        for folder in folders():
            file = folder / algo / name
            if file.is_file():
                return file
    return None


def shown(file: Path) -> str:
    """The name a person knows it by: configs/<algo>/<env>.toml."""
    return "/".join(("configs", file.parent.name, file.name))
