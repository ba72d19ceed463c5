"""An actor: steps its streams with its policy and returns one unroll per call."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rltrain.envs.errors import EnvFault
from rltrain.envs.known import keep_settings
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.envs.vector.unroll_rows import UnrollBuffer, VectorEnv
from rltrain.rollout.actor.episodes import EpisodeTracker, TeamTracker, with_infos
from rltrain.rollout.actor.isolated_env import IsolatedEnv, acting
from rltrain.rollout.actor.noise import RandomStart, StreamNoise
from rltrain.rollout.actor.opponents import Opponents
from rltrain.rollout.buffers import clear_absent, empty_rows, padded
from rltrain.rollout.inference.client import InferenceClient, RunEnded
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.shared_memory.heartbeat import Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket
from rltrain.rollout.shared_memory.observations import actor_buffers
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob, Inference
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten
from rltrain.rollout.types import Gradients, Policy, Trajectory, hooks_of


@dataclass(frozen=True)
class Links:
    """The memory that an actor shares with the learner, as tickets, or as SharedMemory in the learner's own process."""

    weights: Ticket | SharedMemory | None  # None: the inference server has the policy
    heartbeats: Ticket | SharedMemory
    slots: Ticket | None = None  # observations of big unrolls
    inference: Any = None  # see `InferenceSupervisor.ticket`
    opponents: Sequence[Ticket | SharedMemory] = ()  # weights of the opponents in the pool


class Actor:
    """Steps environments; see `collect`. All arrays are made once and are as wide as `padded(B)`.

    Each unroll uses the newest weights at its beginning, or the actions that the inference server returns.
    """

    def __init__(self, job: ActorJob, links: Links) -> None:
        self.job = job
        plan, spec, streams = job.plan, job.plan.spec, job.streams
        count, width = len(streams), padded(len(streams))
        self._heartbeat = Heartbeat(SharedMemory.attach(links.heartbeats), job.worker)
        self._client: InferenceClient | None = None
        self._reduce: Callable[[Trajectory], Gradients] | None = None
        if plan.inference is not None:
            self.policy: Policy | InferenceClient = self._connect(plan.inference, links.inference)
            self._client = self.policy
        else:
            self.policy = policy = plan.make_policy()
            if plan.reduce is None:  # else the policy is also applied to whole unrolls
                hooks_of(policy).set_active_rows(count)
            else:
                self._reduce = functools.partial(plan.reduce, policy)
            assert links.weights is not None
            self._parameters = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
            self._board = WeightsBoard(self._parameters, SharedMemory.attach(links.weights))
        buffers = actor_buffers(plan, count, links.slots)
        self._rows = [empty_rows(spec, plan.unroll, count, obs) for obs in buffers]
        self._views = [_RowViews(rows) for rows in self._rows]
        self._slot = 0
        self._stream_noise = StreamNoise(plan.seed, streams, *self.policy.noise)
        self._noise = np.zeros((plan.unroll, width, self.policy.noise.columns), np.float32)
        self._noise_rows = torch.from_numpy(self._noise).unbind(0)
        self._random_start = RandomStart(plan.seed, streams, spec.action, plan.random_rows)
        self._action = np.zeros((plan.unroll, width, *spec.action.shape), spec.action.dtype)
        self._core = torch.zeros(width, self.policy.core_size) if self.policy.core_size else None
        self._hooks = hooks_of(self.policy)
        self._quick_act = None if spec.groups else self._hooks.quick_act()
        agents = len(spec.agents)
        self._tracker = TeamTracker(count, agents) if agents else EpisodeTracker(count)
        self._opponents: Opponents | None = None
        if plan.pool is not None:
            self._opponents = Opponents(
                plan.seed, streams, plan.unroll, plan.pool, spec, plan.make_policy, links.opponents
            )
        self.row = np.array(job.rows, np.int64)
        isolated = IsolatedEnv(lambda: plan.make_env(streams, job.generations))
        self._vector = vector = isolated.vector
        vector.made = self.row
        known = plan.known and type(vector) is SerialVectorEnv and keep_settings(vector.envs)
        self.keeps_settings = known  # no call changes a setting of the process
        self.env: IsolatedEnv | VectorEnv = vector if known else isolated
        self._last: UnrollBuffer | None = None  # the previous unroll; None before the first one
        self._end = plan.unroll  # the row of the previous unroll that the next one begins with
        self._ended = time.perf_counter()

    def collect(self, length: int | None = None) -> tuple[Trajectory | Gradients | None, int | None]:
        """T steps of every stream (or `length`, if less) with the newest weights. The next call reuses the arrays.

        Returns:
            The unroll, or the gradients that `reduce` returns; and the slot that holds its observations, if any.
            (None, None) if the run is over.
        """
        if self._heartbeat.stopped:
            return None, None
        began = time.perf_counter()
        job, env = self.job, self.env
        count, unroll = len(job.streams), min(length or job.plan.unroll, job.plan.unroll)
        rows, views = self._rows[self._slot], self._views[self._slot]
        version = self._read_weights()
        opponents = self._opponents
        if opponents is not None:
            opponents.begin(self.row, job.generations)
        self._heartbeat.begin()
        try:
            self._write_first_row()
            self._stream_noise.fill(self._noise, self.row, job.generations)
            at_random = self._random_start.begin(unroll, self.row, job.generations)
            core, cores = self._core, []
            extras: dict[str, list[torch.Tensor]] = {}
            action_rows, policy, sequence = self._action, self.policy, self.policy.sequence
            records = job.plan.log_prob
            quick_act = None if at_random or opponents is not None or records else self._quick_act
            with torch.no_grad(), self._blaming_environment(rows):
                for t in range(unroll):
                    if quick_act is not None:
                        act = quick_act(views.obs[t], self._noise_rows[t])
                        action_rows[t] = action = act.action.numpy()
                        for name, value in act.extras.items():
                            extras.setdefault(name, []).append(value)
                        env.step(action[:count], rows, t)
                        self._heartbeat.step()
                        continue
                    with acting():
                        if core is not None:
                            if rows.first[t].any():
                                core = core * torch.from_numpy(~rows.first[t])[:, None]
                            if t % sequence == 0:
                                cores.append(core[:count].numpy().copy())
                        act = policy.act(views.obs[t], core, views.mask[t], self._noise_rows[t], True)
                        previous, core, action = core, act.core, act.action.numpy()
                        action_rows[t] = action
                        if at_random:
                            legal = None if rows.action_mask is None else rows.action_mask[t]
                            self._random_start.replace(t, action_rows[t], legal)
                            action = action_rows[t]
                            if core is not None:
                                core = self._hooks.core_with_action(core, torch.from_numpy(action))
                        if rows.alive is not None and core is not None:
                            core = clear_absent(core, rows.alive[t])
                        if opponents is not None:
                            opponents.act(t, rows, self._noise_rows[t], views.obs[t], views.mask[t], action_rows[t])
                            action = action_rows[t]
                        for name, value in act.extras.items():
                            extras.setdefault(name, []).append(value)
                        if records:
                            self._add_recorded(t, rows, views, previous, extras, at_random)
                    env.step(action[:count], rows, t)
                    self._heartbeat.step()
                with acting():
                    stacked = {name: torch.stack(values) for name, values in extras.items()}
                    summary = self._summarize(stacked, rows, unroll)
            self._core = core
            self._heartbeat.count_outside(self.env.check(rows, unroll))
        except RunEnded:
            return None, None
        except EnvFault as fault:
            column = job.streams.index(fault.stream) if fault.stream in job.streams else 0
            raise EnvFault(fault.stream, fault.seed, int(self.row[column]) + fault.row, fault.detail) from fault
        env.end_unroll(self._action[:unroll, :count], rows)
        trajectory = Trajectory(
            obs=tree_map(lambda array: array[: unroll + 1, :count], rows.obs),
            action=self._action[:unroll, :count],
            reward=rows.reward[:unroll, :count],
            terminated=rows.terminated[:unroll, :count],
            truncated=rows.truncated[:unroll, :count],
            first=rows.first[: unroll + 1, :count],
            version=np.full(count, version if self._client is None else self._client.version, np.int64),
            stream=np.array(job.streams, np.int64),
            row=self.row.copy(),
            extras=summary,
            action_mask=None if rows.action_mask is None else rows.action_mask[: unroll + 1, :count],
            core=np.stack(cores) if cores else None,
            alive=None if rows.alive is None else rows.alive[: unroll + 1, :count],
            acting=None if rows.acting is None else rows.acting[: unroll + 1, :count],
            state=None if rows.state is None else rows.state[: unroll + 1, :count],
        )
        ended = trajectory.episode_end & ~rows.episode_continues[:unroll, :count]
        episodes = self._tracker.add(trajectory.reward, ended, trajectory.valid)
        if opponents is not None:
            episodes = opponents.assign(episodes, ended)
            learning = opponents.learning(unroll)
            acts = learning.copy() if trajectory.acting is None else trajectory.acting & learning
            trajectory = replace(trajectory, acting=acts)
        if self._vector.finals:
            episodes = with_infos(episodes, ended, self._vector.finals)
        self.row += unroll
        slot = self._slot if len(self._rows) > 1 else None
        self._last, self._end, self._slot = rows, unroll, (self._slot + 1) % len(self._rows)
        trajectory = replace(trajectory, episodes=episodes)
        gradients = None if self._reduce is None else self._reduce(trajectory)
        before, self._ended = self._ended, time.perf_counter()
        self._heartbeat.add_seconds(began - before, self._ended - began)
        return gradients or (trajectory if slot is None else replace(trajectory, obs=None)), slot

    def _connect(self, inference: Inference, ticket: Any) -> InferenceClient:
        pipe, memory, streams = ticket
        requests = RequestBuffers(self.job.plan.spec, inference, streams, SharedMemory.attach(memory))
        return InferenceClient(inference, requests, self.job.worker, pipe, lambda: self._heartbeat.stopped)

    def _read_weights(self) -> int | None:
        """Read the newest weights; returns their version, or None if the server reports it with each answer."""
        if self._client is not None:
            self._client.begin()
            return None
        return self._board.read(self._parameters)[0]

    def _add_recorded(
        self,
        t: int,
        rows: UnrollBuffer,
        views: _RowViews,
        core: torch.Tensor | None,
        extras: dict[str, list[torch.Tensor]],
        at_random: bool,
    ) -> None:
        """Append log probabilities and values of row t to the extras; an inference server has done so."""
        find, value, added = self._hooks.action_distribution, self._hooks.state_value, extras.setdefault("log_prob", [])
        if self._client is None:
            assert find is not None
            inputs = views.obs[t], core, views.mask[t], self._noise_rows[t]
            added.append(find(*inputs).log_prob(torch.from_numpy(self._action[t])).clone())
            if value is not None and len(values := extras.setdefault("value", [])) == t:  # `act` has returned none
                values.append(value(*inputs).clone())
        if at_random:
            legal = None if rows.action_mask is None else rows.action_mask[t]
            self._random_start.log_prob(t, added[-1].numpy(), legal)

    def _summarize(self, extras: dict[str, torch.Tensor], rows: UnrollBuffer, unroll: int) -> dict[str, np.ndarray]:
        """The extras that the learner gets, [T, B, ...] each."""
        mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[:unroll])
        extras = self._hooks.summarize_unroll(extras, torch.from_numpy(self._action[:unroll]), mask)
        return {name: value[:, : len(self.job.streams)].numpy() for name, value in extras.items()}

    def _write_first_row(self) -> None:
        """Write row 0: a reset for new streams, else the last row of the previous unroll, which may be another slot."""
        rows = self._rows[self._slot]
        if self._last is None:
            self.env.reset(rows)
            self._copy_to_end(rows)
            return
        last, end = self._last, self._end
        tree_map(lambda array, before: np.copyto(array[0], before[end]), rows.obs, last.obs)
        rows.first[0] = last.first[end]
        for array, before in zip(rows.optional_fields(), last.optional_fields(), strict=True):
            array[0] = before[end]

    def _copy_to_end(self, rows: UnrollBuffer) -> None:
        """Copy row 0, made by a reset or a restore, to the row that would be the last one of a previous unroll."""
        tree_map(lambda array: np.copyto(array[-1], array[0]), rows.obs)
        rows.first[-1] = rows.first[0]
        for array in rows.optional_fields():
            array[-1] = array[0]
        self._last, self._end = rows, len(rows.reward)

    @contextlib.contextmanager
    def _blaming_environment(self, rows: UnrollBuffer) -> Iterator[None]:
        """If the policy raises, and an environment returned an invalid row, raise the EnvFault of that environment."""
        try:
            yield
        except (EnvFault, RunEnded):
            raise
        except Exception:
            self.env.check(rows, len(rows.reward))
            raise

    def state(self) -> list[dict[str, Any]]:
        """The state for a checkpoint: one dict per unit (a stream, or a block of streams)."""
        if self._last is None:
            self._write_first_row()
        assert self._last is not None
        units, column = [], 0
        saved = self.env.state()
        size = len(self.job.streams) // len(saved)
        for unit in saved:
            columns = slice(column, column + len(unit.get("streams", range(size))))
            units.append(
                {
                    "streams": list(self.job.streams[columns]),
                    "env": unit,
                    "row": self.row[columns].copy(),
                    "first": self._last.first[self._end, columns].copy(),
                    "incarnation": list(self.job.generations[columns]),
                    "ret": self._tracker.ret[columns].copy(),
                    "length": self._tracker.length[columns].copy(),
                    "core": None if self._core is None else self._core[columns].numpy().copy(),
                    "game": None if self._opponents is None else self._opponents.state(columns),
                }
            )
            column = columns.stop
        return units

    def load(self, units: list[dict[str, Any]]) -> bool:
        """Continue from `state`, units in the order of the streams. Returns True if all were restored exactly."""
        rows = self._rows[self._slot]
        self.env.load([unit["env"] for unit in units], rows)
        self.row[:] = np.concatenate([unit["row"] for unit in units])
        was_reset = rows.first[0, : len(self.job.streams)].copy()
        rows.first[0, : len(was_reset)] |= np.concatenate([unit["first"] for unit in units])
        for name in ("ret", "length"):
            values = np.concatenate([unit[name] for unit in units])
            values[was_reset] = 0
            getattr(self._tracker, name)[:] = values
        if self._core is not None:
            core = np.concatenate([unit["core"] for unit in units])
            self._core[: len(core)] = torch.from_numpy(core)
        if self._opponents is not None:
            self._opponents.load([unit["game"] for unit in units])
        self._copy_to_end(rows)
        return not was_reset.any()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


class _RowViews:
    """Torch views of the rows of an unroll, made once."""

    def __init__(self, rows: UnrollBuffer) -> None:
        columns = [torch.from_numpy(leaf).unbind(0) for leaf in leaves(rows.obs)]
        self.obs: list[Tree] = [unflatten(rows.obs, list(row)) for row in zip(*columns, strict=True)]
        self.mask: Sequence[torch.Tensor | None] = (
            [None] * len(self.obs) if rows.action_mask is None else torch.from_numpy(rows.action_mask).unbind(0)
        )
