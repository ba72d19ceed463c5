"""The proof of an export: the file gives the actions of `Trained.act`, row by row and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rltrain.deployment.export.deployed import DeployedPolicy
from rltrain.deployment.export.formats import Run, torch_runner
from rltrain.deployment.export.interface import Interface
from rltrain.deployment.export.observations import Observations, flat_inputs
from rltrain.envs.spec import EnvSpec
from rltrain.errors import RunFailed
from rltrain.evaluation.multi_agent import split_actions
from rltrain.evaluation.policy import Trained
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.tree import tree_map

ROWS = 1000
TOLERANCE = 1e-5  # of ONNX; of a Box action relative to the bound of the number, where it is above 1
LOG_PROB_TOLERANCE = 1e-3  # of the log probabilities of equal actions
DENSITY_ROWS = 32  # least number of them of which the median counts, for Box actions
BATCHES = (1, 2, 3, 7, 32)
Arrays = dict[str, np.ndarray]


def prove(trained: Trained, run: Run, seen: Observations, exact: bool) -> dict[str, Any]:
    """Compare an exported policy with `Trained.act` on all rows of `seen`; returns the figures, as plain data.

    Args:
        exact: all numbers must be equal to the bit; else within TOLERANCE, and actions may differ where two scores do
               not differ by more than that: a tie.

    Raises:
        RunFailed: an action differs.
    """
    reference = DeployedPolicy(trained.policy, trained.spec)
    interface = reference.interface
    eager = torch_runner(reference, interface)
    steps = _inputs(interface, seen)
    count = len(seen.first)
    wanted, greedy = _in_turn(interface, eager, steps), _in_turn(interface, run, steps)
    _compare_with_act(trained, interface, seen, wanted)
    ties, largest = _compare_actions(interface, wanted, greedy, steps, seen, exact)
    core = {"core": greedy["core_before"]} if interface.core_size else {}
    worst_batch = 0.0
    for sample in (False, True):
        batch = {**steps, **core, "sample": np.full(count, sample)}
        want, got = eager(batch), run(batch)
        more, worst = _compare(interface, want, got, batch, seen, exact)
        ties, largest = ties + more, max(largest, worst)
        for rows in BATCHES:
            some = {name: array[:rows] for name, array in batch.items()}
            part = run(some)
            _compare(interface, {name: array[:rows] for name, array in want.items()}, part, some, seen, exact)
            worst_batch = max(worst_batch, *(_difference(part[name], got[name][:rows]) for name in got))
    if exact and worst_batch:
        raise RunFailed(f"the export is wrong: rows depend on their batch, by {worst_batch:.1e}")
    return {
        "observations": seen.source,
        "rows": count,
        "equal": "to the bit" if exact else f"within {TOLERANCE:g}",
        "largest_difference": largest,
        "ties": ties,
        "rows_depend_on_batch": worst_batch,
    }


def _inputs(interface: Interface, seen: Observations) -> Arrays:
    """The inputs of all rows as one batch; noise is drawn from a fixed seed."""
    spec, count = interface.spec, len(seen.first)
    arrays: Arrays = {}
    for port, array in zip(interface.inputs, flat_inputs(spec, seen.obs), strict=False):
        arrays[port.name] = array
    for port in interface.inputs[len(arrays) :]:
        if port.name == "action_mask":
            arrays[port.name] = np.ones((count, *port.shape), bool) if seen.mask is None else seen.mask
        elif port.name == "first":
            arrays[port.name] = seen.first
        elif port.name == "present":
            arrays[port.name] = np.ones((count, *port.shape), bool) if seen.alive is None else seen.alive
        elif port.name == "noise":
            noise = DRAWS[interface.noise.kind](np.random.default_rng(0), (count, interface.noise.width))
            arrays[port.name] = noise.astype(np.float32)
        elif port.name == "sample":
            arrays[port.name] = np.zeros(count, bool)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _in_turn(interface: Interface, run: Run, steps: Arrays) -> Arrays:
    """The outputs of rows that are computed one after the other, each with the memory of the row before."""
    found: list[Arrays] = []
    core = np.zeros((1, interface.core_size), np.float32)
    for t in range(len(steps["sample"])):
        row = {name: array[t : t + 1] for name, array in steps.items()}
        out = run({**row, "core": core} if interface.core_size else row)
        found.append({**out, "core_before": core})
        core = out.get("next_core", core)
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _compare_with_act(trained: Trained, interface: Interface, seen: Observations, got: Arrays) -> None:
    """RunFailed unless the module that is exported acts as `Trained.act` on one observation after the other."""
    spec = interface.spec
    fresh = Trained(trained.policy, spec, trained.config, trained.path, trained.own)
    names = [port.name for port in interface.outputs if port.name.startswith("action")]
    for t in range(len(seen.first)):
        if seen.first[t]:
            fresh.reset()
        obs = tree_map(lambda array, t=t: array[t], seen.obs)
        mask = None if seen.mask is None else seen.mask[t]
        row = {name: array[t] for name, array in got.items()}
        if spec.groups:
            alive = np.ones(len(spec.agents), bool) if seen.alive is None else seen.alive[t]
            obs, masks = _by_agent(spec, obs, mask, alive)
            want = fresh.act(obs, action_mask=masks)
            joint = np.concatenate([row[name].reshape(-1) for name in names]).reshape(spec.action.shape)
            found = split_actions(spec, joint, obs)
        else:
            want = {"": fresh.act(_counted(spec, obs), action_mask=mask)}
            found = {"": row["action"]}
        for agent in want:
            if _difference(np.asarray(found[agent], np.float64), np.asarray(want[agent], np.float64)):
                raise RunFailed(f"the export is wrong: row {t} gives {found[agent]} in place of {want[agent]}")


def _counted(spec: EnvSpec, obs: Any) -> Any:
    """An observation as the environment returns it."""
    from rltrain.rollout.tree import unflatten

    return unflatten(spec.obs, flat_inputs(spec, obs))


def _by_agent(spec: EnvSpec, obs: Any, mask: np.ndarray | None, alive: np.ndarray) -> tuple[dict[str, Any], Any]:
    """{agent: observation} and {agent: mask} of those present."""
    found, masks = {}, {}
    for number, part in enumerate(spec.layout.agents):
        if alive[number]:
            own = tree_map(lambda array, part=part: array[part.members.start], obs[part.group.name])
            found[part.names[0]] = _counted(spec.single_agent(part.group), own)
            if mask is not None:
                masks[part.names[0]] = mask[part.mask]
    return found, masks


def _compare(
    interface: Interface, want: Arrays, got: Arrays, batch: Arrays, seen: Observations, exact: bool
) -> tuple[int, float]:
    """Ties, and the largest difference, of two batches of outputs."""
    ties, largest = _compare_actions(interface, want, got, batch, seen, exact)
    for port in interface.outputs:
        a, b = want[port.name], got[port.name]
        if port.name.startswith("action") or (port.name == "log_prob" and not exact):
            continue
        difference = _difference(a, b) / max(1.0, float(np.abs(a).max(initial=0.0)))
        if difference > (0.0 if exact else TOLERANCE):
            raise RunFailed(f"the export is wrong: {port.name} differs by {difference:.1e}")
        largest = max(largest, difference)
    if "log_prob" in want and not exact:
        _compare_densities(interface, want, got)
    return ties, largest


def _compare_densities(interface: Interface, want: Arrays, got: Arrays) -> None:
    """RunFailed if the log probabilities of equal actions differ.

    The density of a Box action is steep where the deviation is small or the action close to its bound: there a rounding
    of the action changes it by any amount. So the median of the differences counts, of batches that have many rows.
    """
    alike = _equal_actions(interface, want, got)
    difference = np.abs(want["log_prob"][alike].astype(np.float64) - got["log_prob"][alike])
    if interface.spec.action.kind == "box":
        worst = float(np.median(difference)) if len(difference) >= DENSITY_ROWS else 0.0
    else:
        worst = float(difference.max(initial=0.0))
    if not worst <= LOG_PROB_TOLERANCE:
        raise RunFailed(f"the export is wrong: log_prob differs by {worst:.1e}")


def _equal_actions(interface: Interface, want: Arrays, got: Arrays) -> np.ndarray:
    """[B] bool: the rows whose actions are equal, up to the tolerance of Box actions."""
    one, other = _flat_actions(interface, want), _flat_actions(interface, got)
    alike: np.ndarray = (np.abs(one - other) <= TOLERANCE * _unit(interface.spec, one.shape[1])).all(1)
    return alike


def _flat_actions(interface: Interface, outputs: Arrays) -> np.ndarray:
    """[B, n] float64: the actions of all groups of agents behind each other."""
    names = [port.name for port in interface.outputs if port.name.startswith("action")]
    return np.concatenate([outputs[name].reshape(len(outputs[name]), -1) for name in names], 1).astype(np.float64)


def _compare_actions(
    interface: Interface, want: Arrays, got: Arrays, batch: Arrays, seen: Observations, exact: bool
) -> tuple[int, float]:
    """Ties, and the largest difference of Box actions in units of the policy, of two batches of outputs."""
    spec = interface.spec
    one, other = _flat_actions(interface, want), _flat_actions(interface, got)
    if exact:
        if (one != other).any():
            row = int(np.argwhere(one != other)[0][0])
            raise RunFailed(f"the export is wrong: row {row} gives {other[row]} in place of {one[row]}")
        return 0, 0.0
    if spec.action.kind == "box":
        if _whole(spec):
            if np.abs(one - other).max(initial=0.0) > 1:
                raise RunFailed("the export is wrong: whole numbers differ by more than 1")
            return int((one != other).sum()), 0.0
        largest = float((np.abs(one - other) / _unit(spec, one.shape[1])).max(initial=0.0))
        if not largest <= TOLERANCE:
            raise RunFailed(f"the export is wrong: actions differ by {largest:.1e}")
        return 0, largest
    ties, starts = 0, np.array(spec.action.start or (0,) * one.shape[1])
    alive = np.ones(one.shape, bool) if seen.alive is None else _of_heads(spec, seen.alive[: len(one)])
    for row, head in np.argwhere((one != other) & alive):
        pair = int(one[row, head] - starts[head]), int(other[row, head] - starts[head])
        if not _is_tie(interface, want, batch, row, head, pair):
            raise RunFailed(f"the export is wrong: row {row} gives action {pair[1]} in place of {pair[0]}")
        ties += 1
    return ties, 0.0


def _of_heads(spec: EnvSpec, alive: np.ndarray) -> np.ndarray:
    """[T, N] to [T, heads]: whether the agent of each number of a joint action is present."""
    return np.repeat(alive, [part.action.stop - part.action.start for part in spec.layout.agents], 1)


def _is_tie(interface: Interface, want: Arrays, batch: Arrays, row: int, head: int, pair: tuple[int, int]) -> bool:
    """Whether the scores of the two actions of a head differ by no more than the tolerance."""
    if "scores" not in want:
        return False
    spec, scores = interface.spec, want["scores"][row].astype(np.float64)
    if batch["sample"][row] and interface.noise.kind in ("gumbel", "logistic"):
        scores = scores + batch["noise"][row][: scores.size].reshape(scores.shape)
    limit = 10 * TOLERANCE * max(1.0, float(np.abs(scores).max()))
    if spec.action.kind == "multi_binary":
        return bool(abs(scores.reshape(-1)[head]) <= limit)
    begin = sum(spec.action.nvec[:head])
    flat = scores.reshape(-1)
    return bool(abs(flat[begin + pair[0]] - flat[begin + pair[1]]) <= limit)


def _whole(spec: EnvSpec) -> bool:
    return spec.action.kind == "box" and np.dtype(spec.action.takes).kind != "f"


def _unit(spec: EnvSpec, size: int) -> np.ndarray:
    """[size] float64: the largest bound of each number of a Box action, where it is above 1; else 1."""
    low, high = (np.abs(np.array(bounds, np.float64)) for bounds in (spec.action.low, spec.action.high))
    largest = np.maximum(np.where(np.isfinite(low), low, 1.0), np.where(np.isfinite(high), high, 1.0))
    return np.maximum(1.0, largest if len(largest) == size else np.full(size, largest.max(initial=1.0)))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; 0 only if all numbers are equal."""
    if a.shape != b.shape:
        return float("inf")
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, difference).max(initial=0.0))


def stored(proof: Mapping[str, Any]) -> str:
    """A proof, for a person."""
    text = f"{proof['rows']:,} observations ({proof['observations']}): actions equal {proof['equal']}"
    if proof["largest_difference"]:
        text += f", largest difference {proof['largest_difference']:.1e}"
    return text + f", {proof['ties']} ties" * bool(proof["ties"])
