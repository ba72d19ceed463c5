"""One actor: steps its streams with its copy of the policy, one unroll at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rltrain.envs.errors import EnvFault
from rltrain.envs.seeding import stream_seed
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.actor.episodes import EpisodeTracker, TeamTracker
from rltrain.rollout.actor.noise import RandomStart, StreamNoise
from rltrain.rollout.actor.opponents import Opponents
from rltrain.rollout.buffers import clear_absent, empty_rows, obs_arrays, padded
from rltrain.rollout.inference.client import Ended, InferenceClient
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.shared_memory.heartbeat import Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory, tree_at
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob, Inference
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten
from rltrain.rollout.types import Trajectory, hooks_of


@dataclass(frozen=True)
class Links:
    """What an actor shares with the learner: tickets of memory, or the memory itself in one process."""

    weights: Any
    life: Any  # LIFE numbers per worker
    slots: Any = None  # observations of big unrolls
    desk: Any = None  # of a server that decides: see `Central.ticket`
    pool: Any = ()  # of weights, one for each place of the pool of opponents


class Actor:
    """Acts; see `collect`. All arrays are made once and are as wide as `padded(B)`.

    It decides with a policy of its own, with the newest weights when an unroll begins, or has a server decide.
    """

    def __init__(self, job: ActorJob, links: Links) -> None:
        self.job = job
        count, width = len(job.streams), padded(len(job.streams))
        life = SharedMemory.attach(links.life) if isinstance(links.life, tuple) else links.life
        self._life = Heartbeat(life, job.worker)
        self._asking = None if job.inference is None else self._desk(job.inference, links.desk)
        self.policy: Any = self._asking
        if self._asking is None:
            self.policy = job.make_policy()
            if job.reduce is None:  # else the policy is also applied to whole unrolls
                hooks_of(self.policy).set_active_rows(count)
            self._parameters = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}
            memory = SharedMemory.attach(links.weights) if isinstance(links.weights, tuple) else links.weights
            self._board = WeightsBoard(self._parameters, memory)
        like = obs_arrays(job.spec, job.unroll + 1, width)
        shared = None if links.slots is None else SharedMemory.attach(links.slots)
        buffers = [like] if shared is None else [tree_at(shared, slot, like) for slot in range(job.slots)]
        self._rows = [empty_rows(job.spec, job.unroll, count, obs) for obs in buffers]
        self._views = [_RowViews(rows) for rows in self._rows]
        self._slot = 0
        self._noise_of = StreamNoise(job.seed, job.streams, *self.policy.noise)
        self._noise = np.zeros((job.unroll, width, self.policy.noise.columns), np.float32)
        self._start = RandomStart(job.seed, job.streams, job.spec.action, job.random_rows)
        self._noise_rows = torch.from_numpy(self._noise).unbind(0)
        self._action = np.zeros((job.unroll, width, *job.spec.action.shape), job.spec.action.dtype)
        self._core = torch.zeros(width, self.policy.core_size) if self.policy.core_size else None
        agents = len(job.spec.agents)
        self._hooks = hooks_of(self.policy)
        self._tracker = TeamTracker(count, agents) if agents else EpisodeTracker(count)
        self._opponents: Opponents | None = None
        if job.pool is not None:
            games = job.streams, job.unroll, job.pool, job.make_policy, links.pool
            self._opponents = Opponents(job.seed, *games)
        self.row = np.array(job.rows, np.int64)
        self.env = job.make_env(job.streams, job.incarnations)
        self._last: UnrollBuffer | None = None  # the unroll before; None: streams that begin
        self._end = job.unroll  # the row of it that the next one begins with
        self._ended = time.perf_counter()

    def collect(self, length: int | None = None) -> tuple[Any, int | None]:
        """T steps of every stream (or `length`, if less) with the newest weights. The next call reuses the arrays.

        Returns the unroll, or what `reduce` makes of it, and the number of the slot where its observations lie if
        they do not come with it. Nothing if the run is over.
        """
        if self._life.stopped:
            return None, None
        began = time.perf_counter()
        job, env = self.job, self.env
        count, unroll = len(job.streams), min(length or job.unroll, job.unroll)
        rows, views = self._rows[self._slot], self._views[self._slot]
        version = self._newest()
        opponents = self._opponents
        if opponents is not None:
            opponents.begin(self.row, job.incarnations)
        self._life.begin()
        try:
            self._begin()
            self._noise_of.fill(self._noise, self.row, job.incarnations)
            at_random = self._start.begin(unroll, self.row, job.incarnations)
            core, cores = self._core, []
            extras: dict[str, list[torch.Tensor]] = {}
            action_rows, policy, every, life = self._action, self.policy, self.policy.sequence, self._life
            with torch.inference_mode(), self._explaining(rows):
                for t in range(unroll):
                    if core is not None:
                        if rows.first[t].any():
                            core = core * torch.from_numpy(~rows.first[t])[:, None]
                        if t % every == 0:
                            cores.append(core[:count].numpy().copy())
                    act = policy.act(views.obs[t], core, views.mask[t], self._noise_rows[t], True)
                    core, action = act.core, act.action.numpy()
                    action_rows[t] = action
                    if at_random:
                        legal = None if rows.action_mask is None else rows.action_mask[t]
                        self._start.replace(t, action_rows[t], legal)
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
                    env.step(action[:count], rows, t)
                    life.step()
                told = self._told({name: torch.stack(values) for name, values in extras.items()}, rows, unroll)
            self._core = core
            self._check(rows)
        except Ended:
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
            version=np.full(count, version if self._asking is None else self._asking.version, np.int64),
            stream=np.array(job.streams, np.int64),
            row=self.row.copy(),
            extras=told,
            action_mask=None if rows.action_mask is None else rows.action_mask[: unroll + 1, :count],
            core=np.stack(cores) if cores else None,
            alive=None if rows.alive is None else rows.alive[: unroll + 1, :count],
            acting=None if rows.acting is None else rows.acting[: unroll + 1, :count],
            state=None if rows.state is None else rows.state[: unroll + 1, :count],
        )
        ended = trajectory.episode_end & ~rows.episode_continues[:unroll, :count]
        episodes = self._tracker.add(trajectory.reward, ended, trajectory.valid)
        if opponents is not None:
            episodes = opponents.tell(episodes, ended)
            trajectory = replace(trajectory, acting=trajectory.acting & opponents.learning(unroll))
        self.row += unroll
        slot = self._slot if len(self._rows) > 1 else None
        self._last, self._end, self._slot = rows, unroll, (self._slot + 1) % len(self._rows)
        trajectory = replace(trajectory, episodes=episodes)
        answer = trajectory if job.reduce is None else job.reduce(self.policy, trajectory)
        before, self._ended = self._ended, time.perf_counter()
        self._life.count(began - before, self._ended - began)
        return (answer if slot is None else replace(answer, obs=None)), slot

    def _desk(self, inference: Inference, link: Any) -> InferenceClient:
        pipe, ticket, streams = link
        desks = RequestBuffers(self.job.spec, inference, streams, SharedMemory.attach(ticket))
        return InferenceClient(inference, desks, self.job.worker, pipe, lambda: self._life.stopped)

    def _newest(self) -> int | None:
        """Read the newest weights and return their version. A server does so itself, and says it with each answer."""
        if self._asking is not None:
            self._asking.begin()
            return None
        return self._board.read(self._parameters)[0]

    def _told(self, extras: dict[str, torch.Tensor], rows: UnrollBuffer, unroll: int) -> dict[str, np.ndarray]:
        """The extras that the learner gets, [T, B, ...] each."""
        mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[:unroll])
        extras = self._hooks.summarize_unroll(extras, torch.from_numpy(self._action[:unroll]), mask)
        return {name: value[:, : len(self.job.streams)].numpy() for name, value in extras.items()}

    def _begin(self) -> None:
        """Row 0: a reset for new streams, else the last row of the unroll before (it may lie in the other slot)."""
        rows = self._rows[self._slot]
        if self._last is None:
            self.env.reset(rows)
            self._remember(rows)
            return
        last, end = self._last, self._end
        tree_map(lambda array, before: np.copyto(array[0], before[end]), rows.obs, last.obs)
        rows.first[0] = last.first[end]
        for array, before in zip(rows.optional_fields(), last.optional_fields(), strict=True):
            array[0] = before[end]

    def _remember(self, rows: UnrollBuffer) -> None:
        """Row 0, just made by a reset or a resume, stands where the last row of an unroll before would."""
        tree_map(lambda array: np.copyto(array[-1], array[0]), rows.obs)
        rows.first[-1] = rows.first[0]
        for array in rows.optional_fields():
            array[-1] = array[0]
        self._last, self._end = rows, len(rows.reward)

    @contextlib.contextmanager
    def _explaining(self, rows: UnrollBuffer) -> Iterator[None]:
        """If the policy cannot act on what an environment gave, it is that environment's fault."""
        try:
            yield
        except (EnvFault, Ended):
            raise
        except Exception:
            self._check(rows)
            raise

    def _check(self, rows: UnrollBuffer) -> None:
        """Refuse numbers that would poison the learner, by naming the stream."""
        count = len(self.job.streams)
        floats = [(rows.reward[:, :count], "reward")]
        floats += [(leaf[:, :count], "observation") for leaf in leaves(rows.obs) if leaf.dtype == np.float32]
        floats += [] if rows.state is None else [(rows.state[:, :count], "state")]
        for array, what in floats:
            if not np.isfinite(array).all():
                bad = ~np.isfinite(array)
                t, b = np.argwhere(bad.reshape(*bad.shape[:2], -1).any(-1))[0]
                text = f"ValueError: the environment returned a {what} that is not finite (nan or inf)"
                raise self._fault(int(b), int(t), text)
        if rows.action_mask is not None:
            nvec = self.job.spec.action.nvec
            heads = np.logical_or.reduceat(rows.action_mask[:, :count], np.cumsum((0, *nvec[:-1])), axis=-1)
            if not heads.all():
                t, b, head = np.argwhere(~heads)[0]
                where = f" in head {head}" if len(nvec) > 1 else ""
                raise self._fault(int(b), int(t), f"ValueError: the action mask allows no action at all{where}")

    def _fault(self, b: int, t: int, text: str) -> EnvFault:
        job = self.job
        return EnvFault(job.streams[b], stream_seed(job.seed, job.streams[b], job.incarnations[b]), t, text)

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint needs to go on exactly here: one dict per unit (a stream, or a block of streams)."""
        if self._last is None:
            self._begin()
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
                    "incarnation": list(self.job.incarnations[columns]),
                    "ret": self._tracker.ret[columns].copy(),
                    "length": self._tracker.length[columns].copy(),
                    "core": None if self._core is None else self._core[columns].numpy().copy(),
                    "game": None if self._opponents is None else self._opponents.state(columns),
                }
            )
            column = columns.stop
        return units

    def load(self, units: list[dict[str, Any]]) -> bool:
        """Go on from `state`; units in the order of the streams. Returns whether every stream was brought back."""
        rows = self._rows[self._slot]
        self.env.load([unit["env"] for unit in units], rows)
        self.row[:] = np.concatenate([unit["row"] for unit in units])
        began = rows.first[0, : len(self.job.streams)].copy()
        rows.first[0, : len(began)] |= np.concatenate([unit["first"] for unit in units])
        for name in ("ret", "length"):
            kept = np.concatenate([unit[name] for unit in units])
            kept[began] = 0
            getattr(self._tracker, name)[:] = kept
        if self._core is not None:
            core = np.concatenate([unit["core"] for unit in units])
            self._core[: len(core)] = torch.from_numpy(core)
        if self._opponents is not None:
            self._opponents.load([unit["game"] for unit in units])
        self._remember(rows)
        return not began.any()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


class Build:
    """Makes the actor in its process: cloudpickled there, since environments may be closures."""

    def __init__(self, job: ActorJob) -> None:
        self.job = job

    def __call__(self, *links: Any) -> Actor:
        return Actor(self.job, Links(*links))


class _RowViews:
    """Torch views of the rows of an unroll, made once."""

    def __init__(self, rows: UnrollBuffer) -> None:
        columns = [torch.from_numpy(leaf).unbind(0) for leaf in leaves(rows.obs)]
        self.obs: list[Tree] = [unflatten(rows.obs, list(row)) for row in zip(*columns, strict=True)]
        self.mask: Sequence[torch.Tensor | None] = (
            [None] * len(self.obs) if rows.action_mask is None else torch.from_numpy(rows.action_mask).unbind(0)
        )
