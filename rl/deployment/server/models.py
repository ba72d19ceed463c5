"""A policy that is served: from a run, a checkpoint, or a file of `rlexport`; tested at the start for equal rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rltrain.deployment.export.formats import ENDINGS, Exported, example
from rltrain.deployment.export.interface import Interface
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.actor.noise import DRAWS
from rltrain.system.imports import no_collection

Arrays = dict[str, np.ndarray]
PROOF_ROWS = 16
SHIFTS = (1, 2, 3, 4, 5, 7)  # of the rows of a batch, which find rows that depend on their position
# any: a row has the same bits in every batch; padded: in every batch of `largest` rows; single: in batches of one row.
Batch = Literal["any", "padded", "single"]


@dataclass(frozen=True)
class Source:
    """Where a policy comes from.

    Attributes:
        best:  the best checkpoint of a run in place of the latest.
        trust: code that somebody else's run or file names may be imported.
    """

    path: Path
    best: bool = False
    trust: bool = False

    @property
    def is_file(self) -> bool:
        return not self.path.is_dir() and (self.path.suffix in ENDINGS or self.path.is_file())


@dataclass(frozen=True)
class Model:
    """One version of a policy. `memory`: its kind, such as "gru"; versions of one kind and size continue a session."""

    name: str
    algo: str
    step: int
    path: str
    interface: Interface
    run: Callable[[Arrays], Arrays]
    largest: int  # rows of a batch
    batch: Batch
    memory: str = ""


def load_model(name: str, source: Source, largest: int) -> Model:
    """The newest version of a policy.

    Raises:
        CheckpointError, ConfigError: as for `rltrain.load`; or the policy returns numbers that are not finite.
    """
    if source.is_file:
        exported = Exported(source.path, source.trust)
        meta, interface, run = exported.meta, exported.interface, exported.run
        algo, step, path = str(meta.get("algo")), int(meta.get("step", 0)), str(source.path)
        memory = str(meta.get("memory", ""))
    else:
        algo, step, path, interface, run, memory = _of_run(source)
    return Model(name, algo, step, path, interface, run, largest, _batch(interface, run, largest), memory)


def _of_run(source: Source) -> tuple[str, int, str, Interface, Any, str]:
    with no_collection():
        try:
            import torch
        except ImportError:
            text = "torch is not installed; a file of rlexport --to onnx needs none"
            raise ConfigError(f"{source.path}: {text}") from None
        from rltrain.config.consent import NETWORK
        from rltrain.deployment.export.deployed import DeployedPolicy
        from rltrain.deployment.export.export import memory_of
        from rltrain.deployment.export.formats import torch_runner
        from rltrain.evaluation.policy import load_for
        from rltrain.storage import checkpoint
        from rltrain.storage.files import read_json

    torch.set_num_threads(1)
    trained = load_for(source.path, source.best, source.trust, NETWORK)
    deployed = DeployedPolicy(trained.policy, trained.spec, scores=False)
    meta, _ = read_json(trained.path / checkpoint.META)
    run = torch_runner(deployed, deployed.interface)
    step = int(meta.get("step", 0))
    return trained.config.algo, step, str(trained.path), deployed.interface, run, memory_of(trained.config)


def _batch(interface: Interface, run: Callable[[Arrays], Arrays], largest: int) -> Batch:
    """The batches in which a row has the same bits, whatever other rows there are; found by computing some."""
    inputs, rng = example(interface, largest), np.random.default_rng(0)
    for name, array in inputs.items():
        if array.dtype.kind == "f":
            inputs[name] = rng.standard_normal(array.shape).astype(array.dtype)
        elif name in ("sample", "first"):
            inputs[name] = rng.random(array.shape) < 0.5
    whole = run(inputs)
    for name, array in whole.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"the policy returns numbers that are not finite, in {name}: use another checkpoint")

    def same(places: np.ndarray) -> bool:
        part = run({name: array[places] for name, array in inputs.items()})  # copies, at addresses of their own
        return all(np.array_equal(part[name], array[places]) for name, array in whole.items())

    every = np.arange(largest)
    others = [np.roll(every, shift) for shift in SHIFTS] + [np.full(largest, row) for row in {0, largest - 1}]
    if not all(same(places) for places in others):  # rows that depend on their place, or on what the others contain
        return "single"
    sizes = sorted({1, 2, 3, 5, 8, PROOF_ROWS, largest - 1} & set(range(1, largest + 1)))
    alone = all(same(every[begin : begin + rows]) for rows in sizes for begin in {0, largest - rows})
    return "any" if alone else "padded"


def noise_rows(interface: Interface, seed: int, row: int) -> np.ndarray:
    """The noise of one row [K] of a request with this seed."""
    width = interface.noise.width
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, row], np.uint64)))
    drawn: np.ndarray = DRAWS[interface.noise.kind](rng, (1, width))[0].astype(np.float32)
    return drawn
