"""A policy as TorchScript: traced for one width, and a loop over as many rows as there are."""

from __future__ import annotations

import copy
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from rltrain.algorithms.networks.mlp import for_inference
from rltrain.deployment.export.interface import Interface
from rltrain.rollout.buffers import WIDTH


def script(module: torch.nn.Module, interface: Interface, inputs: Mapping[str, Any]) -> Any:
    """The ScriptModule of a `DeployedPolicy` that does not pad.

    A trace keeps the sizes that it saw, so the policy is traced with `WIDTH` rows, and TorchScript computes a batch in
    parts of that width: a row has the same bits in every one of them.

    Args:
        inputs: an example of WIDTH rows.
    """
    module = for_inference(copy.deepcopy(module), keeps_memory=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and each size that a trace keeps is a warning
        jit: Any = torch.jit
        traced = jit.trace(module, tuple(map(torch.from_numpy, inputs.values())), check_trace=False)
        return _InParts(traced, _source(interface)).eval()


def _source(interface: Interface) -> str:
    """The code of the loop, with the inputs in the order of the interface and a tuple of its outputs."""
    names = _arguments(interface)
    lists = [f"part{number}" for number in range(len(interface.outputs))]
    lines = [
        f"def forward(self, {', '.join(f'{name}: Tensor' for name in names)}):",
        f"    rows = {names[0]}.size(0)",
        f"    width = (rows + {WIDTH - 1}) // {WIDTH} * {WIDTH}",
        "    every = torch.arange(width).clamp(max=rows - 1)",
        *(f"    {name}: List[Tensor] = []" for name in lists),
        f"    for begin in range(0, width, {WIDTH}):",
        f"        at = every[begin : begin + {WIDTH}]",
        f"        found = self.policy({', '.join(f'{name}.index_select(0, at)' for name in names)})",
        *(f"        {name}.append(found[{number}])" for number, name in enumerate(lists)),
        f"    return ({', '.join(f'torch.cat({name})[:rows]' for name in lists)},)",
    ]
    return "\n".join(lines) + "\n"


def _arguments(interface: Interface) -> list[str]:
    """The names of the inputs as arguments: obs_KEY for obs.KEY."""
    names: list[str] = []
    for number, port in enumerate(interface.inputs):
        name = re.sub(r"\W", "_", port.name, flags=re.ASCII)
        names.append(f"{name}_{number}" if name in names else name)
    return names


class _InParts(torch.jit.ScriptModule):
    def __init__(self, policy: Any, source: str) -> None:
        super().__init__()
        self.policy = policy
        self.define(source)


def to_archive(module: Any, extra: Mapping[str, str]) -> bytes:
    """The file of a ScriptModule, without the stack traces in it, which name the folders of this machine."""
    buffer, clean = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, buffer, _extra_files=dict(extra))
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(clean, "w") as target:
        for info in source.infolist():
            if not info.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(info.filename), source.read(info))
    return clean.getvalue()


def from_archive(data: bytes) -> Any:
    """The ScriptModule in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit: Any = torch.jit
        return jit.load(io.BytesIO(data), map_location="cpu")
