"""`rltrain.estimate`: the value of a policy from recorded data, by several estimators, each with its refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from rltrain.config.consent import NETWORK
from rltrain.data.episodes import Recorded, episodes_of
from rltrain.data.off_policy.estimators import (
    IMPORTANCE,
    METHODS,
    UPDATES,
    Logged,
    Terms,
    doubly_robust,
    effective_size,
)
from rltrain.data.off_policy.fitted_q import FittedQ, FittedQConfig
from rltrain.data.off_policy.target import Steps, Target
from rltrain.data.origin import ENV_ARGS, noise_steps, selections
from rltrain.envs.spec import COSMETIC, spec_differences
from rltrain.errors import ConfigError
from rltrain.evaluation.policy import Trained, load_for
from rltrain.storage.recording import Recording
from rltrain.system.free_space import amount, free_memory
from rltrain.system.torch_setup import one_thread

LEAST_SIZE = 10.0  # effective number of episodes below which an estimate is refused, or has no interval
SELECTED = "the episodes were selected by return or length"
MEMBERS = 5  # nets of fqe that learn from resampled episodes
T_975 = 2.776  # quantile of Student's t with MEMBERS - 1 degrees of freedom
HALVES = 2
ROUNDING = 1e-4  # of a log-probability
SURE = 4.0  # standard errors by which the mean weight differs from 1 only if the data does not suit
TAIL = 0.01  # largest factor of the value after a time limit that is not mentioned
COPIES = 2  # of the data in memory: the episodes, and their steps one after the other


@dataclass(frozen=True)
class Estimate:
    """The discounted return of an episode, by one estimator."""

    value: float
    ci95: tuple[float, float] | None  # None: there are fewer than LEAST_SIZE episodes
    effective_size: float | None  # of the weights, in episodes; None: the estimator has none


@dataclass(frozen=True)
class Estimates:
    """Result of an off-policy evaluation."""

    estimates: dict[str, Estimate]  # by estimator
    refused: dict[str, str]  # by estimator: why there is no estimate
    recorded: Estimate | None  # the discounted return of the recorded episodes themselves; None: none is complete
    gamma: float
    steps: int
    episodes: int  # all that were recorded
    complete: int  # from the first step to the end
    checkpoint: Path
    notes: tuple[str, ...] = field(default=())


def estimate(
    what: str | Path | Trained,
    data: str | Path,
    method: str | Sequence[str] = METHODS,
    gamma: float | None = None,
    seed: int = 0,
    *,
    stochastic: bool = False,
    best: bool = False,
    trust: bool = False,
    updates: int = UPDATES,
) -> Estimates:
    """Estimate the value of a policy from episodes that another policy recorded, without its environment.

    Args:
        what:       a run's folder, a checkpoint, or a `Trained`.
        data:       a folder that `--record` wrote.
        method:     an estimator, or several: see docs/ope.md. If one that is named here is refused, that is an error
                    unless another one is not.
        gamma:      discount; None: that of the run, or 0.99.
        seed:       of the networks and of the bootstrap.
        stochastic: the value of the policy as it acts in training; else without exploration, as `evaluate` plays it.
        best:       of a run's folder, the best checkpoint in place of the newest.
        trust:      a run that somebody else made may import the code that it names.
        updates:    of the networks of fqe and dr.

    Raises:
        ConfigError: a value is wrong, the policy has other spaces or another environment, or every estimator refuses.
        CheckpointError: the checkpoint or the recording cannot be read.
    """
    names = _checked(method, gamma, seed, updates)
    trained = what if isinstance(what, Trained) else load_for(what, best, trust, NETWORK)
    if not isinstance(data, str | Path) or data == "":
        raise ConfigError(f"data must be the folder of a recording, got {data!r}")
    recording = Recording.open(Path(data))
    _require_same(recording, trained)
    _require_memory(recording)
    episodes = list(episodes_of(recording))
    if not episodes:
        raise ConfigError(f"{recording.folder} holds no step of an episode")
    if gamma is None:
        gamma = float(getattr(trained.config.settings, "gamma", 0.99))
    with one_thread():
        work = _Work(episodes, recording, Target(trained, stochastic, seed), float(gamma), seed, updates)
        result = work.result(names)
    if not result.estimates:
        reasons = dict.fromkeys(result.refused.values())
        raise ConfigError(
            "; ".join(f"{', '.join(k for k, v in result.refused.items() if v == r)}: {r}" for r in reasons)
        )
    return result


def _checked(method: str | Sequence[str], gamma: float | None, seed: int, updates: int) -> tuple[str, ...]:
    if not isinstance(method, str | Sequence):
        raise ConfigError(f"method must be the name of an estimator, or several, got {method!r}")
    names = tuple(method.replace(" ", "").split(",")) if isinstance(method, str) else tuple(method)
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown; there are {', '.join(METHODS)}")
    if not names:
        raise ConfigError(f"method: name at least one of {', '.join(METHODS)}")
    if gamma is not None and (isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1):
        raise ConfigError(f"gamma must be above 0 and at most 1, got {gamma!r}")
    for word, number, least in (("seed", seed, 0), ("updates", updates, 1)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ConfigError(f"{word} must be a whole number of at least {least}, got {number!r}")
    return tuple(name for name in METHODS if name in names)


def _require_same(recording: Recording, trained: Trained) -> None:
    """ConfigError if the data is of another environment than the policy."""
    folder, path, spec = recording.folder, trained.path, trained.spec
    if recording.spec.groups or spec.groups:
        raise ConfigError(
            f"{folder if recording.spec.groups else path} has several agents; rlope estimates one agent's"
        )
    if recording.spec.id != spec.id:
        raise ConfigError(f"{folder} was recorded on {recording.spec.id}, and {path} was trained on {spec.id}")
    changed = spec_differences(recording.spec, spec, ignored=COSMETIC)
    if changed:
        raise ConfigError(f"{folder} was recorded on another {spec.id} than {path} was trained on: {changed}")
    theirs, own = recording.run.get(ENV_ARGS), trained.config.to_json().get("env_args")
    if theirs is not None and theirs != own:
        raise ConfigError(f"{folder} was recorded with the arguments {theirs} of {spec.id}, and {path} has {own}")


def _require_memory(recording: Recording) -> None:
    """ConfigError if the data does not fit into the free memory."""
    needed, free = COPIES * sum(int(item["bytes"]) for item in recording.files), free_memory()
    if free is not None and needed > free:
        text = f"{recording.folder} needs {amount(needed)} of memory, and {amount(free)} is free"
        raise ConfigError(f"{text}; `rldata split` makes a smaller recording of random episodes")


@dataclass(frozen=True)
class _Work:
    """What several estimators need; each part is made when it is first needed."""

    episodes: list[Recorded]
    recording: Recording
    target: Target
    gamma: float
    seed: int
    updates: int

    def result(self, names: Sequence[str]) -> Estimates:
        estimates, refused = dict[str, Estimate](), dict[str, str]()
        for name in names:
            reason = self.refusal(name)
            if reason is None:
                found = self.fitted() if name == "fqe" else self.weighted(name)
                finite = all(map(math.isfinite, (found.value, *(found.ci95 or ()))))
                if finite:
                    estimates[name] = found
                    continue
                reason = "the estimate is not a finite number" if name == "fqe" else "the weights exceed all numbers"
            refused[name] = reason
        return Estimates(
            estimates=estimates,
            refused=refused,
            recorded=self.recorded() if self.complete else None,
            gamma=self.gamma,
            steps=sum(one.steps for one in self.episodes),
            episodes=len(self.episodes),
            complete=len(self.complete),
            checkpoint=self.target.trained.path,
            notes=tuple(self.notes(estimates)),
        )

    def recorded(self) -> Estimate:
        """The discounted return of the complete episodes: importance sampling with equal policies."""
        returns = Logged.of([np.zeros(one.steps) for one in self.complete], [one.reward for one in self.complete])
        found = _estimate(IMPORTANCE["is"](returns, self.gamma), self.seed, float(len(self.complete)))
        return found if len(self.complete) >= LEAST_SIZE else replace(found, ci95=None)

    @cached_property
    def complete(self) -> list[Recorded]:
        """The episodes that are there from their first step to their end."""
        return [one for one in self.episodes if one.whole and (one.terminated or one.truncated)]

    @cached_property
    def steps(self) -> Steps:
        """Of all episodes, those that are not complete too."""
        return Steps.of(self.episodes, self.recording.spec)

    @cached_property
    def own(self) -> np.ndarray:
        """What the evaluated policy does at each observation: see `FittedQ`."""
        discrete = self.recording.spec.action.kind == "discrete"
        return self.target.probabilities(self.steps) if discrete else self.target.actions(self.steps)

    @cached_property
    def logged(self) -> Logged:
        """The complete episodes with log pi - log mu."""
        log_target = self.target.log_prob(Steps.of(self.complete, self.recording.spec))
        parts = np.split(log_target, np.cumsum([one.steps for one in self.complete])[:-1])
        pairs = zip(parts, self.complete, strict=True)
        ratios = [part - one.extras["log_prob"].astype(np.float64) for part, one in pairs]
        return Logged.of(ratios, [one.reward for one in self.complete])

    def refusal(self, name: str) -> str | None:
        """Why an estimator does not apply to this data and policy; None: it does."""
        memory = "the policy has a memory, and values are learnt of single observations"
        if name == "fqe":
            if self.target.trained.policy.core_size:
                return memory
            if self.gamma == 1 and any(one.truncated and not one.terminated for one in self.episodes):
                return "with gamma 1 the value that follows a time limit has no bound; give a gamma below 1"
            return None if any(one.whole for one in self.episodes) else "no episode is there from its first step"
        reason = self.weights_refusal
        if reason is None and (size := effective_size(self.logged, name)) < LEAST_SIZE:
            reason = f"the weights leave an effective size of {size:.1f} episodes of {len(self.complete):,}, below "
            reason += f"{LEAST_SIZE:g}: the recorded policy acts too differently; record more"
            reason += "" if self.refusal("fqe") else ", or use fqe"
        if reason is None and name == "dr" and self.target.trained.policy.core_size:
            return memory
        return reason

    @cached_property
    def weights_refusal(self) -> str | None:
        """Why there are no weights pi / mu; None: there are."""
        box, target = self.recording.spec.action.kind == "box", self.target
        fqe_refused = self.refusal("fqe") is not None
        only_fqe = "" if fqe_refused else "; only fqe applies"
        if box and not target.stochastic:
            other = "try" if fqe_refused else "only fqe applies, or"
            return "the policy without exploration is deterministic, and never takes exactly a recorded Box action; "\
                f"{other} --stochastic for the policy as it acts in training"  # fmt: skip
        if not target.has_density:
            return f"the policy has no probabilities of actions that could be computed{only_fqe}"
        if not self.complete:
            return "no episode is there from its first step to its end"
        if selections(self.recording.run):
            return f"{SELECTED}, and weights do not correct that; estimate from the data before the selection"
        if any("log_prob" not in one.extras for one in self.complete):
            return f"the recording has no log-probabilities of its actions (propensities){only_fqe}"
        log_prob = np.concatenate([one.extras["log_prob"] for one in self.complete])
        if log_prob.ndim > 1 or np.isnan(log_prob).any() or np.isposinf(log_prob).any():
            return f"log-probabilities (propensities) of some recorded actions are missing{only_fqe}"
        if noise_steps(self.recording.run) > 1:
            return "the recorded policy held its noise for several steps (sde_every), so that probabilities of single "\
                f"steps do not multiply{only_fqe}"  # fmt: skip
        if box and (log_prob == 0).any():
            return "some recorded Box actions were chosen without exploration, so that they have no density"\
                f"{only_fqe}"  # fmt: skip
        if box and self.recording.run.get("served"):
            action, rounded = np.concatenate([one.action for one in self.complete]), self.recording.spec.action.takes
            if (np.abs(action) >= 1).any() or np.dtype(rounded).kind != "f":
                return "rlserve recorded actions as the environment took them, and some are on the bounds or rounded, "\
                    f"where the recorded density is that of the action before{only_fqe}"  # fmt: skip
        if np.isneginf(log_prob).any():
            return f"some recorded actions have probability 0{only_fqe}"
        if not box and log_prob.max() > ROUNDING:
            return f"the recorded log-probabilities of some actions are above 0{only_fqe}"
        return None

    def weighted(self, name: str) -> Estimate:
        terms = self.robust() if name == "dr" else IMPORTANCE[name](self.logged, self.gamma)
        return _estimate(terms, self.seed, effective_size(self.logged, name))

    def fitted(self) -> Estimate:
        """The mean over the first observations and over nets, most of which learn from resampled episodes.

        The interval is that of Hao et al. 2021 (arXiv:2102.03607), with few nets and Student's t.
        """
        rng, count = np.random.default_rng(self.seed), len(self.episodes)
        weight = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(MEMBERS)])
        weight = np.concatenate([np.ones((1, count), np.int64), weight])
        _, v = self.learn(weight, self.seed)
        whole = np.array([one.whole for one in self.episodes])
        first = v[:, self.steps.start[:-1]] * whole  # [1 + MEMBERS, N]
        with np.errstate(invalid="ignore"):
            values = (weight * first).sum(1) / (weight * whole).sum(1)
        value, half = float(np.nanmean(values)), T_975 * float(np.nanstd(values[1:], ddof=1))
        return Estimate(value, (value - half, value + half) if whole.sum() >= LEAST_SIZE else None, None)

    def robust(self) -> Terms:
        """`dr`: the values of each half of the complete episodes are learnt from all other episodes."""
        position = {id(one): i for i, one in enumerate(self.episodes)}
        place = np.array([position[id(one)] for one in self.complete])
        order = np.random.default_rng(self.seed).permutation(len(place))
        half = np.empty(len(place), np.int64)
        half[order] = np.arange(len(place)) % HALVES
        q, v = ([np.zeros(one.steps) for one in self.complete] for _ in range(2))
        begins = self.steps.start
        for number in range(HALVES):
            own = np.flatnonzero(half == number)
            weight = np.ones((1, len(self.episodes)))
            weight[:, place[own]] = 0
            of_actions, of_states = self.learn(weight, self.seed + 1 + number)
            by_episode = np.split(of_actions[0], np.cumsum([one.steps for one in self.episodes])[:-1])
            for i in own.tolist():
                q[i] = by_episode[place[i]]
                v[i] = of_states[0, begins[place[i]] : begins[place[i] + 1] - 1]
        return doubly_robust(self.logged, self.gamma, np.concatenate(q), np.concatenate(v))

    def learn(self, weight: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        config = FittedQConfig(critics=len(weight), batch=min(256, max(1, len(self.steps.row))))
        networks = FittedQ(self.steps, self.own, self.gamma, weight, seed, config)
        networks.fit(self.updates)
        return networks.values()

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """What a reader of the numbers must know."""
        notes = []
        if selections(self.recording.run):
            notes.append(f"{SELECTED}: recorded is not the return of the policy that acted, and fqe may be biased")
        few = {"recorded": len(self.complete), "fqe": sum(one.whole for one in self.episodes)}
        there = {"recorded": bool(self.complete), "fqe": "fqe" in estimates}
        if names := [name for name, count in few.items() if there[name] and count < LEAST_SIZE]:
            text = f"{' and '.join(names)} from fewer than {LEAST_SIZE:g} whole episodes: "
            notes.append(text + "too few for an interval")
        left_out = len(self.episodes) - len(self.complete)
        if left_out and set(estimates) - {"fqe"}:
            text = f"{left_out:,} of {len(self.episodes):,} episodes are not complete: only fqe and dr's networks use "
            notes.append(text + "them; long episodes are more often cut off, which biases the others if there are many")
        if set(estimates) - {"fqe"}:
            with np.errstate(over="ignore", invalid="ignore"):
                weight = np.exp(self.logged.last[:, 0])
                error = weight.std() / math.sqrt(len(weight))
            if abs(weight.mean() - 1) > SURE * error:
                text = f"the weights have a mean of {weight.mean():.3g}, and it should be 1: the recorded policy never "
                notes.append(text + "takes some actions of the evaluated one, or its log-probabilities are wrong")
        limited = [one.steps for one in self.complete if one.truncated and not one.terminated]
        if limited and self.gamma ** min(limited) > TAIL and "fqe" in estimates:
            text = (
                f"{len(limited):,} episodes end at a time limit: fqe counts the value of what follows it, the others "
            )
            notes.append(text + "do not")
        return notes


def _estimate(terms: Terms, seed: int, size: float) -> Estimate:
    return Estimate(float(terms.value()), terms.interval(seed), size)
