"""The rules of who may import whom, as tests. `python tests/test_layers.py` prints what breaks them."""

from __future__ import annotations

import ast
import functools
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["envs", "rollout", "algorithms", "rl"]  # each may import those before it
ALGORITHMS_MAY = {  # of the lower layers
    "rltrain.rollout.types",
    "rltrain.rollout.tree",
    "rltrain.rollout.trajectories",
    "rltrain.rollout.specs",
    "rltrain.envs.spec",
}
ORDER = {  # inside a package, top to bottom: a line may import those after it; names on one line, not each other
    "envs": [
        "make check pickling",
        "lookup vector",
        "multi_agent",
        "suites",
        "problems spaces",
        "values names",
        "closing",
        "spec errors seeding known",
    ],
    "rollout": [
        "scheduler",
        "backends",
        "cluster",
        "actor",
        "inference",
        "supervision",
        "replay shared_memory",
        "specs trajectories frame_stacks",
        "buffers",
        "types",
        "tree workers",
    ],
    "algorithms": [
        "multi_agent offline",
        "off_policy",
        "on_policy",
        "networks",
        "protocol registry",
        "functions settings",
    ],
    "rl": [
        "__main__ train",
        "cli",
        "tuning",
        "deployment",
        "data seed_runs",
        "training_loop",
        "run",
        "callbacks",
        "evaluation jobs",
        "reporting",
        "doctor",
        "setup",
        "learner",
        "comparison",
        "storage",
        "config system",
        "errors",
    ],
}
HEAVY = {  # module: the files that may import it
    "pyarrow": {"rl/data/columnar.py"},
    "h5py": {"rl/data/formats.py"},
    "minari": {"rl/data/formats.py"},
    "loky": {"rollout/workers/process.py"},
    "tensorboard": {"rl/reporting/metrics.py"},
    "torch.utils.tensorboard": {"rl/reporting/metrics.py"},
    "matplotlib": {"rl/comparison/pictures.py", "rl/tuning/report.py"},
    "rich": {"rl/reporting/console.py"},
    "dask": {"rollout/cluster/connect.py"},
    "distributed": {"rollout/cluster/connect.py"},
    "torch.distributed": {"rl/learner/data_parallel.py", "rl/learner/process_group.py"},
}
LIGHT = [  # files that --help imports, and so must not import torch while they are imported
    "rl/__init__.py",
    "rl/cli.py",
    "rl/errors.py",
    "rl/config/",
    "rl/reporting/console.py",
    "rl/reporting/metrics.py",
    "rl/setup/first_look.py",
    "rl/setup/task_process.py",
    "rl/storage/files.py",
    "rl/storage/run_folder.py",
    "rl/system/imports.py",
    "rl/system/signals.py",
    "rl/system/torchrun.py",
    "rl/training_loop.py",
    "algorithms/__init__.py",
    "algorithms/settings.py",
    "algorithms/on_policy/settings.py",
    "algorithms/off_policy/settings.py",
    "algorithms/offline/settings.py",
    "algorithms/multi_agent/settings.py",
    "rollout/__init__.py",
    "rollout/types.py",
    "rollout/tree.py",
    "rollout/trajectories.py",
    "rollout/specs.py",
    "envs/__init__.py",
    "envs/errors.py",
    "envs/names.py",
    "envs/spec.py",
]
MOST = 22  # files and folders directly inside a package: rl/ has one for each part of the platform


def module_of(file: Path) -> str:
    """`rltrain.envs.spec` for envs/spec.py, `rltrain.cli` for rl/cli.py: as package-dir in pyproject.toml has it."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "rl" else parts
    return ".".join(("rltrain", *(part for part in parts if part != "__init__")))


def layer_of(module: str) -> str:
    part = (module + ".").split(".")[1]
    return part if part in LAYERS else "rl"


@functools.cache
def imports(tree: ast.AST, nested: bool = True) -> list[str]:
    """Modules a file imports, `from a import b` as a.b too; with `nested` also inside functions."""
    found: list[str] = []
    for node in ast.walk(tree) if nested else ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def sources() -> list[tuple[str, str, ast.AST]]:
    return [
        (layer, file.relative_to(ROOT).as_posix(), ast.parse(file.read_text()))
        for layer in LAYERS
        for file in sorted((ROOT / layer).rglob("*.py"))
    ]


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, inside functions and for type checkers too."""
    trees = {module_of(ROOT / file): tree for _, file, tree in sources()}
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        graph[module] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names} & trees.keys()
            elif isinstance(node, ast.ImportFrom) and node.module in trees:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= (names & trees.keys()) or {node.module}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph[node]:
                found.append(group)

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def part_of(module: str) -> tuple[str, str]:
    """The layer of a module, and the file or folder directly inside it: ("rl", "setup") of `rltrain.setup.rollout`."""
    layer = layer_of(module)
    parts = module.split(".")[1:] if layer == "rl" else module.split(".")[2:]
    return layer, parts[0] if parts else "__init__"


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


def test_no_module_imports_itself_by_way_of_others() -> None:
    found = cycles(import_graph())
    assert not found, found


def test_cycles_are_found() -> None:
    """The search itself: two loops, and a diamond, which is none."""
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"a"}, "b": set()}) == [["a"]]
    assert not cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()})


def test_parts_of_a_package_import_those_below_them() -> None:
    rank = {(layer, name): place for layer in ORDER for place, line in enumerate(ORDER[layer]) for name in line.split()}
    modules = {module: part_of(module) for module in import_graph()}
    missing = {part for part in modules.values() if part not in rank and part[1] != "__init__"}
    assert not missing, f"not in ORDER: {missing}"
    faults = [
        f"{module} imports {other}"
        for module, others in import_graph().items()
        for other in others
        if modules[module][0] == modules[other][0]
        and modules[module] != modules[other]
        and "__init__" not in (modules[module][1], modules[other][1])
        and rank[modules[module]] >= rank[modules[other]]
    ]
    assert not faults, "\n".join(faults)


def test_a_package_is_seen_at_a_glance() -> None:
    for layer in LAYERS:
        for folder in [ROOT / layer, *(path.parent for path in (ROOT / layer).rglob("__init__.py"))]:
            inside = [
                path.name for path in folder.iterdir() if path.suffix in (".py", "") and path.name != "__pycache__"
            ]
            assert len(inside) <= MOST, (folder, sorted(inside))


def test_every_folder_is_part_of_the_installed_package() -> None:
    """`packages` in pyproject.toml lists them one by one."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = [module_of(file) for layer in LAYERS for file in (ROOT / layer).rglob("__init__.py")]
    assert sorted(listed) == sorted(there)


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
        if file.startswith(tuple(LIGHT))
        and name.partition(".")[0] in ("torch", "gymnasium", "loky", "rich", "pettingzoo")
    ]
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    sys.exit("\n".join(upward()) or 0)
