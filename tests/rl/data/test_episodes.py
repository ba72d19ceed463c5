"""Episodes of a recording are those of the run, and a recording that is made of them holds them again, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain.data.episodes import Recorded, episodes_of, write
from rltrain.errors import ConfigError
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.storage import recording as record
from rltrain.storage.recording import Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
PPO: dict[str, Any] = {"algo": "ppo", **QUIET, "epochs": 1, "minibatches": 1, "widths": (8,), "streams": 3}
PPO |= {"unroll": 16, "steps": 400}


def same(one: Sequence[Recorded], other: Sequence[Recorded]) -> None:
    """Every field, to the bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.terminated, a.truncated, a.whole, a.extras.keys()) == (
            b.terminated, b.truncated, b.whole, b.extras.keys(),
        )  # fmt: skip
        pairs = [*zip(a.obs, b.obs, strict=True), (a.action, b.action), (a.reward, b.reward)]
        pairs += [(a.extras[name], b.extras[name]) for name in a.extras]
        assert (a.mask is None) == (b.mask is None)
        pairs += [] if a.mask is None else [(a.mask, b.mask)]
        for x, y in pairs:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def recorded(folder: Path, **given: Any) -> Path:
    rltrain.train(**PPO | given, out=str(folder / "runs"), record=folder / "rec")
    return folder / "rec"


@pytest.mark.parametrize(
    "env",
    [
        pytest.param("CartPole-v1", marks=pytest.mark.sweep),
        "Pendulum-v1",
        "probe:dict",
        "probe:masked",
        pytest.param("probe:image", marks=pytest.mark.sweep),
    ],
)
def test_what_is_written_is_read_again(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FILE_BYTES", 3000)  # several pieces
    source = Recording.open(recorded(tmp_path, env=env))
    episodes = list(episodes_of(source))
    assert sum(one.steps for one in episodes) == source.steps
    assert len(list(source.pieces())) > 1

    assert write(tmp_path / "again", source.spec, episodes, {"imported": "x"}) == len(episodes)
    same(episodes, list(episodes_of(Recording.open(tmp_path / "again"))))


def test_episodes_are_those_that_the_run_counted(tmp_path: Path) -> None:
    source = Recording.open(recorded(tmp_path, env="CartPole-v1"))
    counted = sorted((one.ret, one.length) for piece in source.pieces() for one in piece.episodes)
    ended = [one for one in episodes_of(source) if one.terminated or one.truncated]

    assert sorted((one.ret, one.steps) for one in ended) == counted
    assert len([one for one in episodes_of(source) if not (one.terminated or one.truncated)]) <= 3


def drawn(folder: Path) -> set[tuple[float, ...]]:
    """Every transition that a replay of this recording has."""
    source = Recording.open(folder)
    plan = ReplayPlan(unroll=1, capacity=4000 * source.streams, batch=4000, warmup=0, updates_per_step=1.0, gamma=0.9)
    replay = Replay(source.spec, source.streams, plan, 0)
    for piece in source.pieces():
        replay.append(piece)
    batch = replay.sample(0.0)
    rows = zip(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, strict=True)
    return {tuple(float(x) for part in row for x in np.ravel(part)) for row in rows}


@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.sweep)])
def test_a_replay_of_the_written_recording_has_the_same_transitions(env: str, tmp_path: Path) -> None:
    """Last observations, terminations and time limits too; also of episodes that the end of the data cuts off."""
    folder = recorded(tmp_path, env=env, steps=250)
    source = Recording.open(folder)
    write(tmp_path / "again", source.spec, episodes_of(source), {})

    assert drawn(folder) == drawn(tmp_path / "again")


def test_an_episode_that_lost_its_start_is_not_joined_to_the_one_before(tmp_path: Path) -> None:
    source = Recording.open(recorded(tmp_path, env="CartPole-v1"))
    episodes = list(episodes_of(source))
    episodes[1] = replace(episodes[1], whole=False)
    episodes[2] = replace(episodes[2], terminated=False)  # its end is lost
    write(tmp_path / "again", source.spec, episodes, {})

    same(episodes, list(episodes_of(Recording.open(tmp_path / "again"))))


def test_no_episodes_and_a_folder_that_holds_something(tmp_path: Path) -> None:
    source = Recording.open(recorded(tmp_path, env="CartPole-v1"))
    with pytest.raises(ConfigError, match="there are no episodes to write"):
        write(tmp_path / "none", source.spec, [], {})
    with pytest.raises(ConfigError, match="holds a recording"):
        write(tmp_path / "rec", source.spec, episodes_of(source), {})
