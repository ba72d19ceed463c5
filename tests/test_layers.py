"""The rules of who may import whom, as tests. `python tests/test_layers.py` prints what breaks them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["envs", "rollout", "algorithms", "rl"]  # each may import those before it
ALGORITHMS_MAY = {"rltrain.rollout.types", "rltrain.rollout.tree", "rltrain.envs.spec"}  # of the lower layers
HEAVY = {  # module: the files that may import it
    "loky": {"rollout/workers/process.py"},
    "tensorboard": {"rl/metrics.py"},
    "torch.utils.tensorboard": {"rl/metrics.py"},
    "rich": {"rl/console.py"},
    "dask": {"rollout/cluster/connect.py"},
    "distributed": {"rollout/cluster/connect.py"},
    "torch.distributed": {"rl/learners.py", "rl/shared.py"},
}
LIGHT = [  # files that --help imports, and so must not import torch while they are imported
    *(f"rl/{name}.py" for name in "__init__ cli config console errors explain flags metrics presets torchrun".split()),
    "algorithms/__init__.py",
    "algorithms/on_policy/settings.py",
    "algorithms/off_policy/settings.py",
    "rollout/__init__.py",
    "rollout/types.py",
    "rollout/tree.py",
    "envs/__init__.py",
    "envs/errors.py",
    "envs/spec.py",
]


def module_of(file: Path) -> str:
    """`rltrain.envs.spec` for envs/spec.py, `rltrain.train` for rl/train.py: as package-dir in pyproject.toml has it."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "rl" else parts
    return ".".join(("rltrain", *(part for part in parts if part != "__init__")))


def layer_of(module: str) -> str:
    part = (module + ".").split(".")[1]
    return part if part in LAYERS else "rl"


def imports(tree: ast.AST, nested: bool = True) -> Iterator[str]:
    """Modules a file imports, `from a import b` as a.b too; with `nested` also inside functions."""
    for node in ast.walk(tree) if nested else ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> Iterator[tuple[str, str, ast.AST]]:
    for layer in LAYERS:
        for file in sorted((ROOT / layer).rglob("*.py")):
            yield layer, file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())


def upward() -> list[str]:
    above = {layer: set(LAYERS[LAYERS.index(layer) + 1 :]) for layer in LAYERS}
    return [
        f"{file} imports {name}"
        for layer, file, tree in sources()
        for name in imports(tree)
        if name.startswith("rltrain.") and layer_of(name) in above[layer]
    ]


def test_imports_point_downwards_only() -> None:
    """Each package knows only those below it."""
    assert not upward(), "\n".join(upward())


def test_nothing_imports_the_folders_by_their_own_names() -> None:
    """`import envs` would work in a checkout only; the installed package is `rltrain`."""
    faults = [f"{file} imports {name}" for _, file, tree in sources() for name in imports(tree)
              if name.partition(".")[0] in LAYERS]  # fmt: skip
    assert not faults, "\n".join(faults)


def test_algorithms_know_only_the_types_of_the_layers_below() -> None:
    faults = [
        f"{file} imports {name}"
        for layer, file, tree in sources()
        for name in imports(tree)
        if layer == "algorithms"
        and name.startswith(("rltrain.rollout", "rltrain.envs"))
        and not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALGORITHMS_MAY)
    ]
    assert not faults, "\n".join(faults)


def test_heavy_packages_stay_in_their_files() -> None:
    faults = [
        f"{file} imports {name}"
        for _, file, tree in sources()
        for name in set(imports(tree))
        for heavy, allowed in HEAVY.items()
        if f"{name}.".startswith(f"{heavy}.") and file not in allowed
    ]
    assert not faults, "\n".join(faults)


def test_what_help_needs_imports_no_torch() -> None:
    faults = [
        f"{file} imports {name}"
        for _, file, tree in sources()
        for name in imports(tree, nested=False)
        if file in LIGHT and name.partition(".")[0] in ("torch", "gymnasium", "loky", "rich", "pettingzoo")
    ]
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    sys.exit("\n".join(upward()) or 0)
