"""Atari: what a step is made of, written out; ends, lives, seeds; and games that are brought back exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rltrain.envs.errors import EnvError
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.suites.atari import Atari, find, title
from rltrain.envs.vector.restore_check import verify
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.rollout.actor.episodes import EpisodeTracker
from rltrain.rollout.actor.play import play
from rltrain.rollout.buffers import empty_rows

ale_py = pytest.importorskip("ale_py")
cv2 = pytest.importorskip("cv2")


def random_actions(env, steps, seed=0):
    return np.random.default_rng(seed).integers(env.action_space.n, size=steps)


def walk(env, actions, seed=None):
    """Rows of (obs, reward, terminated, truncated), new games included."""
    rows = []
    if seed is not None:
        rows.append((env.reset(seed=seed)[0], 0.0, False, False))
    for action in actions:
        if rows and (rows[-1][2] or rows[-1][3]):
            rows.append((env.reset()[0], 0.0, False, False))
        else:
            rows.append(env.step(action)[:4])
    return rows


def same(one, other):
    return all(
        np.array_equal(a[0], b[0]) and tuple(a[1:]) == tuple(b[1:]) for a, b in zip(one, other, strict=True)
    ) and len(one) == len(other)


def test_a_step_is_four_frames_the_newest_two_maximised_and_resized():
    """Against ale-py's emulator, driven frame by frame, without sticky actions or no-ops."""
    env = Atari("breakout", repeat_action_probability=0.0, noop_max=0)
    obs, _ = env.reset(seed=0)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path("breakout"))
    ale.reset_game()
    ale.act(ale_py.Action.NOOP)

    def shrunk(screen):
        return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)

    frames = [shrunk(ale.getScreenGrayscale())] * 4
    assert np.array_equal(obs, np.stack(frames))
    for action in random_actions(env, 300):
        reward, screens = 0, []
        for _ in range(4):
            reward += ale.act(ale.getMinimalActionSet()[action])
            screens.append(ale.getScreenGrayscale().copy())
        frames = [*frames[1:], shrunk(np.maximum(screens[2], screens[3]))]
        obs, given, terminated, truncated, _ = env.step(action)
        assert np.array_equal(obs, np.stack(frames))
        assert given == reward
        assert not truncated
        if terminated:
            break
    assert terminated
    assert ale.game_over()


def test_observations_are_not_written_over():
    env = Atari("pong")
    obs, _ = env.reset(seed=0)
    kept, copy = [obs], [obs.copy()]
    for action in random_actions(env, 8):
        obs = env.step(action)[0]
        kept.append(obs)
        copy.append(obs.copy())
    assert all(map(np.array_equal, kept, copy))


def test_a_stack_ends_with_the_old_game_and_begins_with_the_new_one():
    """The final observation follows its predecessor; the first one is one frame, four times."""
    env = Atari("breakout")
    rows = walk(env, random_actions(env, 1200), seed=3)
    resets = [t for t in range(1, len(rows)) if rows[t - 1][2] or rows[t - 1][3]]
    assert resets
    for t in range(1, len(rows)):
        if t in resets:
            assert all(np.array_equal(rows[t][0][0], frame) for frame in rows[t][0])
        else:
            assert np.array_equal(rows[t][0][:-1], rows[t - 1][0][1:])


def test_sticky_actions_are_drawn_for_each_frame():
    env = Atari("pong", repeat_action_probability=0.25)
    env.reset(seed=0)
    executed, act = [], env._ale.act

    class Recording:
        def __getattr__(self, name):
            return getattr(ale, name)

        def act(self, action):
            executed.append(action)
            return act(action)

    ale, env._ale = env._ale, Recording()
    asked = []
    for t in range(4000):
        asked.append(env._actions[t % 2 + 1])
        if any(env.step(t % 2 + 1)[2:4]):
            break
    assert len(asked) > 500
    assert len(executed) == 4 * len(asked)
    wrong = np.array([ran != asked[k // 4] for k, ran in enumerate(executed)]).reshape(-1, 4).mean(0)
    # frame k still repeats the step before if every draw up to it said so
    assert np.allclose(wrong, 0.25 ** np.arange(1, 5), atol=0.04)


def test_no_ops_are_one_to_thirty():
    env = Atari("pong", noop_max=30)
    counts = []
    for seed in range(200):
        env.reset(seed=seed)
        counts.append(env._ale.getEpisodeFrameNumber())
    least = Atari("pong", noop_max=0)
    least.reset(seed=0)
    counts = np.array(counts) - least._ale.getEpisodeFrameNumber()
    assert counts.min() == 1
    assert counts.max() == 30


def test_too_many_frames_truncate():
    env = Atari("pong", max_num_frames_per_episode=201, noop_max=0)
    env.reset(seed=0)
    assert env.spec.max_episode_steps == 51
    ends = [env.step(0)[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(False, True)]


def test_seeds_make_the_game_and_a_used_instance_is_like_a_new_one():
    one, two = Atari("ms_pacman"), Atari("ms_pacman")
    actions = random_actions(one, 400)
    walk(two, actions[:150], seed=9)
    first = walk(one, actions, seed=1)
    assert same(first, walk(two, actions, seed=1))
    assert not same(first, walk(two, actions, seed=2))


@pytest.mark.parametrize(
    "game",
    [
        "pong",
        pytest.param("qbert", marks=pytest.mark.sweep),
        pytest.param("tetris", marks=pytest.mark.sweep),
        pytest.param("montezuma_revenge", marks=pytest.mark.sweep),
    ],
)
def test_a_game_is_brought_back_exactly(game):
    """These are the games in which parts of the hardware are missing in a state taken right after a reset."""
    one, two = Atari(game, terminal_on_life_loss=True), Atari(game, terminal_on_life_loss=True)
    actions = random_actions(one, 700)
    walk(two, actions[:60], seed=8)
    walk(one, actions[:300], seed=1)
    obs, _ = two.set_state({key: np.copy(v) if isinstance(v, np.ndarray) else v for key, v in one.get_state().items()})
    assert np.array_equal(obs, one._frames)
    two.np_random = np.random.Generator(np.random.PCG64())
    two.np_random.bit_generator.state = one.np_random.bit_generator.state
    assert same(walk(one, actions[300:]), walk(two, actions[300:]))


def test_a_run_finds_that_out():
    source = resolve("ALE/Breakout-v5")
    assert verify(source.make, read_spec(source, 0), 0, seconds=30.0) == "offered"


def test_a_lost_life_ends_the_episode_for_learning_and_not_for_reports():
    """The same actions in a game without the switch: every reward, and the return of the whole game, is the same."""
    source = resolve("ALE/Breakout-v5", {"terminal_on_life_loss": True})
    spec = read_spec(source, 0)
    env = SerialVectorEnv(source.make, spec, [0], [5], restore_method="none")
    rows, tracker = empty_rows(spec, 900, 1), EpisodeTracker(1)
    actions = np.random.default_rng(1).integers(4, size=(900, 1))
    env.reset(rows)
    for t in range(900):
        env.step(actions[t], rows, t)
    terminated, goes_on, first = rows.terminated[:, :1], rows.episode_continues[:, :1], rows.first[:, :1]
    episodes = tracker.add(rows.reward[:, :1], terminated & ~goes_on, ~first[1:])

    whole = Atari("breakout")
    whole.reset(seed=5)
    returns, ret, length = [], 0.0, 0
    for t in range(900):
        if first[t + 1, 0]:
            if not goes_on[t - 1, 0]:
                whole.reset()
            continue
        _, reward, over, _, _ = whole.step(actions[t, 0])
        assert reward == rows.reward[t, 0]
        assert over == (terminated[t, 0] and not goes_on[t, 0])
        ret, length = ret + reward, length + 1
        if over:
            returns.append((ret, length))
            ret, length = 0.0, 0
    assert len(returns) >= 2
    assert [(episode.ret, episode.length) for episode in episodes] == returns
    assert goes_on.sum() >= 4 * len(returns)  # five lives
    assert np.array_equal(first[1:][1:], terminated[:-1])  # each end is followed by a reset row, a life's too


class Fires:
    """A policy that looks at nothing."""

    core_size = 0
    sequence = 1

    def __init__(self):
        from rltrain.algorithms.protocol import Noise

        self.noise = Noise("uniform", 1)

    def act(self, obs, core, mask, noise, explore):
        import torch

        from rltrain.algorithms.protocol import Act

        return Act(torch.ones(len(noise), dtype=torch.int64), {}, None)


def test_evaluation_plays_whole_games():
    found = []
    for by_life in (False, True):
        source = resolve("ALE/Breakout-v5", {"terminal_on_life_loss": by_life, "full_action_space": False})
        found.append(play(source.make, read_spec(source, 0), Fires(), [1, 2]))
    assert found[0] == found[1]
    assert all(episode.length > 50 for episode in found[0])


def test_names():
    assert title("ms_pacman") == "ALE/MsPacman-v5"
    assert find("CartPole-v1") is None
    for name in ("ALE/MsPacman-v5", "atari:MsPacman", "atari:ms_pacman"):
        spec = read_spec(resolve(name), 0)
        assert (spec.id, spec.obs.shape, spec.obs.stack, spec.max_steps) == (name, (4, 84, 84), 4, 27_000)
    with pytest.raises(EnvError, match=r"unknown game 'ALE/Pnog-v5'. Did you mean 'ALE/Pong-v5'\?"):
        resolve("ALE/Pnog-v5").make()
    with pytest.raises(EnvError, match="Did you mean 'frameskip'"):
        resolve("ALE/Pong-v5", {"frame_skip": 2}).make()
    for wrong in ({"frameskip": 0}, {"mode": 77}, {"repeat_action_probability": 1.0}):
        with pytest.raises(EnvError, match=next(iter(wrong))):
            resolve("ALE/Pong-v5", wrong).make()


def test_switches_reach_the_game():
    source = resolve(
        "ALE/Pong-v5", {"stack": 2, "screen_size": 42, "frameskip": 2, "full_action_space": True, "mode": 1}
    )
    spec = read_spec(source, 0)
    assert (spec.obs.shape, spec.obs.stack, spec.action.nvec, spec.max_steps) == ((2, 42, 42), 2, (18,), 54_000)
    assert resolve("atari:pong", {"render_mode": "rgb_array"}).make().render().shape == (210, 160, 3)


def test_a_run_on_pixels_repeats_and_reports_raw_returns(tmp_path, fork_server):
    """Pellets are worth 10: learnt from as 1, reported as 10. The bits do not depend on the workers."""
    import rltrain

    prints = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        result = rltrain.train(
            algo="ppo",
            env="ALE/MsPacman-v5",
            env_args={"max_num_frames_per_episode": 300, "screen_size": 36},
            steps=192,
            streams=2,
            workers=workers,
            unroll=96,
            minibatches=2,
            epochs=1,
            eval_every=0,
            out=str(folder),
            quiet=True,
        )
        prints.append(result.fingerprint)
        line = json.loads(next(folder.rglob("metrics.jsonl")).read_text().splitlines()[-1])
        assert line["rollout/return_mean"] >= 10
    assert prints[0] == prints[1]
