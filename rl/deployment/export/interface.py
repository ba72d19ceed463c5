"""The inputs and outputs of an exported policy: names, shapes and types. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rltrain.envs.spec import ActionSpec, EnvSpec, ObsSpec, from_json, iter_leaves, to_json
from rltrain.rollout.types import Noise

FORMAT = 1
UNSIGNED = ("uint16", "uint32", "uint64")  # a graph returns int64 in place of these


@dataclass(frozen=True)
class Port:
    """One input or output [B, *shape].

    Attributes:
        dtype: in the graph.
        casts: the type that the environment wants, if it is another: cast to it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    casts: str = ""


@dataclass(frozen=True)
class Interface:
    """What an exported policy takes and returns. B, the number of rows, is free; rows do not depend on each other.

    Inputs, in this order; those that the policy does not need are missing:

        obs, obs.KEY ...  as the environment returns them; several agents: obs.GROUP [B, n, *O]
        action_mask       [B, m]  bool, legal actions
        core              [B, C]  float32, the memory; zeros before the first step
        first             [B]     bool, this row begins an episode: the memory before it is emptied
        present           [B, N]  bool, several agents with memory: those that take part
        noise             [B, K]  float32, of the kind `noise`; only rows that are sampled read it
        sample            [B]     bool, sample the action; False: take the most likely one

    Outputs:

        action            [B, *A] for the environment: clipped and scaled; several agents: action.GROUP [B, n, *A]
        next_core         [B, C]  the memory for the next step
        log_prob          [B]     of the action, of a sampled row; 0 for the others; several agents: [B, N]
        scores            [B, ..] the numbers by which Discrete actions were chosen
    """

    spec: EnvSpec
    noise: Noise
    core_size: int
    log_prob: bool
    scores: tuple[int, ...] | None

    @property
    def inputs(self) -> list[Port]:
        spec, agents = self.spec, len(self.spec.agents)
        ports = list(obs_ports(spec))
        if spec.action_mask:
            ports.append(Port("action_mask", (spec.action.mask_size,), "bool"))
        if self.core_size:
            ports += [Port("core", (self.core_size,), "float32"), Port("first", (), "bool")]
            ports += [Port("present", (agents,), "bool")] if agents else []
        if self.noise.width:
            ports.append(Port("noise", (self.noise.width,), "float32"))
        return [*ports, Port("sample", (), "bool")]

    @property
    def outputs(self) -> list[Port]:
        ports = list(action_ports(self.spec))
        if self.core_size:
            ports.append(Port("next_core", (self.core_size,), "float32"))
        if self.log_prob:
            ports.append(Port("log_prob", self.spec.agents_shape, "float32"))
        if self.scores is not None:
            ports.append(Port("scores", self.scores, "float32"))
        return ports

    @property
    def action_names(self) -> list[str]:
        """The names of the actions among the outputs, in the order of the joint action."""
        return [port.name for port in action_ports(self.spec)]

    def to_json(self) -> dict[str, Any]:
        """Plain data for the metadata of a file; `inputs` and `outputs` are for readers without rltrain."""
        return {
            "spec": to_json(self.spec),
            "noise": self.noise._asdict(),
            "core_size": self.core_size,
            "log_prob": self.log_prob,
            "scores": self.scores,
            "inputs": [asdict(port) for port in self.inputs],
            "outputs": [asdict(port) for port in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], spec: EnvSpec | None = None) -> Interface:
        """The inverse of `to_json`. Give `spec` if it was checked already."""
        noise, scores = data["noise"], data["scores"]
        return cls(
            spec if spec is not None else from_json(data["spec"]),
            Noise(str(noise["kind"]), int(noise["width"]), bool(noise["stream"]), int(noise["hold"])),  # type: ignore[arg-type]
            int(data["core_size"]),
            bool(data["log_prob"]),
            None if scores is None else tuple(map(int, scores)),
        )


def obs_ports(spec: EnvSpec) -> Iterator[Port]:
    """The leaves of the observation, in the order of `EnvSpec.leaves`."""
    for name, leaf in zip(port_names(spec.obs, "obs"), iter_leaves(spec.obs), strict=True):
        yield Port(name, leaf.shape, leaf.dtype)


def port_names(obs: ObsSpec, name: str) -> list[str]:
    """obs, obs.KEY, obs.0.KEY: the names of the leaves."""
    if isinstance(obs, dict):
        return [leaf for key in sorted(obs) for leaf in port_names(obs[key], f"{name}.{key}")]
    if isinstance(obs, tuple):
        return [leaf for i, child in enumerate(obs) for leaf in port_names(child, f"{name}.{i}")]
    return [name]


def action_ports(spec: EnvSpec) -> Iterator[Port]:
    """The actions: one port, or one for each group of agents."""
    if not spec.groups:
        yield Port("action", spec.action.shape, *action_dtypes(spec.action))
    for group in spec.groups:
        yield Port(f"action.{group.name}", (len(group.agents), *group.action.shape), *action_dtypes(group.action))


def action_dtypes(action: ActionSpec) -> tuple[str, str]:
    """The type of an action in the graph, and the environment's type if it is another."""
    if action.kind == "box":
        return ("int64", action.takes) if action.takes in UNSIGNED else (action.takes, "")
    own = action.takes if action.takes != "float32" else "int8" if action.kind == "multi_binary" else "int64"
    return "int64", own if own != "int64" else ""
