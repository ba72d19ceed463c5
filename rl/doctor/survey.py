"""Longer random play: lengths, ends, rewards, columns of observations, times; and advice that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from rltrain.config import presets
from rltrain.config.run_config import cores
from rltrain.doctor.findings import NOTE, WARNING, Finding
from rltrain.doctor.play import Budget, Play, numbers
from rltrain.envs.spec import EnvSpec

MOST_ROWS = 500  # of observations that are kept
MOST_NUMBERS = 5_000_000  # in them
LARGE_REWARD = 1e4
ENDLESS = 5_000  # steps without an end
SLOW_RESET = 0.05  # seconds
GAMMAS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.997, 0.999)


@dataclass
class Survey:
    """What random play has shown."""

    steps: int = 0
    lengths: list[int] = field(default_factory=list)  # of episodes that ended
    returns: list[float] = field(default_factory=list)
    terminated: int = 0
    rewards: list[float] = field(default_factory=list)
    columns: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # [rows, numbers of an observation]
    reset_seconds: float = 0.0  # smallest: other programs cannot make it shorter
    step_seconds: float = 0.0  # median


def of(play: Play, seed: int, steps: int, seconds: float) -> Survey:
    """Random play of at most `steps` steps and `seconds`."""
    result, rng, budget = Survey(), np.random.default_rng(seed), Budget(seconds)
    row = play.reset(seed)
    size = len(numbers(row.obs))
    rows = max(2, min(MOST_ROWS, MOST_NUMBERS // max(size, 1)))
    kept, every, total, length = [numbers(row.obs)], 1, 0.0, 0
    while result.steps < steps and (result.steps < 2 or budget.is_left):
        row = play.step(play.choose(rng))
        result.steps += 1
        length += 1
        total += row.reward
        result.rewards.append(row.reward)
        if result.steps % every == 0:
            kept.append(numbers(row.obs))
            if len(kept) > rows:
                kept, every = kept[::2], every * 2
        if row.over:
            result.lengths.append(length)
            result.returns.append(total)
            result.terminated += row.terminated
            total, length = 0.0, 0
            row = play.reset()
    result.columns = np.array(kept)
    result.reset_seconds, result.step_seconds = min(play.seconds["reset"]), median(play.seconds["step"] or [0.0])
    return result


def findings(found: Survey, spec: EnvSpec) -> list[Finding]:
    seen = f"{found.steps:,} steps of random play, {len(found.lengths)} episodes"
    lines = []

    def add(level: str, kind: str, text: str, hint: str) -> None:
        lines.append(Finding(level, kind, text, hint, seen))

    rewards = np.array(found.rewards)
    largest = float(np.abs(rewards).max()) if len(rewards) else 0.0
    if largest >= LARGE_REWARD:
        add(WARNING, "reward", f"rewards are as large as {largest:g}", "divide them; or --normalize-return")
    if len(rewards) and not rewards.any():
        text = "the reward was 0 in every step: it is rare, or forgotten"
        add(NOTE, "reward", text, "check a good episode by hand; random play that never sees a reward learns slowly")
    columns = found.columns
    if columns.shape[0] > 2 and columns.shape[1]:
        constant = (columns == columns[0]).all(axis=0)
        if constant.all():
            add(WARNING, "observation", "the observation never changes", "return the state; a policy sees nothing")
        elif constant.any() and not any(leaf.kind == "image" for leaf in spec.leaves()):
            text = f"{int(constant.sum())} of {len(constant)} numbers of the observation never changed"
            add(NOTE, "observation", text, "leave them out if they cannot change")
    if not found.lengths and spec.max_steps is None:
        text = f"no episode ended in {found.steps:,} steps, and there is no limit of steps"
        level = WARNING if found.steps >= ENDLESS else NOTE
        add(level, "end", text, "set max_episode_steps, or wrap it in gymnasium.wrappers.TimeLimit")
    if len(found.lengths) > 4 and len(set(found.lengths)) == 1:
        length, share = found.lengths[0], found.terminated / len(found.lengths)
        if share == 1.0 and length > 1 and not spec.groups:
            text = f"every episode was terminated after {length} steps, whatever was done: this looks like a time limit"
            add(NOTE, "end", text, "report a limit of time as truncated, or values are learned wrongly")
    episode = found.step_seconds * (float(np.mean(found.lengths)) if found.lengths else found.steps)
    if found.reset_seconds >= SLOW_RESET and found.reset_seconds > episode:
        share = found.reset_seconds / (found.reset_seconds + episode)
        text = f"a reset takes {found.reset_seconds:.2f} s, {share:.0%} of the time of an episode"
        add(WARNING, "time", text, "load and build once, in the constructor; with several workers others go on")
    return lines


def measured(found: Survey, spec: EnvSpec, constructors: Sequence[float]) -> dict[str, Any]:
    """Numbers for the report and for programs."""
    result: dict[str, Any] = {
        "observation_numbers": int(found.columns.shape[1]),
        "steps": found.steps,
        "episodes": len(found.lengths),
        "make_seconds": median(constructors),
        "reset_seconds": found.reset_seconds,
        "step_seconds": found.step_seconds,
        "max_steps": spec.max_steps,
    }
    if found.lengths:
        lengths = np.array(found.lengths)
        result |= {"length_mean": float(lengths.mean()), "length_max": int(lengths.max())}
        result |= {"return_mean": float(np.mean(found.returns)), "terminated": found.terminated / len(lengths)}
    if found.rewards:
        result |= {"reward_min": min(found.rewards), "reward_max": max(found.rewards)}
    if found.columns.size:
        deviations = found.columns.std(axis=0)
        result |= {"observation_min": float(found.columns.min()), "observation_max": float(found.columns.max())}
        result |= {"observation_std_max": float(deviations.max())}
    return result


def advice(found: Survey, spec: EnvSpec, values: dict[str, Any]) -> list[str]:
    """How to train on it, one line each."""
    images = any(leaf.kind == "image" for leaf in spec.leaves())
    slow = found.step_seconds >= 1e-3
    lines = [f"algorithm: {_algorithm(spec, images, slow)}"]
    tuned = [algo for algo in ("ppo", "sac", "dqn", "mappo", "qmix") if presets.find(algo, spec.id) is not None]
    if tuned:
        lines.append(f"tuned settings are there for {', '.join(tuned)}; they are used without a flag")
    if not images and values.get("observation_std_max", 0.0) > 10:
        lines.append(f"observations vary by up to {values['observation_std_max']:.3g}: --normalize-obs")
    if values.get("reward_max") is not None and max(abs(values["reward_min"]), abs(values["reward_max"])) > 20:
        lines.append(f"rewards from {values['reward_min']:.3g} to {values['reward_max']:.3g}: --normalize-return")
    if images and not any(leaf.stack for leaf in spec.leaves()):
        lines.append("one frame shows no motion: gymnasium.wrappers.FrameStackObservation, or --memory gru")
    length = spec.max_steps or values.get("length_max")
    if length is not None:
        gamma = next((gamma for gamma in GAMMAS if 1 / (1 - gamma) >= length / 5), GAMMAS[-1])
        lines.append(f"episodes of up to {length:,} steps: --gamma {gamma:g} or more if rewards come late")
    lines.append(_processes(found.step_seconds))
    return lines


def _algorithm(spec: EnvSpec, images: bool, slow: bool) -> str:
    if spec.groups:
        return "mappo" + (" (qmix if all agents have one goal)" if spec.action.kind != "box" else " or maddpg")
    if spec.action.kind == "box":
        return "sac, because steps are slow" if slow else "ppo if steps are cheap, sac if they are expensive"
    if slow and not images and spec.action.kind == "discrete":
        return "dqn, because steps are slow"
    return "ppo" + (", or dqn with more memory and time" if images and spec.action.kind == "discrete" else "")


def _processes(step_seconds: float) -> str:
    """Workers and streams, from the time of a step: a worker pays off if its steps take longer than the exchange."""
    count, rate = cores(), 1 / max(step_seconds, 1e-7)
    micro = step_seconds * 1e6
    if micro < 20:
        return f"a step takes {micro:.0f} us ({_short(rate)}/s): --workers 0 to 2 is enough, with --streams 8 or more"
    streams = count * (2 if micro >= 1000 else 4)
    return f"a step takes {micro:,.0f} us ({_short(rate)}/s): --workers {count}, --streams {streams} on this machine"


def _short(value: float) -> str:
    exponent = max(0, 3 * int(math.log10(max(value, 1)) // 3))
    return f"{value / 10**exponent:.3g}{ {0: '', 3: 'k', 6: 'M'}.get(exponent, '') }".replace(" ", "")
