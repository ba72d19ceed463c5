"""Stops with a clear text if another `envs`, `rollout` or `algorithms` would be imported instead of ours."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

NAMES = ("envs", "rollout", "algorithms")
HOME = Path(__file__).resolve().parent.parent


def check(home: Path = HOME) -> None:
    """Looks at what the names lead to, before any of them is imported, or at what was imported already."""
    for name in NAMES:
        found = _found(name)
        if found is None:
            raise ImportError(
                f"rltrain's package {name!r} is missing beside {home / 'rl'}; install rltrain again: "
                "pip install --force-reinstall --no-deps rltrain"
            )
        ours = home / name
        if found.resolve() != ours:
            raise ImportError(
                f"{found} hides rltrain's own package {name!r} ({ours}). Either rename it, or run your script from "
                f"another folder and pass environments by name, as in: rltrain --env my_project.tasks:make_maze"
            )
        init = ours / "__init__.py"
        if not (init.is_file() and re.search(r'^DISTRIBUTION = "rltrain"', init.read_text(), re.MULTILINE)):
            raise ImportError(
                f"{ours} was overwritten by another distribution that has a package {name!r} too. Uninstall that one "
                "(pip list shows its name), then: pip install --force-reinstall --no-deps rltrain"
            )


def _found(name: str) -> Path | None:
    """The folder, or the single file, that `import name` gives; None where there is none."""
    module = sys.modules.get(name)
    if module is not None:
        file, folders = getattr(module, "__file__", None), list(getattr(module, "__path__", []))
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        file, folders = spec.origin if spec.has_location else None, list(spec.submodule_search_locations or [])
    if folders:
        return Path(folders[0])
    return Path(file) if file else None
