"""Which settings change the weights that an algorithm learns, alone and in pairs; makes docs/switches.md.

python benchmarks/switches.py             all algorithms
python benchmarks/switches.py ppo dqn     these; the sections of others stay as they are

Each run is a few updates of tiny networks in this process. A setting that has no effect needs a reason below.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import itertools
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin

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
from rltrain.rollout.workers import process_state
from rltrain.setup.environment import Environment, open_environment
from rltrain.setup.offline import OfflineRollout, fill
from rltrain.setup.replay import make_feed, open_data
from rltrain.setup.rollout import rollout_spec
from rltrain.storage.recording import Recorder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "switches.md"
DELIVERIES = 8

# Another value of each setting; booleans and choices have theirs from the type.
OTHER: dict[str, Any] = {
    "streams": 5, "unroll": 16, "epochs": 3, "minibatches": 4, "wait": 2, "capacity": 40, "batch": 4, "length": 3,
    "filter_top": 0.5, "q_weight": 0.5, "expectile": 0.9, "advantage_factor": 0.2, "max_weight": 0.5, "norm_rate": 0.5,
    "conservative": 0.5, "samples": 3,
    "warmup": 48, "updates_per_step": 0.75, "buffer_size": 2, "reuse": 3, "lr": 2e-2, "lr_end": 5e-3, "lr_q": 3e-2,
    "lr_temperature": 3e-2, "lr_end_share": 0.5, "rms_alpha": 0.9, "rms_eps": 1e-2, "adam_eps": 1e-2,
    "max_grad_norm": 1e-3, "gamma": 0.9, "lam": 0.5, "n_step": 2, "rho_bar": 0.5, "c_bar": 0.5, "rho_bar_pg": 0.5,
    "target_every": 3, "tau": 0.3, "critics": 3, "target_critics": 1, "policy_delay": 4, "smoothing": 0.9,
    "smoothing_clip": 0.01, "clip": 1e-3, "clip_end": 1e-5, "ratio_bar": 1.0, "kl": 1.0, "value_clip": 1e-3,
    "value": 2.0, "entropy": 0.5, "entropy_end": 0.2, "max_kl": 1e-12, "atoms": 5, "v_min": -5.0, "v_max": 5.0,
    "quantiles": 5, "drop": 1, "temperature": 0.1, "target_entropy": -5.0, "target_entropy_share": 0.5, "gumbel": 0.5,
    "regularize": 0.1, "noise": 0.5, "noise_end": 0.9, "ou_theta": 0.5, "alpha": 0.2, "beta": 0.9, "priority_eps": 0.5,
    "epsilon": 0.5, "epsilon_end": 0.9, "epsilon_share": 0.9, "widths": (8,), "widths_q": (8,), "dropout": 0.3,
    "log_std_init": -1.0, "sde_every": 2, "memory_size": 5, "sequence": 2, "burn_in": 6, "mixer_width": 4,
    "hyper_width": 0, "reward_limit": 0.1,
}  # fmt: skip
SOFT = ("sac", "redq", "droq", "tqc")
TEAMS = ("iql", "qmix", "vdn")
OFFLINE = ("bc", "marwil", "td3_bc", "cql", "implicit_q", "awac")
RECURRENT = ("dqn", "rainbow", "sac", "redq", "droq", *OFFLINE)  # whose sequences of a replay are for a memory
# A setting that needs another one to have a meaning is tried together with it; also as "algorithm.setting".
NEEDS: dict[str, dict[str, Any]] = {
    **{key: {"memory": "gru"} for key in ("memory_size", "critic_memory", "sequence", "burn_in")},
    **{key: {"prioritized": True} for key in ("alpha", "beta", "priority_eps")},
    **{key: {"atoms": 5} for key in ("v_min", "v_max")},
    **{key: {"noisy": False} for key in ("epsilon", "epsilon_end", "epsilon_share", "epsilon_per_stream", "init")},
    **{f"{algo}.log_std_init": {"sde": True} for algo in SOFT},
    **{f"{algo}.length": {"memory": "gru"} for algo in RECURRENT},
    "reward_limit": {"normalize_return": True},
    "loss": {"atoms": 1},
    "noise_per_stream": {"noisy": True},
    "sde_every": {"sde": True},
    "rms_alpha": {"optimizer": "rmsprop"},
    "rms_eps": {"optimizer": "rmsprop"},
    "rho_bar": {"c_bar": 0.5},
    "noise_end": {"noise": 0.5},
    "ou_theta": {"noise_kind": "ou"},
    "smoothing_clip": {"smoothing": 0.9},
    "buffer_size": {"reuse": 2},
    **{f"{algo}.adam_eps": {"optimizer": "adam"} for algo in ("a2c", "a3c", "impala")},
}
STRUCTURE = {  # numbers that make another computation, as switches do
    "n_step", "atoms", "critics", "quantiles", "drop", "dropout", "policy_delay", "epochs", "minibatches", "reuse",
    "noise", "kl", "widths_q", "sequence", "length", "burn_in", "target_every", "smoothing",
    "regularize", "hyper_width",
}  # fmt: skip
ALONE = {  # settings without an effect on weights, of all algorithms or as "algorithm.setting"
    "mappo.shared_torso": "a central value function has layers of its own",
    "overlap": "says when actors act, not what is computed; here they act in the learner's process",
    "max_in_flight": "with `overlap` only",
    "max_lag": "no unroll is older than one update here",
    "policy": "its choices are those of `register_policy`",
    "torso": "its choices are networks for images, or a user's",
}
SOFT_OR_CRITICS = """
    lr lr_temperature samples temperature learn_temperature target_entropy critics widths_q layer_norm dropout
""".split()
FOR_KIND = {  # settings for one kind of actions, where the other kind does not refuse them
    **{f"cql.{name}": "Box" for name in SOFT_OR_CRITICS},
    "target_entropy_share": "Discrete",
    "gumbel": "Discrete",
    "maddpg.noise": "Box",
    "maddpg.noise_end": "Box",
    "log_std_init": "Box",
}
NOT_WITH = {  # (setting, other setting): why the first has no effect once the second is set
    ("epochs", "max_kl"): "the first epoch is the last one here",
    ("clip_end", "max_kl"): "an update ends here before a ratio leaves the range",
    ("shared_torso", "memory"): "with memory the layers are always shared",
    ("target_entropy", "learn_temperature"): "a fixed temperature has no target",
    ("lr_temperature", "learn_temperature"): "a fixed temperature has no step size",
    **{
        (f"{algo}.length", other): "samples are whole episodes" for algo in TEAMS for other in ("last_action", "memory")
    },
}


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


ENVIRONMENTS: dict[bool, dict[str, Any]] = {  # by whether they are for several agents, and by the kind of actions
    False: {"Box": Task, "Discrete": DiscreteTask},
    True: {"Box": "spread", "Discrete": TeamTask},
}


class Case(NamedTuple):
    """An algorithm and the kind of actions with which its settings are tried."""

    algo: str
    kind: str  # Box or Discrete

    def __str__(self) -> str:
        return f"{self.algo}, {self.kind} actions"


@functools.cache
def cases(algo: str) -> list[Case]:
    """The algorithm with each kind of actions that it can choose."""
    both = [Case(algo, kind) for kind in ENVIRONMENTS[False]]
    return [case for case in both if not weights(case).startswith("refused")]


def fields_of(algo: str) -> dict[str, Any]:
    """The fields of an algorithm's settings, by name."""
    return dict(algorithms.settings_class(algo).model_fields)


def others(algo: str) -> dict[str, list[Any]]:
    """Other values of each setting that has some; the first one is for pairs."""
    found: dict[str, list[Any]] = {}
    for name, field in fields_of(algo).items():
        if {name, f"{algo}.{name}"} & ALONE.keys():
            continue
        if name in OTHER:
            found[name] = [OTHER[name]]
        elif isinstance(field.default, bool):
            found[name] = [not field.default]
        elif get_origin(field.annotation) is Literal:
            found[name] = [value for value in get_args(field.annotation) if value != field.default]
    return found


def switches(algo: str) -> list[str]:
    """The settings that are tried in pairs: those that turn something on or off, or make another computation."""
    fields = fields_of(algo)

    def switch(name: str) -> bool:
        field = fields[name]
        turns = isinstance(field.default, bool) or field.default is None or get_origin(field.annotation) is Literal
        return turns or name in STRUCTURE

    return [name for name in others(algo) if switch(name)]


def untried(algo: str) -> list[str]:
    """Settings for which this file has neither another value nor a reason."""
    return [
        name for name in fields_of(algo) if name not in others(algo) and not {name, f"{algo}.{name}"} & ALONE.keys()
    ]


def needs_of(case: Case, *names: str) -> dict[str, Any]:
    """What these settings need, as far as the algorithm has it."""
    fields = fields_of(case.algo)
    needs = [NEEDS.get(f"{case.algo}.{name}", NEEDS.get(name, {})) for name in names]
    return {key: value for one in needs for key, value in one.items() if key in fields}


def pairs(case: Case) -> list[tuple[str, str]]:
    """All pairs of switches, without those of which one needs the other, or needs what the other excludes."""

    def fit(one: str, other: str) -> bool:
        mine, theirs = needs_of(case, one), needs_of(case, other)
        agree = all(theirs.get(key, value) == value for key, value in mine.items())
        return agree and one not in theirs and other not in mine

    return [(one, other) for one, other in itertools.combinations(switches(case.algo), 2) if fit(one, other)]


def small(algo: str) -> dict[str, Any]:
    """Settings of a run that takes a tenth of a second."""
    base: dict[str, Any] = {
        "streams": 4, "unroll": 8, "widths": (6,), "memory_size": 4, "sequence": 4, "epochs": 2, "minibatches": 2,
        "capacity": 1000, "batch": 8, "warmup": 32, "updates_per_step": 0.25, "lr": 1e-2, "lr_end": None, "wait": None,
        "widths_q": (6,), "mixer_width": 3, "hyper_width": 3,
    }  # fmt: skip
    fields = fields_of(algo)
    if "burn_in" in fields:
        base |= {"length": 4, "burn_in": 2}
    if "double" in fields:  # more updates, after which the online network and its target choose other actions
        base |= {"updates_per_step": 0.5}
    return {name: value for name, value in base.items() if name in fields}


@functools.cache
def environment(env: Any, streams: int) -> Environment:
    """The environment, examined once; the time limit is for computers that are busy."""
    config = load(
        {"algo": "ppo", "env": env, "preset": "none", "workers": 0, "streams": streams, "actor_timeout": 3600.0}
    )
    return open_environment(config)[0]


@functools.cache
def recorded(kind: str) -> str:
    """A folder with the unrolls of random actions in the environment with this kind of actions."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = load({"algo": "sac", "env": ENVIRONMENTS[False][kind], "preset": "none", "workers": 0, "streams": 4})
    here = environment(config.env, config.streams)
    algorithm = make_algorithm(config, here.spec)
    learner = Learner(
        algorithm, torch_device("cpu"), make_feed(config, open_data(config, here.spec, algorithm.plan)[0])
    )
    rollout = Rollout(rollout_spec(config, here, algorithm.plan), learner.weights(0), print)
    recorder = Recorder(Path(folder), config, here.spec)
    for _ in range(60):
        rollout.start()
        recorder.add(rollout.gather("all"))
    recorder.flush()
    rollout.close()
    return folder


@functools.cache
def _weights(case: Case, given: frozenset[tuple[str, Any]]) -> str:
    algo, env = case.algo, ENVIRONMENTS[algorithms.for_several(case.algo)][case.kind]
    settings = {**small(algo), **dict(given)}
    if getattr(algorithms.settings_class(algo), "data_only", False):
        settings["data"] = recorded(case.kind)
    config = load({"algo": algo, "env": env, "preset": "none", "workers": 0, "steps": 1000, **settings})
    here = environment(env, config.streams)
    algorithm = make_algorithm(config, here.spec)
    data = open_data(config, here.spec, algorithm.plan)[0]
    feed = make_feed(config, data)
    learner = Learner(algorithm, torch_device("cpu"), feed)

    def lost(error: Any) -> None:
        raise AssertionError(error)

    rollout: Any = Rollout(rollout_spec(config, here, algorithm.plan), learner.weights(0), lost)
    if config.replay_from is not None:
        rollout = OfflineRollout(1)
        fill(learner, [one.recording for one in data.sets], torch_device("cpu"))
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


def weights(case: Case, **settings: Any) -> str:
    """A hash of all weights after a few updates, or the line of the error if the settings are refused."""
    try:
        return _weights(case, frozenset(settings.items()))
    except ConfigError as error:
        return f"refused: {error}"


def alone(case: Case, name: str) -> str | None:
    """Why the setting has no effect: None if each of its values has one, "" without a reason."""
    for key in (name, f"{case.algo}.{name}"):
        if FOR_KIND.get(key, case.kind) != case.kind:
            return f"for {FOR_KIND[key]} actions"
    needs = needs_of(case, name)
    results = [weights(case, **needs)]
    results += [weights(case, **{**needs, name: value}) for value in others(case.algo)[name]]
    if (refused := next((result for result in results if result.startswith("refused")), None)) is not None:
        return refused
    return None if len(set(results)) == len(results) else ""


def pair(case: Case, one: str, other: str) -> list[tuple[str, str, str]]:
    """(setting, other setting, why the first has no effect once the second is set); empty if both have one.

    A refused pair is one of two settings that exclude each other: its reason is the line of the error.
    """
    values, needs = {name: all_values[0] for name, all_values in others(case.algo).items()}, needs_of(case, one, other)
    both = weights(case, **{**needs, one: values[one], other: values[other]})
    if both.startswith("refused"):
        return [(one, other, both)]
    found = []
    for first, second in ((one, other), (other, one)):
        if both == weights(case, **{**needs, second: values[second]}):
            places = [(name, cause) for name in (first, f"{case.algo}.{first}") for cause in (second, *needs)]
            reasons = [NOT_WITH[place] for place in places if place in NOT_WITH]
            kinds = [FOR_KIND.get(key, case.kind) for key in (first, f"{case.algo}.{first}")]
            reasons += [f"for {kind} actions" for kind in kinds if kind != case.kind]
            found.append((first, second, reasons[0] if reasons else ""))
    return found


def section(case: Case) -> tuple[list[str], int]:
    """Lines of the page about a case, and the number of settings without an effect and without a reason."""
    names = list(others(case.algo))
    without = [(name, "", reason) for name in names if (reason := alone(case, name)) is not None]
    useless = {name for name, _, _ in without}
    effective = [name for name in names if name not in useless]
    tried = [both for both in pairs(case) if not useless & set(both)]
    without += [line for one, other in tried for line in pair(case, one, other)]
    without += [(name, "", "") for name in untried(case.algo)]
    text = (
        f"{len(effective)} of {len(names)} settings change the weights: "
        f"{', '.join(f'`{name}`' for name in effective)}. In {len(tried)} pairs of switches each does"
        f"{', except:' if without else '.'}"
    )
    lines = [f"## {case}", "", textwrap.fill(text, 120, break_on_hyphens=False), ""]
    lines += ["| setting | with | why not |", "| --- | --- | --- |"] if without else []
    for first, second, reason in without:
        lines.append(f"| `{first}` | {f'`{second}`' if second else ''} | {reason or '**no reason known**'} |")
    return [*lines, ""], sum(not reason for _, _, reason in without)


def intro() -> str:
    """The first paragraphs of the page."""
    needs: dict[str, list[str]] = {}
    for name, values in NEEDS.items():
        key = ", ".join(f"`{key}` {value}" for key, value in values.items())
        needs.setdefault(key, []).append(f"`{name.partition('.')[2] or name}`")
    listed = "; ".join(f"with {key}: {', '.join(dict.fromkeys(names))}" for key, names in needs.items())
    text = (
        "Made by `python benchmarks/switches.py`: a few updates of tiny networks with another value of each setting "
        "alone, and with other values of each two switches. Switches are the settings that turn something on or off, "
        "or select another computation. If a setting changes no weight, the table says why. If a pair is refused, the "
        "table has the line that a user gets. Settings that need another one are tried together with it: "
    )
    text = textwrap.fill(f"{text}{listed}.", 120, break_long_words=False, break_on_hyphens=False)
    never = "\n".join(f"- `{name}`: {reason}" for name, reason in ALONE.items())
    return f"# Switches: which settings change what is learnt\n\n{text}\n\nNot tried:\n\n{never}"


def write(title: str, text: str) -> None:
    """Adds a section to the page, or replaces it."""
    page = PAGE.read_text() if PAGE.exists() else ""
    sections = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in page.split("\n## ")[1:]}
    sections[title] = f"{text.rstrip()}\n"
    made = {name.partition(",")[0] for name in sections}
    missing = [f"`{algo}`" for algo in algorithms.names() if algo not in made]
    note = [f"Not made yet: {', '.join(missing)}.\n"] if missing else []
    PAGE.write_text("\n".join([f"{intro()}\n", *note, *(sections[name] for name in sorted(sections))]))


class Unprotected:
    """In place of the settings that an environment has in this process: those of this file change nothing in it."""

    unchanged = True

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def end(self) -> None: ...


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    process_state.LocalSettings = Unprotected  # type: ignore[misc, assignment]  # a third of the time
    gc.freeze()  # another third: the end of a run collects garbage
    total = 0
    for case in itertools.chain.from_iterable(map(cases, names or algorithms.names())):
        lines, faults = section(case)
        print("\n".join(lines), flush=True)
        write(str(case), "\n".join(lines))
        total += faults
    print(f"{total} without a reason")
    return bool(total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
