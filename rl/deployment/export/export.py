"""`rltrain.export` and the check of an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rltrain.config.consent import EVALUATION, NETWORK
from rltrain.config.run_config import RunConfig
from rltrain.deployment.export.deployed import DeployedPolicy
from rltrain.deployment.export.formats import (
    Exported,
    Format,
    check_target,
    example,
    format_of,
    onnx_model,
    onnx_runner,
    to_bytes,
    torch_runner,
    trace,
    write,
)
from rltrain.deployment.export.observations import observations
from rltrain.deployment.export.proof import ROWS, prove
from rltrain.deployment.export.torchscript import script
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.evaluation.policy import Trained, load_for
from rltrain.rollout.buffers import WIDTH
from rltrain.storage import checkpoint
from rltrain.storage.files import one_line, read_json
from rltrain.storage.run_folder import versions


def export(
    what: str | Path | Trained,
    file: str | Path,
    to: Format | None = None,
    best: bool = False,
    recording: str | None = None,
    rows: int = ROWS,
    seed: int = 0,
    trust: bool = False,
) -> dict[str, Any]:
    """Write a policy into one file, and prove that it acts as `Trained.act` does; returns the file's metadata.

    Args:
        what:      a run's folder, a checkpoint, or a `Trained`.
        to:        the format; None: by the ending of the file, .onnx, .pt2 or .ts.
        best:      the best checkpoint in place of the latest.
        recording: a folder of `--record` with the observations of the proof; None: the run's environment plays.
        rows:      number of observations of the proof.
        seed:      of the environment in the proof.
        trust:     a run that somebody else made may import the code that it names.

    Raises:
        ConfigError: an argument is wrong, or a package is missing.
        CheckpointError: there is no checkpoint, it is damaged, or it names code to which the user did not consent.
        RunFailed: the policy cannot be exported, or the proof failed; no file is written.
    """
    path = Path(file)
    kind = format_of(path, to)
    _check_proof(rows, seed)
    check_target(path)
    trained = what if isinstance(what, Trained) else load_for(what, best, trust, _uses(recording))
    seen = observations(trained, rows, seed, recording, trust)
    module = DeployedPolicy(trained.policy, trained.spec, pad=kind == "torch").eval()
    interface = module.interface
    try:
        meta = {"to": kind, **_origin(trained), "versions": versions(), "interface": interface.to_json()}
        if kind == "torchscript":
            content = run_of = script(module, interface, example(interface, WIDTH))
        else:
            graph = trace(module)
            content, run_of = (graph, graph.module()) if kind == "torch" else (onnx_model(graph, interface), None)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # of torch's exporter, or of the user's network
        raise RunFailed(f"{trained.path}: torch cannot export this policy: {one_line(error)}") from error
    if kind == "onnx":
        run = onnx_runner(path, content.SerializeToString(), interface)
    else:
        run = torch_runner(run_of, interface)
    meta["proof"] = prove(trained, run, seen, exact=kind != "onnx")
    write(path, to_bytes(content, kind, meta))
    return Exported(path).meta


def check(
    file: str | Path,
    run: str | Path | None = None,
    recording: str | None = None,
    rows: int = ROWS,
    seed: int = 0,
    trust: bool = False,
) -> dict[str, Any]:
    """Repeat the proof of an exported file; returns its metadata with the new proof. Arguments as for `export`.

    Args:
        run: a run's folder or a checkpoint; None: the checkpoint that the file names.
    """
    _check_proof(rows, seed)
    exported = Exported(file, trust)
    trained = load_for(run if run is not None else _named(exported), False, trust, _uses(recording))
    if _origin(trained)["weights"] != exported.meta.get("weights"):
        raise CheckpointError(
            f"{file} has other weights than {trained.path}: give the checkpoint of step {exported.meta.get('step')}"
        )
    seen = observations(trained, rows, seed, recording, trust)
    return {**exported.meta, "proof": prove(trained, exported.run, seen, exact=exported.to != "onnx")}


def _check_proof(rows: int, seed: int) -> None:
    if rows < 1:
        raise ConfigError(f"rows must be at least 1, got {rows}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")


def _named(exported: Exported) -> Path:
    path = Path(str(exported.meta.get("checkpoint")))
    if not path.is_dir():
        raise CheckpointError(f"{exported.path} was made from {path}, which is gone: give its run with --run")
    return path


def _uses(recording: str | None) -> tuple[str, ...]:
    return EVALUATION if recording is None else NETWORK


def memory_of(config: RunConfig) -> str:
    """The kind of memory that a policy has: what the numbers of its state mean."""
    return str(getattr(config.settings, "memory", "none"))


def _origin(trained: Trained) -> dict[str, Any]:
    """What the file says about its checkpoint."""
    meta, _ = read_json(trained.path / checkpoint.META)
    return {
        "algo": trained.config.algo,
        "env": trained.spec.id,
        "step": int(meta.get("step", 0)),
        "memory": memory_of(trained.config),
        "checkpoint": str(trained.path.absolute()),
        "weights": checkpoint.fingerprint(trained.policy.state_dict()),
    }
