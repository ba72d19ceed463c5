"""`rldata check`: each mistake that data sets are known for is found, and sound data has no finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain.data.check import findings
from rltrain.data.episodes import Recorded, episodes_of
from rltrain.envs.spec import EnvSpec
from rltrain.storage.recording import Recording

Data = tuple[list[Recorded], EnvSpec]


def recorded(folder: Path, env: str, steps: int) -> Data:
    some: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
    some |= {"widths": (8,), "batch": 8}
    rltrain.train(
        algo="sac", env=env, **some, steps=steps, warmup=steps - 1, streams=4, out=str(folder), record=folder / env
    )
    recording = Recording.open(folder / env)
    return list(episodes_of(recording)), recording.spec


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """16 episodes that all end by the time limit."""
    return recorded(tmp_path_factory.mktemp("data"), "Pendulum-v1", 3200)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Random actions: episodes of many lengths that all terminate."""
    return recorded(tmp_path_factory.mktemp("data"), "CartPole-v1", 1500)


def test_sound_data_has_no_finding(pendulum: Data, cartpole: Data) -> None:
    assert findings(*pendulum) == []
    assert findings(*cartpole) == []
    assert all(one.truncated for one in pendulum[0])


def repeated_last(one: Recorded) -> Recorded:
    return replace(one, obs=[np.concatenate([leaf[:-1], leaf[-2:-1]]) for leaf in one.obs])


def zero_last(one: Recorded) -> Recorded:
    return replace(one, obs=[np.concatenate([leaf[:-1], 0 * leaf[-1:]]) for leaf in one.obs])


def with_nan(one: Recorded) -> Recorded:
    obs = [leaf.copy() for leaf in one.obs]
    obs[0][3] = np.nan
    return replace(one, obs=obs)


MISTAKES: dict[str, tuple[str, str, Callable[[Recorded], Recorded]]] = {  # data, kind of the finding, the mistake
    "time limits as terminations": (
        "pendulum", "time limits", lambda one: replace(one, terminated=True, truncated=False)),
    "no ends": ("cartpole", "wrong ends", lambda one: replace(one, terminated=False)),
    "both ends": ("cartpole", "wrong ends", lambda one: replace(one, truncated=True)),
    "NaN": ("cartpole", "not finite", with_nan),
    "infinite reward": ("cartpole", "not finite", lambda one: replace(one, reward=one.reward * np.float32(np.inf))),
    "actions out of range": ("pendulum", "out of range", lambda one: replace(one, action=2 * one.action)),
    "actions from 1": ("cartpole", "out of range", lambda one: replace(one, action=one.action + 1)),
    "repeated last": ("cartpole", "last observations", repeated_last),
    "repeated last, time limit": ("pendulum", "last observations", repeated_last),
    "no last": ("cartpole", "last observations", zero_last),
    "one observation short": (
        "cartpole", "missing observations", lambda one: replace(one, obs=[leaf[:-1] for leaf in one.obs])),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, pendulum: Data, cartpole: Data) -> None:
    which, kind, mistake = MISTAKES[name]
    episodes, spec = pendulum if which == "pendulum" else cartpole
    found = findings([mistake(one) for one in episodes], spec)

    assert kind in [finding.kind for finding in found], found
    assert all("\n" not in finding.text for finding in found)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_rewards_that_are_shifted_by_a_step(shift: int, pendulum: Data) -> None:
    """Of a random walk that is paid for where it is and what it does: other steps say less about a reward."""
    spec, rng, episodes = pendulum[1], np.random.default_rng(0), []
    for _ in range(8):
        obs = rng.normal(size=(101, 3)).cumsum(0).astype(np.float32) / 5
        action = rng.uniform(-1, 1, (100, 1)).astype(np.float32)
        reward = (-(obs[:-1] ** 2).sum(1) - action[:, 0] ** 2).astype(np.float32)
        episodes.append(Recorded([obs], action, np.roll(reward, shift), False, True))

    found = findings(episodes, spec)
    assert [finding.kind for finding in found] == (["shifted rewards"] if shift else [])
    assert not shift or ("before" if shift > 0 else "after") in found[0].text


def test_the_first_observation_of_the_next_episode_as_the_last_one(cartpole: Data) -> None:
    """As where observations were taken from an environment that resets by itself."""
    episodes, spec = cartpole
    wrong = [
        replace(one, obs=[np.concatenate([a[:-1], b[:1]]) for a, b in zip(one.obs, other.obs, strict=True)])
        for one, other in pairwise(episodes)
    ]
    assert [finding.kind for finding in findings(wrong, spec)] == ["last observations"]


def test_an_end_that_is_missing_between_two_episodes(pendulum: Data) -> None:
    episodes, spec = pendulum
    one, other = episodes[:2]
    joined = replace(
        one,
        obs=[np.concatenate([a[:-1], b]) for a, b in zip(one.obs, other.obs, strict=True)],
        action=np.concatenate([one.action, other.action]),
        reward=np.concatenate([one.reward, other.reward]),
        extras={name: np.concatenate([array, other.extras[name]]) for name, array in one.extras.items()},
    )
    assert "longer than the time limit of 200" in findings([joined, *episodes[2:]], spec)[0].text


def test_duplicates_and_mixed_spaces(cartpole: Data) -> None:
    episodes, spec = cartpole
    (twice,) = findings([*episodes, episodes[3], episodes[5]], spec)
    assert twice.kind == "duplicates"
    assert twice.text.startswith(f"2 of {len(episodes) + 2} episodes (numbers {len(episodes)}, {len(episodes) + 1})")
    other = replace(episodes[4], obs=[leaf[:, :3] for leaf in episodes[4].obs])
    (mixed,) = findings([*episodes[:4], other], spec)
    assert mixed.text.startswith("observation leaf 0 is float32 (3,) in 1 of 5 episodes (numbers 4); its space is")
    double = replace(episodes[4], obs=[leaf.astype(np.float64) for leaf in episodes[4].obs])
    assert [finding.kind for finding in findings([double], spec)] == ["mixed spaces"]


def test_actions_that_a_mask_forbids(cartpole: Data) -> None:
    episodes, spec = cartpole
    legal = [replace(one, mask=np.eye(2, dtype=bool)[np.append(one.action, 0)]) for one in episodes]
    masked = replace(spec, action_mask=True)
    assert findings(legal, masked) == []
    wrong = [replace(one, mask=~one.mask) for one in legal if one.mask is not None]
    assert [finding.kind for finding in findings(wrong, masked)] == ["illegal actions"]
