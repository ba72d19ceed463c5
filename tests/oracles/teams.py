"""Q-learning of a team written anew: one episode, one agent, one row at a time, in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec, Leaf
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory

Array = np.ndarray
Weights = dict[str, Array]

THREE = AgentGroup("three", ("a", "b"), Leaf("box", (3,), "float32"), ActionSpec("discrete", (), (3,)))
TWO = AgentGroup("two", ("c",), Leaf("box", (2,), "float32"), ActionSpec("discrete", (), (2,)))


def team_spec(*groups: AgentGroup, masked: bool = False, told: bool = True, turns: bool = False) -> EnvSpec:
    """Several agents, with or without masks and a state of the environment's own, at once or in turns."""
    obs = {group.name: Leaf("box", (len(group.agents), *group.obs.shape), "float32") for group in groups}
    nvec = tuple(n for group in groups for _ in group.agents for n in group.action.nvec)
    action = ActionSpec("multi_discrete", (len(nvec),), nvec)
    return EnvSpec("team", obs, action, masked, None, groups, (4,) if told else None, turns)


def episodes(spec: EnvSpec, seed: int, rows: int = 6, batch: int = 5) -> Trajectory:
    """Sequences as a replay hands them out: agents come and leave for either reason, and some end before `rows`.

    In turns whoever is there may be on, and a sequence that is cut off says so.
    """
    rng = np.random.default_rng(seed)
    count = len(spec.agents)
    alive = np.zeros((rows + 1, batch, count), bool)
    terminated, truncated = np.zeros((rows, batch, count), bool), np.zeros((rows, batch, count), bool)
    valid = np.zeros((rows, batch), bool)
    seen = np.zeros((rows + 1, batch), int)
    for b in range(batch):
        gone = np.zeros(count, bool)
        alive[0, b] = rng.random(count) < 0.7
        alive[0, b, rng.integers(count)] = True
        for t in range(rows):
            seen[t + 1, b] = t + 1
            valid[t, b] = True
            luck = rng.random(count)
            terminated[t, b] = alive[t, b] & ((luck < 0.15) | (luck > 0.97))
            truncated[t, b] = alive[t, b] & ((luck > 0.15) & (luck < 0.3) | (luck > 0.97))  # both: a death
            gone |= terminated[t, b] | truncated[t, b]
            born = ~alive[t, b] & ~gone & (rng.random(count) < 0.3)
            alive[t + 1, b] = alive[t, b] & ~gone | born
            if not alive[t + 1, b].any():
                seen[t + 2 :, b] = t + 1
                break
    alive = np.take_along_axis(alive, seen[..., None], 0)
    acting = None
    if spec.turns:
        score = rng.random(alive.shape) * alive
        acting = alive & (score == score.max(-1, keepdims=True))
        truncated[-1] |= alive[-1] & valid[-1][:, None]

    def at_rows(array: Array) -> torch.Tensor:
        index = seen.reshape(*seen.shape, *(1,) * (array.ndim - 2))
        return torch.from_numpy(np.take_along_axis(array, index, 0))

    mask = None
    if spec.action_mask:
        heads = [rng.random((rows + 1, batch, n)) < 0.5 for n in spec.action.nvec]
        for head in heads:
            head[..., rng.integers(head.shape[-1])] = True
        mask = at_rows(np.concatenate(heads, -1))
    obs = {
        group.name: at_rows(rng.normal(size=(rows + 1, batch, len(group.agents), *group.obs.shape)))
        for group in spec.groups
    }
    first = np.concatenate([np.ones((1, batch), bool), ~valid])
    action = rng.integers(0, spec.action.nvec, (rows, batch, count)) * valid[..., None]
    return Trajectory(
        obs=obs,
        action=torch.from_numpy(action),
        reward=torch.from_numpy(rng.normal(size=(rows, batch, count)) * (alive[:-1] & valid[..., None])),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        first=torch.from_numpy(first),
        version=torch.zeros(batch),
        stream=torch.arange(batch),
        row=torch.zeros(batch),
        action_mask=mask,
        alive=torch.from_numpy(alive),
        acting=None if acting is None else torch.from_numpy(acting),
        state=at_rows(rng.normal(size=(rows + 1, batch, *spec.state_shape))) if spec.state_shape else None,
    )


def poisoned(batch: Trajectory) -> Trajectory:
    """Anything behind the last observation of each episode: nothing of it may be looked at."""
    pads = ~batch.valid  # [T, B]
    assert pads.any()
    after = torch.cat([torch.zeros_like(pads[:1]), pads])  # rows that are no successor either

    def anything(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[rows] = 1 if x.dtype == torch.int64 else True if x.dtype == torch.bool else 1e6
        return x

    beside = {name: anything(x, after) for name, x in batch.optional_fields().items()}
    return replace(
        batch,
        obs=tree_map(lambda x: anything(x, after), batch.obs),
        action=anything(batch.action, pads),
        reward=anything(batch.reward, pads),
        **beside,
    )


def weights_of(module: Any, prefix: str = "") -> Weights:
    """Parameters by name, those below `prefix`."""
    named = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    return {name.removeprefix(prefix): x for name, x in named.items() if name.startswith(prefix)}


def below(p: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): x for name, x in p.items() if name.startswith(prefix)}


def mlp(p: Weights, x: Array, last_linear: bool) -> Array:
    layers = len(p) // 2
    for n in range(layers):
        x = p[f"weight{n}"] @ x + p[f"bias{n}"]
        if n < layers - 1 or not last_linear:
            x = np.maximum(x, 0.0)
    return x


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gru(p: Weights, x: Array, h: Array) -> Array:
    of_x, of_h = p["weight_x"] @ x + p["bias_x"], p["weight_h"] @ h + p["bias_h"]
    (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3), np.split(of_h, 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    return (1 - z) * n + z * h


def agent_values(
    p: Weights, x: Array, which: int, count: int, core: Array | None, did: Array
) -> tuple[Array, Array | None]:
    """Values of one agent's actions, and its next core; `did` is its last action as it sees it, or nothing."""
    if count > 1:
        x = np.concatenate([x, np.eye(count)[which]])
    x = np.concatenate([x, did])
    x = mlp(below(p, "trunk."), x, last_linear=False)
    if core is not None:
        core = x = gru(below(p, "memory."), x, core)
    return mlp(below(p, "head."), x, last_linear=True), core


def last_action(batch: Trajectory, t: int, b: int, n: int, actions: int) -> Array:
    """One-hot, what agent n did in the row before; nothing if it was not there, or an episode begins."""
    found = np.zeros(actions)
    if t and batch.alive[t - 1, b, n]:
        found[int(batch.action[t - 1, b, n])] = 1.0
    return found


def all_values(
    p: Weights, spec: EnvSpec, batch: Trajectory, b: int, steps: int, hidden: int, last: bool
) -> list[list[Array]]:
    """values[t][i] of one sequence, t = 0 .. steps; memory begins empty and is kept while an agent is there."""
    found: list[list[Array]] = []
    cores: dict[str, Array | None] = {agent: np.zeros(hidden) if hidden else None for agent in spec.agents}
    for t in range(steps + 1):
        row = []
        for n, agent in enumerate(spec.agents):
            if t and hidden and not batch.alive[t - 1, b, n]:  # it was not there: it remembers nothing
                cores[agent] = np.zeros(hidden)
        for g, group in enumerate(spec.groups):
            for i, agent in enumerate(group.agents):
                x = batch.obs[group.name][t, b, i].numpy()
                n = spec.agents.index(agent)
                did = last_action(batch, t, b, n, group.action.nvec[0]) if last else np.zeros(0)
                q, cores[agent] = agent_values(below(p, f"net.nets.{g}."), x, i, len(group.agents), cores[agent], did)
                row.append(q)
        found.append(row)
    return found


def mixed(p: Weights, kind: str, q: Array, state: Array | None) -> Any:
    """The team's value [], or of each agent [N]."""
    if kind == "iql":
        return q
    if kind == "vdn":
        return q.sum()
    weight1 = np.abs(mlp(below(p, "mixer.weight1."), state, True)).reshape(len(q), -1)
    hidden = q @ weight1 + mlp(below(p, "mixer.bias1."), state, True)
    hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
    weight2 = np.abs(mlp(below(p, "mixer.weight2."), state, True))
    return hidden @ weight2 + mlp(below(p, "mixer.bias2."), state, True)[0]


def state_of(spec: EnvSpec, batch: Trajectory, t: int, b: int) -> Array:
    if batch.state is not None:
        return batch.state[t, b].numpy()
    return np.concatenate([batch.obs[group.name][t, b].numpy().ravel() for group in spec.groups])


def team_loss(
    kind: str,
    spec: EnvSpec,
    online: Weights,
    target: Weights,
    batch: Trajectory,
    gamma: float,
    double: bool,
    hidden: int,
    last: bool = False,
) -> float:
    """The mean squared error of all that is learnt from."""
    errors: list[float] = []
    valid = batch.valid.numpy()
    ends = np.cumsum((0, *spec.action.nvec))
    for b in range(valid.shape[1]):
        steps = int(valid[:, b].sum())
        mine = all_values(online, spec, batch, b, steps, hidden, last)
        judge = all_values(target, spec, batch, b, steps, hidden, last)
        takens: list[Array] = []
        follows: list[Array] = []
        for t in range(steps):
            taken, follow = np.zeros(len(spec.agents)), np.zeros(len(spec.agents))
            going = np.zeros(len(spec.agents), bool)
            for i in range(len(spec.agents)):
                if batch.alive[t, b, i]:
                    taken[i] = mine[t][i][int(batch.action[t, b, i])]
                lasts = bool(batch.alive[t + 1, b, i]) or bool(batch.truncated[t, b, i])
                going[i] = lasts and not batch.terminated[t, b, i]
                if going[i]:
                    choice = np.array((mine if double else judge)[t + 1][i])
                    if batch.action_mask is not None:
                        choice[~batch.action_mask[t + 1, b, ends[i] : ends[i + 1]].numpy()] = -np.inf
                    follow[i] = judge[t + 1][i][int(choice.argmax())]
            follows.append(follow)
            takens.append(taken)
            if batch.acting is not None:
                taken = taken * batch.acting[t, b].numpy()
                follow = follow * whose(batch, t, b)
            value = mixed(online, kind, taken, state_of(spec, batch, t, b))
            after = mixed(target, kind, follow, state_of(spec, batch, t + 1, b))
            reward = batch.reward[t, b].numpy()
            if kind == "iql" and batch.acting is not None:
                continue
            if kind == "iql":
                error = value - reward - gamma * np.where(going, after, 0.0)
                errors += error[batch.alive[t, b].numpy()].tolist()
            else:
                errors.append(float(value - reward.sum() - gamma * (after if going.any() else 0.0)))
        if kind == "iql" and batch.acting is not None:
            errors += turn_errors(batch, b, takens, follows, gamma)
    return float(np.mean(np.square(errors)))


def turn_errors(batch: Trajectory, b: int, taken: list[Array], follow: list[Array], gamma: float) -> list[float]:
    """Of each turn whose outcome is in the sequence: walk on to the agent's next turn, or to its end."""
    found = []
    for t in range(len(taken)):
        for i in np.flatnonzero(batch.acting[t, b].numpy()):
            earned = 0.0
            for u in range(t, len(taken)):
                earned += float(batch.reward[u, b, i])
                over = not batch.alive[u + 1, b, i]
                if over or batch.acting[u + 1, b, i]:
                    dead = bool(batch.terminated[u, b, i]) or (over and not batch.truncated[u, b, i])
                    found.append(taken[t][i] - earned - (0.0 if dead else gamma * follow[u][i]))
                    break
    return found


def whose(batch: Trajectory, t: int, b: int) -> Array:
    """[N] whose value is the team's after row t: who is on next, or all alike whose clocks ran out with the last."""
    if batch.alive[t + 1, b].any():
        return batch.acting[t + 1, b].numpy().astype(float)
    late = [bool(x) and not bool(y) for x, y in zip(batch.truncated[t, b], batch.terminated[t, b], strict=True)]
    return np.array(late, float) / max(sum(late), 1)


def recurrent_values(p: dict[str, Tensor], states: Tensor, first: Tensor) -> Tensor:
    """V of a critic with a GRU (Cho et al. 2014, as torch writes it) of one stream, row by row.

    Args:
        p:      the parameters of the critic: `value_trunk` of one tanh layer, `value_memory`, `critic` of one layer.
        states: [T, S] its input.
        first:  [T] an episode begins: the memory is empty.
    """
    trunk = [x for name, x in p.items() if name.startswith("value_trunk.")]
    weight, bias = sorted(trunk, key=lambda x: -x.dim())
    head, head_bias = sorted((x for name, x in p.items() if name.startswith("critic.")), key=lambda x: -x.dim())
    w_x, w_h, b_x, b_h = (p[f"value_memory.{name}"] for name in ("weight_x", "weight_h", "bias_x", "bias_h"))
    size = w_h.shape[1]
    h, values = torch.zeros(size, dtype=states.dtype), []
    for state, begins in zip(states, first, strict=True):
        if begins:
            h = torch.zeros_like(h)
        x = torch.tanh(weight @ state + bias)
        of_x, of_h = (w_x @ x + b_x).split(size), (w_h @ h + b_h).split(size)
        reset, update = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        new = torch.tanh(of_x[2] + reset * of_h[2])
        h = (1 - update) * new + update * h
        values.append(head.reshape(1, size) @ h + head_bias.reshape(1))
    return torch.cat(values)
