"""The rule of who may import whom, as a test. `python tests/test_layers.py` prints the faults too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["envs", "rollout", "algorithms", "rl"]  # each may import those before it
ALGORITHMS_MAY = {"rollout.types", "rollout.tree", "envs.spec"}  # of the lower layers
HEAVY = {  # module: the files that may import it
    "loky": {"rollout/processes.py"},
    "tensorboard": {"rl/metrics.py"},
    "torch.utils.tensorboard": {"rl/metrics.py"},
    "rich": {"rl/console.py"},
    "dask": {"rollout/cluster.py"},
    "distributed": {"rollout/cluster.py"},
    "torch.distributed": {"rl/learners.py", "rl/shared.py"},
}
LIGHT = [  # files that --help imports, and so must not import torch while they are imported
    *(
        f"rl/{name}.py"
        for name in "__init__ _shadow cli config console errors explain flags metrics presets torchrun".split()
    ),
    "algorithms/__init__.py",
    "algorithms/settings.py",
    "algorithms/settings_continuous.py",
    "rollout/__init__.py",
    "rollout/types.py",
    "rollout/tree.py",
    "envs/__init__.py",
    "envs/errors.py",
    "envs/spec.py",
]


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
    return [
        f"{file} imports {name}"
        for layer, file, tree in sources()
        for name in imports(tree)
        if name.partition(".")[0] in LAYERS[LAYERS.index(layer) + 1 :]
    ]


def test_imports_point_downwards_only() -> None:
    """An upward import is how a framework begins; each package knows only those below it."""
    assert not upward(), "\n".join(upward())


def test_algorithms_know_only_the_types_of_the_layers_below() -> None:
    faults = [
        f"{file} imports {name}"
        for layer, file, tree in sources()
        for name in imports(tree)
        if layer == "algorithms"
        and name.partition(".")[0] in ("rollout", "envs")
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


def test_no_source_file_is_longer_than_a_person_reads() -> None:
    long = [f"{file} has {len((ROOT / file).read_text().splitlines())} lines" for _, file, _ in sources()]
    assert not [line for line in long if int(line.split()[-2]) > 400]


if __name__ == "__main__":
    sys.exit("\n".join(upward()) or 0)
