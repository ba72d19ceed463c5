"""EnvPool, where it is installed: its ends, its seeds, and the layout that streams need."""

from __future__ import annotations

import numpy as np
import pytest

from rltrain.envs.errors import EnvError
from rltrain.envs.make import read_spec, resolve, vector, vector_kind
from rltrain.envs.spec import Leaf
from rltrain.envs.vector.native import check_autoreset
from rltrain.envs.vector.restore_check import verify
from rltrain.rollout.buffers import empty_rows

LIMIT = {"max_episode_steps": 12}


def test_a_missing_package_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(EnvError, match="pip install envpool"):
        resolve("envpool:Pong-v5").make()


@pytest.fixture
def envpool():
    return pytest.importorskip("envpool")


@pytest.mark.usefixtures("envpool")
def test_names_and_arguments():
    spec = read_spec(resolve("envpool:Pong-v5"), 0)
    assert spec.obs == Leaf("image", (4, 84, 84), "uint8")
    assert (spec.action.nvec, spec.max_steps) == ((6,), 27_000)
    with pytest.raises(EnvError, match="Did you mean 'envpool:Pong-v5'"):
        resolve("envpool:Pnog-v5").make()
    with pytest.raises(EnvError, match="Did you mean 'frame_skip'"):
        resolve("envpool:Pong-v5", {"frameskip": 2}).make()


def rolled(kind, streams, seeds, steps, name="envpool:CartPole-v1", **kwargs):
    """All rows of an unroll under fixed actions."""
    source = resolve(name, kwargs)
    spec = read_spec(source, 0)
    env = vector(source, spec, streams, seeds, "none", kind, len(streams))
    rows = empty_rows(spec, steps, len(streams))
    actions = np.random.default_rng(0).integers(spec.action.nvec[0], size=(steps, len(streams)))
    env.reset(rows)
    for t in range(steps):
        env.step(actions[t], rows, t)
    env.close()
    return rows


@pytest.mark.usefixtures("envpool")
@pytest.mark.parametrize("kind", ["serial", "native"])
def test_ends_keep_their_observation_and_are_followed_by_a_reset_row(kind):
    """CartPole's final observation says itself why it is one; a time limit's is the true successor."""
    count = 16
    rows = rolled(kind, range(count), range(count), 120, max_episode_steps=30)
    first, terminated, truncated = rows.first[:, :count], rows.terminated[:, :count], rows.truncated[:, :count]
    obs, reward = rows.obs[:, :count], rows.reward[:, :count]
    ended = terminated | truncated
    assert terminated.any()
    assert truncated.any()
    assert np.array_equal(first[1:][1:], ended[:-1])
    outside = (np.abs(obs[1:, :, 0]) > 2.4) | (np.abs(obs[1:, :, 2]) > 12 * np.pi / 180)
    assert np.array_equal(outside & ~truncated, terminated)  # EnvPool calls an end in the very last step truncated
    assert (reward[first[1:]] == 0).all()
    assert (reward[~first[1:]] == 1).all()
    assert (np.abs(obs[first]) <= 0.05).all()
    lengths = [np.diff(np.flatnonzero(first[:, b])) for b in range(count)]
    assert max(int(x.max()) for x in lengths if x.size) <= 31  # 30 steps and the reset row


@pytest.mark.usefixtures("envpool")
def test_streams_have_their_own_seeds():
    together = rolled("serial", [0, 1, 2], [5, 6, 7], 60)
    alone = rolled("serial", [1], [6], 60)
    again = rolled("serial", [0, 1, 2], [5, 6, 7], 60)
    assert np.array_equal(together.obs, again.obs)
    assert np.array_equal(together.obs[0, 1], alone.obs[0, 0])
    assert not np.array_equal(together.obs[0, 0], together.obs[0, 1])


@pytest.mark.usefixtures("envpool")
def test_it_can_be_used_in_blocks_and_says_how_it_is_brought_back():
    source = resolve("envpool:CartPole-v1", {"max_episode_steps": 40})
    check_autoreset(source.make_block, read_spec(source, 0))
    assert vector_kind(source, 8) == "serial"
    assert vector_kind(source, 128) == "native"
    assert vector_kind(resolve("envpool:Pong-v5", {"episodic_life": True}), 128) == "serial"
    assert verify(source.make, read_spec(source, 0), 0, seconds=30.0) in ("rng", "seed")


@pytest.mark.usefixtures("envpool")
def test_pongs_time_limit_truncates():
    rows = rolled("serial", [0], [3], 14, name="envpool:Pong-v5", **LIMIT)
    assert np.flatnonzero(rows.truncated[:, 0]).tolist() == [11]
    assert not rows.terminated.any()
    assert np.flatnonzero(rows.first[:, 0]).tolist() == [0, 13]
