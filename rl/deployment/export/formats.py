"""Exported files: a policy as an archive of torch.export (.pt2), TorchScript or ONNX, with rltrain's metadata in it.

The metadata holds the interface, the checkpoint, the proof, the hash of the rest of the file, and the user's signature.
An ONNX file is data: loading it runs no code. The archives are loaded by torch, which can be made to run code by a
changed file; so they are loaded only if this user signed them, or consents.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rltrain.deployment.export.interface import FORMAT, Interface
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage import files, schema, signature

Format = Literal["torch", "onnx", "torchscript"]
ENDINGS: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch", ".ts": "torchscript"}
KEY = "rltrain"  # of the metadata in ONNX, and the name of its file in an archive
MAX_ROWS = 65536  # of a batch
META_BYTES = 16 * 2**20  # limit of the metadata
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # inputs by name to outputs by name


def need(package: str, extra: str) -> Any:
    """The module; ConfigError with the command that installs it."""
    try:
        return __import__(package)
    except ImportError:
        raise ConfigError(f"{package} is not installed: pip install 'rltrain[{extra}]'") from None


def trace(module: Any) -> Any:
    """The graph of a `DeployedPolicy`, with a free number of rows."""
    import torch

    from rltrain.algorithms.networks.mlp import for_inference

    module = for_inference(copy.deepcopy(module), keeps_memory=False)
    numpy_inputs = example(module.interface, 4)
    inputs = tuple(torch.from_numpy(array) for array in numpy_inputs.values())
    rows = torch.export.Dim("rows", min=1, max=MAX_ROWS)
    with _quiet(), torch.inference_mode():
        graph = torch.export.export(module, inputs, dynamic_shapes={"inputs": tuple({0: rows} for _ in inputs)})
        return graph.run_decompositions({})


def example(interface: Interface, rows: int) -> dict[str, np.ndarray]:
    """Inputs of zeros, with all actions legal: the smallest values of discrete observations."""
    starts = [leaf.start for leaf in interface.spec.leaves()]
    inputs = {port.name: np.zeros((rows, *port.shape), port.dtype) for port in interface.inputs}
    for array, start in zip(inputs.values(), starts, strict=False):
        array += np.array(start or 0, array.dtype).reshape(array.shape[1:] if start else ())
    if "action_mask" in inputs:
        inputs["action_mask"] |= True
    return inputs


def to_bytes(content: Any, to: Format, meta: Mapping[str, Any]) -> bytes:
    """The file with its metadata. `content`: the graph, its `onnx_model`, or a ScriptModule."""
    if to == "torch":
        import torch

        def archive(extra: dict[str, Any]) -> bytes:
            buffer = io.BytesIO()
            with _quiet():
                torch.export.save(content, buffer, extra_files=extra)
            return buffer.getvalue()

        return archive({KEY: json.dumps(_signed(meta, _archive_hash(archive({KEY: "{}"}))))})
    if to == "torchscript":
        from rltrain.deployment.export.torchscript import to_archive

        digest = _archive_hash(to_archive(content, {KEY: "{}"}))
        return to_archive(content, {KEY: json.dumps(_signed(meta, digest))})
    del content.metadata_props[:]
    signed = _signed(meta, _onnx_hash(content))
    entry = content.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(signed)
    need("onnx", "export").checker.check_model(content)
    data: bytes = content.SerializeToString()
    return data


def onnx_model(graph: Any, interface: Interface) -> Any:
    """The graph as an ONNX model without metadata."""
    need("onnx", "export")
    need("onnxscript", "export")
    import torch
    from onnx_ir.passes import common

    with _quiet():
        program = torch.onnx.export(
            graph,
            (),
            input_names=[port.name for port in interface.inputs],
            output_names=[port.name for port in interface.outputs],
            dynamo=True,
            verbose=False,
        )
    graph_of_file: Any = program.model  # type: ignore[union-attr]
    # Greedy and sampled actions come from one network. The exporter writes some of its weights twice, and computes the
    # layers behind them twice.
    for simplify in (
        common.DeduplicateInitializersPass(size_limit=2**40),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        simplify(graph_of_file)
    model: Any = program.model_proto  # type: ignore[union-attr]
    for node in model.graph.node:  # stack traces name the folders of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def _signed(meta: Mapping[str, Any], digest: str) -> dict[str, Any]:
    content = {"format": FORMAT, **meta, "sha256": digest}
    return {**content, "signature": signature.sign(_meta_hash(content))}


def _meta_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _archive_hash(data: bytes) -> str:
    """Of all files in an archive of torch but the metadata."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = info.filename.partition("/")[2]
            if name != f"extra/{KEY}" and not name.endswith("serialization_id"):
                digest.update(f"{name} {info.file_size}\n".encode())
                digest.update(archive.read(info))
    return digest.hexdigest()


def _onnx_hash(model: Any) -> str:
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


class Exported:
    """An exported file: its metadata, and `run`. The metadata is checked as the files of a run are.

    Raises:
        CheckpointError: the file cannot be read, has no metadata of rltrain, is damaged, or is somebody else's archive
            of torch, to which the user did not consent.
    """

    def __init__(self, path: str | Path, trust: bool = False) -> None:
        self.path = Path(path)
        data = files.read_file(self.path)
        archive = data[:2] == b"PK"
        self.meta, digest = _read_archive(self.path, data) if archive else read_onnx(self.path, data)
        self.interface = _checked(self.path, self.meta)
        self.to: Format = "onnx" if not archive else "torchscript" if self.meta.get("to") == "torchscript" else "torch"
        content = {key: value for key, value in self.meta.items() if key != "signature"}
        self.own = signature.is_own(_meta_hash(content), self.meta.get("signature"))
        if digest is not None and digest != self.meta.get("sha256"):
            raise CheckpointError(f"{self.path} is damaged: its content does not match its hash")
        if archive:
            if not (self.own or trust):
                raise CheckpointError(
                    f"you did not export {self.path} here, and torch can run code from such a file when it loads it. "
                    "Nothing was loaded. If you trust it, add --trust (in Python trust=True), or ask for an ONNX file"
                )
            self.run = _torch_runner(self.path, data, self.interface, self.to)
        else:
            self.run = onnx_runner(self.path, data, self.interface)


def _read_archive(path: Path, data: bytes) -> tuple[dict[str, Any], str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > 2 * len(data) + META_BYTES:
                raise ValueError("its files are compressed")
            (info,) = (info for info in infos if info.filename.partition("/")[2] == f"extra/{KEY}")
            if info.file_size > META_BYTES:
                raise ValueError("its metadata is too large")
            text = archive.read(info)
        return _parsed(text), _archive_hash(data)
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no policy that rlexport wrote: {files.one_line(error)}") from None


def read_onnx(path: Path, data: bytes) -> tuple[dict[str, Any], str | None]:
    """The metadata of an ONNX file, and the hash of its graph; None where the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        text = _session(path, data).get_modelmeta().custom_metadata_map.get(KEY)
        digest = None
    else:
        try:
            model = onnx.load_from_string(data)
        except Exception as error:
            raise CheckpointError(f"{path} is no policy that rlexport wrote: {files.one_line(error)}") from None
        text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
        digest = _onnx_hash(model)
    if text is None:
        raise CheckpointError(f"{path} is no policy that rlexport wrote: it has no metadata of rltrain")
    try:
        return _parsed(text.encode()), digest
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its metadata is not the JSON that was written") from None


def _parsed(text: bytes) -> dict[str, Any]:
    if len(text) > META_BYTES:
        raise ValueError("its metadata is too large")
    meta = json.loads(text)
    if not isinstance(meta, dict):
        raise ValueError("its metadata is no object")
    return meta


def _checked(path: Path, meta: dict[str, Any]) -> Interface:
    """The interface in the metadata, with a spec that was checked."""
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {str(meta.get('format'))[:20]}; this version reads format {FORMAT}")
    data = meta.get("interface")
    try:
        spec = schema.read_spec(path, data["spec"])  # type: ignore[index]
        return Interface.from_json(data, spec)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its interface is wrong: {files.one_line(error)}") from None


def _torch_runner(path: Path, data: bytes, interface: Interface, to: Format) -> Run:
    import torch

    try:
        if to == "torchscript":
            from rltrain.deployment.export.torchscript import from_archive

            return torch_runner(from_archive(data), interface)
        with _quiet():
            graph = torch.export.load(io.BytesIO(data)).module()
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded by this torch: {files.one_line(error)}") from None
    return torch_runner(graph, interface)


def torch_runner(module: Any, interface: Interface) -> Run:
    """Calls a module with the inputs of `interface`."""
    import torch

    names = [port.name for port in interface.inputs]
    outputs = [port.name for port in interface.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(inputs[name]) for name in names))
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def onnx_runner(path: Path, data: bytes, interface: Interface) -> Run:
    """Calls an ONNX model by onnxruntime, with one thread."""
    session = _session(path, data)
    names = [port.name for port in interface.outputs]
    taken = {value.name for value in session.get_inputs()}
    if taken != {port.name for port in interface.inputs}:
        raise CheckpointError(f"{path} is damaged: it takes {sorted(taken)[:10]}, and its metadata says otherwise")

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, inputs), strict=True))

    return run


def _session(path: Path, data: bytes) -> Any:
    need("onnxruntime", "serve")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded by onnxruntime: {files.one_line(error)}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters print, log and warn; what matters is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def check_target(path: Path) -> None:
    """ConfigError if no file can be written there."""
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder: name a file in it")


def write(path: Path, data: bytes) -> None:
    """Writes the file atomically; ConfigError as `check_target`."""
    check_target(path)
    files.replace_file(path, data)


def format_of(file: Path, to: str | None) -> Format:
    """The format, by its name or the ending of the file; ConfigError if neither says it."""
    named = ENDINGS.get(file.suffix) if to is None else next((kind for kind in ENDINGS.values() if kind == to), None)
    if named is None and to is None:
        flags = ", ".join(f"--to {kind} ({ending})" for ending, kind in ENDINGS.items())
        raise ConfigError(f"{file}: its ending names no format: {flags}")
    if named is None:
        raise ConfigError(f"to must be {', '.join(ENDINGS.values())}, got {to!r}")
    return named
