"""Which settings change the weights that an algorithm learns, alone and in pairs; makes docs/switches.md.

python benchmarks/switches.py             all algorithms
python benchmarks/switches.py ppo dqn     prints these and writes nothing

Each run is a few updates of tiny networks in this process. A setting that has no effect needs a reason below.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import gymnasium
import numpy as np
import pettingzoo
import torch

from rltrain import algorithms
from rltrain.algorithms.protocol import modules_of
from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_algorithm, torch_device
from rltrain.learner.learner import Learner
from rltrain.rollout.scheduler import Rollout
from rltrain.setup.environment import Environment, open_environment
from rltrain.setup.replay import make_feed, open_data
from rltrain.setup.rollout import rollout_spec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "switches.md"
DELIVERIES = 8

# Another value of each setting; booleans and choices have it from their type. Settings that are not here are numbers of
# the same kind as one that is, or say where and how long something runs.
OTHER: dict[str, Any] = {
    "lr": 2e-2, "lr_end": 5e-3, "lr_q": 3e-2, "lr_temperature": 3e-2, "lr_end_share": 0.5, "rms_alpha": 0.9,
    "rms_eps": 1e-2, "adam_eps": 1e-2, "max_grad_norm": 1e-3, "gamma": 0.9, "lam": 0.5, "n_step": 2, "rho_bar": 0.5,
    "c_bar": 0.5, "rho_bar_pg": 0.5, "tau": 0.3, "target_every": 3, "policy_delay": 4, "smoothing": 0.9,
    "smoothing_clip": 0.01, "clip": 1e-3, "clip_end": 1e-5, "kl": 1.0, "value_clip": 1e-3, "value": 2.0, "entropy": 0.5,
    "entropy_end": 0.5, "max_kl": 1e-12, "atoms": 5, "v_min": -5.0, "v_max": 5.0, "temperature": 0.1,
    "target_entropy": -5.0, "regularize": 0.1, "noise": 0.5, "noise_end": 0.9, "alpha": 0.2, "beta": 0.9,
    "priority_eps": 0.5, "epsilon": 0.5, "epsilon_end": 0.9, "epsilon_share": 0.9, "widths": (8,), "memory_size": 5,
    "sequence": 2, "mixer_width": 4, "hyper_width": 0, "log_std_init": -1.0, "epochs": 3, "minibatches": 4, "batch": 4,
    "updates_per_step": 1.0, "burn_in": 5, "buffer_size": 2, "reuse": 3, "wait": 2, "sde_every": 2, "warmup": 48,
}  # fmt: skip
# A setting that needs another one to have a meaning is tried together with it.
NEEDS: dict[str, dict[str, Any]] = {
    **{key: {"memory": "gru"} for key in ("memory_size", "critic_memory", "sequence", "burn_in")},
    **{key: {"prioritized": True} for key in ("alpha", "beta", "priority_eps")},
    **{key: {"atoms": 5} for key in ("v_min", "v_max")},
    **{key: {"noisy": False} for key in ("epsilon", "epsilon_end", "epsilon_share", "epsilon_per_stream", "init")},
    "loss": {"atoms": 1},
    "noise_per_stream": {"noisy": True},
    "sde_every": {"sde": True},
    "adam_eps": {"optimizer": "adam"},
    "rho_bar": {"c_bar": 0.5},
    "noise_end": {"noise": 0.5},
    "smoothing_clip": {"smoothing": 0.9},
    "buffer_size": {"reuse": 2},
}
ALONE = {  # settings without an effect on weights, of all algorithms or as "algorithm.setting"
    "mappo.shared_torso": "a central value function has layers of its own",
    "overlap": "says when actors act, not what is computed; here they act in the learner's process",
    "policy": "its choices are those of `register_policy`",
}
NOT_WITH = {  # (setting, other setting): why the first has no effect once the second is set
    ("clip_end", "max_kl"): "an update ends here before a ratio leaves the range",
    ("shared_torso", "memory"): "with memory the layers are always shared",
    ("target_entropy", "learn_temperature"): "a fixed temperature has no target",
    ("lr_temperature", "learn_temperature"): "a fixed temperature has no step size",
}
DISCRETE = ("dqn", "rainbow")


class Task(gymnasium.Env[Any, Any]):
    """Observations and rewards of several sizes; episodes end by themselves or by a limit of 12 steps."""

    observation_space = gymnasium.spaces.Box(-5.0, 5.0, (3,), np.float32)

    def __init__(self, discrete: bool = False) -> None:
        box = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.obs = 0, np.zeros(3, np.float32)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = 0.5 * float(self.obs[0]) * (1.0 + float(np.sum(action)))
        return self._observe(), reward, bool(self.np_random.random() < 0.1), self.t == 12, {}

    def _observe(self) -> np.ndarray:
        self.obs = np.clip(self.np_random.normal(1.0, 2.0, 3), -5, 5).astype(np.float32)
        return self.obs


class DiscreteTask(Task):
    """`Task` with three actions."""

    def __init__(self) -> None:
        super().__init__(discrete=True)


class TeamTask(pettingzoo.ParallelEnv[str, Any, Any]):
    """Two agents in a `DiscreteTask` each; they are paid together and end together."""

    metadata: ClassVar[dict[str, Any]] = {"name": "team"}
    possible_agents: ClassVar[list[str]] = ["a", "b"]

    def __init__(self) -> None:
        self.tasks = {agent: DiscreteTask() for agent in self.possible_agents}
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.tasks[agent].observation_space

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.tasks[agent].action_space

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents = list(self.possible_agents)
        seeds = dict.fromkeys(self.agents) if seed is None else {"a": seed, "b": seed + 1}
        return {name: self.tasks[name].reset(seed=seeds[name])[0] for name in self.agents}, {n: {} for n in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        steps = {name: self.tasks[name].step(actions[name]) for name in self.agents}
        paid = sum(step[1] for step in steps.values())
        terminated, truncated = (any(step[i] for step in steps.values()) for i in (2, 3))
        result = (
            {name: step[0] for name, step in steps.items()},
            dict.fromkeys(steps, paid),
            dict.fromkeys(steps, terminated),
            dict.fromkeys(steps, truncated),
            {name: {} for name in steps},
        )
        if terminated or truncated:
            self.agents = []
        return result


TEAMS = {**dict.fromkeys(("qmix", "vdn", "iql"), TeamTask), "mappo": "spread", "maddpg": "spread"}


def fields_of(algo: str) -> dict[str, Any]:
    """The fields of an algorithm's settings, by name."""
    return dict(algorithms.settings_class(algo).model_fields)


def others(algo: str) -> dict[str, Any]:
    """Another value of each setting that has one."""
    found: dict[str, Any] = {}
    for name, field in fields_of(algo).items():
        if name in OTHER:
            found[name] = OTHER[name]
        elif isinstance(field.default, bool):
            found[name] = not field.default
        elif get_origin(field.annotation) is Literal:
            found[name] = next(value for value in get_args(field.annotation) if value != field.default)
    return found


def switches(algo: str) -> list[str]:
    """The settings that are tried in pairs: those that turn something on, off, or into another kind."""
    fields = fields_of(algo)
    kinds = [name for name in others(algo) if isinstance(fields[name].default, bool) or fields[name].default is None]
    kinds += [name for name in others(algo) if get_origin(fields[name].annotation) is Literal]
    kinds += [name for name in ("n_step", "atoms") if name in fields]
    return [name for name in dict.fromkeys(kinds) if not {name, f"{algo}.{name}"} & ALONE.keys()]


def needs_of(algo: str, *names: str) -> dict[str, Any]:
    """What these settings need, as far as the algorithm has it."""
    fields = fields_of(algo)
    return {key: value for name in names for key, value in NEEDS.get(name, {}).items() if key in fields}


def pairs(algo: str) -> list[tuple[str, str]]:
    """All pairs of switches, without those of which one needs the other, or needs what the other excludes."""

    def fit(one: str, other: str) -> bool:
        mine, theirs = needs_of(algo, one), needs_of(algo, other)
        agree = all(theirs.get(key, value) == value for key, value in mine.items())
        return agree and one not in theirs and other not in mine

    return [(one, other) for one, other in itertools.combinations(switches(algo), 2) if fit(one, other)]


def small(algo: str) -> dict[str, Any]:
    """Settings of a run that takes a tenth of a second."""
    base = {"streams": 4, "unroll": 8, "widths": (6,), "memory_size": 4, "sequence": 4, "epochs": 2, "minibatches": 2}
    base |= {
        "capacity": 1000,
        "batch": 8,
        "warmup": 32,
        "updates_per_step": 0.5,
        "lr": 1e-2,
        "lr_end": None,
        "wait": None,
    }
    base |= {"widths_q": (6,), "mixer_width": 3, "hyper_width": 3}
    fields = fields_of(algo)
    if "burn_in" in fields:
        base |= {"length": 4, "burn_in": 2}
    return {name: value for name, value in base.items() if name in fields}


@functools.cache
def environment(env: Any, streams: int) -> Environment:
    """The environment, examined once."""
    config = load({"algo": "ppo", "env": env, "preset": "none", "workers": 0, "streams": streams})
    return open_environment(config)[0]


@functools.cache
def _weights(algo: str, given: frozenset[tuple[str, Any]]) -> str:
    env: Any = TEAMS.get(algo) or (DiscreteTask if algo in DISCRETE else Task)
    config = load(
        {"algo": algo, "env": env, "preset": "none", "workers": 0, "steps": 1000, **small(algo), **dict(given)}
    )
    here = environment(env, config.streams)
    algorithm = make_algorithm(config, here.spec)
    feed = make_feed(config, open_data(config, here.spec, algorithm.plan)[0])
    learner = Learner(algorithm, torch_device("cpu"), feed)

    def lost(error: Any) -> None:
        raise AssertionError(error)

    rollout = Rollout(rollout_spec(config, here, algorithm.plan), learner.weights(0), lost)
    for number in range(DELIVERIES):
        rollout.start()
        learner.step(rollout.gather(algorithm.plan.wait), number / (DELIVERIES - 1))
        rollout.publish(learner.weights(rollout.steps))
    rollout.close()
    digest = hashlib.sha256()
    for module in modules_of(algorithm):
        for parameter in module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def weights(algo: str, **settings: Any) -> str:
    """A hash of all weights after a few updates, or the line of the error if the settings are refused."""
    try:
        return _weights(algo, frozenset(settings.items()))
    except ConfigError as error:
        return f"refused: {error}"


def alone(algo: str, name: str) -> str | None:
    """Why the setting has no effect: None if it has one, "" without a reason."""
    if (reason := ALONE.get(f"{algo}.{name}", ALONE.get(name))) is not None:
        return reason
    needs = needs_of(algo, name)
    return None if weights(algo, **needs, **{name: others(algo)[name]}) != weights(algo, **needs) else ""


def pair(algo: str, one: str, other: str) -> list[tuple[str, str, str]]:
    """(setting, other setting, why the first has no effect once the second is set); empty if both have one.

    A refused pair is one of two settings that exclude each other: its reason is the line of the error.
    """
    values, needs = others(algo), needs_of(algo, one, other)
    both = weights(algo, **{**needs, one: values[one], other: values[other]})
    if both.startswith("refused"):
        return [(one, other, both)]
    found = []
    for first, second in ((one, other), (other, one)):
        if both == weights(algo, **{**needs, second: values[second]}):
            reasons = [NOT_WITH[first, cause] for cause in (second, *needs) if (first, cause) in NOT_WITH]
            found.append((first, second, reasons[0] if reasons else ""))
    return found


def section(algo: str) -> tuple[list[str], int]:
    """Lines of the page about an algorithm, and the number of settings without an effect and without a reason."""
    names, faults = list(others(algo)), 0
    lines = [f"## {algo}", ""]
    useless = {name: reason for name in names if (reason := alone(algo, name)) is not None}
    effective = [f"`{name}`" for name in names if name not in useless]
    text = f"Alone, {len(effective)} of {len(names)} change the weights: {', '.join(effective)}."
    lines += [textwrap.fill(text, 120, break_on_hyphens=False), ""]
    tried = pairs(algo)
    without = [line for one, other in tried for line in pair(algo, one, other)]
    lines += [f"In pairs of {len(switches(algo))} switches, {len(tried)} pairs: each changes the weights, except:", ""]
    lines += ["| setting | with | why not |", "| --- | --- | --- |"]
    for name, reason in useless.items():
        faults += not reason
        lines.append(f"| `{name}` | | {reason or '**no reason known**'} |")
    for first, second, reason in without:
        faults += not reason
        lines.append(f"| `{first}` | `{second}` | {reason or '**no reason known**'} |")
    return [*lines, ""], faults


def intro() -> str:
    """The first paragraphs of the page."""
    needs = [
        f"`{name}` with {', '.join(f'`{key}` {value}' for key, value in values.items())}"
        for name, values in NEEDS.items()
    ]
    text = (
        "Made by `python benchmarks/switches.py`: a few updates of tiny networks for each setting, alone and with each "
        "other switch of its algorithm. A setting that leaves every weight as it was has its reason in the table. "
        "A pair that is refused has the line that a user gets. A setting that needs another is tried together with it: "
    )
    text = textwrap.fill(f"{text}{'; '.join(needs)}.", 120, break_long_words=False, break_on_hyphens=False)
    return f"# Switches: which settings change what is learnt\n\n{text}"


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    page, total = [intro(), ""], 0
    for algo in names or algorithms.names():
        lines, faults = section(algo)
        print("\n".join(lines), flush=True)
        page += lines
        total += faults
    if not names:
        PAGE.write_text("\n".join(page).rstrip() + "\n")
    print(f"{total} without a reason")
    return bool(total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
